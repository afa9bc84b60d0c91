//! A recording through the same pipeline as the daemon's: lines out, the same bytes for the same input.
//!
//! In: manifests (already in the cluster), then the recording's lines in order. Time is the lines' `at`; one that
//! goes backwards is taken as the last one, and counted. Out: lines, written at each flush.
//! Configuration objects among the manifests and lines are layers; a change acts at the next flush, one before all
//! traffic at once. Not here: files, exit codes, the layers below and above.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tracing::warn;

use crate::config::{Config, Layers, Resource, ResourceRef};
use crate::model::{FlowLogs, Timestamp};
use crate::pipeline::{Input, Limits, Pipeline, Stats};
use crate::snapshot::{Object, ObjectRef, Snapshot, World};
use crate::watch::{DecodeError, Decoded, DecodedRef, decode, decode_ref};
use crate::wire::flow_log::{LineFormat, encode_all};
use crate::wire::recording::{Line, ReadError, Reader};

use super::replay_dns::DnsReplay;
use super::{line_format, settings};

/// When windows close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushing {
    /// Every flush interval, counted from the first line's `at`; `flush` lines do nothing.
    Interval,
    /// At `flush` lines only.
    Explicit,
}

#[derive(Debug, Error)]
pub enum ReplayError {
    #[error(transparent)]
    Recording(#[from] ReadError),
    #[error("recording line {line}: {error}")]
    Object { line: u64, error: DecodeError },
    #[error(
        "recording line {line}: at: no window after this time can be told (times end in April 2262): correct it, or use --flush explicit"
    )]
    EndOfTime { line: u64 },
    /// The source says why: a reader that went away is no error.
    #[error("lines cannot be written (check the output's disk, or where it is piped to)")]
    Output(#[source] io::Error),
    #[error("lines of the DNS log cannot be written (check the disk of the path after --dns-log)")]
    DnsLog(#[source] io::Error),
    #[error(
        "nothing in the cluster names the node {node:?}, so no flow has a local end; {}: give one of them with --node",
        nodes_there(nodes)
    )]
    UnknownNode { node: Arc<str>, nodes: Vec<Arc<str>> },
}

pub(super) fn nodes_there(nodes: &[Arc<str>]) -> String {
    if nodes.is_empty() {
        return "it names no node at all".to_owned();
    }
    let shown: Vec<&str> = nodes.iter().take(10).map(|node| &**node).collect();
    let more = if nodes.len() > shown.len() { " and others" } else { "" };
    format!("it has {}{more}", shown.join(", "))
}

/// What was replayed.
#[derive(Clone, Debug, Default)]
pub struct ReplaySummary {
    pub lines: u64,
    pub records: u64,
    pub windows: u64,
    pub blank_lines: u64,
    /// Lines whose time was before the last one's.
    pub times_went_back: u64,
    /// Objects of kinds that the agent does not use.
    pub unused_objects: u64,
    pub stats: Stats,
}

/// What is replayed against.
pub struct Replay {
    pub layers: Layers,
    pub world: World,
    pub flushing: Flushing,
    pub limits: Limits,
}

impl Replay {
    /// Reads to the end.
    ///
    /// # Errors
    /// The first line that is malformed; output that cannot be written; a cluster in which nothing names the node.
    /// `dns_log`: where lines of the DNS log go, if they are wanted.
    pub fn run(
        self,
        input: impl BufRead,
        output: &mut impl Write,
        dns_log: Option<&mut dyn Write>,
    ) -> Result<ReplaySummary, ReplayError> {
        let mut dns = dns_log.map(DnsReplay::new);
        let mut configured = Configured::new(self.layers);
        let format = line_format(&configured.config, self.world.cluster.node());
        let mut world = Replayed::new(self.world);
        let mut lines = Lines { format, output, buffer: Vec::new(), summary: ReplaySummary::default() };
        let explicit = self.flushing == Flushing::Explicit;
        let begin =
            |configured: &Configured, at| Pipeline::new(settings(&configured.config), self.limits, at);
        let mut pipeline: Option<Pipeline> = None;
        let mut last = Timestamp::MIN;
        let mut opened = Timestamp::MIN;
        let mut unflushed = false;
        let mut observed = false;

        let mut reader = Reader::new(input);
        for line in &mut reader {
            let (number, at, line) = line?;
            lines.summary.lines += 1;
            if at < last {
                lines.summary.times_went_back += 1;
            }
            let now = at.max(last);
            last = now;
            let pipeline = pipeline.get_or_insert_with(|| {
                opened = now;
                begin(&configured, now)
            });
            while !explicit && now >= opened.plus(configured.interval()) {
                let due = opened.plus(configured.interval());
                lines.close_window(pipeline, due, &mut world, &mut configured)?;
                opened = due;
                unflushed = false;
                let interval = configured.interval();
                let next = opened.plus(interval);
                if next == opened {
                    return Err(ReplayError::EndOfTime { line: number });
                }
                if pipeline.is_idle() && now >= next {
                    // Nothing lives that could make a line: windows in between are empty.
                    let gap = (now - next).as_nanos() / interval.as_nanos();
                    let skipped = interval.saturating_mul(u32::try_from(gap).unwrap_or(u32::MAX));
                    if !skipped.is_zero() {
                        opened = opened.plus(skipped);
                        pipeline.step(Input::Flush, opened, world.snapshot());
                    }
                }
            }
            unflushed |= line != Line::Flush;
            if let Some(dns) = &mut dns {
                dns.advance(now, &configured.config, explicit).map_err(ReplayError::DnsLog)?;
            }
            match line {
                Line::Observation(observation) => {
                    observed = true;
                    pipeline.step(Input::Observation(&observation), now, world.snapshot());
                    if let Some(dns) = &mut dns {
                        dns.observe(&observation, now, pipeline, world.snapshot());
                    }
                }
                Line::Apply(object) => match decode(object) {
                    Ok(Decoded::Object(object)) => world.apply(object, now),
                    Ok(Decoded::Configuration(resource)) => configured.apply(resource),
                    Ok(Decoded::Unused { .. }) => lines.summary.unused_objects += 1,
                    Err(error) => return Err(ReplayError::Object { line: number, error }),
                },
                Line::Delete(key) => {
                    let key = serde_json::to_value(&key).unwrap_or_default();
                    match decode_ref(key) {
                        Ok(DecodedRef::Ref(object)) => world.delete(&object, now),
                        Ok(DecodedRef::Configuration(resource)) => configured.delete(&resource),
                        Ok(DecodedRef::Unused { .. }) => lines.summary.unused_objects += 1,
                        Err(error) => return Err(ReplayError::Object { line: number, error }),
                    }
                }
                Line::Flush if explicit => {
                    lines.close_window(pipeline, now, &mut world, &mut configured)?;
                    opened = now;
                    unflushed = false;
                    if let Some(dns) = &mut dns {
                        dns.flush(now, &configured.config).map_err(ReplayError::DnsLog)?;
                    }
                }
                Line::Flush => {}
            }
            if !observed && configured.take_change() {
                // What stands before all traffic is the state of the start, as manifests are.
                lines.format = line_format(&configured.config, world.world.cluster.node());
                *pipeline = begin(&configured, opened);
            }
        }
        if let Some(pipeline) = &mut pipeline {
            if unflushed {
                lines.close_window(pipeline, last, &mut world, &mut configured)?;
            }
            lines.summary.stats = pipeline.stats().clone();
        }
        if let Some(dns) = &mut dns {
            dns.end(last, &configured.config).map_err(ReplayError::DnsLog)?;
        }
        lines.summary.blank_lines = reader.blank_lines();
        lines.output.flush().map_err(ReplayError::Output)?;
        let cluster = &world.world.cluster;
        if !cluster.is_empty() && !world.named_local_node {
            return Err(ReplayError::UnknownNode {
                node: cluster.node().clone(),
                nodes: cluster.node_names(),
            });
        }
        Ok(lines.summary)
    }
}

/// The world as the recording changes it, and its snapshot.
struct Replayed {
    world: World,
    snapshot: Snapshot,
    changed: bool,
    named_local_node: bool,
}

impl Replayed {
    fn new(world: World) -> Self {
        let named_local_node = world.cluster.names_local_node();
        Self { snapshot: world.snapshot(), world, changed: false, named_local_node }
    }

    fn snapshot(&mut self) -> &Snapshot {
        if std::mem::take(&mut self.changed) {
            self.snapshot = self.world.snapshot();
        }
        &self.snapshot
    }

    fn apply(&mut self, object: Object, at: Timestamp) {
        self.world.apply(object, at);
        self.changed = true;
        self.named_local_node = self.named_local_node || self.world.cluster.names_local_node();
    }

    fn delete(&mut self, object: &ObjectRef, at: Timestamp) {
        self.world.delete(object, at);
        self.changed = true;
    }

    /// All flows that began before are settled.
    fn forget_before(&mut self, at: Timestamp) {
        self.world.expire(at);
        self.changed = true;
    }
}

/// The configuration as the recording changes it.
struct Configured {
    layers: Layers,
    /// What the open window is collected with.
    config: Config,
    changed: bool,
    told: BTreeSet<String>,
}

impl Configured {
    fn new(layers: Layers) -> Self {
        let mut configured =
            Self { layers, config: Config::default(), changed: false, told: BTreeSet::new() };
        configured.config = configured.resolve();
        configured
    }

    /// A bad value is told once; the next lower layer's holds.
    fn resolve(&mut self) -> Config {
        let (resolved, bad) = self.layers.resolve();
        for bad in bad {
            if self.told.insert(bad.to_string()) {
                warn!(layer = bad.layer.name(), field = %bad.field, "{bad}: lower layers' values hold");
            }
        }
        resolved.config
    }

    fn apply(&mut self, resource: Resource) {
        self.changed |= self.layers.apply(resource);
    }

    fn delete(&mut self, resource: &ResourceRef) {
        self.changed |= self.layers.delete(resource);
    }

    /// From here on the changed values are those of the windows.
    fn take_change(&mut self) -> bool {
        let changed = std::mem::take(&mut self.changed);
        if changed {
            self.config = self.resolve();
        }
        changed
    }

    fn interval(&self) -> Duration {
        self.config.flow_logs_flush_interval.max(Duration::from_millis(1))
    }
}

struct Lines<'a, W> {
    format: LineFormat,
    output: &'a mut W,
    buffer: Vec<u8>,
    summary: ReplaySummary,
}

impl<W: Write> Lines<'_, W> {
    /// Closes the window as it was collected; what the configuration has become since acts on the next one.
    fn close_window(
        &mut self,
        pipeline: &mut Pipeline,
        at: Timestamp,
        world: &mut Replayed,
        configured: &mut Configured,
    ) -> Result<(), ReplayError> {
        let changed = configured.take_change();
        if changed {
            pipeline.reconfigure(settings(&configured.config));
        }
        let logs = pipeline.step(Input::Flush, at, world.snapshot());
        self.write(logs)?;
        world.forget_before(at);
        if changed {
            self.format = line_format(&configured.config, world.world.cluster.node());
        }
        Ok(())
    }

    fn write(&mut self, logs: Option<FlowLogs>) -> Result<(), ReplayError> {
        let Some(logs) = logs else { return Ok(()) };
        self.summary.windows += 1;
        self.summary.records += logs.records.len() as u64;
        self.buffer.clear();
        encode_all(&logs, &self.format, &mut self.buffer);
        self.output.write_all(&self.buffer).map_err(ReplayError::Output)
    }
}
