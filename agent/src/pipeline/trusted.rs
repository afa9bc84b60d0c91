//! Which DNS servers are believed: `dnsTrustedServers`, resolved through the cluster.
//!
//! In: the configured entries, the cluster as it is. Out: whether an answer teaches. Always: a service stands for its
//! own addresses and for those of its endpoints, because answers are seen before and after NAT; they are looked up
//! once a version of the cluster. Where no Service is known at all, no entry that names one can be resolved: then
//! every server is believed, for a node without a cluster has no kube-dns.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::cluster::{Cluster, ObjectKind};
use crate::model::{TrustedServer, canonical};

#[derive(Default)]
pub(super) struct Trusted {
    servers: Arc<[TrustedServer]>,
    addresses: HashSet<IpAddr, RandomState>,
    everyone: bool,
    /// Of the cluster when it was asked.
    version: Option<u64>,
}

impl Trusted {
    pub(super) fn configure(&mut self, servers: &Arc<[TrustedServer]>) {
        if *servers != self.servers {
            self.servers = servers.clone();
            self.version = None;
        }
    }

    pub(super) fn believes(&mut self, server: IpAddr, cluster: &Cluster) -> bool {
        if self.version != Some(cluster.version()) {
            self.resolve(cluster);
        }
        self.everyone || self.addresses.contains(&canonical(server))
    }

    fn resolve(&mut self, cluster: &Cluster) {
        self.version = Some(cluster.version());
        self.addresses.clear();
        let mut by_service = false;
        for server in self.servers.iter() {
            match server {
                TrustedServer::Address(ip) => {
                    self.addresses.insert(*ip);
                }
                TrustedServer::Service { namespace, name } => {
                    by_service = true;
                    self.addresses.extend(cluster.service_addresses(namespace, name));
                }
            }
        }
        self.everyone = by_service && cluster.count(ObjectKind::Service) == 0;
    }
}
