//! "Who owns this address?": the cluster as the pipeline may know it, pure.
//!
//! In: objects applied and deleted, each with the time at which that was observed. Out: the endpoint, network set or
//! service behind an address, at a time.
//! What always holds: a clone is a snapshot (persistent maps, tries behind `Arc`s): it is cheap, and it never changes
//! when the original does; one event costs what it touches, not the size of the cluster; no answer depends on the
//! order of a hash map; an address that moves to another pod never renames what began before.
//! v4-mapped IPv6 addresses are IPv4 addresses. Decoding objects (`watch`), policies, and holding names for the life
//! of a flow (`flow`) are deliberately not here.

mod endpoints;
mod host_pods;
mod networks;
mod nodes;
mod objects;
mod policed;
mod services;
mod shared;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use crate::model::NamedPort;
pub use endpoints::GRACE;
pub use objects::{
    EndpointGroup, EndpointPort, HostEndpoint, Namespace, NetworkSet, Node, Object, ObjectKind, ObjectName,
    ObjectRef, Pod, Service, ServiceAccount, ServiceEndpoints, ServicePort,
};

use crate::model::{Endpoint, EndpointKind, Labels, Proto, ServiceName, Timestamp, canonical};
use endpoints::Owners;
use host_pods::HostPods;
use networks::Networks;
use nodes::Nodes;
use services::Services;
use shared::Shared;

/// Persistent: a clone shares everything, a change copies one path.
pub(crate) type Map<K, V> =
    imbl::GenericHashMap<K, V, foldhash::fast::RandomState, imbl::shared_ptr::DefaultSharedPtr>;

/// A pod as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPod {
    pub endpoint: Arc<Endpoint>,
    /// The addresses that it owns: none on the host network, none when it has finished.
    pub ips: Arc<[IpAddr]>,
    pub host_network: bool,
    pub finished: bool,
    /// It is being deleted: its addresses may be another's already.
    pub leaving: bool,
}

/// A host endpoint as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHostEndpoint {
    pub endpoint: Arc<Endpoint>,
    /// Its expected addresses; those of its node where it has none and stands for all interfaces.
    pub ips: Arc<[IpAddr]>,
    pub resource: HostEndpoint,
}

/// A network set as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSet {
    pub endpoint: Arc<Endpoint>,
    pub nets: Arc<[IpNet]>,
}

/// All that is known of the cluster. Cloning is cheap: the clone is what is published.
#[derive(Clone)]
pub struct Cluster {
    node: Arc<str>,
    version: u64,
    labels_epoch: u64,
    /// Counts changes of what endpoints inherit: labels of namespaces and service accounts.
    inherited_epoch: u64,
    /// Counts changes of what stands behind services.
    backends_epoch: u64,
    /// An object was applied once.
    inhabited: bool,
    owners: Owners,
    nodes: Nodes,
    services: Services,
    networks: Networks,
    pods: Map<ObjectName, Arc<KnownPod>>,
    host_pods: HostPods,
    shared: Shared,
    /// How many of the pods run on the local node.
    local_pods: usize,
    host_endpoints: Map<Arc<str>, Arc<KnownHostEndpoint>>,
    /// The names of each node's host endpoints.
    host_endpoints_of: Map<Arc<str>, imbl::OrdSet<Arc<str>>>,
    sets: Map<ObjectName, Arc<KnownSet>>,
    known_services: Map<ObjectName, Arc<Service>>,
    // Policy asks for these; naming does not.
    namespaces: Map<Arc<str>, Labels>,
    service_accounts: Map<ObjectName, Labels>,
    slices: Map<ObjectName, Arc<ServiceEndpoints>>,
    endpoints: Map<ObjectName, Arc<ServiceEndpoints>>,
}

impl Cluster {
    /// Nothing is known yet. `node` is the name of the local node (`--node`).
    pub fn new(node: Arc<str>) -> Self {
        Self {
            nodes: Nodes::new(&node),
            node,
            version: 0,
            labels_epoch: 0,
            inherited_epoch: 0,
            backends_epoch: 0,
            inhabited: false,
            owners: Owners::default(),
            services: Services::default(),
            networks: Networks::default(),
            pods: Map::default(),
            host_pods: HostPods::default(),
            shared: Shared::default(),
            local_pods: 0,
            host_endpoints: Map::default(),
            host_endpoints_of: Map::default(),
            sets: Map::default(),
            known_services: Map::default(),
            namespaces: Map::default(),
            service_accounts: Map::default(),
            slices: Map::default(),
            endpoints: Map::default(),
        }
    }

    /// There is a cluster, even while nothing of it is known: flows without a local end make no lines.
    pub fn inhabit(&mut self) {
        self.inhabited = true;
    }

    /// No object was ever applied: there is no cluster at all.
    pub fn is_empty(&self) -> bool {
        !self.inhabited
    }

    /// Grows with each change that an answer may depend on.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Counts changes of labels of already known endpoints: a flow re-reads labels only when this moved.
    pub fn labels_epoch(&self) -> u64 {
        self.labels_epoch
    }

    /// The name of the local node.
    pub fn node(&self) -> &Arc<str> {
        &self.node
    }

    /// The endpoint (`wep` or `hep`) that owned `ip` at `at`: who held it then (where several did, one that is not
    /// being deleted, then the latest observed); else who had lost it less than [`GRACE`] before; else the next who was seen to hold it, if it was
    /// created by then or nobody knows when: watch events come late.
    ///
    /// `bare_node` (`flowLogsEnableHostEndpoint`): the local node's own addresses that no HostEndpoint has are the
    /// node's itself.
    pub fn endpoint_at(&self, ip: IpAddr, at: Timestamp, bare_node: bool) -> Option<&Arc<Endpoint>> {
        let ip = canonical(ip);
        let owner = self.owners.at(ip, at);
        if owner.is_none() && bare_node && self.nodes.is_local_address(ip) {
            return Some(self.nodes.bare());
        }
        owner
    }

    /// The pod on the local node's host network (a `hep`) with this uid, as its cgroups are named; one that was deleted
    /// less than [`GRACE`] before `at` too. It has no address: only a process tells that an end is its own.
    pub fn host_pod_at(&self, uid: &str, at: Timestamp) -> Option<&Arc<Endpoint>> {
        self.host_pods.at(uid, at)
    }

    /// There are pods on the local node's host network, or were a moment ago.
    pub fn has_host_pods(&self) -> bool {
        !self.host_pods.is_empty()
    }

    /// The newest version (labels) of this identity, if it is still known.
    pub fn current(&self, endpoint: &Endpoint) -> Option<&Arc<Endpoint>> {
        let name = || ObjectName { namespace: endpoint.namespace.clone(), name: endpoint.name.clone() };
        let newest = match endpoint.kind {
            EndpointKind::Wep => self.pods.get(&name()).map(|pod| &pod.endpoint),
            EndpointKind::Hep if endpoint.is_bare_node && endpoint.namespace.is_some() => {
                self.host_pods.named(&name())
            }
            EndpointKind::Hep if endpoint.is_bare_node => Some(self.nodes.bare()),
            EndpointKind::Hep => self.host_endpoints.get(&endpoint.name).map(|hep| &hep.endpoint),
            EndpointKind::Ns => self.sets.get(&name()).map(|set| &set.endpoint),
            EndpointKind::Net => None,
        };
        newest.filter(|newest| newest.same_identity(endpoint))
    }

    /// A pod or a host endpoint of the local node, or the node itself.
    pub fn is_local(&self, endpoint: &Endpoint) -> bool {
        matches!(endpoint.kind, EndpointKind::Wep | EndpointKind::Hep)
            && endpoint.node.as_ref() == Some(&self.node)
    }

    /// An address of the local node: of its Node object (`status.addresses`, Calico's annotations) or of one of its
    /// HostEndpoints.
    pub fn is_node_address(&self, ip: IpAddr) -> bool {
        self.nodes.is_local_address(canonical(ip))
    }

    /// The network set (`ns`) that names `ip`: of the peer's own namespace, else global, else of another namespace;
    /// among these the longest prefix, then the smallest key.
    pub fn network_set(&self, ip: IpAddr, peer_namespace: Option<&str>) -> Option<&Arc<Endpoint>> {
        self.networks.find(canonical(ip), peer_namespace)
    }

    /// The service through which a connection was opened, from its address and port before DNAT: by ClusterIP,
    /// ExternalIP or load balancer address; else by node port, if it was DNATed or sent to an address of a node.
    pub fn service(
        &self,
        proto: Proto,
        original_dst: IpAddr,
        original_port: u16,
        dnat: bool,
    ) -> Option<Arc<ServiceName>> {
        let ip = canonical(original_dst);
        self.services.find(proto, ip, original_port, dnat || self.nodes.is_address(ip))
    }

    /// The addresses of a service, and of what stands behind it.
    pub fn service_addresses<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = IpAddr> + 'a {
        let key = ObjectName { namespace: Some(namespace.into()), name: name.into() };
        let own = self.known_services.get(&key).into_iter().flat_map(|service| service.ips.iter());
        let behind = self.slices.values().chain(self.endpoints.values()).filter(move |endpoints| {
            *endpoints.namespace == *namespace && endpoints.service.as_deref() == Some(name)
        });
        let behind = behind.flat_map(|endpoints| &endpoints.groups).flat_map(|group| &group.addresses);
        own.chain(behind).map(|ip| canonical(*ip))
    }

    /// Does anything name the local node: a Node, a pod on it, a HostEndpoint of it?
    pub fn names_local_node(&self) -> bool {
        self.nodes.get(&self.node).is_some()
            || self.local_pods > 0
            || self.host_endpoints_of.contains_key(&self.node)
    }

    /// All nodes that anything names, sorted. Looks at every pod: for messages, not for the hot path.
    pub fn node_names(&self) -> Vec<Arc<str>> {
        let pods = self.pods.values().filter_map(|pod| pod.endpoint.node.as_ref());
        let names: BTreeSet<_> =
            self.nodes.names().chain(pods).chain(self.host_endpoints_of.keys()).collect();
        names.into_iter().cloned().collect()
    }

    /// Intervals of ownership that were forgotten before their time because too many were kept (stage `cluster`).
    pub fn forgotten_owners(&self) -> u64 {
        self.owners.forgotten()
    }

    /// The addresses of this node's object.
    pub fn addresses_of_node(&self, node: &str) -> impl Iterator<Item = IpAddr> {
        self.nodes.get(node).into_iter().flat_map(|node| node.addresses.iter().copied())
    }

    /// Addresses with an owner, present or past.
    pub fn address_count(&self) -> usize {
        self.owners.addresses()
    }

    /// How many objects of this kind are known.
    pub fn count(&self, kind: ObjectKind) -> usize {
        match kind {
            ObjectKind::Namespace => self.namespaces.len(),
            ObjectKind::ServiceAccount => self.service_accounts.len(),
            ObjectKind::Pod => self.pods.len(),
            ObjectKind::Node => self.nodes.names().count(),
            ObjectKind::Service => self.known_services.len(),
            ObjectKind::EndpointSlice => self.slices.len(),
            ObjectKind::Endpoints => self.endpoints.len(),
            ObjectKind::NetworkSet => self.sets.keys().filter(|set| set.namespace.is_some()).count(),
            ObjectKind::GlobalNetworkSet => self.sets.keys().filter(|set| set.namespace.is_none()).count(),
            ObjectKind::HostEndpoint => self.host_endpoints.len(),
        }
    }
}

/// Calico's name for an address that nothing else names: `pvt` for RFC 1918, `pub` for all others
/// (`flowLogsPrivateNetworks: RFC1918`); `extended` also counts ULA, link-local, CGNAT and loopback as private.
pub fn private_or_public(ip: IpAddr, extended: bool) -> &'static str {
    let private = match canonical(ip) {
        IpAddr::V4(ip) => {
            ip.is_private()
                || extended
                    && (ip.is_loopback() || ip.is_link_local() || u32::from(ip) & 0xffc0_0000 == 0x6440_0000)
        }
        IpAddr::V6(ip) => {
            extended && (ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unique_local())
        }
    };
    if private { "pvt" } else { "pub" }
}
