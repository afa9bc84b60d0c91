//! Dynamic aggregation: coarser windows while the log shipper lags behind.
//!
//! In: the configuration, the shipper's position file (`sink::position`). Out: by how many levels the next window is
//! raised. At each flush: one more if the shipper had more than the threshold unread just before, to level 3 at most;
//! one less otherwise. What cannot be told (a position file that cannot be read now) leaves it as it is; where no shipper
//! has begun to read, nothing lags.
//! Always: the file is looked at by a task, never by the loop that reads the kernel; the pipeline changes its levels
//! between two windows, so that no counter is lost. Not here: formats of position files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::{info, warn};

use crate::aggregate::{Level, Settings};
use crate::config::Config;
use crate::sink::FileOptions;
use crate::sink::position::{self, Lag};
use crate::telemetry::Metrics;

use super::Tasks;
use super::configuration::Configuration;

/// How often the position is looked at, unless windows are shorter than four times this.
const LOOK: Duration = Duration::from_secs(1);
/// The same at the shortest windows.
const LEAST: Duration = Duration::from_millis(25);
const UNKNOWN: u64 = u64::MAX;
const HIGHEST: u8 = 3;

/// The last look's result; `None`: it could not be told.
#[derive(Clone)]
pub(super) struct Seen(Arc<AtomicU64>);

impl Seen {
    fn set(&self, lag: Option<u64>) {
        self.0.store(lag.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|lag| *lag != UNKNOWN)
    }
}

/// By how many levels windows are raised.
pub(super) struct Raised {
    seen: Seen,
    by: u8,
}

impl Raised {
    pub(super) fn new(seen: Seen) -> Self {
        Self { seen, by: 0 }
    }

    /// At a flush: the settings of the next window.
    pub(super) fn next(&mut self, mut settings: Settings, config: &Config, metrics: &Metrics) -> Settings {
        let before = self.by;
        let lag = self.seen.get();
        self.by = if config.flow_logs_dynamic_aggregation_enabled { next(before, lag, config) } else { 0 };
        if before != self.by {
            info!(levels = self.by, lag_bytes = lag, "the shipper's lag changes the aggregation levels");
        }
        metrics.aggregation_raised.set(self.by.into());
        settings.level_for_allowed = raise(settings.level_for_allowed, self.by);
        settings.level_for_denied = raise(settings.level_for_denied, self.by);
        settings
    }
}

fn next(by: u8, lag: Option<u64>, config: &Config) -> u8 {
    let lowest = config
        .flow_logs_file_aggregation_kind_for_allowed
        .min(config.flow_logs_file_aggregation_kind_for_denied);
    let most = HIGHEST.saturating_sub(lowest);
    match lag {
        Some(lag) if lag > config.flow_logs_aggregation_threshold_bytes => by.saturating_add(1).min(most),
        Some(_) => by.saturating_sub(1).min(most),
        None => by.min(most),
    }
}

fn raise(level: Level, by: u8) -> Level {
    let number = (level as u64).saturating_add(by.into()).min(HIGHEST.into());
    Level::from_number(number).unwrap_or(level)
}

/// What one look found, for what is said of it.
#[derive(Debug, PartialEq)]
enum Found {
    Lag(u64),
    NoShipper,
    Error(String),
}

fn look(config: &Config) -> Found {
    let file = FileOptions::flow_log(config);
    match position::lag(&config.flow_logs_position_file_path, &file.dir, &file.name) {
        Ok(Lag::Bytes(bytes)) => Found::Lag(bytes),
        Ok(Lag::NoShipper) => Found::NoShipper,
        Err(error) => Found::Error(error.to_string()),
    }
}

/// Looks again and again, while the configuration wants it.
pub(super) fn follow(tasks: &Tasks, configuration: Configuration, metrics: Arc<Metrics>) -> Seen {
    let seen = Seen(Arc::new(AtomicU64::new(UNKNOWN)));
    let (seen_by_task, stopping) = (seen.clone(), tasks.stopping());
    tasks.spawn(async move {
        let mut said: Option<Found> = None;
        loop {
            let resolved = configuration.get();
            let config = &resolved.config;
            let wait = (config.flow_logs_flush_interval / 4).clamp(LEAST, LOOK);
            if config.flow_logs_dynamic_aggregation_enabled && config.flow_logs_file_enabled {
                let of_look = resolved.clone();
                let found = tokio::task::spawn_blocking(move || look(&of_look.config)).await;
                let found = found.unwrap_or_else(|error| Found::Error(error.to_string()));
                take(&found, &mut said, config, &seen_by_task, &metrics);
                said = Some(found);
            } else {
                seen_by_task.set(Some(0));
                metrics.shipper_lag.set(0);
                said = None;
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    });
    seen
}

/// Each state is said when it begins.
fn take(found: &Found, said: &mut Option<Found>, config: &Config, seen: &Seen, metrics: &Metrics) {
    let path = config.flow_logs_position_file_path.display();
    match found {
        Found::Lag(bytes) => {
            seen.set(Some(*bytes));
            metrics.shipper_lag.set(*bytes);
            if !matches!(said, Some(Found::Lag(_))) {
                info!(%path, lag_bytes = bytes, "the shipper's position is known");
            }
        }
        Found::NoShipper => {
            seen.set(Some(0));
            metrics.shipper_lag.set(0);
            if *said != Some(Found::NoShipper) {
                warn!(%path, "no shipper has begun to read the flow log, by its position file: levels are not raised");
            }
        }
        Found::Error(error) => {
            seen.set(None);
            metrics.position_errors.add(1);
            if said.as_ref() != Some(found) {
                warn!(%path, %error, "the shipper's position is not known: levels stay as they are");
            }
        }
    }
}

#[cfg(test)]
#[path = "dynamic_tests.rs"]
mod tests;
