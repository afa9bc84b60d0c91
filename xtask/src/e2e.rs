//! `cargo xtask e2e`: an operator's day on a real node.
//!
//! In: a mini-node (`MININODE`, the folder with mininode-up and -down; `KUBEBUILDER_ASSETS`), root. Out: a line for what was found good, or an
//! error. The chart's pod runs under a real kubelet with the rights, capabilities and seccomp profile of the chart, and names pods from the real
//! API server; pods talk, are denied by nftables, are replaced; rsyslog ships the file through ten rotations into VictoriaLogs; the dashboards'
//! queries are asked there and of Prometheus, and compared with the lines themselves; the agent is rolled and killed under traffic.
//! What always holds: what was started is ended, by the value that holds it. Exit code 3: there is no mini-node here.

mod agent;
mod expect;
mod image;
mod mininode;
mod stores;
mod traffic;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::dashboards::description::Kind;
use crate::demo::tools::build_agent;
use crate::{dashboards, packages};
use agent::Chart;
use mininode::{Mininode, NODE, until};
use stores::{Stores, ask_logs, ask_prometheus};
use traffic::{BYTES, Stream, scatter, sink};

#[derive(clap::Args)]
pub struct Arguments {}

/// Exit code where there is no mini-node.
pub const NODE_MISSING: u8 = 3;
const ROTATIONS: usize = 10;
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
/// A policy that the cluster knows, and what enforces it here: the mini-node has no policy engine.
const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\nspec:\n  podSelector: {matchLabels: {app: server}}\n  policyTypes: [Ingress]\n  ingress: [{ports: [{port: 8080, protocol: UDP}]}]\n";
const RULES: &str = "table inet e2e {\n  chain forward {\n    type filter hook forward priority 0\n    ct state established,related accept\n    udp dport { 9090, 7070 } drop\n  }\n}\n";

pub fn run(_: &Arguments) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let tell = |text: &str| println!("e2e: {:5.1} s: {text}", began.elapsed().as_secs_f64());
    let assets = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS").unwrap_or_default());
    let scripts = PathBuf::from(std::env::var_os("MININODE").unwrap_or_default());
    if !scripts.join("mininode-up").is_file() || !assets.join("victoria-logs").is_file() {
        println!(
            "SKIPPED end to end on a mini-node: MININODE names no folder with mininode-up, or KUBEBUILDER_ASSETS none with victoria-logs"
        );
        return Ok(NODE_MISSING.into());
    }
    let needed: Vec<_> = NEEDED.into_iter().chain(packages::NODE).chain(packages::STORES).collect();
    let more = packages::package_of_file("/usr/lib/cni/bridge", "containernetworking-plugins");
    let more: Vec<_> = more.into_iter().chain(packages::rsyslog_elasticsearch()).collect();
    packages::install_missing(&needed, &more)?;
    let binary = build_agent()?;
    tell("flowlogd is built");

    let node = Mininode::start(&scripts, &std::env::temp_dir().join("flowlogd-e2e"))?;
    tell("a node is ready");
    let archive = image::build(&binary, &node.at(""))?;
    node.ctr(&["images", "import", &archive.display().to_string()])?;
    node.namespace.run("nft", &["-f", "-"], Some(RULES))?;
    node.apply(&pods())?;
    node.apply(POLICY)?;
    for pod in ["client-1", "server-1"] {
        node.ready("shop", pod)?;
    }
    let logs = node.at("log");
    let mut chart = Chart::install(&node, &logs)?;
    chart.roll(&node)?;
    tell("the chart's pod is ready");
    let _stores = Stores::start(&node, &assets, &logs)?;
    tell("VictoriaLogs, rsyslog and Prometheus run");

    let outcome = day(&node, &mut chart, &logs, &tell);
    outcome.with_context(|| format!("flowlogd's log ends with:\n{}", chart.log()))?;
    println!("e2e: PASS, {:.0} s", began.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn pods() -> String {
    let pod = |name: &str, app: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, generateName: {app}-, namespace: shop, labels: {{app: {app}}}}}\nspec:\n  nodeName: {NODE}\n  automountServiceAccountToken: false\n  terminationGracePeriodSeconds: 0\n  containers: [{{name: c, image: \"localhost/busybox:1\", imagePullPolicy: Never, command: [sleep, \"100000\"]}}]\n"
        )
    };
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n{}{}",
        pod("client-1", "client"),
        pod("server-1", "server")
    )
}

fn day(node: &Mininode, chart: &mut Chart, logs: &Path, tell: &dyn Fn(&str)) -> anyhow::Result<()> {
    let flowlogs = logs.join("flowlogs");
    let (client, server) = (node.inside("shop", "client-1")?, node.inside("shop", "server-1")?);
    let address = node.address("shop", "server-1")?;
    let _listening = sink(&server, 8080)?;

    // A rollout while one connection never rests.
    let stream = Stream::start(&client, 5001, SocketAddr::new(address, 8080))?;
    thread::sleep(Duration::from_secs(4));
    chart.roll(node)?;
    thread::sleep(Duration::from_secs(4));
    let port = stream.port;
    let sent = stream.end();
    tell("the agent was rolled under traffic");

    // Denied, by a policy that the cluster knows.
    scatter(&client, 6000..6010, address, 9090)?;
    // Denied, against what the cluster's policies say of a client that is not selected by any.
    scatter(&server, 6100..6105, node.address("shop", "client-1")?, 7070)?;

    // The pod goes, another comes: names are those of the time.
    drop(_listening);
    node.kubectl(&["-n", "shop", "delete", "pod", "server-1", "--wait=true"], None)?;
    node.apply(&pods().replace("name: server-1", "name: server-2"))?;
    node.ready("shop", "server-2")?;
    let server = node.inside("shop", "server-2")?;
    let second = node.address("shop", "server-2")?;
    let _listening = sink(&server, 8080)?;
    scatter(&client, 6200..6210, second, 8080)?;
    tell("pods talked, were denied, were replaced");

    // Ten rotations.
    let mut port_after = 10_000;
    until("ten rotations", || {
        if !flowlogs.join(format!("flows.log.{ROTATIONS}")).exists() && port_after < 60_000 {
            scatter(&client, port_after..port_after + 1000, second, 8080)?;
            port_after += 1000;
            thread::sleep(Duration::from_secs(1));
        }
        Ok(flowlogs.join(format!("flows.log.{ROTATIONS}")).exists())
    })?;
    tell(&format!("{ROTATIONS} rotations"));

    // Killed: it loses what it had not written, and nothing is written twice.
    let killed = Stream::start(&client, 5002, SocketAddr::new(second, 8080))?;
    thread::sleep(Duration::from_secs(5));
    let before = node.process(agent::NAMESPACE, chart.name())?;
    let pid = i32::try_from(before).ok().and_then(Pid::from_raw).context("a process id")?;
    kill_process(pid, Signal::KILL)?;
    until("kubelet starts the agent again", || {
        Ok(node.process(agent::NAMESPACE, chart.name()).is_ok_and(|now| now != before))
    })?;
    node.ready(agent::NAMESPACE, chart.name())?;
    thread::sleep(Duration::from_secs(4));
    let killed_port = killed.port;
    let killed_sent = killed.end();
    tell("the agent was killed and came back");

    health(node)?;
    tell("Prometheus answers every query of the agents' dashboard, every alert rule is healthy");

    thread::sleep(Duration::from_secs(4));
    chart.end(node)?;
    let lines = read(&flowlogs)?;
    tell(&format!("{} lines in {} files", lines.len(), fs::read_dir(&flowlogs)?.count()));
    names(&lines, address, second)?;
    for (reporter, direction) in [("src", "out"), ("dst", "in")] {
        let (packets, bytes) = sums(&lines, port, reporter, direction);
        ensure!(
            (packets, bytes) == (sent, sent * BYTES),
            "rolled: {sent} packets sent, {packets} packets and {bytes} bytes reported by {reporter}"
        );
        let (packets, bytes) = sums(&lines, killed_port, reporter, direction);
        ensure!(
            packets <= killed_sent && bytes == packets * BYTES,
            "killed: {killed_sent} packets sent, {packets} reported by {reporter}"
        );
        ensure!(packets > 0, "killed: nothing reported by {reporter}");
        if reporter == "src" {
            tell(&format!("kill -9: {} of {killed_sent} packets in no line", killed_sent - packets));
        }
    }
    tell(&format!("a rollout under traffic: {sent} of {sent} packets in the lines, at both ends"));

    shipped(node, &lines)?;
    tell("every line is in the store exactly once");
    let (panels, rows) = panels(node, &lines)?;
    tell(&format!("{panels} panels of the dashboards show what the lines say, {rows} rows"));
    Ok(())
}

/// Every line of every file.
fn read(flowlogs: &Path) -> anyhow::Result<Vec<Value>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(flowlogs)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_log = name == "flows.log"
            || name.strip_prefix("flows.log.").is_some_and(|number| number.parse::<u32>().is_ok());
        if !is_log {
            continue;
        }
        for line in fs::read_to_string(entry.path())?.lines() {
            lines.push(
                serde_json::from_str(line).with_context(|| format!("{name} has a line that is no JSON"))?,
            );
        }
    }
    Ok(lines)
}

/// Packets and bytes that the reporter saw of the connection from this port.
fn sums(lines: &[Value], port: u16, reporter: &str, direction: &str) -> (u64, u64) {
    let mine = lines.iter().filter(|line| line["source_port"] == port && line["reporter"] == reporter);
    mine.fold((0, 0), |(packets, bytes), line| {
        let of = |what: &str| line[format!("{what}_{direction}")].as_u64().unwrap_or_default();
        (packets + of("packets"), bytes + of("bytes"))
    })
}

/// Who is who, and what was allowed.
fn names(lines: &[Value], first: std::net::IpAddr, second: std::net::IpAddr) -> anyhow::Result<()> {
    // An agent that was killed adopts what is open and rests; such a connection may end before the cluster is known again.
    let of = |ports: std::ops::Range<u64>| {
        lines.iter().filter(move |line| {
            let moved = line["packets_in"] != 0 || line["packets_out"] != 0;
            moved && line["source_port"].as_u64().is_some_and(|port| ports.contains(&port))
        })
    };
    for (ports, name, address) in [(5001..5002, "server-1", first), (6200..6210, "server-2", second)] {
        for line in of(ports) {
            ensure!(
                line["dest_name"] == name && line["dest_ip"] == address.to_string(),
                "not {name}: {line}"
            );
        }
    }
    for line in of(5001..6300) {
        ensure!(line["host"] == NODE && line["source_namespace"] == "shop", "{line}");
    }
    let denied: Vec<_> = of(6000..6010).filter(|line| line["action"] == "deny").collect();
    ensure!(denied.len() >= 10, "ten denied connections, {} lines", denied.len());
    ensure!(of(6000..6010).all(|line| line["source_name_aggr"] == "client-*"), "the client's name");
    Ok(())
}

/// Prometheus has scraped the agent, and knows an answer to every query.
fn health(node: &Mininode) -> anyhow::Result<()> {
    let description = dashboards::read()?;
    until("Prometheus has scraped the agent", || {
        Ok(!ask_prometheus(&node.namespace, "rate(flowlogd_flushes_total[10s]) > 0")
            .unwrap_or_default()
            .is_empty())
    })?;
    for panel in &description.health.panels {
        let query = panel.query.replace("$__rate_interval", "1m");
        let samples = ask_prometheus(&node.namespace, &query)?;
        // Nothing was lost, so that there is no stage.
        ensure!(
            !samples.is_empty() || query.contains("lost_events"),
            "{}: no sample of {query}",
            panel.title
        );
    }
    let lines = ask_prometheus(&node.namespace, "sum(flowlogd_lines_total)")?;
    ensure!(!lines.is_empty(), "no lines counted");
    let rules = stores::rules(&node.namespace)?;
    ensure!(
        rules.len() == description.alerts.len(),
        "{} alert rules of {}",
        rules.len(),
        description.alerts.len()
    );
    for (name, health, _) in &rules {
        ensure!(health == "ok", "the rule {name} is {health}");
    }
    Ok(())
}

/// The lines of the store, as a multiset, are those of the files.
fn shipped(node: &Mininode, lines: &[Value]) -> anyhow::Result<()> {
    const KEY: [&str; 9] = [
        "start_time",
        "end_time",
        "reporter",
        "action",
        "source_ip",
        "source_port",
        "dest_ip",
        "dest_port",
        "packets_out",
    ];
    let count = || -> anyhow::Result<usize> {
        let rows = ask_logs(&node.namespace, "* | stats count() as value")?;
        Ok(rows.first().and_then(|row| row["value"].as_str()?.parse().ok()).unwrap_or_default())
    };
    until("every line has arrived", || Ok(count()? >= lines.len()))?;
    let key = |line: &Value| {
        KEY.map(|name| line.get(name).map(expect::text).filter(|text| text != "null").unwrap_or_default())
    };
    let mut balance: BTreeMap<_, i64> = BTreeMap::new();
    for line in lines {
        *balance.entry(key(line)).or_default() += 1;
    }
    let fields = KEY.map(|name| format!("\"{name}\"")).join(", ");
    for row in ask_logs(&node.namespace, &format!("* | fields {fields}"))? {
        *balance.entry(key(&row)).or_default() -= 1;
    }
    if let Some((line, by)) = balance.iter().find(|(_, by)| **by != 0) {
        bail!(
            "{} lines are not in the store as often as in the files, the first by {by}: {line:?}",
            balance.values().filter(|by| **by != 0).count()
        );
    }
    Ok(())
}

/// Each panel's query gives what the lines say.
fn panels(node: &Mininode, lines: &[Value]) -> anyhow::Result<(usize, usize)> {
    let (mut asked, mut compared) = (0, 0);
    for dashboard in dashboards::read()?.flows {
        for panel in &dashboard.panels {
            let rows = ask_logs(&node.namespace, &dashboards::logsql::query(panel)?)?;
            let expected = expect::groups(panel, lines);
            asked += 1;
            let mut shown = BTreeMap::new();
            for row in &rows {
                let group: Vec<String> =
                    panel.by.iter().map(|name| row.get(name).map(expect::text).unwrap_or_default()).collect();
                let value = row["value"].as_str().and_then(|text| text.parse::<f64>().ok());
                shown.insert(group, value.filter(|value| value.is_finite()));
            }
            let name = format!("{}: {}", dashboard.id, panel.title);
            let limit = if panel.kind == Kind::Table { usize::try_from(panel.limit)? } else { usize::MAX };
            let some = expected.len();
            // A number without lines is shown as none.
            ensure!(
                shown.len() == some.min(limit) || some == 0 && panel.by.is_empty(),
                "{name}: {} rows shown, {some} expected",
                shown.len()
            );
            for (group, value) in shown {
                let due = expected.get(&group).copied();
                let equal = match (value, due) {
                    (Some(value), Some(due)) => (value - due).abs() < 0.01 * due.abs().max(1.0),
                    (value, None) => panel.by.is_empty() && value.is_none_or(|value| value == 0.0),
                    _ => false,
                };
                ensure!(equal, "{name}: {group:?} is {value:?}, the lines say {due:?}");
                compared += 1;
            }
        }
    }
    Ok((asked, compared))
}
