//! All that the pipeline may know of the world, under one version.
//!
//! In: a [`Cluster`] after a batch of changes. Out: what is published whole (`ArcSwap`) and loaded once a batch.
//! What always holds: a snapshot never changes; making one is cheap, because the cluster shares its structure with
//! its clones. Who makes it and when is deliberately not here.

use std::sync::Arc;

use crate::cluster::Cluster;

#[derive(Clone)]
pub struct Snapshot {
    /// The cluster's version: grows with each change.
    pub version: u64,
    pub cluster: Cluster,
}

impl Snapshot {
    pub fn new(cluster: &Cluster) -> Self {
        Self { version: cluster.version(), cluster: cluster.clone() }
    }

    /// No cluster at all: every end is named by its address.
    pub fn without_cluster(node: Arc<str>) -> Self {
        Self::new(&Cluster::new(node))
    }
}
