//! Who watches the traffic: nobody, flowlogd, or a collector that Debian has.
//!
//! In: a [`Site`], a folder. Out: something that runs, what it uses, its clean end. What always holds: it runs as on a
//! node (in the node's namespace), with its lines in the folder; it has ended when [`Watching::stop`] returns.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::site::{NODE_NAME, Site};
use crate::agent::{Agent, log_files};
use crate::usage::Usage;

const METRICS_PORT: u16 = 9091;
pub const HEALTH_PORT: u16 = 9097;
/// For an answer on loopback.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub trait Watcher {
    fn name(&self) -> String;
    /// Returns when it observes.
    fn start(&self, site: &Site, folder: &Path) -> anyhow::Result<Box<dyn Watching>>;
}

pub trait Watching {
    fn usage(&self) -> anyhow::Result<Usage>;
    /// What it has told that it saw, in all.
    fn stop(self: Box<Self>) -> anyhow::Result<Seen>;
}

/// What everything is compared with: no accounting either.
pub struct Nobody;

impl Watcher for Nobody {
    fn name(&self) -> String {
        "nothing".into()
    }

    fn start(&self, site: &Site, _: &Path) -> anyhow::Result<Box<dyn Watching>> {
        site.set_accounting(false)?;
        Ok(Box::new(Self))
    }
}

impl Watching for Nobody {
    fn usage(&self) -> anyhow::Result<Usage> {
        Ok(Usage::default())
    }

    fn stop(self: Box<Self>) -> anyhow::Result<Seen> {
        Ok(Seen::default())
    }
}

pub struct Flowlogd {
    pub binary: PathBuf,
    pub source: String,
    pub interval: Duration,
}

impl Flowlogd {
    pub fn observe(&self, site: &Site, folder: &Path) -> anyhow::Result<Agent> {
        let manifests = Site::manifests(folder)?;
        let interval = format!("flowLogsFlushInterval={}s", self.interval.as_secs());
        let socket = format!("flowLogsLiveSocketPath={}", socket(folder).display());
        let manifests = manifests.to_str().context("the temporary directory's path is no text")?;
        let mut flags = vec!["--node", NODE_NAME, "--cluster", manifests, "--source", &self.source];
        for value in [&interval, &socket, "prometheusMetricsEnabled=true"] {
            flags.extend(["--set", value]);
        }
        Agent::start(&site.node, &self.binary, folder, &flags)
    }
}

impl Watcher for Flowlogd {
    fn name(&self) -> String {
        format!("flowlogd, {}", self.source)
    }

    fn start(&self, site: &Site, folder: &Path) -> anyhow::Result<Box<dyn Watching>> {
        Ok(Box::new(Observing { agent: self.observe(site, folder)?, folder: folder.to_owned() }))
    }
}

struct Observing {
    agent: Agent,
    folder: PathBuf,
}

impl Watching for Observing {
    fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.agent.id())
    }

    fn stop(self: Box<Self>) -> anyhow::Result<Seen> {
        end(self.agent)?;
        Seen::in_lines(&self.folder)
    }
}

/// What it warns of is told, but for the rules that keep loopback untracked here.
pub fn end(agent: Agent) -> anyhow::Result<()> {
    for warning in agent.stop()?.iter().filter(|warning| !warning.contains("notrack")) {
        eprintln!("bench: flowlogd says: {warning}");
    }
    Ok(())
}

/// The live socket of an agent whose folder this is.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join("live.sock")
}

/// What an agent in the node's namespace says over HTTP.
pub fn ask(site: &Site, port: u16, path: &str) -> anyhow::Result<String> {
    site.node.enter(|| {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        anyhow::ensure!(head.contains(" 200 "), "{path}: {}", head.lines().next().unwrap_or_default());
        Ok(body.to_owned())
    })?
}

/// The agent's metrics, as they stand now.
pub struct Metrics(String);

impl Metrics {
    pub fn read(site: &Site) -> anyhow::Result<Self> {
        ask(site, METRICS_PORT, "/metrics").map(Self)
    }

    fn samples(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then(|| Some((labels, value.parse().ok()?)))?
        })
    }

    /// The sum over all labels.
    pub fn sum(&self, name: &str) -> f64 {
        self.samples(name).map(|(_, value)| value).sum()
    }
}

/// A metric of an agent that has stopped, summed over its labels: what it said at its end.
pub fn total(folder: &Path, metric: &str) -> anyhow::Result<u64> {
    let log = fs::read_to_string(folder.join("agent.log"))?;
    // Nothing is said of what is 0; that it flushed it always says.
    ensure!(totals(&log, "flowlogd_flushes_total").next().is_some(), "the agent told no totals at its end");
    Ok(totals(&log, metric).map(|(_, value)| value).sum())
}

/// Label and value of each line with a total of this metric.
fn totals<'a>(log: &'a str, metric: &str) -> impl Iterator<Item = (&'a str, u64)> {
    let name = format!("metric=\"{metric}\"");
    log.lines().filter_map(move |line| {
        let (labels, value) = line.split_once(&name)?.1.rsplit_once(" value=")?;
        Some((labels.trim_start_matches(" label="), value.split_whitespace().next()?.parse().ok()?))
    })
}

/// What an agent that has stopped said it lost, by stage: it knows all of it only then.
pub fn lost(folder: &Path) -> anyhow::Result<String> {
    let log = fs::read_to_string(folder.join("agent.log"))?;
    ensure!(totals(&log, "flowlogd_flushes_total").next().is_some(), "the agent told no totals at its end");
    let lost = totals(&log, "flowlogd_lost_events_total");
    let lost = lost
        .map(|(stage, value)| format!("{} {value}", stage.trim_matches('"').trim_start_matches("stage=")));
    let lost: Vec<String> = lost.collect();
    Ok(if lost.is_empty() { "0".into() } else { lost.join(", ") })
}

/// What a watcher saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// That began.
    pub flows: u64,
    pub packets: u64,
    pub bytes: u64,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.flows += other.flows;
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl Seen {
    pub fn sum(parts: impl Iterator<Item = Self>) -> Self {
        let mut sum = Self::default();
        parts.for_each(|part| sum += part);
        sum
    }

    /// A line of flowlogd's.
    pub fn of_line(line: &[u8]) -> Option<Self> {
        let line: Value = serde_json::from_slice(line).ok()?;
        let number = |key: &str| line[key].as_u64().unwrap_or_default();
        Some(Self {
            flows: number("num_flows_started"),
            packets: number("packets_in") + number("packets_out"),
            bytes: number("bytes_in") + number("bytes_out"),
        })
    }

    /// The lines of flowlogd's in a folder.
    ///
    /// # Errors
    /// A line that is no JSON, or a file that cannot be read.
    pub fn in_lines(folder: &Path) -> anyhow::Result<Self> {
        let mut seen = Self::default();
        for file in log_files(folder)? {
            for line in fs::read_to_string(&file)?.lines() {
                seen += Self::of_line(line.as_bytes()).context("a line is no JSON")?;
            }
        }
        Ok(seen)
    }
}
