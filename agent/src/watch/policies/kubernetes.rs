//! `networking.k8s.io/v1` NetworkPolicy, and Calico's StagedKubernetesNetworkPolicy, which has the same fields.
//!
//! In: the object as it is written. Out: a policy. Absent `policyTypes` are what the API server makes of them: Ingress,
//! and Egress where there are egress rules.

use std::sync::Arc;

use serde::Deserialize;

use super::{PolicyPort, PolicyType, StagedAction, absent, id_of, is_staged_delete, types_of};
use crate::model::{PolicyKind, Proto};
use crate::policy::Resource;
use crate::policy::compile::Types;
use crate::policy::compile::kubernetes::{self, NetworkPolicyRule, Operator, Peer, Port, Requirement};
use crate::policy::ir::PortMatch;
use crate::watch::decode::DecodeError;
use crate::watch::objects::{self, LabelMap, Meta, Net, NoAnnotations, Protocol};

#[derive(Debug, Deserialize)]
pub(super) struct NetworkPolicy {
    metadata: Meta<NoAnnotations>,
    spec: Option<Spec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    pod_selector: Option<LabelSelector>,
    policy_types: Option<Vec<PolicyType>>,
    ingress: Option<Vec<IngressRule>>,
    egress: Option<Vec<EgressRule>>,
    staged_action: Option<StagedAction>,
}

#[derive(Debug, Deserialize)]
struct IngressRule {
    from: Option<Vec<WrittenPeer>>,
    ports: Option<Vec<RulePort>>,
}

#[derive(Debug, Deserialize)]
struct EgressRule {
    to: Option<Vec<WrittenPeer>>,
    ports: Option<Vec<RulePort>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenPeer {
    ip_block: Option<IpBlock>,
    pod_selector: Option<LabelSelector>,
    namespace_selector: Option<LabelSelector>,
}

#[derive(Debug, Deserialize)]
struct IpBlock {
    cidr: Net,
    except: Option<Vec<Net>>,
}

/// `metav1.LabelSelector`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LabelSelector {
    match_labels: Option<LabelMap>,
    match_expressions: Option<Vec<Expression>>,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "WrittenExpression")]
struct Expression(Requirement);

#[derive(Debug, Deserialize)]
struct WrittenExpression {
    key: Arc<str>,
    operator: WrittenOperator,
    values: Option<Vec<Arc<str>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum WrittenOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl TryFrom<WrittenExpression> for Expression {
    type Error = String;

    fn try_from(written: WrittenExpression) -> Result<Self, String> {
        let operator = match written.operator {
            WrittenOperator::In => Operator::In,
            WrittenOperator::NotIn => Operator::NotIn,
            WrittenOperator::Exists => Operator::Exists,
            WrittenOperator::DoesNotExist => Operator::DoesNotExist,
        };
        let values = written.values.unwrap_or_default();
        if written.key.is_empty() {
            return Err("has an empty key".to_owned());
        }
        if values.is_empty() && matches!(operator, Operator::In | Operator::NotIn) {
            return Err(format!("{:?} needs values", written.operator));
        }
        Ok(Self(Requirement { key: written.key, operator, values }))
    }
}

impl From<LabelSelector> for kubernetes::LabelSelector {
    fn from(written: LabelSelector) -> Self {
        let expressions = written.match_expressions.unwrap_or_default();
        Self {
            labels: written.match_labels.unwrap_or_default().0,
            expressions: expressions.into_iter().map(|expression| expression.0).collect(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "WrittenPort")]
struct RulePort(Port);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenPort {
    protocol: Option<TransportProtocol>,
    port: Option<PolicyPort>,
    end_port: Option<objects::Port>,
}

/// A missing protocol is TCP, even without a port.
impl TryFrom<WrittenPort> for RulePort {
    type Error = String;

    fn try_from(written: WrittenPort) -> Result<Self, String> {
        let port = match (written.port.map(|port| port.0), written.end_port) {
            (port, None) => port,
            (Some(PortMatch::Range(low, _)), Some(end)) if low <= end.0 => Some(PortMatch::Range(low, end.0)),
            (Some(PortMatch::Range(low, _)), Some(end)) => {
                return Err(format!("endPort {} is below port {low}", end.0));
            }
            (Some(PortMatch::Named(_)) | None, Some(_)) => {
                return Err("endPort needs a port that is a number".to_owned());
            }
        };
        Ok(Self(Port { proto: Some(written.protocol.map_or(Proto::TCP, |proto| proto.0)), port }))
    }
}

/// TCP, UDP or SCTP.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "Protocol")]
pub(super) struct TransportProtocol(pub Proto);

impl TryFrom<Protocol> for TransportProtocol {
    type Error = String;

    fn try_from(protocol: Protocol) -> Result<Self, String> {
        match protocol.0 {
            proto @ (Proto::TCP | Proto::UDP | Proto::SCTP) => Ok(Self(proto)),
            other => Err(format!("protocol {other} is none of TCP, UDP and SCTP")),
        }
    }
}

impl From<WrittenPeer> for Peer {
    fn from(written: WrittenPeer) -> Self {
        match written.ip_block {
            Some(block) => {
                let except = block.except.unwrap_or_default().into_iter().map(|net| net.0);
                Self::Block { net: block.cidr.0, except: except.collect() }
            }
            None => Self::Pods {
                namespaces: written.namespace_selector.map(Into::into),
                pods: written.pod_selector.map(Into::into),
            },
        }
    }
}

fn rule(peers: Option<Vec<WrittenPeer>>, ports: Option<Vec<RulePort>>) -> NetworkPolicyRule {
    NetworkPolicyRule {
        peers: peers.unwrap_or_default().into_iter().map(Into::into).collect(),
        ports: ports.unwrap_or_default().into_iter().map(|port| port.0).collect(),
    }
}

pub(super) fn network_policy(kind: PolicyKind, o: NetworkPolicy) -> Result<Resource, DecodeError> {
    let id = id_of(kind, o.metadata)?;
    let spec = o.spec.unwrap_or_default();
    if is_staged_delete(kind, spec.staged_action) {
        return Ok(absent(id));
    }
    let ingress: Vec<_> =
        spec.ingress.unwrap_or_default().into_iter().map(|it| rule(it.from, it.ports)).collect();
    let egress: Vec<_> =
        spec.egress.unwrap_or_default().into_iter().map(|it| rule(it.to, it.ports)).collect();
    let types = types_of(spec.policy_types.as_deref());
    Ok(Resource::Policy(kubernetes::network_policy(kubernetes::NetworkPolicy {
        id,
        pod_selector: spec.pod_selector.unwrap_or_default().into(),
        types: types.unwrap_or(Types { ingress: true, egress: !egress.is_empty() }),
        ingress,
        egress,
    })))
}
