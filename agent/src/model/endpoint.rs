//! Who is at an end of a flow.

use std::sync::Arc;

use super::{Labels, Proto, Timestamp};

/// The four types of Calico's `source_type` and `dest_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointKind {
    /// A pod that is not on the host network.
    Wep,
    /// A HostEndpoint resource, or the node itself.
    Hep,
    /// A NetworkSet or GlobalNetworkSet.
    Ns,
    /// None of these: an address, private or public.
    Net,
}

impl EndpointKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Wep => "wep",
            Self::Hep => "hep",
            Self::Ns => "ns",
            Self::Net => "net",
        }
    }
}

/// One version of an endpoint's identity. A flow keeps the one it began with; a relabelled endpoint is a new
/// version with the same `kind`, `namespace`, `name` and `uid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub kind: EndpointKind,
    /// `None` is printed as `"-"`.
    pub namespace: Option<Arc<str>>,
    /// Pod, HostEndpoint or network set name; `"-"` for [`EndpointKind::Net`].
    pub name: Arc<str>,
    /// Pods: `generateName` + `*`, or the name; HostEndpoints: the node; sets: the name; net: `pub` or `pvt`.
    pub name_aggr: Arc<str>,
    pub labels: Labels,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// `metadata.uid`, where known: a pod of the same name with another uid is another endpoint.
    pub uid: Option<Arc<str>>,
    /// `metadata.creationTimestamp`, where known: a flow that began earlier cannot be this endpoint's.
    pub created: Option<Timestamp>,
    /// Only [`EndpointKind::Hep`]: the node itself, without a HostEndpoint resource, or a pod on its host network; it has
    /// empty policy traces, and no address of its own.
    pub is_bare_node: bool,
    /// What only policy asks for.
    pub policed: Policed,
}

/// What policy must know of an endpoint besides its labels. A deleted pod keeps it for the flows that it leaves behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policed {
    /// Of a pod.
    pub service_account: Option<Arc<str>>,
    /// Named ports.
    pub ports: Arc<[NamedPort]>,
    /// Of a HostEndpoint, in order; a pod's follow from its namespace and service account.
    pub profiles: Arc<[Arc<str>]>,
}

/// A port with a name, as policies refer to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    pub name: Option<Arc<str>>,
    pub proto: Proto,
    pub port: u16,
}

impl Endpoint {
    /// The same endpoint, perhaps in another version (other labels).
    pub fn same_identity(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.name == other.name
            && self.namespace == other.namespace
            && self.uid == other.uid
            && self.is_bare_node == other.is_bare_node
    }
}

/// The service through which a connection was made. `"*"` stands where several tie.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// The port's name, `"-"` if it has none.
    pub port_name: Arc<str>,
    /// The port before DNAT.
    pub port: u16,
}
