//! Every kind by hand, every way to be wrong with its place, and the round trip as a property.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::*;
use crate::wire::flow_log::arbitrary::{hit, text};

const AT: &str = r#""at":"1970-01-01T00:00:01Z""#;

fn parse(content: &str) -> Result<Line, RecordingError> {
    parse_line(format!("{{{AT},{content}}}").as_bytes(), 7).map(|(at, line)| {
        assert_eq!(at, Timestamp(1_000_000_000));
        line
    })
}

fn observation(content: &str) -> Observation {
    match parse(content) {
        Ok(Line::Observation(observation)) => observation,
        other => panic!("{content}: {other:?}"),
    }
}

/// The error of a line, as the operator reads it.
fn refusal(line: &str) -> String {
    parse_line(line.as_bytes(), 7).expect_err(line).to_string()
}

fn addresses(src: &str, src_port: u16, dst: &str, dst_port: u16) -> Addresses {
    Addresses { src: src.parse().unwrap(), dst: dst.parse().unwrap(), src_port, dst_port }
}

#[test]
fn conntrack_in_full() {
    let got = observation(
        r#""conntrack":{"event":"end","proto":"TCP",
        "original":{"src":"10.0.0.1","src_port":40000,"dst":"10.96.0.1","dst_port":80},
        "reply":{"src":"::ffff:10.0.1.2","src_port":8080,"dst":"10.0.0.1","dst_port":40000},
        "packets":[3,2],"bytes":[300,18446744073709551615],"tcp_state":"TIME_WAIT","zone":9,"confirmed":false}"#,
    );
    assert_eq!(
        got,
        Observation::Connection(ConnectionRecord {
            event: ConnectionEvent::End { confirmed: false },
            proto: Proto::TCP,
            original: addresses("10.0.0.1", 40000, "10.96.0.1", 80),
            reply: addresses("10.0.1.2", 8080, "10.0.0.1", 40000),
            icmp: None,
            zone: 9,
            counters: Directional { original: Counters::new(3, 300), reply: Counters::new(2, u64::MAX) },
            tcp_state: Some(TcpState::TimeWait),
        })
    );
}

#[test]
fn ports_of_portless_protocols_are_absent_null_or_zero_alike() {
    let line = |proto: &str, ports: [&str; 2]| {
        let [source, dest] = ports;
        observation(&format!(
            r#""conntrack":{{"event":"new","proto":{proto},"original":{{"src":"fd00::1"{source},"dst":"fd00::2"{dest}}},
            "reply":{{"src":"fd00::2","dst":"fd00::1"}},"packets":[1,0],"bytes":[84,0],
            "icmp":{{"type":128,"code":0,"id":77}}}}"#
        ))
    };
    let want = line("\"icmp6\"", ["", ""]);
    let Observation::Connection(record) = &want else { panic!("{want:?}") };
    assert_eq!(record.original, addresses("fd00::1", 0, "fd00::2", 0));
    assert_eq!(record.icmp, Some(Icmp { kind: 128, code: 0, id: 77 }));
    assert_eq!(line("58", [r#","src_port":null"#, r#","dst_port":0"#]), want);
    assert_eq!(line("\"58\"", [r#","src_port":0"#, r#","dst_port":null"#]), want);
}

#[test]
fn drop_verdict_tcp_process_dns_lost() {
    let five = r#""proto":"udp","src":"10.0.0.1","src_port":1,"dst":"10.0.0.2","dst_port":53"#;
    let tuple = FiveTuple { proto: Proto::UDP, addresses: addresses("10.0.0.1", 1, "10.0.0.2", 53) };
    assert_eq!(
        observation(&format!(
            r#""drop":{{{five},"packets":2,"bytes":120,"reason":"SKB_DROP_REASON_NETFILTER_DROP",
            "original":{{"src":"10.0.0.1","src_port":1,"dst":"10.96.0.10","dst_port":53}}}}"#
        )),
        Observation::Drop(DropRecord {
            tuple,
            original: Some(addresses("10.0.0.1", 1, "10.96.0.10", 53)),
            icmp: None,
            packets: 2,
            bytes: 120,
            reason: "NETFILTER_DROP".into(),
        })
    );
    assert_eq!(
        observation(&format!(
            r#""verdict":{{{five},"direction":"ingress","hits":[
            {{"tier":"default","kind":"NetworkPolicy","namespace":"b","name":"p","action":"pass","rule":-1}},
            {{"tier":"__PROFILE__","kind":"Profile","namespace":"","name":"kns.b","action":"allow","rule":0}}]}}"#
        )),
        Observation::Verdict(VerdictRecord {
            tuple,
            direction: Direction::Ingress,
            set: VerdictSet::Enforced,
            hits: Trace(
                [
                    Hit {
                        tier: "default".into(),
                        kind: PolicyKind::NetworkPolicy,
                        namespace: Some("b".into()),
                        name: "p".into(),
                        action: Action::Pass,
                        rule: -1,
                    },
                    Hit {
                        tier: "__PROFILE__".into(),
                        kind: PolicyKind::Profile,
                        namespace: None,
                        name: "kns.b".into(),
                        action: Action::Allow,
                        rule: 0,
                    },
                ]
                .into()
            ),
        })
    );
    assert_eq!(
        observation(&format!(
            r#""tcp":{{{five},"srtt_us":1,"min_rtt_us":2,"send_cwnd":3,"mss":4,"retransmits":5,"lost":6,
            "unrecovered_rto":7}}"#
        )),
        Observation::Tcp(TcpRecord {
            tuple,
            srtt_us: 1,
            min_rtt_us: 2,
            send_cwnd: 3,
            mss: 4,
            retransmits: 5,
            lost: 6,
            unrecovered_rto: 7,
        })
    );
    assert_eq!(
        observation(&format!(
            r#""process":{{{five},"end":"dst","pid":42,"name":"dns","args":["-v",""],"pod_uid":"6ba7b810"}}"#
        )),
        Observation::Process(ProcessRecord {
            tuple,
            side: FlowSide::Dst,
            pid: 42,
            name: "dns".into(),
            args: ["-v".into(), "".into()].into(),
            pod_uid: Some("6ba7b810".into()),
            container: None,
        })
    );
    assert_eq!(
        observation(
            r#""dns":{"client":"10.0.0.1","server":"fd00::a","question":"a.example","rcode":"NoError",
            "latency_us":350,"answers":[{"name":"a.example","type":"A","data":"192.0.2.1","ttl_s":30}]}"#
        ),
        Observation::Dns(DnsRecord {
            client: "10.0.0.1".parse().unwrap(),
            client_port: None,
            server: "fd00::a".parse().unwrap(),
            question: "a.example".into(),
            qtype: None,
            qclass: None,
            rcode: "NoError".into(),
            latency_us: 350,
            answers: vec![DnsAnswer {
                name: "a.example".into(),
                kind: "A".into(),
                data: "192.0.2.1".into(),
                ttl_s: 30,
            }],
        })
    );
    assert_eq!(
        observation(r#""lost":{"stage":"ring","events":3}"#),
        Observation::Lost { stage: "ring".into(), events: 3 }
    );
    let asked_from = |fields: &str| match observation(&format!(
        r#""dns":{{"client":"10.0.0.1",{fields}"server":"10.0.0.9","question":"a.example","rcode":"NoError",
            "latency_us":0,"answers":[]}}"#
    )) {
        Observation::Dns(record) => record.client_port,
        other => panic!("{other:?}"),
    };
    assert_eq!(asked_from(r#""client_port":4000,"#), Some((Proto::UDP, 4000)));
    assert_eq!(asked_from(r#""client_port":4000,"proto":"tcp","#), Some((Proto::TCP, 4000)));
    let lone = parse(
        r#""dns":{"client":"10.0.0.1","proto":"udp","server":"10.0.0.9","question":"a","rcode":"NoError",
            "latency_us":0,"answers":[]}"#,
    );
    assert!(lone.unwrap_err().to_string().contains("`dns.proto`"));
}

#[test]
fn objects_and_flush_in_any_order_of_fields() {
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}});
    assert_eq!(parse(&format!("\"apply\":{object}")).unwrap(), Line::Apply(object));
    assert_eq!(
        parse(r#""delete":{"apiVersion":"v1","kind":"Pod","namespace":"n","name":"a"}"#).unwrap(),
        Line::Delete(ObjectKey {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: Some("n".into()),
            name: "a".into()
        })
    );
    let (at, line) = parse_line(b"{\"flush\":{},\"at\":\"1970-01-01T00:00:00.5Z\"}\r\n", 1).unwrap();
    assert_eq!((at, line), (Timestamp(500_000_000), Line::Flush));
}

/// Line, column of the value, path of the field, and what would be right.
#[test]
fn errors_say_where_and_what_to_do() {
    let drop = |fields: &str| format!(r#"{{{AT},"drop":{{{fields},"packets":1,"bytes":60,"reason":"X"}}}}"#);
    let five = r#""proto":"tcp","src":"10.0.0.1","src_port":1,"dst":"10.0.0.2","dst_port":"#;
    let line = drop(&format!("{five}70000"));
    let column = line.find("70000").unwrap() + 1;
    assert_eq!(
        refusal(&line),
        format!("recording line 7, column {column}: field `drop.dst_port`: 70000 is not a port (0 to 65535)")
    );

    let line = drop(r#""proto":"tcp","src":"10.0.0.1","src_port":1,"dst":"fd00::2","dst_port":2"#);
    let column = line.find("\"fd00").unwrap() + 1;
    assert!(
        refusal(&line)
            .starts_with(&format!("recording line 7, column {column}: field `drop.dst`: 10.0.0.1 and")),
        "{}",
        refusal(&line)
    );

    let counters = r#""packets":[1,2],"bytes":[1,2]"#;
    let conntrack = |event: &str, rest: &str| {
        format!(
            r#"{{{AT},"conntrack":{{"event":"{event}","proto":"tcp",
            "original":{{"src":"10.0.0.1","src_port":1,"dst":"10.0.0.2","dst_port":2}},
            "reply":{{"src":"10.0.0.2","src_port":2,"dst":"10.0.0.1","dst_port":1}},{rest}}}}}"#
        )
    };
    for (line, parts) in [
        (drop(&format!("{five}-1")), vec!["`drop.dst_port`", "-1 is not a port (0 to 65535)"]),
        (drop(&format!("{five}1.5")), vec!["1.5 is not a port (0 to 65535), a whole number"]),
        (drop(&format!("{five}\"80\"")), vec!["invalid type: string \"80\", expected a port (0 to 65535)"]),
        (drop(&format!("{five}null")), vec!["`drop.dst_port`", "it is missing: protocol tcp has ports"]),
        (drop(r#""proto":"xtp","src":"::","dst":"::""#), vec!["`drop.proto`", "one of icmp ipip tcp"]),
        (
            drop(r#""proto":256,"src":"::","dst":"::""#),
            vec!["256 is not the number of a protocol (0 to 255)"],
        ),
        (drop(r#""proto":1,"src":"fe80::1%eth0","dst":"::""#), vec!["`drop.src`", "names a zone"]),
        (drop(r#""proto":1,"src":"10.0.0.256","dst":"::""#), vec!["\"10.0.0.256\" is not an IP address"]),
        (
            drop(r#""proto":1,"src":"10.0.0.1","dst":"10.0.0.1","prot":1"#),
            vec!["`drop.prot`", "unknown field"],
        ),
        (drop(r#""proto":1,"src":"10.0.0.1","dst":"10.0.0.1","src":"::""#), vec!["duplicate field `src`"]),
        (drop(r#""proto":1,"src":"10.0.0.1""#), vec!["field `drop`: missing field `dst`"]),
        (
            conntrack("new", r#""packets":[-1,2],"bytes":[1,2]"#),
            vec!["`conntrack.packets[0]`", "-1 is not a count"],
        ),
        (
            conntrack("new", r#""packets":[1,2],"bytes":[1,18446744073709551616]"#),
            vec!["`conntrack.bytes[1]`", "is not a count (0 to 18446744073709551615)"],
        ),
        (conntrack("new", r#""packets":[1],"bytes":[1,2]"#), vec!["`conntrack.packets`", "two counts"]),
        (conntrack("new", r#""packets":[1,2,3],"bytes":[1,2]"#), vec!["`conntrack.packets", "two counts"]),
        (
            conntrack("begin", counters),
            vec!["`conntrack.event`", "expected one of `new`, `adopt`, `update`, `end`"],
        ),
        (
            conntrack("update", &format!("{counters},\"confirmed\":true")),
            vec!["`conntrack.confirmed`", "only event `end` has it"],
        ),
        (
            conntrack("update", &format!("{counters},\"tcp_state\":\"OPEN\"")),
            vec!["`conntrack.tcp_state`", "the kernel's names are NONE SYN_SENT"],
        ),
        (conntrack("new", &format!("{counters},\"zone\":65536")), vec!["`conntrack.zone`", "(0 to 65535)"]),
        (
            conntrack("new", counters).replace(
                "\"10.0.0.2\",\"src_port\":2,\"dst\":\"10.0.0.1\"",
                "\"fd00::2\",\"src_port\":2,\"dst\":\"fd00::1\"",
            ),
            vec!["`conntrack.reply.src`", "two address families"],
        ),
        (
            format!(
                r#"{{{AT},"verdict":{{{five}2,"direction":"ingress","hits":[{{"tier":"t","kind":"EndOfTier","name":"",
                "action":"deny","rule":-1}}]}}}}"#
            ),
            vec!["`verdict.hits[0].kind`", "EndOfTier is no kind: write the tier's last enforced policy"],
        ),
        (
            format!(r#"{{{AT},"verdict":{{{five}2,"direction":"in","hits":[]}}}}"#),
            vec!["`verdict.direction`", "expected `ingress` or `egress`"],
        ),
        (
            format!(
                r#"{{{AT},"verdict":{{{five}2,"direction":"egress","hits":[{{"tier":"t","kind":"Profile","name":"",
                "action":"log","rule":-3}}]}}}}"#
            ),
            vec!["`verdict.hits[0].action`", "allow, deny or pass"],
        ),
        (
            format!(r#"{{{AT},"dropped":{{}}}}"#),
            vec!["unknown kind `dropped`; the kinds are conntrack, drop"],
        ),
        (
            format!(r#"{{{AT},"flush":{{}},"lost":{{"stage":"a","events":1}}}}"#),
            vec!["holds `flush` and `lost`"],
        ),
        (format!(r#"{{{AT},"flush":{{}},"flush":{{}}}}"#), vec!["holds `flush` and `flush`"]),
        (format!(r#"{{{AT},"flush":{{"now":1}}}}"#), vec!["unknown field `now`"]),
        (format!(r#"{{{AT},"flush":null}}"#), vec!["`flush`", "invalid type: null"]),
        (format!(r#"{{{AT}}}"#), vec!["the line holds no kind"]),
        (format!(r#"{{{AT},{AT},"flush":{{}}}}"#), vec!["`at` stands twice"]),
        (String::from(r#"{"flush":{}}"#), vec!["`at` is missing"]),
        (
            String::from(r#"{"at":"yesterday","flush":{}}"#),
            vec!["column 7: field `at`: \"yesterday\" is not a time"],
        ),
        (
            format!(r#"{{{AT},"apply":{{"kind":"Pod"}}}}"#),
            vec!["`apply.apiVersion`", "a Kubernetes object says"],
        ),
        (format!(r#"{{{AT},"apply":[]}}"#), vec!["`apply`", "invalid type: sequence"]),
        (format!(r#"{{{AT},"delete":{{"kind":"Pod","name":"a"}}}}"#), vec!["missing field `apiVersion`"]),
        (format!(r#"{{{AT},"flush":{{}}}} {{}}"#), vec!["not valid JSON (trailing characters)"]),
        (format!(r#"{{{AT},"flush":{{"#), vec!["not valid JSON (EOF while parsing an object)"]),
        (String::from("[]"), vec!["expected an object with `at` and one kind"]),
        (String::new(), vec!["not valid JSON (EOF"]),
        (String::from("\u{feff}{}"), vec!["column 1: the line starts with a byte order mark"]),
    ] {
        let message = refusal(&line);
        for part in parts {
            assert!(message.contains(part), "{line}\n  gave {message}\n  without {part}");
        }
    }
}

#[test]
fn text_that_is_not_utf8_and_messages_that_are_not_text() {
    let error = parse_line(b"{\"at\":\"\xff\"}", 3).unwrap_err();
    assert_eq!((error.line, error.column), (3, 8));
    let long = format!("{{{AT},\"{}\\u001b[2J\":1}}", "x".repeat(10_000));
    let message = refusal(&long);
    assert!(message.len() < 1000, "{}", message.len());
    let escape = format!("{{{AT},\"\\u001b[2J\":1}}");
    assert!(refusal(&escape).contains("\\u{1b}[2J"), "{}", refusal(&escape));
    // Deeper than the reader follows.
    let deep = format!("{{{AT},\"apply\":{}", "{\"a\":".repeat(100_000));
    assert!(refusal(&deep).contains("recursion limit exceeded"));
}

#[test]
fn what_belongs_to_another_protocol_is_not_kept() {
    let got = observation(
        r#""conntrack":{"event":"new","proto":"udp",
        "original":{"src":"10.0.0.1","src_port":1,"dst":"10.0.0.2","dst_port":2},
        "reply":{"src":"10.0.0.2","src_port":2,"dst":"10.0.0.1","dst_port":1},
        "packets":[1,2],"bytes":[1,2],"tcp_state":"NONE","icmp":{"type":8,"code":0,"id":1},"zone":null}"#,
    );
    let Observation::Connection(record) = got else { panic!("{got:?}") };
    assert_eq!((record.tcp_state, record.icmp, record.zone), (None, None, 0));
}

// ---- any observation ----

fn proto() -> impl Strategy<Value = Proto> {
    prop_oneof![
        Just(Proto::TCP),
        Just(Proto::UDP),
        Just(Proto::ICMP),
        Just(Proto::ICMP6),
        any::<u8>().prop_map(Proto)
    ]
}

/// Two ends of one family, with ports where the protocol has them.
fn ends(proto: Proto, is_v4: bool) -> impl Strategy<Value = Addresses> {
    let ip = move |bits: u128| {
        if is_v4 {
            IpAddr::from((bits as u32).to_be_bytes())
        } else {
            // Not v4-mapped, which would be of the other family.
            IpAddr::from((bits | 1 << 127).to_be_bytes())
        }
    };
    any::<(u128, u128, u16, u16)>().prop_map(move |(src, dst, src_port, dst_port)| Addresses {
        src: ip(src),
        dst: ip(dst),
        src_port: if proto.has_ports() { src_port } else { 0 },
        dst_port: if proto.has_ports() { dst_port } else { 0 },
    })
}

fn icmp(proto: Proto) -> impl Strategy<Value = Option<Icmp>> {
    option::of(any::<(u8, u8, u16)>()).prop_map(move |icmp| {
        icmp.filter(|_| proto.is_icmp()).map(|(kind, code, id)| Icmp { kind, code, id })
    })
}

fn tuple() -> impl Strategy<Value = FiveTuple> {
    (proto(), any::<bool>()).prop_flat_map(|(proto, is_v4)| {
        ends(proto, is_v4).prop_map(move |addresses| FiveTuple { proto, addresses })
    })
}

fn connection() -> impl Strategy<Value = Observation> {
    let event = prop_oneof![
        Just(ConnectionEvent::New),
        Just(ConnectionEvent::Adopt),
        Just(ConnectionEvent::Update),
        any::<bool>().prop_map(|confirmed| ConnectionEvent::End { confirmed }),
    ];
    (proto(), any::<bool>(), event, any::<[u64; 4]>(), any::<u16>(), option::of(0..TcpState::ALL.len()))
        .prop_flat_map(|(proto, is_v4, event, n, zone, state)| {
            (ends(proto, is_v4), ends(proto, is_v4), icmp(proto)).prop_map(move |(original, reply, icmp)| {
                Observation::Connection(ConnectionRecord {
                    event,
                    proto,
                    original,
                    reply,
                    icmp,
                    zone,
                    counters: Directional {
                        original: Counters::new(n[0], n[1]),
                        reply: Counters::new(n[2], n[3]),
                    },
                    tcp_state: state.filter(|_| proto == Proto::TCP).map(|state| TcpState::ALL[state]),
                })
            })
        })
}

fn dropped() -> impl Strategy<Value = Observation> {
    (proto(), any::<bool>(), any::<(u64, u64)>(), "[A-Z_\"\\x00]{1,20}").prop_flat_map(
        |(proto, is_v4, (packets, bytes), reason)| {
            let reason: Arc<str> = reason.into();
            (ends(proto, is_v4), option::of(ends(proto, is_v4)), icmp(proto)).prop_map(
                move |(addresses, original, icmp)| {
                    Observation::Drop(DropRecord {
                        tuple: FiveTuple { proto, addresses },
                        original,
                        icmp,
                        packets,
                        bytes,
                        reason: reason.clone(),
                    })
                },
            )
        },
    )
}

fn any_observation() -> impl Strategy<Value = Observation> {
    let verdict = (tuple(), any::<bool>(), any::<bool>(), vec(hit(), 0..4)).prop_map(
        |(tuple, is_ingress, is_pending, mut hits)| {
            for hit in &mut hits {
                hit.namespace = hit.namespace.take().filter(|namespace| !namespace.is_empty());
            }
            Observation::Verdict(VerdictRecord {
                tuple,
                direction: if is_ingress { Direction::Ingress } else { Direction::Egress },
                set: if is_pending { VerdictSet::Pending } else { VerdictSet::Enforced },
                hits: Trace(hits.into()),
            })
        },
    );
    let tcp = (tuple(), any::<[u64; 7]>()).prop_map(|(tuple, n)| {
        Observation::Tcp(TcpRecord {
            tuple,
            srtt_us: n[0],
            min_rtt_us: n[1],
            send_cwnd: n[2],
            mss: n[3],
            retransmits: n[4],
            lost: n[5],
            unrecovered_rto: n[6],
        })
    });
    let process = (tuple(), any::<bool>(), any::<u32>(), text(), vec(text(), 0..3), vec(text(), 2)).prop_map(
        |(tuple, is_src, pid, name, args, pod)| {
            Observation::Process(ProcessRecord {
                tuple,
                side: if is_src { FlowSide::Src } else { FlowSide::Dst },
                pid,
                name,
                args: args.into(),
                // A longer one is left out when it is read.
                pod_uid: pod.first().filter(|text| (1..=64).contains(&text.len())).cloned(),
                container: pod.get(1).filter(|text| !text.is_empty()).cloned(),
            })
        },
    );
    let answer = (text(), text(), text(), any::<u32>()).prop_map(|(name, kind, data, ttl_s)| DnsAnswer {
        name,
        kind,
        data,
        ttl_s,
    });
    let asked = (option::of(text()), option::of(text()), option::of((any::<u8>(), any::<u16>())));
    let dns = (tuple(), text(), asked, text(), any::<u64>(), vec(answer, 0..3)).prop_map(
        |(tuple, question, (qtype, qclass, port), rcode, latency_us, answers)| {
            Observation::Dns(DnsRecord {
                client: tuple.addresses.src,
                client_port: port.map(|(proto, port)| (Proto(proto), port)),
                server: tuple.addresses.dst,
                question,
                qtype,
                qclass,
                rcode,
                latency_us,
                answers,
            })
        },
    );
    let lost = (text(), any::<u64>()).prop_map(|(stage, events)| Observation::Lost { stage, events });
    prop_oneof![4 => connection(), 2 => dropped(), 2 => verdict, 1 => tcp, 1 => process, 1 => dns, 1 => lost]
}

proptest! {
    #[test]
    fn what_is_written_reads_back(at in any::<i64>(), observation in any_observation()) {
        let line = Line::Observation(observation);
        let mut out = Vec::new();
        write_line(&mut out, Timestamp(at), &line);
        prop_assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        let (read_at, read) = parse_line(&out, 1).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(read_at, Timestamp(at));
        prop_assert_eq!(&read, &line);
        let mut again = Vec::new();
        write_line(&mut again, read_at, &read);
        prop_assert_eq!(again, out);
    }

    #[test]
    fn objects_read_back(name in any::<String>(), namespace in option::of(any::<String>()), n in any::<i64>()) {
        let object = json!({"apiVersion": "v1", "kind": name, "metadata": {"name": name, "n": [n, null, true]}});
        let key = ObjectKey { api_version: "v1".into(), kind: name.clone(), namespace, name };
        for line in [Line::Apply(object), Line::Delete(key), Line::Flush] {
            let mut out = Vec::new();
            write_line(&mut out, Timestamp(0), &line);
            prop_assert_eq!(parse_line(&out, 1).map(|(_, line)| line), Ok(line));
        }
    }

    /// Bytes of any kind, and lines with one byte changed: an error or a line, never a panic.
    #[test]
    fn no_bytes_panic(noise in vec(any::<u8>(), 0..200), observation in any_observation(), at in any::<usize>(), byte in any::<u8>()) {
        let _ = parse_line(&noise, 1);
        let mut line = Vec::new();
        write_line(&mut line, Timestamp(0), &Line::Observation(observation));
        let at = at % line.len();
        line[at] = byte;
        if let Err(error) = parse_line(&line, 1) {
            prop_assert!(error.column >= 1 && error.column <= line.len() + 1);
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
