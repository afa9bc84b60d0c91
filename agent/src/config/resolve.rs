//! Layers of raw values in, one [`Resolved`] configuration and the list of bad values out.
//!
//! Pure: no file, no environment, no clock. The highest layer that sets a field to something allowed wins; a bad
//! value is reported with its layer, place, field and what is allowed, and the next lower layer's value holds.
//! Always: the same layers give the same result, in whatever order they are given; every field has a value and
//! an origin.
//! Not here: whether a bad value ends the agent (the command line's decision at first start) or is only reported
//! (cluster layers, and every later reload).

use std::fmt;

use serde_json::Value;

use super::fields::{Change, Config, FIELDS, Field, show_plain};
use super::value::Notation;

/// Where a value was set. Later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    BuiltIn,
    /// Calico's FelixConfiguration `default`.
    FelixDefault,
    /// Calico's FelixConfiguration `node.<name>`.
    FelixNode,
    /// Our FlowLogConfiguration `default`.
    ClusterDefault,
    /// Our FlowLogConfiguration `node.<name>`.
    ClusterNode,
    File,
    Environment,
    Flag,
}

impl Layer {
    /// Low to high.
    pub const ALL: [Self; 8] = [
        Self::BuiltIn,
        Self::FelixDefault,
        Self::FelixNode,
        Self::ClusterDefault,
        Self::ClusterNode,
        Self::File,
        Self::Environment,
        Self::Flag,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::BuiltIn => "built-in",
            Self::FelixDefault => "FelixConfiguration default",
            Self::FelixNode => "FelixConfiguration node",
            Self::ClusterDefault => "FlowLogConfiguration default",
            Self::ClusterNode => "FlowLogConfiguration node",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        }
    }

    /// Felix's objects hold hundreds of fields that are not ours.
    fn tolerates_unknown(self) -> bool {
        matches!(self, Self::FelixDefault | Self::FelixNode)
    }
}

/// One value as it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct RawEntry {
    pub field: String,
    pub value: Value,
    /// Where exactly: `config.yaml:3`, `FLOWLOGD_FLOWLOGSSOURCE`, `--set`.
    pub place: String,
    pub notation: Notation,
}

/// What one layer sets. Within a layer the last entry of a field wins.
#[derive(Clone, Debug, PartialEq)]
pub struct RawLayer {
    pub layer: Layer,
    pub entries: Vec<RawEntry>,
}

/// A value that is not allowed, or a field that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadValue {
    pub layer: Layer,
    pub place: String,
    pub field: String,
    /// The value as written, shortened.
    pub value: String,
    /// What is allowed, or which field was perhaps meant.
    pub remedy: String,
    pub unknown_field: bool,
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.unknown_field {
            write!(f, "{}: there is no field {}; {}", self.place, self.field, self.remedy)
        } else {
            write!(
                f,
                "{}: {}: {} is not allowed; allowed is {}",
                self.place, self.field, self.value, self.remedy
            )
        }
    }
}

/// Where a field's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub layer: Layer,
    /// Empty for built-in values.
    pub place: String,
}

/// The configuration and who set what.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub config: Config,
    /// Parallel to [`FIELDS`].
    origins: Vec<Origin>,
}

impl Resolved {
    /// Each field with its value's origin, in the table's order.
    pub fn fields(&self) -> impl Iterator<Item = (&'static Field, &Origin)> {
        FIELDS.iter().zip(&self.origins)
    }

    /// `None`: there is no such field.
    pub fn origin(&self, field: &str) -> Option<&Origin> {
        self.fields().find(|(one, _)| one.name == field).map(|(_, origin)| origin)
    }

    /// Fields that were set although they do nothing here.
    pub fn without_effect(&self) -> impl Iterator<Item = (&'static Field, &Origin)> {
        self.fields()
            .filter(|(field, origin)| field.change == Change::NoEffect && origin.layer != Layer::BuiltIn)
    }

    /// Fields whose value differs from `running` and acts only after a restart.
    pub fn waiting_for_restart(&self, running: &Config) -> Vec<&'static Field> {
        FIELDS
            .iter()
            .filter(|field| {
                field.change == Change::Restart && field.value(&self.config) != field.value(running)
            })
            .collect()
    }
}

/// Puts the layers over the built-in values.
pub fn resolve(mut layers: Vec<RawLayer>) -> (Resolved, Vec<BadValue>) {
    layers.sort_by_key(|layer| layer.layer);
    let mut config = Config::default();
    let mut origins = vec![Origin { layer: Layer::BuiltIn, place: String::new() }; FIELDS.len()];
    let mut bad = Vec::new();
    for RawLayer { layer, entries } in layers {
        for RawEntry { field: name, value, place, notation } in entries {
            let Some(index) = FIELDS.iter().position(|field| field.name == name) else {
                if !layer.tolerates_unknown() {
                    bad.push(unknown(layer, place, name, &value));
                }
                continue;
            };
            if is_unset(&value, notation) {
                continue;
            }
            let field = &FIELDS[index];
            if (field.set)(&mut config, &value, notation, field.limits) {
                origins[index] = Origin { layer, place };
            } else {
                bad.push(BadValue {
                    layer,
                    place,
                    field: name,
                    value: excerpt(&value),
                    remedy: field.remedy(&value),
                    unknown_field: false,
                });
            }
        }
    }
    (Resolved { config, origins }, bad)
}

/// `field:` with nothing behind it in YAML; an empty variable of Felix's environment.
fn is_unset(value: &Value, notation: Notation) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => notation == Notation::Felix && text.trim().is_empty(),
        _ => false,
    }
}

fn unknown(layer: Layer, place: String, field: String, value: &Value) -> BadValue {
    let remedy = match nearest(&field) {
        Some(name) => format!("did you mean {name}? `flowlogd config` lists all of them"),
        None => "`flowlogd config` lists those there are".to_owned(),
    };
    BadValue { layer, place, value: excerpt(value), field, remedy, unknown_field: true }
}

/// The field whose name is nearest, if it is near enough to have been meant.
pub fn nearest(name: &str) -> Option<&'static str> {
    // The distance is quadratic in the length, and names come from outside.
    if name.len() > 128 {
        return None;
    }
    let lower = name.to_lowercase();
    FIELDS
        .iter()
        .map(|field| (strsim::damerau_levenshtein(&field.name.to_lowercase(), &lower), field.name))
        .min()
        .filter(|(distance, nearest)| *distance * 3 <= nearest.len())
        .map(|(_, nearest)| nearest)
}

fn excerpt(value: &Value) -> String {
    let text = match value {
        Value::String(text) => format!("{text:?}"),
        other => show_plain(other),
    };
    if text.chars().count() > 80 { text.chars().take(77).chain("...".chars()).collect() } else { text }
}
