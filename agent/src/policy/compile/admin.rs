//! AdminNetworkPolicy, BaselineAdminNetworkPolicy (v1alpha1) and ClusterNetworkPolicy (v1alpha2).
//!
//! In: the object's fields; all three kinds have the same ones. Out: a policy of an admin or a baseline tier, in
//! Calico's terms.
//! What always holds: rules expand as Kubernetes rules do; a rule with a peer that Calico cannot express (nodes,
//! domain names) becomes "deny everything" if it denies or passes, and is left out, without an index, if it accepts
//! (Calico: libcalico-go/lib/backend/k8s/conversion/clusternetworkpolicy.go); the directions that are governed are
//! those that have rules then, or both if none has.

use std::sync::Arc;

use ipnet::IpNet;

use super::Types;
use super::calico::{self, Entity, Rule};
use super::kubernetes::{LabelSelector, Port, any_pod, combined, namespaces, pods};
use crate::policy::ir::{self, PolicyId, RuleAction, Stage};

#[derive(Clone, Debug, PartialEq)]
pub struct AdminPolicy {
    pub id: PolicyId,
    pub tier: Arc<str>,
    /// `None`: the one baseline policy (v1alpha1).
    pub priority: Option<u16>,
    pub subject: Subject,
    pub ingress: Vec<AdminRule>,
    pub egress: Vec<AdminRule>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    Namespaces(LabelSelector),
    Pods { namespaces: LabelSelector, pods: LabelSelector },
}

#[derive(Clone, Debug, PartialEq)]
pub struct AdminRule {
    /// Never Log.
    pub action: RuleAction,
    pub peers: Vec<AdminPeer>,
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum AdminPeer {
    /// Whatever is in these namespaces, network sets too.
    Namespaces(LabelSelector),
    Pods {
        namespaces: LabelSelector,
        pods: LabelSelector,
    },
    /// Egress only.
    Networks(Arc<[IpNet]>),
    /// Nodes, domain names, or what a later version of the API may add.
    Unsupported,
}

pub fn policy(written: AdminPolicy) -> ir::Policy {
    let (namespace_selector, selector) = match &written.subject {
        Subject::Namespaces(selected) => (namespaces(selected), any_pod()),
        Subject::Pods { namespaces: selected, pods: of } => (namespaces(selected), pods(of)),
    };
    let expand = |rules: &[AdminRule], inbound| {
        rules.iter().flat_map(|rule| expanded(rule, inbound)).collect::<Vec<_>>()
    };
    let (ingress, egress) = (expand(&written.ingress, true), expand(&written.egress, false));
    let types = match (!ingress.is_empty(), !egress.is_empty()) {
        (false, false) => Types { ingress: true, egress: true },
        (ingress, egress) => Types { ingress, egress },
    };
    calico::policy(calico::Policy {
        id: written.id,
        tier: written.tier,
        order: written.priority.map(f64::from),
        selector: Some(selector),
        namespace_selector: Some(namespace_selector),
        service_account_selector: None,
        stage: Stage::Normal,
        types,
        ingress,
        egress,
    })
}

fn expanded(written: &AdminRule, inbound: bool) -> Vec<Rule> {
    let peers: Option<Vec<Entity>> = written.peers.iter().map(peer).collect();
    match (peers, written.action) {
        (Some(peers), action) => combined(action, &written.ports, &peers, inbound),
        (None, RuleAction::Deny | RuleAction::Pass) => vec![Rule::new(RuleAction::Deny)],
        (None, RuleAction::Allow | RuleAction::Log) => vec![],
    }
}

fn peer(written: &AdminPeer) -> Option<Entity> {
    Some(match written {
        AdminPeer::Namespaces(selected) => {
            Entity { namespace_selector: Some(namespaces(selected)), ..Entity::default() }
        }
        AdminPeer::Pods { namespaces: selected, pods: of } => Entity {
            selector: Some(pods(of)),
            namespace_selector: Some(namespaces(selected)),
            ..Entity::default()
        },
        AdminPeer::Networks(nets) => Entity { nets: nets.clone(), ..Entity::default() },
        AdminPeer::Unsupported => return None,
    })
}
