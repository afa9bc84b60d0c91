//! Flows out of files: flow logs of any level, and recordings.
//!
//! In: paths, or `-`. Out: each flow as far as it is known, with its counters, told to a [`Reader`] in the files'
//! order; for recordings the objects too. What always holds: a log may be Calico's or ours, of any format: fields that
//! are not asked for are skipped; the last line of a log that is being written may be torn; every other wrong line is
//! an error with file and line. What is made of the flows is deliberately not here.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Deserialize;
use tracing::warn;

use crate::model::{Direction, EndpointKind, Observation, Proto, Timestamp};
use crate::policy::preview::{SeenEnd, SeenFlow};
use crate::snapshot::{Object, ObjectRef};
use crate::watch::{Decoded, DecodedRef, decode, decode_ref};
use crate::wire::recording::{Line, parse_line};

use super::super::{Exit, Failure, OrExit as _};

/// Bytes of a line of a log.
const LONGEST: u64 = 1 << 24;

/// What flows carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that began, or that were alive at once where none began.
    pub flows: u64,
    pub packets: u64,
    pub bytes: u64,
}

impl Counts {
    pub fn add(&mut self, other: Self) {
        self.flows = self.flows.saturating_add(other.flows);
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// One line of a flow log.
pub struct LogFlow {
    pub flow: SeenFlow,
    pub counts: Counts,
    /// Policy entries as they are written, of all lists.
    pub policies: Vec<String>,
}

/// Who is told.
pub trait Reader {
    fn log(&mut self, flow: LogFlow) -> anyhow::Result<()>;
    fn observation(&mut self, at: Timestamp, observation: &Observation) -> anyhow::Result<()>;
    fn apply(&mut self, at: Timestamp, object: Object) -> anyhow::Result<()>;
    fn delete(&mut self, at: Timestamp, object: &ObjectRef) -> anyhow::Result<()>;
}

/// Is this a file of flows, and not a manifest?
pub fn is_input(path: &Path) -> bool {
    if path.as_os_str() == "-" {
        return true;
    }
    let Ok(file) = File::open(path) else { return false };
    let first = BufReader::new(io::Read::take(file, LONGEST)).lines().map_while(Result::ok);
    let Some(line) = first.into_iter().find(|line| !line.trim().is_empty()) else {
        // An empty log has no flows; a manifest is never empty.
        return path.extension().is_none_or(|extension| extension != "yaml" && extension != "yml");
    };
    serde_json::from_str::<serde_json::Value>(&line).is_ok_and(|value| is_recording(&value) || is_log(&value))
}

fn is_recording(value: &serde_json::Value) -> bool {
    value.get("at").is_some()
}

fn is_log(value: &serde_json::Value) -> bool {
    value.get("reporter").is_some() && value.get("proto").is_some()
}

/// Tells `reader` what is in these files. `most_ips`: address lists of this length may be cut off.
pub fn read(inputs: &[std::path::PathBuf], most_ips: usize, reader: &mut impl Reader) -> anyhow::Result<()> {
    for input in inputs {
        let name = input.display().to_string();
        let text: Box<dyn BufRead> = if name == "-" {
            Box::new(io::stdin().lock())
        } else {
            let file = File::open(input)
                .with_context(|| {
                    format!("{name}: cannot be opened: give a recording, flow log files, or - for stdin")
                })
                .or_exit(Exit::NotFound)?;
            Box::new(BufReader::with_capacity(1 << 16, file))
        };
        file(&name, text, most_ips, reader)?;
    }
    Ok(())
}

fn file(
    name: &str,
    mut text: Box<dyn BufRead>,
    most_ips: usize,
    reader: &mut impl Reader,
) -> anyhow::Result<()> {
    let mut recording = None;
    let mut line = Vec::new();
    let mut number = 0_u64;
    loop {
        line.clear();
        let read = io::Read::take(&mut text, LONGEST)
            .read_until(b'\n', &mut line)
            .with_context(|| format!("{name}: cannot be read"))
            .or_exit(Exit::NotFound)?;
        if read == 0 {
            return Ok(());
        }
        number += 1;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let malformed = |problem: String| {
            Failure::new(Exit::Malformed, anyhow::anyhow!("{name}: line {number}: {problem}"))
        };
        let is_recording = *recording.get_or_insert_with(|| {
            serde_json::from_slice(&line).is_ok_and(|value: serde_json::Value| is_recording(&value))
        });
        if is_recording {
            recorded(&line, number, reader, &malformed)?;
            continue;
        }
        match serde_json::from_slice::<LogLine>(&line) {
            Ok(parsed) => reader.log(parsed.flow(most_ips).map_err(malformed)?)?,
            Err(error) if !line.ends_with(b"\n") => {
                warn!(file = name, line = number, %error, "the last line is not whole: it is left out");
            }
            Err(error) => return Err(malformed(format!("is no flow log line: {error}")).into()),
        }
    }
}

fn recorded(
    line: &[u8],
    number: u64,
    reader: &mut impl Reader,
    malformed: &impl Fn(String) -> Failure,
) -> anyhow::Result<()> {
    let (at, line) = parse_line(line, number).map_err(|error| malformed(error.to_string()))?;
    match line {
        Line::Observation(observation) => reader.observation(at, &observation),
        Line::Apply(object) => match decode(object).map_err(|error| malformed(error.to_string()))? {
            Decoded::Object(object) => reader.apply(at, object),
            Decoded::Unused { .. } | Decoded::Configuration(_) => Ok(()),
        },
        Line::Delete(key) => {
            let key = serde_json::to_value(&key).unwrap_or_default();
            match decode_ref(key).map_err(|error| malformed(error.to_string()))? {
                DecodedRef::Ref(object) => reader.delete(at, &object),
                DecodedRef::Unused { .. } | DecodedRef::Configuration(_) => Ok(()),
            }
        }
        Line::Flush => Ok(()),
    }
}

/// The fields that are asked for; Calico's own lines have them all.
#[derive(Debug, Deserialize)]
struct LogLine {
    source_ip: Option<String>,
    source_name: Arc<str>,
    source_name_aggr: Arc<str>,
    source_namespace: Arc<str>,
    source_port: Option<u16>,
    source_type: String,
    dest_ip: Option<String>,
    dest_name: Arc<str>,
    dest_name_aggr: Arc<str>,
    dest_namespace: Arc<str>,
    dest_port: Option<u16>,
    dest_type: String,
    dest_service_namespace: Option<Arc<str>>,
    dest_service_name: Option<Arc<str>>,
    proto: String,
    action: String,
    reporter: String,
    policies: Option<PolicyLists>,
    #[serde(default)]
    bytes_in: u64,
    #[serde(default)]
    bytes_out: u64,
    #[serde(default)]
    packets_in: u64,
    #[serde(default)]
    packets_out: u64,
    #[serde(default)]
    num_flows: u64,
    #[serde(default)]
    num_flows_started: u64,
    source_ips: Option<Vec<String>>,
    dest_ips: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
struct PolicyLists {
    enforced_policies: Option<Vec<String>>,
    pending_policies: Option<Vec<String>>,
    all_policies: Option<Vec<String>>,
}

/// `"-"` stands for what is not there.
fn some(text: Arc<str>) -> Option<Arc<str>> {
    (&*text != "-" && !text.is_empty()).then_some(text)
}

impl LogLine {
    fn flow(self, most_ips: usize) -> Result<LogFlow, String> {
        let proto: Proto = self.proto.parse()?;
        let reporter = match &*self.reporter {
            "src" => Direction::Egress,
            "dst" => Direction::Ingress,
            other => return Err(format!("reporter {other:?} is neither src nor dst")),
        };
        let passed = match &*self.action {
            "allow" => true,
            "deny" => false,
            other => return Err(format!("action {other:?} is neither allow nor deny")),
        };
        let ips = |one: Option<String>, list: Option<Vec<String>>| -> Result<Vec<_>, String> {
            // A list at its limit may lack some.
            let list = list.filter(|list| list.len() < most_ips).unwrap_or_default();
            let texts = one.filter(|ip| ip != "-").map_or(list, |one| vec![one]);
            let parsed = texts.iter().map(|text| {
                text.parse()
                    .map(crate::model::canonical)
                    .map_err(|_| format!("{text:?} is not an IP address"))
            });
            parsed.collect()
        };
        let source = SeenEnd {
            kind: kind(&self.source_type)?,
            namespace: some(self.source_namespace),
            name: some(self.source_name),
            name_aggr: self.source_name_aggr,
            ips: ips(self.source_ip, self.source_ips)?,
            port: self.source_port.filter(|_| proto.has_ports()),
            endpoint: None,
        };
        let dest = SeenEnd {
            kind: kind(&self.dest_type)?,
            namespace: some(self.dest_namespace),
            name: some(self.dest_name),
            name_aggr: self.dest_name_aggr,
            ips: ips(self.dest_ip, self.dest_ips)?,
            port: self.dest_port.filter(|_| proto.has_ports()),
            endpoint: None,
        };
        // What was asked of the destination's policies: nothing, where the node itself was the source.
        let asked = self.policies.as_ref().map(|lists| {
            let lists = [&lists.enforced_policies, &lists.all_policies];
            lists.into_iter().flatten().any(|list| !list.is_empty())
        });
        let is_exempt = match reporter {
            Direction::Egress => (source.kind == EndpointKind::Wep).then_some(false),
            Direction::Ingress => asked.map(|asked| !asked && dest.kind == EndpointKind::Wep),
        };
        let service = self.dest_service_namespace.and_then(some).zip(self.dest_service_name.and_then(some));
        let lists = self.policies.unwrap_or_default();
        let lists = [lists.enforced_policies, lists.pending_policies, lists.all_policies];
        Ok(LogFlow {
            flow: SeenFlow {
                proto,
                icmp: None,
                ends: [source, dest],
                reporter,
                passed: Some(passed),
                service: service.filter(|(namespace, name)| &**namespace != "*" && &**name != "*"),
                is_exempt,
            },
            counts: Counts {
                flows: if self.num_flows_started > 0 {
                    self.num_flows_started
                } else {
                    self.num_flows.min(1)
                },
                packets: self.packets_in.saturating_add(self.packets_out),
                bytes: self.bytes_in.saturating_add(self.bytes_out),
            },
            policies: lists.into_iter().flatten().flatten().collect(),
        })
    }
}

fn kind(text: &str) -> Result<EndpointKind, String> {
    [EndpointKind::Wep, EndpointKind::Hep, EndpointKind::Ns, EndpointKind::Net]
        .into_iter()
        .find(|kind| kind.name() == text)
        .ok_or_else(|| format!("type {text:?} is none of wep, hep, ns and net"))
}
