//! What processes and TCP statistics cost: each program a run, and the agent's thread a connection.
//!
//! In: seconds and connections a second (arguments; few of both in a debug build). Out: for the source alone, for each
//! collector, and for both: connections made, CPU time of the thread that reads the kernel and steps the pipeline, and
//! runs and nanoseconds of each of its programs, by the kernel's own account (`kernel.bpf_stats_enabled`, restored
//! afterwards). What always holds: a network namespace of its own (it starts itself under `unshare`), loopback only,
//! connections one after the other. Needs root; without, it says so. Deliberately not here: user space beyond the
//! pipeline's step (`node`).

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use flowlogd::aggregate::Settings;
use flowlogd::config::{Config, SourceKind};
use flowlogd::model::Timestamp;
use flowlogd::pipeline::{Input, Limits, Pipeline};
use flowlogd::snapshot::World;
use flowlogd::source::NodeSources;

const INSIDE: &str = "FLOWLOGD_BENCH_INSIDE";
const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// So many, because each has 28,000 ports for its clients.
const LISTENERS: usize = 8;

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Runs and nanoseconds of this process's programs, by name.
fn programs() -> BTreeMap<String, (u64, u64)> {
    let names: BTreeMap<u32, String> = aya::programs::loaded_programs()
        .flatten()
        .map(|info| (info.id(), info.name_as_str().unwrap_or("?").to_owned()))
        .collect();
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")?.trim().parse().ok())
        };
        let (Some(id), Some(runs), Some(ns)) = (field("prog_id"), field("run_cnt"), field("run_time_ns"))
        else {
            continue;
        };
        let name = u32::try_from(id).ok().and_then(|id| names.get(&id)).cloned().unwrap_or_default();
        all.insert(name, (runs, ns));
    }
    all
}

/// Connections at a pace, until `stop`; counts them.
fn traffic(rate: u64, stop: &AtomicBool, made: &AtomicU64) -> anyhow::Result<()> {
    let listeners =
        (0..LISTENERS).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<Vec<_>, _>>()?;
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<SocketAddr>, _>>()?;
    let began = Instant::now();
    let mut n: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = Duration::from_nanos(n.saturating_mul(1_000_000_000) / rate.max(1));
        if let Some(early) = due.checked_sub(began.elapsed()) {
            thread::sleep(early.min(Duration::from_millis(1)));
            continue;
        }
        let at = usize::try_from(n).unwrap_or(0) % LISTENERS;
        let (Some(listener), Some(to)) = (listeners.get(at), addresses.get(at)) else { break };
        let mut client = TcpStream::connect(to)?;
        let (mut server, _) = listener.accept()?;
        client.write_all(b"x")?;
        let _ = server.read(&mut [0; 1])?;
        n += 1;
        made.store(n, Ordering::Relaxed);
    }
    Ok(())
}

fn measure(what: &str, processes: bool, tcp: bool, seconds: u64, rate: u64) -> anyhow::Result<()> {
    let config = Config {
        flow_logs_source: SourceKind::Netlink,
        flow_logs_collect_process_info: processes,
        flow_logs_collect_tcp_stats: tcp,
        ..Config::default()
    };
    let mut sources = NodeSources::open(&config)?;
    let mut pipeline = Pipeline::new(Settings::default(), Limits::default(), Timestamp(0));
    let snapshot = World::new("bench".into()).snapshot();
    let mut seen: u64 = 0;
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let generator = {
        let (stop, made) = (stop.clone(), made.clone());
        thread::spawn(move || traffic(rate, &stop, &made))
    };
    let (began, cpu) = (Instant::now(), cpu_time());
    while began.elapsed() < Duration::from_secs(seconds) {
        sources.poll(Duration::from_millis(100), &mut |observed| {
            seen += 1;
            pipeline.step(Input::Observation(&observed.observation), observed.at, &snapshot);
        });
    }
    sources.sweep(&mut |observed| {
        seen += 1;
        pipeline.step(Input::Observation(&observed.observation), observed.at, &snapshot);
    });
    let (elapsed, cpu) = (began.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64());
    let costs = programs();
    stop.store(true, Ordering::Relaxed);
    generator.join().map_err(|_| anyhow::anyhow!("the generator panicked"))??;
    let made = made.load(Ordering::Relaxed) as f64;
    ensure!(made > 0.0, "no connection was made");
    println!(
        "{what:<24} {:>6.0} connections/s {:>6.2} us CPU a connection = {:>4.1} % of a CPU at 5,000/s, {seen} observations",
        made / elapsed,
        cpu * 1e6 / made,
        cpu / made * 5000.0 * 100.0,
    );
    for (name, (runs, ns)) in costs.into_iter().filter(|(_, (runs, _))| *runs > 0) {
        println!(
            "    {name:<20} {:>6.2} runs a connection {:>6.0} ns a run {:>6.0} ns a connection",
            runs as f64 / made,
            ns as f64 / runs as f64,
            ns as f64 / made
        );
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED the cost of processes and TCP statistics: run as root");
        return Ok(());
    }
    if std::env::var_os(INSIDE).is_none() {
        let program = std::env::current_exe()?;
        let status = Command::new("unshare")
            .args(["--net", "--"])
            .arg(program)
            .args(std::env::args().skip(1).filter(|argument| !argument.starts_with("--")))
            .env(INSIDE, "1")
            .status()
            .context("cannot start unshare (util-linux)")?;
        ensure!(status.success(), "the bench ended with {status}");
        return Ok(());
    }
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let few = cfg!(debug_assertions);
    let seconds = numbers.first().copied().unwrap_or(if few { 1 } else { 10 });
    let rate = numbers.get(1).copied().unwrap_or(if few { 200 } else { 5000 });
    let tracked = "ip link set lo up && nft 'add table inet t; add chain inet t o { type filter hook output priority 0; }; add rule inet t o ct state new counter'";
    ensure!(Command::new("sh").args(["-c", tracked]).status()?.success(), "needs ip and nft");
    let before = fs::read_to_string(STATS).unwrap_or_default();
    fs::write(STATS, "1").with_context(|| format!("cannot write {STATS}"))?;
    let outcome = [
        ("connections alone", false, false),
        ("with processes", true, false),
        ("with TCP statistics", false, true),
        ("with both", true, true),
    ]
    .into_iter()
    .try_for_each(|(what, processes, tcp)| measure(what, processes, tcp, seconds, rate));
    fs::write(STATS, before.trim())?;
    outcome
}
