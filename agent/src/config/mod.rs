//! Configuration: raw layers in, one resolved [`Config`] out, with who set what.
//!
//! `fields.rs` is the one table of all fields; `value.rs` reads and shows their types; `resolve.rs` puts layers
//! over each other (pure); `load.rs` gets the layers of file, environment and flags; `resource.rs` makes layers of the
//! cluster's configuration objects, and what their status says; `layers.rs` keeps them all while they change;
//! `crd.rs` is the resource's definition.
//! Always: every value is within its bounds, and remembers the layer it came from.
//! Not here: fetching the cluster's objects (`watch`), when a change acts (`app`).

mod crd;
mod fields;
mod layers;
mod load;
mod resolve;
mod resource;
mod rules;
#[cfg(test)]
mod tests;
mod value;

pub use crd::{crd, crd_yaml};
pub use fields::{Change, Config, FIELDS, Field, markdown_table, show_plain};
pub use layers::Layers;
pub use load::{Given, LoadError, environment_layer, file_layer, flag_layer, load, parse_file};
pub use resolve::{BadValue, Layer, Origin, RawEntry, RawLayer, Resolved, nearest, resolve};
pub use resource::{
    ACCEPTED, Condition, FELIX_ACCEPTED, GROUP, IN_FORCE, KIND, Owner, PLURAL, Resource, ResourceRef,
    accepted, in_force,
};
pub use value::{
    ClientAuth, DnsPolicyMode, FileFormat, FileMode, IdleFlows, Kind, Limits, Milliseconds, Notation,
    PolicyEvaluationMode, PolicyNameStyle, PolicyScope, PrivateNetworks, Setting, SourceKind, Switch,
    show_duration,
};
