//! All that the pipeline may know of the world, under one version; and the world as it changes.
//!
//! In: objects applied, deleted and replaced, each with the time at which that was observed ([`World`]). Out: a
//! [`Snapshot`], which is published whole (`ArcSwap`) and loaded once a batch.
//! What always holds: a snapshot never changes; making one is cheap, because cluster and policies share their
//! structure with their clones. Who makes it and when is deliberately not here.

use std::sync::Arc;

use crate::cluster::{self, Cluster};
use crate::model::Timestamp;
use crate::policy::{self, Policies};

#[derive(Clone)]
pub struct Snapshot {
    /// Grows with each change of cluster or policies.
    pub version: u64,
    pub cluster: Cluster,
    pub policies: Policies,
}

impl Snapshot {
    /// A cluster without policy objects.
    pub fn new(cluster: &Cluster) -> Self {
        Self { version: cluster.version(), cluster: cluster.clone(), policies: Policies::default() }
    }

    /// No cluster at all: every end is named by its address.
    pub fn without_cluster(node: Arc<str>) -> Self {
        Self::new(&Cluster::new(node))
    }
}

/// An object of either kind, as `watch` decodes it.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Cluster(cluster::Object),
    Policy(policy::Resource),
}

/// The kinds of objects that a world keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Cluster(cluster::ObjectKind),
    Policy(policy::ResourceKind),
}

/// Which object: what a `delete` names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectRef {
    Cluster(cluster::ObjectRef),
    Policy(policy::ResourceRef),
}

impl Object {
    pub fn reference(&self) -> ObjectRef {
        match self {
            Self::Cluster(object) => ObjectRef::Cluster(object.reference()),
            Self::Policy(resource) => ObjectRef::Policy(resource.reference()),
        }
    }
}

/// The world as it changes: the one writer's side.
#[derive(Clone)]
pub struct World {
    pub cluster: Cluster,
    pub policies: Policies,
}

impl World {
    /// Nothing is known yet. `node` is the name of the local node.
    pub fn new(node: Arc<str>) -> Self {
        Self { cluster: Cluster::new(node), policies: Policies::default() }
    }

    /// There is a cluster, even while nothing of it is known.
    pub fn inhabit(&mut self) {
        self.cluster.inhabit();
    }

    pub fn apply(&mut self, object: Object, at: Timestamp) {
        match object {
            Object::Cluster(object) => self.cluster.apply(object, at),
            Object::Policy(resource) => {
                self.cluster.inhabit();
                self.policies.apply(resource);
            }
        }
    }

    pub fn delete(&mut self, object: &ObjectRef, at: Timestamp) {
        match object {
            ObjectRef::Cluster(object) => self.cluster.delete(object, at),
            ObjectRef::Policy(resource) => {
                self.policies.delete(resource);
            }
        }
    }

    /// These are all objects of the kind that there are: the swap at the end of a relist, at `at`. What is gone has
    /// been so since `gone`.
    pub fn replace_all(&mut self, kind: Kind, objects: Vec<Object>, gone: Timestamp, at: Timestamp) {
        match kind {
            Kind::Cluster(kind) => {
                let objects = objects.into_iter().filter_map(|object| match object {
                    Object::Cluster(object) => Some(object),
                    Object::Policy(_) => None,
                });
                self.cluster.replace_all(kind, objects.collect(), gone, at);
            }
            Kind::Policy(kind) => {
                let resources = objects.into_iter().filter_map(|object| match object {
                    Object::Policy(resource) => Some(resource),
                    Object::Cluster(_) => None,
                });
                self.policies.replace_all(kind, resources.collect());
            }
        }
    }

    /// Forgets owners of addresses whose grace ended by `now`; see [`Cluster::expire`].
    pub fn expire(&mut self, now: Timestamp) {
        self.cluster.expire(now);
    }

    /// How many objects of this kind are known.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Cluster(kind) => self.cluster.count(kind),
            Kind::Policy(kind) => self.policies.count_of(kind),
        }
    }

    pub fn version(&self) -> u64 {
        self.cluster.version() + self.policies.version()
    }

    /// What is published.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { version: self.version(), cluster: self.cluster.clone(), policies: self.policies.clone() }
    }
}
