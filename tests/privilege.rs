//! The agent with exactly the capabilities that it is granted, and without each of them.
//!
//! Each test starts the real binary in a network namespace of its own under a bounding set (as a container runtime
//! does), waits for what it says of itself, and looks at the capabilities of its threads. Needs root and
//! `setpriv`; without them the tests say so and pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod node;

use std::fs;

use node::{Namespace, OBSERVES, Process, flowlogd, program, until};

/// Bits of `/proc/PID/status`.
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// The agent under a bounding set of these capabilities.
struct Agent {
    process: Process,
    _folder: tempfile::TempDir,
}

impl Agent {
    fn start(capabilities: &[&str]) -> Option<Self> {
        Self::start_with(capabilities, &[])
    }

    fn start_with(capabilities: &[&str], settings: &[&str]) -> Option<Self> {
        if !node::can("the agent under its capabilities", &["setpriv"]) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut agent = flowlogd(["run", "--source", "netlink"], settings);
        agent.arg("--set").arg(format!("flowLogsFileDirectory={}", folder.path().display()));
        let bounds: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
        let bounds = format!("--bounding-set=-all{bounds}");
        let mut command = program("setpriv", [&bounds, "--no-new-privs", "--"]);
        let process = Namespace::new().start(command.arg(agent.get_program()).args(agent.get_args()));
        Some(Self { process, _folder: folder })
    }

    /// Its log, when it observes or has ended.
    fn log(&self) -> String {
        until("it observes or ends", || {
            let ended = !self.process.is_running();
            Some(self.process.log()).filter(|log| ended || log.contains(OBSERVES))
        })
    }

    /// Permitted and effective capabilities of each thread.
    fn threads(&self) -> Vec<(u64, u64)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.pid())).unwrap();
        let statuses = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
        let bits = |status: &str, name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        statuses.map(|status| (bits(&status, "CapPrm:"), bits(&status, "CapEff:"))).collect()
    }

    fn stop(self) -> i32 {
        self.process.stop().0.code().unwrap()
    }
}

#[test]
fn exactly_the_granted_capabilities_are_enough_and_none_is_effective_at_rest() {
    let Some(agent) = Agent::start(&["bpf", "perfmon", "net_admin"]) else { return };
    let log = agent.log();
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
    let Some(agent) = Agent::start(&["bpf", "perfmon", "net_admin", "sys_admin", "dac_override"]) else {
        return;
    };
    agent.log();
    for (permitted, _) in agent.threads() {
        assert_eq!(permitted, BPF | PERFMON | NET_ADMIN);
    }
    assert_eq!(agent.stop(), 0);
}

#[test]
fn without_net_admin_the_agent_ends_and_says_what_to_grant() {
    let Some(mut agent) = Agent::start(&["bpf", "perfmon"]) else { return };
    let log = agent.log();
    assert!(log.contains("CAP_NET_ADMIN"), "{log}");
    assert_eq!(agent.process.ended().code(), Some(69), "{log}");
}

#[test]
fn without_bpf_or_perfmon_connections_are_told_and_drops_are_said_to_be_off() {
    for lacking in [["perfmon", "net_admin"], ["bpf", "net_admin"]] {
        let Some(agent) = Agent::start(&lacking) else { return };
        let log = agent.log();
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
    let Some(agent) = Agent::start_with(&granted, &settings) else { return };
    let log = agent.log();
    assert!(log.contains(OBSERVES) && !log.contains("CAP_NET_RAW"), "{log}");
    for (permitted, _) in agent.threads() {
        assert_eq!(permitted, BPF | PERFMON | NET_ADMIN | NET_RAW);
    }
    assert_eq!(agent.stop(), 0);

    let Some(agent) = Agent::start_with(&granted[..3], &settings) else { return };
    let log = agent.log();
    assert!(log.contains(OBSERVES) && log.contains("give the agent CAP_NET_RAW"), "{log}");
    assert_eq!(agent.stop(), 0);
}
