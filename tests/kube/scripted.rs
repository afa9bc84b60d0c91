//! Cases of the scripted API server: what it does wrong, and what the published world is then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flowlogd::watch::{CONFIGURATION, Phase, Raw, Selected, Timing, Told, Wanted};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::server::{
    Answer, Ask, QUICK, Server, Watching, event, events, lines, list, list_text, pod, refuse, serves, status,
    until,
};

/// Only what a case says of pods; all else is healthy.
fn of_pods(script: impl Fn(&Ask) -> Option<Answer>) -> impl Fn(&Ask) -> Option<Answer> {
    move |ask| if ask.of == "pods" { script(ask) } else { None }
}

fn bookmark(version: u64, ends_initial: bool) -> Value {
    let mut object = json!({"kind": "Pod", "metadata": {"resourceVersion": version.to_string()}});
    if ends_initial {
        object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    event("BOOKMARK", &object)
}

#[tokio::test]
async fn lists_come_from_the_watch_cache_and_never_from_a_quorum_read() {
    let server =
        Server::start(of_pods(|ask| (!ask.is_watch()).then(|| list(7, &[pod("web", "10.0.0.1", 5)])))).await;
    let watching = Watching::of(server.address, QUICK);
    watching.synced().await;
    until("the watch is open", || !server.watches("pods").is_empty()).await;
    for of in ["pods", "namespaces", "nodes", "services", "serviceaccounts", "endpoints"] {
        let [only] = &server.lists(of)[..] else { panic!("{of}") };
        assert_eq!(only.raw_query, "resourceVersion=0", "{of}");
    }
    let watch = &server.watches("pods")[0];
    assert_eq!(watch.query("resourceVersion"), Some("7"));
    assert_eq!(watch.query("allowWatchBookmarks"), Some("true"));
    let seconds: u64 = watch.query("timeoutSeconds").unwrap().parse().unwrap();
    assert!((60..=120).contains(&seconds), "{seconds}");
    assert_eq!(watching.pod_at("10.0.0.1").as_deref(), Some("web"));
}

#[tokio::test]
async fn streaming_lists_are_tried_first_and_need_no_list() {
    let server = Server::start(of_pods(|ask| {
        ask.is_streaming_list().then(|| {
            events(&[
                event("ADDED", &pod("web", "10.0.0.1", 5)),
                event("ADDED", &pod("db", "10.0.0.2", 3)),
                bookmark(9, true),
                event("MODIFIED", &pod("db", "10.0.0.3", 10)),
            ])
        })
    }))
    .await;
    let watching = Watching::of(server.address, QUICK);
    watching.synced().await;
    until("the event after the list", || watching.pod_at("10.0.0.3").as_deref() == Some("db")).await;
    assert_eq!(watching.pod_at("10.0.0.1").as_deref(), Some("web"));
    assert!(server.lists("pods").is_empty());
    let asked = &server.asked("pods")[0];
    assert_eq!(asked.query("sendInitialEvents"), Some("true"));
    assert_eq!(asked.query("resourceVersionMatch"), Some("NotOlderThan"));
    assert_eq!(asked.query("allowWatchBookmarks"), Some("true"));
    assert_eq!(asked.query("resourceVersion"), Some("0"));
}

#[tokio::test]
async fn a_server_that_takes_a_streaming_list_for_a_watch_is_asked_for_a_list() {
    let server = Server::start(of_pods(|ask| match (ask.is_streaming_list(), ask.is_watch()) {
        (true, _) => Some(events(&[event("ADDED", &pod("web", "10.0.0.1", 5)), bookmark(6, false)])),
        (_, true) => None,
        _ => Some(list(7, &[pod("web", "10.0.0.1", 5)])),
    }))
    .await;
    let watching = Watching::of(server.address, QUICK);
    watching.synced().await;
    assert_eq!(server.lists("pods").len(), 1);
    assert_eq!(watching.kind("Pod").objects(), 1);
}

#[tokio::test]
async fn a_forgotten_version_in_a_watch_swaps_everything_at_once() {
    let server = Server::start(of_pods(|ask| match (ask.is_streaming_list(), ask.is_watch(), ask.nth) {
        (true, ..) => None,
        (_, true, 0) => Some(events(&[
            event("ADDED", &pod("late", "10.0.0.3", 8)),
            event("ERROR", &status(410, "Expired")),
        ])),
        (_, true, _) => None,
        (_, _, 0) => Some(list(7, &[pod("web", "10.0.0.1", 5), pod("db", "10.0.0.2", 6)])),
        _ => Some(list(20, &[pod("db", "10.0.0.2", 6), pod("new", "10.0.0.4", 19)])),
    }))
    .await;
    let watching = Watching::of(server.address, QUICK);
    watching.synced().await;
    until("the new list", || watching.pod_at("10.0.0.4").is_some()).await;
    assert_eq!(watching.published.load().cluster.count(flowlogd::cluster::ObjectKind::Pod), 2);
    assert_eq!(watching.pod_at("10.0.0.2").as_deref(), Some("db"));
    let again = &server.lists("pods")[1];
    assert_eq!(again.raw_query, "resourceVersion=8&resourceVersionMatch=NotOlderThan");
    assert_eq!(watching.kind("Pod").errors().get("expired"), Some(&1));
    assert_eq!(watching.kind("Pod").relists(), 2);
}

#[tokio::test]
async fn a_forgotten_version_in_the_middle_of_a_page_begins_anew() {
    let server = Server::start(of_pods(|ask| match (ask.is_watch(), ask.query("continue"), ask.nth) {
        (true, ..) => None,
        (_, None, 0) => Some(Answer::Status(
            200,
            vec![],
            json!({"metadata": {"resourceVersion": "5", "continue": "page2"}, "items": [pod("gone", "10.0.0.9", 2)]}),
        )),
        (_, Some("page2"), _) => Some(refuse(410, "Expired")),
        _ => Some(list(9, &[pod("web", "10.0.0.1", 8)])),
    }))
    .await;
    let watching = Watching::of(server.address, QUICK);
    watching.synced().await;
    assert_eq!(watching.pod_at("10.0.0.1").as_deref(), Some("web"));
    assert_eq!(watching.pod_at("10.0.0.9"), None);
    assert_eq!(watching.kind("Pod").errors().get("expired"), Some(&1));
}

#[tokio::test]
async fn duplicate_and_late_events_change_nothing() {
    let server = Server::start(of_pods(|ask| match (ask.is_streaming_list(), ask.is_watch()) {
        (true, _) => None,
        (_, true) => {
            let mut successor = pod("web", "10.0.0.2", 12);
            successor["metadata"]["uid"] = json!("another");
            let mut late = pod("web", "10.0.0.1", 13);
            late["metadata"]["uid"] = json!("uid-web");
            Some(events(&[
                event("MODIFIED", &pod("db", "10.0.0.7", 9)),
                event("MODIFIED", &pod("db", "10.0.0.8", 8)),
                event("MODIFIED", &pod("db", "10.0.0.7", 9)),
                event("ADDED", &successor),
                // Told after its successor: of another uid, it is not the one that is known.
                event("DELETED", &late),
                event("ADDED", &pod("end", "10.0.0.99", 14)),
            ]))
        }
        _ => Some(list(7, &[pod("web", "10.0.0.1", 5), pod("db", "10.0.0.6", 6)])),
    }))
    .await;
    let watching = Watching::of(server.address, QUICK);
    watching.synced().await;
    until("the last event", || watching.pod_at("10.0.0.99").is_some()).await;
    assert_eq!(watching.pod_at("10.0.0.7").as_deref(), Some("db"));
    assert_eq!(watching.pod_at("10.0.0.8"), None);
    assert_eq!(watching.pod_at("10.0.0.2").as_deref(), Some("web"));
    assert_eq!(watching.kind("Pod").stale_events(), 2);
}

#[tokio::test]
async fn a_list_that_is_cut_off_is_asked_for_again_and_never_half_published() {
    let server = Server::start(of_pods(|ask| match (ask.is_streaming_list(), ask.is_watch(), ask.nth) {
        (true, ..) | (_, true, _) => None,
        (.., 0) => {
            // More than is told in one part; the last object is torn.
            let items: Vec<Value> = (0..1500).map(|n| pod(&format!("old-{n}"), "10.9.0.1", 3)).collect();
            let mut text = list_text(5, &items).into_bytes();
            text.truncate(text.len() - 100);
            Some(Answer::Bytes(text, false))
        }
        _ => Some(list(9, &[pod("web", "10.0.0.1", 8)])),
    }))
    .await;
    let watching = Watching::of(server.address, QUICK);
    watching.synced().await;
    assert_eq!(watching.published.load().cluster.count(flowlogd::cluster::ObjectKind::Pod), 1);
    assert_eq!(watching.pod_at("10.0.0.1").as_deref(), Some("web"));
    assert_eq!(watching.pod_at("10.9.0.1"), None);
    assert_eq!(watching.kind("Pod").errors().get("malformed"), Some(&1));
}

#[tokio::test]
async fn an_event_that_is_cut_off_is_told_again_by_the_next_watch() {
    let server = Server::start(of_pods(|ask| match (ask.is_streaming_list(), ask.is_watch(), ask.nth) {
        (true, ..) => None,
        (_, true, 0) => {
            let mut text = lines(&[
                event("ADDED", &pod("web", "10.0.0.1", 8)),
                event("ADDED", &pod("db", "10.0.0.2", 9)),
            ]);
            text.truncate(text.len() - 40);
            Some(Answer::Bytes(text, false))
        }
        (_, true, 1) => Some(events(&[event("ADDED", &pod("db", "10.0.0.2", 9))])),
        _ => None,
    }))
    .await;
    let watching = Watching::of(server.address, QUICK);
    until("both pods", || watching.pod_at("10.0.0.1").is_some() && watching.pod_at("10.0.0.2").is_some())
        .await;
    assert_eq!(server.watches("pods")[1].query("resourceVersion"), Some("8"));
    assert_eq!(server.lists("pods").len(), 1);
}

#[tokio::test]
async fn a_watch_that_says_nothing_is_given_up_and_resumed() {
    let timing = Timing { idle: Duration::from_secs(2), ..QUICK };
    let server = Server::start(of_pods(|ask| match (ask.is_streaming_list(), ask.is_watch(), ask.nth) {
        (true, ..) => None,
        (_, true, 0) => Some(events(&[event("ADDED", &pod("web", "10.0.0.1", 8))])),
        (_, true, 1) => Some(events(&[event("ADDED", &pod("db", "10.0.0.2", 9))])),
        _ => None,
    }))
    .await;
    let watching = Watching::of(server.address, timing);
    until("what the second watch tells", || watching.pod_at("10.0.0.2").is_some()).await;
    assert_eq!(server.watches("pods")[1].query("resourceVersion"), Some("8"));
    assert_eq!(server.lists("pods").len(), 1);
    assert!(watching.kind("Pod").errors().contains_key("silent"));
}

#[tokio::test]
async fn an_object_that_does_not_parse_is_counted_and_alone_left_out() {
    let bad = |version: u64| {
        let mut pod = pod("bad", "10.0.0.256", version);
        pod["status"]["podIP"] = json!("10.0.0.256");
        pod
    };
    let server =
        Server::start(of_pods(move |ask| match (ask.is_streaming_list(), ask.is_watch(), ask.nth) {
            (true, ..) => None,
            (_, true, 0) => Some(events(&[
                event("MODIFIED", &bad(8)),
                event("MODIFIED", &json!({"metadata": {"name": "x", "resourceVersion": "9"}, "spec": 7})),
                event("ADDED", &pod("db", "10.0.0.2", 10)),
            ])),
            (_, true, _) => None,
            _ => Some(list(7, &[pod("web", "10.0.0.1", 5), bad(6), json!(["no object"]), json!(7)])),
        }))
        .await;
    let watching = Watching::of(server.address, QUICK);
    until("what comes after it", || watching.pod_at("10.0.0.2").is_some()).await;
    assert_eq!(watching.pod_at("10.0.0.1").as_deref(), Some("web"));
    // A bare number among the items is not even looked at.
    assert_eq!(watching.kind("Pod").refused(), 4);
    assert_eq!(watching.kind("Pod").relists(), 1);
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_is_not_taken_for_absent() {
    let policy = |name: &str, types: Value, version: u64| {
        json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": version.to_string()},
               "spec": {"podSelector": {}, "policyTypes": types}})
    };
    let good = || json!(["Ingress"]);
    let bad = || json!("everything");
    let server = Server::start(move |ask: &Ask| match (ask.of.as_str(), ask.is_streaming_list(), ask.is_watch(), ask.nth) {
        ("networkpolicies" | "tiers", true, ..) => None,
        ("networkpolicies", _, true, 0) => Some(events(&[
            // What was read becomes unreadable, and what was unreadable is mended or goes.
            event("MODIFIED", &policy("turns", bad(), 8)),
            event("MODIFIED", &policy("mended", good(), 9)),
            event("DELETED", &policy("gone", bad(), 10)),
        ])),
        ("networkpolicies", _, false, _) => Some(list(7, &[
            policy("turns", good(), 3),
            policy("mended", bad(), 4),
            policy("gone", bad(), 5),
        ])),
        ("tiers", _, false, _) => {
            let tier = json!({"metadata": {"name": "platform", "resourceVersion": "2"}, "spec": {"order": "first"}});
            Some(list(4, &[tier]))
        }
        (of, ..) if of.starts_with("/apis") => both(ask),
        _ => None,
    })
    .await;
    let watching = Watching::of(server.address, QUICK);
    watching.synced().await;
    let broken = || -> Vec<String> {
        let mut names: Vec<_> = watching
            .published
            .load()
            .policies
            .broken()
            .map(|(reference, _)| reference.name.to_string())
            .collect();
        names.sort();
        names
    };
    until("the events are known", || broken() == ["platform", "turns"]).await;
    let snapshot = watching.published.load();
    let read: Vec<_> = snapshot.policies.policies().map(|policy| policy.id.name.to_string()).collect();
    assert_eq!(read, ["mended"]);
    assert_eq!(watching.kind("KubernetesNetworkPolicy").refused(), 3);
    assert_eq!(watching.kind("Tier").refused(), 1);
}

/// Kubernetes' policies and Calico's tiers.
fn both(ask: &Ask) -> Option<Answer> {
    if ask.of == "/apis" {
        let group = |name: &str, version: &str| {
            let versions = json!([{"groupVersion": format!("{name}/{version}"), "version": version}]);
            json!({"name": name, "versions": versions, "preferredVersion": versions[0]})
        };
        let groups = [group("networking.k8s.io", "v1"), group("projectcalico.org", "v3")];
        let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
        return Some(Answer::Status(200, vec![], list));
    }
    serves(ask, "networking.k8s.io", "v1", &["networkpolicies"])
        .or_else(|| serves(ask, "projectcalico.org", "v3", &["tiers"]))
}

#[tokio::test]
async fn a_server_under_pressure_gets_the_time_that_it_asks_for() {
    let server = Server::start(of_pods(|ask| match (ask.is_streaming_list(), ask.is_watch(), ask.nth) {
        (true, ..) | (_, true, _) => None,
        (.., 0) => Some(Answer::Status(
            429,
            vec![("retry-after", "1".into())],
            json!("Too many requests, please try again later."),
        )),
        _ => Some(list(7, &[pod("web", "10.0.0.1", 5)])),
    }))
    .await;
    // Long enough waits are taken, but not ones for ever.
    let timing = Timing { backoff_most: Duration::from_millis(200), ..QUICK };
    let watching = Watching::of(server.address, timing);
    watching.synced().await;
    let [first, second] = &server.lists("pods")[..] else { panic!("two lists") };
    assert!(second.at - first.at >= Duration::from_secs(1));
    assert_eq!(watching.kind("Pod").errors().get("too_many_requests"), Some(&1));
}

#[tokio::test]
async fn nothing_is_published_while_a_kind_is_not_known() {
    let broken = Arc::new(AtomicBool::new(true));
    let of = broken.clone();
    let server = Server::start(move |ask: &Ask| {
        (ask.of == "services" && of.load(Ordering::SeqCst)).then(|| refuse(500, "InternalError"))
    })
    .await;
    let watching = Watching::of(server.address, QUICK);
    until("three failures", || {
        watching.kind("Service").errors().get("server_error").is_some_and(|n| *n >= 3)
    })
    .await;
    until("pods are known", || watching.kind("Pod").phase() == Phase::Synced).await;
    assert!(watching.published.load().cluster.is_empty());
    assert!(!watching.status.may_name());
    let reasons = watching.status.reasons(Duration::from_secs(60));
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(reasons[0].starts_with("Service: not all objects are known yet"), "{reasons:?}");
    broken.store(false, Ordering::SeqCst);
    watching.synced().await;
    assert!(!watching.published.load().cluster.is_empty());
    until("ready", || watching.status.reasons(Duration::from_secs(60)).is_empty()).await;
}

#[tokio::test]
async fn what_names_nobody_is_waited_for_only_so_long() {
    let timing = Timing { hold: Duration::from_millis(100), ..QUICK };
    let forbidden = |ask: &Ask| (ask.of == "services").then(|| refuse(403, "Forbidden"));
    let server = Server::start(forbidden).await;
    let watching = Watching::of(server.address, timing);
    watching.synced().await;
    assert!(watching.status.reasons(Duration::from_secs(60))[0].contains("403"));

    let forbidden = |ask: &Ask| (ask.of == "pods").then(|| refuse(403, "Forbidden"));
    let server = Server::start(forbidden).await;
    let watching = Watching::of(server.address, timing);
    until("holding ends", || watching.status.may_name()).await;
    assert!(!watching.status.is_synced());
    assert!(watching.published.load().cluster.is_empty());
}

#[tokio::test]
async fn a_server_that_comes_late_goes_and_comes_back_stops_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let watching = Watching::of(address, QUICK);
    until("nobody answers", || watching.kind("Pod").errors().get("connection").is_some_and(|n| *n >= 2))
        .await;
    let (feed, fed) = mpsc::unbounded_channel();
    let fed = std::sync::Mutex::new(Some(fed));
    let _server = Server::start_on(
        TcpListener::bind(address).await.unwrap(),
        of_pods(move |ask| match (ask.is_streaming_list(), ask.is_watch(), ask.nth) {
            (true, ..) => None,
            (_, true, 0) => fed.lock().unwrap().take().map(Answer::Fed),
            (_, true, 1..4) => Some(refuse(503, "ServiceUnavailable")),
            (_, true, 4) => Some(events(&[event("DELETED", &pod("web", "10.0.0.1", 9))])),
            (_, true, _) => None,
            _ => Some(list(7, &[pod("web", "10.0.0.1", 5)])),
        }),
    );
    watching.synced().await;
    feed.send(lines(&[event("ADDED", &pod("db", "10.0.0.2", 8))])).unwrap();
    until("an event", || watching.pod_at("10.0.0.2").is_some()).await;
    drop(feed);
    let pods = || watching.published.load().cluster.count(flowlogd::cluster::ObjectKind::Pod);
    until("the event after the outage", || pods() == 1).await;
    assert_eq!(watching.kind("Pod").errors().get("server_error"), Some(&3));
    assert_eq!(watching.kind("Pod").relists(), 1 + watching.kind("Pod").errors().get("connection").unwrap());
}

#[tokio::test]
async fn custom_resources_are_picked_up_when_they_appear_and_forgotten_when_they_go() {
    let installed = Arc::new(AtomicBool::new(false));
    let of = installed.clone();
    let server = Server::start(move |ask: &Ask| {
        if of.load(Ordering::SeqCst) {
            if ask.of == "globalnetworksets" && !ask.is_watch() {
                let set = json!({"metadata": {"name": "partners", "resourceVersion": "3"},
                                 "spec": {"nets": ["203.0.113.0/24"]}});
                return Some(list(4, &[set]));
            }
            serves(ask, "crd.projectcalico.org", "v1", &["globalnetworksets", "globalnetworksets/status"])
        } else {
            (ask.of == "globalnetworksets").then(|| refuse(404, "NotFound"))
        }
    })
    .await;
    let watching = Watching::of(server.address, QUICK);
    watching.synced().await;
    assert_eq!(watching.kind("GlobalNetworkSet").phase(), Phase::NotServed);
    let set = || {
        let snapshot = watching.published.load();
        snapshot.cluster.network_set("203.0.113.7".parse().unwrap(), None).map(|set| set.name.to_string())
    };
    assert_eq!(set(), None);
    installed.store(true, Ordering::SeqCst);
    until("the set is known", || set().as_deref() == Some("partners")).await;
    installed.store(false, Ordering::SeqCst);
    until("the set is forgotten", || set().is_none()).await;
    assert_eq!(watching.kind("GlobalNetworkSet").phase(), Phase::NotServed);
}

#[tokio::test]
async fn a_kind_is_followed_as_it_is_written_whoever_asks() {
    const WANTED: Wanted = Wanted {
        kind: "FelixConfiguration",
        plural: "felixconfigurations",
        served: &[("projectcalico.org", "v3"), ("crd.projectcalico.org", "v1")],
        always: false,
        unless: None,
    };
    let server = Server::start(|ask: &Ask| {
        let felix =
            json!({"metadata": {"name": "default", "resourceVersion": "3"}, "spec": {"unknown": [1]}});
        match (ask.of.as_str(), ask.is_streaming_list(), ask.is_watch()) {
            ("felixconfigurations", true, _) => None,
            ("felixconfigurations", _, true) => Some(events(&[event("DELETED", &felix)])),
            ("felixconfigurations", ..) => Some(list(4, &[felix])),
            _ => serves(ask, "projectcalico.org", "v3", &["felixconfigurations"]),
        }
    })
    .await;
    let watching = Watching::with(server.address, QUICK, &[WANTED]);
    let (following, Raw { mut told, status }) = watching.link.raw(vec![WANTED.into()]);
    tokio::spawn(following);
    let Some((0, Told::All { objects, .. })) = told.recv().await else { panic!("a list") };
    assert_eq!(objects[0]["apiVersion"], "projectcalico.org/v3");
    assert_eq!(objects[0]["kind"], "FelixConfiguration");
    assert_eq!(objects[0]["spec"]["unknown"], json!([1]));
    let Some((0, Told::Gone { identity, object })) = told.recv().await else { panic!("a deletion") };
    assert_eq!((identity.name.as_str(), object.is_some()), ("default", true));
    assert_eq!(status.kinds[0].phase(), Phase::Synced);
}

#[tokio::test]
async fn of_configuration_objects_only_those_of_this_node_are_asked_for() {
    let object = |name: &str, version: u64| json!({"metadata": {"name": name, "resourceVersion": version.to_string()}, "spec": {}});
    let selected = |ask: &Ask| ask.query("fieldSelector").map(|text| text.replace("%3D", "="));
    let server = Server::start(move |ask: &Ask| {
        let name = selected(ask).and_then(|text| text.strip_prefix("metadata.name=").map(str::to_owned));
        match (ask.of.as_str(), ask.is_streaming_list(), ask.is_watch()) {
            // As servers with and without streaming lists.
            ("flowlogconfigurations", true, _) => Some(events(&[bookmark(9, true)])),
            ("felixconfigurations", true, _) => None,
            ("felixconfigurations", false, false) => Some(match name.as_deref() {
                Some("default") => list(4, &[object("default", 3)]),
                Some(_) => list(4, &[]),
                None => list(4, &[object("default", 3), object("node.other", 2)]),
            }),
            ("felixconfigurations" | "flowlogconfigurations", ..) => Some(events(&[])),
            ("/apis", ..) => {
                let group = |name: &str| json!({"name": name, "versions": [{"groupVersion": format!("{name}/v1"), "version": "v1"}]});
                let groups = ["crd.projectcalico.org", "flowlogd.dev"].map(group);
                let list = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
                Some(Answer::Status(200, vec![], list))
            }
            _ => serves(ask, "crd.projectcalico.org", "v1", &["felixconfigurations"])
                .or_else(|| serves(ask, "flowlogd.dev", "v1", &["flowlogconfigurations"])),
        }
    })
    .await;
    let watching = Watching::with(server.address, QUICK, &CONFIGURATION);
    let (following, Raw { mut told, status }) = watching.link.raw(Selected::configuration("n1").to_vec());
    tokio::spawn(following);
    let mut found = std::collections::BTreeMap::new();
    while found.len() < 4 {
        let Ok(told) = tokio::time::timeout(Duration::from_secs(60), told.recv()).await else {
            panic!("told of {found:?} alone");
        };
        let Some((tag, Told::All { objects, .. })) = told else { panic!("a list") };
        found.insert(tag, objects.len());
    }
    assert_eq!(found.into_values().collect::<Vec<_>>(), [1, 0, 0, 0]);
    // A streaming list goes on as a watch; where there are none, one follows the list.
    until("all are watched", || {
        server.watches("felixconfigurations").len() >= 2 && server.asked("flowlogconfigurations").len() >= 2
    })
    .await;
    let asked = [server.asked("felixconfigurations"), server.asked("flowlogconfigurations")].concat();
    let selectors: std::collections::BTreeSet<_> = asked.iter().map(selected).collect();
    let wanted = ["metadata.name=default", "metadata.name=node.n1"].map(|text| Some(text.to_owned()));
    assert_eq!(selectors, wanted.into());
    let names: Vec<&str> = status.kinds.iter().map(|kind| kind.kind).collect();
    assert_eq!(names[1], "FelixConfiguration node");
    assert!(status.kinds.iter().all(|kind| kind.phase() == Phase::Synced));
}
