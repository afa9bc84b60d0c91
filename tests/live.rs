//! The live view of a real agent under load, in a network namespace of its own: a reader that stalls costs nothing.
//!
//! In: the built binary with the netlink source, UDP traffic over loopback. Out: what readers were given, held against
//! the file and against what was sent. Needs root, `ip` and `nft`; where they are missing the test says so.
//! Not here: the socket's own rules (unit tests of `sink/live.rs`), tables (`observe.rs`).

#![allow(clippy::unwrap_used, reason = "the functions that the tests share may end a test too")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Connections of one datagram each way.
const CONNECTIONS: usize = 3000;

/// Everything here ends long before.
const PATIENCE: Duration = Duration::from_secs(90);

struct Namespace(String);

impl Namespace {
    fn make() -> Option<Self> {
        let name = format!("fllive{}", std::process::id());
        let script = format!(
            "ip netns add {name} && ip -n {name} link set lo up && ip netns exec {name} nft \
             'add table inet t; add chain inet t c {{ type filter hook input priority 0; ct state new accept; }}'"
        );
        let made = Command::new("sh").args(["-c", &script]).output();
        let namespace = Self(name);
        match made {
            Ok(output) if output.status.success() => Some(namespace),
            _ => {
                println!(
                    "SKIPPED the live view under load: no network namespace with conntrack: run as root, with iproute2 and nftables"
                );
                None
            }
        }
    }

    fn agent(&self, dir: &Path) -> Child {
        let set = |field: &str, value: &str| ["--set".to_owned(), format!("{field}={value}")];
        Command::new("ip")
            .args(["netns", "exec", &self.0, env!("CARGO_BIN_EXE_flowlogd"), "run", "--source", "netlink"])
            .args(set("flowLogsFileDirectory", &dir.display().to_string()))
            .args(set("flowLogsLiveSocketPath", &dir.join("live.sock").display().to_string()))
            .args(set("flowLogsFlushInterval", "1s"))
            // A line a connection.
            .args(set("flowLogsFileAggregationKindForAllowed", "0"))
            .args(set("prometheusMetricsEnabled", "true"))
            .env_remove("KUBECONFIG")
            .stderr(File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap()
    }

    /// Runs `f` in a thread inside the namespace.
    fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                    rustix::thread::move_into_link_name_space(file.as_fd(), kind).unwrap();
                    f()
                })
                .join()
                .unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until it is there.
fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(found) = look() {
            return found;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("{what}: not within {PATIENCE:?}");
}

fn ask(dir: &Path, request: &Value) -> UnixStream {
    let mut stream = wait("the live socket", || UnixStream::connect(dir.join("live.sock")).ok());
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    stream
}

fn observe(dir: &Path, arguments: &[&str]) -> Running {
    let child = Command::new(env!("CARGO_BIN_EXE_flowlogd"))
        .env_clear()
        .args(["observe", "--socket"])
        .arg(dir.join("live.sock"))
        .args(arguments)
        .stdout(File::create(dir.join(arguments.join(""))).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Running(child)
}

fn sent(lines: &str) -> u64 {
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["dest_port"] == 7777).map(|line| line["packets_out"].as_u64().unwrap()).sum()
}

#[test]
fn a_stalled_reader_costs_the_others_and_the_file_nothing() {
    let Some(namespace) = Namespace::make() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut agent = Running(namespace.agent(dir));
    let both = serde_json::json!({"flows": true, "lines": true, "past": false, "follow": true});
    // It asks for everything and takes nothing.
    let stalled = ask(dir, &both);
    let lines = observe(dir, &["--lines"]);
    let flows = observe(dir, &["--port", "7777"]);
    let metric = |name: &str| {
        namespace.enter(|| {
            let mut stream = std::net::TcpStream::connect("127.0.0.1:9091").ok()?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
            let mut body = String::new();
            stream.read_to_string(&mut body).ok()?;
            let line =
                body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
            line.map(|value| value as u64)
        })
    };
    wait("three readers", || (metric("flowlogd_live_readers") == Some(3)).then_some(()));
    // The agent says so when it observes: what is sent before would be older than it.
    wait("the source", || {
        fs::read_to_string(dir.join("log")).unwrap().contains("observes this node").then_some(())
    });

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
    wait("all lines in the file", || (sent(&file()) >= CONNECTIONS as u64).then_some(()));
    assert_eq!(sent(&file()), CONNECTIONS as u64, "each datagram once");
    wait("all connections live", || {
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

    Command::new("kill").arg(agent.0.id().to_string()).status().unwrap();
    assert!(agent.0.wait().unwrap().success());
    wait("the readers' end", || {
        let whole = file();
        // The last window is closed after the socket: it is in the file alone.
        whole.starts_with(&seen("--lines")).then_some(())
    });
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
