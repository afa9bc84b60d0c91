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

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndKey {
    pub kind: EndpointKind,
    pub namespace: Option<Arc<str>>,
    pub name_aggr: Arc<str>,
    pub name: Option<Arc<str>>,
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

/// The record that counts this report.
pub fn key(report: &Report<'_>, settings: &Settings) -> RecordKey {
    let denied_level = report.is_denied_level();
    let level = if denied_level { settings.level_for_denied } else { settings.level_for_allowed };
    let ports = report.proto.has_ports();
    let end = |endpoint: &Arc<Endpoint>, ip: IpAddr, port: Option<u16>| EndKey {
        kind: endpoint.kind,
        namespace: endpoint.namespace.clone(),
        name_aggr: endpoint.name_aggr.clone(),
        name: (level < Level::NamePrefix).then(|| endpoint.name.clone()),
        ip: (level < Level::NamePrefix).then_some(ip),
        port,
    };
    let Addresses { src, dst, src_port, dst_port } = report.addresses;
    let service = report.service.filter(|_| settings.include_service).map(|service| {
        if level == Level::NoDestinationPort && &*service.port_name != "-" {
            Arc::new(ServiceName { port_name: "-".into(), ..ServiceName::clone(service) })
        } else {
            service.clone()
        }
    });
    RecordKey {
        action: report.action,
        reporter: report.reporter,
        source: end(report.source, src, (ports && level == Level::None).then_some(src_port)),
        dest: end(report.dest, dst, (ports && level < Level::NoDestinationPort).then_some(dst_port)),
        proto: report.proto,
        service,
        trace: report.evaluation.filter(|_| settings.include_policies).map(|e| e.enforced.clone()),
        denied_level,
    }
}

impl EndKey {
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
