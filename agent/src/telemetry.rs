//! What the agent tells of itself: the log on stderr, and every metric with its name, in this one file.
//!
//! Log: `tracing` events with key=value fields; the level is `--log-level`, or the filter in `FLOWLOGD_LOG`.
//! Metrics: counters and gauges that the stages add to, and [`Metrics::snapshot`], the list that an endpoint
//! serves. Names follow Prometheus' conventions; labels have few values, and a family that meets more of them
//! than it may counts the rest under `other`.
//! Always: adding never blocks for long, never fails; a closed stderr is no error.
//! Not here: HTTP.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::EnvFilter;

use crate::pipeline::Stats;
use crate::sink::SinkStats;

/// The environment variable that filters the log, in the syntax of `tracing_subscriber::EnvFilter`.
pub const LOG_VARIABLE: &str = "FLOWLOGD_LOG";

/// Begins logging to stderr. `level` comes from the flag and wins over the environment; the default is `info`.
/// An error says what is wrong with the filter. A second call in a process changes nothing.
pub fn start_log(level: Option<&str>) -> Result<(), String> {
    let filter = match (level, std::env::var(LOG_VARIABLE)) {
        // Of the libraries only what needs attention: the loader alone tells of each relocation.
        (Some(level), _) => format!("warn,flowlogd={level}"),
        (None, Ok(filter)) if !filter.trim().is_empty() => filter,
        (None, _) => "warn,flowlogd=info".to_owned(),
    };
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        format!("the log filter {filter:?} is not understood: {error}; use error, warn, info, debug, trace, or target=level with commas between")
    })?;
    // Only the first of several can be the process's subscriber: tests call this more than once.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false)
        .try_init();
    Ok(())
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that is what it is now; also a counter that another room keeps.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Label values that a family keeps apart.
const MOST_LABEL_VALUES: usize = 200;

/// Counters under one name, told apart by one label.
#[derive(Debug, Default)]
pub struct Family(Mutex<BTreeMap<Box<str>, u64>>);

impl Family {
    pub fn add(&self, label: &str, n: u64) {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = values.get_mut(label) {
            *value = value.saturating_add(n);
            return;
        }
        let label = if values.len() < MOST_LABEL_VALUES { label } else { "other" };
        let value = values.entry(label.into()).or_default();
        *value = value.saturating_add(n);
    }

    /// For a total that another room keeps, under one of few labels.
    pub fn set(&self, label: &'static str, total: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(label.into(), total);
    }

    /// 0 for a label never seen.
    pub fn get(&self, label: &str) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(label).copied().unwrap_or(0)
    }

    fn all(&self) -> Vec<(Box<str>, u64)> {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        values.iter().map(|(label, value)| (label.clone(), *value)).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
}

/// One value of one metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub name: &'static str,
    pub kind: MetricKind,
    pub help: &'static str,
    pub label: Option<(&'static str, Box<str>)>,
    pub value: u64,
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $member:ident: $type:ident($kind:ident) = $name:literal $([$label:literal])?;)+) => {
        /// Every metric of the agent.
        #[derive(Debug, Default)]
        pub struct Metrics { $($(#[doc = $help])+ pub $member: $type,)+ }

        impl Metrics {
            /// Every value there is now, in the order of the list above.
            pub fn snapshot(&self) -> Vec<Sample> {
                let mut samples = Vec::new();
                $(metrics!(@sample samples, $type, self.$member, $name, MetricKind::$kind, concat!($($help),+).trim() $(, $label)?);)+
                samples
            }
        }
    };
    (@sample $samples:ident, Family, $member:expr, $name:literal, $kind:expr, $help:expr, $label:literal) => {
        for (label, value) in $member.all() {
            $samples.push(Sample { name: $name, kind: $kind, help: $help, label: Some(($label, label)), value });
        }
    };
    (@sample $samples:ident, $type:ident, $member:expr, $name:literal, $kind:expr, $help:expr) => {
        $samples.extend([Sample { name: $name, kind: $kind, help: $help, label: None, value: $member.get() }]);
    };
}

metrics! {
    /// Connections that a source has shown.
    connections_seen: Gauge(Counter) = "flowlogd_connections_seen_total";
    /// Connections open now.
    connections_open: Gauge(Gauge) = "flowlogd_connections_open";
    /// Bytes of connections and drops without a local end, which make no line.
    not_local: Gauge(Counter) = "flowlogd_not_local_bytes_total";
    /// Bytes that conntrack counted of connections for which their drops speak.
    superseded: Gauge(Counter) = "flowlogd_superseded_bytes_total";
    /// Flows folded into an overflow record because the window had no more records; their counters are in its line.
    window_overflow: Gauge(Counter) = "flowlogd_window_overflow_flows_total";
    /// Bytes of filter drops that went to their line at once because the table of denied flows was full.
    denied_overflow: Gauge(Counter) = "flowlogd_denied_overflow_bytes_total";
    /// Connections that never were confirmed, without a filter's drop, which make no line.
    unconfirmed_other: Gauge(Counter) = "flowlogd_connections_unconfirmed_total";
    /// What the kernel's side counted, by event: left out as of another network namespace, found a map full, and so on.
    kernel_events: Family(Counter) = "flowlogd_kernel_events_total" ["event"];
    /// Packets dropped by a filter.
    filter_drop_packets: Family(Counter) = "flowlogd_filter_drop_packets_total" ["reason"];
    /// Packets dropped for another reason than a filter, which make no line.
    other_drop_packets: Family(Counter) = "flowlogd_other_drop_packets_total" ["reason"];
    /// Observations that a stage is known to have lost.
    lost_events: Family(Counter) = "flowlogd_lost_events_total" ["stage"];
    /// Lines by action.
    lines: Family(Counter) = "flowlogd_lines_total" ["action"];
    /// Windows flushed.
    flushes: Counter(Counter) = "flowlogd_flushes_total";
    /// Times that the clock went backwards.
    clock_steps_back: Counter(Counter) = "flowlogd_clock_steps_back_total";
    /// Objects of the cluster that could not be used.
    cluster_objects_refused: Family(Counter) = "flowlogd_cluster_objects_refused_total" ["kind"];
    /// Configuration values that were not allowed, by layer.
    bad_configuration_values: Family(Counter) = "flowlogd_bad_configuration_values_total" ["layer"];
    /// Checkpoints that were refused at the start.
    checkpoints_refused: Counter(Counter) = "flowlogd_checkpoints_refused_total";
    /// Windows written to the file.
    sink_written_windows: Gauge(Counter) = "flowlogd_sink_written_windows_total";
    /// Records written to the file.
    sink_written_records: Gauge(Counter) = "flowlogd_sink_written_records_total";
    /// Bytes written to the file.
    sink_written_bytes: Gauge(Counter) = "flowlogd_sink_written_bytes_total";
    /// Rotations of the file.
    sink_rotations: Gauge(Counter) = "flowlogd_sink_rotations_total";
    /// Windows of which records were dropped because the file could not be written and the buffer was full.
    sink_dropped_windows: Gauge(Counter) = "flowlogd_sink_dropped_windows_total";
    /// Records dropped so.
    sink_dropped_records: Gauge(Counter) = "flowlogd_sink_dropped_records_total";
    /// Bytes dropped so.
    sink_dropped_bytes: Gauge(Counter) = "flowlogd_sink_dropped_bytes_total";
    /// Records waiting in memory for the file.
    sink_buffered_records: Gauge(Gauge) = "flowlogd_sink_buffered_records";
    /// Bytes waiting in memory for the file.
    sink_buffered_bytes: Gauge(Gauge) = "flowlogd_sink_buffered_bytes";
    /// Times that writing the file began to fail.
    sink_faults: Gauge(Counter) = "flowlogd_sink_faults_total";
    /// 1 while the file cannot be written.
    sink_failing: Gauge(Gauge) = "flowlogd_sink_failing";
    /// Lines taken out that a killed writer had left torn.
    sink_torn_lines: Gauge(Counter) = "flowlogd_sink_torn_lines_total";
}

impl Metrics {
    /// Takes over what the pipeline counts itself.
    pub fn set_pipeline(&self, stats: &Stats, open: u64) {
        self.connections_seen.set(stats.connections_started + stats.connections_adopted);
        self.connections_open.set(open);
        self.not_local.set(stats.not_local.bytes.saturating_add(stats.not_local_denied.bytes));
        self.superseded.set(stats.superseded.bytes);
        self.window_overflow.set(stats.window_overflow);
        self.denied_overflow.set(stats.denied_overflow.bytes);
        self.unconfirmed_other.set(stats.unconfirmed_other);
    }

    /// Takes over what the file sink counts itself.
    pub fn set_sink(&self, stats: &SinkStats) {
        self.sink_written_windows.set(stats.written_windows);
        self.sink_written_records.set(stats.written_records);
        self.sink_written_bytes.set(stats.written_bytes);
        self.sink_rotations.set(stats.rotations);
        self.sink_dropped_windows.set(stats.dropped_windows);
        self.sink_dropped_records.set(stats.dropped_records);
        self.sink_dropped_bytes.set(stats.dropped_bytes);
        self.sink_buffered_records.set(stats.buffered_records);
        self.sink_buffered_bytes.set(stats.buffered_bytes);
        self.sink_faults.set(stats.faults);
        self.sink_failing.set(u64::from(stats.failing));
        self.sink_torn_lines.set(stats.torn_lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_of_their_kind() {
        let metrics = Metrics::default();
        metrics.lines.add("allow", 2);
        metrics.lines.add("deny", 3);
        metrics.lines.add("allow", 5);
        let samples = metrics.snapshot();
        let mut seen = std::collections::BTreeSet::new();
        for sample in &samples {
            assert!(seen.insert((sample.name, sample.label.clone())), "{sample:?}");
            assert!(sample.name.starts_with("flowlogd_"));
            assert_eq!(sample.name.ends_with("_total"), sample.kind == MetricKind::Counter, "{sample:?}");
            assert!(sample.help.ends_with('.') && !sample.help.starts_with(' '));
        }
        let lines: Vec<_> = samples.iter().filter(|sample| sample.name == "flowlogd_lines_total").collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].label.clone(), lines[0].value), (Some(("action", "allow".into())), 7));
    }

    #[test]
    fn a_family_is_bounded_and_loses_no_count() {
        let family = Family::default();
        for n in 0..1000 {
            family.add(&format!("REASON_{n}"), 1);
        }
        assert_eq!(family.all().len(), MOST_LABEL_VALUES + 1);
        assert_eq!(family.all().iter().map(|(_, value)| value).sum::<u64>(), 1000);
        assert_eq!(family.get("other"), 800);
        family.add("REASON_1", u64::MAX);
        assert_eq!(family.get("REASON_1"), u64::MAX);
    }

    #[test]
    fn a_filter_that_is_not_understood_is_told() {
        assert!(start_log(Some("flowlogd=loud")).unwrap_err().contains("not understood"));
    }
}
