//! Which addresses are nodes', and which are the local node's own.
//!
//! In: nodes and the local node's host endpoints, as they are applied. Out: is this an address of any node, of the
//! local one; the endpoint that stands for the local node itself.
//! What always holds: an address counts as long as one object gives it. The local node is the one named by `--node`,
//! compared byte for byte. The addresses of the machine's interfaces are deliberately not asked for: what is not in
//! the cluster's objects is not known here.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Map, Node};
use crate::model::{Endpoint, EndpointKind, Labels};

#[derive(Clone)]
pub(super) struct Nodes {
    by_name: Map<Arc<str>, Arc<Node>>,
    /// How many nodes give this address.
    addresses: Counted,
    /// How often the local node or its host endpoints give this address.
    local: Counted,
    /// The local node without a HostEndpoint resource.
    bare: Arc<Endpoint>,
}

impl Nodes {
    pub fn new(local: &Arc<str>) -> Self {
        Self {
            by_name: Map::default(),
            addresses: Counted::default(),
            local: Counted::default(),
            bare: Arc::new(Endpoint {
                kind: EndpointKind::Hep,
                namespace: None,
                name: local.clone(),
                name_aggr: local.clone(),
                labels: Labels::default(),
                node: Some(local.clone()),
                uid: None,
                created: None,
                is_bare_node: true,
                policed: Default::default(),
            }),
        }
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Node>> {
        self.by_name.get(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }

    pub fn bare(&self) -> &Arc<Endpoint> {
        &self.bare
    }

    pub fn is_address(&self, ip: IpAddr) -> bool {
        self.addresses.contains(ip)
    }

    pub fn is_local_address(&self, ip: IpAddr) -> bool {
        self.local.contains(ip)
    }

    pub fn insert(&mut self, node: Node) {
        self.remove(&node.name.clone());
        let local = node.name == self.bare.name;
        for ip in &node.addresses {
            self.addresses.add(*ip);
            if local {
                self.local.add(*ip);
            }
        }
        self.by_name.insert(node.name.clone(), Arc::new(node));
    }

    pub fn remove(&mut self, name: &str) -> Option<Arc<Node>> {
        let node = self.by_name.remove(name)?;
        for ip in &node.addresses {
            self.addresses.take(*ip);
            if node.name == self.bare.name {
                self.local.take(*ip);
            }
        }
        Some(node)
    }

    /// A host endpoint of the local node gives these addresses.
    pub fn add_local(&mut self, addresses: &[IpAddr]) {
        addresses.iter().for_each(|ip| self.local.add(*ip));
    }

    pub fn take_local(&mut self, addresses: &[IpAddr]) {
        addresses.iter().for_each(|ip| self.local.take(*ip));
    }
}

/// Addresses, each with how often it is given.
#[derive(Clone, Default)]
struct Counted(Map<IpAddr, u32>);

impl Counted {
    fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains_key(&ip)
    }

    fn add(&mut self, ip: IpAddr) {
        let count = self.0.entry(ip).or_insert(0);
        *count = count.saturating_add(1);
    }

    fn take(&mut self, ip: IpAddr) {
        match self.0.get_mut(&ip) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) => {
                self.0.remove(&ip);
            }
            None => {}
        }
    }
}
