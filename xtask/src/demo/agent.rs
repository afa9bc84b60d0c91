//! The agent under demonstration: `flowlogd run` inside the node's namespace.
//!
//! In: its binary, the manifests, a folder. Out: when it observes, what it said of itself, its clean end.
//! What always holds: the environment's own configuration of an agent does not reach it; its log is kept beside its lines.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;

use super::cluster::NODE_NAME;
use crate::netns::{Namespace, Process};

const START_PATIENCE: Duration = Duration::from_secs(30);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// What it logs once it observes.
const READY: &str = "flowlogd observes this node";

pub struct Agent {
    process: Process,
    log: PathBuf,
    /// The source of connections that it chose.
    pub source: String,
    /// What it says of drops.
    pub drops: String,
}

impl Agent {
    /// Returns when it observes.
    pub fn start(
        node: &Namespace,
        binary: &Path,
        folder: &Path,
        cluster: &Path,
        wished: &super::Arguments,
    ) -> anyhow::Result<Self> {
        let log = folder.join("agent.log");
        let directory = format!("flowLogsFileDirectory={}", folder.display());
        let cluster = cluster.to_str().context("the temporary directory's path is no text")?;
        let collectors: &[&str] = if wished.collect {
            &["--set", "flowLogsCollectProcessInfo=true", "--set", "flowLogsCollectTcpStats=true"]
        } else {
            &[]
        };
        let arguments = [
            "run",
            "--node",
            NODE_NAME,
            "--cluster",
            cluster,
            "--source",
            &wished.source,
            "--set",
            "flowLogsFlushInterval=5s",
            "--set",
            &directory,
        ];
        let arguments: Vec<_> = arguments.iter().chain(collectors).map(AsRef::as_ref).collect();
        let process = node.start(
            binary.as_os_str(),
            &arguments,
            File::create(folder.join("agent.out"))?,
            File::create(&log)?,
        )?;
        let until = Instant::now() + START_PATIENCE;
        loop {
            let said = fs::read_to_string(&log)?;
            if let Some(line) = said.lines().find(|line| line.contains(READY)) {
                let field = |name| {
                    field(line, name).with_context(|| format!("flowlogd's log does not say {name}: {line}"))
                };
                return Ok(Self { source: field("source")?, drops: field("drops")?, process, log });
            }
            ensure!(process.is_running(), "flowlogd ended at its start:\n{}", said.trim_end());
            if Instant::now() > until {
                bail!("flowlogd does not observe after {START_PATIENCE:?}:\n{}", said.trim_end());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// SIGTERM, and its last window.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let status = self.process.stop(Signal::TERM, STOP_PATIENCE)?;
        let said = fs::read_to_string(&self.log)?;
        ensure!(status.success(), "flowlogd ended with {status}:\n{}", said.trim_end());
        // What it warned of is worth a reader's time.
        for line in said.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")) {
            eprintln!("demo: flowlogd says: {}", line.trim());
        }
        Ok(())
    }

    /// Drops are observed here.
    pub fn sees_drops(&self) -> bool {
        !self.drops.starts_with("off")
    }
}

/// `name=value` or `name="va lue"` of a log line.
fn field(line: &str, name: &str) -> Option<String> {
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    let value = match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split_whitespace().next(),
    };
    value.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_log_line() {
        let line =
            r#"INFO flowlogd: flowlogd observes this node source="netlink" drops="off: no BTF" node=demo"#;
        assert_eq!(field(line, "drops").as_deref(), Some("off: no BTF"));
        assert_eq!(field(line, "node").as_deref(), Some("demo"));
        assert_eq!(field(line, "cluster"), None);
    }
}
