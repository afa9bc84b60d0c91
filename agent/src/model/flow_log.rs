//! One record of a window, before it is a line of JSON.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Action, Counters, EndpointKind, Labels, Proto, ServiceName, Timestamp, Trace};

/// At which end the record was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reporter {
    Src,
    Dst,
}

impl Reporter {
    pub fn name(self) -> &'static str {
        match self {
            Self::Src => "src",
            Self::Dst => "dst",
        }
    }
}

/// The columns of one end, aggregated: what the level removed is `None` or `"-"`.
#[derive(Clone, Debug)]
pub struct FlowEnd {
    pub kind: EndpointKind,
    pub namespace: Option<Arc<str>>,
    /// `None` at levels 2 and 3.
    pub name: Option<Arc<str>>,
    pub name_aggr: Arc<str>,
    pub ip: Option<IpAddr>,
    pub port: Option<u16>,
    /// `None`: labels are not included.
    pub labels: Option<Labels>,
    /// Extended format, levels 2 and 3: distinct addresses, bounded, ascending.
    pub ips: Vec<IpAddr>,
}

#[derive(Clone, Debug, Default)]
pub struct Policies {
    pub enforced: Trace,
    /// `None`: host endpoints, evaluation mode `None`.
    pub pending: Option<Trace>,
    pub all: Trace,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessColumns {
    /// `None` is `"-"`.
    pub name: Option<Arc<str>>,
    pub num_names: u64,
    pub id: Option<Arc<str>>,
    pub num_ids: u64,
    /// Empty is `["-"]`.
    pub args: Vec<Arc<str>>,
    pub num_args: u64,
}

/// Round-trip times in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpColumns {
    pub mean_send_congestion_window: u64,
    pub min_send_congestion_window: u64,
    pub mean_smooth_rtt: u64,
    pub max_smooth_rtt: u64,
    pub mean_min_rtt: u64,
    pub max_min_rtt: u64,
    pub mean_mss: u64,
    pub min_mss: u64,
    pub total_retransmissions: u64,
    pub lost_packets: u64,
    pub unrecovered_to: u64,
}

#[derive(Clone, Debug)]
pub struct FlowLog {
    pub source: FlowEnd,
    pub dest: FlowEnd,
    pub nat_outgoing_ports: Vec<u16>,
    /// `None`: no service, or services are not included.
    pub service: Option<Arc<ServiceName>>,
    /// Level 3 prints the service port's name as `"-"` and keeps the number.
    pub hide_service_port_name: bool,
    pub dest_domains: Vec<Arc<str>>,
    pub proto: Proto,
    pub action: Action,
    pub reporter: Reporter,
    /// `None`: not included, or nothing was evaluated.
    pub policies: Option<Policies>,
    /// Toward the reporter.
    pub incoming: Counters,
    pub outgoing: Counters,
    pub num_flows: u64,
    pub num_flows_started: u64,
    pub num_flows_completed: u64,
    pub process: ProcessColumns,
    pub tcp: TcpColumns,
    /// Extended format.
    pub drop_reasons: Vec<Arc<str>>,
    pub policy_mismatch: Option<bool>,
}

/// All records of one window, sorted.
#[derive(Clone, Debug)]
pub struct FlowLogs {
    pub start: Timestamp,
    pub end: Timestamp,
    /// Kernel records that this window is known to lack.
    pub lost_events: u64,
    pub records: Vec<FlowLog>,
}
