//! Saved objects of Kibana (7.17 and later) and OpenSearch Dashboards.
//!
//! In: the description. Out: one object a line, as their import takes it: an index pattern a log, a visualization a panel, a dashboard
//! each. They are the oldest form that both still read (aggregation-based visualizations), so that one file serves both.
//! What always holds: identifiers are stable, so that an import replaces what an older one brought.

use serde_json::{Value, json};

use super::description::{Condition, Dashboard, Description, Kind, Log, Measure, Panel, Word};
use super::logsql::regular;

const WIDTH: usize = 48;

pub fn saved_objects(description: &Description) -> anyhow::Result<String> {
    let mut objects = Vec::new();
    for (log, dashboards) in description.logs() {
        objects.push(json!({
            "type": "index-pattern", "id": log.index(),
            "attributes": {"title": format!("{}*", log.index()), "timeFieldName": "@timestamp"},
            "references": [],
        }));
        for dashboard in dashboards {
            for (number, panel) in dashboard.panels.iter().enumerate() {
                objects.push(visualization(log, &identifier(dashboard, number), panel)?);
            }
            objects.push(board(dashboard)?);
        }
    }
    let lines: Vec<String> = objects.iter().map(ToString::to_string).collect();
    Ok(lines.join("\n") + "\n")
}

fn identifier(dashboard: &Dashboard<Panel>, number: usize) -> String {
    format!("{}-{}", dashboard.id, number + 1)
}

fn visualization(log: Log, id: &str, panel: &Panel) -> anyhow::Result<Value> {
    let mut metric = json!({"id": "1", "enabled": true, "type": panel.measure.function(), "schema": "metric",
        "params": {"customLabel": label(&panel.measure, &panel.unit)}});
    if let Some(field) = panel.measure.field() {
        metric["params"]["field"] = json!(field);
    }
    let mut aggregations = vec![metric];
    if panel.kind == Kind::Timeseries {
        aggregations.push(json!({"id": "2", "enabled": true, "type": "date_histogram", "schema": "segment",
            "params": {"field": "@timestamp", "interval": "auto", "min_doc_count": 1}}));
    }
    for (number, field) in panel.by.iter().enumerate() {
        let mut terms = json!({"field": field, "size": panel.limit, "order": "desc", "orderBy": "1", "customLabel": field});
        if let (Some(like), true) = (&panel.like, number + 1 == panel.by.len()) {
            terms["include"] = json!(format!(".*{}.*", regular(like)));
        }
        let schema = if panel.kind == Kind::Timeseries { "group" } else { "bucket" };
        aggregations.push(json!({"id": (number + 3).to_string(), "enabled": true, "type": "terms", "schema": schema, "params": terms}));
    }
    let (of, parameters) = match panel.kind {
        Kind::Table => ("table", json!({"perPage": 10, "showTotal": false, "totalFunc": "sum"})),
        Kind::Timeseries => (
            "line",
            json!({
                "type": "line", "addTooltip": true, "addLegend": true, "legendPosition": "right", "times": [], "grid": {"categoryLines": false},
                "categoryAxes": [{"id": "CategoryAxis-1", "type": "category", "position": "bottom", "show": true, "scale": {"type": "linear"},
                    "labels": {"show": true, "truncate": 100}, "title": {}}],
                "valueAxes": [{"id": "ValueAxis-1", "name": "LeftAxis-1", "type": "value", "position": "left", "show": true,
                    "scale": {"type": "linear", "mode": "normal"}, "labels": {"show": true, "truncate": 100},
                    "title": {"text": label(&panel.measure, &panel.unit)}}],
                "seriesParams": [{"show": true, "type": "line", "mode": "normal", "valueAxis": "ValueAxis-1", "drawLinesBetweenPoints": true,
                    "showCircles": true, "data": {"id": "1", "label": label(&panel.measure, &panel.unit)}}],
            }),
        ),
        Kind::Stat => (
            "metric",
            json!({"type": "metric", "addTooltip": true, "addLegend": false, "metric": {"metricColorMode": "None", "colorSchema": "Green to Red",
                "colorsRange": [{"from": 0, "to": 10000}], "useRanges": false, "invertColors": false, "percentageMode": false,
                "labels": {"show": true}, "style": {"fontSize": 36, "bgColor": false, "labelColor": false, "subText": ""}}}),
        ),
    };
    let state = json!({"title": panel.title, "type": of, "params": parameters, "aggs": aggregations});
    let conditions: Vec<String> = panel.r#where.iter().map(condition).collect();
    let search = json!({
        "query": {"language": "kuery", "query": conditions.join(" and ")}, "filter": [],
        "indexRefName": "kibanaSavedObjectMeta.searchSourceJSON.index",
    });
    Ok(json!({
        "type": "visualization", "id": id,
        "attributes": {
            "title": panel.title, "description": "", "version": 1, "uiStateJSON": "{}",
            "visState": serde_json::to_string(&state)?,
            "kibanaSavedObjectMeta": {"searchSourceJSON": serde_json::to_string(&search)?},
        },
        "references": [{"type": "index-pattern", "id": log.index(), "name": "kibanaSavedObjectMeta.searchSourceJSON.index"}],
    }))
}

fn board(dashboard: &Dashboard<Panel>) -> anyhow::Result<Value> {
    let (mut panels, mut references) = (Vec::new(), Vec::new());
    for (number, place) in places(dashboard.panels.iter().map(|panel| panel.kind)).into_iter().enumerate() {
        let (name, id) = (format!("panel_{number}"), identifier(dashboard, number));
        let index = (number + 1).to_string();
        panels.push(
            json!({"version": "7.17.0", "panelIndex": index, "panelRefName": name, "embeddableConfig": {},
            "gridData": {"i": index, "x": place.0, "y": place.1, "w": place.2, "h": place.3}}),
        );
        references.push(json!({"type": "visualization", "id": id, "name": name}));
    }
    Ok(json!({
        "type": "dashboard", "id": dashboard.id,
        "attributes": {
            "title": dashboard.title, "description": dashboard.description, "version": 1, "timeRestore": true, "timeFrom": "now-1h", "timeTo": "now",
            "panelsJSON": serde_json::to_string(&panels)?,
            "optionsJSON": serde_json::to_string(&json!({"useMargins": true, "hidePanelTitles": false}))?,
            "kibanaSavedObjectMeta": {"searchSourceJSON": serde_json::to_string(&json!({"query": {"language": "kuery", "query": ""}, "filter": []}))?},
        },
        "references": references,
    }))
}

/// Where panels go on a grid: x, y, width, height. Numbers side by side, everything else by twos.
pub fn places(kinds: impl Iterator<Item = Kind>) -> Vec<(usize, usize, usize, usize)> {
    let (mut x, mut y, mut tallest) = (0, 0, 0);
    kinds
        .map(|kind| {
            let (width, height) = if kind == Kind::Stat { (WIDTH / 4, 6) } else { (WIDTH / 2, 12) };
            if x + width > WIDTH || (x > 0 && height != tallest) {
                (x, y) = (0, y + tallest);
            }
            tallest = height;
            let place = (x, y, width, height);
            x += width;
            place
        })
        .collect()
}

fn label(measure: &Measure, unit: &str) -> String {
    match (measure, unit) {
        (Measure::Count(of), _) => of.clone(),
        (measure, "") => format!("{} {}", measure.function(), measure.field().unwrap_or_default()),
        (_, unit) => unit.to_owned(),
    }
}

/// In Kibana's query language.
fn condition(condition: &Condition) -> String {
    let name = &condition.field;
    let value = |word: &Word| match word {
        Word::Text(text) => Value::from(text.as_str()).to_string(),
        other => other.text(),
    };
    match condition {
        Condition { is: Some(word), .. } => format!("{name} : {}", value(word)),
        Condition { not: Some(word), .. } => format!("not {name} : {}", value(word)),
        Condition { above: Some(number), .. } => format!("{name} > {number}"),
        Condition { exists: Some(false), .. } => format!("not {name} : *"),
        _ => format!("{name} : *"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_do_not_lie_over_each_other() {
        use Kind::*;
        let places = places([Stat, Stat, Stat, Stat, Stat, Table, Timeseries, Table].into_iter());
        for (n, a) in places.iter().enumerate() {
            assert!(a.0 + a.2 <= WIDTH);
            for b in &places[n + 1..] {
                let apart = a.0 + a.2 <= b.0 || b.0 + b.2 <= a.0 || a.1 + a.3 <= b.1 || b.1 + b.3 <= a.1;
                assert!(apart, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn references_lead_to_objects_of_the_file() {
        let text = saved_objects(&crate::dashboards::read().unwrap()).unwrap();
        let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let known: Vec<_> = objects.iter().map(|object| (&object["type"], &object["id"])).collect();
        let mut unique = known.iter().map(|(of, id)| format!("{of}{id}")).collect::<Vec<_>>();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), objects.len());
        for object in &objects {
            for reference in object["references"].as_array().unwrap() {
                assert!(known.contains(&(&reference["type"], &reference["id"])), "{reference}");
            }
        }
        let of_type = |of: &str| objects.iter().filter(|object| object["type"] == of).count();
        assert_eq!((of_type("dashboard"), of_type("index-pattern")), (5, 2));
    }
}
