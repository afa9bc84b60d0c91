//! Messages are built here by an independent writer (the shapes of ctnetlink_fill_info and
//! ctnetlink_conntrack_event) and must come back as they went in; random and damaged bytes must give a value
//! or an error, never a panic.

use proptest::prelude::*;

use super::*;

/// Writes what the parser reads.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).unwrap();
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.put(kind | 0x8000, &inner.0)
    }
}

fn message(kind: u8, flags: u16, attributes: &Attributes) -> Vec<u8> {
    let mut out = Vec::new();
    let len = u32::try_from(16 + NFGENMSG_LEN + attributes.0.len()).unwrap();
    out.extend_from_slice(&len.to_ne_bytes());
    out.extend_from_slice(&u16::from_le_bytes([kind, SUBSYSTEM_CTNETLINK]).to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&[0; 8]); // sequence, port
    out.extend_from_slice(&[2, 0, 0, 0]); // nfgenmsg
    out.extend_from_slice(&attributes.0);
    out
}

fn tuple(proto: Proto, a: Addresses, icmp: Option<Icmp>) -> Attributes {
    let ip = match (a.src, a.dst) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            Attributes::default().put(cta::IP_V4_SRC, &s.octets()).put(cta::IP_V4_DST, &d.octets())
        }
        (s, d) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            Attributes::default().put(cta::IP_V6_SRC, &octets(s)).put(cta::IP_V6_DST, &octets(d))
        }
    };
    let mut protocol = Attributes::default().put(cta::PROTO_NUM, &[proto.0]);
    if proto.has_ports() {
        protocol = protocol
            .put(cta::PROTO_SRC_PORT, &a.src_port.to_be_bytes())
            .put(cta::PROTO_DST_PORT, &a.dst_port.to_be_bytes());
    }
    if let Some(icmp) = icmp {
        let v6 = if proto == Proto::ICMP6 { 3 } else { 0 };
        protocol = protocol
            .put(cta::PROTO_ICMP_ID + v6, &icmp.id.to_be_bytes())
            .put(cta::PROTO_ICMP_TYPE + v6, &[icmp.kind])
            .put(cta::PROTO_ICMP_CODE + v6, &[icmp.code]);
    }
    Attributes::default().nest(cta::TUPLE_IP, ip).nest(cta::TUPLE_PROTO, protocol)
}

fn build(m: &CtMessage) -> Vec<u8> {
    let reply_icmp = m.icmp.map(|i| Icmp { kind: i.kind.wrapping_sub(8), ..i });
    let mut a = Attributes::default()
        .nest(cta::TUPLE_ORIG, tuple(m.key.original.proto, m.key.original.addresses, m.icmp))
        .nest(cta::TUPLE_REPLY, tuple(m.key.original.proto, m.reply, reply_icmp));
    if let Some(status) = m.status {
        a = a.put(cta::STATUS, &status.to_be_bytes());
    }
    if let Some(c) = m.counters {
        let one = |c: Counters| {
            Attributes::default()
                .put(cta::COUNTERS_PACKETS, &c.packets.to_be_bytes())
                .put(cta::COUNTERS_BYTES, &c.bytes.to_be_bytes())
        };
        a = a.nest(cta::COUNTERS_ORIG, one(c.original)).nest(cta::COUNTERS_REPLY, one(c.reply));
    }
    if let Some(state) = m.tcp_state {
        let tcp = Attributes::default().put(cta::PROTOINFO_TCP_STATE, &[state as u8]);
        a = a.nest(cta::PROTOINFO, Attributes::default().nest(cta::PROTOINFO_TCP, tcp));
    }
    if let Some(id) = m.id {
        a = a.put(cta::ID, &id.to_be_bytes());
    }
    if m.key.zone != 0 {
        a = a.put(cta::ZONE, &m.key.zone.to_be_bytes());
    }
    if let (Some(start), stop) = (m.started, m.stopped) {
        let mut t = Attributes::default().put(cta::TIMESTAMP_START, &start.0.to_be_bytes());
        if let Some(stop) = stop {
            t = t.put(cta::TIMESTAMP_STOP, &stop.0.to_be_bytes());
        }
        a = a.nest(cta::TIMESTAMP, t);
    }
    let (kind, flags) = match m.kind {
        CtKind::New => (MSG_NEW, FLAG_CREATE | 0x200),
        CtKind::Update => (MSG_NEW, 0),
        CtKind::Destroy => (MSG_DELETE, 0),
        CtKind::Entry => (MSG_NEW, FLAG_MULTI),
    };
    message(kind, flags, &a)
}

fn addresses(proto: Proto) -> impl Strategy<Value = (Addresses, Addresses)> {
    let v4 = any::<[u8; 4]>().prop_map(|a| IpAddr::from(Ipv4Addr::from(a)));
    let v6 = any::<[u8; 16]>().prop_map(|mut a| {
        a[0] = 0x20; // never v4-mapped: those come back as IPv4
        IpAddr::from(Ipv6Addr::from(a))
    });
    let four = |ip: BoxedStrategy<IpAddr>| (ip.clone(), ip.clone(), ip.clone(), ip, any::<[u16; 4]>());
    prop_oneof![four(v4.boxed()), four(v6.boxed())].prop_map(move |(a, b, c, d, p)| {
        let p = if proto.has_ports() { p } else { [0; 4] };
        (
            Addresses { src: a, dst: b, src_port: p[0], dst_port: p[1] },
            Addresses { src: c, dst: d, src_port: p[2], dst_port: p[3] },
        )
    })
}

fn any_message() -> impl Strategy<Value = CtMessage> {
    let kind =
        prop_oneof![Just(CtKind::New), Just(CtKind::Update), Just(CtKind::Destroy), Just(CtKind::Entry)];
    let proto =
        prop_oneof![Just(1u8), Just(6), Just(17), Just(58), Just(132), Just(47), any::<u8>()].prop_map(Proto);
    (kind, proto)
        .prop_flat_map(|(kind, proto)| {
            (
                Just(kind),
                Just(proto),
                addresses(proto),
                any::<(u8, u8, u16)>(),
                any::<(u16, Option<u32>, Option<u32>)>(),
                any::<Option<[u64; 4]>>(),
                proptest::option::of(0u8..10),
                any::<Option<(u32, Option<u32>)>>(),
            )
        })
        .prop_map(|(kind, proto, (original, reply), icmp, (zone, id, status), counters, state, times)| {
            let icmp = proto.is_icmp().then_some(Icmp { kind: icmp.0, code: icmp.1, id: icmp.2 });
            CtMessage {
                kind,
                key: CtKey {
                    original: FiveTuple { proto, addresses: original },
                    zone,
                    icmp_id: icmp.map_or(0, |i| i.id),
                },
                reply,
                icmp,
                id,
                status,
                counters: counters.map(|[a, b, c, d]| Directional {
                    original: Counters::new(a, b),
                    reply: Counters::new(c, d),
                }),
                tcp_state: state.map(TcpState::from_kernel),
                started: times.map(|(s, _)| Timestamp(s.into())),
                stopped: times.and_then(|(_, e)| e).map(|e| Timestamp(e.into())),
            }
        })
}

proptest! {
    #[test]
    fn what_was_built_is_what_is_read(m in any_message()) {
        prop_assert_eq!(parse_message(&build(&m)), Ok(Some(m)));
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = parse_message(&bytes);
    }

    /// Random bytes rarely get past the header: give them one.
    #[test]
    fn random_attributes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), kind in 0u8..4) {
        let _ = parse_message(&message(kind, FLAG_CREATE, &Attributes(bytes)));
    }

    #[test]
    fn damage_and_truncation_never_panic(m in any_message(), at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = build(&m);
        let i = at.index(bytes.len());
        bytes[i] = to;
        let _ = parse_message(&bytes);
        let len = cut.index(bytes.len());
        let truncated = bytes.get(..len).unwrap_or_default();
        let _ = parse_message(truncated);
    }
}

#[test]
fn a_zone_of_one_direction_is_the_connections_zone() {
    let a = Addresses {
        src: Ipv4Addr::LOCALHOST.into(),
        dst: Ipv4Addr::LOCALHOST.into(),
        src_port: 1,
        dst_port: 2,
    };
    let original = tuple(Proto::TCP, a, None).put(cta::TUPLE_ZONE, &7u16.to_be_bytes());
    let attributes = Attributes::default()
        .nest(cta::TUPLE_ORIG, original)
        .nest(cta::TUPLE_REPLY, tuple(Proto::TCP, a.reversed(), None));
    let read = parse_message(&message(MSG_NEW, FLAG_CREATE, &attributes)).unwrap().unwrap();
    assert_eq!(read.key.zone, 7);
}

#[test]
fn other_subsystems_are_passed_over_and_a_lone_tuple_is_an_error() {
    let mut other = message(MSG_NEW, 0, &Attributes::default());
    other[5] = 10; // nftables
    if cfg!(target_endian = "little") {
        assert_eq!(parse_message(&other), Ok(None));
    }
    assert_eq!(
        parse_message(&message(MSG_NEW, 0, &Attributes::default())),
        Err(ParseError::Missing("CTA_TUPLE_ORIG"))
    );
}

#[test]
fn a_counter_of_another_size_is_an_error() {
    let c = Attributes::default().put(cta::COUNTERS_PACKETS, &[0; 4]);
    let attributes = Attributes::default().nest(cta::COUNTERS_ORIG, c);
    assert_eq!(
        parse_message(&message(MSG_DELETE, 0, &attributes)),
        Err(ParseError::Size("CTA_COUNTERS_PACKETS", 4))
    );
}
