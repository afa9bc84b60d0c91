//! From a captured packet to a DNS message: IP, IPv6 extension headers, UDP or TCP, then the message itself.
//!
//! In: bytes from the network header on, as hostile as the network is. Out: a [`Message`], TCP segments for
//! `stream.rs`, or the [`Fault`] that is counted. Always: nothing panics and nothing loops (properties, and a fuzz
//! target): the libraries refuse compression pointers that do not go back, and lengths beyond the packet.
//! Checksums are not looked at: the kernel that receives the packet does that, and offloading leaves them open.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};

use crate::model::DnsAnswer;

pub const PORT: u16 = 53;

/// Answers of one message that are kept.
const ANSWERS: usize = 512;
/// Bytes of one answer's data in text.
const DATA_BYTES: usize = 1024;

/// Why a packet gave no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Not IP, or cut short.
    Malformed,
    /// A part of a larger packet: its answer is not seen whole.
    Fragment,
    /// Neither port is 53.
    OtherPort,
    /// No DNS message, or one that lies about itself.
    NoMessage,
    /// Not a plain query or answer: another opcode, or not exactly one question.
    OtherMessage,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Fragment => "fragment",
            Self::OtherPort => "other_port",
            Self::NoMessage => "no_message",
            Self::OtherMessage => "other_message",
        }
    }
}

/// What an IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    Datagram(&'a [u8]),
    Segment { sequence: u32, begins: bool, ends: bool, bytes: &'a [u8] },
}

/// Who sent what to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent<'a> {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: Payload<'a>,
}

pub fn open(bytes: &[u8]) -> Result<Sent<'_>, Fault> {
    let packet = LaxSlicedPacket::from_ip(bytes).map_err(|_| Fault::Malformed)?;
    let (src, dst): (IpAddr, IpAddr) = match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            if ip.header().is_fragmenting_payload() {
                return Err(Fault::Fragment);
            }
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            if ip.extensions().is_fragmenting_payload() {
                return Err(Fault::Fragment);
            }
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        _ => return Err(Fault::Malformed),
    };
    let (ports, payload) = match &packet.transport {
        Some(TransportSlice::Udp(udp)) => {
            ((udp.source_port(), udp.destination_port()), Payload::Datagram(udp.payload()))
        }
        Some(TransportSlice::Tcp(tcp)) => (
            (tcp.source_port(), tcp.destination_port()),
            Payload::Segment {
                sequence: tcp.sequence_number(),
                begins: tcp.syn(),
                ends: tcp.fin() || tcp.rst(),
                bytes: tcp.payload(),
            },
        ),
        _ => return Err(Fault::Malformed),
    };
    if ports.0 != PORT && ports.1 != PORT {
        return Err(Fault::OtherPort);
    }
    let end = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
    Ok(Sent { from: end(src, ports.0), to: end(dst, ports.1), payload })
}

/// A query, or its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub id: u16,
    pub is_answer: bool,
    pub question: Arc<str>,
    pub kind: Arc<str>,
    pub class: Arc<str>,
    pub rcode: Arc<str>,
    pub answers: Vec<DnsAnswer>,
}

pub fn message(bytes: &[u8]) -> Result<Message, Fault> {
    let packet = Packet::parse(bytes).map_err(|_| Fault::NoMessage)?;
    let [question] = packet.questions.as_slice() else { return Err(Fault::OtherMessage) };
    if packet.opcode() != simple_dns::OPCODE::StandardQuery {
        return Err(Fault::OtherMessage);
    }
    let is_answer = packet.has_flags(PacketFlag::RESPONSE);
    let mut answers = Vec::new();
    if is_answer {
        // A negative answer tells by its authority section whose name it is.
        let told = if packet.answers.is_empty() { &packet.name_servers } else { &packet.answers };
        answers = told.iter().take(ANSWERS).map(answer).collect();
    }
    Ok(Message {
        id: packet.id(),
        is_answer,
        question: name(&question.qname),
        kind: match question.qtype {
            QTYPE::TYPE(kind) => kind_name(kind),
            QTYPE::ANY => "ANY".into(),
            other => format!("{other:?}").into(),
        },
        class: match question.qclass {
            QCLASS::CLASS(class) => class_name(class).into(),
            QCLASS::ANY => "ANY".into(),
        },
        rcode: rcode_name(packet.rcode()).into(),
        answers,
    })
}

fn answer(record: &ResourceRecord<'_>) -> DnsAnswer {
    let mut data = data(&record.rdata);
    if data.len() > DATA_BYTES {
        data.truncate(data.floor_char_boundary(DATA_BYTES));
    }
    DnsAnswer {
        name: name(&record.name),
        kind: kind_name(record.rdata.type_code()),
        data: data.into(),
        ttl_s: record.ttl,
    }
}

/// Labels may hold any octet: what is no text is shown as the replacement character.
fn name(name: &Name<'_>) -> Arc<str> {
    let mut text = String::new();
    for label in name.as_bytes() {
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(&String::from_utf8_lossy(label));
    }
    if text.is_empty() { ".".into() } else { text.into() }
}

fn data(rdata: &RData<'_>) -> String {
    match rdata {
        RData::A(a) => std::net::Ipv4Addr::from(a.address).to_string(),
        RData::AAAA(a) => std::net::Ipv6Addr::from(a.address).to_string(),
        RData::CNAME(alias) => name(&alias.0).to_string(),
        RData::NS(server) => name(&server.0).to_string(),
        RData::PTR(target) => name(&target.0).to_string(),
        RData::MX(mx) => format!("{} {}", mx.preference, name(&mx.exchange)),
        RData::SRV(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, name(&srv.target)),
        RData::SOA(soa) => format!(
            "{} {} {} {} {} {} {}",
            name(&soa.mname),
            name(&soa.rname),
            soa.serial,
            soa.refresh,
            soa.retry,
            soa.expire,
            soa.minimum
        ),
        RData::TXT(txt) => String::try_from(txt.clone()).unwrap_or_default(),
        RData::NULL(_, null) => {
            // RFC 3597: data of an unknown type.
            let bytes = null.get_data();
            let mut text = format!("\\# {}", bytes.len());
            for byte in bytes.iter().take(256) {
                text.push_str(&format!(" {byte:02x}"));
            }
            text
        }
        _ => String::new(),
    }
}

fn kind_name(kind: TYPE) -> Arc<str> {
    match kind {
        TYPE::Unknown(number) => format!("TYPE{number}").into(),
        other => format!("{other:?}").into(),
    }
}

fn class_name(class: CLASS) -> &'static str {
    match class {
        CLASS::IN => "IN",
        CLASS::CS => "CS",
        CLASS::CH => "CH",
        CLASS::HS => "HS",
        CLASS::NONE => "NONE",
    }
}

/// Calico's spelling.
fn rcode_name(rcode: RCODE) -> &'static str {
    match rcode {
        RCODE::NoError => "NoError",
        RCODE::FormatError => "FormErr",
        RCODE::ServerFailure => "ServFail",
        RCODE::NameError => "NXDomain",
        RCODE::NotImplemented => "NotImp",
        RCODE::Refused => "Refused",
        RCODE::YXDOMAIN => "YXDomain",
        RCODE::YXRRSET => "YXRRSet",
        RCODE::NXRRSET => "NXRRSet",
        RCODE::NOTAUTH => "NotAuth",
        RCODE::NOTZONE => "NotZone",
        RCODE::BADVERS => "BadVers",
        RCODE::Reserved => "Reserved",
    }
}
