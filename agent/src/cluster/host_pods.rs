//! Pods on the local node's host network, by the uid that their cgroups are named by.
//!
//! In: such pods as they are applied and deleted. Out: the endpoint that stands for one, at a time. What always holds: a
//! pod that is gone stays for [`GRACE`], and no more than [`GONE`] of them; a uid is never another pod's, and the API server's
//! word (`metadata.uid`) goes before an annotation's. Such a pod has
//! the node's addresses, which it shares with all others there: it is a host endpoint (`hep`) with a pod's name, no
//! policy selects it, and only the process at a connection's end tells that the end is its own.

use std::sync::Arc;

use super::{GRACE, Map, ObjectName};
use crate::model::{Endpoint, EndpointKind, Policed, Timestamp};

/// Pods kept that are gone; beyond it the one that went first is forgotten.
const GONE: usize = 1024;

#[derive(Clone)]
struct HostPod {
    endpoint: Arc<Endpoint>,
    /// By an annotation, which anyone may write.
    claimed: bool,
    /// Since when it is gone.
    until: Option<Timestamp>,
}

#[derive(Clone, Default)]
pub(super) struct HostPods {
    by_uid: Map<Arc<str>, HostPod>,
    /// Of those that are there.
    uids: Map<ObjectName, Arc<str>>,
}

impl HostPods {
    pub fn is_empty(&self) -> bool {
        self.by_uid.is_empty()
    }

    pub fn at(&self, uid: &str, at: Timestamp) -> Option<&Arc<Endpoint>> {
        let pod = self.by_uid.get(uid)?;
        pod.until.is_none_or(|until| at < until.plus(GRACE)).then_some(&pod.endpoint)
    }

    pub fn named(&self, name: &ObjectName) -> Option<&Arc<Endpoint>> {
        Some(&self.by_uid.get(self.uids.get(name)?)?.endpoint)
    }

    /// `uid`: as cgroups have it; another than the pod's own is what a mirror pod says of its static pod. `pod`: the pod as an
    /// endpoint with addresses of its own would be.
    pub fn insert(&mut self, name: &ObjectName, uid: Arc<str>, pod: &Endpoint, at: Timestamp) {
        let claimed = pod.uid.as_ref() != Some(&uid);
        if self.uids.get(name).is_some_and(|known| *known != uid) {
            self.remove(name, at);
        }
        let holder = self.by_uid.get(&uid).filter(|_| !self.uids.contains_key(name));
        if let Some(HostPod { endpoint, claimed: holder_claims, until: None }) = holder {
            if claimed || !holder_claims {
                return;
            }
            let thief = ObjectName { namespace: endpoint.namespace.clone(), name: endpoint.name.clone() };
            self.uids.remove(&thief);
        }
        let endpoint = Endpoint {
            kind: EndpointKind::Hep,
            is_bare_node: true,
            policed: Policed::default(),
            ..pod.clone()
        };
        self.uids.insert(name.clone(), uid.clone());
        let known = self.by_uid.get(&uid).filter(|known| *known.endpoint == endpoint);
        let endpoint = known.map_or_else(|| Arc::new(endpoint), |known| known.endpoint.clone());
        self.by_uid.insert(uid, HostPod { endpoint, claimed, until: None });
    }

    /// Not there any more, or not on the host network.
    pub fn remove(&mut self, name: &ObjectName, at: Timestamp) {
        if !self.uids.contains_key(name) {
            return;
        }
        let Some(uid) = self.uids.remove(name) else { return };
        if let Some(pod) = self.by_uid.get_mut(&uid) {
            pod.until = Some(at);
        }
        if self.by_uid.len().saturating_sub(self.uids.len()) > GONE {
            let gone = self.by_uid.iter().filter_map(|(uid, pod)| Some((pod.until?, uid)));
            if let Some(first) = gone.min().map(|(_, uid)| uid.clone()) {
                self.by_uid.remove(&first);
            }
        }
    }

    /// Forgets what is gone since longer than the grace; says whether there was any.
    pub fn expire(&mut self, now: Timestamp) -> bool {
        if self.by_uid.len() <= self.uids.len() {
            return false;
        }
        let before = self.by_uid.len();
        self.by_uid.retain(|_, pod| pod.until.is_none_or(|until| until.plus(GRACE) > now));
        self.by_uid.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Cluster, Object, ObjectKind, ObjectRef, Pod};
    use crate::model::Labels;

    fn t(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000_000)
    }

    fn pod(name: &str, uid: &str) -> Pod {
        Pod {
            namespace: "kube-system".into(),
            name: name.into(),
            uid: Some(uid.into()),
            node: Some("node-1".into()),
            host_network: true,
            ..Pod::default()
        }
    }

    fn name(cluster: &Cluster, uid: &str, at: i64) -> Option<String> {
        cluster.host_pod_at(uid, t(at)).map(|end| end.name.to_string())
    }

    #[test]
    fn a_pod_of_the_host_network_is_known_by_its_uid_and_for_a_while_after_its_end() {
        let mut cluster = Cluster::new("node-1".into());
        cluster.apply(Object::Pod(pod("proxy", "a")), t(0));
        cluster.apply(Object::Pod(Pod { mirrored_uid: Some("hash".into()), ..pod("etcd", "b") }), t(0));
        cluster.apply(Object::Pod(Pod { node: Some("node-2".into()), ..pod("elsewhere", "c") }), t(0));
        cluster.apply(Object::Pod(Pod { host_network: false, ..pod("own-address", "d") }), t(0));
        let known =
            |cluster: &Cluster, at| ["a", "b", "c", "d", "hash"].map(|uid| name(cluster, uid, at).is_some());
        assert_eq!(known(&cluster, 1), [true, false, false, false, true]);
        let proxy = cluster.host_pod_at("a", t(1)).cloned().unwrap();
        assert!(proxy.kind == EndpointKind::Hep && proxy.is_bare_node && cluster.is_local(&proxy));

        // Relabelled, it is the same in another version.
        let labels = Labels::new([("k".into(), "v".into())]);
        cluster.apply(Object::Pod(Pod { labels, ..pod("proxy", "a") }), t(2));
        let newest = cluster.current(&proxy).unwrap();
        assert!(!newest.labels.same(&proxy.labels) && newest.same_identity(&proxy));

        // Another of the same name, and a deletion.
        cluster.apply(Object::Pod(pod("proxy", "e")), t(10));
        assert!(cluster.current(&proxy).is_none());
        let etcd = ObjectRef {
            kind: ObjectKind::Pod,
            namespace: Some("kube-system".into()),
            name: "etcd".into(),
            uid: None,
        };
        cluster.delete(&etcd, t(10));
        assert_eq!(["a", "e", "hash"].map(|uid| name(&cluster, uid, 19).is_some()), [true, true, true]);
        assert_eq!(["a", "e", "hash"].map(|uid| name(&cluster, uid, 20).is_some()), [false, true, false]);
        cluster.expire(t(20));
        assert_eq!(cluster.host_pods.by_uid.len(), 1);
    }

    #[test]
    fn a_pod_that_claims_the_uid_of_another_does_not_get_it() {
        let mut cluster = Cluster::new("node-1".into());
        cluster.apply(Object::Pod(pod("proxy", "a")), t(0));
        cluster.apply(Object::Pod(Pod { mirrored_uid: Some("a".into()), ..pod("thief", "b") }), t(1));
        assert_eq!(name(&cluster, "a", 2).as_deref(), Some("proxy"));
        let thief = ObjectRef {
            kind: ObjectKind::Pod,
            namespace: Some("kube-system".into()),
            name: "thief".into(),
            uid: None,
        };
        cluster.delete(&thief, t(2));
        assert_eq!(name(&cluster, "a", 60).as_deref(), Some("proxy"));
        // Nor if it comes first.
        cluster.apply(Object::Pod(Pod { mirrored_uid: Some("z".into()), ..pod("thief", "y") }), t(3));
        assert_eq!(name(&cluster, "z", 4).as_deref(), Some("thief"));
        cluster.apply(Object::Pod(pod("late", "z")), t(5));
        assert_eq!(name(&cluster, "z", 6).as_deref(), Some("late"));
        cluster.delete(&thief, t(7));
        assert_eq!(name(&cluster, "z", 60).as_deref(), Some("late"));
        // When its owner is gone it is free.
        let owner = ObjectRef { name: "proxy".into(), ..thief };
        cluster.delete(&owner, t(60));
        cluster.apply(Object::Pod(Pod { mirrored_uid: Some("a".into()), ..pod("next", "c") }), t(61));
        assert_eq!(name(&cluster, "a", 62).as_deref(), Some("next"));
    }

    #[test]
    fn pods_that_are_gone_are_bounded() {
        let mut pods = HostPods::default();
        let mut cluster = Cluster::new("node-1".into());
        cluster.apply(Object::Pod(pod("x", "x")), t(0));
        let endpoint = cluster.pods().next().map(|pod| pod.endpoint.clone()).unwrap();
        let name = ObjectName { namespace: None, name: "x".into() };
        for n in 0..3000 {
            pods.insert(&name, n.to_string().into(), &endpoint, t(n));
        }
        assert_eq!(pods.by_uid.len(), GONE + 1);
        assert!(pods.at("2999", t(3000)).is_some() && pods.at("0", t(0)).is_none());
    }
}
