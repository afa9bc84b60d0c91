//! The configuration while the agent runs: what changes it, and who is told.
//!
//! In: the layers of the start; the configuration file, looked at once a second; configuration objects of the cluster.
//! Out: the resolved configuration, published ([`Configuration`]); bad values in the log (once), in metrics and, over
//! `cluster_configuration.rs`, in the status of our objects. Always: nothing here stops the agent; what cannot change
//! while it runs is said once, by field.
//! The file is looked at by its identity and times (device, inode, modification, size) behind all links, not through
//! inotify: a mounted ConfigMap is a link to a link that is swapped, editors rename, and one `stat` a second is nothing.
//! Not here: which value wins (`config`), what a change does at the next flush (`daemon.rs`).

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{
    Change, Config, FIELDS, Field, Layer, Layers, LoadError, Resolved, Resource, ResourceRef, file_layer,
    show_plain,
};
use crate::telemetry::Metrics;

use super::Tasks;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What the daemon's loop holds: the published configuration.
#[derive(Clone)]
pub(super) struct Configuration(watch::Receiver<Arc<Resolved>>);

impl Configuration {
    /// The configuration, if it is another one than at the last call.
    pub(super) fn take_change(&mut self) -> Option<Arc<Resolved>> {
        match self.0.has_changed() {
            Ok(true) => Some(self.0.borrow_and_update().clone()),
            _ => None,
        }
    }

    /// Waits until what `part` takes of the configuration is another than `known`.
    pub(super) async fn changed<P: PartialEq>(&mut self, part: impl Fn(&Config) -> P, known: &P) -> P {
        loop {
            if self.0.changed().await.is_err() {
                // Nobody is left who could change it.
                return std::future::pending().await;
            }
            let now = part(&self.0.borrow_and_update().config);
            if now != *known {
                return now;
            }
        }
    }

    pub(super) fn get(&self) -> Arc<Resolved> {
        self.0.borrow().clone()
    }
}

/// The one writer's side.
pub(super) struct Reload {
    layers: Layers,
    /// What the agent was started with: fields that need a restart have these values.
    started: Config,
    publish: watch::Sender<Arc<Resolved>>,
    told: BTreeSet<String>,
    waiting: Vec<&'static Field>,
    /// Before it everything acts at once.
    begun: bool,
    metrics: Arc<Metrics>,
}

impl Reload {
    pub(super) fn new(layers: Layers, metrics: Arc<Metrics>) -> (Self, Configuration) {
        let (resolved, _) = layers.resolve();
        let started = resolved.config.clone();
        let (publish, published) = watch::channel(Arc::new(resolved));
        let mut reload = Self {
            layers,
            started,
            publish,
            told: BTreeSet::new(),
            waiting: Vec::new(),
            begun: false,
            metrics,
        };
        reload.settle();
        (reload, Configuration(published))
    }

    /// The agent starts with what is known now: nothing waits for a restart.
    pub(super) fn begin(&mut self) {
        self.started = self.publish.borrow().config.clone();
        self.waiting.clear();
        self.metrics.configuration_waiting.set(0);
        self.begun = true;
    }

    pub(super) fn apply(&mut self, resource: Resource) {
        if self.layers.apply(resource) {
            self.settle();
        }
    }

    pub(super) fn delete(&mut self, reference: &ResourceRef) {
        if self.layers.delete(reference) {
            self.settle();
        }
    }

    pub(super) fn layers(&self) -> &Layers {
        &self.layers
    }

    /// Fields that were changed and need a restart.
    pub(super) fn waiting(&self) -> &[&'static Field] {
        &self.waiting
    }

    fn file(&mut self, content: Result<crate::config::RawLayer, LoadError>) {
        match content {
            Ok(layer) => self.layers.replace_file(layer),
            Err(error) => {
                self.metrics.bad_configuration_values.add(Layer::File.name(), 1);
                warn!(%error, "the configuration file's last good content holds");
                return;
            }
        }
        self.settle();
    }

    /// Tells what is wrong, what waits and what changes, and publishes.
    fn settle(&mut self) {
        let (resolved, bad) = self.layers.resolve();
        let mut present = BTreeSet::new();
        for layer in Layer::ALL {
            let values = bad.iter().filter(|bad| bad.layer == layer).count() as u64;
            self.metrics.configuration_refused.set(layer.name(), values);
        }
        for bad in bad {
            let text = bad.to_string();
            if !self.told.contains(&text) {
                self.metrics.bad_configuration_values.add(bad.layer.name(), 1);
                let holds = resolved.origin(&bad.field).map_or("nothing", |origin| origin.layer.name());
                warn!(layer = bad.layer.name(), field = %bad.field, holds, "bad configuration value: {text}");
            }
            present.insert(text);
        }
        self.told = present;
        let waiting = if self.begun { resolved.waiting_for_restart(&self.started) } else { Vec::new() };
        for field in &waiting {
            if !self.waiting.iter().any(|known| known.name == field.name) {
                warn!(
                    field = field.name,
                    value = show_plain(&field.value(&resolved.config)),
                    runs_with = show_plain(&field.value(&self.started)),
                    "this field cannot change while the agent runs: restart it"
                );
            }
        }
        self.waiting = waiting;
        self.metrics.configuration_waiting.set(self.waiting.len() as u64);
        let before = self.publish.borrow().clone();
        if before.config != resolved.config {
            for field in FIELDS.iter().filter(|_| self.begun) {
                let when = match field.change {
                    Change::Live => "acts at the next flush",
                    Change::AtOnce => "acts at once",
                    Change::Restart | Change::NoEffect => continue,
                };
                let (old, new) = (field.value(&before.config), field.value(&resolved.config));
                if old != new {
                    let layer = resolved.origin(field.name).map_or("", |origin| origin.layer.name());
                    info!(
                        field = field.name,
                        from = show_plain(&old),
                        to = show_plain(&new),
                        layer,
                        "{when}"
                    );
                }
            }
            self.metrics.configuration_generation.add(1);
        }
        self.publish.send_if_modified(|published| {
            let changed = published.config != resolved.config;
            *published = Arc::new(resolved);
            changed
        });
    }
}

/// Which content a file has.
type Identity = (u64, u64, i64, i64, i64, u64);

/// Says when the file has another content.
pub(super) struct FileWatch {
    path: PathBuf,
    seen: Option<Identity>,
    missing: bool,
}

impl FileWatch {
    /// The first look reads it, too: it may have changed since the start did.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: None, missing: false }
    }

    /// `None`: nothing new.
    pub(super) fn look(&mut self) -> Option<Result<crate::config::RawLayer, LoadError>> {
        let Some(identity) = self.identity() else {
            // Between the two renames of an editor, or a volume that is being replaced: told if it stays so.
            if std::mem::replace(&mut self.missing, true) && self.seen.take().is_some() {
                return Some(file_layer(&self.path));
            }
            return None;
        };
        self.missing = false;
        if self.seen == Some(identity) {
            return None;
        }
        self.seen = Some(identity);
        Some(file_layer(&self.path))
    }

    /// Of a pipe or device there is no second content.
    fn identity(&self) -> Option<Identity> {
        let meta = std::fs::metadata(&self.path).ok().filter(std::fs::Metadata::is_file)?;
        Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec(), meta.size()))
    }
}

/// The writer's side, shared by the tasks that feed it.
pub(super) type Shared = Arc<std::sync::Mutex<Reload>>;

/// A short lock: nothing waits in it.
pub(super) fn locked(shared: &Shared) -> std::sync::MutexGuard<'_, Reload> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Follows the configuration file.
pub(super) fn follow_file(tasks: &Tasks, shared: &Shared, path: &Path) {
    let (shared, stopping) = (shared.clone(), tasks.stopping());
    let mut file = FileWatch::new(path);
    tasks.spawn(async move {
        let mut tick = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                _ = tick.tick() => {}
            }
            if let Some(content) = file.look() {
                locked(&shared).file(content);
            }
        }
    });
}

#[cfg(test)]
#[path = "configuration_tests.rs"]
mod tests;
