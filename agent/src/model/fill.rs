//! How full something bounded is.

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Entries of a table or map.
    Entries,
    /// Bytes of a ring or queue.
    Bytes,
}

/// A table, ring or queue that loses, or counts otherwise, what finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name in the metrics.
    pub name: &'static str,
    pub unit: Unit,
    /// The most since the last look, where it is emptied in between.
    pub used: u64,
    pub capacity: u64,
}

impl Fill {
    pub fn entries(name: &'static str, used: usize, capacity: usize) -> Self {
        Self { name, unit: Unit::Entries, used: used as u64, capacity: capacity as u64 }
    }

    pub fn bytes(name: &'static str, used: u64, capacity: u64) -> Self {
        Self { name, unit: Unit::Bytes, used, capacity }
    }
}
