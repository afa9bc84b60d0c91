//! A real kube-apiserver and etcd, in a network namespace of their own.
//!
//! In: the programs of envtest (`KUBEBUILDER_ASSETS`), a folder. Out: a server that answers, kubectl as its admin, a
//! kubeconfig of the agent's service account, which has no rights but those that RBAC gives, and what each user asked for
//! (the audit log). What always holds: nothing outlives the returned value; the ports are those of its namespace alone.
//! Not here: a node (pods that run).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::netns::{Namespace, Process, run, tool};
use crate::packages;

const PATIENCE: Duration = Duration::from_secs(60);
const SERVER: &str = "https://127.0.0.1:6443";
pub const AGENT: &str = "system:serviceaccount:flowlogd:flowlogd";

pub struct ApiServer {
    // In the order in which they end.
    _server: Process,
    _etcd: Process,
    pub namespace: Namespace,
    folder: PathBuf,
}

/// What one user did with one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    pub verb: String,
    pub group: String,
    /// With its subresource: `flowlogconfigurations/status`.
    pub resource: String,
    pub query: String,
}

/// The folder with `etcd` and `kube-apiserver`, by the convention of envtest.
pub fn assets() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS")?);
    (folder.join("kube-apiserver").is_file() && folder.join("etcd").is_file()).then_some(folder)
}

impl ApiServer {
    /// In a namespace of its own.
    pub fn start(assets: &Path, folder: &Path) -> anyhow::Result<Self> {
        let namespace = Namespace::new("the API server")?;
        namespace.ip("link set lo up\n")?;
        Self::start_in(namespace, assets, folder)
    }

    /// Returns when the server says that it is ready; it listens on the namespace's loopback.
    pub fn start_in(namespace: Namespace, assets: &Path, folder: &Path) -> anyhow::Result<Self> {
        packages::install_missing(&[("openssl", "openssl"), ("kubectl", "kubernetes-client")], &[])?;
        let at = |name: &str| folder.join(name).display().to_string();
        let key = at("sa.key");
        run(tool("openssl").args(["genrsa", "-out", &key, "2048"]), None)?;
        fs::write(
            folder.join("tokens.csv"),
            format!(
                "admin,admin,1,system:masters\nagent,{AGENT},2,\"system:serviceaccounts,system:serviceaccounts:flowlogd,system:authenticated\"\n"
            ),
        )?;
        // Requests, not their bodies.
        fs::write(
            folder.join("audit.yaml"),
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n",
        )?;
        for user in ["admin", "agent"] {
            fs::write(
                folder.join(format!("{user}.kubeconfig")),
                format!(
                    "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
                     clusters: [{{name: c, cluster: {{server: \"{SERVER}\", insecure-skip-tls-verify: true}}}}]\n\
                     users: [{{name: u, user: {{token: {user}}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n"
                ),
            )?;
        }
        let log = |name: &str| -> anyhow::Result<(File, File)> {
            let file = File::create(folder.join(name))?;
            Ok((file.try_clone()?, file))
        };
        let (out, err) = log("etcd.log")?;
        let etcd = namespace.start(
            assets.join("etcd").as_os_str(),
            &["--data-dir", &at("etcd"), "--log-level", "error", "--unsafe-no-fsync"].map(AsRef::as_ref),
            out,
            err,
        )?;
        let (out, err) = log("apiserver.log")?;
        let server = namespace.start(
            assets.join("kube-apiserver").as_os_str(),
            &[
                "--etcd-servers=http://127.0.0.1:2379",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--secure-port=6443",
                &format!("--cert-dir={}", at("certs")),
                &format!("--token-auth-file={}", at("tokens.csv")),
                "--authorization-mode=RBAC",
                &format!("--service-account-key-file={key}"),
                &format!("--service-account-signing-key-file={key}"),
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--disable-admission-plugins=ServiceAccount",
                "--allow-privileged",
                &format!("--audit-policy-file={}", at("audit.yaml")),
                &format!("--audit-log-path={}", at("audit.log")),
            ]
            .map(AsRef::as_ref),
            out,
            err,
        )?;
        let server = Self { _server: server, _etcd: etcd, namespace, folder: folder.to_owned() };
        let until = Instant::now() + PATIENCE;
        while server.kubectl(&["get", "--raw", "/readyz"], None).is_err() {
            ensure!(
                Instant::now() < until,
                "kube-apiserver is not ready after {PATIENCE:?}: {}",
                last_line(&folder.join("apiserver.log"))
            );
            thread::sleep(Duration::from_millis(200));
        }
        Ok(server)
    }

    /// kubectl as the admin; what it wrote to stdout.
    pub fn kubectl(&self, arguments: &[&str], stdin: Option<&str>) -> anyhow::Result<String> {
        let kubeconfig = self.folder.join("admin.kubeconfig").display().to_string();
        let mut all = vec!["--kubeconfig", &kubeconfig];
        all.extend(arguments);
        self.namespace.run("kubectl", &all, stdin).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// Applies the manifests for good.
    pub fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        self.kubectl(&["apply", "--server-side", "--validate=false", "-f", "-"], Some(manifests)).map(drop)
    }

    /// Lets the server judge the manifests by its own types and admission; nothing is kept.
    pub fn judge(&self, manifests: &str) -> anyhow::Result<String> {
        self.kubectl(
            &["apply", "--server-side", "--dry-run=server", "--validate=false", "-f", "-"],
            Some(manifests),
        )
    }

    /// A kubeconfig of the agent's service account.
    pub fn agent_kubeconfig(&self) -> PathBuf {
        self.folder.join("agent.kubeconfig")
    }

    /// What the agent's account asked for, and with which HTTP status it was last answered.
    pub fn asked(&self) -> anyhow::Result<BTreeMap<Asked, u64>> {
        let mut asked = BTreeMap::new();
        for line in fs::read_to_string(self.folder.join("audit.log"))?.lines() {
            // The last line may be half written.
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default();
            if text("/user/username") != AGENT
                || event.get("impersonatedUser").is_some()
                || text("/objectRef/resource").is_empty()
            {
                continue;
            }
            let sub = text("/objectRef/subresource");
            let resource = text("/objectRef/resource");
            let key = Asked {
                verb: text("/verb").to_owned(),
                group: text("/objectRef/apiGroup").to_owned(),
                resource: if sub.is_empty() { resource.to_owned() } else { format!("{resource}/{sub}") },
                query: text("/requestURI").split_once('?').map_or("", |(_, query)| query).to_owned(),
            };
            let status = event.pointer("/responseStatus/code").and_then(Value::as_u64).unwrap_or_default();
            asked.insert(key, status);
        }
        Ok(asked)
    }
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("its log is empty").to_owned()
}
