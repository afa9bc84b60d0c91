//! The programs' own counts, and what they mean to an operator.
//!
//! In: the per-CPU map `STATS`, and what the kernel says of missed probes. Out: totals by name, and losses since the
//! last look. What always holds: a name here is a name in the metrics; every slot the programs use has one. Not here:
//! metrics as such.

use std::collections::HashMap;
use std::fs;

use aya::Ebpf;
use aya::maps::{MapData, MapError, PerCpuArray};
use flowlogd_ebpf::Stat;

/// Every slot, its name, and whether it stands for something that was lost.
pub const NAMES: [(Stat, &str, bool); 20] = [
    (Stat::Confirmed, "confirmed", false),
    (Stat::OtherNetns, "other_netns", false),
    (Stat::Overflow, "overflow", false),
    (Stat::Ends, "ends", false),
    (Stat::Tombstones, "tombstones", false),
    (Stat::EndsLost, "ends_lost", true),
    (Stat::EndsLostPackets, "ends_lost_packets", false),
    (Stat::EndsLostBytes, "ends_lost_bytes", false),
    (Stat::SweepRingFull, "sweep_ring_full", false),
    (Stat::Stale, "stale", true),
    (Stat::MissedFree, "missed_free", true),
    (Stat::ReadFailed, "read_failed", true),
    (Stat::RemoveFailed, "remove_failed", false),
    (Stat::Adopted, "adopted", false),
    (Stat::DropsFullPackets, "drops_full", true),
    (Stat::DropsFullBytes, "drops_full_bytes", false),
    (Stat::DropsOtherNetns, "drops_other_netns", false),
    (Stat::DropsUnknownNetns, "drops_unknown_netns", false),
    (Stat::DropsNotIp, "drops_not_ip", false),
    (Stat::DropsNoPorts, "drops_no_ports", false),
];

/// Totals since the programs were loaded.
pub struct Counts {
    map: PerCpuArray<MapData, u64>,
    /// What [`Self::losses`] told last, in the order of NAMES.
    told: [u64; NAMES.len()],
}

impl Counts {
    pub fn take(bpf: &mut Ebpf) -> Result<Self, MapError> {
        let map = bpf.take_map("STATS").ok_or(MapError::ElementNotFound)?;
        Ok(Self { map: PerCpuArray::try_from(map)?, told: [0; NAMES.len()] })
    }

    pub fn total(&self, stat: Stat) -> Result<u64, MapError> {
        Ok(self.map.get(&(stat as u32), 0)?.iter().fold(0, |sum, n| sum.saturating_add(*n)))
    }

    pub fn totals(&self) -> Vec<(&'static str, u64)> {
        NAMES.iter().map(|(stat, name, _)| (*name, self.total(*stat).unwrap_or(0))).collect()
    }

    /// What was lost since the last call.
    pub fn losses(&mut self) -> Vec<(&'static str, u64)> {
        let mut out = Vec::new();
        for (i, (stat, name, is_loss)) in NAMES.iter().enumerate() {
            let Some(told) = self.told.get_mut(i).filter(|_| *is_loss) else { continue };
            // Only what is needed: while user space reads a map, the kernel skips the probes on that CPU.
            let total = match self.map.get(&(*stat as u32), 0) {
                Ok(values) => values.iter().fold(0_u64, |sum, n| sum.saturating_add(*n)),
                Err(_) => continue,
            };
            if total > *told {
                out.push((*name, total - *told));
                *told = total;
            }
        }
        out
    }
}

/// Runs of a program that the kernel skipped because another program was running on that CPU, and hits that a kprobe
/// missed, as the kernel tells them of this process's own programs and links, by the program's number. `None`: it does
/// not (before 5.12).
pub fn missed_runs() -> Option<HashMap<u32, u64>> {
    let mut total: Option<HashMap<u32, u64>> = None;
    for entry in fs::read_dir("/proc/self/fdinfo").ok()?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        if text.lines().any(|line| line.starts_with("prog_type:\t2")) || text.contains("link_type:\t") {
            let number = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
            let Some(program) = number.and_then(|n| n.trim().parse().ok()) else { continue };
            for line in text.lines() {
                let value = line.strip_prefix("recursion_misses:").or_else(|| line.strip_prefix("missed:"));
                if let Some(n) = value.and_then(|v| v.trim().parse::<u64>().ok()) {
                    let missed = total.get_or_insert_default().entry(program).or_default();
                    *missed = missed.saturating_add(n);
                }
            }
        }
    }
    total
}
