//! What Prometheus knows of the agent, against the lines.
//!
//! In: the node with its Prometheus, lines of the files. Out: figures, or what differs. What always holds: counters are compared exactly, as
//! differences between two moments in which no traffic was under way; nothing here is extrapolated.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::lines::add;
use super::mininode::{Mininode, until, until_within};
use super::stores::{self, ask_prometheus};
use crate::dashboards;

/// A metric with its labels, as text.
pub type Counters = BTreeMap<String, f64>;

/// A line may be late by a window, a scrape and a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The counters that tell of lines, as Prometheus has them.
fn told(node: &Mininode) -> anyhow::Result<Counters> {
    let query = r#"{__name__=~"flowlogd_(line_packets|line_bytes|lines|policy_mismatch_lines)_total"}"#;
    let mut counters = Counters::new();
    for sample in ask_prometheus(&node.namespace, query)? {
        let of = |label: &str| sample["metric"][label].as_str().unwrap_or_default().to_owned();
        let value = sample["value"][1].as_str().and_then(|text| text.parse().ok()).context("a value")?;
        counters.insert(key(&of("__name__"), &of("action"), &of("reporter")), value);
    }
    Ok(counters)
}

fn key(name: &str, action: &str, reporter: &str) -> String {
    format!("{name} {action} {reporter}").trim_end().to_owned()
}

/// The same, computed from lines.
#[expect(clippy::cast_precision_loss, reason = "counts of a test are far below 2^53")]
fn computed(lines: &[Value]) -> Counters {
    let mut counters = Counters::new();
    for line in lines {
        let of = |name: &str| line[name].as_str().unwrap_or_default();
        let (action, reporter) = (of("action"), of("reporter"));
        let (packets, bytes) = add(add((0, 0), line, "in"), line, "out");
        let is_mismatch = u64::from(line["policy_mismatch"] == true);
        for (key, value) in [
            (key("flowlogd_lines_total", action, ""), 1),
            (key("flowlogd_line_packets_total", action, reporter), packets),
            (key("flowlogd_line_bytes_total", action, reporter), bytes),
            (key("flowlogd_policy_mismatch_lines_total", "", ""), is_mismatch),
        ] {
            *counters.entry(key).or_default() += value as f64;
        }
    }
    counters
}

/// What is in `after` and was not in `before`.
fn beyond(after: &Counters, before: &Counters) -> Counters {
    let difference = |(key, value): (&String, &f64)| {
        let grown = value - before.get(key).copied().unwrap_or_default();
        (grown != 0.0).then(|| (key.clone(), grown))
    };
    after.iter().filter_map(difference).collect()
}

/// A moment without traffic: counters and lines that belong together.
pub struct Moment {
    told: Counters,
    computed: Counters,
}

impl Moment {
    /// Waits until what was under way is written and scraped.
    pub fn quiet(
        node: &Mininode,
        read: &dyn Fn() -> anyhow::Result<Vec<Value>>,
    ) -> anyhow::Result<(Self, Vec<Value>)> {
        let windows = || stores::number(&node.namespace, "sum(flowlogd_flushes_total)");
        let begun = windows()?.unwrap_or_default();
        // The window that was open, and one more in which nothing was.
        until("two windows have closed", || Ok(windows()?.is_some_and(|now| now >= begun + 2.0)))?;
        let lines = read()?;
        Ok((Self { told: told(node)?, computed: computed(&lines) }, lines))
    }

    /// Since then, Prometheus' counters have grown by what the lines say.
    pub fn equal(
        &self,
        node: &Mininode,
        read: &dyn Fn() -> anyhow::Result<Vec<Value>>,
    ) -> anyhow::Result<String> {
        let mut last = (Counters::new(), Counters::new());
        let is_equal = until_within(PATIENCE, "counters equal the lines", || {
            last = (beyond(&told(node)?, &self.told), beyond(&computed(&read()?), &self.computed));
            Ok(!last.1.is_empty() && last.0 == last.1)
        });
        if is_equal.is_err() {
            bail!("Prometheus says {:?}, the lines {:?}", last.0, last.1);
        }
        let shown: Vec<String> = last.0.iter().map(|(key, value)| format!("{key} {value}")).collect();
        Ok(shown.join(", ").replace("flowlogd_", ""))
    }
}

/// Prometheus has scraped the agent, and knows an answer to every query of the agents' dashboard; every rule is well.
pub fn health(node: &Mininode) -> anyhow::Result<String> {
    let description = dashboards::read()?;
    until("Prometheus has scraped the agent", || {
        Ok(stores::number(&node.namespace, "rate(flowlogd_flushes_total[10s])").unwrap_or_default()
            > Some(0.0))
    })?;
    let mut samples = 0;
    for panel in &description.health.panels {
        let query = panel.query.replace("$__rate_interval", "1m");
        let answer = ask_prometheus(&node.namespace, &query)?;
        // A stage has no series before its first loss.
        ensure!(!answer.is_empty() || query.contains("lost_events"), "{}: no sample of {query}", panel.title);
        samples += answer.len();
    }
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
    Ok(format!(
        "{} queries answered with {samples} samples; {} rules evaluated",
        description.health.panels.len(),
        rules.len()
    ))
}

/// Alerts that wait or fire, with their state.
pub fn alerts(node: &Mininode) -> anyhow::Result<BTreeMap<String, String>> {
    let rules = stores::rules(&node.namespace)?;
    Ok(rules
        .into_iter()
        .filter(|(_, _, state)| state != "inactive")
        .map(|(name, _, state)| (name, state))
        .collect())
}
