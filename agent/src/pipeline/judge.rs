//! What the cluster's policies say of a flow: asked when it begins, when it is named, and again while it lives.
//!
//! In: a flow with its ends, the policies. Out: the evaluations of its local ends. Always: what is enforced is the
//! answer of the flow's beginning and does not move (of a denied flow: of its last drop); what is pending moves with
//! the policies while the flow lives; a dataplane's own verdict takes the place of both. An answer that was given
//! before an end was known is given again when the flow is named.
//! Source: contract, section 4.

use std::net::IpAddr;
use std::sync::Arc;

use crate::aggregate::PendingPolicies;
use crate::flow::{Connection, Denied, Flags};
use crate::model::{Endpoint, EndpointKind, Evaluation, FiveTuple, Trace};
use crate::policy::Question;

use super::fold::{Fold, JUDGED};

type Ends = [Option<Arc<Endpoint>>; 2];
type Evaluations = [Option<Arc<Evaluation>>; 2];

impl Fold<'_> {
    /// Which ends this node's policies judge.
    fn policed(&self, ends: &Ends, source: IpAddr) -> [bool; 2] {
        if self.cluster.is_empty() {
            return [false, false];
        }
        let host_endpoints = self.window.settings().host_endpoints;
        let [from, mut to] = [&ends[0], &ends[1]].map(|end| {
            end.as_ref().is_some_and(|end| {
                (end.kind == EndpointKind::Wep || end.kind == EndpointKind::Hep && host_endpoints)
                    && !end.is_bare_node
                    && self.cluster.is_local(end)
            })
        });
        // From the node itself to a pod of the same node nothing is policed.
        if to && ends[1].as_ref().is_some_and(|end| end.kind == EndpointKind::Wep) {
            let is_node = |end: &Arc<Endpoint>| end.kind == EndpointKind::Hep && self.cluster.is_local(end);
            to = !self.cluster.is_node_address(source) && !ends[0].as_ref().is_some_and(is_node);
        }
        [from, to]
    }

    fn ask(
        &mut self,
        tuple: FiveTuple,
        icmp: Option<(u8, u8)>,
        ends: &Ends,
        asked: [bool; 2],
    ) -> Evaluations {
        if asked == [false, false] {
            return [None, None];
        }
        let question = Question { tuple, icmp, ends: [ends[0].as_ref(), ends[1].as_ref()] };
        self.evaluator.evaluate(self.cluster, self.policies, &question, asked)
    }

    fn generation(&mut self) -> u32 {
        self.evaluator.follow(self.cluster, self.policies) as u32
    }

    /// The newest versions of the ends.
    fn current(&self, ends: &Ends) -> Ends {
        [&ends[0], &ends[1]].map(|end| {
            let end = end.as_ref()?;
            Some(self.cluster.current(end).unwrap_or(end).clone())
        })
    }

    /// At the flow's beginning, with the ends that are known.
    pub(super) fn judge(&mut self, connection: &mut Connection) {
        let tuple = connection.reported();
        let asked = self.policed(&connection.ends, tuple.addresses.src);
        let evaluations = self.ask(tuple, connection.icmp(), &connection.ends, asked);
        connection.judged_at = self.generation();
        self.take(connection, evaluations);
    }

    /// The flow has been named. `before`: the ends that were known when it was judged.
    pub(super) fn judge_named(&mut self, connection: &mut Connection, before: [bool; 2]) {
        if connection.flags.has(Flags::UNPOLICED_DST) && connection.flags.has(Flags::JUDGED_DST) {
            connection.evaluations[1] = None;
            connection.set_judged(1, false);
        }
        let found = is_found(&connection.ends, before);
        let tuple = connection.reported();
        let mut asked = self.policed(&connection.ends, tuple.addresses.src);
        for (side, asked) in asked.iter_mut().enumerate() {
            let missing = connection.evaluations[side].is_none();
            *asked &= missing || found && connection.flags.has(JUDGED[side]);
        }
        let evaluations = self.ask(tuple, connection.icmp(), &connection.ends, asked);
        self.take(connection, evaluations);
    }

    fn take(&mut self, connection: &mut Connection, evaluations: Evaluations) {
        for (side, evaluation) in evaluations.into_iter().enumerate() {
            let Some(evaluation) = evaluation else { continue };
            self.stats.evaluations_unknown += u64::from(evaluation.unknown);
            connection.evaluations[side] = Some(evaluation);
            connection.set_judged(side, true);
        }
    }

    /// What is pending now, while the flow lives (and for the last time when it ends).
    pub(super) fn judge_pending(&mut self, connection: &mut Connection) {
        if self.window.settings().pending_policies != PendingPolicies::Continuous {
            return;
        }
        let generation = self.generation();
        if connection.judged_at == generation {
            return;
        }
        connection.judged_at = generation;
        let tuple = connection.reported();
        let current = self.current(&connection.ends);
        let mut asked = self.policed(&current, tuple.addresses.src);
        for (side, asked) in asked.iter_mut().enumerate() {
            *asked &= connection.flags.has(JUDGED[side]);
        }
        let evaluations = self.ask(tuple, connection.icmp(), &current, asked);
        for (side, now) in evaluations.into_iter().enumerate() {
            let (Some(now), Some(before)) = (now, &connection.evaluations[side]) else { continue };
            if now.enforced == before.enforced && now.all == before.all && now.unknown == before.unknown {
                connection.evaluations[side] = Some(now);
                connection.set_pending(side, None);
            } else {
                connection.set_pending(side, Some(now));
            }
        }
    }

    /// Asks what the policies say of a denied flow; `true`: so different that the flow as it was is over.
    pub(super) fn judge_denied(&mut self, denied: &mut Denied) -> bool {
        let generation = self.generation();
        if denied.judged_at == Some(generation) {
            return false;
        }
        denied.judged_at = Some(generation);
        let mut evaluations = self
            .answers_for(denied, |denied, side| denied.judged[side] || denied.evaluations[side].is_none());
        let moved = (0..2).any(|side| match (&evaluations[side], &denied.evaluations[side]) {
            (Some(now), Some(before)) => !self.same_record(before, now),
            _ => false,
        });
        if moved {
            return true;
        }
        if self.window.settings().pending_policies != PendingPolicies::Continuous {
            // The same record, and what is pending stays.
            for (evaluation, judged) in evaluations.iter_mut().zip(denied.judged) {
                *evaluation = evaluation.take().filter(|_| !judged);
            }
        }
        self.take_denied(denied, evaluations);
        false
    }

    /// The flow has been named.
    pub(super) fn judge_denied_named(&mut self, denied: &mut Denied, before: [bool; 2]) {
        if denied.unpoliced && denied.judged[1] {
            denied.evaluations[1] = None;
            denied.judged[1] = false;
        }
        let found = is_found(&denied.ends, before);
        let evaluations = self.answers_for(denied, |denied, side| {
            denied.evaluations[side].is_none() || found && denied.judged[side]
        });
        self.take_denied(denied, evaluations);
    }

    fn answers_for(&mut self, denied: &Denied, wanted: impl Fn(&Denied, usize) -> bool) -> Evaluations {
        let tuple = denied.key.tuple;
        let ends = self.current(&denied.ends);
        let mut asked = self.policed(&ends, tuple.addresses.src);
        for (side, asked) in asked.iter_mut().enumerate() {
            *asked &= wanted(denied, side);
        }
        self.ask(tuple, denied.icmp, &ends, asked)
    }

    fn take_denied(&mut self, denied: &mut Denied, evaluations: Evaluations) {
        for (side, evaluation) in evaluations.into_iter().enumerate() {
            let Some(evaluation) = evaluation else { continue };
            self.stats.evaluations_unknown += u64::from(evaluation.unknown && !denied.judged[side]);
            denied.evaluations[side] = Some(evaluation);
            denied.judged[side] = true;
        }
    }

    /// What is pending now of a denied flow that lives, if that may have moved since its last drop.
    pub(super) fn pending_of_denied(&mut self, denied: &Denied) -> [Option<Trace>; 2] {
        let stays = self.window.settings().pending_policies != PendingPolicies::Continuous;
        if stays || denied.judged_at == Some(self.generation()) {
            return [None, None];
        }
        self.answers_for(denied, |denied, side| denied.judged[side])
            .map(|evaluation| evaluation.map(|evaluation| evaluation.pending.clone()))
    }
}

/// An end that policy may select was not known `before`.
fn is_found(ends: &Ends, before: [bool; 2]) -> bool {
    ends.iter().zip(before).any(|(end, before)| {
        !before && end.as_ref().is_some_and(|end| matches!(end.kind, EndpointKind::Wep | EndpointKind::Hep))
    })
}
