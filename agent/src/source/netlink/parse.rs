//! One ctnetlink message as bytes in, one [`CtMessage`] out.
//!
//! Pure: no socket, no clock, no state. Never panics and never allocates on whatever bytes it is given
//! (its tests throw any bytes at `parse_message`). Attributes it does not know are passed over, so that a
//! newer kernel's additions do no harm; attributes it knows must have their exact size.
//!
//! Why not netlink-packet-netfilter: its 0.4 leaves counters, id, zone and timestamps as raw bytes and copies
//! every attribute into a vector. Why not netlink-packet-core's iterator either: it checks and reads each attribute's
//! length four times over, which was a fifth of the source's CPU time.
//! Numbers are from include/uapi/linux/netfilter/nfnetlink_conntrack.h; values are big endian.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::NetlinkBuffer;

use crate::model::{
    Addresses, Counters, Directional, FiveTuple, Icmp, Proto, TcpState, Timestamp, canonical,
};

/// `NFNL_SUBSYS_CTNETLINK`
pub(super) const SUBSYSTEM_CTNETLINK: u8 = 1;
/// `IPCTNL_MSG_CT_NEW`: a new entry, a changed one, or one of a dump.
pub(super) const MSG_NEW: u8 = 0;
/// `IPCTNL_MSG_CT_GET`
pub(super) const MSG_GET: u8 = 1;
/// `IPCTNL_MSG_CT_DELETE`
pub(super) const MSG_DELETE: u8 = 2;
/// `NLM_F_CREATE`: this message of kind NEW tells of a new entry.
pub(super) const FLAG_CREATE: u16 = 0x400;
/// `NLM_F_MULTI`: part of a dump.
pub(super) const FLAG_MULTI: u16 = 0x2;
/// `struct nfgenmsg`: family, version, resource id.
pub(super) const NFGENMSG_LEN: usize = 4;

pub(super) mod cta {
    pub const TUPLE_ORIG: u16 = 1;
    pub const TUPLE_REPLY: u16 = 2;
    pub const STATUS: u16 = 3;
    pub const PROTOINFO: u16 = 4;
    pub const COUNTERS_ORIG: u16 = 9;
    pub const COUNTERS_REPLY: u16 = 10;
    pub const ID: u16 = 12;
    pub const ZONE: u16 = 18;
    pub const TIMESTAMP: u16 = 20;

    pub const TUPLE_IP: u16 = 1;
    pub const TUPLE_PROTO: u16 = 2;
    pub const TUPLE_ZONE: u16 = 3;

    pub const IP_V4_SRC: u16 = 1;
    pub const IP_V4_DST: u16 = 2;
    pub const IP_V6_SRC: u16 = 3;
    pub const IP_V6_DST: u16 = 4;

    pub const PROTO_NUM: u16 = 1;
    pub const PROTO_SRC_PORT: u16 = 2;
    pub const PROTO_DST_PORT: u16 = 3;
    pub const PROTO_ICMP_ID: u16 = 4;
    pub const PROTO_ICMP_TYPE: u16 = 5;
    pub const PROTO_ICMP_CODE: u16 = 6;
    pub const PROTO_ICMPV6_ID: u16 = 7;
    pub const PROTO_ICMPV6_TYPE: u16 = 8;
    pub const PROTO_ICMPV6_CODE: u16 = 9;

    pub const PROTOINFO_TCP: u16 = 1;
    pub const PROTOINFO_TCP_STATE: u16 = 1;

    pub const COUNTERS_PACKETS: u16 = 1;
    pub const COUNTERS_BYTES: u16 = 2;

    pub const TIMESTAMP_START: u16 = 1;
    pub const TIMESTAMP_STOP: u16 = 2;
}

/// What a message says of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CtKind {
    /// Event: the entry was inserted.
    New,
    /// Event: the entry changed.
    Update,
    /// Event: the entry ended; its counters are final.
    Destroy,
    /// One entry of a dump.
    Entry,
}

/// A connection's identity within one network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CtKey {
    /// As the first packet was sent: before DNAT.
    pub original: FiveTuple,
    pub zone: u16,
    /// The echo identifier; 0 for all but ICMP.
    pub icmp_id: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtMessage {
    pub kind: CtKind,
    pub key: CtKey,
    pub reply: Addresses,
    pub icmp: Option<Icmp>,
    /// The kernel's identifier of the entry: equal ones may still be two connections, when memory was reused.
    pub id: Option<u32>,
    /// `enum ip_conntrack_status` bits.
    pub status: Option<u32>,
    /// None in NEW events, and where accounting was off when the connection began.
    pub counters: Option<Directional>,
    pub tcp_state: Option<TcpState>,
    /// Only with `nf_conntrack_timestamp=1`.
    pub started: Option<Timestamp>,
    pub stopped: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("netlink message is shorter than its header says")]
    Header,
    #[error("netlink attributes of the {0} are malformed")]
    Attributes(&'static str),
    #[error("{0} has {1} bytes, which is not its size")]
    Size(&'static str, usize),
    #[error("{0} is missing")]
    Missing(&'static str),
}

/// Reads one whole netlink message (header included; bytes after its stated length are not looked at).
///
/// `Ok(None)`: a well-formed message that is none of conntrack's (control messages, other subsystems).
///
/// # Errors
/// The message is truncated, an attribute has a wrong size, or a tuple is incomplete.
pub fn parse_message(bytes: &[u8]) -> Result<Option<CtMessage>, ParseError> {
    let message = NetlinkBuffer::new_checked(bytes).map_err(|_| ParseError::Header)?;
    let [message_type, subsystem] = message.message_type().to_le_bytes();
    if subsystem != SUBSYSTEM_CTNETLINK {
        return Ok(None);
    }
    let flags = message.flags();
    let kind = match message_type {
        MSG_NEW if flags & FLAG_MULTI != 0 => CtKind::Entry,
        MSG_NEW if flags & FLAG_CREATE != 0 => CtKind::New,
        MSG_NEW => CtKind::Update,
        MSG_DELETE => CtKind::Destroy,
        _ => return Ok(None),
    };
    let attributes = message.payload().get(NFGENMSG_LEN..).ok_or(ParseError::Header)?;
    parse_entry(kind, attributes).map(Some)
}

fn parse_entry(kind: CtKind, attributes: &[u8]) -> Result<CtMessage, ParseError> {
    let mut original = None;
    let mut reply = None;
    let mut zone = None;
    let mut counters_original = None;
    let mut counters_reply = None;
    let (mut id, mut status, mut tcp_state) = (None, None, None);
    let (mut started, mut stopped) = (None, None);
    each(attributes, "conntrack entry", |attribute, value| {
        match attribute {
            cta::TUPLE_ORIG => original = Some(parse_tuple(value)?),
            cta::TUPLE_REPLY => reply = Some(parse_tuple(value)?),
            cta::ZONE => zone = Some(be16("CTA_ZONE", value)?),
            cta::COUNTERS_ORIG => counters_original = Some(parse_counters(value)?),
            cta::COUNTERS_REPLY => counters_reply = Some(parse_counters(value)?),
            cta::ID => id = Some(be32("CTA_ID", value)?),
            cta::STATUS => status = Some(be32("CTA_STATUS", value)?),
            cta::PROTOINFO => tcp_state = parse_protoinfo(value)?.or(tcp_state),
            cta::TIMESTAMP => (started, stopped) = parse_timestamp(value)?,
            _ => {}
        }
        Ok(())
    })?;
    let original = original.ok_or(ParseError::Missing("CTA_TUPLE_ORIG"))?;
    let reply = reply.ok_or(ParseError::Missing("CTA_TUPLE_REPLY"))?;
    let counters = match (counters_original, counters_reply) {
        (None, None) => None,
        (o, r) => Some(Directional { original: o.unwrap_or_default(), reply: r.unwrap_or_default() }),
    };
    Ok(CtMessage {
        kind,
        key: CtKey {
            original: FiveTuple { proto: original.proto, addresses: original.addresses },
            zone: zone.or(original.zone).unwrap_or(0),
            icmp_id: original.icmp.map_or(0, |icmp| icmp.id),
        },
        reply: reply.addresses,
        icmp: original.icmp,
        id,
        status,
        counters,
        tcp_state,
        started,
        stopped,
    })
}

struct Tuple {
    proto: Proto,
    addresses: Addresses,
    icmp: Option<Icmp>,
    /// Set where a zone counts for one direction only (`nft ... ct original zone set`).
    zone: Option<u16>,
}

fn parse_tuple(bytes: &[u8]) -> Result<Tuple, ParseError> {
    let mut addresses = None;
    let mut protocol = None;
    let mut zone = None;
    each(bytes, "tuple", |attribute, value| {
        match attribute {
            cta::TUPLE_IP => addresses = Some(parse_addresses(value)?),
            cta::TUPLE_PROTO => protocol = Some(parse_protocol(value)?),
            cta::TUPLE_ZONE => zone = Some(be16("CTA_TUPLE_ZONE", value)?),
            _ => {}
        }
        Ok(())
    })?;
    let (src, dst) = addresses.ok_or(ParseError::Missing("CTA_TUPLE_IP"))?;
    let protocol = protocol.ok_or(ParseError::Missing("CTA_TUPLE_PROTO"))?;
    // GRE keys travel in the port attributes: ports count only where the protocol has them.
    let (src_port, dst_port) =
        if protocol.number.has_ports() { (protocol.src_port, protocol.dst_port) } else { (0, 0) };
    Ok(Tuple {
        proto: protocol.number,
        addresses: Addresses { src, dst, src_port, dst_port },
        icmp: protocol.number.is_icmp().then_some(protocol.icmp),
        zone,
    })
}

fn parse_addresses(bytes: &[u8]) -> Result<(IpAddr, IpAddr), ParseError> {
    let (mut src, mut dst) = (None, None);
    each(bytes, "addresses", |attribute, value| {
        match attribute {
            cta::IP_V4_SRC => src = Some(ipv4(value)?),
            cta::IP_V4_DST => dst = Some(ipv4(value)?),
            cta::IP_V6_SRC => src = Some(ipv6(value)?),
            cta::IP_V6_DST => dst = Some(ipv6(value)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok((
        src.ok_or(ParseError::Missing("CTA_IP source address"))?,
        dst.ok_or(ParseError::Missing("CTA_IP destination address"))?,
    ))
}

#[derive(Default)]
struct Protocol {
    number: Proto,
    src_port: u16,
    dst_port: u16,
    icmp: Icmp,
}

fn parse_protocol(bytes: &[u8]) -> Result<Protocol, ParseError> {
    let mut out = Protocol::default();
    let mut number = None;
    each(bytes, "protocol", |attribute, value| {
        match attribute {
            cta::PROTO_NUM => number = Some(Proto(byte("CTA_PROTO_NUM", value)?)),
            cta::PROTO_SRC_PORT => out.src_port = be16("CTA_PROTO_SRC_PORT", value)?,
            cta::PROTO_DST_PORT => out.dst_port = be16("CTA_PROTO_DST_PORT", value)?,
            cta::PROTO_ICMP_ID | cta::PROTO_ICMPV6_ID => out.icmp.id = be16("CTA_PROTO_ICMP_ID", value)?,
            cta::PROTO_ICMP_TYPE | cta::PROTO_ICMPV6_TYPE => {
                out.icmp.kind = byte("CTA_PROTO_ICMP_TYPE", value)?;
            }
            cta::PROTO_ICMP_CODE | cta::PROTO_ICMPV6_CODE => {
                out.icmp.code = byte("CTA_PROTO_ICMP_CODE", value)?;
            }
            _ => {}
        }
        Ok(())
    })?;
    out.number = number.ok_or(ParseError::Missing("CTA_PROTO_NUM"))?;
    Ok(out)
}

fn parse_counters(bytes: &[u8]) -> Result<Counters, ParseError> {
    let (mut packets, mut octets) = (None, None);
    each(bytes, "counters", |attribute, value| {
        match attribute {
            cta::COUNTERS_PACKETS => packets = Some(be64("CTA_COUNTERS_PACKETS", value)?),
            cta::COUNTERS_BYTES => octets = Some(be64("CTA_COUNTERS_BYTES", value)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(Counters {
        packets: packets.ok_or(ParseError::Missing("CTA_COUNTERS_PACKETS"))?,
        bytes: octets.ok_or(ParseError::Missing("CTA_COUNTERS_BYTES"))?,
    })
}

fn parse_protoinfo(bytes: &[u8]) -> Result<Option<TcpState>, ParseError> {
    let mut state = None;
    each(bytes, "protocol state", |attribute, value| {
        if attribute == cta::PROTOINFO_TCP {
            each(value, "TCP state", |attribute, value| {
                if attribute == cta::PROTOINFO_TCP_STATE {
                    state = Some(TcpState::from_kernel(byte("CTA_PROTOINFO_TCP_STATE", value)?));
                }
                Ok(())
            })?;
        }
        Ok(())
    })?;
    Ok(state)
}

fn parse_timestamp(bytes: &[u8]) -> Result<(Option<Timestamp>, Option<Timestamp>), ParseError> {
    let (mut started, mut stopped) = (None, None);
    let timestamp = |ns: u64| Timestamp(i64::try_from(ns).unwrap_or(i64::MAX));
    each(bytes, "timestamps", |attribute, value| {
        match attribute {
            cta::TIMESTAMP_START => started = Some(timestamp(be64("CTA_TIMESTAMP_START", value)?)),
            cta::TIMESTAMP_STOP => stopped = Some(timestamp(be64("CTA_TIMESTAMP_STOP", value)?)),
            _ => {}
        }
        Ok(())
    })?;
    Ok((started, stopped))
}

/// The bits of an attribute's type that are its type: the others say NESTED and NET_BYTEORDER.
const TYPE_MASK: u16 = 0x3fff;

/// Calls `visit(type, value)` for each attribute: `struct nlattr` (length with this header, type; both in the host's order), then
/// the value, padded to four bytes.
fn each(
    bytes: &[u8],
    what: &'static str,
    mut visit: impl FnMut(u16, &[u8]) -> Result<(), ParseError>,
) -> Result<(), ParseError> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let Some((&[a, b, c, d], _)) = rest.split_first_chunk() else {
            return Err(ParseError::Attributes(what));
        };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        // A length below the header's own is refused here too.
        let value = rest.get(4..length).ok_or(ParseError::Attributes(what))?;
        visit(u16::from_ne_bytes([c, d]) & TYPE_MASK, value)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

fn fixed<const N: usize>(what: &'static str, value: &[u8]) -> Result<[u8; N], ParseError> {
    value.try_into().map_err(|_| ParseError::Size(what, value.len()))
}

fn byte(what: &'static str, value: &[u8]) -> Result<u8, ParseError> {
    fixed::<1>(what, value).map(|[b]| b)
}

fn be16(what: &'static str, value: &[u8]) -> Result<u16, ParseError> {
    fixed(what, value).map(u16::from_be_bytes)
}

fn be32(what: &'static str, value: &[u8]) -> Result<u32, ParseError> {
    fixed(what, value).map(u32::from_be_bytes)
}

fn be64(what: &'static str, value: &[u8]) -> Result<u64, ParseError> {
    fixed(what, value).map(u64::from_be_bytes)
}

fn ipv4(value: &[u8]) -> Result<IpAddr, ParseError> {
    fixed::<4>("IPv4 address", value).map(|a| IpAddr::V4(Ipv4Addr::from(a)))
}

fn ipv6(value: &[u8]) -> Result<IpAddr, ParseError> {
    fixed::<16>("IPv6 address", value).map(|a| canonical(IpAddr::V6(Ipv6Addr::from(a))))
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
