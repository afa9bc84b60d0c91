//! A small node out of network namespaces, as a routing network plugin builds one.
//!
//! In: nothing. Out: [`Node`]: a namespace for the node, one for each pod behind a veth with a host route, one for the
//! world outside; nftables rules for services (DNAT), for what leaves (masquerade) and for what is denied; connection
//! tracking with accounting. What always holds: the machine's own namespace is not touched; each kind of denied traffic
//! has a counter of its own and nothing else drops packets on the way.
//! Deliberately not here: traffic (`traffic.rs`), what Kubernetes would say of all this (`cluster.rs`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;

use crate::netns::Namespace;

pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 10);
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x10);
/// Known to the cluster as the network set `partners`.
pub const PARTNER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
pub const PARTNER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xcafe, 0, 0, 0, 0, 7);
/// Known to nobody.
pub const STRANGER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

pub const WEB_SERVICE_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 80);
pub const WEB_SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x80);
pub const DNS_SERVICE_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 53);
pub const WEB_NODE_PORT: u16 = 30080;
/// The web pods listen here; the service's port is 80.
pub const WEB_PORT: u16 = 8080;
/// Denied on its way to a pod; also behind the service's port of the same number.
pub const ADMIN_PORT: u16 = 9090;
/// Denied on its way to a pod, UDP.
pub const STATS_PORT: u16 = 8125;
/// Denied on its way to the node itself.
pub const SSH_PORT: u16 = 22;
/// The pod that is replaced listens here, and so does the one in its place.
pub const CACHE_PORT: u16 = 6379;

/// A pod's name, and which of its addresses: the last part of both.
#[derive(Clone, Copy, Debug)]
pub struct PodSpec {
    pub namespace: &'static str,
    pub generate_name: &'static str,
    pub suffix: &'static str,
    pub app: &'static str,
    pub host_part: u8,
}

impl PodSpec {
    pub fn v4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, 1, self.host_part)
    }

    /// The same digits, so that a reader finds the pair.
    pub fn v6(&self) -> Ipv6Addr {
        let digits = u16::from(self.host_part / 10) * 16 + u16::from(self.host_part % 10);
        Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, digits)
    }

    /// The end as lines name it at level 2.
    pub fn end(&self) -> String {
        format!("{}/{}*", self.namespace, self.generate_name)
    }

    fn device(&self) -> String {
        format!("pod{}", self.host_part)
    }
}

const fn pod(
    namespace: &'static str,
    generate_name: &'static str,
    suffix: &'static str,
    app: &'static str,
    host_part: u8,
) -> PodSpec {
    PodSpec { namespace, generate_name, suffix, app, host_part }
}

pub const CLIENT_A: PodSpec = pod("shop", "client-6d9f7c-", "k2x4p", "client", 21);
pub const CLIENT_B: PodSpec = pod("shop", "client-6d9f7c-", "w8m1z", "client", 22);
pub const WEB_1: PodSpec = pod("shop", "web-5f6c8b-", "9hq2d", "web", 11);
pub const WEB_2: PodSpec = pod("shop", "web-5f6c8b-", "t5rvn", "web", 12);
pub const DNS: PodSpec = pod("infra", "dns-7c5d94-", "4jb7s", "dns", 13);
/// The pod that goes, and the one that comes at its address.
pub const BATCH: PodSpec = pod("shop", "batch-58d7f9-", "zz6lc", "batch", 31);
pub const CACHE: PodSpec = pod("shop", "cache-84c6bd-", "c0qtg", "cache", 31);

/// In the order in which they were created; the last comes later.
pub const PODS: [PodSpec; 7] = [CLIENT_A, CLIENT_B, WEB_1, WEB_2, DNS, BATCH, CACHE];

pub struct Node {
    pub namespace: Namespace,
    pub outside: Namespace,
}

pub struct Pod {
    pub spec: PodSpec,
    pub namespace: Namespace,
}

impl Node {
    /// # Errors
    /// What the kernel or a container does not let us have, with what to do.
    pub fn build() -> anyhow::Result<Self> {
        let node = Namespace::new("the node")?;
        let outside = Namespace::new("the world outside")?;
        node.enter(|| std::fs::exists("/proc/sys/net/ipv6"))?
            .ok()
            .filter(|there| *there)
            .context("this kernel has no IPv6, which the demo shows: boot without ipv6.disable=1")?;
        for namespace in [&node, &outside] {
            quiet(namespace)?;
            namespace.set("net/ipv4/ip_forward", "1")?;
            namespace.set("net/ipv6/conf/all/forwarding", "1")?;
        }
        node.link("ext0", &outside, "node0")?;
        node.ip(&format!(
            "link set lo up\nlink set ext0 up\n\
             addr add {NODE_V4}/24 dev ext0\naddr add {NODE_V6}/64 dev ext0 nodad\n\
             route add default via 172.18.0.1\nroute add default via fd00:172:18::1\n"
        ))?;
        outside.ip(&format!(
            "link set lo up\nlink set node0 up\n\
             addr add 172.18.0.1/24 dev node0\naddr add fd00:172:18::1/64 dev node0 nodad\n\
             addr add {PARTNER_V4}/32 dev lo\naddr add {STRANGER_V4}/32 dev lo\naddr add {PARTNER_V6}/128 dev lo nodad\n\
             route add {NODE_V4}/32 dev node0 src {PARTNER_V4}\n"
        ))?;
        // The rules come first: they make the kernel load connection tracking.
        node.run("nft", &["-f", "-"], Some(&rules())).context(
            "nftables rules cannot be loaded: the kernel needs nf_tables with NAT and connection tracking (modprobe nf_tables nft_ct nft_nat nf_conntrack)",
        )?;
        node.set("net/netfilter/nf_conntrack_acct", "1")?;
        // Ended connections leave the table soon, so that the demo shows both: counters of ended and of live ones.
        node.set("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "3")?;
        Ok(Self { namespace: node, outside })
    }

    /// A namespace with an address of each family, routed by the node.
    pub fn add_pod(&self, spec: PodSpec) -> anyhow::Result<Pod> {
        let namespace = Namespace::new(spec.app)?;
        quiet(&namespace)?;
        let (device, v4, v6) = (spec.device(), spec.v4(), spec.v6());
        self.namespace.link(&device, &namespace, "eth0")?;
        // As Calico does: no subnet, one link-local gateway, host routes. The node speaks with its own address.
        self.namespace.ip(&format!(
            "link set {device} up\naddr add 169.254.1.1/32 dev {device} scope link\naddr add fe80::1/64 dev {device} nodad\n\
             route add {v4}/32 dev {device} src {NODE_V4}\nroute add {v6}/128 dev {device} src {NODE_V6}\n"
        ))?;
        namespace.ip(&format!(
            "link set lo up\nlink set eth0 up\n\
             addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
             route add 169.254.1.1/32 dev eth0\nroute add default via 169.254.1.1 dev eth0\nroute add default via fe80::1 dev eth0\n"
        ))?;
        Ok(Pod { spec, namespace })
    }

    /// The pod is gone, its address free.
    pub fn remove_pod(&self, pod: Pod) -> anyhow::Result<()> {
        self.namespace.ip(&format!("link del {}\n", pod.spec.device()))
    }
}

/// No delay before IPv6 addresses can be used; root may send pings.
fn quiet(namespace: &Namespace) -> anyhow::Result<()> {
    for family in ["all", "default"] {
        namespace.set(&format!("net/ipv6/conf/{family}/accept_dad"), "0")?;
        namespace.set(&format!("net/ipv6/conf/{family}/accept_ra"), "0")?;
    }
    namespace.set("net/ipv4/ping_group_range", "0 0")
}

/// Where an end stands: how lines name it. Only the address that changed hands needs the time.
pub fn end_of(ip: IpAddr, replaced: bool) -> String {
    let pods: &[PodSpec] = &PODS;
    let at = |spec: &&PodSpec| IpAddr::from(spec.v4()) == ip || IpAddr::from(spec.v6()) == ip;
    let mut owners = pods.iter().filter(at);
    let owner = if replaced { owners.next_back() } else { owners.next() };
    match (owner, ip) {
        (Some(spec), _) => spec.end(),
        (None, IpAddr::V4(v4)) if v4 == PARTNER_V4 => "partners".into(),
        (None, IpAddr::V6(v6)) if v6 == PARTNER_V6 => "partners".into(),
        (None, IpAddr::V4(v4)) if v4 == NODE_V4 => "pvt".into(),
        (None, _) => "pub".into(),
    }
}

/// Denied traffic: its counter, and the ends as lines name them.
#[derive(Clone, Copy, Debug)]
pub struct Denied {
    pub counter: &'static str,
    pub source: PodSpec,
    /// `None`: the node itself.
    pub dest: Option<PodSpec>,
    pub proto: &'static str,
    pub port: u16,
    /// The chain and the rule's match.
    chain: &'static str,
}

pub const DENIED: [Denied; 4] = [
    Denied {
        counter: "admin",
        source: CLIENT_A,
        dest: Some(WEB_1),
        proto: "tcp",
        port: ADMIN_PORT,
        chain: "forward",
    },
    Denied {
        counter: "stats",
        source: CLIENT_B,
        dest: Some(DNS),
        proto: "udp",
        port: STATS_PORT,
        chain: "forward",
    },
    Denied {
        counter: "batch_admin",
        source: BATCH,
        dest: Some(WEB_2),
        proto: "tcp",
        port: ADMIN_PORT,
        chain: "forward",
    },
    Denied { counter: "ssh", source: CLIENT_B, dest: None, proto: "tcp", port: SSH_PORT, chain: "input" },
];

fn rules() -> String {
    let web = |v6: bool| {
        let [one, two] =
            [WEB_1, WEB_2].map(|pod| if v6 { pod.v6().to_string() } else { pod.v4().to_string() });
        format!("numgen inc mod 2 map {{ 0 : {one} . {WEB_PORT}, 1 : {two} . {WEB_PORT} }}")
    };
    let denied = |chain: &str| {
        DENIED
            .iter()
            .filter(|denied| denied.chain == chain)
            .map(|Denied { counter, source, proto, port, .. }| {
                let device = source.device();
                format!("    iifname \"{device}\" {proto} dport {port} counter name \"{counter}\" drop\n")
            })
            .collect::<String>()
    };
    let counters: String =
        DENIED.iter().map(|denied| format!("  counter {} {{ }}\n", denied.counter)).collect();
    let (web_v4, web_v6, dns, web_1) = (web(false), web(true), DNS.v4(), WEB_1.v4());
    let (forward, input) = (denied("forward"), denied("input"));
    format!(
        "table inet demo {{
{counters}
  chain services {{
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr {WEB_SERVICE_V4} tcp dport 80 dnat ip to {web_v4}
    ip6 daddr {WEB_SERVICE_V6} tcp dport 80 dnat ip6 to {web_v6}
    ip daddr {WEB_SERVICE_V4} tcp dport {ADMIN_PORT} dnat ip to {web_1}:{ADMIN_PORT}
    ip daddr {NODE_V4} tcp dport {WEB_NODE_PORT} dnat ip to {web_1}:{WEB_PORT}
    ip daddr {DNS_SERVICE_V4} udp dport 53 dnat ip to {dns}:53
  }}
  chain outgoing {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 10.244.0.0/16 oifname \"ext0\" masquerade
    ip6 saddr fd00:10:244::/48 oifname \"ext0\" masquerade
  }}
  chain pass {{
    type filter hook forward priority filter; policy accept;
    ct state established,related accept
{forward}  }}
  chain own {{
    type filter hook input priority filter; policy accept;
    ct state established,related accept
{input}  }}
}}
"
    )
}
