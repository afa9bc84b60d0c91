//! `cargo xtask soak`: the daemon for twenty minutes under everything that changes on a node.
//!
//! In: root, minutes. Out: a line of progress every ten seconds, a table at the end, and an exit code. New connections all the
//! time, pods and policies that come and go (on a real API server, where `KUBEBUILDER_ASSETS` names one), a
//! configuration file that is rewritten, a shipper that reads what is rotated. What always holds: it passes
//! only if memory of its own (anonymous; by 5 % or 2 MiB), descriptors and threads stay flat in the second half, and if what
//! the shipper read and what was of no pod here is to the byte what the kernel forwarded; it leaves nothing behind.
//! Not here: the node (`bench/site.rs`), traffic (`bench/load.rs`), what changes (`soak/churn.rs`).

mod churn;
mod shipper;
mod trend;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};

use crate::agent::Agent;
use crate::apiserver::{self, ApiServer};
use crate::bench::load::{self, Flows};
use crate::bench::node::{machine, prepare};
use crate::bench::site::{NODE_NAME, Site};
use crate::bench::watchers::{Metrics, Seen, end, socket, total};
use crate::usage::Usage;
use churn::{Changes, Configuration, World};
use shipper::Shipper;
use trend::Trend;

#[derive(clap::Args)]
pub struct Arguments {
    /// In less than ten, memory still grows: tables and rings fill.
    #[arg(long, default_value_t = 20)]
    minutes: u64,
    /// New UDP flows a second; TCP connections come beside them.
    #[arg(long, default_value_t = 400)]
    rate: u64,
    /// The agent's source of connections.
    #[arg(long, default_value = "auto", value_parser = ["auto", "ebpf", "netlink"])]
    source: String,
    /// A release build that is there, instead of building one.
    #[arg(long)]
    agent: Option<PathBuf>,
}

const SAMPLE: Duration = Duration::from_secs(10);
/// Of TCP connections, now and then.
const SPELL: Duration = Duration::from_millis(200);
/// Growth over the second half that is none: of resident memory, the larger of these.
const GROWTH_SHARE: f64 = 0.05;
const GROWTH_BYTES: f64 = 2.0 * 1024.0 * 1024.0;
/// Descriptors and threads of requests under way.
const FEW: usize = 3;

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let binary = prepare(arguments.agent.as_deref())?;
    println!("{}\n", machine());
    let folder = tempfile::Builder::new().prefix("flowlogd-soak-").tempdir()?;
    let site = Site::build()?;
    let server = match apiserver::assets() {
        Some(assets) => Some(ApiServer::start_in(site.node.again()?, &assets, folder.path())?),
        None => None,
    };
    let world = server.as_ref().map(|server| World::begin(server, &site)).transpose()?;
    let configuration = Configuration::write(folder.path())?;
    let lines = folder.path().join("lines");
    std::fs::create_dir(&lines)?;
    let manifests = Site::manifests(folder.path())?;
    let (kind, of) = match &server {
        Some(server) => ("--kubeconfig", server.agent_kubeconfig()),
        None => ("--cluster", manifests),
    };
    let [of, config, live] =
        [of, configuration.path.clone(), socket(folder.path())].map(|path| path.display().to_string());
    let live = format!("flowLogsLiveSocketPath={live}");
    let flags = [
        "--node",
        NODE_NAME,
        "--source",
        &arguments.source,
        kind,
        &of,
        "--config",
        &config,
        "--set",
        &live,
        "--set",
        "prometheusMetricsEnabled=true",
        "--set",
        "flowLogsFileMaxFileSizeMB=4",
    ];
    let agent = Agent::start(&site.node, &binary, &lines, &flags)?;
    eprintln!("soak: source {}, drops {}", agent.source, agent.drops);

    let ended = AtomicBool::new(false);
    let (samples, changes, sent, seen) = thread::scope(|scope| {
        let shipper = scope.spawn(|| Shipper::follow(&lines, &ended));
        let churn = scope.spawn(|| churn::run(world.as_ref(), &configuration, &ended));
        let traffic = scope.spawn(|| traffic(&site, world.as_ref(), arguments.rate, &ended));
        let samples = sample(&site, &agent, arguments.minutes, || {
            shipper.is_finished() || churn.is_finished() || traffic.is_finished()
        });
        ended.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("a thread panicked");
        let sent = traffic.join().map_err(panicked)?.context("traffic")?;
        let changes = churn.join().map_err(panicked)?.context("changes")?;
        // The agent's last window is read by the shipper's last look, below.
        let shipper = shipper.join().map_err(panicked)?.context("the shipper")?;
        Ok::<_, anyhow::Error>((samples?, changes, sent, shipper))
    })?;
    let kernel = site.counters()?;
    end(agent)?;
    let mut shipper = seen;
    shipper.look(&lines)?;
    let log = |metric: &str| total(&lines, metric);
    let (lost, not_local) = (log("flowlogd_lost_events_total")?, log("flowlogd_not_local_bytes_total")?);
    let of = |name: &str| kernel.get(name).copied().unwrap_or_default();
    let forwarded = Seen {
        flows: of("new").packets,
        packets: of("original").packets + of("reply").packets,
        bytes: of("original").bytes + of("reply").bytes,
    };
    Ok(report(&samples, &changes, sent, &shipper, forwarded, lost, not_local))
}

/// Connections until the end, and how many there were.
fn traffic(site: &Site, world: Option<&World<'_>>, rate: u64, ended: &AtomicBool) -> anyhow::Result<u64> {
    let mut flows = Flows::new(site)?;
    let mut sent = 0;
    while !ended.load(Ordering::Relaxed) {
        sent += flows.pace(rate, Duration::from_secs(2))?;
        sent += load::connections(site, SPELL)?.times.len() as u64;
        if let Some(world) = world {
            sent += world.talk(site)?;
        }
    }
    Ok(sent)
}

fn sample(
    site: &Site,
    agent: &Agent,
    minutes: u64,
    broken: impl Fn() -> bool,
) -> anyhow::Result<Vec<(Usage, f64)>> {
    let (began, time) = (Instant::now(), Duration::from_secs(minutes * 60));
    let mut samples = Vec::new();
    while began.elapsed() < time {
        thread::sleep(SAMPLE.min(time.saturating_sub(began.elapsed())));
        // Its own error says why, when it is joined.
        if broken() {
            break;
        }
        let usage = Usage::of(agent.id()).context("the agent")?;
        let live = Metrics::read(site)?.sum("flowlogd_connections_open");
        eprintln!(
            "soak: {:5.1} of {minutes} min: {:.1} MiB, {:.1} of its own, {} descriptors, {} threads, {live} live, {:.2} % of a core",
            began.elapsed().as_secs_f64() / 60.0,
            mib(usage.resident_bytes as f64),
            mib(usage.anonymous_bytes as f64),
            usage.descriptors,
            usage.threads,
            usage.cpu.as_secs_f64() * 100.0 / began.elapsed().as_secs_f64(),
        );
        samples.push((usage, began.elapsed().as_secs_f64()));
    }
    ensure!(samples.len() > 3, "the soak was over after {} samples", samples.len());
    Ok(samples)
}

fn mib(bytes: f64) -> f64 {
    bytes / 1024.0 / 1024.0
}

fn report(
    samples: &[(Usage, f64)],
    changes: &Changes,
    sent: u64,
    shipper: &Shipper,
    forwarded: Seen,
    lost: u64,
    not_local: u64,
) -> ExitCode {
    let second = samples.get(samples.len() / 2..).unwrap_or_default();
    let trend = |of: &dyn Fn(&Usage) -> f64| Trend::of(second.iter().map(|(usage, at)| (*at, of(usage))));
    let resident = trend(&|usage| usage.resident_bytes as f64);
    let own = trend(&|usage| usage.anonymous_bytes as f64);
    // These come and go with what the configuration switches on: a leak raises the peaks.
    let (third, fourth) = second.split_at(second.len() / 2);
    let peak = |part: &[(Usage, f64)], of: &dyn Fn(&Usage) -> usize| {
        part.iter().map(|(usage, _)| of(usage)).max().unwrap_or_default()
    };
    let peaks = |of: &dyn Fn(&Usage) -> usize| (peak(third, of), peak(fourth, of));
    let (descriptors, threads) = (peaks(&|usage| usage.descriptors), peaks(&|usage| usage.threads));
    let shipped = shipper.seen;
    let rows = [
        (
            "resident memory of its own in the second half: mean, growth",
            format!(
                "{:.1} MiB, {:+.2} MiB (with files and mapped rings of the kernel: {:.1} MiB, {:+.2} MiB)",
                mib(own.mean),
                mib(own.growth),
                mib(resident.mean),
                mib(resident.growth)
            ),
            own.growth <= (own.mean * GROWTH_SHARE).max(GROWTH_BYTES),
        ),
        (
            "descriptors at most, third and fourth quarter",
            format!("{}, {}", descriptors.0, descriptors.1),
            descriptors.1 <= descriptors.0 + FEW,
        ),
        ("threads, the same", format!("{}, {}", threads.0, threads.1), threads.1 <= threads.0 + FEW),
        ("events lost", lost.to_string(), lost == 0),
        (
            "packets in lines, of the kernel's",
            format!("{} of {}", shipped.packets, forwarded.packets),
            not_local > 0 && shipped.packets <= forwarded.packets || shipped.packets == forwarded.packets,
        ),
        (
            "bytes in lines and of no pod here, of the kernel's",
            format!("{} + {not_local} of {}", shipped.bytes, forwarded.bytes),
            shipped.bytes + not_local == forwarded.bytes,
        ),
        ("lines that are no JSON", shipper.torn.to_string(), shipper.torn == 0),
    ];
    println!(
        "| {sent} connections, {} lines in {} files shipped, {changes} | | |\n|---|---|---|",
        shipper.lines, shipper.files
    );
    for (what, value, good) in &rows {
        println!("| {what} | {value} | {} |", if *good { "good" } else { "FAILED" });
    }
    if rows.iter().all(|(_, _, good)| *good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
