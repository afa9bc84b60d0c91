//! Kernel records become observations.
//!
//! In: `ConnectionRecord`s as the programs made them. Out: [`Observed`], in the order in which things happened. What
//! always holds: a connection that was born under the agent's eyes is told as New (at its start, with nothing counted)
//! before anything else of it; one that existed before is told as Adopt; no record is dropped without a count. Not here:
//! reading the rings; deltas (the pipeline).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use flowlogd_ebpf::{ConnectionRecord, DropCount, DropKey, KernelTuple, RecordFlags, RecordKind};

use crate::model::{
    Addresses, ConnectionEvent, ConnectionRecord as Told, Counters, Directional, DropRecord, FiveTuple, Icmp,
    Observation, Proto, TcpState, Timestamp,
};
use crate::source::Observed;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Connections that the map has no room for and that were told, at most; beyond, they are counted.
pub const OUTSIDE_LIMIT: usize = 1 << 18;

/// Kernel boot time against the wall clock, measured once a batch.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Wall clock minus boot time, nanoseconds.
    pub offset_ns: i64,
}

impl Clock {
    pub fn measure() -> Self {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let wall = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let ns = |t: rustix::time::Timespec| t.tv_sec.saturating_mul(1_000_000_000).saturating_add(t.tv_nsec);
        Self { offset_ns: ns(wall).saturating_sub(ns(boot)) }
    }

    pub fn wall(self, boot_ns: u64) -> Timestamp {
        Timestamp(i64::try_from(boot_ns).unwrap_or(i64::MAX).saturating_add(self.offset_ns))
    }
}

/// What cannot be told as an observation, by stage; what a caller reports as lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untold {
    /// Reply-only twins of another entry with the same original tuple (parallel queries through DNAT).
    pub clash: u64,
    /// Ends of connections of which neither birth nor adoption is known.
    pub not_adopted: u64,
    /// Records that are not what this build expects.
    pub malformed: u64,
    /// Accounting was off when they began: they count nothing.
    pub uncounted: u64,
}

/// Carries what must be remembered between records.
#[derive(Debug, Default)]
pub struct Translator {
    /// Connections without an entry in the map that have been told.
    outside: HashSet<(u16, KernelTuple)>,
    /// All that existed before the agent has been adopted: an end that nobody knows is of a younger one.
    pub adopted: bool,
    pub untold: Untold,
}

impl Translator {
    pub fn outside_len(&self) -> usize {
        self.outside.len()
    }

    /// Puts what a record tells behind `out`.
    pub fn translate(&mut self, record: &ConnectionRecord, clock: Clock, out: &mut Vec<Observed>) {
        let flag = |bit: u32| record.flags & bit != 0;
        let at = clock.wall(record.at_ns);
        let Some(mut told) = told(record) else {
            self.untold.malformed += 1;
            return;
        };
        if flag(RecordFlags::CLASH) {
            self.untold.clash += 1;
            return;
        }
        let mut push = |at: Timestamp, told: Told| {
            out.push(Observed { at, observation: Observation::Connection(told) });
        };
        let born =
            Told { event: ConnectionEvent::New, counters: Directional::default(), tcp_state: None, ..told };
        let known = (record.zone, record.original);
        match record.kind {
            k if k == RecordKind::Live as u8 => {
                if flag(RecordFlags::UNCOUNTED) && !flag(RecordFlags::ANNOUNCED) {
                    self.untold.uncounted += 1;
                }
                if !flag(RecordFlags::ANNOUNCED) {
                    if flag(RecordFlags::ADOPTED) {
                        told.event = ConnectionEvent::Adopt;
                        push(at, told);
                        return;
                    }
                    push(clock.wall(record.start_ns), born);
                }
                told.event = ConnectionEvent::Update;
                push(at, told);
            }
            k if k == RecordKind::End as u8 => {
                if !flag(RecordFlags::CONFIRMED) {
                    told.event = ConnectionEvent::End { confirmed: false };
                    push(at, told);
                    return;
                }
                if flag(RecordFlags::IN_MAP) {
                    if !flag(RecordFlags::ANNOUNCED) {
                        if flag(RecordFlags::UNCOUNTED) {
                            self.untold.uncounted += 1;
                        }
                        if flag(RecordFlags::ADOPTED) {
                            push(at, Told { event: ConnectionEvent::Adopt, ..told });
                        } else {
                            push(clock.wall(record.start_ns), born);
                        }
                    }
                } else if !self.outside.remove(&known) {
                    if !self.adopted {
                        self.untold.not_adopted += 1;
                        return;
                    }
                    // Born after the agent, into a full map: its start is not known, its counts are all its own.
                    push(at, born);
                }
                told.event = ConnectionEvent::End { confirmed: true };
                push(at, told);
            }
            k if k == RecordKind::Stale as u8 => {
                // Its memory is gone, and its last counters were told before: a counter that goes down to nothing
                // adds nothing. Who knows the connection also knows its reply tuple.
                told.reply = told.original.reversed();
                told.event = ConnectionEvent::End { confirmed: true };
                push(at, told);
            }
            k if k == RecordKind::Outside as u8 => {
                if self.outside.contains(&known) {
                    told.event = ConnectionEvent::Update;
                    push(at, told);
                } else if self.outside.len() >= OUTSIDE_LIMIT {
                    self.untold.not_adopted += 1;
                } else {
                    self.outside.insert(known);
                    if flag(RecordFlags::ADOPTED) {
                        told.event = ConnectionEvent::Adopt;
                    } else {
                        push(at, born);
                        told.event = ConnectionEvent::Update;
                    }
                    push(at, told);
                }
            }
            _ => self.untold.malformed += 1,
        }
    }
}

/// Records of one batch in the order in which things happened.
pub fn order(batch: &mut [Observed]) {
    batch.sort_by_key(|observed| observed.at);
}

fn told(record: &ConnectionRecord) -> Option<Told> {
    let original = Tuple::read(record.original)?;
    let reply = if record.kind == RecordKind::Stale as u8 { original } else { Tuple::read(record.reply)? };
    let [packets, bytes, reply_packets, reply_bytes] = record.counters;
    Some(Told {
        event: ConnectionEvent::Update,
        proto: original.proto,
        original: original.addresses,
        reply: reply.addresses,
        icmp: original.icmp,
        zone: record.zone,
        counters: Directional {
            original: Counters::new(packets, bytes),
            reply: Counters::new(reply_packets, reply_bytes),
        },
        tcp_state: (original.proto == Proto::TCP).then(|| TcpState::from_kernel(record.tcp_state)),
    })
}

/// A kernel tuple, decoded.
#[derive(Clone, Copy)]
struct Tuple {
    proto: Proto,
    addresses: Addresses,
    icmp: Option<Icmp>,
}

impl Tuple {
    fn read(tuple: KernelTuple) -> Option<Self> {
        let bytes = tuple.bytes();
        let sixteen = |at: usize| bytes.get(at..at + 16).and_then(|raw| <[u8; 16]>::try_from(raw).ok());
        let two = |at: usize| bytes.get(at..at + 2).and_then(|raw| <[u8; 2]>::try_from(raw).ok());
        let version = match u16::from_ne_bytes(two(18)?) {
            AF_INET => 4,
            AF_INET6 => 6,
            _ => return None,
        };
        let proto = Proto(*bytes.get(38)?);
        let mut addresses = Addresses {
            src: address(version, sixteen(0)?),
            dst: address(version, sixteen(20)?),
            src_port: 0,
            dst_port: 0,
        };
        let mut icmp = None;
        if proto.has_ports() {
            addresses.src_port = u16::from_be_bytes(two(16)?);
            addresses.dst_port = u16::from_be_bytes(two(36)?);
        } else if proto.is_icmp() {
            let [kind, code] = two(36)?;
            icmp = Some(Icmp { kind, code, id: u16::from_be_bytes(two(16)?) });
        }
        Some(Self { proto, addresses, icmp })
    }
}

fn address(version: u8, raw: [u8; 16]) -> IpAddr {
    if version == 4 {
        let [a, b, c, d, ..] = raw;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from(raw))
    }
}

/// A count of drops; `None`: not what the program writes.
pub fn drop_record(key: &DropKey, count: DropCount, reason: Arc<str>) -> Option<DropRecord> {
    if !matches!(key.version, 4 | 6) {
        return None;
    }
    let proto = Proto(key.proto);
    let id = u16::from_be(key.src_port);
    let (src_port, dst_port) = if proto.has_ports() { (id, u16::from_be(key.dst_port)) } else { (0, 0) };
    Some(DropRecord {
        tuple: FiveTuple {
            proto,
            addresses: Addresses {
                src: address(key.version, key.src),
                dst: address(key.version, key.dst),
                src_port,
                dst_port,
            },
        },
        original: if key.has_original != 0 { Tuple::read(key.original).map(|t| t.addresses) } else { None },
        icmp: proto.is_icmp().then_some(Icmp { kind: key.icmp_type, code: key.icmp_code, id }),
        packets: count.packets,
        bytes: count.bytes,
        reason,
    })
}
