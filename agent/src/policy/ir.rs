//! One form for everything that policy objects say: tiers, policies, rules, matches.
//!
//! In: nothing; `compile` makes these from Kubernetes', Calico's and the admin network policies' objects. Out: what
//! the evaluator (and the naive reference evaluator of its tests) reads.
//! What always holds: rules stand in the order and under the indexes that Calico gives them (a Kubernetes rule is
//! already expanded by protocol and peer); every selector already holds the constraints that its place implies (own
//! namespace, orchestrator), so that matching needs the effective labels of an address and nothing else; what a rule
//! asks and we cannot tell is a [`Uncertain`], never left out.
//! Source of all semantics: Calico's converters and update processors (policy semantics, sections 1 to 9).

use std::sync::Arc;

use ipnet::IpNet;

use super::selector::Selector;
use crate::model::{PolicyKind, Proto};

/// Which policy. The `name` is the resource's own; it may begin with `<tier>.`, which the rendering does not repeat.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    pub kind: PolicyKind,
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tier {
    pub name: Arc<str>,
    /// `None` sorts last; the API's default (1,000,000) is filled in by the compiler.
    pub order: Option<f64>,
    /// What happens at the end of the tier: `true` is Pass, `false` (any other value) Deny.
    pub default_pass: bool,
}

/// Where a policy is enforced. Only normal ones are in an endpoint's tiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    #[default]
    Normal,
    DoNotTrack,
    PreDnat,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub id: PolicyId,
    pub tier: Arc<str>,
    /// `None` is last.
    pub order: Option<f64>,
    /// Which endpoints it applies to.
    pub subject: Arc<Selector>,
    pub stage: Stage,
    /// `None`: the policy does not govern this direction. Empty: it does, and no rule matches.
    pub ingress: Option<Arc<[Rule]>>,
    pub egress: Option<Arc<[Rule]>>,
}

/// A profile: rules without a tier, and (through `cluster`) labels that endpoints inherit.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    pub name: Arc<str>,
    pub ingress: Arc<[Rule]>,
    pub egress: Arc<[Rule]>,
    /// Labels that endpoints with this profile inherit.
    pub labels_to_apply: crate::model::Labels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleAction {
    Allow,
    Deny,
    Pass,
    /// Logs and goes on; it keeps its index.
    Log,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpVersion {
    V4,
    V6,
}

/// ICMP type, or type and code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IcmpMatch {
    /// `None`: any type (then there is no code either).
    pub kind: Option<u8>,
    pub code: Option<u8>,
}

/// All criteria of a rule are ANDed; an empty criterion asks nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub action: RuleAction,
    pub ip_version: Option<IpVersion>,
    pub proto: Option<Proto>,
    pub not_proto: Option<Proto>,
    pub icmp: Option<IcmpMatch>,
    pub not_icmp: Option<IcmpMatch>,
    pub source: Entity,
    pub dest: Entity,
    /// The rule asks for something that cannot be told from a flow: where everything else matches, the result is unknown.
    pub uncertain: Option<Uncertain>,
}

/// Why a rule's answer may be unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Uncertain {
    /// `domains`: names resolved by DNS.
    Domains,
}

/// One side of a rule. Lists inside a criterion are ORed; `not_` lists mean none of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entity {
    pub selector: Option<Arc<Selector>>,
    pub not_selector: Option<Arc<Selector>>,
    pub nets: Arc<[IpNet]>,
    pub not_nets: Arc<[IpNet]>,
    /// Numeric or named, ORed.
    pub ports: Arc<[PortMatch]>,
    pub not_ports: Arc<[PortMatch]>,
    /// Endpoints of a service. As a destination with their ports, as a source by address alone.
    pub service: Option<ServiceRef>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortMatch {
    /// Inclusive.
    Range(u16, u16),
    /// A port that the endpoint at this side names so; for the rule's protocol, if it has one.
    Named(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceRef {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}
