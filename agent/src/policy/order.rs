//! In which order tiers and policies are evaluated.
//!
//! In: all policy resources. Out: the tiers that hold a policy, first evaluated first, each with its policies in order.
//! What always holds: tiers by order, then name, those that nothing defines last and with default Deny; policies by
//! order, then by the bytes of `name/namespace/kind` (Calico: felix/calc/policy_sorter.go, TierLess and PolKVLess), so
//! that `rule-2` and `rule.x` come before `rule`, and `rule2` after it. Which policies select an endpoint, and the
//! stages before the normal tiers (doNotTrack, preDNAT), are deliberately not here.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Policies;
use super::ir::{Policy, PolicyId, Stage, Tier};

/// The tier of every policy that names none.
pub const DEFAULT_TIER: &str = "default";
/// Of ClusterNetworkPolicies.
pub const ADMIN_TIER: &str = "kube-admin";
pub const BASELINE_TIER: &str = "kube-baseline";
/// Of AdminNetworkPolicies and of the BaselineAdminNetworkPolicy (Calico up to 3.30).
pub const LEGACY_ADMIN_TIER: &str = "adminnetworkpolicy";
pub const LEGACY_BASELINE_TIER: &str = "baselineadminnetworkpolicy";
/// What the API gives a tier without an order: that of the default tier.
pub const DEFAULT_TIER_ORDER: f64 = 1_000_000.0;
const ADMIN_TIER_ORDER: f64 = 1_000.0;
const BASELINE_TIER_ORDER: f64 = 10_000_000.0;

/// A tier and its policies, first evaluated first.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderedTier {
    pub tier: Arc<Tier>,
    /// `false`: policies name a tier that nothing defines; it is evaluated last, with default Deny.
    pub is_defined: bool,
    pub policies: Vec<Arc<Policy>>,
}

/// The tiers that exist without an object (Calico: api/pkg/apis/projectcalico/v3/tier.go).
pub fn built_in_tier(name: &str) -> Option<Tier> {
    let (order, default_pass) = match name {
        ADMIN_TIER | LEGACY_ADMIN_TIER => (ADMIN_TIER_ORDER, true),
        DEFAULT_TIER => (DEFAULT_TIER_ORDER, false),
        BASELINE_TIER | LEGACY_BASELINE_TIER => (BASELINE_TIER_ORDER, true),
        _ => return None,
    };
    Some(Tier { name: name.into(), order: Some(order), default_pass })
}

/// The normal tiers that hold a policy, with their policies.
pub fn tiers(policies: &Policies) -> Vec<OrderedTier> {
    let mut by_tier: BTreeMap<Arc<str>, Vec<Arc<Policy>>> = BTreeMap::new();
    for policy in policies.policies().filter(|policy| policy.stage == Stage::Normal) {
        by_tier.entry(policy.tier.clone()).or_default().push(policy.clone());
    }
    let mut tiers: Vec<OrderedTier> = by_tier
        .into_iter()
        .map(|(name, mut members)| {
            members.sort_by(|a, b| compare_policies(a, b));
            let defined = policies.tier(&name);
            let is_defined = defined.is_some();
            let undefined = || Arc::new(Tier { name, order: None, default_pass: false });
            OrderedTier { tier: defined.unwrap_or_else(undefined), is_defined, policies: members }
        })
        .collect();
    tiers.sort_by(|a, b| b.is_defined.cmp(&a.is_defined).then_with(|| compare_tiers(&a.tier, &b.tier)));
    tiers
}

fn compare_tiers(a: &Tier, b: &Tier) -> Ordering {
    by_order(a.order, b.order).then_with(|| a.name.cmp(&b.name))
}

pub fn compare_policies(a: &Policy, b: &Policy) -> Ordering {
    by_order(a.order, b.order).then_with(|| compare_ids(&a.id, &b.id))
}

/// `None` is last. Orders are numbers (JSON has no others), and `-0` equals `0`.
fn by_order(a: Option<f64>, b: Option<f64>) -> Ordering {
    let key = |order: Option<f64>| order.unwrap_or(f64::INFINITY);
    key(a).partial_cmp(&key(b)).unwrap_or(Ordering::Equal)
}

/// As the strings `name/namespace/kind` compare.
fn compare_ids(a: &PolicyId, b: &PolicyId) -> Ordering {
    fn bytes(id: &PolicyId) -> impl Iterator<Item = u8> {
        let namespace = id.namespace.as_deref().unwrap_or_default();
        let kind = id.kind.name().bytes();
        id.name.bytes().chain([b'/']).chain(namespace.bytes()).chain([b'/']).chain(kind)
    }
    bytes(a).cmp(bytes(b))
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
