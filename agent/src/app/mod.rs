//! The one place where stages meet: sources, pipeline, sinks.
//!
//! `daemon.rs` is the agent on a node, `replay.rs` the same pipeline over a recording, `record.rs` writes one;
//! `tasks.rs` is where everything asynchronous runs.
//! In: resolved configuration. Out: lines. Always: what sources told is stepped, in order, into one pipeline, and
//! what a flush yields goes to one sink; the order of shutdown is sources, pipeline, sink.

mod allocator;
mod clock;
mod cluster_configuration;
mod configuration;
mod daemon;
mod dns;
mod dynamic;
mod listeners;
mod memory;
mod outside;
mod record;
mod replay;
mod replay_dns;
mod settings;
mod tasks;
mod world;
mod writer;

pub use clock::Clock;
pub use daemon::{DaemonOptions, RunError, run};
pub use record::{RecordError, record};
pub use replay::{Flushing, Replay, ReplayError, ReplaySummary};
pub use settings::{dns_log_settings, line_format, settings};
pub use tasks::Tasks;
