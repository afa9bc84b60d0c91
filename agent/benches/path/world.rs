//! The world that the benches measure in: a cluster and traffic of the size and shape of a busy node.
//!
//! In: the number of a flow. Out: its connection record, always the same for the same number; the cluster around it.
//! What always holds: flows with different numbers have different keys; names have the cardinality of a real
//! cluster (100 local pods of 20 workloads, 5,000 remote pods of 500 workloads on 50 nodes, 200 services, 24
//! network sets), and one flow of ten leaves the cluster. Deliberately not here: measuring, and any figure.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use flowlogd::aggregate::{Level, Settings};
use flowlogd::cluster::{Cluster, NetworkSet, Node, Object, Pod, Service, ServicePort};
use flowlogd::model::{
    Addresses, ConnectionEvent, ConnectionRecord, Counters, Directional, Labels, Proto, TcpState, Timestamp,
};
use flowlogd::snapshot::Snapshot;

pub const LOCAL_PODS: u64 = 100;
pub const REMOTE_PODS: u64 = 5_000;
pub const SERVICES: u64 = 200;

const NODE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 0, 10));
const LOCAL_WORKLOADS: u64 = 20;
const REMOTE_WORKLOADS: u64 = 500;
const NODES: u64 = 50;
/// Remote workloads that a local one calls, and as many that call it.
const PEERS: u64 = 25;

fn v4(a: u8, n: u64) -> IpAddr {
    let [.., b, c, d] = n.to_be_bytes();
    IpAddr::from([a, b, c, d])
}

pub fn local_pod(n: u64) -> IpAddr {
    v4(10, n % LOCAL_PODS + 10)
}

pub fn remote_pod(n: u64) -> IpAddr {
    v4(10, (1 << 16) + n % REMOTE_PODS)
}

pub fn service(n: u64) -> IpAddr {
    v4(172, (16 << 16) + n % SERVICES)
}

/// Public addresses; one of two is in a network set.
pub fn external(n: u64) -> IpAddr {
    v4(if n.is_multiple_of(2) { 52 } else { 93 }, n >> 1 & 0xf_ffff)
}

/// The label sets of a workload's pods: equal in content, each in its own memory, as a watch delivers them.
fn labels(app: &str) -> Labels {
    let pairs = [
        ("app.kubernetes.io/name", app),
        ("app.kubernetes.io/version", "1.24.3"),
        ("pod-template-hash", "7d4b9c6f58"),
        ("team", "payments"),
    ];
    Labels::new(pairs.into_iter().map(|(key, value)| (Arc::from(key), Arc::from(value))))
}

fn pod(app: &str, workload: u64, n: u64, node: &str, ip: IpAddr) -> Object {
    let app = &format!("{app}-{workload}");
    Object::Pod(Pod {
        namespace: format!("team-{}", workload % 12).into(),
        name: format!("{app}-7d4b9c6f58-{n:05}").into(),
        uid: Some(format!("5a9e1c1e-0000-4000-8000-{n:012}").into()),
        generate_name: Some(format!("{app}-7d4b9c6f58-").into()),
        labels: labels(app),
        node: Some(node.into()),
        ips: vec![ip],
        ..Pod::default()
    })
}

pub fn cluster() -> Snapshot {
    let mut cluster = Cluster::new("node-0".into());
    let mut apply = |object| cluster.apply(object, Timestamp::MIN);
    for n in 0..=NODES {
        let address = if n == 0 { NODE_ADDRESS } else { v4(192, (168 << 16) + 256 + n) };
        let name: Arc<str> = format!("node-{n}").into();
        apply(Object::Node(Node { name, labels: labels("node"), addresses: vec![address] }));
    }
    for n in 0..LOCAL_PODS {
        apply(pod("shop", n % LOCAL_WORKLOADS, n, "node-0", local_pod(n)));
    }
    for n in 0..REMOTE_PODS {
        let node = format!("node-{}", 1 + n % NODES);
        apply(pod("backend", n % REMOTE_WORKLOADS, n, &node, remote_pod(n)));
    }
    for n in 0..SERVICES {
        let port = ServicePort { name: Some("http".into()), proto: Proto::TCP, port: 80, node_port: None };
        apply(Object::Service(Service {
            namespace: format!("team-{}", n % 12).into(),
            name: format!("backend-{n}").into(),
            ips: vec![service(n)],
            ports: vec![port],
        }));
    }
    for n in 0..24_u64 {
        let net = format!("52.{n}.0.0/16").parse().expect("a prefix");
        apply(Object::NetworkSet(NetworkSet {
            namespace: (n % 3 == 0).then(|| format!("team-{}", n % 12).into()),
            name: format!("partner-{n}").into(),
            labels: labels("partner"),
            nets: vec![net, format!("93.{n}.{n}.0/24").parse().expect("a prefix")],
        }));
    }
    Snapshot::new(&cluster)
}

pub fn settings(level: Level) -> Settings {
    Settings { level_for_allowed: level, ..Settings::default() }
}

/// splitmix64: a number's own noise.
fn noise(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Flow number `n` (below 3 million), as it is seen first. Of 100 flows about 40 go out through one of ten services of
/// the workload, 15 to a pod of one of its 25 peers, 30 come in from others, 5 stay on the node, 10 leave the cluster
/// (translated to the node's address).
pub fn flow(n: u64) -> ConnectionRecord {
    let noise = noise(n);
    let (class, other) = (noise % 100, noise >> 32);
    // A client and its port belong to one flow each: that makes the keys distinct.
    let port = |clients: u64| (1024 + n / clients) as u16;
    let outward = |dst, dst_port| Addresses { src: local_pod(n), dst, src_port: port(LOCAL_PODS), dst_port };
    let mut proto = Proto::TCP;
    let workload = n % LOCAL_WORKLOADS;
    // A pod of a workload of the far side: one of ten.
    let pod_of =
        |workload: u64| remote_pod(workload % REMOTE_WORKLOADS + REMOTE_WORKLOADS * (other / 64 % 10));
    let (original, answers_from) = match class {
        0..40 => {
            let number = (workload * 10 + other % 10) % SERVICES;
            (outward(service(number), 80), Some((pod_of(number), 8080)))
        }
        40..55 => {
            proto = if class < 50 { Proto::TCP } else { Proto::UDP };
            let dst = pod_of(workload * PEERS + other % PEERS);
            (outward(dst, if class < 50 { 9090 } else { 53 }), None)
        }
        55..85 => {
            let called = n % REMOTE_WORKLOADS / PEERS + LOCAL_WORKLOADS * (other % 5);
            let src_port = port(REMOTE_PODS);
            (Addresses { src: remote_pod(n), dst: local_pod(called), src_port, dst_port: 8080 }, None)
        }
        85..90 => (outward(local_pod(other), 8080), None),
        _ => (outward(external(other), 443), None),
    };
    let mut reply = original.reversed();
    if let Some((address, port)) = answers_from {
        (reply.src, reply.src_port) = (address, port);
    }
    if class >= 90 {
        (reply.dst, reply.dst_port) = (NODE_ADDRESS, 1024 + (noise >> 20) as u16 % 60_000);
    }
    ConnectionRecord {
        event: ConnectionEvent::New,
        proto,
        original,
        reply,
        icmp: None,
        zone: 0,
        counters: Directional { original: Counters::new(1, 60), reply: Counters::new(1, 60) },
        tcp_state: (proto == Proto::TCP).then_some(TcpState::Established),
    }
}

/// The flow as a later look finds it: `looks` times what it was.
pub fn later(mut record: ConnectionRecord, event: ConnectionEvent, looks: u64) -> ConnectionRecord {
    record.event = event;
    record.counters = Directional {
        original: Counters::new(1 + 10 * looks, 60 + 5_000 * looks),
        reply: Counters::new(1 + 8 * looks, 60 + 12_000 * looks),
    };
    record
}

/// A fixed shuffle of `0..count`: a sweep of the kernel's hash map has no order that user space could share.
pub fn shuffled(count: u64) -> impl Iterator<Item = u64> {
    // A prime beyond any count makes it a permutation.
    (0..count).map(move |i| (i.wrapping_mul(1_000_000_007) + 12_345) % count)
}
