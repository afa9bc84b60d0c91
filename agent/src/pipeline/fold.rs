//! Flows are folded into the window: here a connection or a denied flow becomes reports, one per local end.
//!
//! In: a flow with pending counters, the cluster, the verdicts. Out: contributions to records. Always: pending
//! counters go to a record, or to a number of [`Stats`]; a drop belongs to one end (the first local one, in path
//! order, whose policies deny; else to the last local one, unexplained).

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use crate::aggregate::{Contribution, Report, Window};
use crate::cluster::Cluster;
use crate::flow::{Connection, Denied, DeniedTable, Domains, Flags, Verdicts};
use crate::model::{
    Action, Addresses, Counters, Direction, Directional, Endpoint, Evaluation, FiveTuple, Labels, Process,
    Reporter, Timestamp, Trace,
};
use crate::policy::{Evaluator, Policies};

use super::ends::{Ends, PlainAddresses, Unnamed, name, name_host_pod, name_host_pods};
use super::rules::{self, DropOwner, REPORTERS};
use super::stats::{Stats, sum};

const SIDES: [(Reporter, Direction, Flags); 2] = [
    (REPORTERS[0], Direction::Egress, Flags::STARTED_SRC),
    (REPORTERS[1], Direction::Ingress, Flags::STARTED_DST),
];

pub(super) const JUDGED: [Flags; 2] = [Flags::JUDGED_SRC, Flags::JUDGED_DST];

/// Evaluations, and which of them are of the cluster's policies.
struct Judged<'a> {
    evaluations: &'a mut [Option<Arc<Evaluation>>; 2],
    judged: &'a mut [bool; 2],
}

/// Everything that folding touches, borrowed apart from the flow itself.
pub(super) struct Fold<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) policies: &'a Policies,
    pub(super) evaluator: &'a mut Evaluator,
    pub(super) window: &'a mut Window,
    pub(super) verdicts: &'a Verdicts,
    pub(super) domains: &'a Domains,
    pub(super) denied: Option<&'a mut DeniedTable>,
    pub(super) stats: &'a mut Stats,
    pub(super) plain: &'a PlainAddresses,
    pub(super) host_addresses: &'a [IpAddr],
    pub(super) nothing_evaluated: &'a Arc<Evaluation>,
    pub(super) empty: &'a Trace,
}

impl Fold<'_> {
    /// Names, service and locality become final.
    pub(super) fn settle(&mut self, connection: &mut Connection) {
        if connection.flags.has(Flags::SETTLED) {
            return;
        }
        let flow = Unnamed {
            proto: connection.key.proto,
            addresses: connection.reported().addresses,
            original_dst: (connection.key.original.dst, connection.key.original.dst_port),
            began: connection.began,
            known: &connection.ends,
        };
        let before = [0, 1].map(|side| connection.ends[side].is_some());
        let processes = connection.extra.as_ref().map(|extra| &extra.processes);
        let Ends { ends, service, local, unpoliced } = self.name(&flow, processes);
        if let Some(names) = self.domains_of(&flow, &ends, local[0]) {
            connection.extra().domains = Some(names);
        }
        connection.ends = ends.map(Some);
        connection.service = service;
        let bits = [
            (local[0], Flags::LOCAL_SRC),
            (local[1], Flags::LOCAL_DST),
            (unpoliced, Flags::UNPOLICED_DST),
            (true, Flags::SETTLED),
        ];
        for (is, bit) in bits {
            if is {
                connection.flags.set(bit);
            }
        }
        self.judge_named(connection, before);
    }

    fn domains_of(
        &self,
        flow: &Unnamed<'_>,
        ends: &[Arc<Endpoint>; 2],
        local: bool,
    ) -> Option<Arc<[Arc<str>]>> {
        if !rules::has_domains(local, &ends[1]) {
            return None;
        }
        self.domains.of(flow.addresses.src, flow.addresses.dst, flow.began)
    }

    fn name(&self, flow: &Unnamed<'_>, processes: Option<&[Option<Arc<Process>>; 2]>) -> Ends {
        let mut named = name(self.cluster, self.window.settings(), self.plain, self.host_addresses, flow);
        if let Some(processes) = processes {
            name_host_pods(self.cluster, &mut named.ends, processes, flow.began);
        }
        named
    }

    /// A process may be told after the names of a flow that has ended became final: no line says yet that its end is not a pod's
    /// on the host network.
    fn name_late(&self, connection: &mut Connection) {
        let Some(extra) = &connection.extra else { return };
        for (end, process) in connection.ends.iter_mut().zip(&extra.processes) {
            if let Some(end) = end {
                name_host_pod(self.cluster, end, process.as_deref(), connection.began);
            }
        }
    }

    /// Both evaluations lead to the same record.
    pub(super) fn same_record(&self, a: &Evaluation, b: &Evaluation) -> bool {
        let same_trace = if self.window.settings().include_policies {
            a.enforced == b.enforced
        } else {
            a.denies() == b.denies()
        };
        same_trace && a.all.has_deny() == b.all.has_deny()
    }

    /// What a dataplane reported takes the place of evaluation. Per side whose verdict has moved: to what.
    fn moved(
        &self,
        tuple: FiveTuple,
        Judged { evaluations, judged }: Judged<'_>,
        began: Timestamp,
        reported: bool,
        may_move: bool,
    ) -> [Option<Arc<Evaluation>>; 2] {
        let mut moved = [None, None];
        if self.verdicts.is_empty() {
            return moved;
        }
        for (side, (_, direction, _)) in SIDES.into_iter().enumerate() {
            let Some(verdict) = self.verdicts.get(tuple, direction) else { continue };
            loop {
                let taken = evaluations[side].as_ref().filter(|_| !judged[side]);
                let Some(now) = verdict.next(taken, began) else { break };
                match &evaluations[side] {
                    Some(before) if self.same_record(before, now) || judged[side] && !reported => {
                        evaluations[side] = Some(now.clone());
                        judged[side] = false;
                    }
                    None if !reported => evaluations[side] = Some(now.clone()),
                    _ => {
                        moved[side] = may_move.then(|| now.clone());
                        break;
                    }
                }
            }
        }
        moved
    }

    /// Takes over new verdicts; one that moved completes the old record and starts the new.
    pub(super) fn take_verdicts(&mut self, connection: &mut Connection, fingerprint: u64, ended: bool) {
        if self.verdicts.is_empty() {
            return;
        }
        let tuple = connection.reported();
        loop {
            let reported = connection.flags.has(Flags::REPORTED);
            let mut judged = JUDGED.map(|bit| connection.flags.has(bit));
            let both = Judged { evaluations: &mut connection.evaluations, judged: &mut judged };
            let moved = self.moved(tuple, both, connection.began, reported, !ended);
            for side in (0..2).filter(|&side| !judged[side] && moved[side].is_none()) {
                connection.set_judged(side, false);
            }
            if moved.iter().all(Option::is_none) {
                return;
            }
            connection.flags.set(Flags::REOPENED);
            self.connection(connection, fingerprint, [moved[0].is_some(), moved[1].is_some()], false);
            for (side, now) in moved.into_iter().enumerate() {
                let Some(now) = now else { continue };
                connection.evaluations[side] = Some(now);
                connection.set_judged(side, false);
                self.release(&mut connection.records[side], connection.records_epoch);
                connection.flags.set(SIDES[side].2);
            }
            connection.flags.set(Flags::REOPENED);
        }
    }

    fn release(&mut self, record: &mut u32, epoch: u16) {
        if *record != Connection::NO_RECORD && epoch == self.window.epoch() {
            self.window.detach(*record);
        }
        *record = Connection::NO_RECORD;
    }

    /// Folds what is pending. `complete` ends the flow's record at a side though the connection lives on.
    pub(super) fn connection(
        &mut self,
        connection: &mut Connection,
        fingerprint: u64,
        complete: [bool; 2],
        ended: bool,
    ) {
        self.settle(connection);
        if !connection.flags.has(Flags::REPORTED) {
            self.name_late(connection);
        }
        if connection.records_epoch != self.window.epoch() {
            connection.records = [Connection::NO_RECORD; 2];
            connection.records_epoch = self.window.epoch();
        }
        let local = [connection.flags.has(Flags::LOCAL_SRC), connection.flags.has(Flags::LOCAL_DST)];
        if local == [false, false] {
            self.stats.not_local += sum(connection.take());
            connection.flags.clear(Flags::STARTED);
            return;
        }
        if self.is_withheld(connection, fingerprint, ended) {
            return;
        }
        let counted = connection.flags.has(Flags::COMPLETION_COUNTED);
        let completes = connection.flags.has(Flags::COMPLETED);
        let replied = connection.is_replied();
        let pending = connection.take();
        for (side, (reporter, direction, started)) in SIDES.into_iter().enumerate() {
            if !local[side] {
                continue;
            }
            let (incoming, outgoing) = rules::toward(reporter, pending);
            let [Some(source), Some(dest)] = &connection.ends else { continue };
            let own = if side == 0 { source } else { dest };
            let unpoliced = connection.flags.has(Flags::UNPOLICED_DST);
            if connection.evaluations[side].is_none() && rules::is_unjudged(own, side, unpoliced) {
                connection.evaluations[side] = Some(self.nothing_evaluated.clone());
            }
            let evaluation = connection.evaluations[side].as_deref();
            let tuple = connection.reported();
            if connection.records[side] == Connection::NO_RECORD {
                let report = Report {
                    reporter,
                    action: Action::Allow,
                    proto: tuple.proto,
                    addresses: tuple.addresses,
                    source,
                    dest,
                    service: connection.service.as_ref(),
                    evaluation,
                };
                connection.records[side] = self.window.attach(&report);
            }
            let verdict = self.verdicts.get(tuple, direction);
            let now = connection.extra.as_ref().and_then(|extra| extra.pending[side].as_deref());
            let pending_trace =
                rules::pending(verdict, now.map(|now| &now.pending), evaluation).unwrap_or(self.empty);
            let judged = rules::has_pending(self.window.settings(), own);
            let earlier =
                |side: usize| connection.extra.as_ref().and_then(|extra| extra.earlier_labels[side].as_ref());
            let source_labels = labels_of_window(source, earlier(0));
            let dest_labels = labels_of_window(dest, earlier(1));
            let contribution = Contribution {
                incoming,
                outgoing,
                seen: !counted,
                started: !counted && connection.flags.has(started),
                completed: !counted && (completes || complete[side]),
                once: connection.flags.has(Flags::REOPENED).then_some(fingerprint),
                touched: connection.flags.has(Flags::TOUCHED),
                source_ip: Some(tuple.addresses.src),
                dest_ip: Some(tuple.addresses.dst),
                nat_port: rules::nat_port(&tuple.addresses, connection.snat_port),
                first_seen: (connection.began, connection.first_seen),
                source_labels: Some(&source_labels),
                dest_labels: Some(&dest_labels),
                all: evaluation.map(|evaluation| &evaluation.all),
                pending: judged.then_some(pending_trace),
                policies_sequence: verdict.map_or(0, |verdict| verdict.sequence),
                drop_reasons: &[],
                policy_mismatch: rules::mismatch_of_allowed(evaluation, replied),
                process: connection.extra.as_ref().and_then(|extra| extra.processes[side].as_deref()),
                tcp: connection.extra.as_ref().and_then(|extra| extra.tcp[side].sample.as_ref()),
                domains: match &connection.extra {
                    Some(extra) if side == 0 => extra.domains.as_deref().unwrap_or_default(),
                    _ => &[],
                },
            };
            self.window.fold(connection.records[side], &contribution);
            if ended {
                let mut record = connection.records[side];
                self.release(&mut record, connection.records_epoch);
            }
        }
        connection.flags.clear(Flags::STARTED);
        connection.flags.clear(Flags::TOUCHED);
        connection.flags.clear(Flags::REOPENED);
        connection.flags.set(Flags::REPORTED);
        if completes {
            connection.flags.set(Flags::COMPLETION_COUNTED);
        }
        if let Some(extra) = &mut connection.extra {
            extra.earlier_labels = [None, None];
            extra.tcp.iter_mut().for_each(|end| end.sample = None);
        }
    }

    /// A connection without a reply whose packets are dropped is counted by its drops alone.
    fn is_withheld(&mut self, connection: &mut Connection, fingerprint: u64, ended: bool) -> bool {
        let replied = connection.is_replied();
        let mut denied_now = false;
        if let Some(denied) = self.denied.as_deref_mut().filter(|denied| !denied.is_empty())
            && let Some(denied) = denied.of_connection_mut(connection.reported(), connection.key.icmp_id)
        {
            denied_now = rules::is_withheld(replied, connection.began, denied.last);
            denied.beside_connection |= replied && rules::is_of_attempt(connection.began, denied.last);
        }
        if denied_now {
            self.complete_reported(connection, fingerprint);
            let counters = connection.counters();
            connection.extra().withheld_at = Some(counters);
            connection.flags.set(Flags::WITHHELD);
        } else if connection.flags.has(Flags::WITHHELD) {
            let withheld_at = connection.extra().withheld_at;
            if !replied && withheld_at == Some(connection.counters()) {
                denied_now = true; // nothing new: the drops have spoken for all of it
            } else {
                if let Some(counters) = withheld_at.filter(|_| !replied) {
                    self.stats.superseded += sum(connection.take_up_to(counters));
                }
                connection.extra().withheld_at = None;
                connection.flags.clear(Flags::WITHHELD);
            }
        }
        if denied_now && ended {
            self.stats.superseded += sum(connection.take());
        }
        denied_now
    }

    /// Its records so far said `allow`: the flow is over there, and may start again.
    fn complete_reported(&mut self, connection: &mut Connection, fingerprint: u64) {
        if !connection.flags.has(Flags::REPORTED) {
            return;
        }
        for (side, record) in connection.records.iter_mut().enumerate() {
            if *record == Connection::NO_RECORD {
                continue;
            }
            if !connection.flags.has(Flags::COMPLETION_COUNTED) {
                let contribution = Contribution {
                    seen: true,
                    completed: true,
                    once: Some(fingerprint),
                    source_ip: Some(connection.key.original.src),
                    dest_ip: Some(connection.dst),
                    first_seen: (connection.began, connection.first_seen),
                    policy_mismatch: rules::mismatch_of_allowed(
                        connection.evaluations[side].as_deref(),
                        false,
                    ),
                    ..Default::default()
                };
                self.window.fold(*record, &contribution);
                connection.flags.set(SIDES[side].2);
            }
            self.window.detach(*record);
            *record = Connection::NO_RECORD;
        }
        connection.flags.clear(Flags::REPORTED);
        connection.flags.set(Flags::REOPENED);
    }

    /// Takes over new verdicts. `true`: the verdict moved, the flow as it was is over.
    pub(super) fn take_denied_verdicts(&self, denied: &mut Denied) -> bool {
        let both = Judged { evaluations: &mut denied.evaluations, judged: &mut denied.judged };
        let moved = self.moved(denied.key.tuple, both, denied.began, denied.settled, true);
        moved.iter().any(Option::is_some)
    }

    /// Folds a denied flow's drops; `over` completes it.
    pub(super) fn denied(&mut self, denied: &mut Denied, fingerprint: u64, over: bool) {
        let addresses: Addresses = denied.key.tuple.addresses;
        if !denied.settled {
            let original_dst =
                denied.original.map_or((addresses.dst, addresses.dst_port), |o| (o.dst, o.dst_port));
            let flow = Unnamed {
                proto: denied.key.tuple.proto,
                addresses,
                original_dst,
                began: denied.began,
                known: &denied.ends,
            };
            let before = [0, 1].map(|side| denied.ends[side].is_some());
            let Ends { ends, service, local, unpoliced } = self.name(&flow, Some(&denied.processes));
            denied.domains = self.domains_of(&flow, &ends, local[0]);
            denied.ends = ends.map(Some);
            denied.service = service;
            denied.local = local;
            denied.unpoliced = unpoliced;
            denied.settled = true;
            self.judge_denied_named(denied, before);
        }
        if denied.records_epoch != self.window.epoch() {
            denied.records = [Connection::NO_RECORD; 2];
            denied.records_epoch = self.window.epoch();
        }
        for side in 0..2 {
            let own = denied.ends[side].as_ref();
            let unjudged = own.is_some_and(|own| rules::is_unjudged(own, side, denied.unpoliced));
            if denied.evaluations[side].is_none() && unjudged {
                denied.evaluations[side] = Some(self.nothing_evaluated.clone());
            }
        }
        let pending_now = if over { [None, None] } else { self.pending_of_denied(denied) };
        let pending = std::mem::take(&mut denied.pending);
        let evaluations = [0, 1].map(|side| denied.evaluations[side].as_deref());
        let Some(DropOwner { side: belongs_to, is_explained }) =
            rules::owner_of_drop(denied.local, evaluations)
        else {
            self.stats.not_local_denied += pending;
            return;
        };
        for (side, (reporter, direction, _)) in SIDES.into_iter().enumerate() {
            if !denied.local[side] || side > belongs_to {
                continue;
            }
            let is_deny = side == belongs_to;
            if !is_deny && denied.beside_connection {
                // What passed is in the connection's own line.
                let record = denied.records[side];
                if record != Connection::NO_RECORD {
                    let contribution = Contribution {
                        seen: true,
                        completed: true,
                        source_ip: Some(addresses.src),
                        dest_ip: Some(addresses.dst),
                        first_seen: (denied.began, denied.first_seen),
                        policy_mismatch: rules::mismatch_of_allowed(
                            denied.evaluations[side].as_deref(),
                            false,
                        ),
                        ..Default::default()
                    };
                    self.window.fold(record, &contribution);
                    self.window.detach(record);
                    denied.records[side] = Connection::NO_RECORD;
                }
                continue;
            }
            let [Some(source), Some(dest)] = &denied.ends else { continue };
            let evaluation = denied.evaluations[side].as_deref();
            if denied.records[side] == Connection::NO_RECORD {
                let report = Report {
                    reporter,
                    action: if is_deny { Action::Deny } else { Action::Allow },
                    proto: denied.key.tuple.proto,
                    addresses,
                    source,
                    dest,
                    service: denied.service.as_ref(),
                    evaluation,
                };
                denied.records[side] = self.window.attach(&report);
            }
            let verdict = self.verdicts.get(denied.key.tuple, direction);
            let pending_trace =
                rules::pending(verdict, pending_now[side].as_ref(), evaluation).unwrap_or(self.empty);
            let own = if side == 0 { source } else { dest };
            let judged = rules::has_pending(self.window.settings(), own);
            let source_labels = labels_of_window(source, denied.earlier_labels[0].as_ref());
            let dest_labels = labels_of_window(dest, denied.earlier_labels[1].as_ref());
            let dropped = Directional { original: pending, reply: Counters::default() };
            let (incoming, outgoing) = rules::toward(reporter, dropped);
            let contribution = Contribution {
                incoming,
                outgoing,
                seen: true,
                started: denied.started[side],
                completed: over,
                once: denied.reopened.then_some(fingerprint),
                touched: denied.touched,
                source_ip: Some(addresses.src),
                dest_ip: Some(addresses.dst),
                nat_port: 0,
                first_seen: (denied.began, denied.first_seen),
                source_labels: Some(&source_labels),
                dest_labels: Some(&dest_labels),
                all: evaluation.map(|evaluation| &evaluation.all),
                pending: judged.then_some(pending_trace),
                policies_sequence: verdict.map_or(0, |verdict| verdict.sequence),
                drop_reasons: if is_deny { &denied.reasons } else { &[] },
                policy_mismatch: if is_deny {
                    rules::mismatch_of_dropped(evaluation, is_explained)
                } else {
                    rules::mismatch_of_allowed(evaluation, false)
                },
                process: denied.processes[side].as_deref(),
                tcp: None,
                domains: denied.domains.as_deref().filter(|_| side == 0).unwrap_or_default(),
            };
            self.window.fold(denied.records[side], &contribution);
            denied.started[side] = false;
            if over {
                self.window.detach(denied.records[side]);
            }
        }
        denied.reasons.clear();
        denied.earlier_labels = [None, None];
        denied.touched = false;
        denied.reopened = false;
    }
}

/// `true` when the flow ended between two endpoints that are both known: its names need no flush.
pub(super) fn both_known(connection: &Connection) -> bool {
    connection.ends.iter().all(|end| end.is_some())
}

/// A relabelled end is the same end: what it carried before is kept for this window's intersection.
pub(super) fn refresh_labels(cluster: &Cluster, connection: &mut Connection) {
    let epoch = cluster.labels_epoch() as u32;
    if connection.labels_epoch == epoch {
        return;
    }
    connection.labels_epoch = epoch;
    for side in 0..2 {
        let Some(before) = refresh(cluster, &mut connection.ends[side]) else { continue };
        if connection.flags.has(Flags::TOUCHED) {
            keep_earlier(&mut connection.extra().earlier_labels[side], before);
        }
    }
}

/// The same for a denied flow.
pub(super) fn refresh_denied_labels(cluster: &Cluster, denied: &mut Denied) {
    let epoch = cluster.labels_epoch() as u32;
    if denied.labels_epoch == epoch {
        return;
    }
    denied.labels_epoch = epoch;
    for side in 0..2 {
        let Some(before) = refresh(cluster, &mut denied.ends[side]) else { continue };
        if denied.touched {
            keep_earlier(&mut denied.earlier_labels[side], before);
        }
    }
}

/// Takes the end's newest version; gives the labels before, if they are others.
fn refresh(cluster: &Cluster, end: &mut Option<Arc<Endpoint>>) -> Option<Labels> {
    let before = end.as_ref()?;
    let now = cluster.current(before).filter(|now| !Arc::ptr_eq(now, before))?.clone();
    let labels = (!before.labels.same(&now.labels)).then(|| before.labels.clone());
    *end = Some(now);
    labels
}

fn keep_earlier(earlier: &mut Option<Labels>, before: Labels) {
    *earlier = Some(match earlier.take() {
        Some(earlier) => earlier.intersection(&before),
        None => before,
    });
}

/// What the end carried all through this window.
fn labels_of_window<'a>(end: &'a Endpoint, earlier: Option<&Labels>) -> Cow<'a, Labels> {
    match earlier {
        Some(earlier) => Cow::Owned(end.labels.intersection(earlier)),
        None => Cow::Borrowed(&end.labels),
    }
}
