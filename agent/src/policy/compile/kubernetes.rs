//! Kubernetes NetworkPolicies, staged or not.
//!
//! In: the object's fields. Out: a policy of the tier `default`, order 1000, in Calico's terms.
//! What always holds: one rule becomes one for each protocol (in the order of their names; none first) and peer, so
//! that a rule's index is not its place in the manifest (Calico: libcalico-go/lib/backend/k8s/conversion,
//! k8sRuleToCalico); pods are told from everything else by their orchestrator.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::calico::{self, Entity, Rule};
use super::{KUBERNETES, ORCHESTRATOR, Types, merged_ports};
use crate::model::{Labels, Proto};
use crate::policy::ir::{self, PolicyId, PortMatch, RuleAction, Stage};
use crate::policy::order::DEFAULT_TIER;
use crate::policy::selector::Selector;

/// Of every Kubernetes NetworkPolicy.
const ORDER: f64 = 1000.0;

/// `metav1.LabelSelector`. Empty selects all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LabelSelector {
    pub labels: Labels,
    pub expressions: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Requirement {
    pub key: Arc<str>,
    pub operator: Operator,
    pub values: Vec<Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    /// True without the label.
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Clone, Debug, PartialEq)]
pub struct NetworkPolicy {
    pub id: PolicyId,
    pub pod_selector: LabelSelector,
    pub types: Types,
    pub ingress: Vec<NetworkPolicyRule>,
    pub egress: Vec<NetworkPolicyRule>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkPolicyRule {
    /// `from` or `to`; empty is anyone.
    pub peers: Vec<Peer>,
    /// Empty is any protocol.
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Peer {
    Block { net: IpNet, except: Arc<[IpNet]> },
    Pods { namespaces: Option<LabelSelector>, pods: Option<LabelSelector> },
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// `None`: of any protocol, with a name only (admin policies).
    pub proto: Option<Proto>,
    /// `None`: all of them.
    pub port: Option<PortMatch>,
}

pub fn network_policy(written: NetworkPolicy) -> ir::Policy {
    let expand = |rules: &[NetworkPolicyRule], inbound| {
        rules.iter().flat_map(|rule| expanded(rule, inbound)).collect::<Vec<_>>()
    };
    calico::policy(calico::Policy {
        id: written.id,
        tier: DEFAULT_TIER.into(),
        order: Some(ORDER),
        selector: Some(pods(&written.pod_selector)),
        namespace_selector: None,
        service_account_selector: None,
        stage: Stage::Normal,
        types: written.types,
        ingress: expand(&written.ingress, true),
        egress: expand(&written.egress, false),
    })
}

fn expanded(written: &NetworkPolicyRule, inbound: bool) -> Vec<Rule> {
    let anyone = [Entity::default()];
    let peers: Vec<Entity> = written.peers.iter().map(peer).collect();
    let peers = if peers.is_empty() { &anyone[..] } else { &peers };
    combined(RuleAction::Allow, &written.ports, peers, inbound)
}

/// One rule for each protocol and peer: the protocols outside.
pub(super) fn combined(action: RuleAction, ports: &[Port], peers: &[Entity], inbound: bool) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (proto, ports) in by_protocol(ports) {
        for peer in peers {
            let mut rule = Rule { proto, ..Rule::new(action) };
            if inbound {
                rule.source = peer.clone();
                rule.dest.ports = ports.clone();
            } else {
                rule.dest = Entity { ports: ports.clone(), ..peer.clone() };
            }
            rules.push(rule);
        }
    }
    rules
}

/// The ports of each protocol, protocols in the order of their names (SCTP, TCP, UDP), none first. No ports at all:
/// any protocol. "All ports" of a protocol swallows its single ones.
fn by_protocol(ports: &[Port]) -> Vec<(Option<Proto>, Arc<[PortMatch]>)> {
    let any = |port: &Port| port.proto.is_none() && port.port.is_none();
    if ports.is_empty() || ports.iter().any(any) {
        return vec![(None, [].into())];
    }
    let mut of: BTreeMap<&str, (Option<Proto>, Option<Vec<PortMatch>>)> = BTreeMap::new();
    for Port { proto, port } in ports {
        let name = match *proto {
            None => "",
            Some(Proto::SCTP) => "SCTP",
            Some(Proto::UDP) => "UDP",
            Some(_) => "TCP",
        };
        let (_, listed) = of.entry(name).or_insert_with(|| (*proto, Some(Vec::new())));
        match (port, listed) {
            (Some(port), Some(listed)) => listed.push(port.clone()),
            (None, listed) => *listed = None,
            (Some(_), None) => {}
        }
    }
    of.into_values().map(|(proto, ports)| (proto, ports.map_or_else(|| [].into(), merged_ports))).collect()
}

fn peer(written: &Peer) -> Entity {
    match written {
        Peer::Block { net, except } => {
            Entity { nets: [*net].into(), not_nets: except.clone(), ..Entity::default() }
        }
        Peer::Pods { namespaces: selected, pods: of } => Entity {
            selector: Some(of.as_ref().map_or_else(any_pod, pods)),
            namespace_selector: selected.as_ref().map(namespaces),
            ..Entity::default()
        },
    }
}

pub(super) fn any_pod() -> Selector {
    Selector::Equals(ORCHESTRATOR.into(), KUBERNETES.into())
}

pub(super) fn pods(selector: &LabelSelector) -> Selector {
    Selector::all([any_pod()].into_iter().chain(terms(selector)).collect())
}

/// Empty is `all()`, which among namespaces means "in a namespace".
pub(super) fn namespaces(selector: &LabelSelector) -> Selector {
    Selector::all(terms(selector).collect())
}

fn terms(selector: &LabelSelector) -> impl Iterator<Item = Selector> {
    let labels = selector.labels.iter().map(|(key, value)| Selector::Equals(key.clone(), value.clone()));
    let expressions = selector.expressions.iter().map(|requirement| {
        let Requirement { key, operator, values } = requirement.clone();
        match operator {
            Operator::In => Selector::is_in(key, values),
            Operator::NotIn => Selector::is_not_in(key, values),
            Operator::Exists => Selector::Has(key),
            Operator::DoesNotExist => Selector::Not(Arc::new(Selector::Has(key))),
        }
    });
    labels.chain(expressions)
}
