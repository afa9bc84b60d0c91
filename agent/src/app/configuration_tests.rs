//! Configuration that changes while the agent runs: every live field acts at the next flush and costs no counter;
//! the file is read again however it is replaced; what is wrong is told once and stops nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::app::listeners::{health_wanted, live_wanted, metrics_wanted, reporter_wanted};
use crate::app::memory::Memory;
use crate::app::settings;
use crate::app::writer::{Lines, Output};
use crate::config::{Notation, Owner, RawEntry, RawLayer, parse_file, resolve};
use crate::model::{
    Addresses, ConnectionEvent, ConnectionRecord, Counters, Directional, Observation, Proto, Timestamp,
};
use crate::pipeline::{Input, Limits, Pipeline};
use crate::snapshot::Snapshot;

const SECOND: i64 = 1_000_000_000;

fn config_of(values: &[(&str, Value)]) -> Config {
    let entry = |(field, value): &(&str, Value)| RawEntry {
        field: (*field).to_owned(),
        value: value.clone(),
        place: "test".to_owned(),
        notation: Notation::Yaml,
    };
    let layer = RawLayer { layer: Layer::File, entries: values.iter().map(entry).collect() };
    let (resolved, bad) = resolve(vec![layer]);
    assert_eq!(bad, []);
    resolved.config
}

/// Another value than the default, allowed.
fn another(field: &Field, dir: &Path) -> Value {
    match (field.name, field.default_value()) {
        ("flowLogsFileMode", _) => json!("0640"),
        ("flowLogsFilters", _) => json!(["drop port=81"]),
        ("flowLogsFileAggregationKindForAllowed", _) => json!(0),
        (_, Value::Bool(value)) => json!(!value),
        (_, Value::Number(number)) => {
            let number = number.as_u64().unwrap();
            if number == 0 { json!(1) } else { json!(number - 1) }
        }
        (_, default) => match field.kind {
            crate::config::Kind::Choice([_]) => default,
            crate::config::Kind::Choice(names) => {
                json!(names.iter().find(|name| default.as_str() != Some(**name)).unwrap())
            }
            crate::config::Kind::Duration => json!("7s"),
            crate::config::Kind::List => json!(["10.0.0.1"]),
            crate::config::Kind::Path => json!(dir.join("elsewhere")),
            _ => json!("another"),
        },
    }
}

/// Live fields that act elsewhere than in the window's settings and in the lines.
const OF_THE_LOOP: [&str; 5] = [
    "flowLogsFlushInterval",
    "flowLogsCollectorDebugTrace",
    "flowLogsDynamicAggregationEnabled",
    "flowLogsAggregationThresholdBytes",
    "flowLogsPositionFilePath",
];

#[test]
fn every_live_field_reaches_what_changes_at_a_flush() {
    let dir = Path::new("/nowhere");
    let before = config_of(&[]);
    let of_joins = |name: &str| name.starts_with("dns") || JOINED.contains(&name);
    for field in FIELDS.iter().filter(|field| field.change == Change::Live) {
        let after = config_of(&[(field.name, another(field, dir))]);
        let acts = settings(&before) != settings(&after)
            || Lines::of(&before, "n1", &Memory::allowed()) != Lines::of(&after, "n1", &Memory::allowed());
        let is_only_value = after == before;
        assert!(
            acts || is_only_value || OF_THE_LOOP.contains(&field.name) || of_joins(field.name),
            "{} is live, but nothing that changes at a flush depends on it",
            field.name
        );
    }
}

#[test]
fn every_field_that_acts_at_once_is_a_listener_s() {
    let file = |name| (name, json!("/etc/tls"));
    let base = [
        ("prometheusMetricsEnabled", json!(true)),
        file("prometheusMetricsCertFile"),
        file("prometheusMetricsKeyFile"),
        file("prometheusMetricsCAFile"),
        ("prometheusReporterEnabled", json!(true)),
        file("prometheusReporterCertFile"),
        file("prometheusReporterKeyFile"),
        file("prometheusReporterCAFile"),
    ];
    let parts = |config: &Config| {
        let http = [metrics_wanted(config), reporter_wanted(config), health_wanted(config)];
        (http, live_wanted(config))
    };
    let before = parts(&config_of(&base));
    for field in FIELDS.iter().filter(|field| field.change == Change::AtOnce) {
        let value = match base.iter().any(|(name, value)| *name == field.name && value == &json!(true)) {
            true => json!(false),
            false => another(field, Path::new("/nowhere")),
        };
        let others = base.iter().filter(|(name, _)| *name != field.name).cloned();
        let changed: Vec<_> = others.chain([(field.name, value)]).collect();
        assert_ne!(parts(&config_of(&changed)), before, "no listener depends on {}", field.name);
    }
}

/// Fields of what is joined to flows (domains, processes, original addresses): read by their own stages.
const JOINED: [&str; 10] = [
    "flowLogsCollectDestDomains",
    "flowLogsCollectProcessInfo",
    "flowLogsCollectProcessPath",
    "flowLogsCollectTcpStats",
    "flowLogsFileDomainsLimit",
    "flowLogsFilePerFlowProcessLimit",
    "flowLogsFilePerFlowProcessArgsLimit",
    "flowLogsDestDomainsByClient",
    "flowLogsMaxOriginalIPsIncluded",
    "flowLogsPolicyEvaluationMode",
];

fn observe(pipeline: &mut Pipeline, snapshot: &Snapshot, window: u64, last: bool) {
    for port in 0..5_u16 {
        let original = Addresses {
            src: [192, 168, 0, 1].into(),
            src_port: 40_000 + port,
            dst: [8, 8, 8, 8].into(),
            dst_port: 80 + port % 2,
        };
        let reply = Addresses {
            src: original.dst,
            src_port: original.dst_port,
            dst: original.src,
            dst_port: original.src_port,
        };
        let event = match (window, last) {
            (1, _) => ConnectionEvent::New,
            (_, false) => ConnectionEvent::Update,
            _ => ConnectionEvent::End { confirmed: true },
        };
        let record = ConnectionRecord {
            event,
            proto: Proto::TCP,
            original,
            reply,
            counters: Directional {
                original: Counters::new(10 * window, 1000 * window),
                reply: Counters::new(20 * window, 3000 * window),
            },
            zone: 0,
            tcp_state: None,
            icmp: None,
        };
        let at = Timestamp(window as i64 * SECOND + i64::from(port));
        pipeline.step(Input::Observation(&Observation::Connection(record)), at, snapshot);
    }
}

/// Five windows through pipeline and writer; the configuration changes while the third is open.
fn run(before: &Config, after: &Config) {
    let snapshot = Snapshot::without_cluster("n1".into());
    let metrics = Arc::new(Metrics::default());
    let mut pipeline = Pipeline::new(settings(before), Limits::default(), Timestamp(0));
    let output =
        Output::open(Lines::of(before, "n1", &Memory::allowed()), false, metrics.clone(), Timestamp(0))
            .unwrap();
    let mut writer =
        output.start(crate::app::outside::Beats::new(), crate::sink::live::Live::default()).unwrap();
    for window in 1..=5_u64 {
        observe(&mut pipeline, &snapshot, window, window == 5);
        let change = window == 3;
        if change {
            pipeline.reconfigure(settings(after));
        }
        let end = Timestamp((window as i64 + 1) * SECOND);
        let logs = pipeline.step(Input::Flush, end, &snapshot).unwrap();
        writer.send(logs, true, &metrics);
        if change {
            writer.reconfigure(Lines::of(after, "n1", &Memory::allowed()));
        }
    }
    writer.finish(&[], Timestamp(9 * SECOND)).unwrap();
    let stats = pipeline.stats();
    let by_rule: u64 = stats.filtered_by_rule.iter().map(|(_, traffic)| traffic.bytes).sum();
    FILTERED.with(|cell| cell.set(stats.filtered.bytes + by_rule));
}

thread_local! {
    static FILTERED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

fn lines_below(dir: &Path) -> Vec<Value> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                open.push(path);
            } else if name.starts_with("flows.log") && !name.ends_with("lock") {
                files.push(path);
            }
        }
    }
    let text: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    text.iter().flat_map(|text| text.lines()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sum(lines: &[Value]) -> u64 {
    lines.iter().map(|line| line["bytes_in"].as_u64().unwrap() + line["bytes_out"].as_u64().unwrap()).sum()
}

fn at(seconds: u64, lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|line| line["start_time"] == seconds).collect()
}

#[test]
fn no_live_field_costs_a_counter_when_it_changes() {
    for field in FIELDS.iter().filter(|field| field.change == Change::Live) {
        let root = tempfile::tempdir().unwrap();
        let dir = ("flowLogsFileDirectory", json!(root.path().join("logs")));
        let before = config_of(std::slice::from_ref(&dir));
        let after = config_of(&[dir, (field.name, another(field, root.path()))]);
        run(&before, &after);
        let lines = lines_below(root.path());
        let told = sum(&lines) + FILTERED.with(std::cell::Cell::get);
        let windows_written = if after.flow_logs_file_enabled { 5 } else { 3 };
        assert_eq!(told, 5 * 4000 * windows_written, "{}", field.name);
        // Windows before the change are as if there were none.
        if field.name == "flowLogsFileAggregationKindForAllowed" {
            assert_eq!([at(3, &lines).len(), at(4, &lines).len()], [2, 5]);
        }
        if field.name == "flowLogsFileFormat" {
            assert!(at(3, &lines)[0].get("host").is_some() && at(4, &lines)[0].get("host").is_none());
        }
        if field.name == "flowLogsClusterName" {
            assert_eq!(at(3, &lines)[0]["cluster"], Value::Null);
            assert_eq!(at(4, &lines)[0]["cluster"], "another");
        }
        if field.name == "flowLogsFileDirectory" {
            let moved = lines_below(&root.path().join("elsewhere"));
            assert_eq!(sum(&moved), 5 * 4000 * 2);
            assert_eq!((at(3, &moved).len(), at(4, &moved).len()), (0, 2));
        }
    }
}

fn layers(text: &str) -> Layers {
    Layers::new("n1", vec![parse_file("c.yaml", text).unwrap()])
}

#[test]
fn a_change_is_published_once_and_what_waits_for_a_restart_is_not() {
    let metrics = Arc::new(Metrics::default());
    let (mut reload, mut configuration) =
        Reload::new(layers("flowLogsFlushInterval: 15s\n"), metrics.clone());
    reload.begin();
    assert!(configuration.take_change().is_none());
    reload.file(Ok(parse_file("c.yaml", "flowLogsFlushInterval: 20s\nflowLogsSource: netlink\n").unwrap()));
    let changed = configuration.take_change().unwrap();
    assert_eq!(changed.config.flow_logs_flush_interval, Duration::from_secs(20));
    assert!(configuration.take_change().is_none());
    assert_eq!(reload.waiting().iter().map(|field| field.name).collect::<Vec<_>>(), ["flowLogsSource"]);
    assert_eq!(metrics.configuration_waiting.get(), 1);
    // A bad value, twice the same: counted once, and the last good one holds.
    for _ in 0..2 {
        reload.file(Ok(parse_file("c.yaml", "flowLogsFlushInterval: x\nflowLogsSource: netlink\n").unwrap()));
    }
    assert!(configuration.take_change().is_none());
    assert_eq!(metrics.bad_configuration_values.get("file"), 1);
    assert_eq!(metrics.configuration_refused.get("file"), 1);
    reload.file(parse_file("c.yaml", "a: [").map(|_| unreachable!()));
    assert_eq!(configuration.get().config.flow_logs_flush_interval, Duration::from_secs(20));
    reload.file(Ok(parse_file("c.yaml", "").unwrap()));
    assert_eq!(metrics.configuration_refused.get("file"), 0);
    assert_eq!(configuration.take_change().unwrap().config, Config::default());
    assert_eq!(metrics.configuration_waiting.get(), 0);
}

#[test]
fn objects_come_change_and_go() {
    let metrics = Arc::new(Metrics::default());
    let (mut reload, mut configuration) = Reload::new(layers(""), metrics.clone());
    let object = |spec: Value| {
        let mut value = json!({"metadata": {"name": "default"}, "spec": spec});
        Resource::read(Owner::Ours, &mut value).unwrap()
    };
    reload.apply(object(json!({"flowLogsFlushInterval": "30s"})));
    assert_eq!(configuration.take_change().unwrap().config.flow_logs_flush_interval.as_secs(), 30);
    reload.apply(object(json!({"flowLogsFlushInterval": "48h"})));
    assert_eq!(configuration.take_change().unwrap().config.flow_logs_flush_interval.as_secs(), 300);
    assert_eq!(metrics.configuration_refused.get("FlowLogConfiguration default"), 1);
    reload.apply(object(json!({"flowLogsFlushInterval": "40s"})));
    assert_eq!(configuration.take_change().unwrap().config.flow_logs_flush_interval.as_secs(), 40);
    reload.delete(&ResourceRef { owner: Owner::Ours, name: "default".into() });
    assert_eq!(configuration.take_change().unwrap().config, Config::default());
}

#[test]
fn a_file_is_read_again_however_it_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let fields = |content: Option<Result<RawLayer, LoadError>>| -> Option<BTreeMap<String, Value>> {
        content.map(|layer| layer.unwrap().entries.into_iter().map(|e| (e.field, e.value)).collect())
    };
    // As a ConfigMap is mounted: config.yaml -> ..data/config.yaml, ..data -> a folder with a time in its name.
    for (version, files) in [("..1", 7), ("..2", 8)] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("config.yaml"), format!("flowLogsFileMaxFiles: {files}\n")).unwrap();
    }
    std::os::unix::fs::symlink("..1", path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/config.yaml", path("config.yaml")).unwrap();
    let mut watch = FileWatch::new(&path("config.yaml"));
    assert_eq!(fields(watch.look()).unwrap()["flowLogsFileMaxFiles"], 7);
    assert!(watch.look().is_none());
    std::os::unix::fs::symlink("..2", path("..tmp")).unwrap();
    fs::rename(path("..tmp"), path("..data")).unwrap();
    assert_eq!(fields(watch.look()).unwrap()["flowLogsFileMaxFiles"], 8);
    assert!(watch.look().is_none());
    // In place, and by a rename.
    fs::write(path("..2/config.yaml"), "flowLogsFileMaxFiles: 19\n").unwrap();
    assert_eq!(fields(watch.look()).unwrap()["flowLogsFileMaxFiles"], 19);
    fs::write(path("new"), "flowLogsFileMaxFiles: 29\n").unwrap();
    fs::rename(path("new"), path("config.yaml")).unwrap();
    assert_eq!(fields(watch.look()).unwrap()["flowLogsFileMaxFiles"], 29);
    // Gone: told at the second look, once; there again: read.
    fs::remove_file(path("config.yaml")).unwrap();
    assert!(watch.look().is_none());
    assert!(matches!(watch.look(), Some(Err(LoadError::NotFound { .. }))));
    assert!(watch.look().is_none());
    fs::write(path("config.yaml"), "flowLogsFileMaxFiles: 29\n").unwrap();
    assert_eq!(fields(watch.look()).unwrap()["flowLogsFileMaxFiles"], 29);
    // A folder in its place is no file, and a broken one is told.
    fs::write(path("config.yaml"), "- a\n").unwrap();
    assert!(matches!(watch.look(), Some(Err(LoadError::Malformed(_)))));
}
