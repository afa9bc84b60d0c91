//! What the running agent shows of itself: metrics, health, the live view.
//!
//! In: beats of the loops, observations while somebody watches, encoded windows. Out: HTTP and the live socket, served
//! by tasks beside the data path; previews are made on a thread of their own. Always: the loops only store a number,
//! or offer a copy to a bounded queue; a queue that is full loses previews, counted, and nothing else. Health asks
//! what the loops left behind, so that it answers while a window is being closed.
//! Not here: when something is listened on (`listeners.rs`), HTTP and sockets themselves (`http`, `sink/live.rs`), what a preview says (`pipeline`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::config::Config;
use crate::http::{Check, Health, Limits, Listen, health_routes, metrics_routes, serve};
use crate::model::{Observation, Timestamp};
use crate::pipeline::{Known, Pipeline, Previewer};
use crate::sink::live::{Live, LiveOptions, bind};
use crate::snapshot::Snapshot;
use crate::source::{Observed, privilege};
use crate::telemetry::{Metrics, ProcessMetrics};
use crate::wire::flow_log::{Window, encode};
use crate::wire::live::flow;

use super::configuration::Configuration;
use super::listeners::{Listening, Wanted, health_wanted, live_wanted, metrics_wanted, reporter_wanted};
use super::{Tasks, line_format, settings};

/// Observations that may wait to become previews.
const PREVIEWS_AHEAD: usize = 16 << 10;

/// A loop that has not turned for so long does nothing any more. A flush of a full window takes seconds.
const DEAD: Duration = Duration::from_secs(120);

/// A write that hangs for so long hangs for good.
const WRITER_DEAD: Duration = Duration::from_secs(600);

/// A loop that is this late works on something large.
const LATE: Duration = Duration::from_secs(30);

/// What Calico's metrics of policy rules begin with.
const OF_POLICIES: &str = "cnx_policy_";

/// How often a path that cannot be had is tried again.
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

/// An observation, when it was seen, and what the pipeline knew of its flow then.
type Seen = (Observation, Timestamp, Known);

/// The loops' end of all this.
pub(super) struct Outside {
    pub(super) live: Live,
    previews: SyncSender<Seen>,
}

/// What it takes to show something.
pub(super) struct Shown<'a> {
    pub(super) configuration: &'a Configuration,
    pub(super) node: &'a Arc<str>,
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
        let listening = Listening::new(shown.metrics.clone());
        serve_metrics(tasks, &shown, &live, &listening);
        serve_health(tasks, &shown, &listening);

        let (previews, waiting) = sync_channel(PREVIEWS_AHEAD);
        let (world, to, node) = (shown.world.clone(), live.clone(), shown.node.clone());
        let (configuration, host_addresses) = (shown.configuration.clone(), shown.host_addresses);
        thread::Builder::new()
            .name("previews".into())
            .spawn(move || preview_all(&waiting, configuration, &host_addresses, &node, &world, &to))?;
        let (served, told) = (live.clone(), listening.clone());
        listening.follow("live", tasks, shown.configuration, live_wanted, move |options: LiveOptions| {
            let (served, told) = (served.clone(), told.clone());
            async move {
                let tell = |outcome: Result<(), &str>| {
                    told.tell("live", outcome.map(|()| options.path.display().to_string()));
                };
                // The group of the socket may be one that the agent is not of.
                let bind = |options: &LiveOptions| {
                    let _raised = privilege::raise();
                    bind(options)
                };
                served.serve(&options, RETRY, bind, tell).await;
            }
        });
        Ok(Self { live, previews })
    }

    /// While somebody watches: the observation, which the pipeline has stepped, is looked at elsewhere too.
    pub(super) fn tap(&self, observed: &Observed, pipeline: &Pipeline) {
        if !self.live.wants_flows() || !Previewer::is_shown(&observed.observation) {
            return;
        }
        let seen = (observed.observation.clone(), observed.at, pipeline.known(&observed.observation));
        if self.previews.try_send(seen).is_err() {
            self.live.lose_flows(1);
        }
    }
}

/// Until the loop is gone.
fn preview_all(
    waiting: &Receiver<Seen>,
    mut configuration: Configuration,
    host_addresses: &[IpAddr],
    node: &str,
    world: &ArcSwap<Snapshot>,
    live: &Live,
) {
    let made_of = |config: &Config| {
        (Previewer::new(settings(config), host_addresses.to_vec()), line_format(config, node))
    };
    let (mut previewer, mut format) = made_of(&configuration.get().config);
    while let Ok((observation, at, known)) = waiting.recv() {
        if let Some(changed) = configuration.take_change() {
            (previewer, format) = made_of(&changed.config);
        }
        let Some((event, log)) = previewer.preview(&observation, at, &known, &world.load()) else { continue };
        live.flow(&log, || {
            let mut line = Vec::with_capacity(1536);
            encode(&log, &Window { start: at, end: at, lost_events: 0 }, &format, &mut line);
            flow(event.name(), &line)
        });
    }
}

fn serve_metrics(tasks: &Tasks, shown: &Shown<'_>, live: &Live, listening: &Listening) {
    let (metrics, live) = (shown.metrics.clone(), live.clone());
    let all = metrics_routes(move || {
        metrics.live_readers.set(live.readers() as u64);
        metrics.live_lost.set(live.lost());
        let mut all = metrics.snapshot();
        all.extend(ProcessMetrics::read().snapshot());
        all
    });
    follow_http("metrics", tasks, shown, listening, metrics_wanted, all);
    let metrics = shown.metrics.clone();
    let of_policies = metrics_routes(move || {
        let mut all = metrics.snapshot();
        all.retain(|metric| metric.description.name.starts_with(OF_POLICIES));
        all
    });
    follow_http("policy metrics", tasks, shown, listening, reporter_wanted, of_policies);
}

fn serve_health(tasks: &Tasks, shown: &Shown<'_>, listening: &Listening) {
    let (live, ready, metrics) = (shown.beats.clone(), shown.beats.clone(), shown.metrics.clone());
    let (more, listeners) = (shown.more_ready.clone(), listening.clone());
    let health = Health {
        live: Arc::new(move || live.live()),
        ready: Arc::new(move || {
            let mut checks = ready.ready(&metrics);
            checks.extend(more());
            checks.extend(listeners.checks());
            checks
        }),
    };
    follow_http("health", tasks, shown, listening, health_wanted, health_routes(&health));
}

fn follow_http(
    name: &'static str,
    tasks: &Tasks,
    shown: &Shown<'_>,
    listening: &Listening,
    wanted: fn(&Config) -> Wanted<Listen>,
    routes: axum::Router,
) {
    let told = listening.clone();
    listening.follow(name, tasks, shown.configuration, wanted, move |listen: Listen| {
        let (told, routes) = (told.clone(), routes.clone());
        async move {
            let tell = |outcome: Result<SocketAddr, &str>| {
                told.tell(name, outcome.map(|address| address.to_string()));
            };
            serve(name, listen, routes, Limits::default(), tell).await;
        }
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
