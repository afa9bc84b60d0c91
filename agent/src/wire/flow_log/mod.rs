//! The flow-log line: one record of a window as one object of JSON.
//!
//! In: [`FlowLog`]s, the window's bounds, and what the configuration says of the format. Out: bytes, appended to
//! the caller's buffer, each line ended by a newline. What always holds: all fields are there, in Calico's order,
//! and those of the Extended format stand last; absent addresses, ports and lists are `null`, absent names `"-"`,
//! absent counters `0`; the bytes depend on the arguments alone. Encoding allocates nothing but the buffer's
//! growth: it writes straight, because a flush may hold a million records. Deliberately not here: sorting,
//! capping and summing (the aggregation's), files (the sink's). [`super::schema`] describes the same line as a
//! type; a property holds the two together.

pub(super) mod json;
mod policy_name;

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{FlowEnd, FlowLog, FlowLogs, Policies, ProcessColumns, TcpColumns, Timestamp};

pub use policy_name::{NameStyle, policy_entries};

/// What the configuration says of the line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LineFormat {
    /// `flowLogsFileFormat: Extended`: the fields that Calico's line has not, at its end.
    pub extended: bool,
    /// `flowLogsPolicyNameStyle`.
    pub name_style: NameStyle,
    /// The node's name.
    pub host: Arc<str>,
    /// `flowLogsClusterName`; `None` is `null`.
    pub cluster: Option<Arc<str>>,
}

/// What all lines of one flush share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub start: Timestamp,
    pub end: Timestamp,
    /// Kernel records that this window is known to lack.
    pub lost_events: u64,
}

impl From<&FlowLogs> for Window {
    fn from(logs: &FlowLogs) -> Self {
        Self { start: logs.start, end: logs.end, lost_events: logs.lost_events }
    }
}

/// The fields of Calico's line, in the order of the file.
pub const CALICO_FIELDS: [&str; 54] = [
    "start_time",
    "end_time",
    "source_ip",
    "source_name",
    "source_name_aggr",
    "source_namespace",
    "nat_outgoing_ports",
    "source_port",
    "source_type",
    "source_labels",
    "dest_ip",
    "dest_name",
    "dest_name_aggr",
    "dest_namespace",
    "dest_port",
    "dest_type",
    "dest_labels",
    "dest_service_namespace",
    "dest_service_name",
    "dest_service_port",
    "dest_service_port_num",
    "dest_domains",
    "proto",
    "action",
    "reporter",
    "policies",
    "bytes_in",
    "bytes_out",
    "packets_in",
    "packets_out",
    "num_flows",
    "num_flows_started",
    "num_flows_completed",
    "http_requests_allowed_in",
    "http_requests_denied_in",
    "process_name",
    "num_process_names",
    "process_id",
    "num_process_ids",
    "process_args",
    "num_process_args",
    "original_source_ips",
    "num_original_source_ips",
    "tcp_mean_send_congestion_window",
    "tcp_min_send_congestion_window",
    "tcp_mean_smooth_rtt",
    "tcp_max_smooth_rtt",
    "tcp_mean_min_rtt",
    "tcp_max_min_rtt",
    "tcp_mean_mss",
    "tcp_min_mss",
    "tcp_total_retransmissions",
    "tcp_lost_packets",
    "tcp_unrecovered_to",
];

/// The fields that `flowLogsFileFormat: Extended` adds, in the order of the file.
pub const EXTENDED_FIELDS: [&str; 7] =
    ["host", "cluster", "source_ips", "dest_ips", "drop_reasons", "policy_mismatch", "lost_events"];

/// `,"key":` as bytes, put together by the compiler.
macro_rules! key {
    ($out:expr, $key:literal) => {
        $out.extend_from_slice(concat!(",\"", $key, "\":").as_bytes())
    };
}

/// Appends all records of a window, one line each, in their order.
pub fn encode_all(logs: &FlowLogs, format: &LineFormat, out: &mut Vec<u8>) {
    let window = Window::from(logs);
    for log in &logs.records {
        encode(log, &window, format, out);
    }
}

/// Appends one record as one line, newline included.
pub fn encode(log: &FlowLog, window: &Window, format: &LineFormat, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"start_time\":");
    json::signed(window.start.floor_seconds(), out);
    key!(out, "end_time");
    json::signed(window.end.floor_seconds(), out);

    let has_ports = log.proto.has_ports();
    source_columns(&log.source, &log.nat_outgoing_ports, has_ports, out);
    dest_columns(&log.dest, has_ports, out);
    service_columns(log, out);

    key!(out, "dest_domains");
    strings_or(&log.dest_domains, b"null", out);
    key!(out, "proto");
    match log.proto.name() {
        Some(name) => json::string(name, out),
        None => {
            out.push(b'"');
            json::unsigned(u64::from(log.proto.0), out);
            out.push(b'"');
        }
    }
    key!(out, "action");
    json::string(log.action.name(), out);
    key!(out, "reporter");
    json::string(log.reporter.name(), out);
    key!(out, "policies");
    policies(log.policies.as_ref(), format.name_style, out);

    key!(out, "bytes_in");
    json::unsigned(log.incoming.bytes, out);
    key!(out, "bytes_out");
    json::unsigned(log.outgoing.bytes, out);
    key!(out, "packets_in");
    json::unsigned(log.incoming.packets, out);
    key!(out, "packets_out");
    json::unsigned(log.outgoing.packets, out);
    key!(out, "num_flows");
    json::unsigned(log.num_flows, out);
    key!(out, "num_flows_started");
    json::unsigned(log.num_flows_started, out);
    key!(out, "num_flows_completed");
    json::unsigned(log.num_flows_completed, out);
    // HTTP requests are counted by Calico's application-layer proxy, which is no source here.
    key!(out, "http_requests_allowed_in");
    out.push(b'0');
    key!(out, "http_requests_denied_in");
    out.push(b'0');

    process_columns(&log.process, out);
    // X-Forwarded-For is seen by Calico's ingress alone, which is no source here.
    key!(out, "original_source_ips");
    out.extend_from_slice(b"null");
    key!(out, "num_original_source_ips");
    out.push(b'0');
    tcp_columns(&log.tcp, out);

    if format.extended {
        extended_columns(log, window, format, out);
    }
    out.extend_from_slice(b"}\n");
}

/// What most lines say of processes and of TCP: written in one piece. A test holds them to the long way.
const NO_PROCESS: &[u8] = b",\"process_name\":\"-\",\"num_process_names\":0,\"process_id\":\"-\",\
\"num_process_ids\":0,\"process_args\":[\"-\"],\"num_process_args\":0";
const NO_TCP: &[u8] = b",\"tcp_mean_send_congestion_window\":0,\"tcp_min_send_congestion_window\":0,\
\"tcp_mean_smooth_rtt\":0,\"tcp_max_smooth_rtt\":0,\"tcp_mean_min_rtt\":0,\"tcp_max_min_rtt\":0,\
\"tcp_mean_mss\":0,\"tcp_min_mss\":0,\"tcp_total_retransmissions\":0,\"tcp_lost_packets\":0,\
\"tcp_unrecovered_to\":0";

fn source_columns(end: &FlowEnd, nat_outgoing_ports: &[u16], has_ports: bool, out: &mut Vec<u8>) {
    key!(out, "source_ip");
    ip_or_null(end.ip, out);
    key!(out, "source_name");
    json::string(end.name.as_deref().unwrap_or("-"), out);
    key!(out, "source_name_aggr");
    json::string(&end.name_aggr, out);
    key!(out, "source_namespace");
    json::string(end.namespace.as_deref().unwrap_or("-"), out);
    key!(out, "nat_outgoing_ports");
    list_or(nat_outgoing_ports, b"null", out, |port, out| json::unsigned(u64::from(*port), out));
    key!(out, "source_port");
    port_or_null(end.port.filter(|_| has_ports), out);
    key!(out, "source_type");
    json::string(end.kind.name(), out);
    key!(out, "source_labels");
    labels(end, out);
}

fn dest_columns(end: &FlowEnd, has_ports: bool, out: &mut Vec<u8>) {
    key!(out, "dest_ip");
    ip_or_null(end.ip, out);
    key!(out, "dest_name");
    json::string(end.name.as_deref().unwrap_or("-"), out);
    key!(out, "dest_name_aggr");
    json::string(&end.name_aggr, out);
    key!(out, "dest_namespace");
    json::string(end.namespace.as_deref().unwrap_or("-"), out);
    key!(out, "dest_port");
    port_or_null(end.port.filter(|_| has_ports), out);
    key!(out, "dest_type");
    json::string(end.kind.name(), out);
    key!(out, "dest_labels");
    labels(end, out);
}

fn service_columns(log: &FlowLog, out: &mut Vec<u8>) {
    let service = log.service.as_deref();
    key!(out, "dest_service_namespace");
    json::string(service.map_or("-", |s| &s.namespace), out);
    key!(out, "dest_service_name");
    json::string(service.map_or("-", |s| &s.name), out);
    key!(out, "dest_service_port");
    json::string(service.filter(|_| !log.hide_service_port_name).map_or("-", |s| &s.port_name), out);
    key!(out, "dest_service_port_num");
    // Port 0 is Calico's "absent".
    port_or_null(service.map(|s| s.port).filter(|port| *port != 0), out);
}

fn process_columns(process: &ProcessColumns, out: &mut Vec<u8>) {
    if *process == ProcessColumns::default() {
        out.extend_from_slice(NO_PROCESS);
    } else {
        all_process_columns(process, out);
    }
}

fn all_process_columns(process: &ProcessColumns, out: &mut Vec<u8>) {
    key!(out, "process_name");
    json::string(process.name.as_deref().unwrap_or("-"), out);
    key!(out, "num_process_names");
    json::unsigned(process.num_names, out);
    key!(out, "process_id");
    json::string(process.id.as_deref().unwrap_or("-"), out);
    key!(out, "num_process_ids");
    json::unsigned(process.num_ids, out);
    key!(out, "process_args");
    strings_or(&process.args, b"[\"-\"]", out);
    key!(out, "num_process_args");
    json::unsigned(process.num_args, out);
}

fn tcp_columns(tcp: &TcpColumns, out: &mut Vec<u8>) {
    if *tcp == TcpColumns::default() {
        out.extend_from_slice(NO_TCP);
    } else {
        all_tcp_columns(tcp, out);
    }
}

fn all_tcp_columns(tcp: &TcpColumns, out: &mut Vec<u8>) {
    key!(out, "tcp_mean_send_congestion_window");
    json::unsigned(tcp.mean_send_congestion_window, out);
    key!(out, "tcp_min_send_congestion_window");
    json::unsigned(tcp.min_send_congestion_window, out);
    key!(out, "tcp_mean_smooth_rtt");
    json::unsigned(tcp.mean_smooth_rtt, out);
    key!(out, "tcp_max_smooth_rtt");
    json::unsigned(tcp.max_smooth_rtt, out);
    key!(out, "tcp_mean_min_rtt");
    json::unsigned(tcp.mean_min_rtt, out);
    key!(out, "tcp_max_min_rtt");
    json::unsigned(tcp.max_min_rtt, out);
    key!(out, "tcp_mean_mss");
    json::unsigned(tcp.mean_mss, out);
    key!(out, "tcp_min_mss");
    json::unsigned(tcp.min_mss, out);
    key!(out, "tcp_total_retransmissions");
    json::unsigned(tcp.total_retransmissions, out);
    key!(out, "tcp_lost_packets");
    json::unsigned(tcp.lost_packets, out);
    key!(out, "tcp_unrecovered_to");
    json::unsigned(tcp.unrecovered_to, out);
}

fn extended_columns(log: &FlowLog, window: &Window, format: &LineFormat, out: &mut Vec<u8>) {
    key!(out, "host");
    json::string(&format.host, out);
    key!(out, "cluster");
    match format.cluster.as_deref() {
        Some(cluster) => json::string(cluster, out),
        None => out.extend_from_slice(b"null"),
    }
    key!(out, "source_ips");
    list_or(&log.source.ips, b"null", out, |ip, out| json::address(*ip, out));
    key!(out, "dest_ips");
    list_or(&log.dest.ips, b"null", out, |ip, out| json::address(*ip, out));
    key!(out, "drop_reasons");
    strings_or(&log.drop_reasons, b"null", out);
    key!(out, "policy_mismatch");
    out.extend_from_slice(match log.policy_mismatch {
        None => b"null",
        Some(true) => b"true",
        Some(false) => b"false",
    });
    key!(out, "lost_events");
    json::unsigned(window.lost_events, out);
}

fn policies(policies: Option<&Policies>, style: NameStyle, out: &mut Vec<u8>) {
    let Some(policies) = policies else {
        out.extend_from_slice(b"null");
        return;
    };
    out.extend_from_slice(b"{\"enforced_policies\":");
    policy_name::entries(&policies.enforced, style, out);
    key!(out, "pending_policies");
    match &policies.pending {
        Some(trace) => policy_name::entries(trace, style, out),
        None => out.extend_from_slice(b"null"),
    }
    key!(out, "all_policies");
    policy_name::entries(&policies.all, style, out);
    out.push(b'}');
}

/// Labels that are sorted on the stack; an end with more of them (none is known) costs an allocation.
const LABELS_ON_STACK: usize = 48;

fn labels(end: &FlowEnd, out: &mut Vec<u8>) {
    let Some(labels) = &end.labels else {
        out.extend_from_slice(b"null");
        return;
    };
    // Calico strips its own labels only when it intersects; here they are always left out.
    let shown =
        || labels.iter().filter(|(key, _)| !key.starts_with("projectcalico.org/")).map(|(k, v)| (&**k, &**v));
    out.extend_from_slice(b"{\"labels\":[");
    // Sorted by key is not yet sorted as rendered: "app=x" comes after "app.kubernetes.io/name=x", for '.' < '='.
    let is_sorted = shown().is_sorted_by(|a, b| rendered(*a).le(rendered(*b)));
    if is_sorted {
        write_labels(shown(), out);
    } else {
        let count = shown().count();
        let mut stack = [("", ""); LABELS_ON_STACK];
        let mut heap = Vec::new();
        let pairs = match stack.get_mut(..count) {
            Some(pairs) => pairs,
            None => {
                heap.resize(count, ("", ""));
                heap.as_mut_slice()
            }
        };
        for (slot, pair) in pairs.iter_mut().zip(shown()) {
            *slot = pair;
        }
        pairs.sort_unstable_by(|a, b| rendered(*a).cmp(rendered(*b)));
        write_labels(pairs.iter().copied(), out);
    }
    out.extend_from_slice(b"]}");
}

/// The bytes of `key=value`.
fn rendered<'a>((key, value): (&'a str, &'a str)) -> impl Iterator<Item = u8> + 'a {
    key.bytes().chain(std::iter::once(b'=')).chain(value.bytes())
}

fn write_labels<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>, out: &mut Vec<u8>) {
    for (i, (key, value)) in pairs.enumerate() {
        out.extend_from_slice(if i == 0 { b"\"" } else { b",\"" });
        json::escaped(key, out);
        out.push(b'=');
        json::escaped(value, out);
        out.push(b'"');
    }
}

fn ip_or_null(ip: Option<IpAddr>, out: &mut Vec<u8>) {
    match ip {
        Some(ip) => json::address(ip, out),
        None => out.extend_from_slice(b"null"),
    }
}

fn port_or_null(port: Option<u16>, out: &mut Vec<u8>) {
    match port {
        Some(port) => json::unsigned(u64::from(port), out),
        None => out.extend_from_slice(b"null"),
    }
}

fn strings_or(items: &[Arc<str>], empty: &[u8], out: &mut Vec<u8>) {
    list_or(items, empty, out, |item, out| json::string(item, out));
}

/// An array, or what stands for an empty one.
fn list_or<T>(items: &[T], empty: &[u8], out: &mut Vec<u8>, mut write: impl FnMut(&T, &mut Vec<u8>)) {
    if items.is_empty() {
        out.extend_from_slice(empty);
        return;
    }
    for (i, item) in items.iter().enumerate() {
        out.push(if i == 0 { b'[' } else { b',' });
        write(item, out);
    }
    out.push(b']');
}

#[cfg(test)]
pub(super) mod arbitrary;
#[cfg(test)]
mod tests;
