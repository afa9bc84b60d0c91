//! Connections: the kprobes on their start and end, and the sweep.
//!
//! In: the kernel's conntrack entries. Out: New, Adopt, Update and End of each connection of this namespace, in order. What
//! always holds: a batch is sorted by time and later batches never tell of a connection that an earlier one ended (the
//! sweep's ring is read before the ring of ends, and an end leaves the map before its record is made); what the kernel side
//! could not tell is counted. Not here: decoding (`records.rs`), what runs in the kernel (`agent-ebpf`).

use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use flowlogd_ebpf::{Connection, ConnectionRecord, MODE_ADOPT, MODE_OFF, MODE_OUTSIDE, SHARD_CAPACITY, Stat};

use super::super::netlink::walk_table;
use super::super::privilege;
use super::Observed;
use super::counts::{self, Counts};
use super::kernel::Kernel;
use super::load::{self, OpenError, Sizes, SourceError};
use super::mapped::cpus;
use super::probes::Probes;
use super::records::{Adoption, Clock, Translator, Untold, order};
use super::ring::Ring;
use super::watch::{Watch, tracked};
use crate::model::{Fill, Unit};

type Shard = HashMap<MapData, u64, Connection>;

/// Kernel memory of one connection: map element, key, value, hash bucket.
const ENTRY_BYTES: u64 = 48 + 8 + size_of::<Connection>() as u64 + 16;
/// A whole shard, with the headers of a ring, fits twice.
const SWEPT_BYTES: u32 = 512 << 10;
const TOMBSTONES: u32 = 8192;
/// Connections that one run without callbacks can name.
const ENTRIES_A_RUN: usize = 12;
/// How full a shard is when all connections are there: addresses do not spread evenly.
const FILL: u64 = 90;

#[derive(Clone, Debug)]
pub struct EbpfOptions {
    /// Connections to follow; default: `net.netfilter.nf_conntrack_max`.
    pub max_connections: Option<u64>,
    /// Kernel memory for them, bytes; binds before `max_connections`.
    pub map_memory_bytes: u64,
    /// Ring of final records, bytes; rounded up to a power of two. 144 bytes a record.
    pub ring_bytes: u32,
    /// Connections a shard; at most what the object was built for.
    pub shard_capacity: u32,
    /// Final records that may wait when the ring is full.
    pub tombstones: u32,
}

/// Limits that the kernel cases set to reach them: `max_connections=64 shard_capacity=64 ring_bytes=4096 tombstones=8
/// max_sockets=64`.
/// No configuration, and for no operator: what a node needs follows from its own limits.
pub const TEST_LIMITS: &str = "FLOWLOGD_TEST_LIMITS";

impl Default for EbpfOptions {
    fn default() -> Self {
        Self {
            max_connections: None,
            map_memory_bytes: 64 << 20,
            ring_bytes: 4 << 20,
            shard_capacity: SHARD_CAPACITY as u32,
            tombstones: TOMBSTONES,
        }
    }
}

impl EbpfOptions {
    /// The defaults, with what `text` ([`TEST_LIMITS`]) changes; what it does not understand is left out.
    pub fn with_limits(text: &str) -> Self {
        let mut options = Self::default();
        for (name, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse::<u32>() else { continue };
            match name {
                "max_connections" => options.max_connections = Some(u64::from(value)),
                "shard_capacity" => options.shard_capacity = value.clamp(1, SHARD_CAPACITY as u32),
                "ring_bytes" => options.ring_bytes = value.max(4096),
                "tombstones" => options.tombstones = value.max(1),
                _ => {}
            }
        }
        options
    }
}

/// How the live connections are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepBy {
    /// The kernel walks the map (5.13 and later).
    Callback,
    /// User space names the entries, twelve a call.
    Entries,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    Yes,
    /// nf_conntrack is not loaded: nothing can be tracked, and nothing is attached yet. `retry_attach` at intervals.
    WaitingForConntrack,
}

/// For the log, `/metrics` and `check`.
#[derive(Clone, Debug)]
pub struct EbpfStatus {
    pub attached: Attached,
    /// Kernel functions with a probe.
    pub probes: Vec<&'static str>,
    /// False: connections that exist at start cannot be adopted; their ends are counted as `not_adopted`.
    pub can_adopt: bool,
    pub sweep: SweepBy,
    /// Connections that the map can hold.
    pub capacity: u64,
    pub shards: u32,
    /// Live connections told that have no entry in the map.
    pub outside: u64,
    /// Connections that ended while they were about to be adopted: all they moved was before the agent.
    pub ended_before_adoption: u64,
    /// Totals since start, by name.
    pub counts: Vec<(&'static str, u64)>,
    /// Probe hits that the kernel skipped; `None`: this kernel does not tell.
    pub missed: Option<u64>,
}

pub struct EbpfSource {
    bpf: Ebpf,
    ends: Ring,
    swept: Ring,
    /// Kept open only where user space has to name the entries.
    named: Vec<Shard>,
    tombstones: HashMap<MapData, u64, ConnectionRecord>,
    counts: Counts,
    translator: Translator,
    shards: u32,
    shard_capacity: u32,
    next_shard: u32,
    /// Entries of the fullest shard and of all, as the running sweep and the last whole one found them.
    filling: [u64; 2],
    filled: [u64; 2],
    /// CPU time of the longest run of the sweep in the kernel, since it was last taken.
    longest_run: Duration,
    tombstone_capacity: u32,
    /// Tombstones found by the last sweep.
    tombstones_found: usize,
    sweep: SweepBy,
    probes: Probes,
    watch: Watch,
    /// Totals at the last look, to see what moved.
    seen_tombstones: u64,
    untold_told: Untold,
    malformed_told: u64,
}

impl EbpfSource {
    /// Loads everything, attaches what can be attached. Connection tracking that is not loaded yet is no error
    /// ([`Attached::WaitingForConntrack`]).
    pub fn open(options: &EbpfOptions) -> Result<Self, OpenError> {
        let mut source = Self::load(options, false)?;
        source.retry_attach()?;
        Ok(source)
    }

    /// Attaches nothing. `keep_shards`: also where the kernel can walk them.
    fn load(options: &EbpfOptions, keep_shards: bool) -> Result<Self, OpenError> {
        let mut kernel = Kernel::resolve()?;
        if !kernel.has_conntrack {
            return Err(OpenError::NoConntrack);
        }
        let cpus = cpus()?;
        let shards = shards(options, cpus);
        kernel.settings.shards = u64::from(shards);
        kernel.settings.wake_bytes = u64::from(options.ring_bytes / 8);
        let sizes = Sizes {
            shards,
            ends_bytes: options.ring_bytes,
            swept_bytes: SWEPT_BYTES,
            tombstones: options.tombstones,
        };
        let mut bpf = load::load(&kernel.settings, &sizes)?;
        load::identify(&mut bpf)?;
        let sweep = match load::load_raw_tracepoint(&mut bpf, "sweep") {
            Ok(()) => SweepBy::Callback,
            Err(refused) => {
                tracing::info!(
                    "the kernel cannot walk the map by itself, entries are read one by one: {refused}"
                );
                load::load_raw_tracepoint(&mut bpf, "sweep_entries")?;
                SweepBy::Entries
            }
        };
        let maps = |error: MapError| OpenError::Maps(load::chain(&error));
        let missing = || OpenError::Maps("the object lacks a map".into());
        let connections = bpf.take_map("CONNECTIONS").ok_or_else(missing)?;
        let keep = keep_shards || sweep == SweepBy::Entries;
        let named = load::fill(&connections, shards, keep, || Shard::create(options.shard_capacity, 0))?;
        let tombstones = HashMap::try_from(bpf.take_map("TOMBSTONES").ok_or_else(missing)?).map_err(maps)?;
        Ok(Self {
            ends: Ring::take(&mut bpf, "ENDS").map_err(maps)?,
            swept: Ring::take(&mut bpf, "SWEPT").map_err(maps)?,
            counts: Counts::take(&mut bpf, cpus)?,
            named,
            tombstones,
            translator: Translator::default(),
            shards,
            shard_capacity: options.shard_capacity,
            next_shard: 0,
            filling: [0; 2],
            filled: [0; 2],
            longest_run: Duration::ZERO,
            tombstone_capacity: options.tombstones,
            tombstones_found: 0,
            sweep,
            probes: Probes::load(&mut bpf)?,
            seen_tombstones: 0,
            watch: Watch::default(),
            untold_told: Untold::default(),
            malformed_told: 0,
            bpf,
        })
    }

    /// Whether connection tracking went since it was probed: [`Self::retry_attach`] is due then.
    pub fn look_at_modules(&mut self) -> Result<bool, OpenError> {
        let went = self.probes.look_at_modules(&mut self.bpf)?;
        if went {
            self.translator.adoption = Adoption::Pending;
        }
        Ok(went)
    }

    /// For a module that is loaded after the agent: call it now and then while the status says
    /// [`Attached::WaitingForConntrack`]. True: attached now; [`Self::adopt`] is due.
    pub fn retry_attach(&mut self) -> Result<bool, OpenError> {
        self.probes.attach(&mut self.bpf)
    }

    /// Connection tracking is there, and its functions are probed.
    pub fn is_attached(&self) -> bool {
        self.probes.are_attached()
    }

    /// Tells of every connection that exists as Adopt. Until it has been called, ends of connections that nobody saw
    /// begin are not told.
    pub fn adopt(&mut self, out: &mut Vec<Observed>) -> Result<(), SourceError> {
        if !self.is_attached() {
            return Ok(());
        }
        // The first dump loads nf_conntrack_netlink, whose function cannot have a probe before.
        if !self.probes.can_adopt() {
            walk_table(|| {}).map_err(SourceError::Dump)?;
            if let Err(error) = self.retry_attach() {
                tracing::warn!("{error}");
            }
        }
        if !self.probes.can_adopt() {
            tracing::warn!(
                "connections that exist now cannot be adopted (no probe on ctnetlink_fill_info or nf_ct_port_tuple_to_nlattr): they are not reported until they end, and then counted as not_adopted"
            );
            self.translator.adoption = Adoption::Impossible;
            return Ok(());
        }
        self.dump_in_mode(MODE_ADOPT, out)?;
        self.sweep(out)?;
        self.translator.adoption = Adoption::Done;
        Ok(())
    }

    fn dump_in_mode(&mut self, mode: u32, out: &mut Vec<Observed>) -> Result<(), SourceError> {
        let _raised = privilege::raise();
        // The programs know this thread by its number; it may not be the one that opened the source.
        if let Err(error) = load::identify(&mut self.bpf) {
            tracing::warn!("{error}");
        }
        load::set_mode(&mut self.bpf, mode)?;
        let clock = Clock::measure();
        let start = out.len();
        let (ends, translator) = (&mut self.ends, &mut self.translator);
        let result = walk_table(|| {
            ends.drain(|record| translator.translate(record, clock, out));
        });
        load::set_mode(&mut self.bpf, MODE_OFF)?;
        self.drain_ends(clock, out);
        order(out.get_mut(start..).unwrap_or_default());
        result.map_err(SourceError::Dump)
    }

    fn drain_ends(&mut self, clock: Clock, out: &mut Vec<Observed>) -> usize {
        let translator = &mut self.translator;
        self.ends.drain(|record| translator.translate(record, clock, out))
    }

    /// Puts the ends behind `out`; waits up to `timeout` if there are none. The programs wake it early only when the ring
    /// fills, so that a busy node costs no more wake-ups than an idle one.
    pub fn poll(&mut self, timeout: Duration, out: &mut Vec<Observed>) -> Result<(), SourceError> {
        let start = out.len();
        let mut clock = Clock::measure();
        if self.drain_ends(clock, out) == 0 && !timeout.is_zero() {
            self.ends.wait(timeout)?;
            clock = Clock::measure();
            self.drain_ends(clock, out);
        }
        order(out.get_mut(start..).unwrap_or_default());
        Ok(())
    }

    /// Tells of every live connection. With many of them, [`Self::sweep_shard`] keeps the batches small.
    pub fn sweep(&mut self, out: &mut Vec<Observed>) -> Result<(), SourceError> {
        self.next_shard = 0;
        while self.sweep_shard(out)? {}
        Ok(())
    }

    /// Tells of the next slice of the live connections; true while the sweep has more. Before the first slice come live
    /// connections that are missing from the map, after the last one ends that had found the ring full.
    pub fn sweep_shard(&mut self, out: &mut Vec<Observed>) -> Result<bool, SourceError> {
        let _raised = privilege::raise();
        if self.next_shard == 0 {
            self.look_outside(out)?;
        }
        let clock = Clock::measure();
        let start = out.len();
        if self.next_shard < self.shards {
            let before = self.watch.found();
            match self.sweep {
                SweepBy::Callback => {
                    let shard = u64::from(self.next_shard);
                    let found = load::run_timed(&self.bpf, "sweep", &[shard], &mut self.longest_run)?;
                    self.watch.add_found(found);
                }
                SweepBy::Entries => self.sweep_entries(clock, out)?,
            }
            let translator = &mut self.translator;
            self.swept.drain(|record| translator.translate(record, clock, out));
            self.drain_ends(clock, out);
            let [fullest, all] = self.filling;
            self.filling = [fullest.max(self.watch.found() - before), all + (self.watch.found() - before)];
            self.next_shard += 1;
        }
        let more = self.next_shard < self.shards;
        if !more {
            self.next_shard = 0;
            self.filled = std::mem::take(&mut self.filling);
            self.watch.end_sweep(self.translator.outside_len() as u64);
            let left = self.counts.total(Stat::Tombstones);
            self.read_tombstones(clock, out, left)?;
        }
        order(out.get_mut(start..).unwrap_or_default());
        Ok(more)
    }

    fn sweep_entries(&mut self, clock: Clock, out: &mut Vec<Observed>) -> Result<(), SourceError> {
        let Some(shard) = self.named.get(self.next_shard as usize) else { return Ok(()) };
        // Entries that leave while we walk can make the walk begin again: bounded, and each is asked once.
        let mut keys = shard.keys().take(2 * SHARD_CAPACITY).collect::<Result<Vec<_>, _>>()?;
        keys.sort_unstable();
        keys.dedup();
        let translator = &mut self.translator;
        for batch in keys.chunks(ENTRIES_A_RUN) {
            let found = load::run_timed(&self.bpf, "sweep_entries", batch, &mut self.longest_run)?;
            self.watch.add_found(found);
            self.swept.drain(|record| translator.translate(record, clock, out));
        }
        Ok(())
    }

    /// `total`: tombstones ever left.
    fn read_tombstones(
        &mut self,
        clock: Clock,
        out: &mut Vec<Observed>,
        total: u64,
    ) -> Result<(), SourceError> {
        self.tombstones_found = 0;
        if total == self.seen_tombstones {
            return Ok(());
        }
        self.seen_tombstones = total;
        let keys = self.tombstones.keys().collect::<Result<Vec<_>, _>>()?;
        self.tombstones_found = keys.len();
        for key in keys {
            let record = self.tombstones.get(&key, 0)?;
            self.tombstones.remove(&key)?;
            self.translator.translate(&record, clock, out);
        }
        Ok(())
    }

    /// Lets the kernel walk its table where connections may be missing from the map: it was full, or a probe was missed.
    /// What has room enters the map, and the sweep that follows tells of it; the rest is told at once.
    fn look_outside(&mut self, out: &mut Vec<Observed>) -> Result<(), SourceError> {
        self.watch.begin_sweep(tracked());
        if !self.probes.can_adopt() || self.translator.adoption != Adoption::Done {
            return Ok(());
        }
        let overflow = self.counts.total(Stat::Overflow);
        let missed = counts::missed_runs().unwrap_or(0);
        let has_outside = self.translator.outside_len() > 0;
        if !self.watch.is_due(overflow, missed, has_outside, Instant::now()) {
            return Ok(());
        }
        let start = Instant::now();
        self.dump_in_mode(MODE_OUTSIDE, out)?;
        self.watch.looked(start, Instant::now());
        Ok(())
    }

    /// Probe hits that were missed and that nothing has made good: what a connection's start or end they stood for is not
    /// known. Told two sweeps late, for most of them are made good by then.
    fn missed_for_good(&mut self) -> u64 {
        let sum = |stats: &[Stat]| {
            stats.iter().fold(0_u64, |sum, stat| sum.saturating_add(self.counts.total(*stat)))
        };
        let unseen = self.translator.unseen_starts.saturating_sub(self.counts.total(Stat::Overflow));
        let made_good = sum(&[Stat::Recovered, Stat::Stale, Stat::MissedFree]).saturating_add(unseen);
        self.watch.missed_for_good(counts::missed_runs().unwrap_or(0), made_good)
    }

    /// What was lost since the last call, by stage.
    pub fn losses(&mut self) -> Vec<(&'static str, u64)> {
        let missed = self.missed_for_good();
        let mut out = self.counts.losses();
        let mut tell = |name, total: u64, told: &mut u64| {
            if total > *told {
                out.push((name, total - *told));
                *told = total;
            }
        };
        let untold = self.translator.untold;
        tell("clash", untold.clash, &mut self.untold_told.clash);
        tell("not_adopted", untold.not_adopted, &mut self.untold_told.not_adopted);
        tell("uncounted", untold.uncounted, &mut self.untold_told.uncounted);
        let malformed = untold.malformed + self.ends.malformed + self.swept.malformed;
        tell("malformed", malformed, &mut self.malformed_told);
        if missed > 0 {
            out.push(("probes_missed", missed));
        }
        out
    }

    /// How full maps and rings were, as the last sweep found them.
    pub fn fills(&mut self) -> [Fill; 5] {
        let [fullest, all] = self.filled;
        let entries = |name, used, capacity| Fill { name, unit: Unit::Entries, used, capacity };
        let shard = u64::from(self.shard_capacity);
        [
            entries("connections", all, shard * u64::from(self.shards)),
            entries("connections_fullest_shard", fullest, shard),
            Fill::entries("ends_waiting", self.tombstones_found, self.tombstone_capacity as usize),
            self.ends.take_fill("ends"),
            self.swept.take_fill("connections_swept"),
        ]
    }

    /// CPU time of the longest run of the sweep in the kernel since the last call.
    pub fn take_longest_run(&mut self) -> Duration {
        std::mem::take(&mut self.longest_run)
    }

    /// Totals since start, by name.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        self.counts.totals()
    }

    pub fn status(&self) -> EbpfStatus {
        EbpfStatus {
            attached: if self.is_attached() { Attached::Yes } else { Attached::WaitingForConntrack },
            probes: self.probes.functions(),
            can_adopt: self.probes.can_adopt(),
            sweep: self.sweep,
            capacity: u64::from(self.shards) * u64::from(self.shard_capacity),
            shards: self.shards,
            outside: self.translator.outside_len() as u64,
            ended_before_adoption: self.translator.ended_before,
            counts: self.counts.totals(),
            missed: counts::missed_runs(),
        }
    }
}

/// Enough shards for the connections that the node may have, within the memory allowed; at least one. In each the kernel has
/// a spare entry for each CPU, so that small shards cost memory where there are many.
fn shards(options: &EbpfOptions, cpus: u32) -> u32 {
    let connections = options.max_connections.unwrap_or_else(|| {
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(262_144)
    });
    let capacity = u64::from(options.shard_capacity);
    let wanted = (connections.saturating_mul(100) / FILL).div_ceil(capacity);
    let allowed = options.map_memory_bytes / (ENTRY_BYTES * (capacity + u64::from(cpus)));
    u32::try_from(wanted.min(allowed).max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "sweep_tests.rs"]
pub(super) mod sweep_tests;
