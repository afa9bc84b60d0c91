//! The agent with exactly the capabilities that it is granted, and without each of them.
//!
//! Each test starts the real binary in a network namespace of its own under a bounding set (as a container runtime
//! does), waits for what it says of itself, and looks at the capabilities of its threads. Needs root, `unshare` and
//! `setpriv`; where one is missing the tests say so and pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Bits of `/proc/PID/status`.
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root");
    }
    let there = |tool: &str| Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    (!there("setpriv") || !there("unshare")).then_some("needs unshare and setpriv (util-linux)")
}

/// The agent under a bounding set of these capabilities; nothing is cleaned up but the process.
struct Agent {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
    _folder: tempfile::TempDir,
}

impl Agent {
    fn start(capabilities: &[&str]) -> Option<Self> {
        Self::start_with(capabilities, &[])
    }

    fn start_with(capabilities: &[&str], settings: &[&str]) -> Option<Self> {
        if let Some(why) = missing() {
            eprintln!("SKIPPED the agent under its capabilities: {why}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let bounds: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
        let mut child = Command::new("unshare")
            .args(["--net", "--", "setpriv", &format!("--bounding-set=-all{bounds}"), "--no-new-privs", "--"])
            .arg(env!("CARGO_BIN_EXE_flowlogd"))
            .args(["run", "--source", "netlink", "--set"])
            .arg(format!("flowLogsFileDirectory={}", folder.path().display()))
            .args(settings.iter().flat_map(|setting| ["--set", setting]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Some(Self { child, log, _folder: folder })
    }

    /// The log up to the line with this text, or up to the agent's end.
    fn log_until(&mut self, text: &str) -> String {
        let mut all = String::new();
        while self.log.read_line(&mut all).unwrap() > 0 {
            if all.lines().next_back().is_some_and(|line| line.contains(text)) {
                break;
            }
        }
        all
    }

    /// Permitted and effective capabilities of each thread.
    fn threads(&self) -> Vec<(u64, u64)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let statuses = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
        let bits = |status: &str, name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        statuses.map(|status| (bits(&status, "CapPrm:"), bits(&status, "CapEff:"))).collect()
    }

    fn stop(mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        self.log_until("\0");
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const OBSERVES: &str = "flowlogd observes this node";

#[test]
fn exactly_the_granted_capabilities_are_enough_and_none_is_effective_at_rest() {
    let Some(mut agent) = Agent::start(&["bpf", "perfmon", "net_admin"]) else { return };
    let log = agent.log_until(OBSERVES);
    assert!(log.contains(OBSERVES) && log.contains("drops=\"on\""), "{log}");
    let threads = agent.threads();
    assert!(threads.len() >= 2, "{threads:?}");
    for (permitted, _) in &threads {
        assert_eq!(*permitted, BPF | PERFMON | NET_ADMIN);
    }
    // The thread that reads the kernel may be in one of its guards just now, the others never are.
    let raised = threads.iter().filter(|(_, effective)| *effective != 0).count();
    assert!(raised <= 1, "{threads:?}");
    assert_eq!(agent.stop(), 0);
}

#[test]
fn more_than_is_needed_is_given_up() {
    let Some(mut agent) = Agent::start(&["bpf", "perfmon", "net_admin", "sys_admin", "dac_override"]) else {
        return;
    };
    agent.log_until(OBSERVES);
    for (permitted, _) in agent.threads() {
        assert_eq!(permitted, BPF | PERFMON | NET_ADMIN);
    }
    assert_eq!(agent.stop(), 0);
}

#[test]
fn without_net_admin_the_agent_ends_and_says_what_to_grant() {
    let Some(mut agent) = Agent::start(&["bpf", "perfmon"]) else { return };
    let log = agent.log_until(OBSERVES);
    assert!(log.contains("CAP_NET_ADMIN"), "{log}");
    assert_eq!(agent.child.wait().unwrap().code(), Some(69), "{log}");
}

#[test]
fn without_bpf_or_perfmon_connections_are_told_and_drops_are_said_to_be_off() {
    for lacking in [["perfmon", "net_admin"], ["bpf", "net_admin"]] {
        let Some(mut agent) = Agent::start(&lacking) else { return };
        let log = agent.log_until(OBSERVES);
        assert!(log.contains(OBSERVES), "{log}");
        let drops = log.lines().find(|line| line.contains("drops cannot be observed")).unwrap_or_default();
        assert!(drops.contains("CAP_BPF") || drops.contains("CAP_PERFMON"), "{lacking:?}: {log}");
        assert_eq!(agent.stop(), 0);
    }
}

#[test]
fn domains_need_net_raw_and_without_it_they_alone_are_off() {
    let settings = ["flowLogsCollectDestDomains=true"];
    let granted = ["bpf", "perfmon", "net_admin", "net_raw"];
    let Some(mut agent) = Agent::start_with(&granted, &settings) else { return };
    let log = agent.log_until(OBSERVES);
    assert!(log.contains(OBSERVES) && !log.contains("CAP_NET_RAW"), "{log}");
    for (permitted, _) in agent.threads() {
        assert_eq!(permitted, BPF | PERFMON | NET_ADMIN | NET_RAW);
    }
    assert_eq!(agent.stop(), 0);

    let Some(mut agent) = Agent::start_with(&granted[..3], &settings) else { return };
    let log = agent.log_until(OBSERVES);
    assert!(log.contains(OBSERVES) && log.contains("give the agent CAP_NET_RAW"), "{log}");
    assert_eq!(agent.stop(), 0);
}
