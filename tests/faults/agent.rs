//! A node for one test, the agent on it, and traffic of which the kernel keeps count.
//!
//! In: a label, settings of the agent, how much traffic. Out: what the agent wrote, and what conntrack counted. One
//! network namespace is the whole node: client and server talk over its loopback, on addresses of 127.0.0.0/8, so that
//! a flow costs one datagram. Nothing expires while a test runs: conntrack's own table is the truth at its end.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use serde_json::Value;

use crate::node::{self, Namespace, OBSERVES, Process, flowlogd, program, until};

/// Where the server listens.
pub const PORT: u16 = 5000;
/// Where a filter lets nothing go: the kernel says EPERM to who sends, and no connection is confirmed.
pub const DENIED: Ipv4Addr = Ipv4Addr::new(127, 9, 9, 9);

/// Packets and bytes, of the original direction and of the reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd)]
pub struct Sums {
    pub original: (u64, u64),
    pub reply: (u64, u64),
}

pub struct Node {
    pub namespace: Namespace,
    pub folder: tempfile::TempDir,
}

impl Node {
    /// `None`: this machine cannot; said already.
    pub fn make(what: &str) -> Option<Self> {
        if !node::can(what, &["ip", "nft", "conntrack", "unshare"]) {
            return None;
        }
        let namespace = Namespace::new();
        namespace.ip("link set lo up");
        namespace.nft(&format!(
            "table inet t {{
  chain i {{ type filter hook input priority 0; policy accept; ct state invalid drop; }}
  chain o {{ type filter hook output priority 0; policy accept; ip daddr {DENIED} drop; }}
}}"
        ));
        // Traffic may come before the agent does; and nothing may expire under a slow machine.
        namespace.set("net/netfilter/nf_conntrack_acct", "1");
        namespace.set("net/netfilter/nf_conntrack_udp_timeout", "3600");
        namespace.set("net/netfilter/nf_conntrack_udp_timeout_stream", "3600");
        Some(Self { namespace, folder: tempfile::tempdir().unwrap() })
    }

    pub fn socket(&self) -> UdpSocket {
        self.namespace.enter(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).unwrap()
    }

    pub fn log_dir(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// What conntrack counted of everything to the server.
    pub fn counted(&self) -> Sums {
        let text = self.namespace.sh(&format!("conntrack -L -p udp --dport {PORT} 2>/dev/null"));
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
        let server = node.namespace.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))).unwrap();
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
    process: Process,
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
    /// `shell` runs in the node's network namespace and ends with the agent itself, `"$@"`.
    pub fn start_with(node: &Node, settings: &str, shell: &str) -> Self {
        let agent = Self::spawn(node, settings, shell);
        agent.told(OBSERVES);
        agent
    }

    pub fn spawn(node: &Node, settings: &str, shell: &str) -> Self {
        let own = format!("flowLogsFileDirectory={}", node.log_dir().display());
        let all = BASE.split_whitespace().chain(settings.split_whitespace()).chain([own.as_str()]);
        Self::launch(node, shell, all, &[])
    }

    /// With these settings and arguments, and nothing beside them.
    pub fn launch<'a>(
        node: &Node,
        shell: &str,
        settings: impl IntoIterator<Item = &'a str>,
        arguments: &[&OsStr],
    ) -> Self {
        let mut agent = flowlogd(["run", "--source", "netlink"], settings);
        agent.args(arguments);
        let mut command = program("sh", ["-ec", shell, "sh"]);
        command.arg(agent.get_program()).args(agent.get_args());
        Self { process: node.namespace.start(&mut command), dir: node.log_dir() }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until its log has this.
    pub fn told(&self, text: &str) {
        self.process.told(text);
    }

    pub fn sums(&self) -> Sums {
        sums(&self.dir)
    }

    /// Waits until what it has written adds up to this.
    pub fn wrote(&self, wanted: Sums) {
        until(&format!("{wanted:?} written"), || {
            let runs = self.process.is_running();
            let last = self.sums();
            assert!(runs, "the agent ended");
            assert!(last.original <= wanted.original, "{last:?} beyond {wanted:?}");
            (last == wanted).then_some(())
        });
    }

    /// SIGTERM and its end.
    pub fn stop(self) -> (ExitStatus, String) {
        self.process.stop()
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
