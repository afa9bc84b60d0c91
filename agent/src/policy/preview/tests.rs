//! Candidates stand for all that policies can tell apart; a table of what is certain and what is not.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::atoms::{Atoms, range};
use super::*;
use crate::model::{Proto, Timestamp};
use crate::policy::reference;
use crate::snapshot::World;
use crate::watch::{Decoded, decode};

fn world(objects: impl IntoIterator<Item = Value>) -> World {
    let mut world = World::new("node-1".into());
    world.inhabit();
    for object in objects {
        match decode(object).unwrap() {
            Decoded::Object(object) => world.apply(object, Timestamp::MIN),
            other => panic!("{other:?}"),
        }
    }
    world
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn pod(name: &str, ip: &str, labels: Value) -> Value {
    let workload = name.rsplit_once('-').unwrap().0;
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "generateName": format!("{workload}-"), "namespace": "shop", "labels": labels},
        "spec": {"nodeName": "node-1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip}})
}

fn policy(ingress: Value) -> Value {
    json!({"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"selector": "app == 'web'", "types": ["Ingress"], "ingress": ingress}})
}

fn shop() -> Vec<Value> {
    vec![
        namespace("shop"),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.5.1"}]}}),
        pod("client-a", "10.1.0.1", json!({"app": "client"})),
        pod("client-b", "10.1.0.2", json!({"app": "client", "canary": "yes"})),
        pod("web-c", "10.1.0.3", json!({"app": "web"})),
        json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet", "metadata": {"name": "set"},
            "spec": {"nets": ["203.0.113.0/24"]}}),
    ]
}

fn end(kind: EndpointKind, name: Option<&str>, name_aggr: &str, ips: &[&str], port: Option<u16>) -> SeenEnd {
    SeenEnd {
        kind,
        namespace: (kind == EndpointKind::Wep).then(|| "shop".into()),
        name: name.map(Into::into),
        name_aggr: name_aggr.into(),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        port,
        endpoint: None,
    }
}

fn flow(source: SeenEnd, dest: SeenEnd) -> SeenFlow {
    SeenFlow {
        proto: Proto::TCP,
        icmp: None,
        ends: [source, dest],
        reporter: Direction::Ingress,
        passed: None,
        service: None,
        is_exempt: Some(false),
    }
}

fn web(port: Option<u16>) -> SeenEnd {
    end(EndpointKind::Wep, None, "web-*", &[], port)
}

fn clients() -> SeenEnd {
    end(EndpointKind::Wep, None, "client-*", &[], None)
}

/// What happens to this flow when the policy `now` becomes `then`.
fn outcome(now: Value, then: Value, flow: &SeenFlow) -> Outcome {
    let before = world(shop().into_iter().chain([policy(now)]));
    let after = world(shop().into_iter().chain([policy(then)]));
    let directory = Directory::of([(&before.cluster, &before.policies), (&after.cluster, &after.policies)]);
    let candidates = match directory.candidates(flow, &before.cluster) {
        Ok(candidates) => candidates,
        Err(why) => return untold(why),
    };
    let [mut first, mut second] = [Evaluator::default(), Evaluator::default()];
    compare(
        &mut View { cluster: &before.cluster, policies: &before.policies, evaluator: &mut first },
        &mut View { cluster: &after.cluster, policies: &after.policies, evaluator: &mut second },
        flow,
        &candidates,
        false,
    )
}

fn allow() -> Value {
    json!([{"action": "Allow"}])
}

#[test]
fn pods_without_a_name_are_all_of_their_workload() {
    let canary = json!([{"action": "Deny", "source": {"selector": "has(canary)"}}, {"action": "Allow"}]);
    let uncertain = outcome(allow(), canary.clone(), &flow(clients(), web(Some(80))));
    assert_eq!((uncertain.change, uncertain.why), (Change::Uncertain, "which source was aggregated away"));
    assert_eq!(
        uncertain.possible.into_iter().collect::<Vec<_>>(),
        [Change::BecomesDenied, Change::StaysAllowed]
    );
    // A name, or all addresses, tell; what all agree on is certain without.
    let named = end(EndpointKind::Wep, Some("client-b"), "client-*", &["10.1.0.2"], None);
    assert_eq!(outcome(allow(), canary.clone(), &flow(named, web(Some(80)))).change, Change::BecomesDenied);
    let listed = end(EndpointKind::Wep, None, "client-*", &["10.1.0.1"], None);
    assert_eq!(outcome(allow(), canary.clone(), &flow(listed, web(Some(80)))).change, Change::StaysAllowed);
    let clients_denied =
        json!([{"action": "Deny", "source": {"selector": "app == 'client'"}}, {"action": "Allow"}]);
    let certain = outcome(allow(), clients_denied, &flow(clients(), web(Some(80))));
    assert_eq!(certain.change, Change::BecomesDenied);
    assert_eq!(certain.after.unwrap().hit.rule, 0);
    // A pod that is gone is stood for by its workload; a workload that is gone by nobody.
    let gone = end(EndpointKind::Wep, Some("client-z"), "client-*", &["10.1.0.9"], None);
    assert_eq!(outcome(allow(), canary.clone(), &flow(gone, web(Some(80)))).change, Change::Uncertain);
    let unknown = end(EndpointKind::Wep, Some("x-z"), "x-*", &["10.1.0.9"], None);
    let untold = outcome(allow(), canary, &flow(unknown, web(Some(80))));
    assert_eq!(untold.why, "a pod and its workload are not in the cluster any more");
}

#[test]
fn ports_that_are_missing_are_all_that_rules_tell_apart() {
    let only =
        |ports: Value| json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": ports}}]);
    let port = |now, then| outcome(now, then, &flow(clients(), web(None)));
    assert_eq!(port(allow(), only(json!([80]))).change, Change::Uncertain);
    assert_eq!(port(allow(), only(json!(["http"]))).change, Change::Uncertain);
    assert_eq!(port(allow(), only(json!(["1:65535"]))).change, Change::StaysAllowed);
    assert_eq!(port(only(json!([80])), json!([{"action": "Deny"}])).change, Change::Uncertain);
    // What the log says of it rules out the ports that were not allowed.
    let passed = SeenFlow { passed: Some(true), ..flow(clients(), web(None)) };
    let became = outcome(only(json!([80])), json!([{"action": "Deny"}]), &passed);
    assert_eq!(became.change, Change::BecomesDenied);
    // A verdict that nothing explains rules out nothing.
    let denied = SeenFlow { passed: Some(false), ..flow(clients(), web(None)) };
    assert_eq!(outcome(allow(), allow(), &denied).change, Change::StaysAllowed);
    let of_source =
        json!([{"action": "Deny", "protocol": "TCP", "source": {"ports": ["1:1023"]}}, {"action": "Allow"}]);
    let source_port = outcome(allow(), of_source, &flow(clients(), web(Some(80))));
    assert!(source_port.why.contains("source"), "{source_port:?}");
}

#[test]
fn addresses_that_are_missing_are_all_that_networks_tell_apart() {
    let net = |name_aggr: &str| end(EndpointKind::Net, None, name_aggr, &[], None);
    let set = || end(EndpointKind::Ns, None, "set", &[], None);
    let deny = |cidr: &str| json!([{"action": "Deny", "source": {"nets": [cidr]}}, {"action": "Allow"}]);
    let change = |source, cidr: &str| outcome(allow(), deny(cidr), &flow(source, web(Some(80)))).change;
    assert_eq!(change(net("pub"), "198.51.100.0/24"), Change::Uncertain);
    assert_eq!(change(net("pub"), "10.0.0.0/8"), Change::StaysAllowed);
    assert_eq!(change(net("pvt"), "198.51.100.0/24"), Change::StaysAllowed);
    assert_eq!(change(net("pvt"), "10.9.0.0/16"), Change::Uncertain);
    // A flow from inside the set would have been named after it.
    assert_eq!(change(net("pub"), "203.0.113.0/24"), Change::StaysAllowed);
    assert_eq!(change(set(), "203.0.113.0/24"), Change::BecomesDenied);
    assert_eq!(change(set(), "203.0.113.0/25"), Change::Uncertain);
    assert_eq!(change(set(), "198.51.100.0/24"), Change::StaysAllowed);
    let by_set = json!([{"action": "Deny", "source": {"selector": "all()", "namespaceSelector": "global()"}}, {"action": "Allow"}]);
    assert_eq!(outcome(allow(), by_set, &flow(set(), web(Some(80)))).change, Change::BecomesDenied);
}

#[test]
fn the_node_itself_is_exempt_and_may_be_what_a_log_calls_private() {
    let deny = || json!([{"action": "Deny"}]);
    let node = end(EndpointKind::Net, None, "pvt", &["192.168.5.1"], None);
    assert_eq!(outcome(allow(), deny(), &flow(node, web(Some(80)))).change, Change::StaysAllowed);
    let some = end(EndpointKind::Net, None, "pvt", &[], None);
    // The log tells whether policies were asked; where it does not, either may have been.
    let told = flow(some.clone(), web(Some(80)));
    assert_eq!(outcome(allow(), deny(), &told).change, Change::BecomesDenied);
    let exempt = SeenFlow { is_exempt: Some(true), ..told.clone() };
    assert_eq!(outcome(allow(), deny(), &exempt).change, Change::StaysAllowed);
    let untold = SeenFlow { is_exempt: None, ..told };
    assert_eq!(outcome(allow(), deny(), &untold).change, Change::Uncertain);
}

fn nets() -> impl Strategy<Value = Vec<ipnet::IpNet>> {
    let net = (any::<u8>(), any::<u8>(), 8_u8..=32)
        .prop_map(|(a, b, len)| ipnet::IpNet::new(IpAddr::from([10, a & 3, b, a]), len).unwrap().trunc());
    prop::collection::vec(net, 0..8)
}

fn atoms(nets: &[ipnet::IpNet]) -> Atoms {
    let rules: Vec<Value> =
        nets.iter().map(|net| json!({"action": "Deny", "source": {"nets": [net.to_string()]}})).collect();
    let world = world(shop().into_iter().chain([policy(rules.into())]));
    Atoms::of([(&world.cluster, &world.policies), (&world.cluster, &world.policies)])
}

proptest! {
    /// Equal signatures: in the same networks. And every address has a stand-in.
    #[test]
    fn addresses_with_one_signature_are_in_the_same_networks(
        nets in nets(),
        a in any::<[u8; 2]>(),
        b in any::<[u8; 2]>(),
    ) {
        let atoms = atoms(&nets);
        let [a, b] = [a, b].map(|[x, y]| IpAddr::from([10, x & 3, y, x]));
        let of = |ip: IpAddr| nets.iter().filter(|net| net.contains(&ip)).collect::<Vec<_>>();
        if atoms.signature(a) == atoms.signature(b) {
            prop_assert_eq!(of(a), of(b));
        }
        let all = range(&"10.0.0.0/8".parse().unwrap());
        let stand_ins = atoms.representatives(&[all], false, |_| false);
        prop_assert!(stand_ins.iter().any(|ip| of(*ip) == of(a)), "{a} in {stand_ins:?}");
    }

    /// With everything known, the answer is the naive evaluator's.
    #[test]
    fn what_is_known_in_full_is_what_the_evaluator_says(nets in nets(), last in any::<[u8; 2]>(), port in any::<u16>()) {
        let deny: Vec<Value> =
            nets.iter().map(|net| json!({"action": "Deny", "source": {"nets": [net.to_string()]}})).collect();
        let then: Value = deny.into_iter().chain([json!({"action": "Allow"})]).collect();
        let ip = IpAddr::from([10, last[0] & 3, last[1], 77]);
        let source = end(EndpointKind::Net, None, "pvt", &[&ip.to_string()], Some(port));
        let flow = flow(source, end(EndpointKind::Wep, Some("web-c"), "web-*", &["10.1.0.3"], Some(80)));
        let after = world(shop().into_iter().chain([policy(then.clone())]));
        let directory =
            Directory::of([(&after.cluster, &after.policies), (&after.cluster, &after.policies)]);
        let candidates = directory.candidates(&flow, &after.cluster).unwrap();
        prop_assert_eq!(candidates.len(), 1);
        let [source, dest] = &candidates[0].ends;
        let question = Question { tuple: candidates[0].tuple, icmp: None, ends: [source.as_ref(), dest.as_ref()] };
        let naive = reference::evaluate(&after.cluster, &after.policies, &question, Direction::Ingress);
        let expected = if naive.denies() { Change::BecomesDenied } else { Change::StaysAllowed };
        prop_assert_eq!(outcome(allow(), then, &flow).change, expected);
    }
}
