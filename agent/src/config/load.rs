//! Raw layers from the world: the configuration file, the environment, the flags.
//!
//! In: a path, the environment's variables, `field=value` texts. Out: [`RawLayer`]s for `resolve`, or an error
//! that names file, line and remedy.
//! The file is a flat YAML map of fields, or a whole FlowLogConfiguration object whose `spec` is such a map.
//! The environment: `FLOWLOGD_<FIELD>`, and below it `FELIX_<FIELD>`; the field's name in any case.
//! Always: bounded (a file of at most 1 MiB); nothing of another program's environment is an error.
//! Not here: whether a value is allowed (`resolve.rs`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::fields::Field;
use super::layers::Layers;
use super::resolve::{BadValue, Layer, RawEntry, RawLayer, Resolved};
use super::value::Notation;

const MAX_FILE_BYTES: u64 = 1 << 20;
const OUR_PREFIX: &str = "FLOWLOGD_";
const FELIX_PREFIX: &str = "FELIX_";

/// Why there is no configuration to start with.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read the configuration file {}: {source}; give its path with --config", path.display())]
    NotFound { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Malformed(String),
    #[error("{}", join(.0))]
    BadValues(Vec<BadValue>),
}

fn join(bad: &[BadValue]) -> String {
    bad.iter().map(BadValue::to_string).collect::<Vec<_>>().join("\n")
}

/// What the process was given.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--config`.
    pub file: Option<PathBuf>,
    pub environment: Vec<(OsString, OsString)>,
    /// Field, value, and the flag that says so.
    pub flags: Vec<(String, String, String)>,
}

/// File, environment and flags over the built-in values. At first start any bad value is an error.
pub fn load(given: &Given, node: &str) -> Result<(Layers, Resolved), LoadError> {
    let layers = Layers::new(node, raw_layers(given)?);
    let (resolved, bad) = layers.resolve();
    if bad.is_empty() { Ok((layers, resolved)) } else { Err(LoadError::BadValues(bad)) }
}

fn raw_layers(given: &Given) -> Result<Vec<RawLayer>, LoadError> {
    let mut layers = Vec::new();
    if let Some(path) = &given.file {
        layers.push(file_layer(path)?);
    }
    layers.push(environment_layer(&given.environment));
    layers.push(flag_layer(&given.flags));
    Ok(layers)
}

/// Reads and parses the file.
pub fn file_layer(path: &Path) -> Result<RawLayer, LoadError> {
    let not_found = |source| LoadError::NotFound { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(not_found)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(not_found)?;
    let name = path.display().to_string();
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(LoadError::Malformed(format!(
            "{name}: larger than {MAX_FILE_BYTES} bytes; is it a configuration?"
        )));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| LoadError::Malformed(format!("{name}: not UTF-8: {error}")))?;
    parse_file(&name, &text)
}

type Map = BTreeMap<String, serde_saphyr::Spanned<Value>>;

#[derive(Deserialize)]
struct Object {
    spec: Option<Map>,
}

fn parse<T: serde::de::DeserializeOwned>(name: &str, text: &str) -> Result<T, LoadError> {
    let options = serde_saphyr::options! { leading_zero_numbers_as_strings: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(String::new(), |location| format!(":{}", location.line()));
        LoadError::Malformed(format!(
            "{name}{line}: {error}; expected is one YAML map of fields, or one FlowLogConfiguration object"
        ))
    })
}

/// The file's layer out of its text; `name` stands in messages.
pub fn parse_file(name: &str, text: &str) -> Result<RawLayer, LoadError> {
    let mut map: Map = parse::<Option<Map>>(name, text)?.unwrap_or_default();
    if map.contains_key("kind") || map.contains_key("apiVersion") || map.contains_key("spec") {
        check_object(name, &map)?;
        map = parse::<Object>(name, text)?.spec.unwrap_or_default();
    }
    let mut entries: Vec<(u64, RawEntry)> = map
        .into_iter()
        .map(|(field, spanned)| {
            let line = spanned.referenced.line();
            let place = format!("{name}:{line}");
            (line, RawEntry { field, value: spanned.value, place, notation: Notation::Yaml })
        })
        .collect();
    // Messages in the order of the file.
    entries.sort_by_key(|(line, _)| *line);
    Ok(RawLayer { layer: Layer::File, entries: entries.into_iter().map(|(_, entry)| entry).collect() })
}

fn check_object(name: &str, map: &Map) -> Result<(), LoadError> {
    let expect = |key: &str, allowed: &str| match map.get(key).and_then(|spanned| spanned.value.as_str()) {
        Some(value) if value == allowed => Ok(()),
        found => Err(LoadError::Malformed(format!(
            "{name}{}: {key} is {}, expected is {allowed}",
            map.get(key).map_or(String::new(), |spanned| format!(":{}", spanned.referenced.line())),
            found.unwrap_or("missing or not a string"),
        ))),
    };
    expect("apiVersion", "flowlogd.dev/v1")?;
    expect("kind", "FlowLogConfiguration")?;
    for (key, spanned) in map {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&key.as_str()) {
            return Err(LoadError::Malformed(format!(
                "{name}:{}: {key} stands beside spec; a FlowLogConfiguration's fields stand in its spec",
                spanned.referenced.line()
            )));
        }
    }
    Ok(())
}

/// `FELIX_` entries first, so that `FLOWLOGD_` ones win.
pub fn environment_layer(variables: &[(OsString, OsString)]) -> RawLayer {
    let mut felix = Vec::new();
    let mut ours = Vec::new();
    for (name, value) in variables {
        let Some(name) = name.to_str() else { continue };
        let after = |prefix: &str| {
            name.get(..prefix.len())
                .filter(|start| start.eq_ignore_ascii_case(prefix))
                .and_then(|_| name.get(prefix.len()..))
        };
        let (field, notation, entries) = if let Some(field) = after(OUR_PREFIX) {
            (field, Notation::Text, &mut ours)
        } else if let Some(field) = after(FELIX_PREFIX) {
            (field, Notation::Felix, &mut felix)
        } else {
            continue;
        };
        let field = match Field::by_name_any_case(field) {
            Some(known) => known.name.to_owned(),
            // Kubernetes sets FLOWLOGD_SERVICE_HOST and the like for a Service called flowlogd, FLOWLOGD_LOG is the
            // log's filter, and Felix has hundreds of its own: only what looks like a field of ours is a mistake.
            None if notation == Notation::Text && looks_like_a_field(field) => field.to_owned(),
            None => continue,
        };
        // What is not UTF-8 becomes a value that no type allows, except free text, where it is shown as it is.
        let value = Value::String(value.to_string_lossy().into_owned());
        entries.push(RawEntry { field, value, place: format!("environment {name}"), notation });
    }
    felix.append(&mut ours);
    RawLayer { layer: Layer::Environment, entries: felix }
}

fn looks_like_a_field(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    ["flowlogs", "dnslogs", "dnscache", "prometheusmetrics", "prometheusreporter"]
        .iter()
        .any(|start| lower.starts_with(start))
}

/// `--set field=value` and the flags that stand for a field.
pub fn flag_layer(flags: &[(String, String, String)]) -> RawLayer {
    let entries = flags
        .iter()
        .map(|(field, value, flag)| RawEntry {
            field: field.clone(),
            value: Value::String(value.clone()),
            place: format!("flag {flag}"),
            notation: Notation::Text,
        })
        .collect();
    RawLayer { layer: Layer::Flag, entries }
}
