//! The configuration objects of a real API server: what its schema refuses, what of them acts when, what their status says.
//!
//! In one network namespace: etcd, kube-apiserver, the agent as it is shipped, and a connection of the node to itself.
//! Always: waiting is for conditions, never for time; at the end the lines hold what conntrack counted, over all changes.
//! Needs root, `ip`, `nft`, `conntrack`, `openssl`, and etcd and kube-apiserver in `KUBEBUILDER_ASSETS`.
//! Not here: which layer wins (unit tests), watches that break (`kube.rs`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kube::{Client, Config};
use serde_json::{Value, json};

/// Nothing else has ports in the test's own namespace.
const API: u16 = 21110;
const ETCD: u16 = 21111;
const ECHO: u16 = 21120;
const NODE: &str = "10.9.9.1";
const OURS: &str = "/apis/flowlogd.dev/v1/flowlogconfigurations";
const FELIX: &str = "/apis/crd.projectcalico.org/v1/felixconfigurations";

fn assets() -> Result<PathBuf, String> {
    let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) else {
        return Err(
            "KUBEBUILDER_ASSETS is not set: give it a folder with etcd and kube-apiserver (envtest's)".into(),
        );
    };
    if !rustix::process::geteuid().is_root() {
        return Err("namespaces need root: run the tests as root".into());
    }
    for (tool, argument) in [("ip", "-V"), ("nft", "-v"), ("conntrack", "-V"), ("openssl", "version")] {
        if !Command::new(tool).arg(argument).output().is_ok_and(|out| out.status.success()) {
            return Err(format!("there is no {tool}: install it"));
        }
    }
    Ok(folder)
}

fn sh(command: &str) -> String {
    let out = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(out.status.success(), "{command}\n{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// This thread, and what it starts, are in it.
struct Namespace(String);

impl Namespace {
    fn enter() -> Self {
        let name = format!("flkc{}", std::process::id());
        sh(&format!(
            "ip netns add {name}; ip -n {name} link set lo up; ip -n {name} addr add {NODE}/32 dev lo
             ip netns exec {name} nft 'table inet t {{ chain i {{ type filter hook input priority 0; ct state invalid drop; }}; }}'"
        ));
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        let file = File::open(format!("/run/netns/{name}")).unwrap();
        rustix::thread::move_into_link_name_space(file.as_fd(), kind).unwrap();
        Self(name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

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

struct Api {
    runtime: tokio::runtime::Runtime,
    client: Client,
    folder: PathBuf,
    _running: [Running; 2],
}

impl Api {
    fn start(assets: &Path, folder: &Path) -> Self {
        let f = folder.display();
        sh(&format!(
            "cd {f}; openssl genrsa -out sa.key 2048 2>/dev/null; openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
             echo 'admin,admin,1,\"system:masters\"' > tokens.csv"
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
            .args(["--listen-peer-urls", "http://127.0.0.1:21112", "--log-level", "error"]);
        let etcd = Running::start(&mut etcd, &folder.join("etcd.log"));
        let mut server = Command::new(assets.join("kube-apiserver"));
        server
            .args([&format!("--etcd-servers={url}"), &format!("--secure-port={API}")])
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
        let server = Running::start(&mut server, &folder.join("apiserver.log"));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let read = kube::config::Kubeconfig::read_from(folder.join("kubeconfig")).unwrap();
            let config = Config::from_custom_kubeconfig(read, &Default::default()).await.unwrap();
            Client::try_from(config).unwrap()
        });
        let api = Self { runtime, client, folder: folder.to_owned(), _running: [etcd, server] };
        api.until("the API server is ready", || api.send("GET", "/readyz", None).ok());
        api
    }

    /// At most two minutes.
    fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            if let Some(found) = look() {
                return found;
            }
            if Instant::now() > end {
                let log = fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default();
                panic!("did not happen: {what}\n{log}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String, kube::Error> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        self.runtime.block_on(self.client.request_text(request.body(body).unwrap()))
    }

    fn create(&self, path: &str, object: &Value) {
        self.until(&format!("created {path}"), || self.send("POST", path, Some(object)).ok());
    }

    fn patch(&self, name: &str, spec: Value) {
        self.send("PATCH", &format!("{OURS}/{name}"), Some(&json!({"spec": spec}))).unwrap();
    }

    fn condition(&self, name: &str, kind: &str, status: &str) -> Value {
        let path = format!("{OURS}/{name}");
        self.until(&format!("{name} is {kind}={status}"), || {
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

/// Calico's CRD as many versions have it: without a schema of the fields.
fn felix_crd() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "felixconfigurations.crd.projectcalico.org"},
        "spec": {
            "group": "crd.projectcalico.org", "scope": "Cluster",
            "names": {"kind": "FelixConfiguration", "listKind": "FelixConfigurationList",
                      "plural": "felixconfigurations", "singular": "felixconfiguration"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
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

/// Of the agent, which is in this thread's namespace.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn metric(name: &str) -> Option<u64> {
    get(9091, "metrics").lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn last(lines: Vec<Value>) -> Option<Value> {
    lines.into_iter().max_by_key(|line| line["end_time"].as_i64())
}

#[test]
fn objects_of_a_real_api_server_configure_a_running_agent() {
    let assets = match assets() {
        Ok(assets) => assets,
        Err(why) => {
            println!("SKIPPED configuration objects of a real API server: {why}");
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let _namespace = Namespace::enter();
    let api = Api::start(&assets, folder.path());
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let manifest =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/flowlogconfigurations.flowlogd.dev.yaml");
    let crd: Value = serde_saphyr::from_str(&fs::read_to_string(manifest).unwrap()).unwrap();
    api.create(crds, &crd);
    api.create(crds, &felix_crd());
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

    let mut agent = Command::new(env!("CARGO_BIN_EXE_flowlogd"));
    agent
        .env_clear()
        .args(["run", "--node", "n1", "--set", "flowLogsLiveEnabled=false"])
        .args(["--set", "prometheusMetricsEnabled=true"])
        .arg("--kubeconfig")
        .arg(folder.path().join("kubeconfig"));
    let agent = Running::start(&mut agent, &folder.path().join("agent.log"));
    // The directory is the object's from the start.
    api.until("the log is where the object says", || one.join("flows.log").exists().then_some(()));
    let log = folder.path().join("agent.log");
    let log_says = |text: &str| fs::read_to_string(&log).unwrap().contains(text);
    api.until("the agent observes", || log_says("observes this node").then_some(()));
    assert!(!log_says("has not told its configuration yet"), "the start went on without the objects");
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
    let line = api.until("a line", || last(lines(&one)));
    assert!(line.get("host").is_some() && line["source_port"].is_null(), "{line}");

    // Format and directory change while the connection lives.
    api.patch("default", json!({"flowLogsFileFormat": "Calico", "flowLogsFileDirectory": two}));
    let line = api.until("a line in the new directory", || {
        talk();
        last(lines(&two))
    });
    assert!(line.get("host").is_none(), "{line}");

    // The node's own object wins, and its going falls back.
    api.create(
        OURS,
        &ours("node.n1", json!({"flowLogsFileAggregationKindForAllowed": 0, "flowLogsSource": "ebpf"})),
    );
    api.until("level 0", || {
        talk();
        last(lines(&two)).filter(|line| line["source_port"].is_u64())
    });
    let waiting = api.condition("node.n1", "InForce", "False");
    assert!(waiting["message"].as_str().unwrap().contains("flowLogsSource"), "{waiting}");
    api.send("DELETE", &format!("{OURS}/node.n1"), None).unwrap();
    api.until("level 1 again", || {
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
        api.until(&state, || (metric(&state) == Some(1)).then_some(()));
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
    api.patch("default", json!({"flowLogsClusterName": "later"}));
    api.condition("default", "Accepted", "True");
    let more = bytes() - before;
    assert!(more < 40 * 500, "{more} bytes came of 40 objects of other nodes");
    assert!(get(9097, "readyz").contains("\"configuration\",\"passed\":true"));

    // Calico's object below ours: what is unset in ours; a wrong type is told in the status of ours.
    let felix = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration", "metadata": {"name": "default"},
        "spec": {"bpfEnabled": true, "flowLogsFileMaxFiles": "many", "flowLogsFileFormat": "Extended",
                 "flowLogsFileAggregationKindForAllowed": 0},
    });
    api.create(FELIX, &felix);
    let told = api.condition("default", "FelixAccepted", "False");
    assert!(told["message"].as_str().unwrap().contains("flowLogsFileMaxFiles"), "{told}");
    api.patch("default", json!({"flowLogsFileFormat": null}));
    api.until("Calico's format field holds where ours is unset", || {
        talk();
        last(lines(&two)).filter(|line| line.get("host").is_some())
    });
    // What passes the schema and is out of bounds: the lower layer's value holds, and nothing stops.
    api.patch("default", json!({"flowLogsFlushInterval": "48h"}));
    let told = api.condition("default", "Accepted", "False");
    assert!(told["message"].as_str().unwrap().starts_with("flowLogsFlushInterval: \"48h\""), "{told}");
    api.patch("default", json!({"flowLogsFlushInterval": "1s"}));
    api.condition("default", "Accepted", "True");

    // Nothing was lost over all of it: the lines hold what conntrack counted.
    talk();
    let counted = sh(&format!("conntrack -L -p tcp --dport {ECHO} 2>/dev/null"));
    let number = |word: &str| word.strip_prefix("bytes=").and_then(|text| text.parse::<u64>().ok());
    let counted: u64 = counted.split_whitespace().filter_map(number).sum();
    let pid = rustix::process::Pid::from_child(&agent.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let log = folder.path().join("agent.log");
    api.until("the agent has stopped", || {
        fs::read_to_string(&log).unwrap().contains("stopped").then_some(())
    });
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
    let log = fs::read_to_string(&log).unwrap();
    assert_eq!(sum(&one) + sum(&two), counted, "{}\n{log}", told.join("\n"));
}
