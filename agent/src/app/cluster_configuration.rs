//! The configuration objects of the API server: layers while they are there, and what is said in their status.
//!
//! In: the link to the API server. Out: layers ([`Reload`]), conditions in the status of our two objects.
//! Always: an API server that is down leaves the last known layers in force; 5,000 agents do not fight over the one
//! status of `default`: what they would say of it depends on the object alone, each waits a time that is biased so
//! that a few are early and most are late (the exponentially biased feedback timer of TFMCC, RFC 4654), and whoever sees
//! the present generation judged by then says nothing. `node.<name>` is written by its own node's agent.
//! Not here: what a condition says (`config`), requests (`watch`).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config::{
    ACCEPTED, Condition, FELIX_ACCEPTED, Field, KIND, Layer, Owner, Resource, ResourceRef, accepted, in_force,
};
use crate::telemetry::Metrics;
use crate::watch::{self, Link, Phase, Selected, Told};

use super::Tasks;
use super::configuration::{Reload, Shared, locked};

/// The longest that anybody waits before it writes the status of `default`.
const FEEDBACK: Duration = Duration::from_secs(6);
/// Agents for which the bias is made; fewer wait longer, more are more at once.
const AGENTS: f64 = 10_000.0;
/// Of changes that come together, the status of a node's object is written once.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// After a status that could not be written, and up to twice as long.
const AGAIN: Duration = Duration::from_secs(60);
/// How often it is looked whether everything is known, and what waits.
const LOOK: Duration = Duration::from_millis(50);

/// Follows the objects that are layers of this node until the process stops; told when all that there are are known for
/// the first time. The status says how the watches fare.
pub(super) fn follow(
    tasks: &Tasks,
    shared: &Shared,
    link: &Link,
    node: &Arc<str>,
    metrics: &Arc<Metrics>,
) -> (oneshot::Receiver<()>, Arc<watch::Status>) {
    let selected = Selected::configuration(node);
    let (following, raw) = link.raw(selected.to_vec());
    let status = raw.status.clone();
    let stopping = tasks.stopping();
    tasks.spawn(async move {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = following => {}
        }
    });
    let (known, when_known) = oneshot::channel();
    let followed = Followed {
        shared: shared.clone(),
        link: link.clone(),
        metrics: metrics.clone(),
        reports: [Report::new(Layer::ClusterDefault), Report::new(Layer::ClusterNode)],
        status: status.clone(),
        references: selected.map(|selected| ResourceRef {
            owner: if selected.wanted.kind == KIND { Owner::Ours } else { Owner::Felix },
            name: selected.name.unwrap_or_default(),
        }),
    };
    let stopping = tasks.stopping();
    tasks.spawn(async move {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = followed.run(raw, known) => {}
        }
    });
    (when_known, status)
}

/// Each kind is told whole, or not served.
fn is_known(status: &watch::Status) -> bool {
    status.kinds.iter().all(|kind| matches!(kind.phase(), Phase::Synced | Phase::NotServed))
}

fn is_of(object: &Value, reference: &ResourceRef) -> bool {
    object.pointer("/metadata/name").and_then(Value::as_str) == Some(&reference.name)
}

struct Followed {
    shared: Shared,
    link: Link,
    metrics: Arc<Metrics>,
    reports: [Report; 2],
    status: Arc<watch::Status>,
    /// Which object each watch is of.
    references: [ResourceRef; 4],
}

impl Followed {
    async fn run(mut self, mut raw: watch::Raw, known: oneshot::Sender<()>) {
        let mut known = Some(known);
        let mut tick = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                told = raw.told.recv() => match told {
                    Some((tag, told)) => self.take(tag, told),
                    None => return,
                },
                _ = tick.tick() => {
                    // The phase is set after its objects were told; they may wait in the channel still.
                    if is_known(&raw.status) && raw.told.is_empty() && let Some(known) = known.take() {
                        self.status.set_synced();
                        let _ = known.send(()); // who waited may have lost patience
                    }
                    self.metrics.set_kinds(&self.status);
                    self.report().await;
                }
            }
        }
    }

    fn take(&mut self, tag: usize, told: Told<Value>) {
        let Some(reference) = self.references.get(tag) else { return };
        let object = match told {
            // They come in parts where that is asked for, and it is not.
            Told::Part(_) | Told::Done => return,
            // A server that does not heed the selector tells of others too.
            Told::All { objects, .. } => objects.into_iter().find(|object| is_of(object, reference)),
            Told::Applied(object) if !is_of(&object, reference) => return,
            Told::Applied(object) => Some(object),
            Told::Gone { identity, .. } if identity.name != reference.name => return,
            Told::Gone { .. } => None,
        };
        if let Some(status) = self.status.kinds.get(tag) {
            status.set_objects(usize::from(object.is_some()));
        }
        match object.and_then(|object| self.read(tag, reference.owner, object)) {
            Some(resource) => locked(&self.shared).apply(resource),
            None => locked(&self.shared).delete(reference),
        }
    }

    /// An object that is none is no layer.
    fn read(&self, tag: usize, owner: Owner, mut object: Value) -> Option<Resource> {
        match Resource::read(owner, &mut object) {
            Ok(resource) => Some(resource),
            Err(problem) => {
                let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
                if let Some(status) = self.status.kinds.get(tag) {
                    status.add_refused(1);
                }
                warn!(kind = owner.kind(), name, "spec {problem}: it is no layer");
                None
            }
        }
    }

    /// Writes what is to be said, when it is time.
    async fn report(&mut self) {
        for report in &mut self.reports {
            let wanted = Wanted::of(&locked(&self.shared), report.layer);
            let Some(wanted) = report.due(wanted, Instant::now()) else { continue };
            let conditions =
                wanted.written(&jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            match watch::apply_conditions(self.link.client(), &wanted.name, conditions).await {
                Ok(()) => {
                    debug!(name = wanted.name, "status written");
                    report.written = Some(wanted.conditions);
                    report.failed = false;
                }
                Err(error) => {
                    if !std::mem::replace(&mut report.failed, true) {
                        warn!(name = wanted.name, %error, "the status of this FlowLogConfiguration cannot be written");
                    }
                    report.at = Some(Instant::now() + AGAIN.mul_f64(1.0 + fastrand::f64()));
                }
            }
        }
    }
}

/// What is to be said of one of our objects.
struct Wanted {
    name: String,
    /// With the generation of the object that each speaks of.
    conditions: Vec<(Condition, i64)>,
    existing: Vec<Value>,
    /// Many agents could say it: only what nobody has said of this generation.
    by_anyone: bool,
}

impl Wanted {
    fn of(reload: &Reload, layer: Layer) -> Option<Self> {
        let layers = reload.layers();
        let object = layers.resource(layer)?;
        let by_anyone = layer == Layer::ClusterDefault;
        let felix = layers.resource(if by_anyone { Layer::FelixDefault } else { Layer::FelixNode });
        let felix = felix.filter(|felix| felix.spec.keys().any(|field| Field::by_name(field).is_some()));
        let mut conditions = vec![(accepted(ACCEPTED, object), object.generation)];
        conditions.extend(felix.map(|felix| (accepted(FELIX_ACCEPTED, felix), felix.generation)));
        if !by_anyone {
            conditions.push((in_force(reload.waiting()), object.generation));
        }
        let (name, existing) = (object.reference.name.clone(), object.conditions.clone());
        Some(Self { name, conditions, existing, by_anyone })
    }

    fn existing(&self, kind: &str) -> Option<&Value> {
        self.existing.iter().find(|condition| condition["type"] == kind)
    }

    fn is_said(&self) -> bool {
        let says = |(condition, generation): &(Condition, i64)| {
            let Some(existing) = self.existing(condition.kind) else { return false };
            let of_this = existing["observedGeneration"] == *generation;
            // Agents of another version may say it in other words; without generations only words tell.
            if self.by_anyone && *generation > 0 {
                return of_this;
            }
            of_this
                && existing["status"] == status(condition)
                && existing["reason"] == condition.reason
                && existing["message"] == condition.message
        };
        let ours = [ACCEPTED, FELIX_ACCEPTED, crate::config::IN_FORCE];
        let is_too_much = |existing: &Value| {
            let kind = existing["type"].as_str().unwrap_or_default();
            ours.contains(&kind) && !self.conditions.iter().any(|(condition, _)| condition.kind == kind)
        };
        self.conditions.iter().all(says) && !self.existing.iter().any(is_too_much)
    }

    /// As they stand in the object; a status that stays keeps its time.
    fn written(&self, now: &str) -> Vec<Value> {
        let write = |(condition, generation): &(Condition, i64)| {
            let status = status(condition);
            let since = self
                .existing(condition.kind)
                .filter(|existing| existing["status"] == status)
                .and_then(|existing| existing["lastTransitionTime"].as_str())
                .unwrap_or(now);
            json!({
                "type": condition.kind,
                "status": status,
                "observedGeneration": generation,
                "lastTransitionTime": since,
                "reason": condition.reason,
                "message": condition.message,
            })
        };
        self.conditions.iter().map(write).collect()
    }
}

fn status(condition: &Condition) -> &'static str {
    if condition.is_true { "True" } else { "False" }
}

/// When one object's status is to be written.
struct Report {
    layer: Layer,
    at: Option<Instant>,
    /// What was written last, which the watch may not have told back yet.
    written: Option<Vec<(Condition, i64)>>,
    failed: bool,
}

impl Report {
    fn new(layer: Layer) -> Self {
        Self { layer, at: None, written: None, failed: false }
    }

    /// What is to be written now.
    fn due(&mut self, wanted: Option<Wanted>, now: Instant) -> Option<Wanted> {
        let Some(wanted) = wanted.filter(|wanted| !wanted.is_said()) else {
            (self.at, self.written) = (None, None);
            return None;
        };
        if self.written.as_ref() == Some(&wanted.conditions) {
            return None;
        }
        let at = *self.at.get_or_insert_with(|| {
            now + if wanted.by_anyone { feedback_delay(fastrand::f64()) } else { DEBOUNCE }
        });
        if now < at {
            return None;
        }
        self.at = None;
        Some(wanted)
    }
}

/// `max(0, T (1 + log_N(u)))` for a `u` from 0 to 1: of N agents one is early, and the time at which it is depends little
/// on how many there are.
fn feedback_delay(u: f64) -> Duration {
    let share = 1.0 + u.max(f64::MIN_POSITIVE).ln() / AGENTS.ln();
    FEEDBACK.mul_f64(share.clamp(0.0, 1.0))
}

#[cfg(test)]
#[path = "cluster_configuration_tests.rs"]
mod tests;
