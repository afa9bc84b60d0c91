//! The agent on a node.
//!
//! One thread owns source, pipeline and window; a second one encodes and writes lines (`writer.rs`); a third runs the
//! asynchronous tasks (`tasks.rs`), which publish the world and the configuration. In: the layers of the start, a stop
//! flag. Out: lines in the file or on stdout, and on a clean stop a checkpoint. Always: what sources told before the
//! stop is in the last window (open connections are not completed); a window closes under the configuration that it
//! was collected with, and what was changed meanwhile acts on the next one.

use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use thiserror::Error;
use tracing::{debug, info, warn};

use crate::config::Layers;
use crate::model::{Action, CheckpointEntry, Counters, FlowLogs, Observation, Reporter, Timestamp};
use crate::pipeline::{Input, Pipeline};
use crate::sink::SinkError;
use crate::snapshot::Snapshot;
use crate::source::bypass;
use crate::source::probe::State;
use crate::source::{NodeSources, Observed, SourcesError};
use crate::telemetry::{Metric, Metrics, Series, Value};
use crate::watch::{ConnectError, ManifestError};

use super::cluster_configuration;
use super::configuration::{self, Reload, locked};
use super::dns::Dns;
use super::dynamic::{self, Raised};
use super::memory::Memory;
use super::outside::{Beats, Outside, Shown};
use super::world::{Batch, Origin, Watched, load_world, ready_of};
use super::writer::{Lines, Output, Writer};
use super::{Clock, Tasks, allocator, settings};

/// How long the source may wait for the kernel before the loop looks at the time and the stop flag.
const POLL: Duration = Duration::from_millis(100);

/// How long the start waits for the configuration that the API server has: the directory and the source are of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long tasks may take to end.
const TASKS_END: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// File, environment and flags.
    pub layers: Layers,
    /// The file among them, to be looked at again.
    pub config_file: Option<PathBuf>,
    pub node: Arc<str>,
    /// Manifests instead of an API server.
    pub cluster: Vec<PathBuf>,
    /// Where the API server is, if no manifests are given; else see [`crate::watch::locate`].
    pub kubeconfig: Option<PathBuf>,
    /// Lines go to stdout instead of the file.
    pub stdout: bool,
}

#[derive(Debug, Error)]
pub enum RunError {
    #[error(transparent)]
    Cluster(#[from] ManifestError),
    #[error(transparent)]
    Server(#[from] ConnectError),
    #[error(transparent)]
    Sources(#[from] SourcesError),
    #[error(transparent)]
    Sink(#[from] SinkError),
    #[error("cannot start a thread: {0}: the process limit of this container or user may be too low")]
    Thread(io::Error),
    #[error("lines cannot be written to stdout: {0}: check where it is piped to")]
    Stdout(io::Error),
    #[error("the writer of lines has stopped unexpectedly")]
    Writer,
}

/// Runs until `stop` is set.
///
/// # Errors
/// What keeps the agent from starting. Once it runs it goes on.
pub fn run(options: &DaemonOptions, metrics: &Arc<Metrics>, stop: &AtomicBool) -> Result<(), RunError> {
    allocator::give_back_large_blocks();
    metrics.set_build();
    let (reload, mut configuration) = Reload::new(options.layers.clone(), metrics.clone());
    let reload = Arc::new(Mutex::new(reload));
    let mut clock = Clock::start();
    // The place where asynchronous tasks are spawned is below, when everything that they share is there.
    let tasks = Tasks::start().map_err(RunError::Thread)?;
    let origin = Origin::of(&options.cluster, options.kubeconfig.as_deref());
    let (known, layers) = load_world(&options.cluster, &options.node)?;
    for resource in layers {
        locked(&reload).apply(resource);
    }
    let world = Arc::new(ArcSwap::from_pointee(known.snapshot()));
    let watched = match &origin {
        Origin::Server(server) => {
            Some(Watched::start(server, &options.node, &tasks, world.clone(), metrics.clone())?)
        }
        Origin::Manifests | Origin::Nowhere => None,
    };

    let mut configured = None;
    if let Some(watched) = &watched {
        let (known, status) =
            cluster_configuration::follow(&tasks, &reload, &watched.link, &options.node, metrics);
        let waited = tasks.block_on(async { tokio::time::timeout(PATIENCE, known).await });
        if waited.is_err() {
            warn!("the API server has not told its configuration yet: it acts at the flush after it does");
        }
        configured = Some(status);
    }
    // What is known of the configuration by now is what the agent starts with.
    locked(&reload).begin();
    configuration.take_change();
    let mut config = configuration.get();
    if let Some(path) = &options.config_file {
        configuration::follow_file(&tasks, &reload, path);
    }

    // The lock comes first: a second agent must not even read the checkpoint.
    let memory = Memory::allowed();
    memory.tell();
    let lines = Lines::of(&config.config, &options.node, &memory);
    let mut output = Output::open(lines, options.stdout, metrics.clone(), clock.now())?;
    let checkpoint = output.take_checkpoint();
    warn_of_bypasses()?;

    let beats = Beats::new();
    let shown = Shown {
        configuration: &configuration,
        node: &options.node,
        world: &world,
        host_addresses: host_addresses(),
        metrics,
        beats: &beats,
        live_bytes: memory.live(),
        more_ready: ready_of(watched.as_ref().map(|watched| watched.status.clone()), configured),
    };
    let outside = Outside::start(&tasks, shown).map_err(RunError::Thread)?;
    let mut sources = match NodeSources::open_within(&config.config, &memory.bounds()) {
        Ok(sources) => sources,
        Err(error) => {
            // The start that works will need it: nothing of these connections has been exported since.
            output.put_back(checkpoint);
            return Err(error.into());
        }
    };

    let mut pipeline = Pipeline::new(settings(&config.config), memory.limits(), clock.now());
    pipeline.set_host_addresses(host_addresses());
    if let Some(checkpoint) = checkpoint {
        pipeline.restore(checkpoint.entries);
    }
    let trace = Cell::new(config.config.flow_logs_collector_debug_trace);
    let mut dns = Dns::new(metrics.clone(), memory.dns_lines_waiting());
    dns.configure(&config.config, &mut pipeline, clock.now());
    let step = |pipeline: &mut Pipeline, world: &mut Batch<'_>, observed: Observed| {
        match &observed.observation {
            Observation::Lost { stage, events } => metrics.lost_events.add(stage, *events),
            Observation::Drop(drop) => metrics.filter_drop_packets.add(&drop.reason, drop.packets),
            _ => {}
        }
        if trace.get() {
            debug!(at = observed.at.0, observation = ?observed.observation, "observed");
        }
        pipeline.step(Input::Observation(&observed.observation), observed.at, world.snapshot());
        outside.tap(&observed, pipeline);
    };
    let mut batch = Batch::of(&world);
    sources.adopt(&mut |observed| step(&mut pipeline, &mut batch, observed));
    // Said only now: from here on nothing is taken for older than the agent.
    info!(
        source = sources.name(),
        drops = sources.drops_state(),
        processes = sources.collectors_state()[0].1,
        tcp = sources.collectors_state()[1].1,
        dns = dns.is_capturing(),
        node = %options.node,
        cluster = %origin,
        interval = ?config.config.flow_logs_flush_interval,
        "flowlogd observes this node"
    );

    let mut writer = output.start(beats.clone(), outside.live.clone()).map_err(RunError::Thread)?;
    let mut raised = Raised::new(dynamic::follow(&tasks, configuration.clone(), metrics.clone()));
    let mut next_flush = Instant::now() + config.config.flow_logs_flush_interval;
    let mut adopting = true;
    metrics.last_flush.set(since_1970(clock.now()));
    loop {
        metrics.flush_interval.set(config.config.flow_logs_flush_interval);
        beats.pipeline.beat();
        metrics.accounting_off.set(u64::from(sources.accounting_is_off()));
        if adopting && sources.is_adopted() {
            adopting = false;
            pipeline.finish_adoption();
            let _ = beats.observing.set(format!("{}, drops {}", sources.name(), sources.drops_state()));
        }
        let stopping = stop.load(Ordering::Relaxed) || writer.is_done();
        let mut due = next_flush.saturating_duration_since(Instant::now());
        if due.is_zero() && watched.as_ref().is_some_and(|watched| !watched.status.may_name()) {
            // Names are not known yet: flows are held, for as long as the watch says.
            due = POLL;
        }
        if !stopping && !due.is_zero() {
            let mut batch = Batch::of(&world);
            sources.poll(POLL.min(due), &mut |observed| step(&mut pipeline, &mut batch, observed));
            dns.poll(&mut pipeline, batch.snapshot(), clock.now());
            continue;
        }
        let began = Instant::now();
        let mut batch = Batch::of(&world);
        sources.sweep(&mut |observed| step(&mut pipeline, &mut batch, observed));
        metrics.sweep_duration.observe(began.elapsed());
        let snapshot = world.load_full();
        // The window closes as it was collected; what was changed meanwhile acts on the next one.
        let changed = configuration.take_change();
        let next = changed.as_ref().unwrap_or(&config);
        pipeline.reconfigure(raised.next(settings(&next.config), &next.config, metrics));
        let now = clock.now();
        dns.catch_up(&mut pipeline, &snapshot, now);
        if clock.take_step_back() {
            metrics.clock_steps_back.add(1);
            warn!(
                "the clock was set back: until it has caught up, windows are told with times that run at half speed"
            );
        }
        let closing = Closing { now, snapshot: &snapshot, last: stopping, trace: trace.get() };
        let lines = close_window(&mut pipeline, &mut sources, &writer, metrics, &closing);
        metrics.last_flush.set(since_1970(now));
        if let Some(watched) = &watched {
            watched.window_closed(now, lines, metrics);
        }
        if let Some(changed) = changed {
            config = changed;
            dns.configure(&config.config, &mut pipeline, now);
            trace.set(config.config.flow_logs_collector_debug_trace);
            writer.reconfigure(Lines::of(&config.config, &options.node, &memory));
            sources.set_collectors(&config.config);
        }
        if stopping {
            // What ended while that window was closed: nothing that the kernel has told is lost by the stop.
            let mut more = false;
            let mut batch = Batch::of(&world);
            sources.poll(Duration::ZERO, &mut |observed| {
                more = true;
                step(&mut pipeline, &mut batch, observed);
            });
            if more {
                let closing = Closing { now: clock.now(), ..closing };
                close_window(&mut pipeline, &mut sources, &writer, metrics, &closing);
            }
            break;
        }
        next_flush = next_after(next_flush, config.config.flow_logs_flush_interval, Instant::now());
    }
    for (stage, events) in sources.counts().into_iter().filter(|(_, events)| *events > 0) {
        debug!(stage, events, "counted by the kernel side");
    }
    drop(sources);
    dns.finish(&mut pipeline, &world.load(), clock.now());
    if !tasks.stop(TASKS_END) {
        debug!("some tasks had not ended in time");
    }
    tell_totals(metrics);
    let entries: Vec<CheckpointEntry> = pipeline.checkpoint().collect();
    writer.finish(&entries, clock.now())
}

/// How a window is closed.
struct Closing<'a> {
    now: Timestamp,
    snapshot: &'a Snapshot,
    /// None comes after it.
    last: bool,
    /// Its records are logged.
    trace: bool,
}

/// Flushes the pipeline, hands the window to the writer and takes over the counts. Says how many lines that are.
fn close_window(
    pipeline: &mut Pipeline,
    sources: &mut NodeSources,
    writer: &Writer,
    metrics: &Metrics,
    &Closing { now, snapshot, last, trace }: &Closing<'_>,
) -> u64 {
    let began = Instant::now();
    let mut fills = sources.fills();
    fills.extend(pipeline.fills());
    metrics.set_fills(&fills);
    metrics.sweep_longest_run.set(sources.take_longest_run());
    let logs = pipeline.step(Input::Flush, now, snapshot);
    metrics.flush_duration.observe(began.elapsed());
    for (reason, packets) in sources.take_other_drops() {
        metrics.other_drop_packets.add(&reason, packets);
    }
    metrics.set_pipeline(pipeline.stats(), pipeline.live_connections() as u64);
    for (event, total) in sources.counts() {
        metrics.kernel_events.set(event, total);
    }
    let Some(logs) = logs else { return 0 };
    debug!(records = logs.records.len(), lost_events = logs.lost_events, "window closed");
    if trace {
        for record in &logs.records {
            debug!(start = logs.start.0, end = logs.end.0, ?record, "reported");
        }
    }
    metrics.flushes.add(1);
    count_lines(&logs, metrics);
    let lines = logs.records.len() as u64;
    writer.send(logs, last, metrics);
    lines
}

/// One addition a label, however many lines there are.
fn count_lines(logs: &FlowLogs, metrics: &Metrics) {
    let mut sums = std::collections::BTreeMap::<(Action, Reporter), (u64, Counters)>::new();
    for record in &logs.records {
        let (lines, traffic) = sums.entry((record.action, record.reporter)).or_default();
        *lines += 1;
        *traffic += record.incoming;
        *traffic += record.outgoing;
        metrics.mismatch_lines.add(u64::from(record.policy_mismatch == Some(true)));
    }
    for ((action, reporter), (lines, traffic)) in sums {
        let labels = [action.name(), reporter.name()];
        metrics.lines.add(action.name(), lines);
        metrics.line_packets.add_to(labels, traffic.packets);
        metrics.line_bytes.add_to(labels, traffic.bytes);
    }
}

/// What was counted, for the log at the end: what is zero is left out.
fn tell_totals(metrics: &Metrics) {
    for Metric { description, series } in metrics.snapshot() {
        for Series { labels, value } in series {
            let Value::Whole(value) = value else { continue };
            if value == 0 {
                continue;
            }
            if labels.is_empty() {
                info!(metric = description.name, value, "total");
            } else {
                let pairs: Vec<String> = description
                    .labels
                    .iter()
                    .zip(labels)
                    .map(|(name, label)| format!("{name}={label}"))
                    .collect();
                info!(metric = description.name, label = %pairs.join(","), value, "total");
            }
        }
    }
}

fn since_1970(at: Timestamp) -> Duration {
    Duration::from_nanos(u64::try_from(at.0).unwrap_or(0))
}

/// A flush that took longer than the interval is followed by a full one: two without time between them would leave the
/// source unread and make windows of no length.
fn next_after(due: Instant, interval: Duration, now: Instant) -> Instant {
    let next = due + interval;
    if next > now { next } else { now + interval }
}

/// Aside: it asks `nft` and `tc`, which may take long on a large node, and the kernel's records must not wait for it.
fn warn_of_bypasses() -> Result<(), RunError> {
    let look = || {
        for finding in bypass::findings() {
            if finding.state == State::Warn {
                warn!(what = finding.topic, found = %finding.detail, remedy = %finding.remedy, "this node may not be seen whole");
            }
        }
    };
    thread::Builder::new().name("bypass".into()).spawn(look).map(drop).map_err(RunError::Thread)
}

/// Addresses of this network namespace; without a cluster they tell which end is here.
fn host_addresses() -> Vec<std::net::IpAddr> {
    match if_addrs::get_if_addrs() {
        Ok(interfaces) => interfaces.iter().map(|interface| interface.ip()).collect(),
        Err(error) => {
            warn!(%error, "this host's addresses cannot be read: without a cluster every flow is reported by its source");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_that_overran_is_followed_by_a_full_window() {
        let due = Instant::now();
        let second = Duration::from_secs(1);
        assert_eq!(next_after(due, second, due + second / 10), due + second);
        assert_eq!(next_after(due, second, due + second), due + 2 * second);
        assert_eq!(next_after(due, second, due + 7 * second), due + 8 * second);
    }
}
