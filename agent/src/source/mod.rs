//! Where observations come from: the kernel (`ebpf`), each source on its own thread, in the vocabulary of `model`.
//!
//! In: kernel records. Out: [`Observed`]. What always holds: whatever a source knows it could not tell, it counts.
//! Not here: what an observation means (the pipeline).

pub mod ebpf;

use crate::model::{Observation, Timestamp};

/// An observation and when it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub at: Timestamp,
    pub observation: Observation,
}
