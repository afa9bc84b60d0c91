//! `flowlogd config`: every configuration value and the layer that set it.
//!
//! In: the layers of file, environment and flags, to which those of the cluster are added (manifests, or what the API
//! server has now). Out: a table on stdout, or with `--json` one JSON array; 69 if the API server does not answer.
//! Not here: where values come from (`crate::config`).

use std::io::Write;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use tracing::warn;

use crate::config::{Layers, Resolved, show_plain};
use crate::watch::{self, ConnectError};

use super::{Exit, Failure, Global};

/// Show every configuration value and which layer set it.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub fn run(global: &Global, mut layers: Layers, args: &ConfigArgs) -> anyhow::Result<u8> {
    let exit = add_cluster(global, &mut layers)?;
    let (resolved, bad) = layers.resolve();
    for bad in bad {
        warn!(layer = bad.layer.name(), "{bad}: the lower layers' value holds");
    }
    let text = if args.json { json_text(&resolved)? } else { table(&resolved) };
    super::print(text.as_bytes())?;
    Ok(exit.code())
}

/// The layers of manifests, or of the API server where there is one. If it does not answer, what is known holds still,
/// and the exit code says that it is not all.
pub(super) fn add_cluster(global: &Global, layers: &mut Layers) -> anyhow::Result<Exit> {
    let resources = if !global.cluster.is_empty() {
        let manifests = watch::load(&global.cluster, true)
            .map_err(|error| Failure::new(super::exit::of_manifests(&error), error))?;
        manifests.configuration
    } else if let Some(server) = watch::locate(global.kubeconfig.as_deref()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime that asks the API server")?;
        let asked = runtime.block_on(async {
            let client = watch::connect(&server).await?;
            Ok::<_, ConnectError>(watch::configuration(&client, &global.node_name()).await)
        });
        match asked.map_err(|error| Failure::new(super::exit::of_server(&error), error))? {
            Ok(resources) => resources,
            Err(error) => {
                warn!(%server, %error, "the cluster's layers are not known: the configuration lacks them");
                return Ok(Exit::Unavailable);
            }
        }
    } else {
        Vec::new()
    };
    for resource in resources {
        layers.apply(resource);
    }
    Ok(Exit::Ok)
}

fn json_text(resolved: &Resolved) -> anyhow::Result<String> {
    let fields: Vec<_> = resolved
        .fields()
        .map(|(field, origin)| {
            json!({
                "field": field.name,
                "value": field.value(&resolved.config),
                "layer": origin.layer.name(),
                "place": if origin.place.is_empty() { None } else { Some(&origin.place) },
                "default": field.default_value(),
                "change": field.change.name(),
            })
        })
        .collect();
    let mut text = serde_json::to_string_pretty(&fields)?;
    text.push('\n');
    Ok(text)
}

fn table(resolved: &Resolved) -> String {
    let mut rows = vec![["FIELD".to_owned(), "VALUE".to_owned(), "LAYER".to_owned()]];
    rows.extend(resolved.fields().map(|(field, origin)| {
        let value = show_plain(&field.value(&resolved.config));
        let layer = match origin.place.as_str() {
            "" => origin.layer.name().to_owned(),
            place => format!("{} ({})", origin.layer.name(), place_alone(origin.layer.name(), place)),
        };
        [field.name.to_owned(), if value.is_empty() { "-".to_owned() } else { value }, layer]
    }));
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let (first, second) = (width(0), width(1));
    let mut text = Vec::new();
    for [field, value, layer] in &rows {
        // Writing into memory does not fail.
        let _ = writeln!(text, "{field:first$}  {value:second$}  {layer}");
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// `environment FLOWLOGD_X` in the layer environment is told as `FLOWLOGD_X`.
fn place_alone<'a>(layer: &str, place: &'a str) -> &'a str {
    place.strip_prefix(layer).map_or(place, str::trim_start)
}
