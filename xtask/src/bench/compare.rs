//! `cargo xtask bench compare`: flowlogd and what people use without Kubernetes, under the same traffic.
//!
//! In: collectors, how many rounds. Out: a Markdown table: what each costs the traffic, itself, and what it misses of traffic
//! that is known. What always holds: each round gives each of them the same, in alternating order; a collector that
//! cannot be installed is named as skipped.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::collectors::Collector;
use super::load::{self, Flows};
use super::node::{iperf_server, machine, prepare};
use super::pairs::measure;
use super::site::{Count, Site};
use super::watchers::{Flowlogd, Nobody, Seen, Watcher};
use crate::packages;
use crate::usage::Usage;

#[derive(clap::Args)]
pub struct Arguments {
    /// Collectors to compare with; all of them if none is given.
    #[arg(value_enum)]
    collectors: Vec<Collector>,
    /// Runs of each.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// flowlogd's source of connections, or auto.
    #[arg(long, default_value = "auto", value_parser = ["auto", "ebpf", "netlink"])]
    source: String,
    /// Seconds of each kind of traffic in a run.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// A release build that is there, instead of building one.
    #[arg(long)]
    agent: Option<PathBuf>,
}

/// Known flows a second, and seconds of them.
const RATE: u64 = 10_000;
const KNOWN: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(120);

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let binary = prepare(arguments.agent.as_deref())?;
    let began = Instant::now();
    let tell = |text: &str| eprintln!("bench: {:6.1} s: {text}", began.elapsed().as_secs_f64());
    let all = [Collector::Pmacct, Collector::Softflowd, Collector::Ulogd];
    let wished: &[Collector] = if arguments.collectors.is_empty() { &all } else { &arguments.collectors };
    let (mut collectors, mut skipped) = (Vec::new(), Vec::new());
    for collector in wished {
        match packages::install_missing(&[collector.needed()], &[]) {
            Ok(()) => collectors.push(*collector),
            Err(error) => skipped.push(format!("SKIPPED {}: {error:#}\n", collector.name())),
        }
    }
    let flowlogd = Flowlogd { binary, source: arguments.source.clone(), interval: Duration::from_secs(10) };
    let mut watchers: Vec<&dyn Watcher> = vec![&Nobody, &flowlogd];
    watchers.extend(collectors.iter().map(|collector| collector as &dyn Watcher));

    println!("{}\n", machine());
    let site = Site::build()?;
    let _server = iperf_server(&site)?;
    let seconds = arguments.seconds;
    let rounds = measure(&site, &watchers, arguments.pairs, &tell, &mut |site| {
        let made = load::connections(site, Duration::from_secs(seconds))?;
        Ok(vec![load::tcp_throughput(site, seconds)?, load::datagram_rate(site, seconds)?, made.per_second])
    })?;
    let mut table = format!(
        "| {} rounds of {seconds} s; {RATE} known flows/s | TCP Gbit/s (by nothing's) | thousands of datagrams/s | TCP connections/s | CPU s a million flows | resident | flows it saw | packets | bytes |\n|---|---|---|---|---|---|---|---|---|\n",
        arguments.pairs
    );
    for (index, watcher) in watchers.iter().enumerate() {
        table += &format!("| {} |", watcher.name());
        for number in 0..3 {
            let [_, ratio, _] = rounds.ratio(index, number);
            table += &format!(" {:.1} ({ratio:.2}) |", rounds.median(index, number));
        }
        if index == 0 {
            table += " | | | | |\n";
            continue;
        }
        let Known { flows, kernel, seen, used } =
            known(*watcher).with_context(|| format!("known traffic, {}", watcher.name()))?;
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        table += &format!(
            " {:.1} | {:.0} MiB | {:.2} % | {:.2} % | {:.2} % |\n",
            used.cpu.as_secs_f64() * 1e6 / flows as f64,
            used.resident_bytes as f64 / f64::from(1 << 20),
            percent(seen.flows, flows),
            percent(seen.packets, kernel.packets),
            percent(seen.bytes, kernel.bytes),
        );
        tell(&format!("known traffic, {}: {seen:?} of {flows} flows, {kernel:?}", watcher.name()));
    }
    println!("{table}");
    skipped.iter().for_each(|line| print!("{line}"));
    Ok(ExitCode::SUCCESS)
}

struct Known {
    flows: u64,
    kernel: Count,
    seen: Seen,
    used: Usage,
}

/// On a node of its own, whose counters begin at nothing.
fn known(watcher: &dyn Watcher) -> anyhow::Result<Known> {
    let site = Site::build()?;
    let folder = tempfile::tempdir()?;
    let watching = watcher.start(&site, folder.path())?;
    let mut flows = Flows::new(&site)?;
    let before = watching.usage()?;
    let count = flows.pace(RATE, KNOWN)?;
    site.settle(0, SETTLE)?;
    // What copies packets ends a flow by its own clock.
    thread::sleep(Duration::from_secs(3));
    let used = watching.usage()? - before;
    let seen = watching.stop()?;
    let counters = site.counters()?;
    let of = |name: &str| counters.get(name).copied().unwrap_or_default();
    let (original, reply) = (of("original"), of("reply"));
    let kernel = Count { packets: original.packets + reply.packets, bytes: original.bytes + reply.bytes };
    Ok(Known { flows: count, kernel, seen, used })
}
