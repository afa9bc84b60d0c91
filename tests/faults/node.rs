//! A node for one test, the agent on it, and traffic of which the kernel keeps count.
//!
//! In: a label, settings of the agent, how much traffic. Out: what the agent wrote, and what conntrack counted. One
//! network namespace is the whole node: client and server talk over its loopback, on addresses of 127.0.0.0/8, so that
//! a flow costs one datagram. Nothing expires while a test runs: conntrack's own table is the truth at its end. Waiting
//! is for a condition; the patience is only what ends a test that would hang. Namespace, processes and files go with
//! their values.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

pub const PATIENCE: Duration = Duration::from_secs(60);

static NODES: AtomicU32 = AtomicU32::new(0);

/// Where the server listens.
pub const PORT: u16 = 5000;
/// Where a filter lets nothing go: the kernel says EPERM to who sends, and no connection is confirmed.
pub const DENIED: Ipv4Addr = Ipv4Addr::new(127, 9, 9, 9);

pub fn sh(command: &str) -> String {
    let out = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(out.status.success(), "{command}\n{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// What this machine lacks for these tests.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    for (tool, version) in
        [("ip", "-V"), ("nft", "-v"), ("conntrack", "-V"), ("nsenter", "-V"), ("unshare", "-V")]
    {
        if !Command::new(tool).arg(version).output().is_ok_and(|out| out.status.success()) {
            return Some(format!("needs {tool}"));
        }
    }
    let tracks = fs::exists("/proc/sys/net/netfilter/nf_conntrack_max").unwrap_or(false);
    (!tracks).then(|| "needs a kernel with connection tracking (modprobe nf_conntrack)".to_owned())
}

/// The first value that `look` gives.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not happen in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Packets and bytes, of the original direction and of the reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd)]
pub struct Sums {
    pub original: (u64, u64),
    pub reply: (u64, u64),
}

pub struct Node {
    pub name: String,
    pub folder: tempfile::TempDir,
}

impl Node {
    /// `None`: this machine cannot; said already.
    pub fn make(what: &str) -> Option<Self> {
        if let Some(why) = missing() {
            eprintln!("SKIPPED {what}: {why}");
            return None;
        }
        let name = format!("flf{}x{}", std::process::id(), NODES.fetch_add(1, Ordering::Relaxed));
        sh(&format!("ip netns add {name}; ip -n {name} link set lo up"));
        let node = Self { name, folder: tempfile::tempdir().unwrap() };
        node.inside(&format!(
            "nft -f - <<'END'
table inet t {{
  chain i {{ type filter hook input priority 0; policy accept; ct state invalid drop; }}
  chain o {{ type filter hook output priority 0; policy accept; ip daddr {DENIED} drop; }}
}}
END"
        ));
        // Traffic may come before the agent does; and nothing may expire under a slow machine.
        node.set("net/netfilter/nf_conntrack_acct", "1");
        node.set("net/netfilter/nf_conntrack_udp_timeout", "3600");
        node.set("net/netfilter/nf_conntrack_udp_timeout_stream", "3600");
        Some(node)
    }

    pub fn inside(&self, command: &str) -> String {
        sh(&format!(
            "exec nsenter --net=/run/netns/{} sh -ec \"$(cat <<'OUTER'\n{command}\nOUTER\n)\"",
            self.name
        ))
    }

    pub fn set(&self, sysctl: &str, value: &str) {
        self.enter(|| fs::write(format!("/proc/sys/{sysctl}"), value)).unwrap();
    }

    /// Runs `work` in a thread inside the node's network namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    pub fn socket(&self) -> UdpSocket {
        self.enter(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).unwrap()
    }

    pub fn log_dir(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// What conntrack counted of everything to the server.
    pub fn counted(&self) -> Sums {
        let text = self.inside(&format!("conntrack -L -p udp --dport {PORT} 2>/dev/null"));
        let mut sums = Sums::default();
        for line in text.lines() {
            let mut numbers = line.split_whitespace().filter_map(|word| {
                let (name, value) = word.split_once('=')?;
                (matches!(name, "packets" | "bytes")).then(|| value.parse::<u64>().unwrap())
            });
            for (packets, bytes) in [&mut sums.original, &mut sums.reply] {
                *packets += numbers.next().unwrap_or_default();
                *bytes += numbers.next().unwrap_or_default();
            }
        }
        sums
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Sends what a filter will drop.
pub fn send_denied(socket: &UdpSocket, payload: &[u8], port: u16) {
    let refused = socket.send_to(payload, SocketAddrV4::new(DENIED, port)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{refused}");
}

/// One client socket, and flows to as many of the server's addresses as are asked for.
pub struct Traffic {
    client: UdpSocket,
    _server: UdpSocket,
}

impl Traffic {
    pub fn new(node: &Node) -> Self {
        let server = node.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))).unwrap();
        Self { client: node.socket(), _server: server }
    }

    /// A datagram of `len` bytes on each of these flows.
    pub fn send(&self, flows: std::ops::Range<u32>, len: usize) {
        let payload = vec![7; len];
        for flow in flows {
            let to = SocketAddrV4::new(Ipv4Addr::from_bits(0x7f01_0000 + flow), PORT);
            self.client.send_to(&payload, to).unwrap();
        }
    }
}

pub struct Agent {
    child: Child,
    log: PathBuf,
    /// Where its files are for us.
    pub dir: PathBuf,
}

const BASE: &str = "flowLogsFlushInterval=200ms flowLogsFileAggregationKindForAllowed=0 \
     flowLogsFileAggregationKindForDenied=0 flowLogsFileIdleFlows=Suppress flowLogsFileIncludeLabels=false \
     flowLogsLiveEnabled=false prometheusMetricsEnabled=true flowLogsHealthEnabled=true flowLogsFileEnabledForDenied=true";

impl Agent {
    /// Started, and everything that there was is adopted.
    pub fn start(node: &Node, settings: &str) -> Self {
        Self::start_with(node, settings, "exec \"$@\"")
    }

    /// `shell` runs in the node's network namespace and ends with the agent itself, `"$@"`.
    pub fn start_with(node: &Node, settings: &str, shell: &str) -> Self {
        let mut agent = Self::spawn(node, settings, shell);
        agent.told("flowlogd observes this node");
        agent
    }

    pub fn spawn(node: &Node, settings: &str, shell: &str) -> Self {
        let own = format!("flowLogsFileDirectory={}", node.log_dir().display());
        let all = BASE.split_whitespace().chain(settings.split_whitespace()).chain([own.as_str()]);
        let arguments: Vec<OsString> = all.flat_map(|setting| ["--set".into(), setting.into()]).collect();
        Self::launch(node, shell, &arguments)
    }

    /// With these arguments and nothing beside them.
    pub fn launch(node: &Node, shell: &str, arguments: &[OsString]) -> Self {
        static STARTS: AtomicU32 = AtomicU32::new(0);
        let log = node.folder.path().join(format!("stderr.{}", STARTS.fetch_add(1, Ordering::Relaxed)));
        let dir = node.log_dir();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", node.name)).args(["sh", "-ec", shell, "sh"]);
        command.arg(env!("CARGO_BIN_EXE_flowlogd")).args(["run", "--source", "netlink"]);
        command.args(arguments);
        let err = File::create(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(err)
            .env("NO_COLOR", "1")
            .spawn()
            .unwrap();
        Self { child, log, dir }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until its log has this.
    pub fn told(&mut self, text: &str) {
        until(text, || {
            let log = self.log();
            if log.contains(text) {
                return Some(());
            }
            assert!(matches!(self.child.try_wait(), Ok(None)), "the agent ended before {text:?}:\n{log}");
            None
        });
    }

    pub fn sums(&self) -> Sums {
        sums(&self.dir)
    }

    /// Waits until what it has written adds up to this.
    pub fn wrote(&mut self, wanted: Sums) {
        let mut last = Sums::default();
        until(&format!("{wanted:?} written"), || {
            last = self.sums();
            assert!(matches!(self.child.try_wait(), Ok(None)), "the agent ended:\n{}", self.log());
            assert!(last.original <= wanted.original, "{last:?} beyond {wanted:?}\n{}", self.log());
            (last == wanted).then_some(())
        });
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM and its end.
    pub fn stop(mut self) -> (ExitStatus, String) {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        let status = until("the agent's end", || self.child.try_wait().unwrap());
        (status, self.log())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The log's files, the oldest first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if let Some(rest) = name.strip_prefix("flows.log")
            && !rest.ends_with("lock")
        {
            let number: u32 = rest.trim_start_matches('.').parse().unwrap_or(0);
            files.insert(std::cmp::Reverse(number), entry.path());
        }
    }
    files.into_values().collect()
}

/// Everything in the files. What is being written just now is left out: the bytes behind the last newline.
pub fn text(dir: &Path) -> String {
    let mut text = String::new();
    for file in files(dir) {
        let mut part = match fs::read(&file) {
            Ok(part) => part,
            // Rotated or removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => panic!("{error}"),
        };
        let whole = part.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        part.truncate(whole);
        text.push_str(std::str::from_utf8(&part).unwrap());
    }
    text
}

/// Each line is JSON, or this panics.
pub fn lines(text: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(parse).collect()
}

pub fn sums(dir: &Path) -> Sums {
    sums_of(&lines(&text(dir)), "allow")
}

/// What the sources told.
pub fn sums_of(lines: &[Value], action: &str) -> Sums {
    let mut sums = Sums::default();
    // What is asked of the agent's own ports is TCP, and allowed.
    let of_test = |line: &&Value| {
        line["reporter"] == "src" && line["action"] == action && (action == "deny" || line["proto"] == "udp")
    };
    for line in lines.iter().filter(of_test) {
        let number = |name: &str| line[name].as_u64().unwrap();
        sums.original.0 += number("packets_out");
        sums.original.1 += number("bytes_out");
        sums.reply.0 += number("packets_in");
        sums.reply.1 += number("bytes_in");
    }
    sums
}

/// The most that the process ever held.
pub fn peak_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
