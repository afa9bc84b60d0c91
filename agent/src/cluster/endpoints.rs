//! Who owned an address when: for each address a short list of intervals of time.
//!
//! In: openings and closings of ownership, in the order in which they were observed. Out: the owner at a time.
//! What always holds: an interval that is closed stays closed; an address that moves to another endpoint never
//! renames what came before; closed intervals are bounded for each address and in all, and what had to be forgotten
//! before its time is counted. A clone shares everything, and a change touches one address only.
//! Which object owns which address is deliberately not here: see `mod.rs`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Map;
use crate::model::{Endpoint, Timestamp};

/// How long the last owner of an address is still named after it has lost it (Calico: 10 s).
pub const GRACE: Duration = Duration::from_secs(10);
/// Closed intervals kept for one address; beyond it the oldest is forgotten and counted.
const CLOSED_OF_ONE: usize = 8;
/// Open intervals kept for one address (endpoints that claim it at once); beyond it the oldest is forgotten and
/// counted.
const OPEN_OF_ONE: usize = 16;
/// Closed intervals kept in all; beyond it the one that was closed first is forgotten and counted.
const CLOSED_OF_ALL: usize = 1 << 17;

/// The end of an interval that has none.
const OPEN: Timestamp = Timestamp(i64::MAX);

/// How strong a claim on an address is: where several hold one at once, the strongest owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// A HostEndpoint of all interfaces gives way to one that names its interface.
    Wildcard,
    /// A pod that is being deleted holds its address on paper until its object is gone; who was given it since is
    /// the owner.
    Leaving,
    Own,
}

#[derive(Clone, Debug)]
struct Interval {
    endpoint: Arc<Endpoint>,
    /// The endpoint's creation, known in whole seconds only; the beginning of time where nobody knows. Here too, so that a lookup
    /// need not fetch the endpoint.
    created: Timestamp,
    from: Timestamp,
    /// Exclusive; [`OPEN`] while it owns the address.
    until: Timestamp,
    /// Place in the order of all observations.
    observed: u64,
    claim: Claim,
}

impl Interval {
    fn is_open(&self) -> bool {
        self.until == OPEN
    }

    /// Could the endpoint have been there at `t`?
    fn created_by(&self, t: Timestamp) -> bool {
        self.created <= t
    }

    /// Owned the address at `t`. What was loaded before the first event has no beginning but its creation.
    fn covers(&self, t: Timestamp) -> bool {
        // Also at the end of time, which means now to those who ask for it.
        let has_begun_and_not_ended = self.from <= t && (t < self.until || self.is_open());
        has_begun_and_not_ended && (self.from > Timestamp::MIN || self.created_by(t))
    }

    /// Lost the address at most [`GRACE`] before `t`.
    fn in_grace(&self, t: Timestamp) -> bool {
        !self.is_open() && self.until <= t && t < self.until.plus(GRACE)
    }
}

fn created(endpoint: &Endpoint) -> Timestamp {
    endpoint.created.map_or(Timestamp::MIN, |at| Timestamp(at.floor_seconds().saturating_mul(1_000_000_000)))
}

/// The owners of all addresses, with their past.
#[derive(Clone, Default)]
pub(super) struct Owners {
    by_ip: Map<IpAddr, Arc<[Interval]>>,
    /// Ends of the closed intervals, so that expiry looks at nothing else. May hold an end twice over.
    ends: imbl::OrdMap<(Timestamp, IpAddr), u32>,
    closed: usize,
    observations: u64,
    forgotten: u64,
}

impl Owners {
    /// The owner of `ip` at `t`: (1) who held it then, the strongest claim first, then the latest observed; else (2) who held it last, within
    /// the grace; else (3) the next who was seen to hold it and may have done so already: watch events come late.
    pub fn at(&self, ip: IpAddr, t: Timestamp) -> Option<&Arc<Endpoint>> {
        let intervals = self.by_ip.get(&ip)?;
        if let [only] = &intervals[..]
            && only.covers(t)
        {
            return Some(&only.endpoint);
        }
        let held = intervals.iter().filter(|i| i.covers(t)).max_by_key(|i| (i.claim, i.observed));
        let recent =
            || intervals.iter().filter(|i| i.in_grace(t)).max_by_key(|i| (i.until, i.claim, i.observed));
        let next = || {
            intervals
                .iter()
                .filter(|i| i.from > t && i.created_by(t))
                .min_by_key(|i| (i.from, std::cmp::Reverse((i.claim, i.observed))))
        };
        held.or_else(recent).or_else(next).map(|i| &i.endpoint)
    }

    /// All that hold `ip` now.
    pub fn holders(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Endpoint>> {
        let intervals = self.by_ip.get(&ip).map_or(&[][..], |intervals| intervals);
        intervals.iter().filter(|i| i.is_open()).map(|i| &i.endpoint)
    }

    /// `endpoint` owns `ip` from `from` on.
    pub fn open(&mut self, ip: IpAddr, endpoint: &Arc<Endpoint>, claim: Claim, from: Timestamp) {
        self.observations += 1;
        let new = Interval {
            endpoint: endpoint.clone(),
            created: created(endpoint),
            from,
            until: OPEN,
            observed: self.observations,
            claim,
        };
        let Some(known) = self.by_ip.get(&ip) else {
            self.by_ip.insert(ip, [new].into());
            return;
        };
        let mut intervals = known.to_vec();
        intervals.push(new);
        if intervals.iter().filter(|i| i.is_open()).count() > OPEN_OF_ONE
            && let Some(first) = intervals.iter().position(|i| i.is_open())
        {
            intervals.remove(first);
            self.forgotten += 1;
        }
        self.by_ip.insert(ip, intervals.into());
    }

    /// The endpoint has a new version: the same owner since the same time, with other labels.
    pub fn renew(&mut self, ip: IpAddr, endpoint: &Arc<Endpoint>, claim: Claim, at: Timestamp) {
        let Some(known) = self.by_ip.get(&ip) else { return self.open(ip, endpoint, claim, at) };
        let mut intervals = known.to_vec();
        match intervals.iter_mut().find(|i| i.is_open() && i.endpoint.same_identity(endpoint)) {
            Some(interval) => {
                interval.endpoint = endpoint.clone();
                interval.created = created(endpoint);
                interval.claim = claim;
                self.by_ip.insert(ip, intervals.into());
            }
            None => self.open(ip, endpoint, claim, at),
        }
    }

    /// `endpoint` lost `ip` at `at`.
    pub fn close(&mut self, ip: IpAddr, endpoint: &Endpoint, at: Timestamp) {
        let Some(known) = self.by_ip.get(&ip) else { return };
        let mut intervals = known.to_vec();
        let Some(index) = intervals.iter().position(|i| i.is_open() && i.endpoint.same_identity(endpoint))
        else {
            return;
        };
        if at == Timestamp::MIN {
            // It never was: replaced before the first event.
            intervals.remove(index);
        } else if let Some(interval) = intervals.get_mut(index) {
            let until = at.max(interval.from).min(Timestamp(OPEN.0 - 1));
            interval.until = until;
            self.note_end(until, ip);
        }
        while intervals.iter().filter(|i| !i.is_open()).count() > CLOSED_OF_ONE {
            // An open one is the latest of all.
            let Some(oldest) = intervals.iter().map(|i| i.until).min() else { break };
            let Some(index) = intervals.iter().position(|i| i.until == oldest) else { break };
            intervals.remove(index);
            self.forgotten += 1;
            self.forget_end(oldest, ip);
        }
        self.store(ip, intervals);
        while self.closed > CLOSED_OF_ALL {
            let Some(&((until, ip), _)) = self.ends.get_min() else { break };
            self.forgotten += u64::from(self.forget_closed(until, ip));
        }
    }

    /// Forgets the intervals whose grace ended by `now`; says whether there was one.
    pub fn expire(&mut self, now: Timestamp) -> bool {
        let mut any = false;
        while let Some(&((until, ip), _)) = self.ends.get_min() {
            if until.plus(GRACE) > now {
                break;
            }
            self.forget_closed(until, ip);
            any = true;
        }
        any
    }

    /// Intervals that were forgotten before their time because too many were kept.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Addresses with an owner, present or past.
    pub fn addresses(&self) -> usize {
        self.by_ip.len()
    }

    fn store(&mut self, ip: IpAddr, intervals: Vec<Interval>) {
        if intervals.is_empty() {
            self.by_ip.remove(&ip);
        } else {
            self.by_ip.insert(ip, intervals.into());
        }
    }

    fn note_end(&mut self, until: Timestamp, ip: IpAddr) {
        *self.ends.entry((until, ip)).or_insert(0) += 1;
        self.closed += 1;
    }

    fn forget_end(&mut self, until: Timestamp, ip: IpAddr) {
        match self.ends.get_mut(&(until, ip)) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) => {
                self.ends.remove(&(until, ip));
            }
            None => return,
        }
        self.closed = self.closed.saturating_sub(1);
    }

    /// All intervals of `ip` that were closed at `until`: how many there were.
    fn forget_closed(&mut self, until: Timestamp, ip: IpAddr) -> u32 {
        let count = self.ends.remove(&(until, ip)).unwrap_or(0);
        self.closed = self.closed.saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
        if let Some(known) = self.by_ip.get(&ip) {
            let left: Vec<_> = known.iter().filter(|i| i.until != until).cloned().collect();
            self.store(ip, left);
        }
        count
    }
}
