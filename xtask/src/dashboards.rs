//! Dashboards and alert rules, made from one description.
//!
//! In: `deploy/dashboards/description.yaml`, the line's schema, the list of metrics. Out: saved objects of Kibana and OpenSearch
//! Dashboards, dashboards of Grafana, rules of Prometheus, in `deploy/dashboards/`, which is also the chart's folder `files`. What always holds:
//! every field is one of the line, of a type that its use admits; every metric and label is one that the agent has.
//! Not here: how each product wants it (one file each).

mod check;
pub mod description;
mod grafana;
mod kibana;
pub mod logsql;
mod rules;

use std::fs;

use anyhow::Context as _;

use description::Description;

use crate::workspace::root;

const FOLDER: &str = "deploy/dashboards";

/// The description, checked.
pub fn read() -> anyhow::Result<Description> {
    let path = root().join(FOLDER).join("description.yaml");
    let text = fs::read_to_string(&path).context("cannot read deploy/dashboards/description.yaml")?;
    let description: Description =
        serde_saphyr::from_str(&text).context("deploy/dashboards/description.yaml")?;
    check::check(&description)?;
    Ok(description)
}

/// Every generated file, with its content.
pub fn files() -> anyhow::Result<Vec<(String, String)>> {
    let description = read()?;
    let mut files = vec![
        (format!("{FOLDER}/kibana.ndjson"), kibana::saved_objects(&description)?),
        (format!("{FOLDER}/alerts.yaml"), rules::rules(&description)?),
    ];
    for (name, dashboard) in grafana::dashboards(&description)? {
        files.push((format!("{FOLDER}/grafana-{name}.json"), dashboard));
    }
    Ok(files)
}
