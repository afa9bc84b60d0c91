//! Metrics as the text that Prometheus reads.
//!
//! In: metrics with their values. Out: Prometheus' text format 0.0.4, or OpenMetrics 1.0 for a client that asks for
//! it. `prometheus-client`'s encoders write both; this file only hands them our values. Always: names, kinds and
//! order are those of the lists; label values are escaped.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::telemetry::{Metric, MetricKind, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// What a person with `curl` gets.
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// What the client's `Accept` prefers of the two; a client that names neither gets Prometheus' own.
    pub fn accepted(accept: Option<&str>) -> Self {
        let weight = |name: &str| {
            let mut of_name = accept?.split(',').filter(|range| range.trim().starts_with(name));
            let range = of_name.next()?;
            let weight = range.split(';').find_map(|parameter| parameter.trim().strip_prefix("q="));
            Some(weight.and_then(|weight| weight.trim().parse::<f32>().ok()).unwrap_or(1.0))
        };
        let plain = weight("text/plain").or(weight("*/*")).unwrap_or(0.0);
        match weight("application/openmetrics-text") {
            Some(open) if open > 0.0 && open >= plain => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The whole body.
///
/// # Errors
/// None in practice: memory takes what is written.
pub fn exposition(metrics: Vec<Metric>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Values(metrics)));
    let mut body = String::new();
    match format {
        Format::Prometheus => prometheus_text::encode(&mut body, &registry)?,
        Format::OpenMetrics => text::encode(&mut body, &registry)?,
    }
    Ok(body)
}

#[derive(Debug)]
struct Values(Vec<Metric>);

impl Collector for Values {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // A family without series yet would be a header without a value.
        for Metric { description, series } in self.0.iter().filter(|metric| !metric.series.is_empty()) {
            let (name, kind) = match description.kind {
                // The encoder adds what a counter's name ends with.
                MetricKind::Counter => {
                    (description.name.strip_suffix("_total").unwrap_or(description.name), MetricType::Counter)
                }
                MetricKind::Gauge => (description.name, MetricType::Gauge),
                MetricKind::Histogram => (description.name, MetricType::Histogram),
            };
            let mut metric = encoder.encode_descriptor(name, description.help, None, kind)?;
            for one in series {
                let labels: Vec<(&str, &str)> =
                    description.labels.iter().copied().zip(one.labels.iter().map(|label| &**label)).collect();
                if labels.is_empty() {
                    value(&mut metric, description.kind, &one.value)?;
                } else {
                    value(&mut metric.encode_family(&labels)?, description.kind, &one.value)?;
                }
            }
        }
        Ok(())
    }
}

fn value(encoder: &mut MetricEncoder<'_>, kind: MetricKind, value: &Value) -> Result<(), fmt::Error> {
    match (value, kind) {
        (Value::Histogram(all), _) => {
            encoder.encode_histogram::<NoLabelSet>(all.sum, all.count, &all.buckets, None)
        }
        (Value::Whole(n), MetricKind::Counter) => encoder.encode_counter::<NoLabelSet, _, f64>(n, None),
        (Value::Real(x), MetricKind::Counter) => encoder.encode_counter::<NoLabelSet, _, f64>(x, None),
        (Value::Whole(n), _) => encoder.encode_gauge(n),
        (Value::Real(x), _) => encoder.encode_gauge(x),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::telemetry::{Metrics, ProcessMetrics, Series};

    fn some() -> Vec<Metric> {
        let metrics = Metrics::default();
        metrics.set_build();
        metrics.lines.add("allow", 7);
        metrics.lines.add("a\"b\\c\nd", 1);
        metrics.flush_duration.observe(Duration::from_micros(600));
        metrics.flush_duration.observe(Duration::from_secs(60));
        metrics.snapshot()
    }

    #[test]
    fn prometheus_text_has_headers_escapes_and_cumulative_buckets() {
        let body = exposition(some(), Format::Prometheus).unwrap();
        for line in [
            "# HELP flowlogd_lines_total Lines by action.",
            "# TYPE flowlogd_lines_total counter",
            "flowlogd_lines_total{action=\"allow\"} 7",
            "flowlogd_lines_total{action=\"a\\\"b\\\\c\\nd\"} 1",
            "# TYPE flowlogd_flush_duration_seconds histogram",
            "flowlogd_flush_duration_seconds_bucket{le=\"0.0005\"} 0",
            "flowlogd_flush_duration_seconds_bucket{le=\"0.001\"} 1",
            "flowlogd_flush_duration_seconds_bucket{le=\"10\"} 1",
            "flowlogd_flush_duration_seconds_bucket{le=\"+Inf\"} 2",
            "flowlogd_flush_duration_seconds_sum 60.0006",
            "flowlogd_flush_duration_seconds_count 2",
            "# TYPE flowlogd_connections_open gauge",
            "flowlogd_connections_open 0",
        ] {
            assert!(body.lines().any(|one| one == line), "{line} is not in\n{body}");
        }
        // No series yet: no header either.
        assert!(!body.contains("flowlogd_lost_events_total"));
    }

    #[test]
    fn openmetrics_names_the_family_without_total_and_ends() {
        let body = exposition(some(), Format::OpenMetrics).unwrap();
        assert!(body.contains("# TYPE flowlogd_lines counter\n"), "{body}");
        assert!(body.contains("flowlogd_lines_total{action=\"allow\"} 7\n"), "{body}");
        assert!(body.ends_with("# EOF\n"));
    }

    #[test]
    fn the_process_is_told_too() {
        let body = exposition(ProcessMetrics::read().snapshot(), Format::Prometheus).unwrap();
        assert!(body.contains("# TYPE process_cpu_seconds_total counter\n"), "{body}");
        assert!(body.contains("\nprocess_open_fds "), "{body}");
    }

    /// Prometheus' own judgement of names, kinds and help.
    #[test]
    fn promtool_finds_nothing_to_blame() {
        let metrics = Metrics::default();
        metrics.set_build();
        let mut all = metrics.snapshot();
        all.extend(ProcessMetrics::read().snapshot());
        // Every family has a series, whether or not something was counted.
        for metric in all.iter_mut().filter(|metric| metric.series.is_empty()) {
            let labels = metric.description.labels.iter().map(|label| (*label).into()).collect();
            metric.series.push(Series { labels, value: Value::Whole(1) });
        }
        let body = exposition(all, Format::Prometheus).unwrap();
        let tool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut tool) = tool else {
            println!(
                "SKIPPED promtool check metrics: promtool is not installed; the package prometheus brings it"
            );
            return;
        };
        tool.stdin.take().unwrap().write_all(body.as_bytes()).unwrap();
        let judged = tool.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&judged.stdout) + String::from_utf8_lossy(&judged.stderr);
        assert!(judged.status.success() && said.trim().is_empty(), "{said}\n{body}");
    }

    #[test]
    fn the_format_is_what_the_client_prefers() {
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             text/plain;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        assert_eq!(Format::accepted(Some(prometheus_3)), Format::OpenMetrics);
        for plain in
            [None, Some("*/*"), Some("text/plain"), Some("application/openmetrics-text;q=0"), Some("\u{7f}")]
        {
            assert_eq!(Format::accepted(plain), Format::Prometheus, "{plain:?}");
        }
    }
}
