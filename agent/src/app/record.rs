//! Live observations, and the cluster's objects, as a recording that `replay` understands.
//!
//! In: the node's sources, manifests. Out: lines of a recording; a `flush` line at each flush interval, after the
//! counters of all live connections. Always: a line is written whole; the recording ends after a sweep.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;
use tracing::info;

use crate::config::Config;
use crate::model::Timestamp;
use crate::source::{NodeSources, Observed, SourcesError};
use crate::watch::{ManifestError, load_as_written};
use crate::wire::recording::{Line, write_line};

use super::Clock;

const POLL: Duration = Duration::from_millis(100);

#[derive(Debug, Error)]
pub enum RecordError {
    #[error(transparent)]
    Cluster(#[from] ManifestError),
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
    duration: Option<Duration>,
    output: &mut impl Write,
    stop: &AtomicBool,
) -> Result<u64, RecordError> {
    let objects = load_as_written(cluster)?;
    let mut sources = NodeSources::open(config)?;
    let mut clock = Clock::start();
    let mut lines = Lines { last: clock.now(), buffer: Vec::new(), count: 0 };
    for object in objects {
        lines.add(clock.now(), &Line::Apply(object));
    }
    sources.adopt(&mut |observed| lines.observed(observed));
    lines.write_to(output)?;
    let [processes, tcp] = sources.collectors_state().map(|(_, state)| state);
    info!(
        source = sources.name(),
        drops = sources.drops_state(),
        processes,
        tcp,
        "flowlogd records this node"
    );

    let end = duration.map(|duration| Instant::now() + duration);
    let mut next_flush = Instant::now() + config.flow_logs_flush_interval;
    loop {
        let now = Instant::now();
        let stopping = stop.load(Ordering::Relaxed) || end.is_some_and(|end| now >= end);
        if stopping || now >= next_flush {
            sources.sweep(&mut |observed| lines.observed(observed));
            lines.add(clock.now(), &Line::Flush);
            next_flush += config.flow_logs_flush_interval;
        } else {
            let due = end.map_or(next_flush, |end| next_flush.min(end)) - now;
            sources.poll(POLL.min(due), &mut |observed| lines.observed(observed));
        }
        lines.write_to(output)?;
        if stopping {
            output.flush()?;
            return Ok(lines.count);
        }
    }
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
