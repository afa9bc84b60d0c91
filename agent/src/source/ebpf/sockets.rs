//! Sockets: the collectors of processes and of TCP statistics, each a load of the object with programs and maps of its own.
//!
//! In: sockets of all network namespaces, as the kernel makes, changes and closes them, and a sweep over the live ones.
//! Out: `Observation::Process` and `Observation::Tcp` with the socket's own addresses. What always holds: nothing here
//! touches connections or drops: a collector that is off, or that this kernel refuses, costs its columns alone; nothing
//! runs per packet. Sockets that are older are adopted by an iterator over the open files of all processes (it gives the
//! socket's address and its holder at once, for every namespace; a sock_diag dump gives neither); what has no open file
//! (not accepted yet, orphaned) is not. Not here: what runs in the kernel (`agent-ebpf`), joining (the pipeline).

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use flowlogd_ebpf::{
    ProcessRecord as SeenProcess, SOCKET_SHARD_CAPACITY, Socket, SocketFlags, SocketKind, SocketRecord, Stat,
};

use super::super::privilege;
use super::Observed;
use super::connections::TEST_LIMITS;
use super::containers::{Containers, unified_root};
use super::counts::{Counts, Names};
use super::datagrams::Datagrams;
use super::kernel::Kernel;
use super::load::{self, OpenError, SocketSizes, SourceError};
use super::mapped::cpus;
use super::processes::{Process, Processes, TOLD};
use super::records::{Clock, order};
use super::ring::{Ring, decode};
use super::socket_offsets;
use crate::model::{
    Addresses, ConnectionRecord, Fill, FiveTuple, FlowSide, Observation, ProcessRecord, Proto, TcpRecord,
    Unit,
};

type Shard = HashMap<MapData, u64, Socket>;

/// Live sockets that a collector has room for, and a tenth more ([`FILL`]); what finds none is counted, and for TCP statistics still told
/// at its end.
const MOST_SOCKETS: u32 = 65_536;
const EVENT_BYTES: u32 = 4 << 20;
/// A whole shard, with the headers of a ring.
const SWEPT_BYTES: u32 = 256 << 10;
/// How full a shard is, in hundredths, when all sockets are there: addresses do not spread evenly.
const FILL: u32 = 90;
const LISTENERS: u32 = 16_384;

/// What is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collector {
    /// `paths`: the executable's path in place of the name.
    Processes {
        paths: bool,
    },
    TcpStats,
}

const PROCESS_NAMES: [(Stat, &str, bool); 13] = [
    (Stat::Sockets, "process_sockets", false),
    (Stat::SocketsFull, "process_sockets_full", true),
    (Stat::SocketsEnded, "process_sockets_ended", false),
    (Stat::SocketsLost, "process_sockets_lost", true),
    (Stat::SocketsStale, "process_sockets_stale", false),
    (Stat::SocketSweepFull, "process_sweep_full", true),
    (Stat::SocketsAdopted, "process_sockets_adopted", false),
    (Stat::SocketsOtherLoopback, "process_other_loopback", false),
    (Stat::ListenersFull, "process_listeners_full", true),
    (Stat::Processes, "processes", false),
    (Stat::ProcessesLost, "processes_lost", true),
    (Stat::ArgsUnread, "process_args_refused", false),
    (Stat::SocketsUnread, "process_sockets_unread", true),
];
const TCP_NAMES: [(Stat, &str, bool); 9] = [
    (Stat::Sockets, "tcp_sockets", false),
    // Their end is told all the same.
    (Stat::SocketsFull, "tcp_sockets_full", false),
    (Stat::SocketsEnded, "tcp_sockets_ended", false),
    (Stat::SocketsLost, "tcp_sockets_lost", true),
    (Stat::SocketsStale, "tcp_sockets_stale", false),
    (Stat::SocketSweepFull, "tcp_sweep_full", false),
    (Stat::SocketsAdopted, "tcp_sockets_adopted", false),
    (Stat::SocketsOtherLoopback, "tcp_other_loopback", false),
    (Stat::SocketsUnread, "tcp_sockets_unread", true),
];

/// One collector at work, until it is dropped.
pub struct SocketSource {
    bpf: Ebpf,
    collector: Collector,
    events: Ring,
    swept: Ring,
    counts: Counts,
    shards: u32,
    shard_capacity: u32,
    next_shard: u32,
    /// Sockets found by the running sweep, and by the last whole one.
    filling: u64,
    filled: u64,
    /// CPU time of the longest run of the sweep in the kernel, since it was last taken.
    longest_run: Duration,
    can_sweep: bool,
    processes: Processes,
    datagrams: Datagrams,
    /// What this kernel does not let it do.
    lacks: Vec<String>,
    unknown_told: u64,
    full_told: u64,
}

impl SocketSource {
    /// Loads and attaches the programs; sockets that exist are adopted.
    ///
    /// # Errors
    /// The collector cannot work here; the message says why and what to do.
    pub fn open(collector: Collector) -> Result<Self, OpenError> {
        let limits = std::env::var(TEST_LIMITS).unwrap_or_default();
        let sockets =
            limits.split_whitespace().find_map(|word| word.strip_prefix("max_sockets=")?.parse().ok());
        Self::open_with(collector, sockets.unwrap_or(MOST_SOCKETS))
    }

    pub(super) fn open_with(collector: Collector, sockets: u32) -> Result<Self, OpenError> {
        let _raised = privilege::raise();
        let kernel = Kernel::resolve()?;
        let capacity = sockets.min(SOCKET_SHARD_CAPACITY as u32);
        let shards = (sockets.saturating_mul(100) / FILL).div_ceil(SOCKET_SHARD_CAPACITY as u32).max(1);
        let offsets = socket_offsets::resolve(collector, shards)?;
        let has_processes = offsets.processes != 0;
        let sizes = SocketSizes {
            shards,
            events_bytes: EVENT_BYTES,
            swept_bytes: SWEPT_BYTES,
            told: if has_processes { TOLD } else { 1 },
            listeners: if has_processes { LISTENERS } else { 1 },
        };
        let mut bpf = load::load_sockets(&kernel.settings, &offsets, &sizes)?;
        load::identify(&mut bpf)?;
        let maps = |error: MapError| OpenError::Maps(load::chain(&error));
        let missing = || OpenError::Maps("the object lacks a map".into());
        let table = bpf.take_map("SOCKETS").ok_or_else(missing)?;
        load::fill(&table, shards, false, || Shard::create(capacity, 0))?;
        let root = unified_root();
        let mut source = Self {
            collector,
            events: Ring::take(&mut bpf, "SOCKET_EVENTS").map_err(maps)?,
            swept: Ring::take(&mut bpf, "SOCKETS_SWEPT").map_err(maps)?,
            counts: Counts::take(&mut bpf, cpus()?)?,
            shards,
            shard_capacity: capacity,
            next_shard: 0,
            filling: 0,
            filled: 0,
            longest_run: Duration::ZERO,
            can_sweep: true,
            processes: Processes::new(
                collector == Collector::Processes { paths: true },
                Containers::new(root.clone()),
            ),
            datagrams: Datagrams::default(),
            lacks: Vec::new(),
            unknown_told: 0,
            full_told: 0,
            bpf,
        };
        source.attach(root.as_deref())?;
        source.adopt();
        Ok(source)
    }

    /// Whether a collector would work here, and what it would lack; nothing of it is left behind.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn try_out(collector: Collector) -> Result<Vec<String>, OpenError> {
        Self::open_with(collector, 1).map(|source| source.lacks)
    }

    fn attach(&mut self, root: Option<&std::path::Path>) -> Result<(), OpenError> {
        if let Err(refused) = load::load_raw_tracepoint(&mut self.bpf, "sweep_sockets") {
            self.can_sweep = false;
            self.lacks.push(format!("live sockets are told at their end only ({refused})"));
        }
        let program = match self.collector {
            Collector::TcpStats => "tcp_state",
            Collector::Processes { .. } => "process_state",
        };
        load::load_raw_tracepoint(&mut self.bpf, program)?;
        load::raw_tracepoint(&mut self.bpf, program)?.attach("inet_sock_set_state").map_err(|error| {
            OpenError::Program {
                program,
                reason: format!(
                    "cannot attach to the tracepoint inet_sock_set_state: {}",
                    load::chain(&error)
                ),
            }
        })?;
        if self.collector == Collector::TcpStats {
            return Ok(());
        }
        let udp = match root {
            Some(root) => ["udp_release", "udp_create"]
                .into_iter()
                .try_for_each(|program| load::attach_cgroup_sock(&mut self.bpf, program, root))
                .map_err(|error| error.to_string()),
            None => Err("the root of the unified cgroup hierarchy is not to be found: mount the node's /sys/fs/cgroup, or share its process ids (hostPID)".to_owned()),
        };
        if let Err(why) = udp {
            self.lacks.push(format!("UDP sockets have no process ({why})"));
        }
        if let Err(why) = load::attach_return_probe(&mut self.bpf, "process_accept", "inet_csk_accept") {
            self.lacks.push(format!(
                "accepted connections have the listener's process until it or another closes them ({why})"
            ));
        }
        self.datagrams.read_own();
        Ok(())
    }

    /// Twice: which sockets were accepted is known once the listeners are.
    fn adopt(&mut self) {
        let walks = if self.collector == Collector::TcpStats { 1 } else { 2 };
        if let Err(why) = load::walk_files(&mut self.bpf, "adopt_sockets", walks) {
            self.lacks.push(format!("sockets older than the agent are not told ({why})"));
        }
    }

    pub fn collector(&self) -> Collector {
        self.collector
    }

    /// What this kernel does not let it do, in words; empty where it does everything.
    pub fn lacks(&self) -> &[String] {
        &self.lacks
    }

    /// Puts what has ended behind `out`.
    pub fn collect(&mut self, out: &mut Vec<Observed>) {
        let start = out.len();
        self.drain(Clock::measure(), out, false);
        order(out.get_mut(start..).unwrap_or_default());
    }

    /// Puts what lives behind `out`; one shard a call. True: there are more.
    pub fn sweep_shard(&mut self, out: &mut Vec<Observed>) -> Result<bool, SourceError> {
        let _raised = privilege::raise();
        let start = out.len();
        let outcome = if self.can_sweep {
            let shard = u64::from(self.next_shard);
            load::run_timed(&self.bpf, "sweep_sockets", &[shard], &mut self.longest_run)
        } else {
            Ok(0)
        };
        let outcome = outcome.map(|found| self.filling += u64::try_from(found).unwrap_or(0));
        self.drain(Clock::measure(), out, true);
        order(out.get_mut(start..).unwrap_or_default());
        self.next_shard += 1;
        if outcome.is_ok() && self.can_sweep && self.next_shard < self.shards {
            return Ok(true);
        }
        self.next_shard = 0;
        self.filled = std::mem::take(&mut self.filling);
        self.datagrams.end_sweep();
        outcome.map(|()| false)
    }

    fn drain(&mut self, clock: Clock, out: &mut Vec<Observed>, with_swept: bool) {
        let mut records = Vec::new();
        if with_swept {
            // Before the ring of events: a process is told before the first socket that names it.
            self.swept.drain_bytes(|bytes| records.extend(decode::<SocketRecord>(bytes)));
        }
        let (processes, datagrams, collector) = (&mut self.processes, &mut self.datagrams, self.collector);
        let mut malformed = 0;
        self.events.drain_bytes(|bytes| {
            if bytes.len() >= size_of::<SeenProcess>() {
                if let Some(seen) = decode::<SeenProcess>(bytes) {
                    processes.insert(&seen);
                }
            } else if let Some(record) = decode::<SocketRecord>(bytes) {
                out.extend(translate(&record, collector, clock, processes, datagrams));
            } else {
                malformed += 1;
            }
        });
        self.events.malformed += malformed;
        out.extend(
            records.iter().filter_map(|record| translate(record, collector, clock, processes, datagrams)),
        );
    }

    /// Processes of the ends of a connection whose sockets are known by their own address alone.
    pub fn of_connection(&self, connection: &ConnectionRecord) -> impl Iterator<Item = ProcessRecord> {
        self.datagrams.of_connection(connection).map(|(tuple, side, process)| record_of(tuple, side, process))
    }

    /// What was lost since the last call, by stage.
    pub fn losses(&mut self) -> Vec<(&'static str, u64)> {
        let mut out = self.counts.losses_of(self.names());
        let unknown = self.processes.unknown - self.unknown_told;
        let full = self.datagrams.full - self.full_told;
        (self.unknown_told, self.full_told) = (self.processes.unknown, self.datagrams.full);
        let malformed =
            std::mem::take(&mut self.events.malformed) + std::mem::take(&mut self.swept.malformed);
        for (stage, events) in
            [("process_unknown", unknown), ("process_datagrams_full", full), ("sockets_malformed", malformed)]
        {
            if events > 0 {
                out.push((stage, events));
            }
        }
        out
    }

    /// How full its table and rings were, as the last sweep found them.
    pub fn fills(&mut self) -> [Fill; 3] {
        let [sockets, events, swept] = match self.collector {
            Collector::Processes { .. } => {
                ["process_sockets", "process_socket_events", "process_sockets_swept"]
            }
            Collector::TcpStats => ["tcp_sockets", "tcp_socket_events", "tcp_sockets_swept"],
        };
        let capacity = u64::from(self.shards) * u64::from(self.shard_capacity);
        [
            Fill { name: sockets, unit: Unit::Entries, used: self.filled, capacity },
            self.events.take_fill(events),
            self.swept.take_fill(swept),
        ]
    }

    /// CPU time of the longest run of the sweep in the kernel since the last call.
    pub fn take_longest_run(&mut self) -> Duration {
        std::mem::take(&mut self.longest_run)
    }

    /// Totals since the start, by name.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let mut counts = self.counts.totals_of(self.names());
        if self.collector != Collector::TcpStats {
            counts.push(("process_args_unread", self.processes.without_args));
        }
        counts
    }

    fn names(&self) -> &'static Names {
        match self.collector {
            Collector::Processes { .. } => &PROCESS_NAMES,
            Collector::TcpStats => &TCP_NAMES,
        }
    }
}

fn translate(
    record: &SocketRecord,
    collector: Collector,
    clock: Clock,
    processes: &mut Processes,
    datagrams: &mut Datagrams,
) -> Option<Observed> {
    let address = |bytes: [u8; 16]| IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical();
    let proto = Proto(record.proto);
    let addresses = Addresses {
        src: address(record.local),
        src_port: u16::from_be(record.local_port),
        dst: address(record.remote),
        dst_port: u16::from_be(record.remote_port),
    };
    let tuple = FiveTuple { proto, addresses };
    let at = clock.wall(record.at_ns);
    let is_connected = addresses.dst_port != 0 && !addresses.dst.is_unspecified();
    if collector == Collector::TcpStats {
        return is_connected
            .then(|| Observed { at, observation: Observation::Tcp(tcp_record(tuple, record)) });
    }
    if !is_connected && proto != Proto::UDP {
        return None;
    }
    datagrams.learn(addresses.src, record.netns);
    let process = processes.get(record.process)?;
    if !is_connected {
        let is_end = record.kind == SocketKind::End as u8;
        datagrams.insert(record.netns, addresses.src, addresses.src_port, &process, is_end);
        return None;
    }
    let side = side_of(record, &addresses, proto);
    Some(Observed { at, observation: Observation::Process(record_of(tuple, side, &process)) })
}

/// Who began it. A UDP socket does not know: one that is connected is taken for a client's, unless its own port is a
/// service's and its peer's is not.
fn side_of(record: &SocketRecord, addresses: &Addresses, proto: Proto) -> FlowSide {
    const FIRST_EPHEMERAL: u16 = 32_768;
    let is_server = match proto {
        Proto::UDP => addresses.src_port < FIRST_EPHEMERAL && addresses.dst_port >= FIRST_EPHEMERAL,
        _ => record.flags & SocketFlags::ACCEPTED != 0,
    };
    if is_server { FlowSide::Dst } else { FlowSide::Src }
}

fn record_of(tuple: FiveTuple, side: FlowSide, process: &Arc<Process>) -> ProcessRecord {
    ProcessRecord {
        tuple,
        side,
        pid: process.key.pid,
        name: process.name.clone(),
        args: process.args.clone(),
        pod_uid: process.container.pod_uid.clone(),
        container: process.container.id.clone(),
    }
}

fn tcp_record(tuple: FiveTuple, record: &SocketRecord) -> TcpRecord {
    let tcp = &record.tcp;
    TcpRecord {
        tuple,
        srtt_us: u64::from(tcp.srtt_us_8 >> 3),
        min_rtt_us: if tcp.rtt_min_us == u32::MAX { 0 } else { u64::from(tcp.rtt_min_us) },
        send_cwnd: u64::from(tcp.snd_cwnd),
        mss: u64::from(tcp.mss),
        retransmits: u64::from(tcp.retransmits),
        lost: u64::from(tcp.lost),
        unrecovered_rto: u64::from(tcp.rtos.saturating_sub(tcp.rto_rows)),
    }
}

#[cfg(test)]
#[path = "sockets_tests.rs"]
mod tests;
