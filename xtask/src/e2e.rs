//! `cargo xtask e2e`: an operator's day on a real node.
//!
//! In: a mini-node (`MININODE`, the folder with mininode-up and -down; `KUBEBUILDER_ASSETS`), root. Out: a line for what was found good, or an
//! error. The chart's pod runs under a real kubelet with the rights, capabilities and seccomp profile of the chart, and names pods from the real
//! API server; pods talk, are denied by nftables, are replaced; rsyslog ships the file through ten rotations into VictoriaLogs; the dashboards'
//! queries are asked there and of Prometheus, and compared with the lines themselves; the agent is rolled and killed under traffic.
//! What always holds: what was started is ended, by the value that holds it. Exit code 3: there is no mini-node here.

mod agent;
mod day;
mod expect;
mod image;
mod lines;
mod mininode;
mod shipped;
mod stores;
mod table;
mod traffic;
mod watched;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};

use crate::demo::tools::build_agent;
use crate::packages;
use agent::Chart;
use day::Day;
use mininode::{Mininode, NODE};
use stores::Stores;
use table::Table;
use world::World;

#[derive(clap::Args)]
pub struct Arguments {}

/// Exit code where there is no mini-node.
pub const NODE_MISSING: u8 = 3;
/// What the mini-node itself runs.
const NEEDED: [packages::Needed; 7] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("kubectl", "kubernetes-client"),
    ("strip", "binutils"),
];
/// Policies that the cluster knows; what enforces them here are [`RULES`]: the mini-node has no policy engine.
const POLICIES: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress: [{ports: [{port: 8080, protocol: UDP}, {port: 8003, protocol: TCP}, {port: 8013, protocol: TCP}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: crawler, namespace: shop}
spec:
  podSelector: {matchLabels: {app: crawler}}
  policyTypes: [Egress]
";
const RULES: &str = "table inet e2e {
  counter denied { }
  counter mismatched { }
  counter flooded { }
  chain forward {
    type filter hook forward priority 0
    ct state established,related accept
    udp dport 9090 counter name denied drop
    udp dport 7070 counter name mismatched drop
    udp dport 9999 counter name flooded drop
    ip daddr 203.0.113.53 udp dport 53 drop
  }
}
";

pub fn run(_: &Arguments) -> anyhow::Result<ExitCode> {
    let assets = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS").unwrap_or_default());
    let scripts = PathBuf::from(std::env::var_os("MININODE").unwrap_or_default());
    if !scripts.join("mininode-up").is_file() || !assets.join("victoria-logs").is_file() {
        println!(
            "SKIPPED end to end on a mini-node: MININODE names no folder with mininode-up, or KUBEBUILDER_ASSETS none with victoria-logs"
        );
        return Ok(NODE_MISSING.into());
    }
    let needed: Vec<_> =
        NEEDED.into_iter().chain(packages::NODE).chain(packages::STORES).chain(packages::DNS).collect();
    let more = packages::package_of_file("/usr/lib/cni/bridge", "containernetworking-plugins");
    let more: Vec<_> = more.into_iter().chain(packages::rsyslog_elasticsearch()).collect();
    packages::install_missing(&needed, &more)?;
    let binary = build_agent()?;

    let mut table = Table::new();
    let node = table.need("a node", || {
        let node = Mininode::start(&scripts)?;
        let archive = image::build(&binary, &node.at(""))?;
        node.ctr(&["images", "import", &archive.display().to_string()])?;
        node.namespace.run("nft", &["-f", "-"], Some(RULES))?;
        // Connections end when the day says so: else each of thousands makes a line more half a minute later, in the midst of something else.
        node.namespace.set("net/netfilter/nf_conntrack_udp_timeout", "3600")?;
        node.apply(&pods())?;
        node.apply(POLICIES)?;
        for pod in ["client-1", "server-1", "crawler-1"] {
            node.ready("shop", pod)?;
        }
        let version = node.kubectl(
            &[
                "get",
                "node",
                NODE,
                "-o",
                "jsonpath={.status.nodeInfo.kubeletVersion}, {.status.nodeInfo.containerRuntimeVersion}",
            ],
            None,
        )?;
        Ok((node, version))
    })?;
    let _world = World::start(&node)?;
    let logs = node.at("log");
    let mut chart = Chart::new(&node, &logs)?;
    let rules = day::ruleset(&node)?;
    table.need("helm install", || {
        chart.install()?;
        let (revision, state) = chart.revision()?;
        ensure!((revision, state.as_str()) == (1, "deployed"), "revision {revision} is {state}");
        Ok(((), format!("revision {revision} {state}; {}", chart.objects()?.join(", "))))
    })?;
    table.need("the chart's pod under a real kubelet", || {
        chart.roll()?;
        chart.probed()?;
        ensure!(day::ruleset(&node)? == rules, "rules of nftables or of routing have changed with its start");
        Ok(((), format!("ready by its probe; {}", chart.rights()?)))
    })?;
    table.check("check and config in the pod", || chart.verbs().map(|figures| ((), figures)));
    let stores = table.need("VictoriaLogs, rsyslog, Prometheus", || {
        Ok((Stores::start(&node, &assets, &logs)?, "run".to_owned()))
    })?;
    let mut day = Day { node: &node, chart, stores, flowlogs: logs.join("flowlogs") };
    let outcome = day.live(&mut table).and_then(|()| table.finish());
    outcome.with_context(|| format!("flowlogd's log ends with:\n{}", day.chart.log()))?;
    Ok(ExitCode::SUCCESS)
}

fn pods() -> String {
    let pod = |name: &str, app: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, generateName: {app}-, namespace: shop, labels: {{app: {app}}}}}\nspec:\n  nodeName: {NODE}\n  automountServiceAccountToken: false\n  terminationGracePeriodSeconds: 0\n  containers: [{{name: c, image: \"localhost/busybox:1\", imagePullPolicy: Never, command: [sleep, \"100000\"]}}]\n"
        )
    };
    let all = ["client", "server", "crawler"].map(|app| pod(&format!("{app}-1"), app)).concat();
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n{all}")
}
