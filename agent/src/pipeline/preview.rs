//! A look at a connection or a drop before the window that it belongs to is closed: for people who watch live.
//!
//! In: one observation, the snapshot. Out: what happened, and a record of this one flow at level 0. Always: nothing of
//! the pipeline is touched or asked, so that watching changes no line. A preview is what is known now: names may
//! still become better until the flush, counters of an end are the connection's own from its beginning, policies are
//! not evaluated (`None`). A flow with two local ends is shown once, by its source.

use std::net::IpAddr;
use std::sync::Arc;

use crate::aggregate::Settings;
use crate::flow::is_filter_reason;
use crate::model::{
    Action, Addresses, ConnectionEvent, Counters, Directional, Endpoint, FlowEnd, FlowLog, Observation,
    ProcessColumns, Proto, Reporter, TcpColumns, Timestamp,
};
use crate::snapshot::Snapshot;

use super::ends::{Ends, PlainAddresses, Unnamed, name};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreviewEvent {
    Start,
    End,
    Drop,
}

impl PreviewEvent {
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::End => "end",
            Self::Drop => "drop",
        }
    }
}

pub struct Previewer {
    settings: Settings,
    plain: PlainAddresses,
    host_addresses: Vec<IpAddr>,
}

/// What of an observation makes a preview.
struct Seen {
    event: PreviewEvent,
    proto: Proto,
    /// After DNAT, before SNAT.
    addresses: Addresses,
    original_dst: (IpAddr, u16),
    counters: Directional,
}

impl Previewer {
    pub fn new(settings: Settings, host_addresses: Vec<IpAddr>) -> Self {
        Self { settings, plain: PlainAddresses::new(), host_addresses }
    }

    /// Whether [`Self::preview`] may make something of it: looks at no snapshot.
    pub fn is_shown(observation: &Observation) -> bool {
        match observation {
            Observation::Connection(record) => {
                matches!(record.event, ConnectionEvent::New | ConnectionEvent::End { confirmed: true })
            }
            Observation::Drop(drop) => is_filter_reason(&drop.reason),
            _ => false,
        }
    }

    /// `None`: not shown, or neither end is here.
    pub fn preview(
        &self,
        observation: &Observation,
        at: Timestamp,
        snapshot: &Snapshot,
    ) -> Option<(PreviewEvent, FlowLog)> {
        if !Self::is_shown(observation) {
            return None;
        }
        let mut drop_reasons = Vec::new();
        let seen = match observation {
            Observation::Connection(record) => Seen {
                event: match record.event {
                    ConnectionEvent::New => PreviewEvent::Start,
                    _ => PreviewEvent::End,
                },
                proto: record.proto,
                addresses: Addresses {
                    dst: record.reply.src,
                    dst_port: record.reply.src_port,
                    ..record.original
                },
                original_dst: (record.original.dst, record.original.dst_port),
                counters: record.counters,
            },
            Observation::Drop(drop) => {
                drop_reasons.push(drop.reason.clone());
                let addresses = drop.tuple.addresses;
                Seen {
                    event: PreviewEvent::Drop,
                    proto: drop.tuple.proto,
                    addresses,
                    original_dst: drop.original.map_or((addresses.dst, addresses.dst_port), |original| {
                        (original.dst, original.dst_port)
                    }),
                    counters: Directional {
                        original: Counters::new(drop.packets, drop.bytes),
                        reply: Counters::default(),
                    },
                }
            }
            _ => return None,
        };
        let flow = Unnamed {
            proto: seen.proto,
            addresses: seen.addresses,
            original_dst: seen.original_dst,
            began: at,
            known: &[None, None],
        };
        let Ends { ends: [source, dest], service, local, .. } =
            name(&snapshot.cluster, &self.settings, &self.plain, &self.host_addresses, &flow);
        let (reporter, incoming, outgoing) = match local {
            [true, _] => (Reporter::Src, seen.counters.reply, seen.counters.original),
            [false, true] => (Reporter::Dst, seen.counters.original, seen.counters.reply),
            [false, false] => return None,
        };
        let is_drop = seen.event == PreviewEvent::Drop;
        Some((
            seen.event,
            FlowLog {
                source: end(&source, seen.addresses.src, seen.addresses.src_port),
                dest: end(&dest, seen.addresses.dst, seen.addresses.dst_port),
                nat_outgoing_ports: Vec::new(),
                service,
                hide_service_port_name: false,
                dest_domains: Vec::new(),
                proto: seen.proto,
                action: if is_drop { Action::Deny } else { Action::Allow },
                reporter,
                policies: None,
                incoming,
                outgoing,
                num_flows: 1,
                num_flows_started: u64::from(seen.event != PreviewEvent::End),
                num_flows_completed: u64::from(seen.event == PreviewEvent::End),
                process: ProcessColumns::default(),
                tcp: TcpColumns::default(),
                drop_reasons,
                policy_mismatch: None,
            },
        ))
    }
}

fn end(endpoint: &Arc<Endpoint>, ip: IpAddr, port: u16) -> FlowEnd {
    FlowEnd {
        kind: endpoint.kind,
        namespace: endpoint.namespace.clone(),
        name: Some(endpoint.name.clone()),
        name_aggr: endpoint.name_aggr.clone(),
        ip: Some(ip),
        port: Some(port),
        labels: Some(endpoint.labels.clone()),
        ips: Vec::new(),
    }
}
