//! What the kernel counted: connections by `conntrack`, denied packets by nftables.
//!
//! In: the node's namespace. Out: each connection with its counters, each drop counter.
//! What always holds: counters of ended connections come from `conntrack -E` (its DESTROY events), those of live ones
//! from `conntrack -L`; a connection whose counters were in neither is an error, never left out.
//! Nothing here comes from the agent or from its library: this is the other side of the comparison.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::netns::{Namespace, Process};
use crate::packages;

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// `None` for protocols without ports.
    pub src_port: Option<u16>,
    pub dst_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Connection {
    pub proto: String,
    pub original: Tuple,
    pub reply: Tuple,
    /// `[original, reply]`; `None`: the line had none (a NEW event).
    pub counts: Option<[Count; 2]>,
    /// Seconds since 1970; 0 where not printed.
    pub at: f64,
    id: u32,
}

/// `conntrack -E`, which follows from here on.
pub struct Watch {
    process: Process,
    events: PathBuf,
    messages: PathBuf,
}

impl Watch {
    pub fn start(node: &Namespace, folder: &Path) -> anyhow::Result<Self> {
        let [events, messages] =
            ["conntrack-events.txt", "conntrack-messages.txt"].map(|name| folder.join(name));
        let program = packages::find("conntrack").context("conntrack is gone")?;
        let arguments = ["-E", "-e", "NEW,DESTROY", "-o", "timestamp,id", "-b", "4194304"].map(AsRef::as_ref);
        let process =
            node.start(program.as_os_str(), &arguments, File::create(&events)?, File::create(&messages)?)?;
        let mut watch = Self { process, events, messages };
        watch.settle(node)?;
        Ok(watch)
    }

    /// It says nothing when it has subscribed: an entry of our own must come back as an event.
    fn settle(&mut self, node: &Namespace) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            ensure!(self.process.is_running(), "conntrack -E ended: {}", self.said());
            // Of an address that nothing else uses; documentation range.
            let probe = ["-s", "192.0.2.1", "-d", "192.0.2.2", "-p", "udp", "--sport", "1", "--dport", "1"];
            let add: Vec<&str> = ["-I", "-t", "10"].into_iter().chain(probe).collect();
            let delete: Vec<&str> = ["-D"].into_iter().chain(probe).collect();
            node.run("conntrack", &add, None).context("cannot add an entry to connection tracking")?;
            node.run("conntrack", &delete, None)?;
            thread::sleep(Duration::from_millis(50));
            if fs::read_to_string(&self.events)?.contains("DESTROY") {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "conntrack -E shows no events: the kernel needs CONFIG_NF_CONNTRACK_EVENTS, and net.netfilter.nf_conntrack_events must not be 0. {}",
                self.said()
            );
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.messages).unwrap_or_default()
    }

    /// All connections since [`Watch::start`]; `live` is what [`live`] gave when traffic had ended.
    pub fn finish(mut self, live: &[Connection]) -> anyhow::Result<Vec<Connection>> {
        self.process.stop(Signal::TERM, PATIENCE)?;
        let said = self.said();
        ensure!(
            !said.contains("ENOBUFS"),
            "conntrack -E lost events on this machine, nothing to compare with: {said}"
        );
        let mut begun: Vec<Connection> = Vec::new();
        let mut open: BTreeMap<u32, usize> = BTreeMap::new();
        for line in fs::read_to_string(&self.events)?.lines().filter(|line| !line.contains("192.0.2.1")) {
            let connection = parse(line).with_context(|| format!("conntrack -E wrote {line:?}"))?;
            if line.contains("[NEW]") {
                open.insert(connection.id, begun.len());
                begun.push(connection);
            } else if line.contains("[DESTROY]")
                && let Some(known) = open.remove(&connection.id).and_then(|index| begun.get_mut(index))
            {
                known.counts = connection.counts;
            }
        }
        for (id, index) in open {
            let known = begun.get_mut(index).context("an index of ours")?;
            known.counts = live.iter().find(|live| live.id == id).and_then(|live| live.counts);
        }
        if let Some(lost) = begun.iter().find(|connection| connection.counts.is_none()) {
            bail!("conntrack told neither counters nor end of {lost:?}");
        }
        Ok(begun)
    }
}

/// The live connections once their counters have come to rest.
pub fn live(node: &Namespace) -> anyhow::Result<Vec<Connection>> {
    let until = Instant::now() + PATIENCE;
    let mut last = table(node)?;
    loop {
        thread::sleep(Duration::from_millis(300));
        let now = table(node)?;
        // Those that timed out meanwhile are known to the events.
        if now.iter().all(|connection| last.contains(connection)) {
            return Ok(last);
        }
        ensure!(Instant::now() < until, "traffic in the demo's node does not come to rest");
        last = now;
    }
}

/// Every connection of the table now.
pub fn table(node: &Namespace) -> anyhow::Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let text = node.run("conntrack", &["-L", "-f", family, "-o", "id"], None)?;
        for line in text.lines() {
            connections.push(parse(line).with_context(|| format!("conntrack -L wrote {line:?}"))?);
        }
    }
    Ok(connections)
}

/// One line of `conntrack -o id[,timestamp]`.
fn parse(line: &str) -> anyhow::Result<Connection> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let time = words.first().and_then(|word| word.strip_prefix('[')?.strip_suffix(']')?.parse().ok());
    let proto = words
        .iter()
        .find(|word| !word.starts_with('[') && !word.contains('='))
        .context("no protocol")?
        .replace("icmpv6", "icmp6");
    let has_ports = !proto.starts_with("icmp");
    let all = |key: &str| -> Vec<&str> {
        words.iter().filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    let two = |key: &str| -> anyhow::Result<[&str; 2]> {
        all(key).try_into().map_err(|_| anyhow::anyhow!("not two of {key}="))
    };
    let [[src, reply_src], [dst, reply_dst]] = [two("src")?, two("dst")?];
    let tuple = |src: &str, dst: &str, nth: usize| -> anyhow::Result<Tuple> {
        let port = |key| all(key).get(nth).filter(|_| has_ports).map(|port| port.parse()).transpose();
        Ok(Tuple { src: src.parse()?, dst: dst.parse()?, src_port: port("sport")?, dst_port: port("dport")? })
    };
    let counts = match (two("packets"), two("bytes")) {
        (Ok([p0, p1]), Ok([b0, b1])) => Some([
            Count { packets: p0.parse()?, bytes: b0.parse()? },
            Count { packets: p1.parse()?, bytes: b1.parse()? },
        ]),
        _ => None,
    };
    // The identifier of an echo is called `id` too: ours is the last.
    let id = all("id").last().context("no id=")?.parse()?;
    let (original, reply) = (tuple(src, dst, 0)?, tuple(reply_src, reply_dst, 1)?);
    Ok(Connection { proto, original, reply, counts, at: time.unwrap_or(0.0), id })
}

/// nftables' named counters.
pub fn counters(node: &Namespace) -> anyhow::Result<BTreeMap<String, Count>> {
    let text = node.run("nft", &["-j", "list", "counters"], None)?;
    let all: Value = serde_json::from_str(&text).context("nft wrote what is no JSON")?;
    let list = all.get("nftables").and_then(Value::as_array).context("nft listed nothing")?;
    let counter = |item: &Value| {
        let counter = item.get("counter")?;
        let number = |key| counter.get(key).and_then(Value::as_u64);
        let name = counter.get("name")?.as_str()?.to_owned();
        Some((name, Count { packets: number("packets")?, bytes: number("bytes")? }))
    };
    Ok(list.iter().filter_map(counter).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_conntrack_are_read() {
        let line = "[1700000000.250000]\t[DESTROY] tcp      6 src=10.244.1.21 dst=10.96.0.80 sport=40000 dport=80 packets=6 bytes=400 src=10.244.1.11 dst=10.244.1.21 sport=8080 dport=40000 packets=5 bytes=900 [ASSURED] id=77";
        let read = parse(line).unwrap();
        assert_eq!(read.at, 1_700_000_000.25);
        assert_eq!((read.proto.as_str(), read.id), ("tcp", 77));
        assert_eq!((read.original.dst_port, read.reply.src_port), (Some(80), Some(8080)));
        assert_eq!(read.counts, Some([Count { packets: 6, bytes: 400 }, Count { packets: 5, bytes: 900 }]));
    }

    #[test]
    fn the_identifier_of_an_echo_is_not_that_of_the_entry() {
        let line = "icmpv6   58 29 src=fd00::1 dst=fd00::2 type=128 code=0 id=5 [UNREPLIED] src=fd00::2 dst=fd00::1 type=129 code=0 id=5 id=4242";
        let read = parse(line).unwrap();
        assert_eq!((read.proto.as_str(), read.id, read.counts), ("icmp6", 4242, None));
        assert_eq!(read.original.src_port, None);
    }
}
