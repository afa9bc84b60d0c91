//! A real node: API server, kubelet, containerd, in a network namespace that is its host network.
//!
//! In: the folder with `mininode-up` and `mininode-down` (`MININODE`), which want the programs of envtest. Out: kubectl on it, images in its
//! containerd, the network namespace of a pod. What always holds: its files are in a folder of its own; it is brought down when the value is
//! dropped, and one that a killed run left is brought down before. It has no scheduler and no controllers: who wants a pod names the node.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::{Namespace, run, search_path, tool};

const NAMESPACE: &str = "/run/netns/mininode";
/// Which boot a run is of, in its folder.
const BOOT: &str = "boot";
/// Of folders: this, the process id of the run, what is random.
const PREFIX: &str = "flowlogd-e2e-";
pub const NODE: &str = "n1";
const PATIENCE: Duration = Duration::from_secs(120);
/// The chart's terminationGracePeriodSeconds, and time to see it.
const TERMINATION: Duration = Duration::from_secs(180);

pub struct Mininode {
    scripts: PathBuf,
    folder: TempDir,
    pub namespace: Namespace,
}

impl Mininode {
    pub fn start(scripts: &Path) -> anyhow::Result<Self> {
        bring_leftovers_down(scripts);
        ensure!(
            !Path::new(NAMESPACE).exists(),
            "there is a mini-node already ({NAMESPACE}): bring it down first"
        );
        let folder =
            tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir()?;
        fs::write(folder.path().join(BOOT), boot())?;
        let log = folder.path().join("mininode-up.log");
        let file = fs::File::create(&log)?;
        let status = Command::new(scripts.join("mininode-up"))
            .arg(folder.path())
            .env("PATH", search_path())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .context("cannot start mininode-up")?;
        if !status.success() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            down(scripts, folder.path());
            bail!("mininode-up: {status}: {said}");
        }
        let namespace =
            Namespace::open(NAMESPACE, "the mini-node").inspect_err(|_| down(scripts, folder.path()))?;
        Ok(Self { scripts: scripts.to_owned(), folder, namespace })
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn kubectl(&self, arguments: &[&str], stdin: Option<&str>) -> anyhow::Result<String> {
        let kubeconfig = self.at("ctl/kubeconfig").display().to_string();
        let mut all = vec!["--kubeconfig", &kubeconfig];
        all.extend(arguments);
        self.namespace.run("kubectl", &all, stdin).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    pub fn apply(&self, manifests: &str) -> anyhow::Result<()> {
        self.kubectl(&["apply", "--validate=false", "-f", "-"], Some(manifests)).map(drop)
    }

    pub fn ctr(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let socket = self.at("c.sock");
        run(tool("ctr").arg("-a").arg(socket).args(["-n", "k8s.io"]).args(arguments), None)
    }

    /// Waits until the pod is ready.
    pub fn ready(&self, namespace: &str, pod: &str) -> anyhow::Result<()> {
        let wait =
            ["-n", namespace, "wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=180s"];
        self.kubectl(&wait, None).map(drop).with_context(|| {
            let of = self.kubectl(&["-n", namespace, "describe", "pod", pod], None).unwrap_or_default();
            format!("{namespace}/{pod} is not ready:\n{}", tail(&of, 12))
        })
    }

    pub fn pod(&self, namespace: &str, pod: &str) -> anyhow::Result<Value> {
        let text = self.kubectl(&["-n", namespace, "get", "pod", pod, "-o", "json"], None)?;
        serde_json::from_str(&text).context("kubectl's JSON")
    }

    pub fn address(&self, namespace: &str, pod: &str) -> anyhow::Result<std::net::IpAddr> {
        let pod = self.pod(namespace, pod)?;
        pod["status"]["podIP"].as_str().context("the pod has no address")?.parse().context("podIP")
    }

    fn container(&self, namespace: &str, pod: &str) -> anyhow::Result<String> {
        let of = self.pod(namespace, pod)?;
        let id = of["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
        Ok(id.strip_prefix("containerd://").context("the pod has no container yet")?.to_owned())
    }

    /// The process of the pod's only container.
    pub fn process(&self, namespace: &str, pod: &str) -> anyhow::Result<u32> {
        let id = self.container(namespace, pod)?;
        let tasks = self.ctr(&["tasks", "ls"])?;
        let row = tasks.lines().find(|line| line.starts_with(&id)).context("the container has no task")?;
        row.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).context("ctr tasks ls")
    }

    /// What a program says in the pod's only container, with its rights. Not by kubectl: this API server cannot reach kubelet by name.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> anyhow::Result<String> {
        let id = self.container(namespace, pod)?;
        let mut all = vec!["tasks", "exec", "--exec-id", "e2e", &id];
        all.extend(command);
        self.ctr(&all)
    }

    pub fn inside(&self, namespace: &str, pod: &str) -> anyhow::Result<Namespace> {
        Namespace::open(&format!("/proc/{}/ns/net", self.process(namespace, pod)?), pod)
    }

    /// Deletes the pod as a rollout does, and waits until its process has ended and kubelet says so. That the object goes too takes this
    /// kubelet up to a minute more now and then, when its garbage collection has to find the container.
    pub fn remove(&self, namespace: &str, pod: &str) -> anyhow::Result<()> {
        let process = self.process(namespace, pod)?;
        self.kubectl(&["-n", namespace, "delete", "pod", pod, "--wait=false"], None)?;
        let runs = || fs::exists(format!("/proc/{process}")).unwrap_or_default();
        let ended = until_within(TERMINATION, "the pod ends", || {
            let output = "jsonpath={.status.containerStatuses[*].state.running}";
            let running = self
                .kubectl(&["-n", namespace, "get", "pod", pod, "--ignore-not-found", "-o", output], None)?;
            Ok(running.is_empty() && !runs())
        });
        ended.with_context(|| {
            format!("{namespace}/{pod}, whose process {}", if runs() { "still runs" } else { "has ended" })
        })
    }
}

impl Drop for Mininode {
    fn drop(&mut self) {
        let uids = ["get", "pods", "-A", "-o", "jsonpath={range .items[*]}{.metadata.uid}{\"\\n\"}{end}"];
        let uids = self.kubectl(&uids, None).unwrap_or_default();
        down(&self.scripts, self.folder.path());
        // What kubelet kept of its pods' output (`<namespace>_<name>_<uid>`), which it would have removed with them.
        for folder in fs::read_dir("/var/log/pods").into_iter().flatten().flatten() {
            let name = folder.file_name();
            let uid = name.to_str().and_then(|name| name.rsplit('_').next());
            if uid.is_some_and(|uid| uids.lines().any(|of_ours| of_ours == uid)) {
                let _ = fs::remove_dir_all(folder.path());
            }
        }
    }
}

/// Which boot of the machine this is, and which of its spaces of process ids: numbers of another say nothing here.
fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let ids = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), ids.display())
}

/// What runs left that have not come to their end.
fn bring_leftovers_down(scripts: &Path) {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let of_run = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        // Whoever else writes there may not say what is ended and removed.
        let ours = entry.metadata().is_ok_and(|folder| folder.uid() == rustix::process::geteuid().as_raw());
        let Some(pid) = of_run.filter(|_| ours) else { continue };
        let of_boot = fs::read_to_string(entry.path().join(BOOT)).unwrap_or_default();
        if of_boot == boot() && !fs::exists(format!("/proc/{pid}")).unwrap_or(true) {
            down(scripts, &entry.path());
        }
    }
}

fn down(scripts: &Path, folder: &Path) {
    let _ = Command::new(scripts.join("mininode-down"))
        .arg(folder)
        .env("PATH", search_path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Asks until the answer is yes.
pub fn until(what: &str, done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    until_within(PATIENCE, what, done)
}

pub fn until_within(
    patience: Duration,
    what: &str,
    mut done: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let end = Instant::now() + patience;
    while !done().with_context(|| what.to_owned())? {
        ensure!(Instant::now() < end, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
