//! Versioned outside formats: the flow-log line and the recording.
//!
//! In: flow logs of the aggregation, bytes of a recording. Out: lines of JSON, observations. What always holds: a
//! line is written whole into the caller's buffer; what is written here can be read here and means the same; no
//! input makes these functions panic. Deliberately not here: files, rotation, clocks, and any decision about what
//! a record says: names, counters and traces arrive settled.

pub mod dns_log;
pub mod flow_log;
pub mod live;
pub mod recording;
pub mod schema;
pub mod view;
