//! Policy objects of every kind, from their JSON form to the form that `policy` evaluates.
//!
//! In: a JSON value whose kind is known. Out: a tier, a profile or a policy, already compiled; else an error that names
//! the field. What always holds: what an API server would fill in (types, tier, order) is filled in here, because a
//! manifest or Calico's own storage (`crd.projectcalico.org/v1`) may come without it; nothing is guessed: a selector,
//! a port or an action that cannot be read makes the whole object an error, since a policy without one of its rules is
//! another policy. What rules mean is deliberately not here: see `policy/compile`.

mod admin;
mod calico;
mod kubernetes;

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use serde_json::Value;

use super::decode::{DecodeError, checked, fields, namespace_of};
use super::objects::{Meta, NoAnnotations};
use crate::model::PolicyKind;
use crate::policy::compile::Types;
use crate::policy::ir::{PolicyId, PortMatch};
use crate::policy::selector::{self, Selector};
use crate::policy::{Resource, ResourceKind, ResourceRef};

/// A policy resource's kind, by the API version and kind of its object.
pub(super) fn kind_of(api_version: &str, kind: &str) -> Option<ResourceKind> {
    Some(match (api_version, kind) {
        ("networking.k8s.io/v1", "NetworkPolicy") => {
            ResourceKind::Policy(PolicyKind::KubernetesNetworkPolicy)
        }
        ("policy.networking.k8s.io/v1alpha1", kind) => ResourceKind::Policy(match kind {
            "AdminNetworkPolicy" => PolicyKind::AdminNetworkPolicy,
            "BaselineAdminNetworkPolicy" => PolicyKind::BaselineAdminNetworkPolicy,
            _ => return None,
        }),
        ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") => {
            ResourceKind::Policy(PolicyKind::ClusterNetworkPolicy)
        }
        ("projectcalico.org/v3" | "crd.projectcalico.org/v1", kind) => match kind {
            "Tier" => ResourceKind::Tier,
            "Profile" => ResourceKind::Profile,
            "NetworkPolicy" => ResourceKind::Policy(PolicyKind::NetworkPolicy),
            "GlobalNetworkPolicy" => ResourceKind::Policy(PolicyKind::GlobalNetworkPolicy),
            "StagedNetworkPolicy" => ResourceKind::Policy(PolicyKind::StagedNetworkPolicy),
            "StagedGlobalNetworkPolicy" => ResourceKind::Policy(PolicyKind::StagedGlobalNetworkPolicy),
            "StagedKubernetesNetworkPolicy" => {
                ResourceKind::Policy(PolicyKind::StagedKubernetesNetworkPolicy)
            }
            _ => return None,
        },
        _ => return None,
    })
}

/// One object of this kind.
pub(super) fn decode(kind: ResourceKind, object: &str, value: Value) -> Result<Resource, DecodeError> {
    match kind {
        ResourceKind::Tier => fields(object, value).and_then(calico::tier),
        ResourceKind::Profile => fields(object, value).and_then(calico::profile),
        ResourceKind::Policy(of) => match of {
            PolicyKind::KubernetesNetworkPolicy | PolicyKind::StagedKubernetesNetworkPolicy => {
                fields(object, value).and_then(|policy| kubernetes::network_policy(of, policy))
            }
            PolicyKind::ClusterNetworkPolicy => fields(object, value).and_then(admin::cluster_policy),
            PolicyKind::AdminNetworkPolicy | PolicyKind::BaselineAdminNetworkPolicy => {
                fields(object, value).and_then(|policy| admin::admin_policy(of, policy))
            }
            PolicyKind::NetworkPolicy
            | PolicyKind::GlobalNetworkPolicy
            | PolicyKind::StagedNetworkPolicy
            | PolicyKind::StagedGlobalNetworkPolicy
            // No resource is of the kind Profile; its objects are resources of their own.
            | PolicyKind::Profile => fields(object, value).and_then(|policy| calico::policy(of, policy)),
        },
    }
}

fn id_of(kind: PolicyKind, meta: Meta<NoAnnotations>) -> Result<PolicyId, DecodeError> {
    let name = checked(meta.name, "metadata.name")?;
    let namespaced = ResourceKind::Policy(kind).is_namespaced();
    let namespace = namespaced.then(|| namespace_of(meta.namespace, "metadata.namespace")).transpose()?;
    Ok(PolicyId { kind, namespace, name })
}

fn absent(id: PolicyId) -> Resource {
    let PolicyId { kind, namespace, name } = id;
    Resource::Absent(ResourceRef { kind: ResourceKind::Policy(kind), namespace, name })
}

/// What a staged policy would do. `Learn` and `Ignore` are previewed like `Set`, as Calico does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum StagedAction {
    Set,
    /// Previews that the enforced policy of this name is gone: Calico leaves the staged one out.
    Delete,
    Learn,
    Ignore,
}

/// Staged kinds alone have a staged action.
fn is_staged_delete(kind: PolicyKind, action: Option<StagedAction>) -> bool {
    kind.is_staged() && action == Some(StagedAction::Delete)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PolicyType {
    Ingress,
    Egress,
}

impl<'de> Deserialize<'de> for PolicyType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.to_ascii_lowercase().as_str() {
            "ingress" => Ok(Self::Ingress),
            "egress" => Ok(Self::Egress),
            _ => Err(de::Error::custom(format!("{text:?} is neither Ingress nor Egress"))),
        }
    }
}

/// `None` where the list is absent or empty: its default depends on the kind.
fn types_of(listed: Option<&[PolicyType]>) -> Option<Types> {
    let listed = listed.filter(|listed| !listed.is_empty())?;
    Some(Types {
        ingress: listed.contains(&PolicyType::Ingress),
        egress: listed.contains(&PolicyType::Egress),
    })
}

/// A selector in Calico's language; the empty text is no selector.
#[derive(Debug)]
struct SelectorText(Option<Selector>);

impl<'de> Deserialize<'de> for SelectorText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        selector::parse(&text).map(|selector| Self(Some(selector))).map_err(de::Error::custom)
    }
}

fn selector(text: Option<SelectorText>) -> Option<Selector> {
    text.and_then(|text| text.0)
}

/// A number, a range `"a:b"`, or a port's name.
#[derive(Clone, Debug)]
struct PolicyPort(PortMatch);

impl<'de> Deserialize<'de> for PolicyPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = PolicyPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port: a number 0 to 65535, a range such as \"80:90\", or a name")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<PolicyPort, E> {
                let port = u16::try_from(n).map(|port| PolicyPort(PortMatch::Range(port, port)));
                port.map_err(|_| E::invalid_value(de::Unexpected::Unsigned(n), &self))
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<PolicyPort, E> {
                match u64::try_from(n) {
                    Ok(n) => self.visit_u64(n),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(n), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PolicyPort, E> {
                port_of(text)
                    .map(PolicyPort)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(NumberOrText)
    }
}

fn port_of(text: &str) -> Option<PortMatch> {
    if let Some((low, high)) = text.split_once(':') {
        let (low, high) = (low.parse().ok()?, high.parse().ok()?);
        return (low <= high).then_some(PortMatch::Range(low, high));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(|port| PortMatch::Range(port, port));
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (text.len() <= 128 && text.bytes().all(is_name)).then(|| PortMatch::Named(text.into()))
}

fn ports(listed: Option<Vec<PolicyPort>>) -> Arc<[PortMatch]> {
    listed.unwrap_or_default().into_iter().map(|port| port.0).collect()
}

#[cfg(test)]
mod tests;
