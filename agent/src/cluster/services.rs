//! Which service a connection was opened to, by the address and port before DNAT.
//!
//! In: services as they are applied. Out: the service's names for (address, port, protocol), or for a node port.
//! What always holds: where several services or ports tie, each component in which they differ is `"*"`; the answer
//! does not depend on the order in which services were applied. Which backends a service has is deliberately not here.
//!
//! Source: calico-facts 2.6; load balancer addresses are ours.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Map, Service};
use crate::model::{Proto, ServiceName};

/// All that is bound to one address and port, in order, and what is said of it. Nearly always it is one.
#[derive(Clone)]
struct Bound {
    all: Arc<[Arc<ServiceName>]>,
    said: Arc<ServiceName>,
}

impl Bound {
    fn of(all: Vec<Arc<ServiceName>>) -> Option<Self> {
        let said = say(&all)?;
        Some(Self { all: all.into(), said })
    }
}

#[derive(Clone, Default)]
pub(super) struct Services {
    by_address: Map<(IpAddr, u16, Proto), Bound>,
    by_node_port: Map<(u16, Proto), Bound>,
}

impl Services {
    /// `node_ports`: the address may be a node's, so that node ports count where no address matches.
    pub fn find(&self, proto: Proto, ip: IpAddr, port: u16, node_ports: bool) -> Option<Arc<ServiceName>> {
        let by_address = self.by_address.get(&(ip, port, proto));
        let by_node_port = || if node_ports { self.by_node_port.get(&(port, proto)) } else { None };
        by_address.or_else(by_node_port).map(|bound| bound.said.clone())
    }

    pub fn insert(&mut self, service: &Service) {
        for port in &service.ports {
            for ip in &service.ips {
                bind(
                    &mut self.by_address,
                    (*ip, port.port, port.proto),
                    name(service, &port.name, port.port),
                );
            }
            if let Some(node_port) = port.node_port {
                bind(&mut self.by_node_port, (node_port, port.proto), name(service, &port.name, node_port));
            }
        }
    }

    pub fn remove(&mut self, service: &Service) {
        for port in &service.ports {
            for ip in &service.ips {
                unbind(
                    &mut self.by_address,
                    (*ip, port.port, port.proto),
                    &name(service, &port.name, port.port),
                );
            }
            if let Some(node_port) = port.node_port {
                unbind(
                    &mut self.by_node_port,
                    (node_port, port.proto),
                    &name(service, &port.name, node_port),
                );
            }
        }
    }
}

fn name(service: &Service, port_name: &Option<Arc<str>>, port: u16) -> ServiceName {
    ServiceName {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        port_name: port_name.clone().unwrap_or_else(|| "-".into()),
        port,
    }
}

fn bind<K: Clone + Eq + std::hash::Hash>(map: &mut Map<K, Bound>, key: K, name: ServiceName) {
    let mut all = map.get(&key).map(|bound| bound.all.to_vec()).unwrap_or_default();
    if let Err(place) = all.binary_search_by(|known| (**known).cmp(&name)) {
        all.insert(place, Arc::new(name));
    }
    if let Some(bound) = Bound::of(all) {
        map.insert(key, bound);
    }
}

fn unbind<K: Clone + Eq + std::hash::Hash>(map: &mut Map<K, Bound>, key: K, name: &ServiceName) {
    let Some(bound) = map.get(&key) else { return };
    let left = bound.all.iter().filter(|known| ***known != *name).cloned().collect();
    match Bound::of(left) {
        Some(bound) => {
            map.insert(key, bound);
        }
        None => {
            map.remove(&key);
        }
    }
}

/// What all have in common, `"*"` where they differ. `None` of nothing.
fn say(all: &[Arc<ServiceName>]) -> Option<Arc<ServiceName>> {
    let first = all.first()?;
    if all.len() == 1 {
        return Some(first.clone());
    }
    let same = |part: fn(&ServiceName) -> &Arc<str>| {
        let value = part(first);
        if all.iter().all(|other| part(other) == value) { value.clone() } else { "*".into() }
    };
    Some(Arc::new(ServiceName {
        namespace: same(|s| &s.namespace),
        name: same(|s| &s.name),
        port_name: same(|s| &s.port_name),
        port: first.port,
    }))
}
