//! The configuration objects of a real API server: what its schema refuses, what of them acts when, what their status says.
//!
//! In one network namespace: etcd, kube-apiserver, the agent as it is shipped, and a connection of the node to itself.
//! Always: waiting is for conditions, never for time; at the end the lines hold what conntrack counted, over all changes.
//! Needs root, `ip`, `nft`, `conntrack`, and etcd and kube-apiserver in `KUBEBUILDER_ASSETS`.
//! Not here: which layer wins (unit tests), watches that break (`kube.rs`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

#[path = "node/apiserver.rs"]
mod apiserver;
mod node;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};

use apiserver::{ApiServer, calico_crd};
use node::{Namespace, OBSERVES, flowlogd, until};

const ECHO: u16 = 21120;
const NODE: &str = "10.9.9.1";
const OURS: &str = "/apis/flowlogd.dev/v1/flowlogconfigurations";
const FELIX: &str = "/apis/crd.projectcalico.org/v1/felixconfigurations";

/// Objects of ours.
impl ApiServer {
    fn configure(&self, name: &str, spec: Value) {
        self.patch(&format!("{OURS}/{name}"), &json!({"spec": spec}));
    }

    fn condition(&self, name: &str, kind: &str, status: &str) -> Value {
        let path = format!("{OURS}/{name}");
        until(&format!("{name} is {kind}={status}"), || {
            let object: Value = serde_json::from_str(&self.send("GET", &path, None).ok()?).unwrap();
            let conditions = object["status"]["conditions"].as_array()?.clone();
            let found = conditions.into_iter().find(|c| c["type"] == kind && c["status"] == status)?;
            (kind != "Accepted" || found["observedGeneration"] == object["metadata"]["generation"])
                .then_some(found)
        })
    }
}

fn ours(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "flowlogd.dev/v1", "kind": "FlowLogConfiguration", "metadata": {"name": name}, "spec": spec})
}

fn lines(folder: &Path) -> Vec<Value> {
    let text: String = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with("flows.log") && !name.ends_with("lock")
        })
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["dest_port"] == ECHO && line["reporter"] == "src").collect()
}

fn last(lines: Vec<Value>) -> Option<Value> {
    lines.into_iter().max_by_key(|line| line["end_time"].as_i64())
}

#[test]
fn objects_of_a_real_api_server_configure_a_running_agent() {
    let what = "configuration objects of a real API server";
    let Some(assets) = apiserver::assets(what).filter(|_| node::can(what, &["ip", "nft", "conntrack"]))
    else {
        return;
    };
    let namespace = Namespace::new();
    namespace.ip(&format!("link set lo up\naddr add {NODE}/32 dev lo"));
    namespace.nft("table inet t { chain i { type filter hook input priority 0; ct state invalid drop; }; }");
    namespace.enter(|| story(&namespace, assets));
}

fn story(namespace: &Namespace, assets: PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let api = ApiServer::start(assets);
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let manifest =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/flowlogconfigurations.flowlogd.dev.yaml");
    let crd: Value = serde_saphyr::from_str(&fs::read_to_string(manifest).unwrap()).unwrap();
    api.create(crds, &crd);
    api.create(crds, &calico_crd("FelixConfiguration"));
    api.create(
        "/api/v1/nodes",
        &json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": NODE}]},
        }),
    );

    // What the schema refuses, and what it prunes.
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let first = json!({
        "flowLogsFlushInterval": "1s", "flowLogsFileDirectory": one, "flowLogsEnableHostEndpoint": true,
        "flowLogsFileAggregationKindForAllowed": 1, "noSuchField": 1,
    });
    api.create(OURS, &ours("default", first));
    for (field, bad) in [
        ("flowLogsFileAggregationKindForAllowed", json!(7)),
        ("flowLogsFlushInterval", json!("soon")),
        ("flowLogsFileFormat", json!("XML")),
        ("flowLogsPolicyScope", json!("AllPolicies")),
    ] {
        match api.send("POST", OURS, Some(&ours("node.other", json!({field: bad})))) {
            Err(kube::Error::Api(status)) => assert_eq!(status.code, 422, "{field}: {}", status.message),
            other => panic!("{field}: {other:?}"),
        }
    }
    match api.send("POST", OURS, Some(&ours("some-name", json!({})))) {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 422, "{}", status.message),
        other => panic!("a name that is no layer: {other:?}"),
    }
    let stored = api.send("GET", &format!("{OURS}/default"), None).unwrap();
    assert!(!stored.contains("noSuchField") && !stored.contains("flowLogsFileMaxFiles"), "{stored}");

    let metric = |name: &str| namespace.metric(9091, name).map(|value| value.parse::<u64>().unwrap());
    let settings = ["flowLogsLiveEnabled=false", "prometheusMetricsEnabled=true"];
    let mut agent = flowlogd(["run", "--node", "n1"], settings);
    let agent = namespace.start(agent.arg("--kubeconfig").arg(api.kubeconfig()).env_clear());
    // The directory is the object's from the start.
    until("the log is where the object says", || one.join("flows.log").exists().then_some(()));
    agent.told(OBSERVES);
    let early = "has not told its configuration yet";
    assert!(!agent.log().contains(early), "the start went on without the objects");
    let accepted = api.condition("default", "Accepted", "True");
    assert_eq!(accepted["reason"], "Valid");

    let listener = TcpListener::bind((NODE, ECHO)).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    let mut stream = TcpStream::connect((NODE, ECHO)).unwrap();
    let mut talk = || {
        stream.write_all(&[1]).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    };
    talk();
    let line = until("a line", || last(lines(&one)));
    assert!(line.get("host").is_some() && line["source_port"].is_null(), "{line}");

    // Format and directory change while the connection lives.
    api.configure("default", json!({"flowLogsFileFormat": "Calico", "flowLogsFileDirectory": two}));
    let line = until("a line in the new directory", || {
        talk();
        last(lines(&two))
    });
    assert!(line.get("host").is_none(), "{line}");

    // The node's own object wins, and its going falls back.
    api.create(
        OURS,
        &ours("node.n1", json!({"flowLogsFileAggregationKindForAllowed": 0, "flowLogsSource": "ebpf"})),
    );
    until("level 0", || {
        talk();
        last(lines(&two)).filter(|line| line["source_port"].is_u64())
    });
    let waiting = api.condition("node.n1", "InForce", "False");
    assert!(waiting["message"].as_str().unwrap().contains("flowLogsSource"), "{waiting}");
    api.delete(&format!("{OURS}/node.n1"), &json!({}));
    until("level 1 again", || {
        talk();
        last(lines(&two)).filter(|line| line["source_port"].is_null())
    });

    // How the watches of these objects fare is told; of those of other nodes nothing comes.
    let labels = [
        "FelixConfiguration default",
        "FelixConfiguration node",
        "FlowLogConfiguration default",
        "FlowLogConfiguration node",
    ];
    for label in labels {
        let state = format!("flowlogd_watch_state{{kind=\"{label}\",state=\"synced\"}}");
        until(&state, || (metric(&state) == Some(1)).then_some(()));
    }
    assert_eq!(metric(&format!("flowlogd_cluster_objects{{kind=\"{}\"}}", labels[2])), Some(1));
    assert_eq!(metric(&format!("flowlogd_cluster_objects{{kind=\"{}\"}}", labels[3])), Some(0));
    let bytes = || -> u64 {
        labels
            .iter()
            .map(|label| metric(&format!("flowlogd_watch_bytes_total{{kind=\"{label}\"}}")).unwrap())
            .sum()
    };
    let before = bytes();
    for n in 0..40 {
        api.create(OURS, &ours(&format!("node.other-{n}"), json!({"flowLogsClusterName": "x".repeat(500)})));
    }
    // What the agent says of a later change, it says after it could have heard of them.
    api.configure("default", json!({"flowLogsClusterName": "later"}));
    api.condition("default", "Accepted", "True");
    let more = bytes() - before;
    assert!(more < 40 * 500, "{more} bytes came of 40 objects of other nodes");
    assert!(namespace.get(9097, "readyz").unwrap().contains("\"configuration\",\"passed\":true"));

    // Calico's object below ours: what is unset in ours; a wrong type is told in the status of ours.
    let felix = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration", "metadata": {"name": "default"},
        "spec": {"bpfEnabled": true, "flowLogsFileMaxFiles": "many", "flowLogsFileFormat": "Extended",
                 "flowLogsFileAggregationKindForAllowed": 0},
    });
    api.create(FELIX, &felix);
    let told = api.condition("default", "FelixAccepted", "False");
    assert!(told["message"].as_str().unwrap().contains("flowLogsFileMaxFiles"), "{told}");
    api.configure("default", json!({"flowLogsFileFormat": null}));
    until("Calico's format field holds where ours is unset", || {
        talk();
        last(lines(&two)).filter(|line| line.get("host").is_some())
    });
    // What passes the schema and is out of bounds: the lower layer's value holds, and nothing stops.
    api.configure("default", json!({"flowLogsFlushInterval": "48h"}));
    let told = api.condition("default", "Accepted", "False");
    assert!(told["message"].as_str().unwrap().starts_with("flowLogsFlushInterval: \"48h\""), "{told}");
    api.configure("default", json!({"flowLogsFlushInterval": "1s"}));
    api.condition("default", "Accepted", "True");

    // Nothing was lost over all of it: the lines hold what conntrack counted.
    talk();
    let counted = namespace.sh(&format!("conntrack -L -p tcp --dport {ECHO} 2>/dev/null"));
    let number = |word: &str| word.strip_prefix("bytes=").and_then(|text| text.parse::<u64>().ok());
    let counted: u64 = counted.split_whitespace().filter_map(number).sum();
    let (status, log) = agent.stop();
    assert!(status.success(), "{log}");
    let sum = |folder: &Path| -> u64 {
        let of_line = |line: &Value| line["bytes_in"].as_u64().unwrap() + line["bytes_out"].as_u64().unwrap();
        lines(folder).iter().map(of_line).sum()
    };
    assert!(counted > 0);
    let told: Vec<String> = [&one, &two]
        .into_iter()
        .flat_map(|folder| lines(folder))
        .map(|l| format!("{} {} {} {}", l["start_time"], l["bytes_in"], l["bytes_out"], l["num_flows"]))
        .collect();
    assert_eq!(sum(&one) + sum(&two), counted, "{}\n{log}", told.join("\n"));
}
