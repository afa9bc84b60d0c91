//! Lines out, recordings in. An item is a line.

use std::cell::RefCell;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use flowlogd::aggregate::Level;
use flowlogd::model::{FlowLogs, Observation, Timestamp};
use flowlogd::pipeline::{Input, Limits, Pipeline};
use flowlogd::wire::flow_log::{LineFormat, encode_all};
use flowlogd::wire::recording::{Line, parse_line, write_line};

use super::{SOME, world};

fn logs(level: Level, flows: u64) -> FlowLogs {
    let snapshot = world::cluster();
    let mut pipeline = Pipeline::new(world::settings(level), Limits::default(), Timestamp(0));
    for n in 0..flows {
        let observation = Observation::Connection(world::flow(n));
        pipeline.step(Input::Observation(&observation), Timestamp(1), &snapshot);
    }
    pipeline.step(Input::Flush, Timestamp(2), &snapshot).expect("a flush gives a window")
}

/// A line of the default level: names, labels, no addresses.
#[divan::bench(args = SOME)]
fn encode_level_2(bencher: Bencher, flows: u64) {
    encode(bencher, &logs(Level::NamePrefix, flows));
}

/// A line of level 0: everything.
#[divan::bench(args = SOME, sample_count = 20, sample_size = 1)]
fn encode_level_0(bencher: Bencher, flows: u64) {
    encode(bencher, &logs(Level::None, flows));
}

fn encode(bencher: Bencher, logs: &FlowLogs) {
    let lines = RefCell::new(Vec::new());
    encode_all(logs, &LineFormat::default(), &mut lines.borrow_mut());
    let bytes = lines.borrow().len();
    bencher.counter(ItemsCount::new(logs.records.len())).counter(BytesCount::new(bytes)).bench_local(|| {
        let mut lines = lines.borrow_mut();
        lines.clear();
        encode_all(logs, &LineFormat::default(), &mut lines);
    });
}

fn recording(lines: u64) -> Vec<Vec<u8>> {
    let line = |n| {
        let mut line = Vec::new();
        let observation = Line::Observation(Observation::Connection(world::flow(n)));
        write_line(&mut line, Timestamp(1_764_000_000_123_456_789), &observation);
        line
    };
    (0..lines).map(line).collect()
}

/// A `conntrack` line of a recording.
#[divan::bench(args = [1_000])]
fn parse_recording(bencher: Bencher, count: u64) {
    let lines = recording(count);
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        for line in &lines {
            assert!(divan::black_box(parse_line(line, 1)).is_ok());
        }
    });
}

/// The same line, written.
#[divan::bench(args = [1_000])]
fn write_recording(bencher: Bencher, count: u64) {
    let flows: Vec<_> =
        (0..count).map(|n| Line::Observation(Observation::Connection(world::flow(n)))).collect();
    let lines = RefCell::new(Vec::new());
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        let mut lines = lines.borrow_mut();
        lines.clear();
        for flow in &flows {
            write_line(&mut lines, Timestamp(1_764_000_000_123_456_789), flow);
        }
    });
}
