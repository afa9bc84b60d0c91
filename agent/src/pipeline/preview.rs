//! A look at a connection or a drop before the window that it belongs to is closed: for people who watch live.
//!
//! In: one observation, the snapshot, what the pipeline knows of the flow by now. Out: what happened, and a record of this
//! one flow at level 0. Always: the pipeline is looked at and not changed, so that watching changes no line. A preview is
//! what is known now: names may still become better until the flush; counters of an end are the connection's own from
//! its beginning; a process is often told just after the connection, so that only its end has it; policies are those
//! that the pipeline evaluated when the flow began (`None` where it did not). A connection with two local ends is shown
//! once, by its source; a drop by the end whose policies deny it, as in its line.

use std::net::IpAddr;
use std::sync::Arc;

use crate::aggregate::{PendingPolicies, Settings};
use crate::flow::{ConnectionKey, DeniedKey, is_filter_reason};
use crate::model::{
    Action, Addresses, ConnectionEvent, Counters, Directional, Endpoint, EndpointKind, Evaluation, FlowEnd,
    FlowLog, Observation, Policies, Process, ProcessColumns, Proto, Reporter, TcpColumns, Timestamp,
};
use crate::snapshot::Snapshot;

use super::Pipeline;
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

/// What the pipeline knows of a flow beside its addresses.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// `[egress at the source, ingress at the destination]`.
    evaluations: [Option<Arc<Evaluation>>; 2],
    /// `[source's, destination's]`.
    processes: [Option<Arc<Process>>; 2],
    domains: Option<Arc<[Arc<str>]>>,
}

impl Pipeline {
    /// What is known by now of the flow of an observation that has been stepped. A few look-ups; nothing is changed.
    pub fn known(&self, observation: &Observation) -> Known {
        let domains = |addresses: &Addresses| self.domains.of(addresses.src, addresses.dst, self.at);
        match observation {
            Observation::Connection(record) => {
                let key = ConnectionKey::of(record);
                let live = self.connections.find(&key).and_then(|slot| self.connections.get(slot));
                let ended = || self.ended.back().filter(|connection| connection.key == key);
                let Some(connection) = live.or_else(ended) else { return Known::default() };
                let mut processes =
                    connection.extra.as_ref().map(|e| e.processes.clone()).unwrap_or_default();
                for addresses in [connection.key.original, connection.reply()] {
                    let waiting = self.joins.waiting(record.proto, addresses);
                    for (known, waiting) in processes.iter_mut().zip(waiting) {
                        *known = known.take().or(waiting);
                    }
                }
                Known {
                    evaluations: connection.evaluations.clone(),
                    processes,
                    domains: domains(&connection.reported().addresses),
                }
            }
            Observation::Drop(drop) => {
                let denied = self.denied.get(&DeniedKey::of(drop));
                Known {
                    evaluations: denied.map(|denied| denied.evaluations.clone()).unwrap_or_default(),
                    processes: self.joins.waiting(drop.tuple.proto, drop.tuple.addresses),
                    domains: domains(&drop.tuple.addresses),
                }
            }
            _ => Known::default(),
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
        known: &Known,
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
        let is_drop = seen.event == PreviewEvent::Drop;
        let evaluation = |side: usize| known.evaluations[side].as_deref();
        let denies = |side: usize| evaluation(side).is_some_and(Evaluation::denies);
        let explained = is_drop && (0..2).any(|side| local[side] && denies(side));
        let side = match local {
            [false, false] => return None,
            [true, false] => 0,
            [false, true] => 1,
            // What nobody's policies explain happened to what came furthest.
            [true, true] if is_drop => usize::from(!denies(0)),
            [true, true] => 0,
        };
        let (reporter, incoming, outgoing) = match side {
            0 => (Reporter::Src, seen.counters.reply, seen.counters.original),
            _ => (Reporter::Dst, seen.counters.original, seen.counters.reply),
        };
        let certain = evaluation(side).filter(|evaluation| !evaluation.unknown);
        let replied = seen.counters.reply.packets > 0;
        let policy_mismatch = certain.map(|evaluation| match is_drop {
            true => !explained,
            false => evaluation.denies() && replied,
        });
        let own = [&source, &dest][side];
        let has_pending =
            self.settings.pending_policies != PendingPolicies::None && own.kind != EndpointKind::Hep;
        let policies =
            evaluation(side).filter(|_| self.settings.include_policies).map(|evaluation| Policies {
                enforced: evaluation.enforced.clone(),
                pending: has_pending.then(|| evaluation.pending.clone()),
                all: evaluation.all.clone(),
            });
        let outside = matches!(dest.kind, EndpointKind::Ns | EndpointKind::Net);
        let domains = known.domains.iter().filter(|_| side == 0 && outside).flat_map(|names| names.iter());
        let dest_domains = domains.take(self.settings.domains_limit).cloned().collect();
        let process = known.processes[side].as_deref();
        let process =
            process.map(|process| columns(process, self.settings.process_args_limit)).unwrap_or_default();
        Some((
            seen.event,
            FlowLog {
                source: end(&source, seen.addresses.src, seen.addresses.src_port),
                dest: end(&dest, seen.addresses.dst, seen.addresses.dst_port),
                nat_outgoing_ports: Vec::new(),
                service,
                hide_service_port_name: false,
                dest_domains,
                proto: seen.proto,
                action: if is_drop { Action::Deny } else { Action::Allow },
                reporter,
                policies,
                incoming,
                outgoing,
                num_flows: 1,
                num_flows_started: u64::from(seen.event != PreviewEvent::End),
                num_flows_completed: u64::from(seen.event == PreviewEvent::End),
                process,
                tcp: TcpColumns::default(),
                drop_reasons,
                policy_mismatch,
            },
        ))
    }
}

/// One process.
fn columns(process: &Process, most_args: usize) -> ProcessColumns {
    ProcessColumns {
        name: Some(process.name.clone()),
        num_names: 1,
        id: Some(process.pid.to_string().into()),
        num_ids: 1,
        args: process.args.iter().take(most_args).cloned().collect(),
        num_args: process.args.len() as u64,
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
