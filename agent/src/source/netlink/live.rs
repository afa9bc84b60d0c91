//! The connections that this source has announced and not ended: what it takes to notice losses.
//!
//! In: events in the order of their queue, and passes (whole dumps), in turns. Out: observations. Pure: no socket, no
//! clock. Bounded by `capacity`; a connection that finds no room is still told (New, End), only its loss
//! could go unnoticed, and that is counted as `netlink_untracked`.
//!
//! What holds, whatever order a dump and the events race in:
//! - a connection whose NEW event comes during a dump is announced by that event alone;
//! - an entry that a dump shows and nobody announced is New (Adopt in the first pass), as soon as the dump is over;
//! - what an event told of a connection is newer than what the dump shows in the same turn, which the kernel wrote before;
//! - what we ended on its last known counters stays remembered for some passes: should it turn up again, it is
//!   adopted at those counters, so that nothing is exported twice and nothing is left out.
//!
//! Not here: deltas. Counters are handed on as the kernel gave them.

use hashbrown::{HashMap, HashSet};
use indexmap::IndexMap;

use super::parse::{CtKey, CtKind, CtMessage};
use crate::model::{
    Addresses, ConnectionEvent, ConnectionRecord, Counters, Directional, Fill, FiveTuple, Icmp, Observation,
    TcpState, Timestamp,
};
use crate::source::Observed;

/// Ended on its last counters because its end was never told, and a dump no longer shows it.
pub(super) const MISSED_END: &str = "netlink_missed_end";
/// The same, of a connection older than the agent: the kernel sends no DESTROY for these.
pub(super) const ADOPTED_TAIL: &str = "adopted_tail";
/// Ended while the agent started, before its counters could be taken as baseline: not exported.
pub(super) const ADOPTED_UNSEEN: &str = "adopted_unseen";
/// No room to remember it.
pub(super) const UNTRACKED: &str = "netlink_untracked";

/// Passes for which an ended connection stays remembered.
const LINGER: u8 = 8;

/// What a pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// The first: everything is older than the agent.
    Adopt,
    /// An Update for every live connection.
    Sweep,
    /// Only what begins and ends.
    Quiet,
}

/// What is known of how whole a pass was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completeness {
    /// The dump was not interrupted and all events queued behind it were read: absence means gone.
    pub whole: bool,
    /// Events were lost before the dump: entries that announce their end may have missed it.
    pub after_loss: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Seen by the running pass for the first time, not told yet.
    Candidate,
    /// New was told. `new_expected`: from a dump, its event may still come.
    Announced { new_expected: bool },
    /// Adopted: may end without a word.
    Adopted,
    /// Ended on its last counters; remembered in case it turns up again.
    Ended { adopted: bool },
}

struct Entry {
    counters: Directional,
    /// Only where it is not the original reversed (NAT).
    reply: Option<Box<Addresses>>,
    id: u32,
    icmp: (u8, u8),
    tcp_state: Option<TcpState>,
    /// The pass that saw it (or ended it) last.
    seen: u8,
    /// Its NEW event came while the running pass did: what the dump shows under its key may be another's.
    fresh: bool,
    phase: Phase,
}

impl Entry {
    fn new(m: &CtMessage, phase: Phase, seen: u8) -> Self {
        let reply = (m.reply != m.key.original.addresses.reversed()).then(|| Box::new(m.reply));
        Self {
            counters: m.counters.unwrap_or_default(),
            reply,
            id: m.id.unwrap_or(0),
            icmp: m.icmp.map_or((0, 0), |i| (i.kind, i.code)),
            tcp_state: m.tcp_state,
            seen,
            fresh: false,
            phase,
        }
    }

    fn record(&self, key: &CtKey, event: ConnectionEvent) -> ConnectionRecord {
        let FiveTuple { proto, addresses: original } = key.original;
        ConnectionRecord {
            event,
            proto,
            original,
            reply: self.reply.as_deref().copied().unwrap_or_else(|| original.reversed()),
            icmp: proto.is_icmp().then_some(Icmp { kind: self.icmp.0, code: self.icmp.1, id: key.icmp_id }),
            zone: key.zone,
            counters: self.counters,
            tcp_state: self.tcp_state,
        }
    }

    /// Could `m` be a later look at this connection?
    fn continues_as(&self, m: &CtMessage) -> bool {
        m.id.unwrap_or(0) == self.id && m.counters.is_none_or(|c| not_below(c, self.counters))
    }
}

fn not_below(a: Directional, b: Directional) -> bool {
    let one = |a: Counters, b: Counters| a.packets >= b.packets && a.bytes >= b.bytes;
    one(a.original, b.original) && one(a.reply, b.reply)
}

fn told(m: &CtMessage, event: ConnectionEvent, at: Timestamp) -> Observed {
    let FiveTuple { proto, addresses: original } = m.key.original;
    Observed {
        at,
        observation: Observation::Connection(ConnectionRecord {
            event,
            proto,
            original,
            reply: m.reply,
            icmp: m.icmp,
            zone: m.key.zone,
            counters: m.counters.unwrap_or_default(),
            tcp_state: m.tcp_state,
        }),
    }
}

const END: ConnectionEvent = ConnectionEvent::End { confirmed: true };

/// Counts since they were last taken, by stage.
#[derive(Default)]
pub(super) struct Losses(Vec<(&'static str, u64)>);

impl Losses {
    pub fn add(&mut self, stage: &'static str, n: u64) {
        match self.0.iter_mut().find(|(name, _)| *name == stage) {
            Some((_, total)) => *total = total.saturating_add(n),
            None => self.0.push((stage, n)),
        }
    }

    pub fn take(&mut self) -> Vec<(&'static str, u64)> {
        std::mem::take(&mut self.0)
    }
}

pub(super) struct Live {
    /// Dense: in a table of buckets, those that are empty would take as much memory as the others.
    entries: IndexMap<CtKey, Entry, foldhash::fast::RandomState>,
    capacity: usize,
    adopted: usize,
    pass: u8,
    running: Option<Pass>,
    /// Ended by an event since the dump's last turn: what it shows of them was written before.
    destroyed: HashSet<CtKey, foldhash::fast::RandomState>,
    /// Where the entries of a batch were found.
    places: Vec<Option<usize>>,
    /// Seen by this turn of a sweep, and where: told as soon as the events are known that came before the kernel wrote them.
    to_update: Vec<(usize, CtKey)>,
    /// The same of connections that found no room.
    untracked: Vec<CtMessage>,
    /// Entries whose key a pass found under another connection: settled when its events are known.
    replaced: HashMap<CtKey, CtMessage, foldhash::fast::RandomState>,
    pub losses: Losses,
}

impl Live {
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: IndexMap::default(),
            capacity,
            adopted: 0,
            pass: 0,
            running: None,
            destroyed: HashSet::default(),
            places: Vec::new(),
            to_update: Vec::new(),
            untracked: Vec::new(),
            replaced: HashMap::default(),
            losses: Losses::default(),
        }
    }

    pub fn fill(&self) -> Fill {
        Fill::entries("connections", self.entries.len(), self.capacity)
    }

    /// Adopted connections not ended yet: they may end without an event.
    pub fn adopted(&self) -> usize {
        self.adopted
    }

    pub fn begin_pass(&mut self, pass: Pass) {
        self.pass = self.pass.wrapping_add(1);
        self.running = Some(pass);
    }

    /// A turn of the running pass's dump is over: what it shows next is written after the events that were told.
    pub fn end_turn(&mut self) {
        self.destroyed.clear();
    }

    /// Entries of the running pass's dump. Repeats do no harm.
    pub fn see(&mut self, batch: &[CtMessage], at: Timestamp, out: &mut Vec<Observed>) {
        // All are looked up first: in a large table each waits for memory, and so they wait side by side.
        let mut places = std::mem::take(&mut self.places);
        places.extend(batch.iter().map(|m| self.entries.get_index_of(&m.key)));
        for (m, place) in batch.iter().zip(places.drain(..)) {
            self.see_one(m, place, at, out);
        }
        self.places = places;
    }

    /// `place`: where it was before its batch, which adds at the end alone.
    fn see_one(&mut self, m: &CtMessage, place: Option<usize>, at: Timestamp, out: &mut Vec<Observed>) {
        let Some(pass) = self.running else { return };
        if self.destroyed.contains(&m.key) {
            return;
        }
        let room = self.entries.len() < self.capacity;
        let seen = self.pass;
        // One that was not there may have come with the batch.
        let Some(place) = place.or_else(|| self.entries.get_index_of(&m.key)) else {
            if room {
                self.entries.insert(m.key, Entry::new(m, Phase::Candidate, seen));
            } else {
                self.losses.add(UNTRACKED, 1);
                match pass {
                    Pass::Adopt => out.push(told(m, ConnectionEvent::Adopt, at)),
                    Pass::Sweep => self.untracked.push(*m),
                    Pass::Quiet => {}
                }
            }
            return;
        };
        let Some((_, entry)) = self.entries.get_index_mut(place) else { return };
        match entry.phase {
            Phase::Ended { adopted } if entry.continues_as(m) => {
                out.push(observed(at, entry.record(&m.key, ConnectionEvent::Adopt)));
                entry.phase = if adopted { Phase::Adopted } else { Phase::Announced { new_expected: false } };
            }
            // Another has its place: of one that nobody has told there is nothing to end.
            Phase::Candidate if !entry.continues_as(m) => {
                *entry = Entry::new(m, Phase::Candidate, seen);
                return;
            }
            Phase::Ended { .. } => {
                *entry = Entry::new(m, Phase::Candidate, seen);
                return;
            }
            Phase::Announced { .. } if entry.fresh => {
                entry.seen = seen;
                return;
            }
            Phase::Candidate => {}
            Phase::Announced { .. } | Phase::Adopted if entry.continues_as(m) => {}
            Phase::Announced { .. } | Phase::Adopted => {
                entry.seen = seen;
                self.replaced.insert(m.key, *m);
                return;
            }
        }
        let counters = m.counters.unwrap_or(entry.counters);
        let is_news = entry.seen != seen || counters != entry.counters;
        entry.seen = seen;
        entry.counters = counters;
        entry.tcp_state = m.tcp_state.or(entry.tcp_state);
        if pass == Pass::Sweep && is_news && entry.phase != Phase::Candidate {
            self.to_update.push((place, m.key));
        }
    }

    /// After [`Self::end_turn`] and all events that were queued then: an Update for what the turn has shown and no event has
    /// said better. One that ended and began anew under its key must not pass for itself.
    pub fn tell_seen(&mut self, at: Timestamp, out: &mut Vec<Observed>) {
        for (place, key) in self.to_update.drain(..) {
            let there = self.entries.get_index(place).filter(|(there, _)| **there == key);
            // An end in the meantime moves the last one to its place.
            let entry = there.map_or_else(|| self.entries.get(&key), |(_, entry)| Some(entry));
            if let Some(entry) = entry
                && matches!(entry.phase, Phase::Announced { .. } | Phase::Adopted)
                && !entry.fresh
            {
                out.push(observed(at, entry.record(&key, ConnectionEvent::Update)));
            }
        }
        for m in self.untracked.drain(..).filter(|m| !self.destroyed.contains(&m.key)) {
            out.push(told(&m, ConnectionEvent::Update, at));
        }
    }

    /// Events still wait: what the turn has shown is left to the next sweep.
    pub fn forget_seen(&mut self) {
        self.to_update.clear();
        self.untracked.clear();
    }

    /// The dump failed half way: forget what only it has shown.
    pub fn abandon_pass(&mut self) {
        self.running = None;
        self.destroyed.clear();
        self.to_update.clear();
        self.replaced.clear();
        self.untracked.clear();
        self.entries.retain(|_, entry| {
            entry.fresh = false;
            entry.phase != Phase::Candidate
        });
    }

    /// The dump is over, and the events that came during it are told.
    pub fn finish_pass(&mut self, completeness: Completeness, at: Timestamp, out: &mut Vec<Observed>) {
        let Some(pass) = self.running.take() else { return };
        self.destroyed.clear();
        let Self { entries, losses, .. } = self;
        let current = self.pass;
        let mut adopted = 0;
        entries.retain(|key, entry| {
            let seen = entry.seen == current;
            entry.fresh = false;
            match entry.phase {
                Phase::Candidate => {
                    let event = if pass == Pass::Adopt {
                        entry.phase = Phase::Adopted;
                        ConnectionEvent::Adopt
                    } else {
                        entry.phase = Phase::Announced { new_expected: true };
                        ConnectionEvent::New
                    };
                    out.push(observed(at, entry.record(key, event)));
                }
                Phase::Announced { .. } | Phase::Adopted if seen => {
                    if let Phase::Announced { new_expected } = &mut entry.phase {
                        // It had a whole pass's time to come, unless events still wait.
                        *new_expected &= !completeness.whole;
                    }
                }
                Phase::Announced { .. } | Phase::Adopted => {
                    let was_adopted = entry.phase == Phase::Adopted;
                    // The end of an announced one is an event: its absence alone says little (a dump passes
                    // over entries whose time is up but which are not destroyed yet).
                    let owed = was_adopted || completeness.after_loss;
                    if completeness.whole && owed {
                        losses.add(if was_adopted { ADOPTED_TAIL } else { MISSED_END }, 1);
                        out.push(observed(at, entry.record(key, END)));
                        entry.phase = Phase::Ended { adopted: was_adopted };
                        entry.seen = current;
                    }
                }
                Phase::Ended { .. } => {
                    if current.wrapping_sub(entry.seen) > LINGER {
                        return false;
                    }
                }
            }
            adopted += usize::from(entry.phase == Phase::Adopted);
            true
        });
        self.adopted = adopted;
        for m in std::mem::take(&mut self.replaced).into_values() {
            self.replace(&m, true, at, out);
        }
        if self.entries.capacity() > 4 * self.entries.len().max(1024) {
            self.entries.shrink_to_fit();
        }
    }

    /// One event. Before the adoption has ended, a DESTROY of an unknown connection is most likely of one older than the
    /// agent, whose baseline is not known.
    pub fn event(&mut self, m: &CtMessage, at: Timestamp, out: &mut Vec<Observed>) {
        if !self.replaced.is_empty() {
            // It says of this key what the dump can only guess at.
            self.replaced.remove(&m.key);
        }
        match m.kind {
            CtKind::New => match self.entries.get_mut(&m.key) {
                Some(Entry { phase: Phase::Announced { new_expected: expected @ true }, id, .. })
                    if *id == m.id.unwrap_or(0) =>
                {
                    *expected = false;
                }
                _ => self.replace(m, false, at, out),
            },
            CtKind::Destroy => {
                if self.running.is_some() {
                    self.destroyed.insert(m.key);
                }
                let Some(mut entry) = self.entries.swap_remove(&m.key) else {
                    if self.running == Some(Pass::Adopt) {
                        self.losses.add(ADOPTED_UNSEEN, 1);
                    } else {
                        // Its NEW was lost, or it found no room: the final counters are all there is to know.
                        out.push(told(m, END, at));
                    }
                    return;
                };
                match entry.phase {
                    // Ended too early: the rest is exported from where it was left.
                    Phase::Ended { .. } => {
                        out.push(observed(at, entry.record(&m.key, ConnectionEvent::Adopt)));
                    }
                    // Shown by the dump, not told yet, and nobody announced it.
                    Phase::Candidate => {
                        let is_older = self.running == Some(Pass::Adopt);
                        let event = if is_older { ConnectionEvent::Adopt } else { ConnectionEvent::New };
                        out.push(observed(at, entry.record(&m.key, event)));
                    }
                    Phase::Adopted => self.adopted = self.adopted.saturating_sub(1),
                    Phase::Announced { .. } => {}
                }
                entry.counters = m.counters.unwrap_or(entry.counters);
                entry.tcp_state = m.tcp_state.or(entry.tcp_state);
                out.push(observed(at, entry.record(&m.key, END)));
            }
            CtKind::Update | CtKind::Entry => {}
        }
    }

    /// A connection begins under this key; one that is still open there has ended unseen.
    fn replace(&mut self, m: &CtMessage, new_expected: bool, at: Timestamp, out: &mut Vec<Observed>) {
        if let Some(old) = self.entries.get(&m.key) {
            let stage = match old.phase {
                Phase::Adopted => {
                    self.adopted = self.adopted.saturating_sub(1);
                    Some(ADOPTED_TAIL)
                }
                Phase::Announced { .. } => Some(MISSED_END),
                Phase::Candidate | Phase::Ended { .. } => None,
            };
            if let Some(stage) = stage {
                self.losses.add(stage, 1);
                out.push(observed(at, old.record(&m.key, END)));
            }
        } else if self.entries.len() >= self.capacity {
            self.losses.add(UNTRACKED, 1);
            out.push(told(m, ConnectionEvent::New, at));
            return;
        }
        let mut entry = Entry::new(m, Phase::Announced { new_expected }, self.pass);
        entry.fresh = !new_expected && self.running.is_some();
        self.entries.insert(m.key, entry);
        out.push(told(m, ConnectionEvent::New, at));
    }
}

fn observed(at: Timestamp, record: ConnectionRecord) -> Observed {
    Observed { at, observation: Observation::Connection(record) }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
