//! The DNS log's line: lookups of one window that share their client, question and answer, as one object of JSON.
//!
//! In: [`DnsLogs`]. Out: bytes, one line a record, and one `UNLOGGED` line where lookups were left out. What always
//! holds: the fields and their order are Calico's (its documentation of DNS log fields, and its public samples where
//! that page names no form: times in RFC 3339, labels as an object); [`DnsLogLine`] reads every line that is written,
//! with no field unknown (a property), and is what the schema in `deploy/` is made of.
//! Deliberately not here: sorting, counting and limits (the window's), files (the sink's).

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::flow_log::json;
use crate::model::{DnsEnd, DnsLog, DnsLogs, Labels, Timestamp};

/// `,"key":` as bytes, put together by the compiler.
macro_rules! key {
    ($out:expr, $key:literal) => {
        $out.extend_from_slice(concat!(",\"", $key, "\":").as_bytes())
    };
}

/// Appends all lines of a window; says how many.
pub fn encode_all(logs: &DnsLogs, out: &mut Vec<u8>) -> u64 {
    for log in &logs.records {
        begin(logs, "LOG", log.count, out);
        encode(log, out);
    }
    if logs.unlogged > 0 {
        begin(logs, "UNLOGGED", logs.unlogged, out);
        out.extend_from_slice(b"}\n");
    }
    logs.records.len() as u64 + u64::from(logs.unlogged > 0)
}

fn begin(logs: &DnsLogs, kind: &str, count: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"start_time\":");
    time(logs.start, out);
    key!(out, "end_time");
    time(logs.end, out);
    key!(out, "type");
    json::string(kind, out);
    key!(out, "count");
    json::unsigned(count, out);
}

fn encode(log: &DnsLog, out: &mut Vec<u8>) {
    key!(out, "client_name");
    json::string(log.client.name.as_deref().unwrap_or("-"), out);
    key!(out, "client_name_aggr");
    json::string(&log.client.name_aggr, out);
    key!(out, "client_namespace");
    json::string(log.client.namespace.as_deref().unwrap_or("-"), out);
    key!(out, "client_ip");
    address(log.client.ip, out);
    key!(out, "client_labels");
    labels(log.client.labels.as_ref(), out);
    key!(out, "servers");
    list(&log.servers, out, server);
    key!(out, "qname");
    json::string(&log.question, out);
    key!(out, "qclass");
    json::string(&log.class, out);
    key!(out, "qtype");
    json::string(&log.kind, out);
    key!(out, "rcode");
    json::string(&log.rcode, out);
    key!(out, "rrsets");
    list(&log.rrsets, out, |((name, class, kind), data), out| {
        out.extend_from_slice(b"{\"name\":");
        json::string(name, out);
        key!(out, "class");
        json::string(class, out);
        key!(out, "type");
        json::string(kind, out);
        key!(out, "rdata");
        list(data, out, |value, out| json::string(value, out));
        out.push(b'}');
    });
    let latency = log.latency;
    out.extend_from_slice(b",\"latency\":{\"count\":");
    json::unsigned(latency.count, out);
    key!(out, "mean");
    json::unsigned(latency.mean, out);
    key!(out, "max");
    json::unsigned(latency.max, out);
    out.push(b'}');
    key!(out, "latency_count");
    json::unsigned(latency.count, out);
    key!(out, "latency_mean");
    json::unsigned(latency.mean, out);
    key!(out, "latency_max");
    json::unsigned(latency.max, out);
    out.extend_from_slice(b"}\n");
}

fn server(end: &DnsEnd, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"name\":");
    json::string(end.name.as_deref().unwrap_or("-"), out);
    key!(out, "name_aggr");
    json::string(&end.name_aggr, out);
    key!(out, "namespace");
    json::string(end.namespace.as_deref().unwrap_or("-"), out);
    key!(out, "ip");
    address(end.ip, out);
    key!(out, "labels");
    labels(end.labels.as_ref(), out);
    out.push(b'}');
}

fn labels(labels: Option<&Labels>, out: &mut Vec<u8>) {
    let Some(labels) = labels else {
        out.extend_from_slice(b"null");
        return;
    };
    out.push(b'{');
    let shown = labels.iter().filter(|(key, _)| !key.starts_with("projectcalico.org/"));
    for (n, (key, value)) in shown.enumerate() {
        if n > 0 {
            out.push(b',');
        }
        json::string(key, out);
        out.push(b':');
        json::string(value, out);
    }
    out.push(b'}');
}

fn address(ip: Option<IpAddr>, out: &mut Vec<u8>) {
    match ip {
        Some(ip) => json::address(ip, out),
        None => out.extend_from_slice(b"null"),
    }
}

fn list<T>(items: impl IntoIterator<Item = T>, out: &mut Vec<u8>, mut write: impl FnMut(T, &mut Vec<u8>)) {
    out.push(b'[');
    for (n, item) in items.into_iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write(item, out);
    }
    out.push(b']');
}

/// RFC 3339, whole seconds, floored.
fn time(at: Timestamp, out: &mut Vec<u8>) {
    let text = jiff::Timestamp::from_second(at.floor_seconds()).unwrap_or_default().to_string();
    json::string(&text, out);
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
pub enum DnsLineType {
    /// Lookups with their details.
    Log,
    /// The number of lookups that were left out; no other field is there.
    Unlogged,
}

/// Records of one name, class and type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct DnsRrSet {
    pub name: String,
    pub class: String,
    pub r#type: String,
    /// Distinct, sorted as text.
    pub rdata: Vec<String>,
}

/// A server that gave this answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct DnsServerColumns {
    /// The pod or host endpoint, `"-"` where it is none.
    pub name: String,
    /// Its name without the part that changes; `pub` or `pvt` where it is no endpoint.
    pub name_aggr: String,
    pub namespace: String,
    #[schemars(with = "String")]
    pub ip: IpAddr,
    /// `null` if `dnsLogsFileIncludeLabels` is off.
    pub labels: Option<BTreeMap<String, String>>,
}

/// Nanoseconds between a question and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct DnsLatencyColumns {
    pub count: u64,
    pub mean: u64,
    pub max: u64,
}

/// One line of `dns.log`: the lookups of one window that share client, question and answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "flowlogd DNS log line")]
pub struct DnsLogLine {
    /// Start of the window, RFC 3339, whole seconds.
    pub start_time: String,
    /// End of the window.
    pub end_time: String,
    /// `LOG`, or `UNLOGGED`: how many lookups had no line because of `dnsLogsFilePerNodeLimit` or of memory. Such a line ends after `count`.
    pub r#type: DnsLineType,
    /// How many lookups there were.
    pub count: u64,
    /// The pod that asked, on the host network too where its process is known (else the node). `"-"` with `dnsLogsFileAggregationKind` 1.
    #[serde(default)]
    pub client_name: Option<String>,
    /// Its `generateName` and `*`, or its name; `pub` or `pvt` where it is no endpoint.
    #[serde(default)]
    pub client_name_aggr: Option<String>,
    /// Its namespace, `"-"` where there is none.
    #[serde(default)]
    pub client_namespace: Option<String>,
    /// `null` with `dnsLogsFileAggregationKind` 1.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub client_ip: Option<IpAddr>,
    /// Labels that all clients of the line share. `null` if `dnsLogsFileIncludeLabels` is off.
    #[serde(default)]
    pub client_labels: Option<BTreeMap<String, String>>,
    /// The servers that gave this answer.
    #[serde(default)]
    pub servers: Option<Vec<DnsServerColumns>>,
    /// The name that was asked for, in lower case.
    #[serde(default)]
    pub qname: Option<String>,
    /// The class that was asked for, mostly `IN`.
    #[serde(default)]
    pub qclass: Option<String>,
    /// The type that was asked for, such as `A`.
    #[serde(default)]
    pub qtype: Option<String>,
    /// The answer's code, such as `NoError`, `NXDomain`, `ServFail`.
    #[serde(default)]
    pub rcode: Option<String>,
    /// What was answered; of a negative answer, whose name it is.
    #[serde(default)]
    pub rrsets: Option<Vec<DnsRrSet>>,
    /// The three fields below, as one.
    #[serde(default)]
    pub latency: Option<DnsLatencyColumns>,
    /// Lookups of which the latency was measured.
    #[serde(default)]
    pub latency_count: Option<u64>,
    /// Their mean latency, nanoseconds.
    #[serde(default)]
    pub latency_mean: Option<u64>,
    /// Their greatest latency, nanoseconds.
    #[serde(default)]
    pub latency_max: Option<u64>,
}

/// The fields of a line, in the order of the file.
pub const FIELDS: [&str; 19] = [
    "start_time",
    "end_time",
    "type",
    "count",
    "client_name",
    "client_name_aggr",
    "client_namespace",
    "client_ip",
    "client_labels",
    "servers",
    "qname",
    "qclass",
    "qtype",
    "rcode",
    "rrsets",
    "latency",
    "latency_count",
    "latency_mean",
    "latency_max",
];

/// The JSON schema (draft 2020-12) of the line. Of an `UNLOGGED` line only the required fields are there.
pub fn schema() -> Value {
    SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<DnsLogLine>().into()
}

/// The fields as a table of Markdown.
pub fn field_table() -> String {
    super::schema::table_of(&schema(), FIELDS.iter())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{DnsLatency, RrSets};

    fn text() -> impl Strategy<Value = std::sync::Arc<str>> {
        any::<String>().prop_map(Into::into)
    }

    fn end() -> impl Strategy<Value = DnsEnd> {
        let labels = prop::option::of(prop::collection::vec((text(), text()), 0..3).prop_map(Labels::new));
        (prop::option::of(text()), text(), prop::option::of(text()), any::<[u8; 16]>(), labels).prop_map(
            |(name, name_aggr, namespace, ip, labels)| DnsEnd {
                name,
                name_aggr,
                namespace,
                ip: Some(IpAddr::from(ip).to_canonical()),
                labels,
            },
        )
    }

    fn log() -> impl Strategy<Value = DnsLog> {
        let rrset = ((text(), text(), text()), prop::collection::vec(text(), 0..3));
        let rrsets = prop::collection::vec(rrset, 0..3).prop_map(|sets| sets.into_iter().collect::<RrSets>());
        let latency = any::<[u64; 3]>().prop_map(|[count, mean, max]| DnsLatency { count, mean, max });
        let asked = (text(), text(), text(), text());
        (any::<u64>(), end(), prop::collection::vec(end(), 0..3), asked, rrsets, latency).prop_map(
            |(count, client, servers, (question, class, kind, rcode), rrsets, latency)| DnsLog {
                count,
                client,
                servers,
                question,
                class,
                kind,
                rcode,
                rrsets,
                latency,
            },
        )
    }

    proptest! {
        /// Every line is one of the schema's, has the fields in their order, and reads back as what it tells.
        #[test]
        fn lines_read_back(records in prop::collection::vec(log(), 0..3), unlogged in 0..3_u64, start in 0..1_i64 << 60) {
            let validator = jsonschema::validator_for(&schema()).unwrap();
            let logs = DnsLogs { start: Timestamp(start), end: Timestamp(start + 1), records, unlogged };
            let mut out = Vec::new();
            let count = encode_all(&logs, &mut out);
            let lines: Vec<&[u8]> = out.split_inclusive(|byte| *byte == b'\n').collect();
            prop_assert_eq!(lines.len() as u64, count);
            for (line, log) in lines.iter().zip(&logs.records) {
                let value: Value = serde_json::from_slice(line).unwrap();
                prop_assert!(validator.is_valid(&value), "{}", value);
                let read: DnsLogLine = serde_json::from_slice(line).unwrap();
                prop_assert_eq!(read.qname.as_deref(), Some(&*log.question));
                prop_assert_eq!(read.latency_max, Some(log.latency.max));
                prop_assert_eq!(read.rrsets.map(|sets| sets.len()), Some(log.rrsets.len()));
                prop_assert_eq!(read.client_ip, log.client.ip);
            }
            if unlogged > 0 {
                let read: DnsLogLine = serde_json::from_slice(lines.last().unwrap()).unwrap();
                prop_assert_eq!((read.r#type, read.count, read.qname), (DnsLineType::Unlogged, unlogged, None));
            }
        }
    }

    #[test]
    fn the_schema_describes_every_field_and_the_tracked_one_is_this() {
        let schema = schema();
        let properties = schema["properties"].as_object().unwrap();
        assert_eq!(properties.len(), FIELDS.len());
        for field in FIELDS {
            assert!(properties[field]["description"].is_string(), "{field} has no description");
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/dns-log.schema.json");
        let tracked: Value = serde_json::from_slice(&std::fs::read(path).expect(path)).expect(path);
        assert_eq!(tracked, schema, "deploy/dns-log.schema.json is stale: run `cargo xtask codegen`");
    }

    #[test]
    fn times_and_forms_are_calicos() {
        let client = DnsEnd {
            name: None,
            name_aggr: "web-*".into(),
            namespace: Some("shop".into()),
            ip: None,
            labels: Some(Labels::new([("app".into(), "web".into())])),
        };
        let mut rrsets = RrSets::new();
        rrsets.insert(("a.example".into(), "IN".into(), "A".into()), vec!["192.0.2.1".into()]);
        let log = DnsLog {
            count: 2,
            client,
            servers: Vec::new(),
            question: "a.example".into(),
            class: "IN".into(),
            kind: "A".into(),
            rcode: "NoError".into(),
            rrsets,
            latency: DnsLatency { count: 2, mean: 1500, max: 2000 },
        };
        let (start, end) = (Timestamp(1_767_225_600_900_000_000), Timestamp(1_767_225_900_000_000_000));
        let mut out = Vec::new();
        encode_all(&DnsLogs { start, end, records: vec![log], unlogged: 3 }, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            concat!(
                r#"{"start_time":"2026-01-01T00:00:00Z","end_time":"2026-01-01T00:05:00Z","type":"LOG","count":2,"#,
                r#""client_name":"-","client_name_aggr":"web-*","client_namespace":"shop","client_ip":null,"#,
                r#""client_labels":{"app":"web"},"servers":[],"qname":"a.example","qclass":"IN","qtype":"A","#,
                r#""rcode":"NoError","rrsets":[{"name":"a.example","class":"IN","type":"A","rdata":["192.0.2.1"]}],"#,
                r#""latency":{"count":2,"mean":1500,"max":2000},"latency_count":2,"latency_mean":1500,"latency_max":2000}"#,
                "\n",
                r#"{"start_time":"2026-01-01T00:00:00Z","end_time":"2026-01-01T00:05:00Z","type":"UNLOGGED","count":3}"#,
                "\n",
            )
        );
    }
}
