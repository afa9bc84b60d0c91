//! A line answers a filter as the record did from which it was made.

use std::net::IpAddr;

use crate::filter::{EndView, PolicyView, ServiceView, Subject, policy_of_line};
use crate::model::{Action, EndpointKind, FlowSide, Proto, Reporter};
use crate::wire::view::{LineView, present};

impl Subject for LineView<'_> {
    fn end(&self, side: FlowSide) -> EndView<'_> {
        let (kind, namespace, name, name_aggr, port) = match side {
            FlowSide::Src => (
                &self.source_type,
                &self.source_namespace,
                &self.source_name,
                &self.source_name_aggr,
                self.source_port,
            ),
            FlowSide::Dst => {
                (&self.dest_type, &self.dest_namespace, &self.dest_name, &self.dest_name_aggr, self.dest_port)
            }
        };
        let kinds = [EndpointKind::Wep, EndpointKind::Hep, EndpointKind::Ns];
        EndView {
            kind: kinds.into_iter().find(|one| one.name() == kind).unwrap_or(EndpointKind::Net),
            namespace: present(namespace),
            name: present(name),
            name_aggr,
            port,
        }
    }

    fn any_label(&self, side: FlowSide, test: &mut dyn FnMut(&str, &str) -> bool) -> bool {
        let labels = match side {
            FlowSide::Src => &self.source_labels,
            FlowSide::Dst => &self.dest_labels,
        };
        labels.iter().flat_map(|labels| &labels.labels).any(|label| {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            test(key, value)
        })
    }

    fn any_ip(&self, side: FlowSide, test: &mut dyn FnMut(IpAddr) -> bool) -> bool {
        let (ip, ips) = match side {
            FlowSide::Src => (self.source_ip, &self.source_ips),
            FlowSide::Dst => (self.dest_ip, &self.dest_ips),
        };
        ip.into_iter().chain(ips.iter().flatten().copied()).any(test)
    }

    /// What no filter can name is no protocol that one can have meant.
    fn proto(&self) -> Proto {
        self.proto.parse().unwrap_or(Proto(255))
    }

    fn action(&self) -> Action {
        if self.action == "deny" { Action::Deny } else { Action::Allow }
    }

    fn reporter(&self) -> Reporter {
        if self.reporter == "dst" { Reporter::Dst } else { Reporter::Src }
    }

    fn service(&self) -> Option<ServiceView<'_>> {
        let name = present(&self.dest_service_name)?;
        Some(ServiceView {
            namespace: &self.dest_service_namespace,
            name,
            port_name: present(&self.dest_service_port),
            port: self.dest_service_port_num,
        })
    }

    fn any_policy(&self, test: &mut dyn FnMut(PolicyView<'_>) -> bool) -> bool {
        let Some(policies) = &self.policies else { return false };
        let pending = policies.pending_policies.iter().flatten();
        let mut all = policies.enforced_policies.iter().chain(pending).chain(&policies.all_policies);
        all.any(|entry| policy_of_line(entry).is_some_and(&mut *test))
    }

    fn any_domain(&self, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.dest_domains.iter().flatten().any(|domain| test(domain))
    }

    fn process(&self) -> Option<&str> {
        present(&self.process_name)
    }

    fn any_reason(&self, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.drop_reasons.iter().flatten().any(|reason| test(reason))
    }

    fn mismatch(&self) -> Option<bool> {
        self.policy_mismatch
    }
}
