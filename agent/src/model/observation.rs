//! What a source tells of the node: the pipeline's input, and (in `wire`) the lines of a recording.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Addresses, Direction, Directional, FiveTuple, Proto, TcpState, Trace};

/// Type, code and echo identifier; part of a connection's identity is the identifier alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub id: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionEvent {
    New,
    /// It existed before the agent: its counters are the baseline and are not exported.
    Adopt,
    Update,
    /// The final counters. `confirmed: false`: it never entered the table.
    End {
        confirmed: bool,
    },
}

/// One look at a conntrack entry. Counters are absolute since the connection's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionRecord {
    pub event: ConnectionEvent,
    pub proto: Proto,
    /// As the first packet was sent: `original.dst` is the address before DNAT.
    pub original: Addresses,
    /// As answers are expected: `reply.src` is the address after DNAT, `reply.dst` the one after SNAT.
    pub reply: Addresses,
    pub icmp: Option<Icmp>,
    pub zone: u16,
    pub counters: Directional,
    pub tcp_state: Option<TcpState>,
}

/// Packets dropped since the last record of this tuple and reason: increments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropRecord {
    /// Addresses at the drop: after DNAT, before SNAT.
    pub tuple: FiveTuple,
    /// Before DNAT, where known.
    pub original: Option<Addresses>,
    pub icmp: Option<Icmp>,
    pub packets: u64,
    pub bytes: u64,
    /// The kernel's name without `SKB_DROP_REASON_`.
    pub reason: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VerdictSet {
    Enforced,
    Pending,
}

/// A dataplane's own rule hits. Takes the place of evaluation for the tuple and direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerdictRecord {
    /// Addresses as in [`DropRecord`]: after DNAT, before SNAT.
    pub tuple: FiveTuple,
    pub direction: Direction,
    pub set: VerdictSet,
    pub hits: Trace,
}

/// A connection's end, in its own terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowSide {
    Src,
    Dst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpRecord {
    /// The socket's own addresses, the local ones as source: the connection's original tuple at the side that began it
    /// (before DNAT), its reply tuple at the other (after DNAT).
    pub tuple: FiveTuple,
    /// 0: no round trip was measured yet, as of `min_rtt_us`.
    pub srtt_us: u64,
    pub min_rtt_us: u64,
    pub send_cwnd: u64,
    pub mss: u64,
    /// Totals since the socket's start.
    pub retransmits: u64,
    pub lost: u64,
    pub unrecovered_rto: u64,
}

/// One socket in one window: its last gauges, and by how much its totals grew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSample {
    pub srtt_us: u64,
    pub min_rtt_us: u64,
    pub send_cwnd: u64,
    pub mss: u64,
    pub retransmits: u64,
    pub lost: u64,
    pub unrecovered_rto: u64,
}

/// Who holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub name: Arc<str>,
    pub args: Arc<[Arc<str>]>,
    /// The uid of the pod whose container it runs in, as its cgroup tells.
    pub pod_uid: Option<Arc<str>>,
}

/// Who holds a connection's end. The same tuple and side may come again: the last one holds (a server's listener first,
/// then the process that accepted), and a live socket is told at each sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessRecord {
    /// As in [`TcpRecord`].
    pub tuple: FiveTuple,
    pub side: FlowSide,
    /// As the node numbers it.
    pub pid: u32,
    pub name: Arc<str>,
    pub args: Arc<[Arc<str>]>,
    /// The uid of the pod whose container the process runs in, also of a pod on the host network; as its cgroup tells.
    pub pod_uid: Option<Arc<str>>,
    /// The container's identifier, as its cgroup tells.
    pub container: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsAnswer {
    pub name: Arc<str>,
    pub kind: Arc<str>,
    pub data: Arc<str>,
    pub ttl_s: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsRecord {
    pub client: IpAddr,
    /// Where the client asked from; a recording need not say.
    pub client_port: Option<(Proto, u16)>,
    pub server: IpAddr,
    pub question: Arc<str>,
    /// What was asked for; a recording need not say.
    pub qtype: Option<Arc<str>>,
    pub qclass: Option<Arc<str>>,
    pub rcode: Arc<str>,
    /// 0: not measured.
    pub latency_us: u64,
    pub answers: Vec<DnsAnswer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    Connection(ConnectionRecord),
    Drop(DropRecord),
    Verdict(VerdictRecord),
    Tcp(TcpRecord),
    Process(ProcessRecord),
    Dns(DnsRecord),
    /// Records that a stage is known to have lost.
    Lost {
        stage: Arc<str>,
        events: u64,
    },
}
