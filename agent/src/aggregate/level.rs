//! The key of a record at each level (Calico: "aggregation kind"). Level 1 drops the source port, level 2 also
//! addresses and names, level 3 also the destination port and the service port's name. Action, reporter and
//! protocol are never merged; a distinct enforced trace is a distinct record.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{
    Action, Addresses, Endpoint, EndpointKind, Evaluation, Proto, Reporter, ServiceName, Trace,
};

use super::Settings;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// 0: one record a five-tuple.
    None = 0,
    /// 1: source ports merged.
    SourcePort = 1,
    /// 2: pods of one `generateName` merged.
    NamePrefix = 2,
    /// 3: destination ports merged too.
    NoDestinationPort = 3,
}

impl Level {
    pub fn from_number(n: u64) -> Option<Self> {
        [Self::None, Self::SourcePort, Self::NamePrefix, Self::NoDestinationPort]
            .into_iter()
            .find(|level| *level as u64 == n)
    }
}

/// One flow at one of its local ends.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    pub reporter: Reporter,
    pub action: Action,
    pub proto: Proto,
    /// After DNAT, before SNAT.
    pub addresses: Addresses,
    pub source: &'a Arc<Endpoint>,
    pub dest: &'a Arc<Endpoint>,
    pub service: Option<&'a Arc<ServiceName>>,
    pub evaluation: Option<&'a Evaluation>,
}

impl Report<'_> {
    /// The denied level applies to denials and to traces that hold one, staged ones included.
    pub fn is_denied_level(&self) -> bool {
        self.action == Action::Deny || self.evaluation.is_some_and(|e| e.all.has_deny())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndKey {
    pub kind: EndpointKind,
    pub namespace: Option<Arc<str>>,
    pub name_aggr: Arc<str>,
    pub name: Option<Arc<str>>,
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
}

/// What a record is known by. It is found through its parts, so that only a new record costs a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordKey {
    pub action: Action,
    pub reporter: Reporter,
    pub source: EndKey,
    pub dest: EndKey,
    pub proto: Proto,
    pub service: Option<Arc<ServiceName>>,
    /// The enforced trace; `None` when policies are not included or nothing was evaluated.
    pub trace: Option<Trace>,
    /// Whether the denied switch and level apply.
    pub denied_level: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct EndParts<'a> {
    kind: EndpointKind,
    namespace: Option<&'a Arc<str>>,
    name_aggr: &'a Arc<str>,
    name: Option<&'a Arc<str>>,
    ip: Option<IpAddr>,
    port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ServiceParts<'a> {
    namespace: &'a Arc<str>,
    name: &'a Arc<str>,
    port_name: &'a str,
    port: u16,
}

/// A [`RecordKey`], borrowed from a report or from a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordParts<'a> {
    action: Action,
    reporter: Reporter,
    source: EndParts<'a>,
    dest: EndParts<'a>,
    proto: Proto,
    service: Option<ServiceParts<'a>>,
    trace: Option<&'a Trace>,
    denied_level: bool,
}

/// What the record that counts this report is known by.
pub fn parts<'a>(report: &Report<'a>, settings: &Settings) -> RecordParts<'a> {
    let denied_level = report.is_denied_level();
    let level = if denied_level { settings.level_for_denied } else { settings.level_for_allowed };
    let ports = report.proto.has_ports();
    let end = |endpoint: &'a Endpoint, ip: IpAddr, port: Option<u16>| EndParts {
        kind: endpoint.kind,
        namespace: endpoint.namespace.as_ref(),
        name_aggr: &endpoint.name_aggr,
        name: (level < Level::NamePrefix).then_some(&endpoint.name),
        ip: (level < Level::NamePrefix).then_some(ip),
        port,
    };
    let Addresses { src, dst, src_port, dst_port } = report.addresses;
    let service = report.service.filter(|_| settings.include_service).map(|service| {
        let parts = ServiceParts::of(service);
        if level == Level::NoDestinationPort { ServiceParts { port_name: "-", ..parts } } else { parts }
    });
    RecordParts {
        action: report.action,
        reporter: report.reporter,
        source: end(report.source, src, (ports && level == Level::None).then_some(src_port)),
        dest: end(report.dest, dst, (ports && level < Level::NoDestinationPort).then_some(dst_port)),
        proto: report.proto,
        service,
        trace: report.evaluation.filter(|_| settings.include_policies).map(|e| &e.enforced),
        denied_level,
    }
}

/// What the overflow record of this report's kind is known by: action, reporter and protocol are kept, everything else
/// is `several`.
pub fn overflow_parts<'a>(report: &Report<'_>, several: &'a Arc<str>) -> RecordParts<'a> {
    let end = EndParts {
        kind: EndpointKind::Net,
        namespace: None,
        name_aggr: several,
        name: None,
        ip: None,
        port: None,
    };
    RecordParts {
        action: report.action,
        reporter: report.reporter,
        source: end,
        dest: end,
        proto: report.proto,
        service: None,
        trace: None,
        denied_level: report.is_denied_level(),
    }
}

impl<'a> ServiceParts<'a> {
    fn of(service: &'a ServiceName) -> Self {
        let ServiceName { namespace, name, port_name, port } = service;
        Self { namespace, name, port_name, port: *port }
    }
}

impl EndParts<'_> {
    fn to_key(self) -> EndKey {
        EndKey {
            kind: self.kind,
            namespace: self.namespace.cloned(),
            name_aggr: self.name_aggr.clone(),
            name: self.name.cloned(),
            ip: self.ip,
            port: self.port,
        }
    }
}

impl RecordParts<'_> {
    /// `service` is the report's: it is shared where nothing of it is left out.
    pub fn to_key(self, service: Option<&Arc<ServiceName>>) -> RecordKey {
        let service = self.service.map(|parts| match service {
            Some(service) if ServiceParts::of(service) == parts => service.clone(),
            _ => Arc::new(ServiceName {
                namespace: parts.namespace.clone(),
                name: parts.name.clone(),
                port_name: parts.port_name.into(),
                port: parts.port,
            }),
        });
        RecordKey {
            action: self.action,
            reporter: self.reporter,
            source: self.source.to_key(),
            dest: self.dest.to_key(),
            proto: self.proto,
            service,
            trace: self.trace.cloned(),
            denied_level: self.denied_level,
        }
    }
}

impl EndKey {
    fn parts(&self) -> EndParts<'_> {
        EndParts {
            kind: self.kind,
            namespace: self.namespace.as_ref(),
            name_aggr: &self.name_aggr,
            name: self.name.as_ref(),
            ip: self.ip,
            port: self.port,
        }
    }

    fn order(&self, other: &Self) -> Ordering {
        // `None` sorts first, as the "-" that is printed for it does; addresses sort as addresses.
        self.namespace
            .cmp(&other.namespace)
            .then_with(|| self.name_aggr.cmp(&other.name_aggr))
            .then_with(|| self.name.cmp(&other.name))
            .then_with(|| self.ip.cmp(&other.ip))
            .then_with(|| self.port.cmp(&other.port))
    }
}

impl RecordKey {
    pub fn parts(&self) -> RecordParts<'_> {
        RecordParts {
            action: self.action,
            reporter: self.reporter,
            source: self.source.parts(),
            dest: self.dest.parts(),
            proto: self.proto,
            service: self.service.as_deref().map(ServiceParts::of),
            trace: self.trace.as_ref(),
            denied_level: self.denied_level,
        }
    }

    /// The order of lines in a flush. Columns that are text sort as text.
    pub fn order(&self, other: &Self) -> Ordering {
        self.action
            .name()
            .cmp(other.action.name())
            .then_with(|| self.reporter.name().cmp(other.reporter.name()))
            .then_with(|| self.source.order(&other.source))
            .then_with(|| self.dest.order(&other.dest))
            .then_with(|| {
                if self.proto == other.proto {
                    Ordering::Equal
                } else {
                    self.proto.to_string().cmp(&other.proto.to_string())
                }
            })
            .then_with(|| self.service.cmp(&other.service))
            .then_with(|| self.trace.cmp(&other.trace))
            // What is not printed: only so that the order is total.
            .then_with(|| {
                (self.source.kind, self.dest.kind, self.denied_level).cmp(&(
                    other.source.kind,
                    other.dest.kind,
                    other.denied_level,
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Labels;

    #[test]
    fn a_record_is_found_by_the_parts_it_was_made_of() {
        let end = |name: &str| {
            Arc::new(Endpoint {
                kind: EndpointKind::Wep,
                namespace: Some("shop".into()),
                name: name.into(),
                name_aggr: "web-*".into(),
                labels: Labels::default(),
                node: None,
                uid: None,
                created: None,
                is_bare_node: false,
                policed: Default::default(),
            })
        };
        let (source, dest) = (end("web-1"), end("web-2"));
        let service = |port_name: &str| {
            let (namespace, name) = ("shop".into(), "web".into());
            Arc::new(ServiceName { namespace, name, port_name: port_name.into(), port: 80 })
        };
        let (http, other) = (service("http"), service("metrics"));
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        let report = |service| Report {
            reporter: Reporter::Src,
            action: Action::Allow,
            proto: Proto::TCP,
            addresses: Addresses { src: ip(1), dst: ip(2), src_port: 40_000, dst_port: 8080 },
            source: &source,
            dest: &dest,
            service: Some(service),
            evaluation: None,
        };
        for level in [Level::None, Level::SourcePort, Level::NamePrefix, Level::NoDestinationPort] {
            let settings = Settings { level_for_allowed: level, ..Settings::default() };
            let one = report(&http);
            let key = parts(&one, &settings).to_key(one.service);
            assert_eq!(key.parts(), parts(&one, &settings));
            // Only level 3 merges the ports of a service.
            let merges = level == Level::NoDestinationPort;
            assert_eq!(key.parts() == parts(&report(&other), &settings), merges, "{level:?}");
            assert_eq!(key.service.is_some_and(|service| &*service.port_name == "-"), merges, "{level:?}");
        }
    }
}
