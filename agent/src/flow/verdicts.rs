//! What a dataplane reported of its own rule hits, by tuple and direction: it takes the place of evaluation from
//! its time until the next one. Bounded: the least recently used verdict is forgotten, and counted.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use crate::model::{Direction, Evaluation, FiveTuple, Trace, VerdictRecord, VerdictSet};

#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub evaluation: Option<Arc<Evaluation>>,
    pub pending: Option<Trace>,
    /// Grows with every verdict line: the last writer of a record's pending policies wins.
    pub sequence: u64,
}

pub struct Verdicts {
    by_tuple: LruCache<(FiveTuple, Direction), Verdict>,
    sequence: u64,
}

impl Verdicts {
    pub fn new(limit: NonZeroUsize) -> Self {
        Self { by_tuple: LruCache::new(limit), sequence: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.by_tuple.is_empty()
    }

    /// `true` when another verdict had to be forgotten.
    pub fn observe(&mut self, record: &VerdictRecord) -> bool {
        self.sequence += 1;
        let key = (record.tuple, record.direction);
        let mut verdict = self.by_tuple.pop(&key).unwrap_or_default();
        verdict.sequence = self.sequence;
        match record.set {
            VerdictSet::Pending => verdict.pending = Some(record.hits.clone()),
            VerdictSet::Enforced => verdict.evaluation = Some(Arc::new(Evaluation::of_hits(&record.hits))),
        }
        self.by_tuple.push(key, verdict).is_some_and(|(other, _)| other != key)
    }

    pub fn get(&self, tuple: FiveTuple, direction: Direction) -> Option<&Verdict> {
        if self.by_tuple.is_empty() {
            return None;
        }
        self.by_tuple.peek(&(tuple, direction))
    }
}
