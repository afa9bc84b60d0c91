//! A real kube-apiserver and etcd, real traffic, the agent as it is shipped: who is named in its lines.
//!
//! One node of network namespaces: the node's own (it forwards, tracks, and translates a service's address), in which etcd,
//! the API server and the agent run on loopback; pods and an outside host behind veth pairs. Objects are made with a
//! client, as controllers and kubelet would make them; connections are told apart by their source ports (level 0).
//! Needs root, `ip`, `nft`, `openssl`, and etcd and kube-apiserver in `KUBEBUILDER_ASSETS`; what is missing is said.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kube::{Client, Config};
use serde_json::{Value, json};
use tempfile::TempDir;

const CLIENT: &str = "10.77.1.2";
const SERVER: &str = "10.77.2.2";
const OUTSIDE: &str = "10.77.3.2";
const SERVICE: &str = "10.96.0.10";
/// Inside the node's own namespace nothing else has ports.
const API: u16 = 21001;
const ETCD: u16 = 21002;

fn sh(command: &str) -> String {
    let out = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(out.status.success(), "{command}\n{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Where the servers are; or what this machine lacks.
fn assets() -> Result<PathBuf, String> {
    let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else {
        return Err(
            "KUBEBUILDER_ASSETS is not set: give it a folder with etcd and kube-apiserver (envtest's)".into(),
        );
    };
    for program in ["etcd", "kube-apiserver"] {
        if !folder.join(program).exists() {
            return Err(format!("there is no {program} in {}", folder.display()));
        }
    }
    if !rustix::process::geteuid().is_root() {
        return Err("namespaces need root: run the tests as root".into());
    }
    for (tool, argument) in [("ip", "-V"), ("nft", "-v"), ("openssl", "version")] {
        if !Command::new(tool).arg(argument).output().is_ok_and(|out| out.status.success()) {
            return Err(format!("there is no {tool}: install it"));
        }
    }
    Ok(folder)
}

/// The namespaces: `n` the node, `c` and `s` pods, `o` a host outside of the cluster.
struct Node(String);

impl Node {
    fn make() -> Self {
        let n = format!("flk{}", std::process::id());
        let node = Self(n.clone());
        sh(&format!(
            "for x in n c s o; do ip netns add {n}$x; ip -n {n}$x link set lo up; done
             i=0; for x in c s o; do i=$((i+1))
               ip -n {n}n link add v$x type veth peer name eth0 netns {n}$x
               ip -n {n}n addr add 10.77.$i.1/24 dev v$x; ip -n {n}n link set v$x up
               ip -n {n}$x addr add 10.77.$i.2/24 dev eth0; ip -n {n}$x link set eth0 up
               ip -n {n}$x route add default via 10.77.$i.1
             done
             ip netns exec {n}n sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
             ip netns exec {n}n nft -f - <<'END'
table inet t {{
  chain f {{ type filter hook forward priority 0; policy accept; ct state invalid drop; }}
  chain d {{ type nat hook prerouting priority -100; ip daddr {SERVICE} tcp dport 80 dnat ip to {SERVER}:8080; }}
}}
END"
        ));
        node
    }

    /// Runs `work` in a thread of this namespace; what it starts is there too.
    fn enter<T: Send>(&self, place: char, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}{place}", self.0)).unwrap();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Answers every byte, for as long as the process lives.
    fn serve(&self, place: char, port: u16) {
        let listener = self.enter(place, || TcpListener::bind(("0.0.0.0", port)).unwrap());
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

    fn connect(&self, to: &str, port: u16) -> TcpStream {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let stream = self.enter('c', || TcpStream::connect_timeout(&to, Duration::from_secs(20)).unwrap());
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for place in ["c", "s", "o", "n"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{place}", self.0)]).output();
        }
    }
}

/// A process that does not outlive the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::create(log).unwrap();
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a condition, at most two minutes.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "did not happen: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The control plane; all of it in the node's namespace.
struct Kubernetes<'a> {
    assets: PathBuf,
    folder: &'a Path,
    runtime: tokio::runtime::Runtime,
    client: Client,
    _etcd: Running,
    server: Option<Running>,
}

impl<'a> Kubernetes<'a> {
    fn start(assets: PathBuf, folder: &'a Path) -> Self {
        sh(&format!(
            "cd {0}; openssl genrsa -out sa.key 2048 2>/dev/null; openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
             echo 'admin,admin,1,\"system:masters\"' > tokens.csv",
            folder.display()
        ));
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters: [{{name: c, cluster: {{server: \"https://127.0.0.1:{API}\", insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{token: admin}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n"
        );
        fs::write(folder.join("kubeconfig"), kubeconfig).unwrap();
        let url = format!("http://127.0.0.1:{ETCD}");
        let mut etcd = Command::new(assets.join("etcd"));
        etcd.args(["--data-dir", &folder.join("etcd").to_string_lossy(), "--unsafe-no-fsync"])
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", "http://127.0.0.1:21003", "--log-level", "error"]);
        let etcd = Running::start(&mut etcd, &folder.join("etcd.log"));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let read = kube::config::Kubeconfig::read_from(folder.join("kubeconfig")).unwrap();
            let config = Config::from_custom_kubeconfig(read, &Default::default()).await.unwrap();
            Client::try_from(config).unwrap()
        });
        let mut kubernetes = Self { assets, folder, runtime, client, _etcd: etcd, server: None };
        kubernetes.start_server();
        kubernetes
    }

    fn start_server(&mut self) {
        let folder = self.folder;
        let mut server = Command::new(self.assets.join("kube-apiserver"));
        server
            .args([&format!("--etcd-servers=http://127.0.0.1:{ETCD}"), &format!("--secure-port={API}")])
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--insecure-port=0"])
            .args(["--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount"])
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged"])
            .arg("--service-account-issuer=https://kubernetes.default.svc");
        for (flag, file) in [
            ("cert-dir", "certs"),
            ("token-auth-file", "tokens.csv"),
            ("service-account-key-file", "sa.pub"),
            ("service-account-signing-key-file", "sa.key"),
        ] {
            server.arg(format!("--{flag}={}", folder.join(file).display()));
        }
        self.server = Some(Running::start(&mut server, &folder.join("apiserver.log")));
        until("the API server is ready", || self.send("GET", "/readyz", None).ok());
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String, kube::Error> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        self.runtime.block_on(self.client.request_text(request.body(body).unwrap()))
    }

    fn create(&self, path: &str, object: &Value) {
        // Right after its start the server may not have all that it needs.
        until(&format!("created {path}"), || self.send("POST", path, Some(object)).ok());
    }

    fn patch(&self, path: &str, change: &Value) {
        self.send("PATCH", path, Some(change)).unwrap();
    }

    /// What scheduler and kubelet do of a pod.
    fn pod(&self, name: &str, ip: &str, labels: &Value) {
        let pod = json!({"metadata": {"name": name, "generateName": format!("{}-", name.split('-').next().unwrap()), "labels": labels},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
        self.create("/api/v1/namespaces/shop/pods", &pod);
        let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        self.patch(&format!("/api/v1/namespaces/shop/pods/{name}/status"), &status);
    }

    fn remove_pod(&self, name: &str) {
        let now = json!({"gracePeriodSeconds": 0});
        self.send("DELETE", &format!("/api/v1/namespaces/shop/pods/{name}"), Some(&now)).unwrap();
    }
}

struct Agent {
    folder: PathBuf,
    process: Running,
}

impl Agent {
    fn start(folder: &Path) -> Self {
        let agent = Self::start_alone(folder);
        agent.logged("the cluster is known");
        agent
    }

    /// Whether or not there is an API server.
    fn start_alone(folder: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flowlogd"));
        command.args(["run", "--node", "n1", "--source", "netlink", "--log-level", "debug"]);
        command.arg("--kubeconfig").arg(folder.join("kubeconfig"));
        for set in [
            &format!("flowLogsFileDirectory={}", folder.display()),
            "flowLogsFlushInterval=1s",
            "flowLogsFileAggregationKindForAllowed=0",
        ] {
            command.args(["--set", set]);
        }
        let agent = Self {
            folder: folder.to_owned(),
            process: Running::start(&mut command, &folder.join("agent.log")),
        };
        agent.logged("flowlogd observes this node");
        agent
    }

    /// As a kubelet asks it, to its end.
    fn stop(&mut self) {
        let Running(child) = &mut self.process;
        rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM)
            .unwrap();
        assert!(child.wait().unwrap().success());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default()
    }

    fn logged(&self, text: &str) {
        until(text, || self.log().contains(text).then_some(()));
    }

    /// The lines of the connection from this port, as `reporter` tells them.
    fn lines(&self, reporter: &str, port: u16) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.join("flows.log")).unwrap_or_default();
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
    let mut stream = node.connect(to, port);
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
    let assets = match assets() {
        Ok(assets) => assets,
        Err(why) => {
            eprintln!("SKIPPED the watch against a real API server: {why}");
            return;
        }
    };
    let node = Node::make();
    node.serve('s', 8080);
    node.serve('o', 443);
    let folder = TempDir::new().unwrap();
    node.enter('n', || story(&node, assets, folder.path()));
}

fn story(node: &Node, assets: PathBuf, folder: &Path) {
    let mut kubernetes = Kubernetes::start(assets, folder);
    kubernetes.create("/api/v1/namespaces", &json!({"metadata": {"name": "shop"}}));
    kubernetes.create("/api/v1/nodes", &json!({"metadata": {"name": "n1"}}));
    let address = json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.77.1.1"}]}});
    kubernetes.patch("/api/v1/nodes/n1/status", &address);
    kubernetes.pod("client-a", CLIENT, &json!({"app": "client"}));
    kubernetes.pod("server-a", SERVER, &json!({"app": "server", "version": "1"}));
    let service = json!({"metadata": {"name": "web"},
        "spec": {"clusterIP": SERVICE, "selector": {"app": "server"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    kubernetes.create("/api/v1/namespaces/shop/services", &service);
    let agent = Agent::start(folder);

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
    let mut old = node.connect(SERVER, 8080);
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
    agent.logged("what is known of this kind grows old");
    assert_eq!(talk(node, &agent, "dst", SERVER, 8080)["dest_name"], "server-b");
    kubernetes.start_server();
    kubernetes.remove_pod("server-b");
    kubernetes.pod("server-c", SERVER, &json!({"app": "server"}));
    until("the pod that came after the outage", || {
        (talk(node, &agent, "dst", SERVER, 8080)["dest_name"] == "server-c").then_some(())
    });

    // A CRD that is installed while the agent runs, and a set of it.
    kubernetes.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &network_sets());
    let set = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkSet",
        "metadata": {"name": "partners"}, "spec": {"nets": ["10.77.3.0/24"]}});
    kubernetes.create("/apis/crd.projectcalico.org/v1/globalnetworksets", &set);
    let line = until("the network set", || {
        Some(talk(node, &agent, "src", OUTSIDE, 443)).filter(|line| line["dest_type"] == "ns")
    });
    assert_eq!(line["dest_name_aggr"], "partners", "{line}");

    // A recording has the objects that there are, what changes among them, and the traffic; it replays to the same names.
    record(node, &kubernetes, folder);

    // Completed: the pod does not own its address any more.
    let done = json!({"status": {"phase": "Succeeded"}});
    kubernetes.patch("/api/v1/namespaces/shop/pods/client-a/status", &done);
    let line = until("the address without a pod", || {
        Some(talk(node, &agent, "dst", SERVER, 8080)).filter(|line| line["source_type"] == "net")
    });
    assert_eq!(line["dest_name"], "server-c", "{line}");

    // Nothing that was told in between is taken back: one name a connection, for ever.
    let text = fs::read_to_string(folder.join("flows.log")).unwrap();
    let mut names = std::collections::BTreeMap::new();
    for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let key =
            (line["source_port"].to_string(), line["dest_ip"].to_string(), line["reporter"].to_string());
        let name = (line["source_name_aggr"].to_string(), line["dest_name"].to_string());
        assert_eq!(names.entry(key).or_insert_with(|| name.clone()), &name, "{line}");
    }
    drop(agent);
    before_anything_is_known(node, &kubernetes, folder);
}

fn before_anything_is_known(node: &Node, kubernetes: &Kubernetes<'_>, folder: &Path) {
    // It answers nobody, and again soon after it may: starting it anew may take longer than flows are held.
    let server = |signal| {
        let Running(child) = kubernetes.server.as_ref().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    };
    let start = |name: &str| {
        server(rustix::process::Signal::STOP);
        let own = folder.join(name);
        fs::create_dir(&own).unwrap();
        fs::copy(folder.join("kubeconfig"), own.join("kubeconfig")).unwrap();
        Agent::start_alone(&own)
    };
    // What is seen before the cluster is known is held, and named as what it was.
    let agent = start("held");
    let from = exchange(node, SERVER, 8080);
    assert!(agent.lines("src", from).is_empty());
    server(rustix::process::Signal::CONT);
    let line = until("the line that was held", || agent.lines("dst", from).into_iter().next());
    assert_eq!((&line["dest_name"], &line["source_type"]), (&json!("server-c"), &json!("net")), "{line}");
    assert!(agent.lines("src", from).is_empty(), "it was told by its addresses first");
    drop(agent);

    // What cannot be held any longer names nobody.
    let mut agent = start("stopped");
    let from = exchange(node, SERVER, 8080);
    agent.stop();
    let lines = agent.lines("src", from);
    assert_eq!(lines.len(), 1);
    for end in ["source", "dest"] {
        let field = |name: &str| &lines[0][format!("{end}_{name}")];
        assert_eq!(
            (field("type"), field("name"), field("namespace")),
            (&json!("net"), &json!("-"), &json!("-"))
        );
    }
    assert!(lines[0]["policies"].is_null() && agent.log().contains("by address only"), "{}", lines[0]);
}

fn record(node: &Node, kubernetes: &Kubernetes<'_>, folder: &Path) {
    let recording = folder.join("recording.jsonl");
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowlogd"));
    command.args(["record", "--node", "n1", "--source", "netlink", "--set", "flowLogsFlushInterval=1s"]);
    command.arg("--kubeconfig").arg(folder.join("kubeconfig")).arg("--output").arg(&recording);
    let mut recorder = Running::start(&mut command, &folder.join("record.log"));
    let log = || fs::read_to_string(folder.join("record.log")).unwrap_or_default();
    until("the objects are recorded", || log().contains("the cluster's objects are recorded").then_some(()));
    kubernetes.pod("server-d", "10.77.2.99", &json!({"app": "server"}));
    kubernetes.remove_pod("server-d");
    let has = |text: &str| fs::read_to_string(&recording).unwrap_or_default().contains(text);
    until("a deletion is recorded", || {
        has(r#""delete":{"apiVersion":"v1","kind":"Pod","namespace":"shop","name":"server-d"}"#).then_some(())
    });
    // It may be looking at the connections that there are already: those that begin now come as new ones in the end.
    until("a connection is recorded", || {
        let mut stream = node.connect(SERVER, 8080);
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        has(r#""conntrack":{"event":"new""#).then_some(())
    });
    let process = rustix::process::Pid::from_child(&recorder.0);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert!(recorder.0.wait().unwrap().success(), "{}", log());
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

fn network_sets() -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "globalnetworksets.crd.projectcalico.org"},
        "spec": {"group": "crd.projectcalico.org", "scope": "Cluster",
            "names": {"kind": "GlobalNetworkSet", "listKind": "GlobalNetworkSetList", "plural": "globalnetworksets",
                      "singular": "globalnetworkset"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
}
