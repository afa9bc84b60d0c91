//! Tests of the configuration: each row of the contract's section on it, what is said of bad values, and that
//! nothing hostile in a file or variable makes the reader panic.
//!
//! All pure: no test reads the machine's environment.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn entry(field: &str, value: Value, notation: Notation) -> RawEntry {
    RawEntry { field: field.into(), value, place: "here".into(), notation }
}

fn layer(layer: Layer, entries: &[(&str, Value)]) -> RawLayer {
    let notation = match layer {
        Layer::Environment | Layer::Flag => Notation::Text,
        _ => Notation::Yaml,
    };
    RawLayer { layer, entries: entries.iter().map(|(f, v)| entry(f, v.clone(), notation)).collect() }
}

fn one(field: &str, value: Value, notation: Notation) -> Result<Config, String> {
    let (resolved, bad) =
        resolve(vec![RawLayer { layer: Layer::File, entries: vec![entry(field, value, notation)] }]);
    bad.first().map_or(Ok(resolved.config), |bad| Err(bad.to_string()))
}

fn environment(variables: &[(&str, &str)]) -> (Resolved, Vec<BadValue>) {
    let variables: Vec<(OsString, OsString)> =
        variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    resolve(vec![environment_layer(&variables)])
}

#[test]
fn defaults_are_the_contracts() {
    let config = Config::default();
    assert!(config.flow_logs_file_enabled && config.flow_logs_enable_network_sets);
    assert!(config.flow_logs_file_include_labels && config.flow_logs_file_include_policies);
    assert!(config.flow_logs_file_include_service);
    assert!(config.flow_logs_file_enabled_for_allowed && config.flow_logs_file_enabled_for_denied);
    assert!(!config.flow_logs_enable_host_endpoint && !config.flow_logs_collect_tcp_stats);
    assert_eq!(config.flow_logs_file_aggregation_kind_for_allowed, 2);
    assert_eq!(config.flow_logs_file_aggregation_kind_for_denied, 1);
    assert_eq!(config.flow_logs_flush_interval, Duration::from_secs(300));
    assert_eq!(config.flow_logs_file_directory, Path::new("/var/log/calico/flowlogs"));
    assert_eq!((config.flow_logs_file_max_files, config.flow_logs_file_max_file_size_mb), (5, 100));
    assert_eq!(config.flow_logs_file_mode.0, 0o600);
    assert_eq!(config.flow_logs_file_ips_limit, 5);
    assert_eq!(config.flow_logs_file_format, FileFormat::Extended);
    assert_eq!(config.flow_logs_policy_name_style, PolicyNameStyle::Dotted);
    assert_eq!(config.flow_logs_private_networks, PrivateNetworks::Rfc1918);
    assert_eq!(config.flow_logs_file_idle_flows, IdleFlows::Emit);
    assert_eq!(config.flow_logs_policy_evaluation_mode, PolicyEvaluationMode::Continuous);
    assert_eq!(config.flow_logs_cluster_name, None);
    assert_eq!(config.dns_trusted_servers, ["k8s-service:kube-dns"]);
}

/// `flowLogsFileMaxFileSizeMB` -> `flow_logs_file_max_file_size_mb`: a capital begins a word, a run of them is one.
fn snake(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut text = String::new();
    for (i, c) in chars.iter().enumerate() {
        let after_lower = i > 0 && chars[i - 1].is_lowercase();
        let before_lower = i > 0 && chars.get(i + 1).is_some_and(|next| next.is_lowercase());
        if c.is_uppercase() && (after_lower || before_lower) {
            text.push('_');
        }
        text.extend(c.to_lowercase());
    }
    text.replace("i_ps", "ips").replace("_d_n_s", "_dns")
}

#[test]
fn the_table_is_consistent() {
    let mut names = std::collections::BTreeSet::new();
    for field in FIELDS {
        assert!(names.insert(field.name.to_lowercase()), "{} twice, in environment's spelling", field.name);
        assert_eq!(snake(field.name), field.member);
        assert!(field.doc.trim().ends_with('.'), "{}", field.name);
        // Every default is allowed, and what is shown reads back.
        let value = field.default_value();
        let mut config = Config::default();
        if !value.is_null() {
            assert!(
                (field.set)(&mut config, &value, Notation::Yaml, field.limits),
                "{}: {value}",
                field.name
            );
        }
        assert_eq!(config, Config::default(), "{}", field.name);
        let row = format!("| `{}` |", field.name);
        assert_eq!(markdown_table().matches(&row).count(), 1);
    }
}

#[test]
fn the_highest_layer_wins_and_is_remembered_in_any_order() {
    let order = [
        Layer::FelixDefault,
        Layer::FelixNode,
        Layer::ClusterDefault,
        Layer::ClusterNode,
        Layer::File,
        Layer::Environment,
        Layer::Flag,
    ];
    for top in 0..order.len() {
        let mut layers: Vec<_> = order[..=top]
            .iter()
            .enumerate()
            .map(|(n, one)| layer(*one, &[("flowLogsFileMaxFiles", json!(n + 10))]))
            .collect();
        layers.reverse();
        let (resolved, bad) = resolve(layers);
        assert_eq!(bad, []);
        assert_eq!(resolved.config.flow_logs_file_max_files as usize, top + 10);
        assert_eq!(resolved.origin("flowLogsFileMaxFiles").unwrap().layer, order[top]);
        assert_eq!(resolved.origin("flowLogsFileMode").unwrap().layer, Layer::BuiltIn);
    }
    assert!(resolve(vec![]).0.origin("flowLogsNoSuch").is_none());
}

#[test]
fn a_bad_value_is_told_and_the_next_lower_layer_holds() {
    let (resolved, bad) = resolve(vec![
        layer(Layer::ClusterDefault, &[("flowLogsFlushInterval", json!("30s"))]),
        layer(Layer::ClusterNode, &[("flowLogsFlushInterval", json!("soon"))]),
    ]);
    assert_eq!(resolved.config.flow_logs_flush_interval, Duration::from_secs(30));
    assert_eq!(resolved.origin("flowLogsFlushInterval").unwrap().layer, Layer::ClusterDefault);
    assert_eq!((bad.len(), bad[0].layer), (1, Layer::ClusterNode));
    assert_eq!(
        bad[0].to_string(),
        "here: flowLogsFlushInterval: \"soon\" is not allowed; allowed is a duration with its unit, such as 15s or 1m30s, from 100ms to 24h"
    );
}

#[test]
fn felix_objects_may_hold_anything_else_ours_may_not() {
    let felix =
        layer(Layer::FelixDefault, &[("bpfEnabled", json!(true)), ("flowLogsFlushInterval", json!("1m"))]);
    let (resolved, bad) = resolve(vec![felix]);
    assert_eq!((resolved.config.flow_logs_flush_interval, bad.len()), (Duration::from_secs(60), 0));
    let (_, bad) = resolve(vec![layer(Layer::ClusterDefault, &[("flowLogFlushIntervall", json!("1m"))])]);
    assert!(bad[0].to_string().contains("did you mean flowLogsFlushInterval?"), "{}", bad[0]);
    let (_, bad) = resolve(vec![layer(Layer::File, &[("colour", json!("red"))])]);
    assert!(!bad[0].to_string().contains("did you mean"), "{}", bad[0]);
}

#[test]
fn durations() {
    let field = "flowLogsFlushInterval";
    let interval =
        |value: Value, notation| one(field, value, notation).map(|config| config.flow_logs_flush_interval);
    let seconds = |s: u64| Ok(Duration::from_secs(s));
    for notation in [Notation::Yaml, Notation::Text, Notation::Felix] {
        assert_eq!(interval(json!("15s"), notation), seconds(15));
        assert_eq!(interval(json!("1m30s"), notation), seconds(90));
        assert_eq!(interval(json!("1.5h"), notation), seconds(5400));
        assert_eq!(interval(json!("300ms"), notation), Ok(Duration::from_millis(300)));
        for bad in
            ["0s", "0", "-5s", "", "s", "1 fortnight", "99ms", "25h", "nan", "inf", "1e300", "9999999999999h"]
        {
            assert!(
                interval(json!(bad), notation).is_err() || bad.is_empty() && notation == Notation::Felix,
                "{bad}"
            );
        }
    }
    for notation in [Notation::Text, Notation::Felix] {
        assert_eq!(interval(json!("15"), notation), seconds(15));
        assert_eq!(interval(json!("0.5"), notation), Ok(Duration::from_millis(500)));
    }
    assert!(interval(json!(15), Notation::Yaml).unwrap_err().contains("with its unit"));
    assert_eq!(one("dnsExtraTTL", json!(0), Notation::Yaml).unwrap().dns_extra_ttl, Duration::ZERO);
    let held = one("dnsPacketsNfqueueMaxHoldDuration", json!("250"), Notation::Felix).unwrap();
    assert_eq!(held.dns_packets_nfqueue_max_hold_duration.0, Duration::from_millis(250));
}

#[test]
fn booleans_are_felixs() {
    let read = |value: Value| one("flowLogsEnableHostEndpoint", value, Notation::Yaml);
    for yes in [json!(true), json!(1), json!("true"), json!("Yes"), json!("y"), json!("T"), json!("1")] {
        assert!(read(yes).unwrap().flow_logs_enable_host_endpoint);
    }
    for no in [json!(false), json!(0), json!("False"), json!("no"), json!("N"), json!("f"), json!("0")] {
        assert!(!read(no).unwrap().flow_logs_enable_host_endpoint);
    }
    for bad in [json!("on"), json!(2), json!([]), json!({}), json!("")] {
        assert!(read(bad).is_err());
    }
}

#[test]
fn integers_and_levels_have_bounds() {
    let level = |value: Value| {
        one("flowLogsFileAggregationKindForAllowed", value, Notation::Yaml)
            .map(|config| config.flow_logs_file_aggregation_kind_for_allowed)
    };
    assert_eq!(level(json!(0)), Ok(0));
    assert_eq!(level(json!("3")), Ok(3));
    for bad in [json!(4), json!(-1), json!(1.5), json!("two"), json!(256), json!(true)] {
        assert!(level(bad).unwrap_err().contains("a whole number from 0 to 3"));
    }
    for (field, bad) in [
        ("flowLogsFileMaxFiles", json!(0)),
        ("flowLogsFileMaxFileSizeMB", json!(0)),
        ("prometheusMetricsPort", json!(65536)),
        ("dnsLogsFileAggregationKind", json!(2)),
        ("prometheusMetricsHost", json!("a b")),
        ("flowLogsFileDirectory", json!("")),
        ("flowLogsClusterName", json!(1.10)),
    ] {
        assert!(one(field, bad.clone(), Notation::Yaml).is_err(), "{field} {bad}");
    }
}

#[test]
fn enums_ignore_case_and_scopes_that_are_not_offered_are_bad() {
    let style = one("flowLogsPolicyNameStyle", json!("kind"), Notation::Yaml).unwrap();
    assert_eq!(style.flow_logs_policy_name_style, PolicyNameStyle::Kind);
    let error = one("flowLogsPolicyScope", json!("AllPolicies"), Notation::Yaml).unwrap_err();
    assert!(error.contains("only EndpointPolicies"), "{error}");
    for mode in ["Continuous", "OnNewConnection", "None"] {
        assert!(one("flowLogsPolicyEvaluationMode", json!(mode), Notation::Yaml).is_ok());
    }
    let error = one("flowLogsFileFormat", json!("XML"), Notation::Yaml).unwrap_err();
    assert!(error.contains("one of Extended, Calico"), "{error}");
}

#[test]
fn a_file_mode_is_octal_however_it_is_quoted() {
    let mode = |text: &str| {
        let (resolved, bad) = resolve(vec![parse_file("c", &format!("flowLogsFileMode: {text}")).unwrap()]);
        if bad.is_empty() {
            Ok(resolved.config.flow_logs_file_mode.to_string())
        } else {
            Err(bad[0].to_string())
        }
    };
    for text in ["0640", "\"0640\"", "'640'", "0o640", "416"] {
        assert_eq!(mode(text), Ok("0640".to_owned()), "{text}");
    }
    for text in ["0888", "01777", "0400", "-1", "rw", "10000"] {
        assert!(mode(text).is_err(), "{text}");
    }
}

#[test]
fn the_file_is_a_map_or_an_object() {
    let flat = "# a comment\nflowLogsFlushInterval: 15s\nflowLogsFileMaxFiles: 7\nflowLogsClusterName:\ndnsTrustedServers: [10.0.0.1, k8s-service:dns]\n";
    let object = "apiVersion: flowlogd.dev/v1\nkind: FlowLogConfiguration\nmetadata:\n  name: default\nspec:\n  flowLogsFlushInterval: 15s\n  flowLogsFileMaxFiles: 7\n  dnsTrustedServers:\n  - 10.0.0.1\n  - k8s-service:dns\n";
    for (text, line) in [(flat, 2), (object, 6)] {
        let (resolved, bad) = resolve(vec![parse_file("c.yaml", text).unwrap()]);
        assert_eq!(bad, []);
        assert_eq!(resolved.config.flow_logs_flush_interval, Duration::from_secs(15));
        assert_eq!(resolved.config.flow_logs_file_max_files, 7);
        assert_eq!(resolved.config.dns_trusted_servers, ["10.0.0.1", "k8s-service:dns"]);
        let origin = resolved.origin("flowLogsFlushInterval").unwrap();
        assert_eq!((origin.layer, origin.place.as_str()), (Layer::File, format!("c.yaml:{line}").as_str()));
        assert_eq!(resolved.origin("flowLogsClusterName").unwrap().layer, Layer::BuiltIn);
    }
    for empty in ["", "---\n", "# nothing\n", "{}"] {
        assert_eq!(parse_file("c", empty).unwrap().entries, [], "{empty:?}");
    }
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_line() {
    let error = |text: &str| match parse_file("c.yaml", text) {
        Ok(layer) => resolve(vec![layer]).1.iter().map(|bad| format!("{bad}\n")).collect(),
        Err(error) => error.to_string(),
    };
    for (text, expected) in [
        (
            "flowLogsFlushInterval: 15s\nflowLogsFileMaxFile: 3\n",
            "c.yaml:2: there is no field flowLogsFileMaxFile; did you mean flowLogsFileMaxFiles?",
        ),
        (
            "\nflowLogsFileMaxFiles: many\n",
            "c.yaml:2: flowLogsFileMaxFiles: \"many\" is not allowed; allowed is a whole number from 1 to 1000",
        ),
        ("flowLogsFileMaxFiles: {a: b}\n", "c.yaml:1: flowLogsFileMaxFiles: {\"a\":\"b\"} is not allowed"),
        ("a: 1\nb: [\n", "c.yaml:"),
        ("- a\n- b\n", "expected is one YAML map of fields"),
        ("flowLogsFileMaxFiles: 1\nflowLogsFileMaxFiles: 2\n", "c.yaml:2"),
        (
            "kind: FelixConfiguration\napiVersion: crd.projectcalico.org/v1\nspec: {}\n",
            "c.yaml:2: apiVersion is crd.projectcalico.org/v1, expected is flowlogd.dev/v1",
        ),
        (
            "apiVersion: flowlogd.dev/v1\nkind: FlowLogConfiguration\nspec: {}\nflowLogsFileMaxFiles: 3\n",
            "c.yaml:4: flowLogsFileMaxFiles stands beside spec",
        ),
        ("apiVersion: flowlogd.dev/v1\nspec: {}\n", "kind is missing"),
        ("apiVersion: flowlogd.dev/v1\nkind: FlowLogConfiguration\nspec: 3\n", "c.yaml:3"),
        ("a: 1\n---\nb: 2\n", "c.yaml"),
    ] {
        assert!(error(text).contains(expected), "{text:?} gave {:?}, not {expected:?}", error(text));
    }
}

#[test]
fn the_environment_names_fields_in_capitals_and_ours_wins() {
    let (resolved, bad) = environment(&[
        ("FLOWLOGD_FLOWLOGSFLUSHINTERVAL", "20s"),
        ("FELIX_FlowLogsFlushInterval", "30"),
        ("FELIX_FLOWLOGSFILEMAXFILES", "9"),
        ("felix_dnslogsfileenabled", "y"),
        ("FLOWLOGD_DNSEXTRATTL", "2.5"),
        ("FELIX_FLOWLOGSFILEINCLUDELABELS", ""),
        ("FELIX_LOGSEVERITYSCREEN", "info"),
        ("FELIX_FLOWLOGSSOMETHINGNEW", "1"),
        ("FLOWLOGD_LOG", "debug"),
        ("FLOWLOGD_SERVICE_HOST", "10.0.0.1"),
        ("FLOWLOGSFLUSHINTERVAL", "1s"),
    ]);
    assert_eq!(bad, []);
    assert_eq!(resolved.config.flow_logs_flush_interval, Duration::from_secs(20));
    assert_eq!(
        resolved.origin("flowLogsFlushInterval").unwrap().place,
        "environment FLOWLOGD_FLOWLOGSFLUSHINTERVAL"
    );
    assert_eq!(resolved.config.flow_logs_file_max_files, 9);
    assert!(resolved.config.dns_logs_file_enabled && resolved.config.flow_logs_file_include_labels);
    assert_eq!(resolved.config.dns_extra_ttl, Duration::from_millis(2500));

    let (_, bad) =
        environment(&[("FLOWLOGD_FLOWLOGSFLUSHINTERVALL", "1"), ("FELIX_FLOWLOGSFILEMAXFILES", "x")]);
    assert_eq!(bad.len(), 2);
    assert!(bad.iter().any(|bad| bad.unknown_field && bad.remedy.contains("flowLogsFlushInterval")));
}

#[test]
fn flags_are_above_everything() {
    let given = Given {
        file: None,
        environment: vec![("FLOWLOGD_FLOWLOGSSOURCE".into(), "ebpf".into())],
        flags: vec![("flowLogsSource".into(), "netlink".into(), "--source".into())],
    };
    let resolved = load(&given, "n1").unwrap().1;
    assert_eq!(resolved.config.flow_logs_source, SourceKind::Netlink);
    let origin = resolved.origin("flowLogsSource").unwrap();
    assert_eq!((origin.layer, origin.place.as_str()), (Layer::Flag, "flag --source"));
}

#[test]
fn what_waits_for_a_restart_or_does_nothing_is_known() {
    let running = Config::default();
    let (resolved, _) = resolve(vec![layer(
        Layer::File,
        &[
            ("flowLogsSource", json!("netlink")),
            ("flowLogsFlushInterval", json!("1s")),
            ("flowLogsGoldmaneServer", json!("goldmane:7443")),
        ],
    )]);
    let waiting: Vec<_> = resolved.waiting_for_restart(&running).iter().map(|field| field.name).collect();
    assert_eq!(waiting, ["flowLogsSource"]);
    let idle: Vec<_> = resolved.without_effect().map(|(field, _)| field.name).collect();
    assert_eq!(idle, ["flowLogsGoldmaneServer"]);
}

proptest! {
    /// Nothing that stands in a file or variable makes the reader panic, and a value that is read is shown so that it
    /// reads as the same.
    #[test]
    fn hostile_values_are_read_or_refused(text in "\\PC{0,40}", at in any::<prop::sample::Index>()) {
        let field = &FIELDS[at.index(FIELDS.len())];
        for notation in [Notation::Yaml, Notation::Text, Notation::Felix] {
            if let Ok(config) = one(field.name, Value::from(text.clone()), notation) {
                let shown = field.value(&config);
                let again = one(field.name, shown, Notation::Yaml);
                prop_assert_eq!(again, Ok(config));
            }
        }
        let _ = parse_file("c", &text);
        let _ = parse_file("c", &format!("{}: {text}", field.name));
    }

    #[test]
    fn durations_read_back(nanoseconds in 100_000_000u64..86_400_000_000_000) {
        let text = show_duration(Duration::from_nanos(nanoseconds));
        let config = one("flowLogsFlushInterval", Value::from(text), Notation::Yaml).unwrap();
        prop_assert_eq!(config.flow_logs_flush_interval, Duration::from_nanos(nanoseconds));
    }
}
