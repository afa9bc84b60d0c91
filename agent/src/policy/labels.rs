//! The effective labels of an endpoint or network set, in layers: what selectors are matched against.
//!
//! In: an endpoint, the cluster (namespaces, service accounts), the profiles. Out: an [`Identity`], which answers
//! for every label and can be compared: endpoints with equal identities match the same selectors for ever.
//! What always holds: a pod cannot give itself what it inherits (its own `pcns.` and `pcsa.` labels are left out), nor
//! its namespace, orchestrator and service account; inherited labels are layers, never copied.
//! Sources: Calico's workloadendpointprocessor, networksetprocessor and the conversion of namespaces and service
//! accounts to profiles (policy semantics, section 4). Calico's IP sets are made of addresses: which identities an
//! address has is [`members`].

use std::net::IpAddr;
use std::sync::Arc;

use super::Policies;
use super::selector::Lookup;
use crate::cluster::Cluster;
use crate::model::{Endpoint, EndpointKind, Labels};

const NAMESPACE: &str = "projectcalico.org/namespace";
const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";
const SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";
/// Inherited from the namespace and from the service account, as `pcns.` and `pcsa.` labels.
const NAME: &str = "projectcalico.org/name";
/// The API server gives it to every namespace, also to one whose manifest does not show it.
const METADATA_NAME: &str = "kubernetes.io/metadata.name";
const OF_NAMESPACE: &str = "pcns.";
const OF_SERVICE_ACCOUNT: &str = "pcsa.";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    is_pod: bool,
    own: Labels,
    namespace: Option<Arc<str>>,
    service_account: Option<Arc<str>>,
    parents: Vec<Parent>,
}

/// Where labels are inherited from; the first that has a label gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Parent {
    Namespace(Arc<str>, Labels),
    ServiceAccount(Arc<str>, Labels),
    Profile(Labels),
}

impl Identity {
    pub fn of(endpoint: &Endpoint, cluster: &Cluster, policies: &Policies) -> Self {
        let is_pod = endpoint.kind == EndpointKind::Wep;
        let service_account = endpoint.policed.service_account.clone().filter(|_| is_pod);
        let mut parents = Vec::new();
        if let Some(namespace) = &endpoint.namespace {
            parents.push(of_namespace(namespace, cluster));
            if let Some(account) = &service_account {
                let labels = cluster.service_account_labels(namespace, account).cloned().unwrap_or_default();
                parents.push(Parent::ServiceAccount(account.clone(), labels));
            }
        }
        for profile in endpoint.policed.profiles.iter() {
            parents.extend(of_profile(profile, cluster, policies));
        }
        Self {
            is_pod,
            own: endpoint.labels.clone(),
            namespace: endpoint.namespace.clone(),
            service_account,
            parents,
        }
    }
}

fn of_namespace(name: &Arc<str>, cluster: &Cluster) -> Parent {
    Parent::Namespace(name.clone(), cluster.namespace_labels(name).cloned().unwrap_or_default())
}

fn of_profile(name: &Arc<str>, cluster: &Cluster, policies: &Policies) -> Option<Parent> {
    match KubernetesProfile::parse(name) {
        Some(KubernetesProfile::Namespace(namespace)) => {
            let labels = cluster.namespace_labels(namespace)?;
            Some(Parent::Namespace(namespace.into(), labels.clone()))
        }
        Some(KubernetesProfile::ServiceAccount(namespace, account)) => {
            let labels = cluster.service_account_labels(&namespace.into(), &account.into())?;
            Some(Parent::ServiceAccount(account.into(), labels.clone()))
        }
        None => policies.profile(name).map(|profile| Parent::Profile(profile.labels_to_apply.clone())),
    }
}

/// Profiles that stand for Kubernetes' objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubernetesProfile<'a> {
    /// `kns.<namespace>`: allows everything.
    Namespace(&'a str),
    /// `ksa.<namespace>.<name>`: labels alone, no rules.
    ServiceAccount(&'a str, &'a str),
}

impl<'a> KubernetesProfile<'a> {
    pub fn parse(name: &'a str) -> Option<Self> {
        if let Some(namespace) = name.strip_prefix("kns.") {
            return Some(Self::Namespace(namespace));
        }
        // A namespace's name has no dots.
        let (namespace, account) = name.strip_prefix("ksa.")?.split_once('.')?;
        Some(Self::ServiceAccount(namespace, account))
    }
}

impl Lookup for Identity {
    fn label(&self, key: &str) -> Option<&str> {
        let special = match key {
            NAMESPACE => self.namespace.as_deref(),
            ORCHESTRATOR if self.is_pod => Some("k8s"),
            SERVICE_ACCOUNT => self.service_account.as_deref(),
            _ => None,
        };
        let inherited = key.starts_with(OF_NAMESPACE) || key.starts_with(OF_SERVICE_ACCOUNT);
        let own = || if self.is_pod && inherited { None } else { self.own.get(key).map(|value| &**value) };
        special.or_else(own).or_else(|| self.parents.iter().find_map(|parent| parent.label(key)))
    }
}

impl Parent {
    fn label(&self, key: &str) -> Option<&str> {
        let (prefix, name, labels) = match self {
            Self::Profile(labels) => return labels.get(key).map(|value| &**value),
            Self::Namespace(name, labels) => (OF_NAMESPACE, name, labels),
            Self::ServiceAccount(name, labels) => (OF_SERVICE_ACCOUNT, name, labels),
        };
        let key = key.strip_prefix(prefix)?;
        let is_namespace = matches!(self, Self::Namespace(..));
        match key {
            NAME => Some(name),
            METADATA_NAME if is_namespace => Some(labels.get(key).unwrap_or(name)),
            _ => labels.get(key).map(|value| &**value),
        }
    }
}

/// Everything that an address is: the endpoint that has it, others that claim it too, all network sets around it.
pub fn members(cluster: &Cluster, ip: IpAddr, end: Option<&Arc<Endpoint>>) -> Vec<Arc<Endpoint>> {
    let mut members: Vec<Arc<Endpoint>> =
        end.into_iter().filter(|end| owns_addresses(end)).cloned().collect();
    if let Some(end) = members.first().cloned() {
        // Others count as long as this one has the address at the same time.
        if cluster.holders(ip).any(|holder| holder.same_identity(&end)) {
            members.extend(cluster.holders(ip).filter(|holder| !holder.same_identity(&end)).cloned());
        }
    }
    cluster.each_network_set(ip, |set| {
        if !members.iter().any(|known| Arc::ptr_eq(known, set)) {
            members.push(set.clone());
        }
    });
    members
}

/// A pod or a HostEndpoint: network sets are found by address, and the bare node has no object that could match.
pub fn owns_addresses(end: &Endpoint) -> bool {
    matches!(end.kind, EndpointKind::Wep | EndpointKind::Hep) && !end.is_bare_node
}
