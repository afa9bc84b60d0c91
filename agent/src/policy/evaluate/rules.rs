//! Rules in the form in which they are walked: numbers instead of trees, one line of cache or two a rule.
//!
//! In: a rule of [`crate::policy::ir`]; the tables that number selectors, lists of nets and services. Out: whether it
//! matches a flow between two [`Membership`]s.
//! What always holds: cheap tests come first (protocol, family, numeric ports), tests of membership after; the answer
//! is that of the naive evaluator. A rule of the other address family, or without a net of the flow's family, never
//! matches, and keeps its index.

use std::sync::Arc;

use ipnet::IpNet;

use super::members::{Membership, Tables};
use crate::model::Proto;
use crate::policy::ir::{self, IcmpMatch, IpVersion, PortMatch, RuleAction};

pub(super) const NONE: u32 = u32::MAX;
const ANY_PROTO: u16 = 256;

/// What a rule sees of a flow besides its ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub proto: Proto,
    pub is_v4: bool,
    pub has_ports: bool,
    pub ports: [u16; 2],
    pub icmp: Option<(u8, u8)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    No,
    Yes,
    Unknown,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub action: RuleAction,
    v4: bool,
    v6: bool,
    uncertain: bool,
    proto: u16,
    not_proto: u16,
    icmp: Option<IcmpMatch>,
    not_icmp: Option<IcmpMatch>,
    sides: [Side; 2],
}

#[derive(Debug)]
struct Side {
    ports: Ports,
    selector: u32,
    not_selector: u32,
    nets: u32,
    not_nets: u32,
    service: u32,
}

#[derive(Debug)]
enum Ports {
    Any,
    Range(u16, u16),
    /// Lists, named ports, ports that must not be.
    Many(Box<ManyPorts>),
}

#[derive(Debug)]
struct ManyPorts {
    wanted: Arc<[PortMatch]>,
    unwanted: Arc<[PortMatch]>,
}

/// The ports at which the answer of rules may change: what a verdict depends on.
#[derive(Clone, Debug, Default)]
pub(super) struct PortClasses {
    /// A named port or a service is asked for: each port is a class of its own.
    exact: bool,
    /// First ports of classes, ascending.
    bounds: Vec<u16>,
}

impl PortClasses {
    pub fn class(&self, port: u16) -> u16 {
        if self.exact {
            return port;
        }
        u16::try_from(self.bounds.partition_point(|bound| *bound <= port)).unwrap_or(u16::MAX)
    }

    pub fn add(&mut self, other: &Self) {
        self.exact |= other.exact;
        self.bounds.extend_from_slice(&other.bounds);
    }

    pub fn finish(&mut self) {
        self.bounds.sort_unstable();
        self.bounds.dedup();
        // More classes than numbers for them cannot be: there are no more ports than that.
        self.bounds.shrink_to_fit();
    }

    fn add_ports(&mut self, ports: &[PortMatch]) {
        for port in ports {
            match port {
                PortMatch::Range(first, last) => {
                    self.bounds.push(*first);
                    self.bounds.extend(last.checked_add(1));
                }
                PortMatch::Named(_) => self.exact = true,
            }
        }
    }
}

/// What a list of rules asks of a flow's ports and ICMP type.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    pub ports: [PortClasses; 2],
    pub icmp: bool,
}

impl Asked {
    pub fn of(rules: &[ir::Rule]) -> Self {
        let mut asked = Self::default();
        for rule in rules {
            let [source, dest] = &mut asked.ports;
            source.add_ports(&rule.source.ports);
            source.add_ports(&rule.source.not_ports);
            dest.add_ports(&rule.dest.ports);
            dest.add_ports(&rule.dest.not_ports);
            dest.exact |= rule.dest.service.is_some();
            asked.icmp |= rule.icmp.is_some() || rule.not_icmp.is_some();
        }
        asked.ports.iter_mut().for_each(PortClasses::finish);
        asked
    }

    pub fn add(&mut self, other: &Self) {
        for (ports, more) in self.ports.iter_mut().zip(&other.ports) {
            ports.add(more);
        }
        self.icmp |= other.icmp;
    }
}

impl Rule {
    pub fn compile(rule: &ir::Rule, tables: &mut Tables) -> Self {
        let lists = [&rule.source.nets, &rule.source.not_nets, &rule.dest.nets, &rule.dest.not_nets];
        let of_family = |v4: bool| {
            lists
                .iter()
                .all(|nets| nets.is_empty() || nets.iter().any(|net| matches!(net, IpNet::V4(_)) == v4))
        };
        Self {
            action: rule.action,
            v4: rule.ip_version != Some(IpVersion::V6) && of_family(true),
            v6: rule.ip_version != Some(IpVersion::V4) && of_family(false),
            uncertain: rule.uncertain.is_some(),
            proto: rule.proto.map_or(ANY_PROTO, |proto| proto.0.into()),
            not_proto: rule.not_proto.map_or(ANY_PROTO, |proto| proto.0.into()),
            icmp: rule.icmp,
            not_icmp: rule.not_icmp,
            sides: [Side::compile(&rule.source, tables), Side::compile(&rule.dest, tables)],
        }
    }

    pub fn answer(&self, packet: &Packet, tables: &Tables, members: [&Membership; 2]) -> Answer {
        let proto = u16::from(packet.proto.0);
        if !(if packet.is_v4 { self.v4 } else { self.v6 })
            || self.proto != proto && self.proto != ANY_PROTO
            || self.not_proto == proto
        {
            return Answer::No;
        }
        let [source, dest] = &self.sides;
        let [from, to] = members;
        if !dest.is_port(packet, 1, tables, to) || !source.is_port(packet, 0, tables, from) {
            return Answer::No;
        }
        let mut unknown = self.uncertain;
        if let Some(wanted) = self.icmp {
            match is_icmp(wanted, packet) {
                Some(true) => {}
                Some(false) => return Answer::No,
                None => unknown = true,
            }
        }
        if let Some(unwanted) = self.not_icmp {
            match is_icmp(unwanted, packet) {
                Some(false) => {}
                Some(true) => return Answer::No,
                None => unknown = true,
            }
        }
        if !source.is_member(tables, from) || !dest.is_member(tables, to) {
            return Answer::No;
        }
        if source.service != NONE && !from.has_backend(source.service) {
            return Answer::No;
        }
        if dest.service != NONE
            && !(packet.has_ports && to.serves(dest.service, packet.proto, packet.ports[1]))
        {
            return Answer::No;
        }
        if unknown { Answer::Unknown } else { Answer::Yes }
    }
}

/// `None`: the flow does not tell its type.
fn is_icmp(wanted: IcmpMatch, packet: &Packet) -> Option<bool> {
    if !packet.proto.is_icmp() {
        return Some(false);
    }
    let Some(kind) = wanted.kind else { return Some(true) };
    let (is_kind, is_code) = packet.icmp?;
    Some(kind == is_kind && wanted.code.is_none_or(|code| code == is_code))
}

impl Side {
    fn compile(entity: &ir::Entity, tables: &mut Tables) -> Self {
        let ports = match (&entity.ports[..], entity.not_ports.is_empty()) {
            ([], true) => Ports::Any,
            ([PortMatch::Range(first, last)], true) => Ports::Range(*first, *last),
            _ => Ports::Many(Box::new(ManyPorts {
                wanted: entity.ports.clone(),
                unwanted: entity.not_ports.clone(),
            })),
        };
        Self {
            ports,
            selector: entity.selector.as_ref().map_or(NONE, |selector| tables.selector(selector)),
            not_selector: entity.not_selector.as_ref().map_or(NONE, |selector| tables.selector(selector)),
            nets: if entity.nets.is_empty() { NONE } else { tables.nets(&entity.nets) },
            not_nets: if entity.not_nets.is_empty() { NONE } else { tables.nets(&entity.not_nets) },
            service: entity.service.as_ref().map_or(NONE, |service| tables.service(service)),
        }
    }

    fn is_port(&self, packet: &Packet, side: usize, tables: &Tables, members: &Membership) -> bool {
        let port = packet.ports[side];
        match &self.ports {
            Ports::Any => true,
            // A protocol without ports never matches a rule with ports.
            _ if !packet.has_ports => false,
            Ports::Range(first, last) => (*first..=*last).contains(&port),
            Ports::Many(many) => {
                let is_in = |ports: &[PortMatch]| {
                    ports.iter().any(|wanted| match wanted {
                        PortMatch::Range(first, last) => (*first..=*last).contains(&port),
                        PortMatch::Named(name) => {
                            members.names_port(tables, self.selector, name, packet.proto, port)
                        }
                    })
                };
                (many.wanted.is_empty() || is_in(&many.wanted)) && !is_in(&many.unwanted)
            }
        }
    }

    fn is_member(&self, tables: &Tables, members: &Membership) -> bool {
        (self.nets == NONE || members.is_in_nets(self.nets))
            && (self.not_nets == NONE || !members.is_in_nets(self.not_nets))
            && (self.selector == NONE || members.matches(tables, self.selector))
            && (self.not_selector == NONE || !members.matches(tables, self.not_selector))
    }
}
