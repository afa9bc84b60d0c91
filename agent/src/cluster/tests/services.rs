//! What an address stands for that is no endpoint: network sets and services.

use super::*;

#[test]
fn network_sets_by_category_then_length_then_key() {
    let c = cluster([
        set(Some("own"), "wide", &["10.0.0.0/8"]),
        set(Some("own"), "wider", &["0.0.0.0/0"]),
        set(None, "exact", &["10.1.2.3/32"]),
        set(None, "b", &["11.0.0.0/8"]),
        set(None, "a", &["11.0.0.0/8"]),
        set(Some("other"), "x", &["12.0.0.0/8", "10.1.2.3/32"]),
        set(Some("a"), "z", &["13.0.0.0/8"]),
        set(Some("a-b"), "z", &["13.0.0.0/8"]),
        set(None, "six", &["fd00::/8"]),
    ]);
    let name = |address: &str, peer: Option<&str>| {
        let e = c.network_set(ip(address), peer)?;
        assert_eq!((e.kind, &e.name), (EndpointKind::Ns, &e.name_aggr));
        Some((e.namespace.as_deref().map(str::to_owned), e.name.to_string()))
    };
    let named = |ns: Option<&str>, n: &str| Some((ns.map(str::to_owned), n.to_owned()));
    assert_eq!(name("10.1.2.3", Some("own")), named(Some("own"), "wide"), "category beats length");
    assert_eq!(name("10.1.2.3", Some("none")), named(None, "exact"));
    assert_eq!(name("10.1.2.3", None), named(None, "exact"));
    assert_eq!(name("10.1.2.3", Some("other")), named(Some("other"), "x"));
    assert_eq!(name("10.9.9.9", None), named(Some("own"), "wide"), "others, longest");
    assert_eq!(name("11.0.0.1", None), named(None, "a"));
    // "a-b/z" < "a/z"
    assert_eq!(name("13.0.0.1", None), named(Some("a-b"), "z"));
    assert_eq!(name("fd00::5", None), named(None, "six"));
    assert_eq!(name("::ffff:11.0.0.1", None), named(None, "a"));
    assert_eq!(name("2001:db8::1", None), None);
}

#[test]
fn a_changed_network_set_leaves_its_old_prefixes() {
    let mut c = cluster([set(None, "s", &["10.0.0.0/8", "11.0.0.0/8"])]);
    let old = c.network_set(ip("10.0.0.1"), None).unwrap().clone();
    let Object::NetworkSet(mut changed) = set(None, "s", &["11.0.0.0/8", "12.0.0.0/8"]) else {
        unreachable!()
    };
    changed.labels = labels(&[("a", "b")]);
    c.apply(Object::NetworkSet(changed), t(1));
    assert_eq!(c.network_set(ip("10.0.0.1"), None), None);
    assert_eq!(c.network_set(ip("12.0.0.1"), None), c.current(&old));
    assert_eq!(c.network_set(ip("11.0.0.1"), None).unwrap().labels, labels(&[("a", "b")]));
    assert_eq!(c.labels_epoch(), 1);
}

pub fn service_name(
    c: &Cluster,
    address: &str,
    port: u16,
    dnat: bool,
) -> Option<(String, String, String, u16)> {
    let s = c.service(Proto::TCP, ip(address), port, dnat)?;
    Some((s.namespace.to_string(), s.name.to_string(), s.port_name.to_string(), s.port))
}

fn said(ns: &str, name: &str, port_name: &str, port: u16) -> Option<(String, String, String, u16)> {
    Some((ns.to_owned(), name.to_owned(), port_name.to_owned(), port))
}

#[test]
fn services_by_address_and_node_port() {
    let web = Object::Service(service(
        "web",
        &["10.96.0.1", "fd00:96::1", "1.2.3.4"],
        &[(Some("http"), 80, Some(30080))],
    ));
    let mut c = cluster([web.clone(), node("node-2", &["192.168.0.2"])]);
    for address in ["10.96.0.1", "fd00:96::1", "1.2.3.4", "::ffff:10.96.0.1"] {
        assert_eq!(service_name(&c, address, 80, true), said("ns", "web", "http", 80), "{address}");
    }
    assert_eq!(service_name(&c, "10.96.0.1", 81, true), None);
    assert_eq!(c.service(Proto::UDP, ip("10.96.0.1"), 80, true), None);
    // A node port: any address when it was DNATed, else an address of a node.
    assert_eq!(service_name(&c, "7.7.7.7", 30080, true), said("ns", "web", "http", 30080));
    assert_eq!(service_name(&c, "7.7.7.7", 30080, false), None);
    assert_eq!(service_name(&c, "192.168.0.2", 30080, false), said("ns", "web", "http", 30080));
    c.apply(Object::Service(service("web", &["10.96.0.1"], &[(None, 80, None)])), t(1));
    assert_eq!(service_name(&c, "10.96.0.1", 80, true), said("ns", "web", "-", 80));
    assert_eq!(service_name(&c, "7.7.7.7", 30080, true), None);
    assert_eq!(service_name(&c, "1.2.3.4", 80, true), None);
    c.delete(&reference(&web), t(2));
    assert_eq!(service_name(&c, "10.96.0.1", 80, true), None);
}

#[test]
fn services_that_tie() {
    let a = service("a", &["1.1.1.1"], &[(Some("http"), 80, None)]);
    let b = service("b", &["1.1.1.1"], &[(Some("http"), 80, None)]);
    let far = Service { namespace: arc("far"), ..service("b", &["1.1.1.1"], &[(Some("web"), 80, None)]) };
    let mut c = cluster([Object::Service(a.clone()), Object::Service(b)]);
    assert_eq!(service_name(&c, "1.1.1.1", 80, true), said("ns", "*", "http", 80));
    c.apply(Object::Service(far), t(0));
    assert_eq!(service_name(&c, "1.1.1.1", 80, true), said("*", "*", "*", 80));
    c.delete(&reference(&Object::Service(a)), t(0));
    assert_eq!(service_name(&c, "1.1.1.1", 80, true), said("*", "b", "*", 80));
    let two = service("two", &["2.2.2.2"], &[(Some("x"), 80, None), (Some("y"), 80, None)]);
    let c = cluster([Object::Service(two)]);
    assert_eq!(service_name(&c, "2.2.2.2", 80, true), said("ns", "two", "*", 80));
}
