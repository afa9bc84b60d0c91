//! The connection table: a slab in chunks (it grows without copying) and an index of slots by key.
//!
//! In: keys and connections. Out: slots that stay valid until removal. Always: no more than `limit` connections;
//! iteration is in slot order, so that the same input gives the same output. Own code: a hash map of 200-byte
//! values would hold twice the memory after each growth and iterate in random order.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::{Connection, ConnectionKey};

/// Index of a live connection.
pub type Slot = u32;

const CHUNK: usize = 4096;

#[derive(Default)]
pub struct ConnectionTable {
    chunks: Vec<Vec<Option<Connection>>>,
    free: Vec<Slot>,
    index: HashTable<Slot>,
    hasher: RandomState,
    limit: usize,
}

impl ConnectionTable {
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.min(Slot::MAX as usize - CHUNK), ..Self::default() }
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// A fingerprint of the key, good for one run of the program.
    pub fn hash(&self, key: &ConnectionKey) -> u64 {
        self.hasher.hash_one(key)
    }

    pub fn find(&self, key: &ConnectionKey) -> Option<Slot> {
        self.index
            .find(self.hash(key), |&slot| self.get(slot).is_some_and(|connection| connection.key == *key))
            .copied()
    }

    pub fn get(&self, slot: Slot) -> Option<&Connection> {
        let slot = slot as usize;
        self.chunks.get(slot / CHUNK)?.get(slot % CHUNK)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut Connection> {
        let slot = slot as usize;
        self.chunks.get_mut(slot / CHUNK)?.get_mut(slot % CHUNK)?.as_mut()
    }

    /// Gives the connection back when the table is full. The key must not be in the table.
    pub fn insert(&mut self, connection: Connection) -> Result<Slot, Box<Connection>> {
        if self.len() >= self.limit {
            return Err(Box::new(connection));
        }
        let hash = self.hash(&connection.key);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.chunks[slot as usize / CHUNK][slot as usize % CHUNK] = Some(connection);
                slot
            }
            None => {
                if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
                    // A small table stays small: the first chunk grows, later ones come whole.
                    let capacity = if self.chunks.is_empty() { 64 } else { CHUNK };
                    self.chunks.push(Vec::with_capacity(capacity));
                }
                let last = self.chunks.len() - 1;
                self.chunks[last].push(Some(connection));
                (last * CHUNK + self.chunks[last].len() - 1) as Slot
            }
        };
        let (chunks, hasher) = (&self.chunks, &self.hasher);
        self.index.insert_unique(hash, slot, |&slot| {
            chunks[slot as usize / CHUNK][slot as usize % CHUNK]
                .as_ref()
                .map_or(0, |connection| hasher.hash_one(connection.key))
        });
        Ok(slot)
    }

    pub fn remove(&mut self, slot: Slot) -> Option<Connection> {
        let place = self.chunks.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)?;
        let connection = place.take()?;
        let hash = self.hasher.hash_one(connection.key);
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == slot) {
            entry.remove();
        }
        self.free.push(slot);
        Some(connection)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.chunks.iter().flatten().flatten()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.chunks.iter_mut().flatten().flatten()
    }
}
