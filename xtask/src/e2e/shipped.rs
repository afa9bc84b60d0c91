//! What is in the store, against the lines of the files.
//!
//! In: the node with its store, the lines. Out: figures, or what differs. What always holds: a line is compared in every field, and its time
//! in the store with its `end_time`; panels are compared with what `expect.rs` computes from the lines, graphs point by point.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value};

use super::expect;
use super::mininode::{Mininode, until};
use super::stores::{ask_graph, ask_logs, ask_stats, insert_dns};
use crate::dashboards::{
    self,
    description::{Kind, Log},
};
use crate::workspace::root;

/// Panels for which this day has no lines: nothing is lost on a quiet node, there are no staged policies.
const EMPTY: [&str; 3] =
    ["Retransmissions by destination", "Most retransmissions", "Staged policies that would deny"];
/// Seconds between two points of a graph.
const STEP: i64 = 10;

/// Waits until so many lines are in the store.
pub fn arrived(node: &Mininode, log: Log, lines: usize) -> anyhow::Result<()> {
    let mut there = 0;
    let all = until("every line has arrived", || {
        there = stored(node, log)?;
        Ok(there >= lines)
    });
    all.with_context(|| format!("{there} of {lines} lines are in the store"))
}

/// Lines in the store.
pub fn stored(node: &Mininode, log: Log) -> anyhow::Result<usize> {
    let rows = ask_logs(&node.namespace, log, "* | stats count() as value")?;
    Ok(rows.first().and_then(|row| row["value"].as_str()?.parse().ok()).unwrap_or_default())
}

/// The lines of the store, as a multiset, are those of the files.
pub fn all(node: &Mininode, lines: &[Value]) -> anyhow::Result<String> {
    arrived(node, Log::Flows, lines.len())?;
    let mut balance: BTreeMap<_, i64> = BTreeMap::new();
    for line in lines {
        *balance.entry(as_stored(line)).or_default() += 1;
    }
    let rows = ask_logs(&node.namespace, Log::Flows, "*")?;
    for row in &rows {
        *balance.entry(of_row(row)?).or_default() -= 1;
    }
    let differing: Vec<_> = balance.iter().filter(|(_, by)| **by != 0).collect();
    if let Some((line, by)) = differing.first() {
        bail!("{} lines differ between files and store, the first by {by}: {line:?}", differing.len());
    }
    let times: std::collections::BTreeSet<_> = rows.iter().map(|row| row["_time"].to_string()).collect();
    Ok(format!(
        "{} lines in the files, {} in the store, equal in every field; {} distinct times, each its end_time",
        lines.len(),
        rows.len(),
        times.len()
    ))
}

/// A line as VictoriaLogs keeps it: text, without what is nothing, and what is nested by its path.
fn as_stored(line: &Value) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    if let Some(object) = line.as_object() {
        flatten("", object, &mut fields);
    }
    fields.insert("_time".to_owned(), expect::text(&line["end_time"]));
    fields
}

fn flatten(above: &str, object: &Map<String, Value>, fields: &mut BTreeMap<String, String>) {
    for (name, value) in object {
        let name = format!("{above}{name}");
        match value {
            Value::Object(below) => flatten(&format!("{name}."), below, fields),
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            other => {
                fields.insert(name, expect::text(other));
            }
        }
    }
}

fn of_row(row: &Value) -> anyhow::Result<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    for (name, value) in row.as_object().context("a row that is no object")? {
        let text = expect::text(value);
        match name.as_str() {
            "_msg" | "_stream" | "_stream_id" => {}
            "_time" => {
                let at: jiff::Timestamp = text.parse().with_context(|| format!("the time {text}"))?;
                ensure!(at.subsec_nanosecond() == 0, "a time between two seconds: {text}");
                fields.insert(name.clone(), at.as_second().to_string());
            }
            _ => {
                fields.insert(name.clone(), text);
            }
        }
    }
    Ok(fields)
}

/// Lines of the DNS log into the store: those of the scenarios, which have all kinds of answers, as if they were written today.
pub fn dns(node: &Mininode) -> anyhow::Result<Vec<Value>> {
    let mut lines = Vec::new();
    let groups = root().join("tests/scenarios");
    for group in fs::read_dir(&groups).with_context(|| format!("{}", groups.display()))? {
        for case in fs::read_dir(group?.path())? {
            let path = case?.path().join("expected-dns.jsonl");
            if path.exists() {
                let text = fs::read_to_string(path)?;
                for line in text.lines() {
                    lines.push(serde_json::from_str::<Value>(line)?);
                }
            }
        }
    }
    let last = lines.iter().filter_map(end).max().context("no scenario has lines of the DNS log")?;
    let later = jiff::Timestamp::now().as_second() - last;
    for line in &mut lines {
        for name in ["start_time", "end_time"] {
            let at: jiff::Timestamp = line[name].as_str().context("a line without times")?.parse()?;
            let at = at.checked_add(jiff::SignedDuration::from_secs(later))?;
            line[name] = at.to_string().into();
        }
    }
    insert_dns(&node.namespace, &lines)?;
    arrived(node, Log::Dns, lines.len())?;
    Ok(lines)
}

/// Whole seconds since 1970, of either log.
fn end(line: &Value) -> Option<i64> {
    match &line["end_time"] {
        Value::String(text) => text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second),
        seconds => seconds.as_i64(),
    }
}

/// Each panel's query gives what the lines say; that store may take a moment until each of its queries sees all that it has.
pub fn panels(node: &Mininode, log: Log, lines: &[Value]) -> anyhow::Result<String> {
    let mut compared = compare(node, log, lines);
    let _ = until("the panels show what the lines say", || {
        if compared.is_err() {
            compared = compare(node, log, lines);
        }
        Ok(compared.is_ok())
    });
    compared
}

fn compare(node: &Mininode, log: Log, lines: &[Value]) -> anyhow::Result<String> {
    let (mut asked, mut compared, mut empty) = (0, 0, Vec::new());
    let ends = || lines.iter().filter_map(end);
    let range = (ends().min().context("no lines")?, ends().max().context("no lines")? + 1);
    let description = dashboards::read()?;
    for dashboard in description.logs().into_iter().filter(|(of, _)| *of == log).flat_map(|(_, all)| all) {
        for panel in &dashboard.panels {
            let name = format!("{}: {}", dashboard.id, panel.title);
            let query = dashboards::logsql::query(log, panel)?;
            let group = |labels: &Value| -> Vec<String> {
                panel.by.iter().map(|name| labels.get(name).map(expect::text).unwrap_or_default()).collect()
            };
            // Of a graph, the time is part of the group.
            let (mut shown, mut due) = (BTreeMap::new(), BTreeMap::new());
            if panel.kind == Kind::Timeseries {
                for (labels, at, value) in ask_graph(&node.namespace, log, &query, range, STEP)? {
                    shown.insert((at, group(&labels)), number(&value));
                }
                let mut buckets: BTreeMap<i64, Vec<Value>> = BTreeMap::new();
                for line in lines {
                    let end = end(line).context("a line without end_time")?;
                    buckets.entry(end - end.rem_euclid(STEP)).or_default().push(line.clone());
                }
                for (at, lines) in buckets {
                    due.extend(
                        expect::groups(panel, &lines).into_iter().map(|(group, value)| ((at, group), value)),
                    );
                }
            } else {
                for (labels, value) in ask_stats(&node.namespace, log, &query)? {
                    shown.insert((0, group(&labels)), number(&value));
                }
                due.extend(
                    expect::groups(panel, lines).into_iter().map(|(group, value)| ((0, group), value)),
                );
            }
            asked += 1;
            if due.is_empty() {
                ensure!(EMPTY.contains(&panel.title.as_str()), "{name}: no line for it, nothing is compared");
                empty.push(panel.title.clone());
            }
            let limit = if panel.kind == Kind::Table { usize::try_from(panel.limit)? } else { usize::MAX };
            // A number without lines is shown as none.
            ensure!(
                shown.len() == due.len().min(limit) || due.is_empty() && panel.by.is_empty(),
                "{name}: {query} (range {range:?}): {} values shown, {} expected; shown only {:?}, expected only {:?}",
                shown.len(),
                due.len(),
                shown.iter().find(|(group, _)| !due.contains_key(*group)),
                due.iter().find(|(group, _)| !shown.contains_key(*group)),
            );
            for (group, value) in shown {
                let due = due.get(&group).copied();
                let equal = match (value, due) {
                    (Some(value), Some(due)) => (value - due).abs() < 1e-9 * due.abs().max(1.0),
                    (value, None) => panel.by.is_empty() && value.is_none_or(|value| value == 0.0),
                    _ => false,
                };
                ensure!(equal, "{name}: {group:?} is {value:?}, the lines say {due:?}");
                compared += 1;
            }
        }
    }
    Ok(format!(
        "{asked} queries, {compared} values equal to those of the lines; without any line: {}",
        if empty.is_empty() { "none".to_owned() } else { empty.join(", ") }
    ))
}

fn number(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_and_its_row_are_the_same() {
        let line = json!({"end_time": 1_700_000_000, "a": null, "p": {"e": ["x"]}, "b": true, "s": ""});
        let row = json!({"_time": "2023-11-14T22:13:20Z", "_msg": "none", "_stream": "{}", "end_time": "1700000000", "p.e": "[\"x\"]", "b": "true"});
        assert_eq!(as_stored(&line), of_row(&row).unwrap());
        let late =
            json!({"_time": "2023-11-14T22:13:21Z", "end_time": "1700000000", "p.e": "[\"x\"]", "b": "true"});
        assert_ne!(as_stored(&line), of_row(&late).unwrap());
    }
}
