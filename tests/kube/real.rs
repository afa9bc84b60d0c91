//! A real kube-apiserver and etcd, real traffic, the agent as it is shipped: who is named in its lines.
//!
//! One node of network namespaces: the node's own (it forwards, tracks, and translates a service's address), in which etcd,
//! the API server and the agent run on loopback; pods and an outside host behind veth pairs. Objects are made with a
//! client, as controllers and kubelet would make them; connections are told apart by their source ports (level 0).
//! Needs root, `ip`, `nft`, and etcd and kube-apiserver in `KUBEBUILDER_ASSETS`; what is missing is said.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::apiserver::{self, ApiServer, calico_crd};
use crate::node::{self, Node, OBSERVES, Process, flowlogd, until};

const CLIENT: &str = "10.77.1.2";
const SERVER: &str = "10.77.2.2";
const OUTSIDE: &str = "10.77.3.2";
const SERVICE: &str = "10.96.0.10";

/// Answers every byte, for as long as the process lives.
fn serve(node: &Node, place: char, port: u16) {
    let listener = node.enter(place, || TcpListener::bind(("0.0.0.0", port)).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
}

fn connect(node: &Node, to: &str, port: u16) -> TcpStream {
    // The kernel may give two connections to different places the same port, and they are told apart by it.
    static PORT: AtomicU16 = AtomicU16::new(20_000);
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let from = SocketAddr::new(CLIENT.parse().unwrap(), PORT.fetch_add(1, Ordering::Relaxed));
    let stream: TcpStream = node.enter('c', || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect_timeout(&to.into(), Duration::from_secs(60)).unwrap();
        socket.into()
    });
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// What scheduler and kubelet do.
impl ApiServer {
    fn pod(&self, name: &str, ip: &str, labels: &Value) {
        let pod = json!({"metadata": {"name": name, "generateName": format!("{}-", name.split('-').next().unwrap()), "labels": labels},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
        self.create("/api/v1/namespaces/shop/pods", &pod);
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        self.patch(&format!("/api/v1/namespaces/shop/pods/{name}/status"), &status);
    }

    fn remove_pod(&self, name: &str) {
        let now = json!({"gracePeriodSeconds": 0});
        self.delete(&format!("/api/v1/namespaces/shop/pods/{name}"), &now);
    }
}

struct Agent {
    folder: TempDir,
    process: Process,
}

impl Agent {
    fn start(kubernetes: &ApiServer) -> Self {
        let agent = Self::start_alone(kubernetes);
        agent.process.told("the cluster is known");
        agent
    }

    /// Whether or not there is an API server.
    fn start_alone(kubernetes: &ApiServer) -> Self {
        let folder = TempDir::new().unwrap();
        let settings = [
            &format!("flowLogsFileDirectory={}", folder.path().display()),
            "flowLogsFlushInterval=1s",
            "flowLogsFileAggregationKindForAllowed=0",
        ];
        let arguments = ["run", "--node", "n1", "--source", "netlink", "--log-level", "debug"];
        let mut command = flowlogd(arguments, settings);
        let process = Process::start(command.arg("--kubeconfig").arg(kubernetes.kubeconfig()));
        process.told(OBSERVES);
        Self { folder, process }
    }

    fn text(&self) -> String {
        fs::read_to_string(self.folder.path().join("flows.log")).unwrap_or_default()
    }

    /// The lines of the connection from this port, as `reporter` tells them.
    fn lines(&self, reporter: &str, port: u16) -> Vec<Value> {
        let text = self.text();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["source_port"] == port && line["reporter"] == reporter).collect()
    }
}

/// A connection from the client's pod and back, and the first line that tells of it.
fn talk(node: &Node, agent: &Agent, reporter: &str, to: &str, port: u16) -> Value {
    let from = exchange(node, to, port);
    until("a line of the connection", || agent.lines(reporter, from).into_iter().next())
}

/// A connection from the client's pod and back; its port.
fn exchange(node: &Node, to: &str, port: u16) -> u16 {
    let mut stream = connect(node, to, port);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    stream.local_addr().unwrap().port()
}

fn has_label(line: &Value, side: &str, label: &str) -> bool {
    let labels = line[format!("{side}_labels")]["labels"].as_array();
    labels.is_some_and(|labels| labels.iter().any(|known| known == label))
}

#[test]
fn lines_name_who_was_there_whatever_the_api_server_does() {
    let what = "the watch against a real API server";
    let Some(assets) = apiserver::assets(what).filter(|_| node::can(what, &["ip", "nft"])) else { return };
    let node = Node::new(77, "cso");
    node.track(&format!("ip daddr {SERVICE} tcp dport 80 dnat ip to {SERVER}:8080;"));
    serve(&node, 's', 8080);
    serve(&node, 'o', 443);
    node.enter('n', || story(&node, assets));
}

fn story(node: &Node, assets: PathBuf) {
    let mut kubernetes = ApiServer::start(assets);
    kubernetes.create("/api/v1/namespaces", &json!({"metadata": {"name": "shop"}}));
    kubernetes.create("/api/v1/nodes", &json!({"metadata": {"name": "n1"}}));
    let address = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.77.1.1"}]}});
    kubernetes.patch("/api/v1/nodes/n1/status", &address);
    kubernetes.pod("client-a", CLIENT, &json!({"app": "client"}));
    kubernetes.pod("server-a", SERVER, &json!({"app": "server", "version": "1"}));
    let service = json!({"metadata": {"name": "web"},
        "spec": {"clusterIP": SERVICE, "selector": {"app": "server"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    kubernetes.create("/api/v1/namespaces/shop/services", &service);
    let agent = Agent::start(&kubernetes);

    // What was there at the start is named, on both sides, with its service.
    let line = talk(node, &agent, "dst", SERVICE, 80);
    assert_eq!(
        (&line["source_name"], &line["dest_name"]),
        (&json!("client-a"), &json!("server-a")),
        "{line}"
    );
    assert_eq!((&line["source_namespace"], &line["dest_name_aggr"]), (&json!("shop"), &json!("server-*")));
    assert!(has_label(&line, "dest", "version=1") && has_label(&line, "source", "app=client"), "{line}");
    let line = talk(node, &agent, "src", SERVICE, 80);
    assert_eq!(line["dest_service_name"], "web", "{line}");
    assert_eq!(
        (&line["dest_service_namespace"], &line["dest_service_port"]),
        (&json!("shop"), &json!("http"))
    );
    // A host that nobody knows is an address.
    let line = talk(node, &agent, "src", OUTSIDE, 443);
    assert_eq!((&line["dest_type"], &line["dest_name_aggr"]), (&json!("net"), &json!("pvt")), "{line}");

    // Relabelled: connections from then on carry the new label.
    kubernetes
        .patch("/api/v1/namespaces/shop/pods/server-a", &json!({"metadata": {"labels": {"version": "2"}}}));
    until("the new label", || {
        has_label(&talk(node, &agent, "dst", SERVICE, 80), "dest", "version=2").then_some(())
    });

    // Replaced on the same address: the old connection keeps its name, new ones get the new one.
    let mut old = connect(node, SERVER, 8080);
    old.write_all(b"x").unwrap();
    old.read_exact(&mut [0]).unwrap();
    let old_port = old.local_addr().unwrap().port();
    kubernetes.remove_pod("server-a");
    kubernetes.pod("server-b", SERVER, &json!({"app": "server"}));
    until("the new pod", || {
        (talk(node, &agent, "dst", SERVER, 8080)["dest_name"] == "server-b").then_some(())
    });
    let told = agent.lines("dst", old_port).len();
    old.write_all(b"y").unwrap();
    old.read_exact(&mut [0]).unwrap();
    let lines = until("more lines of the old connection", || {
        Some(agent.lines("dst", old_port)).filter(|lines| lines.len() > told + 1)
    });
    assert!(lines.iter().all(|line| line["dest_name"] == "server-a"), "{lines:?}");
    assert_eq!(talk(node, &agent, "dst", SERVER, 8080)["dest_name"], "server-b");

    // The API server goes: names stay. It comes back: what changes then is seen.
    kubernetes.server = None;
    agent.process.told("what is known of this kind grows old");
    assert_eq!(talk(node, &agent, "dst", SERVER, 8080)["dest_name"], "server-b");
    kubernetes.start_server();
    kubernetes.remove_pod("server-b");
    kubernetes.pod("server-c", SERVER, &json!({"app": "server"}));
    until("the pod that came after the outage", || {
        (talk(node, &agent, "dst", SERVER, 8080)["dest_name"] == "server-c").then_some(())
    });

    // A CRD that is installed while the agent runs, and a set of it.
    kubernetes
        .create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &calico_crd("GlobalNetworkSet"));
    let set = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkSet",
        "metadata": {"name": "partners"}, "spec": {"nets": ["10.77.3.0/24"]}});
    kubernetes.create("/apis/crd.projectcalico.org/v1/globalnetworksets", &set);
    let line = until("the network set", || {
        Some(talk(node, &agent, "src", OUTSIDE, 443)).filter(|line| line["dest_type"] == "ns")
    });
    assert_eq!(line["dest_name_aggr"], "partners", "{line}");

    // A recording has the objects that there are, what changes among them, and the traffic; it replays to the same names.
    record(node, &kubernetes);

    // Completed: the pod does not own its address any more.
    let done = json!({"status": {"phase": "Succeeded"}});
    kubernetes.patch("/api/v1/namespaces/shop/pods/client-a/status", &done);
    let line = until("the address without a pod", || {
        Some(talk(node, &agent, "dst", SERVER, 8080)).filter(|line| line["source_type"] == "net")
    });
    assert_eq!(line["dest_name"], "server-c", "{line}");

    // Nothing that was told in between is taken back: one name a connection, for ever.
    let text = agent.text();
    let mut names = std::collections::BTreeMap::new();
    for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let key =
            (line["source_port"].to_string(), line["dest_ip"].to_string(), line["reporter"].to_string());
        let name = (line["source_name_aggr"].to_string(), line["dest_name"].to_string());
        assert_eq!(names.entry(key).or_insert_with(|| name.clone()), &name, "{line}");
    }
    drop(agent);
    before_anything_is_known(node, &kubernetes);
}

fn before_anything_is_known(node: &Node, kubernetes: &ApiServer) {
    // It answers nobody, and again soon after it may: starting it anew may take longer than flows are held.
    let server = kubernetes.server.as_ref().unwrap();
    let start = || {
        server.signal(Signal::STOP);
        Agent::start_alone(kubernetes)
    };
    // What is seen before the cluster is known is held, and named as what it was.
    let agent = start();
    let from = exchange(node, SERVER, 8080);
    assert!(agent.lines("src", from).is_empty());
    server.signal(Signal::CONT);
    let line = until("the line that was held", || agent.lines("dst", from).into_iter().next());
    assert_eq!((&line["dest_name"], &line["source_type"]), (&json!("server-c"), &json!("net")), "{line}");
    assert!(agent.lines("src", from).is_empty(), "it was told by its addresses first");
    drop(agent);

    // What cannot be held any longer names nobody.
    let mut agent = start();
    let from = exchange(node, SERVER, 8080);
    agent.process.signal(Signal::TERM);
    assert!(agent.process.ended().success());
    let lines = agent.lines("src", from);
    assert_eq!(lines.len(), 1);
    for end in ["source", "dest"] {
        let field = |name: &str| &lines[0][format!("{end}_{name}")];
        assert_eq!(
            (field("type"), field("name"), field("namespace")),
            (&json!("net"), &json!("-"), &json!("-"))
        );
    }
    assert!(
        lines[0]["policies"].is_null() && agent.process.log().contains("by address only"),
        "{}",
        lines[0]
    );
}

fn record(node: &Node, kubernetes: &ApiServer) {
    let folder = TempDir::new().unwrap();
    let recording = folder.path().join("recording.jsonl");
    let mut command =
        flowlogd(["record", "--node", "n1", "--source", "netlink"], ["flowLogsFlushInterval=1s"]);
    command.arg("--kubeconfig").arg(kubernetes.kubeconfig()).arg("--output").arg(&recording);
    let recorder = Process::start(&mut command);
    recorder.told("the cluster's objects are recorded");
    kubernetes.pod("server-d", "10.77.2.99", &json!({"app": "server"}));
    kubernetes.remove_pod("server-d");
    let has = |text: &str| fs::read_to_string(&recording).unwrap_or_default().contains(text);
    until("a deletion is recorded", || {
        has(r#""delete":{"apiVersion":"v1","kind":"Pod","namespace":"shop","name":"server-d"}"#).then_some(())
    });
    // It may be looking at the connections that there are already: those that begin now come as new ones in the end.
    until("a connection is recorded", || {
        let mut stream = connect(node, SERVER, 8080);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        has(r#""conntrack":{"event":"new""#).then_some(())
    });
    let (status, log) = recorder.stop();
    assert!(status.success(), "{log}");
    assert!(has(r#""kind":"GlobalNetworkSet""#) && !has("managedFields"));
    let replay = Command::new(env!("CARGO_BIN_EXE_flowlogd"))
        .args(["replay", "--node", "n1", "--flush", "explicit"])
        .arg(&recording)
        .output()
        .unwrap();
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    let text = String::from_utf8(replay.stdout).unwrap();
    assert!(
        text.contains(r#""source_name_aggr":"client-*""#) && text.contains(r#""dest_name_aggr":"server-*""#),
        "{text}"
    );
}
