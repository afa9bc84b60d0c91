//! The line: a whole one by hand, its null rules, and the properties that tie it to its schema.

use std::sync::Arc;

use proptest::prelude::*;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Value, json};

use super::*;
use crate::model::{
    Action, Counters, EndpointKind, Hit, Labels, PolicyKind, Proto, Reporter, ServiceName, Trace,
};
use crate::wire::schema;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::new(pairs.iter().map(|(k, v)| (Arc::from(*k), Arc::from(*v))))
}

fn bare_end() -> FlowEnd {
    FlowEnd {
        kind: EndpointKind::Net,
        namespace: None,
        name: None,
        name_aggr: "pub".into(),
        ip: None,
        port: None,
        labels: None,
        ips: Vec::new(),
    }
}

/// A record of which nothing is known that can be unknown.
fn bare() -> FlowLog {
    FlowLog {
        source: bare_end(),
        dest: bare_end(),
        nat_outgoing_ports: Vec::new(),
        service: None,
        hide_service_port_name: false,
        dest_domains: Vec::new(),
        proto: Proto::TCP,
        action: Action::Allow,
        reporter: Reporter::Src,
        policies: None,
        incoming: Counters::default(),
        outgoing: Counters::default(),
        num_flows: 1,
        num_flows_started: 0,
        num_flows_completed: 0,
        process: ProcessColumns::default(),
        tcp: TcpColumns::default(),
        drop_reasons: Vec::new(),
        policy_mismatch: None,
    }
}

const WINDOW: Window = Window {
    start: Timestamp(1_700_000_000_999_999_999),
    end: Timestamp(1_700_000_005_000_000_000),
    lost_events: 3,
};

#[test]
fn what_is_written_in_one_piece_is_what_the_columns_give() {
    let (mut process, mut tcp) = (Vec::new(), Vec::new());
    all_process_columns(&ProcessColumns::default(), &mut process);
    all_tcp_columns(&TcpColumns::default(), &mut tcp);
    assert_eq!(str::from_utf8(&process), str::from_utf8(NO_PROCESS));
    assert_eq!(str::from_utf8(&tcp), str::from_utf8(NO_TCP));
}

fn line(log: &FlowLog, format: &LineFormat) -> String {
    let mut out = Vec::new();
    encode(log, &WINDOW, format, &mut out);
    String::from_utf8(out).unwrap()
}

fn value(log: &FlowLog, format: &LineFormat) -> Value {
    serde_json::from_str(&line(log, format)).unwrap()
}

/// The keys of an object in the order of the text.
fn keys(line: &str) -> Vec<String> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut keys = Vec::new();
            while let Some((key, IgnoredAny)) = map.next_entry()? {
                keys.push(key);
            }
            Ok(keys)
        }
    }
    serde_json::Deserializer::from_str(line).deserialize_map(Keys).unwrap()
}

#[test]
fn a_whole_line_as_calico_writes_it() {
    let hit = |kind, tier: &str, namespace: Option<&str>, name: &str, action, rule| Hit {
        tier: tier.into(),
        kind,
        namespace: namespace.map(Arc::from),
        name: name.into(),
        action,
        rule,
    };
    let enforced =
        Trace([hit(PolicyKind::NetworkPolicy, "app", Some("shop"), "checkout", Action::Deny, -1)].into());
    let all = Trace(
        [
            hit(PolicyKind::StagedGlobalNetworkPolicy, "app", None, "try", Action::Allow, 2),
            hit(PolicyKind::NetworkPolicy, "app", Some("shop"), "checkout", Action::Deny, -1),
        ]
        .into(),
    );
    let log = FlowLog {
        source: FlowEnd {
            kind: EndpointKind::Wep,
            namespace: Some("default".into()),
            name: Some("multitool".into()),
            name_aggr: "multitool".into(),
            ip: Some("10.48.0.9".parse().unwrap()),
            labels: Some(labels(&[
                ("app", "m"),
                ("app.kubernetes.io/name", "m"),
                ("projectcalico.org/namespace", "default"),
            ])),
            ..bare_end()
        },
        dest: FlowEnd {
            kind: EndpointKind::Wep,
            namespace: Some("shop".into()),
            name: Some("checkout-86c57db685-x2x4q".into()),
            name_aggr: "checkout-86c57db685-*".into(),
            ip: Some("fd00::1".parse().unwrap()),
            port: Some(5050),
            labels: Some(Labels::default()),
            ..bare_end()
        },
        nat_outgoing_ports: vec![1024, 2048],
        service: Some(Arc::new(ServiceName {
            namespace: "shop".into(),
            name: "checkout".into(),
            port_name: "grpc".into(),
            port: 80,
        })),
        action: Action::Deny,
        reporter: Reporter::Dst,
        policies: Some(Policies { enforced, pending: None, all }),
        incoming: Counters::new(7, 420),
        num_flows_started: 1,
        num_flows_completed: 1,
        drop_reasons: vec!["NETFILTER_DROP".into()],
        policy_mismatch: Some(false),
        ..bare()
    };
    let format =
        LineFormat { extended: true, name_style: NameStyle::Dotted, host: "node-1".into(), cluster: None };
    let want = concat!(
        r#"{"start_time":1700000000,"end_time":1700000005,"source_ip":"10.48.0.9","source_name":"multitool","#,
        r#""source_name_aggr":"multitool","source_namespace":"default","nat_outgoing_ports":[1024,2048],"#,
        r#""source_port":null,"source_type":"wep","source_labels":{"labels":["app.kubernetes.io/name=m","app=m"]},"#,
        r#""dest_ip":"fd00::1","dest_name":"checkout-86c57db685-x2x4q","dest_name_aggr":"checkout-86c57db685-*","#,
        r#""dest_namespace":"shop","dest_port":5050,"dest_type":"wep","dest_labels":{"labels":[]},"#,
        r#""dest_service_namespace":"shop","dest_service_name":"checkout","dest_service_port":"grpc","#,
        r#""dest_service_port_num":80,"dest_domains":null,"proto":"tcp","action":"deny","reporter":"dst","#,
        r#""policies":{"enforced_policies":["0|app|shop/app.checkout|deny|-1"],"pending_policies":null,"#,
        r#""all_policies":["0|app|staged:app.try|allow|2","1|app|shop/app.checkout|deny|-1"]},"#,
        r#""bytes_in":420,"bytes_out":0,"packets_in":7,"packets_out":0,"num_flows":1,"num_flows_started":1,"#,
        r#""num_flows_completed":1,"http_requests_allowed_in":0,"http_requests_denied_in":0,"process_name":"-","#,
        r#""num_process_names":0,"process_id":"-","num_process_ids":0,"process_args":["-"],"num_process_args":0,"#,
        r#""original_source_ips":null,"num_original_source_ips":0,"tcp_mean_send_congestion_window":0,"#,
        r#""tcp_min_send_congestion_window":0,"tcp_mean_smooth_rtt":0,"tcp_max_smooth_rtt":0,"tcp_mean_min_rtt":0,"#,
        r#""tcp_max_min_rtt":0,"tcp_mean_mss":0,"tcp_min_mss":0,"tcp_total_retransmissions":0,"tcp_lost_packets":0,"#,
        r#""tcp_unrecovered_to":0,"host":"node-1","cluster":null,"source_ips":null,"dest_ips":null,"#,
        r#""drop_reasons":["NETFILTER_DROP"],"policy_mismatch":false,"lost_events":3}"#,
        "\n",
    );
    assert_eq!(line(&log, &format), want);
}

#[test]
fn what_is_absent_is_null_or_a_hyphen() {
    let got = value(&bare(), &LineFormat { extended: true, host: "n".into(), ..LineFormat::default() });
    for field in [
        "source_ip",
        "dest_ip",
        "source_port",
        "dest_port",
        "nat_outgoing_ports",
        "source_labels",
        "dest_labels",
        "dest_service_port_num",
        "dest_domains",
        "policies",
        "original_source_ips",
        "cluster",
        "source_ips",
        "dest_ips",
        "drop_reasons",
        "policy_mismatch",
    ] {
        assert_eq!(got[field], Value::Null, "{field}");
    }
    for field in [
        "source_name",
        "source_namespace",
        "dest_name",
        "dest_namespace",
        "dest_service_namespace",
        "dest_service_name",
        "dest_service_port",
        "process_name",
        "process_id",
    ] {
        assert_eq!(got[field], json!("-"), "{field}");
    }
    assert_eq!(got["process_args"], json!(["-"]));
    assert_eq!(got["lost_events"], json!(3));
}

#[test]
fn ports_of_protocols_without_ports_and_service_columns_at_level_3() {
    let mut log = bare();
    log.source.port = Some(0);
    log.dest.port = Some(0);
    log.proto = Proto::ICMP6;
    log.service = Some(Arc::new(ServiceName {
        namespace: "a".into(),
        name: "s".into(),
        port_name: "http".into(),
        port: 443,
    }));
    log.hide_service_port_name = true;
    let got = value(&log, &LineFormat::default());
    assert_eq!((&got["source_port"], &got["dest_port"]), (&Value::Null, &Value::Null));
    assert_eq!(got["proto"], json!("icmp6"));
    assert_eq!(got["dest_service_port"], json!("-"));
    assert_eq!(got["dest_service_port_num"], json!(443));
    log.proto = Proto::SCTP;
    assert_eq!(value(&log, &LineFormat::default())["dest_port"], json!(0));
    log.proto = Proto(47);
    assert_eq!(value(&log, &LineFormat::default())["proto"], json!("47"));
}

#[test]
fn all_records_of_a_window_are_lines() {
    let logs =
        FlowLogs { start: WINDOW.start, end: WINDOW.end, lost_events: 3, records: vec![bare(), bare()] };
    let mut out = Vec::new();
    encode_all(&logs, &LineFormat::default(), &mut out);
    let one = line(&bare(), &LineFormat::default());
    assert_eq!(String::from_utf8(out).unwrap(), format!("{one}{one}"));
}

#[test]
fn encoding_into_a_roomy_buffer_does_not_move_it() {
    let mut out = Vec::with_capacity(64 * 1024);
    let before = out.as_ptr();
    encode(&bare(), &WINDOW, &LineFormat { extended: true, ..LineFormat::default() }, &mut out);
    assert_eq!(out.as_ptr(), before);
}

#[test]
fn the_schema_refuses_what_the_line_cannot_be() {
    let validator = jsonschema::validator_for(&schema::schema()).unwrap();
    let good = value(&bare(), &LineFormat { extended: true, ..LineFormat::default() });
    assert!(validator.is_valid(&good));
    for (field, bad) in [
        ("source_port", json!(65536)),
        ("bytes_in", json!(-1)),
        ("source_name", Value::Null),
        ("source_type", json!("pod")),
        ("action", json!("pass")),
        ("policies", json!({"enforced_policies": []})),
        ("process_args", Value::Null),
        ("unknown", json!(1)),
    ] {
        let mut line = good.clone();
        line[field] = bad;
        assert!(!validator.is_valid(&line), "{field}");
        assert!(schema::parse(&line.to_string()).is_err(), "{field}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The line, its type and its schema say the same, whatever a record holds.
    #[test]
    fn every_line_reads_back_and_fits_the_schema(
        log in arbitrary::flow_log(), window in arbitrary::window(), format in arbitrary::format()
    ) {
        static VALIDATOR: std::sync::LazyLock<jsonschema::Validator> =
            std::sync::LazyLock::new(|| jsonschema::validator_for(&schema::schema()).unwrap());
        let mut out = Vec::new();
        encode(&log, &window, &format, &mut out);
        let line = std::str::from_utf8(&out).unwrap();
        prop_assert_eq!(line.matches('\n').count(), 1);
        prop_assert!(line.ends_with("\u{7d}\n"), "it ends with brace and newline");

        let mut fields = CALICO_FIELDS.to_vec();
        if format.extended {
            fields.extend(EXTENDED_FIELDS);
        }
        prop_assert_eq!(keys(line), fields);

        let value: Value = serde_json::from_str(line).unwrap();
        let typed = schema::parse(line).unwrap();
        prop_assert_eq!(&serde_json::to_value(&typed).unwrap(), &value);
        if let Err(error) = VALIDATOR.validate(&value) {
            prop_assert!(false, "{error}");
        }

        // Against the record itself, where the text could have gone wrong unseen.
        prop_assert_eq!(&typed.source_name_aggr, &*log.source.name_aggr);
        prop_assert_eq!(typed.bytes_in, log.incoming.bytes);
        prop_assert_eq!(typed.dest_ip, log.dest.ip);
        if let Some(labels) = &log.source.labels {
            let mut want: Vec<String> = labels
                .iter()
                .filter(|(k, _)| !k.starts_with("projectcalico.org/"))
                .map(|(k, v)| format!("{k}={v}"))
                .collect();
            want.sort();
            prop_assert_eq!(typed.source_labels.unwrap().labels, want);
        }
    }
}
