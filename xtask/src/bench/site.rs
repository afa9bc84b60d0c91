//! Where node benches run: a client and a server, each in a network namespace, and a node between them that forwards.
//!
//! In: root. Out: [`Site`]: addresses, the node's own counts of what it forwarded, and limits of connection tracking.
//! What always holds: what is forwarded is tracked (`ct` rules are loaded), what the node says to itself over loopback is
//! not; the machine's own network is not touched. The two sizes of connection tracking that a machine has but once are
//! raised by [`room`] and put back however the run ends.
//! Packets to [`VOID`] leave the node for the server, which has no such address and swallows them: flows without a peer
//! that would have to answer.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::sysctl::Sysctl;
use crate::netns::Namespace;

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
/// A /16.
pub const VOID: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 0);
pub const NODE_NAME: &str = "bench-node";

const RULES: &str = "table inet bench {
  counter new { }
  counter original { }
  counter reply { }
  chain raw_in { type filter hook prerouting priority raw; iif lo notrack; }
  chain raw_out { type filter hook output priority raw; oif lo notrack; }
  chain forward {
    type filter hook forward priority 0;
    ct state new counter name new
    ct direction original counter name original
    ct direction reply counter name reply
  }
}
";

pub struct Site {
    pub client: Namespace,
    pub node: Namespace,
    pub server: Namespace,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

impl Site {
    /// # Errors
    /// Not root, or the kernel lacks what namespaces and connection tracking need.
    pub fn build() -> anyhow::Result<Self> {
        let [client, node, server] = ["the client", "the node", "the server"].map(Namespace::new);
        let site = Self { client: client?, node: node?, server: server? };
        for (place, device, here, there) in
            [(&site.client, "client", CLIENT, "10.1.0.1"), (&site.server, "server", SERVER, "10.2.0.1")]
        {
            site.node.link(device, place, "up0")?;
            site.node.ip(&format!("link set {device} up\naddr add {there}/24 dev {device}\n"))?;
            place.ip(&format!(
                "link set lo up\nlink set up0 up\naddr add {here}/24 dev up0\nroute add default via {there}\n"
            ))?;
            // On a machine that forwards, a new namespace does too: it would send back what is for nobody, over and over.
            place.set("net/ipv4/ip_forward", "0")?;
        }
        site.node.set("net/ipv4/ip_forward", "1")?;
        site.node.ip(&format!("link set lo up\nroute add {VOID}/16 via {SERVER}\n"))?;
        site.node.run("nft", &["-f", "-"], Some(RULES))?;
        // What ended shall be told soon, in time to be measured.
        site.set_timeouts("2")?;
        site.node.set("net/netfilter/nf_conntrack_tcp_timeout_close", "1")?;
        Ok(site)
    }

    /// Seconds that a UDP flow lives without a packet: of flows that begin from now on.
    pub fn set_timeouts(&self, seconds: &str) -> anyhow::Result<()> {
        self.node.set("net/netfilter/nf_conntrack_udp_timeout", seconds)?;
        self.node.set("net/netfilter/nf_conntrack_udp_timeout_stream", seconds)
    }

    /// Most systems boot without; flowlogd switches it on.
    pub fn set_accounting(&self, on: bool) -> anyhow::Result<()> {
        self.node.set("net/netfilter/nf_conntrack_acct", if on { "1" } else { "0" })
    }

    /// Connections that the node tracks.
    pub fn live(&self) -> anyhow::Result<u64> {
        let text = self.node.enter(|| fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count"))??;
        Ok(text.trim().parse()?)
    }

    /// Forgets all connections.
    pub fn flush(&self) -> anyhow::Result<()> {
        self.node.run("conntrack", &["-F"], None).map(drop)
    }

    /// Waits until no more than `most` are tracked. The kernel's own collector takes its time, up to a minute; to list
    /// the table ends what has timed out.
    pub fn settle(&self, most: u64, patience: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + patience;
        loop {
            self.node.run("sh", &["-c", "conntrack -L > /dev/null"], None)?;
            let live = self.live()?;
            if live <= most {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{live} connections are still tracked after {patience:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The node's own counters: `new` connections, packets in the `original` direction and in the `reply`.
    pub fn counters(&self) -> anyhow::Result<BTreeMap<String, Count>> {
        let text = self.node.run("nft", &["-j", "list", "counters", "table", "inet", "bench"], None)?;
        let value: Value = serde_json::from_str(&text).context("nft wrote what is no JSON")?;
        let objects = value["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(objects
            .iter()
            .filter_map(|object| {
                let counter = object.get("counter")?;
                let count =
                    Count { packets: counter["packets"].as_u64()?, bytes: counter["bytes"].as_u64()? };
                Some((counter["name"].as_str()?.to_owned(), count))
            })
            .collect())
    }

    /// What the cluster says of the client, who is on the node, and of the server, who is on another.
    pub fn manifests(folder: &Path) -> anyhow::Result<PathBuf> {
        let pod = |name: &str, node: &str, address: Ipv4Addr| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("{name}-7d4b9c-x2x4p"), "generateName": format!("{name}-7d4b9c-"),
                    "namespace": "bench", "labels": {"app": name}, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"nodeName": node, "containers": [{"name": name}]},
                "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
            })
        };
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}},
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}},
            pod("client", NODE_NAME, CLIENT), pod("server", "elsewhere", SERVER),
        ]});
        let path = folder.join("cluster.json");
        fs::write(&path, serde_json::to_vec(&list)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// Sizes of connection tracking that all network namespaces share.
const SIZES: [&str; 2] =
    ["/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/net/netfilter/nf_conntrack_buckets"];

/// Room for so many connections, as long as the values live.
pub fn room(connections: u64) -> anyhow::Result<Vec<Sysctl>> {
    let mut raised = Vec::new();
    for path in SIZES {
        let value = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
        if value.trim().parse::<u64>()? < connections {
            raised.push(Sysctl::set(path, &connections.to_string())?);
        }
    }
    Ok(raised)
}
