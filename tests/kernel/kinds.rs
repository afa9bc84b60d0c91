//! Equality: every kind of connection, every packet and byte, as conntrack says it.
//!
//! In each case: agent up, traffic, `conntrack -L` as the yardstick, agent down with SIGTERM, comparison of all allow
//! lines with the yardstick. Connections that ended and connections still open are both among them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::agent::{Agent, Line, Options, equal, sums};
use crate::node::{Node, Pod, run, sysctl};
use crate::queue::Queue;
use crate::reference::{self, Connection};
use crate::{Outcome, traffic};

/// Where a case's agent writes.
pub fn folder(case: &str) -> PathBuf {
    PathBuf::from("/var/log/flowlogs").join(case)
}

/// Service address that is DNATed to the server, and masquerading of what goes to port 8081.
const NAT: &str = "table inet case {
    chain translate_to { type nat hook prerouting priority dstnat;
        ip daddr 10.96.0.10 tcp dport 80 dnat ip to 10.77.2.2:8080;
        ip6 daddr fd96::10 udp dport 53 dnat ip6 to [fd77:0:0:2::2]:5353;
    }
    chain translate_from { type nat hook postrouting priority srcnat; tcp dport 8081 masquerade; }
}";

/// TCP, UDP, ICMP and SCTP over both families, DNAT and SNAT; everything is closed or silent at the end.
fn every_kind(client: &Pod, server: &Pod) -> Result<()> {
    for v6 in [false, true] {
        let at = |port| SocketAddr::new(server.ip(v6), port);
        let listener = traffic::listen(server, v6, 8080)?;
        traffic::tcp(client, at(8080), &listener, 3, 3000, 100_000)?;
        if !v6 {
            traffic::tcp(client, "10.96.0.10:80".parse()?, &listener, 2, 10, 10)?;
            let listener = traffic::listen(server, v6, 8081)?;
            traffic::tcp(client, at(8081), &listener, 1, 5000, 5)?;
        }
        let echo = traffic::udp_socket(server, v6, 5353)?;
        traffic::udp(client, at(5353), &echo, 5, 700)?;
        if v6 {
            traffic::udp(client, "[fd96::10]:53".parse()?, &echo, 2, 60)?;
        }
        let _silent = traffic::udp_socket(server, v6, 5354)?;
        traffic::udp_unanswered(client, at(5354), 3, 200)?;
        traffic::ping(client, server.ip(v6), 41, 3, 56)?;
        traffic::ping(client, server.ip(v6), 42, 1, 1200)?;
        traffic::sctp(client, server, v6, 7777, 900, 1200)?;
    }
    Ok(())
}

/// Every kind, ended and open, against `conntrack -L`, for one source.
fn all_kinds(case: &str, source: &str) -> Result<Outcome> {
    let mut node = Node::new()?;
    node.rules(NAT)?;
    let agent = Agent::start(&folder(case), &Options { source, ..Options::default() })?;
    let (client, server) = (node.client(), node.server());
    every_kind(client, server)?;
    let mut kernel = reference::list()?;
    reference::flush()?;
    // These stay open: their lines come from sweeps, the last one at the agent's end.
    let listener = traffic::listen(server, false, 8080)?;
    let mut open = traffic::Open::new(client, SocketAddr::new(server.ip(false), 8080), &listener)?;
    open.exchange(4000, 60_000)?;
    let echo = traffic::udp_socket(server, true, 5353)?;
    traffic::udp(client, SocketAddr::new(server.ip(true), 5353), &echo, 3, 80)?;
    kernel.extend(reference::list()?);
    let chosen = agent.chosen_source();
    let lines = agent.stop()?;
    let said = compare(&lines, &kernel)?;
    Ok(Outcome::Pass(format!("{chosen}: {} connections equal{said}", kernel.len())))
}

/// Allow lines equal the kernel's counters, and nothing was denied. Gives what the agent says of records that it lacks:
/// a probe that the kernel skipped is said, even where nothing is missing because a sweep had seen the same counters.
pub fn compare(lines: &[Line], kernel: &[Connection]) -> Result<String> {
    equal("allow lines", &sums(lines, "allow")?, &reference::total(kernel))?;
    let denied = sums(lines, "deny")?;
    ensure!(denied.is_empty(), "deny lines where nothing was denied: {denied:?}");
    let lost: u64 = lines.iter().map(|line| line.lost_events).max().unwrap_or_default();
    Ok(if lost == 0 { String::new() } else { format!(" ({lost} events counted as lost, nothing missing)") })
}

/// What the node offers best.
pub fn kinds() -> Result<Outcome> {
    all_kinds("kinds", "auto")
}

/// The tier without BPF.
pub fn kinds_netlink() -> Result<Outcome> {
    all_kinds("kinds_netlink", "netlink")
}

/// Connections that end by their own timeouts, against the events of `conntrack -E`.
pub fn natural_end() -> Result<Outcome> {
    let node = Node::new()?;
    let timeouts =
        ["tcp_timeout_time_wait", "tcp_timeout_close", "udp_timeout", "udp_timeout_stream", "icmp_timeout"];
    let mut usual = Vec::new();
    for name in timeouts {
        let key = format!("net/netfilter/nf_conntrack_{name}");
        usual.push((key.clone(), std::fs::read_to_string(format!("/proc/sys/{key}"))?));
        // Longer than a pause in the middle of a connection, else it ends there and another begins.
        sysctl(&key, "4")?;
    }
    let outcome = (|| {
        let agent = Agent::start(&folder("natural_end"), &Options { source: "auto", ..Options::default() })?;
        let ends = reference::Ends::start()?;
        let (client, server) = (node.client(), node.server());
        let listener = traffic::listen(server, false, 8080)?;
        traffic::tcp(client, SocketAddr::new(server.ip(false), 8080), &listener, 5, 100, 2000)?;
        let echo = traffic::udp_socket(server, false, 5353)?;
        traffic::udp(client, SocketAddr::new(server.ip(false), 5353), &echo, 2, 100)?;
        traffic::ping(client, server.ip(false), 9, 2, 56)?;
        let began = Instant::now();
        let ended = loop {
            // Reading the table also drops what has expired in it.
            reference::list()?;
            let ended = ends.wait(7, Duration::from_millis(250))?;
            if ended.len() >= 7 || began.elapsed() > traffic::PATIENCE {
                break ended;
            }
        };
        ensure!(ended.len() == 7, "7 connections should have ended, not {}", ended.len());
        let lines = agent.stop()?;
        let said = compare(&lines, &ended)?;
        let completed: u64 = lines.iter().map(|line| line.num_flows_completed).sum();
        ensure!(completed == 7, "7 connections ended, but the lines say {completed}");
        Ok(Outcome::Pass(format!("7 ended connections equal{said}")))
    })();
    for (key, value) in usual {
        sysctl(&key, value.trim())?;
    }
    outcome
}

/// Two datagrams of one socket on the way before either is confirmed: the kernel merges the loser into the winner, and
/// that is no denied connection.
pub fn clash() -> Result<Outcome> {
    let mut node = Node::new()?;
    node.rules(
        "table inet case {
            chain hold { type filter hook forward priority 1; ct state new udp dport 53 queue num 7; }
        }",
    )?;
    let agent = Agent::start(&folder("clash"), &Options { source: "auto", ..Options::default() })?;
    let mut queue = Queue::bind(7)?;
    let (client, server) = (node.client(), node.server());
    let _server = traffic::udp_socket(server, false, 53)?;
    traffic::udp_unanswered(client, SocketAddr::new(server.ip(false), 53), 2, 40)?;
    queue.hold(2, traffic::PATIENCE)?;
    ensure!(reference::list()?.is_empty(), "one of the two was confirmed before the other arrived");
    queue.release()?;
    let kernel = settled(1)?;
    ensure!(
        kernel.iter().all(|winner| winner.sums.packets[0] >= 1),
        "the winner lost its own packet: {kernel:?}"
    );
    let lines = agent.stop()?;
    let said = compare(&lines, &kernel)?;
    Ok(Outcome::Pass(format!("{} clashes resolved by the kernel, no deny line{said}", clashes_resolved()?)))
}

/// Waits until the table has so many entries, and gives them.
fn settled(count: usize) -> Result<Vec<Connection>> {
    let began = Instant::now();
    loop {
        let connections = reference::list()?;
        if connections.len() == count {
            return Ok(connections);
        }
        ensure!(
            began.elapsed() < traffic::PATIENCE,
            "conntrack should have {count} entries: {connections:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How often the kernel merged the loser of an insertion clash (`clash_resolve` of `conntrack -S`).
fn clashes_resolved() -> Result<u64> {
    let text = run(&["conntrack", "-S"])?;
    let counts = text.split_whitespace().filter_map(|word| word.strip_prefix("clash_resolve="));
    Ok(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
}

/// Thousands of short connections, half of them ended, none missing.
pub fn thousands() -> Result<Outcome> {
    let node = Node::new()?;
    let agent = Agent::start(&folder("thousands"), &Options { source: "auto", ..Options::default() })?;
    let (client, server) = (node.client(), node.server());
    let to = SocketAddr::new(server.ip(false), 8080);
    let listener = traffic::listen(server, false, 8080)?;
    let mut kernel = Vec::new();
    for count in [1200, 800] {
        traffic::tcp(client, to, &listener, count, 10, 10)?;
        kernel.extend(reference::list()?);
        if count == 1200 {
            reference::flush()?;
        }
    }
    ensure!(kernel.len() == 2000, "conntrack had {} entries", kernel.len());
    let lines = agent.stop()?;
    let said = compare(&lines, &kernel)?;
    Ok(Outcome::Pass(format!("{} connections equal{said}", kernel.len())))
}

/// A pod that tracks connections itself: each connection is in two tables, and counts once.
pub fn tracking_pod() -> Result<Outcome> {
    let node = Node::new()?;
    node.client()
        .inside(|| crate::node::run_with_input(&["nft", "-f", "-"], crate::node::TRACK).map(drop))?;
    let agent = Agent::start(&folder("tracking_pod"), &Options { source: "auto", ..Options::default() })?;
    let (client, server) = (node.client(), node.server());
    let listener = traffic::listen(server, false, 8080)?;
    traffic::tcp(client, SocketAddr::new(server.ip(false), 8080), &listener, 2, 100, 2000)?;
    let kernel = reference::list()?;
    let inner = client.inside(|| run(&["conntrack", "-C"]))?;
    ensure!(inner.trim() == "2", "the pod itself should track 2 connections, not {inner}");
    let lines = agent.stop()?;
    let said = compare(&lines, &kernel)?;
    Ok(Outcome::Pass(format!("{} connections counted once{said}", kernel.len())))
}

/// The agent starts on a kernel without connection tracking; the module comes later, with the first rule.
pub fn module_after_agent() -> Result<Outcome> {
    let modules = std::fs::read_to_string("/proc/modules")?;
    if modules.lines().any(|line| line.starts_with("nf_conntrack ")) {
        return Ok(Outcome::Skipped("nf_conntrack is loaded already".to_owned()));
    }
    let mut node = Node::untracked()?;
    let agent =
        Agent::launch(&folder("module_after_agent"), &Options { source: "auto", ..Options::default() })?;
    agent.wait_started()?;
    let modules = std::fs::read_to_string("/proc/modules")?;
    ensure!(
        !modules.contains("nf_conntrack "),
        "the agent loaded nf_conntrack itself, though no rule asks for it"
    );
    node.rules(crate::node::TRACK)?;
    agent.wait_ready()?;
    accounting_on()?;
    let (client, server) = (node.client(), node.server());
    let listener = traffic::listen(server, false, 8080)?;
    traffic::tcp(client, SocketAddr::new(server.ip(false), 8080), &listener, 2, 100, 2000)?;
    let kernel = reference::list()?;
    let chosen = agent.chosen_source();
    let lines = agent.stop()?;
    let said = compare(&lines, &kernel)?;
    Ok(Outcome::Pass(format!("{chosen}: {} connections equal{said}", kernel.len())))
}

/// Waits until the agent has switched accounting on; connections that began before have no counters.
pub fn accounting_on() -> Result<()> {
    let began = Instant::now();
    while std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_acct")?.trim() != "1" {
        ensure!(
            began.elapsed() < traffic::PATIENCE,
            "nf_conntrack came after the agent, and the agent did not switch accounting on"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
