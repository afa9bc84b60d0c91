//! What a stopping agent leaves of a connection, so that the next one writes nothing twice.

use super::{Addresses, Directional, Proto};

/// A connection's identity and the absolute counters up to which lines have been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointEntry {
    pub zone: u16,
    pub proto: Proto,
    pub original: Addresses,
    /// 0 for all but ICMP and ICMPv6.
    pub icmp_id: u16,
    /// Absolute since the connection's start.
    pub counters: Directional,
}
