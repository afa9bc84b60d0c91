//! What a filter asks of a record, and how a record of the window answers.
//!
//! In: a [`FlowLog`], or any other [`Subject`] (a line of JSON is one, in `cli`). Out: its columns, borrowed.
//! Always: what the line would show as `null` or `"-"` is absent here.

use std::net::IpAddr;

use crate::model::{Action, EndpointKind, FlowEnd, FlowLog, FlowSide, Proto, Reporter};

#[derive(Clone, Copy, Debug)]
pub struct EndView<'a> {
    pub kind: EndpointKind,
    pub namespace: Option<&'a str>,
    pub name: Option<&'a str>,
    pub name_aggr: &'a str,
    pub port: Option<u16>,
}

#[derive(Clone, Copy, Debug)]
pub struct ServiceView<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub port_name: Option<&'a str>,
    pub port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyView<'a> {
    pub tier: &'a str,
    pub namespace: Option<&'a str>,
    /// Perhaps with the tier in front.
    pub name: &'a str,
}

/// Answers `true` if the test does for one of several.
pub type Test<'t, T> = &'t mut dyn FnMut(T) -> bool;

pub trait Subject {
    fn end(&self, side: FlowSide) -> EndView<'_>;
    fn any_label(&self, side: FlowSide, test: &mut dyn FnMut(&str, &str) -> bool) -> bool;
    fn any_ip(&self, side: FlowSide, test: Test<'_, IpAddr>) -> bool;
    fn proto(&self) -> Proto;
    fn action(&self) -> Action;
    fn reporter(&self) -> Reporter;
    fn service(&self) -> Option<ServiceView<'_>>;
    fn any_policy(&self, test: &mut dyn FnMut(PolicyView<'_>) -> bool) -> bool;
    fn any_domain(&self, test: &mut dyn FnMut(&str) -> bool) -> bool;
    fn process(&self) -> Option<&str>;
    fn any_reason(&self, test: &mut dyn FnMut(&str) -> bool) -> bool;
    fn mismatch(&self) -> Option<bool>;
}

fn end_of(log: &FlowLog, side: FlowSide) -> &FlowEnd {
    match side {
        FlowSide::Src => &log.source,
        FlowSide::Dst => &log.dest,
    }
}

/// `"-"` is how a line writes that there is none.
fn present(text: &str) -> Option<&str> {
    (text != "-" && !text.is_empty()).then_some(text)
}

impl Subject for FlowLog {
    fn end(&self, side: FlowSide) -> EndView<'_> {
        let end = end_of(self, side);
        EndView {
            kind: end.kind,
            namespace: end.namespace.as_deref().and_then(present),
            name: end.name.as_deref().and_then(present),
            name_aggr: &end.name_aggr,
            port: end.port.filter(|_| self.proto.has_ports()),
        }
    }

    fn any_label(&self, side: FlowSide, test: &mut dyn FnMut(&str, &str) -> bool) -> bool {
        end_of(self, side).labels.iter().flat_map(|labels| labels.iter()).any(|(key, value)| test(key, value))
    }

    fn any_ip(&self, side: FlowSide, test: Test<'_, IpAddr>) -> bool {
        let end = end_of(self, side);
        end.ip.iter().chain(&end.ips).any(|ip| test(*ip))
    }

    fn proto(&self) -> Proto {
        self.proto
    }

    fn action(&self) -> Action {
        self.action
    }

    fn reporter(&self) -> Reporter {
        self.reporter
    }

    fn service(&self) -> Option<ServiceView<'_>> {
        self.service.as_deref().map(|service| ServiceView {
            namespace: &service.namespace,
            name: &service.name,
            port_name: present(&service.port_name).filter(|_| !self.hide_service_port_name),
            port: Some(service.port),
        })
    }

    fn any_policy(&self, test: &mut dyn FnMut(PolicyView<'_>) -> bool) -> bool {
        let Some(policies) = &self.policies else { return false };
        let pending = policies.pending.iter().flat_map(|trace| trace.0.iter());
        policies.enforced.0.iter().chain(pending).chain(policies.all.0.iter()).any(|hit| {
            test(PolicyView { tier: &hit.tier, namespace: hit.namespace.as_deref(), name: &hit.name })
        })
    }

    fn any_domain(&self, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.dest_domains.iter().any(|domain| test(domain))
    }

    fn process(&self) -> Option<&str> {
        self.process.name.as_deref().and_then(present)
    }

    fn any_reason(&self, test: &mut dyn FnMut(&str) -> bool) -> bool {
        self.drop_reasons.iter().any(|reason| test(reason))
    }

    fn mismatch(&self) -> Option<bool> {
        self.policy_mismatch
    }
}

/// A policy as a line names it, in either of its two styles: `index|tier|name|action|rule`.
pub fn policy_of_line(entry: &str) -> Option<PolicyView<'_>> {
    let (_, rest) = entry.split_once('|')?;
    let (tier, rest) = rest.split_once('|')?;
    // A name may hold anything but ends where action and rule begin.
    let (rest, _) = rest.rsplit_once('|')?;
    let (text, _) = rest.rsplit_once('|')?;
    const KINDS: [&str; 10] =
        ["np:", "gnp:", "knp:", "snp:", "sgnp:", "sknp:", "kcnp:", "pro:", "anp:", "banp:"];
    let text = KINDS.iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or(text);
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    let name = name.strip_prefix("staged:").unwrap_or(name);
    const PREFIXES: [&str; 4] =
        ["knp.default.", "kanp.adminnetworkpolicy.", "kbanp.baselineadminnetworkpolicy.", "kcnp."];
    let name = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    Some(PolicyView { tier, namespace, name })
}
