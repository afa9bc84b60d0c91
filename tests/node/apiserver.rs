//! A real kube-apiserver and etcd, and a client of it with every right.
//!
//! In: the programs of envtest (`KUBEBUILDER_ASSETS`). Out: a server that is ready, and a kubeconfig. What always holds: it
//! is in the network namespace of the thread that starts it, whose ports are free; nothing of it outlives the value.
//! Not here: a scheduler, a kubelet: tests write what those would.

use std::fs;
use std::path::PathBuf;

use kube::{Client, Config};
use serde_json::Value;
use tempfile::TempDir;

use crate::node::{Process, program, until};

const SERVER: &str = "https://127.0.0.1:6443";
const ETCD: &str = "http://127.0.0.1:2379";

/// Where the programs are; what is lacking is said.
pub fn assets(what: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let found = folder
        .filter(|folder| ["etcd", "kube-apiserver"].iter().all(|program| folder.join(program).is_file()));
    if found.is_none() {
        eprintln!(
            "SKIPPED {what}: KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver (envtest's)"
        );
    }
    found
}

pub struct ApiServer {
    // In the order in which they end.
    pub server: Option<Process>,
    _etcd: Process,
    client: Client,
    runtime: tokio::runtime::Runtime,
    folder: TempDir,
    assets: PathBuf,
}

impl ApiServer {
    pub fn start(assets: PathBuf) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let accounts = rcgen::KeyPair::generate().unwrap();
        write("accounts.key", &accounts.serialize_pem());
        write("accounts.pub", &accounts.public_key_pem());
        write("tokens.csv", "admin,admin,1,\"system:masters\"\n");
        write(
            "kubeconfig",
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
             clusters: [{{name: c, cluster: {{server: \"{SERVER}\", insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{token: admin}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n"
            ),
        );
        let data = folder.path().join("etcd").display().to_string();
        let etcd = assets.join("etcd").display().to_string();
        let etcd = program(&etcd, ["--data-dir", &data, "--unsafe-no-fsync", "--log-level", "error"]);
        let etcd = Process::start(&mut { etcd });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let read = kube::config::Kubeconfig::read_from(folder.path().join("kubeconfig")).unwrap();
            let config = Config::from_custom_kubeconfig(read, &Default::default()).await.unwrap();
            Client::try_from(config).unwrap()
        });
        let mut server = Self { server: None, _etcd: etcd, client, runtime, folder, assets };
        server.start_server();
        server
    }

    /// The server alone, after it was stopped.
    pub fn start_server(&mut self) {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let mut server = program(
            &self.assets.join("kube-apiserver").display().to_string(),
            ["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=6443"],
        );
        server
            .args([&format!("--etcd-servers={ETCD}"), &format!("--cert-dir={}", at("certs"))])
            .args(["--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount"])
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged"])
            .args(["--service-account-issuer=https://kubernetes.default.svc"])
            .arg(format!("--token-auth-file={}", at("tokens.csv")))
            .arg(format!("--service-account-key-file={}", at("accounts.pub")))
            .arg(format!("--service-account-signing-key-file={}", at("accounts.key")));
        let server = self.server.insert(Process::start(&mut server));
        server.told("Serving securely");
        until("the API server is ready", || self.send("GET", "/readyz", None).ok());
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String, kube::Error> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        self.runtime.block_on(self.client.request_text(request.body(body).unwrap()))
    }

    pub fn create(&self, path: &str, object: &Value) {
        self.insist("POST", path, object, Some(409));
    }

    pub fn patch(&self, path: &str, change: &Value) {
        self.insist("PATCH", path, change, None);
    }

    pub fn delete(&self, path: &str, options: &Value) {
        self.insist("DELETE", path, options, Some(404));
    }

    /// Right after its start the server may not have all that it needs. `done`: its answer to what it has done already, when
    /// the answer to the last attempt was lost.
    fn insist(&self, method: &str, path: &str, body: &Value, done: Option<u16>) {
        let mut said = String::new();
        until(&format!("{method} {path}"), || match self.send(method, path, Some(body)) {
            Ok(_) => Some(()),
            Err(kube::Error::Api(status)) if Some(status.code) == done => Some(()),
            Err(error) => {
                let error = error.to_string();
                if error != said {
                    eprintln!("{method} {path}: {error}");
                    said = error;
                }
                None
            }
        });
    }
}

/// A kind of a CRD of Calico's, of cluster scope, as many versions have it: without a schema of the fields.
pub fn calico_crd(kind: &str) -> Value {
    let (plural, singular) = (format!("{}s", kind.to_lowercase()), kind.to_lowercase());
    serde_json::json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.crd.projectcalico.org")},
        "spec": {
            "group": "crd.projectcalico.org", "scope": "Cluster",
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": singular},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
}
