//! Reports become records: the key of each aggregation level, and the window that counts under it.
//!
//! In: one report per flow and local end. Out: the sorted records of a window. Always: the sum over records equals
//! what was folded in, at every level; a flow is counted once a window. Not here: connections, names, JSON.

mod level;
mod process;
mod settings;
mod share;
mod tcp;
mod window;

pub use level::{Level, RecordKey, RecordParts, Report, overflow_parts, parts};
pub use settings::{DnsSettings, IdleFlows, PendingPolicies, PrivateNetworks, Settings};
pub use window::{Contribution, Decided, RecordId, Window, WindowStats};
