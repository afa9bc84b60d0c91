//! Dropped packets: the `kfree_skb` program and its counts.
//!
//! In: what the program counted. Out: `Observation::Drop` increments by tuple and reason, and counts of all other reasons.
//! What always holds: each packet is in exactly one increment: the counts are taken whole, by putting an empty map in the
//! place of the full one, which returns only when no program can still be writing to the old one. Not here: whether a
//! drop is a deny (the pipeline).

use std::collections::HashMap as StdHashMap;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{ArrayOfMaps, HashMap, MapData, MapError};
use flowlogd_ebpf::{DropCount, DropKey, REASON_SLOTS};

use super::super::privilege;
use super::counts::Counts;
use super::kernel::{Kernel, Reasons};
use super::load::{self, OpenError, Sizes, SourceError};
use super::mapped::{Mapped, cpus};
use super::records::{Clock, drop_record};
use crate::model::{Fill, Observation};
use crate::source::Observed;

type Generation = HashMap<MapData, DropKey, DropCount>;

/// Distinct tuples and reasons between two collections; more is counted as `drops_full`.
const CAPACITY: u32 = 16384;

/// Counts drops in this network namespace until it is dropped itself.
pub struct DropSource {
    /// Holds the program; its link detaches with it.
    _bpf: Ebpf,
    current: ArrayOfMaps<MapData, Generation>,
    generation: Generation,
    reasons: Reasons,
    other: Mapped,
    other_told: StdHashMap<u32, u64>,
    counts: Counts,
    malformed: u64,
    /// The most tuples that a collection found since [`Self::take_fill`].
    fill: usize,
}

impl DropSource {
    /// Loads and attaches the program; it counts from here on.
    pub fn open() -> Result<Self, OpenError> {
        Self::attach(Kernel::resolve()?)
    }

    pub(super) fn attach(mut kernel: Kernel) -> Result<Self, OpenError> {
        kernel.find_hook()?;
        let mut bpf = load::load(&kernel.settings, &Sizes::NONE)?;
        let maps = |error: MapError| OpenError::Maps(load::chain(&error));
        let missing = || OpenError::Maps("the object lacks a map".into());
        let generation = Generation::create(CAPACITY, 0).map_err(maps)?;
        let mut current: ArrayOfMaps<MapData, Generation> =
            ArrayOfMaps::try_from(bpf.take_map("DROPS").ok_or_else(missing)?).map_err(maps)?;
        current.set(0, &generation, 0).map_err(maps)?;
        let cpus = cpus()?;
        let other = Mapped::take(&mut bpf, "REASONS", REASON_SLOTS, cpus)?;
        let counts = Counts::take(&mut bpf, cpus)?;
        load::identify(&mut bpf)?;
        load::load_raw_tracepoint(&mut bpf, "drops")?;
        load::raw_tracepoint(&mut bpf, "drops")?.attach("kfree_skb").map_err(|error| OpenError::Program {
            program: "drops",
            reason: format!("cannot attach to the tracepoint kfree_skb: {}", load::chain(&error)),
        })?;
        Ok(Self {
            _bpf: bpf,
            current,
            generation,
            reasons: kernel.reasons,
            other,
            other_told: StdHashMap::new(),
            counts,
            malformed: 0,
            fill: 0,
        })
    }

    /// Puts what was dropped since the last call behind `out`.
    pub fn collect(&mut self, out: &mut Vec<Observed>) -> Result<(), SourceError> {
        let _raised = privilege::raise();
        match self.generation.keys().next() {
            None => return Ok(()),
            Some(first) => first?,
        };
        let empty = Generation::create(CAPACITY, 0)?;
        // The kernel waits for running programs before this returns (maybe_wait_bpf_programs).
        self.current.set(0, &empty, 0)?;
        let full = std::mem::replace(&mut self.generation, empty);
        let clock = Clock::measure();
        let keys = full.keys().collect::<Result<Vec<_>, _>>()?;
        self.fill = self.fill.max(keys.len());
        let mut names: StdHashMap<u32, Arc<str>> = StdHashMap::new();
        for key in keys {
            let count = full.get(&key, 0)?;
            let reason = names.entry(key.reason).or_insert_with(|| self.reasons.name(key.reason)).clone();
            match drop_record(&key, count, reason) {
                Some(record) => out.push(Observed {
                    at: clock.wall(count.first_ns),
                    observation: Observation::Drop(record),
                }),
                None => self.malformed += 1,
            }
        }
        Ok(())
    }

    /// Packets dropped for reasons that are not a filter's, since the last call, by the kernel's name.
    pub fn other_reasons(&mut self) -> Vec<(String, u64)> {
        let mut out = Vec::new();
        for slot in 0..REASON_SLOTS {
            let total = self.other.total(slot);
            if total == 0 {
                continue;
            }
            let told = self.other_told.entry(slot).or_insert(0);
            if total > *told {
                out.push((self.reasons.slot_name(slot).to_string(), total - *told));
                *told = total;
            }
        }
        out
    }

    /// What was lost since the last call, by stage.
    pub fn losses(&mut self) -> Vec<(&'static str, u64)> {
        let mut out = self.counts.losses();
        if self.malformed > 0 {
            out.push(("drops_malformed", std::mem::take(&mut self.malformed)));
        }
        out
    }

    /// How full the map was at most since the last call.
    pub fn take_fill(&mut self) -> Fill {
        Fill::entries("drops", std::mem::take(&mut self.fill), CAPACITY as usize)
    }

    /// Totals since start, by name.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        self.counts.totals()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;

    use super::*;
    use crate::model::Observation;

    /// Runs a command in this thread's network namespace; its output if it fails.
    fn command(program: &str, args: &[&str]) -> Result<(), String> {
        let output =
            Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// A network namespace for this thread alone, with a rule that drops UDP to port 9.
    fn own_namespace() -> Result<(), String> {
        // SAFETY: a network namespace concerns no memory and no file descriptor; the thread ends with the test.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .map_err(|error| format!("unshare: {error}"))?;
        command("ip", &["link", "set", "lo", "up"])?;
        command(
            "nft",
            &[
                "add table inet t; add chain inet t i { type filter hook input priority 0; }; add rule inet t i udp dport 9 drop",
            ],
        )
    }

    #[test]
    fn each_dropped_packet_is_told_once() {
        std::thread::spawn(|| {
            if let Err(error) = own_namespace() {
                eprintln!("SKIPPED: {error}");
                return;
            }
            let mut source = match DropSource::open() {
                Ok(source) => source,
                Err(error) => {
                    eprintln!("SKIPPED: {error}");
                    return;
                }
            };
            let mut sent = std::collections::BTreeMap::new();
            let mut told = std::collections::BTreeMap::new();
            let mut out = Vec::new();
            for round in 0..5_u64 {
                for target in ["127.0.0.1:9", "[::1]:9"] {
                    let local = if target.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" };
                    let socket = UdpSocket::bind(local).unwrap();
                    let header = if target.starts_with('[') { 48 } else { 28 };
                    for n in 0..20 * (round + 1) {
                        let length = (n % 100) as usize;
                        socket.send_to(&vec![0; length], target).unwrap();
                        let entry = sent.entry(socket.local_addr().unwrap()).or_insert((0_u64, 0_u64));
                        *entry = (entry.0 + 1, entry.1 + length as u64 + header);
                        if n % 30 == 7 {
                            source.collect(&mut out).unwrap();
                        }
                    }
                }
            }
            source.collect(&mut out).unwrap();
            for observed in &out {
                let Observation::Drop(drop) = &observed.observation else { panic!("{observed:?}") };
                assert_eq!(&*drop.reason, "NETFILTER_DROP");
                assert_eq!(drop.tuple.addresses.dst_port, 9);
                let at = std::net::SocketAddr::new(drop.tuple.addresses.src, drop.tuple.addresses.src_port);
                let entry = told.entry(at).or_insert((0, 0));
                *entry = (entry.0 + drop.packets, entry.1 + drop.bytes);
            }
            assert_eq!(told, sent);
            assert_eq!(source.losses(), []);
            let fill = source.take_fill();
            assert!((1..=2).contains(&fill.used) && fill.capacity == u64::from(CAPACITY), "{fill:?}");
            assert_eq!(source.take_fill().used, 0);
            out.clear();
            source.collect(&mut out).unwrap();
            assert_eq!(out, []);
        })
        .join()
        .unwrap();
    }
}
