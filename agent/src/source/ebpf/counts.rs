//! The programs' own counts, and what they mean to an operator.
//!
//! In: the mapped array `STATS`, and what the kernel says of missed probes. Out: totals by name, and losses since the
//! last look. What always holds: a name here is a name in the metrics; every slot the programs use has one. Not here:
//! metrics as such.

use std::fs;

use aya::Ebpf;
use flowlogd_ebpf::{STATS_SLOTS, Stat};

use super::load::OpenError;
use super::mapped::Mapped;

/// A slot, its name, and whether it stands for something that was lost.
pub type Names = [(Stat, &'static str, bool)];

/// The slots of connections and drops.
pub const NAMES: [(Stat, &str, bool); 21] = [
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
    (Stat::Recovered, "recovered", false),
];

/// Totals since the programs were loaded.
pub struct Counts {
    map: Mapped,
    /// What [`Self::losses`] told last, by slot.
    told: [u64; STATS_SLOTS as usize],
}

impl Counts {
    pub fn take(bpf: &mut Ebpf, cpus: u32) -> Result<Self, OpenError> {
        Ok(Self { map: Mapped::take(bpf, "STATS", STATS_SLOTS, cpus)?, told: [0; STATS_SLOTS as usize] })
    }

    pub fn total(&self, stat: Stat) -> u64 {
        self.map.total(stat as u32)
    }

    pub fn totals(&self) -> Vec<(&'static str, u64)> {
        self.totals_of(&NAMES)
    }

    pub fn totals_of(&self, names: &Names) -> Vec<(&'static str, u64)> {
        names.iter().map(|(stat, name, _)| (*name, self.total(*stat))).collect()
    }

    /// What was lost since the last call.
    pub fn losses(&mut self) -> Vec<(&'static str, u64)> {
        self.losses_of(&NAMES)
    }

    pub fn losses_of(&mut self, names: &Names) -> Vec<(&'static str, u64)> {
        let mut out = Vec::new();
        for (stat, name, is_loss) in names {
            let total = self.map.total(*stat as u32);
            let Some(told) = self.told.get_mut(*stat as usize) else { continue };
            if *is_loss && total > *told {
                out.push((*name, total - *told));
                *told = total;
            }
        }
        out
    }
}

/// Runs of a program that the kernel skipped because another program was running on that CPU, and hits that a kprobe
/// missed, as the kernel tells them of this process's own programs and links. `None`: it does not (before 5.12).
pub fn missed_runs() -> Option<u64> {
    let mut total = None;
    for entry in fs::read_dir("/proc/self/fdinfo").ok()?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        if text.lines().any(|line| line.starts_with("prog_type:\t2")) || text.contains("link_type:\t") {
            for line in text.lines() {
                let value = line.strip_prefix("recursion_misses:").or_else(|| line.strip_prefix("missed:"));
                if let Some(n) = value.and_then(|v| v.trim().parse::<u64>().ok()) {
                    total = Some(total.unwrap_or(0_u64).saturating_add(n));
                }
            }
        }
    }
    total
}
