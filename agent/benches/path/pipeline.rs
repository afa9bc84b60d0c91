//! Steps and flushes of the pipeline. An item is a flow.

use std::cell::RefCell;

use divan::Bencher;
use divan::counter::ItemsCount;
use flowlogd::aggregate::Level;
use flowlogd::model::{ConnectionEvent, FlowLogs, Observation, Timestamp};
use flowlogd::pipeline::{Input, Limits, Pipeline};
use flowlogd::snapshot::Snapshot;
use flowlogd::wire::flow_log::{LineFormat, encode_all};

use super::{LIVE, SOME, world};

/// A pipeline, what it is told, and the buffer its lines go to.
struct Node {
    pipeline: Pipeline,
    snapshot: Snapshot,
    observations: Vec<Observation>,
    now: Timestamp,
    looks: u64,
    lines: Vec<u8>,
}

impl Node {
    /// All flows as they are seen first, in the order of a sweep.
    fn new(level: Level, live: u64) -> Self {
        Self {
            pipeline: Pipeline::new(world::settings(level), Limits::default(), Timestamp(0)),
            snapshot: world::cluster(),
            observations: world::shuffled(live).map(|n| Observation::Connection(world::flow(n))).collect(),
            now: Timestamp(0),
            looks: 0,
            lines: Vec::new(),
        }
    }

    fn observe_all(&mut self) {
        for observation in &self.observations {
            self.now.0 += 1;
            self.pipeline.step(Input::Observation(observation), self.now, &self.snapshot);
        }
    }

    /// The next sweep's records: every flow has moved data since the last.
    fn look_again(&mut self) {
        self.looks += 1;
        for observation in &mut self.observations {
            if let Observation::Connection(record) = observation {
                *record = world::later(*record, ConnectionEvent::Update, self.looks);
            }
        }
    }

    fn flush(&mut self) -> FlowLogs {
        self.now.0 += 1_000_000;
        self.pipeline.step(Input::Flush, self.now, &self.snapshot).expect("a flush gives a window")
    }

    fn flush_and_encode(&mut self) -> FlowLogs {
        let logs = self.flush();
        self.lines.clear();
        encode_all(&logs, &LineFormat::default(), &mut self.lines);
        logs
    }
}

/// The whole of a short connection: it is seen, and ends a thousand connections later.
#[divan::bench(args = SOME, sample_count = 20, sample_size = 1)]
fn new_and_end(bencher: Bencher, flows: u64) {
    const OPEN: usize = 1_000;
    let mut node = Node::new(Level::NamePrefix, flows);
    let ends: Vec<_> = node
        .observations
        .iter()
        .map(|observation| match observation {
            Observation::Connection(record) => {
                Observation::Connection(world::later(*record, ConnectionEvent::End { confirmed: true }, 1))
            }
            other => other.clone(),
        })
        .collect();
    let begins = std::mem::take(&mut node.observations);
    let node = RefCell::new(node);
    bencher
        .counter(ItemsCount::new(flows))
        .with_inputs(|| drop(node.borrow_mut().flush()))
        .bench_local_values(|()| {
            let Node { pipeline, snapshot, now, .. } = &mut *node.borrow_mut();
            for (i, begin) in begins.iter().enumerate() {
                now.0 += 1;
                pipeline.step(Input::Observation(begin), *now, snapshot);
                if let Some(end) = i.checked_sub(OPEN).and_then(|i| ends.get(i)) {
                    pipeline.step(Input::Observation(end), *now, snapshot);
                }
            }
            for end in ends.iter().skip(begins.len().saturating_sub(OPEN)) {
                pipeline.step(Input::Observation(end), *now, snapshot);
            }
        });
}

/// Connections that begin and stay: the table grows from nothing.
#[divan::bench(args = LIVE, sample_count = 5, sample_size = 1)]
fn begin(bencher: Bencher, live: u64) {
    bencher
        .counter(ItemsCount::new(live))
        .with_inputs(|| Node::new(Level::NamePrefix, live))
        .bench_local_refs(Node::observe_all);
}

/// A look at every live connection, in an order that has nothing to do with the table's.
#[divan::bench(args = LIVE, sample_count = 10, sample_size = 1)]
fn update(bencher: Bencher, live: u64) {
    let mut node = Node::new(Level::NamePrefix, live);
    node.observe_all();
    node.flush();
    let node = RefCell::new(node);
    bencher
        .counter(ItemsCount::new(live))
        .with_inputs(|| node.borrow_mut().look_again())
        .bench_local_values(|()| node.borrow_mut().observe_all());
}

/// A flush of flows that were all looked at: fold, sort, encode.
#[divan::bench(args = LIVE, sample_count = 10, sample_size = 1)]
fn flush(bencher: Bencher, live: u64) {
    flush_of(bencher, Level::NamePrefix, live);
}

/// The same without any merging: a line a flow and local end.
#[divan::bench(args = SOME, sample_count = 10, sample_size = 1)]
fn flush_level_0(bencher: Bencher, live: u64) {
    flush_of(bencher, Level::None, live);
}

fn flush_of(bencher: Bencher, level: Level, live: u64) {
    let mut node = Node::new(level, live);
    node.observe_all();
    node.flush_and_encode();
    let node = RefCell::new(node);
    bencher
        .counter(ItemsCount::new(live))
        .with_inputs(|| {
            let mut node = node.borrow_mut();
            node.look_again();
            node.observe_all();
        })
        .bench_local_values(|()| node.borrow_mut().flush_and_encode());
}

/// The first flush of flows that all began in its window: names, records and lines are made.
#[divan::bench(args = LIVE, sample_count = 5, sample_size = 1)]
fn first_flush(bencher: Bencher, live: u64) {
    bencher
        .counter(ItemsCount::new(live))
        .with_inputs(|| {
            let mut node = Node::new(Level::NamePrefix, live);
            node.observe_all();
            node
        })
        .bench_local_refs(Node::flush_and_encode);
}

/// A flush of flows that have all ended.
#[divan::bench(args = SOME, sample_count = 10, sample_size = 1)]
fn flush_ended(bencher: Bencher, flows: u64) {
    bencher
        .counter(ItemsCount::new(flows))
        .with_inputs(|| {
            let mut node = Node::new(Level::NamePrefix, flows);
            node.observe_all();
            for observation in &mut node.observations {
                if let Observation::Connection(record) = observation {
                    *record = world::later(*record, ConnectionEvent::End { confirmed: true }, 1);
                }
            }
            node.observe_all();
            node
        })
        .bench_local_refs(Node::flush_and_encode);
}
