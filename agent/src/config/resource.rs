//! Configuration objects of the cluster: what of them is a layer, and what is said in their status.
//!
//! In: a FlowLogConfiguration or FelixConfiguration as JSON. Out: the [`Layer`] that it is for this node, with its
//! [`RawLayer`]; and the conditions that an agent reports.
//! Always: what an object is found to be depends on the object alone (and the agent's version), never on the agent
//! that looks: thousands of agents say the same of `default`. Texts are bounded, whatever an object holds.
//! Pure. Not here: watching and writing (`app`), whether a value is allowed (`resolve.rs`).

use serde_json::{Map, Value};

use super::fields::{Change, Field};
use super::resolve::{BadValue, Layer, RawEntry, RawLayer, resolve};
use super::value::Notation;

pub const GROUP: &str = "flowlogd.dev";
pub const KIND: &str = "FlowLogConfiguration";
pub const PLURAL: &str = "flowlogconfigurations";

/// Condition: every value of the object is allowed.
pub const ACCEPTED: &str = "Accepted";
/// Condition: the same of Calico's FelixConfiguration of this name.
pub const FELIX_ACCEPTED: &str = "FelixAccepted";
/// Condition of a node's object: its agent works with these values.
pub const IN_FORCE: &str = "InForce";

/// Whose object it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// Calico's FelixConfiguration.
    Felix,
    /// Our FlowLogConfiguration.
    Ours,
}

/// Which object: what a deletion names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceRef {
    pub owner: Owner,
    pub name: String,
}

/// One configuration object of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub reference: ResourceRef,
    /// `metadata.generation`; 0 in manifests.
    pub generation: i64,
    pub spec: Map<String, Value>,
    /// `status.conditions`, as they stand.
    pub conditions: Vec<Value>,
}

impl Owner {
    /// `None`: objects of this kind are no configuration.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("flowlogd.dev/v1", KIND) => Some(Self::Ours),
            ("projectcalico.org/v3" | "crd.projectcalico.org/v1", "FelixConfiguration") => Some(Self::Felix),
            _ => None,
        }
    }

    pub fn kind(self) -> &'static str {
        match self {
            Self::Felix => "FelixConfiguration",
            Self::Ours => KIND,
        }
    }
}

impl ResourceRef {
    /// The layer that the object is on this node; `None` if it is another node's, or nobody's.
    pub fn layer(&self, node: &str) -> Option<Layer> {
        let of_node = self.name.strip_prefix("node.") == Some(node);
        match self.owner {
            Owner::Felix if self.name == "default" => Some(Layer::FelixDefault),
            Owner::Ours if self.name == "default" => Some(Layer::ClusterDefault),
            Owner::Felix if of_node => Some(Layer::FelixNode),
            Owner::Ours if of_node => Some(Layer::ClusterNode),
            _ => None,
        }
    }
}

impl Resource {
    /// `metadata.name` and `spec` of an object whose kind is known. A spec that is no map is told by its type.
    pub fn read(owner: Owner, value: &mut Value) -> Result<Self, &'static str> {
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let generation = value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
        let conditions = match value.pointer_mut("/status/conditions").map(Value::take) {
            Some(Value::Array(conditions)) => conditions,
            _ => Vec::new(),
        };
        let spec = match value.get_mut("spec").map(Value::take) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(spec)) => spec,
            Some(_) => return Err("is not a map of fields"),
        };
        Ok(Self { reference: ResourceRef { owner, name }, generation, spec, conditions })
    }

    /// What it sets, as the given layer.
    pub fn raw_layer(&self, layer: Layer) -> RawLayer {
        let place = format!("{} {}", self.reference.owner.kind(), self.reference.name);
        let entry = |(field, value): (&String, &Value)| RawEntry {
            field: field.clone(),
            value: value.clone(),
            place: place.clone(),
            notation: Notation::Yaml,
        };
        RawLayer { layer, entries: self.spec.iter().map(entry).collect() }
    }
}

/// A condition without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub kind: &'static str,
    pub is_true: bool,
    pub reason: &'static str,
    pub message: String,
}

/// Messages longer than this are cut: bytes.
const MESSAGE_LIMIT: usize = 4096;

/// What is to be said of one object's values, whoever looks.
pub fn accepted(kind: &'static str, resource: &Resource) -> Condition {
    let layer = match resource.reference.owner {
        Owner::Felix => Layer::FelixDefault,
        Owner::Ours => Layer::ClusterDefault,
    };
    let (resolved, bad) = resolve(vec![resource.raw_layer(layer)]);
    if !bad.is_empty() {
        let told: Vec<String> = bad.iter().map(told_in_status).collect();
        let message = format!("{}; the next lower layer's value holds", told.join("; "));
        return Condition { kind, is_true: false, reason: "BadValues", message: shortened(message) };
    }
    let set: Vec<&Field> =
        resolved.fields().filter(|(_, origin)| origin.layer == layer).map(|(field, _)| field).collect();
    let named = |change: Change| {
        let names: Vec<&str> =
            set.iter().filter(|field| field.change == change).map(|field| field.name).collect();
        names.join(", ")
    };
    let mut message = format!("{} fields are set, all of them to something allowed", set.len());
    for (change, text) in
        [(Change::Restart, "acting when an agent is started"), (Change::NoEffect, "without any effect")]
    {
        let names = named(change);
        if !names.is_empty() {
            message.push_str(&format!("; {text}: {names}"));
        }
    }
    Condition { kind, is_true: true, reason: "Valid", message: shortened(message) }
}

/// Whether a node's agent works with what its object (and all other layers) say.
pub fn in_force(waiting: &[&'static Field]) -> Condition {
    if waiting.is_empty() {
        let message = "the node's agent works with the values of all its layers".to_owned();
        return Condition { kind: IN_FORCE, is_true: true, reason: "Live", message };
    }
    let names: Vec<&str> = waiting.iter().map(|field| field.name).collect();
    Condition {
        kind: IN_FORCE,
        is_true: false,
        reason: "RestartNeeded",
        message: shortened(format!("act when the node's agent is started again: {}", names.join(", "))),
    }
}

fn told_in_status(bad: &BadValue) -> String {
    if bad.unknown_field {
        format!("there is no field {}", bad.field)
    } else {
        format!("{}: {} is not allowed; allowed is {}", bad.field, bad.value, bad.remedy)
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MESSAGE_LIMIT {
        let end = (0..=MESSAGE_LIMIT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}
