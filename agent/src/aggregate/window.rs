//! The records of the current window.
//!
//! In: contributions of flows, folded under a record. Out: at the flush, the records, sorted. A record lives as
//! long as a live flow refers to it, so that a flow finds its record again without building its key.
//! Always: counters of what was folded are in exactly one record; a flow is counted once a window, also when its
//! key was opened again (`Contribution::once`); no more than `limit` records, and as many keys that came again; what
//! comes beyond is folded into one overflow record of its kind (action, reporter, protocol), so that totals stay exact.

use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::model::{
    Counters, FlowEnd, FlowLog, FlowLogs, Labels, Policies, Process, Reporter, TcpSample, Timestamp, Trace,
};

use super::process::Budget;
use super::share::{FirstSeen, Share, Shares};
use super::{IdleFlows, Level, RecordKey, RecordParts, Report, Settings, overflow_parts, parts};

/// Index of a record in the window.
pub type RecordId = u32;

/// Distinct drop reasons that a record lists.
const REASONS_LIMIT: usize = 16;

/// What one flow adds to a record.
#[derive(Clone, Debug, Default)]
pub struct Contribution<'a> {
    pub incoming: Counters,
    pub outgoing: Counters,
    /// The flow was open in this window.
    pub seen: bool,
    pub started: bool,
    pub completed: bool,
    /// Fingerprint of the flow's key, where the key may come more than once in this window.
    pub once: Option<u64>,
    /// Observed in this window: addresses, labels and ports are this window's.
    pub touched: bool,
    pub source_ip: Option<IpAddr>,
    pub dest_ip: Option<IpAddr>,
    /// 0 is none.
    pub nat_port: u16,
    /// When the flow began, and its place among those that began then: capped lists hold the first seen.
    pub first_seen: (Timestamp, u32),
    pub source_labels: Option<&'a Labels>,
    pub dest_labels: Option<&'a Labels>,
    pub all: Option<&'a Trace>,
    pub pending: Option<&'a Trace>,
    /// The last writer of `all` and `pending` wins.
    pub policies_sequence: u64,
    pub drop_reasons: &'a [Arc<str>],
    pub policy_mismatch: Option<bool>,
    /// The process at the reporter's end.
    pub process: Option<&'a Process>,
    /// Of the socket at the reporter's end, in this window.
    pub tcp: Option<&'a TcpSample>,
    pub domains: &'a [Arc<str>],
}

/// What the rules of one enforced trace decided about in a window.
#[derive(Clone, Copy, Debug)]
pub struct Decided<'a> {
    pub reporter: Reporter,
    pub enforced: &'a Trace,
    pub incoming: Counters,
    pub outgoing: Counters,
    /// Flows that started.
    pub started: u64,
}

#[derive(Clone, Debug, Default)]
struct Record {
    references: u32,
    shares: Shares,
    /// The labels are of a window in which this was set; until then they are the previous window's.
    touched: bool,
    labels: [Option<Labels>; 2],
    all: Trace,
    pending: Option<Trace>,
    policies_sequence: u64,
    drop_reasons: Vec<Arc<str>>,
    policy_mismatch: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WindowStats {
    /// Records left out of the last flush because one side is disabled.
    pub filtered_records: u64,
    /// Their traffic, toward and from the reporters.
    pub filtered: Counters,
    /// Records left out of the last flush by rules, and their traffic: by the rule's place in the list.
    pub filtered_by_rule: Vec<(u64, Counters)>,
    /// Flows of which the window could not remember that it counted them: should their key come again, it counts anew.
    pub not_remembered: u64,
    /// Flows that were folded into an overflow record.
    pub overflowed: u64,
    /// Process ids, names and arguments that a window had no memory for: columns that count them tell too few.
    pub process_values_refused: u64,
}

pub struct Window {
    settings: Settings,
    start: Timestamp,
    /// Records by their key.
    keys: HashTable<RecordId>,
    hasher: RandomState,
    records: Vec<Option<(RecordKey, Record)>>,
    free: Vec<RecordId>,
    /// Of keys that came more than once: (fingerprint, record) -> seen, started, completed.
    counted: std::collections::HashMap<(u64, RecordId), [bool; 3], RandomState>,
    not_remembered: u64,
    overflowed: u64,
    processes: Budget,
    /// What an overflow record says where a name would be.
    several: Arc<str>,
    epoch: u16,
    limit: usize,
}

impl Window {
    pub fn new(settings: Settings, start: Timestamp, limit: usize) -> Self {
        Self {
            settings,
            start,
            keys: HashTable::new(),
            hasher: RandomState::default(),
            records: Vec::new(),
            free: Vec::new(),
            counted: std::collections::HashMap::default(),
            not_remembered: 0,
            overflowed: 0,
            processes: Budget::default(),
            several: "*".into(),
            epoch: 1,
            limit: limit.min(RecordId::MAX as usize / 2),
        }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn start(&self) -> Timestamp {
        self.start
    }

    pub fn set_start(&mut self, start: Timestamp) {
        self.start = start;
    }

    /// Record ids of another epoch mean nothing any more.
    pub fn epoch(&self) -> u16 {
        self.epoch
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Right after a flush: from here on records have other keys. Flows must attach anew.
    pub fn reconfigure(&mut self, settings: Settings) {
        if settings != self.settings {
            self.settings = settings;
            self.keys.clear();
            self.records.clear();
            self.free.clear();
            self.epoch = self.epoch.wrapping_add(1).max(1);
        }
    }

    /// The record that counts this report, with one more flow that refers to it: the overflow record of the report's
    /// kind, where its own would be one too many.
    pub fn attach(&mut self, report: &Report<'_>) -> RecordId {
        let parts = parts(report, &self.settings);
        if let Some(id) = self.find(&parts) {
            return id;
        }
        if self.keys.len() < self.limit {
            return self.add(parts.to_key(report.service));
        }
        self.overflowed += 1;
        // Few of these there can be: they need no place within the limit.
        let several = self.several.clone();
        let parts = overflow_parts(report, &several);
        self.find(&parts).unwrap_or_else(|| self.add(parts.to_key(None)))
    }

    /// A record that there is already, with one more reference.
    fn find(&mut self, parts: &RecordParts<'_>) -> Option<RecordId> {
        let hash = self.hasher.hash_one(parts);
        let is_known = |id: &RecordId| matches!(self.records.get(*id as usize), Some(Some((key, _))) if key.parts() == *parts);
        let id = *self.keys.find(hash, is_known)?;
        if let Some(Some((_, record))) = self.records.get_mut(id as usize) {
            record.references += 1;
        }
        Some(id)
    }

    fn add(&mut self, key: RecordKey) -> RecordId {
        let hash = self.hasher.hash_one(key.parts());
        let record = Some((key, Record { references: 1, ..Record::default() }));
        let id = match self.free.pop() {
            Some(id) => {
                self.records[id as usize] = record;
                id
            }
            None => {
                self.records.push(record);
                (self.records.len() - 1) as RecordId
            }
        };
        let (records, hasher) = (&self.records, &self.hasher);
        self.keys.insert_unique(hash, id, |id| {
            records[*id as usize].as_ref().map_or(0, |(key, _)| hasher.hash_one(key.parts()))
        });
        id
    }

    /// A flow does not refer to the record any more; it stays until the flush.
    pub fn detach(&mut self, id: RecordId) {
        if let Some(Some((_, record))) = self.records.get_mut(id as usize) {
            record.references = record.references.saturating_sub(1);
        }
    }

    pub fn fold(&mut self, id: RecordId, flow: &Contribution<'_>) {
        let Some(Some((_, record))) = self.records.get_mut(id as usize) else { return };
        let mut count = [flow.seen, flow.started, flow.completed];
        if let Some(fingerprint) = flow.once {
            // Processes have lines of their own: the key counts once in each.
            let fingerprint =
                fingerprint ^ flow.process.map_or(0, |process| self.hasher.hash_one(&process.name));
            let is_full = self.counted.len() >= self.limit;
            match self.counted.entry((fingerprint, id)) {
                Entry::Vacant(_) if is_full => self.not_remembered += 1,
                Entry::Vacant(vacant) => {
                    vacant.insert(count);
                }
                Entry::Occupied(mut before) => {
                    for (count, before) in count.iter_mut().zip(before.get_mut()) {
                        let now = *count;
                        *count = now && !*before;
                        *before |= now;
                    }
                }
            }
        }
        record.shares.fold(flow, count, &self.settings, &mut self.processes);
        if flow.policy_mismatch > record.policy_mismatch {
            record.policy_mismatch = flow.policy_mismatch;
        }
        for reason in flow.drop_reasons {
            if record.drop_reasons.len() < REASONS_LIMIT && !record.drop_reasons.contains(reason) {
                record.drop_reasons.push(reason.clone());
            }
        }
        if flow.all.is_some() && flow.policies_sequence >= record.policies_sequence {
            record.policies_sequence = flow.policies_sequence;
            // Flows of one record mostly share their traces: a comparison is cheaper than a count of references.
            if let Some(all) = flow.all.filter(|all| !Arc::ptr_eq(&all.0, &record.all.0)) {
                record.all = all.clone();
            }
            match (&record.pending, flow.pending) {
                (Some(known), Some(now)) if Arc::ptr_eq(&known.0, &now.0) => {}
                (_, now) => record.pending = now.cloned(),
            }
        }
        if !flow.touched {
            // A silent flow changes no labels; but the first of a record that has none gives it its own.
            if record.touched || record.labels[0].is_some() {
                return;
            }
        } else if !record.touched {
            record.touched = true;
            record.labels = [None, None];
        }
        for (labels, more) in record.labels.iter_mut().zip([flow.source_labels, flow.dest_labels]) {
            let Some(more) = more else { continue };
            match labels {
                None => *labels = Some(more.clone()),
                Some(labels) if labels.is_within(more) => {}
                Some(labels) => *labels = labels.intersection(more),
            }
        }
    }

    /// Closes the window at `end`; the next one begins there. `decided` is told of every record that has a trace, also of
    /// those that are not written.
    pub fn flush(
        &mut self,
        end: Timestamp,
        lost_events: u64,
        mut decided: impl FnMut(Decided<'_>),
    ) -> (FlowLogs, WindowStats) {
        let not_remembered = std::mem::take(&mut self.not_remembered);
        let overflowed = std::mem::take(&mut self.overflowed);
        let mut stats = WindowStats { not_remembered, overflowed, ..WindowStats::default() };
        let mut order: Vec<RecordId> = Vec::with_capacity(self.keys.len());
        for (id, place) in self.records.iter().enumerate() {
            let Some((key, record)) = place else { continue };
            if record.shares.is_silent(self.settings.idle_flows == IdleFlows::Suppress) {
                continue;
            }
            if let Some(enforced) = &key.trace {
                let (incoming, outgoing, started) = record.shares.sums();
                decided(Decided { reporter: key.reporter, enforced, incoming, outgoing, started });
            }
            let enabled = if key.denied_level {
                self.settings.enabled_for_denied
            } else {
                self.settings.enabled_for_allowed
            };
            if enabled {
                order.push(id as RecordId);
            } else {
                stats.filtered_records += 1;
                let (incoming, outgoing, _) = record.shares.sums();
                stats.filtered += incoming;
                stats.filtered += outgoing;
            }
        }
        let records = &self.records;
        let at = |id: &RecordId| records[*id as usize].as_ref();
        order.sort_unstable_by(|a, b| match (at(a), at(b)) {
            (Some((a, _)), Some((b, _))) => a.order(b),
            _ => a.cmp(b),
        });
        let mut lines = Vec::with_capacity(order.len());
        for id in order {
            let Some(Some((key, record))) = self.records.get_mut(id as usize) else { continue };
            let mut shares = std::mem::take(&mut record.shares);
            shares.lines(&self.settings, &mut self.processes, |share| {
                lines.push(flow_log(key, record, share, &self.settings));
            });
            record.shares = shares;
        }
        stats.process_values_refused = std::mem::take(&mut self.processes).refused;
        let filters = &self.settings.filters;
        if !filters.is_empty() {
            stats.filtered_by_rule = vec![Default::default(); filters.0.len()];
            lines.retain(|log| {
                let Some(rule) = filters.dropped_by(log) else { return true };
                if let Some((records, traffic)) = stats.filtered_by_rule.get_mut(rule) {
                    *records += 1;
                    *traffic += log.incoming;
                    *traffic += log.outgoing;
                }
                false
            });
        }
        let logs = FlowLogs { start: self.start, end, lost_events, records: lines };

        for (id, place) in self.records.iter_mut().enumerate() {
            let Some((key, record)) = place else { continue };
            if record.references == 0 {
                let hash = self.hasher.hash_one(key.parts());
                if let Ok(entry) = self.keys.find_entry(hash, |other| *other as usize == id) {
                    entry.remove();
                }
                *place = None;
                self.free.push(id as RecordId);
                continue;
            }
            record.shares.reset();
            record.touched = false;
            record.policies_sequence = 0;
            record.drop_reasons.clear();
            record.policy_mismatch = None;
        }
        self.counted.clear();
        self.start = end;
        (logs, stats)
    }
}

fn flow_log(key: &RecordKey, record: &Record, share: &Share, settings: &Settings) -> FlowLog {
    let joined = share.joined.as_deref();
    let process = joined.and_then(|joined| joined.process.as_ref());
    let level = if key.denied_level { settings.level_for_denied } else { settings.level_for_allowed };
    let end = |end: &super::level::EndKey, labels: &Option<Labels>, ips: &FirstSeen<IpAddr>| {
        let ips = if level < Level::NamePrefix { Vec::new() } else { ips.ascending() };
        FlowEnd {
            kind: end.kind,
            namespace: end.namespace.clone(),
            name: end.name.clone(),
            name_aggr: end.name_aggr.clone(),
            ip: end.ip,
            port: end.port,
            labels: settings.include_labels.then(|| labels.clone().unwrap_or_default()),
            ips,
        }
    };
    let mut drop_reasons = record.drop_reasons.clone();
    drop_reasons.sort_unstable();
    FlowLog {
        source: end(&key.source, &record.labels[0], &share.ips[0]),
        dest: end(&key.dest, &record.labels[1], &share.ips[1]),
        nat_outgoing_ports: share.nat_ports.ascending(),
        service: key.service.clone(),
        hide_service_port_name: level == Level::NoDestinationPort,
        dest_domains: joined.map(|joined| joined.domains.ascending()).unwrap_or_default(),
        proto: key.proto,
        action: key.action,
        reporter: key.reporter,
        policies: key.trace.as_ref().map(|enforced| Policies {
            enforced: enforced.clone(),
            pending: record.pending.clone(),
            all: record.all.clone(),
        }),
        incoming: share.incoming,
        outgoing: share.outgoing,
        num_flows: share.num_flows,
        num_flows_started: share.started,
        num_flows_completed: share.completed,
        process: process.map(|group| group.columns(settings.process_args_limit)).unwrap_or_default(),
        tcp: joined.map(|joined| joined.tcp.columns()).unwrap_or_default(),
        drop_reasons,
        policy_mismatch: record.policy_mismatch,
    }
}
