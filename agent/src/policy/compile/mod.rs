//! Policy objects of every kind -> the one form of [`super::ir`].
//!
//! In: plain structs with the fields that mean something, already checked (`watch` decodes them). Out: tiers,
//! policies and profiles whose rules stand under the indexes that Calico gives them.
//! What always holds: a compiler never fails; what its kind cannot say was refused when it was decoded. Kubernetes
//! and admin policies are first written in Calico's terms, as Calico's converters do
//! (libcalico-go/lib/backend/k8s/conversion), and then compiled by the same code as Calico's own
//! (libcalico-go/lib/backend/syncersv1/updateprocessors).

pub mod admin;
pub mod calico;
pub mod kubernetes;

use std::sync::Arc;

use super::ir::PortMatch;
use super::selector::Selector;

/// The namespace of whatever has one; endpoints and network sets carry it.
pub const NAMESPACE: &str = "projectcalico.org/namespace";
/// `k8s` on pods; nothing else has it.
pub const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";
/// The name of a pod's service account.
pub const SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";
/// The value of [`ORCHESTRATOR`].
pub const KUBERNETES: &str = "k8s";
/// Before the labels of the namespace that something is in.
pub const OF_NAMESPACE: &str = "pcns.";
/// Before the labels of the service account that a pod runs under.
pub const OF_SERVICE_ACCOUNT: &str = "pcsa.";

/// Which directions a policy governs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Types {
    pub ingress: bool,
    pub egress: bool,
}

fn in_namespace(namespace: &Arc<str>) -> Selector {
    Selector::Equals(NAMESPACE.into(), namespace.clone())
}

fn has_namespace() -> Selector {
    Selector::Has(NAMESPACE.into())
}

/// Names first, then the fewest ranges that cover the numbers.
fn merged_ports(ports: Vec<PortMatch>) -> Arc<[PortMatch]> {
    let mut names = Vec::new();
    let mut ranges = Vec::new();
    for port in ports {
        match port {
            PortMatch::Range(low, high) => ranges.push((low, high)),
            PortMatch::Named(name) => names.push(PortMatch::Named(name)),
        }
    }
    ranges.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (low, high) in ranges {
        match merged.last_mut() {
            Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
            _ => merged.push((low, high)),
        }
    }
    names.extend(merged.into_iter().map(|(low, high)| PortMatch::Range(low, high)));
    names.into()
}

#[cfg(test)]
mod tests;
