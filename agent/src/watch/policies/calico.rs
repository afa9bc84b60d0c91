//! Calico's NetworkPolicy, GlobalNetworkPolicy, their staged kinds, Tier and Profile.
//!
//! In: the object as it is written, of `projectcalico.org/v3` or of Calico's own storage `crd.projectcalico.org/v1`.
//! Out: the resource. The names of policies are kept as they are written, `<tier>.` in front or not.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny};

use super::{
    PolicyPort, PolicyType, SelectorText, StagedAction, absent, id_of, is_staged_delete, ports, selector,
    types_of,
};
use crate::model::PolicyKind;
use crate::policy::Resource;
use crate::policy::compile::calico;
use crate::policy::ir::{IcmpMatch, IpVersion, RuleAction, ServiceRef, Stage};
use crate::policy::order::DEFAULT_TIER;
use crate::watch::decode::{DecodeError, checked, invalid};
use crate::watch::objects::{LabelMap, Meta, Net, NoAnnotations, Protocol};

#[derive(Debug, Deserialize)]
pub(super) struct Policy {
    metadata: Meta<NoAnnotations>,
    spec: Option<PolicySpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PolicySpec {
    tier: Option<Arc<str>>,
    order: Option<f64>,
    selector: Option<SelectorText>,
    namespace_selector: Option<SelectorText>,
    service_account_selector: Option<SelectorText>,
    types: Option<Vec<PolicyType>>,
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
    do_not_track: Option<bool>,
    #[serde(rename = "preDNAT")]
    pre_dnat: Option<bool>,
    staged_action: Option<StagedAction>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tier {
    metadata: Meta<NoAnnotations>,
    spec: Option<TierSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TierSpec {
    order: Option<f64>,
    /// Any value but Pass is Deny.
    default_action: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Profile {
    metadata: Meta<NoAnnotations>,
    spec: Option<ProfileSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileSpec {
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
    labels_to_apply: Option<LabelMap>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    action: Action,
    ip_version: Option<Version>,
    protocol: Option<Protocol>,
    not_protocol: Option<Protocol>,
    icmp: Option<Icmp>,
    #[serde(rename = "notICMP")]
    not_icmp: Option<Icmp>,
    source: Option<Entity>,
    destination: Option<Entity>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entity {
    selector: Option<SelectorText>,
    namespace_selector: Option<SelectorText>,
    not_selector: Option<SelectorText>,
    service_accounts: Option<ServiceAccounts>,
    nets: Option<Vec<Net>>,
    not_nets: Option<Vec<Net>>,
    ports: Option<Vec<PolicyPort>>,
    not_ports: Option<Vec<PolicyPort>>,
    services: Option<Services>,
    domains: Option<Vec<IgnoredAny>>,
}

#[derive(Debug, Default, Deserialize)]
struct ServiceAccounts {
    names: Option<Vec<Arc<str>>>,
    selector: Option<SelectorText>,
}

#[derive(Debug, Deserialize)]
struct Services {
    name: Arc<str>,
    namespace: Option<Arc<str>>,
}

/// In any case; `next-tier` is how Calico's storage once wrote Pass.
#[derive(Clone, Copy, Debug)]
struct Action(RuleAction);

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self(match text.to_ascii_lowercase().as_str() {
            "allow" => RuleAction::Allow,
            "deny" => RuleAction::Deny,
            "pass" | "next-tier" => RuleAction::Pass,
            "log" => RuleAction::Log,
            _ => return Err(de::Error::custom(format!("{text:?} is none of Allow, Deny, Pass and Log"))),
        }))
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "u8")]
struct Version(IpVersion);

impl TryFrom<u8> for Version {
    type Error = String;

    fn try_from(version: u8) -> Result<Self, String> {
        match version {
            4 => Ok(Self(IpVersion::V4)),
            6 => Ok(Self(IpVersion::V6)),
            other => Err(format!("{other} is neither 4 nor 6")),
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "WrittenIcmp")]
struct Icmp(IcmpMatch);

#[derive(Clone, Copy, Debug, Deserialize)]
struct WrittenIcmp {
    #[serde(rename = "type")]
    kind: Option<u8>,
    code: Option<u8>,
}

impl TryFrom<WrittenIcmp> for Icmp {
    type Error = String;

    fn try_from(written: WrittenIcmp) -> Result<Self, String> {
        if written.kind.is_none() && written.code.is_some() {
            return Err("a code needs a type".to_owned());
        }
        Ok(Self(IcmpMatch { kind: written.kind, code: written.code }))
    }
}

fn entity(
    written: Option<Entity>,
    namespace: Option<&Arc<str>>,
    place: impl Fn() -> String,
) -> Result<calico::Entity, DecodeError> {
    let written = written.unwrap_or_default();
    let nets = |listed: Option<Vec<Net>>| listed.unwrap_or_default().into_iter().map(|net| net.0).collect();
    let accounts = written.service_accounts.unwrap_or_default();
    let service = match written.services {
        None => None,
        Some(of) => {
            let own = of.namespace.filter(|named| !named.is_empty()).or_else(|| namespace.cloned());
            let Some(namespace) = own else {
                let problem = "is missing: a policy without a namespace must say where the service is";
                return Err(invalid(format!("{}.services.namespace", place()), problem));
            };
            let name = checked(of.name, "name")
                .map_err(|error| DecodeError { field: format!("{}.services.name", place()), ..error })?;
            Some(ServiceRef { namespace, name })
        }
    };
    Ok(calico::Entity {
        selector: selector(written.selector),
        namespace_selector: selector(written.namespace_selector),
        not_selector: selector(written.not_selector),
        service_account_names: accounts.names.unwrap_or_default(),
        service_account_selector: selector(accounts.selector),
        nets: nets(written.nets),
        not_nets: nets(written.not_nets),
        ports: ports(written.ports),
        not_ports: ports(written.not_ports),
        service,
        domains: written.domains.is_some_and(|domains| !domains.is_empty()),
    })
}

fn rules(
    written: Option<Vec<Rule>>,
    namespace: Option<&Arc<str>>,
    field: &str,
) -> Result<Vec<calico::Rule>, DecodeError> {
    let rule = |(index, written): (usize, Rule)| {
        let source = || format!("{field}[{index}].source");
        let dest = || format!("{field}[{index}].destination");
        Ok(calico::Rule {
            action: written.action.0,
            ip_version: written.ip_version.map(|version| version.0),
            proto: written.protocol.map(|proto| proto.0),
            not_proto: written.not_protocol.map(|proto| proto.0),
            icmp: written.icmp.map(|icmp| icmp.0),
            not_icmp: written.not_icmp.map(|icmp| icmp.0),
            source: entity(written.source, namespace, source)?,
            dest: entity(written.destination, namespace, dest)?,
        })
    };
    written.unwrap_or_default().into_iter().enumerate().map(rule).collect()
}

pub(super) fn policy(kind: PolicyKind, o: Policy) -> Result<Resource, DecodeError> {
    let id = id_of(kind, o.metadata)?;
    let spec = o.spec.unwrap_or_default();
    if is_staged_delete(kind, spec.staged_action) {
        return Ok(absent(id));
    }
    let tier = spec.tier.filter(|tier| !tier.is_empty()).unwrap_or_else(|| DEFAULT_TIER.into());
    let global = id.namespace.is_none();
    let stage = match (spec.do_not_track == Some(true), spec.pre_dnat == Some(true)) {
        (true, true) if global => return Err(invalid("spec.preDNAT", "and doNotTrack exclude each other")),
        (true, _) if global => Stage::DoNotTrack,
        (_, true) if global => Stage::PreDnat,
        _ => Stage::Normal,
    };
    let ingress = rules(spec.ingress, id.namespace.as_ref(), "spec.ingress")?;
    let egress = rules(spec.egress, id.namespace.as_ref(), "spec.egress")?;
    let types = types_of(spec.types.as_deref());
    Ok(Resource::Policy(calico::policy(calico::Policy {
        tier: checked(tier, "spec.tier")?,
        order: spec.order,
        selector: selector(spec.selector),
        namespace_selector: selector(spec.namespace_selector).filter(|_| global),
        service_account_selector: selector(spec.service_account_selector),
        stage,
        types: types.unwrap_or_else(|| calico::default_types(!ingress.is_empty(), !egress.is_empty())),
        ingress,
        egress,
        id,
    })))
}

pub(super) fn tier(o: Tier) -> Result<Resource, DecodeError> {
    let spec = o.spec.unwrap_or_default();
    let name = checked(o.metadata.name, "metadata.name")?;
    let default_pass = spec.default_action.map(|action| action == "Pass");
    Ok(Resource::Tier(calico::tier(name, spec.order, default_pass)))
}

pub(super) fn profile(o: Profile) -> Result<Resource, DecodeError> {
    let spec = o.spec.unwrap_or_default();
    Ok(Resource::Profile(calico::profile(
        checked(o.metadata.name, "metadata.name")?,
        &rules(spec.ingress, None, "spec.ingress")?,
        &rules(spec.egress, None, "spec.egress")?,
        spec.labels_to_apply.unwrap_or_default().0,
    )))
}
