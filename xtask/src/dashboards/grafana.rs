//! Dashboards of Grafana (10 and later): agents from Prometheus, flows from VictoriaLogs.
//!
//! In: the description. Out: a name and the dashboard's JSON, each with a variable for its data source. What always holds:
//! identifiers are stable, so that a newer dashboard replaces the older.

use serde_json::{Value, json};

use super::description::{Description, Kind};
use super::kibana::places;
use super::logsql;

const LOGS: &str = "victoriametrics-logs-datasource";

pub fn dashboards(description: &Description) -> anyhow::Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    let logs = description.logs();
    for (log, dashboard) in logs.iter().flat_map(|(log, all)| all.iter().map(move |one| (*log, one))) {
        let places = places(dashboard.panels.iter().map(|panel| panel.kind));
        let mut panels = Vec::new();
        for (number, (panel, place)) in dashboard.panels.iter().zip(places).enumerate() {
            let target = json!({
                "refId": "A", "datasource": source(LOGS), "expr": logsql::query(log, panel)?,
                "queryType": if panel.kind == Kind::Timeseries { "statsRange" } else { "stats" },
                "legendFormat": panel.by.last().map(|name| format!("{{{{{name}}}}}")).unwrap_or_default(),
            });
            panels.push(graph(number, &panel.title, panel.kind, &panel.unit, place, LOGS, target));
        }
        all.push(finished(&dashboard.id, &dashboard.title, &dashboard.description, LOGS, panels)?);
    }
    let health = &description.health;
    let places = places(health.panels.iter().map(|panel| panel.kind));
    let mut panels = Vec::new();
    for (number, (panel, place)) in health.panels.iter().zip(places).enumerate() {
        let target = json!({
            "refId": "A", "datasource": source("prometheus"), "expr": panel.query, "legendFormat": panel.legend,
            "range": panel.kind == Kind::Timeseries, "instant": panel.kind != Kind::Timeseries,
            "format": if panel.kind == Kind::Table { "table" } else { "time_series" },
        });
        panels.push(graph(number, &panel.title, panel.kind, &panel.unit, place, "prometheus", target));
    }
    all.push(finished(&health.id, &health.title, &health.description, "prometheus", panels)?);
    Ok(all)
}

fn source(of: &str) -> Value {
    json!({"type": of, "uid": "${source}"})
}

fn graph(
    number: usize,
    title: &str,
    kind: Kind,
    unit: &str,
    (x, y, width, height): (usize, usize, usize, usize),
    of: &str,
    target: Value,
) -> Value {
    let unit = match unit {
        "bytes" => "bytes",
        "s" => "s",
        "µs" => "µs",
        "ns" => "ns",
        // Of one.
        "percentunit" => "percentunit",
        _ => "short",
    };
    let of_panel = match kind {
        Kind::Table => "table",
        Kind::Timeseries => "timeseries",
        Kind::Stat => "stat",
    };
    // Kibana's grid has 48 columns, Grafana's 24.
    json!({
        "id": number + 1, "title": title, "type": of_panel, "datasource": source(of),
        "gridPos": {"x": x / 2, "y": y / 2 + y / 6, "w": width / 2, "h": height / 2 + height / 6},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "options": if kind == Kind::Stat { json!({"reduceOptions": {"calcs": ["lastNotNull"]}}) } else { json!({}) },
        "targets": [target],
    })
}

fn finished(
    id: &str,
    title: &str,
    description: &str,
    of: &str,
    panels: Vec<Value>,
) -> anyhow::Result<(String, String)> {
    let dashboard = json!({
        "uid": id, "title": title, "description": description, "tags": ["flowlogd"], "schemaVersion": 39, "version": 1, "editable": true,
        "time": {"from": "now-1h", "to": "now"}, "refresh": "30s",
        "templating": {"list": [{"name": "source", "label": "Source", "type": "datasource", "query": of}]},
        "annotations": {"list": []}, "panels": panels,
    });
    let name = id.strip_prefix("flowlogd-").unwrap_or(id).to_owned();
    Ok((name, serde_json::to_string_pretty(&dashboard)? + "\n"))
}
