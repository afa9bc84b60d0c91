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
    pub adoption: Adoption,
    /// Ends of younger connections that the map never held: it was full, or the probe on their start was missed.
    pub unseen_starts: u64,
    /// Connections that ended while they were about to be adopted: all they moved was before the agent.
    pub ended_before: u64,
    pub untold: Untold,
}

/// What an end means of which neither birth nor adoption is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adoption {
    /// It is older than the agent, which has just begun.
    #[default]
    Pending,
    /// All older ones are known: it is younger, and the map had no room for it.
    Done,
    /// It may be either: not told, and counted.
    Impossible,
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
        // One that was told while the map had no room for it may have found room since.
        let is_known =
            flag(RecordFlags::ANNOUNCED) || (flag(RecordFlags::IN_MAP) && self.outside.remove(&known));
        match record.kind {
            k if k == RecordKind::Live as u8 => {
                if flag(RecordFlags::UNCOUNTED) && !is_known {
                    self.untold.uncounted += 1;
                }
                if !is_known {
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
                    if !is_known {
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
                    match self.adoption {
                        // Its start is not known, its counts are all its own.
                        Adoption::Done => {
                            self.unseen_starts += 1;
                            push(at, born);
                        }
                        Adoption::Pending => {
                            self.ended_before += 1;
                            return;
                        }
                        Adoption::Impossible => {
                            self.untold.not_adopted += 1;
                            return;
                        }
                    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock { offset_ns: 1000 };

    fn tuple(src: [u8; 4], dst: [u8; 4], src_port: u16, dst_port: u16, proto: u8) -> KernelTuple {
        let mut bytes = [0; 40];
        bytes[..4].copy_from_slice(&src);
        bytes[16..18].copy_from_slice(&src_port.to_be_bytes());
        bytes[18..20].copy_from_slice(&AF_INET.to_ne_bytes());
        bytes[20..24].copy_from_slice(&dst);
        bytes[36..38].copy_from_slice(&dst_port.to_be_bytes());
        bytes[38] = proto;
        KernelTuple::from_bytes(bytes)
    }

    /// A connection to a service address, after DNAT.
    fn record(kind: RecordKind, flags: u32) -> ConnectionRecord {
        ConnectionRecord {
            at_ns: 50,
            start_ns: 10,
            original: tuple([10, 0, 0, 1], [10, 96, 0, 10], 40000, 80, 6),
            reply: tuple([10, 0, 0, 2], [10, 0, 0, 1], 8080, 40000, 6),
            counters: [3, 300, 2, 200],
            zone: 7,
            tcp_state: 3,
            kind: kind as u8,
            flags,
        }
    }

    fn translate(
        translator: &mut Translator,
        records: &[ConnectionRecord],
    ) -> Vec<(i64, ConnectionEvent, u64)> {
        let mut out = Vec::new();
        for record in records {
            translator.translate(record, CLOCK, &mut out);
        }
        order(&mut out);
        out.iter()
            .map(|observed| match &observed.observation {
                Observation::Connection(told) => {
                    (observed.at.0, told.event, told.counters.original.bytes + told.counters.reply.bytes)
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    const CONFIRMED: u32 = RecordFlags::CONFIRMED;
    const IN_MAP: u32 = RecordFlags::IN_MAP | CONFIRMED;
    const ANNOUNCED: u32 = IN_MAP | RecordFlags::ANNOUNCED;
    const END: ConnectionEvent = ConnectionEvent::End { confirmed: true };

    #[test]
    fn everything_of_a_record_is_told() {
        let mut out = Vec::new();
        Translator::default().translate(&record(RecordKind::Live, ANNOUNCED), CLOCK, &mut out);
        let Observation::Connection(told) = &out[0].observation else { panic!() };
        assert_eq!(told.original.dst.to_string(), "10.96.0.10");
        assert_eq!((told.original.src_port, told.original.dst_port), (40000, 80));
        assert_eq!(told.reply.src.to_string(), "10.0.0.2");
        assert_eq!((told.reply.src_port, told.reply.dst_port), (8080, 40000));
        assert_eq!((told.zone, told.tcp_state, told.icmp), (7, Some(TcpState::Established), None));
        assert_eq!(told.counters.original, Counters::new(3, 300));
        assert_eq!(told.counters.reply, Counters::new(2, 200));
    }

    #[test]
    fn icmp_has_an_identifier_and_no_ports() {
        let mut ping = record(RecordKind::Live, ANNOUNCED);
        ping.original = tuple([10, 0, 0, 1], [10, 0, 0, 2], 321, 0x0800, 1);
        let told = told(&ping).unwrap();
        assert_eq!(told.icmp, Some(Icmp { kind: 8, code: 0, id: 321 }));
        assert_eq!((told.original.src_port, told.original.dst_port, told.tcp_state), (0, 0, None));
    }

    #[test]
    fn a_live_connection_is_new_once() {
        let mut translator = Translator::default();
        let told = translate(&mut translator, &[record(RecordKind::Live, IN_MAP)]);
        assert_eq!(told, [(1010, ConnectionEvent::New, 0), (1050, ConnectionEvent::Update, 500)]);
        let told = translate(&mut translator, &[record(RecordKind::Live, ANNOUNCED)]);
        assert_eq!(told, [(1050, ConnectionEvent::Update, 500)]);
    }

    #[test]
    fn a_short_connection_is_new_before_it_ends() {
        let mut translator = Translator::default();
        let told = translate(&mut translator, &[record(RecordKind::End, IN_MAP)]);
        assert_eq!(told, [(1010, ConnectionEvent::New, 0), (1050, END, 500)]);
        let told = translate(&mut translator, &[record(RecordKind::End, ANNOUNCED)]);
        assert_eq!(told, [(1050, END, 500)]);
    }

    #[test]
    fn an_older_connection_is_adopted_and_never_counted() {
        let mut translator = Translator::default();
        let adopted = RecordFlags::ADOPTED;
        let told = translate(&mut translator, &[record(RecordKind::Live, IN_MAP | adopted)]);
        assert_eq!(told, [(1050, ConnectionEvent::Adopt, 500)]);
        let told = translate(&mut translator, &[record(RecordKind::End, IN_MAP | adopted)]);
        assert_eq!(told, [(1050, ConnectionEvent::Adopt, 500), (1050, END, 500)]);
    }

    #[test]
    fn an_unknown_end_is_younger_only_after_adoption() {
        let mut translator = Translator::default();
        assert_eq!(translate(&mut translator, &[record(RecordKind::End, CONFIRMED)]), []);
        assert_eq!((translator.ended_before, translator.untold), (1, Untold::default()));
        translator.adoption = Adoption::Impossible;
        assert_eq!(translate(&mut translator, &[record(RecordKind::End, CONFIRMED)]), []);
        assert_eq!(translator.untold.not_adopted, 1);
        translator.adoption = Adoption::Done;
        let told = translate(&mut translator, &[record(RecordKind::End, CONFIRMED)]);
        assert_eq!(told, [(1050, ConnectionEvent::New, 0), (1050, END, 500)]);
    }

    #[test]
    fn a_connection_outside_the_map_is_new_once_and_ends_once() {
        let mut translator = Translator { adoption: Adoption::Done, ..Translator::default() };
        let outside = record(RecordKind::Outside, CONFIRMED);
        let told = translate(&mut translator, &[outside, outside, record(RecordKind::End, CONFIRMED)]);
        let new = (1050, ConnectionEvent::New, 0);
        let update = (1050, ConnectionEvent::Update, 500);
        assert_eq!(told, [new, update, update, (1050, END, 500)]);
        assert_eq!(translator.outside_len(), 0);
        let old = record(RecordKind::Outside, CONFIRMED | RecordFlags::ADOPTED);
        assert_eq!(translate(&mut translator, &[old]), [(1050, ConnectionEvent::Adopt, 500)]);
    }

    #[test]
    fn a_connection_that_finds_room_later_is_not_new_again() {
        let mut translator = Translator { adoption: Adoption::Done, ..Translator::default() };
        let records = [
            record(RecordKind::Outside, CONFIRMED),
            record(RecordKind::Live, IN_MAP),
            record(RecordKind::End, ANNOUNCED),
        ];
        let told: Vec<_> =
            translate(&mut translator, &records).into_iter().map(|(_, event, _)| event).collect();
        assert_eq!(told, [ConnectionEvent::New, ConnectionEvent::Update, ConnectionEvent::Update, END]);
    }

    #[test]
    fn what_never_entered_the_table_says_so() {
        let told = translate(&mut Translator::default(), &[record(RecordKind::End, RecordFlags::IN_MAP)]);
        assert_eq!(told, [(1050, ConnectionEvent::End { confirmed: false }, 500)]);
    }

    #[test]
    fn what_cannot_be_told_is_counted() {
        let mut translator = Translator::default();
        let mut strange = record(RecordKind::Live, ANNOUNCED);
        strange.original = KernelTuple::default();
        let mut unknown = record(RecordKind::Live, ANNOUNCED);
        unknown.kind = 99;
        let clash = record(RecordKind::End, CONFIRMED | RecordFlags::CLASH);
        assert_eq!(translate(&mut translator, &[strange, unknown, clash]), []);
        assert_eq!(translator.untold, Untold { clash: 1, malformed: 2, ..Untold::default() });
    }

    #[test]
    fn a_successor_with_the_same_tuple_comes_after_the_end() {
        let mut successor = record(RecordKind::Live, IN_MAP);
        (successor.start_ns, successor.at_ns) = (60, 70);
        // The sweep's ring is read first.
        let told = translate(&mut Translator::default(), &[successor, record(RecordKind::End, ANNOUNCED)]);
        assert_eq!(
            told,
            [(1050, END, 500), (1060, ConnectionEvent::New, 0), (1070, ConnectionEvent::Update, 500)]
        );
    }

    #[test]
    fn drops_are_decoded() {
        let mut key = DropKey { proto: 17, version: 4, has_original: 1, ..DropKey::default() };
        key.src[..4].copy_from_slice(&[10, 0, 0, 1]);
        key.dst[..4].copy_from_slice(&[10, 0, 0, 2]);
        key.src_port = 40000_u16.to_be();
        key.dst_port = 53_u16.to_be();
        key.original = tuple([10, 0, 0, 1], [10, 96, 0, 10], 40000, 53, 17);
        let drop =
            drop_record(&key, DropCount { packets: 2, bytes: 99, first_ns: 7 }, "NETFILTER_DROP".into())
                .unwrap();
        assert_eq!((drop.tuple.addresses.src_port, drop.tuple.addresses.dst_port), (40000, 53));
        assert_eq!(drop.original.unwrap().dst.to_string(), "10.96.0.10");
        assert_eq!((drop.packets, drop.bytes, drop.icmp), (2, 99, None));
        key.version = 5;
        assert_eq!(drop_record(&key, DropCount::default(), "X".into()), None);
    }
}
