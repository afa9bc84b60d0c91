//! The real agent, as an operator runs it: the binary, its environment, signals, its file.
//!
//! In: a folder, a source, more environment. Out: its log, its exit, and the lines of `flows.log` and of the rotated
//! files. Level 0 for both actions, so that each connection has lines of its own. What always holds: an agent that a
//! case leaves behind is killed; a line that is not JSON is an error.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::reference::{Key, Sums};

const BINARY: &str = "/payload/flowlogd";
/// What the agent logs once it sees connections, with the fields `source` and `drops`.
const READY: &str = "flowlogd observes this node";
/// What the agent logs while the kernel tracks nothing yet.
const WAITING: &str = "connection tracking is not loaded";
/// What the agent logs at its end for each stage that counted something, with the fields `stage` and `events`.
const COUNTED: &str = "counted by the kernel side";
/// Starting means reading the kernel's type information, on an emulated processor.
const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(120);

/// A running agent.
pub struct Agent {
    child: Child,
    folder: PathBuf,
    log: PathBuf,
}

/// How an agent is started.
#[derive(Default)]
pub struct Options<'a> {
    pub source: &'a str,
    pub arguments: &'a [&'a str],
    pub environment: &'a [(&'a str, &'a str)],
    /// `cgroup.procs` of the cgroup that it begins in.
    pub within: Option<&'a Path>,
}

impl Agent {
    /// Starts it and waits until it says that it watches.
    pub fn start(folder: &Path, options: &Options<'_>) -> Result<Self> {
        let agent = Self::launch(folder, options)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Waits until it says that it sees connections and counts them.
    pub fn wait_ready(&self) -> Result<()> {
        self.wait_log(READY, START)
    }

    /// Waits until it says that it runs, though connection tracking is not there yet.
    pub fn wait_started(&self) -> Result<()> {
        self.wait_log(WAITING, START)
    }

    /// The tier that it chose, as its log says.
    pub fn chosen_source(&self) -> String {
        field(&self.log(), READY, "source").unwrap_or_else(|| "unknown source".to_owned())
    }

    /// Whether it found a way to see drops on this kernel.
    pub fn sees_drops(&self) -> bool {
        field(&self.log(), READY, "drops").is_some_and(|how| how != "off")
    }

    /// Starts it.
    pub fn launch(folder: &Path, options: &Options<'_>) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let runs = fs::read_dir(folder)?.filter_map(Result::ok);
        let runs = runs.filter(|entry| entry.file_name().to_string_lossy().starts_with("agent.")).count();
        let log = folder.join(format!("agent.{runs}"));
        let mut command = match options.within {
            None => Command::new(BINARY),
            Some(procs) => {
                let mut shell = Command::new("sh");
                shell.args(["-ec", "echo $$ > \"$0\"; exec \"$@\""]).arg(procs).arg(BINARY);
                shell
            }
        };
        command.args(["run", "--source", options.source]).args(options.arguments);
        command.env_remove("FLOWLOGD_GUEST").env("FLOWLOGD_LOG", "warn,flowlogd=debug");
        for (field, value) in [
            ("FLOWLOGSFILEDIRECTORY", &*folder.to_string_lossy()),
            ("FLOWLOGSFLUSHINTERVAL", "3s"),
            ("FLOWLOGSFILEAGGREGATIONKINDFORALLOWED", "0"),
            ("FLOWLOGSFILEAGGREGATIONKINDFORDENIED", "0"),
        ] {
            command.env(format!("FLOWLOGD_{field}"), value);
        }
        command.envs(options.environment.iter().copied());
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("cannot start the agent")?;
        Ok(Self { child, folder: folder.to_path_buf(), log })
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until its log holds `text`.
    pub fn wait_log(&self, text: &str, patience: Duration) -> Result<()> {
        let began = Instant::now();
        while !self.log().contains(text) {
            if began.elapsed() > patience || !self.is_alive() {
                bail!("the agent did not say {text:?}; it said:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    }

    /// Waits until the file holds what `is_enough` wants.
    pub fn wait_lines(&self, patience: Duration, is_enough: impl Fn(&[Line]) -> bool) -> Result<()> {
        let began = Instant::now();
        while !is_enough(&lines(&self.folder)?) {
            if began.elapsed() > patience {
                bail!("the awaited lines did not come; the agent said:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// SIGTERM, then its end; gives all lines of its folder.
    pub fn stop(self) -> Result<Vec<Line>> {
        Ok(self.stop_with_log()?.0)
    }

    /// The same, with what it logged to its very end.
    pub fn stop_with_log(mut self) -> Result<(Vec<Line>, String)> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.wait(STOP)?;
        if !status.success() {
            bail!("the agent ended with {status}; it said:\n{}", self.log());
        }
        Ok((lines(&self.folder)?, self.log()))
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.wait(STOP).map(drop)
    }

    fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > patience {
                bail!("the agent did not end in {patience:?}; it said:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of `name=` in the first logged line that holds `text`.
fn field(log: &str, text: &str, name: &str) -> Option<String> {
    let line = log.lines().find(|line| line.contains(text))?;
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(&format!("{name}=")))?;
    Some(value.trim_matches('"').to_owned())
}

/// What a stage counted, as the agent logs it at its end.
pub fn counted(log: &str, stage: &str) -> u64 {
    let lines = log.lines().filter(|line| line.contains(COUNTED));
    let of_stage = lines.filter(|line| field(line, COUNTED, "stage").as_deref() == Some(stage));
    of_stage.filter_map(|line| field(line, COUNTED, "events")?.parse::<u64>().ok()).sum()
}

/// The columns of a flow log that the cases look at.
#[derive(Clone, Debug, Deserialize)]
pub struct Line {
    pub source_ip: Option<IpAddr>,
    pub source_port: Option<u16>,
    pub dest_ip: Option<IpAddr>,
    pub dest_port: Option<u16>,
    pub proto: String,
    pub action: String,
    pub reporter: String,
    pub packets_in: u64,
    pub packets_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub num_flows_started: u64,
    pub num_flows_completed: u64,
    pub drop_reasons: Option<Vec<String>>,
    pub lost_events: u64,
}

impl Line {
    pub fn key(&self) -> Result<Key> {
        let proto = match self.proto.as_str() {
            "icmp" => 1,
            "tcp" => 6,
            "udp" => 17,
            "icmp6" => 58,
            "sctp" => 132,
            number => number.parse().context("proto")?,
        };
        let ip = |ip: Option<IpAddr>| ip.context("a line of level 0 has no address");
        Ok(Key {
            proto,
            source: (ip(self.source_ip)?, self.source_port),
            dest: (ip(self.dest_ip)?, self.dest_port),
        })
    }

    /// From source to destination, and back.
    pub fn sums(&self) -> Sums {
        let (packets, bytes) = ([self.packets_out, self.packets_in], [self.bytes_out, self.bytes_in]);
        let turn =
            |[there, back]: [u64; 2]| if self.reporter == "dst" { [back, there] } else { [there, back] };
        Sums { packets: turn(packets), bytes: turn(bytes), connections: self.num_flows_started }
    }
}

/// All lines of a folder, the oldest file first.
pub fn lines(folder: &Path) -> Result<Vec<Line>> {
    let mut files = vec![folder.join("flows.log")];
    for number in 1.. {
        let path = folder.join(format!("flows.log.{number}"));
        if !path.exists() {
            break;
        }
        files.push(path);
    }
    let mut all = Vec::new();
    for path in files.iter().rev().filter(|path| path.exists()) {
        for line in BufReader::new(File::open(path)?).lines() {
            let line = line?;
            all.push(serde_json::from_str(&line).with_context(|| format!("not a flow log: {line}"))?);
        }
    }
    Ok(all)
}

/// Sums by key of the lines with this action.
pub fn sums(lines: &[Line], action: &str) -> Result<BTreeMap<Key, Sums>> {
    let mut sums: BTreeMap<Key, Sums> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.action == action) {
        sums.entry(line.key()?).or_default().add(&line.sums());
    }
    Ok(sums)
}

/// Every key, packet and byte the same; else the first differences.
pub fn equal(what: &str, exported: &BTreeMap<Key, Sums>, kernel: &BTreeMap<Key, Sums>) -> Result<()> {
    let mut differences = Vec::new();
    for (key, wanted) in kernel {
        match exported.get(key) {
            Some(sums) if sums == wanted => {}
            Some(sums) => {
                differences.push(format!("{key:?}\n    exported {sums:?}\n    kernel   {wanted:?}"))
            }
            None => differences.push(format!("{key:?}\n    not exported\n    kernel   {wanted:?}")),
        }
    }
    for (key, sums) in exported.iter().filter(|(key, _)| !kernel.contains_key(key)) {
        differences.push(format!("{key:?}\n    exported {sums:?}\n    unknown to the kernel"));
    }
    if differences.is_empty() {
        return Ok(());
    }
    let count = differences.len();
    differences.truncate(8);
    bail!("{what}: {count} of {} connections differ:\n  {}", kernel.len(), differences.join("\n  "))
}
