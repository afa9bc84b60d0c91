//! Denied flows: packets that a filter dropped, by five-tuple.
//!
//! In: drop increments. Out: flows that live 10 s past their last drop. Always: at most `limit` of them; drops of
//! a tuple that has no place are the caller's to count. Drops for other reasons than a filter never come here.

use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::model::{
    Addresses, Counters, DropRecord, Endpoint, Evaluation, FiveTuple, Labels, Process, ServiceName, Timestamp,
};

/// A denied flow completes this long after its last drop.
pub const DENIED_FLOW_LIFETIME: Duration = Duration::from_secs(10);

/// Reasons (`enum skb_drop_reason`, without the prefix) that mean "a filter said no".
pub fn is_filter_reason(reason: &str) -> bool {
    matches!(reason, "NETFILTER_DROP" | "TC_INGRESS" | "TC_EGRESS" | "BPF_CGROUP_EGRESS" | "XDP")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeniedKey {
    pub tuple: FiveTuple,
    pub icmp_id: u16,
}

impl DeniedKey {
    pub fn of(drop: &DropRecord) -> Self {
        let icmp_id = if drop.tuple.proto.is_icmp() { drop.icmp.map_or(0, |icmp| icmp.id) } else { 0 };
        Self { tuple: drop.tuple, icmp_id }
    }
}

#[derive(Clone, Debug)]
pub struct Denied {
    pub key: DeniedKey,
    /// Addresses before DNAT, where a drop or an unconfirmed connection lent them.
    pub original: Option<Addresses>,
    pub began: Timestamp,
    pub last: Timestamp,
    /// Not exported yet.
    pub pending: Counters,
    /// Of this window.
    pub reasons: Vec<Arc<str>>,
    pub ends: [Option<Arc<Endpoint>>; 2],
    pub service: Option<Arc<ServiceName>>,
    pub evaluations: [Option<Arc<Evaluation>>; 2],
    /// The evaluation is of the cluster's policies, not a dataplane's own verdict.
    pub judged: [bool; 2],
    /// State of the world's policies at which they were asked.
    pub judged_at: Option<u32>,
    /// Type and code, where a drop told them.
    pub icmp: Option<(u8, u8)>,
    pub records: [u32; 2],
    pub records_epoch: u16,
    pub settled: bool,
    pub local: [bool; 2],
    /// From the node itself to a pod of the same node.
    pub unpoliced: bool,
    /// A start that no record has counted yet, per reporter.
    pub started: [bool; 2],
    /// A confirmed connection with replies has the same tuple: it alone speaks for what passed.
    pub beside_connection: bool,
    /// Dropped in this window.
    pub touched: bool,
    /// Place in the order in which flows began.
    pub first_seen: u32,
    pub labels_epoch: u32,
    /// Labels that an end carried earlier in this window, before it was relabelled: `[source, destination]`.
    pub earlier_labels: [Option<Labels>; 2],
    /// The tuple was denied more than once in this window.
    pub reopened: bool,
    /// Who holds the sockets, `[source's, destination's]`, where it was told.
    pub processes: [Option<Arc<Process>>; 2],
    /// The names by which the source may have found the destination.
    pub domains: Option<Arc<[Arc<str>]>>,
}

impl Denied {
    pub fn new(drop: &DropRecord, at: Timestamp) -> Self {
        Self {
            key: DeniedKey::of(drop),
            original: drop.original,
            began: at,
            last: at,
            pending: Counters::default(),
            reasons: Vec::new(),
            ends: [None, None],
            service: None,
            evaluations: [None, None],
            judged: [false; 2],
            judged_at: None,
            icmp: drop.icmp.map(|icmp| (icmp.kind, icmp.code)),
            records: [u32::MAX; 2],
            records_epoch: 0,
            settled: false,
            local: [false; 2],
            unpoliced: false,
            started: [true; 2],
            beside_connection: false,
            touched: false,
            first_seen: 0,
            labels_epoch: 0,
            earlier_labels: [None, None],
            reopened: false,
            processes: [None, None],
            domains: None,
        }
    }

    pub fn count(&mut self, drop: &DropRecord, at: Timestamp) {
        self.pending += Counters::new(drop.packets, drop.bytes);
        self.last = at;
        self.touched = true;
        self.original = self.original.or(drop.original);
        if !self.reasons.contains(&drop.reason) {
            self.reasons.push(drop.reason.clone());
        }
    }

    pub fn is_over(&self, now: Timestamp) -> bool {
        now >= self.last.plus(DENIED_FLOW_LIFETIME)
    }
}

/// Insertion-ordered, so that the same input gives the same output.
pub struct DeniedTable {
    flows: Vec<Denied>,
    index: HashMap<DeniedKey, usize, RandomState>,
    limit: usize,
}

impl DeniedTable {
    pub fn new(limit: usize) -> Self {
        Self { flows: Vec::new(), index: HashMap::default(), limit }
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    pub fn get(&self, key: &DeniedKey) -> Option<&Denied> {
        self.index.get(key).and_then(|&at| self.flows.get(at))
    }

    pub fn get_mut(&mut self, key: &DeniedKey) -> Option<&mut Denied> {
        self.index.get(key).and_then(|&at| self.flows.get_mut(at))
    }

    /// By the connection's tuple; a drop without an ICMP identifier stands for all of them.
    pub fn of_connection(&self, tuple: FiveTuple, icmp_id: u16) -> Option<&Denied> {
        self.flows.get(self.place_of(tuple, icmp_id)?)
    }

    /// The same.
    pub fn of_connection_mut(&mut self, tuple: FiveTuple, icmp_id: u16) -> Option<&mut Denied> {
        let place = self.place_of(tuple, icmp_id)?;
        self.flows.get_mut(place)
    }

    fn place_of(&self, tuple: FiveTuple, icmp_id: u16) -> Option<usize> {
        let of = |icmp_id| self.index.get(&DeniedKey { tuple, icmp_id }).copied();
        of(icmp_id).or_else(|| of(0).filter(|_| icmp_id != 0))
    }

    /// Gives the flow back when there is no place. The key must not be in the table.
    pub fn insert(&mut self, denied: Denied) -> Result<(), Box<Denied>> {
        if self.flows.len() >= self.limit {
            return Err(Box::new(denied));
        }
        self.index.insert(denied.key, self.flows.len());
        self.flows.push(denied);
        Ok(())
    }

    /// Swaps the flow at `key` for another of the same key.
    pub fn replace(&mut self, denied: Denied) -> Option<Denied> {
        let place = self.get_mut(&denied.key)?;
        Some(std::mem::replace(place, denied))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Denied> {
        self.flows.iter_mut()
    }

    /// Keeps what `keep` says; order stays.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut Denied) -> bool) {
        let before = self.flows.len();
        self.flows.retain_mut(&mut keep);
        if self.flows.len() != before {
            self.index.clear();
            self.index.extend(self.flows.iter().enumerate().map(|(at, denied)| (denied.key, at)));
        }
    }
}
