//! Who is at each end of a flow, and which of its ends are this node's.
//!
//! In: addresses, the time when the flow began, the cluster. Out: two endpoints, the service, the local ends.
//! Order of naming: endpoint, then network set (seen from the peer), then plain address.

use std::net::IpAddr;
use std::sync::Arc;

use crate::aggregate::{PrivateNetworks, Settings};
use crate::cluster::{Cluster, private_or_public};
use crate::model::{Addresses, Endpoint, EndpointKind, Labels, Process, Proto, ServiceName, Timestamp};

/// The two ends that stand for plain addresses.
pub(super) struct PlainAddresses {
    public: Arc<Endpoint>,
    private: Arc<Endpoint>,
}

impl PlainAddresses {
    pub(super) fn new() -> Self {
        let end = |name: &str| {
            Arc::new(Endpoint {
                kind: EndpointKind::Net,
                namespace: None,
                name: "-".into(),
                name_aggr: name.into(),
                labels: Labels::default(),
                node: None,
                uid: None,
                created: None,
                is_bare_node: false,
                policed: Default::default(),
            })
        };
        Self { public: end("pub"), private: end("pvt") }
    }

    fn of(&self, ip: IpAddr, networks: PrivateNetworks) -> Arc<Endpoint> {
        match private_or_public(ip, networks == PrivateNetworks::Extended) {
            "pvt" => self.private.clone(),
            _ => self.public.clone(),
        }
    }
}

/// What a settled flow keeps.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    pub(super) ends: [Arc<Endpoint>; 2],
    pub(super) service: Option<Arc<ServiceName>>,
    /// `[source, destination]`.
    pub(super) local: [bool; 2],
    /// From the node itself to a pod of the same node.
    pub(super) unpoliced: bool,
}

/// What must be known of a flow to name it.
pub(super) struct Unnamed<'a> {
    pub(super) proto: Proto,
    /// After DNAT, before SNAT.
    pub(super) addresses: Addresses,
    /// Destination before DNAT.
    pub(super) original_dst: (IpAddr, u16),
    pub(super) began: Timestamp,
    /// What was known when it began.
    pub(super) known: &'a [Option<Arc<Endpoint>>; 2],
}

/// Endpoints only: what a flow takes along from its beginning. What is known of it stays, unless it has become known
/// since that the address was another's by then: a watch that was cut off tells so later.
pub(super) fn endpoints(
    cluster: &Cluster,
    settings: &Settings,
    addresses: &Addresses,
    began: Timestamp,
    known: &[Option<Arc<Endpoint>>; 2],
) -> [Option<Arc<Endpoint>>; 2] {
    let [source, dest] = known;
    [(addresses.src, source), (addresses.dst, dest)].map(|(ip, known)| {
        match (known, cluster.endpoint_at(ip, began, settings.host_endpoints)) {
            (Some(known), Some(owner)) if !owner.same_identity(known) => Some(owner.clone()),
            (Some(known), _) => Some(known.clone()),
            (None, owner) => owner.cloned(),
        }
    })
}

pub(super) fn name(
    cluster: &Cluster,
    settings: &Settings,
    plain: &PlainAddresses,
    host_addresses: &[IpAddr],
    flow: &Unnamed<'_>,
) -> Ends {
    let Addresses { src, dst, .. } = flow.addresses;
    if cluster.is_empty() {
        let only_destination = host_addresses.contains(&dst) && !host_addresses.contains(&src);
        return Ends {
            ends: [src, dst].map(|ip| plain.of(ip, settings.private_networks)),
            service: None,
            local: [!only_destination, only_destination],
            unpoliced: false,
        };
    }
    let set = |ip: IpAddr, peer: Option<&Arc<Endpoint>>| {
        let peer_namespace = peer.and_then(|peer| peer.namespace.as_deref());
        settings.network_sets.then(|| cluster.network_set(ip, peer_namespace).cloned()).flatten()
    };
    let [source, dest] = endpoints(cluster, settings, &flow.addresses, flow.began, flow.known);
    let source = source
        .or_else(|| set(src, dest.as_ref()))
        .unwrap_or_else(|| plain.of(src, settings.private_networks));
    let dest =
        dest.or_else(|| set(dst, Some(&source))).unwrap_or_else(|| plain.of(dst, settings.private_networks));

    let is_local = |end: &Endpoint| match end.kind {
        EndpointKind::Wep => cluster.is_local(end),
        EndpointKind::Hep => settings.host_endpoints && cluster.is_local(end),
        EndpointKind::Ns | EndpointKind::Net => false,
    };
    let local = [is_local(&source), is_local(&dest)];
    let from_node =
        cluster.is_node_address(src) || source.kind == EndpointKind::Hep && cluster.is_local(&source);
    let (original_dst, original_port) = flow.original_dst;
    let dnat = (original_dst, original_port) != (dst, flow.addresses.dst_port);
    let service = if flow.proto.has_ports() {
        cluster.service(flow.proto, original_dst, original_port, dnat)
    } else {
        None
    };
    let unpoliced = from_node && local[1] && dest.kind == EndpointKind::Wep;
    Ends { ends: [source, dest], service, local, unpoliced }
}

/// The node's own end is that of a pod on its host network, where the process there runs in one.
pub(super) fn name_host_pods(
    cluster: &Cluster,
    ends: &mut [Arc<Endpoint>; 2],
    processes: &[Option<Arc<Process>>; 2],
    began: Timestamp,
) {
    for (end, process) in ends.iter_mut().zip(processes) {
        name_host_pod(cluster, end, process.as_deref(), began);
    }
}

/// The same for one end.
pub(super) fn name_host_pod(
    cluster: &Cluster,
    end: &mut Arc<Endpoint>,
    process: Option<&Process>,
    began: Timestamp,
) {
    let uid = process.and_then(|process| process.pod_uid.as_ref());
    if let Some(pod) = host_pod(cluster, end, uid, began) {
        *end = pod.clone();
    }
}

/// The pod on the host network that an end is: only one of the node's own may be. `uid`: of the pod that a process there
/// runs in.
pub(super) fn host_pod<'a>(
    cluster: &'a Cluster,
    end: &Endpoint,
    uid: Option<&Arc<str>>,
    at: Timestamp,
) -> Option<&'a Arc<Endpoint>> {
    cluster.host_pod_at(uid.filter(|_| end.is_bare_node)?, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Object, ObjectKind, Pod};

    #[test]
    fn what_was_known_stays_unless_the_address_was_anothers_by_then() {
        let t = |seconds: i64| Timestamp(seconds * 1_000_000_000);
        let ip: IpAddr = "10.1.0.1".parse().unwrap();
        let pod = |name: &str, created| {
            Object::Pod(Pod {
                namespace: "ns".into(),
                name: name.into(),
                uid: Some(name.into()),
                node: Some("n1".into()),
                ips: vec![ip],
                created: Some(t(created)),
                ..Pod::default()
            })
        };
        let mut cluster = Cluster::new("n1".into());
        cluster.apply(pod("old", 1), Timestamp::MIN);
        let addresses = Addresses { src: ip, dst: "10.1.0.9".parse().unwrap(), src_port: 1, dst_port: 2 };
        let settings = Settings::default();
        let ends = |cluster: &Cluster, began, known: &[Option<Arc<Endpoint>>; 2]| {
            endpoints(cluster, &settings, &addresses, began, known)
        };
        let name = |ends: &[Option<Arc<Endpoint>>; 2]| ends[0].as_ref().map(|end| end.name.to_string());
        // Cut off since 40 s: both flows are named by what was known.
        let early = ends(&cluster, t(45), &[None, None]);
        let late = ends(&cluster, t(70), &[None, None]);
        assert_eq!((name(&early).as_deref(), name(&late).as_deref()), (Some("old"), Some("old")));
        // At 100 s it turns out that another had the address from 60 s on at the latest.
        cluster.replace_all(ObjectKind::Pod, vec![pod("new", 60)], t(40), t(100));
        assert_eq!(name(&ends(&cluster, t(45), &early)).as_deref(), Some("old"));
        assert_eq!(name(&ends(&cluster, t(70), &late)).as_deref(), Some("new"));
        // Nobody else is known: what was known stays.
        cluster.replace_all(ObjectKind::Pod, vec![], t(110), t(120));
        cluster.expire(t(1000));
        assert_eq!(name(&ends(&cluster, t(45), &early)).as_deref(), Some("old"));
    }
}
