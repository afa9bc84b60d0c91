//! What a record counts: one share for each process that is told apart, mostly a single one.
//!
//! In: contributions of flows, with their place in the order in which flows began. Out: counters, capped lists, the
//! columns of processes and TCP. Always: a contribution is in exactly one share, so that the shares of a record sum
//! to what was folded into it; merging shares loses nothing but what tells them apart; which values a capped list
//! holds does not depend on the order of folding. Not here: keys, labels and policies, which a record has once.

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Counters, Timestamp};

use super::process::{Budget, Group};
use super::tcp::TcpSums;
use super::{Contribution, Settings};

/// When a flow began, and its place among those of the same time.
pub(super) type Place = (Timestamp, u32);

pub(super) const NO_PLACE: Place = (Timestamp(i64::MAX), u32::MAX);

/// The distinct values that were seen first, whatever the order in which flows are folded.
#[derive(Clone, Debug)]
pub(super) struct FirstSeen<T> {
    values: Vec<(Place, T)>,
    /// No place from here on changes anything: the last place of a full list.
    latest: Place,
}

impl<T> Default for FirstSeen<T> {
    fn default() -> Self {
        Self { values: Vec::new(), latest: NO_PLACE }
    }
}

impl<T: Ord + Clone> FirstSeen<T> {
    pub(super) fn insert(&mut self, value: &T, place: Place, limit: usize) {
        if place >= self.latest {
            return;
        }
        if let Some(known) = self.values.iter_mut().find(|(_, known)| known == value) {
            known.0 = known.0.min(place);
        } else if self.values.len() < limit {
            self.values.push((place, value.clone()));
        } else if let Some(last) = self.values.iter_mut().max_by_key(|(place, _)| *place)
            && place < last.0
        {
            *last = (place, value.clone());
        }
        if self.values.len() >= limit {
            self.latest = self.values.iter().map(|(place, _)| *place).max().unwrap_or(NO_PLACE);
        }
    }

    fn merge(&mut self, other: &Self, limit: usize) {
        for (place, value) in &other.values {
            self.insert(value, *place, limit);
        }
    }

    fn clear(&mut self) {
        self.values.clear();
        self.latest = NO_PLACE;
    }

    pub(super) fn ascending(&self) -> Vec<T> {
        let mut values: Vec<T> = self.values.iter().map(|(_, value)| value.clone()).collect();
        values.sort_unstable();
        values
    }
}

/// What few shares have: where nothing of it is collected, it costs a pointer.
#[derive(Clone, Debug, Default)]
pub(super) struct Joined {
    pub(super) process: Option<Group>,
    pub(super) tcp: TcpSums,
    pub(super) domains: FirstSeen<Arc<str>>,
}

#[derive(Clone, Debug)]
pub(super) struct Share {
    pub(super) incoming: Counters,
    pub(super) outgoing: Counters,
    pub(super) num_flows: u64,
    pub(super) started: u64,
    pub(super) completed: u64,
    /// Of the flows that were open in this window, silent ones among them.
    pub(super) ips: [FirstSeen<IpAddr>; 2],
    pub(super) nat_ports: FirstSeen<u16>,
    /// The first of its flows.
    pub(super) first: Place,
    pub(super) joined: Option<Box<Joined>>,
}

impl Default for Share {
    fn default() -> Self {
        Self {
            incoming: Counters::default(),
            outgoing: Counters::default(),
            num_flows: 0,
            started: 0,
            completed: 0,
            ips: Default::default(),
            nat_ports: FirstSeen::default(),
            first: NO_PLACE,
            joined: None,
        }
    }
}

impl Share {
    /// `counted`: the flow is seen, started, completed, as far as no other contribution has told it.
    pub(super) fn fold(
        &mut self,
        flow: &Contribution<'_>,
        counted: [bool; 3],
        settings: &Settings,
        budget: &mut Budget,
    ) {
        self.incoming += flow.incoming;
        self.outgoing += flow.outgoing;
        self.num_flows += u64::from(counted[0]);
        self.started += u64::from(counted[1]);
        self.completed += u64::from(counted[2]);
        self.first = self.first.min(flow.first_seen);
        if flow.seen || flow.touched {
            for (ips, ip) in self.ips.iter_mut().zip([flow.source_ip, flow.dest_ip]) {
                if let Some(ip) = ip {
                    ips.insert(&ip, flow.first_seen, settings.ips_limit);
                }
            }
            if flow.nat_port != 0 {
                self.nat_ports.insert(&flow.nat_port, flow.first_seen, settings.nat_outgoing_ports_limit);
            }
        }
        if flow.process.is_none() && flow.tcp.is_none() && flow.domains.is_empty() {
            return;
        }
        let joined = self.joined.get_or_insert_default();
        if let Some(process) = flow.process {
            joined.process.get_or_insert_with(|| Group::named(process.name.clone())).add(
                process,
                flow.first_seen,
                budget,
            );
        }
        if let Some(sample) = flow.tcp {
            joined.tcp.add(sample);
        }
        for domain in flow.domains {
            joined.domains.insert(domain, flow.first_seen, settings.domains_limit);
        }
    }

    /// The process's name; `None` where none is known.
    pub(super) fn process_name(&self) -> Option<&Arc<str>> {
        self.joined.as_ref()?.process.as_ref()?.name()
    }

    /// No line is to be made of it. `suppress`: nor of flows that did nothing in this window.
    pub(super) fn is_silent(&self, suppress: bool) -> bool {
        let idle = self.incoming.is_zero() && self.outgoing.is_zero();
        idle && self.started == 0 && self.completed == 0 && (self.num_flows == 0 || suppress)
    }

    pub(super) fn merge(&mut self, other: &Self, settings: &Settings, budget: &mut Budget) {
        self.incoming += other.incoming;
        self.outgoing += other.outgoing;
        self.num_flows += other.num_flows;
        self.started += other.started;
        self.completed += other.completed;
        self.first = self.first.min(other.first);
        for (ips, more) in self.ips.iter_mut().zip(&other.ips) {
            ips.merge(more, settings.ips_limit);
        }
        self.nat_ports.merge(&other.nat_ports, settings.nat_outgoing_ports_limit);
        let Some(more) = &other.joined else { return };
        let joined = self.joined.get_or_insert_default();
        joined.tcp.merge(&more.tcp);
        joined.domains.merge(&more.domains, settings.domains_limit);
        if let Some(group) = &more.process {
            joined.process.get_or_insert_with(Group::several).merge(group, budget);
        }
    }

    /// For the next window.
    pub(super) fn reset(&mut self) {
        self.incoming = Counters::default();
        self.outgoing = Counters::default();
        self.num_flows = 0;
        self.started = 0;
        self.completed = 0;
        self.ips.iter_mut().for_each(FirstSeen::clear);
        self.nat_ports.clear();
        self.first = NO_PLACE;
        self.joined = None;
    }
}

/// The shares of a record.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    /// Flows of which no process is known: all of them, where none is collected.
    plain: Share,
    named: Vec<Share>,
    /// Of names beyond those that are kept apart.
    rest: Option<Box<Share>>,
}

/// Names of one record that are kept apart beside those that may have a line, so that the first seen are found
/// whatever the order of folding.
const SPARE_NAMES: usize = 64;

impl Shares {
    pub(super) fn fold(
        &mut self,
        flow: &Contribution<'_>,
        counted: [bool; 3],
        settings: &Settings,
        budget: &mut Budget,
    ) {
        let share = match flow.process {
            None => &mut self.plain,
            Some(process) => self.of(&process.name, flow.first_seen, settings, budget),
        };
        share.fold(flow, counted, settings, budget);
    }

    fn of(&mut self, name: &Arc<str>, place: Place, settings: &Settings, budget: &mut Budget) -> &mut Share {
        let at = self.named.iter().position(|share| share.process_name() == Some(name));
        let at = match at {
            Some(at) => at,
            None if self.named.len() < settings.process_limit.saturating_add(SPARE_NAMES) => {
                self.named.push(Share::default());
                self.named.len() - 1
            }
            None => {
                // The name that was seen last gives way.
                let last = self.named.iter().enumerate().max_by_key(|(_, share)| share.first);
                match last.filter(|(_, share)| place < share.first).map(|(at, _)| at) {
                    Some(at) => {
                        if let Some(share) = self.named.get_mut(at) {
                            let over = std::mem::take(share);
                            Self::rest(&mut self.rest).merge(&over, settings, budget);
                        }
                        at
                    }
                    None => return Self::rest(&mut self.rest),
                }
            }
        };
        // The place is there: it was found or made above.
        if at < self.named.len() { &mut self.named[at] } else { Self::rest(&mut self.rest) }
    }

    fn rest(rest: &mut Option<Box<Share>>) -> &mut Share {
        let rest = rest.get_or_insert_default();
        rest.joined.get_or_insert_default().process.get_or_insert_with(Group::several);
        rest
    }

    fn all(&self) -> impl Iterator<Item = &Share> {
        std::iter::once(&self.plain).chain(&self.named).chain(self.rest.as_deref())
    }

    pub(super) fn is_silent(&self, suppress: bool) -> bool {
        self.all().all(|share| share.is_silent(suppress))
    }

    /// Traffic toward and from the reporters, and how many flows started.
    pub(super) fn sums(&self) -> (Counters, Counters, u64) {
        let (mut incoming, mut outgoing, mut started) = (Counters::default(), Counters::default(), 0_u64);
        for share in self.all() {
            incoming += share.incoming;
            outgoing += share.outgoing;
            started = started.saturating_add(share.started);
        }
        (incoming, outgoing, started)
    }

    /// One share a line: the first names up to the limit, and one for all others. Flows of which no process is known
    /// have a line beside these, under `-`, which is no name.
    pub(super) fn lines(&mut self, settings: &Settings, budget: &mut Budget, mut line: impl FnMut(&Share)) {
        if self.named.is_empty() && self.rest.is_none() {
            return line(&self.plain);
        }
        let suppress = settings.idle_flows == super::IdleFlows::Suppress;
        let mut shares = std::mem::take(&mut self.named);
        shares.retain(|share| !share.is_silent(suppress));
        shares.sort_by_key(|share| share.first);
        let over = shares.split_off(shares.len().min(settings.process_limit));
        let mut rest = self.rest.take();
        for share in &over {
            Self::rest(&mut rest).merge(share, settings, budget);
        }
        shares.extend(rest.map(|share| *share));
        shares.push(std::mem::take(&mut self.plain));
        let printed = |share: &Share| match share.joined.as_ref().and_then(|joined| joined.process.as_ref()) {
            Some(group) => group.printed().clone(),
            None => "-".into(),
        };
        shares.sort_by_cached_key(printed);
        shares.iter().filter(|share| !share.is_silent(suppress)).for_each(line);
    }

    pub(super) fn reset(&mut self) {
        self.plain.reset();
        self.named.clear();
        self.rest = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A capped list holds the values whose first places are the earliest, whatever the order of insertion.
        #[test]
        fn the_first_seen_are_kept(
            seen in prop::collection::vec((0..12_u16, 0..3_i64, any::<u8>()), 0..40),
            limit in 0..6_usize,
        ) {
            let mut list = FirstSeen::default();
            let mut naive = std::collections::BTreeMap::new();
            // A place belongs to one flow, and so to one value.
            for (n, (value, at, place)) in seen.into_iter().enumerate() {
                let place = (Timestamp(at), u32::from(place) << 8 | n as u32);
                list.insert(&value, place, limit);
                let first = naive.entry(value).or_insert(place);
                *first = place.min(*first);
            }
            let mut first: Vec<_> = naive.into_iter().map(|(value, place)| (place, value)).collect();
            first.sort_unstable();
            let mut first: Vec<u16> = first.into_iter().take(limit).map(|(_, value)| value).collect();
            first.sort_unstable();
            prop_assert_eq!(list.ascending(), first);
        }
    }
}
