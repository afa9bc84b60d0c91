//! The world that the daemon's loop reads: where it comes from, and how it is loaded.
//!
//! In: manifests, or an API server (`watch`). Out: the published [`Snapshot`], loaded once a batch; metrics of the watch.
//! What always holds: the loop never waits for the world, and flows are named by it only once all of it is known.
//! What a watch does is deliberately not here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::warn;

use crate::config::Resource;
use crate::http::{Ask, Check};
use crate::model::Timestamp;
use crate::snapshot::{Snapshot, World};
use crate::telemetry::{Metrics, Readiness};
use crate::watch::{self, ConnectError, Link, ManifestError, Settled, Timing};

use super::replay::nodes_there;
use super::{Clock, Tasks};

/// How often the state of the watch is taken over into metrics.
const METRICS: Duration = Duration::from_secs(1);
/// How long after a flush a flow may be told of that began before it.
const TOLD_LATE: Duration = Duration::from_secs(5);

/// A watched API server.
pub(super) struct Watched {
    pub(super) status: Arc<watch::Status>,
    settled: Arc<Settled>,
    /// For all that asks the same API server.
    pub(super) link: Link,
}

impl Watched {
    /// Begins to watch; the world is published when it is known.
    ///
    /// # Errors
    /// A kubeconfig that cannot be used. A server that does not answer is no error.
    pub(super) fn start(
        server: &watch::Server,
        node: &Arc<str>,
        tasks: &Tasks,
        published: Arc<ArcSwap<Snapshot>>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ConnectError> {
        let client = tasks.block_on(watch::connect(server))?;
        let (link, looking) = Link::new(client, Timing::default(), &watch::CONFIGURATION);
        let cluster = watch::Cluster::new(World::new(node.clone()), published);
        let (status, settled) = (cluster.status.clone(), cluster.settled.clone());
        let mut clock = Clock::start();
        let following = cluster.follow(link.clone(), move || clock.now());
        let stopping = tasks.stopping();
        tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                ((), ()) = futures::future::join(looking, following) => {}
            }
        });
        let (of, stopping) = (status.clone(), tasks.stopping());
        tasks.spawn(async move {
            let mut tick = tokio::time::interval(METRICS);
            loop {
                tokio::select! {
                    () = stopping.cancelled() => return,
                    _ = tick.tick() => metrics.set_watch(&of),
                }
            }
        });
        Ok(Self { status, settled, link })
    }

    /// A window was closed at `now`: names of what began before are settled.
    pub(super) fn window_closed(&self, now: Timestamp, lines: u64, metrics: &Metrics) {
        let late = i64::try_from(TOLD_LATE.as_nanos()).unwrap_or(i64::MAX);
        self.settled.set(Timestamp(now.0.saturating_sub(late)));
        if !self.status.is_synced() && lines > 0 {
            metrics.lines_by_address_only.add(lines);
            warn!(lines, "the cluster is not known yet: these lines name their ends by address only");
        }
    }
}

/// What readiness asks of the watches: of the world, and of the objects that configure the agent.
pub(super) fn ready_of(world: Option<Arc<watch::Status>>, configuration: Option<Arc<watch::Status>>) -> Ask {
    let check = |name, status: &Option<Arc<watch::Status>>| {
        let Readiness { ready, reasons } = Readiness::of(status.as_deref());
        let reason = match (ready, status) {
            (true, None) => "no API server is watched".to_owned(),
            (true, Some(_)) => "all kinds are known and up to date".to_owned(),
            (false, _) => reasons.join("; "),
        };
        Check { name, passed: ready, reason }
    };
    Arc::new(move || vec![check("cluster", &world), check("configuration", &configuration)])
}

/// One batch of observations: the world is loaded once, when the first of them comes.
pub(super) struct Batch<'a> {
    world: &'a ArcSwap<Snapshot>,
    loaded: Option<Arc<Snapshot>>,
}

impl<'a> Batch<'a> {
    pub(super) fn of(world: &'a ArcSwap<Snapshot>) -> Self {
        Self { world, loaded: None }
    }

    pub(super) fn snapshot(&mut self) -> &Snapshot {
        self.loaded.get_or_insert_with(|| self.world.load_full())
    }
}

/// Where the world comes from.
pub(super) enum Origin {
    Manifests,
    Server(watch::Server),
    /// No cluster at all: ends are named by their addresses.
    Nowhere,
}

impl Origin {
    pub(super) fn of(manifests: &[PathBuf], kubeconfig: Option<&Path>) -> Self {
        if !manifests.is_empty() {
            return Self::Manifests;
        }
        watch::locate(kubeconfig).map_or(Self::Nowhere, Self::Server)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests => f.write_str("manifests"),
            Self::Server(server) => server.fmt(f),
            Self::Nowhere => f.write_str("none"),
        }
    }
}

/// The world of manifests, an empty one where there are none; and the configuration objects among them.
pub(super) fn load_world(
    paths: &[PathBuf],
    node: &Arc<str>,
) -> Result<(World, Vec<Resource>), ManifestError> {
    let mut world = World::new(node.clone());
    if paths.is_empty() {
        return Ok((world, Vec::new()));
    }
    let manifests = watch::load(paths, false)?;
    for problem in &manifests.skipped {
        warn!(%problem, "manifest left out");
    }
    world.inhabit();
    for object in manifests.objects {
        world.apply(object, Timestamp::MIN);
    }
    if !world.cluster.names_local_node() {
        warn!(
            %node,
            cluster = nodes_there(&world.cluster.node_names()),
            "nothing in the cluster names this node, so no flow has a local end: give its name with --node"
        );
    }
    Ok((world, manifests.configuration))
}
