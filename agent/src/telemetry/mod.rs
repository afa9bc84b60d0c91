//! What the agent tells of itself: the log on stderr, and its metrics.
//!
//! Log: `tracing` events with key=value fields; the level is `--log-level`, or the filter in `FLOWLOGD_LOG`.
//! Metrics: `metric.rs` has the kinds of numbers that the stages add to, `metrics.rs` the one list of all names,
//! `process.rs` what the kernel counts of this process, `table.rs` the list for people.
//! Always: adding never blocks for long, never fails; a closed stderr is no error.
//! Not here: HTTP and the text that Prometheus reads (`http`).

mod metric;
mod metrics;
mod process;
mod readiness;
mod table;

pub use metric::{
    Counter, Description, Distribution, Family, Family2, Family3, Gauge, Histogram, Metric, MetricKind,
    Seconds, Series, Value,
};
pub use metrics::Metrics;
pub use process::ProcessMetrics;
pub use readiness::Readiness;
pub use table::markdown_table;

use tracing_subscriber::EnvFilter;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_is_not_understood_is_told() {
        assert!(start_log(Some("flowlogd=loud")).unwrap_err().contains("not understood"));
    }
}
