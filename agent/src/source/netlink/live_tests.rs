//! A model of the kernel (a table, and a queue of events that can overflow) runs random traffic between any two
//! steps of a dump, and a model of the consumer adds up what it is told. What the consumer counted must be what
//! the kernel counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::model::{FiveTuple, Proto};

/// Few, so that they collide; and much may happen while a dump passes from one to the next.
const KEYS: u8 = 3;
const BETWEEN: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Step {
    Birth(u8),
    Traffic(u8, u16),
    Death(u8),
    /// Drops what is queued, as a full receive buffer does.
    Lose,
    Poll,
    Sweep,
    Quiet,
}

struct Connection {
    id: u32,
    bytes: u64,
    /// Older than the subscription: its death is not told.
    silent: bool,
}

#[derive(Default)]
struct Kernel {
    table: BTreeMap<u8, Connection>,
    queue: Vec<CtMessage>,
    lost: bool,
    ids: u32,
    unique_ids: bool,
    /// All bytes since the subscription.
    total: u64,
    /// Bytes that no event or dump can have shown.
    hidden: u64,
}

fn message(kind: CtKind, key: u8, id: u32, bytes: Option<u64>) -> CtMessage {
    let addresses = Addresses {
        src: Ipv4Addr::new(10, 0, 0, key).into(),
        dst: Ipv4Addr::new(10, 0, 1, 1).into(),
        src_port: 1,
        dst_port: 2,
    };
    CtMessage {
        kind,
        key: CtKey { original: FiveTuple { proto: Proto::UDP, addresses }, zone: 0, icmp_id: 0 },
        reply: addresses.reversed(),
        icmp: None,
        id: Some(id),
        status: None,
        counters: bytes.map(|b| Directional { original: Counters::new(b, b), reply: Counters::default() }),
        tcp_state: None,
        started: None,
        stopped: None,
    }
}

impl Kernel {
    fn apply(&mut self, step: Step, consumer: &Consumer) {
        match step {
            Step::Birth(key) if !self.table.contains_key(&key) => {
                self.ids += u32::from(self.unique_ids);
                self.table.insert(key, Connection { id: self.ids, bytes: 0, silent: false });
                self.queue.push(message(CtKind::New, key, self.ids, None));
            }
            Step::Traffic(key, n) => {
                if let Some(c) = self.table.get_mut(&key) {
                    c.bytes += u64::from(n);
                    self.total += u64::from(n);
                }
            }
            Step::Death(key) => {
                if let Some(c) = self.table.remove(&key) {
                    if c.silent {
                        self.hidden += c.bytes - consumer.last.get(&key).copied().unwrap_or(0).min(c.bytes);
                    } else {
                        self.queue.push(message(CtKind::Destroy, key, c.id, Some(c.bytes)));
                    }
                }
            }
            Step::Lose if !self.queue.is_empty() => {
                self.queue.clear();
                self.lost = true;
            }
            _ => {}
        }
    }
}

/// Counts by the contract's rules for recordings.
#[derive(Default)]
struct Consumer {
    last: BTreeMap<u8, u64>,
    exported: u64,
    /// Connections that were told to have begun while open.
    reopened: usize,
    ends: usize,
}

impl Consumer {
    fn take(&mut self, out: &mut Vec<Observed>) {
        for o in out.drain(..) {
            let Observation::Connection(c) = o.observation else { panic!("only connections") };
            let std::net::IpAddr::V4(src) = c.original.src else { panic!("only IPv4") };
            let key = src.octets()[3];
            let now = c.counters.original.bytes;
            match c.event {
                ConnectionEvent::Adopt => drop(self.last.insert(key, now)),
                ConnectionEvent::New => {
                    self.reopened += usize::from(self.last.insert(key, now).is_some());
                    self.exported += now;
                }
                ConnectionEvent::Update | ConnectionEvent::End { .. } => {
                    let last = self.last.insert(key, now).unwrap_or(0);
                    self.exported += if now >= last { now - last } else { now };
                    if matches!(c.event, ConnectionEvent::End { .. }) {
                        self.last.remove(&key);
                        self.ends += 1;
                    }
                }
            }
        }
    }
}

fn tell_queued(live: &mut Live, kernel: &mut Kernel, out: &mut Vec<Observed>) {
    for m in std::mem::take(&mut kernel.queue) {
        live.event(&m, Timestamp(0), out);
    }
}

/// What `NetlinkSource` does with sockets, done with the model: an entry is written by the kernel, then much happens and events may
/// be told ([`Step::Poll`]), and only then the entry is read.
fn run_pass(live: &mut Live, kernel: &mut Kernel, consumer: &mut Consumer, pass: Pass, between: &[Step]) {
    let mut out = Vec::new();
    if pass != Pass::Adopt {
        tell_queued(live, kernel, &mut out);
        consumer.take(&mut out);
    }
    let after_loss = std::mem::take(&mut kernel.lost);
    live.begin_pass(pass);
    let mut between = between.iter();
    for key in 0..KEYS {
        let written = kernel.table.get(&key).map(|c| message(CtKind::Entry, key, c.id, Some(c.bytes)));
        for step in between.by_ref().take(BETWEEN) {
            if matches!(step, Step::Poll) {
                tell_queued(live, kernel, &mut out);
                consumer.take(&mut out);
            } else {
                kernel.apply(*step, consumer);
            }
        }
        if let Some(entry) = written {
            live.see(&[entry], Timestamp(0), &mut out);
        }
        live.end_turn();
        tell_queued(live, kernel, &mut out);
        live.tell_seen(Timestamp(0), &mut out);
        consumer.take(&mut out);
    }
    // A dump that was interrupted is repeated, and one shows what moved in the table twice.
    let entries = kernel.table.iter().map(|(key, c)| message(CtKind::Entry, *key, c.id, Some(c.bytes)));
    let twice: Vec<CtMessage> = entries.clone().chain(entries).collect();
    live.see(&twice, Timestamp(0), &mut out);
    live.end_turn();
    tell_queued(live, kernel, &mut out);
    live.tell_seen(Timestamp(0), &mut out);
    consumer.take(&mut out);
    let whole = !kernel.lost;
    kernel.lost |= after_loss && !whole;
    tell_queued(live, kernel, &mut out);
    live.finish_pass(Completeness { whole, after_loss }, Timestamp(0), &mut out);
    consumer.take(&mut out);
}

fn run(older: &[u8], steps: &[(Step, Vec<Step>)], unique_ids: bool) -> (Live, Kernel, Consumer) {
    let mut live = Live::new(1024);
    let mut kernel = Kernel { unique_ids, ..Kernel::default() };
    let mut consumer = Consumer::default();
    for &key in older {
        kernel.ids += u32::from(unique_ids);
        kernel.table.insert(key, Connection { id: kernel.ids, bytes: 1000, silent: true });
    }
    run_pass(&mut live, &mut kernel, &mut consumer, Pass::Adopt, &[]);
    for (step, between) in steps {
        match step {
            Step::Sweep => run_pass(&mut live, &mut kernel, &mut consumer, Pass::Sweep, between),
            Step::Quiet => run_pass(&mut live, &mut kernel, &mut consumer, Pass::Quiet, between),
            Step::Poll => {
                let mut out = Vec::new();
                for m in std::mem::take(&mut kernel.queue) {
                    live.event(&m, Timestamp(0), &mut out);
                }
                consumer.take(&mut out);
            }
            other => kernel.apply(*other, &consumer),
        }
    }
    run_pass(&mut live, &mut kernel, &mut consumer, Pass::Sweep, &[]);
    run_pass(&mut live, &mut kernel, &mut consumer, Pass::Sweep, &[]);
    (live, kernel, consumer)
}

fn traffic() -> BoxedStrategy<Step> {
    prop_oneof![
        3 => (0..KEYS).prop_map(Step::Birth),
        4 => (0..KEYS, 1u16..1000).prop_map(|(k, n)| Step::Traffic(k, n)),
        2 => (0..KEYS).prop_map(Step::Death),
    ]
    .boxed()
}

fn steps(with_loss: bool) -> impl Strategy<Value = Vec<(Step, Vec<Step>)>> {
    let lose = if with_loss { 1 } else { 0 };
    let between = prop_oneof![9 => traffic(), lose => Just(Step::Lose), 1 => Just(Step::Poll)];
    let step = prop_oneof![
        9 => traffic(),
        lose => Just(Step::Lose),
        2 => Just(Step::Poll),
        1 => Just(Step::Sweep),
        1 => Just(Step::Quiet),
    ];
    proptest::collection::vec((step, proptest::collection::vec(between, usize::from(KEYS) * BETWEEN)), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Even when the kernel gives every connection the same id (reused memory).
    #[test]
    fn without_loss_every_byte_is_told_once(steps in steps(false), unique in any::<bool>()) {
        let (mut live, kernel, consumer) = run(&[], &steps, unique);
        prop_assert_eq!(consumer.exported, kernel.total);
        prop_assert_eq!(consumer.reopened, 0);
        prop_assert_eq!(consumer.last.keys().collect::<Vec<_>>(), kernel.table.keys().collect::<Vec<_>>());
        prop_assert!(live.losses.take().is_empty());
    }

    #[test]
    fn after_losses_live_connections_are_exact_and_nothing_is_told_twice(steps in steps(true)) {
        let (_, kernel, consumer) = run(&[], &steps, true);
        prop_assert!(consumer.exported <= kernel.total, "{} of {}", consumer.exported, kernel.total);
        let live: BTreeMap<u8, u64> = kernel.table.iter().map(|(k, c)| (*k, c.bytes)).collect();
        prop_assert_eq!(&consumer.last, &live);
    }

    /// Adopted connections keep their baseline to themselves and end without an event.
    #[test]
    fn adopted_connections_end_when_they_vanish(
        older in proptest::collection::btree_set(0..KEYS, 1..3),
        steps in steps(false),
    ) {
        let older: Vec<u8> = older.into_iter().collect();
        let (live, kernel, consumer) = run(&older, &steps, true);
        prop_assert!(consumer.exported <= kernel.total);
        prop_assert!(consumer.exported + kernel.hidden >= kernel.total, "{} + {} of {}", consumer.exported, kernel.hidden, kernel.total);
        let open: BTreeSet<u8> = consumer.last.keys().copied().collect();
        let there: BTreeSet<u8> = kernel.table.keys().copied().collect();
        prop_assert_eq!(open, there);
        prop_assert_eq!(live.adopted(), kernel.table.values().filter(|c| c.silent).count());
    }
}

fn events(out: &[Observed]) -> Vec<(ConnectionEvent, u64)> {
    out.iter()
        .map(|o| match &o.observation {
            Observation::Connection(c) => (c.event, c.counters.original.bytes),
            _ => panic!("only connections"),
        })
        .collect()
}

#[test]
fn a_new_event_behind_the_first_dump_makes_it_new() {
    let mut live = Live::new(8);
    let mut out = Vec::new();
    live.begin_pass(Pass::Adopt);
    live.see(&[message(CtKind::Entry, 1, 5, Some(70))], Timestamp(0), &mut out);
    live.see(&[message(CtKind::Entry, 2, 6, Some(80))], Timestamp(0), &mut out);
    let whole = Completeness { whole: true, after_loss: false };
    live.event(&message(CtKind::New, 1, 5, None), Timestamp(0), &mut out);
    live.finish_pass(whole, Timestamp(0), &mut out);
    assert_eq!(events(&out), [(ConnectionEvent::New, 0), (ConnectionEvent::Adopt, 80)]);
}

#[test]
fn a_late_destroy_adds_only_what_was_not_told() {
    let mut live = Live::new(8);
    let mut out = Vec::new();
    let whole = Completeness { whole: true, after_loss: false };
    live.begin_pass(Pass::Adopt);
    live.see(&[message(CtKind::Entry, 1, 5, Some(70))], Timestamp(0), &mut out);
    live.finish_pass(whole, Timestamp(0), &mut out);
    out.clear();
    live.begin_pass(Pass::Quiet);
    live.finish_pass(whole, Timestamp(0), &mut out);
    assert_eq!(events(&out), [(END, 70)]);
    out.clear();
    live.event(&message(CtKind::Destroy, 1, 5, Some(100)), Timestamp(0), &mut out);
    assert_eq!(events(&out), [(ConnectionEvent::Adopt, 70), (END, 100)]);
    assert_eq!(live.losses.take(), [(ADOPTED_TAIL, 1)]);
}

#[test]
fn one_that_took_anothers_place_unseen_is_one_however_often_a_dump_shows_it() {
    let mut live = Live::new(8);
    let mut out = Vec::new();
    live.event(&message(CtKind::New, 1, 1, None), Timestamp(0), &mut out);
    out.clear();
    live.begin_pass(Pass::Quiet);
    for bytes in [100, 120] {
        live.see(&[message(CtKind::Entry, 1, 2, Some(bytes))], Timestamp(0), &mut out);
    }
    live.end_turn();
    live.finish_pass(Completeness { whole: true, after_loss: true }, Timestamp(0), &mut out);
    assert_eq!(events(&out), [(END, 0), (ConnectionEvent::New, 120)]);
    assert_eq!(live.losses.take(), [(MISSED_END, 1)]);
}

#[test]
fn without_room_connections_are_told_and_counted() {
    let mut live = Live::new(1);
    let mut out = Vec::new();
    live.event(&message(CtKind::New, 1, 1, None), Timestamp(0), &mut out);
    live.event(&message(CtKind::New, 2, 2, None), Timestamp(0), &mut out);
    live.event(&message(CtKind::Destroy, 2, 2, Some(9)), Timestamp(0), &mut out);
    assert_eq!(events(&out), [(ConnectionEvent::New, 0), (ConnectionEvent::New, 0), (END, 9)]);
    assert_eq!(live.losses.take(), [(UNTRACKED, 1)]);
}

#[test]
fn a_connection_is_told_by_every_sweep_however_many_there_were() {
    let mut live = Live::new(8);
    let mut out = Vec::new();
    let whole = Completeness { whole: true, after_loss: false };
    let begin = |live: &mut Live, pass| {
        live.begin_pass(pass);
        live.end_turn();
    };
    begin(&mut live, Pass::Quiet);
    live.event(&message(CtKind::New, 1, 1, None), Timestamp(0), &mut out);
    live.finish_pass(whole, Timestamp(0), &mut out);
    for bytes in 1..1000 {
        out.clear();
        live.begin_pass(Pass::Sweep);
        live.see(&[message(CtKind::Entry, 1, 1, Some(bytes))], Timestamp(0), &mut out);
        live.end_turn();
        live.tell_seen(Timestamp(0), &mut out);
        live.finish_pass(whole, Timestamp(0), &mut out);
        assert_eq!(events(&out), [(ConnectionEvent::Update, bytes)]);
    }
}

/// What a sweep shows of a connection without a place is older than the events that wait behind the dump.
#[test]
fn without_room_a_sweep_tells_after_what_waits() {
    let sweep = |waiting: &[CtMessage]| {
        let mut live = Live::new(1);
        let mut out = Vec::new();
        live.event(&message(CtKind::New, 1, 1, None), Timestamp(0), &mut out);
        out.clear();
        live.begin_pass(Pass::Sweep);
        live.see(&[message(CtKind::Entry, 2, 2, Some(7))], Timestamp(0), &mut out);
        live.end_turn();
        for event in waiting {
            live.event(event, Timestamp(0), &mut out);
        }
        live.tell_seen(Timestamp(0), &mut out);
        events(&out)
    };
    let new = message(CtKind::New, 2, 2, None);
    let end = message(CtKind::Destroy, 2, 2, Some(9));
    assert_eq!(sweep(&[new]), [(ConnectionEvent::New, 0), (ConnectionEvent::Update, 7)]);
    assert_eq!(sweep(&[new, end]), [(ConnectionEvent::New, 0), (END, 9)]);
}

/// The last place is its own, though it was not there yet when the batch was looked up.
#[test]
fn shown_twice_at_once_it_needs_one_place() {
    let mut live = Live::new(1);
    let mut out = Vec::new();
    live.begin_pass(Pass::Adopt);
    live.see(&[5, 8].map(|bytes| message(CtKind::Entry, 1, 1, Some(bytes))), Timestamp(0), &mut out);
    live.end_turn();
    live.finish_pass(Completeness { whole: true, after_loss: false }, Timestamp(0), &mut out);
    assert_eq!(events(&out), [(ConnectionEvent::Adopt, 8)]);
    assert_eq!(live.losses.take(), []);
}
