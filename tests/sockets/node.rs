//! A node of network namespaces for the collectors' tests, its processes, and `flowlogd record` on it.
//!
//! Client - router - server over veth, with a DNATed service. Namespaces and processes are removed at the end. A node that
//! cannot be made is said, with the package that is missing.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

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
pub const PATIENCE: Duration = Duration::from_secs(30);

static NODES: AtomicU32 = AtomicU32::new(0);

pub fn sh(command: &str) {
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
pub struct Node {
    pub name: String,
    pub client: [String; 2],
    pub server: [String; 2],
    pub service: String,
}

impl Node {
    pub fn make() -> Option<Self> {
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
    pub fn enter<T: Send>(&self, place: char, f: impl FnOnce() -> T + Send) -> T {
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

    pub fn start(&self, place: char, program: &str, args: &[&str]) -> Process {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        self.start_raw(place, program, &args)
    }

    pub fn start_raw(&self, place: char, program: &str, args: &[&OsStr]) -> Process {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Process(self.enter(place, || command.spawn().unwrap()))
    }

    /// Waits until something accepts (TCP) there.
    pub fn wait_listening(&self, place: char, to: &str) {
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

pub struct Process(pub Child);

impl Process {
    pub fn pid(&self) -> u64 {
        u64::from(self.0.id())
    }

    /// Waits for its end, which is a success.
    pub fn finish(mut self) -> u64 {
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
pub struct Recording {
    agent: Child,
    pub folder: tempfile::TempDir,
}

impl Recording {
    /// With both collectors on; returns when it observes.
    pub fn start(node: &Node, more: &[&str], limits: &str) -> Self {
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

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// SIGTERM; its lines.
    pub fn stop(mut self) -> Vec<Value> {
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
pub fn of_kind<'a>(node: &Node, lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    let ours = |ip: &Value| node.client.iter().chain(&node.server).any(|own| ip == own);
    lines.iter().filter_map(|line| line.get(kind)).filter(|record| ours(&record["src"])).collect()
}

pub fn args(record: &Value) -> Vec<&str> {
    record["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect()
}

/// The process at one end of what goes to (client's end) or comes from (server's end) an address and port.
pub fn at_end<'a>(node: &Node, lines: &'a [Value], end: &str, proto: &str, ip: &str, port: u16) -> &'a Value {
    let (address, number) = if end == "src" { ("dst", "dst_port") } else { ("src", "src_port") };
    let found = of_kind(node, lines, "process").into_iter().rfind(|record| {
        record["end"] == end && record["proto"] == proto && record[address] == ip && record[number] == port
    });
    found.unwrap_or_else(|| panic!("no process at the {end} end of {proto} {ip}:{port}"))
}
