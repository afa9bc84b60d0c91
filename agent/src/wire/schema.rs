//! The line as a type: the one truth from which the JSON schema, the README's field table and the reader come.
//!
//! In: a line of text. Out: a [`FlowLogLine`], and the schema that describes one. What always holds: every line that
//! `flow_log::encode` writes reads into the type with no field unknown, and writes back as the same JSON (a
//! property); so the doc comment of a field below, which is its description in the schema and in the README, speaks
//! of what is really written. Deliberately not here: the fast way to write a line (`flow_log`), which takes no
//! intermediate value. Lines of both formats read: the fields of `Extended` may be absent, all others may not.

use std::fmt::Write as _;
use std::net::IpAddr;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::flow_log::{CALICO_FIELDS, EXTENDED_FIELDS};

/// The type of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum EndType {
    /// A pod that is not on the host network.
    Wep,
    /// A HostEndpoint, or the node itself.
    Hep,
    /// A NetworkSet or GlobalNetworkSet.
    Ns,
    /// An address that is none of these.
    Net,
}

/// What was enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LineAction {
    Allow,
    Deny,
}

/// The end that reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LineReporter {
    Src,
    Dst,
}

/// Labels of an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct LabelList {
    /// `key=value`, sorted. Labels that all flows of the line shared; Calico's own (`projectcalico.org/`) are left out.
    pub labels: Vec<String>,
}

/// Traces of policy entries `index|tier|name|action|rule`, in the order of evaluation. `index` counts from 0 in its
/// list; `rule` is the rule's index, -1 the tier's default action, -2 unknown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct PolicyLists {
    /// What decided, at the time when the flow began. `[]`: nothing applied.
    #[schemars(inner(regex(pattern = r"^[0-9]+\|[\s\S]*\|(allow|deny|pass)\|-?[0-9]+$")))]
    pub enforced_policies: Vec<String>,
    /// What would decide now, if the staged policies were enforced. `null`: not evaluated (host endpoints, mode `None`).
    #[serde(deserialize_with = "Option::deserialize")]
    pub pending_policies: Option<Vec<String>>,
    /// The enforced trace and the staged policies that were met on the way.
    #[schemars(inner(regex(pattern = r"^[0-9]+\|[\s\S]*\|(allow|deny|pass)\|-?[0-9]+$")))]
    pub all_policies: Vec<String>,
}

/// One line of `flows.log`: the flows of one window that share the line's key, as one end saw them.
// A nullable field must still be there: `deserialize_with` keeps serde from reading an absent one as null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "flowlogd flow log line")]
pub struct FlowLogLine {
    /// Start of the window, Unix seconds, floored. Windows abut.
    pub start_time: i64,
    /// End of the window, Unix seconds, floored.
    pub end_time: i64,
    /// Address of the source: dotted quad or RFC 5952. `null` at levels 2 and 3.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schemars(schema_with = "nullable_address")]
    pub source_ip: Option<IpAddr>,
    /// Name of the source: pod, HostEndpoint or network set; of the node's own address the node, or the pod on its host
    /// network whose process is there (`flowLogsCollectProcessInfo`). `"-"` at levels 2 and 3 and for type `net`.
    pub source_name: String,
    /// Pods, on the host network too: `generateName` and `*`, or the name; host endpoints: the node; network sets: the name; `net`: `pub` or `pvt`.
    pub source_name_aggr: String,
    /// Namespace of the source, `"-"` where there is none.
    pub source_namespace: String,
    /// Source ports after SNAT, distinct, ascending, up to `flowLogsFileNatOutgoingPortLimit`. `null`: no SNAT.
    #[serde(deserialize_with = "Option::deserialize")]
    pub nat_outgoing_ports: Option<Vec<u16>>,
    /// Port of the source. `null` at levels 1 to 3 and for protocols without ports.
    #[serde(deserialize_with = "Option::deserialize")]
    pub source_port: Option<u16>,
    /// `wep` pod, `hep` host endpoint, `ns` network set, `net` other address.
    pub source_type: EndType,
    /// Labels of the source. `null` if `flowLogsFileIncludeLabels` is off.
    #[serde(deserialize_with = "Option::deserialize")]
    pub source_labels: Option<LabelList>,
    /// Address of the destination, after DNAT. `null` at levels 2 and 3.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schemars(schema_with = "nullable_address")]
    pub dest_ip: Option<IpAddr>,
    /// Name of the destination, as `source_name`.
    pub dest_name: String,
    /// As `source_name_aggr`.
    pub dest_name_aggr: String,
    /// Namespace of the destination, `"-"` where there is none.
    pub dest_namespace: String,
    /// Port of the destination, after DNAT. `null` at level 3 and for protocols without ports.
    #[serde(deserialize_with = "Option::deserialize")]
    pub dest_port: Option<u16>,
    /// As `source_type`.
    pub dest_type: EndType,
    /// Labels of the destination. `null` if `flowLogsFileIncludeLabels` is off.
    #[serde(deserialize_with = "Option::deserialize")]
    pub dest_labels: Option<LabelList>,
    /// Namespace of the service that was addressed (before DNAT), `"-"` none, `"*"` several tie.
    pub dest_service_namespace: String,
    /// Name of the service, `"-"` none, `"*"` several tie.
    pub dest_service_name: String,
    /// Name of the service's port, `"-"` unnamed, none, or level 3, `"*"` several tie.
    pub dest_service_port: String,
    /// The port that was addressed, before DNAT. `null`: no service.
    #[serde(deserialize_with = "Option::deserialize")]
    pub dest_service_port_num: Option<u16>,
    /// Domain names that led to the destination, up to `flowLogsFileDomainsLimit`. `null`: none known.
    #[serde(deserialize_with = "Option::deserialize")]
    pub dest_domains: Option<Vec<String>>,
    /// `icmp ipip tcp udp esp icmp6 sctp`, any other protocol its decimal number.
    pub proto: String,
    /// `deny`: dropped by a filter. `allow`: a connection that conntrack confirmed.
    pub action: LineAction,
    /// The end whose verdict this line tells: `src` or `dst`.
    pub reporter: LineReporter,
    /// `null`: not included (`flowLogsFileIncludePolicies`), or no cluster.
    #[serde(deserialize_with = "Option::deserialize")]
    pub policies: Option<PolicyLists>,
    /// IP bytes toward the reporter in this window.
    pub bytes_in: u64,
    /// IP bytes from the reporter in this window.
    pub bytes_out: u64,
    /// Packets toward the reporter in this window.
    pub packets_in: u64,
    /// Packets from the reporter in this window.
    pub packets_out: u64,
    /// Flows that were alive in this window.
    pub num_flows: u64,
    /// Of these, flows that began in this window.
    pub num_flows_started: u64,
    /// Of these, flows that ended in this window.
    pub num_flows_completed: u64,
    /// Always 0; kept for consumers of Calico's lines.
    pub http_requests_allowed_in: u64,
    /// Always 0; kept for consumers of Calico's lines.
    pub http_requests_denied_in: u64,
    /// Name of the local process, `"-"` not collected, `"*"` more than `flowLogsFilePerFlowProcessLimit`.
    pub process_name: String,
    /// Distinct process names; 0 when not collected.
    pub num_process_names: u64,
    /// Process ID as text, `"-"` not collected, `"*"` several.
    pub process_id: String,
    /// Distinct process IDs; 0 when not collected.
    pub num_process_ids: u64,
    /// Arguments of the process, up to `flowLogsFilePerFlowProcessArgsLimit`. `["-"]`: not collected.
    pub process_args: Vec<String>,
    /// Distinct argument lists; 0 when not collected.
    pub num_process_args: u64,
    /// Always `null`; kept for consumers of Calico's lines.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schemars(schema_with = "nullable_addresses")]
    pub original_source_ips: Option<Vec<IpAddr>>,
    /// Always 0; kept for consumers of Calico's lines.
    pub num_original_source_ips: u64,
    /// Packets; mean over the window's samples. 0 when not collected, as in all `tcp_` fields.
    pub tcp_mean_send_congestion_window: u64,
    /// Packets.
    pub tcp_min_send_congestion_window: u64,
    /// Microseconds.
    pub tcp_mean_smooth_rtt: u64,
    /// Microseconds.
    pub tcp_max_smooth_rtt: u64,
    /// Microseconds.
    pub tcp_mean_min_rtt: u64,
    /// Microseconds.
    pub tcp_max_min_rtt: u64,
    /// Bytes.
    pub tcp_mean_mss: u64,
    /// Bytes.
    pub tcp_min_mss: u64,
    /// Segments retransmitted in this window.
    pub tcp_total_retransmissions: u64,
    /// Segments given up as lost in this window.
    pub tcp_lost_packets: u64,
    /// Retransmission timeouts in this window that had not been recovered from.
    pub tcp_unrecovered_to: u64,
    /// Name of the node that wrote the line. `Extended` format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub host: Option<String>,
    /// `flowLogsClusterName`, else `null`. `Extended` format.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schemars(with = "Option<String>")]
    pub cluster: Option<Option<String>>,
    /// Levels 2 and 3: distinct source addresses, ascending, up to `flowLogsFileIPsLimit`; else `null`. `Extended` format.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schemars(schema_with = "nullable_addresses")]
    pub source_ips: Option<Option<Vec<IpAddr>>>,
    /// As `source_ips`, of the destination. `Extended` format.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schemars(schema_with = "nullable_addresses")]
    pub dest_ips: Option<Option<Vec<IpAddr>>>,
    /// Why the kernel dropped: its names without `SKB_DROP_REASON_`. `null`: nothing was dropped. `Extended` format.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schemars(with = "Option<Vec<String>>")]
    pub drop_reasons: Option<Option<Vec<String>>>,
    /// Whether what happened contradicts the cluster's policies. `null`: nothing was evaluated. `Extended` format.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    #[schemars(with = "Option<bool>")]
    pub policy_mismatch: Option<Option<bool>>,
    /// Kernel records that this window is known to lack; the same on each line of a window. `Extended` format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub lost_events: Option<u64>,
}

/// A field that is there, be it `null`; serde's default stands for one that is not.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn nullable_address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}, {"type": "null"}]
    })
}

fn nullable_addresses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["array", "null"],
        "items": {"anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]}
    })
}

/// Reads one line of either format.
///
/// # Errors
/// What is not one line as this version writes it: the message names the field and the column.
pub fn parse(line: &str) -> Result<FlowLogLine, serde_json::Error> {
    serde_json::from_str(line)
}

/// The JSON schema (draft 2020-12) of the line, in both formats.
pub fn schema() -> Value {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<FlowLogLine>()
        .into()
}

/// The fields of the line as a table of Markdown, in the order of the file: name, JSON type, what it says.
pub fn field_table() -> String {
    table_of(&schema(), CALICO_FIELDS.iter().chain(&EXTENDED_FIELDS))
}

pub(super) fn table_of<'a>(schema: &Value, fields: impl Iterator<Item = &'a &'static str>) -> String {
    let mut table = String::from("| field | type | content |\n|---|---|---|\n");
    for field in fields {
        let property = &schema["properties"][field];
        let description = property["description"].as_str().unwrap_or_default().replace('\n', " ");
        // Writing to a String does not fail.
        let _ = writeln!(table, "| `{field}` | {} | {description} |", type_of(property));
    }
    table
}

/// A property's JSON types in words: `string or null`.
fn type_of(property: &Value) -> String {
    if let Some(name) = property["type"].as_str() {
        return name.to_owned();
    }
    let mut names: Vec<&str> = Vec::new();
    if let Some(list) = property["type"].as_array() {
        names.extend(list.iter().filter_map(Value::as_str));
    }
    for choice in ["anyOf", "oneOf"].iter().filter_map(|key| property[key].as_array()).flatten() {
        names.extend(choice["type"].as_str());
    }
    names.dedup();
    names.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_describes_every_field_and_nothing_else() {
        let schema = schema();
        let properties = schema["properties"].as_object().unwrap();
        let mut want: Vec<&str> = CALICO_FIELDS.iter().chain(&EXTENDED_FIELDS).copied().collect();
        want.sort_unstable();
        let mut got: Vec<&str> = properties.keys().map(String::as_str).collect();
        got.sort_unstable();
        assert_eq!(got, want);
        for (name, property) in properties {
            assert!(property["description"].is_string(), "{name} has no description");
            assert!(!type_of(property).is_empty(), "{name} has no type: {property}");
        }
        let mut required: Vec<&str> =
            schema["required"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        required.sort_unstable();
        let mut calico = CALICO_FIELDS.to_vec();
        calico.sort_unstable();
        assert_eq!(required, calico, "Calico's fields are always there, those of Extended are not");
        assert_eq!(schema["additionalProperties"], Value::Bool(false));
    }

    #[test]
    fn the_tracked_schema_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/flow-log.schema.json");
        let tracked: Value = serde_json::from_slice(&std::fs::read(path).expect(path)).expect(path);
        assert_eq!(tracked, schema(), "deploy/flow-log.schema.json is stale: run `cargo xtask codegen`");
    }

    #[test]
    fn the_table_has_a_row_for_each_field() {
        let table = field_table();
        assert_eq!(table.lines().count(), 2 + CALICO_FIELDS.len() + EXTENDED_FIELDS.len());
        assert!(table.contains("| `source_ip` | string or null | Address of the source"), "{table}");
        assert!(table.contains("| `dest_type` | string | As `source_type`. |"), "{table}");
    }

    #[test]
    fn what_is_not_a_line_is_an_error() {
        for bad in ["", "{}", "[]", "{\"start_time\":1}", "null", "{\"start_time\":"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
