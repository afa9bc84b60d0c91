//! What a live connection costs in resident memory of user space.
//!
//! In: a million flows of the synthetic node (few in a debug build), made one by one so that nothing but the pipeline
//! keeps them. Out: resident bytes a connection (`/proc/self/status`, before and after), once they have begun, after
//! a flush, and after the table has been emptied and filled again. What always holds: it runs in a process of its
//! own, with the allocator of the daemon. Deliberately not here: the kernel's map, and what a flush needs in passing
//! beside its lines (printed as the peak).

#[path = "path/world.rs"]
#[allow(dead_code, reason = "shared with the other bench target, which asks more of it")]
mod world;

use anyhow::Context as _;
use flowlogd::aggregate::Level;
use flowlogd::model::{ConnectionEvent, Observation, Timestamp};
use flowlogd::pipeline::{Input, Limits, Pipeline};
use flowlogd::wire::flow_log::{LineFormat, encode_all};

const LIVE: u64 = if cfg!(debug_assertions) { 10_000 } else { 1_000_000 };

/// A number of `/proc/self/status` in bytes: `VmRSS` is resident now, `VmHWM` the most that ever was.
fn status(field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value =
        value.with_context(|| format!("/proc/self/status has no {field}: a Linux kernel is needed"))?;
    Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

fn resident() -> anyhow::Result<u64> {
    status("VmRSS")
}

fn peak() -> anyhow::Result<u64> {
    status("VmHWM")
}

fn main() -> anyhow::Result<()> {
    let snapshot = world::cluster();
    let mut pipeline = Pipeline::new(world::settings(Level::NamePrefix), Limits::default(), Timestamp(0));
    let before = resident()?;
    let print = |what: &str, bytes: u64| {
        println!("{what:<44} {:>10.1} bytes a connection", bytes.saturating_sub(before) as f64 / LIVE as f64);
    };
    let observe = |pipeline: &mut Pipeline, event: ConnectionEvent, looks: u64| {
        for n in world::shuffled(LIVE) {
            let observation = Observation::Connection(world::later(world::flow(n), event, looks));
            pipeline.step(Input::Observation(&observation), Timestamp(1), &snapshot);
        }
    };
    let flush = |pipeline: &mut Pipeline| {
        let logs = pipeline.step(Input::Flush, Timestamp(2), &snapshot).expect("a flush gives a window");
        let mut lines = Vec::new();
        encode_all(&logs, &LineFormat::default(), &mut lines);
        (logs.records.len(), lines.len())
    };

    println!("live connections: {LIVE}");
    println!("size of a connection in the table: {} bytes", size_of::<flowlogd::flow::Connection>());
    observe(&mut pipeline, ConnectionEvent::New, 0);
    print("begun", resident()?);
    let (records, bytes) = flush(&mut pipeline);
    print("after the first flush", resident()?);
    println!("its lines: {records}, {bytes} bytes");
    observe(&mut pipeline, ConnectionEvent::Update, 1);
    flush(&mut pipeline);
    print("after another look and flush", resident()?);
    print("peak until here", peak()?);
    observe(&mut pipeline, ConnectionEvent::End { confirmed: true }, 2);
    flush(&mut pipeline);
    observe(&mut pipeline, ConnectionEvent::New, 0);
    flush(&mut pipeline);
    print("after all ended and as many began", resident()?);
    print("peak", peak()?);
    Ok(())
}
