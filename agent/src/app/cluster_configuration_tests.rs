//! What is said of an object, when, and by how many.

use super::*;
use crate::config::Layers;

fn object(owner: Owner, name: &str, generation: i64, spec: Value, conditions: Value) -> Resource {
    let mut value = json!({
        "metadata": {"name": name, "generation": generation}, "spec": spec,
        "status": {"conditions": conditions},
    });
    Resource::read(owner, &mut value).unwrap()
}

fn wanted(objects: Vec<Resource>, layer: Layer) -> Wanted {
    let (mut reload, _) = Reload::new(Layers::new("n1", vec![]), Arc::default());
    reload.begin();
    for object in objects {
        reload.apply(object);
    }
    Wanted::of(&reload, layer).unwrap()
}

#[test]
fn of_five_thousand_agents_a_few_write() {
    for agents in [1, 10, 100, 1000, 5000] {
        let mut random = fastrand::Rng::with_seed(7);
        let mut most = 0;
        for _ in 0..50 {
            let delays: Vec<f64> = (0..agents).map(|_| feedback_delay(random.f64()).as_secs_f64()).collect();
            let first = delays.iter().copied().fold(f64::MAX, f64::min);
            // Within half a second the first one's status has been told to all.
            most = most.max(delays.iter().filter(|delay| **delay < first + 0.5).count());
            assert!(first <= 6.0);
        }
        assert!(most <= 15, "{most} of {agents}");
    }
    assert_eq!(feedback_delay(0.0), Duration::ZERO);
    assert_eq!(feedback_delay(1.0), FEEDBACK);
}

#[test]
fn what_is_said_of_this_generation_is_left_alone() {
    let default = |generation, conditions| {
        vec![object(Owner::Ours, "default", generation, json!({"flowLogsFileMaxFiles": 0}), conditions)]
    };
    let fresh = wanted(default(3, json!([])), Layer::ClusterDefault);
    assert!(!fresh.is_said());
    let written = fresh.written("2026-01-01T00:00:00Z");
    assert_eq!(written.len(), 1);
    assert_eq!(written[0]["status"], "False");
    assert_eq!(written[0]["observedGeneration"], 3);
    assert!(written[0]["message"].as_str().unwrap().starts_with("flowLogsFileMaxFiles: 0 is not allowed"));
    assert!(wanted(default(3, json!(written)), Layer::ClusterDefault).is_said());
    // Another version of the agent says it in other words: they do not take turns.
    let mut other = written.clone();
    other[0]["message"] = "in other words".into();
    assert!(wanted(default(3, json!(other)), Layer::ClusterDefault).is_said());
    // The object has changed since: said anew, with the time at which it became bad.
    let next = wanted(default(4, json!(written)), Layer::ClusterDefault);
    assert!(!next.is_said());
    assert_eq!(next.written("2026-01-02T00:00:00Z")[0]["lastTransitionTime"], "2026-01-01T00:00:00Z");
}

#[test]
fn a_nodes_object_tells_of_felixs_and_of_what_waits() {
    let felix = object(Owner::Felix, "node.n1", 9, json!({"flowLogsFileMaxFiles": "many"}), json!([]));
    let ours =
        |conditions| object(Owner::Ours, "node.n1", 2, json!({"flowLogsSource": "netlink"}), conditions);
    let fresh = wanted(vec![felix.clone(), ours(json!([]))], Layer::ClusterNode);
    let written = fresh.written("2026-01-01T00:00:00Z");
    let kinds: Vec<_> =
        written.iter().map(|c| (c["type"].as_str().unwrap(), c["status"].as_str().unwrap())).collect();
    assert_eq!(kinds, [("Accepted", "True"), ("FelixAccepted", "False"), ("InForce", "False")]);
    assert_eq!(written[1]["observedGeneration"], 9);
    assert!(wanted(vec![felix, ours(json!(written))], Layer::ClusterNode).is_said());
    // Calico's object is gone: its condition is too much.
    assert!(!wanted(vec![ours(json!(written))], Layer::ClusterNode).is_said());
}

#[test]
fn a_status_is_written_once_and_again_when_it_is_undone() {
    let of = |conditions| {
        Some(wanted(vec![object(Owner::Ours, "node.n1", 1, json!({}), conditions)], Layer::ClusterNode))
    };
    let mut report = Report::new(Layer::ClusterNode);
    let start = Instant::now();
    assert!(report.due(of(json!([])), start).is_none(), "changes that come together");
    let first = report.due(of(json!([])), start + DEBOUNCE).unwrap();
    report.written = Some(first.conditions.clone());
    assert!(report.due(of(json!([])), start + 10 * DEBOUNCE).is_none(), "not told back yet");
    let told_back = json!(first.written("2026-01-01T00:00:00Z"));
    assert!(report.due(of(told_back), start + 20 * DEBOUNCE).is_none());
    assert!(report.due(of(json!([])), start + 30 * DEBOUNCE).is_none());
    assert!(report.due(of(json!([])), start + 40 * DEBOUNCE).is_some());
    assert!(report.due(None, start + 50 * DEBOUNCE).is_none());
}
