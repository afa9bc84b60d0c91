//! The one path: observations in, flow logs out. Pure and synchronous.
//!
//! In: one [`Input`] at a time, the time it is at, the snapshot of the world. Out: at a flush, the window's records.
//! Always: every packet that was observed is in exactly one record per local end, or in a number of [`Stats`];
//! the same inputs give the same output. The daemon, `replay`, the tests and the benches call
//! nothing else. Not here: clocks, channels, files, JSON.

mod askers;
mod dns_log;
mod ends;
mod fold;
mod judge;
mod limits;
mod policy_use;
mod preview;
mod rules;
mod stats;
mod trusted;

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::aggregate::{Settings, Window};
use crate::flow::{
    Connection, ConnectionKey, ConnectionTable, Denied, DeniedKey, DeniedTable, Domains, Flags, Joins, Slot,
    Verdicts, is_filter_reason,
};
use crate::model::{
    Addresses, CheckpointEntry, ConnectionEvent, ConnectionRecord, Counters, Directional, DropRecord,
    Evaluation, FiveTuple, FlowLogs, KnownDomain, Observation, Timestamp, Trace,
};
use crate::policy::{Evaluator, ir::PolicyId};
use crate::snapshot::Snapshot;

pub use dns_log::{DnsLogSettings, DnsWindow};
use ends::PlainAddresses;
use fold::{Fold, both_known, refresh_denied_labels, refresh_labels};
pub use limits::Limits;
pub use policy_use::{PolicyUse, RuleUse, SelectedBy, UsedRule};
pub use preview::{Known, PreviewEvent, Previewer};
pub use stats::Stats;
use stats::count_by_name;
use trusted::Trusted;

/// What the pipeline is told.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    Observation(&'a Observation),
    /// Close the window now.
    Flush,
}

pub struct Pipeline {
    connections: ConnectionTable,
    /// Ended in this window, oldest first.
    ended: VecDeque<Connection>,
    /// How many of them have left the queue's front.
    ended_folded: u64,
    /// By the key's fingerprint: the last of `ended` with that key, counted from the window's first.
    ended_keys: HashMap<u64, u64, RandomState>,
    denied: DeniedTable,
    /// Denied flows that were over before the flush; no more of them than of open ones.
    denied_over: Vec<Denied>,
    /// Connections that never entered the table: what they lend to a denied flow.
    unconfirmed: Vec<(DeniedKey, Addresses)>,
    verdicts: Verdicts,
    joins: Joins,
    domains: Domains,
    trusted: Trusted,
    baselines: HashMap<ConnectionKey, Directional, RandomState>,
    evaluator: Evaluator,
    /// The evaluator's generation at which the selected endpoints were counted.
    selected_at: u64,
    window: Window,
    next_settings: Option<Settings>,
    plain: PlainAddresses,
    host_addresses: Vec<IpAddr>,
    nothing_evaluated: Arc<Evaluation>,
    empty: Trace,
    fingerprints: RandomState,
    first_seen: u32,
    lost_events: u64,
    /// When the current input was observed.
    at: Timestamp,
    /// The latest of these times.
    now: Timestamp,
    limits: Limits,
    stats: Stats,
}

/// Borrows what folding needs, beside the connections.
macro_rules! fold {
    ($pipeline:expr, $snapshot:expr, $denied:expr) => {
        Fold {
            cluster: &$snapshot.cluster,
            policies: &$snapshot.policies,
            evaluator: &mut $pipeline.evaluator,
            window: &mut $pipeline.window,
            verdicts: &$pipeline.verdicts,
            domains: &$pipeline.domains,
            denied: $denied,
            stats: &mut $pipeline.stats,
            plain: &$pipeline.plain,
            host_addresses: &$pipeline.host_addresses,
            nothing_evaluated: &$pipeline.nothing_evaluated,
            empty: &$pipeline.empty,
        }
    };
}

impl Pipeline {
    /// The first window begins at `start`.
    pub fn new(settings: Settings, limits: Limits, start: Timestamp) -> Self {
        let (mut domains, mut trusted) = (Domains::new(limits.domain_bytes), Trusted::default());
        configure_dns(&settings, &mut domains, &mut trusted);
        Self {
            connections: ConnectionTable::new(limits.connections),
            ended: VecDeque::new(),
            ended_folded: 0,
            ended_keys: HashMap::default(),
            denied: DeniedTable::new(limits.denied),
            denied_over: Vec::new(),
            unconfirmed: Vec::new(),
            verdicts: Verdicts::new(NonZeroUsize::new(limits.verdicts).unwrap_or(NonZeroUsize::MIN)),
            joins: Joins::new(limits.sockets),
            domains,
            trusted,
            baselines: HashMap::default(),
            evaluator: Evaluator::default(),
            selected_at: 0,
            window: Window::new(settings, start, limits.records),
            next_settings: None,
            plain: PlainAddresses::new(),
            host_addresses: Vec::new(),
            nothing_evaluated: Arc::default(),
            empty: Trace::default(),
            fingerprints: RandomState::default(),
            first_seen: 0,
            lost_events: 0,
            at: start,
            now: start,
            limits,
            stats: Stats::default(),
        }
    }

    /// This host's own addresses: they tell the reporter where there is no cluster.
    pub fn set_host_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.host_addresses = addresses;
    }

    /// Acts after the next flush; no counter is lost.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.next_settings = Some(settings);
    }

    /// Baselines of a clean stop: adopted connections continue from there.
    pub fn restore(&mut self, entries: impl IntoIterator<Item = CheckpointEntry>) {
        let limit = self.limits.connections;
        for entry in entries {
            if self.baselines.len() >= limit {
                break;
            }
            let key = ConnectionKey {
                original: entry.original,
                zone: entry.zone,
                icmp_id: entry.icmp_id,
                proto: entry.proto,
            };
            self.baselines.insert(key, entry.counters);
        }
    }

    /// All connections that exist have been adopted: what is left of the checkpoint is gone.
    pub fn finish_adoption(&mut self) {
        self.stats.checkpoint_gone += self.baselines.len() as u64;
        self.baselines = HashMap::default();
    }

    /// What is exported of the connections that live on.
    pub fn checkpoint(&self) -> impl Iterator<Item = CheckpointEntry> {
        self.connections.iter().map(|connection| CheckpointEntry {
            zone: connection.key.zone,
            proto: connection.key.proto,
            original: connection.key.original,
            icmp_id: connection.key.icmp_id,
            counters: connection.exported(),
        })
    }

    /// The names of addresses that DNS taught: for the file that outlives the agent, and back from it.
    pub fn domains(&self) -> &Domains {
        &self.domains
    }

    pub fn restore_domains(&mut self, known: impl IntoIterator<Item = KnownDomain>) {
        self.domains.restore(known);
    }

    /// Whether this server's answers are believed.
    pub fn believes(&mut self, server: IpAddr, snapshot: &Snapshot) -> bool {
        self.trusted.believes(server, &snapshot.cluster)
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Nothing lives or waits that could make a line.
    pub fn is_idle(&self) -> bool {
        self.connections.is_empty()
            && self.ended.is_empty()
            && self.denied.is_empty()
            && self.window.is_empty()
    }

    pub fn live_connections(&self) -> usize {
        self.connections.len()
    }

    /// One step. `now` is when it was observed: a flow may begin before what was stepped already (a source tells of
    /// a live connection when it is first swept), but windows abut: their times are those of
    /// the flushes, and never go backwards.
    pub fn step(&mut self, input: Input<'_>, now: Timestamp, snapshot: &Snapshot) -> Option<FlowLogs> {
        self.at = now;
        match input {
            Input::Observation(observation) => {
                self.now = self.now.max(now);
                self.observe(observation, snapshot);
                None
            }
            Input::Flush => {
                // Observations carry a wall clock that others may set: one time from the future must not stop ours.
                self.now = now.max(self.window.start());
                Some(self.flush(snapshot))
            }
        }
    }

    fn observe(&mut self, observation: &Observation, snapshot: &Snapshot) {
        match observation {
            Observation::Connection(record) => self.observe_connection(record, snapshot),
            Observation::Drop(drop) => self.observe_drop(drop, snapshot),
            Observation::Verdict(verdict) => {
                self.stats.verdicts_forgotten += u64::from(self.verdicts.observe(verdict, self.at));
            }
            Observation::Tcp(record) => self.joins.observe_tcp(record),
            Observation::Process(record) => self.observe_process(record, snapshot),
            Observation::Dns(record) => {
                if self.trusted.believes(record.server, &snapshot.cluster) {
                    self.domains.observe(record, self.at);
                } else {
                    self.stats.dns_untrusted += 1;
                }
            }
            Observation::Lost { stage, events } => {
                self.lost_events = self.lost_events.saturating_add(*events);
                count_by_name(&mut self.stats.lost, stage, *events);
            }
        }
    }

    fn observe_connection(&mut self, record: &ConnectionRecord, snapshot: &Snapshot) {
        self.observe_translation(record, snapshot);
        let key = ConnectionKey::of(record);
        let mut slot = self.connections.find(&key);
        match record.event {
            ConnectionEvent::End { confirmed: false } if slot.is_none() => {
                return self.observe_unconfirmed(&key, record);
            }
            ConnectionEvent::New => {
                if let Some(slot) = slot.take() {
                    self.end(slot, snapshot);
                }
            }
            _ => {}
        }
        let ends = matches!(record.event, ConnectionEvent::End { .. });
        let Some(slot) = slot else {
            let connection = self.begin(record, snapshot);
            if ends {
                self.finish(connection, snapshot);
            } else if self.connections.insert(connection).is_err() {
                // Its final counters still come, with its end.
                self.stats.connection_table_full += 1;
            }
            return;
        };
        let fingerprints = &self.fingerprints;
        if let Some(connection) = self.connections.get_mut(slot) {
            refresh_labels(&snapshot.cluster, connection);
            if !self.verdicts.is_empty() {
                // A verdict that moved folds what was counted so far: under its process.
                self.joins.take_processes(connection, false);
                let fingerprint = fingerprints.hash_one(key);
                fold!(self, snapshot, None).take_verdicts(connection, fingerprint, false);
            }
            connection.count(record.counters);
            if let Some(state) = record.tcp_state {
                connection.tcp_state = state;
                if state.is_over() {
                    connection.flags.set(Flags::COMPLETED);
                }
            }
            connection.flags.set(Flags::TOUCHED);
        }
        if ends {
            self.end(slot, snapshot);
        }
    }

    /// A connection that user space sees for the first time.
    fn begin(&mut self, record: &ConnectionRecord, snapshot: &Snapshot) -> Connection {
        let key = ConnectionKey::of(record);
        let mut adopted = Flags::default();
        let base = match record.event {
            ConnectionEvent::Adopt => {
                self.stats.connections_adopted += 1;
                adopted = Flags::ADOPTED;
                let known = self.baselines.remove(&key);
                known.filter(|base| base.is_within(record.counters)).unwrap_or(record.counters)
            }
            _ => Directional::default(),
        };
        let mut connection = Connection::new(record, base, self.at);
        connection.flags.set(adopted);
        if record.event == ConnectionEvent::New {
            self.stats.connections_started += 1;
            connection.flags.set(Flags::STARTED);
        }
        if record.tcp_state.is_some_and(|state| state.is_over()) {
            connection.flags.set(Flags::COMPLETED);
        }
        connection.flags.set(Flags::TOUCHED);
        connection.first_seen = self.first_seen;
        self.first_seen = self.first_seen.wrapping_add(1);
        connection.labels_epoch = snapshot.cluster.labels_epoch() as u32;
        let addresses = connection.reported().addresses;
        connection.ends = ends::endpoints(
            &snapshot.cluster,
            self.window.settings(),
            &addresses,
            self.at,
            &Default::default(),
        );
        fold!(self, snapshot, None).judge(&mut connection);
        if !self.verdicts.is_empty() {
            let fingerprint = self.fingerprint(&key);
            fold!(self, snapshot, None).take_verdicts(&mut connection, fingerprint, false);
        }
        if !self.ended_keys.is_empty() {
            let fingerprint = self.fingerprint(&key);
            if let Some(&place) = self.ended_keys.get(&fingerprint) {
                connection.flags.set(Flags::REOPENED);
                let place = place.checked_sub(self.ended_folded).and_then(|at| usize::try_from(at).ok());
                if let Some(earlier) = place.and_then(|at| self.ended.get_mut(at)) {
                    earlier.flags.set(Flags::REOPENED);
                }
            }
        }
        let reopened = connection.flags.has(Flags::REOPENED);
        self.joins.begin(&mut connection, reopened);
        connection
    }

    fn fingerprint(&self, key: &ConnectionKey) -> u64 {
        self.fingerprints.hash_one(key)
    }

    fn end(&mut self, slot: Slot, snapshot: &Snapshot) {
        if let Some(connection) = self.connections.remove(slot) {
            self.finish(connection, snapshot);
        }
    }

    /// The connection is over; it waits for the flush.
    fn finish(&mut self, mut connection: Connection, snapshot: &Snapshot) {
        self.stats.connections_completed += 1;
        connection.flags.set(Flags::COMPLETED);
        self.joins.end(&mut connection);
        if !connection.flags.has(Flags::SETTLED) {
            let addresses = connection.reported().addresses;
            connection.ends = ends::endpoints(
                &snapshot.cluster,
                self.window.settings(),
                &addresses,
                connection.began,
                &connection.ends,
            );
            if both_known(&connection) {
                fold!(self, snapshot, None).settle(&mut connection);
            }
        }
        fold!(self, snapshot, None).judge_pending(&mut connection);
        if self.ended_keys.len() < self.limits.reopened {
            let place = self.ended_folded + self.ended.len() as u64;
            let fingerprint = self.fingerprint(&connection.key);
            self.ended_keys.insert(fingerprint, place);
        }
        // The oldest leaves before the new one comes: a queue one longer than its limit would take twice the memory.
        let oldest = if self.ended.len() < self.limits.ended { None } else { self.ended.pop_front() };
        let oldest = if self.limits.ended == 0 {
            Some(connection)
        } else {
            self.ended.push_back(connection);
            oldest
        };
        if let Some(mut oldest) = oldest {
            self.ended_folded += 1;
            self.stats.settled_early += u64::from(!oldest.flags.has(Flags::SETTLED));
            oldest.flags.set(Flags::REOPENED); // its key may still come again in this window
            let fingerprint = self.fingerprint(&oldest.key);
            self.joins.take_processes(&mut oldest, true);
            let mut fold = fold!(self, snapshot, Some(&mut self.denied));
            fold.take_verdicts(&mut oldest, fingerprint, true);
            fold.connection(&mut oldest, fingerprint, [false; 2], true);
        }
    }

    fn observe_unconfirmed(&mut self, key: &ConnectionKey, record: &ConnectionRecord) {
        let addresses =
            Addresses { dst: record.reply.src, dst_port: record.reply.src_port, ..record.original };
        let tuple = FiveTuple { proto: record.proto, addresses };
        if self.unconfirmed.len() >= self.limits.denied {
            self.stats.unconfirmed_other += 1;
            return;
        }
        self.unconfirmed.push((DeniedKey { tuple, icmp_id: key.icmp_id }, record.original));
    }

    /// How many endpoints of this node each policy selects, where that may have changed.
    fn count_selected(&mut self, snapshot: &Snapshot) {
        let generation = self.evaluator.follow(&snapshot.cluster, &snapshot.policies);
        if std::mem::replace(&mut self.selected_at, generation) == generation {
            return;
        }
        let pods = snapshot.cluster.pods().filter(|pod| !pod.ips.is_empty()).map(|pod| &pod.endpoint);
        let heps = snapshot.cluster.host_endpoints().map(|hep| &hep.endpoint);
        let local = pods.chain(heps).filter(|endpoint| snapshot.cluster.is_local(endpoint));
        let selected = self.evaluator.selected(&snapshot.cluster, &snapshot.policies, local);
        self.stats.policy_use.selected = selected
            .into_iter()
            .map(|(tier, PolicyId { kind, namespace, name }, endpoints)| SelectedBy {
                tier,
                kind,
                namespace,
                name,
                endpoints,
            })
            .collect();
    }

    fn observe_drop(&mut self, drop: &DropRecord, snapshot: &Snapshot) {
        if !is_filter_reason(&drop.reason) {
            return count_by_name(&mut self.stats.other_drops, &drop.reason, drop.packets);
        }
        let now = self.now;
        let key = DeniedKey::of(drop);
        let settings = self.window.settings();
        let mut fresh = Denied::new(drop, self.at);
        fresh.first_seen = self.first_seen;
        self.first_seen = self.first_seen.wrapping_add(1);
        fresh.labels_epoch = snapshot.cluster.labels_epoch() as u32;
        let unknown = Default::default();
        fresh.ends = ends::endpoints(&snapshot.cluster, settings, &key.tuple.addresses, self.at, &unknown);
        let Some(denied) = self.denied.get_mut(&key) else {
            let mut fold = fold!(self, snapshot, None);
            fold.judge_denied(&mut fresh);
            fold.take_denied_verdicts(&mut fresh);
            fresh.count(drop, now);
            if let Err(mut homeless) = self.denied.insert(fresh) {
                self.stats.denied_overflow += Counters::new(drop.packets, drop.bytes);
                homeless.reopened = true; // its tuple may come again in this window
                let fingerprint = self.fingerprints.hash_one(key);
                fold!(self, snapshot, None).denied(&mut homeless, fingerprint, true);
            }
            return;
        };
        let mut fold = fold!(self, snapshot, None);
        let moved = fold.take_denied_verdicts(denied) || fold.judge_denied(denied);
        if moved || denied.is_over(now) {
            let mut next = fresh;
            next.reopened = true;
            next.beside_connection = denied.beside_connection;
            fold.judge_denied(&mut next);
            fold.take_denied_verdicts(&mut next);
            next.count(drop, now);
            let mut over = std::mem::replace(denied, next);
            over.reopened = true;
            if self.denied_over.len() < self.limits.denied {
                self.denied_over.push(over);
            } else {
                let fingerprint = self.fingerprints.hash_one(key);
                fold!(self, snapshot, None).denied(&mut over, fingerprint, true);
            }
        } else {
            refresh_denied_labels(&snapshot.cluster, denied);
            denied.count(drop, now);
        }
    }

    fn flush(&mut self, snapshot: &Snapshot) -> FlowLogs {
        let now = self.now;
        for (key, original) in std::mem::take(&mut self.unconfirmed) {
            match self.denied.get_mut(&key) {
                Some(denied) => denied.original = denied.original.or(Some(original)),
                None => self.stats.unconfirmed_other += 1,
            }
        }

        for mut connection in std::mem::take(&mut self.ended) {
            let fingerprint = self.fingerprints.hash_one(connection.key);
            self.joins.take_processes(&mut connection, true);
            self.joins.take_tcp(&mut connection);
            let mut fold = fold!(self, snapshot, Some(&mut self.denied));
            fold.take_verdicts(&mut connection, fingerprint, true);
            fold.connection(&mut connection, fingerprint, [false; 2], true);
        }
        let fingerprints = &self.fingerprints;
        // A connection is counted through its key's fingerprint only where the key came more than once, or a
        // verdict or a denial may have moved it.
        let needs_fingerprint = !self.verdicts.is_empty() || !self.denied.is_empty();
        for connection in self.connections.iter_mut() {
            let fingerprint = if needs_fingerprint || connection.flags.has(Flags::REOPENED) {
                fingerprints.hash_one(connection.key)
            } else {
                0
            };
            self.joins.take_processes(connection, false);
            let mut fold = fold!(self, snapshot, Some(&mut self.denied));
            fold.take_verdicts(connection, fingerprint, false);
            fold.settle(connection);
            fold.judge_pending(connection);
            // Only now: what a verdict that moved folds is not the window's last.
            self.joins.take_tcp(connection);
            fold.connection(connection, fingerprint, [false; 2], false);
        }

        let mut fold = fold!(self, snapshot, None);
        for mut denied in std::mem::take(&mut self.denied_over) {
            let fingerprint = fingerprints.hash_one(denied.key);
            self.joins.take_denied(&mut denied);
            fold.denied(&mut denied, fingerprint, true);
        }
        self.denied.retain(|denied| {
            self.joins.take_denied(denied);
            let moved = fold.take_denied_verdicts(denied);
            denied.last = denied.last.min(now);
            let over = moved || denied.is_over(now);
            fold.denied(denied, fingerprints.hash_one(denied.key), over);
            !over
        });

        self.ended_keys.clear();
        self.ended_folded = 0;
        self.verdicts.close_window();
        self.joins.close_window();
        self.domains.expire(now);
        self.stats.domains_forgotten = self.domains.forgotten;
        self.stats.joins = self.joins.stats;
        let lost_events = std::mem::take(&mut self.lost_events);
        let used = &mut self.stats.policy_use;
        let (logs, window) = self.window.flush(now, lost_events, |decided| used.count(&decided));
        self.count_selected(snapshot);
        self.stats.filtered_records += window.filtered_records;
        self.stats.filtered += window.filtered;
        let rules = window.filtered_by_rule.len().max(self.stats.filtered_by_rule.len());
        self.stats.filtered_by_rule.resize(rules, Default::default());
        for (total, now) in self.stats.filtered_by_rule.iter_mut().zip(window.filtered_by_rule) {
            total.0 += now.0;
            total.1 += now.1;
        }
        self.stats.not_remembered += window.not_remembered;
        self.stats.window_overflow += window.overflowed;
        self.stats.process_values_refused += window.process_values_refused;
        if let Some(settings) = self.next_settings.take() {
            configure_dns(&settings, &mut self.domains, &mut self.trusted);
            self.window.reconfigure(settings);
        }
        logs
    }
}

fn configure_dns(settings: &Settings, domains: &mut Domains, trusted: &mut Trusted) {
    let dns = &settings.dns;
    domains.configure(dns.by_client, dns.extra_ttl, dns.cache_epoch);
    trusted.configure(&dns.trusted_servers);
}

#[cfg(test)]
mod tests;
