//! A node's life, phase by phase: what a live connection costs in CPU time and in resident memory of user space.
//!
//! In: the number of live connections (an argument; a million without one, few in a debug build). Out: for each phase
//! nanoseconds of this thread's CPU time a flow, and resident bytes a connection beyond what the process had before
//! the first. What always holds: CPU time is the kernel's account of this thread, so that a busy machine changes it
//! little; records are made one by one and nothing but the pipeline keeps them; the
//! allocator is the daemon's. Deliberately not here: the kernel's map; single functions (`path`).

#[path = "path/world.rs"]
#[allow(dead_code, reason = "shared with the other bench target, which asks more of it")]
mod world;

use anyhow::Context as _;
use flowlogd::aggregate::Level;
use flowlogd::model::{ConnectionEvent, Observation, Timestamp};
use flowlogd::pipeline::{Input, Limits, Pipeline};
use flowlogd::snapshot::Snapshot;
use flowlogd::wire::flow_log::{LineFormat, encode_all};

/// A number of `/proc/self/status` in bytes: `VmRSS` is resident now, `VmHWM` the most that ever was.
fn memory(field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value =
        value.with_context(|| format!("/proc/self/status has no {field}: a Linux kernel is needed"))?;
    Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// CPU time of this thread so far, in nanoseconds.
fn cpu_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

struct Node {
    live: u64,
    snapshot: Snapshot,
    pipeline: Pipeline,
    now: Timestamp,
    /// Resident bytes before the first connection.
    before: u64,
    /// Nanoseconds that making one record takes.
    making: f64,
}

impl Node {
    fn record(&self, n: u64, event: ConnectionEvent, looks: u64) -> Observation {
        Observation::Connection(world::later(world::flow(n), event, looks))
    }

    fn print(&self, what: &str, nanoseconds: f64) -> anyhow::Result<()> {
        let bytes = memory("VmRSS")?.saturating_sub(self.before) as f64 / self.live as f64;
        println!("{what:<40} {nanoseconds:>8.0} ns a flow {bytes:>8.1} bytes a connection");
        Ok(())
    }

    /// Every flow once, in an order that is not the table's.
    fn observe(&mut self, what: &str, event: ConnectionEvent, looks: u64) -> anyhow::Result<()> {
        let start = cpu_time();
        for n in world::shuffled(self.live) {
            self.now.0 += 1;
            let record = self.record(n, event, looks);
            self.pipeline.step(Input::Observation(&record), self.now, &self.snapshot);
        }
        let spent = (cpu_time() - start) as f64 / self.live as f64;
        self.print(what, spent - self.making)
    }

    /// Folds, sorts and encodes.
    fn flush(&mut self, what: &str) -> anyhow::Result<()> {
        let start = cpu_time();
        let logs = self.pipeline.step(Input::Flush, self.now, &self.snapshot).context("no window")?;
        let folded = cpu_time();
        let mut lines = Vec::new();
        encode_all(&logs, &LineFormat::default(), &mut lines);
        let encoded = cpu_time();
        let (records, bytes) = (logs.records.len(), lines.len());
        drop((logs, lines));
        self.print(&format!("{what}: fold and sort"), (folded - start) as f64 / self.live as f64)?;
        self.print(&format!("{what}: encode"), (encoded - folded) as f64 / self.live as f64)?;
        println!("    {records} lines of {} bytes", bytes / records.max(1));
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let asked = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let live = asked.unwrap_or(if cfg!(debug_assertions) { 5_000 } else { 1_000_000 });
    let mut node = Node {
        live,
        snapshot: world::cluster(),
        pipeline: Pipeline::new(world::settings(Level::NamePrefix), Limits::default(), Timestamp(0)),
        now: Timestamp(0),
        before: 0,
        making: 0.0,
    };
    let start = cpu_time();
    for n in world::shuffled(live) {
        std::hint::black_box(node.record(n, ConnectionEvent::New, 0));
    }
    node.making = (cpu_time() - start) as f64 / live as f64;
    node.before = memory("VmRSS")?;

    println!("{live} live connections, {} bytes each in the table", size_of::<flowlogd::flow::Connection>());
    node.observe("all begin", ConnectionEvent::New, 0)?;
    node.flush("first flush")?;
    node.observe("a look at each", ConnectionEvent::Update, 1)?;
    node.flush("flush")?;
    node.observe("another look at each", ConnectionEvent::Update, 2)?;
    node.flush("another flush")?;
    node.observe("all end", ConnectionEvent::End { confirmed: true }, 3)?;
    node.flush("last flush")?;
    let peak = memory("VmHWM")?.saturating_sub(node.before) as f64 / live as f64;
    println!("peak {peak:.1} bytes a connection, a window's records and lines among them");
    Ok(())
}
