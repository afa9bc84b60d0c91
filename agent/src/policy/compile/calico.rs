//! Calico's policies, tiers and profiles, and Calico's own combination of selectors into one.
//!
//! In: structs as Calico's API has them, defaults filled in where the API would. Out: [`ir`] forms.
//! What always holds: a rule's selectors become one selector that already holds the namespace it is limited to;
//! a rule without any selector asks nothing of who is at its side, in a namespaced policy too.
//! Deliberately not here: `http` (layer 7 matches nothing at layers 3 and 4), `applyOnForward` (forwarded traffic of
//! host endpoints).
//!
//! [`ir`]: crate::policy::ir

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    NAMESPACE, OF_NAMESPACE, OF_SERVICE_ACCOUNT, SERVICE_ACCOUNT, Types, has_namespace, in_namespace,
};
use crate::model::{Labels, Proto};
use crate::policy::ir::{
    self, IcmpMatch, IpVersion, PolicyId, PortMatch, RuleAction, ServiceRef, Stage, Uncertain,
};
use crate::policy::order::{DEFAULT_TIER_ORDER, built_in_tier};
use crate::policy::selector::Selector;

/// A NetworkPolicy (with a namespace) or a GlobalNetworkPolicy, staged or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub id: PolicyId,
    pub tier: Arc<str>,
    pub order: Option<f64>,
    pub selector: Option<Selector>,
    /// GlobalNetworkPolicies only.
    pub namespace_selector: Option<Selector>,
    pub service_account_selector: Option<Selector>,
    pub stage: Stage,
    pub types: Types,
    pub ingress: Vec<Rule>,
    pub egress: Vec<Rule>,
}

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
}

impl Rule {
    /// Of everything.
    pub fn new(action: RuleAction) -> Self {
        Self {
            action,
            ip_version: None,
            proto: None,
            not_proto: None,
            icmp: None,
            not_icmp: None,
            source: Entity::default(),
            dest: Entity::default(),
        }
    }
}

/// One side of a rule, as it is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entity {
    pub selector: Option<Selector>,
    pub namespace_selector: Option<Selector>,
    pub not_selector: Option<Selector>,
    pub service_account_names: Vec<Arc<str>>,
    pub service_account_selector: Option<Selector>,
    pub nets: Arc<[IpNet]>,
    pub not_nets: Arc<[IpNet]>,
    pub ports: Arc<[PortMatch]>,
    pub not_ports: Arc<[PortMatch]>,
    pub service: Option<ServiceRef>,
    /// Names resolved by DNS are asked for.
    pub domains: bool,
}

/// What the API makes of absent `types`.
pub fn default_types(has_ingress: bool, has_egress: bool) -> Types {
    Types { ingress: has_ingress || !has_egress, egress: has_egress }
}

pub fn policy(written: Policy) -> ir::Policy {
    let namespace = written.id.namespace.clone();
    let subject = match &namespace {
        Some(namespace) => namespaced_subject(&written, namespace),
        None => global_subject(&written),
    };
    let rules = |rules: &[Rule]| rules.iter().map(|it| rule(it, namespace.as_ref())).collect();
    let ingress = written.types.ingress.then(|| rules(&written.ingress));
    let egress = written.types.egress.then(|| rules(&written.egress));
    ir::Policy {
        id: written.id,
        tier: written.tier,
        order: written.order,
        subject: Arc::new(subject),
        stage: written.stage,
        ingress,
        egress,
    }
}

/// The built-in tiers keep their own order where an object does not say one.
pub fn tier(name: Arc<str>, order: Option<f64>, default_pass: Option<bool>) -> ir::Tier {
    let built_in = built_in_tier(&name);
    ir::Tier {
        order: order.or(built_in.as_ref().and_then(|tier| tier.order)).or(Some(DEFAULT_TIER_ORDER)),
        default_pass: default_pass.unwrap_or(built_in.is_some_and(|tier| tier.default_pass)),
        name,
    }
}

pub fn profile(name: Arc<str>, ingress: &[Rule], egress: &[Rule], labels_to_apply: Labels) -> ir::Profile {
    let rules = |rules: &[Rule]| rules.iter().map(|it| rule(it, None)).collect();
    ir::Profile { name, ingress: rules(ingress), egress: rules(egress), labels_to_apply }
}

/// `(selector) && projectcalico.org/namespace == '…' && pcsa.…`
fn namespaced_subject(written: &Policy, namespace: &Arc<str>) -> Selector {
    let accounts = written.service_account_selector.as_ref();
    let accounts = accounts.map(|selector| selector.with_prefix(OF_SERVICE_ACCOUNT));
    let terms = written.selector.clone().into_iter().chain([in_namespace(namespace)]).chain(accounts);
    Selector::all(terms.collect())
}

/// Calico replaces `all()` in the text of the whole selector, once a part of it is prefixed: with a namespace
/// selector by "is in a namespace", with a service account selector by "has a service account". `global()` stays, and
/// is true of everything.
fn global_subject(written: &Policy) -> Selector {
    let mut subject = written.selector.clone();
    for (selector, prefix, label) in [
        (&written.namespace_selector, OF_NAMESPACE, NAMESPACE),
        (&written.service_account_selector, OF_SERVICE_ACCOUNT, SERVICE_ACCOUNT),
    ] {
        if let Some(selector) = selector {
            let terms = subject.into_iter().chain([selector.with_prefix(prefix)]);
            subject = Some(Selector::all(terms.collect()).map_leaves(&|leaf| match leaf {
                Selector::All => Selector::Has(label.into()),
                other => other.clone(),
            }));
        }
    }
    subject.unwrap_or(Selector::All)
}

fn rule(written: &Rule, namespace: Option<&Arc<str>>) -> ir::Rule {
    let domains = written.source.domains || written.dest.domains;
    ir::Rule {
        action: written.action,
        ip_version: written.ip_version,
        proto: written.proto,
        not_proto: written.not_proto,
        icmp: written.icmp,
        not_icmp: written.not_icmp,
        source: entity(&written.source, namespace),
        dest: entity(&written.dest, namespace),
        uncertain: domains.then_some(Uncertain::Domains),
    }
}

fn entity(written: &Entity, namespace: Option<&Arc<str>>) -> ir::Entity {
    let mut selector = entity_selector(written, namespace);
    let mut not_selector = written.not_selector.clone();
    // Whoever is selected must not be selected by the other: with a positive selector both are asked of the same
    // endpoint or network set (Calico: felix/calc/rule_scanner.go, combineMatchesIfPossible).
    if let (Some(positive), Some(negative)) = (&selector, &not_selector) {
        selector = Some(Selector::all(vec![positive.clone(), Selector::Not(Arc::new(negative.clone()))]));
        not_selector = None;
    }
    ir::Entity {
        selector: selector.map(Arc::new),
        not_selector: not_selector.map(Arc::new),
        nets: written.nets.clone(),
        not_nets: written.not_nets.clone(),
        ports: written.ports.clone(),
        not_ports: written.not_ports.clone(),
        service: written.service.clone(),
    }
}

/// Who is meant: the namespace (selected, else the policy's own as soon as any selector is used), the service
/// accounts and the selector itself, all of them.
fn entity_selector(written: &Entity, namespace: Option<&Arc<str>>) -> Option<Selector> {
    let namespaces = match (&written.namespace_selector, namespace) {
        (Some(selector), _) => Some(selector.with_prefix(OF_NAMESPACE).map_leaves(&|leaf| match leaf {
            Selector::All => has_namespace(),
            Selector::Global => Selector::Not(Arc::new(has_namespace())),
            other => other.clone(),
        })),
        (None, Some(namespace)) => Some(in_namespace(namespace)),
        (None, None) => None,
    };
    let by_label = written.service_account_selector.as_ref();
    let by_label = by_label.map(|selector| selector.with_prefix(OF_SERVICE_ACCOUNT));
    let names = &written.service_account_names;
    let by_name = (!names.is_empty()).then(|| Selector::is_in(SERVICE_ACCOUNT.into(), names.clone()));
    let mut terms: Vec<Selector> =
        by_label.into_iter().chain(by_name).chain(written.selector.clone()).collect();
    let limited = !terms.is_empty() || written.not_selector.is_some() || written.namespace_selector.is_some();
    if limited && let Some(namespaces) = namespaces {
        terms.insert(0, namespaces);
    }
    (!terms.is_empty()).then(|| Selector::all(terms))
}
