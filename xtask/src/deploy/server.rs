//! The manifests before a real API server, and what the agent's account may do there.
//!
//! In: the programs of envtest, the manifests. Out: a line for what was found good, or an error. What always holds: each way to
//! install (chart with several values, kustomize base, overlay) is judged by the server's own types; the account may do what
//! its rules say and nothing else, asked for every resource that the server has, by impersonation.
//! Not here: whether the agent needs those rights (`rights.rs`).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{render, rights};
use crate::apiserver::{AGENT, ApiServer};
use crate::netns::{run, tool};
use crate::workspace::root;

/// Every kind of object that the chart can make, in few renderings.
const RENDERINGS: [&[&str]; 3] = [
    &[],
    &[
        "calico.enabled=true",
        "metrics.enabled=true",
        "metrics.podMonitor.enabled=true",
        "metrics.serviceMonitor.enabled=true",
        "metrics.prometheusRule.enabled=true",
        "dashboards.enabled=true",
        "processInfo.enabled=true",
        "tcpStats.enabled=true",
        "dns.domains=true",
        "dns.log=true",
        "config.flowLogsFlushInterval=15s",
        "config.flowLogsFileAggregationKindForAllowed=1",
        "nodeConfig.n1.flowLogsClusterName=one",
    ],
    &[
        "cluster.enabled=false",
        "source=netlink",
        "setConntrackAccounting=false",
        "image.tag=v2",
        "fullnameOverride=other",
    ],
];
const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

pub fn check(assets: &Path, with_agent: bool) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot make a temporary directory")?;
    let server = ApiServer::start(assets, folder.path())?;
    server.apply(&other_definitions())?;
    server.apply(&std::fs::read_to_string(root().join(render::CRD))?)?;
    server.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: flowlogd}\n")?;
    server.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"], None)?;

    for values in RENDERINGS {
        let judged =
            server.judge(&render::whole(values)?).with_context(|| format!("chart with {values:?}"))?;
        println!("chart with {} values set: {} objects accepted", values.len(), judged.lines().count());
    }
    for folder in ["deploy/base", "deploy/overlays/calico"] {
        let built = kustomize(folder)?;
        let judged = server.judge(&built).with_context(|| folder.to_owned())?;
        println!("{folder}: {} objects accepted", judged.lines().count());
    }
    // The judge does judge.
    let daemonset = std::fs::read_to_string(root().join("deploy/base/daemonset.yaml"))?;
    ensure!(
        server.judge(&daemonset.replace("hostNetwork: true", "hostNetwork: perhaps")).is_err(),
        "the server takes a hostNetwork that is no boolean"
    );
    ensure!(
        server.judge("apiVersion: flowlogd.dev/v1\nkind: FlowLogConfiguration\nmetadata: {name: default}\nspec: {flowLogsFileMaxFiles: none}\n").is_err(),
        "the server takes a FlowLogConfiguration with a wrong type"
    );

    server.apply(&kustomize("deploy/overlays/calico")?)?;
    let granted = rights::granted(&kustomize("deploy/overlays/calico")?)?;
    let allowed = allowed(&server)?;
    let beyond: Vec<_> = allowed.difference(&granted).collect();
    ensure!(beyond.is_empty(), "the account may do what no rule gives: {beyond:?}");
    println!(
        "impersonation: of {} verbs on {} resources the account may do {}, each by a rule",
        VERBS.len(),
        resources(&server)?.len(),
        allowed.len()
    );
    if with_agent {
        rights::check(&server, &granted, folder.path())?;
    }
    Ok(())
}

fn kustomize(folder: &str) -> anyhow::Result<String> {
    run(tool("kubectl").arg("kustomize").arg(root().join(folder)), None)
}

/// Definitions of what other projects serve, as far as it matters whether it is there.
fn other_definitions() -> String {
    let mut all = String::new();
    let mut add = |group: &str, version: &str, kind: &str, plural: &str, namespaced: bool| {
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{plural}.{group}"),
                // Groups below k8s.io are reserved: the server asks for a word on the approval.
                "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
            },
            "spec": {
                "group": group, "scope": if namespaced { "Namespaced" } else { "Cluster" },
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
                "versions": [{"name": version, "served": true, "storage": true, "schema": {"openAPIV3Schema":
                    {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
            },
        });
        let _ = write!(all, "---\n{definition}\n");
    };
    for kind in ["PodMonitor", "ServiceMonitor", "PrometheusRule"] {
        add("monitoring.coreos.com", "v1", kind, &format!("{}s", kind.to_lowercase()), true);
    }
    for (group, version) in [("crd.projectcalico.org", "v1"), ("projectcalico.org", "v3")] {
        for (kind, namespaced) in rights::CALICO_KINDS {
            let plural = rights::plural(kind);
            add(group, version, kind, &plural, namespaced);
        }
    }
    for kind in ["AdminNetworkPolicy", "BaselineAdminNetworkPolicy"] {
        add("policy.networking.k8s.io", "v1alpha1", kind, &rights::plural(kind), false);
    }
    add("policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies", false);
    all
}

/// (group, resource) of everything that the server has, with subresources.
fn resources(server: &ApiServer) -> anyhow::Result<BTreeSet<(String, String)>> {
    let mut all = BTreeSet::new();
    let mut paths = vec!["/api/v1".to_owned()];
    let groups: Value = serde_json::from_str(&server.kubectl(&["get", "--raw", "/apis"], None)?)?;
    for group in groups["groups"].as_array().into_iter().flatten() {
        for version in group["versions"].as_array().into_iter().flatten() {
            paths.extend(version["groupVersion"].as_str().map(|version| format!("/apis/{version}")));
        }
    }
    for path in paths {
        let list: Value = serde_json::from_str(&server.kubectl(&["get", "--raw", &path], None)?)?;
        let group = path.strip_prefix("/apis/").and_then(|path| path.split('/').next()).unwrap_or_default();
        for resource in list["resources"].as_array().into_iter().flatten() {
            all.extend(resource["name"].as_str().map(|name| (group.to_owned(), name.to_owned())));
        }
    }
    Ok(all)
}

/// (verb, group, resource) that the account may do, as the server answers it itself.
fn allowed(server: &ApiServer) -> anyhow::Result<BTreeSet<(String, String, String)>> {
    let mut reviews = Vec::new();
    for (group, resource) in resources(server)? {
        // Everybody who is somebody may ask what he may do.
        if group == "authorization.k8s.io" {
            continue;
        }
        let (name, sub) = resource.split_once('/').unwrap_or((&resource, ""));
        for verb in VERBS {
            reviews.push(json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": {"verb": verb, "group": group, "resource": name, "subresource": sub}},
            }));
        }
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": reviews}).to_string();
    let answers = server
        .kubectl(&["create", "--validate=false", "-o", "json", "-f", "-", "--as", AGENT], Some(&list))?;
    let mut allowed = BTreeSet::new();
    let mut seen = 0;
    for answer in serde_json::Deserializer::from_str(&answers).into_iter::<Value>() {
        let answer = answer?;
        let items = match answer.get("items").and_then(Value::as_array) {
            Some(items) => items.clone(),
            None => vec![answer],
        };
        for item in items {
            seen += 1;
            if item.pointer("/status/allowed") != Some(&Value::Bool(true)) {
                continue;
            }
            let of = |name: &str| {
                item.pointer(&format!("/spec/resourceAttributes/{name}"))
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            let sub = of("subresource");
            let resource = of("resource");
            allowed.insert((
                of("verb"),
                of("group"),
                if sub.is_empty() { resource } else { format!("{resource}/{sub}") },
            ));
        }
    }
    ensure!(seen == reviews.len(), "asked {} times, answered {seen} times", reviews.len());
    Ok(allowed)
}
