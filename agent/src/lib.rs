//! flowlogd: the flow log of every Kubernetes node.
//!
//! Records go in at the left, lines come out at the right; everything in between is plain data and pure
//! functions owned by one task; whatever can block, fail or ask the time lives at the two ends.
//!
//! ```text
//! kernel record -> Observation -> Flow -> Report (0, 1 or 2 a flow: one per local end) -> FlowLog -> JSON line
//! ```
//!
//! The rooms, in data order. Who may import whom (arrows point down only; `xtask/src/rooms.rs` holds the code to it):
//!
//! ```text
//! main -> cli -> { app, cluster, config, filter, flow, model, pipeline, policy, sink, snapshot, source, telemetry, watch, wire }
//! app -> { aggregate, config, http, model, pipeline, sink, snapshot, source, telemetry, watch, wire }
//! http -> { config, telemetry }   telemetry -> { model, pipeline, sink, watch }   source -> { config, model }
//! sink -> { config, filter, model, wire }   watch -> { cluster, config, model, policy, snapshot }
//! pipeline -> { flow, snapshot, cluster, policy, aggregate, model }   snapshot -> { cluster, model, policy }
//! policy -> { cluster, model }   aggregate -> { filter, model }   config -> filter   wire, filter, flow, cluster -> model   model -> std
//! ```
//!
//! `Pipeline::step` is synchronous; the daemon, `replay`, the tests and the benches all call it.
//!
#![doc = include_str!("threats.md")]

pub mod model;

pub mod aggregate;
pub mod cluster;
pub mod filter;
pub mod flow;
pub mod pipeline;
pub mod policy;
pub mod snapshot;
pub mod wire;

pub mod config;
pub mod http;
pub mod sink;
pub mod source;
pub mod telemetry;
pub mod watch;

pub mod app;
pub mod cli;
