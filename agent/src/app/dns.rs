//! DNS on the node: the capture, the DNS log and the file of learnt names, as far as they are configured.
//!
//! In: lookups of the capture, the world, the configuration as it changes. Out: observations for the pipeline, lines
//! of `dns.log`, the cache file. Always: capture runs while `dnsLogsFileEnabled` or `flowLogsCollectDestDomains` is
//! on and costs nothing while neither is; what cannot start is told once, with what to do, and tried again at the next
//! change; files are written by a thread of their own, so that no disk holds up the kernel's records.
//! Not here: what is learnt (the pipeline's), what a line says (`wire`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::config::Config;
use crate::model::{DnsLogs, KnownDomain, Observation, Timestamp, TrustedServer};
use crate::pipeline::{DnsWindow, Input, Pipeline};
use crate::sink::{FileOptions, FileSink, dns_cache};
use crate::snapshot::Snapshot;
use crate::source::dns::{Capture, SETTLED};
use crate::telemetry::Metrics;
use crate::wire::dns_log::encode_all;

use super::{Clock, dns_log_settings};

/// Windows and caches that may wait for the files' thread.
const AHEAD: usize = 4;
/// How often a failing file is looked at again.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Dns {
    metrics: Arc<Metrics>,
    lines_waiting: usize,
    capture: Option<Capture>,
    log: Option<Log>,
    files: Option<Files>,
    cache: PathBuf,
    save_interval: Duration,
    next_save: Instant,
    /// The names of an earlier agent have been taken over.
    restored: bool,
}

struct Log {
    window: DnsWindow,
    interval: Duration,
    next: Instant,
}

impl Dns {
    /// `lines_waiting`: bytes of the DNS log that may wait for its file.
    pub(super) fn new(metrics: Arc<Metrics>, lines_waiting: usize) -> Self {
        Self {
            metrics,
            lines_waiting,
            capture: None,
            log: None,
            files: None,
            cache: PathBuf::new(),
            save_interval: Duration::MAX,
            next_save: Instant::now(),
            restored: false,
        }
    }

    /// Starts, changes or stops what the configuration says.
    pub(super) fn configure(&mut self, config: &Config, pipeline: &mut Pipeline, now: Timestamp) {
        let wanted = config.dns_logs_file_enabled || config.flow_logs_collect_dest_domains;
        for server in config.dns_trusted_servers.iter().filter(|_| wanted) {
            if let Err(error) = server.parse::<TrustedServer>() {
                warn!(%error, "an entry of dnsTrustedServers is left out");
            }
        }
        if wanted && self.capture.is_none() {
            match Capture::start() {
                Ok(capture) => {
                    info!(log = config.dns_logs_file_enabled, "DNS is captured on port 53");
                    self.capture = Some(capture);
                    self.cache.clone_from(&config.dns_cache_file);
                    self.next_save = Instant::now() + config.dns_cache_save_interval;
                    self.restore(pipeline, now);
                }
                Err(error) => warn!(%error, "DNS is not captured: no dest_domains, no DNS log"),
            }
        }
        self.save_interval = config.dns_cache_save_interval;
        if !wanted && self.capture.is_some() {
            self.stop(pipeline, None, now);
            info!("DNS is not captured any more");
            return;
        }
        if self.files.is_none() && self.capture.is_some() {
            self.files = Files::start(self.metrics.clone())
                .inspect_err(
                    |error| warn!(%error, "no thread for DNS files: neither DNS log nor cache is written"),
                )
                .ok();
        }
        match (&mut self.log, config.dns_logs_file_enabled && self.capture.is_some()) {
            (None, true) => {
                info!(dir = %config.dns_logs_file_directory.display(), "the DNS log is switched on");
                self.log = Some(Log {
                    window: DnsWindow::new(dns_log_settings(config), now),
                    interval: config.dns_logs_flush_interval,
                    next: Instant::now() + config.dns_logs_flush_interval,
                });
            }
            (Some(log), true) => {
                log.window.reconfigure(dns_log_settings(config));
                if log.interval != config.dns_logs_flush_interval {
                    log.interval = config.dns_logs_flush_interval;
                    log.next = Instant::now() + log.interval;
                }
            }
            (Some(_), false) => {
                self.flush(now);
                self.log = None;
                info!("the DNS log is switched off");
            }
            (None, false) => {}
        }
        if let Some(files) = &self.files {
            let log = config.dns_logs_file_enabled.then(|| {
                let mut log = FileOptions::dns_log(config);
                log.buffer_bytes = log.buffer_bytes.min(self.lines_waiting);
                log
            });
            files.send(Work::Open(log), &self.metrics);
        }
    }

    /// Once, whatever is switched off and on again: later on the agent knows better.
    fn restore(&mut self, pipeline: &mut Pipeline, now: Timestamp) {
        if std::mem::replace(&mut self.restored, true) {
            return;
        }
        match dns_cache::read(&self.cache, now) {
            Ok(remembered) => {
                debug!(
                    names = remembered.domains.len(),
                    refused = remembered.refused,
                    "names of an earlier run"
                );
                pipeline.restore_domains(remembered.domains);
            }
            Err(error) => warn!(%error, "names learnt by an earlier run are not known"),
        }
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.capture.is_some()
    }

    /// [`Self::poll`] for a window that closes: what was answered before its last connections began is known then.
    pub(super) fn catch_up(&mut self, pipeline: &mut Pipeline, snapshot: &Snapshot, now: Timestamp) {
        if self.capture.is_some() {
            thread::sleep(SETTLED);
        }
        self.poll(pipeline, snapshot, now);
    }

    /// Steps what has been looked up since; writes what is due.
    pub(super) fn poll(&mut self, pipeline: &mut Pipeline, snapshot: &Snapshot, now: Timestamp) {
        let Some(capture) = &mut self.capture else { return };
        let log = &mut self.log;
        capture.take(|at, observation| observe(pipeline, log, snapshot, at, &observation));
        let stats = capture.stats();
        self.metrics.set_dns(stats.events(), pipeline.stats());
        if self.log.as_ref().is_some_and(|log| Instant::now() >= log.next) {
            self.flush(now);
        }
        if Instant::now() >= self.next_save {
            self.next_save = Instant::now() + self.save_interval;
            self.save(pipeline);
        }
    }

    fn flush(&mut self, now: Timestamp) {
        let Some(log) = &mut self.log else { return };
        log.next = Instant::now() + log.interval;
        let logs = log.window.flush(now);
        if let Some(files) = &self.files {
            files.send(Work::Lines(logs), &self.metrics);
        }
    }

    fn save(&self, pipeline: &Pipeline) {
        if let Some(files) = &self.files {
            let known = pipeline.domains().known().collect();
            files.send(Work::Save(self.cache.clone(), known), &self.metrics);
        }
    }

    fn stop(&mut self, pipeline: &mut Pipeline, snapshot: Option<&Snapshot>, now: Timestamp) {
        let Some(capture) = self.capture.take() else { return };
        let log = &mut self.log;
        let stats = capture.stop(|at, observation| {
            if let Some(snapshot) = snapshot {
                observe(pipeline, log, snapshot, at, &observation);
            }
        });
        self.metrics.set_dns(stats.events(), pipeline.stats());
        self.flush(now);
        self.log = None;
        self.save(pipeline);
        if let Some(files) = self.files.take() {
            files.finish();
        }
    }

    /// Tells what is left and ends.
    pub(super) fn finish(mut self, pipeline: &mut Pipeline, snapshot: &Snapshot, now: Timestamp) {
        self.stop(pipeline, Some(snapshot), now);
    }
}

fn observe(
    pipeline: &mut Pipeline,
    log: &mut Option<Log>,
    snapshot: &Snapshot,
    at: Timestamp,
    observation: &Observation,
) {
    pipeline.step(Input::Observation(observation), at, snapshot);
    if let (Some(log), Observation::Dns(record)) = (log, observation)
        && pipeline.believes(record.server, snapshot)
    {
        log.window.observe(record, at, &snapshot.cluster, pipeline.asker(record));
    }
}

enum Work {
    /// Where lines go from now on, if anywhere.
    Open(Option<FileOptions>),
    Lines(DnsLogs),
    Save(PathBuf, Vec<KnownDomain>),
}

/// The thread that writes.
struct Files {
    work: SyncSender<Work>,
    thread: JoinHandle<()>,
}

impl Files {
    fn start(metrics: Arc<Metrics>) -> std::io::Result<Self> {
        let (work, queue) = sync_channel(AHEAD);
        let thread =
            thread::Builder::new().name("dns-files".into()).spawn(move || write(&queue, &metrics))?;
        Ok(Self { work, thread })
    }

    fn send(&self, work: Work, metrics: &Metrics) {
        let refused = match self.work.try_send(work) {
            Ok(()) => return,
            Err(TrySendError::Full(work) | TrySendError::Disconnected(work)) => work,
        };
        match refused {
            Work::Lines(logs) => {
                let lines = logs.records.len() as u64;
                metrics.lost_events.add("dns_line_queue", lines);
                warn!(lines, "the writer of DNS files is too slow: a window is dropped");
            }
            Work::Open(_) => warn!("the writer of DNS files is too slow: a change of its options is dropped"),
            Work::Save(..) => {
                debug!("the writer of DNS files is too slow: the cache is written the next time")
            }
        }
    }

    fn finish(self) {
        drop(self.work);
        if self.thread.join().is_err() {
            warn!("the writer of DNS files has ended unexpectedly");
        }
    }
}

fn write(queue: &Receiver<Work>, metrics: &Metrics) {
    let mut clock = Clock::start();
    let mut sink: Option<(FileOptions, FileSink)> = None;
    let mut cache_failed = false;
    loop {
        match queue.recv_timeout(RETRY) {
            Ok(Work::Open(options)) => {
                let same = sink.as_ref().map(|(known, _)| known) == options.as_ref();
                if same {
                    continue;
                }
                if let Some((_, mut old)) = sink.take() {
                    old.close(clock.now());
                }
                let Some(options) = options else { continue };
                match FileSink::open(&options, clock.now()) {
                    Ok(file) => sink = Some((options, file)),
                    Err(error) => warn!(%error, "no DNS log is written"),
                }
            }
            Ok(Work::Lines(logs)) => {
                let mut lines = Vec::new();
                let records = encode_all(&logs, &mut lines);
                metrics.dns_unlogged.add(logs.unlogged);
                if records > 0
                    && let Some((_, file)) = &mut sink
                {
                    file.write_window(lines, records, clock.now());
                    metrics.dns_lines.add(records);
                }
            }
            Ok(Work::Save(path, known)) => match dns_cache::write(&path, known.into_iter()) {
                Ok(names) => {
                    debug!(names, "names learnt from DNS are saved");
                    cache_failed = false;
                }
                Err(error) if !cache_failed => {
                    cache_failed = true;
                    warn!(%error, "names learnt from DNS are not saved for the next run");
                }
                Err(error) => debug!(%error, "names learnt from DNS are not saved"),
            },
            Err(RecvTimeoutError::Timeout) => {
                if let Some((_, file)) = &mut sink {
                    file.retry(clock.now());
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                if let Some((_, mut file)) = sink {
                    file.close(clock.now());
                }
                return;
            }
        }
    }
}
