//! What the kernel counts of this process, under the names that Prometheus' client libraries agree on.
//!
//! In: `/proc/self`, the process's clock. Out: [`ProcessMetrics`], read when it is asked for. Always: what cannot be
//! read stays 0. Read here, because `prometheus-client` has no collector of it and `procfs` would be a library for
//! five numbers.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustix::process::Resource;
use rustix::time::ClockId;

use super::metric::{Gauge, Seconds, metrics};

metrics! {
    /// The process.
    pub struct ProcessMetrics;

    /// CPU time of the process, user and system.
    cpu: Seconds(Counter) = "process_cpu_seconds_total";
    /// Memory of the process that is in RAM.
    resident: Gauge(Gauge) = "process_resident_memory_bytes";
    /// Address space of the process.
    virtual_memory: Gauge(Gauge) = "process_virtual_memory_bytes";
    /// Files, sockets and maps that are open.
    open_fds: Gauge(Gauge) = "process_open_fds";
    /// How many may be open.
    max_fds: Gauge(Gauge) = "process_max_fds";
    /// Threads of the process.
    threads: Gauge(Gauge) = "process_threads";
    /// When the process began, in seconds since 1970.
    start: Seconds(Gauge) = "process_start_time_seconds";
}

/// The kernel counts times in these; it is 100 a second on every architecture that user space sees.
const TICKS_A_SECOND: u64 = 100;

impl ProcessMetrics {
    pub fn read() -> Self {
        let metrics = Self::default();
        let cpu = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
        metrics.cpu.set(Duration::new(cpu.tv_sec.max(0) as u64, u32::try_from(cpu.tv_nsec).unwrap_or(0)));
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            let number = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                line.split_whitespace().next()?.parse::<u64>().ok()
            };
            metrics.resident.set(number("VmRSS:").unwrap_or(0).saturating_mul(1024));
            metrics.virtual_memory.set(number("VmSize:").unwrap_or(0).saturating_mul(1024));
            metrics.threads.set(number("Threads:").unwrap_or(0));
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory that is being read.
            metrics.open_fds.set((files.count() as u64).saturating_sub(1));
        }
        metrics.max_fds.set(rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX));
        // Once: read again it would differ by what the clocks are apart.
        static START: OnceLock<Duration> = OnceLock::new();
        metrics.start.set(*START.get_or_init(|| start_time().unwrap_or_default()));
        metrics
    }
}

/// Since 1970.
fn start_time() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the command in parentheses, which may hold anything; the 22nd is the start after boot.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: u64 = rest.split_whitespace().nth(19)?.parse().ok()?;
    let up = rustix::time::clock_gettime(ClockId::Boottime);
    let up = Duration::new(up.tv_sec.max(0) as u64, u32::try_from(up.tv_nsec).ok()?);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let after_boot = Duration::from_millis(ticks.saturating_mul(1000 / TICKS_A_SECOND));
    now.checked_sub(up)?.checked_add(after_boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read() {
        let metrics = ProcessMetrics::read();
        assert!(metrics.resident.get() > 1 << 20 && metrics.virtual_memory.get() > metrics.resident.get());
        assert!(metrics.threads.get() > 0 && metrics.open_fds.get() > 2);
        assert!(metrics.max_fds.get() >= metrics.open_fds.get());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert!(metrics.start.get() <= now && metrics.start.get() > now - Duration::from_secs(24 * 3600));
        let before = metrics.cpu.get();
        assert!(ProcessMetrics::read().cpu.get() > before);
    }
}
