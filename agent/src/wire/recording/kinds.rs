//! The kinds of lines, field by field, as they stand in the text, and the way from and to the model.
//!
//! In: the content of one kind. Out: an `Observation`, or the [`Fault`] between fields: a tuple of two address
//! families, a port that a protocol must have or cannot have. What always holds: `build` and `of` are inverse for
//! what `build` accepts. Deliberately not here: names and ranges of single values (`fields`), the line around the
//! kind (`recording`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{
    Action, Addresses, ConnectionEvent, ConnectionRecord, Counters, Direction, Directional, DropRecord,
    FiveTuple, Hit, Icmp, Observation, PolicyKind, Proto, TcpState, Trace, VerdictRecord, VerdictSet,
};

use super::Line;
use super::collected::{Dns, Process, Tcp};
use super::error::Fault;
use super::fields::{self, Count, Ip, Number8, Number16, Pair, Port, ProtoName, RuleIndex};

/// Which Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectKey {
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    pub kind: String,
    /// `None`: the object is cluster-scoped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
}

/// Appends `"<kind>":{…}`.
pub fn write(out: &mut Vec<u8>, observation: &Observation) -> Result<(), serde_json::Error> {
    fn put(out: &mut Vec<u8>, kind: &str, content: impl Serialize) -> Result<(), serde_json::Error> {
        serde_json::to_writer(&mut *out, kind)?;
        out.push(b':');
        serde_json::to_writer(out, &content)
    }
    match observation {
        Observation::Connection(record) => put(out, "conntrack", Conntrack::of(record)),
        Observation::Drop(record) => put(out, "drop", Drop::of(record)),
        Observation::Verdict(record) => put(out, "verdict", Verdict::of(record)),
        Observation::Tcp(record) => put(out, "tcp", Tcp::of(record)),
        Observation::Process(record) => put(out, "process", Process::of(record)),
        Observation::Dns(record) => put(out, "dns", Dns::of(record)),
        Observation::Lost { stage, events } => {
            put(out, "lost", Lost { stage: stage.clone(), events: Count(*events) })
        }
    }
}

/// Addresses and ports of one direction.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ends {
    pub src: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_port: Option<Port>,
    pub dst: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst_port: Option<Port>,
}

impl Ends {
    pub fn of(proto: Proto, addresses: &Addresses) -> Self {
        let port = |port| proto.has_ports().then_some(Port(port));
        Self {
            src: Ip(addresses.src),
            src_port: port(addresses.src_port),
            dst: Ip(addresses.dst),
            dst_port: port(addresses.dst_port),
        }
    }

    /// `path`: of the object that holds the four fields.
    pub fn build(&self, proto: Proto, path: &str) -> Result<Addresses, Fault> {
        if self.src.0.is_ipv4() != self.dst.0.is_ipv4() {
            return Err(Fault::new(
                &format!("{path}.dst"),
                format!(
                    "{} and {} are of two address families: both ends of a tuple are IPv4, or both IPv6",
                    self.src.0, self.dst.0
                ),
            ));
        }
        let port = |port: Option<Port>, name: &str| match (proto.has_ports(), port) {
            (true, Some(port)) => Ok(port.0),
            (true, None) => Err(Fault::new(
                &format!("{path}.{name}"),
                format!("it is missing: protocol {proto} has ports (0 to 65535)"),
            )),
            // What a recorder put there (an ICMP identifier, say) is no port.
            (false, _) => Ok(0),
        };
        Ok(Addresses {
            src: self.src.0,
            dst: self.dst.0,
            src_port: port(self.src_port, "src_port")?,
            dst_port: port(self.dst_port, "dst_port")?,
        })
    }
}

/// Both directions of one packet path are of one family: NAT64 happens outside of conntrack.
fn same_family(a: &Addresses, b: &Addresses, field: &str) -> Result<(), Fault> {
    if a.src.is_ipv4() == b.src.is_ipv4() {
        return Ok(());
    }
    Err(Fault::new(
        field,
        format!("{} and {} are of two address families: a connection has one", a.src, b.src),
    ))
}

/// A line with a five-tuple among its fields. serde cannot both flatten fields and refuse unknown ones, so each
/// such struct names the five, and this puts them together.
macro_rules! five_tuple {
    ($line:ty, $kind:literal) => {
        impl $line {
            fn tuple(&self) -> Result<FiveTuple, Fault> {
                let ends =
                    Ends { src: self.src, src_port: self.src_port, dst: self.dst, dst_port: self.dst_port };
                Ok(FiveTuple { proto: self.proto.0, addresses: ends.build(self.proto.0, $kind)? })
            }
        }
    };
}

pub(super) use five_tuple;

five_tuple!(Drop, "drop");
five_tuple!(Verdict, "verdict");

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IcmpFields {
    #[serde(rename = "type")]
    kind: Number8,
    code: Number8,
    id: Number16,
}

impl IcmpFields {
    fn of(icmp: Icmp) -> Self {
        Self { kind: Number8(icmp.kind), code: Number8(icmp.code), id: Number16(icmp.id) }
    }

    /// Of ICMP alone: on another protocol it says nothing, and must not become part of a connection's identity.
    fn build(icmp: Option<Self>, proto: Proto) -> Option<Icmp> {
        icmp.filter(|_| proto.is_icmp()).map(|icmp| Icmp {
            kind: icmp.kind.0,
            code: icmp.code.0,
            id: icmp.id.0,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EventName {
    New,
    Adopt,
    Update,
    End,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conntrack {
    event: EventName,
    proto: ProtoName,
    original: Ends,
    reply: Ends,
    packets: Pair,
    bytes: Pair,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "fields::tcp_state")]
    tcp_state: Option<TcpState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    icmp: Option<IcmpFields>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<Number16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    confirmed: Option<bool>,
}

impl Conntrack {
    fn of(record: &ConnectionRecord) -> Self {
        let (event, confirmed) = match record.event {
            ConnectionEvent::New => (EventName::New, None),
            ConnectionEvent::Adopt => (EventName::Adopt, None),
            ConnectionEvent::Update => (EventName::Update, None),
            ConnectionEvent::End { confirmed } => (EventName::End, (!confirmed).then_some(false)),
        };
        let Directional { original, reply } = record.counters;
        Self {
            event,
            proto: ProtoName(record.proto),
            original: Ends::of(record.proto, &record.original),
            reply: Ends::of(record.proto, &record.reply),
            packets: Pair { original: original.packets, reply: reply.packets },
            bytes: Pair { original: original.bytes, reply: reply.bytes },
            tcp_state: record.tcp_state,
            icmp: record.icmp.map(IcmpFields::of),
            zone: (record.zone != 0).then_some(Number16(record.zone)),
            confirmed,
        }
    }

    pub fn build(self) -> Result<Line, Fault> {
        let event = match (self.event, self.confirmed) {
            (EventName::New, None) => ConnectionEvent::New,
            (EventName::Adopt, None) => ConnectionEvent::Adopt,
            (EventName::Update, None) => ConnectionEvent::Update,
            (EventName::End, confirmed) => ConnectionEvent::End { confirmed: confirmed.unwrap_or(true) },
            (_, Some(_)) => {
                return Err(Fault::new("conntrack.confirmed", "only event `end` has it: leave it out"));
            }
        };
        let proto = self.proto.0;
        let original = self.original.build(proto, "conntrack.original")?;
        let reply = self.reply.build(proto, "conntrack.reply")?;
        same_family(&original, &reply, "conntrack.reply.src")?;
        Ok(Line::Observation(Observation::Connection(ConnectionRecord {
            event,
            proto,
            original,
            reply,
            icmp: IcmpFields::build(self.icmp, proto),
            zone: self.zone.map_or(0, |zone| zone.0),
            counters: Directional {
                original: Counters::new(self.packets.original, self.bytes.original),
                reply: Counters::new(self.packets.reply, self.bytes.reply),
            },
            // Of TCP alone, like `icmp` above.
            tcp_state: self.tcp_state.filter(|_| proto == Proto::TCP),
        })))
    }
}

/// The kernel's prefix of drop reasons; the contract's names are without it, and a pasted one means the same.
const REASON_PREFIX: &str = "SKB_DROP_REASON_";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drop {
    proto: ProtoName,
    src: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    src_port: Option<Port>,
    dst: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dst_port: Option<Port>,
    packets: Count,
    bytes: Count,
    reason: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    original: Option<Ends>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    icmp: Option<IcmpFields>,
}

impl Drop {
    fn of(record: &DropRecord) -> Self {
        let proto = record.tuple.proto;
        let Ends { src, src_port, dst, dst_port } = Ends::of(proto, &record.tuple.addresses);
        Self {
            proto: ProtoName(proto),
            src,
            src_port,
            dst,
            dst_port,
            packets: Count(record.packets),
            bytes: Count(record.bytes),
            reason: record.reason.clone(),
            original: record.original.map(|original| Ends::of(proto, &original)),
            icmp: record.icmp.map(IcmpFields::of),
        }
    }

    pub fn build(self) -> Result<Line, Fault> {
        let tuple = self.tuple()?;
        let original = match &self.original {
            Some(ends) => {
                let original = ends.build(tuple.proto, "drop.original")?;
                same_family(&tuple.addresses, &original, "drop.original.src")?;
                Some(original)
            }
            None => None,
        };
        let reason = match self.reason.strip_prefix(REASON_PREFIX) {
            Some(short) => short.into(),
            None => self.reason,
        };
        if reason.is_empty() {
            return Err(Fault::new(
                "drop.reason",
                "it is empty: write the kernel's name, such as NETFILTER_DROP",
            ));
        }
        Ok(Line::Observation(Observation::Drop(DropRecord {
            tuple,
            original,
            icmp: IcmpFields::build(self.icmp, tuple.proto),
            packets: self.packets.0,
            bytes: self.bytes.0,
            reason,
        })))
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DirectionName {
    Ingress,
    Egress,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SetName {
    Enforced,
    Pending,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HitFields {
    tier: Arc<str>,
    #[serde(with = "fields::policy_kind")]
    kind: PolicyKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<Arc<str>>,
    name: Arc<str>,
    #[serde(with = "fields::action")]
    action: Action,
    rule: RuleIndex,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    proto: ProtoName,
    src: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    src_port: Option<Port>,
    dst: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dst_port: Option<Port>,
    direction: DirectionName,
    hits: Vec<HitFields>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    set: Option<SetName>,
}

impl Verdict {
    fn of(record: &VerdictRecord) -> Self {
        let Ends { src, src_port, dst, dst_port } = Ends::of(record.tuple.proto, &record.tuple.addresses);
        let hits = record.hits.0.iter().map(|hit| HitFields {
            tier: hit.tier.clone(),
            kind: hit.kind,
            namespace: hit.namespace.clone(),
            name: hit.name.clone(),
            action: hit.action,
            rule: RuleIndex(hit.rule),
        });
        Self {
            proto: ProtoName(record.tuple.proto),
            src,
            src_port,
            dst,
            dst_port,
            direction: match record.direction {
                Direction::Ingress => DirectionName::Ingress,
                Direction::Egress => DirectionName::Egress,
            },
            hits: hits.collect(),
            set: match record.set {
                VerdictSet::Enforced => None,
                VerdictSet::Pending => Some(SetName::Pending),
            },
        }
    }

    pub fn build(self) -> Result<Line, Fault> {
        let tuple = self.tuple()?;
        let hits = self.hits.into_iter().map(|hit| Hit {
            tier: hit.tier,
            kind: hit.kind,
            // No namespace has an empty name; some writers say "none" so.
            namespace: hit.namespace.filter(|namespace| !namespace.is_empty()),
            name: hit.name,
            action: hit.action,
            rule: hit.rule.0,
        });
        Ok(Line::Observation(Observation::Verdict(VerdictRecord {
            tuple,
            direction: match self.direction {
                DirectionName::Ingress => Direction::Ingress,
                DirectionName::Egress => Direction::Egress,
            },
            set: match self.set {
                None | Some(SetName::Enforced) => VerdictSet::Enforced,
                Some(SetName::Pending) => VerdictSet::Pending,
            },
            hits: Trace(hits.collect()),
        })))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lost {
    stage: Arc<str>,
    events: Count,
}

impl Lost {
    pub fn build(self) -> Line {
        Line::Observation(Observation::Lost { stage: self.stage, events: self.events.0 })
    }
}

/// `{}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flush {}
