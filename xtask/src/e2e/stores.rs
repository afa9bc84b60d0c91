//! What takes lines and metrics: rsyslog into VictoriaLogs, Prometheus.
//!
//! In: the node, the folder of the log. Out: both run in the node's network; queries and their answers. What always holds: rsyslog runs the
//! very file of `deploy/shippers`, but for the folder, the store's address and what that store wants to be told.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::agent::METRICS_PORT;
use super::mininode::{Mininode, until};
use crate::dashboards::description::Log;
use crate::netns::{Namespace, Process};
use crate::workspace::root;

const LOGS: &str = "http://127.0.0.1:9428";
const PROMETHEUS: &str = "http://127.0.0.1:9090";
/// rsyslog's work directory.
pub const SPOOL: &str = "spool";
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Stores<'n> {
    node: &'n Mininode,
    // In the order in which they end.
    rsyslog: Option<Process>,
    _prometheus: Process,
    _logs: Process,
}

impl<'n> Stores<'n> {
    pub fn start(node: &'n Mininode, assets: &Path, logs: &Path) -> anyhow::Result<Self> {
        let at = |name: &str| node.at(name).display().to_string();
        let store = start(
            node,
            "victoria-logs",
            &assets.join("victoria-logs"),
            &[format!("-storageDataPath={}", at("vl")), "-httpListenAddr=127.0.0.1:9428".to_owned()],
        )?;
        until("VictoriaLogs answers", || Ok(get(&node.namespace, &format!("{LOGS}/health"), &[]).is_ok()))?;

        let rules = root().join("deploy/dashboards/alerts.yaml");
        fs::write(
            node.at("prometheus.yml"),
            format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [\"{}\"]\n\
                 scrape_configs: [{{job_name: flowlogd, static_configs: [{{targets: [\"10.99.0.1:{METRICS_PORT}\"], labels: {{node: n1}}}}]}}]\n",
                rules.display()
            ),
        )?;
        let prometheus = start(
            node,
            "prometheus",
            Path::new("/usr/bin/prometheus"),
            &[
                format!("--config.file={}", at("prometheus.yml")),
                format!("--storage.tsdb.path={}", at("tsdb")),
                "--web.listen-address=127.0.0.1:9090".to_owned(),
            ],
        )?;

        let file = fs::read_to_string(root().join("deploy/shippers/rsyslog.conf"))?;
        let changed = file
            .replace("/var/log/calico/flowlogs", &logs.join("flowlogs").display().to_string())
            .replace("http://127.0.0.1:9200", &format!("{LOGS}/insert/elasticsearch"))
            .replace("timeout=\"1m\"\n", "timeout=\"1m&_time_field=@timestamp&_stream_fields=host\"\n");
        ensure!(
            changed.contains(&format!(" server=\"{LOGS}/insert/elasticsearch\"\n"))
                && changed.contains(" timeout=\"1m&_time_field"),
            "deploy/shippers/rsyslog.conf is not as expected"
        );
        fs::write(
            node.at("rsyslog.conf"),
            format!("global(workDirectory=\"{}\")\n{changed}", node.at(SPOOL).display()),
        )?;
        let mut stores = Self { node, rsyslog: None, _prometheus: prometheus, _logs: store };
        stores.ship()?;
        Ok(stores)
    }

    /// Starts the shipper.
    pub fn ship(&mut self) -> anyhow::Result<()> {
        let at = |name: &str| self.node.at(name).display().to_string();
        let arguments =
            ["-n".to_owned(), format!("-f{}", at("rsyslog.conf")), format!("-i{}", at("rsyslog.pid"))];
        self.rsyslog = Some(start(self.node, "rsyslog", Path::new("/usr/sbin/rsyslogd"), &arguments)?);
        Ok(())
    }

    /// Ends the shipper as an upgrade of its package would: its positions are in its work directory.
    pub fn stop_shipper(&mut self) -> anyhow::Result<()> {
        let mut rsyslog = self.rsyslog.take().context("rsyslog is not there")?;
        ensure!(rsyslog.is_running(), "rsyslog has ended by itself");
        rsyslog.stop(Signal::TERM, PATIENCE).map(drop)
    }
}

fn start(node: &Mininode, name: &str, program: &Path, arguments: &[String]) -> anyhow::Result<Process> {
    let out = File::options().create(true).append(true).open(node.at(&format!("{name}.log")))?;
    let arguments: Vec<&std::ffi::OsStr> = arguments.iter().map(AsRef::as_ref).collect();
    node.namespace.start(program.as_os_str(), &arguments, out.try_clone()?, out)
}

/// What is answered, with a status that is good.
pub fn get(namespace: &Namespace, url: &str, form: &[(&str, &str)]) -> anyhow::Result<String> {
    curl(namespace, url, &[], form, None)
}

fn curl(
    namespace: &Namespace,
    url: &str,
    more: &[&str],
    form: &[(&str, &str)],
    input: Option<&str>,
) -> anyhow::Result<String> {
    let form: Vec<String> = form.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut arguments = vec!["-sSf", "--max-time", "20", url];
    arguments.extend(more);
    for field in &form {
        arguments.extend(["--data-urlencode", field]);
    }
    namespace.run("curl", &arguments, input)
}

/// Asks the tenant that has the log: the DNS log's lines are kept apart from those of flows, as `deploy/shippers` says.
fn select(namespace: &Namespace, log: Log, what: &str, form: &[(&str, &str)]) -> anyhow::Result<String> {
    let query = form.iter().find(|(name, _)| *name == "query").map_or("", |(_, query)| query);
    curl(namespace, &format!("{LOGS}/select/logsql/{what}"), &["-H", tenant(log)], form, None)
        .with_context(|| format!("VictoriaLogs: {query}"))
}

fn tenant(log: Log) -> &'static str {
    match log {
        Log::Flows => "AccountID: 0",
        Log::Dns => "AccountID: 1",
    }
}

/// Puts lines into the DNS log's tenant.
pub fn insert_dns(namespace: &Namespace, lines: &[Value]) -> anyhow::Result<()> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let url = format!("{LOGS}/insert/jsonline?_time_field=end_time&_stream_fields=type");
    let more = ["-H", tenant(Log::Dns), "-H", "Content-Type: application/stream+json", "--data-binary", "@-"];
    curl(namespace, &url, &more, &[], Some(&text)).map(drop)
}

/// Since ever, until long after now.
const ALWAYS: [(&str, &str); 2] = [("start", "2020-01-01T00:00:00Z"), ("end", "2100-01-01T00:00:00Z")];

/// Rows of the answer to a query in LogsQL, over all time.
pub fn ask_logs(namespace: &Namespace, log: Log, query: &str) -> anyhow::Result<Vec<Value>> {
    let [start, end] = ALWAYS;
    let answer = select(namespace, log, "query", &[("query", query), start, end])?;
    answer.lines().map(|line| serde_json::from_str(line).context("VictoriaLogs' JSON")).collect()
}

/// Labels and value of each group of the answer, as Grafana's data source asks for a number or a table.
pub fn ask_stats(namespace: &Namespace, log: Log, query: &str) -> anyhow::Result<Vec<(Value, String)>> {
    let [start, end] = ALWAYS;
    let answer = select(namespace, log, "stats_query", &[("query", query), start, end])?;
    let answer: Value = serde_json::from_str(&answer)?;
    let result = answer["data"]["result"].as_array().context("VictoriaLogs answers without a result")?;
    Ok(result
        .iter()
        .map(|group| (group["metric"].clone(), group["value"][1].as_str().unwrap_or_default().to_owned()))
        .collect())
}

/// Labels, second and value of each point of the answer, as Grafana's data source asks for a graph.
pub fn ask_graph(
    namespace: &Namespace,
    log: Log,
    query: &str,
    (from, to): (i64, i64),
    step: i64,
) -> anyhow::Result<Vec<(Value, i64, String)>> {
    let (from, to, step) = (from.to_string(), to.to_string(), format!("{step}s"));
    let form = [("query", query), ("start", &from), ("end", &to), ("step", &step)];
    let answer = select(namespace, log, "stats_query_range", &form)?;
    let answer: Value = serde_json::from_str(&answer)?;
    let result = answer["data"]["result"].as_array().context("VictoriaLogs answers without a result")?;
    let mut points = Vec::new();
    for group in result {
        for point in group["values"].as_array().into_iter().flatten() {
            let at = point[0].as_i64().context("a point without a time")?;
            points.push((group["metric"].clone(), at, point[1].as_str().unwrap_or_default().to_owned()));
        }
    }
    Ok(points)
}

/// The samples of the answer to a query in PromQL, now.
pub fn ask_prometheus(namespace: &Namespace, query: &str) -> anyhow::Result<Vec<Value>> {
    let answer = get(namespace, &format!("{PROMETHEUS}/api/v1/query"), &[("query", query)])
        .with_context(|| format!("Prometheus: {query}"))?;
    let answer: Value = serde_json::from_str(&answer)?;
    answer["data"]["result"]
        .as_array()
        .cloned()
        .with_context(|| format!("Prometheus does not answer {query}: {answer}"))
}

/// The sum of the answer's samples; nothing where there is none.
pub fn number(namespace: &Namespace, query: &str) -> anyhow::Result<Option<f64>> {
    let samples = ask_prometheus(namespace, query)?;
    let values = samples.iter().filter_map(|sample| sample["value"][1].as_str()?.parse::<f64>().ok());
    Ok(values.reduce(|sum, value| sum + value))
}

/// Name, health and state of each alert rule.
pub fn rules(namespace: &Namespace) -> anyhow::Result<Vec<(String, String, String)>> {
    let answer: Value = serde_json::from_str(&get(namespace, &format!("{PROMETHEUS}/api/v1/rules"), &[])?)?;
    let of = |rule: &Value, name: &str| rule[name].as_str().unwrap_or_default().to_owned();
    let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
    Ok(groups
        .iter()
        .flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default())
        .map(|rule| (of(&rule, "name"), of(&rule, "health"), of(&rule, "state")))
        .collect())
}
