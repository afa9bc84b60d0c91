//! The agent, as Helm installs it.
//!
//! In: the chart. Out: a release on the node's API server (installed, upgraded, rolled back by Helm itself), and the pod that the DaemonSet's
//! controller would make of what the server then holds: the mini-node has no controllers. What always holds: nothing of the server's template is
//! changed; what a test node needs beside the defaults (an image of its own, folders, a short window, the token that an admission plugin
//! mounts elsewhere) goes in by the chart's own values. Helm is not told to wait: without a controller the set's status never comes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::image;
use super::mininode::{Mininode, NODE, until};
use super::stores::{self, SPOOL};
use super::world;
use crate::deploy::render;
use crate::python;
use crate::workspace::root;

pub const NAMESPACE: &str = "flowlogd";
/// The static token of the account flowlogd/flowlogd on the mini-node's API server.
const TOKEN: &str = "agenttoken";
pub const METRICS_PORT: u16 = 9191;
/// Fields that the release sets in the FlowLogConfiguration `default`.
const SET: usize = 6;
/// The chart's default.
const HEALTH_PORT: u16 = 9097;
/// Seconds that a window is open.
pub const WINDOW: u64 = 2;
/// Of linux/capability.h: the chart's three, and the one that DNS needs.
const CAPABILITIES: [(&str, u32); 4] = [("NET_ADMIN", 12), ("NET_RAW", 13), ("PERFMON", 38), ("BPF", 39)];

pub struct Chart<'n> {
    node: &'n Mininode,
    helm: PathBuf,
    values: PathBuf,
    number: u32,
    name: String,
    /// What the pods before said last.
    said: String,
}

impl<'n> Chart<'n> {
    pub fn new(node: &'n Mininode, logs: &Path) -> anyhow::Result<Self> {
        let account = node.at("account");
        let values = json!({
            "image": {"repository": image::NAME, "tag": image::TAG, "pullPolicy": "Never"},
            "logPath": logs, "runPath": node.at("run"),
            "metrics": {"enabled": true, "port": METRICS_PORT},
            "config": {"flowLogsCollectTcpStats": true, "flowLogsCollectDestDomains": true, "dnsTrustedServers": [world::HOST],
                // The lag is told, and raises nothing: lines stay what the day compares.
                "flowLogsDynamicAggregationEnabled": true, "flowLogsAggregationThresholdBytes": 1_000_000_000,
                "flowLogsPositionFilePath": "/var/spool/rsyslog"},
            // What the plugin ServiceAccount and the cluster's DNS give elsewhere.
            "extraEnv": [
                {"name": "KUBERNETES_SERVICE_HOST", "value": "127.0.0.1"},
                {"name": "KUBERNETES_SERVICE_PORT", "value": "16443"},
                {"name": "FLOWLOGD_FLOWLOGSFLUSHINTERVAL", "value": format!("{WINDOW}s")},
                {"name": "FLOWLOGD_FLOWLOGSFILEAGGREGATIONKINDFORALLOWED", "value": "0"},
                {"name": "FLOWLOGD_FLOWLOGSFILEMAXFILESIZEMB", "value": "1"},
                {"name": "FLOWLOGD_FLOWLOGSFILEMAXFILES", "value": "500"},
                {"name": "FLOWLOGD_FLOWLOGSFILEIDLEFLOWS", "value": "Suppress"},
            ],
            "extraVolumeMounts": [
                {"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true},
                {"name": "spool", "mountPath": "/var/spool/rsyslog", "readOnly": true},
            ],
            "extraVolumes": [
                {"name": "token", "hostPath": {"path": account, "type": "Directory"}},
                {"name": "spool", "hostPath": {"path": node.at(SPOOL), "type": "DirectoryOrCreate"}},
            ],
        });
        let file = node.at("values.json");
        fs::write(&file, values.to_string())?;
        // The mini-node's kubelet mounts in a namespace of its own, which the runtime does not see: no projected volume is filled there.
        fs::create_dir_all(&account)?;
        fs::copy(node.at("ctl/certs/apiserver.crt"), account.join("ca.crt"))
            .context("cannot copy the API server's certificate")?;
        fs::write(account.join("token"), TOKEN)?;
        fs::write(account.join("namespace"), NAMESPACE)?;
        let helm = python::program(python::HELM)?.canonicalize()?;
        Ok(Self { node, helm, values: file, number: 0, name: String::new(), said: String::new() })
    }

    fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let kubeconfig = self.node.at("ctl/kubeconfig").display().to_string();
        let mut all = vec!["--kubeconfig", &kubeconfig, "--namespace", NAMESPACE];
        all.extend(arguments);
        self.node.namespace.run(&self.helm.display().to_string(), &all, None)
    }

    pub fn install(&self) -> anyhow::Result<()> {
        let (chart, values) = (chart(), self.values.display().to_string());
        self.helm(&["install", "flowlogd", &chart, "--create-namespace", "--values", &values]).map(drop)
    }

    /// With these values beside those of the installation.
    pub fn upgrade(&self, values: &[&str]) -> anyhow::Result<()> {
        let (chart, file) = (chart(), self.values.display().to_string());
        let mut arguments = vec!["upgrade", "flowlogd", &chart, "--values", &file];
        arguments.extend(values.iter().flat_map(|value| ["--set", value]));
        self.helm(&arguments).map(drop)
    }

    pub fn rollback(&self, revision: u32) -> anyhow::Result<()> {
        self.helm(&["rollback", "flowlogd", &revision.to_string()]).map(drop)
    }

    /// Revision and state of the release, as Helm keeps them on the server.
    pub fn revision(&self) -> anyhow::Result<(u64, String)> {
        let status: Value = serde_json::from_str(&self.helm(&["status", "flowlogd", "--output", "json"])?)?;
        let state = status.pointer("/info/status").and_then(Value::as_str).unwrap_or_default();
        Ok((status["version"].as_u64().context("helm status has no version")?, state.to_owned()))
    }

    /// Everything that the release made, by kind and name.
    pub fn objects(&self) -> anyhow::Result<Vec<String>> {
        let manifest = self.helm(&["get", "manifest", "flowlogd"])?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&manifest)?;
        let mut names = Vec::new();
        for object in objects.iter().filter(|object| object.is_object()) {
            let of = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
            self.node
                .kubectl(&["-n", NAMESPACE, "get", of("/kind"), of("/metadata/name")], None)
                .context("Helm says that it is there")?;
            names.push(format!("{} {}", of("/kind"), of("/metadata/name")));
        }
        ensure!(!names.is_empty(), "the release has no objects");
        Ok(names)
    }

    /// The pod's template of the DaemonSet as the server has it now.
    pub fn template(&self) -> anyhow::Result<Value> {
        let text =
            self.node.kubectl(&["-n", NAMESPACE, "get", "daemonset", "flowlogd", "-o", "json"], None)?;
        let mut set: Value = serde_json::from_str(&text)?;
        Ok(set["spec"]["template"].take())
    }

    /// The next pod of the template, when the one before has ended: what the controller does without surge.
    pub fn roll(&mut self) -> anyhow::Result<()> {
        let template = self.template()?;
        if self.number > 0 {
            self.end()?;
        }
        self.number += 1;
        self.name = format!("flowlogd-{}", self.number);
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]});
        pod["metadata"]["namespace"] = json!(NAMESPACE);
        pod["metadata"]["name"] = json!(self.name);
        pod["spec"]["nodeName"] = json!(NODE);
        self.node.apply(&pod.to_string())?;
        self.ready(0)
    }

    /// Waits until another process than this one says that it is ready: kubelet looks only every ten seconds.
    fn ready(&self, before: u32) -> anyhow::Result<()> {
        let url = format!("http://127.0.0.1:{HEALTH_PORT}/readyz");
        let is_ready = until("the agent is ready", || {
            let is_new = self.node.process(NAMESPACE, &self.name).is_ok_and(|now| now != before);
            Ok(is_new && stores::get(&self.node.namespace, &url, &[]).is_ok())
        });
        is_ready.with_context(|| self.log())
    }

    /// Kubelet's own probes find it ready, too.
    pub fn probed(&self) -> anyhow::Result<()> {
        self.node.ready(NAMESPACE, &self.name)
    }

    /// Ends the last pod.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.said = self.log();
        self.node.remove(NAMESPACE, &self.name)
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.node.process(NAMESPACE, &self.name)?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, signal).context("cannot signal the agent")
    }

    /// Kills it, and waits until kubelet has started another that is ready.
    pub fn kill(&self) -> anyhow::Result<()> {
        let before = self.node.process(NAMESPACE, &self.name)?;
        self.signal(Signal::KILL)?;
        self.ready(before)
    }

    /// What the kernel lets the agent's process do: exactly what the manifest asks for.
    pub fn rights(&self) -> anyhow::Result<String> {
        let pid = self.node.process(NAMESPACE, &self.name)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let of = |name: &str| -> anyhow::Result<&str> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).with_context(|| format!("/proc/PID/status has no {name}"))
        };
        let due: u64 = CAPABILITIES.iter().map(|(_, bit)| 1 << bit).sum();
        let bounding = u64::from_str_radix(of("CapBnd")?, 16)?;
        ensure!(bounding == due, "the capabilities are {bounding:x}, the manifest's {due:x}");
        let (seccomp, privileges) = (of("Seccomp")?, of("NoNewPrivs")?);
        ensure!((seccomp, privileges) == ("2", "1"), "Seccomp {seccomp}, NoNewPrivs {privileges}");
        if fs::read_to_string(format!("/proc/{pid}/mountinfo"))?
            .lines()
            .filter_map(|line| line.split_whitespace().nth(4).zip(line.split_whitespace().nth(5)))
            .any(|(at, options)| at == "/" && !options.starts_with("ro"))
        {
            bail!("its root is writable");
        }
        let names: Vec<&str> = CAPABILITIES.iter().map(|(name, _)| *name).collect();
        Ok(format!("{}; seccomp on, no new privileges, read-only root", names.join(" ")))
    }

    /// The verbs that the operator's guide begins with, in the pod and by its account, know what the release set.
    pub fn verbs(&self) -> anyhow::Result<String> {
        let check = self.node.exec(NAMESPACE, &self.name, &["/flowlogd", "check"])?;
        for topic in ["DNS", "TCP statistics", "source netlink"] {
            let line = check.lines().find(|line| line.starts_with(topic)).unwrap_or_default();
            let state = line.strip_prefix(topic).and_then(|rest| rest.split_whitespace().next());
            ensure!(state == Some("ok"), "flowlogd check, {topic}: {line}");
        }
        let config = self.node.exec(NAMESPACE, &self.name, &["/flowlogd", "config", "--json"])?;
        let fields: Vec<Value> = serde_json::from_str(&config)?;
        let set: Vec<_> =
            fields.iter().filter(|field| field["layer"] == "FlowLogConfiguration default").collect();
        ensure!(set.len() == SET, "flowlogd config: {} fields of the object, not {SET}", set.len());
        Ok(format!(
            "check: {} rows; config: {} fields, {SET} of them from the release's object",
            check.lines().count(),
            fields.len()
        ))
    }

    /// What it said, as far as kubelet keeps it.
    pub fn log(&self) -> String {
        let Ok(folders) = fs::read_dir("/var/log/pods") else { return String::new() };
        let mine = format!("{NAMESPACE}_{}_", self.name);
        let mut text = self.said.clone();
        for folder in folders.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&mine))
        {
            for file in fs::read_dir(folder.path().join("flowlogd")).into_iter().flatten().flatten() {
                text += &fs::read_to_string(file.path()).unwrap_or_default();
            }
        }
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains("total metric=")).collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

fn chart() -> String {
    root().join(render::CHART).display().to_string()
}
