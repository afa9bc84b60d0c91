//! Sweeps over thousands of live connections: all of them seen, in runs that the bound of a shard holds short.
//!
//! In: datagrams to as many addresses, none answered. Out: what the agent's own metrics and the kernel's account of its
//! programs say of the runs, as a note. No time is asserted: in an emulated guest it is the emulator's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::agent::{Agent, Options};
use crate::kinds::{compare, folder};
use crate::node::{Node, Pod, run, sysctl};
use crate::reference::{self, Connection};
use crate::{Outcome, traffic};

/// A line each in every window, and making lines is what takes the time in an emulated guest.
const CONNECTIONS: u32 = 4000;
/// The kernel's limit decides how many shards there are: so near the number of connections, each is as full as it gets.
const LIMITS: [(&str, &str); 2] = [("max", "4200"), ("buckets", "16384")];
const SHARD: f64 = flowlogd_ebpf::SHARD_CAPACITY as f64;
const PATIENCE: Duration = Duration::from_secs(240);
/// Datagrams at once: fewer than wait in the queue of a device.
const BATCH: usize = 200;

pub fn sweeps() -> Result<Outcome> {
    let mut node = Node::new()?;
    // Reading the agent's metrics makes no connection.
    node.rules(
        "table inet case {
            chain own_out { type filter hook output priority raw; oifname lo notrack; }
            chain own_in { type filter hook prerouting priority raw; iifname lo notrack; }
        }",
    )?;
    let mut usual = Vec::new();
    for (name, value) in LIMITS {
        let key = format!("net/netfilter/nf_conntrack_{name}");
        usual.push((key.clone(), std::fs::read_to_string(format!("/proc/sys/{key}"))?));
        sysctl(&key, value)?;
    }
    let outcome = swept(&node);
    for (key, value) in usual {
        sysctl(&key, value.trim())?;
    }
    outcome
}

fn swept(node: &Node) -> Result<Outcome> {
    // Off again when this is closed, whatever happens.
    let statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime);
    let environment = [
        ("FLOWLOGD_PROMETHEUSMETRICSENABLED", "true"),
        ("FLOWLOGD_PROMETHEUSMETRICSHOST", "127.0.0.1"),
        ("FLOWLOGD_FLOWLOGSFLUSHINTERVAL", "4s"),
    ];
    let options = Options { source: "auto", environment: &environment, ..Options::default() };
    let agent = Agent::start(&folder("sweeps"), &options)?;
    if agent.chosen_source() != "ebpf" {
        return Ok(Outcome::Skipped(format!("the source is {}", agent.chosen_source())));
    }
    // The server has no such addresses and forwards nothing (`Node`): what comes for them ends there in silence.
    run(&["ip", "route", "add", "198.18.0.0/15", "via", &node.server().v4.to_string()])?;
    let kernel = send_to_many(node.client())?;
    ensure!(kernel.len() >= CONNECTIONS as usize, "conntrack has {} entries", kernel.len());

    let wanted = kernel.len() as f64;
    let began = Instant::now();
    let first = loop {
        let metrics = Metrics::read()?;
        // Before the first flush there is no such series.
        let entries = metrics.find("flowlogd_table_entries{table=\"connections\"}");
        if entries == Some(wanted) {
            break metrics;
        }
        ensure!(began.elapsed() < PATIENCE, "a sweep saw {entries:?} of {wanted} connections");
        std::thread::sleep(Duration::from_millis(200));
    };
    let (mut longest, mut fullest, mut last) = (0.0_f64, 0.0_f64, first);
    let (sweeps, account) = (last.get("flowlogd_sweep_duration_seconds_count")?, account());
    while last.get("flowlogd_sweep_duration_seconds_count")? < sweeps + 2.0 {
        ensure!(began.elapsed() < PATIENCE, "two more sweeps did not come");
        std::thread::sleep(Duration::from_millis(500));
        last = Metrics::read()?;
        longest = longest.max(last.get("flowlogd_sweep_longest_run_seconds")?);
        fullest = fullest.max(last.get("flowlogd_table_entries{table=\"connections_fullest_shard\"}")?);
        let entries = last.get("flowlogd_table_entries{table=\"connections\"}")?;
        ensure!(entries == wanted, "a sweep saw {entries} of {wanted} connections");
    }
    ensure!(longest > 0.0, "no run of a sweep was timed");
    ensure!((1.0..=SHARD).contains(&fullest), "{fullest} entries in one run");
    let shards = last.get("flowlogd_table_capacity_entries{table=\"connections\"}")? / SHARD;
    let runs =
        account.zip(self::account()).map(|(before, after)| [after[0] - before[0], after[1] - before[1]]);
    let figures = match (statistics, runs) {
        (Ok(_), Some([runs, ns])) => {
            // The first of the two may have begun before the first look.
            let runs_seen = f64::from(u32::try_from(runs)?);
            ensure!(runs_seen >= shards, "{runs} runs in two sweeps of {shards} shards");
            let a_run = ns as f64 / runs as f64;
            format!("{:.0} ns an entry, {:.0} us a run", a_run / (wanted / shards), a_run / 1000.0)
        }
        _ => "the kernel tells nothing of its programs".to_owned(),
    };
    let lines = agent.stop()?;
    let said = compare(&lines, &kernel)?;
    Ok(Outcome::Pass(format!(
        "{wanted} connections equal in {shards} shards; emulated: {figures}, {:.0} us the longest, {fullest} entries a run at most{said}",
        longest * 1e6
    )))
}

/// A datagram to each of many addresses, a batch at a time; gives what the kernel counted.
/// Whether one is lost on the way is not what is asked here: then all of its batch are sent again.
fn send_to_many(from: &Pod) -> Result<Vec<Connection>> {
    let socket = from.inside(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 1));
    let began = Instant::now();
    for batch in (0..CONNECTIONS).step_by(BATCH) {
        let end = CONNECTIONS.min(batch + BATCH as u32);
        while tracked()? < end {
            ensure!(began.elapsed() < PATIENCE, "{} of {end} datagrams came through", tracked()?);
            for number in batch..end {
                socket.send_to(&[4; 40], (Ipv4Addr::from(first + number), 7))?;
            }
            let sent = Instant::now();
            while tracked()? < end && sent.elapsed() < Duration::from_secs(1) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    // What was sent again may still be on its way.
    let mut kernel = reference::list()?;
    loop {
        let again = reference::list()?;
        if reference::total(&again) == reference::total(&kernel) {
            return Ok(again);
        }
        ensure!(began.elapsed() < PATIENCE, "the counters do not stand still");
        kernel = again;
    }
}

/// Entries of the node's table.
fn tracked() -> Result<u32> {
    Ok(std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?.trim().parse()?)
}

/// Runs and nanoseconds of the program, which only the agent has loaded.
fn account() -> Option<[u64; 2]> {
    let all = aya::programs::loaded_programs().flatten();
    let sweep = all.into_iter().find(|info| info.name_as_str() == Some("sweep"))?;
    Some([sweep.run_count(), u64::try_from(sweep.run_time().as_nanos()).ok()?])
}

/// The agent's metrics, as it serves them.
struct Metrics(String);

impl Metrics {
    fn read() -> Result<Self> {
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, 9091)).context("the agent serves no metrics")?;
        stream.set_read_timeout(Some(traffic::PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut body = String::new();
        stream.read_to_string(&mut body)?;
        Ok(Self(body))
    }

    fn find(&self, series: &str) -> Option<f64> {
        self.0.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    fn get(&self, series: &str) -> Result<f64> {
        self.find(series).with_context(|| format!("the agent serves no {series}"))
    }
}
