//! What policy says of a flow at one of its ends: the trace of hits.

use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    Allow,
    Deny,
    Pass,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Pass => "pass",
        }
    }

    pub fn from_name(s: &str) -> Option<Self> {
        [Self::Allow, Self::Deny, Self::Pass].into_iter().find(|a| a.name() == s)
    }
}

/// Of policy: egress is judged at the source, ingress at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Egress,
    Ingress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    GlobalNetworkPolicy,
    NetworkPolicy,
    KubernetesNetworkPolicy,
    StagedNetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    ClusterNetworkPolicy,
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
    Profile,
}

impl PolicyKind {
    pub const ALL: [Self; 10] = [
        Self::GlobalNetworkPolicy,
        Self::NetworkPolicy,
        Self::KubernetesNetworkPolicy,
        Self::StagedNetworkPolicy,
        Self::StagedGlobalNetworkPolicy,
        Self::StagedKubernetesNetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
        Self::Profile,
    ];

    /// The kind's name in a recording's `verdict` lines (Calico's names of kinds).
    pub fn name(self) -> &'static str {
        match self {
            Self::GlobalNetworkPolicy => "GlobalNetworkPolicy",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::KubernetesNetworkPolicy => "KubernetesNetworkPolicy",
            Self::StagedNetworkPolicy => "StagedNetworkPolicy",
            Self::StagedGlobalNetworkPolicy => "StagedGlobalNetworkPolicy",
            Self::StagedKubernetesNetworkPolicy => "StagedKubernetesNetworkPolicy",
            Self::ClusterNetworkPolicy => "KubernetesClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
            Self::Profile => "Profile",
        }
    }

    /// The kind as Calico calls it, or the resource's own kind.
    pub fn from_name(s: &str) -> Option<Self> {
        if s == "ClusterNetworkPolicy" {
            return Some(Self::ClusterNetworkPolicy);
        }
        Self::ALL.into_iter().find(|k| k.name() == s)
    }

    pub fn is_staged(self) -> bool {
        matches!(
            self,
            Self::StagedNetworkPolicy | Self::StagedGlobalNetworkPolicy | Self::StagedKubernetesNetworkPolicy
        )
    }
}

/// One policy that decided something on the way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hit {
    pub tier: Arc<str>,
    pub kind: PolicyKind,
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
    pub action: Action,
    /// Index of the rule; -1 the tier's default action, -2 unknown.
    pub rule: i32,
}

/// Hits in the order of evaluation. Cloning is cheap.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Trace(pub Arc<[Hit]>);

impl Trace {
    pub fn has_deny(&self) -> bool {
        self.0.iter().any(|hit| hit.action == Action::Deny)
    }

    /// Staged hits taken out: what was enforced.
    pub fn enforced(&self) -> Self {
        if self.0.iter().any(|hit| hit.kind.is_staged()) {
            Self(self.0.iter().filter(|hit| !hit.kind.is_staged()).cloned().collect())
        } else {
            self.clone()
        }
    }

    /// The verdict: the action of the last hit. An empty trace allows.
    pub fn action(&self) -> Action {
        match self.0.last().map(|hit| hit.action) {
            Some(Action::Deny) => Action::Deny,
            _ => Action::Allow,
        }
    }
}

/// What the policies say of a flow at one end: from evaluation, or from a dataplane that reports its own hits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evaluation {
    /// What was enforced.
    pub enforced: Trace,
    /// The enforced hits and the staged ones met on the way.
    pub all: Trace,
    /// With staged policies counted as if enforced. Empty where a dataplane reported the rest.
    pub pending: Trace,
    /// What is enforced cannot be told: the cluster is not known yet, or a rule asks for what a flow does not tell.
    pub unknown: bool,
}

impl Evaluation {
    /// From a dataplane's hits, staged ones among them. A staged policy's "nothing matched" (rule -1) says
    /// something only in a tier that enforces nothing (Calico: felix/collector/stats.go, reported trace).
    pub fn of_hits(hits: &Trace) -> Self {
        let decides = |hit: &Hit| {
            !(hit.kind.is_staged()
                && hit.rule == -1
                && hits.0.iter().any(|other| !other.kind.is_staged() && other.tier == hit.tier))
        };
        let all = if hits.0.iter().all(decides) {
            hits.clone()
        } else {
            Trace(hits.0.iter().filter(|hit| decides(hit)).cloned().collect())
        };
        Self { enforced: all.enforced(), all, pending: Trace::default(), unknown: false }
    }

    pub fn denies(&self) -> bool {
        !self.unknown && self.enforced.action() == Action::Deny
    }
}
