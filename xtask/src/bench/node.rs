//! `cargo xtask bench node`: what the agent costs a node that forwards traffic, and what it uses itself.
//!
//! In: parts, sources, how many pairs. Out: a Markdown table a part, ready for `agent/benches/README.md`. What always holds: root
//! and network namespaces; the release build of the agent, as a process of its own; nothing is asserted about a figure.
//! Not here: the traffic (`load.rs`), the namespaces (`site.rs`), interleaving (`pairs.rs`).

use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::load::{self, Flows};
use super::pairs::{Rounds, measure};
use super::probes;
use super::site::{Site, room};
use super::watchers::{Flowlogd, Metrics, Nobody, Seen, Watcher, end, lost};
use crate::demo::tools;
use crate::netns::{self, Process};
use crate::packages;
use crate::usage::Usage;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// TCP throughput with and without the agent.
    Tcp,
    /// Small datagrams with and without.
    Udp,
    /// New TCP connections and their latency, with and without.
    Connect,
    /// What the agent uses at rates of new flows; what it loses.
    Rates,
    /// What it uses with many live flows; its flush; whether it answers meanwhile.
    Live,
}

#[derive(clap::Args)]
pub struct Arguments {
    /// Parts to measure; all of them if none is given.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Runs without and with the agent, one after the other, in alternating order.
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// The agent's source of connections, or auto.
    #[arg(long, default_value = "auto", value_parser = ["auto", "ebpf", "netlink"])]
    source: String,
    /// Seconds of a run.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Only these numbers of live connections (part live) or rates (part rates).
    #[arg(long, value_delimiter = ',')]
    only: Vec<u64>,
    /// A release build that is there, instead of building one.
    #[arg(long)]
    agent: Option<PathBuf>,
}

/// Flows a second, and so many that live.
const RATES: [(u64, u64); 6] = [(0, 0), (1000, 0), (2000, 50_000), (10_000, 0), (20_000, 0), (40_000, 0)];
const LIVE: [u64; 3] = [10_000, 100_000, 1_000_000];
/// How fast live flows are begun: what the agent takes in without a loss.
const BEGIN_RATE: u64 = 20_000;
/// Long enough that what is begun lives until the end of a run.
const LONG: &str = "36000";
const SHORT: &str = "2";
/// The kernel looks for what has timed out now and then.
const SETTLE: Duration = Duration::from_secs(120);
/// A window that no run reaches.
const NEVER: Duration = Duration::from_secs(3600);

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let binary = prepare(arguments.agent.as_deref())?;
    let began = Instant::now();
    let tell = |text: &str| eprintln!("bench: {:6.1} s: {text}", began.elapsed().as_secs_f64());
    let all = [Part::Tcp, Part::Udp, Part::Connect, Part::Rates, Part::Live];
    let parts: &[Part] = if arguments.parts.is_empty() { &all } else { &arguments.parts };
    println!("{}\n", machine());
    for part in parts {
        tell(&format!("{part:?}"));
        let table = match part {
            Part::Tcp | Part::Udp | Part::Connect => paired(*part, arguments, &binary, &tell)?,
            Part::Rates => rates(arguments, &binary, &tell)?,
            Part::Live => live(arguments, &binary, &tell)?,
        };
        println!("{table}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Root, tools, and where the agent's release build is.
pub fn prepare(agent: Option<&std::path::Path>) -> anyhow::Result<PathBuf> {
    tools::prepare()?;
    packages::install_missing(&[("iperf3", "iperf3")], &[])?;
    netns::remove_leftovers();
    match agent {
        Some(binary) => binary.canonicalize().with_context(|| format!("no agent at {}", binary.display())),
        None => tools::build_agent_as(&["--release"]),
    }
}

/// Figures are of a machine and of what else it does.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown CPU");
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let kernel = read("/proc/sys/kernel/osrelease");
    let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC");
    format!("{now}, {cores} cores ({model}), Linux {}, load {load} at the start", kernel.trim())
}

/// iperf3's server, until it is dropped.
pub fn iperf_server(site: &Site) -> anyhow::Result<Process> {
    let program = packages::find("iperf3").context("iperf3 is gone")?;
    let nowhere = || File::options().write(true).open("/dev/null");
    let server = site.server.start(program.as_os_str(), &[OsStr::new("-s")], nowhere()?, nowhere()?)?;
    // It listens within a moment; a client that comes too early fails loudly.
    thread::sleep(Duration::from_millis(300));
    ensure!(server.is_running(), "iperf3 -s has ended: is another one running in this namespace?");
    Ok(server)
}

fn paired(
    part: Part,
    arguments: &Arguments,
    binary: &std::path::Path,
    tell: &dyn Fn(&str),
) -> anyhow::Result<String> {
    let site = Site::build()?;
    let _server = iperf_server(&site)?;
    let agent = Flowlogd {
        binary: binary.to_owned(),
        source: arguments.source.clone(),
        interval: Duration::from_secs(10),
    };
    let seconds = arguments.seconds;
    type Run = Box<dyn FnMut(&Site) -> anyhow::Result<Vec<f64>>>;
    let (what, mut run): (&[&str], Run) = match part {
        Part::Tcp => (
            &["TCP throughput, Gbit/s"],
            Box::new(move |site| Ok(vec![load::tcp_throughput(site, seconds)?])),
        ),
        Part::Udp => (
            &["datagrams of 64 bytes received, thousands/s"],
            Box::new(move |site| Ok(vec![load::datagram_rate(site, seconds)?])),
        ),
        _ => (
            &["TCP connections/s", "connect to answer, median µs", "the same, p99 µs"],
            Box::new(move |site| {
                let made = load::connections(site, Duration::from_secs(seconds))?;
                Ok(vec![made.per_second, made.percentile(50), made.percentile(99)])
            }),
        ),
    };
    let watchers: [&dyn Watcher; 2] = [&Nobody, &agent];
    let rounds = measure(&site, &watchers, arguments.pairs, tell, &mut run)?;
    let mut table = format!(
        "| {} pairs of {seconds} s, source {} | off | on | on by off: median (quartiles) |\n|---|---|---|---|\n",
        arguments.pairs, arguments.source
    );
    for (number, what) in what.iter().enumerate() {
        table += &row(what, &rounds, number);
    }
    Ok(table)
}

fn row(what: &str, rounds: &Rounds, number: usize) -> String {
    let [low, median, high] = rounds.ratio(1, number);
    let (off, on) = (rounds.median(0, number), rounds.median(1, number));
    format!("| {what} | {off:.1} | {on:.1} | {median:.3} ({low:.3} to {high:.3}) |\n")
}

/// Live flows, and no more than that.
fn begin(site: &Site, flows: &mut Flows, count: u64) -> anyhow::Result<()> {
    site.set_timeouts(LONG)?;
    let seconds = Duration::from_secs_f64(count as f64 / BEGIN_RATE as f64);
    let begun = flows.pace(BEGIN_RATE, seconds)?;
    flows.begin(count.saturating_sub(begun))?;
    site.set_timeouts(SHORT)
}

fn rates(arguments: &Arguments, binary: &std::path::Path, tell: &dyn Fn(&str)) -> anyhow::Result<String> {
    let mut table = format!(
        "| new flows/s wanted, live; source {} | flows | CPU a flow, µs | CPU of one core at that rate | resident | lost records | flows and packets in lines, of the kernel's |\n|---|---|---|---|---|---|---|\n",
        arguments.source
    );
    let seconds = arguments.seconds.max(10);
    for (rate, living) in RATES {
        if !arguments.only.is_empty() && !arguments.only.contains(&rate) {
            continue;
        }
        let site = Site::build()?;
        let _room = room(262_144)?;
        let folder = tempfile::tempdir()?;
        let agent = Flowlogd { binary: binary.to_owned(), source: arguments.source.clone(), interval: NEVER };
        let agent = agent.observe(&site, folder.path())?;
        let mut flows = Flows::new(&site)?;
        begin(&site, &mut flows, living)?;
        // What belongs to the start is not what is measured.
        thread::sleep(Duration::from_secs(2));
        let before = Usage::of(agent.id())?;
        let began = Instant::now();
        let sent = flows.pace(rate, Duration::from_secs(seconds))?;
        let resident = Usage::of(agent.id())?.resident_bytes;
        site.settle(living, SETTLE)?;
        thread::sleep(Duration::from_millis(500));
        let used = Usage::of(agent.id())? - before;
        let elapsed = began.elapsed();
        let kernel = site.counters()?;
        let source = agent.source.clone();
        end(agent)?;
        let lines = Seen::in_lines(folder.path())?;
        let of = |name: &str| kernel.get(name).copied().unwrap_or_default().packets;
        let a_flow = used.cpu.as_secs_f64() * 1e6 / sent as f64;
        let (a_flow, share) = if sent == 0 {
            ("-".to_owned(), used.cpu.as_secs_f64() / elapsed.as_secs_f64())
        } else {
            (format!("{a_flow:.2}"), a_flow / 1e6 * rate as f64)
        };
        table += &format!(
            "| {rate}, {living} | {sent} in {seconds} s | {a_flow} | {:.2} % | {:.1} MiB | {} | {} of {}, {} of {} |\n",
            share * 100.0,
            resident as f64 / f64::from(1 << 20),
            lost(folder.path())?,
            lines.flows,
            of("new"),
            lines.packets,
            of("original") + of("reply"),
        );
        tell(&format!("{rate} flows/s, {living} live, source {source}: done"));
    }
    Ok(table)
}

fn live(arguments: &Arguments, binary: &std::path::Path, tell: &dyn Fn(&str)) -> anyhow::Result<String> {
    let mut table = format!(
        "| live flows, source {} | resident | sweep, s | flush, s | CPU of one core without a flush | CPU a window with its flush, s | slowest /healthz | longest time without a live event | lost records |\n|---|---|---|---|---|---|---|---|---|\n",
        arguments.source
    );
    const WINDOW: Duration = Duration::from_secs(20);
    for living in LIVE {
        if !arguments.only.is_empty() && !arguments.only.contains(&living) {
            continue;
        }
        let _room = room(living + living / 4 + 100_000)?;
        let site = Site::build()?;
        let folder = tempfile::tempdir()?;
        let agent =
            Flowlogd { binary: binary.to_owned(), source: arguments.source.clone(), interval: WINDOW };
        let agent = agent.observe(&site, folder.path())?;
        let mut flows = Flows::new(&site)?;
        begin(&site, &mut flows, living)?;
        let there = site.live()?;
        tell(&format!("{there} flows live; waiting for a window that began with them"));
        window_end(&site)?;
        window_end(&site)?;
        let idle = Usage::of(agent.id())?;
        let began = Instant::now();
        thread::sleep(WINDOW / 3);
        let idle = (Usage::of(agent.id())? - idle).cpu.as_secs_f64() / began.elapsed().as_secs_f64();
        window_end(&site)?;
        let (before, used) = (Metrics::read(&site)?, Usage::of(agent.id())?);
        window_end(&site)?;
        let used = Usage::of(agent.id())? - used;
        let answers = probes::look(&site, folder.path(), &mut flows, WINDOW + Duration::from_secs(2))?;
        let after = Metrics::read(&site)?;
        let mean = |name: &str| {
            let of = |part: &str| {
                let name = format!("flowlogd_{name}_duration_seconds_{part}");
                after.sum(&name) - before.sum(&name)
            };
            of("sum") / of("count")
        };
        let lost = after.sum("flowlogd_lost_events_total") as u64;
        site.flush()?;
        end(agent)?;
        table += &format!(
            "| {there} | {:.1} MiB | {:.3} | {:.3} | {:.2} % | {:.2} | {:.0} ms of {} | {:.0} ms of {} events | {} |\n",
            used.resident_bytes as f64 / f64::from(1 << 20),
            mean("sweep"),
            mean("flush"),
            idle * 100.0,
            used.cpu.as_secs_f64(),
            answers.slowest_health.as_secs_f64() * 1e3,
            answers.health_asked,
            answers.longest_gap.as_secs_f64() * 1e3,
            answers.events,
            lost,
        );
        tell(&format!("{there} live flows: done"));
    }
    Ok(table)
}

/// Waits until a window has closed.
fn window_end(site: &Site) -> anyhow::Result<()> {
    const NAME: &str = "flowlogd_flushes_total";
    let until = Instant::now() + SETTLE;
    let before = Metrics::read(site)?.sum(NAME);
    while Metrics::read(site)?.sum(NAME) <= before {
        ensure!(Instant::now() < until, "no window has closed within {SETTLE:?}");
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
