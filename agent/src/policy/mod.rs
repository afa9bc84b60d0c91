//! "What does policy say of this flow?": policy objects, compiled and evaluated, pure.
//!
//! In: policy resources in one form ([`ir`]), the cluster. Out: the trace of a flow at one of its ends.
//! What always holds: a clone is a snapshot (persistent maps); applying the same resource again changes nothing.
//! Decoding objects (`watch`) and joining traces to flows (`pipeline`) are deliberately not here.

pub mod compile;
mod describe;
mod evaluate;
pub mod ir;
mod labels;
pub mod order;
pub mod preview;
pub mod reference;
pub mod selector;
mod store;

pub use evaluate::{Evaluator, EvaluatorStats};
pub use store::{Policies, Resource, ResourceKind, ResourceRef};

use std::sync::Arc;

use crate::model::{Action, Direction, Endpoint, EndpointKind, FiveTuple, Hit, PolicyKind};

/// The tier in which profiles are reported.
const PROFILE_TIER: &str = "__PROFILE__";
/// The profile that denies what no profile allows.
const NO_MATCH: &str = "__NO_MATCH__";
/// Calico's built-in profile of automatic host endpoints.
const DEFAULT_ALLOW: &str = "projectcalico-default-allow";
/// The index of a rule of which nobody can tell whether it matches. Such a hit passes: it is no verdict.
pub const UNKNOWN_RULE: i32 = -2;

/// A flow, as policy asks about it.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The connection's original direction, after DNAT and before SNAT.
    pub tuple: FiveTuple,
    /// ICMP type and code, where the flow tells them.
    pub icmp: Option<(u8, u8)>,
    /// Who owns the addresses: `[source, destination]`.
    pub ends: [Option<&'a Arc<Endpoint>>; 2],
}

impl<'a> Question<'a> {
    /// The end that is judged: the source for egress, the destination for ingress; if it is one that policy knows.
    pub fn own(&self, direction: Direction) -> Option<&'a Arc<Endpoint>> {
        let [source, dest] = self.ends;
        let own = match direction {
            Direction::Egress => source,
            Direction::Ingress => dest,
        };
        own.filter(|end| labels::owns_addresses(end))
    }
}

/// What stands in a trace for a resource that exists and could not be read, if it may judge `own`. `governs`: does
/// any policy of this tier?
fn broken_hit(
    reference: &ResourceRef,
    own: &Endpoint,
    pending: bool,
    governs: impl Fn(&str) -> bool,
) -> Option<Hit> {
    let is_pod = own.kind == EndpointKind::Wep;
    let (kind, tier) = match reference.kind {
        ResourceKind::Profile => return None,
        ResourceKind::Tier if governs(&reference.name) => (PolicyKind::Profile, &*reference.name),
        ResourceKind::Tier => return None,
        ResourceKind::Policy(kind) => {
            let tier = match kind {
                PolicyKind::ClusterNetworkPolicy => order::ADMIN_TIER,
                PolicyKind::AdminNetworkPolicy => order::LEGACY_ADMIN_TIER,
                PolicyKind::BaselineAdminNetworkPolicy => order::LEGACY_BASELINE_TIER,
                _ => order::DEFAULT_TIER,
            };
            let may_select = match kind {
                PolicyKind::GlobalNetworkPolicy | PolicyKind::StagedGlobalNetworkPolicy => true,
                _ if reference.namespace.is_some() => own.namespace == reference.namespace,
                _ => is_pod,
            };
            if !may_select || kind.is_staged() && !pending {
                return None;
            }
            (kind, tier)
        }
    };
    Some(Hit {
        tier: tier.into(),
        kind,
        namespace: reference.namespace.clone(),
        name: reference.name.clone(),
        action: Action::Pass,
        rule: UNKNOWN_RULE,
    })
}

/// Does the policy apply to this endpoint, in whatever direction?
pub fn selects(
    policy: &ir::Policy,
    endpoint: &Endpoint,
    cluster: &crate::cluster::Cluster,
    policies: &Policies,
) -> bool {
    policy.subject.matches(&labels::Identity::of(endpoint, cluster, policies))
}
