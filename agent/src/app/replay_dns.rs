//! The DNS log of a recording: `flowlogd replay --dns-log PATH`.
//!
//! In: the recording's DNS observations, each with its time and the world. Out: lines of the DNS log. Windows close
//! every `dnsLogsFlushInterval` from the first line on, or at the recording's flush lines, as those of flows do, and
//! once more at the end. Always: lookups of servers that are not believed make no line, as in the daemon.

use std::io::{self, Write};

use crate::config::Config;
use crate::model::{Observation, Timestamp};
use crate::pipeline::{DnsWindow, Pipeline};
use crate::snapshot::Snapshot;
use crate::wire::dns_log::encode_all;

use super::dns_log_settings;

pub(super) struct DnsReplay<'a> {
    output: &'a mut dyn Write,
    window: Option<DnsWindow>,
    opened: Timestamp,
    unflushed: bool,
}

impl<'a> DnsReplay<'a> {
    pub(super) fn new(output: &'a mut dyn Write) -> Self {
        Self { output, window: None, opened: Timestamp::MIN, unflushed: false }
    }

    /// Time has come to `now`: windows that end by then are closed.
    pub(super) fn advance(&mut self, now: Timestamp, config: &Config, explicit: bool) -> io::Result<()> {
        if self.window.is_none() {
            self.window = Some(DnsWindow::new(dns_log_settings(config), now));
            self.opened = now;
        }
        let interval = config.dns_logs_flush_interval;
        while !explicit && now >= self.opened.plus(interval) {
            let due = self.opened.plus(interval);
            if self.unflushed {
                self.flush(due, config)?;
            } else if let Some(window) = &mut self.window {
                // Nothing to tell: windows in between are empty.
                let empty = (now - self.opened).as_nanos() / interval.as_nanos().max(1);
                let skipped = interval.saturating_mul(u32::try_from(empty).unwrap_or(u32::MAX));
                window.flush(self.opened.plus(skipped));
                if self.opened.plus(skipped) == self.opened {
                    return Ok(()); // the end of time
                }
                self.opened = self.opened.plus(skipped);
                continue;
            }
            self.opened = due;
        }
        Ok(())
    }

    pub(super) fn observe(
        &mut self,
        observation: &Observation,
        at: Timestamp,
        pipeline: &mut Pipeline,
        snapshot: &Snapshot,
    ) {
        if let (Observation::Dns(record), Some(window)) = (observation, &mut self.window)
            && pipeline.believes(record.server, snapshot)
        {
            window.observe(record, at, &snapshot.cluster, pipeline.asker(record));
            self.unflushed = true;
        }
    }

    /// Closes the window at `at`.
    pub(super) fn flush(&mut self, at: Timestamp, config: &Config) -> io::Result<()> {
        let Some(window) = &mut self.window else { return Ok(()) };
        let mut lines = Vec::new();
        window.reconfigure(dns_log_settings(config));
        encode_all(&window.flush(at), &mut lines);
        self.opened = at;
        self.unflushed = false;
        self.output.write_all(&lines)
    }

    pub(super) fn end(&mut self, at: Timestamp, config: &Config) -> io::Result<()> {
        if self.unflushed {
            self.flush(at, config)?;
        }
        self.output.flush()
    }
}
