//! Where observations come from. A source reads what the kernel tells and hands on [`Observation`]s with the time
//! at which they were read; it keeps no more state than it needs to notice its own losses, and counts each of them
//! under a stage's name.
//!
//! [`NodeSources`] is what one node has: a source of connections, chosen by trying, and the drops where the kernel
//! lets them be counted, and the collectors of sockets that the configuration asks for. Not here: deltas, naming, aggregation. A source gives absolute counters; the pipeline does
//! the rest.

pub mod accounting;
pub mod bypass;
mod collectors;
pub mod dns;
pub mod ebpf;
pub mod netlink;
mod node;
pub mod privilege;
pub mod probe;

pub use node::{Bounds, NodeSources, SourcesError};

use crate::model::{Observation, Timestamp};

/// An observation and when it was read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub at: Timestamp,
    pub observation: Observation,
}
