//! Are connections missing from the map?
//!
//! In: what the kernel tells of missed probes and of a full map, how many connections it tracks and how many a sweep found.
//! Out: whether its table must be walked, and how many missed probes stay unexplained. What always holds: on a busy node the
//! walks that only a difference in number asks for take at most a fiftieth of the time. Not here: the walk.
//!
//! A kprobe program is skipped while another one, or a system call on a map, runs on its CPU. Kernels before 6.7 do not tell,
//! hence the comparison of numbers.

use std::time::{Duration, Instant};

const MIN_PAUSE: Duration = Duration::from_secs(5);
const SHARE: u32 = 50;

/// Entries of this namespace's connection table, as the kernel counts them (unconfirmed ones too); `None`: it does not tell.
pub(super) fn tracked() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").ok()?.trim().parse().ok()
}

#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Of the running sweep.
    tracked: Option<u64>,
    found: u64,
    /// The last sweep found fewer connections than there were when it began.
    lacks: bool,
    /// What was seen at the last walk.
    overflow: u64,
    missed: u64,
    last: Option<(Instant, Duration)>,
    /// Missed probes at the last calls of `missed_for_good`, oldest first, and those told.
    history: [u64; 2],
    told: u64,
}

impl Watch {
    /// `tracked`: entries in the kernel's table now, before the sweep.
    pub fn begin_sweep(&mut self, tracked: Option<u64>) {
        self.tracked = tracked;
        self.found = 0;
    }

    /// What a run of the sweep returned: entries found, or a negative error.
    pub fn add_found(&mut self, found: i32) {
        self.found = self.found.saturating_add(u64::try_from(found).unwrap_or(0));
    }

    /// Entries found so far.
    pub fn found(&self) -> u64 {
        self.found
    }

    pub fn end_sweep(&mut self, outside: u64) {
        self.lacks = self.tracked.is_some_and(|tracked| tracked > self.found.saturating_add(outside));
    }

    /// Whether the table must be walked now.
    pub fn is_due(&mut self, overflow: u64, missed: u64, has_outside: bool, now: Instant) -> bool {
        let moved = overflow != self.overflow || missed != self.missed;
        (self.overflow, self.missed) = (overflow, missed);
        if moved || has_outside {
            return true;
        }
        let rested = match self.last {
            None => true,
            Some((end, took)) => {
                now.saturating_duration_since(end) >= MIN_PAUSE.max(took.saturating_mul(SHARE))
            }
        };
        self.lacks && rested
    }

    pub fn looked(&mut self, start: Instant, end: Instant) {
        self.last = Some((end, end.saturating_duration_since(start)));
        self.lacks = false;
    }

    /// Missed probes that are neither made good nor told yet; called once a sweep.
    pub fn missed_for_good(&mut self, missed: u64, made_good: u64) -> u64 {
        let [oldest, newer] = self.history;
        self.history = [newer, missed];
        let lost = oldest.saturating_sub(made_good).saturating_sub(self.told);
        self.told = self.told.saturating_add(lost);
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_probe_or_a_full_map_asks_for_one_walk() {
        let mut watch = Watch::default();
        let now = Instant::now();
        assert!(!watch.is_due(0, 0, false, now));
        assert!(watch.is_due(0, 1, false, now));
        assert!(!watch.is_due(0, 1, false, now));
        assert!(watch.is_due(3, 1, false, now));
        assert!(watch.is_due(3, 1, true, now));
    }

    #[test]
    fn a_difference_in_number_asks_again_only_after_a_pause() {
        let mut watch = Watch::default();
        let start = Instant::now();
        let sweep = |watch: &mut Watch, tracked, found, outside| {
            watch.begin_sweep(Some(tracked));
            watch.add_found(found);
            watch.add_found(-22);
            watch.end_sweep(outside);
        };
        sweep(&mut watch, 10, 10, 0);
        assert!(!watch.is_due(0, 0, false, start));
        sweep(&mut watch, 10, 8, 2);
        assert!(!watch.is_due(0, 0, false, start));
        sweep(&mut watch, 10, 8, 0);
        assert!(watch.is_due(0, 0, false, start));
        watch.looked(start, start + Duration::from_secs(1));
        assert!(!watch.is_due(0, 0, false, start + Duration::from_secs(200)));
        sweep(&mut watch, 10, 9, 0);
        assert!(!watch.is_due(0, 0, false, start + Duration::from_secs(50)));
        assert!(watch.is_due(0, 0, false, start + Duration::from_secs(51)));
        watch.begin_sweep(None);
        watch.end_sweep(0);
        assert!(!watch.is_due(0, 0, false, start + Duration::from_secs(999)));
    }

    #[test]
    fn only_what_nothing_made_good_is_told_and_once() {
        let mut watch = Watch::default();
        assert_eq!(watch.missed_for_good(3, 0), 0);
        assert_eq!(watch.missed_for_good(3, 1), 0);
        assert_eq!(watch.missed_for_good(3, 2), 1);
        assert_eq!(watch.missed_for_good(3, 2), 0);
        assert_eq!(watch.missed_for_good(4, 3), 0);
    }
}
