//! What happens to the flow log when the world around the agent misbehaves.
//!
//! Each test starts the real binary on a node of its own (`faults/agent.rs`), drives bounded traffic, does one thing that
//! must not happen, and holds every line against what conntrack counted. Needs root, `ip`, `nft`, `conntrack` and
//! `unshare`; where one is missing the tests say so and pass. Faults of single parts are tested beside them: a torn
//! write at each byte, back-off, a full buffer (`sink`), an overrun (`netlink`), maps and rings that are full (`kernel`),
//! an API server that goes and comes (`kube`), readers that never read (`sink/live_tests.rs`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "faults/agent.rs"]
mod agent;
#[path = "faults/memory.rs"]
mod memory;
mod node;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use agent::{Agent, Node, Sums, Traffic, lines, sums_of, text};
use node::{Namespace, until};

/// Many enough that a window is some hundred kilobytes: a kill may come in the middle of its write.
const FLOWS: u32 = 400;

/// Sends until `stop`, and at most `rounds` times on each flow.
fn load(traffic: &Traffic, stop: &AtomicBool, rounds: &AtomicU32, most: u32) {
    while !stop.load(Ordering::Relaxed) && rounds.fetch_add(1, Ordering::Relaxed) < most {
        traffic.send(0..FLOWS, 100);
        // The other side of a machine with few cores is what is tested.
        thread::yield_now();
    }
}

#[test]
fn killed_at_any_moment_no_line_is_torn_and_nothing_is_told_twice() {
    let Some(node) = Node::make("the agent that is killed under traffic") else { return };
    let traffic = Traffic::new(&node);
    let mut random = fastrand::Rng::with_seed(7);
    let mut agent = Agent::start(&node, "");
    let mut lost_before = 0;
    for kill in 0..4 {
        traffic.send(0..FLOWS, 50);
        let calm = {
            let counted = node.counted();
            let calm = counted.original.0 - lost_before;
            until("all that was counted is told", || (agent.sums().original.0 == calm).then_some(()));
            calm
        };

        let (stop, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            scope.spawn(|| load(&traffic, &stop, &rounds, 20_000));
            // At some moment of some window; each second time while a window is just being written.
            let from = size(&node);
            let beyond = from + random.u64(1..2_000_000);
            until("the log grows", || {
                (size(&node) >= if kill % 2 == 0 { from + 1 } else { beyond }).then_some(())
            });
            // Killed by that.
            drop(std::mem::replace(&mut agent, Agent::spawn(&node, "", "exit 0")));
            stop.store(true, Ordering::Relaxed);
        });

        // What was flushed is there, whole, and not more than there was.
        let left = agent.sums().original.0;
        let counted = node.counted().original.0;
        assert!(left > calm && left <= counted - lost_before, "{calm} {left} {counted} {lost_before}");
        agent = Agent::start(&node, "");
        // The agent was not there for this: what it is told of next is all that comes from here on.
        lost_before = counted - left;
    }
    traffic.send(0..FLOWS, 50);
    let wanted = node.counted().original.0 - lost_before;
    until("all that came after the last kill is told", || (agent.sums().original.0 == wanted).then_some(()));
    let (status, log) = agent.stop();
    assert!(status.success(), "{log}");
    // Nothing torn is left in any file, also not behind the last newline.
    let log = fs::read(node.log_dir().join("flows.log")).unwrap();
    assert_eq!(log.last(), Some(&b'\n'));
    lines(std::str::from_utf8(&log).unwrap());
}

fn size(node: &Node) -> u64 {
    fs::metadata(node.log_dir().join("flows.log")).map_or(0, |file| file.len())
}

#[test]
fn stopped_and_started_under_load_nothing_is_lost_and_nothing_told_twice() {
    let Some(node) = Node::make("the agent that is stopped under traffic") else { return };
    let traffic = Traffic::new(&node);
    let mut agent = Agent::start(&node, "");
    // All begin while the agent looks; what begins in a pause is a baseline only.
    traffic.send(0..FLOWS, 50);
    let begun = node.counted();
    agent.wrote(begun);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(|| load(&traffic, &stop, &rounds, 20_000));
        for _ in 0..3 {
            let before = rounds.load(Ordering::Relaxed);
            until("traffic", || (rounds.load(Ordering::Relaxed) > before + 20).then_some(()));
            let (status, log) = std::mem::replace(&mut agent, Agent::spawn(&node, "", "exit 0")).stop();
            assert!(status.success() && log.contains("checkpoint written"), "{log}");
            agent = Agent::start(&node, "");
        }
        stop.store(true, Ordering::Relaxed);
    });
    agent.wrote(node.counted());
    let (status, log) = agent.stop();
    assert!(status.success(), "{log}");
    assert_eq!(agent::sums(&node.log_dir()), node.counted());
}

#[test]
fn a_full_disk_is_waited_for_and_what_came_meanwhile_is_written_then() {
    let Some(node) = Node::make("the agent on a full disk") else { return };
    let traffic = Traffic::new(&node);
    let dir = node.log_dir();
    fs::create_dir(&dir).unwrap();
    let shell = format!(
        "exec unshare --mount --propagation private sh -ec 'mount -t tmpfs -o size=1500k none {}; exec \"$@\"' sh \"$@\"",
        dir.display()
    );
    let mut agent = Agent::start_with(&node, "", &shell);
    // Its mounts are not ours.
    agent.dir = format!("/proc/{}/root{}", agent.pid(), dir.display()).into();
    traffic.send(0..100, 50);
    agent.wrote(node.counted());

    let filler = agent.dir.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    traffic.send(0..100, 1000);
    agent.told("the flow log cannot be written");
    traffic.send(100..200, 1000);
    assert!(health(&node, "readiness").contains("file cannot be written"));
    // Nothing torn lies there while it lasts.
    let whole = fs::read(agent.dir.join("flows.log")).unwrap();
    assert_eq!(whole.last(), Some(&b'\n'));
    fs::remove_file(&filler).unwrap();
    agent.told("the flow log is written again");
    agent.wrote(node.counted());
    assert!(metric(&node, "flowlogd_sink_faults_total").parse::<u64>().unwrap() >= 1);
    assert_eq!(metric(&node, "flowlogd_sink_dropped_records_total"), "0");
    assert!(agent.stop().0.success());
}

#[test]
fn whatever_others_do_to_directory_and_file_the_next_line_finds_its_place() {
    let Some(node) = Node::make("the agent whose files others remove") else { return };
    let traffic = Traffic::new(&node);
    let (dir, aside) = (node.log_dir(), node.folder.path().join("aside"));
    let (log, precious) = (dir.join("flows.log"), node.folder.path().join("precious"));
    fs::write(&precious, "precious").unwrap();
    let agent = Agent::start(&node, "");
    traffic.send(0..60, 50);
    agent.wrote(node.counted());
    // All is told at each fault: what it takes away is known, and the sum of what comes after it is exact.
    let mut taken = (0, 0);
    let faults: [(&str, &dyn Fn()); 5] = [
        ("directory renamed, another in its place", &|| {
            fs::rename(&dir, &aside).unwrap();
            fs::create_dir(&dir).unwrap();
        }),
        ("directory removed", &|| fs::remove_dir_all(&dir).unwrap()),
        ("file deleted", &|| fs::remove_file(&log).unwrap()),
        ("file truncated", &|| fs::File::options().write(true).open(&log).unwrap().set_len(0).unwrap()),
        ("symbolic link in its place", &|| {
            fs::remove_file(&log).unwrap();
            std::os::unix::fs::symlink(&precious, &log).unwrap();
        }),
    ];
    for (what, fault) in faults {
        let gone = agent.sums().original;
        taken = (taken.0 + gone.0, taken.1 + gone.1);
        fault();
        traffic.send(0..60, 50);
        if what.contains("link") {
            // It is not followed; it is told, and waited for.
            agent.told("symbolic link");
            fs::remove_file(&log).unwrap();
        }
        let counted = node.counted();
        let original = (counted.original.0 - taken.0, counted.original.1 - taken.1);
        agent.wrote(Sums { original, ..counted });
        assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o7777, 0o600, "{what}");
    }
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert!(agent.stop().0.success());
}

#[test]
fn a_shipper_that_never_reads_gets_coarser_lines_of_the_same_sums_until_it_reads() {
    let Some(node) = Node::make("the agent whose shipper does not read") else { return };
    let traffic = Traffic::new(&node);
    let position = node.folder.path().join("flows.log.pos");
    let settings =
        format!("flowLogsDynamicAggregationEnabled=true flowLogsPositionFilePath={}", position.display());
    let agent = Agent::start(&node, &settings);
    traffic.send(0..FLOWS, 50);
    agent.wrote(node.counted());
    // Fluentd's position file: the path, how far it came, the inode.
    let log = node.log_dir().join("flows.log");
    let read_to = |offset: u64| {
        use std::os::unix::fs::MetadataExt as _;
        let inode = fs::metadata(&log).unwrap().ino();
        fs::write(&position, format!("{}\t{offset:016x}\t{inode:016x}\n", log.display())).unwrap();
    };
    read_to(0);
    let raised = |levels: &str| (metric(&node, "flowlogd_aggregation_raised_levels") == levels).then_some(());
    until("the highest level", || raised("3"));
    let before = size(&node);
    traffic.send(0..FLOWS, 50);
    agent.wrote(node.counted());
    let coarse = size(&node) - before;
    assert!(coarse < 20_000, "{coarse} bytes for one window of {FLOWS} flows at level 3");
    assert!(metric(&node, "flowlogd_shipper_lag_bytes").parse::<u64>().unwrap() >= before);
    assert!(health(&node, "readyz").starts_with("HTTP/1.1 200"), "{}", health(&node, "readyz"));

    until("the lowest level", || {
        read_to(size(&node));
        raised("0")
    });
    traffic.send(0..FLOWS, 50);
    agent.wrote(node.counted());
    assert!(size(&node) - before > 10 * coarse);
    assert!(agent.stop().0.success());
}

#[test]
fn accounting_that_others_switch_off_is_told_and_not_fought_over() {
    let Some(node) = Node::make("the agent whose sysctl others set") else { return };
    let traffic = Traffic::new(&node);
    let agent = Agent::start(&node, "");
    traffic.send(0..10, 50);
    let counted = node.counted();
    agent.wrote(counted);
    assert_eq!(metric(&node, "flowlogd_conntrack_accounting_off"), "0");

    node.namespace.set("net/netfilter/nf_conntrack_acct", "0");
    agent.told("nf_conntrack_acct was set to 0");
    until("unready", || health(&node, "readiness").contains("nf_conntrack_acct is 0").then_some(()));
    assert_eq!(metric(&node, "flowlogd_conntrack_accounting_off"), "1");
    // These count nothing; those that began before count on.
    traffic.send(10..20, 50);
    traffic.send(0..10, 50);
    let still = Sums { original: (counted.original.0 * 2, counted.original.1 * 2), ..counted };
    agent.wrote(still);
    assert_eq!(
        node.namespace.enter(|| fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_acct")).unwrap(),
        "0\n"
    );

    node.namespace.set("net/netfilter/nf_conntrack_acct", "1");
    agent.told("nf_conntrack_acct is 1 again");
    traffic.send(20..30, 50);
    agent.wrote(node.counted());
    until("ready", || (!health(&node, "readiness").contains("nf_conntrack_acct is 0")).then_some(()));
    assert!(agent.stop().0.success());
}

#[test]
fn a_thousand_namespaces_beside_it_cost_the_agent_nothing() {
    let Some(node) = Node::make("the agent beside a thousand namespaces") else { return };
    // Without a process each: one that holds their files open, of which few may be the limit that one begins with.
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < 2000) {
        eprintln!(
            "SKIPPED a thousand namespaces: no more than {:?} open files are allowed (ulimit -Hn)",
            limit.maximum
        );
        return;
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let made: Vec<Namespace> = (0..1000).map(|_| Namespace::new()).collect();
    assert_eq!(made.len(), 1000);
    let traffic = Traffic::new(&node);
    let agent = Agent::start(&node, "");
    traffic.send(0..100, 50);
    agent.wrote(node.counted());
    let peak = agent::peak_bytes(agent.pid());
    assert!(peak < 100 << 20, "{peak} bytes");
    let open = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    assert!(open < 100, "{open} open files");
    assert!(agent.stop().0.success());
}

fn health(node: &Node, path: &str) -> String {
    node.namespace.get(9097, path).unwrap()
}

fn metric(node: &Node, name: &str) -> String {
    node.namespace.metric(9091, name).unwrap_or_else(|| panic!("no {name}"))
}

/// Of this action, in all that was written.
fn told(node: &Node, action: &str) -> Sums {
    sums_of(&lines(&text(&node.log_dir())), action)
}
