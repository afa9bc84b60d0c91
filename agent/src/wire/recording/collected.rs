//! The kinds of lines that collectors tell: TCP statistics, processes, lookups.
//!
//! In and out as in `kinds`, of which this is the part that is there only with a collector switched on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{DnsAnswer, DnsRecord, FiveTuple, FlowSide, Observation, ProcessRecord, Proto, TcpRecord};

use super::Line;
use super::error::Fault;
use super::fields::{Count, Ip, Number32, Port, ProtoName};
use super::kinds::{Ends, five_tuple};

/// A pod's uid is a UUID, or, of a static pod, a hash of 32 digits.
const UID_BYTES: usize = 64;

five_tuple!(Tcp, "tcp");
five_tuple!(Process, "process");

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tcp {
    proto: ProtoName,
    src: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    src_port: Option<Port>,
    dst: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dst_port: Option<Port>,
    srtt_us: Count,
    min_rtt_us: Count,
    send_cwnd: Count,
    mss: Count,
    retransmits: Count,
    lost: Count,
    unrecovered_rto: Count,
}

impl Tcp {
    pub fn of(record: &TcpRecord) -> Self {
        let Ends { src, src_port, dst, dst_port } = Ends::of(record.tuple.proto, &record.tuple.addresses);
        Self {
            proto: ProtoName(record.tuple.proto),
            src,
            src_port,
            dst,
            dst_port,
            srtt_us: Count(record.srtt_us),
            min_rtt_us: Count(record.min_rtt_us),
            send_cwnd: Count(record.send_cwnd),
            mss: Count(record.mss),
            retransmits: Count(record.retransmits),
            lost: Count(record.lost),
            unrecovered_rto: Count(record.unrecovered_rto),
        }
    }

    pub fn build(self) -> Result<Line, Fault> {
        Ok(Line::Observation(Observation::Tcp(TcpRecord {
            tuple: self.tuple()?,
            srtt_us: self.srtt_us.0,
            min_rtt_us: self.min_rtt_us.0,
            send_cwnd: self.send_cwnd.0,
            mss: self.mss.0,
            retransmits: self.retransmits.0,
            lost: self.lost.0,
            unrecovered_rto: self.unrecovered_rto.0,
        })))
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SideName {
    Src,
    Dst,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    proto: ProtoName,
    src: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    src_port: Option<Port>,
    dst: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dst_port: Option<Port>,
    end: SideName,
    pid: Number32,
    name: Arc<str>,
    args: Arc<[Arc<str>]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod_uid: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    container: Option<Arc<str>>,
}

impl Process {
    pub fn of(record: &ProcessRecord) -> Self {
        let Ends { src, src_port, dst, dst_port } = Ends::of(record.tuple.proto, &record.tuple.addresses);
        let end = if record.side == FlowSide::Src { SideName::Src } else { SideName::Dst };
        Self {
            proto: ProtoName(record.tuple.proto),
            src,
            src_port,
            dst,
            dst_port,
            end,
            pid: Number32(record.pid),
            name: record.name.clone(),
            args: record.args.clone(),
            pod_uid: record.pod_uid.clone(),
            container: record.container.clone(),
        }
    }

    pub fn build(self) -> Result<Line, Fault> {
        Ok(Line::Observation(Observation::Process(ProcessRecord {
            tuple: self.tuple()?,
            side: match self.end {
                SideName::Src => FlowSide::Src,
                SideName::Dst => FlowSide::Dst,
            },
            pid: self.pid.0,
            name: self.name,
            args: self.args,
            // A longer one is no uid, and would be kept for every port.
            pod_uid: self.pod_uid.filter(|uid| uid.len() <= UID_BYTES),
            container: self.container,
        })))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    name: Arc<str>,
    #[serde(rename = "type")]
    kind: Arc<str>,
    data: Arc<str>,
    ttl_s: Number32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    client: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_port: Option<Port>,
    /// Of the client's port; udp where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proto: Option<ProtoName>,
    server: Ip,
    question: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    qtype: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    qclass: Option<Arc<str>>,
    rcode: Arc<str>,
    latency_us: Count,
    answers: Vec<Answer>,
}

impl Dns {
    pub fn of(record: &DnsRecord) -> Self {
        let answers = record.answers.iter().map(|answer| Answer {
            name: answer.name.clone(),
            kind: answer.kind.clone(),
            data: answer.data.clone(),
            ttl_s: Number32(answer.ttl_s),
        });
        Self {
            client: Ip(record.client),
            client_port: record.client_port.map(|(_, port)| Port(port)),
            proto: record.client_port.map(|(proto, _)| ProtoName(proto)),
            server: Ip(record.server),
            question: record.question.clone(),
            qtype: record.qtype.clone(),
            qclass: record.qclass.clone(),
            rcode: record.rcode.clone(),
            latency_us: Count(record.latency_us),
            answers: answers.collect(),
        }
    }

    pub fn build(self) -> Result<Line, Fault> {
        if self.proto.is_some() && self.client_port.is_none() {
            return Err(Fault::new("dns.proto", "is the client port's, which is not said"));
        }
        let answers = self.answers.into_iter().map(|answer| DnsAnswer {
            name: answer.name,
            kind: answer.kind,
            data: answer.data,
            ttl_s: answer.ttl_s.0,
        });
        Ok(Line::Observation(Observation::Dns(DnsRecord {
            client: self.client.0,
            client_port: self.client_port.map(|port| (self.proto.map_or(Proto::UDP, |p| p.0), port.0)),
            server: self.server.0,
            question: self.question,
            qtype: self.qtype,
            qclass: self.qclass,
            rcode: self.rcode,
            latency_us: self.latency_us.0,
            answers: answers.collect(),
        })))
    }
}
