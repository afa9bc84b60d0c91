//! `flowlogd config`: every configuration value and the layer that set it.
//!
//! In: the resolved configuration. Out: a table on stdout, or with `--json` one JSON array.
//! Not here: where values come from (`crate::config`).

use std::io::Write;

use clap::Args;
use serde_json::json;

use crate::config::{Resolved, show_plain};

/// Show every configuration value and which layer set it.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub fn run(resolved: &Resolved, args: &ConfigArgs) -> anyhow::Result<u8> {
    let text = if args.json { json_text(resolved)? } else { table(resolved) };
    super::print(text.as_bytes())?;
    Ok(super::Exit::Ok.code())
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
