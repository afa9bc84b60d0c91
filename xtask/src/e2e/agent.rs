//! The agent's pod, as the chart has it.
//!
//! In: the chart, rendered for this node. Out: everything of it applied, and a pod made from the DaemonSet's template, as the controller that is
//! not there would. What always holds: nothing of the template is changed; what a test node needs beside it (an image of its own, folders, a
//! short window, the token that an admission plugin mounts elsewhere) goes in by the chart's own values.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::image;
use super::mininode::{Mininode, NODE};
use crate::deploy::render;

pub const NAMESPACE: &str = "flowlogd";
/// The static token of the account flowlogd/flowlogd on the mini-node's API server.
const TOKEN: &str = "agenttoken";
pub const METRICS_PORT: u16 = 9191;

pub struct Chart {
    pod: Value,
    number: u32,
    name: String,
    /// What the pods before said last.
    said: String,
}

impl Chart {
    /// Applies the chart.
    pub fn install(node: &Mininode, logs: &Path) -> anyhow::Result<Self> {
        let values = json!({
            "image": {"repository": image::NAME, "tag": image::TAG, "pullPolicy": "Never"},
            "logPath": logs, "runPath": node.at("run"),
            "metrics": {"enabled": true, "port": METRICS_PORT},
            // What the plugin ServiceAccount and the cluster's DNS give elsewhere.
            "extraEnv": [
                {"name": "KUBERNETES_SERVICE_HOST", "value": "127.0.0.1"},
                {"name": "KUBERNETES_SERVICE_PORT", "value": "16443"},
                {"name": "FLOWLOGD_FLOWLOGSFLUSHINTERVAL", "value": "3s"},
                {"name": "FLOWLOGD_FLOWLOGSFILEAGGREGATIONKINDFORALLOWED", "value": "0"},
                {"name": "FLOWLOGD_FLOWLOGSFILEAGGREGATIONKINDFORDENIED", "value": "0"},
                {"name": "FLOWLOGD_FLOWLOGSFILEMAXFILESIZEMB", "value": "1"},
                {"name": "FLOWLOGD_FLOWLOGSFILEMAXFILES", "value": "500"},
                {"name": "FLOWLOGD_FLOWLOGSFILEIDLEFLOWS", "value": "Suppress"},
            ],
            "extraVolumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
            "extraVolumes": [{"name": "token", "hostPath": {"path": node.at("account"), "type": "Directory"}}],
        });
        let file = node.at("values.json");
        std::fs::write(&file, values.to_string())?;
        // The mini-node's kubelet mounts in a namespace of its own, which the runtime does not see: no projected volume is filled there.
        let account = node.at("account");
        std::fs::create_dir_all(&account)?;
        std::fs::copy(node.at("ctl/certs/apiserver.crt"), account.join("ca.crt"))
            .context("cannot copy the API server's certificate")?;
        std::fs::write(account.join("token"), TOKEN)?;
        std::fs::write(account.join("namespace"), NAMESPACE)?;
        node.apply(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}).to_string(),
        )?;
        node.apply(&std::fs::read_to_string(render::root().join(render::CRD))?)?;
        node.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"], None)?;
        let rendered = render::with_values(&file)?;
        node.apply(&rendered)?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&rendered)?;
        let set =
            documents.iter().find(|of| of["kind"] == "DaemonSet").context("the chart has no DaemonSet")?;
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": set["spec"]["template"]["metadata"], "spec": set["spec"]["template"]["spec"]});
        pod["metadata"]["namespace"] = json!(NAMESPACE);
        pod["spec"]["nodeName"] = json!(NODE);
        Ok(Self { pod, number: 0, name: String::new(), said: String::new() })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next pod, when the one before has ended: as a rollout without surge.
    pub fn roll(&mut self, node: &Mininode) -> anyhow::Result<()> {
        if self.number > 0 {
            self.end(node)?;
        }
        self.number += 1;
        self.name.clear();
        let _ = write!(self.name, "flowlogd-{}", self.number);
        self.pod["metadata"]["name"] = json!(self.name);
        node.apply(&self.pod.to_string())?;
        node.ready(NAMESPACE, &self.name).with_context(|| self.log())
    }

    /// Ends the last pod.
    pub fn end(&mut self, node: &Mininode) -> anyhow::Result<()> {
        self.said = self.log();
        node.remove(NAMESPACE, &self.name)
    }

    /// What it said, as far as kubelet keeps it.
    pub fn log(&self) -> String {
        let Ok(folders) = std::fs::read_dir("/var/log/pods") else { return String::new() };
        let mine = format!("{NAMESPACE}_{}_", self.name);
        let mut text = self.said.clone();
        for folder in folders.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&mine))
        {
            for file in std::fs::read_dir(folder.path().join("flowlogd")).into_iter().flatten().flatten() {
                text += &std::fs::read_to_string(file.path()).unwrap_or_default();
            }
        }
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains("total metric=")).collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}
