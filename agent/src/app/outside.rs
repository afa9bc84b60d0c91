//! What the running agent shows of itself: metrics, health, the live view.
//!
//! In: beats of the loops, observations while somebody watches, encoded windows. Out: HTTP and the live socket, served
//! by tasks beside the data path; previews are made on a thread of their own. Always: the loops only store a number,
//! or offer a copy to a bounded queue; a queue that is full loses previews, counted, and nothing else. Health asks
//! what the loops left behind, so that it answers while a window is being closed.
//! Not here: HTTP and sockets themselves (`http`, `sink/live.rs`), what a preview says (`pipeline`).

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tracing::warn;

use crate::config::Config;
use crate::http::{Check, Health, Listen, TlsFiles, health_routes, metrics_routes, serve};
use crate::model::{Observation, Timestamp};
use crate::pipeline::Previewer;
use crate::sink::live::{Live, LiveOptions};
use crate::snapshot::Snapshot;
use crate::source::Observed;
use crate::telemetry::{Metrics, ProcessMetrics};
use crate::wire::flow_log::{LineFormat, Window, encode};
use crate::wire::live::flow;

use super::{Tasks, line_format, settings};

/// Observations that may wait to become previews.
const PREVIEWS_AHEAD: usize = 16 << 10;

/// A loop that has not turned for so long does nothing any more. A flush of a full window takes seconds.
const DEAD: Duration = Duration::from_secs(120);

/// A write that hangs for so long hangs for good.
const WRITER_DEAD: Duration = Duration::from_secs(600);

/// A loop that is this late works on something large.
const LATE: Duration = Duration::from_secs(30);

/// How often an address or a path that cannot be had is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// When a loop turned last.
pub(super) struct Pulse {
    start: Instant,
    /// Milliseconds after that.
    at: AtomicU64,
}

impl Pulse {
    fn new() -> Self {
        Self { start: Instant::now(), at: AtomicU64::new(0) }
    }

    pub(super) fn beat(&self) {
        let at = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.store(at, Ordering::Relaxed);
    }

    fn age(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.at.load(Ordering::Relaxed)))
    }

    fn check(&self, name: &'static str, limit: Duration) -> Check {
        let age = self.age();
        let passed = age < limit;
        let late = if passed { "" } else { ": it hangs; the log may say on what" };
        Check { name, passed, reason: format!("turned {:.1} s ago{late}", age.as_secs_f64()) }
    }
}

/// What the loops tell.
pub(super) struct Beats {
    pub(super) pipeline: Pulse,
    pub(super) writer: Pulse,
    /// Which source observes; set when what existed before is adopted.
    pub(super) observing: OnceLock<String>,
}

impl Beats {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { pipeline: Pulse::new(), writer: Pulse::new(), observing: OnceLock::new() })
    }

    fn live(&self) -> Vec<Check> {
        vec![self.pipeline.check("pipeline", DEAD), self.writer.check("writer", WRITER_DEAD)]
    }

    fn ready(&self, metrics: &Metrics) -> Vec<Check> {
        let source = match self.observing.get() {
            Some(source) => Check { name: "source", passed: true, reason: source.clone() },
            None => Check {
                name: "source",
                passed: false,
                reason: "connections that were open before the agent are still being read".into(),
            },
        };
        let failing = metrics.sink_failing.get() != 0;
        let output = Check {
            name: "output",
            passed: !failing,
            reason: if failing {
                format!(
                    "the file cannot be written, {} records wait in memory: the log says why",
                    metrics.sink_buffered_records.get()
                )
            } else {
                format!("{} records written", metrics.sink_written_records.get())
            },
        };
        let off = metrics.accounting_off.get() != 0;
        let accounting = Check {
            name: "accounting",
            passed: !off,
            reason: if off {
                "net.netfilter.nf_conntrack_acct is 0, connections that begin count nothing: sysctl -w net.netfilter.nf_conntrack_acct=1".into()
            } else {
                "connections are counted".into()
            },
        };
        vec![
            self.pipeline.check("pipeline", LATE),
            self.writer.check("writer", LATE),
            source,
            accounting,
            output,
        ]
    }
}

/// The loops' end of all this.
pub(super) struct Outside {
    pub(super) live: Live,
    previews: Option<SyncSender<(Observation, Timestamp)>>,
}

/// What it takes to show something.
pub(super) struct Shown<'a> {
    pub(super) config: &'a Config,
    pub(super) node: &'a str,
    pub(super) world: &'a Arc<ArcSwap<Snapshot>>,
    pub(super) host_addresses: Vec<IpAddr>,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) beats: &'a Arc<Beats>,
    /// For what waits for readers of the live view.
    pub(super) live_bytes: usize,
    /// What readiness depends on besides the loops: of the cluster.
    pub(super) more_ready: Arc<dyn Fn() -> Vec<Check> + Send + Sync>,
}

impl Outside {
    /// # Errors
    /// No thread can be had.
    pub(super) fn start(tasks: &Tasks, shown: Shown<'_>) -> io::Result<Self> {
        let live = Live::within(shown.live_bytes);
        serve_http(tasks, &shown, &live);
        let config = shown.config;
        if !config.flow_logs_live_enabled {
            return Ok(Self { live, previews: None });
        }
        let (previews, waiting) = sync_channel(PREVIEWS_AHEAD);
        let previewer = Previewer::new(settings(config), shown.host_addresses);
        let format = line_format(config, shown.node);
        let (world, to) = (shown.world.clone(), live.clone());
        thread::Builder::new()
            .name("previews".into())
            .spawn(move || preview_all(&waiting, &previewer, &world, &format, &to))?;
        let options = LiveOptions {
            path: config.flow_logs_live_socket_path.clone(),
            group: config.flow_logs_live_socket_group.clone(),
        };
        let (served, stopping) = (live.clone(), tasks.stopping());
        tasks.spawn(async move {
            let ended = stopping.run_until_cancelled(served.serve(&options, RETRY)).await;
            debug_assert!(ended.is_none());
        });
        Ok(Self { live, previews: Some(previews) })
    }

    /// While somebody watches: the observation is looked at elsewhere too.
    pub(super) fn tap(&self, observed: &Observed) {
        if !self.live.wants_flows() || !Previewer::is_shown(&observed.observation) {
            return;
        }
        if let Some(previews) = &self.previews
            && previews.try_send((observed.observation.clone(), observed.at)).is_err()
        {
            self.live.lose_flows(1);
        }
    }
}

/// Until the loop is gone.
fn preview_all(
    waiting: &Receiver<(Observation, Timestamp)>,
    previewer: &Previewer,
    world: &ArcSwap<Snapshot>,
    format: &LineFormat,
    live: &Live,
) {
    while let Ok((observation, at)) = waiting.recv() {
        let Some((event, log)) = previewer.preview(&observation, at, &world.load()) else { continue };
        live.flow(&log, || {
            let mut line = Vec::with_capacity(1536);
            encode(&log, &Window { start: at, end: at, lost_events: 0 }, format, &mut line);
            flow(event.name(), &line)
        });
    }
}

fn serve_http(tasks: &Tasks, shown: &Shown<'_>, live: &Live) {
    let config = shown.config;
    if config.prometheus_metrics_enabled {
        match TlsFiles::of_metrics(config) {
            Ok(tls) => {
                let (metrics, live) = (shown.metrics.clone(), live.clone());
                let routes = metrics_routes(move || {
                    metrics.live_readers.set(live.readers() as u64);
                    metrics.live_lost.set(live.lost());
                    let mut all = metrics.snapshot();
                    all.extend(ProcessMetrics::read().snapshot());
                    all
                });
                let listen = Listen {
                    host: config.prometheus_metrics_host.clone(),
                    port: config.prometheus_metrics_port,
                    tls,
                };
                spawn(tasks, "metrics", listen, routes);
            }
            // Nothing in plain text where TLS was meant.
            Err(error) => warn!(%error, "metrics are not served"),
        }
    }
    if config.flow_logs_health_enabled {
        let (live, ready, metrics) = (shown.beats.clone(), shown.beats.clone(), shown.metrics.clone());
        let more = shown.more_ready.clone();
        let health = Health {
            live: Arc::new(move || live.live()),
            ready: Arc::new(move || {
                let mut checks = ready.ready(&metrics);
                checks.extend(more());
                checks
            }),
        };
        let listen = Listen {
            host: config.flow_logs_health_host.clone(),
            port: config.flow_logs_health_port,
            tls: None,
        };
        spawn(tasks, "health", listen, health_routes(&health));
    }
}

fn spawn(tasks: &Tasks, what: &'static str, listen: Listen, routes: axum::Router) {
    let stopping = tasks.stopping();
    tasks.spawn(async move {
        stopping.run_until_cancelled(serve(what, listen, routes, Default::default(), |_| {})).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_hangs_is_told() {
        let pulse = Pulse::new();
        pulse.beat();
        assert!(pulse.check("pipeline", Duration::from_secs(3600)).passed);
        let hanging = pulse.check("pipeline", Duration::ZERO);
        assert!(!hanging.passed && hanging.reason.contains("hangs"), "{hanging:?}");
    }

    #[test]
    fn readiness_waits_for_the_source_and_the_file() {
        let (beats, metrics) = (Beats::new(), Metrics::default());
        let failed = |beats: &Beats| -> Vec<&'static str> {
            beats.ready(&metrics).into_iter().filter(|check| !check.passed).map(|check| check.name).collect()
        };
        assert_eq!(failed(&beats), ["source"]);
        beats.observing.set("netlink".into()).unwrap();
        assert!(failed(&beats).is_empty());
        metrics.accounting_off.set(1);
        assert_eq!(failed(&beats), ["accounting"]);
        metrics.accounting_off.set(0);
        metrics.sink_failing.set(1);
        assert_eq!(failed(&beats), ["output"]);
        assert!(beats.live().iter().all(|check| check.passed));
    }
}
