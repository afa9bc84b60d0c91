//! The link to an API server: its client, what it serves, and kinds of objects followed as long as they are served.
//!
//! In: a client. Out: [`Told`] of the kinds that are asked for, as the world's objects ([`super::follow_cluster`]) or as
//! they are written ([`Link::raw`]). What always holds: a kind that is not served is waited for; one that is served no
//! more is told to have no objects. What is done with the objects is deliberately not here.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use kube::Client;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use super::decode::{DecodeError, Unreadable};
use super::follow::{Follower, Resource, Timing, Told};
use super::kinds::{Selected, WORLD, Wanted};
use super::served::{Served, look};
use super::status::{KindStatus, Phase, Status};

/// What the followers may have told that nobody has taken yet.
const TOLD: usize = 256;

/// A link to an API server, shared by all that follow something there.
#[derive(Clone)]
pub struct Link {
    pub(super) client: Client,
    pub(super) timing: Timing,
    pub(super) served: watch::Receiver<Option<Arc<Served>>>,
}

/// Kinds that are followed as they are written.
pub struct Raw {
    pub told: mpsc::Receiver<(usize, Told<Value>)>,
    /// How it fares.
    pub status: Arc<Status>,
}

impl Link {
    /// The link, and the task that keeps looking what is served; `more` are kinds beside the world's that will be asked for.
    pub fn new(
        client: Client,
        timing: Timing,
        more: &[Wanted],
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let wanted = WORLD.iter().map(|(wanted, _)| wanted).chain(more);
        let groups: BTreeSet<&'static str> =
            wanted.flat_map(|wanted| wanted.served.iter().map(|(group, _)| *group)).collect();
        let (send, served) = watch::channel(None);
        let looking = look(client.clone(), timing, groups, send);
        (Self { client, timing, served }, looking)
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Objects of these kinds as they are written, each with its `apiVersion` and `kind`: the tag is its place in `wanted`. The future follows until [`Raw::told`] is dropped.
    pub fn raw(&self, wanted: Vec<Selected>) -> (impl Future<Output = ()> + Send + 'static, Raw) {
        let (tell, told) = mpsc::channel(TOLD);
        let status = Arc::new(Status::new(wanted.iter().map(|selected| selected.label)));
        let (link, of) = (self.clone(), status.clone());
        let following = async move {
            let all = wanted.iter().zip(&of.kinds).enumerate();
            futures::future::join_all(all.map(|(tag, (selected, status))| {
                let kind = selected.wanted.kind;
                let read = move |resource: &Resource| {
                    let api_version = resource.api_version();
                    move |text: &str| {
                        let read = as_written(text, &api_version, kind).map(Some);
                        read.map_err(|error| Unreadable { error, stands: None })
                    }
                };
                link.follow(selected.clone(), status, read, &tell, tag, false)
            }))
            .await;
        };
        (following, Raw { told, status })
    }

    /// Follows a kind whenever it is served, until nobody listens.
    pub(super) async fn follow<T, R>(
        &self,
        selected: impl Into<Selected>,
        status: &KindStatus,
        read: impl Fn(&Resource) -> R,
        tell: &mpsc::Sender<(usize, Told<T>)>,
        tag: usize,
        in_parts: bool,
    ) where
        R: Fn(&str) -> Result<Option<T>, Unreadable<T>>,
    {
        let selected = selected.into();
        let wanted = &selected.wanted;
        let selector = selected.field_selector();
        let mut served = self.served.clone();
        let mut first = true;
        let find = |served: &Option<Arc<Served>>| match served {
            _ if wanted.always => Served::default().find(wanted).map(Some),
            Some(served) => Some(served.find(wanted)),
            None => None,
        };
        loop {
            // Until it is known; then until it is served.
            let resource = loop {
                match find(&served.borrow_and_update()) {
                    Some(Some(resource)) => break resource,
                    Some(None) => status.set_phase(Phase::NotServed),
                    None => status.set_phase(Phase::Unknown),
                }
                tokio::select! {
                    changed = served.changed() => if changed.is_err() { return },
                    () = tell.closed() => return,
                }
            };
            let read = read(&resource);
            status.set_phase(Phase::Syncing);
            let in_parts = std::mem::take(&mut first) && in_parts;
            let follower = Follower::new(
                self.client.clone(),
                self.timing,
                resource.clone(),
                selector.as_deref(),
                status,
                read,
                tell,
                tag,
                in_parts,
            );
            tokio::select! {
                () = follower.run() => return,
                () = async {
                    while served.changed().await.is_ok() {
                        if find(&served.borrow_and_update()) != Some(Some(resource.clone())) {
                            return;
                        }
                    }
                    std::future::pending().await
                } => {}
            }
            if find(&served.borrow()) == Some(None) {
                status.set_phase(Phase::NotServed);
                if tell.send((tag, Told::All { objects: Vec::new(), heard: None })).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// An object of a list or an event, which may not say what it is.
fn as_written(text: &str, api_version: &str, kind: &str) -> Result<Value, DecodeError> {
    let malformed = |problem: String| DecodeError {
        object: format!("object of kind {kind}"),
        field: ".".to_owned(),
        problem,
    };
    let mut value: Value = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    let fields = value.as_object_mut().ok_or_else(|| malformed("is not a map of fields".to_owned()))?;
    fields.insert("apiVersion".to_owned(), api_version.into());
    fields.insert("kind".to_owned(), kind.into());
    Ok(value)
}
