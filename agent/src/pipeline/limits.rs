//! Bounds of the tables, and what follows for them from the memory that there is.
//!
//! In: bytes. Out: [`Limits`]. Always: with all tables full at once, what they hold and what a flush makes of them stay
//! within these bytes, by the costs below (but for the least, 64 of each); what does not fit is counted in [`super::Stats`], and totals stay exact:
//! further records are folded into those of their kind that say `*`, a connection without a place is exported whole
//! with its end. Not here: how much memory there is (`app/memory.rs`).

use crate::model::Fill;

use super::Pipeline;

/// What does not fit is counted in [`super::Stats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub connections: usize,
    /// Ended connections that wait for the flush, so that verdicts and names that come late still find them.
    pub ended: usize,
    pub denied: usize,
    pub verdicts: usize,
    pub records: usize,
    /// Keys that ended in this window and may come again.
    pub reopened: usize,
    /// Sockets of which something was told that no flow has taken yet.
    pub sockets: usize,
    /// Bytes of names learnt from DNS.
    pub domain_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4 << 20,
            ended: 32 << 10,
            denied: 256 << 10,
            verdicts: 256 << 10,
            records: 2 << 20,
            reopened: 1 << 20,
            sockets: 512 << 10,
            domain_bytes: 64 << 20,
        }
    }
}

/// Bytes that one entry costs at most: itself, its part of the index at the moment when that grows, and what is made of
/// it on its way out. For a connection that is its place in the netlink source and in the batch of a sweep; for a
/// record, the window's record, its flow log (one that is made, one that is written) and its line.
mod cost {
    pub const CONNECTION: u64 = 512;
    pub const ENDED: u64 = 320;
    /// Those that go on, those that are over, and the unconfirmed connections that lend them a tuple.
    pub const DENIED: u64 = 1024;
    pub const VERDICT: u64 = 256;
    pub const RECORD: u64 = 4 << 10;
    pub const REOPENED: u64 = 96;
    /// With a client of DNS servers, and its translation.
    pub const SOCKET: u64 = 768;
}

impl Limits {
    /// Never more than [`Self::default`], never so few that a node without load has no room.
    pub fn within(bytes: u64) -> Self {
        let most = Self::default();
        let share = |percent: u64, cost: u64, most: usize| {
            let fitting = bytes / 100 * percent / cost;
            usize::try_from(fitting).unwrap_or(usize::MAX).clamp(64, most)
        };
        Self {
            connections: share(40, cost::CONNECTION, most.connections),
            ended: share(6, cost::ENDED, most.ended),
            denied: share(10, cost::DENIED, most.denied),
            verdicts: share(2, cost::VERDICT, most.verdicts),
            records: share(33, cost::RECORD, most.records),
            reopened: share(3, cost::REOPENED, most.reopened),
            sockets: share(3, cost::SOCKET, most.sockets),
            domain_bytes: share(3, 1, most.domain_bytes),
        }
    }
}

impl Pipeline {
    /// How full the tables are; before a flush, for it empties most of them.
    pub fn fills(&self) -> [Fill; 4] {
        [
            Fill::entries("flows", self.connections.len(), self.limits.connections),
            Fill::entries("flows_ended", self.ended.len(), self.limits.ended),
            Fill::entries("flows_denied", self.denied.len(), self.limits.denied),
            Fill::entries("records", self.window.len(), self.limits.records),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tables_together_stay_within_the_bytes() {
        for bytes in [8 << 20, 48 << 20, 200 << 20, 1 << 30] {
            let limits = Limits::within(bytes);
            let sum = limits.connections as u64 * cost::CONNECTION
                + limits.ended as u64 * cost::ENDED
                + limits.denied as u64 * cost::DENIED
                + limits.verdicts as u64 * cost::VERDICT
                + limits.records as u64 * cost::RECORD
                + limits.reopened as u64 * cost::REOPENED
                + limits.sockets as u64 * cost::SOCKET
                + limits.domain_bytes as u64;
            assert!(sum <= bytes, "{bytes}: {limits:?} may take {sum}");
            assert!(sum > bytes / 2 || bytes > 500 << 20, "{bytes}: {limits:?} takes only {sum}");
        }
    }

    #[test]
    fn much_memory_is_the_default_and_none_is_not_nothing() {
        assert_eq!(Limits::within(u64::MAX), Limits::default());
        assert_eq!(Limits::within(0).records, 64);
    }
}
