//! Full maps and full ring buffers, and what an end of the agent in the middle leaves.
//!
//! What must hold: exported + counted as lost = what the kernel counted; and a file that every reader can read.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::agent::{Agent, Line, Options, counted, equal, lines, sums};
use crate::kinds::{compare, folder};
use crate::node::{Node, TRACK, run};
use crate::reference::{Key, Sums};
use crate::{Outcome, reference, traffic};

/// Far more connections than the kernel side may hold: ended ones are exact none the less, live ones are read from a
/// dump, and each one that found no place is counted.
pub fn map_full() -> Result<Outcome> {
    limited("map_full", "max_connections=64 shard_capacity=64", "overflow")
}

/// A ring buffer of one page: final records that found no place wait for a later sweep, and are counted.
pub fn ring_full() -> Result<Outcome> {
    limited("ring_full", "ring_bytes=4096", "tombstones")
}

/// No place for final records anywhere: what was exported and what was counted as lost is all that there was.
pub fn all_full() -> Result<Outcome> {
    limited("all_full", "ring_bytes=4096 tombstones=8", "ends_lost")
}

fn limited(case: &str, limits: &str, stage: &str) -> Result<Outcome> {
    let node = Node::new()?;
    // One window for all, so that a record that gets lost was in no line before.
    let environment = [("FLOWLOGD_TEST_LIMITS", limits), ("FLOWLOGD_FLOWLOGSFLUSHINTERVAL", "300s")];
    let options = Options { source: "auto", environment: &environment, ..Options::default() };
    let agent = Agent::start(&folder(case), &options)?;
    if agent.chosen_source() != "ebpf" {
        return Ok(Outcome::Skipped(format!("the source is {}, without such limits", agent.chosen_source())));
    }
    let (client, server) = (node.client(), node.server());
    let to = SocketAddr::new(server.ip(false), 8080);
    let listener = traffic::listen(server, false, 8080)?;
    traffic::tcp(client, to, &listener, 200, 100, 100)?;
    let mut kernel = reference::list()?;
    reference::flush()?;
    // These live to the end; with a full map some of them have no place in it.
    traffic::tcp(client, to, &listener, 200, 100, 100)?;
    kernel.extend(reference::list()?);
    let (lines, log) = agent.stop_with_log()?;
    let reached = counted(&log, stage);
    ensure!(reached > 0, "the limit was not reached: {stage} counted nothing");
    let exported = sums(&lines, "allow")?;
    let mut wanted = reference::total(&kernel);
    let lost = counted(&log, "ends_lost");
    if lost > 0 {
        let sum = |all: &BTreeMap<Key, Sums>| {
            let mut whole = Sums::default();
            all.values().for_each(|sums| whole.add(sums));
            (whole.packets[0] + whole.packets[1], whole.bytes[0] + whole.bytes[1], whole.connections)
        };
        let (packets, bytes, connections) = sum(&exported);
        let counted = (
            packets + counted(&log, "ends_lost_packets"),
            bytes + counted(&log, "ends_lost_bytes"),
            connections + lost,
        );
        ensure!(
            counted == sum(&wanted),
            "exported and lost are {counted:?}, the kernel counted {:?}",
            sum(&wanted)
        );
        let told = lines.iter().map(|line| line.lost_events).max().unwrap_or_default();
        ensure!(told == lost, "{lost} final records were lost, but the lines say {told}");
        wanted.retain(|key, _| exported.contains_key(key));
    }
    equal("allow lines", &exported, &wanted)?;
    Ok(Outcome::Pass(format!(
        "{} of {} connections equal, {stage} counted {reached}",
        wanted.len(),
        kernel.len()
    )))
}

/// SIGTERM and a new start: traffic of the pause is in, nothing is in twice.
pub fn restarted() -> Result<Outcome> {
    let node = Node::new()?;
    let place = folder("restarted");
    let options = Options { source: "auto", ..Options::default() };
    let agent = Agent::start(&place, &options)?;
    let (client, server) = (node.client(), node.server());
    let to = SocketAddr::new(server.ip(false), 8080);
    let listener = traffic::listen(server, false, 8080)?;
    let mut kept = traffic::Open::new(client, to, &listener)?;
    kept.exchange(1000, 2000)?;
    traffic::tcp(client, to, &listener, 2, 10, 10)?;
    agent.stop()?;
    kept.exchange(3000, 4000)?;
    let agent = Agent::start(&place, &options)?;
    kept.exchange(5000, 6000)?;
    kept.close()?;
    let kernel = reference::list()?;
    let lines = agent.stop()?;
    let said = compare(&lines, &kernel)?;
    Ok(Outcome::Pass(format!("{} connections equal over two runs{said}", kernel.len())))
}

/// SIGKILL and a new start: the file stays readable, what was flushed stays, what came in the pause is a baseline.
pub fn killed() -> Result<Outcome> {
    let node = Node::new()?;
    let place = folder("killed");
    let options = Options { source: "auto", ..Options::default() };
    let agent = Agent::start(&place, &options)?;
    let (client, server) = (node.client(), node.server());
    let to = SocketAddr::new(server.ip(false), 8080);
    let listener = traffic::listen(server, false, 8080)?;
    let mut kept = traffic::Open::new(client, to, &listener)?;
    kept.exchange(1000, 2000)?;
    let first = reference::total(&reference::list()?);
    agent
        .wait_lines(Duration::from_secs(60), |lines| sums(lines, "allow").is_ok_and(|sums| sums == first))?;
    agent.kill()?;
    kept.exchange(3000, 4000)?;
    let pause = reference::total(&reference::list()?);
    let agent = Agent::start(&place, &options)?;
    kept.exchange(5000, 6000)?;
    let last = reference::total(&reference::list()?);
    agent.stop()?;
    // Whatever the kill left, the file has whole lines only (`lines` would fail).
    let lines = lines(&place)?;
    let mut wanted = first;
    for (key, sums) in &mut wanted {
        let rest = last[key].since(&pause[key]);
        sums.add(&Sums { connections: 0, ..rest });
    }
    equal("allow lines", &sums(&lines, "allow")?, &wanted)?;
    Ok(Outcome::Pass("flushed before, baseline taken, exact after".to_owned()))
}

/// Removes a module after all that use it; what is in use just now stays.
fn unload(module: &str) -> Result<()> {
    let modules = std::fs::read_to_string("/proc/modules")?;
    let line = modules.lines().find(|line| line.split(' ').next() == Some(module));
    // `name size references users, state address`; without users there is a dash.
    let users = line.and_then(|line| line.split(' ').nth(3)).unwrap_or_default();
    for user in users.split(',').filter(|user| !user.is_empty() && *user != "-") {
        unload(user)?;
    }
    let _ = run(&["rmmod", module]);
    Ok(())
}

fn is_loaded(module: &str) -> Result<bool> {
    let modules = std::fs::read_to_string("/proc/modules")?;
    Ok(modules.lines().any(|line| line.split(' ').next() == Some(module)))
}

/// Connection tracking is unloaded under the agent, and comes again: what ended with it is told, what begins later is told.
pub fn module_unloaded() -> Result<Outcome> {
    let mut node = Node::new()?;
    if !is_loaded("nf_conntrack")? {
        return Ok(Outcome::Skipped("connection tracking is built into this kernel".to_owned()));
    }
    // As often as the agent looks at the module: the first to come after its end is a sweep, whose question of the kernel
    // must not load it again.
    let environment = [("FLOWLOGD_FLOWLOGSFLUSHINTERVAL", "1s")];
    let options = Options { source: "auto", environment: &environment, ..Options::default() };
    let agent = Agent::start(&folder("module_unloaded"), &options)?;
    let ebpf = agent.chosen_source() == "ebpf";
    let (client, server) = (node.client(), node.server());
    let to = SocketAddr::new(server.ip(false), 8080);
    let listener = traffic::listen(server, false, 8080)?;
    traffic::tcp(client, to, &listener, 3, 100, 2000)?;
    // It is over only with the module; the others have closed.
    let echo = traffic::udp_socket(server, false, 5353)?;
    traffic::udp(client, SocketAddr::new(server.ip(false), 5353), &echo, 2, 100)?;
    let mut kernel = reference::list()?;
    if !ebpf {
        // Its notifier goes before the connections do: what they moved since the last sweep is nobody's any more.
        let seen = reference::total(&kernel);
        agent.wait_lines(Duration::from_secs(60), |lines| {
            sums(lines, "allow").is_ok_and(|sums| sums == seen)
        })?;
    }
    run(&["nft", "flush", "ruleset"])?;
    let end = Instant::now() + Duration::from_secs(60);
    while is_loaded("nf_conntrack")? {
        ensure!(
            Instant::now() < end,
            "nf_conntrack does not unload:\n{}",
            std::fs::read_to_string("/proc/modules")?
        );
        unload("nf_conntrack")?;
        std::thread::sleep(Duration::from_millis(100));
    }
    agent.wait_log("connection tracking was unloaded", Duration::from_secs(60))?;
    let completed = |lines: &[Line]| lines.iter().map(|line| line.num_flows_completed).sum::<u64>();
    // Its end is told now, not when the module is there again.
    agent.wait_lines(Duration::from_secs(60), |lines| completed(lines) == 3 + 1)?;
    node.rules(TRACK)?;
    if ebpf {
        agent.wait_log("connection tracking is there now", Duration::from_secs(60))?;
    }
    crate::kinds::accounting_on()?;
    let (client, server) = (node.client(), node.server());
    let listener = traffic::listen(server, true, 8081)?;
    traffic::tcp(client, SocketAddr::new(server.ip(true), 8081), &listener, 4, 300, 3000)?;
    kernel.extend(reference::list()?);
    let chosen = agent.chosen_source();
    let lines = agent.stop()?;
    let said = compare(&lines, &kernel)?;
    let completed = completed(&lines);
    ensure!(completed == 3 + 1 + 4, "8 connections have ended, but the lines say {completed}");
    Ok(Outcome::Pass(format!("{chosen}: {} connections equal, before and after{said}", kernel.len())))
}

/// 64 MB for the agent and its maps: it starts, lives, and everything is told or counted.
pub fn little_memory() -> Result<Outcome> {
    let group = std::path::Path::new("/tmp/cgroup");
    std::fs::create_dir_all(group)?;
    run(&["mount", "-t", "cgroup2", "none", "/tmp/cgroup"])?;
    let outcome = in_little_memory(&group.join("little"));
    run(&["umount", "/tmp/cgroup"])?;
    outcome
}

fn in_little_memory(group: &std::path::Path) -> Result<Outcome> {
    let root = group.parent().context("a group has a parent")?;
    let controllers = std::fs::read_to_string(root.join("cgroup.controllers"))?;
    if !controllers.split_whitespace().any(|name| name == "memory") {
        return Ok(Outcome::Skipped(format!(
            "this kernel has no memory controller, but {}",
            controllers.trim()
        )));
    }
    std::fs::write(root.join("cgroup.subtree_control"), "+memory")?;
    std::fs::create_dir_all(group)?;
    std::fs::write(group.join("memory.max"), "64M")?;
    let node = Node::new()?;
    let procs = group.join("cgroup.procs");
    let environment = [("FLOWLOGD_FLOWLOGSFLUSHINTERVAL", "300s")];
    let options =
        Options { source: "auto", environment: &environment, within: Some(&procs), ..Options::default() };
    let agent = Agent::start(&folder("little_memory"), &options)?;
    let chosen = agent.chosen_source();
    let log = agent.log();
    ensure!(log.contains("bytes=67108864"), "its tables are not bounded by the 64 MB:\n{log}");
    let (client, server) = (node.client(), node.server());
    let to = SocketAddr::new(server.ip(false), 8080);
    let listener = traffic::listen(server, false, 8080)?;
    let mut kernel = Vec::new();
    for _ in 0..4 {
        traffic::tcp(client, to, &listener, 500, 100, 100)?;
        kernel.extend(reference::list()?);
        reference::flush()?;
    }
    let read = |file: &str| std::fs::read_to_string(group.join(file)).unwrap_or_default();
    // Kernels before 5.19 do not keep it.
    let peak = match read("memory.peak").trim().parse::<u64>() {
        Ok(bytes) => format!(", {} MiB at its most", bytes >> 20),
        Err(_) => String::new(),
    };
    let killed =
        read("memory.events").lines().any(|line| line.starts_with("oom_kill ") && line != "oom_kill 0");
    ensure!(!killed, "the kernel killed it for its memory: {}", read("memory.events"));
    let lines = agent.stop()?;
    std::fs::remove_dir(group)?;
    let said = compare(&lines, &kernel)?;
    Ok(Outcome::Pass(format!("{chosen}: {} connections equal{peak}{said}", kernel.len())))
}
