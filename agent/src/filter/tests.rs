//! The language against examples, against itself, and against an evaluator that is written as one would say it.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::model::{
    Action, EndpointKind, FlowEnd, FlowLog, Hit, Labels, Policies, PolicyKind, ProcessColumns, Proto,
    Reporter, ServiceName, TcpColumns, Trace,
};

fn end(
    namespace: Option<&str>,
    name_aggr: &str,
    ips: &[&str],
    port: Option<u16>,
    labels: &[(&str, &str)],
) -> FlowEnd {
    FlowEnd {
        kind: if namespace.is_some() { EndpointKind::Wep } else { EndpointKind::Net },
        namespace: namespace.map(Into::into),
        name: None,
        name_aggr: name_aggr.into(),
        ip: None,
        port,
        labels: Some(Labels::new(labels.iter().map(|(k, v)| ((*k).into(), (*v).into())))),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
    }
}

fn hit(kind: PolicyKind, tier: &str, namespace: Option<&str>, name: &str) -> Hit {
    Hit {
        tier: tier.into(),
        kind,
        namespace: namespace.map(Into::into),
        name: name.into(),
        action: Action::Allow,
        rule: 0,
    }
}

fn log() -> FlowLog {
    let enforced =
        Trace([hit(PolicyKind::KubernetesNetworkPolicy, "default", Some("shop"), "allow-web")].into());
    let pending =
        Trace([hit(PolicyKind::StagedGlobalNetworkPolicy, "security", None, "security.quarantine")].into());
    FlowLog {
        source: end(
            Some("shop"),
            "client-6d9f7c-*",
            &["10.1.1.1", "fd00::1"],
            None,
            &[("app", "client"), ("tier", "front")],
        ),
        dest: FlowEnd {
            name: Some("web-5f6c8b-x2k".into()),
            ..end(Some("infra"), "web-5f6c8b-*", &["10.1.2.1"], Some(8443), &[("app", "web")])
        },
        nat_outgoing_ports: vec![],
        service: Some(
            ServiceName {
                namespace: "infra".into(),
                name: "web".into(),
                port_name: "https".into(),
                port: 443,
            }
            .into(),
        ),
        hide_service_port_name: false,
        dest_domains: vec!["www.Example.com".into()],
        proto: Proto::TCP,
        action: Action::Allow,
        reporter: Reporter::Src,
        policies: Some(Policies { all: enforced.clone(), enforced, pending: Some(pending) }),
        incoming: Default::default(),
        outgoing: Default::default(),
        num_flows: 1,
        num_flows_started: 1,
        num_flows_completed: 0,
        process: ProcessColumns { name: Some("/usr/bin/curl".into()), ..Default::default() },
        tcp: TcpColumns::default(),
        drop_reasons: vec![],
        policy_mismatch: Some(false),
    }
}

fn parse(text: &str) -> Filter {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn each_field_matches_what_it_says() {
    let log = log();
    for yes in [
        "",
        "namespace=shop",
        "namespace=infra",
        "namespace=s*,nothing",
        "src.namespace=shop dst.namespace=infra",
        "source.namespace=shop and dest.namespace:infra",
        "pod=client-6d9f7c-*",
        "pod=web-5f6c8b-x2k",
        "dst.pod=infra/web-*",
        "name=client*",
        "label=app",
        "label=app=client",
        "dst.label=app=web",
        "label=t*=fr*t",
        "type=wep",
        "ip=10.1.1.1",
        "ip=10.1.1.1/32",
        "ip=10.0.0.0/8",
        "ip=::ffff:10.1.1.1",
        "ip=::ffff:10.0.0.0/104",
        "src.ip=fd00::/16",
        "port=8443",
        "port=443",
        "port=1-442,8000-8999",
        "dst.port=8443",
        "proto=tcp",
        "proto=6",
        "proto=TCP",
        "service=web",
        "service=infra/web",
        "service=infra/web:https",
        "service=web:443",
        "action=allow",
        "action=ALLOW",
        "reporter=src",
        "policy=allow-web",
        "policy=shop/allow-web",
        "policy=default.allow-web",
        "policy=quarantine",
        "policy=security.quarantine",
        "policy=security.*",
        "domain=*.example.com",
        "domain=WWW.example.com",
        "process=*/curl",
        "mismatch=false",
        "not action=deny",
        "! action=deny",
        "!action=deny",
        "action!=deny",
        "reason!=NETFILTER_DROP",
        "namespace=nothing or port=443",
        "(namespace=nothing or port=443) proto=tcp",
        "namespace=\"shop\"",
        "NOT (proto=udp OR proto=sctp)",
    ] {
        assert!(parse(yes).matches(&log), "{yes}");
    }
    for no in [
        "namespace=sho",
        "src.namespace=infra",
        "dst.pod=shop/web-*",
        "pod=client-6d9f7c",
        "label=missing",
        "src.label=app=web",
        "type=net,ns",
        "ip=10.1.1.2",
        "dst.ip=10.1.1.1",
        "port=444",
        "dst.port=443",
        "src.port=1-65535",
        "proto=udp",
        "service=other/web",
        "service=web:http",
        "action=deny",
        "reporter=dst",
        "policy=allow",
        "policy=infra/allow-web",
        "domain=example.com",
        "process=curl",
        "reason=*",
        "mismatch=true",
        "not action=allow",
        "action=allow port=1",
        "namespace=nothing or port=1",
        "not not action=deny",
    ] {
        assert!(!parse(no).matches(&log), "{no}");
    }
}

#[test]
fn errors_name_the_column_and_what_may_stand_there() {
    for (text, column, words) in [
        ("nmespace=shop", 1, "namespace, pod"),
        ("namespace=shop port=http", 21, "8000-8999"),
        ("port=9-8", 6, "range"),
        ("port=+9", 6, "65535"),
        ("ip=10.0.0.0/33", 4, "CIDR"),
        ("action=pass", 8, "allow, deny"),
        ("namespace", 10, "= "),
        ("namespace shop", 10, "missing"),
        ("namespace=", 11, "missing"),
        ("pod=shop/", 5, "NAMESPACE/NAME"),
        ("service=web:", 9, "port"),
        ("(port=1", 8, "closing parenthesis"),
        ("port=1)", 7, "not opened"),
        ("namespace=\"shop", 12, "closing quote"),
        ("namespace=\"a\\b\"", 13, "backslash"),
        ("é=1", 1, "FIELD=VALUE"),
        ("src.proto=tcp", 1, "no end"),
        ("port=1 or", 10, "FIELD=VALUE"),
        ("port=1 and", 11, "FIELD=VALUE"),
        ("mismatch=maybe", 10, "true, false"),
        ("label==x", 7, "KEY"),
        ("port=1,", 8, "port"),
    ] {
        let error = text.parse::<Filter>().expect_err(text);
        assert_eq!(error.column, column, "{text}: {error}");
        assert!(error.message.contains(words.trim()), "{text}: {error}");
    }
}

#[test]
fn what_is_too_long_too_deep_or_too_much_is_refused() {
    for text in [
        "(".repeat(100_000),
        "!".repeat(1000),
        "not ".repeat(1000),
        format!("namespace={}", "x".repeat(20_000)),
        format!("port=1{}", ",1".repeat(MOST_TERMS)),
    ] {
        assert!(text.parse::<Filter>().is_err());
    }
    assert!(format!("port=1{}", ",1".repeat(MOST_TERMS - 1)).parse::<Filter>().is_ok());
}

#[test]
fn a_glob_takes_no_longer_than_both_lengths() {
    let glob = Glob::new(&"a*".repeat(2000));
    assert!(!glob.matches(&("a".repeat(60_000) + "b").replace("aaaa", "aaab").replace('a', "b")));
    assert!(glob.matches(&"ab".repeat(3000)));
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = Rules(
        ["keep policy=quarantine action=deny", "drop port=443", "keep", "drop"]
            .map(|rule| rule.parse().unwrap())
            .into(),
    );
    assert_eq!(rules.dropped_by(&log()), Some(1));
    assert_eq!(rules.dropped_by(&FlowLog { action: Action::Deny, ..log() }), None);
    assert_eq!(rules.dropped_by(&FlowLog { service: None, ..log() }), None);
    assert!("refuse port=1".parse::<Rule>().unwrap_err().contains("drop or keep"));
    assert!("drop port=x".parse::<Rule>().unwrap_err().contains("column 6"));
}

#[test]
fn policies_of_lines_are_named_as_in_the_window() {
    let view = |tier, namespace, name| PolicyView { tier, namespace, name };
    for (entry, wanted) in [
        ("0|default|shop/knp.default.allow-web|allow|0", view("default", Some("shop"), "allow-web")),
        ("12|sec|shop/staged:sec.x|deny|-1", view("sec", Some("shop"), "sec.x")),
        ("0|sec|gnp:block|deny|1", view("sec", None, "block")),
        ("0|default|sknp:a/b|pass|-2", view("default", Some("a"), "b")),
        ("0|t|a|b/c|d|allow|3", view("t", Some("a|b"), "c|d")),
    ] {
        assert_eq!(policy_of_line(entry), Some(wanted), "{entry}");
    }
    for hostile in ["", "|", "0|t|x", "0|t|x|allow"] {
        assert_eq!(policy_of_line(hostile), None, "{hostile}");
    }
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z*]{1,6}",
        "[ -~éλ]{1,8}".prop_filter("a colon or a slash may divide", |text| {
            let parts = ['/', ':', '='];
            !text.contains(parts)
        }),
    ]
}

fn pattern(field: Field) -> BoxedStrategy<Pattern> {
    let glob = || text().prop_map(|text| Glob::new(&text));
    let namespace = || prop::option::of(glob());
    match field {
        Field::Namespace => glob().prop_map(Pattern::Namespace).boxed(),
        Field::Pod => {
            (namespace(), glob()).prop_map(|(namespace, name)| Pattern::Pod { namespace, name }).boxed()
        }
        Field::Name => {
            (namespace(), glob()).prop_map(|(namespace, name)| Pattern::Name { namespace, name }).boxed()
        }
        Field::Label => (glob(), namespace()).prop_map(|(key, value)| Pattern::Label { key, value }).boxed(),
        Field::Type => prop_oneof![
            Just(EndpointKind::Wep),
            Just(EndpointKind::Hep),
            Just(EndpointKind::Ns),
            Just(EndpointKind::Net)
        ]
        .prop_map(Pattern::Type)
        .boxed(),
        Field::Ip => prop_oneof![
            (any::<u32>(), 0..=32u8).prop_map(|(ip, length)| IpNet::new(
                IpAddr::from(ip.to_be_bytes()),
                length
            )
            .unwrap()),
            (any::<u128>(), 0..=128u8).prop_map(|(ip, length)| IpNet::new(
                IpAddr::from((ip | 1 << 127).to_be_bytes()),
                length
            )
            .unwrap()),
        ]
        .prop_map(|network| Pattern::Ip(network.trunc()))
        .boxed(),
        Field::Port => (any::<u16>(), any::<u16>())
            .prop_map(|(a, b)| Pattern::Port { low: a.min(b), high: a.max(b) })
            .boxed(),
        Field::Proto => any::<u8>().prop_map(|number| Pattern::Proto(Proto(number))).boxed(),
        Field::Service => (namespace(), glob(), namespace())
            .prop_map(|(namespace, name, port)| Pattern::Service { namespace, name, port })
            .boxed(),
        Field::Action => {
            prop_oneof![Just(Action::Allow), Just(Action::Deny)].prop_map(Pattern::Action).boxed()
        }
        Field::Reporter => {
            prop_oneof![Just(Reporter::Src), Just(Reporter::Dst)].prop_map(Pattern::Reporter).boxed()
        }
        Field::Policy => {
            (namespace(), glob()).prop_map(|(namespace, name)| Pattern::Policy { namespace, name }).boxed()
        }
        Field::Domain => glob().prop_map(Pattern::Domain).boxed(),
        Field::Process => glob().prop_map(Pattern::Process).boxed(),
        Field::Reason => glob().prop_map(Pattern::Reason).boxed(),
        Field::Mismatch => any::<bool>().prop_map(Pattern::Mismatch).boxed(),
    }
}

fn term() -> impl Strategy<Value = Filter> {
    (prop::sample::select(Field::ALL), 0..3).prop_flat_map(|(field, side)| {
        let side = match side {
            1 if field.is_of_end() => Some(FlowSide::Src),
            2 if field.is_of_end() => Some(FlowSide::Dst),
            _ => None,
        };
        prop::collection::vec(pattern(field), 1..4)
            .prop_map(move |values| Filter::Term(Term { field, side, values }))
    })
}

fn filter() -> impl Strategy<Value = Filter> {
    term().prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| Filter::Not(Box::new(one))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Filter::All),
            prop::collection::vec(inner, 2..4).prop_map(Filter::Either),
        ]
    })
}

/// A glob as one would define it.
fn naive_glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skip| naive_glob(rest, &text[skip..])),
        Some((byte, rest)) => {
            text.split_first().is_some_and(|(first, text)| first == byte && naive_glob(rest, text))
        }
    }
}

/// A filter as one would define it: all values, all combinations, no way out early.
fn naive(filter: &Filter, log: &FlowLog) -> bool {
    match filter {
        Filter::Any => true,
        Filter::Not(inner) => !naive(inner, log),
        Filter::All(all) => all.iter().map(|one| naive(one, log)).collect::<Vec<_>>().iter().all(|is| *is),
        Filter::Either(any) => any.iter().map(|one| naive(one, log)).collect::<Vec<_>>().iter().any(|is| *is),
        Filter::Term(term) => {
            let mut single = term.values.iter().map(|value| {
                let of = |side| {
                    Filter::Term(Term { field: term.field, side: Some(side), values: vec![value.clone()] })
                        .matches(log)
                };
                match (term.side, term.field) {
                    // The service's port belongs to no end.
                    (None, Field::Port) => {
                        let Pattern::Port { low, high } = value else { unreachable!() };
                        let service = log.service.as_ref().map(|service| service.port);
                        of(FlowSide::Src)
                            | of(FlowSide::Dst)
                            | service.is_some_and(|port| port >= *low && port <= *high)
                    }
                    (None, field) if field.is_of_end() => of(FlowSide::Src) | of(FlowSide::Dst),
                    (side, _) => value.matches(side, log),
                }
            });
            single.any(|is| is)
        }
    }
}

fn any_log() -> impl Strategy<Value = FlowLog> {
    let name = || prop::option::of("[a-c]{1,2}");
    (name(), name(), any::<u32>(), any::<u16>(), 0..20u8, any::<bool>(), prop::option::of(any::<bool>()))
        .prop_map(|(source, dest, ip, port, proto, denied, mismatch)| {
            let ip = IpAddr::from(ip.to_be_bytes()).to_string();
            FlowLog {
                source: end(source.as_deref(), "a", &[&ip], Some(port), &[("a", "b")]),
                dest: end(dest.as_deref(), "pub", &[], Some(port ^ 1), &[]),
                proto: Proto(proto),
                action: if denied { Action::Deny } else { Action::Allow },
                policy_mismatch: mismatch,
                ..log()
            }
        })
}

proptest! {
    #[test]
    fn what_is_printed_parses_to_the_same(filter in filter()) {
        let text = filter.to_string();
        prop_assert_eq!(text.parse::<Filter>().map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?, filter);
    }

    #[test]
    fn the_evaluator_is_the_naive_one(filter in filter(), log in any_log()) {
        prop_assert_eq!(filter.matches(&log), naive(&filter, &log));
        prop_assert_eq!(Filter::Not(Box::new(filter.clone())).matches(&log), !filter.matches(&log));
    }

    #[test]
    fn globs_are_the_naive_ones(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
        prop_assert_eq!(Glob::new(&pattern).matches(&text), naive_glob(pattern.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn no_text_panics(text in any::<String>(), soup in "[a-z=!:,()\" \\\\.*/0-9-]{0,40}") {
        for text in [&text, &soup] {
            if let Ok(filter) = text.parse::<Filter>() {
                prop_assert_eq!(filter.to_string().parse::<Filter>(), Ok(filter));
            }
        }
    }

    #[test]
    fn both_together_are_both(a in filter(), b in filter(), log in any_log()) {
        prop_assert_eq!(a.clone().and(b.clone()).matches(&log), a.matches(&log) && b.matches(&log));
    }
}
