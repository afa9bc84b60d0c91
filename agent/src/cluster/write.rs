//! Applying and deleting objects: the only place where a [`Cluster`] changes.
//!
//! In: an [`Object`] or an [`ObjectRef`] and the time at which it was observed; `Timestamp::MIN` for what was there
//! before the first event. Out: the changed cluster, with a new version if anything changed.
//! What always holds: an endpoint's new labels make a new version of the same endpoint in the same ownership of its
//! addresses; another uid under the same name is another endpoint; applying the same object again changes nothing.
//! Time is taken as it comes: that it never goes backwards is the caller's promise.

use std::net::IpAddr;
use std::sync::Arc;

use super::endpoints::{Claim, GRACE};
use super::shared::Shared;
use super::{
    Cluster, HostEndpoint, KnownHostEndpoint, KnownPod, KnownSet, Map, NetworkSet, Node, Object, ObjectKind,
    ObjectName, ObjectRef, Pod, Service,
};
use crate::model::{Endpoint, EndpointKind, Policed, Timestamp};

/// An endpoint and what it owns: one side of a change of ownership.
#[derive(Clone, Copy)]
struct Holding<'a> {
    endpoint: &'a Arc<Endpoint>,
    ips: &'a [IpAddr],
    claim: Claim,
}

impl Cluster {
    /// Adds the object, or takes it in place of the one of the same kind and name.
    pub fn apply(&mut self, object: Object, at: Timestamp) {
        self.inhabited = true;
        let (kind, name) = (object.kind(), object.object_name());
        let changed = match object {
            Object::Namespace(o) => replace(&mut self.namespaces, o.name, o.labels),
            Object::ServiceAccount(o) => replace(&mut self.service_accounts, name, o.labels),
            Object::EndpointSlice(o) => replace(&mut self.slices, name, Arc::new(o)),
            Object::Endpoints(o) => replace(&mut self.endpoints, name, Arc::new(o)),
            Object::Pod(pod) => self.apply_pod(name, pod, at),
            Object::Node(node) => self.apply_node(node, at),
            Object::Service(service) => self.apply_service(name, service),
            Object::NetworkSet(set) => self.apply_set(name, set),
            Object::HostEndpoint(hep) => self.apply_host_endpoint(hep, at),
        };
        self.count_change(kind, changed);
    }

    fn count_change(&mut self, kind: ObjectKind, changed: bool) {
        let changed = u64::from(changed);
        self.version += changed;
        match kind {
            ObjectKind::Namespace | ObjectKind::ServiceAccount => self.inherited_epoch += changed,
            ObjectKind::EndpointSlice | ObjectKind::Endpoints => self.backends_epoch += changed,
            _ => {}
        }
    }

    /// Takes the object away; its addresses stay resolvable for [`super::GRACE`]. One that is not known, or has
    /// another uid than the reference, is left alone.
    pub fn delete(&mut self, object: &ObjectRef, at: Timestamp) {
        let name = ObjectName { namespace: object.namespace.clone(), name: object.name.clone() };
        let other_uid =
            |known: &Endpoint| object.uid.is_some() && known.uid.is_some() && known.uid != object.uid;
        let changed = match object.kind {
            ObjectKind::Namespace => self.namespaces.remove(&object.name).is_some(),
            ObjectKind::ServiceAccount => self.service_accounts.remove(&name).is_some(),
            ObjectKind::EndpointSlice => self.slices.remove(&name).is_some(),
            ObjectKind::Endpoints => self.endpoints.remove(&name).is_some(),
            ObjectKind::Pod => match self.pods.get(&name) {
                Some(known) if !other_uid(&known.endpoint) => self.delete_pod(&name, at),
                _ => false,
            },
            ObjectKind::Node => {
                let known = self.nodes.remove(&object.name).is_some();
                self.follow_node(&object.name, at);
                known
            }
            ObjectKind::Service => match self.known_services.remove(&name) {
                Some(service) => {
                    self.services.remove(&service);
                    true
                }
                None => false,
            },
            ObjectKind::NetworkSet | ObjectKind::GlobalNetworkSet => match self.sets.remove(&name) {
                Some(set) => {
                    set.nets.iter().for_each(|net| self.networks.remove(*net, &set.endpoint));
                    true
                }
                None => false,
            },
            ObjectKind::HostEndpoint => match self.host_endpoints.get(&object.name) {
                Some(known) if !other_uid(&known.endpoint) => self.delete_host_endpoint(&object.name, at),
                _ => false,
            },
        };
        self.count_change(object.kind, changed);
    }

    /// These are all objects of the kind that there are, at `at`: the swap at the end of a relist. What is not among
    /// them, or is there as another of the same name, has been gone since `gone` (not later than `at`): nobody was
    /// looking. Objects of other kinds among them are applied too.
    pub fn replace_all(&mut self, kind: ObjectKind, objects: Vec<Object>, gone: Timestamp, at: Timestamp) {
        let present: std::collections::HashSet<_> =
            objects.iter().filter(|o| o.kind() == kind).map(Object::object_name).collect();
        let mut absent: Vec<_> =
            self.names_of(kind).into_iter().filter(|name| !present.contains(name)).collect();
        let replaced = objects.iter().filter(|o| o.kind() == kind && self.is_another(o));
        absent.extend(replaced.map(Object::object_name));
        absent.sort();
        for ObjectName { namespace, name } in absent {
            self.delete(&ObjectRef { kind, namespace, name, uid: None }, gone);
        }
        for object in objects {
            self.apply(object, at);
        }
    }

    /// Forgets the owners of addresses whose grace ended by `now`. Names are asked for the time when a flow began,
    /// so `now` must not be later than the beginning of the oldest flow whose names are not settled.
    pub fn expire(&mut self, now: Timestamp) {
        self.version += u64::from(self.owners.expire(now) | self.host_pods.expire(now));
    }

    /// A pod or host endpoint of the same name is known, with another uid.
    fn is_another(&self, object: &Object) -> bool {
        let (known, uid) = match object {
            Object::Pod(pod) => (self.pods.get(&object.object_name()).map(|known| &known.endpoint), &pod.uid),
            Object::HostEndpoint(hep) => {
                (self.host_endpoints.get(&hep.name).map(|known| &known.endpoint), &hep.uid)
            }
            _ => return false,
        };
        known.is_some_and(|known| known.uid != *uid)
    }

    fn names_of(&self, kind: ObjectKind) -> Vec<ObjectName> {
        let global = |name: &Arc<str>| ObjectName { namespace: None, name: name.clone() };
        match kind {
            ObjectKind::Namespace => self.namespaces.keys().map(global).collect(),
            ObjectKind::ServiceAccount => self.service_accounts.keys().cloned().collect(),
            ObjectKind::Pod => self.pods.keys().cloned().collect(),
            ObjectKind::Node => self.nodes.names().map(global).collect(),
            ObjectKind::Service => self.known_services.keys().cloned().collect(),
            ObjectKind::EndpointSlice => self.slices.keys().cloned().collect(),
            ObjectKind::Endpoints => self.endpoints.keys().cloned().collect(),
            ObjectKind::NetworkSet => self.sets.keys().filter(|n| n.namespace.is_some()).cloned().collect(),
            ObjectKind::GlobalNetworkSet => {
                self.sets.keys().filter(|n| n.namespace.is_none()).cloned().collect()
            }
            ObjectKind::HostEndpoint => self.host_endpoints.keys().map(global).collect(),
        }
    }

    fn apply_pod(&mut self, name: ObjectName, pod: Pod, at: Timestamp) -> bool {
        let old = self.pods.get(&name).cloned();
        let owns = !pod.host_network && !pod.finished;
        if self.shared.is_beyond(self.pods.len()) {
            self.shared = Shared::of(self.pods.values().map(|pod| &*pod.endpoint));
        }
        let shared = &mut self.shared;
        let name_aggr = match &pod.generate_name {
            Some(prefix) if !prefix.is_empty() => shared.text(format!("{prefix}*").into()),
            _ => pod.name.clone(),
        };
        let namespace = shared.text(pod.namespace);
        let name = ObjectName { namespace: Some(namespace.clone()), name: pod.name.clone() };
        let cgroup_uid = pod.mirrored_uid.or_else(|| pod.uid.clone());
        let endpoint = Endpoint {
            kind: EndpointKind::Wep,
            namespace: Some(namespace),
            name: pod.name,
            name_aggr,
            labels: shared.labels(pod.labels),
            node: pod.node.map(|node| shared.text(node)),
            uid: pod.uid,
            created: pod.created,
            is_bare_node: false,
            policed: Policed {
                service_account: pod.service_account.map(|account| shared.text(account)),
                ports: shared.ports(pod.ports),
                profiles: Arc::default(),
            },
        };
        let new = Arc::new(KnownPod {
            endpoint: self.version_of(old.as_ref().map(|old| &old.endpoint), endpoint),
            ips: if owns { distinct(pod.ips) } else { Arc::default() },
            host_network: pod.host_network,
            finished: pod.finished,
            leaving: pod.deletion.is_some(),
        });
        if old.as_ref() == Some(&new) {
            return false;
        }
        let local = |pod: &KnownPod| usize::from(pod.endpoint.node.as_ref() == Some(&self.node));
        self.local_pods = self.local_pods.saturating_sub(old.as_deref().map_or(0, local)) + local(&new);
        // Told late: what it owns it has owned for a while. Clocks of nodes differ, so that this goes only so far back.
        let since = match pod.networked {
            Some(since) if at > Timestamp::MIN => since.max(at.minus(GRACE)).min(at),
            _ => at,
        };
        self.hand_over(old.as_deref().map(KnownPod::holding), Some(new.holding()), at, since);
        let is_host_pod = new.host_network && new.endpoint.node.as_ref() == Some(&self.node);
        match cgroup_uid.filter(|_| is_host_pod) {
            Some(uid) => self.host_pods.insert(&name, uid, &new.endpoint, at),
            None => self.host_pods.remove(&name, at),
        }
        self.pods.insert(name, new);
        true
    }

    fn delete_pod(&mut self, name: &ObjectName, at: Timestamp) -> bool {
        let Some(old) = self.pods.remove(name) else { return false };
        if old.endpoint.node.as_ref() == Some(&self.node) {
            self.local_pods = self.local_pods.saturating_sub(1);
        }
        self.host_pods.remove(name, at);
        self.hand_over(Some(old.holding()), None, at, at);
        true
    }

    fn apply_service(&mut self, name: ObjectName, service: Service) -> bool {
        match self.known_services.get(&name) {
            Some(known) if **known == service => return false,
            Some(known) => self.services.remove(known),
            None => {}
        }
        self.services.insert(&service);
        self.known_services.insert(name, Arc::new(service));
        true
    }

    fn apply_set(&mut self, name: ObjectName, set: NetworkSet) -> bool {
        let old = self.sets.get(&name).cloned();
        let endpoint = Endpoint {
            kind: EndpointKind::Ns,
            namespace: set.namespace,
            name_aggr: set.name.clone(),
            name: set.name,
            labels: set.labels,
            node: None,
            uid: None,
            created: None,
            is_bare_node: false,
            policed: Policed::default(),
        };
        let new = Arc::new(KnownSet {
            endpoint: self.version_of(old.as_ref().map(|old| &old.endpoint), endpoint),
            nets: set.nets.into(),
        });
        if old.as_ref() == Some(&new) {
            return false;
        }
        if let Some(old) = old {
            old.nets.iter().for_each(|net| self.networks.remove(*net, &old.endpoint));
        }
        new.nets.iter().for_each(|net| self.networks.insert(*net, &new.endpoint));
        self.sets.insert(name, new);
        true
    }

    fn apply_node(&mut self, node: Node, at: Timestamp) -> bool {
        if self.nodes.get(&node.name).is_some_and(|known| **known == node) {
            return false;
        }
        let name = node.name.clone();
        self.nodes.insert(node);
        self.follow_node(&name, at);
        true
    }

    /// Host endpoints that stand for all interfaces of a node own the addresses that the node has now.
    fn follow_node(&mut self, node: &Arc<str>, at: Timestamp) {
        let Some(names) = self.host_endpoints_of.get(node).cloned() else { return };
        for name in &names {
            let Some(known) = self.host_endpoints.get(name).cloned() else { continue };
            self.apply_host_endpoint(known.resource.clone(), at);
        }
    }

    fn apply_host_endpoint(&mut self, hep: HostEndpoint, at: Timestamp) -> bool {
        let old = self.host_endpoints.get(&hep.name).cloned();
        let endpoint = Endpoint {
            kind: EndpointKind::Hep,
            namespace: None,
            name: hep.name.clone(),
            name_aggr: hep.node.clone(),
            labels: hep.labels.clone(),
            node: Some(hep.node.clone()),
            uid: hep.uid.clone(),
            created: hep.created,
            is_bare_node: false,
            policed: Policed {
                service_account: None,
                ports: hep.ports.clone().into(),
                profiles: hep.profiles.clone().into(),
            },
        };
        let ips = if hep.expected_ips.is_empty() && hep.is_wildcard() {
            self.nodes.get(&hep.node).map(|node| node.addresses.clone()).unwrap_or_default()
        } else {
            hep.expected_ips.clone()
        };
        let new = Arc::new(KnownHostEndpoint {
            endpoint: self.version_of(old.as_ref().map(|old| &old.endpoint), endpoint),
            ips: distinct(ips),
            resource: hep,
        });
        if old.as_ref() == Some(&new) {
            return false;
        }
        if let Some(old) = &old {
            self.unlink_host_endpoint(old);
        }
        let HostEndpoint { name, node, expected_ips, .. } = &new.resource;
        if *node == self.node {
            self.nodes.add_local(expected_ips);
        }
        self.host_endpoints_of.entry(node.clone()).or_default().insert(name.clone());
        self.hand_over(old.as_deref().map(KnownHostEndpoint::holding), Some(new.holding()), at, at);
        self.host_endpoints.insert(name.clone(), new.clone());
        true
    }

    fn delete_host_endpoint(&mut self, name: &Arc<str>, at: Timestamp) -> bool {
        let Some(old) = self.host_endpoints.remove(name) else { return false };
        self.unlink_host_endpoint(&old);
        self.hand_over(Some(old.holding()), None, at, at);
        true
    }

    fn unlink_host_endpoint(&mut self, old: &KnownHostEndpoint) {
        let HostEndpoint { name, node, expected_ips, .. } = &old.resource;
        if *node == self.node {
            self.nodes.take_local(expected_ips);
        }
        if let Some(names) = self.host_endpoints_of.get_mut(node) {
            names.remove(name);
            if names.is_empty() {
                self.host_endpoints_of.remove(node);
            }
        }
    }

    /// The known version, if nothing changed; else the new one. Counts changed labels.
    fn version_of(&mut self, known: Option<&Arc<Endpoint>>, new: Endpoint) -> Arc<Endpoint> {
        match known {
            Some(known) if **known == new => known.clone(),
            Some(known) => {
                if known.same_identity(&new) && known.labels != new.labels {
                    self.labels_epoch += 1;
                }
                Arc::new(new)
            }
            None => Arc::new(new),
        }
    }

    /// Addresses change hands at `at`: from one version of an endpoint to another, between endpoints, or not at all.
    /// Those that are new to the new one are its own since `since`, which is not later.
    fn hand_over(
        &mut self,
        old: Option<Holding<'_>>,
        new: Option<Holding<'_>>,
        at: Timestamp,
        since: Timestamp,
    ) {
        let same = match (&old, &new) {
            (Some(old), Some(new)) => old.endpoint.same_identity(new.endpoint),
            _ => false,
        };
        if let Some(old) = old {
            let kept = new.filter(|_| same).map_or(&[][..], |new| new.ips);
            for ip in old.ips.iter().filter(|ip| kept.binary_search(ip).is_err()) {
                self.owners.close(*ip, old.endpoint, at);
            }
        }
        if let Some(new) = new {
            let kept = old.filter(|_| same).map_or(&[][..], |old| old.ips);
            let renewed =
                old.is_some_and(|old| !Arc::ptr_eq(old.endpoint, new.endpoint) || old.claim != new.claim);
            for ip in new.ips {
                if kept.binary_search(ip).is_err() {
                    self.owners.open(*ip, new.endpoint, new.claim, since);
                } else if renewed {
                    self.owners.renew(*ip, new.endpoint, new.claim, at);
                }
            }
        }
    }
}

impl KnownPod {
    fn holding(&self) -> Holding<'_> {
        let claim = if self.leaving { Claim::Leaving } else { Claim::Own };
        Holding { endpoint: &self.endpoint, ips: &self.ips, claim }
    }
}

impl KnownHostEndpoint {
    fn holding(&self) -> Holding<'_> {
        let claim = if self.resource.is_wildcard() { Claim::Wildcard } else { Claim::Own };
        Holding { endpoint: &self.endpoint, ips: &self.ips, claim }
    }
}

/// Says whether that changed anything.
fn replace<K, V>(map: &mut Map<K, V>, key: K, value: V) -> bool
where
    K: Clone + Eq + std::hash::Hash,
    V: Clone + PartialEq,
{
    if map.get(&key) == Some(&value) {
        return false;
    }
    map.insert(key, value);
    true
}

/// Canonical, in order, each once.
fn distinct(ips: Vec<IpAddr>) -> Arc<[IpAddr]> {
    let mut ips: Vec<_> = ips.into_iter().map(crate::model::canonical).collect();
    ips.sort();
    ips.dedup();
    ips.into()
}
