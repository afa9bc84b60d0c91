//! The flow log as a consumer reads it: lines of JSON.
//!
//! In: `flows.log`. Out: the columns that the demo shows and compares.
//! What always holds: a line that is no JSON object, or lacks a column, is an error with its number. The agent's library
//! is deliberately not used: what counts is what stands in the file.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use super::kernel::Count;

#[derive(Clone, Debug)]
pub struct Line {
    pub start: i64,
    pub end: i64,
    pub reporter: String,
    pub action: String,
    /// `namespace/name_aggr`, or the name alone where there is no namespace.
    pub source: String,
    pub dest: String,
    /// `namespace/name:port`.
    pub service: Option<String>,
    pub proto: String,
    pub port: Option<u16>,
    /// `[in, out]`, as the reporter sees it.
    pub counts: [Count; 2],
    pub flows: u64,
    pub started: u64,
    pub completed: u64,
    pub lost: u64,
    pub drop_reasons: Vec<String>,
    pub process: String,
    /// Mean smoothed, microseconds; 0 where it is not known.
    pub round_trip: u64,
    pub nat_ports: Vec<u64>,
    /// Addresses of both ends, as far as the line has them.
    pub addresses: Vec<String>,
}

pub fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let parsed = |(index, line): (usize, &str)| {
        let value: Value =
            serde_json::from_str(line).with_context(|| format!("line {} is no JSON", index + 1))?;
        line_of(&value).with_context(|| format!("line {} lacks a column: {line}", index + 1))
    };
    text.lines().enumerate().map(parsed).collect()
}

fn line_of(line: &Value) -> Option<Line> {
    let text = |key: &str| line.get(key)?.as_str().map(str::to_owned);
    let number = |key: &str| line.get(key)?.as_u64();
    let list = |key: &str| line.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let end = |which: &str| {
        let name = text(&format!("{which}_name_aggr"))?;
        Some(match text(&format!("{which}_namespace"))?.as_str() {
            "-" => name,
            namespace => format!("{namespace}/{name}"),
        })
    };
    let service = match text("dest_service_name")?.as_str() {
        "-" => None,
        name => Some(format!("{}/{name}:{}", text("dest_service_namespace")?, text("dest_service_port")?)),
    };
    let count = |way: &str| {
        Some(Count { packets: number(&format!("packets_{way}"))?, bytes: number(&format!("bytes_{way}"))? })
    };
    let strings =
        |key: &str| list(key).iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
    let mut addresses = [strings("source_ips"), strings("dest_ips")].concat();
    addresses.extend(["source_ip", "dest_ip"].into_iter().filter_map(text));
    Some(Line {
        start: line.get("start_time")?.as_i64()?,
        end: line.get("end_time")?.as_i64()?,
        reporter: text("reporter")?,
        action: text("action")?,
        source: end("source")?,
        dest: end("dest")?,
        service,
        proto: text("proto")?,
        port: line.get("dest_port")?.as_u64().and_then(|port| u16::try_from(port).ok()),
        counts: [count("in")?, count("out")?],
        flows: number("num_flows")?,
        started: number("num_flows_started")?,
        completed: number("num_flows_completed")?,
        lost: number("lost_events")?,
        drop_reasons: strings("drop_reasons"),
        process: text("process_name")?,
        round_trip: number("tcp_mean_smooth_rtt")?,
        nat_ports: list("nat_outgoing_ports").iter().filter_map(Value::as_u64).collect(),
        addresses,
    })
}

impl Line {
    pub fn is_silent(&self) -> bool {
        self.counts == [Count::default(); 2]
    }

    /// `4`, `6`, `4+6`, or `-` where the line has no address.
    pub fn families(&self) -> &'static str {
        let v6 = self.addresses.iter().any(|address| address.contains(':'));
        let v4 = self.addresses.iter().any(|address| !address.contains(':'));
        match (v4, v6) {
            (true, true) => "4+6",
            (true, false) => "4",
            (false, true) => "6",
            (false, false) => "-",
        }
    }
}
