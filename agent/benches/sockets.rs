//! What drops and the collectors cost: of sockets and of DNS, in the kernel and in user space.
//!
//! In: seconds and connections a second (arguments; few of both in a debug build). Out: for the source alone, for each
//! collector, and for all: connections made, CPU time of the thread that reads the kernel and steps the pipeline and of the
//! one that captures DNS, and runs and nanoseconds of each of the source's programs, by the kernel's own account
//! (`kernel.bpf_stats_enabled`, restored afterwards); then what a packet that is not DNS pays for the capture's filter:
//! small UDP packets with it and without in turn, the median of the pairs' differences. What always holds: each in a network
//! namespace of its own (it starts itself under `unshare`), so that nobody pays for connections of another; loopback
//! only, connections one after the other. Needs root; without, it says so. Deliberately not here: user space beyond the pipeline's step (`node`).

mod sysctl;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use flowlogd::aggregate::Settings;
use flowlogd::config::{Config, SourceKind};
use flowlogd::model::{Observation, Timestamp};
use flowlogd::pipeline::{Input, Limits, Pipeline};
use flowlogd::snapshot::World;
use flowlogd::source::{NodeSources, Observed, dns};
use sysctl::Sysctl;

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

/// CPU time of this process's threads of a name.
fn cpu_time_of(name: &str) -> Duration {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").trim() == name {
            sum += read("schedstat").split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(sum)
}

/// A question for `n.example`, and its answer: the same with two bits more.
fn lookup(n: u16) -> (Vec<u8>, Vec<u8>) {
    let tail = [&[0, 1, 0, 0, 0, 0, 0, 0, 1, b'n', 7], &b"example"[..], &[0, 0, 1, 0, 1]].concat();
    let message = |flags: [u8; 2]| [&n.to_be_bytes()[..], &flags, &tail].concat();
    (message([1, 0]), message([0x81, 0x80]))
}

/// Lookups at a pace, until `stop`.
fn lookups(rate: u64, stop: &AtomicBool) -> anyhow::Result<()> {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53))?;
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let began = Instant::now();
    let mut n: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = Duration::from_nanos(n.saturating_mul(1_000_000_000) / rate.max(1));
        if let Some(early) = due.checked_sub(began.elapsed()) {
            thread::sleep(early.min(Duration::from_millis(1)));
            continue;
        }
        let (question, answer) = lookup(n as u16);
        client.send_to(&question, server.local_addr()?)?;
        let (_, from) = server.recv_from(&mut [0; 512])?;
        server.send_to(&answer, from)?;
        client.recv_from(&mut [0; 512])?;
        n += 1;
    }
    Ok(())
}

/// What is collected.
#[derive(Clone, Copy)]
struct Case {
    what: &'static str,
    processes: bool,
    tcp: bool,
    dns: bool,
    /// One a tenth of the connections.
    lookups: bool,
}

fn measure(case: Case, seconds: u64, rate: u64) -> anyhow::Result<()> {
    let Case { what, processes, tcp, .. } = case;
    let config = Config {
        flow_logs_source: SourceKind::Netlink,
        flow_logs_collect_process_info: processes,
        flow_logs_collect_tcp_stats: tcp,
        ..Config::default()
    };
    let mut sources = NodeSources::open(&config)?;
    let mut capture = case.dns.then(dns::Capture::start).transpose()?;
    let mut pipeline = Pipeline::new(Settings::default(), Limits::default(), Timestamp(0));
    let snapshot = World::new("bench".into()).snapshot();
    let mut seen: u64 = 0;
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let generator = {
        let (stop, made) = (stop.clone(), made.clone());
        thread::spawn(move || traffic(rate, &stop, &made))
    };
    let asking = case.lookups.then(|| {
        let stop = stop.clone();
        thread::spawn(move || lookups(rate / 10, &stop))
    });
    let mut told: u64 = 0;
    let (began, cpu) = (Instant::now(), cpu_time());
    while began.elapsed() < Duration::from_secs(seconds) {
        sources.poll(Duration::from_millis(100), &mut |observed| {
            seen += 1;
            pipeline.step(Input::Observation(&observed.observation), observed.at, &snapshot);
        });
        if let Some(capture) = &mut capture {
            capture.take(|at, observation| {
                told += 1;
                pipeline.step(Input::Observation(&observation), at, &snapshot);
            });
        }
    }
    sources.sweep(&mut |observed| {
        seen += 1;
        pipeline.step(Input::Observation(&observed.observation), observed.at, &snapshot);
    });
    let dns_cpu = cpu_time_of("dns").as_secs_f64();
    let (elapsed, cpu) = (began.elapsed().as_secs_f64(), (cpu_time() - cpu).as_secs_f64() + dns_cpu);
    let costs = programs();
    stop.store(true, Ordering::Relaxed);
    generator.join().map_err(|_| anyhow::anyhow!("the generator panicked"))??;
    if let Some(asking) = asking {
        asking.join().map_err(|_| anyhow::anyhow!("the asking thread panicked"))??;
        ensure!(told > 0, "no lookup was told");
    }
    let made = made.load(Ordering::Relaxed) as f64;
    ensure!(made > 0.0, "no connection was made");
    println!(
        "{what:<24} {:>6.0} connections/s {:>6.2} us CPU a connection = {:>4.1} % of a CPU at 5,000/s ({:.2} % the thread of DNS), {} observations",
        made / elapsed,
        cpu * 1e6 / made,
        cpu / made * 5000.0 * 100.0,
        dns_cpu / made * 5000.0 * 100.0,
        seen + told,
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

/// Nanoseconds of CPU that a small packet costs, sent and received over loopback.
fn packet(sender: &UdpSocket, receiver: &UdpSocket, packets: u32) -> anyhow::Result<f64> {
    let mut buffer = [0; 64];
    let began = cpu_time();
    for _ in 0..packets {
        sender.send(&[7; 18])?;
        receiver.recv(&mut buffer)?;
    }
    Ok((cpu_time() - began).as_nanos() as f64 / f64::from(packets))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What a packet that is not DNS pays for the capture: over loopback the socket's filter sees it twice, on its way out and in.
fn filter(pairs: usize, packets: u32) -> anyhow::Result<()> {
    let (sender, receiver) =
        (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
    sender.connect(receiver.local_addr()?)?;
    packet(&sender, &receiver, packets)?;
    let (mut without, mut with, mut differences) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..pairs {
        let one = |capture: bool| -> anyhow::Result<f64> {
            let socket = capture.then(dns::open).transpose()?;
            let cost = packet(&sender, &receiver, packets)?;
            drop(socket);
            Ok(cost)
        };
        // In turn, so that what changes slowly is in both.
        let (a, b) = if pair % 2 == 0 {
            let a = one(false)?;
            (a, one(true)?)
        } else {
            let b = one(true)?;
            (one(false)?, b)
        };
        without.push(a);
        with.push(b);
        differences.push(b - a);
    }
    let twice = median(differences);
    println!(
        "filter of DNS: a UDP packet of 18 bytes over loopback costs {:.0} ns without, {:.0} ns with it; median of {pairs} pairs' differences {twice:.0} ns, for two runs: on the way out and in",
        median(without),
        median(with),
    );
    Ok(())
}

const fn case(what: &'static str, processes: bool, tcp: bool, dns: bool, lookups: bool) -> Case {
    Case { what, processes, tcp, dns, lookups }
}

const CASES: [Case; 7] = [
    case("connections alone", false, false, false, false),
    case("with processes", true, false, false, false),
    case("with TCP statistics", false, true, false, false),
    case("with both", true, true, false, false),
    case("with DNS", false, false, true, false),
    case("with all three", true, true, true, false),
    case("and a lookup for ten", true, true, true, true),
];

/// What a dropped packet costs: the filter drops every datagram to one port, in the sender's own context.
fn drops(seconds: u64) -> anyhow::Result<()> {
    const DENIED: u16 = 9;
    let rule = format!("nft add rule inet t o udp dport {DENIED} drop");
    ensure!(Command::new("sh").args(["-c", &rule]).status()?.success(), "nft takes no rule that drops");
    let config = Config { flow_logs_source: SourceKind::Netlink, ..Config::default() };
    let mut sources = NodeSources::open(&config)?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (mut sent, mut counted) = (0_u64, 0_u64);
    let mut count = |observed: Observed| {
        if let Observation::Drop(drop) = &observed.observation {
            counted += drop.packets;
        }
    };
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..1000 {
            // Refused by the rule: that is what is measured.
            let _ = sender.send_to(b"x", (Ipv4Addr::LOCALHOST, DENIED));
        }
        sent += 1000;
        sources.poll(Duration::ZERO, &mut count);
    }
    sources.sweep(&mut count);
    println!("{:<24} {sent} datagrams dropped in {seconds} s, {counted} told", "drops");
    for (name, (runs, ns)) in programs().into_iter().filter(|(_, (runs, _))| *runs > 0) {
        println!(
            "    {name:<20} {:>6.2} runs a drop {:>12.0} ns a run {:>10.0} ns a drop",
            runs as f64 / sent as f64,
            ns as f64 / runs as f64,
            ns as f64 / sent as f64
        );
    }
    Ok(())
}

/// One case, or the filter's cost, or a drop's, in a network namespace that nothing has been tracked in.
fn inside(number: usize) -> anyhow::Result<()> {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let few = cfg!(debug_assertions);
    let seconds = numbers.first().copied().unwrap_or(if few { 1 } else { 10 });
    let rate = numbers.get(1).copied().unwrap_or(if few { 200 } else { 5000 });
    let tracked = "ip link set lo up && nft 'add table inet t; add chain inet t o { type filter hook output priority 0; }; add rule inet t o ct state new counter'";
    ensure!(Command::new("sh").args(["-c", tracked]).status()?.success(), "needs ip and nft");
    match CASES.get(number) {
        Some(case) => measure(*case, seconds, rate),
        None if number > CASES.len() => drops(seconds),
        None if few => filter(4, 500),
        None => filter(40, 20_000),
    }
}

fn main() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED the cost of the collectors: run as root");
        return Ok(());
    }
    if let Ok(number) = std::env::var(INSIDE) {
        return inside(number.parse()?);
    }
    let program = std::env::current_exe()?;
    let _stats = Sysctl::set(STATS, "1")?;
    (0..=CASES.len() + 1).try_for_each(|number| {
        let status = Command::new("unshare")
            .args(["--net", "--"])
            .arg(&program)
            .args(std::env::args().skip(1).filter(|argument| !argument.starts_with("--")))
            .env(INSIDE, number.to_string())
            .status()
            .context("cannot start unshare (util-linux)")?;
        ensure!(status.success(), "the bench ended with {status}");
        Ok(())
    })
}
