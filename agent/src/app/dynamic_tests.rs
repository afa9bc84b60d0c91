//! Levels that rise and fall with the shipper's lag, and what the windows then hold.

use std::fs;

use super::*;
use crate::app::memory::Memory;
use crate::app::settings;
use crate::app::writer::{Lines, Output};
use crate::model::{
    Addresses, ConnectionEvent, ConnectionRecord, Counters, Directional, Observation, Proto, Timestamp,
};
use crate::pipeline::{Input, Limits, Pipeline};
use crate::snapshot::Snapshot;

fn config(allowed: u8, denied: u8) -> Config {
    Config {
        flow_logs_dynamic_aggregation_enabled: true,
        flow_logs_file_aggregation_kind_for_allowed: allowed,
        flow_logs_file_aggregation_kind_for_denied: denied,
        flow_logs_aggregation_threshold_bytes: 100,
        ..Config::default()
    }
}

fn seen() -> Seen {
    Seen(Arc::new(AtomicU64::new(UNKNOWN)))
}

#[test]
fn one_level_a_flush_up_to_three_and_back() {
    let metrics = Metrics::default();
    let seen = seen();
    let mut raised = Raised::new(seen.clone());
    let mut step = |lag: Option<u64>, config: &Config| {
        seen.set(lag);
        let next = raised.next(settings(config), config, &metrics);
        (next.level_for_allowed as u8, next.level_for_denied as u8)
    };
    let low = config(1, 0);
    assert_eq!(step(None, &low), (1, 0), "nothing is known yet");
    assert_eq!(step(Some(100), &low), (1, 0), "not more than the threshold");
    assert_eq!(step(Some(101), &low), (2, 1));
    assert_eq!(step(Some(500), &low), (3, 2));
    assert_eq!(step(None, &low), (3, 2), "what cannot be told changes nothing");
    assert_eq!(step(Some(500), &low), (3, 3));
    assert_eq!(step(Some(u64::MAX - 1), &low), (3, 3));
    assert_eq!(step(Some(99), &low), (3, 2), "as far as it was raised");
    assert_eq!(step(Some(0), &low), (2, 1));
    assert_eq!(step(Some(0), &low), (1, 0));
    assert_eq!(step(Some(0), &low), (1, 0));
    assert_eq!(step(Some(500), &low), (2, 1));
    let off = Config { flow_logs_dynamic_aggregation_enabled: false, ..low.clone() };
    assert_eq!(step(Some(500), &off), (1, 0), "switched off it acts no more");
    assert_eq!(step(Some(500), &config(3, 3)), (3, 3));
    assert_eq!(metrics.aggregation_raised.get(), 0);
}

#[test]
fn each_state_is_counted_and_seen() {
    let metrics = Metrics::default();
    let (config, seen) = (config(1, 1), seen());
    let mut said = None;
    let mut found = |found: Found| {
        take(&found, &mut said, &config, &seen, &metrics);
        said = Some(found);
        seen.get()
    };
    assert_eq!(found(Found::Lag(7)), Some(7));
    assert_eq!(found(Found::Error("x".into())), None);
    assert_eq!(found(Found::NoShipper), Some(0));
    assert_eq!((metrics.position_errors.get(), metrics.shipper_lag.get()), (1, 0));
}

/// Pipeline, writer, rotating file and a shipper's position file: levels 1, 2, 3 and back, sums whole.
#[test]
fn windows_grow_coarser_and_finer_and_lose_nothing() {
    let root = tempfile::tempdir().unwrap();
    let pos = root.path().join("pos");
    let config = Config {
        flow_logs_file_directory: root.path().join("logs"),
        flow_logs_position_file_path: pos.clone(),
        ..config(0, 0)
    };
    let metrics = Arc::new(Metrics::default());
    let snapshot = Snapshot::without_cluster("n1".into());
    let mut pipeline = Pipeline::new(settings(&config), Limits::default(), Timestamp(0));
    let output =
        Output::open(Lines::of(&config, "n1", &Memory::allowed()), false, metrics.clone(), Timestamp(0))
            .unwrap();
    let writer = output.start(crate::app::outside::Beats::new(), crate::sink::live::Live::default()).unwrap();
    let (seen, mut said) = (seen(), None);
    let mut raised = Raised::new(seen.clone());
    let log = root.path().join("logs/flows.log");
    let ship = |offset: u64| {
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&log).unwrap());
        fs::write(&pos, format!("/var/log/flows.log\t{offset:016x}\t{inode:016x}\n")).unwrap();
    };
    let written = |windows: u64| {
        while metrics.sink_written_windows.get() < windows {
            std::thread::yield_now();
        }
    };
    let mut levels = Vec::new();
    for window in 1..=9_u64 {
        for port in 0..4_u16 {
            let original = Addresses {
                src: [192, 168, 0, 1].into(),
                src_port: 40_000 + port,
                dst: [8, 8, 8, 8].into(),
                dst_port: 80 + port / 2,
            };
            let reply = Addresses {
                src: original.dst,
                src_port: original.dst_port,
                dst: original.src,
                dst_port: original.src_port,
            };
            let record = ConnectionRecord {
                event: if window == 1 { ConnectionEvent::New } else { ConnectionEvent::Update },
                proto: Proto::UDP,
                original,
                reply,
                counters: Directional {
                    original: Counters::new(window, 100 * window),
                    reply: Counters::new(window, 200 * window),
                },
                zone: 0,
                tcp_state: None,
                icmp: None,
            };
            let observation = Observation::Connection(record);
            pipeline.step(Input::Observation(&observation), Timestamp(window as i64), &snapshot);
        }
        // The shipper stands still from the second window to the fifth, and has read everything by the others.
        match window {
            1 => {}
            2..=4 => ship(1),
            _ => ship(fs::metadata(&log).unwrap().len()),
        }
        let found = look(&config);
        take(&found, &mut said, &config, &seen, &metrics);
        said = Some(found);
        pipeline.reconfigure(raised.next(settings(&config), &config, &metrics));
        let logs = pipeline.step(Input::Flush, Timestamp(window as i64 + 1), &snapshot).unwrap();
        levels.push(logs.records.len());
        writer.send(logs, true, &metrics);
        written(window);
    }
    writer.finish(&[], Timestamp(99)).unwrap();
    assert_eq!(levels, [4, 4, 2, 2, 1, 2, 2, 4, 4]);
    let text = fs::read_to_string(&log).unwrap();
    let sum: u64 = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| line["bytes_in"].as_u64().unwrap() + line["bytes_out"].as_u64().unwrap())
        .sum();
    assert_eq!(sum, 9 * 4 * 300);
}
