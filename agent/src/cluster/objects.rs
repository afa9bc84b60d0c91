//! The objects of a cluster, trimmed to what naming needs now and policy will need.
//!
//! In: nothing; `watch` builds these from manifests, recordings and the API server. Out: what `Cluster::apply`
//! takes. They are plain data: addresses are parsed and canonical (v4-mapped IPv6 is IPv4), prefixes have no host
//! bits, times are [`Timestamp`]s. Whatever syntax an object came in is forgotten; whatever is not used is not kept,
//! because a cluster of 100,000 pods has to fit in memory. Policies are deliberately not here.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{Labels, NamedPort, Proto, Timestamp};

/// The kinds of objects that a [`super::Cluster`] keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    Namespace,
    ServiceAccount,
    Pod,
    Node,
    Service,
    EndpointSlice,
    Endpoints,
    NetworkSet,
    GlobalNetworkSet,
    HostEndpoint,
}

impl ObjectKind {
    pub const ALL: [Self; 10] = [
        Self::Namespace,
        Self::ServiceAccount,
        Self::Pod,
        Self::Node,
        Self::Service,
        Self::EndpointSlice,
        Self::Endpoints,
        Self::NetworkSet,
        Self::GlobalNetworkSet,
        Self::HostEndpoint,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::NetworkSet => "NetworkSet",
            Self::GlobalNetworkSet => "GlobalNetworkSet",
            Self::HostEndpoint => "HostEndpoint",
        }
    }

    /// Namespaced kinds have a namespace in every reference to them, the others never.
    pub fn is_namespaced(self) -> bool {
        match self {
            Self::Pod
            | Self::ServiceAccount
            | Self::Service
            | Self::EndpointSlice
            | Self::Endpoints
            | Self::NetworkSet => true,
            Self::Namespace | Self::Node | Self::GlobalNetworkSet | Self::HostEndpoint => false,
        }
    }
}

/// Which object: what a `delete` names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    pub kind: ObjectKind,
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
    /// Where given, only the object with this `metadata.uid` is meant: a late delete must not hit its successor.
    pub uid: Option<Arc<str>>,
}

/// A namespaced or cluster-scoped name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Namespace(Namespace),
    ServiceAccount(ServiceAccount),
    Pod(Pod),
    Node(Node),
    Service(Service),
    EndpointSlice(ServiceEndpoints),
    /// core/v1 Endpoints, where EndpointSlices are not served.
    Endpoints(ServiceEndpoints),
    /// A NetworkSet (with a namespace) or a GlobalNetworkSet (without).
    NetworkSet(NetworkSet),
    HostEndpoint(HostEndpoint),
}

impl Object {
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::Namespace(_) => ObjectKind::Namespace,
            Self::ServiceAccount(_) => ObjectKind::ServiceAccount,
            Self::Pod(_) => ObjectKind::Pod,
            Self::Node(_) => ObjectKind::Node,
            Self::Service(_) => ObjectKind::Service,
            Self::EndpointSlice(_) => ObjectKind::EndpointSlice,
            Self::Endpoints(_) => ObjectKind::Endpoints,
            Self::NetworkSet(set) if set.namespace.is_none() => ObjectKind::GlobalNetworkSet,
            Self::NetworkSet(_) => ObjectKind::NetworkSet,
            Self::HostEndpoint(_) => ObjectKind::HostEndpoint,
        }
    }

    pub fn object_name(&self) -> ObjectName {
        let (namespace, name) = match self {
            Self::Namespace(o) => (None, &o.name),
            Self::ServiceAccount(o) => (Some(&o.namespace), &o.name),
            Self::Pod(o) => (Some(&o.namespace), &o.name),
            Self::Node(o) => (None, &o.name),
            Self::Service(o) => (Some(&o.namespace), &o.name),
            Self::EndpointSlice(o) | Self::Endpoints(o) => (Some(&o.namespace), &o.name),
            Self::NetworkSet(o) => (o.namespace.as_ref(), &o.name),
            Self::HostEndpoint(o) => (None, &o.name),
        };
        ObjectName { namespace: namespace.cloned(), name: name.clone() }
    }

    /// The reference that deletes this object whatever its uid.
    pub fn reference(&self) -> ObjectRef {
        let ObjectName { namespace, name } = self.object_name();
        ObjectRef { kind: self.kind(), namespace, name, uid: None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: Arc<str>,
    pub labels: Labels,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub labels: Labels,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub uid: Option<Arc<str>>,
    /// Of the mirror of a static pod: the uid of the static pod, which its cgroups are named by.
    pub mirrored_uid: Option<Arc<str>>,
    /// `metadata.generateName` as written, usually with a `-` at its end.
    pub generate_name: Option<Arc<str>>,
    pub labels: Labels,
    pub node: Option<Arc<str>>,
    pub host_network: bool,
    /// `status.podIPs`, else `podIP`, else Calico's annotations.
    pub ips: Vec<IpAddr>,
    /// Failed, Succeeded or Completed, or Calico's CNI plugin has released its address: it owns none any more.
    pub finished: bool,
    pub service_account: Option<Arc<str>>,
    /// Of all containers, init containers included.
    pub ports: Vec<NamedPort>,
    pub created: Option<Timestamp>,
    /// `metadata.deletionTimestamp`: the pod is asked to go; it keeps its address until it is gone.
    pub deletion: Option<Timestamp>,
    /// The condition `PodReadyToStartContainers`: it has had its addresses since then at the latest. `podIPs` is told later.
    pub networked: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    pub labels: Labels,
    /// `status.addresses` that are addresses, and those of Calico's annotations (its own address and its tunnels').
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// ClusterIPs (without `None`), ExternalIPs and the load balancer's ingress addresses.
    pub ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: Option<Arc<str>>,
    pub proto: Proto,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// What stands behind a service: an EndpointSlice, or core/v1 Endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEndpoints {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// The service's name, where it belongs to one.
    pub service: Option<Arc<str>>,
    pub groups: Vec<EndpointGroup>,
}

/// Addresses that all serve the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointGroup {
    pub addresses: Vec<IpAddr>,
    /// A port of `None` stands for all ports.
    pub ports: Vec<EndpointPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    pub name: Option<Arc<str>>,
    pub proto: Proto,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSet {
    /// `None` for a GlobalNetworkSet.
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
    pub labels: Labels,
    pub nets: Vec<IpNet>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEndpoint {
    pub name: Arc<str>,
    pub uid: Option<Arc<str>>,
    pub labels: Labels,
    pub node: Arc<str>,
    /// `"*"` stands for all interfaces of the node.
    pub interface: Option<Arc<str>>,
    pub expected_ips: Vec<IpAddr>,
    pub ports: Vec<NamedPort>,
    pub profiles: Vec<Arc<str>>,
    pub created: Option<Timestamp>,
}

impl HostEndpoint {
    pub fn is_wildcard(&self) -> bool {
        self.interface.as_deref() == Some("*")
    }
}
