//! What a dataplane reported of its own rule hits, by tuple and direction: it takes the place of evaluation from
//! its time until the next one. Those that were replaced in this window are kept until its end, because a flow is
//! looked at later than its verdicts are told. Bounded: the least recently used verdict is forgotten, and counted.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use crate::model::{Direction, Evaluation, FiveTuple, Timestamp, Trace, VerdictRecord, VerdictSet};

/// Replaced verdicts of one tuple and direction that are kept in a window; beyond it the oldest is forgotten.
const REPLACED: usize = 8;

#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Oldest first, each with the time from which it held; the last one holds now.
    evaluations: Vec<(Timestamp, Arc<Evaluation>)>,
    pub pending: Option<Trace>,
    /// Grows with every verdict line: the last writer of a record's pending policies wins.
    pub sequence: u64,
}

impl Verdict {
    /// What a flow that `began` then takes next, after `taken`. A flow without any takes the one that held when it
    /// began, else the first that was told after.
    pub fn next(&self, taken: Option<&Arc<Evaluation>>, began: Timestamp) -> Option<&Arc<Evaluation>> {
        let next = match taken {
            Some(taken) => {
                let place = self.evaluations.iter().position(|(_, known)| Arc::ptr_eq(known, taken));
                self.evaluations.get(place.map_or(0, |place| place + 1))
            }
            None => {
                let held = self.evaluations.iter().rfind(|(at, _)| *at <= began);
                held.or_else(|| self.evaluations.first())
            }
        };
        next.map(|(_, evaluation)| evaluation)
    }

    fn tell(&mut self, at: Timestamp, evaluation: Evaluation) {
        if self.evaluations.last().is_some_and(|(_, known)| **known == evaluation) {
            return;
        }
        if self.evaluations.len() > REPLACED {
            self.evaluations.remove(0);
        }
        self.evaluations.push((at, Arc::new(evaluation)));
    }
}

pub struct Verdicts {
    by_tuple: LruCache<(FiveTuple, Direction), Verdict>,
    /// Those with more than one evaluation.
    replaced: Vec<(FiveTuple, Direction)>,
    sequence: u64,
}

impl Verdicts {
    pub fn new(limit: NonZeroUsize) -> Self {
        Self { by_tuple: LruCache::new(limit), replaced: Vec::new(), sequence: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.by_tuple.is_empty()
    }

    /// `true` when another verdict had to be forgotten.
    pub fn observe(&mut self, record: &VerdictRecord, at: Timestamp) -> bool {
        self.sequence += 1;
        let key = (record.tuple, record.direction);
        let mut verdict = self.by_tuple.pop(&key).unwrap_or_default();
        verdict.sequence = self.sequence;
        match record.set {
            VerdictSet::Pending => verdict.pending = Some(record.hits.clone()),
            VerdictSet::Enforced => {
                let before = verdict.evaluations.len();
                verdict.tell(at, Evaluation::of_hits(&record.hits));
                if before == 1 && verdict.evaluations.len() == 2 {
                    self.replaced.push(key);
                }
            }
        }
        self.by_tuple.push(key, verdict).is_some_and(|(other, _)| other != key)
    }

    pub fn get(&self, tuple: FiveTuple, direction: Direction) -> Option<&Verdict> {
        if self.by_tuple.is_empty() {
            return None;
        }
        self.by_tuple.peek(&(tuple, direction))
    }

    /// Every flow has taken what held in this window: what was replaced is forgotten.
    pub fn close_window(&mut self) {
        for key in std::mem::take(&mut self.replaced) {
            if let Some(verdict) = self.by_tuple.peek_mut(&key) {
                let last = verdict.evaluations.pop();
                verdict.evaluations.clear();
                verdict.evaluations.extend(last);
            }
        }
    }
}
