//! Whether the description speaks of what there is.
//!
//! In: the description. Out: nothing, or the first name that is not one of the line's schema or of the list of metrics, or is used for
//! what its type does not admit.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail, ensure};
use flowlogd::telemetry::{Metrics, ProcessMetrics};
use serde_json::Value;

use super::description::{Condition, Description, Kind, Panel, Word};

/// Labels that Prometheus and the chart's monitors add, and `le` of histograms.
const ADDED_LABELS: [&str; 4] = ["node", "instance", "job", "le"];
/// What is part of the query language, as far as the description uses it.
const LANGUAGE: [&str; 20] = [
    "sum",
    "max",
    "min",
    "avg",
    "count",
    "by",
    "rate",
    "increase",
    "histogram_quantile",
    "time",
    "up",
    "offset",
    "and",
    "or",
    "unless",
    "on",
    "__rate_interval",
    "m",
    "h",
    "s",
];

pub fn check(description: &Description) -> anyhow::Result<()> {
    for (log, dashboards) in description.logs() {
        let schema = log.schema();
        for dashboard in dashboards {
            for panel in &dashboard.panels {
                panel_of_log(&schema, panel).with_context(|| format!("{}: {}", dashboard.id, panel.title))?;
            }
        }
    }
    for panel in &description.health.panels {
        query(&panel.query).with_context(|| format!("{}: {}", description.health.id, panel.title))?;
    }
    for alert in &description.alerts {
        query(&alert.expr).with_context(|| alert.alert.clone())?;
    }
    Ok(())
}

/// The schema of a field of the line.
pub fn field<'s>(schema: &'s Value, name: &str) -> anyhow::Result<&'s Value> {
    let pointer = format!("/properties/{}", name.replace('.', "/properties/"));
    schema.pointer(&pointer).with_context(|| format!("the line has no field {name}"))
}

/// Whether a field is of the type, maybe null.
pub fn is_of(schema: &Value, of: &str) -> bool {
    let is = |value: &Value| value == of;
    is(&schema["type"])
        || ["type", "anyOf", "oneOf"].iter().any(|key| {
            schema[key].as_array().is_some_and(|all| all.iter().any(|one| is(one) || is(&one["type"])))
        })
}

fn panel_of_log(schema: &Value, panel: &Panel) -> anyhow::Result<()> {
    if let Some(name) = panel.measure.field() {
        ensure!(is_of(field(schema, name)?, "integer"), "{name} is no number");
    }
    for name in &panel.by {
        field(schema, name)?;
    }
    ensure!(
        (panel.kind == Kind::Table || panel.by.len() < 2)
            && (panel.kind != Kind::Stat || panel.by.is_empty()),
        "only tables have several columns, and a stat has none"
    );
    ensure!(panel.by.is_empty() == (panel.limit == 0), "`limit` and `by` go together");
    ensure!(panel.like.is_none() || !panel.by.is_empty(), "`like` needs `by`");
    for Condition { field: name, is, not, above, exists } in &panel.r#where {
        let of = field(schema, name)?;
        let said = [is.is_some(), not.is_some(), above.is_some(), exists.is_some()];
        ensure!(
            said.iter().filter(|said| **said).count() == 1,
            "a condition on {name} that says not one thing"
        );
        if above.is_some() {
            ensure!(is_of(of, "integer"), "{name} is no number");
        }
        for word in is.iter().chain(not) {
            let fits = match word {
                Word::Boolean(_) => is_of(of, "boolean"),
                Word::Number(_) => is_of(of, "integer"),
                Word::Text(text) => is_word_of(of, text),
            };
            ensure!(fits, "{name} is never {}", word.text());
        }
    }
    Ok(())
}

/// A field with a list of words has no others.
fn is_word_of(schema: &Value, text: &str) -> bool {
    let listed = |key: &str| schema[key].as_array();
    if let Some(words) = listed("enum") {
        return words.iter().any(|word| word == text);
    }
    if let Some(words) = listed("oneOf").filter(|words| words.iter().all(|word| word.get("const").is_some()))
    {
        return words.iter().any(|word| word["const"] == text);
    }
    is_of(schema, "string")
}

/// Every name of a PromQL expression is a metric, one of its labels, or of the language.
fn query(expression: &str) -> anyhow::Result<()> {
    let described: Vec<_> = Metrics::DESCRIPTIONS.iter().chain(ProcessMetrics::DESCRIPTIONS).collect();
    let mut labels: BTreeSet<&str> = ADDED_LABELS.into();
    let mut metrics = 0;
    let names = || names(expression);
    for name in names() {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        for metric in &described {
            let histogram = metric.kind.name() == "histogram";
            if metric.name == name && !histogram || histogram && base == Some(metric.name) {
                labels.extend(metric.labels);
                metrics += 1;
            }
        }
    }
    for name in names() {
        let is_metric = name.starts_with("flowlogd_") || name.starts_with("process_");
        let known = described.iter().any(|metric| {
            metric.name == name
                || ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|suffix| name.strip_suffix(suffix) == Some(metric.name))
        });
        if is_metric && !known {
            bail!("the agent has no metric {name}");
        }
        ensure!(
            is_metric || labels.contains(name.as_str()) || LANGUAGE.contains(&name.as_str()),
            "neither a label of these metrics nor of the language: {name}"
        );
    }
    ensure!(metrics > 0 || expression.contains("up{"), "no metric in {expression}");
    Ok(())
}

/// Names outside of quotes.
fn names(expression: &str) -> Vec<String> {
    let unquoted: String = expression.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    unquoted
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
        .map(|word| word.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(text: &str) -> anyhow::Result<()> {
        let panel: Panel = serde_saphyr::from_str(text).unwrap();
        panel_of_log(&flowlogd::wire::schema::schema(), &panel)
    }

    #[test]
    fn fields_that_the_line_does_not_have_are_refused() {
        assert!(panel("{title: x, kind: stat, measure: {sum: bytes_in}}").is_ok());
        for wrong in [
            "{title: x, kind: stat, measure: {sum: bytes}}",
            "{title: x, kind: stat, measure: {sum: source_name}}",
            "{title: x, kind: table, measure: {count: lines}, by: [policies.enforced], limit: 5}",
            "{title: x, kind: stat, measure: {count: lines}, where: [{field: action, is: denied}]}",
            "{title: x, kind: stat, measure: {count: lines}, where: [{field: dest_type, is: pod}]}",
            "{title: x, kind: stat, measure: {count: lines}, where: [{field: dest_port, is: http}]}",
            "{title: x, kind: stat, measure: {count: lines}, where: [{field: action, above: 1}]}",
            "{title: x, kind: timeseries, measure: {count: lines}, by: [proto, action], limit: 5}",
        ] {
            assert!(panel(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn metrics_and_labels_that_the_agent_does_not_have_are_refused() {
        assert!(query("sum by (stage) (rate(flowlogd_lost_events_total[5m])) > 0").is_ok());
        for wrong in [
            "rate(flowlogd_lost_total[5m])",
            "sum by (reason) (rate(flowlogd_lost_events_total[5m]))",
            "median(flowlogd_connections_open)",
            "vector(1)",
        ] {
            assert!(query(wrong).is_err(), "{wrong}");
        }
    }
}
