//! What policy asks of the cluster: inherited labels, every owner of an address, what stands behind a service.
//!
//! In: names and addresses. Out: borrowed objects. What always holds: the epochs grow with each change that an
//! answer of their kind may depend on, so that whoever keeps an answer knows when to ask again.
//! Which labels an endpoint has in the end, and what a selector says of them, is deliberately not here: see `policy`.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Cluster, KnownHostEndpoint, KnownPod, KnownSet, ObjectName, ServiceEndpoints};
use crate::model::{Endpoint, Labels, canonical};

impl Cluster {
    /// Counts changes of labels that endpoints inherit (namespaces', service accounts').
    pub fn inherited_epoch(&self) -> u64 {
        self.inherited_epoch
    }

    /// Counts changes of what stands behind services.
    pub fn backends_epoch(&self) -> u64 {
        self.backends_epoch
    }

    /// `None`: no such namespace is known.
    pub fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name)
    }

    /// `None`: no such service account is known.
    pub fn service_account_labels(&self, namespace: &Arc<str>, name: &Arc<str>) -> Option<&Labels> {
        let name = ObjectName { namespace: Some(namespace.clone()), name: name.clone() };
        self.service_accounts.get(&name)
    }

    /// Every endpoint that owns `ip` now. Several may for a moment, and Calico counts them all.
    pub fn holders(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.owners.holders(canonical(ip))
    }

    /// Every network set that holds `ip`; one with several prefixes around it comes more than once.
    pub fn each_network_set(&self, ip: IpAddr, mut found: impl FnMut(&Arc<Endpoint>)) {
        self.networks.each(canonical(ip), &mut found);
    }

    /// What stands behind services: EndpointSlices, and the Endpoints of services that have none.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<ServiceEndpoints>> {
        let sliced: std::collections::HashSet<_> = self
            .slices
            .values()
            .filter_map(|slice| Some((&slice.namespace, slice.service.as_ref()?)))
            .collect();
        let rest = self.endpoints.values().filter(move |endpoints| {
            endpoints
                .service
                .as_ref()
                .is_some_and(|service| !sliced.contains(&(&endpoints.namespace, service)))
        });
        self.slices.values().chain(rest)
    }

    pub fn pods(&self) -> impl Iterator<Item = &Arc<KnownPod>> {
        self.pods.values()
    }

    pub fn host_endpoints(&self) -> impl Iterator<Item = &Arc<KnownHostEndpoint>> {
        self.host_endpoints.values()
    }

    pub fn network_sets(&self) -> impl Iterator<Item = &Arc<KnownSet>> {
        self.sets.values()
    }
}
