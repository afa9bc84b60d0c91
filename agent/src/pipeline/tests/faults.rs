//! Clocks that jump and floods that fill the tables: sums stay exact.

use std::time::Duration;

use super::*;

const SECOND: i64 = 1_000_000_000;

proptest! {
    /// Sources tell times of a wall clock that others set; the flush's clock only goes forward. Whatever the former do,
    /// windows abut and end with the latter, and no packet is lost or told twice.
    #[test]
    fn clocks_that_jump_change_no_sum(
        events in events(),
        jumps in prop::collection::vec(-4_000_000..4_000_000_i64, 1..120),
        flush_every in 1..40usize,
    ) {
        // Which connection gives its packets to its drops depends on when these were.
        let events = without_drops(events);
        let snapshot = snapshot();
        let steady = run(Level::SourcePort, Limits::default(), &events, flush_every);
        let mut pipeline = Pipeline::new(settings(Level::SourcePort), Limits::default(), Timestamp(0));
        let (mut windows, mut flushed) = (Vec::new(), 0);
        for (n, event) in events.iter().enumerate() {
            let at = n as i64 * SECOND + jumps[n % jumps.len()] * 1_000_000;
            pipeline.step(Input::Observation(&observation(event)), Timestamp(at), &snapshot);
            if (n + 1) % flush_every == 0 {
                flushed = n as i64 * SECOND;
                windows.extend(pipeline.step(Input::Flush, Timestamp(flushed), &snapshot));
            }
        }
        windows.extend(pipeline.step(Input::Flush, Timestamp(flushed + SECOND), &snapshot));
        for pair in windows.windows(2) {
            prop_assert_eq!(pair[0].end, pair[1].start);
        }
        prop_assert_eq!(windows.last().map(|window| window.end), Some(Timestamp(flushed + SECOND)));
        let jumped = Run { windows, stats: pipeline.stats().clone() };
        prop_assert_eq!(total(records(&jumped)), total(records(&steady)));
    }
}

fn drop_to(port: u16, src_port: u16) -> Observation {
    let addresses = Addresses { src: ip(1), dst: ip(4), src_port, dst_port: port };
    Observation::Drop(DropRecord {
        tuple: FiveTuple { proto: Proto::UDP, addresses },
        original: None,
        icmp: None,
        packets: 1,
        bytes: 60,
        reason: "NETFILTER_DROP".into(),
    })
}

#[test]
fn one_time_from_the_future_does_not_stop_the_clock() {
    let snapshot = snapshot();
    let mut pipeline = Pipeline::new(settings(Level::None), Limits::default(), Timestamp(0));
    let flush = |pipeline: &mut Pipeline, second: i64| {
        pipeline.step(Input::Flush, Timestamp(second * SECOND), &snapshot).unwrap()
    };
    let year = Timestamp(0).plus(Duration::from_secs(365 * 24 * 3600));
    pipeline.step(Input::Observation(&drop_to(80, 1)), year, &super::snapshot());
    assert_eq!(flush(&mut pipeline, 10).end, Timestamp(10 * SECOND));
    // The flow ends its 10 seconds after what the flush knew of it, not in a year.
    let next = flush(&mut pipeline, 21);
    assert_eq!((next.start, next.end), (Timestamp(10 * SECOND), Timestamp(21 * SECOND)));
    assert_eq!(next.records[0].num_flows_completed, 1);
    assert!(flush(&mut pipeline, 22).records.is_empty());
    assert!(pipeline.is_idle());
}

/// Every port that there is, denied, from one pod: what each level makes of it, and what is left of it in a window that
/// is too small.
#[test]
fn a_scan_of_all_ports_is_one_record_or_folded_and_always_exact() {
    let all = u64::from(u16::MAX);
    let scan = |level, limits| {
        let snapshot = snapshot();
        let mut pipeline = Pipeline::new(settings(level), limits, Timestamp(0));
        for port in 1..=u16::MAX {
            pipeline.step(Input::Observation(&drop_to(port, 40_000)), Timestamp(1), &snapshot);
        }
        let logs = pipeline.step(Input::Flush, Timestamp(SECOND), &snapshot).unwrap();
        let (incoming, outgoing) = total(logs.records.iter());
        assert_eq!((incoming, outgoing), (Counters::default(), Counters::new(all, all * 60)), "{level:?}");
        (logs.records, pipeline.stats().clone())
    };
    let (records, _) = scan(Level::NoDestinationPort, Limits::default());
    assert_eq!((records.len(), records[0].num_flows), (1, all));
    let (records, stats) = scan(Level::SourcePort, Limits::default());
    assert_eq!((records.len() as u64, stats.window_overflow), (all, 0));

    let (records, stats) = scan(Level::SourcePort, Limits { records: 1000, ..Limits::default() });
    assert_eq!((records.len(), stats.window_overflow), (1001, all - 1000));
    let folded = records.iter().find(|record| &*record.source.name_aggr == "*").unwrap();
    assert_eq!((folded.action, folded.num_flows), (Action::Deny, all - 1000));
    // Without room for the flows themselves: their traffic is in the lines all the same.
    let (_, stats) = scan(Level::SourcePort, Limits { records: 1000, denied: 100, ..Limits::default() });
    assert_eq!(stats.denied_overflow.packets, all - 100);
}

#[test]
fn a_flood_of_syns_from_everywhere_is_one_record_with_the_source_port_left_out() {
    const SYNS: u64 = 100_000;
    let snapshot = snapshot();
    let limits = Limits { denied: 10_000, ..Limits::default() };
    let mut pipeline = Pipeline::new(settings(Level::SourcePort), limits, Timestamp(0));
    for n in 0..SYNS {
        let port = u16::try_from(n % 65_000).unwrap();
        pipeline.step(Input::Observation(&drop_to(443, port)), Timestamp(n as i64), &snapshot);
    }
    let logs = pipeline.step(Input::Flush, Timestamp(SECOND), &snapshot).unwrap();
    assert_eq!(logs.records.len(), 1);
    assert_eq!(logs.records[0].outgoing, Counters::new(SYNS, SYNS * 60));
}
