//! The agent with less memory and less of a CPU than a flood asks for.
//!
//! A cgroup of version 1 or 2 is made for each test where the machine lets us; it ends with the test.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::thread;

use super::agent::{self, Agent, Node, Traffic};
use super::node::until;
use super::{health, metric, told};

/// A cgroup of its own with a limit in it.
struct Cgroup(PathBuf);

impl Cgroup {
    /// `v1`: controller and files with their values; `v2`: likewise, in the unified hierarchy.
    fn make(node: &Node, controller: &str, v1: &[(&str, &str)], v2: &[(&str, &str)]) -> io::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let (at, files) = if root.join("cgroup.controllers").exists() {
            let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
            (root.to_owned(), v2)
        } else {
            (root.join(controller), v1)
        };
        let unique = node.folder.path().file_name().unwrap().display();
        let group = Self(at.join(format!("flowlogd{unique}")));
        fs::create_dir(&group.0)?;
        for (file, value) in files {
            fs::write(group.0.join(file), value)?;
        }
        Ok(group)
    }

    /// A shell command that moves the shell in.
    fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.0.display())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has just ended is still being taken out.
        for _ in 0..200 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

#[test]
fn with_64_megabytes_a_flood_of_flows_and_a_port_scan_kill_nothing_and_totals_are_exact() {
    let Some(node) = Node::make("the agent with 64 MB of memory") else { return };
    let limit = (64 << 20).to_string();
    let group = Cgroup::make(
        &node,
        "memory",
        &[("memory.limit_in_bytes", &limit)],
        &[("memory.max", &limit), ("memory.swap.max", "0")],
    );
    // Without a cgroup of ours the process' own limit is what binds; an allocation beyond it ends the process too.
    let shell = match &group {
        Ok(group) => format!("{}; exec \"$@\"", group.enter()),
        Err(why) => {
            eprintln!("SKIPPED the cgroup of 64 MB, a limit of the process stands for it: {why}");
            format!("ulimit -d {}; exec \"$@\"", (64 << 20) / 1024)
        }
    };
    let agent = Agent::start_with(&node, "flowLogsFlushInterval=1s", &shell);
    let log = agent.log();
    assert!(log.contains("tables are bounded") && log.contains("bytes=67108864"), "{log}");

    // More flows than the window has records, at the level that tells each from the other.
    let traffic = Traffic::new(&node);
    for _ in 0..3 {
        traffic.send(0..12_000, 20);
    }
    // Every port that there is, where a filter denies it.
    let scanner = node.socket();
    let denied = scan(&scanner);
    agent.wrote(node.counted());
    let mut seen = (0, 0);
    until("all denials told", || {
        seen = (told(&node, "deny").original.0, lost(&node));
        (seen.0 + seen.1 >= denied).then_some(())
    });
    assert_eq!(seen.0 + seen.1, denied, "told, lost: {seen:?}");
    assert!(metric(&node, "flowlogd_window_overflow_flows_total").parse::<u64>().unwrap() > 1000);
    assert!(agent::text(&node.log_dir()).contains("\"source_name_aggr\":\"*\""));
    let peak = agent::peak_bytes(agent.pid());
    eprintln!("64 MB: peak {} kB, {denied} denied: {seen:?}", peak >> 10);
    let (status, log) = agent.stop();
    assert!(status.success(), "{status}: {log}");
}

/// Packets that the kernel's table of drops had no room for.
fn lost(node: &Node) -> u64 {
    let answer = node.namespace.get(9091, "metrics").unwrap();
    let drops = answer.lines().filter(|line| line.starts_with("flowlogd_lost_events_total{stage=\"drops"));
    drops.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

/// One datagram to each port of an address that is denied. How many that are.
fn scan(scanner: &UdpSocket) -> u64 {
    (1..=u16::MAX).map(|port| agent::send_denied(scanner, b"scan", port)).count() as u64
}

#[test]
fn with_a_twentieth_of_a_cpu_it_is_late_and_exact() {
    let Some(node) = Node::make("the agent with 5 % of a CPU") else { return };
    let group = Cgroup::make(
        &node,
        "cpu",
        &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "5000")],
        &[("cpu.max", "5000 100000")],
    );
    let group = match group {
        Ok(group) => group,
        Err(error) => {
            eprintln!(
                "SKIPPED the agent with 5 % of a CPU: no cgroup can be made here ({error}): run it where /sys/fs/cgroup is writable"
            );
            return;
        }
    };
    let agent = Agent::start(&node, "flowLogsFlushInterval=1s");
    // Only from here on: the start of a program that is not optimized takes some seconds of a whole CPU.
    fs::write(group.0.join("cgroup.procs"), agent.pid().to_string()).unwrap();
    let traffic = Traffic::new(&node);
    for _ in 0..5 {
        traffic.send(0..500, 20);
    }
    agent.wrote(node.counted());
    assert!(health(&node, "liveness").starts_with("HTTP/1.1 200"));
    fs::write(group.0.parent().unwrap().join("cgroup.procs"), agent.pid().to_string()).unwrap();
    let (status, log) = agent.stop();
    assert!(status.success(), "{log}");
}

#[test]
fn a_flood_of_syns_to_a_denied_port_is_counted_to_the_last_packet() {
    const SYNS: u32 = 100_000;
    let Some(node) = Node::make("the agent under a flood of SYNs") else { return };
    let agent = Agent::start(&node, "flowLogsFileAggregationKindForDenied=1");
    // Each with a port and an address of its own: as many tuples as packets, one record.
    node.namespace.enter(|| {
        let raw = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::RAW,
            Some(rustix::net::ipproto::TCP),
        );
        let raw = UdpSocket::from(raw.unwrap());
        for n in 0..SYNS {
            let mut syn = [0_u8; 20];
            syn[..2].copy_from_slice(&u16::try_from(1 + n % 60_000).unwrap().to_be_bytes());
            syn[2..4].copy_from_slice(&443_u16.to_be_bytes());
            syn[4..8].copy_from_slice(&n.to_be_bytes());
            (syn[12], syn[13], syn[14]) = (5 << 4, 2, 0xff);
            agent::send_denied(&raw, &syn, 0);
        }
    });
    let mut seen = (0, 0);
    until("all denials told", || {
        seen = (told(&node, "deny").original.0, lost(&node));
        (seen.0 + seen.1 >= u64::from(SYNS)).then_some(())
    });
    assert_eq!(seen.0 + seen.1, u64::from(SYNS), "told, lost: {seen:?}");
    let lines = agent::lines(&agent::text(&node.log_dir()));
    let deny = lines.iter().filter(|line| line["action"] == "deny");
    assert!(deny.clone().all(|line| line["dest_port"] == 443 && line["source_port"].is_null()), "{lines:#?}");
    eprintln!(
        "{SYNS} SYNs: {seen:?} in {} lines, peak {} kB",
        deny.count(),
        agent::peak_bytes(agent.pid()) >> 10
    );
    agent.told("observes");
    assert!(agent.stop().0.success());
}
