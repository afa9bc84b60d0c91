//! What a flow's line says besides who its ends are: the rules that lines and previews of lines share.
//!
//! In: ends, evaluations and counters of one flow. Out: what the line of one of its ends says. Always: pure, so that what
//! somebody who watches is shown cannot differ from what is written, where both know the same.
//! Source: contract, section 4. Not here: who the ends are (`ends.rs`), what the policies say (`judge.rs`).

use crate::aggregate::{PendingPolicies, Settings};
use crate::flow::Verdict;
use crate::model::{
    Addresses, Counters, Directional, Endpoint, EndpointKind, Evaluation, Reporter, Timestamp, Trace,
};

/// Who reports a flow at its source and at its destination.
pub(super) const REPORTERS: [Reporter; 2] = [Reporter::Src, Reporter::Dst];

/// Toward the reporter, and from it.
pub(super) fn toward(
    reporter: Reporter,
    Directional { original, reply }: Directional,
) -> (Counters, Counters) {
    match reporter {
        Reporter::Src => (reply, original),
        Reporter::Dst => (original, reply),
    }
}

/// Pending policies are of pods, and where they are asked for.
pub(super) fn has_pending(settings: &Settings, own: &Endpoint) -> bool {
    settings.pending_policies != PendingPolicies::None && own.kind != EndpointKind::Hep
}

/// What is pending: a dataplane's own word, else what the policies say by `now`, else what they said at the beginning.
pub(super) fn pending<'a>(
    verdict: Option<&'a Verdict>,
    now: Option<&'a Trace>,
    evaluation: Option<&'a Evaluation>,
) -> Option<&'a Trace> {
    let told = verdict.and_then(|verdict| verdict.pending.as_ref());
    told.or(now).or(evaluation.map(|evaluation| &evaluation.pending))
}

/// No policy has a say at this end: it is the node's own without a HostEndpoint, or a pod's that its own node talks to.
pub(super) fn is_unjudged(own: &Endpoint, side: usize, unpoliced: bool) -> bool {
    own.is_bare_node || side == 1 && unpoliced
}

/// Domains are told by the source, of what is outside of the cluster.
pub(super) fn has_domains(source_is_local: bool, dest: &Endpoint) -> bool {
    source_is_local && matches!(dest.kind, EndpointKind::Ns | EndpointKind::Net)
}

/// A port is translated on the way out; a connection to itself goes nowhere. 0 is none.
pub(super) fn nat_port(addresses: &Addresses, snat_port: u16) -> u16 {
    if addresses.src == addresses.dst { 0 } else { snat_port }
}

/// What was dropped before the connection began are packets of an earlier attempt.
pub(super) fn is_of_attempt(began: Timestamp, dropped_last: Timestamp) -> bool {
    dropped_last >= began
}

/// A connection without a reply whose packets are dropped is told by its drops alone.
pub(super) fn is_withheld(replied: bool, began: Timestamp, dropped_last: Timestamp) -> bool {
    !replied && is_of_attempt(began, dropped_last)
}

/// `policy_mismatch` where the packets went on: `None` where nothing certain was evaluated.
pub(super) fn mismatch_of_allowed(evaluation: Option<&Evaluation>, replied: bool) -> Option<bool> {
    evaluation.filter(|evaluation| !evaluation.unknown).map(|evaluation| evaluation.denies() && replied)
}

/// The same where they were dropped.
pub(super) fn mismatch_of_dropped(evaluation: Option<&Evaluation>, is_explained: bool) -> Option<bool> {
    evaluation.filter(|evaluation| !evaluation.unknown).map(|_| !is_explained)
}

/// To which end a drop belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DropOwner {
    pub(super) side: usize,
    /// Its policies deny.
    pub(super) is_explained: bool,
}

/// The first local end, in path order, whose policies deny; else the last local one. `None`: no end is local.
pub(super) fn owner_of_drop(local: [bool; 2], evaluations: [Option<&Evaluation>; 2]) -> Option<DropOwner> {
    let first =
        |is: fn(&Evaluation) -> bool| (0..2).find(|&side| local[side] && evaluations[side].is_some_and(is));
    if let Some(side) = first(Evaluation::denies) {
        return Some(DropOwner { side, is_explained: true });
    }
    // Where nobody denies for certain, one that may is the likelier owner than one that does not.
    let side = first(|evaluation| evaluation.unknown).or((0..2).rev().find(|&side| local[side]))?;
    Some(DropOwner { side, is_explained: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Action, Hit, PolicyKind};

    fn evaluation(action: Action, unknown: bool) -> Evaluation {
        let hit = Hit {
            tier: "default".into(),
            kind: PolicyKind::NetworkPolicy,
            namespace: None,
            name: "p".into(),
            action,
            rule: 0,
        };
        Evaluation { unknown, ..Evaluation::of_hits(&Trace([hit].into())) }
    }

    #[test]
    fn a_drop_belongs_to_the_first_local_end_that_denies_else_to_one_that_may_else_to_the_last() {
        let (allow, deny) = (evaluation(Action::Allow, false), evaluation(Action::Deny, false));
        let may = evaluation(Action::Allow, true);
        let both = [true, true];
        let owner = |side, is_explained| Some(DropOwner { side, is_explained });
        assert_eq!(owner_of_drop(both, [Some(&deny), Some(&deny)]), owner(0, true));
        assert_eq!(owner_of_drop(both, [Some(&allow), Some(&deny)]), owner(1, true));
        assert_eq!(owner_of_drop([true, false], [Some(&allow), Some(&deny)]), owner(0, false));
        assert_eq!(owner_of_drop(both, [Some(&may), Some(&allow)]), owner(0, false));
        assert_eq!(owner_of_drop(both, [Some(&allow), Some(&allow)]), owner(1, false));
        assert_eq!(owner_of_drop(both, [None, None]), owner(1, false));
        assert_eq!(owner_of_drop([false, false], [Some(&deny), Some(&deny)]), None);
    }
}
