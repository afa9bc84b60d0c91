//! API server or manifest files -> Snapshot.
//!
//! In: Kubernetes and Calico objects as they are written, from manifests or as an API server tells them. Out: the plain
//! objects of `cluster` and the compiled ones of `policy`, checked; the world that they make, published.
//! What always holds: objects are trimmed as they are decoded; an object that does not parse is told apart from one
//! of a kind that is not used, counted and left out; an API server that is down, slow or wrong stops nothing. This is the
//! only room that names the Kubernetes client. `client.rs` finds the server, `served.rs` looks what it has, `link.rs` and
//! `follow.rs` follow one kind each, `world.rs` owns the world. What the world is used for is deliberately not here.

mod answers;
pub mod client;
mod configuration;
pub mod decode;
mod follow;
mod kinds;
mod link;
pub mod manifests;
pub mod objects;
mod policies;
mod served;
mod split;
mod status;
mod world;

pub use client::{ConnectError, Server, connect, locate};
pub use configuration::{AskError, apply_conditions, configuration};
pub use decode::{
    DecodeError, Decoded, DecodedRef, decode, decode_ref, decode_text, unreadable, unreadable_text,
};
pub use follow::{Identity, Timing, Told};
pub use kinds::{CONFIGURATION, Selected, WORLD, Wanted};
pub use link::{Link, Raw};
pub use manifests::{ManifestError, Manifests, load, load_as_written};
pub use status::{KindStatus, Phase, Status};
pub use world::{Cluster, Settled};
