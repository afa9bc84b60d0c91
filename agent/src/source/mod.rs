//! Where observations come from. A source reads what the kernel (or a recording) tells and hands on
//! [`Observation`]s with the time at which they were read; it keeps no more state than it needs to notice
//! its own losses, and counts each of them under a stage's name.
//!
//! Not here: deltas, naming, aggregation. A source gives absolute counters; the pipeline does the rest.

pub mod accounting;
pub mod netlink;
pub mod probe;

use crate::model::{Observation, Timestamp};

/// An observation and when it was read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub at: Timestamp,
    pub observation: Observation,
}
