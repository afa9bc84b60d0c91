//! The world as the API server tells it, published.
//!
//! In: what the followers tell of each kind, how far names are settled. Out: the snapshot, in the [`ArcSwap`] that the
//! pipeline loads once a batch; [`Status`]. One task owns the world; a change costs what it touches, and changes that come
//! together are published together ([`Timing::debounce`]).
//! What always holds: nothing is published before all kinds are known, so that no name is taken from a half-filled cache;
//! if that takes longer than [`Timing::hold`], what is known is published when pods, nodes and namespaces are. What is gone
//! from a relist may have gone at any time since the watch was last heard of, and counts as gone since then.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::time::{Instant as Moment, sleep_until};
use tracing::{info, warn};

use super::decode::{Decoded, DecodedRef, Unreadable, decode_ref, decode_text, unreadable_text};
use super::follow::{Identity, Resource, Told};
use super::kinds::WORLD;
use super::link::Link;
use super::status::{KindStatus, Phase, Status};
use crate::model::Timestamp;
use crate::snapshot::{Kind, Object, ObjectRef, Snapshot, World};
use crate::{cluster, policy};

/// What is told that is not yet in the world.
const TOLD: usize = 256;
/// How often owners of addresses are forgotten, and it is looked whether holding must end.
const TICK: std::time::Duration = std::time::Duration::from_secs(1);
/// Kinds without which nobody can be named: nothing is published before these are known.
const NAMES: [&str; 3] = ["Pod", "Node", "Namespace"];

/// What the loop of the pipeline tells the watch: names of all flows that began before are settled.
#[derive(Debug)]
pub struct Settled(AtomicI64);

impl Default for Settled {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MIN))
    }
}

impl Settled {
    pub fn set(&self, until: Timestamp) {
        self.0.fetch_max(until.0, Ordering::Relaxed);
    }

    fn get(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// The watch of a cluster.
pub struct Cluster {
    pub world: World,
    pub published: Arc<ArcSwap<Snapshot>>,
    pub settled: Arc<Settled>,
    pub status: Arc<Status>,
    /// Of each kind: its objects are in the world.
    known: [bool; WORLD.len()],
}

impl Cluster {
    pub fn new(world: World, published: Arc<ArcSwap<Snapshot>>) -> Self {
        let status = Arc::new(Status::new(WORLD.iter().map(|(wanted, _)| wanted.label())));
        Self { world, published, settled: Arc::default(), status, known: [false; WORLD.len()] }
    }

    /// Follows the cluster for ever: drop the future to end it. `now` is the clock of the flows.
    pub async fn follow(self, link: Link, now: impl FnMut() -> Timestamp + Send) {
        let (tell, told) = mpsc::channel(TOLD);
        let status = self.status.clone();
        let followers = WORLD.iter().zip(&status.kinds).enumerate();
        let following = futures::future::join_all(followers.map(|(tag, ((wanted, _), status))| {
            let kind = wanted.kind;
            let read = move |resource: &Resource| {
                let api_version = resource.api_version();
                move |text: &str| match decode_text(&api_version, kind, text) {
                    Ok(Decoded::Object(object)) => Ok(Some(object)),
                    // A kind that is not used, or no part of the world.
                    Ok(_) => Ok(None),
                    // A policy that cannot be read must not be taken for one that is not there.
                    Err(error) => {
                        let stands = unreadable_text(&api_version, kind, text, &error).map(Box::new);
                        Err(Unreadable { error, stands })
                    }
                }
            };
            // Pods are many: they are not gathered before they are known.
            link.follow(*wanted, status, read, &tell, tag, kind == "Pod")
        }));
        tokio::join!(following, self.keep(&link, told, now));
    }

    async fn keep(
        mut self,
        link: &Link,
        mut told: mpsc::Receiver<(usize, Told<Object>)>,
        mut now: impl FnMut() -> Timestamp,
    ) {
        let timing = link.timing;
        let began = Instant::now();
        let mut publish_at: Option<Moment> = None;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = async {
                match publish_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = due => {
                    publish_at = None;
                    self.publish(began.elapsed() > timing.hold);
                }
                _ = tick.tick() => {
                    self.count();
                    let before = self.world.version();
                    self.world.expire(self.settled.get());
                    let held_out = began.elapsed() > timing.hold;
                    if held_out && !self.status.may_name() {
                        self.status.give_up_holding();
                        let missing = self.status.reasons(timing.idle * 2);
                        warn!(?missing, "the cluster is not known in time: flows are held no longer");
                    }
                    if self.world.version() != before || !self.status.is_synced() {
                        publish_at.get_or_insert_with(Moment::now);
                    }
                }
                next = told.recv() => {
                    let Some((tag, told)) = next else { return };
                    self.take(tag, told, now());
                    publish_at.get_or_insert_with(|| Moment::now() + timing.debounce);
                }
            }
        }
    }

    fn take(&mut self, tag: usize, told: Told<Object>, now: Timestamp) {
        let Some((wanted, kind)) = WORLD.get(tag) else { return };
        // What is there when the watch begins has no beginning but its creation.
        let first = !self.known.get(tag).copied().unwrap_or(true);
        let at = if first { Timestamp::MIN } else { now };
        if first
            && matches!(told, Told::Done | Told::All { .. })
            && let Some(known) = self.known.get_mut(tag)
        {
            *known = true;
        }
        match told {
            Told::Part(objects) => objects.into_iter().for_each(|object| self.world.apply(object, at)),
            Told::Done => {}
            Told::All { objects, heard } => {
                let gone = match heard {
                    Some(heard) if !first => now.minus(heard.elapsed()),
                    _ => at,
                };
                self.world.replace_all(*kind, objects, gone, at);
            }
            Told::Applied(object) => self.world.apply(object, at),
            Told::Gone { identity, object } => {
                if let Some(reference) = reference(wanted.kind, *kind, identity, object) {
                    self.world.delete(&reference, at);
                }
            }
        }
    }

    fn count(&self) {
        for ((_, kind), status) in WORLD.iter().zip(&self.status.kinds) {
            status.set_objects(self.world.count(*kind));
        }
    }

    /// `held_out`: kinds that name nobody are waited for no longer.
    fn publish(&mut self, held_out: bool) {
        if !self.status.is_synced() {
            let is_known = |(kind, known): (&KindStatus, &bool)| {
                *known || kind.phase() == Phase::NotServed || held_out && !NAMES.contains(&kind.kind)
            };
            if !self.status.kinds.iter().zip(&self.known).all(is_known) {
                return;
            }
            self.count();
            info!(pods = self.world.cluster.count(cluster::ObjectKind::Pod), "the cluster is known");
            let node = self.world.cluster.node();
            if !self.world.cluster.names_local_node() {
                let nodes = self.world.cluster.node_names();
                let there: Vec<&str> = nodes.iter().take(10).map(|node| &**node).collect();
                warn!(%node, ?there, "nothing in the cluster names this node yet: give its name with --node if it is another");
            }
            self.world.inhabit();
            self.published.store(Arc::new(self.world.snapshot()));
            self.status.set_synced();
            return;
        }
        if self.world.version() != self.published.load().version {
            self.published.store(Arc::new(self.world.snapshot()));
        }
    }
}

/// What a deletion names: by the object's last version, or by its name alone.
fn reference(kind: &str, of: Kind, identity: Identity, object: Option<Object>) -> Option<ObjectRef> {
    let mut reference = match object {
        Some(object) => object.reference(),
        None => {
            let api_version = match of {
                Kind::Cluster(
                    cluster::ObjectKind::NetworkSet
                    | cluster::ObjectKind::GlobalNetworkSet
                    | cluster::ObjectKind::HostEndpoint,
                ) => "projectcalico.org/v3",
                Kind::Cluster(cluster::ObjectKind::EndpointSlice) => "discovery.k8s.io/v1",
                Kind::Cluster(_) => "v1",
                Kind::Policy(kind) => return policy_reference(kind, identity),
            };
            let named = serde_json::json!({
                "apiVersion": api_version, "kind": kind, "namespace": identity.namespace, "name": identity.name,
            });
            match decode_ref(named).ok()? {
                DecodedRef::Ref(reference) => reference,
                _ => return None,
            }
        }
    };
    if let ObjectRef::Cluster(reference) = &mut reference {
        reference.uid = identity.uid.map(Into::into);
    }
    Some(reference)
}

fn policy_reference(kind: policy::ResourceKind, identity: Identity) -> Option<ObjectRef> {
    let Identity { namespace, name, .. } = identity;
    let namespace = namespace.filter(|namespace| !namespace.is_empty()).map(Into::into);
    Some(ObjectRef::Policy(policy::ResourceRef { kind, namespace, name: name.into() }))
}
