//! What a process uses: CPU time, memory, descriptors, threads.
//!
//! In: a process id. Out: sums over the process and all that it started. What always holds: CPU time is the scheduler's own account in
//! nanoseconds (`schedstat`), of threads that live; where the kernel has none, in clock ticks.

use std::fs;
use std::ops::Sub;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};

#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu: Duration,
    pub resident_bytes: u64,
    /// Of these what is its own: not files, nor buffers of the kernel that are mapped and touched page by page.
    pub anonymous_bytes: u64,
    pub descriptors: usize,
    pub threads: usize,
}

impl Usage {
    /// # Errors
    /// The process is gone.
    pub fn of(id: u32) -> anyhow::Result<Self> {
        let mut usage = Self::default();
        usage.add(id)?;
        ensure!(usage.threads > 0, "process {id} has ended");
        Ok(usage)
    }

    fn add(&mut self, id: u32) -> anyhow::Result<()> {
        let folder = format!("/proc/{id}");
        let status = fs::read_to_string(format!("{folder}/status"))
            .with_context(|| format!("process {id} is gone"))?;
        let bytes = |name: &str| -> u64 {
            let rest = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = rest.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kib.unwrap_or_default() * 1024
        };
        self.resident_bytes += bytes("VmRSS:");
        self.anonymous_bytes += bytes("RssAnon:");
        self.descriptors += fs::read_dir(format!("{folder}/fd")).map_or(0, Iterator::count);
        for task in fs::read_dir(format!("{folder}/task"))?.flatten() {
            // A thread may end while it is looked at.
            let Some(cpu) = cpu_of(&task.path()) else { continue };
            self.cpu += cpu;
            self.threads += 1;
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
                // So may a child.
                let _ = self.add(child);
            }
        }
        Ok(())
    }
}

/// CPU time between two looks; the rest as it is now.
impl Sub for Usage {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(earlier.cpu), ..self }
    }
}

fn cpu_of(task: &Path) -> Option<Duration> {
    if let Some(ns) = fs::read_to_string(task.join("schedstat")).ok().and_then(|text| first_number(&text)) {
        return Some(Duration::from_nanos(ns));
    }
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: u64 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_uses_time() {
        // Not this one: threads of other tests end meanwhile and take their time with them.
        let mut busy = std::process::Command::new("sh")
            .args(["-c", "ulimit -t 20; while :; do :; done"])
            .spawn()
            .unwrap();
        let before = Usage::of(busy.id()).unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(10);
        let used = loop {
            let used = Usage::of(busy.id()).unwrap() - before;
            if used.cpu > Duration::ZERO || std::time::Instant::now() > end {
                break used;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        busy.kill().unwrap();
        busy.wait().unwrap();
        assert!(used.cpu > Duration::ZERO && used.resident_bytes > 0 && used.threads > 0, "{used:?}");
        assert!(Usage::of(u32::MAX).is_err());
    }
}
