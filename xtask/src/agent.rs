//! The agent: `flowlogd run` inside a node's namespace.
//!
//! In: its binary, a folder for its lines, flags. Out: when it observes, what it said of itself, its clean end.
//! What always holds: the environment's own configuration of an agent does not reach it; its log is kept beside its lines.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;

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
    /// Returns when it observes. `flags` come after `run` and the directory of its lines, which is `folder`.
    ///
    /// # Errors
    /// It ends at its start, or does not observe in time; the message has what it logged.
    pub fn start(node: &Namespace, binary: &Path, folder: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let log = folder.join("agent.log");
        let directory = format!("flowLogsFileDirectory={}", folder.display());
        let arguments = ["run", "--set", &directory];
        let arguments: Vec<_> = arguments.iter().chain(flags).map(AsRef::as_ref).collect();
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

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGTERM, and its last window. What it warned of is worth a reader's time.
    pub fn stop(mut self) -> anyhow::Result<Vec<String>> {
        let status = self.process.stop(Signal::TERM, STOP_PATIENCE)?;
        let said = fs::read_to_string(&self.log)?;
        ensure!(status.success(), "flowlogd ended with {status}:\n{}", said.trim_end());
        let warns = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
        Ok(said.lines().filter(warns).map(|line| line.trim().to_owned()).collect())
    }

    /// Drops are observed here.
    pub fn sees_drops(&self) -> bool {
        !self.drops.starts_with("off")
    }
}

/// `flows.log` and what it was rotated to.
pub fn log_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let is_log = |name: &str| {
        name == "flows.log"
            || name.strip_prefix("flows.log.").is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    Ok(entries
        .flatten()
        .filter(|entry| is_log(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect())
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
