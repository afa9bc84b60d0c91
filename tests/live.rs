//! The live view of a real agent under load, in a network namespace of its own: a reader that stalls costs nothing.
//!
//! In: the built binary with the netlink source, UDP traffic over loopback. Out: what readers were given, held against
//! the file and against what was sent. Needs root, `ip` and `nft`; where they are missing the test says so.
//! Not here: the socket's own rules (unit tests of `sink/live.rs`), tables (`observe.rs`).

#![allow(clippy::unwrap_used, reason = "the functions that the tests share may end a test too")]

mod node;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use node::{Namespace, OBSERVES, Process, flowlogd, until};

/// Connections of one datagram each way.
const CONNECTIONS: usize = 3000;

fn ask(dir: &Path, request: &Value) -> UnixStream {
    let mut stream = until("the live socket", || UnixStream::connect(dir.join("live.sock")).ok());
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    stream
}

fn observe(dir: &Path, arguments: &[&str]) -> Process {
    let mut command = flowlogd(["observe", "--socket"], [""; 0]);
    command.arg(dir.join("live.sock")).args(arguments).env_clear();
    Process::start(command.stdout(File::create(dir.join(arguments.join(""))).unwrap()))
}

fn sent(lines: &str) -> u64 {
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["dest_port"] == 7777).map(|line| line["packets_out"].as_u64().unwrap()).sum()
}

#[test]
fn a_stalled_reader_costs_the_others_and_the_file_nothing() {
    if !node::can("the live view under load", &["ip", "nft"]) {
        return;
    }
    let namespace = Namespace::new();
    namespace.ip("link set lo up");
    namespace.nft("table inet t { chain c { type filter hook input priority 0; ct state new accept; }; }");
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let agent = namespace.start(&mut flowlogd(
        ["run", "--source", "netlink"],
        [
            format!("flowLogsFileDirectory={}", dir.display()),
            format!("flowLogsLiveSocketPath={}", dir.join("live.sock").display()),
            "flowLogsFlushInterval=1s".to_owned(),
            // A line a connection.
            "flowLogsFileAggregationKindForAllowed=0".to_owned(),
            "prometheusMetricsEnabled=true".to_owned(),
        ],
    ));
    let both = serde_json::json!({"flows": true, "lines": true, "past": false, "follow": true});
    // It asks for everything and takes nothing.
    let stalled = ask(dir, &both);
    let lines = observe(dir, &["--lines"]);
    let flows = observe(dir, &["--port", "7777"]);
    let metric = |name: &str| namespace.metric(9091, name);
    until("three readers", || (metric("flowlogd_live_readers")? == "3").then_some(()));
    // What is sent before would be older than the agent.
    agent.told(OBSERVES);

    namespace.enter(|| {
        let server = UdpSocket::bind("127.0.0.1:7777").unwrap();
        let mut buffer = [0; 64];
        let clients: Vec<UdpSocket> = (0..CONNECTIONS)
            .map(|_| {
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                client.send_to(b"there", "127.0.0.1:7777").unwrap();
                let (_, from) = server.recv_from(&mut buffer).unwrap();
                server.send_to(b"back", from).unwrap();
                client.recv(&mut buffer).unwrap();
                client
            })
            .collect();
        drop(clients);
    });
    let file = || fs::read_to_string(dir.join("flows.log")).unwrap_or_default();
    let seen = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    until("all lines in the file", || (sent(&file()) >= CONNECTIONS as u64).then_some(()));
    assert_eq!(sent(&file()), CONNECTIONS as u64, "each datagram once");
    until("all connections live", || {
        (seen("--port7777").matches("\"event\":\"start\"").count() >= CONNECTIONS).then_some(())
    });
    assert_eq!(metric("flowlogd_lost_events_total{stage=\"line_queue\"}"), None);

    // `observe` of what the agent remembers ends by itself, and cleanly before a reader that goes away.
    let head = Command::new("sh")
        .args(["-c", "\"$0\" observe --socket \"$1\" --last 2000 | head -1"])
        .args([Path::new(env!("CARGO_BIN_EXE_flowlogd")), &dir.join("live.sock")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&head.stdout).lines().count(), 1);
    assert_eq!(String::from_utf8_lossy(&head.stderr), "");

    assert!(agent.stop().0.success());
    until("the readers' end", || (!lines.is_running() && !flows.is_running()).then_some(()));
    // The last window is closed after the socket: it is in the file alone.
    assert!(file().starts_with(&seen("--lines")));
    assert!(sent(&seen("--lines")) == CONNECTIONS as u64, "what is piped is what is in the file");
    assert!(!dir.join("live.sock").exists(), "the socket goes with the agent");
    drop((lines, flows));

    // What the stalled reader is told in the end: lines, events, and what it lost, nothing torn.
    let mut told = 0;
    for line in BufReader::new(stalled).lines().map_while(Result::ok) {
        if serde_json::from_str::<Value>(&line).is_ok() {
            told += 1;
        }
    }
    assert!(told > 0);
}
