//! The compiled evaluator says what the naive one says: over generated clusters, policies of all kinds and flows, also
//! while objects come, change and go.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::cluster::{
    EndpointGroup, EndpointPort, HostEndpoint, Namespace, NetworkSet, Object, ObjectRef, Pod, ServiceAccount,
    ServiceEndpoints,
};
use crate::model::{Addresses, FiveTuple, Labels, PolicyKind, Proto, Timestamp};
use crate::policy::ir::{
    Entity, IcmpMatch, IpVersion, Policy, PortMatch, Profile as ProfileResource, Rule, RuleAction,
    ServiceRef, Stage, Tier as TierResource, Uncertain,
};
use crate::policy::selector::Selector;
use crate::policy::{Resource, ResourceRef, reference};

/// A small world: everything meets everything.
const IPS: [&str; 10] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.0.5",
    "192.168.0.1",
    "203.0.113.7",
    "fd00::1",
    "fd00::2",
    "2001:db8::9",
];
const NETS: [&str; 7] =
    ["10.0.0.0/8", "10.0.0.2/31", "0.0.0.0/0", "203.0.113.0/24", "fd00::/16", "::/0", "192.168.0.0/16"];
const PORTS: [u16; 5] = [0, 80, 81, 8080, 65535];
const PROTOS: [Proto; 6] = [Proto::TCP, Proto::UDP, Proto::SCTP, Proto::ICMP, Proto::ICMP6, Proto(47)];

fn ip(at: usize) -> IpAddr {
    IPS[at].parse().unwrap()
}

fn namespace(second: bool) -> Arc<str> {
    if second { "b" } else { "a" }.into()
}

fn labels() -> impl Strategy<Value = Labels> {
    let keys =
        prop::sample::select(vec!["app", "role", "pcns.team", "pcsa.app", "projectcalico.org/namespace"]);
    let pair = (keys, prop::sample::select(vec!["x", "y", "a"]));
    prop::collection::btree_map(
        Just(()).prop_flat_map(move |()| pair.clone().prop_map(|p| p.0)),
        "[xya]",
        0..3,
    )
    .prop_map(|pairs| Labels::new(pairs.into_iter().map(|(key, value)| (key.into(), value.into()))))
}

fn ports() -> impl Strategy<Value = Vec<NamedPort>> {
    let port = (prop::bool::ANY, 1..4_usize, 0..3_usize).prop_map(|(http, port, proto)| NamedPort {
        name: Some(if http { "http" } else { "dns" }.into()),
        proto: PROTOS[proto],
        port: PORTS[port],
    });
    prop::collection::vec(port, 0..2)
}

fn selector() -> impl Strategy<Value = Selector> {
    let key = prop::sample::select(vec![
        "app",
        "role",
        "pcns.team",
        "pcsa.app",
        "pcns.projectcalico.org/name",
        "projectcalico.org/namespace",
        "projectcalico.org/orchestrator",
        "projectcalico.org/serviceaccount",
    ]);
    let value = prop::sample::select(vec!["x", "y", "a", "b", "k8s", "bot"]);
    let leaf = (key, value, 0..8_u8).prop_map(|(key, value, kind)| {
        let (key, value): (Arc<str>, Arc<str>) = (key.into(), value.into());
        match kind {
            0 | 1 => Selector::Equals(key, value),
            2 => Selector::Has(key),
            3 => Selector::NotEquals(key, value),
            4 => Selector::In(key, [value].into()),
            5 => Selector::NotIn(key, [value].into()),
            6 => Selector::StartsWith(key, value),
            _ => Selector::All,
        }
    });
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| Selector::Not(Arc::new(one))),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|all| Selector::And(all.into())),
            prop::collection::vec(inner, 1..3).prop_map(|any| Selector::Or(any.into())),
        ]
    })
}

fn rarely<T: std::fmt::Debug + Clone>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop_oneof![4 => Just(None), 1 => of.prop_map(Some)]
}

fn nets() -> impl Strategy<Value = Arc<[IpNet]>> {
    prop_oneof![
        4 => Just(Arc::default()),
        1 => prop::collection::vec(0..NETS.len(), 1..3)
            .prop_map(|nets| nets.into_iter().map(|net| NETS[net].parse().unwrap()).collect()),
    ]
}

fn port_matches() -> impl Strategy<Value = Arc<[PortMatch]>> {
    let one = prop_oneof![
        (0..5_usize, 0..5_usize)
            .prop_map(|(a, b)| PortMatch::Range(PORTS[a].min(PORTS[b]), PORTS[a].max(PORTS[b]))),
        prop::sample::select(vec!["http", "dns"]).prop_map(|name| PortMatch::Named(name.into())),
    ];
    prop_oneof![4 => Just(Arc::default()), 1 => prop::collection::vec(one, 1..3).prop_map(Into::into)]
}

fn entity() -> impl Strategy<Value = Entity> {
    let service = prop::bool::ANY.prop_map(|b| ServiceRef { namespace: namespace(b), name: "web".into() });
    let selectors = (rarely(selector().prop_map(Arc::new)), rarely(selector().prop_map(Arc::new)));
    (
        selectors,
        nets(),
        nets(),
        port_matches(),
        port_matches(),
        prop_oneof![9 => Just(None), 1 => service.prop_map(Some)],
    )
        .prop_map(|((selector, not_selector), nets, not_nets, ports, not_ports, service)| Entity {
            selector,
            not_selector,
            nets,
            not_nets,
            ports,
            not_ports,
            service,
        })
}

fn rule() -> impl Strategy<Value = Rule> {
    let action =
        prop::sample::select(vec![RuleAction::Allow, RuleAction::Deny, RuleAction::Pass, RuleAction::Log]);
    let proto = || rarely((0..PROTOS.len()).prop_map(|at| PROTOS[at]));
    let icmp = || {
        prop_oneof![
            8 => Just(None),
            1 => (rarely(Just(8_u8)), rarely(0..2_u8)).prop_map(|(kind, code)| Some(IcmpMatch { kind, code: code.filter(|_| kind.is_some()) })),
        ]
    };
    let version = rarely(prop::sample::select(vec![IpVersion::V4, IpVersion::V6]));
    let uncertain = prop_oneof![12 => Just(None), 1 => Just(Some(Uncertain::Domains))];
    (action, version, proto(), proto(), icmp(), icmp(), entity(), entity(), uncertain).prop_map(
        |(action, ip_version, proto, not_proto, icmp, not_icmp, source, dest, uncertain)| Rule {
            action,
            ip_version,
            proto,
            not_proto,
            icmp,
            not_icmp,
            source,
            dest,
            uncertain,
        },
    )
}

fn rules() -> impl Strategy<Value = Option<Arc<[Rule]>>> {
    prop_oneof![1 => Just(None), 3 => prop::collection::vec(rule(), 0..4).prop_map(|rules| Some(rules.into()))]
}

fn policy() -> impl Strategy<Value = Policy> {
    let kind = (0..9_usize).prop_map(|at| PolicyKind::ALL[at]);
    let tier = prop::sample::select(vec!["default", "t1", "t2", "kube-admin", "lost"]);
    let name = prop::sample::select(vec!["p", "p-2", "p2", "p.x"]);
    let order = rarely(prop::sample::select(vec![1.0, 2.5, -3.0]));
    let stage =
        prop_oneof![9 => Just(Stage::Normal), 1 => Just(Stage::PreDnat), 1 => Just(Stage::DoNotTrack)];
    (kind, tier, name, order, stage, selector(), prop::bool::ANY, rules(), rules()).prop_map(
        |(kind, tier, name, order, stage, subject, second, ingress, egress)| {
            let is_namespaced = matches!(
                kind,
                PolicyKind::NetworkPolicy
                    | PolicyKind::KubernetesNetworkPolicy
                    | PolicyKind::StagedNetworkPolicy
                    | PolicyKind::StagedKubernetesNetworkPolicy
            );
            let namespace = is_namespaced.then(|| namespace(second));
            // What the compilers always add.
            let subject = match &namespace {
                Some(namespace) => Selector::And(
                    [subject, Selector::Equals("projectcalico.org/namespace".into(), namespace.clone())]
                        .into(),
                ),
                None => subject,
            };
            let id = PolicyId { kind, namespace, name: name.into() };
            Policy { id, tier: tier.into(), order, subject: Arc::new(subject), stage, ingress, egress }
        },
    )
}

#[derive(Clone, Debug)]
enum Change {
    Cluster(Object),
    Policy(Resource),
    Forget(ObjectRef),
    Revoke(ResourceRef),
}

fn cluster_object() -> impl Strategy<Value = Object> {
    let pod =
        (0..5_usize, labels(), ports(), rarely(Just("bot")), prop::bool::weighted(0.1), prop::bool::ANY)
            .prop_map(|(at, labels, ports, account, finished, dual)| {
                let mut ips = vec![ip(at)];
                if dual && at < 2 {
                    ips.push(ip(7 + at));
                }
                Object::Pod(Pod {
                    namespace: namespace(at % 2 == 1),
                    name: format!("pod-{at}").into(),
                    labels,
                    node: Some("n1".into()),
                    ips,
                    finished,
                    service_account: account.map(Into::into),
                    ports,
                    ..Pod::default()
                })
            });
    let ns = (prop::bool::ANY, labels())
        .prop_map(|(second, labels)| Object::Namespace(Namespace { name: namespace(second), labels }));
    let account = (prop::bool::ANY, labels()).prop_map(|(second, labels)| {
        Object::ServiceAccount(ServiceAccount { namespace: namespace(second), name: "bot".into(), labels })
    });
    let set = (rarely(prop::bool::ANY), labels(), prop::collection::vec(0..NETS.len(), 0..3)).prop_map(
        |(second, labels, nets)| {
            Object::NetworkSet(NetworkSet {
                namespace: second.map(namespace),
                name: "set".into(),
                labels,
                nets: nets.into_iter().map(|net| NETS[net].parse().unwrap()).collect(),
            })
        },
    );
    let profile =
        prop::sample::select(vec!["kns.a", "ksa.b.bot", "strict", "gone", "projectcalico-default-allow"]);
    let hep =
        (labels(), ports(), prop::collection::vec(profile, 0..3)).prop_map(|(labels, ports, profiles)| {
            Object::HostEndpoint(HostEndpoint {
                name: "hep".into(),
                uid: None,
                labels,
                node: "n1".into(),
                interface: Some("*".into()),
                expected_ips: vec![ip(5)],
                ports,
                profiles: profiles.into_iter().map(Into::into).collect(),
                created: None,
            })
        });
    let slice =
        (prop::bool::ANY, prop::bool::ANY, prop::collection::vec(0..5_usize, 0..3), 0..4_usize, 0..3_usize)
            .prop_map(|(second, is_slice, ips, port, proto)| {
                let port =
                    EndpointPort { name: None, proto: PROTOS[proto], port: (port > 0).then(|| PORTS[port]) };
                let backends = ServiceEndpoints {
                    namespace: namespace(second),
                    name: if is_slice { "web-1" } else { "web" }.into(),
                    service: Some("web".into()),
                    groups: vec![EndpointGroup {
                        addresses: ips.into_iter().map(ip).collect(),
                        ports: vec![port],
                    }],
                };
                if is_slice { Object::EndpointSlice(backends) } else { Object::Endpoints(backends) }
            });
    prop_oneof![4 => pod, 1 => ns, 1 => account, 1 => set, 1 => hep, 1 => slice]
}

fn resource() -> impl Strategy<Value = Resource> {
    let tier = (prop::sample::select(vec!["t1", "t2", "kube-admin"]), rarely(1.0..3.0_f64), prop::bool::ANY)
        .prop_map(|(name, order, default_pass)| {
            Resource::Tier(TierResource { name: name.into(), order, default_pass })
        });
    let rules = || prop::collection::vec(rule(), 0..3).prop_map(Arc::from);
    let profile = (rules(), rules(), labels()).prop_map(|(ingress, egress, labels_to_apply)| {
        Resource::Profile(ProfileResource { name: "strict".into(), ingress, egress, labels_to_apply })
    });
    let whole = prop_oneof![6 => policy().prop_map(Resource::Policy), 1 => tier, 1 => profile];
    (whole, prop::bool::weighted(0.03)).prop_map(|(resource, is_broken)| {
        if is_broken { Resource::Broken(resource.reference(), "spec: is not one".into()) } else { resource }
    })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => cluster_object().prop_map(Change::Cluster),
        6 => resource().prop_map(Change::Policy),
        1 => cluster_object().prop_map(|object| Change::Forget(object.reference())),
        1 => resource().prop_map(|resource| Change::Revoke(resource.reference())),
    ]
}

type Asked = (usize, usize, usize, [usize; 2], Option<(u8, u8)>);

fn asked() -> impl Strategy<Value = Asked> {
    let port = || 0..PORTS.len();
    let icmp =
        prop_oneof![3 => (prop::sample::select(vec![0_u8, 8]), 0..2_u8).prop_map(Some), 1 => Just(None)];
    (0..IPS.len(), 0..IPS.len(), 0..PROTOS.len(), [port(), port()], icmp)
}

struct World {
    cluster: Cluster,
    policies: Policies,
}

impl World {
    fn new() -> Self {
        let mut cluster = Cluster::new("n1".into());
        cluster.inhabit();
        Self { cluster, policies: Policies::default() }
    }

    fn apply(&mut self, change: Change, at: Timestamp) {
        match change {
            Change::Cluster(object) => self.cluster.apply(object, at),
            Change::Policy(resource) => {
                self.policies.apply(resource);
            }
            Change::Forget(object) => self.cluster.delete(&object, at),
            Change::Revoke(resource) => {
                self.policies.delete(&resource);
            }
        }
    }

    /// What both evaluators say, per direction.
    fn check(&self, compiled: &mut Evaluator, asked: &Asked, at: Timestamp) -> Result<(), TestCaseError> {
        let (from, to, proto, [source_port, dest_port], icmp) = *asked;
        let addresses = Addresses {
            src: ip(from),
            dst: ip(to),
            src_port: PORTS[source_port],
            dst_port: PORTS[dest_port],
        };
        if addresses.src.is_ipv4() != addresses.dst.is_ipv4() {
            return Ok(());
        }
        let ends = [addresses.src, addresses.dst].map(|ip| self.cluster.endpoint_at(ip, at, false));
        let question = Question { tuple: FiveTuple { proto: PROTOS[proto], addresses }, icmp, ends };
        let got = compiled.evaluate(&self.cluster, &self.policies, &question, [true, true]);
        for direction in [Direction::Egress, Direction::Ingress] {
            let got = got[direction as usize].as_deref().cloned();
            let wanted = question
                .own(direction)
                .map(|_| reference::evaluate(&self.cluster, &self.policies, &question, direction));
            prop_assert_eq!(got, wanted, "{:?} of {:?}", direction, question);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn compiled_is_naive_while_everything_changes(
        changes in prop::collection::vec(change(), 1..40),
        asked in prop::collection::vec(asked(), 12),
    ) {
        let mut world = World::new();
        let mut compiled = Evaluator::default();
        for (number, change) in changes.into_iter().enumerate() {
            let at = Timestamp(1_000_000_000 * (number as i64 + 1));
            world.apply(change, at);
            if number % 3 == 0 {
                for question in &asked {
                    world.check(&mut compiled, question, at)?;
                }
            }
        }
        let end = Timestamp(100_000_000_000);
        for question in &asked {
            world.check(&mut compiled, question, end)?;
            // Twice: the second answer comes from the cache.
            world.check(&mut compiled, question, end)?;
            world.check(&mut Evaluator::default(), question, end)?;
        }
    }
}
