//! Layers that come, change and go: precedence, what a bad value leaves in force, what status says of it.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{
    ACCEPTED, Config, FELIX_ACCEPTED, FIELDS, Layer, Owner, Resource, ResourceRef, accepted, flag_layer,
    in_force, parse_file,
};
use super::Layers;

fn resource(owner: Owner, name: &str, spec: Value) -> Resource {
    let mut value = json!({"metadata": {"name": name, "generation": 1}, "spec": spec});
    Resource::read(owner, &mut value).unwrap()
}

fn ours(name: &str, spec: Value) -> Resource {
    resource(Owner::Ours, name, spec)
}

fn interval(layers: &Layers) -> (u64, Layer) {
    let (resolved, _) = layers.resolve();
    let layer = resolved.origin("flowLogsFlushInterval").unwrap().layer;
    (resolved.config.flow_logs_flush_interval.as_secs(), layer)
}

#[test]
fn objects_are_layers_of_the_nodes_they_name() {
    let mut layers = Layers::new("n1", vec![]);
    assert_eq!(interval(&layers), (300, Layer::BuiltIn));
    let set = |seconds: u64| json!({"flowLogsFlushInterval": format!("{seconds}s")});
    for (owner, name, seconds, layer) in [
        (Owner::Felix, "default", 10, Layer::FelixDefault),
        (Owner::Felix, "node.n1", 20, Layer::FelixNode),
        (Owner::Ours, "default", 30, Layer::ClusterDefault),
        (Owner::Ours, "node.n1", 40, Layer::ClusterNode),
    ] {
        assert!(layers.apply(resource(owner, name, set(seconds))));
        assert_eq!(interval(&layers), (seconds, layer));
        assert!(!layers.apply(resource(owner, name, set(seconds))), "it says what it said");
    }
    for name in ["node.n2", "node.", "n1", "node.n1.x", "Default", ""] {
        assert!(!layers.apply(ours(name, set(99))), "{name}");
        assert!(!layers.delete(&ResourceRef { owner: Owner::Ours, name: name.into() }), "{name}");
    }
    assert!(layers.delete(&ResourceRef { owner: Owner::Ours, name: "node.n1".into() }));
    assert_eq!(interval(&layers), (30, Layer::ClusterDefault));
    // One that was not there is no change.
    assert!(!layers.delete(&ResourceRef { owner: Owner::Ours, name: "node.n1".into() }));
    assert!(layers.delete(&ResourceRef { owner: Owner::Ours, name: "default".into() }));
    assert_eq!(interval(&layers), (20, Layer::FelixNode));
}

#[test]
fn flags_stand_above_the_cluster_and_unset_fields_leave_the_lower_value() {
    let flag = flag_layer(&[("flowLogsFileMaxFiles".into(), "9".into(), "--set".into())]);
    let mut layers = Layers::new("n1", vec![flag]);
    layers.apply(ours("default", json!({"flowLogsFileMaxFiles": 3, "flowLogsFlushInterval": "30s"})));
    layers.apply(ours("node.n1", json!({"flowLogsFlushInterval": null})));
    let (resolved, bad) = layers.resolve();
    assert_eq!(bad, []);
    assert_eq!(resolved.config.flow_logs_file_max_files, 9);
    assert_eq!(interval(&layers), (30, Layer::ClusterDefault));
}

#[test]
fn a_bad_value_of_an_object_leaves_the_next_lower_layers() {
    let mut layers = Layers::new("n1", vec![]);
    layers.apply(resource(Owner::Felix, "default", json!({"flowLogsFlushInterval": "20s", "bpfEnabled": 7})));
    layers.apply(ours("default", json!({"flowLogsFlushInterval": "30s"})));
    layers.apply(ours("default", json!({"flowLogsFlushInterval": {"hours": 1}, "flowLogsFileMaxFiles": 3})));
    let (resolved, bad) = layers.resolve();
    assert_eq!(interval(&layers), (20, Layer::FelixDefault));
    assert_eq!(resolved.config.flow_logs_file_max_files, 3, "the rest of the object holds");
    assert_eq!(
        (bad.len(), bad[0].layer, bad[0].field.as_str()),
        (1, Layer::ClusterDefault, "flowLogsFlushInterval")
    );
    assert!(
        bad[0].to_string().starts_with("FlowLogConfiguration default: flowLogsFlushInterval:"),
        "{}",
        bad[0]
    );
}

#[test]
fn a_file_that_is_spoilt_later_keeps_its_last_good_values() {
    let file = |text: &str| parse_file("c.yaml", text).unwrap();
    let mut layers = Layers::new("n1", vec![file("flowLogsFlushInterval: 15s\nflowLogsFileMaxFiles: 7\n")]);
    for (text, seconds, files, bad_values) in [
        ("flowLogsFlushInterval: soon\nflowLogsFileMaxFiles: 8\n", 15, 8, 1),
        ("flowLogsFlushInterval: later\nflowLogsFileMaxFiles: 0\n", 15, 8, 2),
        ("flowLogsFlushInterval: 25s\nflowLogsFileMaxFiles: 0\n", 25, 8, 1),
        ("flowLogsFlushInterval: never\nflowLogsFileMaxFiles: 9\nnoSuchField: 1\n", 25, 9, 2),
        ("flowLogsFileMaxFiles: 9\n", 300, 9, 0),
        // Taken out, and then spoilt: what it was before it was taken out is no value of the file any more.
        ("flowLogsFlushInterval: soon\n", 300, 5, 1),
    ] {
        layers.replace_file(file(text));
        let (resolved, bad) = layers.resolve();
        assert_eq!(interval(&layers).0, seconds, "{text}");
        assert_eq!(resolved.config.flow_logs_file_max_files, files, "{text}");
        assert_eq!(bad.len(), bad_values, "{text}: {bad:?}");
    }
}

#[test]
fn status_says_the_same_whoever_looks() {
    let bad = ours("default", json!({"flowLogsFlushInterval": "48h", "flowLogsFileMaxFiles": 3}));
    let condition = accepted(ACCEPTED, &bad);
    assert_eq!((condition.kind, condition.is_true, condition.reason), ("Accepted", false, "BadValues"));
    assert_eq!(
        condition.message,
        "flowLogsFlushInterval: \"48h\" is not allowed; allowed is a duration with its unit, such as 15s or 1m30s, \
         from 100ms to 24h; the next lower layer's value holds"
    );
    let good = ours(
        "node.n1",
        json!({"flowLogsFlushInterval": "1m", "flowLogsSource": "ebpf", "flowLogsLocalReporter": "Enabled"}),
    );
    let condition = accepted(ACCEPTED, &good);
    assert!(condition.is_true);
    assert_eq!(
        condition.message,
        "3 fields are set, all of them to something allowed; acting when an agent is started: flowLogsSource; \
         without any effect: flowLogsLocalReporter"
    );
    let felix = resource(Owner::Felix, "default", json!({"bpfEnabled": 1, "flowLogsFileMaxFiles": "many"}));
    let condition = accepted(FELIX_ACCEPTED, &felix);
    assert!(!condition.is_true && condition.message.starts_with("flowLogsFileMaxFiles: \"many\""));

    let mut layers = Layers::new("n1", vec![]);
    layers.apply(good);
    let waiting = layers.resolve().0.waiting_for_restart(&Config::default());
    let condition = in_force(&waiting);
    assert_eq!((condition.is_true, condition.reason), (false, "RestartNeeded"));
    assert!(condition.message.ends_with(": flowLogsSource"));
    assert!(in_force(&[]).is_true);
}

/// Any JSON, not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
        "[0-9]{1,20}(ms|s|m|h)?".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,10}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever an object holds: each field has a value of a layer, what is bad is told with its field, and what
    /// is not bad is in force; status is bounded.
    #[test]
    fn any_object_leaves_a_valid_configuration(
        values in prop::collection::vec((any::<prop::sample::Index>(), any_json()), 0..6),
        more in prop::collection::btree_map("\\PC{0,12}", any_json(), 0..3),
    ) {
        let mut spec: serde_json::Map<String, Value> = more.into_iter().collect();
        for (at, value) in values {
            spec.insert(FIELDS[at.index(FIELDS.len())].name.to_owned(), value);
        }
        let object = ours("default", Value::Object(spec.clone()));
        let mut layers = Layers::new("n1", vec![]);
        layers.apply(ours("node.n1", json!({})));
        layers.apply(object.clone());
        let (resolved, bad) = layers.resolve();
        for (field, origin) in resolved.fields() {
            let is_bad = bad.iter().any(|bad| bad.field == field.name);
            let is_set = spec.get(field.name).is_some_and(|value| !value.is_null());
            prop_assert_eq!(origin.layer == Layer::ClusterDefault, is_set && !is_bad);
        }
        for bad in &bad {
            prop_assert!(spec.contains_key(&bad.field));
        }
        let condition = accepted(ACCEPTED, &object);
        prop_assert_eq!(condition.is_true, bad.is_empty());
        prop_assert!(condition.message.len() < 5_000);
        let range = Duration::from_millis(100)..=Duration::from_secs(86_400);
        prop_assert!(range.contains(&resolved.config.flow_logs_flush_interval));
    }
}
