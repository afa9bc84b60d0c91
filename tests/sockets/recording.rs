//! A node for the collectors' tests, and `flowlogd record` on it.
//!
//! Client - router - server, with a DNATed service.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::node::{self, Process, flowlogd, until};

static NODES: AtomicU8 = AtomicU8::new(0);

/// Sockets of all network namespaces are told: each node has addresses of its own.
pub struct Node {
    places: node::Node,
    pub client: [String; 2],
    pub server: [String; 2],
    pub service: String,
}

impl Node {
    pub fn make() -> Option<Self> {
        let what = "processes and TCP statistics on this kernel";
        if !node::can(what, &["ip", "nft", "curl", "python3", "nc", "iperf3", "dnsmasq"]) {
            return None;
        }
        if !fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false) {
            eprintln!("SKIPPED {what}: it has no BTF");
            return None;
        }
        let net = 60 + NODES.fetch_add(1, Ordering::Relaxed);
        let ends = |end: u8| [format!("10.{net}.{end}.2"), format!("fd00:{net}:{end}::2")];
        let (client, server, service) = (ends(1), ends(2), format!("10.{net}.96.10"));
        let (places, s4) = (node::Node::new(net, "cs"), &server[0]);
        places.track(&format!(
            "ip daddr {service} tcp dport 80 dnat ip to {s4}:8080; ip daddr {service} udp dport 53 dnat ip to {s4}:5353;"
        ));
        Some(Self { places, client, server, service })
    }

    /// Waits until something accepts (TCP) there.
    pub fn wait_listening(&self, place: char, to: &str) {
        let to: SocketAddr = to.parse().unwrap();
        until(&format!("something listens on {to}"), || {
            self.enter(place, || TcpStream::connect_timeout(&to, Duration::from_secs(1)).ok())
        });
    }
}

impl std::ops::Deref for Node {
    type Target = node::Node;

    fn deref(&self) -> &node::Node {
        &self.places
    }
}

/// `flowlogd record` in the router.
pub struct Recording {
    agent: Process,
    folder: tempfile::TempDir,
}

impl Recording {
    /// With both collectors on; returns when it observes.
    pub fn start(node: &Node, more: &[&str], limits: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = [&["flowLogsCollectProcessInfo=true", "flowLogsCollectTcpStats=true"], more].concat();
        let mut command =
            flowlogd(["record", "--source", "netlink", "--log-level", "info", "--output"], [""; 0]);
        command.arg(folder.path().join("recording.jsonl"));
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        let agent = node.at('n').start(command.env("FLOWLOGD_TEST_LIMITS", limits));
        agent.told("records this node");
        Self { agent, folder }
    }

    /// SIGTERM; its lines.
    pub fn stop(self) -> Vec<Value> {
        let (status, log) = self.agent.stop();
        assert!(status.success(), "{log}");
        let text = fs::read_to_string(self.folder.path().join("recording.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
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
