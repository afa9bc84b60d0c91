//! `cargo xtask demo`: real traffic on a small node, its flow log, and the kernel's own counts beside it.
//!
//! In: root on a Debian machine. Out, on stdout: the flow log as a table, the comparison with the kernel, the kinds of
//! traffic that were seen, and as the last line the path of `flows.log`, which stays; progress goes to stderr.
//! What always holds: nothing but that folder is left behind, whatever ends the demo (`netns.rs` says why); the machine's
//! own network is not touched; the exit code is 0 only if every sum is the kernel's and every kind of traffic was seen.
//! Not here: what each step does (one file each).

mod cluster;
mod compare;
pub mod kernel;
mod kinds;
mod lines;
mod node;
mod table;
pub mod tools;
mod traffic;

use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};

use crate::agent::Agent;
use crate::netns;
use compare::Comparison;
use node::*;
use traffic::{Client, Servers, ask, knock, ping, query, shout};

#[derive(clap::Args)]
pub struct Arguments {
    /// The agent's source of connections.
    #[arg(long, default_value = "auto", value_parser = ["auto", "ebpf", "netlink"])]
    source: String,
    /// Processes and TCP statistics too: the sums must stay the same, and each TCP line must have both.
    #[arg(long)]
    collect: bool,
}

const FOLDER: &str = "flowlogd-demo-";
/// Locked while a demo runs in the folder, and gone when it ended well.
const RUNNING: &str = "running";
/// From writing the manifests until the pod is replaced.
const UNTIL_REPLACED: Duration = Duration::from_secs(5);
const WINDOW_PATIENCE: Duration = Duration::from_secs(15);

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let progress = |text: &str| eprintln!("demo: {:5.1} s: {text}", began.elapsed().as_secs_f64());
    tools::prepare()?;
    remove_leftovers();
    progress("building flowlogd");
    let binary = tools::build_agent()?;

    let folder =
        tempfile::Builder::new().prefix(FOLDER).tempdir().context("cannot make a temporary directory")?;
    // It gets its name when it is locked: another demo must not take this one for abandoned.
    let lock = File::create(folder.path().join("lock"))?;
    lock.lock().context("cannot lock a file in the temporary directory")?;
    fs::rename(folder.path().join("lock"), folder.path().join(RUNNING))?;
    let flows = folder.path().join("flows.log");

    progress("building a node out of network namespaces");
    let node = Node::build()?;
    let pods = Pods::start(&node)?;
    let watch = kernel::Watch::start(&node.namespace, folder.path())?;

    let replaced = seconds_now()? + i64::try_from(UNTIL_REPLACED.as_secs())?;
    let manifests = folder.path().join("cluster.json");
    cluster::write(&manifests, replaced)?;
    let agent = Agent::start(&node.namespace, &binary, folder.path(), &flags(&manifests, arguments)?)?;
    progress(&format!("flowlogd observes: source {}, drops {}", agent.source, agent.drops));

    drive(&node, pods, replaced, &flows, &progress)?;
    progress("traffic has ended; waiting for the kernel's counters to rest");
    let live = kernel::live(&node.namespace)?;
    let (source, drops, sees_drops) = (agent.source.clone(), agent.drops.clone(), agent.sees_drops());
    for warning in agent.stop()? {
        eprintln!("demo: flowlogd says: {warning}");
    }
    let connections = watch.finish(&live)?;
    let counters = kernel::counters(&node.namespace)?;
    progress("flowlogd has stopped");

    let lines = lines::read(&flows)?;
    println!(
        "Flow log of {}: aggregation level 2 (allowed) and 1 (denied), times in UTC. Packets and bytes: in/out, as the\n\
         reporter sees them. Flows: open/started/completed in the window.\n",
        cluster::NODE_NAME
    );
    println!("{}", table::flow_logs(&lines));

    let mut comparison = Comparison::default();
    comparison.add_lines(&lines);
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^53")]
    comparison.add_connections(&connections, replaced as f64);
    for denied in &DENIED {
        let count = counters.get(denied.counter).copied().unwrap_or_default();
        ensure!(count.packets > 0, "the demo's rule {} dropped nothing", denied.counter);
        if sees_drops {
            comparison.add_drops(denied, count);
        }
    }
    let (text, unequal) = comparison.show();
    println!(
        "Sums of all lines | the kernel's: conntrack for connections, nftables' counters for what was dropped. In/out.\n"
    );
    println!("{text}");
    let (text, unseen) = kinds::show(&lines, sees_drops);
    println!("{text}");
    let lost: u64 = lines.iter().map(|line| line.lost).sum();
    let unnamed = if arguments.collect { show_sockets(&lines) } else { 0 };

    let good = unequal == 0 && unseen == 0 && lost == 0 && unnamed == 0;
    println!(
        "{}: source {source}, drops {drops}: {} of {} sums are the kernel's, {unseen} kinds of traffic not seen, {lost} events lost, {:.0} s",
        if good { "PASS" } else { "FAILED" },
        comparison.rows() - unequal,
        comparison.rows(),
        began.elapsed().as_secs_f64(),
    );
    if !sees_drops {
        println!(
            "NOT CHECKED: drops. flowlogd does not see them on this machine; `flowlogd check` says why."
        );
    }
    fs::remove_file(folder.path().join(RUNNING))?;
    let _ = folder.keep();
    println!("{}", flows.display());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn flags<'a>(manifests: &'a Path, wished: &'a Arguments) -> anyhow::Result<Vec<&'a str>> {
    let manifests = manifests.to_str().context("the temporary directory's path is no text")?;
    let mut flags = vec!["--node", cluster::NODE_NAME, "--cluster", manifests, "--source", &wished.source];
    flags.extend(["--set", "flowLogsFlushInterval=5s"]);
    if wished.collect {
        flags.extend(["--set", "flowLogsCollectProcessInfo=true", "--set", "flowLogsCollectTcpStats=true"]);
    }
    Ok(flags)
}

/// Both ends of every connection are this program's threads. Gives how many TCP lines do not say so.
fn show_sockets(lines: &[lines::Line]) -> usize {
    let is_tcp = |line: &&lines::Line| line.proto == "tcp" && line.action == "allow" && line.started > 0;
    let (named, unnamed): (Vec<_>, Vec<_>) = lines.iter().filter(is_tcp).partition(|line| {
        let is_answered = line.counts.iter().all(|count| count.packets > 0);
        line.process != "-" && (line.round_trip > 0 || !is_answered)
    });
    for line in &unnamed {
        println!("no process or no round trip: {line:?}");
    }
    println!(
        "{} of {} TCP lines tell a process and, where there was an answer, a round trip\n",
        named.len(),
        named.len() + unnamed.len()
    );
    unnamed.len()
}

struct Pods {
    client_a: Pod,
    client_b: Pod,
    batch: Pod,
    servers: Servers,
    batch_servers: Servers,
    /// Servers only; their namespaces live as long as they do.
    _others: Vec<Pod>,
}

impl Pods {
    fn start(node: &Node) -> anyhow::Result<Self> {
        let [client_a, client_b, batch] =
            [node.add_pod(CLIENT_A)?, node.add_pod(CLIENT_B)?, node.add_pod(BATCH)?];
        let [web_1, web_2, dns] = [node.add_pod(WEB_1)?, node.add_pod(WEB_2)?, node.add_pod(DNS)?];
        let mut servers = Servers::default();
        for web in [&web_1, &web_2] {
            servers.tcp(&web.namespace, WEB_PORT)?;
            // It would answer: that it is not reached is the rule's doing.
            servers.tcp(&web.namespace, ADMIN_PORT)?;
        }
        servers.udp(&dns.namespace, 53)?;
        servers.tcp(&node.outside, 443)?;
        servers.tcp(&node.outside, 80)?;
        let mut batch_servers = Servers::default();
        batch_servers.tcp(&batch.namespace, CACHE_PORT)?;
        Ok(Self { client_a, client_b, batch, servers, batch_servers, _others: vec![web_1, web_2, dns] })
    }
}

/// All of the demo's traffic, in three parts: before the pod is replaced, after it, and after a window has closed.
fn drive(
    node: &Node,
    pods: Pods,
    replaced: i64,
    flows: &Path,
    progress: &dyn Fn(&str),
) -> anyhow::Result<()> {
    let Pods { client_a, client_b, batch, mut servers, batch_servers, _others } = pods;
    let (a, b) = (&client_a.namespace, &client_b.namespace);

    progress("traffic: a pod that will be replaced");
    ask(a, BATCH.v4(), CACHE_PORT, 300, 7_000)?;
    query(&batch.namespace, DNS_SERVICE_V4, 53, &[33])?;
    ensure!(seconds_now()? < replaced, "this machine was too busy for the demo's schedule: run it again");

    progress("traffic: services, UDP, ICMP, both families, the world outside, denied ports");
    let mut long = Client::connect(b, WEB_SERVICE_V4, 80)?;
    long.ask(1_000, 10_000)?;
    thread::scope(|scope| {
        let denied = [
            scope.spawn(|| knock(a, WEB_1.v4(), ADMIN_PORT)),
            scope.spawn(|| knock(a, WEB_1.v6(), ADMIN_PORT)),
            scope.spawn(|| knock(a, WEB_SERVICE_V4, ADMIN_PORT)),
            scope.spawn(|| knock(b, NODE_V4, SSH_PORT)),
            scope.spawn(|| knock(&batch.namespace, WEB_2.v4(), ADMIN_PORT)),
        ];
        for (n, down) in [400, 5_000, 60_000, 900].into_iter().enumerate() {
            ask(if n % 2 == 0 { a } else { b }, WEB_SERVICE_V4, 80, 120, down)?;
            ask(if n % 2 == 0 { b } else { a }, WEB_SERVICE_V6, 80, 90, down + 1)?;
        }
        query(a, DNS_SERVICE_V4, 53, &[40, 61])?;
        query(b, DNS.v6(), 53, &[52])?;
        shout(b, DNS.v4(), STATS_PORT, &[100, 200, 300])?;
        shout(b, DNS.v6(), STATS_PORT, &[150])?;
        ping(a, WEB_1.v4(), &[56, 56])?;
        ping(b, WEB_2.v4(), &[120])?;
        ping(a, DNS.v6(), &[56, 300])?;
        ask(a, PARTNER_V4, 443, 700, 20_000)?;
        ask(b, PARTNER_V6, 443, 500, 9_000)?;
        ask(b, STRANGER_V4, 80, 200, 1_500)?;
        ask(&node.outside, NODE_V4, WEB_NODE_PORT, 150, 3_000)?;
        ask(&node.namespace, WEB_2.v4(), WEB_PORT, 16, 2)?;
        denied
            .into_iter()
            .try_for_each(|knock| knock.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })?;

    drop(batch_servers);
    node.remove_pod(batch)?;
    wait_until(replaced)?;
    progress("traffic: the pod that came at the same address");
    let cache = node.add_pod(CACHE)?;
    servers.tcp(&cache.namespace, CACHE_PORT)?;
    ask(a, CACHE.v4(), CACHE_PORT, 310, 8_000)?;
    query(&cache.namespace, DNS_SERVICE_V4, 53, &[34])?;

    wait_for_window(flows)?;
    progress("traffic: a connection that is open in two windows");
    long.ask(2_000, 30_000)?;
    ask(a, WEB_SERVICE_V4, 80, 60, 1_200)?;
    Ok(())
}

fn seconds_now() -> anyhow::Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())?)
}

fn wait_until(second: i64) -> anyhow::Result<()> {
    while seconds_now()? < second {
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn wait_for_window(flows: &Path) -> anyhow::Result<()> {
    let until = Instant::now() + WINDOW_PATIENCE;
    while fs::metadata(flows).map_or(0, |file| file.len()) == 0 {
        ensure!(Instant::now() < until, "flowlogd wrote no line within {WINDOW_PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// What a killed demo left: a name of a namespace, a folder that nobody locks any more.
fn remove_leftovers() {
    netns::remove_leftovers();
    let Ok(folders) = fs::read_dir(std::env::temp_dir()) else { return };
    for folder in folders.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(FOLDER)) {
        let abandoned = File::open(folder.path().join(RUNNING)).is_ok_and(|lock| lock.try_lock().is_ok());
        if abandoned {
            eprintln!("demo: removing {}, left by a demo that was killed", folder.path().display());
            let _ = fs::remove_dir_all(folder.path());
        }
    }
}
