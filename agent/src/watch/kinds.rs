//! The kinds of objects that are watched, and where the API server has them.
//!
//! In: nothing. Out: for each kind its group, versions (the preferred one first) and plural, and what it is called in the
//! world. What always holds: a kind is watched in one version only; kinds that `decode` does not use cost the watch
//! alone. Configuration resources are no part of the world: who needs them follows them beside it ([`super::Link::raw`]).

use crate::cluster::ObjectKind;
use crate::model::PolicyKind;
use crate::policy::ResourceKind;
use crate::snapshot::Kind;

/// A kind, and where it may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub kind: &'static str,
    pub plural: &'static str,
    /// Group and version; the first that is served is watched. The core group is "".
    pub served: &'static [(&'static str, &'static str)],
    /// Every API server that we support has it: not looked up, and never taken for gone.
    pub always: bool,
    /// Watched only where the resource of this group, version and plural is not served.
    pub unless: Option<(&'static str, &'static str, &'static str)>,
}

const CORE: &[(&str, &str)] = &[("", "v1")];
const CALICO: &[(&str, &str)] = &[("projectcalico.org", "v3"), ("crd.projectcalico.org", "v1")];
const ADMIN: &[(&str, &str)] = &[
    ("policy.networking.k8s.io", "v1alpha1"),
    ("policy.networking.k8s.io", "v1beta1"),
    ("policy.networking.k8s.io", "v1"),
];
const CLUSTER: &[(&str, &str)] = &[
    ("policy.networking.k8s.io", "v1alpha2"),
    ("policy.networking.k8s.io", "v1beta1"),
    ("policy.networking.k8s.io", "v1"),
];

const fn always(
    kind: &'static str,
    plural: &'static str,
    served: &'static [(&'static str, &'static str)],
) -> Wanted {
    Wanted { kind, plural, served, always: true, unless: None }
}

const fn where_served(
    kind: &'static str,
    plural: &'static str,
    served: &'static [(&'static str, &'static str)],
) -> Wanted {
    Wanted { kind, plural, served, always: false, unless: None }
}

/// What the world is made of.
pub const WORLD: [(Wanted, Kind); 21] = [
    (always("Pod", "pods", CORE), Kind::Cluster(ObjectKind::Pod)),
    (always("Namespace", "namespaces", CORE), Kind::Cluster(ObjectKind::Namespace)),
    (always("Node", "nodes", CORE), Kind::Cluster(ObjectKind::Node)),
    (always("Service", "services", CORE), Kind::Cluster(ObjectKind::Service)),
    (always("ServiceAccount", "serviceaccounts", CORE), Kind::Cluster(ObjectKind::ServiceAccount)),
    (
        where_served("EndpointSlice", "endpointslices", &[("discovery.k8s.io", "v1")]),
        Kind::Cluster(ObjectKind::EndpointSlice),
    ),
    (
        Wanted {
            kind: "Endpoints",
            plural: "endpoints",
            served: CORE,
            always: false,
            unless: Some(("discovery.k8s.io", "v1", "endpointslices")),
        },
        Kind::Cluster(ObjectKind::Endpoints),
    ),
    (
        where_served("NetworkPolicy", "networkpolicies", &[("networking.k8s.io", "v1")]),
        policy(PolicyKind::KubernetesNetworkPolicy),
    ),
    (where_served("Tier", "tiers", CALICO), Kind::Policy(ResourceKind::Tier)),
    (where_served("Profile", "profiles", CALICO), Kind::Policy(ResourceKind::Profile)),
    (where_served("NetworkPolicy", "networkpolicies", CALICO), policy(PolicyKind::NetworkPolicy)),
    (
        where_served("GlobalNetworkPolicy", "globalnetworkpolicies", CALICO),
        policy(PolicyKind::GlobalNetworkPolicy),
    ),
    (
        where_served("StagedNetworkPolicy", "stagednetworkpolicies", CALICO),
        policy(PolicyKind::StagedNetworkPolicy),
    ),
    (
        where_served("StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies", CALICO),
        policy(PolicyKind::StagedGlobalNetworkPolicy),
    ),
    (
        where_served("StagedKubernetesNetworkPolicy", "stagedkubernetesnetworkpolicies", CALICO),
        policy(PolicyKind::StagedKubernetesNetworkPolicy),
    ),
    (where_served("NetworkSet", "networksets", CALICO), Kind::Cluster(ObjectKind::NetworkSet)),
    (
        where_served("GlobalNetworkSet", "globalnetworksets", CALICO),
        Kind::Cluster(ObjectKind::GlobalNetworkSet),
    ),
    (where_served("HostEndpoint", "hostendpoints", CALICO), Kind::Cluster(ObjectKind::HostEndpoint)),
    (
        where_served("AdminNetworkPolicy", "adminnetworkpolicies", ADMIN),
        policy(PolicyKind::AdminNetworkPolicy),
    ),
    (
        where_served("BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies", ADMIN),
        policy(PolicyKind::BaselineAdminNetworkPolicy),
    ),
    (
        where_served("ClusterNetworkPolicy", "clusternetworkpolicies", CLUSTER),
        policy(PolicyKind::ClusterNetworkPolicy),
    ),
];

/// What the agent is configured by, as far as the cluster says.
pub const CONFIGURATION: [Wanted; 2] = [
    where_served("FelixConfiguration", "felixconfigurations", CALICO),
    where_served("FlowLogConfiguration", "flowlogconfigurations", &[("flowlogd.dev", "v1")]),
];

/// What is followed of a kind: all objects, or the one of this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    pub wanted: Wanted,
    pub name: Option<String>,
    /// What it is called in metrics.
    pub label: &'static str,
}

impl From<Wanted> for Selected {
    fn from(wanted: Wanted) -> Self {
        Self { wanted, name: None, label: wanted.label() }
    }
}

impl Selected {
    /// The configuration objects that are layers of this node, each by a watch of its own: a cluster of thousands of
    /// nodes may have as many objects of other nodes, of which no agent needs to hear.
    pub fn configuration(node: &str) -> [Self; 4] {
        let [felix, ours] = CONFIGURATION;
        let select = |wanted, name: &str, label| Self { wanted, name: Some(name.to_owned()), label };
        let own = format!("node.{node}");
        [
            select(felix, "default", "FelixConfiguration default"),
            select(felix, &own, "FelixConfiguration node"),
            select(ours, "default", "FlowLogConfiguration default"),
            select(ours, &own, "FlowLogConfiguration node"),
        ]
    }

    /// The field selector that asks for it. Every API server knows this one, also of custom resources.
    pub(super) fn field_selector(&self) -> Option<String> {
        let name = self.name.as_deref()?;
        // What the selector's own language would read.
        let escaped = name.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        Some(format!("metadata.name={escaped}"))
    }
}

const fn policy(kind: PolicyKind) -> Kind {
    Kind::Policy(ResourceKind::Policy(kind))
}

impl Wanted {
    /// The kind's name in metrics: two kinds are called NetworkPolicy.
    pub fn label(&self) -> &'static str {
        match (self.kind, self.served.first()) {
            ("NetworkPolicy", Some(("networking.k8s.io", _))) => "KubernetesNetworkPolicy",
            (kind, _) => kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_name_is_selected_whatever_is_in_it() {
        let of = |node| Selected::configuration(node)[3].field_selector().unwrap();
        assert_eq!(of("n1.example"), "metadata.name=node.n1.example");
        assert_eq!(of("a=b,c\\"), "metadata.name=node.a\\=b\\,c\\\\");
        assert_eq!(Selected::from(CONFIGURATION[0]).field_selector(), None);
    }

    #[test]
    fn every_kind_of_the_world_is_watched_once() {
        let labels: BTreeSet<_> = WORLD.iter().map(|(wanted, _)| wanted.label()).collect();
        assert_eq!(labels.len(), WORLD.len());
        let kinds: BTreeSet<_> = WORLD.iter().map(|(_, kind)| *kind).collect();
        assert_eq!(kinds.len(), WORLD.len());
        for kind in ObjectKind::ALL {
            assert!(kinds.contains(&Kind::Cluster(kind)), "{kind:?}");
        }
        for kind in PolicyKind::ALL.into_iter().filter(|kind| *kind != PolicyKind::Profile) {
            assert!(kinds.contains(&policy(kind)), "{kind:?}");
        }
    }
}
