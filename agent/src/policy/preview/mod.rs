//! What a change of policies would mean for flows that were seen.
//!
//! In: flows (of a recording: exact; of a log: as far as aggregation left them), the world as it is and as it would be.
//! Out: for each flow whether it becomes allowed, becomes denied or stays, and which policy decides. What always
//! holds: a flow is allowed if neither its source's egress nor its destination's ingress denies; where aggregation
//! took away what the answer needs, all flows that it may have been are asked, and the answer is certain only if they
//! agree; what the log's own verdict rules out it was not. Tables, files and exit codes are deliberately not here.

mod atoms;
mod seen;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

pub use seen::{Candidate, Directory, KnownEnd, SeenEnd, SeenFlow};

use super::{Evaluator, Policies, Question, UNKNOWN_RULE};
use crate::cluster::Cluster;
use crate::model::{Action, Direction, Endpoint, EndpointKind, Hit};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    BecomesDenied,
    /// What the answer needs is not known.
    Uncertain,
    BecomesAllowed,
    StaysDenied,
    StaysAllowed,
}

impl Change {
    pub const ALL: [Self; 5] =
        [Self::BecomesDenied, Self::Uncertain, Self::BecomesAllowed, Self::StaysDenied, Self::StaysAllowed];

    pub fn name(self) -> &'static str {
        match self {
            Self::BecomesDenied => "becomes denied",
            Self::Uncertain => "uncertain",
            Self::BecomesAllowed => "becomes allowed",
            Self::StaysDenied => "stays denied",
            Self::StaysAllowed => "stays allowed",
        }
    }

    fn of(before: bool, after: bool) -> Self {
        match (before, after) {
            (true, false) => Self::BecomesDenied,
            (false, true) => Self::BecomesAllowed,
            (false, false) => Self::StaysDenied,
            (true, true) => Self::StaysAllowed,
        }
    }
}

/// Which hit decided, at which end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decider {
    pub direction: Direction,
    pub hit: Hit,
}

/// What the change means for one flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub change: Change,
    /// What decides now, and what would; `None`: no policy is asked, or several may decide.
    pub before: Option<Decider>,
    pub after: Option<Decider>,
    /// Uncertain: what it may be.
    pub possible: BTreeSet<Change>,
    /// Uncertain: what is not known.
    pub why: &'static str,
}

/// A world, and its evaluator.
pub struct View<'a> {
    pub cluster: &'a Cluster,
    pub policies: &'a Policies,
    pub evaluator: &'a mut Evaluator,
}

/// What the policies of both ends say.
struct Verdict {
    denied_by: Option<Direction>,
    decider: Option<Decider>,
}

impl Verdict {
    /// Could the reporter have seen what it says it saw?
    fn agrees(&self, reporter: Direction, passed: bool) -> bool {
        match (reporter, passed) {
            (Direction::Egress, passed) => (self.denied_by != Some(Direction::Egress)) == passed,
            (Direction::Ingress, true) => self.denied_by.is_none(),
            (Direction::Ingress, false) => self.denied_by == Some(Direction::Ingress),
        }
    }
}

impl View<'_> {
    /// `None`: it cannot be told.
    fn verdict(&mut self, flow: &SeenFlow, candidate: &Candidate, staged: bool) -> Option<Verdict> {
        let [source, dest] = &candidate.ends;
        let question =
            Question { tuple: candidate.tuple, icmp: flow.icmp, ends: [source.as_ref(), dest.as_ref()] };
        let exempt = flow.is_exempt == Some(true) || self.is_exempt(candidate);
        let evaluations = self.evaluator.evaluate(self.cluster, self.policies, &question, [true, !exempt]);
        let mut last = None;
        for (direction, evaluation) in [Direction::Egress, Direction::Ingress].into_iter().zip(evaluations) {
            let Some(evaluation) = evaluation else { continue };
            let trace = if staged { &evaluation.pending } else { &evaluation.enforced };
            let Some(hit) = trace.0.last() else { continue };
            if hit.rule == UNKNOWN_RULE {
                return None;
            }
            let decider = Some(Decider { direction, hit: hit.clone() });
            if hit.action == Action::Deny {
                return Some(Verdict { denied_by: Some(direction), decider });
            }
            last = decider;
        }
        Some(Verdict { denied_by: None, decider: last })
    }

    /// From a node to a pod of its own, policies are not asked.
    fn is_exempt(&self, candidate: &Candidate) -> bool {
        let [source, dest] = &candidate.ends;
        let Some(pod) = dest.as_ref().filter(|dest| dest.kind == EndpointKind::Wep) else { return false };
        let Some(node) = &pod.node else { return false };
        let is_host = |end: &Arc<Endpoint>| end.kind == EndpointKind::Hep && end.node.as_ref() == Some(node);
        let src = candidate.tuple.addresses.src;
        source.as_ref().is_some_and(is_host) || self.cluster.addresses_of_node(node).any(|ip| ip == src)
    }

    /// Who is this end in this world, as `before` has it: in another version where the change touches it, none where
    /// it would be gone; itself where it is gone in both.
    fn end(&self, before: &View<'_>, ip: IpAddr, end: Option<&Arc<Endpoint>>) -> Option<Arc<Endpoint>> {
        let end = end?;
        let same = |other: &&Arc<Endpoint>| {
            other.kind == end.kind && other.namespace == end.namespace && other.name == end.name
        };
        let find = |view: &View<'_>| {
            view.cluster.holders(ip).find(same).or_else(|| view.cluster.current(end)).cloned()
        };
        find(self).or_else(|| find(before).is_none().then(|| end.clone()))
    }
}

/// What the change means for this flow; `staged`: staged policies count as enforced after it.
pub fn compare(
    before: &mut View<'_>,
    after: &mut View<'_>,
    flow: &SeenFlow,
    candidates: &[Candidate],
    staged: bool,
) -> Outcome {
    let mut answers = Vec::with_capacity(candidates.len());
    let mut unknown = false;
    for candidate in candidates {
        let addresses = candidate.tuple.addresses;
        let [source, dest] = &candidate.ends;
        let changed = Candidate {
            tuple: candidate.tuple,
            ends: [
                after.end(before, addresses.src, source.as_ref()),
                after.end(before, addresses.dst, dest.as_ref()),
            ],
        };
        match (before.verdict(flow, candidate, false), after.verdict(flow, &changed, staged)) {
            (Some(now), Some(then)) => answers.push((candidate, now, then)),
            _ => unknown = true,
        }
    }
    // A verdict that none of them explains rules out nothing: the policies were others then, or are not enforced.
    if let Some(passed) = flow.passed
        && answers.iter().any(|(_, now, _)| now.agrees(flow.reporter, passed))
    {
        answers.retain(|(_, now, _)| now.agrees(flow.reporter, passed));
    }
    let mut possible = BTreeSet::new();
    let mut deciders: [Option<Option<Decider>>; 2] = [None, None];
    let left: Vec<&Candidate> = answers.iter().map(|(candidate, ..)| *candidate).collect();
    let missing = missing(&left);
    for (_, now, then) in answers {
        possible.insert(Change::of(now.denied_by.is_none(), then.denied_by.is_none()));
        for (known, decider) in deciders.iter_mut().zip([now.decider, then.decider]) {
            match known {
                None => *known = Some(decider),
                Some(same) if *same == decider => {}
                // Several: none of them alone.
                Some(_) => *known = Some(None),
            }
        }
    }
    let [before, after] = deciders.map(Option::flatten);
    match (possible.first(), possible.len(), unknown) {
        (Some(change), 1, false) => {
            Outcome { change: *change, before, after, possible: BTreeSet::new(), why: "" }
        }
        _ => Outcome {
            change: Change::Uncertain,
            before,
            after,
            possible,
            why: if unknown { "a rule asks for what the flow does not tell" } else { missing },
        },
    }
}

/// What aggregation took away: in what the candidates differ.
fn missing(candidates: &[&Candidate]) -> &'static str {
    let Some(first) = candidates.first() else { return "" };
    let differs = |of: fn(&Candidate) -> (IpAddr, u16), port: bool| {
        candidates.iter().any(|candidate| {
            let (a, b) = (of(candidate), of(first));
            if port { a.1 != b.1 } else { a.0 != b.0 }
        })
    };
    let source: fn(&Candidate) -> _ = |of| (of.tuple.addresses.src, of.tuple.addresses.src_port);
    let dest: fn(&Candidate) -> _ = |of| (of.tuple.addresses.dst, of.tuple.addresses.dst_port);
    match (differs(source, false), differs(dest, false), differs(dest, true)) {
        (true, false, false) => "which source was aggregated away",
        (false, true, false) => "which destination was aggregated away",
        (false, false, true) => "the destination's port was aggregated away",
        (true, true, false) => "which source and destination was aggregated away",
        (true, false, true) => "which source and port was aggregated away",
        (_, _, true) => "which destination and port was aggregated away",
        (false, false, false) => "the source's port was aggregated away",
    }
}

/// Nothing can be told of this flow.
pub fn untold(why: &'static str) -> Outcome {
    Outcome { change: Change::Uncertain, before: None, after: None, possible: BTreeSet::new(), why }
}

#[cfg(test)]
mod tests;
