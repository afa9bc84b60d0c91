//! The collectors of processes and TCP statistics against this kernel, with the programs that everybody runs.
//!
//! Each test makes a node (client - router - server over veth, a DNATed service), starts real processes in client and
//! server, and compares what the agent in the router tells with what is known of them: process ids, names, arguments,
//! and the tuples of the router's connections. Needs root, BTF, and the programs of [`PROGRAMS`]; where something is
//! missing the tests say so and pass. Namespaces and processes are removed at the end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flowlogd::config::Config;
use flowlogd::model::Observation;
use flowlogd::source::NodeSources;
use serde_json::Value;

const PROGRAMS: [(&str, &str); 7] = [
    ("ip", "-V"),
    ("nft", "-v"),
    ("curl", "-V"),
    ("python3", "-V"),
    ("nc", "-h"),
    ("iperf3", "-v"),
    ("dnsmasq", "-v"),
];
const PATIENCE: Duration = Duration::from_secs(30);

static NODES: AtomicU32 = AtomicU32::new(0);

fn sh(command: &str) {
    let out = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(out.status.success(), "{command}\n{}", String::from_utf8_lossy(&out.stderr));
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("run as root".to_owned());
    }
    if !fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false) {
        return Some("this kernel has no BTF".to_owned());
    }
    let there = |(program, flag): &&(&str, &str)| Command::new(program).arg(flag).output().is_ok();
    let lacking: Vec<_> = PROGRAMS.iter().filter(|program| !there(program)).map(|(name, _)| *name).collect();
    (!lacking.is_empty()).then(|| format!("cargo xtask test installs {}", lacking.join(", ")))
}

/// Sockets of all network namespaces are told: each node has addresses of its own.
struct Node {
    name: String,
    client: [String; 2],
    server: [String; 2],
    service: String,
}

impl Node {
    fn make() -> Option<Self> {
        if let Some(why) = missing() {
            eprintln!("SKIPPED processes and TCP statistics on this kernel: {why}");
            return None;
        }
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let n = format!("fs{}x{number}", std::process::id());
        let net = 60 + number;
        let ends = |end: u8| [format!("10.{net}.{end}.2"), format!("fd00:{net}:{end}::2")];
        let node =
            Self { name: n.clone(), client: ends(1), server: ends(2), service: format!("10.{net}.96.10") };
        let ([c4, c6], [s4, s6], service) = (&node.client, &node.server, &node.service);
        sh(&format!(
            "for x in c n s; do ip netns add {n}$x; ip -n {n}$x link set lo up; done
             ip -n {n}n link add vc type veth peer name v0 netns {n}c
             ip -n {n}n link add vs type veth peer name v0 netns {n}s
             ip -n {n}n addr add 10.{net}.1.1/24 dev vc; ip -n {n}n addr add fd00:{net}:1::1/64 dev vc nodad
             ip -n {n}n addr add 10.{net}.2.1/24 dev vs; ip -n {n}n addr add fd00:{net}:2::1/64 dev vs nodad
             ip -n {n}c addr add {c4}/24 dev v0; ip -n {n}c addr add {c6}/64 dev v0 nodad
             ip -n {n}s addr add {s4}/24 dev v0; ip -n {n}s addr add {s6}/64 dev v0 nodad
             ip -n {n}n link set vc up; ip -n {n}n link set vs up
             ip -n {n}c link set v0 up; ip -n {n}s link set v0 up
             ip -n {n}c route add default via 10.{net}.1.1; ip -n {n}c route add default via fd00:{net}:1::1
             ip -n {n}s route add default via 10.{net}.2.1; ip -n {n}s route add default via fd00:{net}:2::1
             ip netns exec {n}n nft -f - <<'END'
table inet t {{
  chain f {{ type filter hook forward priority 0; policy accept; ct state invalid drop; }}
  chain d {{ type nat hook prerouting priority -100;
    ip daddr {service} tcp dport 80 dnat ip to {s4}:8080; ip daddr {service} udp dport 53 dnat ip to {s4}:5353; }}
}}
END"
        ));
        node.enter('n', || {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        });
        Some(node)
    }

    /// Runs `f` in a thread inside the client's (c), the router's (n) or the server's (s) network namespace.
    fn enter<T: Send>(&self, place: char, f: impl FnOnce() -> T + Send) -> T {
        let ns = File::open(format!("/run/netns/{}{place}", self.name)).unwrap();
        thread::scope(|s| {
            s.spawn(move || {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(ns.as_fd(), kind).unwrap();
                f()
            })
            .join()
            .unwrap()
        })
    }

    fn start(&self, place: char, program: &str, args: &[&str]) -> Process {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        self.start_raw(place, program, &args)
    }

    fn start_raw(&self, place: char, program: &str, args: &[&OsStr]) -> Process {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Process(self.enter(place, || command.spawn().unwrap()))
    }

    /// Waits until something accepts (TCP) there.
    fn wait_listening(&self, place: char, to: &str) {
        let to: SocketAddr = to.parse().unwrap();
        let until = Instant::now() + PATIENCE;
        while !self.enter(place, || TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok()) {
            assert!(Instant::now() < until, "nothing listens on {to}");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for place in ["c", "n", "s"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{place}", self.name)]).output();
        }
    }
}

struct Process(Child);

impl Process {
    fn pid(&self) -> u64 {
        u64::from(self.0.id())
    }

    /// Waits for its end, which is a success.
    fn finish(mut self) -> u64 {
        assert!(self.0.wait().unwrap().success());
        self.pid()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `flowlogd record` in the router.
struct Recording {
    agent: Child,
    folder: tempfile::TempDir,
}

impl Recording {
    /// With both collectors on; returns when it observes.
    fn start(node: &Node, more: &[&str], limits: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowlogd"));
        command.args(["record", "--source", "netlink", "--log-level", "info", "--output"]);
        command.arg(folder.path().join("recording.jsonl"));
        for field in ["flowLogsCollectProcessInfo=true", "flowLogsCollectTcpStats=true"].iter().chain(more) {
            command.args(["--set", field]);
        }
        command.env("FLOWLOGD_TEST_LIMITS", limits).stdin(Stdio::null());
        command.stderr(File::create(folder.path().join("log")).unwrap());
        let agent = node.enter('n', || command.spawn().unwrap());
        let recording = Self { agent, folder };
        let until = Instant::now() + PATIENCE;
        while !recording.log().contains("records this node") {
            assert!(Instant::now() < until, "{}", recording.log());
            thread::sleep(Duration::from_millis(20));
        }
        recording
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// SIGTERM; its lines.
    fn stop(mut self) -> Vec<Value> {
        let pid = rustix::process::Pid::from_child(&self.agent);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.agent.wait().unwrap().success(), "{}", self.log());
        let text = fs::read_to_string(self.folder.path().join("recording.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// The contents of all lines of a kind whose source is one of this node's addresses.
fn of_kind<'a>(node: &Node, lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    let ours = |ip: &Value| node.client.iter().chain(&node.server).any(|own| ip == own);
    lines.iter().filter_map(|line| line.get(kind)).filter(|record| ours(&record["src"])).collect()
}

fn args(record: &Value) -> Vec<&str> {
    record["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect()
}

/// The process at one end of what goes to (client's end) or comes from (server's end) an address and port.
fn at_end<'a>(node: &Node, lines: &'a [Value], end: &str, proto: &str, ip: &str, port: u16) -> &'a Value {
    let (address, number) = if end == "src" { ("dst", "dst_port") } else { ("src", "src_port") };
    let found = of_kind(node, lines, "process").into_iter().rfind(|record| {
        record["end"] == end && record["proto"] == proto && record[address] == ip && record[number] == port
    });
    found.unwrap_or_else(|| panic!("no process at the {end} end of {proto} {ip}:{port}"))
}

const DNS_CLIENT: &str = "
import socket,sys
query=b'\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x01a\\x07example\\x00\\x00\\x01\\x00\\x01'
family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s=socket.socket(family,socket.SOCK_DGRAM); s.settimeout(2)
for _ in range(10):
    try:
        if sys.argv[3]=='connect':
            s.connect((sys.argv[1],int(sys.argv[2]))); s.send(query)
        else:
            s.sendto(query,(sys.argv[1],int(sys.argv[2])))
        if s.recv(512)[:2]==b'\\x12\\x34': sys.exit(0)
    except OSError: pass
sys.exit(1)
";

#[test]
fn both_ends_of_every_kind_are_named_with_what_is_known_of_them() {
    let Some(node) = Node::make() else { return };
    let (c4, [s4, s6], service_ip) =
        (&node.client[0], node.server.each_ref().map(String::as_str), node.service.as_str());
    let folder = tempfile::tempdir().unwrap();
    let web_args =
        ["-m", "http.server", "--bind", "::", "--directory", folder.path().to_str().unwrap(), "8080"];
    // Older than the agent, and younger.
    let web = node.start('s', "/usr/bin/python3", &web_args);
    node.wait_listening('s', "127.0.0.1:8080");
    let recording = Recording::start(&node, &[], "");
    let dns_args = [
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--port=5353",
        "--address=/a.example/192.0.2.1",
        "--conf-file=/dev/null",
        "--pid-file",
        "--user=root",
    ];
    let dns = node.start('s', "dnsmasq", &dns_args);
    let bulk = node.start('s', "iperf3", &["-s", "-p", "5201"]);
    let plain = node.start('s', "nc", &["-l", "-k", "7000"]);
    node.wait_listening('s', &format!("{s4}:5201"));
    node.wait_listening('s', &format!("{s4}:7000"));

    let curl = |url: &str| node.start('c', "curl", &["-s", "-g", "-o", "/dev/null", url]).finish();
    let urls =
        [format!("http://{service_ip}/"), format!("http://{s4}:8080/"), format!("http://[{s6}]:8080/")];
    let [service, direct, six] = urls.each_ref().map(|url| curl(url));
    let copy = node.start('c', "nc", &["-N", s4, "7000"]).finish();
    let iperf = node.start('c', "iperf3", &["-c", s4, "-p", "5201", "-n", "1M"]).finish();
    let script = folder.path().join("ask.py").display().to_string();
    fs::write(&script, DNS_CLIENT).unwrap();
    let ask = |to: &str, port: &str, how: &str| {
        node.start('c', "/usr/bin/python3", &[&script, to, port, how]).finish()
    };
    let dns_service = ask(service_ip, "53", "connect");
    let dns_six = ask(s6, "5353", "send");
    let lines = recording.stop();

    for (end, proto, ip, port, pid, name, expected) in [
        ("src", "tcp", service_ip, 80, service, "curl", vec!["-s", "-g", "-o", "/dev/null", &urls[0]]),
        ("src", "tcp", s4, 8080, direct, "curl", vec!["-s", "-g", "-o", "/dev/null", &urls[1]]),
        ("src", "tcp", s6, 8080, six, "curl", vec!["-s", "-g", "-o", "/dev/null", &urls[2]]),
        ("dst", "tcp", s4, 8080, web.pid(), "python3", web_args.to_vec()),
        ("dst", "tcp", s6, 8080, web.pid(), "python3", web_args.to_vec()),
        ("src", "tcp", s4, 7000, copy, "nc", vec!["-N", s4, "7000"]),
        ("dst", "tcp", s4, 7000, plain.pid(), "nc", vec!["-l", "-k", "7000"]),
        ("src", "tcp", s4, 5201, iperf, "iperf3", vec!["-c", s4, "-p", "5201", "-n", "1M"]),
        ("dst", "tcp", s4, 5201, bulk.pid(), "iperf3", vec!["-s", "-p", "5201"]),
        ("dst", "udp", s4, 5353, dns.pid(), "dnsmasq", dns_args.to_vec()),
        ("dst", "udp", s6, 5353, dns.pid(), "dnsmasq", dns_args.to_vec()),
    ] {
        let record = at_end(&node, &lines, end, proto, ip, port);
        assert_eq!((&record["pid"], &record["name"]), (&pid.into(), &name.into()), "{record}");
        assert_eq!(args(record), expected);
    }
    assert_eq!(at_end(&node, &lines, "src", "udp", service_ip, 53)["pid"], dns_service);
    assert_eq!(at_end(&node, &lines, "src", "udp", s6, 5353)["pid"], dns_six);
    assert_eq!(args(at_end(&node, &lines, "src", "udp", s6, 5353)), [&script, s6, "5353", "send"]);

    // Every socket that was seen is one of the router's connections, as the pod sees it.
    let ends = |direction: &str, c: &Value| {
        let at = |key: &str| c[direction][key].to_string();
        (c["proto"].to_string(), at("src"), at("src_port"), at("dst"), at("dst_port"))
    };
    let conntrack: Vec<&Value> = lines.iter().filter_map(|line| line.get("conntrack")).collect();
    let tuple = |record: &Value| {
        let at = |key: &str| record[key].to_string();
        (at("proto"), at("src"), at("src_port"), at("dst"), at("dst_port"))
    };
    for (kind, direction) in [("src", "original"), ("dst", "reply")] {
        for record in of_kind(&node, &lines, "process")
            .iter()
            .filter(|record| record["end"] == kind && record["src"] != record["dst"])
        {
            assert!(conntrack.iter().any(|c| ends(direction, c) == tuple(record)), "{record}");
        }
    }
    // And every TCP connection has the statistics of both ends.
    let told: Vec<_> = of_kind(&node, &lines, "tcp").into_iter().map(tuple).collect();
    let of_client = |c: &&&Value| c["proto"] == "tcp" && c["original"]["src"] == c4.as_str();
    for connection in conntrack.iter().filter(of_client) {
        for direction in ["original", "reply"] {
            assert!(told.contains(&ends(direction, connection)), "{connection}");
        }
    }
    same_lines_without_them(&lines);
}

/// What is told of sockets changes the columns of processes and TCP statistics, and nothing else.
fn same_lines_without_them(recording: &[Value]) {
    let replay = |lines: &[&Value]| -> Vec<Value> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_flowlogd"))
            .args(["replay", "-", "--set", "flowLogsFileAggregationKindForAllowed=0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let mut stdin = child.stdin.take().unwrap();
        let writer = thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
        let out = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(out.status.success());
        String::from_utf8(out.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let all: Vec<&Value> = recording.iter().collect();
    let none: Vec<&Value> = recording
        .iter()
        .filter(|line| !["process", "tcp"].iter().any(|kind| line.get(kind).is_some()))
        .collect();
    assert!(none.len() < all.len());
    let bare = |lines: Vec<Value>| -> Vec<String> {
        let mut bare: Vec<String> = lines
            .into_iter()
            .map(|mut line| {
                line.as_object_mut().unwrap().retain(|key, _| {
                    !["process", "num_process", "tcp_"].iter().any(|part| key.starts_with(part))
                });
                line.to_string()
            })
            .collect();
        bare.sort();
        bare
    };
    let with = bare(replay(&all));
    assert!(!with.is_empty());
    assert_eq!(with, bare(replay(&none)));
}

#[test]
fn hostile_names_and_arguments_are_escaped_and_paths_are_whole() {
    let Some(node) = Node::make() else { return };
    let s4 = node.server[0].as_str();
    let server = node.enter('s', || TcpListener::bind((s4, 8080)).unwrap());
    let recording = Recording::start(&node, &[], "");
    let rename = "import ctypes,socket,sys
ctypes.CDLL(None).prctl(15,b'a\\x1b[2J\\xff\\n',0,0,0)
socket.create_connection((sys.argv[1],8080)).close()";
    let hostile = OsStr::from_bytes(b"x\xff\x07\xc3\xa9");
    let long = "y".repeat(4000);
    let parts = [OsStr::new("-c"), OsStr::new(rename), OsStr::new(s4), hostile, OsStr::new(&long)];
    let pid = node.start_raw('c', "/usr/bin/python3", &parts).finish();
    let lines = recording.stop();
    let record = at_end(&node, &lines, "src", "tcp", s4, 8080);
    assert_eq!((&record["pid"], &record["name"]), (&pid.into(), &"a\\x1b[2J\\xff\\x0a".into()));
    let told = args(record);
    assert_eq!(&told[2..4], [s4, "x\\xff\\x07é"]);
    assert!(told[4].starts_with("yyy") && told[4].ends_with("y...") && told[4].len() < 520);

    let recording = Recording::start(&node, &["flowLogsCollectProcessPath=true"], "");
    node.start('c', "curl", &["-s", "-m", "2", &format!("http://{s4}:8080/")]).0.wait().unwrap();
    let lines = recording.stop();
    let curl = Command::new("sh").args(["-c", "readlink -f $(command -v curl)"]).output().unwrap();
    let path = String::from_utf8(curl.stdout).unwrap();
    assert_eq!(at_end(&node, &lines, "src", "tcp", s4, 8080)["name"], path.trim());
    drop(server);
}

/// `count` connections one after the other, or all at once.
fn connect(node: &Node, server: &TcpListener, count: usize, at_once: bool) {
    let to = server.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let accepted: Vec<_> = (0..count)
                .map(|_| server.accept().unwrap().0)
                .filter_map(|mut stream| {
                    let _ = stream.read(&mut [0; 1]);
                    at_once.then_some(stream)
                })
                .collect();
            drop(accepted);
        });
        node.enter('c', || {
            let open: Vec<_> = (0..count)
                .map(|_| TcpStream::connect(to).unwrap())
                .filter_map(|mut stream| {
                    stream.write_all(b"x").unwrap();
                    at_once.then_some(stream)
                })
                .collect();
            drop(open);
        });
    });
}

#[test]
fn churn_is_bounded_and_what_finds_no_room_is_counted() {
    let Some(node) = Node::make() else { return };
    let s4 = node.server[0].as_str();
    let server = node.enter('s', || TcpListener::bind((s4, 8080)).unwrap());
    let recording = Recording::start(&node, &[], "max_sockets=64");
    connect(&node, &server, 4000, false);
    connect(&node, &server, 200, true);
    let lines = recording.stop();
    // The end of a socket tells its statistics whether or not there was room for it.
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    for record in of_kind(&node, &lines, "tcp") {
        *ends.entry(record["src"].to_string()).or_default() += 1;
    }
    let lost = |stage: &str| -> u64 {
        let of_stage = lines.iter().filter_map(|line| line.get("lost")).filter(|lost| lost["stage"] == stage);
        of_stage.map(|lost| lost["events"].as_u64().unwrap()).sum()
    };
    assert_eq!(lost("tcp_sockets_lost"), 0);
    assert!(ends.len() == 2 && ends.values().all(|&n| n >= 4200), "{ends:?}");
    assert!(lost("process_sockets_full") >= 2 * 200 - 64, "{}", lost("process_sockets_full"));
}

#[test]
fn the_daemon_switches_them_as_its_configuration_file_says() {
    let Some(node) = Node::make() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (file, log) = (folder.path().join("config.yaml"), folder.path().join("log"));
    let write = |on: bool| {
        let text = format!("flowLogsCollectProcessInfo: {on}\nflowLogsCollectTcpStats: {on}\n");
        fs::write(&file, text).unwrap();
    };
    write(false);
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowlogd"));
    command.args(["run", "--source", "netlink", "--output", "stdout", "--log-level", "info"]);
    command.args(["--set", "flowLogsFlushInterval=300ms", "--config"]).arg(&file);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
    let agent = Process(node.enter('n', || command.spawn().unwrap()));
    let wait = |text: &str, times: usize| {
        let until = Instant::now() + PATIENCE;
        while fs::read_to_string(&log).unwrap().matches(text).count() < times {
            assert!(
                Instant::now() < until,
                "not {times} times {text:?}: {}",
                fs::read_to_string(&log).unwrap()
            );
            thread::sleep(Duration::from_millis(20));
        }
    };
    wait("observes this node", 1);
    for times in [1, 2] {
        write(true);
        wait("switched on", 2 * times);
        write(false);
        wait("switched off", 2 * times);
    }
    drop(agent);
}

#[test]
fn collectors_come_and_go_while_the_agent_runs() {
    let Some(node) = Node::make() else { return };
    let s4 = node.server[0].as_str();
    let server = node.enter('s', || TcpListener::bind((s4, 8080)).unwrap());
    let all = |on: bool| Config {
        flow_logs_source: flowlogd::config::SourceKind::Netlink,
        flow_logs_collect_process_info: on,
        flow_logs_collect_tcp_stats: on,
        ..Config::default()
    };
    node.enter('n', || {
        let mut sources = NodeSources::open(&all(false)).unwrap();
        let mut round = |on: bool| {
            sources.set_collectors(&all(on));
            let state = if on { "on" } else { "off" };
            assert_eq!(sources.collectors_state(), [("processes", state), ("tcp", state)]);
            connect(&node, &server, 3, false);
            let mut told = (0, 0, 0);
            let mut step = |observed: flowlogd::source::Observed| {
                let ours =
                    |ip: IpAddr| node.client.iter().chain(&node.server).any(|own| ip.to_string() == *own);
                match observed.observation {
                    Observation::Process(record) if ours(record.tuple.addresses.src) => {
                        assert_eq!(record.pid, std::process::id());
                        told.0 += 1;
                    }
                    Observation::Tcp(record) if ours(record.tuple.addresses.src) => told.1 += 1,
                    Observation::Connection(_) => told.2 += 1,
                    _ => {}
                }
            };
            sources.poll(Duration::from_millis(100), &mut step);
            sources.sweep(&mut step);
            assert!(told.2 >= 3, "{told:?}");
            told
        };
        for on in [false, true, false, true] {
            let (processes, tcp, _) = round(on);
            if on {
                assert!(processes >= 6 && tcp >= 6, "{processes} {tcp}");
            } else {
                assert_eq!((processes, tcp), (0, 0));
            }
        }
    });
}
