//! `policy.networking.k8s.io`: AdminNetworkPolicy and BaselineAdminNetworkPolicy (v1alpha1), ClusterNetworkPolicy
//! (v1alpha2).
//!
//! In: the object as it is written. Out: a policy; absent where the object has no subject or an unknown tier, which
//! Calico takes as deleted. Peers of kinds that Calico cannot express are kept as such: the compiler closes their rules.

use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::kubernetes::{LabelSelector, TransportProtocol};
use super::{PolicyPort, absent, id_of};
use crate::model::{PolicyKind, Proto};
use crate::policy::Resource;
use crate::policy::compile::admin::{self, AdminPeer, AdminPolicy, AdminRule};
use crate::policy::compile::kubernetes::Port;
use crate::policy::ir::{PortMatch, RuleAction};
use crate::policy::order::{ADMIN_TIER, BASELINE_TIER, LEGACY_ADMIN_TIER, LEGACY_BASELINE_TIER};
use crate::watch::decode::{DecodeError, invalid};
use crate::watch::objects::{self, Meta, Net, NoAnnotations};

/// A policy with rules whose ports are `P`.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "P: Deserialize<'de>"))]
pub(super) struct Written<P> {
    metadata: Meta<NoAnnotations>,
    spec: Spec<P>,
}

#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "P: Deserialize<'de>"))]
struct Spec<P> {
    /// v1alpha2.
    tier: Option<String>,
    priority: Option<u16>,
    subject: Option<Subject>,
    ingress: Option<Vec<IngressRule<P>>>,
    egress: Option<Vec<EgressRule<P>>>,
}

#[derive(Debug, Deserialize)]
struct Subject {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPods>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamespacedPods {
    namespace_selector: Option<LabelSelector>,
    pod_selector: Option<LabelSelector>,
}

#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "P: Deserialize<'de>"))]
struct IngressRule<P> {
    action: Action,
    from: Option<Vec<Peer>>,
    /// v1alpha1 calls them `ports`.
    #[serde(alias = "ports")]
    protocols: Option<Vec<P>>,
}

#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "P: Deserialize<'de>"))]
struct EgressRule<P> {
    action: Action,
    to: Option<Vec<Peer>>,
    #[serde(alias = "ports")]
    protocols: Option<Vec<P>>,
}

#[derive(Debug, Deserialize)]
struct Peer {
    namespaces: Option<LabelSelector>,
    pods: Option<NamespacedPods>,
    networks: Option<Vec<Net>>,
}

/// v1alpha1 says Allow where v1alpha2 says Accept.
#[derive(Clone, Copy, Debug)]
struct Action(RuleAction);

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self(match text.as_str() {
            "Allow" | "Accept" => RuleAction::Allow,
            "Deny" => RuleAction::Deny,
            "Pass" => RuleAction::Pass,
            _ => {
                return Err(de::Error::custom(format!(
                    "{text:?} is none of Accept (Allow in v1alpha1), Deny and Pass"
                )));
            }
        }))
    }
}

/// v1alpha1: one of the three.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AdminPort {
    port_number: Option<PortNumber>,
    port_range: Option<PortRange>,
    named_port: Option<PolicyPort>,
}

#[derive(Debug, Deserialize)]
struct PortNumber {
    protocol: Option<TransportProtocol>,
    port: objects::Port,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "WrittenRange")]
struct PortRange {
    protocol: Option<TransportProtocol>,
    ports: PortMatch,
}

#[derive(Debug, Deserialize)]
struct WrittenRange {
    protocol: Option<TransportProtocol>,
    start: objects::Port,
    end: objects::Port,
}

impl TryFrom<WrittenRange> for PortRange {
    type Error = String;

    fn try_from(written: WrittenRange) -> Result<Self, String> {
        let (start, end) = (written.start.0, written.end.0);
        if start > end {
            return Err(format!("end {end} is below start {start}"));
        }
        Ok(Self { protocol: written.protocol, ports: PortMatch::Range(start, end) })
    }
}

/// v1alpha2: one of the four.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClusterProtocol {
    tcp: Option<Transport>,
    udp: Option<Transport>,
    sctp: Option<Transport>,
    destination_named_port: Option<PolicyPort>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transport {
    destination_port: Option<DestinationPort>,
}

#[derive(Debug, Deserialize)]
struct DestinationPort {
    number: Option<objects::Port>,
    range: Option<PortRange>,
}

/// A name stands for the port of any protocol that an endpoint calls so.
impl From<AdminPort> for Port {
    fn from(written: AdminPort) -> Self {
        let proto = |protocol: Option<TransportProtocol>| Some(protocol.map_or(Proto::TCP, |proto| proto.0));
        if let Some(single) = written.port_number {
            let port = PortMatch::Range(single.port.0, single.port.0);
            Self { proto: proto(single.protocol), port: Some(port) }
        } else if let Some(range) = written.port_range {
            Self { proto: proto(range.protocol), port: Some(range.ports) }
        } else {
            Self { proto: None, port: written.named_port.map(|port| port.0) }
        }
    }
}

impl From<ClusterProtocol> for Port {
    fn from(written: ClusterProtocol) -> Self {
        let of = |proto: Proto, transport: Transport| {
            let port = transport.destination_port.and_then(|port| match (port.number, port.range) {
                (Some(number), _) if number.0 != 0 => Some(PortMatch::Range(number.0, number.0)),
                (_, range) => range.map(|range| range.ports),
            });
            Self { proto: Some(proto), port }
        };
        if let Some(transport) = written.tcp {
            of(Proto::TCP, transport)
        } else if let Some(transport) = written.udp {
            of(Proto::UDP, transport)
        } else if let Some(transport) = written.sctp {
            of(Proto::SCTP, transport)
        } else {
            Self { proto: None, port: written.destination_named_port.map(|port| port.0) }
        }
    }
}

fn peer(written: Peer, inbound: bool) -> AdminPeer {
    let nets = written.networks.filter(|nets| !nets.is_empty() && !inbound);
    if let Some(pods) = written.pods {
        AdminPeer::Pods {
            namespaces: pods.namespace_selector.unwrap_or_default().into(),
            pods: pods.pod_selector.unwrap_or_default().into(),
        }
    } else if let Some(namespaces) = written.namespaces {
        AdminPeer::Namespaces(namespaces.into())
    } else if let Some(nets) = nets {
        AdminPeer::Networks(nets.into_iter().map(|net| net.0).collect())
    } else {
        AdminPeer::Unsupported
    }
}

fn rule<P: Into<Port>>(
    action: Action,
    peers: Option<Vec<Peer>>,
    ports: Option<Vec<P>>,
    inbound: bool,
) -> AdminRule {
    AdminRule {
        action: action.0,
        peers: peers.unwrap_or_default().into_iter().map(|it| peer(it, inbound)).collect(),
        ports: ports.unwrap_or_default().into_iter().map(Into::into).collect(),
    }
}

fn policy<P: Into<Port>>(
    kind: PolicyKind,
    o: Written<P>,
    tier: impl FnOnce(Option<&str>) -> Option<&'static str>,
) -> Result<Resource, DecodeError> {
    let id = id_of(kind, o.metadata)?;
    let spec = o.spec;
    let subject = spec.subject.and_then(|subject| match (subject.namespaces, subject.pods) {
        (Some(namespaces), _) => Some(admin::Subject::Namespaces(namespaces.into())),
        (None, Some(pods)) => Some(admin::Subject::Pods {
            namespaces: pods.namespace_selector.unwrap_or_default().into(),
            pods: pods.pod_selector.unwrap_or_default().into(),
        }),
        (None, None) => None,
    });
    let (Some(subject), Some(tier)) = (subject, tier(spec.tier.as_deref())) else { return Ok(absent(id)) };
    let baseline = kind == PolicyKind::BaselineAdminNetworkPolicy;
    if spec.priority.is_none() && !baseline {
        return Err(invalid("spec.priority", "is missing"));
    }
    let ingress = spec.ingress.unwrap_or_default();
    let egress = spec.egress.unwrap_or_default();
    Ok(Resource::Policy(admin::policy(AdminPolicy {
        id,
        tier: tier.into(),
        priority: spec.priority.filter(|_| !baseline),
        subject,
        ingress: ingress.into_iter().map(|it| rule(it.action, it.from, it.protocols, true)).collect(),
        egress: egress.into_iter().map(|it| rule(it.action, it.to, it.protocols, false)).collect(),
    })))
}

pub(super) fn cluster_policy(o: Written<ClusterProtocol>) -> Result<Resource, DecodeError> {
    policy(PolicyKind::ClusterNetworkPolicy, o, |tier| match tier {
        Some("Admin") => Some(ADMIN_TIER),
        Some("Baseline") => Some(BASELINE_TIER),
        _ => None,
    })
}

pub(super) fn admin_policy(kind: PolicyKind, o: Written<AdminPort>) -> Result<Resource, DecodeError> {
    let tier = match kind {
        PolicyKind::BaselineAdminNetworkPolicy => LEGACY_BASELINE_TIER,
        _ => LEGACY_ADMIN_TIER,
    };
    policy(kind, o, |_| Some(tier))
}
