//! Packets and bytes. Bytes are IP bytes, packets what the kernel counts (after GRO).

use std::ops::AddAssign;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counters {
    pub packets: u64,
    pub bytes: u64,
}

impl Counters {
    pub fn new(packets: u64, bytes: u64) -> Self {
        Self { packets, bytes }
    }

    pub fn is_zero(self) -> bool {
        self == Self::default()
    }
}

impl AddAssign for Counters {
    /// Saturates: a hostile recording must not overflow a sum.
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Counters of both directions of a connection: original (from who opened it) and reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Directional {
    pub original: Counters,
    pub reply: Counters,
}

impl Directional {
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// No counter is beyond its like in `now`.
    pub fn is_within(self, now: Self) -> bool {
        [(self.original, now.original), (self.reply, now.reply)]
            .iter()
            .all(|(base, now)| base.packets <= now.packets && base.bytes <= now.bytes)
    }
}

impl AddAssign for Directional {
    fn add_assign(&mut self, other: Self) {
        self.original += other.original;
        self.reply += other.reply;
    }
}
