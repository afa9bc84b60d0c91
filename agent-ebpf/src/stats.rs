//! Every count of the programs that is not a flow: what was left out, what did not fit, what was lost.
//!
//! In: increments by the programs, per CPU. Out: [`Stat`], the index of each, and [`slot`]. What always holds: whatever a
//! program decides not to report has a slot here; each CPU writes slots of its own, in an array that user space maps into
//! its memory (a system call that reads a map makes the kernel skip the kprobe programs of that CPU meanwhile). Not here:
//! which of them mean a loss (the agent's `losses`).

/// A count in `STATS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stat {
    /// Connections seen at confirmation, ours.
    Confirmed = 0,
    /// Connections of other network namespaces, at confirmation.
    OtherNetns,
    /// Entries that found no room in CONNECTIONS: their sweeps are missing, not their ends.
    Overflow,
    /// Ends reported.
    Ends,
    /// Ends that found the ring full and wait in TOMBSTONES.
    Tombstones,
    /// Ends that found neither ring nor TOMBSTONES free: lost.
    EndsLost,
    /// Packets and bytes (both directions) of ends that were lost.
    EndsLostPackets,
    EndsLostBytes,
    /// Live connections that a sweep could not report because its ring was full.
    SweepRingFull,
    /// Entries whose memory had been reused: their end was missed.
    Stale,
    /// Entries whose memory had been freed: their end was missed.
    MissedFree,
    /// A connection, a packet or a header that could not be read.
    ReadFailed,
    /// An entry that could not be removed when its connection ended; a sweep will find it.
    RemoveFailed,
    /// Connections adopted.
    Adopted,
    /// Packets and bytes dropped by a filter that found DROPS full.
    DropsFullPackets,
    DropsFullBytes,
    /// Drops outside the agent's network namespace, and drops whose namespace cannot be told.
    DropsOtherNetns,
    DropsUnknownNetns,
    /// Packets dropped by a filter that are neither IPv4 nor IPv6, or too short to tell.
    DropsNotIp,
    /// Packets dropped by a filter whose transport header was out of reach: counted without ports.
    DropsNoPorts,
    /// Live connections that were not in CONNECTIONS and had room there: the probe on their start was missed.
    Recovered,
    /// Sockets seen to begin, and those that found no room in SOCKETS.
    Sockets,
    SocketsFull,
    /// Sockets told at their end, and those that found the ring full.
    SocketsEnded,
    SocketsLost,
    /// Sockets whose end was not seen.
    SocketsStale,
    /// Live sockets that a sweep could not report because its ring was full.
    SocketSweepFull,
    /// Sockets that could not be read.
    SocketsUnread,
    /// Looks at sockets on the loopback of another network namespace: their addresses mean nothing here.
    SocketsOtherLoopback,
    /// Sockets older than the agent.
    SocketsAdopted,
    /// Listeners that found no room in LISTENERS.
    ListenersFull,
    /// Processes told, and those that found the ring full.
    Processes,
    ProcessesLost,
    /// Processes whose arguments could not be read where they were met.
    ArgsUnread,
}

/// Slots of `STATS` for one CPU.
pub const STATS_SLOTS: u32 = 64;
const _: () = assert!((Stat::ArgsUnread as u32) < STATS_SLOTS);

/// The index of a count in an array that has `slots` of them for each CPU.
#[inline(always)]
pub const fn slot(cpu: u32, slots: u32, index: u32) -> u32 {
    cpu.wrapping_mul(slots).wrapping_add(index)
}
