//! Properties of the one path: conservation and independence of how the input is cut, at every level.

mod domains;
mod faults;
mod preview;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::aggregate::Level;
use crate::cluster::{Cluster, Object, Pod};
use crate::filter::Rules;
use crate::model::{
    Action, EndpointKind, FlowLog, FlowSide, Icmp, Labels, ProcessRecord, Proto, Reporter, TcpRecord,
    TcpState,
};

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn pod(name: &str, node: &str, last: u8) -> Object {
    Object::Pod(Pod {
        namespace: "ns".into(),
        name: name.into(),
        generate_name: Some("pod-".into()),
        labels: Labels::default(),
        node: Some(node.into()),
        ips: vec![ip(last)],
        ..Pod::default()
    })
}

/// 1 and 2 are this node's, 3 is another's, 4 is nobody's.
fn snapshot() -> Snapshot {
    let mut cluster = Cluster::new("n1".into());
    for (name, node, last) in [("pod-1", "n1", 1), ("pod-2", "n1", 2), ("pod-3", "n2", 3)] {
        cluster.apply(pod(name, node, last), Timestamp::MIN);
    }
    Snapshot::new(&cluster)
}

fn settings(level: Level) -> Settings {
    Settings { level_for_allowed: level, level_for_denied: level, ..Settings::default() }
}

#[derive(Clone, Debug)]
enum Event {
    Conntrack {
        event: ConnectionEvent,
        src: u8,
        dst: u8,
        port: u16,
        proto: Proto,
        counters: [u16; 4],
        over: bool,
    },
    Drop {
        src: u8,
        dst: u8,
        port: u16,
        packets: u16,
    },
    Process {
        src: u8,
        dst: u8,
        port: u16,
        reply: bool,
        side: bool,
        name: u8,
    },
    Tcp {
        src: u8,
        dst: u8,
        port: u16,
        reply: bool,
        retransmits: u16,
    },
    Dns {
        client: u8,
        answer: u8,
        name: u8,
        ttl_s: u8,
    },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let kind = prop_oneof![
        Just(ConnectionEvent::New),
        Just(ConnectionEvent::Adopt),
        Just(ConnectionEvent::Update),
        Just(ConnectionEvent::End { confirmed: true }),
    ];
    let proto = prop_oneof![Just(Proto::TCP), Just(Proto::UDP), Just(Proto::ICMP)];
    let conntrack = (kind, 1..5u8, 1..5u8, 1000..1003u16, proto, any::<[u16; 4]>(), any::<bool>()).prop_map(
        |(event, src, dst, port, proto, counters, over)| Event::Conntrack {
            event,
            src,
            dst,
            port,
            proto,
            counters,
            over,
        },
    );
    let drop = (1..5u8, 1..5u8, 1000..1003u16, any::<u16>())
        .prop_map(|(src, dst, port, packets)| Event::Drop { src, dst, port, packets });
    let process = (1..5u8, 1..5u8, 1000..1003u16, any::<bool>(), any::<bool>(), 0..6u8)
        .prop_map(|(src, dst, port, reply, side, name)| Event::Process { src, dst, port, reply, side, name });
    let tcp = (1..5u8, 1..5u8, 1000..1003u16, any::<bool>(), any::<u16>())
        .prop_map(|(src, dst, port, reply, retransmits)| Event::Tcp { src, dst, port, reply, retransmits });
    let dns = (1..5u8, 1..6u8, 0..4u8, any::<u8>()).prop_map(|(client, answer, name, ttl_s)| Event::Dns {
        client,
        answer,
        name,
        ttl_s,
    });
    prop::collection::vec(prop_oneof![6 => conntrack, 2 => drop, 2 => process, 1 => tcp, 2 => dns], 1..120)
}

fn addresses(src: u8, dst: u8, port: u16, proto: Proto) -> Addresses {
    let (src_port, dst_port) = if proto.has_ports() { (port, 80) } else { (0, 0) };
    Addresses { src: ip(src), dst: ip(dst), src_port, dst_port }
}

fn observation(event: &Event) -> Observation {
    match *event {
        Event::Conntrack { event, src, dst, port, proto, counters, over } => {
            let original = addresses(src, dst, port, proto);
            let [a, b, c, d] = counters.map(u64::from);
            Observation::Connection(ConnectionRecord {
                event,
                proto,
                original,
                reply: original.reversed(),
                icmp: proto.is_icmp().then_some(Icmp { kind: 8, code: 0, id: port }),
                zone: 0,
                counters: Directional { original: Counters::new(a, b), reply: Counters::new(c, d) },
                tcp_state: (proto == Proto::TCP && over).then_some(TcpState::TimeWait),
            })
        }
        Event::Drop { src, dst, port, packets } => Observation::Drop(DropRecord {
            tuple: FiveTuple { proto: Proto::UDP, addresses: addresses(src, dst, port, Proto::UDP) },
            original: None,
            icmp: None,
            packets: packets.into(),
            bytes: u64::from(packets) * 60,
            reason: "NETFILTER_DROP".into(),
        }),
        Event::Process { src, dst, port, reply, side, name } => Observation::Process(ProcessRecord {
            tuple: socket(src, dst, port, reply),
            side: if side { FlowSide::Src } else { FlowSide::Dst },
            pid: u32::from(port) + u32::from(name),
            name: format!("process-{name}").into(),
            args: [Arc::from("-v")].into(),
            pod_uid: None,
            container: None,
        }),
        Event::Tcp { src, dst, port, reply, retransmits } => Observation::Tcp(TcpRecord {
            tuple: socket(src, dst, port, reply),
            srtt_us: 1,
            min_rtt_us: 1,
            send_cwnd: 10,
            mss: 1448,
            retransmits: retransmits.into(),
            lost: 0,
            unrecovered_rto: 0,
        }),
        Event::Dns { client, answer, name, ttl_s } => {
            Observation::Dns(domains::lookup(client, answer, name, ttl_s))
        }
    }
}

fn socket(src: u8, dst: u8, port: u16, reply: bool) -> FiveTuple {
    let original = addresses(src, dst, port, Proto::TCP);
    FiveTuple { proto: Proto::TCP, addresses: if reply { original.reversed() } else { original } }
}

/// The kernel's increments, straight from the contract's section 8.
#[derive(Default)]
struct Naive {
    open: HashMap<ConnectionKey, Directional>,
    /// `[source's, destination's]` traffic of local ends, original and reply.
    local: [Directional; 2],
}

impl Naive {
    fn observe(&mut self, record: &ConnectionRecord) {
        let key = ConnectionKey::of(record);
        if record.event == ConnectionEvent::New {
            self.open.remove(&key);
        }
        let before = match (self.open.get(&key), record.event) {
            (Some(before), _) => *before,
            (None, ConnectionEvent::Adopt) => record.counters,
            (None, _) => Directional::default(),
        };
        let since = |before: Counters, now: Counters| {
            if now.packets < before.packets || now.bytes < before.bytes {
                now
            } else {
                Counters::new(now.packets - before.packets, now.bytes - before.bytes)
            }
        };
        let delta = Directional {
            original: since(before.original, record.counters.original),
            reply: since(before.reply, record.counters.reply),
        };
        for (end, traffic) in [record.original.src, record.original.dst].into_iter().zip(&mut self.local) {
            if end == ip(1) || end == ip(2) {
                *traffic += delta;
            }
        }
        if matches!(record.event, ConnectionEvent::End { .. }) {
            self.open.remove(&key);
        } else {
            self.open.insert(key, record.counters);
        }
    }
}

struct Run {
    windows: Vec<FlowLogs>,
    stats: Stats,
}

fn run(level: Level, limits: Limits, events: &[Event], flush_every: usize) -> Run {
    run_with(settings(level), limits, events, flush_every)
}

fn run_with(settings: Settings, limits: Limits, events: &[Event], flush_every: usize) -> Run {
    let snapshot = snapshot();
    let mut pipeline = Pipeline::new(settings, limits, Timestamp(0));
    let mut windows = Vec::new();
    let mut at = Timestamp(0);
    for (n, event) in events.iter().enumerate() {
        at = at.plus(std::time::Duration::from_millis(700));
        pipeline.step(Input::Observation(&observation(event)), at, &snapshot);
        if (n + 1) % flush_every == 0 {
            windows.extend(pipeline.step(Input::Flush, at, &snapshot));
        }
    }
    windows.extend(pipeline.step(Input::Flush, at, &snapshot));
    Run { windows, stats: pipeline.stats().clone() }
}

fn run_windows(level: Level, windows: &[Vec<Event>]) -> Run {
    let snapshot = snapshot();
    let mut pipeline = Pipeline::new(settings(level), Limits::default(), Timestamp(0));
    let mut closed = Vec::new();
    for (n, window) in windows.iter().enumerate() {
        let at = Timestamp(n as i64 * 1_000_000_000);
        for event in window {
            pipeline.step(Input::Observation(&observation(event)), at, &snapshot);
        }
        closed.extend(pipeline.step(Input::Flush, at, &snapshot));
    }
    Run { windows: closed, stats: pipeline.stats().clone() }
}

fn total<'a>(logs: impl Iterator<Item = &'a FlowLog>) -> (Counters, Counters) {
    let mut sum = (Counters::default(), Counters::default());
    for log in logs {
        sum.0 += log.incoming;
        sum.1 += log.outgoing;
    }
    sum
}

fn records(run: &Run) -> impl Iterator<Item = &FlowLog> {
    run.windows.iter().flat_map(|window| &window.records)
}

const LEVELS: [Level; 4] = [Level::None, Level::SourcePort, Level::NamePrefix, Level::NoDestinationPort];

fn without_drops(events: Vec<Event>) -> Vec<Event> {
    events.into_iter().filter(|event| !matches!(event, Event::Drop { .. })).collect()
}

fn only_packets(events: &[Event]) -> Vec<Event> {
    events
        .iter()
        .filter(|event| matches!(event, Event::Conntrack { .. } | Event::Drop { .. }))
        .cloned()
        .collect()
}

proptest! {
    /// Without drops, what the lines say per reporter is what the kernel counted, at every level and however the
    /// input is cut into windows; also when ended flows have to be folded early, and when keys overflow the window.
    #[test]
    fn allowed_traffic_is_conserved(
        events in events(),
        flush_every in 1..40usize,
        ended in 0..4usize,
        records_limit in prop_oneof![Just(2 << 20), 0..4usize],
    ) {
        let events = without_drops(events);
        let mut naive = Naive::default();
        for event in &events {
            if let Observation::Connection(record) = observation(event) {
                naive.observe(&record);
            }
        }
        for level in LEVELS {
            let limits = Limits { ended, records: records_limit, ..Limits::default() };
            let run = run(level, limits, &events, flush_every);
            let src = total(records(&run).filter(|log| log.reporter == Reporter::Src));
            let dst = total(records(&run).filter(|log| log.reporter == Reporter::Dst));
            prop_assert_eq!(src, (naive.local[0].reply, naive.local[0].original));
            prop_assert_eq!(dst, (naive.local[1].original, naive.local[1].reply));
        }
    }

    /// What rules leave out is counted to the byte: with them, lines and counts are the lines without them.
    #[test]
    fn what_rules_filter_is_counted(
        events in events(),
        flush_every in 1..40usize,
        rules in prop::collection::vec(
            prop::sample::select(&["keep action=deny", "drop reporter=src", "drop port=1-300 or proto=udp", "keep type=net", "drop"][..]),
            0..4,
        ),
    ) {
        for level in LEVELS {
            let all = run(level, Limits::default(), &events, flush_every);
            let filters = Rules(rules.iter().map(|rule| rule.parse().unwrap()).collect());
            let some = run_with(Settings { filters, ..settings(level) }, Limits::default(), &events, flush_every);
            let sum = |(incoming, outgoing): (Counters, Counters)| {
                let mut sum = incoming;
                sum += outgoing;
                sum
            };
            let (mut records_of_both, mut traffic) = (records(&some).count() as u64, sum(total(records(&some))));
            for (records, filtered) in &some.stats.filtered_by_rule {
                records_of_both += records;
                traffic += *filtered;
            }
            prop_assert_eq!(records_of_both, records(&all).count() as u64);
            prop_assert_eq!(traffic, sum(total(records(&all))));
        }
    }

    /// Denied lines at the destination and at the last local end hold every filter drop; nothing of a connection
    /// is lost beside it: it is in an `allow` line or counted as superseded.
    #[test]
    fn drops_are_conserved(
        events in events(),
        flush_every in 1..40usize,
        denied in prop_oneof![Just(256 << 10), 0..3usize],
    ) {
        let mut dropped = Counters::default();
        for event in &events {
            if let (Observation::Drop(drop), Event::Drop { src, dst, .. }) = (observation(event), event)
                && (*src < 3 || *dst < 3)
            {
                dropped += Counters::new(drop.packets, drop.bytes);
            }
        }
        let counts = LEVELS.map(|level| {
            let run = run(level, Limits { denied, ..Limits::default() }, &events, flush_every);
            let (incoming, outgoing) = total(records(&run).filter(|log| log.action == Action::Deny));
            let mut denied = incoming;
            denied += outgoing;
            assert_eq!(denied, dropped);
            let flows: u64 = records(&run).map(|log| log.num_flows).sum();
            let started: u64 = records(&run).map(|log| log.num_flows_started).sum();
            let completed: u64 = records(&run).map(|log| log.num_flows_completed).sum();
            (flows, started, completed, run.stats.superseded)
        });
        // Flows are counted by key, whatever the level merges.
        prop_assert!(counts.iter().all(|count| *count == counts[0]), "{:?}", counts);
    }

    /// What is told of sockets splits records and fills columns; it changes no other sum, and no key has more lines
    /// than names may have, with one for the others and one for flows of which none is known.
    #[test]
    fn processes_and_tcp_change_no_sum(events in events(), flush_every in 1..40usize) {
        // A window closes at the same events in both runs.
        let plain: Vec<Vec<Event>> = events.chunks(flush_every).map(only_packets).collect();
        let told: Vec<Vec<Event>> = events.chunks(flush_every).map(<[Event]>::to_vec).collect();
        let sums = [plain, told].map(|windows| {
            let run = run_windows(Level::NamePrefix, &windows);
            let mut by_key: HashMap<String, (Counters, Counters, [u64; 3], usize)> = HashMap::new();
            for (n, window) in run.windows.iter().enumerate() {
                for log in &window.records {
                    let key = format!(
                        "{n} {:?} {:?} {} {} {:?} {:?} {:?}",
                        log.action, log.reporter, log.source.name_aggr, log.dest.name_aggr, log.proto,
                        log.dest.port, log.policy_mismatch,
                    );
                    let sum = by_key.entry(key).or_default();
                    sum.0 += log.incoming;
                    sum.1 += log.outgoing;
                    let flows = [log.num_flows, log.num_flows_started, log.num_flows_completed];
                    sum.2.iter_mut().zip(flows).for_each(|(sum, n)| *sum += n);
                    sum.3 += 1;
                }
            }
            by_key
        });
        prop_assert!(sums[1].values().all(|sum| sum.3 <= 4));
        let [plain, told] = sums;
        prop_assert_eq!(plain.len(), told.len());
        for (key, plain) in &plain {
            let told = &told[key];
            prop_assert_eq!((plain.0, plain.1), (told.0, told.1));
            // A key that two processes opened in turn is a flow in the line of each.
            prop_assert!(plain.2.iter().zip(told.2).all(|(plain, told)| *plain <= told));
        }
    }

    /// The number of windows changes no total of traffic.
    #[test]
    fn windows_change_no_sum(events in events(), a in 1..40usize, b in 1..40usize) {
        let events = without_drops(events);
        let sums = [a, b].map(|n| {
            let run = run(Level::NamePrefix, Limits::default(), &events, n);
            (total(records(&run)), run.stats.not_local)
        });
        prop_assert_eq!(sums[0], sums[1]);
    }

    /// Windows abut, lines are sorted and no two of a window have the same key.
    #[test]
    fn windows_are_well_formed(events in events(), flush_every in 1..40usize) {
        let run = run(Level::None, Limits::default(), &events, flush_every);
        for pair in run.windows.windows(2) {
            prop_assert_eq!(pair[0].end, pair[1].start);
        }
        for window in &run.windows {
            let order = |log: &FlowLog| {
                (log.action.name(), log.reporter.name(), log.source.namespace.clone(), log.source.name_aggr.clone(),
                 log.source.name.clone(), log.source.ip, log.source.port)
            };
            for pair in window.records.windows(2) {
                prop_assert!(order(&pair[0]) <= order(&pair[1]));
            }
            for log in &window.records {
                prop_assert!(log.num_flows >= log.num_flows_started);
                prop_assert!(log.num_flows >= log.num_flows_completed);
            }
        }
    }
}

#[test]
fn a_full_table_still_exports_the_final_counters() {
    let events: Vec<Event> = (1000..1003)
        .flat_map(|port| {
            [ConnectionEvent::New, ConnectionEvent::End { confirmed: true }].map(|event| (port, event))
        })
        .map(|(port, event)| Event::Conntrack {
            event,
            src: 1,
            dst: 4,
            port,
            proto: Proto::TCP,
            counters: if event == ConnectionEvent::New { [1, 60, 0, 0] } else { [5, 500, 4, 400] },
            over: false,
        })
        .collect();
    let run = run(Level::NamePrefix, Limits { connections: 0, ..Limits::default() }, &events, 100);
    assert_eq!(run.stats.connection_table_full, 3);
    assert_eq!(total(records(&run)), (Counters::new(12, 1200), Counters::new(15, 1500)));
}

#[test]
fn a_checkpoint_is_the_baseline_of_an_adopted_connection() {
    let snapshot = snapshot();
    let event = |event, counters| {
        observation(&Event::Conntrack {
            event,
            src: 1,
            dst: 4,
            port: 1000,
            proto: Proto::TCP,
            counters,
            over: false,
        })
    };
    let mut first = Pipeline::new(Settings::default(), Limits::default(), Timestamp(0));
    let new = event(ConnectionEvent::New, [10, 1000, 8, 800]);
    first.step(Input::Observation(&new), Timestamp(0), &snapshot);
    first.step(Input::Flush, Timestamp(1), &snapshot);
    let left: Vec<CheckpointEntry> = first.checkpoint().collect();
    assert_eq!(left.len(), 1);

    let mut second = Pipeline::new(Settings::default(), Limits::default(), Timestamp(2));
    second.restore(left);
    let adopt = event(ConnectionEvent::Adopt, [15, 1500, 9, 900]);
    second.step(Input::Observation(&adopt), Timestamp(2), &snapshot);
    second.finish_adoption();
    let logs = second.step(Input::Flush, Timestamp(3), &snapshot).unwrap();
    assert_eq!(logs.records[0].outgoing, Counters::new(5, 500));
    assert_eq!(logs.records[0].incoming, Counters::new(1, 100));
    assert_eq!((logs.records[0].num_flows, logs.records[0].num_flows_started), (1, 0));
    assert_eq!(second.stats().checkpoint_gone, 0);
}

#[test]
fn labels_are_what_all_updates_of_a_window_share() {
    let labelled = |pairs: &[(&str, &str)]| {
        let Object::Pod(mut pod) = pod("pod-1", "n1", 1) else { unreachable!() };
        pod.labels = Labels::new(pairs.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))));
        Object::Pod(pod)
    };
    let mut cluster = Cluster::new("n1".into());
    cluster.apply(labelled(&[("a", "1"), ("b", "2")]), Timestamp::MIN);
    let mut pipeline = Pipeline::new(Settings::default(), Limits::default(), Timestamp(0));
    let event = |event| {
        observation(&Event::Conntrack {
            event,
            src: 1,
            dst: 4,
            port: 1000,
            proto: Proto::TCP,
            counters: [1, 60, 1, 60],
            over: false,
        })
    };
    pipeline.step(Input::Observation(&event(ConnectionEvent::New)), Timestamp(0), &Snapshot::new(&cluster));
    cluster.apply(labelled(&[("a", "1"), ("b", "3")]), Timestamp(1));
    pipeline.step(
        Input::Observation(&event(ConnectionEvent::Update)),
        Timestamp(2),
        &Snapshot::new(&cluster),
    );
    let labels = |logs: FlowLogs| {
        let labels = logs.records[0].source.labels.clone().unwrap();
        labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>()
    };
    let first = pipeline.step(Input::Flush, Timestamp(3), &Snapshot::new(&cluster)).unwrap();
    assert_eq!(labels(first), ["a=1"]);
    pipeline.step(
        Input::Observation(&event(ConnectionEvent::Update)),
        Timestamp(4),
        &Snapshot::new(&cluster),
    );
    let second = pipeline.step(Input::Flush, Timestamp(5), &Snapshot::new(&cluster)).unwrap();
    assert_eq!(labels(second), ["a=1", "b=3"]);
}

#[test]
fn keys_that_came_again_are_remembered_up_to_a_bound() {
    let end = |port| Event::Conntrack {
        event: ConnectionEvent::End { confirmed: true },
        src: 1,
        dst: 2,
        port,
        proto: Proto::UDP,
        counters: [1, 2, 3, 4],
        over: false,
    };
    let events: Vec<Event> = (1000..1005).map(end).collect();
    // Each is folded as soon as it has ended, and may come again: two records, five keys in each.
    let limits = Limits { ended: 0, records: 2, ..Limits::default() };
    let run = run(Level::NoDestinationPort, limits, &events, 100);
    let flows: Vec<u64> = records(&run).map(|log| log.num_flows).collect();
    assert_eq!(flows, [5, 5]);
    assert_eq!(run.stats.not_remembered, 8);
}

#[test]
fn keys_beyond_the_bound_share_one_record_of_their_kind() {
    let new = |port, proto| Event::Conntrack {
        event: ConnectionEvent::New,
        src: 1,
        dst: 4,
        port,
        proto,
        counters: [1, 10, 2, 20],
        over: false,
    };
    let mut events: Vec<Event> = (1000..1010).map(|port| new(port, Proto::UDP)).collect();
    events.push(new(2000, Proto::TCP));
    let run = run(Level::None, Limits { records: 2, ..Limits::default() }, &events, 100);
    let lines: Vec<_> = records(&run).map(|log| (&*log.source.name_aggr, log.proto, log.num_flows)).collect();
    assert_eq!(
        lines,
        [("*", Proto::TCP, 1), ("*", Proto::UDP, 8), ("pod-*", Proto::UDP, 1), ("pod-*", Proto::UDP, 1)]
    );
    let overflow = records(&run).find(|log| log.num_flows == 8).unwrap();
    assert_eq!(
        (overflow.source.kind, overflow.source.ip, overflow.dest.port),
        (crate::model::EndpointKind::Net, None, None)
    );
    assert_eq!((overflow.outgoing, overflow.incoming), (Counters::new(8, 80), Counters::new(16, 160)));
    assert_eq!(run.stats.window_overflow, 9);
}
