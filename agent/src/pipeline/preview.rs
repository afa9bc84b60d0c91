//! A look at a connection or a drop before the window that it belongs to is closed: for people who watch live.
//!
//! In: one observation, the snapshot, what the pipeline knows of the flow by now. Out: what happened, and a record of this
//! one flow at level 0: what a window that holds nothing else makes of it, by the rules of lines (`ends.rs`, `rules.rs`),
//! so that a preview says what the line will, as far as both know the same. Always: the pipeline is looked at and not
//! changed, so that watching changes no line. A preview is what is known now: names may still become better until the
//! flush; counters of an end are the connection's own from its beginning; a process (and with it the name of a pod on the
//! host network) is often told just after the connection, so that only its end has it; policies are those that the
//! pipeline evaluated when the flow began (`None` where it did not); TCP statistics are in lines alone. A connection with
//! two local ends is shown once, by its source; a drop by the end that it belongs to; the end of a connection whose packets
//! were dropped by its drops alone. Labels and services are shown also
//! where the file leaves them out.

use std::net::IpAddr;
use std::sync::Arc;

use crate::aggregate::{Contribution, Level, Report, Settings, Window};
use crate::flow::{ConnectionKey, DeniedKey, Flags, Processes, is_filter_reason};
use crate::model::{
    Action, Addresses, ConnectionEvent, Counters, Direction, Directional, Endpoint, Evaluation, FiveTuple,
    FlowLog, Observation, Proto, Timestamp, Trace,
};
use crate::snapshot::Snapshot;

use super::Pipeline;
use super::ends::{Ends, PlainAddresses, Unnamed, name, name_host_pods};
use super::rules::{self, DropOwner, REPORTERS};

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
    /// `None`: the flow is not known, it begins when it is seen.
    began: Option<Timestamp>,
    /// As known when it began.
    ends: [Option<Arc<Endpoint>>; 2],
    /// As its lines have it from now on.
    settled: Option<Ends>,
    /// Destination before DNAT, where it is another.
    original_dst: Option<(IpAddr, u16)>,
    /// `[egress at the source, ingress at the destination]`.
    evaluations: [Option<Arc<Evaluation>>; 2],
    pending: [Option<Trace>; 2],
    processes: Processes,
    domains: Option<Arc<[Arc<str>]>>,
    nat_port: u16,
    /// A line has said its names: what is told now does not change them.
    is_reported: bool,
    /// Its drops alone speak for it.
    is_withheld: bool,
}

impl Pipeline {
    /// What is known by now of the flow of an observation that has been stepped. A few look-ups; nothing is changed.
    pub fn known(&self, observation: &Observation) -> Known {
        match observation {
            Observation::Connection(record) => self.known_connection(&ConnectionKey::of(record)),
            Observation::Drop(drop) => self.known_denied(&DeniedKey::of(drop)),
            _ => Known::default(),
        }
    }

    fn known_connection(&self, key: &ConnectionKey) -> Known {
        let live = self.connections.find(key).and_then(|slot| self.connections.get(slot));
        let ended = || self.ended.back().filter(|connection| connection.key == *key);
        let Some(connection) = live.or_else(ended) else { return Known::default() };
        let tuple = connection.reported();
        let extra = connection.extra.as_ref();
        let settled = match &connection.ends {
            [Some(source), Some(dest)] if connection.flags.has(Flags::SETTLED) => Some(Ends {
                ends: [source.clone(), dest.clone()],
                service: connection.service.clone(),
                local: [Flags::LOCAL_SRC, Flags::LOCAL_DST].map(|local| connection.flags.has(local)),
                unpoliced: connection.flags.has(Flags::UNPOLICED_DST),
            }),
            _ => None,
        };
        let domains = match settled {
            Some(_) => extra.and_then(|extra| extra.domains.clone()),
            None => self.domains.of(tuple.addresses.src, tuple.addresses.dst, connection.began),
        };
        let now = [0, 1].map(|side| Some(&extra?.pending[side].as_ref()?.pending));
        let replied = connection.is_replied();
        let dropped = self.denied.of_connection(tuple, key.icmp_id).map(|denied| denied.last);
        // The drops of an earlier window have spoken for all of it.
        let spoken = extra.and_then(|extra| extra.withheld_at) == Some(connection.counters());
        Known {
            is_reported: connection.flags.has(Flags::REPORTED),
            is_withheld: dropped.is_some_and(|last| rules::is_withheld(replied, connection.began, last))
                || connection.flags.has(Flags::WITHHELD) && !replied && spoken,
            began: Some(connection.began),
            ends: connection.ends.clone(),
            settled,
            original_dst: Some((connection.key.original.dst, connection.key.original.dst_port)),
            pending: self.known_pending(tuple, now, &connection.evaluations),
            evaluations: connection.evaluations.clone(),
            processes: self.joins.processes_of(connection, live.is_none()),
            domains,
            nat_port: rules::nat_port(&tuple.addresses, connection.snat_port),
        }
    }

    fn known_denied(&self, key: &DeniedKey) -> Known {
        let Some(denied) = self.denied.get(key) else { return Known::default() };
        let Addresses { src, dst, .. } = key.tuple.addresses;
        let settled = match &denied.ends {
            [Some(source), Some(dest)] if denied.settled => Some(Ends {
                ends: [source.clone(), dest.clone()],
                service: denied.service.clone(),
                local: denied.local,
                unpoliced: denied.unpoliced,
            }),
            _ => None,
        };
        let domains = match settled {
            Some(_) => denied.domains.clone(),
            None => self.domains.of(src, dst, denied.began),
        };
        Known {
            began: Some(denied.began),
            ends: denied.ends.clone(),
            settled,
            original_dst: denied.original.map(|original| (original.dst, original.dst_port)),
            pending: self.known_pending(key.tuple, [None, None], &denied.evaluations),
            evaluations: denied.evaluations.clone(),
            processes: self.joins.processes_of_denied(denied),
            domains,
            nat_port: 0,
            is_reported: denied.settled,
            is_withheld: false,
        }
    }

    fn known_pending(
        &self,
        tuple: FiveTuple,
        now: [Option<&Trace>; 2],
        evaluations: &[Option<Arc<Evaluation>>; 2],
    ) -> [Option<Trace>; 2] {
        let directions = [Direction::Egress, Direction::Ingress];
        [0, 1].map(|side| {
            let verdict = self.verdicts.get(tuple, directions[side]);
            rules::pending(verdict, now[side], evaluations[side].as_deref()).cloned()
        })
    }
}

pub struct Previewer {
    /// For one flow at a time.
    window: Window,
    plain: PlainAddresses,
    host_addresses: Vec<IpAddr>,
    nothing_evaluated: Evaluation,
    empty: Trace,
}

/// What of an observation makes a preview.
struct Seen {
    event: PreviewEvent,
    proto: Proto,
    /// After DNAT, before SNAT.
    addresses: Addresses,
    original_dst: (IpAddr, u16),
    counters: Directional,
    drop_reason: Option<Arc<str>>,
}

impl Seen {
    fn of(observation: &Observation) -> Option<Self> {
        Some(match observation {
            Observation::Connection(record) => Self {
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
                drop_reason: None,
            },
            Observation::Drop(drop) => {
                let addresses = drop.tuple.addresses;
                Self {
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
                    drop_reason: Some(drop.reason.clone()),
                }
            }
            _ => return None,
        })
    }
}

impl Previewer {
    pub fn new(settings: Settings, host_addresses: Vec<IpAddr>) -> Self {
        let settings = Settings {
            level_for_allowed: Level::None,
            level_for_denied: Level::None,
            enabled_for_allowed: true,
            enabled_for_denied: true,
            include_labels: true,
            include_service: true,
            filters: Default::default(),
            ..settings
        };
        Self {
            window: Window::new(settings, Timestamp::MIN, 1),
            plain: PlainAddresses::new(),
            host_addresses,
            nothing_evaluated: Evaluation::default(),
            empty: Trace::default(),
        }
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

    fn ends(&self, seen: &Seen, at: Timestamp, known: &Known, snapshot: &Snapshot) -> Ends {
        let cluster = &snapshot.cluster;
        let began = known.began.unwrap_or(at);
        if let Some(mut settled) = known.settled.clone() {
            if !known.is_reported {
                name_host_pods(cluster, &mut settled.ends, &known.processes, began);
            }
            return settled;
        }
        let flow = Unnamed {
            proto: seen.proto,
            addresses: seen.addresses,
            original_dst: known.original_dst.unwrap_or(seen.original_dst),
            began,
            known: &known.ends,
        };
        let settings = self.window.settings();
        let mut named = name(cluster, settings, &self.plain, &self.host_addresses, &flow);
        name_host_pods(cluster, &mut named.ends, &known.processes, began);
        named
    }

    /// `None`: not shown, neither end is here, or the drops of a connection that ends have said it all.
    pub fn preview(
        &mut self,
        observation: &Observation,
        at: Timestamp,
        known: &Known,
        snapshot: &Snapshot,
    ) -> Option<(PreviewEvent, FlowLog)> {
        let seen = Seen::of(observation).filter(|_| Self::is_shown(observation))?;
        if seen.event == PreviewEvent::End && known.is_withheld {
            return None;
        }
        let Ends { ends: [source, dest], service, local, unpoliced } = self.ends(&seen, at, known, snapshot);
        let evaluations = [(0, &source), (1, &dest)].map(|(side, own)| {
            let unjudged = || rules::is_unjudged(own, side, unpoliced).then_some(&self.nothing_evaluated);
            known.evaluations[side].as_deref().or_else(unjudged)
        });
        let (side, action, policy_mismatch) = if seen.event == PreviewEvent::Drop {
            let DropOwner { side, is_explained } = rules::owner_of_drop(local, evaluations)?;
            (side, Action::Deny, rules::mismatch_of_dropped(evaluations[side], is_explained))
        } else {
            let side = (0..2).find(|&side| local[side])?;
            let replied = seen.counters.reply.packets > 0;
            (side, Action::Allow, rules::mismatch_of_allowed(evaluations[side], replied))
        };
        let reporter = REPORTERS[side];
        let (incoming, outgoing) = rules::toward(reporter, seen.counters);
        let own = [&source, &dest][side];
        let has_pending = rules::has_pending(self.window.settings(), own);
        let has_domains = side == 0 && rules::has_domains(local[0], &dest);
        let report = Report {
            reporter,
            action,
            proto: seen.proto,
            addresses: seen.addresses,
            source: &source,
            dest: &dest,
            service: service.as_ref(),
            evaluation: evaluations[side],
        };
        let contribution = Contribution {
            incoming,
            outgoing,
            seen: true,
            started: seen.event != PreviewEvent::End,
            completed: seen.event == PreviewEvent::End,
            touched: true,
            source_ip: Some(seen.addresses.src),
            dest_ip: Some(seen.addresses.dst),
            nat_port: known.nat_port,
            first_seen: (at, 0),
            source_labels: Some(&source.labels),
            dest_labels: Some(&dest.labels),
            all: evaluations[side].map(|evaluation| &evaluation.all),
            pending: has_pending.then(|| known.pending[side].as_ref().unwrap_or(&self.empty)),
            drop_reasons: seen.drop_reason.as_slice(),
            policy_mismatch,
            process: known.processes[side].as_deref(),
            domains: known.domains.as_deref().filter(|_| has_domains).unwrap_or_default(),
            ..Contribution::default()
        };
        let record = self.window.attach(&report);
        self.window.fold(record, &contribution);
        self.window.detach(record);
        let (mut logs, _) = self.window.flush(at, 0, |_| {});
        Some((seen.event, logs.records.pop()?))
    }
}
