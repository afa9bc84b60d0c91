//! Live observations, and the cluster's objects, as a recording that `replay` understands.
//!
//! In: the node's sources; manifests or an API server; the configuration of the start, the cluster's layers among it.
//! Out: lines of a recording: first the objects that there are, then what is observed (DNS too, where it is configured)
//! and what changes among the objects; a `flush` line at each flush interval, after the counters of all live connections.
//! Always: a line is written whole; the recording ends after a sweep; here an API server that does not answer delays the
//! start by [`PATIENCE`] and no more; a configuration object that changes is recorded, and acts on nothing here.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use thiserror::Error;
use tracing::{info, warn};

use crate::config::Config;
use crate::model::Timestamp;
use crate::source::dns::Capture;
use crate::source::{NodeSources, Observed, SourcesError};
use crate::watch::{
    self, CONFIGURATION, ConnectError, Link, ManifestError, Phase, Raw, Server, Timing, Told, WORLD, Wanted,
    load_as_written,
};
use crate::wire::recording::{Line, ObjectKey, write_line};

use super::{Clock, Tasks};

const POLL: Duration = Duration::from_millis(100);
/// How long the objects of an API server are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long tasks may take to end.
const TASKS_END: Duration = Duration::from_secs(2);

#[derive(Debug, Error)]
pub enum RecordError {
    #[error(transparent)]
    Cluster(#[from] ManifestError),
    #[error(transparent)]
    Server(#[from] ConnectError),
    #[error("cannot start a thread: {0}: the process limit of this container or user may be too low")]
    Thread(io::Error),
    #[error(transparent)]
    Sources(#[from] SourcesError),
    #[error("the recording cannot be written: {0}: check the output's disk, or where it is piped to")]
    Output(#[from] io::Error),
}

/// Records until `stop` is set or `duration` is over. Returns the number of lines.
///
/// # Errors
/// See [`RecordError`].
pub fn record(
    config: &Config,
    cluster: &[PathBuf],
    kubeconfig: Option<&Path>,
    duration: Option<Duration>,
    output: &mut impl Write,
    stop: &AtomicBool,
) -> Result<u64, RecordError> {
    let objects = load_as_written(cluster)?;
    let server = if cluster.is_empty() { watch::locate(kubeconfig) } else { None };
    let mut watched = server.map(|server| Watched::start(&server)).transpose()?;
    let mut sources = NodeSources::open(config)?;
    let mut clock = Clock::start();
    let mut lines = Lines { last: clock.now(), buffer: Vec::new(), count: 0 };
    for object in objects {
        lines.add(clock.now(), &Line::Apply(object));
    }
    if let Some(watched) = &mut watched {
        watched.wait(&mut lines, &mut clock, stop);
    }
    sources.adopt(&mut |observed| lines.observed(observed));
    lines.write_to(output)?;
    let [processes, tcp] = sources.collectors_state().map(|(_, state)| state);
    let mut dns = capture(config);
    info!(
        source = sources.name(),
        drops = sources.drops_state(),
        processes,
        tcp,
        dns = dns.is_some(),
        "flowlogd records this node"
    );

    let end = duration.map(|duration| Instant::now() + duration);
    let mut next_flush = Instant::now() + config.flow_logs_flush_interval;
    loop {
        if let Some(watched) = &mut watched {
            watched.take(&mut lines, clock.now());
        }
        if let Some(dns) = &mut dns {
            dns.take(|at, observation| lines.observed(Observed { at, observation }));
        }
        let now = Instant::now();
        let stopping = stop.load(Ordering::Relaxed) || end.is_some_and(|end| now >= end);
        if stopping || now >= next_flush {
            sources.sweep(&mut |observed| lines.observed(observed));
            if let Some(dns) = dns.take_if(|_| stopping) {
                dns.stop(|at, observation| lines.observed(Observed { at, observation }));
            }
            lines.add(clock.now(), &Line::Flush);
            next_flush += config.flow_logs_flush_interval;
            lines.write_to(output)?;
            output.flush()?;
        } else {
            let due = end.map_or(next_flush, |end| next_flush.min(end)) - now;
            sources.poll(POLL.min(due), &mut |observed| lines.observed(observed));
        }
        lines.write_to(output)?;
        if stopping {
            output.flush()?;
            if let Some(watched) = watched {
                watched.tasks.stop(TASKS_END);
            }
            return Ok(lines.count);
        }
    }
}

/// As the daemon at its start: where the configuration asks for names or for the DNS log.
fn capture(config: &Config) -> Option<Capture> {
    let wanted = config.dns_logs_file_enabled || config.flow_logs_collect_dest_domains;
    let capture = wanted.then(Capture::start)?;
    capture.inspect_err(|error| warn!(%error, "DNS is not captured, and not recorded")).ok()
}

/// The objects of an API server.
struct Watched {
    tasks: Tasks,
    wanted: Vec<Wanted>,
    raw: Raw,
    /// By kind (its place in `wanted`), namespace and name: its API version.
    known: BTreeMap<(usize, Option<String>, String), String>,
}

impl Watched {
    fn start(server: &Server) -> Result<Self, RecordError> {
        let tasks = Tasks::start().map_err(RecordError::Thread)?;
        let client = tasks.block_on(watch::connect(server))?;
        let (link, looking) = Link::new(client, Timing::default(), &CONFIGURATION);
        let wanted: Vec<Wanted> = WORLD.iter().map(|(wanted, _)| *wanted).chain(CONFIGURATION).collect();
        let (following, raw) = link.raw(wanted.iter().map(|wanted| (*wanted).into()).collect());
        let stopping = tasks.stopping();
        tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                ((), ()) = futures::future::join(looking, following) => {}
            }
        });
        Ok(Self { tasks, wanted, raw, known: BTreeMap::new() })
    }

    /// Until all objects are there, or patience ends.
    fn wait(&mut self, lines: &mut Lines, clock: &mut Clock, stop: &AtomicBool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let kinds = &self.raw.status.kinds;
            let all = kinds.iter().all(|kind| matches!(kind.phase(), Phase::Synced | Phase::NotServed));
            self.take(lines, clock.now());
            if all {
                return info!(objects = self.known.len(), "the cluster's objects are recorded");
            }
            if stop.load(Ordering::Relaxed) || Instant::now() >= end {
                let missing = self.raw.status.reasons(PATIENCE);
                return warn!(
                    ?missing,
                    "not all objects of the cluster are known: what comes later is recorded later"
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn take(&mut self, lines: &mut Lines, at: Timestamp) {
        while let Ok((tag, told)) = self.raw.told.try_recv() {
            match told {
                Told::Applied(object) => self.apply(tag, object, lines, at),
                Told::Part(objects) => {
                    objects.into_iter().for_each(|object| self.apply(tag, object, lines, at))
                }
                Told::Done => {}
                Told::All { objects, .. } => {
                    let mut gone: BTreeMap<_, _> = self
                        .known
                        .iter()
                        .filter(|((of, ..), _)| *of == tag)
                        .map(|(k, v)| (k.clone(), v.clone()))
                        .collect();
                    for object in objects {
                        gone.remove(&key(tag, &object));
                        self.apply(tag, object, lines, at);
                    }
                    for (key, _) in gone {
                        self.delete(key, lines, at);
                    }
                }
                Told::Gone { identity, .. } => {
                    let namespace = identity.namespace.filter(|namespace| !namespace.is_empty());
                    self.delete((tag, namespace, identity.name), lines, at);
                }
            }
        }
    }

    fn apply(&mut self, tag: usize, mut object: Value, lines: &mut Lines, at: Timestamp) {
        // Nothing reads who wrote which field, and it is half of an object.
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        let version = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
        self.known.insert(key(tag, &object), version);
        lines.add(at, &Line::Apply(object));
    }

    fn delete(&mut self, key: (usize, Option<String>, String), lines: &mut Lines, at: Timestamp) {
        let Some(api_version) = self.known.remove(&key) else { return };
        let (tag, namespace, name) = key;
        let Some(wanted) = self.wanted.get(tag) else { return };
        let kind = wanted.kind.to_owned();
        lines.add(at, &Line::Delete(ObjectKey { api_version, kind, namespace, name }));
    }
}

fn key(tag: usize, object: &Value) -> (usize, Option<String>, String) {
    let text = |field: &str| object.pointer(field).and_then(Value::as_str).map(str::to_owned);
    let namespace = text("/metadata/namespace").filter(|namespace| !namespace.is_empty());
    (tag, namespace, text("/metadata/name").unwrap_or_default())
}

struct Lines {
    last: Timestamp,
    buffer: Vec<u8>,
    count: u64,
}

impl Lines {
    fn observed(&mut self, observed: Observed) {
        self.add(observed.at, &Line::Observation(observed.observation));
    }

    /// Times in a recording do not go backwards: a flow that a source tells of late is told at the time of telling.
    fn add(&mut self, at: Timestamp, line: &Line) {
        self.last = self.last.max(at);
        write_line(&mut self.buffer, self.last, line);
        self.count += 1;
    }

    fn write_to(&mut self, output: &mut impl Write) -> io::Result<()> {
        output.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}
