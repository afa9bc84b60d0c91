//! Flows are folded into the window: here a connection or a denied flow becomes reports, one per local end.
//!
//! In: a flow with pending counters, the cluster, the verdicts. Out: contributions to records. Always: pending
//! counters go to a record, or to a number of [`Stats`]; a drop belongs to one end (the first local one, in path
//! order, whose policies deny; else to the last local one, unexplained).

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use crate::aggregate::{Contribution, PendingPolicies, Report, Window};
use crate::cluster::Cluster;
use crate::flow::{Connection, Denied, DeniedTable, Domains, Flags, Verdicts};
use crate::model::{
    Action, Addresses, Counters, Direction, Endpoint, EndpointKind, Evaluation, FiveTuple, Labels, Process,
    Reporter, Timestamp, Trace,
};

use crate::policy::{Evaluator, Policies};

use super::ends::{Ends, PlainAddresses, Unnamed, name};
use super::stats::{Stats, sum};

const SIDES: [(Reporter, Direction, Flags); 2] = [
    (Reporter::Src, Direction::Egress, Flags::STARTED_SRC),
    (Reporter::Dst, Direction::Ingress, Flags::STARTED_DST),
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
        let Ends { mut ends, service, local, unpoliced } = self.name(&flow);
        if let Some(extra) = &connection.extra {
            self.name_host_pods(&mut ends, &extra.processes, connection.began);
        }
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

    /// Names are told by the source, of what is outside of the cluster.
    fn domains_of(
        &self,
        flow: &Unnamed<'_>,
        ends: &[Arc<Endpoint>; 2],
        local: bool,
    ) -> Option<Arc<[Arc<str>]>> {
        let outside = matches!(ends[1].kind, EndpointKind::Ns | EndpointKind::Net);
        if !local || !outside {
            return None;
        }
        self.domains.of(flow.addresses.src, flow.addresses.dst, flow.began)
    }

    /// The node's own end is that of a pod on its host network, where the process there runs in one.
    fn name_host_pods(
        &self,
        ends: &mut [Arc<Endpoint>; 2],
        processes: &[Option<Arc<Process>>; 2],
        began: Timestamp,
    ) {
        for (end, process) in ends.iter_mut().zip(processes) {
            let uid =
                process.as_ref().filter(|_| end.is_bare_node).and_then(|process| process.pod_uid.as_ref());
            if let Some(pod) = uid.and_then(|uid| self.cluster.host_pod_at(uid, began)) {
                *end = pod.clone();
            }
        }
    }

    fn name(&self, flow: &Unnamed<'_>) -> Ends {
        name(self.cluster, self.window.settings(), self.plain, self.host_addresses, flow)
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

    /// Pending policies are of pods, and where they are asked for.
    fn has_pending(&self, own: &Endpoint) -> bool {
        self.window.settings().pending_policies != PendingPolicies::None && own.kind != EndpointKind::Hep
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
            let (incoming, outgoing) = match reporter {
                Reporter::Src => (pending.reply, pending.original),
                Reporter::Dst => (pending.original, pending.reply),
            };
            let [Some(source), Some(dest)] = &connection.ends else { continue };
            if connection.evaluations[side].is_none() {
                let own = if side == 0 { source } else { dest };
                if own.is_bare_node || side == 1 && connection.flags.has(Flags::UNPOLICED_DST) {
                    connection.evaluations[side] = Some(self.nothing_evaluated.clone());
                }
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
            let pending_trace = verdict
                .and_then(|verdict| verdict.pending.as_ref())
                .or(now.or(evaluation).map(|evaluation| &evaluation.pending))
                .unwrap_or(self.empty);
            let own = if side == 0 { source } else { dest };
            let judged = self.has_pending(own);
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
                // A port is translated on the way out; a connection to itself goes nowhere.
                nat_port: if tuple.addresses.src == tuple.addresses.dst { 0 } else { connection.snat_port },
                first_seen: (connection.began, connection.first_seen),
                source_labels: Some(&source_labels),
                dest_labels: Some(&dest_labels),
                all: evaluation.map(|evaluation| &evaluation.all),
                pending: judged.then_some(pending_trace),
                policies_sequence: verdict.map_or(0, |verdict| verdict.sequence),
                drop_reasons: &[],
                policy_mismatch: evaluation
                    .filter(|evaluation| !evaluation.unknown)
                    .map(|evaluation| evaluation.denies() && replied),
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
        // What was dropped before the connection began are packets of an earlier attempt.
        if let Some(denied) = self.denied.as_deref_mut().filter(|denied| !denied.is_empty())
            && let Some(denied) = denied.of_connection(connection.reported(), connection.key.icmp_id)
            && denied.last >= connection.began
        {
            denied.beside_connection |= replied;
            denied_now = !replied;
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
                    policy_mismatch: passed(connection.evaluations[side].as_deref()),
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
            let Ends { mut ends, service, local, unpoliced } = self.name(&flow);
            self.name_host_pods(&mut ends, &denied.processes, denied.began);
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
            let is_bare_node = denied.ends[side].as_ref().is_some_and(|end| end.is_bare_node);
            if denied.evaluations[side].is_none() && (is_bare_node || side == 1 && denied.unpoliced) {
                denied.evaluations[side] = Some(self.nothing_evaluated.clone());
            }
        }
        let pending_now = if over { [None, None] } else { self.pending_of_denied(denied) };
        let pending = std::mem::take(&mut denied.pending);
        let Some(last_local) = (0..2).rev().find(|&side| denied.local[side]) else {
            self.stats.not_local_denied += pending;
            return;
        };
        let denies = |side: usize| {
            denied.local[side] && denied.evaluations[side].as_deref().is_some_and(Evaluation::denies)
        };
        let explained = (0..2).find(|&side| denies(side));
        let unknown = |side: usize| denied.evaluations[side].as_deref().is_some_and(|e| e.unknown);
        // Where nobody denies for certain, one that may is the likelier owner than one that does not.
        let uncertain = (0..2).find(|&side| explained.is_none() && denied.local[side] && unknown(side));
        let belongs_to = explained.or(uncertain).unwrap_or(last_local);
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
                        policy_mismatch: passed(denied.evaluations[side].as_deref()),
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
            let told = evaluation.map(|evaluation| &evaluation.pending);
            let pending_trace = verdict
                .and_then(|verdict| verdict.pending.as_ref())
                .or(pending_now[side].as_ref().or(told))
                .unwrap_or(self.empty);
            let own = if side == 0 { source } else { dest };
            let judged = self.has_pending(own);
            let source_labels = labels_of_window(source, denied.earlier_labels[0].as_ref());
            let dest_labels = labels_of_window(dest, denied.earlier_labels[1].as_ref());
            let (incoming, outgoing) = match reporter {
                Reporter::Src => (Counters::default(), pending),
                Reporter::Dst => (pending, Counters::default()),
            };
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
                policy_mismatch: evaluation
                    .filter(|evaluation| !evaluation.unknown)
                    .map(|_| is_deny && explained.is_none()),
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

/// Nothing contradicts what was evaluated, if anything was.
fn passed(evaluation: Option<&Evaluation>) -> Option<bool> {
    evaluation.filter(|evaluation| !evaluation.unknown).map(|_| false)
}

/// `true` when the flow ended between two endpoints that are both known: its names need no flush.
pub(super) fn both_known(connection: &Connection) -> bool {
    connection.ends.iter().all(|end| end.is_some())
}

/// The node's own end may be a pod's on its host network, which only a process says, and none has yet.
pub(super) fn awaits_host_pod(connection: &Connection, cluster: &Cluster) -> bool {
    let has_process =
        |side: usize| connection.extra.as_ref().is_some_and(|extra| extra.processes[side].is_some());
    cluster.has_host_pods()
        && (0..2).any(|side| {
            connection.ends[side].as_ref().is_some_and(|end| end.is_bare_node) && !has_process(side)
        })
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
