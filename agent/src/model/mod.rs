//! The vocabulary: plain data that every room speaks. No IO, no clock, no locks, nothing but std.

mod checkpoint;
mod counters;
mod dns;
mod endpoint;
mod fill;
mod flow_log;
mod labels;
mod observation;
mod time;
mod tuple;
mod verdict;

pub use checkpoint::CheckpointEntry;
pub use counters::{Counters, Directional};
pub use dns::{DnsEnd, DnsLatency, DnsLog, DnsLogs, KnownDomain, RrSets, TrustedServer, domain_name};
pub use endpoint::{Endpoint, EndpointKind, NamedPort, Policed, ServiceName};
pub use fill::{Fill, Unit};
pub use flow_log::{FlowEnd, FlowLog, FlowLogs, Policies, ProcessColumns, Reporter, TcpColumns};
pub use labels::Labels;
pub use observation::{
    ConnectionEvent, ConnectionRecord, DnsAnswer, DnsRecord, DropRecord, FlowSide, Icmp, Observation,
    Process, ProcessRecord, TcpRecord, TcpSample, VerdictRecord, VerdictSet,
};
pub use time::Timestamp;
pub use tuple::{Addresses, FiveTuple, Proto, TcpState, canonical};
pub use verdict::{Action, Direction, Evaluation, Hit, PolicyKind, Trace};
