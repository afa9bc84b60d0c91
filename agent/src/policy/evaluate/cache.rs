//! Verdicts by what they depend on: a table of fixed size, two places a verdict.
//!
//! In: program, memberships, protocol, port classes. Out: the evaluation, if it was put here before. What always
//! holds: the memory is bounded and taken once, at the first verdict; the newer verdict stays where two want one
//! place; nothing needs to be invalidated, because what changed is asked for under other numbers. Own code: an LRU of
//! the `lru` crate costs an allocation a verdict and a list to relink a hit.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::model::Evaluation;

/// A power of two.
const PLACES: usize = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub program: u32,
    /// `[source's, destination's]`.
    pub members: [u32; 2],
    pub ports: [u16; 2],
    /// Type and code, where the program asks for them.
    pub icmp: Option<(u8, u8)>,
    pub proto: u8,
    pub is_v4: bool,
}

/// By whole words.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [source, dest] = self.members;
        let [source_port, dest_port] = self.ports;
        let icmp = self.icmp.map_or(0, |(kind, code)| 1 << 16 | u64::from(kind) << 8 | u64::from(code));
        state.write_u64(u64::from(source) << 32 | u64::from(dest));
        state.write_u64(u64::from(self.program) << 32 | u64::from(source_port) << 16 | u64::from(dest_port));
        state.write_u64(icmp << 16 | u64::from(self.proto) << 1 | u64::from(self.is_v4));
    }
}

#[derive(Default)]
pub(super) struct VerdictCache {
    places: Vec<Option<(Key, Arc<Evaluation>)>>,
    hasher: RandomState,
}

impl VerdictCache {
    fn place(&self, key: &Key) -> usize {
        self.hasher.hash_one(key) as usize & (PLACES - 1)
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Evaluation>> {
        let first = self.place(key);
        [first, first ^ 1].into_iter().find_map(|place| match self.places.get(place) {
            Some(Some((known, evaluation))) if known == key => Some(evaluation),
            _ => None,
        })
    }

    pub fn put(&mut self, key: Key, evaluation: Arc<Evaluation>) {
        if self.places.is_empty() {
            self.places.resize_with(PLACES, || None);
        }
        let first = self.place(&key);
        self.places.swap(first, first ^ 1);
        if let Some(place) = self.places.get_mut(first) {
            *place = Some((key, evaluation));
        }
    }
}
