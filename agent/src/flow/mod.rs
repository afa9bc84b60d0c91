//! Observations become flows: the connection table, the denied flows, the verdicts that a dataplane reports, and what
//! is told of the sockets behind them.
//!
//! In: records of the kernel (absolute counters, drop increments). Out: per connection the counters since the last
//! fold, exact over resets, re-openings and adoption. Always: every table is bounded and says what it refused.
//! Not here: names (the pipeline gives them), keys and windows (`aggregate`).

mod askers;
mod connection;
mod denied;
mod domains;
mod joins;
mod table;
mod verdicts;

pub use askers::{Askers, DNS_PORT};
pub use connection::{Connection, ConnectionKey, Extra, Flags};
pub use denied::{DENIED_FLOW_LIFETIME, Denied, DeniedKey, DeniedTable, is_filter_reason};
pub use domains::{Domains, TTL_FLOOR};
pub use joins::{JoinStats, Joins, Processes, TcpEnd};
pub use table::{ConnectionTable, Slot};
pub use verdicts::{Verdict, Verdicts};
