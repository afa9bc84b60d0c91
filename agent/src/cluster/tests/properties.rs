//! Random histories, sets and services against naive references.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::services::service_name;
use super::*;

/// A naive history: every interval there ever was, looked at in full.
#[derive(Default)]
struct Naive(Vec<NaiveInterval>);

struct NaiveInterval {
    ip: u8,
    pod: u8,
    uid: u8,
    created: Option<i64>,
    from: Timestamp,
    until: Option<Timestamp>,
}

impl Naive {
    fn open(&mut self, ip: u8, pod: u8, uid: u8, created: Option<i64>, from: Timestamp) {
        self.0.push(NaiveInterval { ip, pod, uid, created, from, until: None });
    }

    fn close(&mut self, ip: u8, pod: u8, at: Timestamp) {
        for i in self.0.iter_mut().filter(|i| i.ip == ip && i.pod == pod && i.until.is_none()) {
            i.until = Some(at);
        }
    }

    fn at(&self, ip: u8, now: Timestamp) -> Option<(u8, u8)> {
        let all: Vec<_> = self.0.iter().filter(|i| i.ip == ip).collect();
        let created = |i: &NaiveInterval| i.created.is_none_or(|s| s <= now.floor_seconds());
        let mut found = None;
        for i in &all {
            let begun = i.from <= now && (i.from != Timestamp::MIN || created(i));
            if begun && i.until.is_none_or(|until| now < until) {
                found = Some(*i); // the latest observed is the last
            }
        }
        if found.is_none() {
            for i in &all {
                if let Some(until) = i.until
                    && until <= now
                    && now.0 < until.0 + 10_000_000_000
                    && found.is_none_or(|f: &NaiveInterval| f.until <= i.until)
                {
                    found = Some(*i);
                }
            }
        }
        if found.is_none() {
            for i in &all {
                if i.from > now && created(i) && found.is_none_or(|f: &NaiveInterval| i.from <= f.from) {
                    found = Some(*i);
                }
            }
        }
        found.map(|i| (i.pod, i.uid))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Apply { pod: u8, uid: u8, ips: Vec<u8>, finished: bool, host: bool, label: u8, created: Option<i64> },
    Delete { pod: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let apply = (
        0..4_u8,
        0..2_u8,
        proptest::collection::btree_set(0..3_u8, 0..3),
        proptest::bool::weighted(0.15),
        proptest::bool::weighted(0.1),
        0..3_u8,
        proptest::option::of(0..60_i64),
    )
        .prop_map(|(pod, uid, ips, finished, host, label, created)| Step::Apply {
            pod,
            uid,
            ips: ips.into_iter().collect(),
            finished,
            host,
            label,
            created,
        });
    prop_oneof![3 => apply, 1 => (0..4_u8).prop_map(|pod| Step::Delete { pod })]
}

fn address(i: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, i])
}

proptest! {
    /// Ownership over random histories equals the naive history (short ones: longer than what is kept of an address
    /// is another test).
    #[test]
    fn ownership_equals_a_naive_history(
        loaded in 0..4_usize,
        steps in proptest::collection::vec((0..15_i64, step()), 1..12),
        queries in proptest::collection::vec((0..3_u8, -5..200_i64), 30),
    ) {
        let mut cluster = Cluster::new(arc("node-1"));
        let mut naive = Naive::default();
        // pod -> (uid, ips, created)
        type Held = (u8, Vec<u8>, Option<i64>);
        let mut known: BTreeMap<u8, Held> = Default::default();
        let mut clock = 0;
        for (index, (passed, step)) in steps.into_iter().enumerate() {
            clock += passed;
            let now = if index < loaded { Timestamp::MIN } else { t(clock) };
            match step {
                Step::Apply { pod: p, uid, ips, finished, host, label, created } => {
                    let owned: Vec<u8> = if finished || host { vec![] } else { ips.clone() };
                    // What does not change in a pod's life: the creation.
                    let old = known.get(&p).cloned().filter(|(old_uid, ..)| *old_uid == uid);
                    let created = old.as_ref().map_or(created, |(_, _, created)| *created);
                    cluster.apply(Object::Pod(Pod {
                        namespace: arc("ns"),
                        name: arc(&p.to_string()),
                        uid: Some(arc(&uid.to_string())),
                        labels: labels(&[("l", &label.to_string())]),
                        ips: ips.into_iter().map(address).collect(),
                        created: created.map(t),
                        finished,
                        host_network: host,
                        ..Pod::default()
                    }), now);
                    let before = match old {
                        Some((_, before, _)) => before,
                        None => {
                            for ip in 0..3 { naive.close(ip, p, now); }
                            vec![]
                        }
                    };
                    for ip in before.iter().filter(|ip| !owned.contains(ip)) { naive.close(*ip, p, now); }
                    for ip in owned.iter().filter(|ip| !before.contains(ip)) {
                        naive.open(*ip, p, uid, created, now);
                    }
                    known.insert(p, (uid, owned, created));
                }
                Step::Delete { pod: p } => {
                    let name = arc(&p.to_string());
                    let namespace = Some(arc("ns"));
                    cluster.delete(&ObjectRef { kind: ObjectKind::Pod, namespace, name, uid: None }, now);
                    for ip in 0..3 { naive.close(ip, p, now); }
                    known.remove(&p);
                }
            }
            naive.0.retain(|i| i.until != Some(Timestamp::MIN));
        }
        for (ip, second) in queries {
            for now in [t(second), Timestamp(t(second).0 + 999_999_999)] {
                let got = cluster.endpoint_at(address(ip), now, false);
                let got = got.map(|e| (e.name.parse().unwrap(), e.uid.as_deref().unwrap().parse().unwrap()));
                prop_assert_eq!(got, naive.at(ip, now), "address {} at {}", ip, second);
            }
        }
    }

    /// Expiry forgets only what no lookup from then on may ask for.
    #[test]
    fn expiry_changes_no_later_answer(
        steps in proptest::collection::vec((0..15_i64, step()), 1..12),
        now in 0..150_i64,
        queries in proptest::collection::vec((0..3_u8, 0..60_i64), 20),
    ) {
        let mut kept = Cluster::new(arc("node-1"));
        let mut clock = 0;
        for (passed, step) in steps {
            clock += passed;
            match step {
                Step::Apply { pod: p, uid, ips, finished, .. } => kept.apply(Object::Pod(Pod {
                    namespace: arc("ns"),
                    name: arc(&p.to_string()),
                    uid: Some(arc(&uid.to_string())),
                    ips: ips.into_iter().map(address).collect(),
                    finished,
                    ..Pod::default()
                }), t(clock)),
                Step::Delete { pod: p } => kept.delete(&ObjectRef {
                    kind: ObjectKind::Pod,
                    namespace: Some(arc("ns")),
                    name: arc(&p.to_string()),
                    uid: None,
                }, t(clock)),
            }
        }
        let mut expired = kept.clone();
        expired.expire(t(now));
        for (ip, later) in queries {
            let at = t(now + later);
            prop_assert_eq!(kept.endpoint_at(address(ip), at, false), expired.endpoint_at(address(ip), at, false));
        }
        expired.expire(t(1_000_000));
        prop_assert!(expired.address_count() <= 3);
    }

    /// Network sets equal a naive reference: all sets, filtered and sorted.
    #[test]
    fn network_sets_equal_a_naive_reference(
        sets in proptest::collection::vec(
            (proptest::option::of(0..3_u8), 0..4_u8, proptest::collection::vec((0..8_u32, 26..=32_u8), 1..4)), 0..12),
        deleted in proptest::collection::vec(any::<bool>(), 12),
        peer in proptest::option::of(0..3_u8),
    ) {
        // "a", "a-" and "a/…" sort otherwise as strings than as pairs.
        let namespaces = ["a", "a-b", "b"];
        let mut cluster = Cluster::new(arc("node-1"));
        let mut reference: BTreeMap<(Option<&str>, String), Vec<IpNet>> = Default::default();
        for (index, (namespace, name, nets)) in sets.iter().enumerate() {
            let namespace = namespace.map(|n| namespaces[usize::from(n)]);
            let nets: Vec<IpNet> = nets.iter().map(|(host, len)| {
                IpNet::new(IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + host * 7)), *len).unwrap().trunc()
            }).collect();
            let object = Object::NetworkSet(NetworkSet {
                namespace: namespace.map(arc), name: arc(&name.to_string()), labels: Labels::default(), nets: nets.clone(),
            });
            if deleted[index] {
                cluster.delete(&object.reference(), t(0));
                reference.remove(&(namespace, name.to_string()));
            } else {
                cluster.apply(object, t(0));
                reference.insert((namespace, name.to_string()), nets);
            }
        }
        let peer = peer.map(|n| namespaces[usize::from(n)]);
        for host in 0..64_u32 {
            let ip = IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + host));
            let mut candidates: Vec<_> = reference.iter().flat_map(|((namespace, name), nets)| {
                nets.iter().filter(|net| net.contains(&ip)).map(move |net| {
                    let category = match namespace { None => 1, n if *n == peer => 0, _ => 2 };
                    let key = namespace.map_or(name.clone(), |n| format!("{n}/{name}"));
                    (category, std::cmp::Reverse(net.prefix_len()), key)
                })
            }).collect();
            candidates.sort();
            let expected = candidates.first().map(|(_, _, key)| key.clone());
            let got = cluster.network_set(ip, peer).map(|e| {
                e.namespace.as_ref().map_or(e.name.to_string(), |n| format!("{n}/{}", e.name))
            });
            prop_assert_eq!(got, expected);
        }
    }

    /// What is said of services does not depend on the order of events, and deleting undoes applying.
    #[test]
    fn services_do_not_depend_on_order(
        services in proptest::collection::vec((0..3_u8, 0..3_u8, 0..3_u8, 0..2_u8), 0..6),
        ephemeral in proptest::collection::vec((3..6_u8, 0..3_u8, 0..3_u8, 0..2_u8), 0..4),
    ) {
        let build = |(name, address, port_name, node_port): &(u8, u8, u8, u8)| {
            let port_name = ["a", "b", "c"][usize::from(*port_name)];
            let address = format!("10.96.0.{address}");
            let node_port = (*node_port == 1).then_some(30000);
            service(&name.to_string(), &[&address], &[(Some(port_name), 80, node_port)])
        };
        let last: BTreeMap<_, _> = services.iter().map(|s| (s.0, s)).collect();
        let forward = cluster(services.iter().map(|s| Object::Service(build(s))));
        let mut backward = cluster(last.values().rev().map(|s| Object::Service(build(s))));
        for s in &ephemeral { backward.apply(Object::Service(build(s)), t(0)); }
        for s in &ephemeral { backward.delete(&Object::Service(build(s)).reference(), t(0)); }
        for i in 0..3 {
            let address = format!("10.96.0.{i}");
            for port in [80, 30000] {
                prop_assert_eq!(service_name(&forward, &address, port, true), service_name(&backward, &address, port, true));
            }
        }
    }
}
