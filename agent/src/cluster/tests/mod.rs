//! The rules of naming, one by one. `properties.rs` holds them against naive references.

mod outage;
mod properties;
mod services;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;

use super::*;

fn arc(s: &str) -> Arc<str> {
    s.into()
}

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

/// Seconds.
fn t(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1_000_000_000)
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::new(pairs.iter().map(|(k, v)| (arc(k), arc(v))))
}

fn pod(name: &str, node: &str, ips: &[&str]) -> Pod {
    Pod {
        namespace: arc("ns"),
        name: arc(name),
        uid: Some(arc(&format!("uid-{name}"))),
        node: Some(arc(node)),
        ips: ips.iter().map(|s| ip(s)).collect(),
        ..Pod::default()
    }
}

fn hep(name: &str, node: &str, interface: &str, ips: &[&str]) -> HostEndpoint {
    HostEndpoint {
        name: arc(name),
        uid: None,
        labels: Labels::default(),
        node: arc(node),
        interface: Some(arc(interface)),
        expected_ips: ips.iter().map(|s| ip(s)).collect(),
        ports: vec![],
        profiles: vec![],
        created: None,
    }
}

fn node(name: &str, ips: &[&str]) -> Object {
    Object::Node(Node {
        name: arc(name),
        labels: Labels::default(),
        addresses: ips.iter().map(|s| ip(s)).collect(),
    })
}

fn set(namespace: Option<&str>, name: &str, nets: &[&str]) -> Object {
    Object::NetworkSet(NetworkSet {
        namespace: namespace.map(arc),
        name: arc(name),
        labels: Labels::default(),
        nets: nets.iter().map(|s| s.parse::<IpNet>().unwrap().trunc()).collect(),
    })
}

fn service(name: &str, ips: &[&str], ports: &[(Option<&str>, u16, Option<u16>)]) -> Service {
    Service {
        namespace: arc("ns"),
        name: arc(name),
        ips: ips.iter().map(|s| ip(s)).collect(),
        ports: ports
            .iter()
            .map(|(name, port, node_port)| ServicePort {
                name: name.map(arc),
                proto: Proto::TCP,
                port: *port,
                node_port: *node_port,
            })
            .collect(),
    }
}

fn reference(object: &Object) -> ObjectRef {
    object.reference()
}

fn cluster(objects: impl IntoIterator<Item = Object>) -> Cluster {
    let mut cluster = Cluster::new(arc("node-1"));
    for object in objects {
        cluster.apply(object, Timestamp::MIN);
    }
    cluster
}

fn owner(cluster: &Cluster, address: &str, at: i64) -> Option<String> {
    cluster.endpoint_at(ip(address), t(at), false).map(|e| e.name.to_string())
}

#[test]
fn no_object_no_cluster() {
    let mut c = Cluster::new(arc("node-1"));
    assert!(c.is_empty());
    assert_eq!(c.version(), 0);
    let object = set(None, "s", &["10.0.0.0/8"]);
    c.apply(object.clone(), t(1));
    assert!(!c.is_empty());
    c.delete(&reference(&object), t(2));
    assert!(!c.is_empty(), "a cluster that was emptied is still a cluster");
}

#[test]
fn pod_is_a_workload_endpoint() {
    let mut p = pod("web-7d9f-x", "node-1", &["10.1.0.1", "fd00::1"]);
    p.generate_name = Some(arc("web-7d9f-"));
    p.labels = labels(&[("app", "web"), ("projectcalico.org/x", "kept")]);
    p.created = Some(t(5));
    let c = cluster([Object::Pod(p)]);
    assert!(c.endpoint_at(ip("10.1.0.1"), Timestamp(i64::MAX), false).is_some(), "at the end of time");
    for address in ["10.1.0.1", "fd00::1", "::ffff:10.1.0.1"] {
        let e = c.endpoint_at(ip(address), t(100), false).unwrap();
        assert_eq!(e.kind, EndpointKind::Wep);
        assert_eq!(e.namespace.as_deref(), Some("ns"));
        assert_eq!((&*e.name, &*e.name_aggr), ("web-7d9f-x", "web-7d9f-*"));
        assert_eq!(e.labels.get("projectcalico.org/x").map(|v| &**v), Some("kept"));
        assert!(c.is_local(e));
    }
    assert_eq!(c.endpoint_at(ip("10.1.0.2"), t(100), true), None);
}

#[test]
fn pod_without_generate_name_keeps_its_name() {
    let mut p = pod("solo", "node-2", &["10.1.0.1"]);
    p.generate_name = Some(arc(""));
    let c = cluster([Object::Pod(p)]);
    let e = c.endpoint_at(ip("10.1.0.1"), t(0), false).unwrap();
    assert_eq!(&*e.name_aggr, "solo");
    assert!(!c.is_local(e));
}

#[test]
fn finished_and_host_network_pods_own_nothing() {
    let mut finished = pod("job", "node-1", &["10.1.0.1"]);
    finished.finished = true;
    let mut host = pod("proxy", "node-1", &["192.168.0.1"]);
    host.host_network = true;
    let c = cluster([Object::Pod(finished), Object::Pod(host), Object::Pod(pod("pending", "node-1", &[]))]);
    assert_eq!(c.address_count(), 0);
    assert!(c.names_local_node());
}

#[test]
fn a_pod_that_completes_gives_its_address_up() {
    let p = pod("job", "node-1", &["10.1.0.1"]);
    let mut c = cluster([Object::Pod(p.clone())]);
    c.apply(Object::Pod(Pod { finished: true, ..p }), t(100));
    assert_eq!(owner(&c, "10.1.0.1", 99).as_deref(), Some("job"));
    assert_eq!(owner(&c, "10.1.0.1", 109).as_deref(), Some("job"), "within the grace");
    assert_eq!(owner(&c, "10.1.0.1", 110), None);
    c.apply(Object::Pod(pod("next", "node-1", &["10.1.0.1"])), t(105));
    assert_eq!(owner(&c, "10.1.0.1", 106).as_deref(), Some("next"), "who holds it goes before the grace");
    assert_eq!(owner(&c, "10.1.0.1", 104).as_deref(), Some("job"));
    assert_eq!(owner(&c, "10.1.0.1", 99).as_deref(), Some("job"));
}

#[test]
fn a_deleted_pod_stays_resolvable_for_the_grace() {
    let p = Object::Pod(pod("a", "node-1", &["10.1.0.1"]));
    let mut c = cluster([p.clone()]);
    let e = c.endpoint_at(ip("10.1.0.1"), t(1), false).unwrap().clone();
    c.delete(&reference(&p), t(50));
    assert_eq!(c.current(&e), None);
    assert_eq!(owner(&c, "10.1.0.1", 59).as_deref(), Some("a"));
    assert_eq!(owner(&c, "10.1.0.1", 60), None);
    c.expire(t(59));
    assert_eq!(owner(&c, "10.1.0.1", 40).as_deref(), Some("a"), "not past its grace");
    let version = c.version();
    c.expire(t(60));
    assert_eq!(owner(&c, "10.1.0.1", 40), None);
    assert_eq!(c.address_count(), 0);
    assert!(c.version() > version);
}

#[test]
fn of_two_that_hold_an_address_the_latest_observed_wins() {
    let a = Object::Pod(pod("a", "node-1", &["10.1.0.1"]));
    let mut c = cluster([a.clone()]);
    c.apply(Object::Pod(pod("b", "node-1", &["10.1.0.1"])), t(10));
    assert_eq!(owner(&c, "10.1.0.1", 9).as_deref(), Some("a"));
    assert_eq!(owner(&c, "10.1.0.1", 10).as_deref(), Some("b"));
    // A new version of the older one does not take the address back.
    let mut relabelled = pod("a", "node-1", &["10.1.0.1"]);
    relabelled.labels = labels(&[("x", "y")]);
    c.apply(Object::Pod(relabelled), t(11));
    assert_eq!(owner(&c, "10.1.0.1", 12).as_deref(), Some("b"));
    c.delete(&reference(&a), t(13));
    assert_eq!(owner(&c, "10.1.0.1", 14).as_deref(), Some("b"));
}

#[test]
fn a_watch_event_that_came_late_counts_if_the_pod_existed() {
    let mut p = pod("a", "node-1", &["10.1.0.1"]);
    p.created = Some(t(7));
    let mut c = cluster([]);
    c.apply(Object::Pod(p), t(10));
    assert_eq!(owner(&c, "10.1.0.1", 6), None, "it was not created yet");
    assert_eq!(owner(&c, "10.1.0.1", 7).as_deref(), Some("a"));
    let half = Timestamp(t(6).0 + 500_000_000);
    assert_eq!(c.endpoint_at(ip("10.1.0.1"), half, false), None);
    c.apply(Object::Pod(pod("b", "node-1", &["10.1.0.2"])), t(10));
    assert_eq!(owner(&c, "10.1.0.2", 0).as_deref(), Some("b"), "nobody knows when it was created");
}

#[test]
fn a_pod_that_was_loaded_has_no_beginning_but_its_creation() {
    let mut p = pod("a", "node-1", &["10.1.0.1"]);
    let c = cluster([Object::Pod(p.clone())]);
    assert_eq!(owner(&c, "10.1.0.1", -1_000_000).as_deref(), Some("a"));
    p.created = Some(Timestamp(t(7).0 + 1));
    let c = cluster([Object::Pod(p)]);
    assert_eq!(owner(&c, "10.1.0.1", 6), None);
    assert_eq!(owner(&c, "10.1.0.1", 7).as_deref(), Some("a"), "creation is known in whole seconds");
}

#[test]
fn a_relabelled_pod_is_a_new_version_in_the_same_interval() {
    let p = pod("a", "node-1", &["10.1.0.1"]);
    let mut c = cluster([Object::Pod(p.clone())]);
    let old = c.endpoint_at(ip("10.1.0.1"), t(1), false).unwrap().clone();
    assert_eq!(c.labels_epoch(), 0);
    let relabelled = Pod { labels: labels(&[("x", "y")]), ..p.clone() };
    c.apply(Object::Pod(relabelled.clone()), t(100));
    assert_eq!(c.labels_epoch(), 1);
    let new = c.endpoint_at(ip("10.1.0.1"), t(1), false).unwrap();
    assert!(new.same_identity(&old));
    assert_eq!(new.labels, labels(&[("x", "y")]));
    assert_eq!(c.current(&old).unwrap().labels, new.labels);
    // The same again changes nothing.
    let version = c.version();
    c.apply(Object::Pod(relabelled), t(101));
    assert_eq!((c.version(), c.labels_epoch()), (version, 1));
}

#[test]
fn the_same_name_with_a_new_uid_is_another_endpoint() {
    let p = pod("sts-0", "node-1", &["10.1.0.1"]);
    let mut c = cluster([Object::Pod(p.clone())]);
    let old = c.endpoint_at(ip("10.1.0.1"), t(1), false).unwrap().clone();
    let next = Pod { uid: Some(arc("other")), labels: labels(&[("v", "2")]), ..p };
    c.apply(Object::Pod(next.clone()), t(100));
    assert_eq!(c.labels_epoch(), 0, "not a change of labels of a known endpoint");
    assert_eq!(c.current(&old), None);
    assert_eq!(c.endpoint_at(ip("10.1.0.1"), t(99), false), Some(&old));
    assert_eq!(c.endpoint_at(ip("10.1.0.1"), t(100), false).unwrap().uid.as_deref(), Some("other"));
    // A late delete of the old one does not hit its successor.
    let mut late = reference(&Object::Pod(next));
    late.uid = Some(arc("uid-sts-0"));
    c.delete(&late, t(101));
    assert_eq!(c.endpoint_at(ip("10.1.0.1"), t(200), false).unwrap().uid.as_deref(), Some("other"));
    late.uid = Some(arc("other"));
    c.delete(&late, t(102));
    assert_eq!(owner(&c, "10.1.0.1", 200), None);
}

#[test]
fn a_pod_that_is_being_deleted_gives_way_to_who_has_its_address_since() {
    let old = Pod { deletion: Some(t(40)), ..pod("z-old", "node-1", &["10.1.0.1"]) };
    let new = Pod { created: Some(t(50)), ..pod("a-new", "node-1", &["10.1.0.1"]) };
    // Both are there when the agent starts, in either order.
    for pods in [[old.clone(), new.clone()], [new.clone(), old.clone()]] {
        let c = cluster(pods.map(Object::Pod));
        assert_eq!(owner(&c, "10.1.0.1", 49).as_deref(), Some("z-old"), "the new one was not created yet");
        assert_eq!(owner(&c, "10.1.0.1", 60).as_deref(), Some("a-new"));
    }
    // The news of the old one's deletion come late, and its status is told again after the new one's.
    let mut c = cluster([Object::Pod(Pod { deletion: None, ..old.clone() })]);
    c.apply(Object::Pod(new), t(60));
    c.apply(Object::Pod(old.clone()), t(61));
    assert_eq!(owner(&c, "10.1.0.1", 59).as_deref(), Some("z-old"));
    assert_eq!(owner(&c, "10.1.0.1", 70).as_deref(), Some("a-new"));
    // Told again as if it had lost its address in between.
    c.apply(Object::Pod(Pod { ips: vec![], ..old.clone() }), t(71));
    c.apply(Object::Pod(old.clone()), t(72));
    assert_eq!(owner(&c, "10.1.0.1", 80).as_deref(), Some("a-new"));
    // Nobody else has it: it is its own until its object is gone.
    let c = cluster([Object::Pod(old)]);
    assert_eq!(owner(&c, "10.1.0.1", 45).as_deref(), Some("z-old"));
}

#[test]
fn an_address_is_a_pods_own_since_its_network_is_ready_however_late_that_is_told() {
    let old = pod("old", "node-1", &["10.1.0.1"]);
    let leaving = Pod { deletion: Some(t(40)), ..old.clone() };
    let new = |networked| {
        Object::Pod(Pod { networked, created: Some(t(45)), ..pod("new", "node-1", &["10.1.0.1"]) })
    };
    let mut told_late = cluster([Object::Pod(old.clone()), Object::Pod(leaving)]);
    let mut deleted = told_late.clone();
    told_late.apply(new(Some(t(52))), t(55));
    deleted.delete(&reference(&Object::Pod(old)), t(51));
    deleted.apply(new(Some(t(52))), t(55));
    for c in [&told_late, &deleted] {
        assert_eq!(owner(c, "10.1.0.1", 50).as_deref(), Some("old"));
        assert_eq!(owner(c, "10.1.0.1", 53).as_deref(), Some("new"));
    }
    // The clock of a node that is far behind names nobody wrongly for longer than the grace; one ahead says nothing.
    let mut behind = cluster([Object::Pod(pod("old", "node-1", &["10.1.0.1"]))]);
    let mut ahead = behind.clone();
    behind.apply(new(Some(t(1))), t(1000));
    assert_eq!(owner(&behind, "10.1.0.1", 989).as_deref(), Some("old"));
    ahead.apply(new(Some(t(2000))), t(1000));
    assert_eq!(owner(&ahead, "10.1.0.1", 999).as_deref(), Some("old"));
    assert_eq!(owner(&ahead, "10.1.0.1", 1001).as_deref(), Some("new"));
}

#[test]
fn an_address_that_moves_away_is_closed_and_the_others_stay() {
    let p = pod("a", "node-1", &["10.1.0.1", "fd00::1"]);
    let mut c = cluster([Object::Pod(p.clone())]);
    c.apply(Object::Pod(Pod { ips: vec![ip("10.1.0.9"), ip("fd00::1")], ..p }), t(10));
    assert_eq!(owner(&c, "10.1.0.1", 9).as_deref(), Some("a"));
    assert_eq!(owner(&c, "10.1.0.1", 20), None);
    assert_eq!(owner(&c, "10.1.0.9", 20).as_deref(), Some("a"));
    assert_eq!(owner(&c, "fd00::1", 20).as_deref(), Some("a"));
}

#[test]
fn a_clone_is_a_snapshot() {
    let a = Object::Pod(pod("a", "node-1", &["10.1.0.1"]));
    let mut c = cluster([a.clone(), set(None, "s", &["8.8.8.0/24"])]);
    let snapshot = c.clone();
    c.delete(&reference(&a), t(1));
    c.apply(Object::Pod(pod("b", "node-1", &["10.1.0.1"])), t(1));
    c.delete(&reference(&set(None, "s", &[])), t(1));
    assert_eq!(owner(&snapshot, "10.1.0.1", 50).as_deref(), Some("a"));
    assert!(snapshot.network_set(ip("8.8.8.8"), None).is_some());
    assert!(c.network_set(ip("8.8.8.8"), None).is_none());
    assert!(c.version() > snapshot.version());
}

#[test]
fn host_endpoint_names_and_locality() {
    let mut h = hep("node-1-eth0", "node-1", "eth0", &["192.168.5.5"]);
    h.labels = labels(&[("role", "node")]);
    let mut c = cluster([Object::HostEndpoint(h.clone())]);
    let e = c.endpoint_at(ip("192.168.5.5"), t(0), false).unwrap().clone();
    assert_eq!((e.kind, e.namespace.as_deref()), (EndpointKind::Hep, None));
    assert_eq!((&*e.name, &*e.name_aggr), ("node-1-eth0", "node-1"));
    assert!(!e.is_bare_node && c.is_local(&e) && c.is_node_address(e_ip()) && c.names_local_node());
    h.labels = labels(&[("role", "other")]);
    c.apply(Object::HostEndpoint(h), t(5));
    assert_eq!(c.labels_epoch(), 1);
    assert_eq!(c.current(&e).unwrap().labels, labels(&[("role", "other")]));
    fn e_ip() -> IpAddr {
        ip("192.168.5.5")
    }
}

#[test]
fn wildcard_host_endpoint_owns_the_addresses_of_its_node() {
    let wildcard = Object::HostEndpoint(hep("auto", "node-1", "*", &[]));
    let first = [wildcard.clone(), node("node-1", &["192.168.0.1"])];
    let second = [node("node-1", &["192.168.0.1"]), wildcard.clone()];
    for objects in [first, second] {
        let mut c = cluster(objects);
        assert_eq!(owner(&c, "192.168.0.1", 5).as_deref(), Some("auto"));
        c.apply(node("node-1", &["192.168.0.2"]), t(10));
        assert_eq!(owner(&c, "192.168.0.1", 25), None);
        assert_eq!(owner(&c, "192.168.0.2", 25).as_deref(), Some("auto"));
        c.delete(&reference(&node("node-1", &[])), t(30));
        assert_eq!(owner(&c, "192.168.0.2", 41), None);
        c.delete(&reference(&wildcard), t(50));
        assert!(!c.names_local_node());
    }
    // One interface without expected addresses: nobody knows which they are.
    let c =
        cluster([Object::HostEndpoint(hep("eth0", "node-1", "eth0", &[])), node("node-1", &["192.168.0.1"])]);
    assert_eq!(owner(&c, "192.168.0.1", 5), None);
}

#[test]
fn a_host_endpoint_of_one_interface_goes_before_the_wildcard() {
    let one = Object::HostEndpoint(hep("eth0", "node-1", "eth0", &["192.168.0.1"]));
    let all = Object::HostEndpoint(hep("auto", "node-1", "*", &["192.168.0.1"]));
    for objects in [[one.clone(), all.clone()], [all, one]] {
        assert_eq!(owner(&cluster(objects), "192.168.0.1", 0).as_deref(), Some("eth0"));
    }
}

#[test]
fn the_bare_node_stands_for_itself_only_when_asked() {
    let c = cluster([node("node-1", &["192.168.0.1"]), node("node-2", &["192.168.0.2"])]);
    assert_eq!(c.endpoint_at(ip("192.168.0.1"), t(0), false), None);
    assert_eq!(c.endpoint_at(ip("192.168.0.2"), t(0), true), None);
    let e = c.endpoint_at(ip("192.168.0.1"), t(0), true).unwrap();
    assert!(e.is_bare_node && c.is_local(e));
    assert_eq!((e.kind, &*e.name, &*e.name_aggr), (EndpointKind::Hep, "node-1", "node-1"));
    assert_eq!(c.current(e), Some(e));
    let mut c = c.clone();
    c.apply(Object::HostEndpoint(hep("h", "node-1", "eth0", &["192.168.0.1"])), t(5));
    assert!(!c.endpoint_at(ip("192.168.0.1"), t(6), true).unwrap().is_bare_node);
}

#[test]
fn node_addresses() {
    let mut c = cluster([
        node("node-1", &["192.168.0.1", "10.244.0.0"]),
        node("node-2", &["192.168.0.2"]),
        Object::HostEndpoint(hep("other", "node-2", "eth0", &["172.16.0.2"])),
        Object::HostEndpoint(hep("mine", "node-1", "eth1", &["172.16.0.1", "192.168.0.1"])),
    ]);
    for (address, expected) in [
        ("192.168.0.1", true),
        ("::ffff:192.168.0.1", true),
        ("10.244.0.0", true),
        ("172.16.0.1", true),
        ("192.168.0.2", false),
        ("172.16.0.2", false),
    ] {
        assert_eq!(c.is_node_address(ip(address)), expected, "{address}");
    }
    c.delete(&reference(&Object::HostEndpoint(hep("mine", "node-1", "", &[]))), t(0));
    assert!(!c.is_node_address(ip("172.16.0.1")));
    assert!(c.is_node_address(ip("192.168.0.1")), "the Node still has it");
}

#[test]
fn who_names_the_local_node() {
    let c = cluster([node("b", &[]), Object::Pod(pod("p", "a", &[])), node("a", &[])]);
    assert!(!c.names_local_node());
    assert_eq!(c.node_names(), [arc("a"), arc("b")]);
    let p = Object::Pod(pod("p", "node-1", &[]));
    let mut c = cluster([p.clone()]);
    assert!(c.names_local_node());
    c.apply(Object::Pod(pod("p", "node-2", &[])), t(1));
    assert!(!c.names_local_node());
    c.apply(p.clone(), t(2));
    c.delete(&reference(&p), t(3));
    assert!(!c.names_local_node());
}

#[test]
fn private_and_public() {
    for (address, rfc1918, extended) in [
        ("10.0.0.1", "pvt", "pvt"),
        ("172.16.0.1", "pvt", "pvt"),
        ("172.31.255.255", "pvt", "pvt"),
        ("172.32.0.0", "pub", "pub"),
        ("192.168.1.1", "pvt", "pvt"),
        ("::ffff:192.168.1.1", "pvt", "pvt"),
        ("8.8.8.8", "pub", "pub"),
        ("127.0.0.1", "pub", "pvt"),
        ("169.254.1.1", "pub", "pvt"),
        ("100.64.0.1", "pub", "pvt"),
        ("100.127.255.255", "pub", "pvt"),
        ("100.128.0.0", "pub", "pub"),
        ("224.0.0.1", "pub", "pub"),
        ("::1", "pub", "pvt"),
        ("fe80::1", "pub", "pvt"),
        ("fd00::1", "pub", "pvt"),
        ("2001:db8::1", "pub", "pub"),
    ] {
        assert_eq!(private_or_public(ip(address), false), rfc1918, "{address}");
        assert_eq!(private_or_public(ip(address), true), extended, "{address}");
    }
}

#[test]
fn a_relist_swaps_whole() {
    let mut c = cluster([
        Object::Pod(pod("gone", "node-1", &["10.1.0.1"])),
        Object::Pod(pod("stays", "node-1", &["10.1.0.2"])),
        set(None, "s", &["8.8.8.0/24"]),
    ]);
    let fresh = vec![
        Object::Pod(pod("stays", "node-1", &["10.1.0.2"])),
        Object::Pod(pod("new", "node-1", &["10.1.0.3"])),
    ];
    c.replace_all(ObjectKind::Pod, fresh, t(100), t(100));
    assert_eq!(c.count(ObjectKind::Pod), 2);
    assert_eq!(c.count(ObjectKind::GlobalNetworkSet), 1);
    assert_eq!(owner(&c, "10.1.0.1", 99).as_deref(), Some("gone"));
    assert_eq!(owner(&c, "10.1.0.1", 120), None);
    assert_eq!(owner(&c, "10.1.0.2", 50).as_deref(), Some("stays"), "its ownership went on");
    assert_eq!(owner(&c, "10.1.0.3", 120).as_deref(), Some("new"));
}

#[test]
fn what_is_kept_of_an_address_is_bounded() {
    let mut c = cluster([]);
    for i in 0..200 {
        let p = Object::Pod(pod(&format!("p{i}"), "node-1", &["10.1.0.1"]));
        c.apply(p.clone(), t(i * 2));
        c.delete(&reference(&p), t(i * 2 + 1));
    }
    assert_eq!(c.forgotten_owners(), 200 - 8);
    assert_eq!(owner(&c, "10.1.0.1", 398).as_deref(), Some("p199"));
    c.expire(t(1000));
    assert_eq!(c.address_count(), 0);
    for i in 0..200 {
        c.apply(Object::Pod(pod(&format!("q{i}"), "node-1", &["10.1.0.1"])), t(2000 + i));
    }
    assert_eq!(c.forgotten_owners(), (200 - 8) + (200 - 16));
    assert_eq!(owner(&c, "10.1.0.1", 9999).as_deref(), Some("q199"));
}

/// One pod event among many must not cost a rebuild: all but what it touches is shared with the snapshot before.
#[test]
fn one_event_among_many_pods_copies_only_what_it_touches() {
    let many = 20_000_u32;
    let address = |i: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + i));
    let mut c = cluster(
        (0..many).map(|i| Object::Pod(Pod { ips: vec![address(i)], ..pod(&format!("p{i}"), "node-1", &[]) })),
    );
    let before = c.clone();
    let start = Instant::now();
    c.apply(
        Object::Pod(Pod { ips: vec![address(7)], labels: labels(&[("x", "y")]), ..pod("p7", "node-1", &[]) }),
        t(5),
    );
    let after = c.clone();
    eprintln!("one pod event and a new snapshot among {many} pods: {:?}", start.elapsed());
    for i in 0..many {
        let of = |c: &Cluster| c.endpoint_at(address(i), t(9), false).cloned().unwrap();
        assert_eq!(Arc::ptr_eq(&of(&before), &of(&after)), i != 7, "p{i}");
    }
}

#[test]
fn pods_with_the_same_labels_share_them_and_those_of_gone_pods_are_forgotten() {
    let labelled = |name: &str, version: usize| {
        let labels = labels(&[("app", "web"), ("version", &version.to_string())]);
        Object::Pod(Pod { labels, ..pod(name, "n1", &[]) })
    };
    let mut cluster = cluster([labelled("a", 0), labelled("b", 0)]);
    let shown = |cluster: &Cluster, name: &str| {
        let name = ObjectName { namespace: Some(arc("ns")), name: arc(name) };
        cluster.pods.get(&name).unwrap().endpoint.labels.clone()
    };
    assert!(shown(&cluster, "a").same(&shown(&cluster, "b")));
    for version in 1..1_000 {
        cluster.apply(labelled("b", version), t(0));
    }
    assert!(cluster.shared.label_sets() < 100, "{}", cluster.shared.label_sets());
    cluster.apply(labelled("b", 0), t(0));
    assert!(shown(&cluster, "a").same(&shown(&cluster, "b")));
}
