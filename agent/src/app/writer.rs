//! The thread that encodes and writes lines, so that a slow disk never holds up the kernel's records.
//!
//! In: windows, in order, each with how it is to be written ([`Lines`]). Out: lines in the file or on stdout, at the
//! end the sink, for the checkpoint. Always: a window that the writer cannot take is counted, never waited for; each
//! window is written as the configuration said that it was collected with, whatever became of messages in between.
//! A file that the new configuration names and that cannot be had leaves the old one in force, is told once, and is
//! tried again with every window. Not here: when the configuration changes (`daemon.rs`), rotation (`sink`).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use crate::config::Config;
use crate::model::{CheckpointEntry, FlowLogs, Timestamp};
use crate::sink::checkpoint::{self, Checkpoint};
use crate::sink::live::Live;
use crate::sink::{FileOptions, FileSink, Reader, SinkError, StdoutSink};
use crate::telemetry::Metrics;
use crate::wire::flow_log::{LineFormat, encode_all};

use super::daemon::RunError;
use super::memory::Memory;
use super::outside::Beats;
use super::{Clock, line_format};

/// Windows that may wait for the writer.
const WINDOWS_AHEAD: usize = 4;

/// How often a failing file is looked at again (it decides itself whether it tries).
const RETRY: Duration = Duration::from_secs(1);

/// How lines look and where they go.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lines {
    format: LineFormat,
    /// `None`: `flowLogsFileEnabled: false`.
    file: Option<FileOptions>,
}

impl Lines {
    pub(super) fn of(config: &Config, node: &str, memory: &Memory) -> Self {
        let file = config.flow_logs_file_enabled.then(|| {
            let mut file = FileOptions::flow_log(config);
            // What waits for a full disk must not be what gets the agent killed.
            file.buffer_bytes = file.buffer_bytes.min(memory.lines_waiting());
            file
        });
        Self { format: line_format(config, node), file }
    }
}

struct Message {
    lines: Arc<Lines>,
    logs: Option<FlowLogs>,
}

enum Target {
    File(Box<FileSink>),
    Stdout(StdoutSink<io::Stdout>),
    /// `flowLogsFileEnabled: false`.
    Nowhere,
}

pub(super) struct Output {
    target: Target,
    lines: Arc<Lines>,
    /// Where `target` is.
    dir: PathBuf,
    /// Why `target` is not yet what `lines` says: told already.
    refused: Option<String>,
    metrics: Arc<Metrics>,
    /// Why stdout takes no more lines.
    failure: Option<io::Error>,
}

impl Output {
    /// # Errors
    /// The file cannot be had, and waiting will not cure it.
    pub(super) fn open(
        lines: Lines,
        stdout: bool,
        metrics: Arc<Metrics>,
        now: Timestamp,
    ) -> Result<Self, SinkError> {
        let mut dir = PathBuf::new();
        let target = if stdout {
            Target::Stdout(StdoutSink::new())
        } else if let Some(file) = &lines.file {
            dir.clone_from(&file.dir);
            Target::File(Box::new(FileSink::open(file, now)?))
        } else {
            warn!(
                "flowLogsFileEnabled is false: no lines are written; set it to true, or use --output stdout"
            );
            Target::Nowhere
        };
        Ok(Self { target, lines: Arc::new(lines), dir, refused: None, metrics, failure: None })
    }

    pub(super) fn take_checkpoint(&mut self) -> Option<Checkpoint> {
        if !matches!(self.target, Target::File(_)) {
            return None;
        }
        match checkpoint::read_and_remove(&self.dir) {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                self.metrics.checkpoints_refused.add(1);
                warn!(%error, "the last stop's checkpoint is of no use: connections are adopted as they are");
                None
            }
        }
    }

    pub(super) fn put_back(&self, checkpoint: Option<Checkpoint>) {
        let Some(Checkpoint { written_at, entries }) = checkpoint else { return };
        if let Err(error) = checkpoint::write(&self.dir, entries.into_iter(), written_at) {
            warn!(%error, "the last stop's checkpoint is lost: connections will be adopted as they are");
        }
    }

    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(self, beats: Arc<Beats>, live: Live) -> io::Result<Writer> {
        let (windows, queue) = sync_channel(WINDOWS_AHEAD);
        let done = Arc::new(AtomicBool::new(false));
        let (flag, lines) = (done.clone(), self.lines.clone());
        let thread = thread::Builder::new().name("lines".into()).spawn(move || {
            let left = self.write_all(&queue, &beats, &live);
            flag.store(true, Ordering::Relaxed);
            left
        })?;
        Ok(Writer { windows, lines, thread, done })
    }

    /// Until the sender is gone.
    fn write_all(mut self, queue: &Receiver<Message>, beats: &Beats, live: &Live) -> Self {
        let mut clock = Clock::start();
        loop {
            beats.writer.beat();
            match queue.recv_timeout(RETRY) {
                Ok(Message { lines, logs }) => {
                    self.follow(lines, clock.now());
                    if let Some(logs) = logs
                        && !self.write(&logs, live, clock.now())
                    {
                        return self;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Target::File(file) = &mut self.target {
                        file.retry(clock.now());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return self,
            }
            if let Target::File(file) = &self.target {
                self.metrics.set_sink(&file.stats());
            }
        }
    }

    /// False: nobody takes lines any more.
    fn write(&mut self, logs: &FlowLogs, live: &Live, now: Timestamp) -> bool {
        let records = logs.records.len() as u64;
        let mut lines = Vec::new();
        encode_all(logs, &self.lines.format, &mut lines);
        live.lines(&lines);
        match &mut self.target {
            Target::Nowhere => {
                if self.lines.file.is_some() {
                    self.metrics.lost_events.add("file_not_open", records);
                }
                true
            }
            Target::File(file) => {
                file.write_window(lines, records, now);
                true
            }
            Target::Stdout(stdout) => match stdout.write_lines(&lines) {
                Ok(Reader::Present) => true,
                Ok(Reader::Gone) => false,
                Err(error) => {
                    self.failure = Some(error);
                    false
                }
            },
        }
    }

    /// From here on lines are written so.
    fn follow(&mut self, lines: Arc<Lines>, now: Timestamp) {
        if Arc::ptr_eq(&lines, &self.lines) && self.refused.is_none() {
            return;
        }
        self.lines = lines;
        match self.move_file(now) {
            Ok(()) => {
                if self.refused.take().is_some() {
                    info!(dir = %self.dir.display(), "the flow log is where the configuration says");
                }
            }
            Err(error) => {
                let text = error.to_string();
                if self.refused.as_ref() != Some(&text) {
                    warn!(%error, "the flow log stays as it was until this is cured");
                    self.refused = Some(text);
                }
            }
        }
    }

    fn move_file(&mut self, now: Timestamp) -> Result<(), SinkError> {
        match (&mut self.target, &self.lines.file) {
            (Target::Stdout(_), _) | (Target::Nowhere, None) => {}
            (Target::File(file), Some(options)) => {
                file.reconfigure(options)?;
                if self.dir != options.dir {
                    self.dir.clone_from(&options.dir);
                    self.forget_checkpoint();
                }
            }
            (Target::File(file), None) => {
                self.metrics.set_sink(&file.close(now));
                self.target = Target::Nowhere;
                warn!("flowLogsFileEnabled is false: from here on no lines are written");
            }
            (Target::Nowhere, Some(options)) => {
                self.target = Target::File(Box::new(FileSink::open(options, now)?));
                self.dir.clone_from(&options.dir);
                self.forget_checkpoint();
            }
        }
        Ok(())
    }

    /// One that lies where the file comes to be is older than what was exported since: the next start must not read it.
    fn forget_checkpoint(&self) {
        if let Err(error) = checkpoint::read_and_remove(&self.dir) {
            warn!(%error, "an old checkpoint beside the flow log is of no use");
        }
    }
}

pub(super) struct Writer {
    windows: SyncSender<Message>,
    lines: Arc<Lines>,
    thread: thread::JoinHandle<Output>,
    done: Arc<AtomicBool>,
}

impl Writer {
    /// Nobody reads any more.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// The windows that follow are written so.
    pub(super) fn reconfigure(&mut self, lines: Lines) {
        if lines != *self.lines {
            self.lines = Arc::new(lines);
            // If there is no place now, the next window tells it.
            let _ = self.windows.try_send(Message { lines: self.lines.clone(), logs: None });
        }
    }

    pub(super) fn send(&self, logs: FlowLogs, last: bool, metrics: &Metrics) {
        let message = Message { lines: self.lines.clone(), logs: Some(logs) };
        let refused = if last {
            // There is time for the last window.
            self.windows.send(message).err().map(|refused| refused.0)
        } else {
            match self.windows.try_send(message) {
                Ok(()) => None,
                Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) => Some(message),
            }
        };
        if self.is_done() {
            return; // nobody reads stdout any more, or its error is told at the end
        }
        if let Some(logs) = refused.and_then(|message| message.logs) {
            let records = logs.records.len() as u64;
            metrics.lost_events.add("line_queue", records);
            warn!(records, "the writer is too slow: a window is dropped");
        }
    }

    pub(super) fn finish(self, entries: &[CheckpointEntry], now: Timestamp) -> Result<(), RunError> {
        drop(self.windows);
        let mut output = self.thread.join().map_err(|_| RunError::Writer)?;
        if let Some(error) = output.failure.take() {
            return Err(RunError::Stdout(error));
        }
        // The sink's lock is held to the end of this block: no other writer starts before the checkpoint is there.
        if let Target::File(mut file) = output.target {
            let stats = file.close(now);
            output.metrics.set_sink(&stats);
            match checkpoint::write(&output.dir, entries.iter().copied(), now) {
                Ok(connections) => {
                    info!(connections, lines = stats.written_records, "stopped; checkpoint written")
                }
                Err(error) => warn!(%error, "no checkpoint: the next start adopts connections as they are"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
