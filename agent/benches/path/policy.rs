//! What policy costs: a verdict that is known, one that is walked, compiling, and following changes.
//!
//! In: clusters of the sizes that the names say. Out: divan's table; an item is a flow with both ends judged, or a
//! verdict of one end, or one change. What always holds: the flows of the walks match the last rule alone, and come
//! back after more others than the cache holds, so that every one is walked to its end.

use std::net::IpAddr;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use flowlogd::cluster::{Cluster, Namespace, Object, Pod};
use flowlogd::model::{Addresses, Endpoint, FiveTuple, Labels, NamedPort, PolicyKind, Proto, Timestamp};
use flowlogd::policy::ir::{Entity, Policy, PolicyId, PortMatch, Rule, RuleAction, Stage};
use flowlogd::policy::selector::Selector;
use flowlogd::policy::{Evaluator, Policies, Question, Resource};

use super::world;

const FLOWS: u64 = 10_000;
/// Of the walks: more than the cache holds.
const PORTS: u16 = if cfg!(debug_assertions) { 100 } else { u16::MAX };

fn equals(key: &str, value: &str) -> Selector {
    Selector::Equals(key.into(), value.into())
}

fn rule(action: RuleAction, selector: Option<Selector>, ports: &[PortMatch]) -> Rule {
    Rule {
        action,
        ip_version: None,
        proto: Some(Proto::TCP),
        not_proto: None,
        icmp: None,
        not_icmp: None,
        source: Entity { selector: selector.map(Arc::new), ..Entity::default() },
        dest: Entity { ports: ports.into(), ..Entity::default() },
        uncertain: None,
    }
}

fn policy(
    kind: PolicyKind,
    namespace: Option<&str>,
    name: &str,
    subject: Selector,
    rules: Vec<Rule>,
) -> Policy {
    let rules: Arc<[Rule]> = rules.into();
    let subject = match namespace {
        Some(namespace) => Selector::And([subject, equals("projectcalico.org/namespace", namespace)].into()),
        None => subject,
    };
    Policy {
        id: PolicyId { kind, namespace: namespace.map(Into::into), name: name.into() },
        tier: "default".into(),
        order: Some(1000.0),
        subject: Arc::new(subject),
        stage: Stage::Normal,
        ingress: Some(rules.clone()),
        egress: Some(rules),
    }
}

/// Pods of the world of the other benches; `policies` global policies of `rules` rules, of which the last one of the
/// last policy allows.
struct Judged {
    cluster: Cluster,
    policies: Policies,
    evaluator: Evaluator,
}

impl Judged {
    fn new(count: u64, rules: u64) -> Self {
        let mut policies = Policies::default();
        for n in 0..count {
            let differs = |m: u64| {
                // By port, by peer, or by both.
                let port = PortMatch::Range(70_u16.saturating_sub(m as u16), 75);
                match m % 3 {
                    0 => rule(RuleAction::Deny, Some(equals("app", &format!("nobody-{n}-{m}"))), &[]),
                    1 => rule(RuleAction::Deny, None, &[port]),
                    _ => rule(RuleAction::Deny, Some(Selector::Has(format!("no-{n}-{m}").into())), &[]),
                }
            };
            let mut all: Vec<Rule> = (1..rules).map(differs).collect();
            // A named port makes each port a verdict of its own.
            let named = PortMatch::Named("nothing".into());
            let last = n + 1 == count;
            all.push(if last {
                rule(RuleAction::Allow, None, &[PortMatch::Range(0, u16::MAX), named])
            } else {
                rule(RuleAction::Deny, None, &[named])
            });
            let name = format!("policy-{n:04}");
            let kind = PolicyKind::GlobalNetworkPolicy;
            policies.apply(Resource::Policy(policy(kind, None, &name, Selector::All, all)));
        }
        Self { cluster: world::cluster().cluster, policies, evaluator: Evaluator::default() }
    }

    fn end(&self, ip: IpAddr) -> Option<Arc<Endpoint>> {
        self.cluster.endpoint_at(ip, Timestamp(1), false).cloned()
    }
}

/// Both ends of flows whose verdicts are known, addresses looked up: by a hundred pods of the node with 5,000 others.
#[divan::bench]
fn cached_both_ends(bencher: Bencher) {
    let mut judged = Judged::new(20, 5);
    let tuples: Vec<FiveTuple> = world::shuffled(FLOWS)
        .map(|n| {
            let dst = if n % 4 == 0 { world::local_pod(n / 7) } else { world::remote_pod(n % 500) };
            let addresses = Addresses { src: world::local_pod(n), dst, src_port: n as u16, dst_port: 8080 };
            FiveTuple { proto: Proto::TCP, addresses }
        })
        .collect();
    let mut pass = || {
        for &tuple in &tuples {
            let ends = [tuple.addresses.src, tuple.addresses.dst]
                .map(|ip| judged.cluster.endpoint_at(ip, Timestamp(1), false));
            let question = Question { tuple, icmp: None, ends };
            divan::black_box(judged.evaluator.evaluate(
                &judged.cluster,
                &judged.policies,
                &question,
                [true, true],
            ));
        }
    };
    pass();
    bencher.counter(ItemsCount::new(FLOWS)).bench_local(pass);
}

fn walk(bencher: Bencher, policies: u64, rules: u64, sample: u16) {
    let mut judged = Judged::new(policies, rules);
    let ends = [world::remote_pod(1), world::local_pod(1)].map(|ip| judged.end(ip));
    let mut port = 0_u16;
    let mut peer = 0_u64;
    bencher.counter(ItemsCount::new(u64::from(sample))).bench_local(|| {
        for _ in 0..sample {
            port = port.wrapping_add(1) % PORTS;
            // After all ports comes another protocol's number of the same walk: a pass never meets its own verdicts.
            peer += 1;
            let addresses = Addresses {
                src: world::remote_pod(1),
                dst: world::local_pod(1),
                src_port: (peer >> 16) as u16,
                dst_port: port.max(100),
            };
            let question = Question {
                tuple: FiveTuple { proto: Proto::TCP, addresses },
                icmp: None,
                ends: [ends[0].as_ref(), ends[1].as_ref()],
            };
            divan::black_box(judged.evaluator.evaluate(
                &judged.cluster,
                &judged.policies,
                &question,
                [false, true],
            ));
        }
    });
    assert!(judged.evaluator.stats().verdicts_walked > 0);
}

/// A verdict of one end.
#[divan::bench]
fn walk_20_policies_of_5_rules(bencher: Bencher) {
    walk(bencher, 20, 5, if cfg!(debug_assertions) { 10 } else { 60_000 });
}

#[divan::bench]
fn walk_294_policies_of_68_rules(bencher: Bencher) {
    walk(bencher, 294, 68, if cfg!(debug_assertions) { 2 } else { 2_000 });
}

const SIZE: (u64, u64) = if cfg!(debug_assertions) { (100, 10) } else { (10_000, 1_000) };

/// An endpoint and its address.
type Owned = (Arc<Endpoint>, IpAddr);

/// 10,000 pods in 1,000 namespaces with a policy each.
fn large() -> (Cluster, Policies, Vec<Owned>) {
    let (pods, namespaces) = SIZE;
    let mut cluster = Cluster::new("node-0".into());
    let mut policies = Policies::default();
    for n in 0..namespaces {
        let name: Arc<str> = format!("ns-{n}").into();
        let labels = Labels::new([("team".into(), format!("team-{}", n % 20).into())]);
        cluster.apply(Object::Namespace(Namespace { name: name.clone(), labels }), Timestamp::MIN);
        let from = |m: u64| equals("app", &format!("app-{}", (n + m) % 50));
        let mut rules: Vec<Rule> =
            (0..4).map(|m| rule(RuleAction::Allow, Some(from(m)), &[PortMatch::Range(80, 89)])).collect();
        rules.push(rule(RuleAction::Allow, Some(equals("pcns.team", &format!("team-{}", n % 20))), &[]));
        let name: &str = &name;
        policies.apply(Resource::Policy(policy(
            PolicyKind::KubernetesNetworkPolicy,
            Some(name),
            "allow",
            Selector::All,
            rules,
        )));
    }
    for n in 0..pods {
        let [.., b, c, d] = n.to_be_bytes();
        cluster.apply(
            Object::Pod(Pod {
                namespace: format!("ns-{}", n % namespaces).into(),
                name: format!("pod-{n}").into(),
                labels: labels(n, "1"),
                node: Some("node-0".into()),
                ips: vec![IpAddr::from([10, b, c, d])],
                ports: vec![NamedPort { name: Some("http".into()), proto: Proto::TCP, port: 8080 }],
                ..Pod::default()
            }),
            Timestamp::MIN,
        );
    }
    let pods = cluster.pods().filter_map(|pod| Some((pod.endpoint.clone(), *pod.ips.first()?))).collect();
    (cluster, policies, pods)
}

fn labels(n: u64, version: &str) -> Labels {
    let pairs = [("app", format!("app-{}", n % 50)), ("version", version.to_owned())];
    Labels::new(pairs.map(|(key, value)| (key.into(), value.into())))
}

/// A flow between each pod and the next one, both ends judged.
fn judge_all(evaluator: &mut Evaluator, cluster: &Cluster, policies: &Policies, pods: &[Owned]) {
    for (n, source) in pods.iter().enumerate() {
        judge(evaluator, cluster, policies, source, &pods[(n + 1) % pods.len()]);
    }
}

fn judge(evaluator: &mut Evaluator, cluster: &Cluster, policies: &Policies, source: &Owned, dest: &Owned) {
    let addresses = Addresses { src: source.1, dst: dest.1, src_port: 1, dst_port: 80 };
    let tuple = FiveTuple { proto: Proto::TCP, addresses };
    let question = Question { tuple, icmp: None, ends: [Some(&source.0), Some(&dest.0)] };
    divan::black_box(evaluator.evaluate(cluster, policies, &question, [true, true]));
}

const FEW: u32 = if cfg!(debug_assertions) { 1 } else { 10 };

#[divan::bench(sample_count = FEW, sample_size = 1)]
fn compile_10_000_pods_1_000_policies(bencher: Bencher) {
    let (cluster, policies, pods) = large();
    bencher.bench_local(|| {
        let mut evaluator = Evaluator::default();
        judge_all(&mut evaluator, &cluster, &policies, &pods);
        evaluator
    });
}

/// A global policy that selects every pod gets another rule; then every pod is judged.
#[divan::bench(sample_count = FEW * 10, sample_size = 1)]
fn edit_of_a_policy_that_selects_all(bencher: Bencher) {
    let (cluster, mut policies, pods) = large();
    let mut evaluator = Evaluator::default();
    judge_all(&mut evaluator, &cluster, &policies, &pods);
    let mut edits = 0_u16;
    bencher.bench_local(|| {
        edits += 1;
        let pass = rule(RuleAction::Pass, None, &[PortMatch::Range(edits, edits)]);
        let kind = PolicyKind::GlobalNetworkPolicy;
        policies.apply(Resource::Policy(policy(kind, None, "all", Selector::All, vec![pass])));
        judge_all(&mut evaluator, &cluster, &policies, &pods);
    });
}

/// A pod's label changes; then one of its flows is judged.
#[divan::bench(sample_count = FEW * 100, sample_size = 1)]
fn change_of_a_label(bencher: Bencher) {
    let (mut cluster, policies, pods) = large();
    let mut evaluator = Evaluator::default();
    judge_all(&mut evaluator, &cluster, &policies, &pods);
    let mut change = 0_u64;
    bencher.bench_local(|| {
        change += 1;
        let (known, ip) = &pods[usize::try_from(change).unwrap_or_default() % pods.len()];
        cluster.apply(
            Object::Pod(Pod {
                namespace: known.namespace.clone().unwrap_or_default(),
                name: known.name.clone(),
                labels: labels(change, &change.to_string()),
                node: known.node.clone(),
                ips: vec![*ip],
                ..Pod::default()
            }),
            Timestamp(1),
        );
        let owned = |ip: IpAddr| (cluster.endpoint_at(ip, Timestamp(2), false).cloned(), ip);
        if let ((Some(changed), ip), (Some(other), other_ip)) = (owned(*ip), owned(pods[0].1)) {
            judge(&mut evaluator, &cluster, &policies, &(other, other_ip), &(changed, ip));
        }
    });
}
