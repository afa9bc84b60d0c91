//! From packets to lookups, with real bytes: copies, NAT, TCP, and whatever a hostile network may send.

use std::net::SocketAddr;
use std::time::Duration;

use etherparse::PacketBuilder;
use proptest::prelude::*;
use simple_dns::rdata::{A, CNAME, RData};
use simple_dns::{CLASS, Name, Packet, QCLASS, QTYPE, Question, RCODE, ResourceRecord, TYPE};

use super::*;
use crate::model::{DnsRecord, Proto, Timestamp};

fn at(ms: u64) -> Timestamp {
    Timestamp(0).plus(Duration::from_millis(ms))
}

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn udp(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (end(from), end(to));
    let ip = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            PacketBuilder::ipv6(from.ip().octets(), to.ip().octets(), 64)
        }
        _ => unreachable!("two families"),
    };
    let mut packet = Vec::new();
    ip.udp(from.port(), to.port()).write(&mut packet, payload).unwrap();
    packet
}

fn question<'a>(name: &'a str) -> Question<'a> {
    Question::new(Name::new_unchecked(name), QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN), false)
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut packet = Packet::new_query(id);
    packet.questions.push(question(name));
    packet.build_bytes_vec().unwrap()
}

fn reply(id: u16, name: &str, rcode: RCODE) -> Vec<u8> {
    let mut packet = Packet::new_reply(id);
    packet.questions.push(question(name));
    *packet.rcode_mut() = rcode;
    if rcode == RCODE::NoError {
        let alias = Name::new_unchecked("cdn.example.net");
        packet.answers.push(ResourceRecord::new(
            Name::new_unchecked(name),
            CLASS::IN,
            60,
            RData::CNAME(CNAME(alias.clone())),
        ));
        let a = A { address: 0xc633_6407 };
        packet.answers.push(ResourceRecord::new(alias, CLASS::IN, 30, RData::A(a)));
    }
    packet.build_bytes_vec_compressed().unwrap()
}

/// All lookups of these packets, each with its time in milliseconds.
fn lookups(packets: &[(u64, Vec<u8>)]) -> (Vec<DnsRecord>, MatchStats) {
    let (mut matcher, mut streams) = (Matcher::default(), Streams::default());
    let mut told = Vec::new();
    for (ms, packet) in packets {
        take(packet, at(*ms), &mut matcher, &mut streams).unwrap();
        matcher.tell(at(*ms), false, |_, record| told.push(record));
    }
    matcher.tell(at(u64::MAX >> 24), true, |_, record| told.push(record));
    (told, matcher.stats)
}

#[test]
fn a_question_and_its_answer_are_a_lookup() {
    let (told, stats) = lookups(&[
        (0, udp("10.0.0.1:4000", "10.0.0.53:53", &query(7, "www.example.com"))),
        (3, udp("10.0.0.53:53", "10.0.0.1:4000", &reply(7, "www.example.com", RCODE::NoError))),
        (4, udp("[fd00::1]:4000", "[fd00::53]:53", &query(7, "no.example.com"))),
        (9, udp("[fd00::53]:53", "[fd00::1]:4000", &reply(7, "no.example.com", RCODE::NameError))),
    ]);
    assert_eq!(told.len(), 2);
    assert_eq!(
        (&*told[0].question, &*told[0].rcode, told[0].latency_us),
        ("www.example.com", "NoError", 3000)
    );
    assert_eq!((told[0].qtype.as_deref(), told[0].qclass.as_deref()), (Some("A"), Some("IN")));
    let answers: Vec<_> = told[0].answers.iter().map(|a| (&*a.name, &*a.kind, &*a.data, a.ttl_s)).collect();
    assert_eq!(
        answers,
        [("www.example.com", "CNAME", "cdn.example.net", 60), ("cdn.example.net", "A", "198.51.100.7", 30)]
    );
    assert_eq!((&*told[1].rcode, told[1].latency_us), ("NXDomain", 5000));
    assert_eq!(stats, MatchStats { lookups: 2, ..MatchStats::default() });
}

#[test]
fn copies_before_and_after_nat_are_one_lookup_of_the_client_with_the_server_that_answered() {
    let (q, a) = (query(9, "a.example"), reply(9, "a.example", RCODE::NoError));
    let (told, stats) = lookups(&[
        // The pod's device, a bridge after DNAT, the node's device after SNAT; and back.
        (0, udp("10.0.0.1:4000", "10.96.0.10:53", &q)),
        (0, udp("10.0.0.1:4000", "10.1.2.53:53", &q)),
        (1, udp("192.0.2.1:6000", "10.1.2.53:53", &q)),
        (5, udp("10.1.2.53:53", "192.0.2.1:6000", &a)),
        (5, udp("10.1.2.53:53", "10.0.0.1:4000", &a)),
        (6, udp("10.96.0.10:53", "10.0.0.1:4000", &a)),
    ]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].client, end("10.0.0.1:1").ip());
    assert_eq!(told[0].client_port, Some((Proto::UDP, 4000)), "the client's own, not a translated one");
    assert_eq!(told[0].server, end("10.1.2.53:1").ip());
    assert_eq!(told[0].latency_us, 6000);
    assert_eq!((stats.lookups, stats.copies, stats.unasked), (1, 4, 0));
}

#[test]
fn other_clients_with_the_same_identifier_are_other_lookups() {
    let (q, a) = (query(9, "a.example"), reply(9, "a.example", RCODE::NoError));
    let (told, stats) = lookups(&[
        (0, udp("10.0.0.1:4000", "10.0.0.53:53", &q)),
        (1, udp("10.0.0.2:4001", "10.0.0.54:53", &q)),
        (4, udp("10.0.0.54:53", "10.0.0.2:4001", &a)),
        (8, udp("10.0.0.53:53", "10.0.0.1:4000", &a)),
        (9, udp("10.0.0.3:4001", "10.0.0.55:53", &query(1, "never.example"))),
        (9, udp("10.0.0.55:53", "10.0.0.3:4001", &reply(2, "unasked.example", RCODE::Refused))),
    ]);
    let mut latencies: Vec<_> = told.iter().map(|record| record.latency_us).collect();
    latencies.sort_unstable();
    assert_eq!(latencies, [0, 3000, 8000]);
    assert_eq!((stats.lookups, stats.unanswered, stats.unasked), (3, 1, 1));
}

#[test]
fn over_tcp_in_segments() {
    let segment = |from: &str, to: &str, sequence, payload: &[u8]| {
        let (SocketAddr::V4(from), SocketAddr::V4(to)) = (end(from), end(to)) else { unreachable!() };
        let mut packet = Vec::new();
        PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
            .tcp(from.port(), to.port(), sequence, 1000)
            .write(&mut packet, payload)
            .unwrap();
        packet
    };
    let framed = |message: Vec<u8>| [&(message.len() as u16).to_be_bytes()[..], &message].concat();
    let (q, a) = (framed(query(9, "a.example")), framed(reply(9, "a.example", RCODE::ServerFailure)));
    let (client, server) = ("10.0.0.1:4000", "10.0.0.53:53");
    let (told, _) = lookups(&[
        (0, segment(client, server, 100, &q)),
        (2, segment(server, client, 500, &a[..9])),
        (2, segment(server, client, 500, &a[..9])),
        (4, segment(server, client, 509, &a[9..])),
    ]);
    assert_eq!(told.len(), 1);
    assert_eq!((&*told[0].rcode, told[0].latency_us), ("ServFail", 4000));
    assert_eq!(told[0].client_port, Some((Proto::TCP, 4000)));
}

#[test]
fn what_is_no_lookup_is_told_apart() {
    let (mut matcher, mut streams) = (Matcher::default(), Streams::default());
    let mut fault = |packet: &[u8]| take(packet, at(0), &mut matcher, &mut streams).unwrap_err();
    let (client, server) = ("10.0.0.1:4000", "10.0.0.53:53");
    assert_eq!(fault(&[]), Fault::Malformed);
    assert_eq!(fault(&[0x45; 12]), Fault::Malformed);
    assert_eq!(fault(&udp(client, "10.0.0.53:5353", b"")), Fault::OtherPort);
    assert_eq!(fault(&udp(client, server, b"no message")), Fault::NoMessage);
    let mut first = udp(server, client, &reply(9, "a.example", RCODE::NoError));
    first[6] |= 0x20;
    assert_eq!(fault(&first), Fault::Fragment);
    let mut truncated = reply(9, "a.example", RCODE::NoError);
    truncated.truncate(truncated.len() - 3);
    assert_eq!(fault(&udp(server, client, &truncated)), Fault::NoMessage);
    // A name that points to itself.
    let mut looped = query(9, "a.example");
    looped.splice(12.., [0xc0, 12, 0, 1, 0, 1]);
    assert_eq!(fault(&udp(client, server, &looped)), Fault::NoMessage);
    let mut two = Packet::new_query(1);
    two.questions.extend([question("a"), question("b")]);
    assert_eq!(fault(&udp(client, server, &two.build_bytes_vec().unwrap())), Fault::OtherMessage);
}

#[test]
fn a_flood_is_bounded_and_counted() {
    let (mut matcher, mut streams) = (Matcher::default(), Streams::default());
    let bytes = query(9, "a.example");
    for n in 0..100_000_u32 {
        let client = format!("{}:4000", std::net::Ipv4Addr::from(n | 0x0a00_0000));
        let server = format!("{}:53", std::net::Ipv4Addr::from(n | 0x0b00_0000));
        let mut bytes = bytes.clone();
        bytes[0] = (n >> 8) as u8;
        bytes[1] = n as u8;
        take(&udp(&client, &server, &bytes), at(0), &mut matcher, &mut streams).unwrap();
    }
    matcher.tell(at(60_000), false, |_, _| unreachable!("nothing was answered"));
    assert_eq!(matcher.stats.unanswered + matcher.stats.overflow, 100_000);
    assert!(matcher.stats.unanswered >= 32 << 10);
    assert!(matcher.remembers_nothing(), "what found no place has left something");
}

#[test]
fn a_clock_that_is_set_back_holds_nothing_up() {
    let (mut matcher, mut streams) = (Matcher::default(), Streams::default());
    let (client, server) = ("10.0.0.1:4000", "10.0.0.53:53");
    let mut told = 0;
    for (ms, packet) in [
        (100_000, udp(client, server, &query(1, "unanswered.example"))),
        (100_001, udp(client, server, &query(7, "www.example.com"))),
        (100_003, udp(server, client, &reply(7, "www.example.com", RCODE::NoError))),
    ] {
        take(&packet, at(ms), &mut matcher, &mut streams).unwrap();
    }
    matcher.tell(at(1_000), false, |_, _| told += 1);
    assert_eq!((told, matcher.stats.unanswered, matcher.remembers_nothing()), (1, 1, true));
}

proptest! {
    /// Nothing that comes over the network makes the agent panic, or wait.
    #[test]
    fn hostile_bytes_are_taken_or_refused(
        packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..200), any::<bool>(), 0..4_u8), 1..20),
    ) {
        let (mut matcher, mut streams) = (Matcher::default(), Streams::default());
        for (n, (bytes, answer, id)) in packets.into_iter().enumerate() {
            // Whole packets of noise, and noise in a packet that is well formed.
            let _ = take(&bytes, at(n as u64), &mut matcher, &mut streams);
            let (from, to) = ("10.0.0.1:53", "10.0.0.2:53");
            let _ = take(&udp(from, to, &bytes), at(n as u64), &mut matcher, &mut streams);
            let mut message = reply(u16::from(id), "a.example", RCODE::NoError);
            if !answer {
                message = query(u16::from(id), "a.example");
            }
            for (at, byte) in bytes.chunks(2).filter_map(|pair| Some((*pair.first()?, *pair.get(1)?))) {
                let len = message.len();
                message[usize::from(at) % len] = byte;
            }
            let _ = take(&udp(from, to, &message), at(n as u64), &mut matcher, &mut streams);
            matcher.tell(at(n as u64), false, |_, _| ());
        }
    }

    /// The question that is read is the one that was asked.
    #[test]
    fn names_survive(labels in prop::collection::vec("[a-z0-9-]{1,20}", 1..6), id in any::<u16>()) {
        let name = labels.join(".");
        let message = super::packet::message(&query(id, &name)).unwrap();
        prop_assert!(!message.is_answer);
        prop_assert_eq!((message.id, &*message.question), (id, &*name));
    }
}
