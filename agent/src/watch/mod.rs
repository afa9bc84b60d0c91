//! API server or manifest files -> Snapshot.
//!
//! In: Kubernetes and Calico objects as they are written. Out: the plain objects of `cluster` and the compiled ones of
//! `policy`, checked. What always holds: objects are trimmed as they are decoded; an object that does not parse is told
//! apart from one of a kind that is not used. Watching the API server is deliberately not here yet: manifests only.

pub mod client;
pub mod decode;
pub mod manifests;
pub mod objects;
mod policies;

pub use client::{ConnectError, Server, connect, locate};
pub use decode::{DecodeError, Decoded, DecodedRef, decode, decode_ref, unreadable};
pub use manifests::{ManifestError, Manifests, load, load_as_written};
