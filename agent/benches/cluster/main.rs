//! What a large cluster costs an agent: time until it is known, memory, lookups, one pod's event, bytes of the API.
//!
//! In: the synthetic API server of `server.rs`, in a process of its own, on loopback: 100,000 pods, 5,000 nodes, 10,000
//! services with their EndpointSlices, 1,000 network sets of 100 prefixes, 2,000 policies (few of each in a debug build).
//! Out: one line a figure. What always holds: the watch, the world and the allocator are the daemon's; memory is what the
//! process has more than before its first request; lookups and events run on one thread. Nothing is asserted about
//! time. What the API server itself pays is deliberately not here, but for the bytes.

#[path = "objects.rs"]
mod objects;
#[path = "server.rs"]
mod server;

use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use flowlogd::model::Timestamp;
use flowlogd::snapshot::{Snapshot, World};
use flowlogd::watch::{Cluster, Decoded, Link, Timing, connect, decode_text};

use objects::Size;

/// Pods whose events are measured.
const EVENTS: usize = if cfg!(debug_assertions) { 200 } else { 50_000 };
const LOOKUPS: u64 = if cfg!(debug_assertions) { 10_000 } else { 20_000_000 };

/// A number of `/proc/self/status` in bytes.
fn memory(field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value =
        value.with_context(|| format!("/proc/self/status has no {field}: a Linux kernel is needed"))?;
    Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn now() -> Timestamp {
    Timestamp(objects::NOW * 1_000_000_000)
}

fn main() -> anyhow::Result<()> {
    let size = if cfg!(debug_assertions) { Size::FEW } else { Size::LARGE };
    if std::env::args().any(|argument| argument == "serve") {
        return server::serve(size);
    }
    println!("{size:?}");
    let snapshot = first_sync()?;
    lookups(size, &snapshot);
    drop(snapshot);
    events(size)
}

/// From the first request to the published world, through the daemon's own watch.
fn first_sync() -> anyhow::Result<Arc<Snapshot>> {
    let mut serving = Command::new(std::env::current_exe()?)
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the server's process")?;
    let mut port = String::new();
    BufReader::new(serving.stdout.take().context("no output")?).read_line(&mut port)?;
    let folder = tempfile::tempdir()?;
    let kubeconfig = folder.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
         clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{}'}}}}]\n\
         users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n",
        port.trim()
    );
    std::fs::write(&kubeconfig, text)?;

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let published = Arc::new(ArcSwap::from_pointee(Snapshot::without_cluster("node-0".into())));
    let before = memory("VmRSS")?;
    let began = Instant::now();
    let status = runtime.block_on(async {
        let client = connect(&flowlogd::watch::Server::Kubeconfig(kubeconfig)).await?;
        let (link, looking) = Link::new(client, Timing::default(), &[]);
        let cluster = Cluster::new(World::new("node-0".into()), published.clone());
        let status = cluster.status.clone();
        tokio::spawn(looking);
        tokio::spawn(cluster.follow(link, now));
        while !status.is_synced() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        anyhow::Ok(status)
    })?;
    let took = began.elapsed();
    let bytes = || -> u64 { status.kinds.iter().map(|kind| kind.bytes()).sum() };
    println!("first sync: {:.2} s, {:.0} MiB of lists read", took.as_secs_f64(), mib(bytes()));
    for kind in status.kinds.iter().filter(|kind| kind.objects() > 0) {
        println!("  {:<24} {:>7} objects {:>8.1} MiB", kind.kind, kind.objects(), mib(kind.bytes()));
    }
    let after = memory("VmRSS")?.saturating_sub(before);
    println!(
        "resident memory of the cluster: {:.1} MiB (most while syncing: {:.1})",
        mib(after),
        mib(memory("VmHWM")?.saturating_sub(before))
    );

    // Ten pod events a second are sent by the server, as fast as they are read.
    let pods = status.kinds.iter().find(|kind| kind.kind == "Pod").context("pods are watched")?;
    let (events, read) = (pods.events(), pods.bytes());
    drop(serving.stdin.take());
    while pods.events() - events < server::EVENTS {
        std::thread::sleep(Duration::from_millis(5));
    }
    let each = (pods.bytes() - read) as f64 / server::EVENTS as f64;
    println!(
        "a pod event: {each:.0} bytes; at 10 a second {:.1} MiB an hour and agent",
        each * 36_000.0 / f64::from(1 << 20)
    );
    println!(
        "resident after {} events: {:.1} MiB",
        server::EVENTS,
        mib(memory("VmRSS")?.saturating_sub(before))
    );
    runtime.shutdown_background();
    let _ = serving.kill();
    let _ = serving.wait();
    Ok(published.load_full())
}

fn lookups(size: Size, snapshot: &Snapshot) {
    let cluster = &snapshot.cluster;
    let rate = |what: &str, found: &dyn Fn(u64) -> bool| {
        let began = Instant::now();
        let hits = (0..LOOKUPS).filter(|n| found(objects::noise(*n))).count();
        let a_second = LOOKUPS as f64 / began.elapsed().as_secs_f64();
        println!(
            "{what}: {:.2} million a second ({:.0}% found)",
            a_second / 1e6,
            100.0 * hits as f64 / LOOKUPS as f64
        );
    };
    let pods: Vec<IpAddr> = (0..size.pods).map(objects::pod_ip).collect();
    let at = |n: u64| pods[usize::try_from(n % size.pods).unwrap_or(0)];
    rate("lookups of a pod's address", &|n| cluster.endpoint_at(at(n), now(), false).is_some());
    rate("lookups of a network set", &|n| {
        cluster.network_set(objects::set_ip(n % size.sets, n >> 32), Some("team-1")).is_some()
    });
    rate("lookups of an address in no set", &|n| {
        cluster.network_set(IpAddr::from((n as u32 | 0xe000_0000).to_be_bytes()), None).is_some()
    });
}

/// One pod's event to a new snapshot: decoded, applied, published, while the pipeline holds the last one.
fn events(size: Size) -> anyhow::Result<()> {
    let mut world = World::new("node-0".into());
    let apply = |world: &mut World, text: &str| -> anyhow::Result<()> {
        if let Decoded::Object(object) = decode_text("v1", "Pod", text)? {
            world.apply(object, now());
        }
        Ok(())
    };
    for n in 0..size.pods {
        apply(&mut world, &objects::pod(n, 0, n))?;
    }
    let published = ArcSwap::from_pointee(world.snapshot());
    let mut took = Vec::with_capacity(EVENTS);
    for event in 0..EVENTS {
        // One of three moves to another address, the others get other labels.
        let n = objects::noise(event as u64) % size.pods;
        let text = objects::pod(n, 1 + event as u64 % 3, n);
        let held = published.load_full();
        let began = Instant::now();
        apply(&mut world, &text)?;
        published.store(Arc::new(world.snapshot()));
        took.push(began.elapsed());
        drop(held);
    }
    took.sort();
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or_default();
    println!(
        "one pod event to a new snapshot: median {:?}, p99 {:?}, most {:?}",
        at(0.5),
        at(0.99),
        at(0.99999)
    );
    Ok(())
}
