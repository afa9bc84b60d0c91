//! The flow log file: windows in, lines in `flows.log` out, whatever the disk does.
//!
//! Always: windows are written in order, lines whole. While the file cannot be written (disk full, directory gone,
//! read-only, replaced), the newest windows are kept up to `buffer_bytes`; older ones are dropped and counted.
//! Retries back off from 1 s to 30 s of the caller's clock; a clock that steps back retries at once. A fault is
//! logged once when it begins and once when it ends; what ends it is the world, never a restart.
//! At the start a fault that time may cure begins like any other; a second writer, or a path that cannot become
//! right by itself (permission, symbolic link, not a directory), is an error.
//! Not here: renaming and locking (`rotate.rs`), the window's encoding (`wire`).

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use super::rotate::{Limits, RotatingFile, TakeError};
use crate::model::Timestamp;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Where and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    pub dir: PathBuf,
    /// `flows.log`; rotated files are `flows.log.1` and so on, the lock is `flows.log.lock`.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
    /// Bytes that a file does not exceed, unless one line does.
    pub max_file_bytes: u64,
    /// Files in all, at least 1.
    pub max_files: u32,
    /// Bytes of lines kept in memory while the file cannot be written.
    pub buffer_bytes: usize,
}

impl FileOptions {
    /// The flow log's own, out of the configuration (megabytes there are 1,000,000 bytes).
    pub fn flow_log(config: &crate::config::Config) -> Self {
        Self {
            dir: config.flow_logs_file_directory.clone(),
            name: "flows.log".to_owned(),
            mode: config.flow_logs_file_mode.0,
            max_file_bytes: u64::from(config.flow_logs_file_max_file_size_mb).saturating_mul(1_000_000),
            max_files: config.flow_logs_file_max_files,
            buffer_bytes: usize::try_from(config.flow_logs_file_buffer_mb)
                .unwrap_or(usize::MAX)
                .saturating_mul(1_000_000),
        }
    }

    /// The DNS log's own.
    pub fn dns_log(config: &crate::config::Config) -> Self {
        Self {
            dir: config.dns_logs_file_directory.clone(),
            name: "dns.log".to_owned(),
            max_file_bytes: u64::from(config.dns_logs_file_max_file_size_mb).saturating_mul(1_000_000),
            max_files: config.dns_logs_file_max_files,
            ..Self::flow_log(config)
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            file_bytes: self.max_file_bytes.max(1),
            files: self.max_files.clamp(1, 1_000),
            mode: self.mode & 0o777,
        }
    }
}

/// Why the sink cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error(
        "another writer has {}: {holder}; stop it, or set another directory (flowLogsFileDirectory, dnsLogsFileDirectory)", path.display()
    )]
    Locked { path: PathBuf, holder: String },
    #[error("cannot write to {}: {source}; make the directory writable, or set another one (flowLogsFileDirectory, dnsLogsFileDirectory)", path.display())]
    Open { path: PathBuf, source: io::Error },
}

/// What the sink has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkStats {
    pub written_windows: u64,
    pub written_records: u64,
    pub written_bytes: u64,
    pub rotations: u64,
    /// Waiting in memory now.
    pub buffered_windows: u64,
    pub buffered_records: u64,
    pub buffered_bytes: u64,
    /// Windows of which at least one record was dropped.
    pub dropped_windows: u64,
    pub dropped_records: u64,
    pub dropped_bytes: u64,
    /// Times that writing began to fail.
    pub faults: u64,
    /// Lines that a killed writer left torn, taken out.
    pub torn_lines: u64,
    /// Writing fails now.
    pub failing: bool,
}

struct Window {
    lines: Vec<u8>,
    /// Bytes of it that are in the file.
    written: usize,
    /// Records not yet in the file.
    records: u64,
}

impl Window {
    fn rest(&self) -> &[u8] {
        self.lines.get(self.written..).unwrap_or_default()
    }
}

struct Fault {
    last_try: Timestamp,
    backoff: Duration,
    /// At its beginning, to tell afterwards what it cost.
    dropped_records_before: u64,
}

pub struct FileSink {
    options: FileOptions,
    owner: String,
    /// `None`: the directory is to be taken first.
    files: Option<RotatingFile>,
    waiting: VecDeque<Window>,
    waiting_bytes: usize,
    fault: Option<Fault>,
    stats: SinkStats,
}

impl FileSink {
    /// Takes the directory.
    pub fn open(options: &FileOptions, now: Timestamp) -> Result<Self, SinkError> {
        let mut sink = Self {
            options: options.clone(),
            owner: owner(now),
            files: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            fault: None,
            stats: SinkStats::default(),
        };
        let taken = sink.take(options).and_then(|mut files| {
            let prepared = files.prepare();
            sink.files = Some(files);
            prepared.map_err(TakeError::Io)
        });
        match taken {
            Ok(()) => {}
            Err(TakeError::Io(error)) if may_pass(&error) => sink.fail(&error, now),
            Err(error) => return Err(sink.sink_error(&options.dir, error)),
        }
        Ok(sink)
    }

    /// New limits act at the next write; a new directory at once. If that cannot be had, the old one stays.
    pub fn reconfigure(&mut self, options: &FileOptions) -> Result<(), SinkError> {
        if *options == self.options {
            return Ok(());
        }
        if options.dir != self.options.dir || options.name != self.options.name {
            let files = self.take(options).map_err(|error| self.sink_error(&options.dir, error))?;
            self.count_files();
            self.files = Some(files);
        } else if let Some(files) = &mut self.files {
            files.set_limits(options.limits());
        }
        self.options = options.clone();
        self.bound_waiting();
        Ok(())
    }

    /// Takes a window of whole lines, `records` of them, and writes it with what waits before it, if it is time.
    pub fn write_window(&mut self, mut lines: Vec<u8>, records: u64, now: Timestamp) {
        if lines.is_empty() {
            // Windows that come often leave the caller no idle second in which to retry.
            return self.retry(now);
        }
        if lines.last() != Some(&b'\n') {
            lines.push(b'\n');
        }
        self.waiting_bytes += lines.len();
        self.waiting.push_back(Window { lines, written: 0, records });
        self.retry(now);
        self.bound_waiting();
    }

    /// Writes what waits, if there is anything and it is time. Cheap otherwise: call it once a second.
    pub fn retry(&mut self, now: Timestamp) {
        let due = self
            .fault
            .as_ref()
            .is_none_or(|fault| now < fault.last_try || now - fault.last_try >= fault.backoff);
        if due && (self.fault.is_some() || !self.waiting.is_empty()) {
            self.write_waiting(now);
        }
    }

    pub fn stats(&self) -> SinkStats {
        let mut stats = self.stats;
        if let Some(files) = &self.files {
            stats.rotations += files.rotations;
            stats.torn_lines += files.torn_lines;
        }
        stats.buffered_windows = self.waiting.len() as u64;
        stats.buffered_records = self.waiting.iter().map(|window| window.records).sum();
        stats.buffered_bytes = self.waiting_bytes as u64;
        stats.failing = self.fault.is_some();
        stats
    }

    /// Tries once more to write what waits, whatever the backoff says; what is left is dropped and counted. The lock
    /// is held until the sink is dropped: the checkpoint belongs written before that, or a writer that starts in
    /// between would begin without it.
    pub fn close(&mut self, now: Timestamp) -> SinkStats {
        if !self.waiting.is_empty() {
            self.write_waiting(now);
        }
        if let Some(files) = &self.files
            && let Err(error) = files.sync()
        {
            tracing::warn!(%error, "the flow log could not be synced to the disk");
        }
        while let Some(window) = self.waiting.pop_front() {
            self.count_dropped(&window);
        }
        self.waiting_bytes = 0;
        if self.fault.is_some() && self.stats.dropped_records > 0 {
            tracing::error!(
                records = self.stats.dropped_records,
                "ending with records that could not be written"
            );
        }
        self.stats()
    }

    fn take(&self, options: &FileOptions) -> Result<RotatingFile, TakeError> {
        RotatingFile::take(&options.dir, &options.name, options.limits(), &self.owner)
    }

    fn sink_error(&self, dir: &Path, error: TakeError) -> SinkError {
        let path = dir.join(&self.options.name);
        match error {
            TakeError::Locked(holder) => SinkError::Locked { path, holder },
            TakeError::Io(source) => SinkError::Open { path, source },
        }
    }

    fn count_files(&mut self) {
        if let Some(files) = self.files.take() {
            self.stats.rotations += files.rotations;
            self.stats.torn_lines += files.torn_lines;
        }
    }

    fn write_waiting(&mut self, now: Timestamp) {
        match self.try_write() {
            Ok(()) => self.recover(),
            Err(error) => self.fail(&error, now),
        }
    }

    fn try_write(&mut self) -> io::Result<()> {
        if self.files.as_ref().is_some_and(|files| !files.is_in_place()) {
            // The directory or the lock was removed or replaced: ours is another one now.
            self.count_files();
        }
        if self.files.is_none() {
            self.files = Some(self.take(&self.options).map_err(|error| match error {
                TakeError::Io(error) => error,
                TakeError::Locked(holder) => {
                    io::Error::new(io::ErrorKind::ResourceBusy, format!("another writer has it: {holder}"))
                }
            })?);
        }
        let Some(files) = &mut self.files else { return Ok(()) };
        while let Some(window) = self.waiting.front_mut() {
            let written = files.write_lines(window.rest());
            let lines = count_lines(window.rest().get(..written.bytes).unwrap_or_default());
            window.written += written.bytes;
            self.waiting_bytes = self.waiting_bytes.saturating_sub(written.bytes);
            self.stats.written_bytes += written.bytes as u64;
            // The caller's number of records counts when the window is whole in the file.
            let records = if window.rest().is_empty() { window.records } else { lines.min(window.records) };
            self.stats.written_records += records;
            window.records -= records;
            if let Some(error) = written.error {
                return Err(error);
            }
            self.stats.written_windows += 1;
            self.waiting.pop_front();
        }
        Ok(())
    }

    fn recover(&mut self) {
        if let Some(fault) = self.fault.take() {
            let dropped_records = self.stats.dropped_records - fault.dropped_records_before;
            tracing::warn!(
                path = %self.options.dir.join(&self.options.name).display(),
                dropped_records,
                "the flow log is written again"
            );
        }
    }

    fn fail(&mut self, error: &io::Error, now: Timestamp) {
        match &mut self.fault {
            Some(fault) => {
                fault.last_try = now;
                fault.backoff = (fault.backoff * 2).min(LONGEST_BACKOFF);
            }
            None => {
                self.stats.faults += 1;
                self.fault = Some(Fault {
                    last_try: now,
                    backoff: FIRST_BACKOFF,
                    dropped_records_before: self.stats.dropped_records,
                });
                tracing::error!(
                    path = %self.options.dir.join(&self.options.name).display(),
                    %error,
                    buffer_bytes = self.options.buffer_bytes,
                    "the flow log cannot be written: the newest windows are kept in memory and tried again"
                );
            }
        }
    }

    /// Drops the oldest windows until the rest fits; of one that is too large alone, its last lines.
    fn bound_waiting(&mut self) {
        while self.waiting_bytes > self.options.buffer_bytes {
            if self.waiting.len() > 1 {
                let Some(window) = self.waiting.pop_front() else { return };
                self.waiting_bytes = self.waiting_bytes.saturating_sub(window.rest().len());
                self.count_dropped(&window);
                continue;
            }
            let Some(window) = self.waiting.front_mut() else { return };
            let fitting = window.rest().get(..self.options.buffer_bytes).unwrap_or_default();
            let keep = fitting.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
            let rest = window.lines.split_off((window.written + keep).min(window.lines.len()));
            let records = count_lines(&rest).min(window.records);
            window.records -= records;
            self.waiting_bytes = keep;
            let dropped = Window { lines: rest, written: 0, records };
            self.count_dropped(&dropped);
            if keep == 0 {
                self.waiting.clear();
            }
            return;
        }
    }

    fn count_dropped(&mut self, window: &Window) {
        self.stats.dropped_windows += 1;
        self.stats.dropped_records += window.records;
        self.stats.dropped_bytes += window.rest().len() as u64;
    }
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// What a second writer is told of us.
fn owner(now: Timestamp) -> String {
    let since =
        jiff::Timestamp::from_second(now.floor_seconds()).map_or(String::new(), |at| format!(" since {at}"));
    let host = rustix::system::uname();
    format!("pid {} on {}{since}\n", std::process::id(), host.nodename().to_string_lossy())
}

/// Whether waiting may cure it.
fn may_pass(error: &io::Error) -> bool {
    error.raw_os_error() != Some(Errno::LOOP.raw_os_error())
        && !matches!(
            error.kind(),
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::InvalidInput
            // `create_dir_all` on a path whose last part is a file.
            | io::ErrorKind::AlreadyExists
        )
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
