//! Each fact of Calico's converters, from the object as people write it to the rules as they are evaluated.

use serde_json::{Value, json};

use super::*;
use crate::model::PolicyKind;
use crate::policy::ir::{Policy, Profile, Rule, Stage, Tier};
use crate::policy::{Resource, ResourceKind};
use crate::snapshot::Object;
use crate::watch::{Decoded, decode};

fn resource(object: Value) -> Resource {
    match decode(object).unwrap() {
        Decoded::Object(Object::Policy(resource)) => resource,
        other => panic!("{other:?}"),
    }
}

fn policy(object: Value) -> Policy {
    match resource(object) {
        Resource::Policy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

fn tier(name: &str, spec: Value) -> Tier {
    let object = json!({"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": {"name": name}, "spec": spec});
    match resource(object) {
        Resource::Tier(tier) => tier,
        other => panic!("{other:?}"),
    }
}

fn knp(spec: Value) -> Policy {
    policy(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "b"}, "spec": spec,
    }))
}

/// A policy of Calico's, in namespace `b` where its kind has one.
fn calico(kind: &str, spec: Value) -> Policy {
    policy(json!({
        "apiVersion": "projectcalico.org/v3", "kind": kind,
        "metadata": {"name": "p", "namespace": "b"}, "spec": spec,
    }))
}

fn cnp(spec: Value) -> Policy {
    policy(json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "p"}, "spec": spec,
    }))
}

fn shown(rules: &Option<Arc<[Rule]>>) -> Vec<String> {
    rules.as_ref().expect("the direction is governed").iter().map(ToString::to_string).collect()
}

fn ingress(policy: &Policy) -> Vec<String> {
    shown(&policy.ingress)
}

fn governs(policy: &Policy) -> (bool, bool) {
    (policy.ingress.is_some(), policy.egress.is_some())
}

/// The selector of the only ingress rule with this source.
fn source(kind: &str, source: Value) -> String {
    let policy = calico(kind, json!({"ingress": [{"action": "Allow", "source": source}]}));
    let [rule] = &policy.ingress.as_ref().unwrap()[..] else { panic!() };
    rule.source.selector.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
}

#[test]
fn a_kubernetes_policy_is_in_the_default_tier_at_order_1000_and_selects_pods_of_its_namespace() {
    let policy = knp(json!({"podSelector": {"matchLabels": {"app": "srv"}}, "ingress": [{}]}));
    assert_eq!((&*policy.tier, policy.order, policy.stage), ("default", Some(1000.0), Stage::Normal));
    assert_eq!(policy.id.kind, PolicyKind::KubernetesNetworkPolicy);
    assert_eq!(
        policy.subject.to_string(),
        r#"((projectcalico.org/orchestrator == "k8s" && app == "srv") && projectcalico.org/namespace == "b")"#
    );
    assert_eq!(ingress(&policy), ["allow anything"]);
}

#[test]
fn rules_expand_by_protocol_then_peer_and_later_rules_follow() {
    let policy = knp(json!({
        "podSelector": {},
        "ingress": [
            {
                "from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"ipBlock": {"cidr": "11.0.0.0/8"}}],
                "ports": [
                    {"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 80}, {"protocol": "SCTP", "port": 9},
                ],
            },
            {"ports": [{"port": 443}]},
        ],
    }));
    let expected: Vec<String> = [("sctp", 9), ("tcp", 80), ("udp", 53)]
        .into_iter()
        .flat_map(|(proto, port)| {
            [10, 11].map(|net| {
                format!("allow protocol {proto} source {{nets: {net}.0.0.0/8}} destination {{ports: {port}}}")
            })
        })
        .chain(["allow protocol tcp destination {ports: 443}".to_owned()])
        .collect();
    assert_eq!(ingress(&policy), expected);
}

#[test]
fn ports_of_one_protocol_are_one_rule_merged() {
    let ports = |ports: Value| ingress(&knp(json!({"podSelector": {}, "ingress": [{"ports": ports}]})));
    for (written, expected) in [
        (
            json!([{"port": 81}, {"port": 80}, {"port": 80}, {"port": 82}]),
            "allow protocol tcp destination {ports: 80-82}",
        ),
        (
            json!([{"port": 9090}, {"port": "web"}, {"port": 80, "endPort": 90}, {"port": 85, "endPort": 99}]),
            "allow protocol tcp destination {ports: web,80-99,9090}",
        ),
        (
            json!([{"port": 65535}, {"port": 1, "endPort": 65534}]),
            "allow protocol tcp destination {ports: 1-65535}",
        ),
        // A missing protocol is TCP, without a port too; all ports swallow the single ones, before or after.
        (json!([{}]), "allow protocol tcp"),
        (json!([{"port": 80}, {}]), "allow protocol tcp"),
        (json!([{"protocol": "UDP"}, {"protocol": "UDP", "port": 53}]), "allow protocol udp"),
        (json!([{"port": "8080"}]), "allow protocol tcp destination {ports: 8080}"),
        (json!([]), "allow anything"),
    ] {
        assert_eq!(ports(written), [expected]);
    }
}

#[test]
fn peers_are_selectors_with_their_namespace_or_plain_networks() {
    let peer =
        |peer: Value| ingress(&knp(json!({"podSelector": {}, "ingress": [{"from": [peer]}]}))).remove(0);
    let of = |selector: &str| format!("allow source {{selector: {selector}}}");
    assert_eq!(
        peer(json!({"podSelector": {"matchLabels": {"app": "cli"}}})),
        of(
            r#"(projectcalico.org/namespace == "b" && (projectcalico.org/orchestrator == "k8s" && app == "cli"))"#
        )
    );
    assert_eq!(
        peer(json!({"namespaceSelector": {}})),
        of(r#"(has(projectcalico.org/namespace) && projectcalico.org/orchestrator == "k8s")"#)
    );
    assert_eq!(
        peer(json!({"namespaceSelector": {"matchLabels": {"team": "red"}}, "podSelector": {}})),
        of(r#"(pcns.team == "red" && projectcalico.org/orchestrator == "k8s")"#)
    );
    assert_eq!(
        peer(json!({"ipBlock": {"cidr": "10.1.2.3/16", "except": ["10.1.9.0/24", "10.1.8.0/24"]}})),
        "allow source {nets: 10.1.0.0/16; notNets: 10.1.9.0/24,10.1.8.0/24}"
    );
    assert_eq!(
        peer(json!({"namespaceSelector": {"matchExpressions": [
            {"key": "a", "operator": "In", "values": ["y", "x"]},
            {"key": "b", "operator": "NotIn", "values": ["x"]},
            {"key": "c", "operator": "Exists"},
            {"key": "d", "operator": "DoesNotExist", "values": []},
        ]}})),
        of(concat!(
            r#"((pcns.a in {"x", "y"} && pcns.b not in {"x"} && has(pcns.c) && !has(pcns.d)) && "#,
            r#"projectcalico.org/orchestrator == "k8s")"#
        ))
    );
    let egress = knp(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
        {"to": [{"ipBlock": {"cidr": "fd00::/8"}}], "ports": [{"port": 1}]},
    ]}));
    assert_eq!(shown(&egress.egress), ["allow protocol tcp destination {nets: fd00::/8; ports: 1}"]);
    assert_eq!(governs(&egress), (false, true));
}

#[test]
fn absent_types_are_what_the_api_makes_of_them() {
    let rule = json!([{}]);
    for (spec, expected) in [
        (json!({}), (true, false)),
        (json!({"egress": rule}), (true, true)),
        (json!({"ingress": rule, "egress": rule, "policyTypes": ["Ingress"]}), (true, false)),
        (json!({"policyTypes": []}), (true, false)),
        (json!({"policyTypes": ["Egress", "Ingress"]}), (true, true)),
    ] {
        assert_eq!(governs(&knp(spec.clone())), expected, "{spec}");
        let staged = calico("StagedKubernetesNetworkPolicy", spec.clone());
        assert_eq!(governs(&staged), expected, "{spec}");
        assert_eq!((staged.order, &*staged.tier), (Some(1000.0), "default"));
    }
    let rule = json!([{"action": "Allow"}]);
    for kind in ["NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"] {
        for (spec, expected) in [
            (json!({}), (true, false)),
            (json!({"egress": rule}), (false, true)),
            (json!({"ingress": rule}), (true, false)),
            (json!({"ingress": rule, "egress": rule}), (true, true)),
            (json!({"ingress": rule, "types": ["Egress"]}), (false, true)),
            (json!({"types": ["Ingress", "Egress"]}), (true, true)),
        ] {
            assert_eq!(governs(&calico(kind, spec.clone())), expected, "{kind} {spec}");
        }
    }
}

#[test]
fn a_subject_holds_namespace_and_service_accounts() {
    let subject = |kind, spec| calico(kind, spec).subject.to_string();
    assert_eq!(subject("NetworkPolicy", json!({})), r#"projectcalico.org/namespace == "b""#);
    assert_eq!(
        subject("NetworkPolicy", json!({"selector": "all()", "serviceAccountSelector": "tier == 'be'"})),
        r#"(all() && projectcalico.org/namespace == "b" && pcsa.tier == "be")"#
    );
    assert_eq!(subject("GlobalNetworkPolicy", json!({})), "all()");
    assert_eq!(subject("GlobalNetworkPolicy", json!({"selector": "has(role)"})), "has(role)");
    // Every all() of the whole text changes once a part is prefixed; global() stays and is true of all.
    for (spec, expected) in [
        (
            json!({"selector": "all()", "namespaceSelector": "projectcalico.org/name == 'b'"}),
            r#"(has(projectcalico.org/namespace) && pcns.projectcalico.org/name == "b")"#,
        ),
        (
            json!({"selector": "x == 'y' || all()", "namespaceSelector": "all()"}),
            r#"((x == "y" || has(projectcalico.org/namespace)) && has(projectcalico.org/namespace))"#,
        ),
        (json!({"namespaceSelector": "global()"}), "global()"),
        (json!({"serviceAccountSelector": "all()"}), "has(projectcalico.org/serviceaccount)"),
        (
            json!({"selector": "all()", "serviceAccountSelector": "k == 'v'"}),
            r#"(has(projectcalico.org/serviceaccount) && pcsa.k == "v")"#,
        ),
    ] {
        assert_eq!(subject("GlobalNetworkPolicy", spec), expected);
    }
}

#[test]
fn one_side_of_a_rule_becomes_one_selector() {
    let in_b = r#"projectcalico.org/namespace == "b""#;
    for (written, namespaced, global) in [
        (json!({}), "-".to_owned(), "-"),
        (json!({"nets": ["10.0.0.0/8"], "ports": [80]}), "-".to_owned(), "-"),
        (json!({"selector": "a == 'b'"}), format!(r#"({in_b} && a == "b")"#), r#"a == "b""#),
        (json!({"selector": "", "namespaceSelector": ""}), "-".to_owned(), "-"),
        (json!({"selector": "all()"}), format!("({in_b} && all())"), "all()"),
        (json!({"namespaceSelector": "t == 'r'"}), r#"pcns.t == "r""#.to_owned(), r#"pcns.t == "r""#),
        (
            json!({"namespaceSelector": "all()"}),
            "has(projectcalico.org/namespace)".to_owned(),
            "has(projectcalico.org/namespace)",
        ),
        (
            json!({"namespaceSelector": "global()"}),
            "!has(projectcalico.org/namespace)".to_owned(),
            "!has(projectcalico.org/namespace)",
        ),
        (
            json!({"namespaceSelector": "global() || t == 'r'", "selector": "x == 'y'"}),
            r#"((!has(projectcalico.org/namespace) || pcns.t == "r") && x == "y")"#.to_owned(),
            r#"((!has(projectcalico.org/namespace) || pcns.t == "r") && x == "y")"#,
        ),
        (
            json!({"serviceAccounts": {"names": ["b", "a"]}}),
            format!(r#"({in_b} && projectcalico.org/serviceaccount in {{"a", "b"}})"#),
            r#"projectcalico.org/serviceaccount in {"a", "b"}"#,
        ),
        (
            json!({"serviceAccounts": {"names": ["a"], "selector": "k == 'v'"}, "selector": "x == 'y'"}),
            format!(
                r#"({in_b} && pcsa.k == "v" && projectcalico.org/serviceaccount in {{"a"}} && x == "y")"#
            ),
            r#"(pcsa.k == "v" && projectcalico.org/serviceaccount in {"a"} && x == "y")"#,
        ),
        (json!({"serviceAccounts": {}}), "-".to_owned(), "-"),
    ] {
        assert_eq!(source("NetworkPolicy", written.clone()), namespaced, "{written}");
        assert_eq!(source("GlobalNetworkPolicy", written.clone()), global, "{written}");
    }
}

#[test]
fn a_negated_selector_alone_excludes_and_beside_a_positive_one_narrows() {
    let rule = |kind, source: Value| {
        let policy = calico(kind, json!({"ingress": [{"action": "Allow", "source": source}]}));
        ingress(&policy).remove(0)
    };
    assert_eq!(
        rule("GlobalNetworkPolicy", json!({"notSelector": "app == 'cli'"})),
        r#"allow source {notSelector: app == "cli"}"#
    );
    // In a namespace it limits the rule to the own namespace as well.
    assert_eq!(
        rule("NetworkPolicy", json!({"notSelector": "app == 'cli'"})),
        r#"allow source {selector: (projectcalico.org/namespace == "b" && !app == "cli")}"#
    );
    assert_eq!(
        rule("GlobalNetworkPolicy", json!({"selector": "has(x)", "notSelector": "a == 'b' || c == 'd'"})),
        r#"allow source {selector: (has(x) && !(a == "b" || c == "d"))}"#
    );
}

#[test]
fn calicos_rules_keep_every_criterion() {
    let policy = calico(
        "NetworkPolicy",
        json!({"order": -1.5, "tier": "sec", "types": ["Ingress"], "ingress": [
            {"action": "deny", "protocol": "ICMP", "icmp": {"type": 3, "code": 1}, "ipVersion": 4},
            {"action": "LOG", "notProtocol": 17, "notICMP": {"type": 8}},
            {"action": "next-tier", "protocol": "udplite", "http": {"methods": ["GET"]}},
            {"action": "Allow", "protocol": "TCP",
                "source": {"nets": ["1.2.3.4", "feed::1/16"], "notNets": ["0.0.0.0/0"], "notPorts": ["70:90", "x"]},
                "destination": {"ports": [443, "80:80", "web"], "services": {"name": "s"}}},
            {"action": "Pass", "icmp": {}},
        ]}),
    );
    assert_eq!((policy.order, &*policy.tier), (Some(-1.5), "sec"));
    assert_eq!(
        ingress(&policy),
        [
            "deny ipVersion 4 protocol icmp icmp 3/1",
            "log notProtocol udp notICMP 8",
            "pass protocol 136",
            "allow protocol tcp source {nets: 1.2.3.4/32,feed::/16; notNets: 0.0.0.0/0; notPorts: 70-90,x} \
             destination {ports: 443,80,web; service: b/s}",
            "pass icmp any",
        ]
    );
    let domains = calico(
        "NetworkPolicy",
        json!({"egress": [{"action": "Allow", "destination": {"domains": ["x.org"]}}]}),
    );
    assert_eq!(shown(&domains.egress), ["allow domains (not known from a flow)"]);
}

#[test]
fn a_service_without_a_namespace_is_the_policys() {
    let spec =
        |services: Value| json!({"egress": [{"action": "Allow", "destination": {"services": services}}]});
    let np = calico("NetworkPolicy", spec(json!({"name": "s"})));
    assert_eq!(shown(&np.egress), ["allow destination {service: b/s}"]);
    let gnp = calico("GlobalNetworkPolicy", spec(json!({"name": "s", "namespace": "x"})));
    assert_eq!(shown(&gnp.egress), ["allow destination {service: x/s}"]);
}

#[test]
fn stages_before_the_normal_tiers_are_told_apart() {
    let stage = |kind, spec| calico(kind, spec).stage;
    assert_eq!(
        stage("GlobalNetworkPolicy", json!({"doNotTrack": true, "applyOnForward": true})),
        Stage::DoNotTrack
    );
    assert_eq!(stage("StagedGlobalNetworkPolicy", json!({"preDNAT": true})), Stage::PreDnat);
    assert_eq!(
        stage("GlobalNetworkPolicy", json!({"applyOnForward": true, "preDNAT": false})),
        Stage::Normal
    );
    assert_eq!(stage("NetworkPolicy", json!({"doNotTrack": true})), Stage::Normal);
}

#[test]
fn a_staged_delete_is_as_if_the_staged_policy_were_not_there() {
    for kind in ["StagedNetworkPolicy", "StagedGlobalNetworkPolicy", "StagedKubernetesNetworkPolicy"] {
        let object = |action: &str| {
            json!({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": "p", "namespace": "b"},
                "spec": {"stagedAction": action}})
        };
        assert!(matches!(resource(object("Delete")), Resource::Absent(_)), "{kind}");
        for kept in ["Set", "Learn", "Ignore"] {
            assert!(matches!(resource(object(kept)), Resource::Policy(_)), "{kind} {kept}");
        }
    }
    assert!(matches!(calico("NetworkPolicy", json!({"stagedAction": "Delete"})), Policy { .. }));
}

#[test]
fn tiers_have_the_apis_defaults() {
    let of = |name, spec| {
        let tier = tier(name, spec);
        (tier.order, tier.default_pass)
    };
    assert_eq!(of("sec", json!({})), (Some(1_000_000.0), false));
    assert_eq!(of("sec", json!({"order": 0.5, "defaultAction": "Pass"})), (Some(0.5), true));
    assert_eq!(of("sec", json!({"order": 100, "defaultAction": "anything"})), (Some(100.0), false));
    assert_eq!(of("default", json!({"order": null})), (Some(1_000_000.0), false));
    assert_eq!(of("kube-admin", json!({})), (Some(1_000.0), true));
    assert_eq!(of("kube-baseline", json!({})), (Some(10_000_000.0), true));
}

#[test]
fn profiles_have_rules_and_labels() {
    let profile = resource(json!({
        "apiVersion": "projectcalico.org/v3", "kind": "Profile", "metadata": {"name": "strict"},
        "spec": {
            "ingress": [{"action": "Deny", "protocol": "UDP"}, {"action": "Allow", "source": {"selector": "x == 'y'"}}],
            "labelsToApply": {"a": "b"},
        },
    }));
    let Resource::Profile(Profile { ingress, egress, labels_to_apply, .. }) = profile else { panic!() };
    assert_eq!(
        ingress.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["deny protocol udp", r#"allow source {selector: x == "y"}"#]
    );
    assert!(egress.is_empty());
    assert_eq!(labels_to_apply.get("a").map(|value| &**value), Some("b"));
}

#[test]
fn a_cluster_policy_expands_like_a_kubernetes_one() {
    let policy = cnp(json!({
        "tier": "Admin", "priority": 10, "subject": {"namespaces": {"matchLabels": {"team": "blue"}}},
        "ingress": [
            {"action": "Accept", "from": [{"pods": {"namespaceSelector": {"matchLabels": {"team": "red"}}, "podSelector": {"matchLabels": {"app": "cli"}}}}],
                "protocols": [{"udp": {"destinationPort": {"number": 53}}}, {"tcp": {"destinationPort": {"range": {"start": 80, "end": 90}}}},
                    {"destinationNamedPort": "web"}, {"sctp": {}}]},
            {"action": "Deny", "from": [{"namespaces": {}}]},
        ],
    }));
    assert_eq!((&*policy.tier, policy.order), ("kube-admin", Some(10.0)));
    assert_eq!(
        policy.subject.to_string(),
        r#"(projectcalico.org/orchestrator == "k8s" && pcns.team == "blue")"#
    );
    let cli = r#"source {selector: (pcns.team == "red" && (projectcalico.org/orchestrator == "k8s" && app == "cli"))}"#;
    assert_eq!(
        ingress(&policy),
        [
            format!("allow {cli} destination {{ports: web}}"),
            format!("allow protocol sctp {cli}"),
            format!("allow protocol tcp {cli} destination {{ports: 80-90}}"),
            format!("allow protocol udp {cli} destination {{ports: 53}}"),
            // Whatever is in a namespace, network sets too.
            "deny source {selector: has(projectcalico.org/namespace)}".to_owned(),
        ]
    );
    assert_eq!(governs(&policy), (true, false));
    let baseline = cnp(
        json!({"tier": "Baseline", "priority": 0, "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}}}}),
    );
    assert_eq!(&*baseline.tier, "kube-baseline");
    assert_eq!(
        baseline.subject.to_string(),
        r#"((projectcalico.org/orchestrator == "k8s" && a == "b") && has(projectcalico.org/namespace))"#
    );
    // Without any rule it governs both directions, where it passes.
    assert_eq!(governs(&baseline), (true, true));
}

#[test]
fn a_peer_that_calico_cannot_express_closes_its_rule() {
    let egress = |rules: Value| {
        let policy =
            cnp(json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": rules}));
        (shown(&policy.egress), governs(&policy))
    };
    let nodes = json!([{"nodes": {}}]);
    let mixed = json!([{"networks": ["10.0.0.0/8", "fd00::/8"]}, {"domainNames": ["x.org"]}]);
    let (rules, types) = egress(json!([
        {"action": "Accept", "to": nodes, "protocols": [{"tcp": {"destinationPort": {"number": 1}}}]},
        {"action": "Deny", "to": nodes, "protocols": [{"tcp": {"destinationPort": {"number": 1}}}]},
        {"action": "Pass", "to": mixed},
        {"action": "Accept", "to": [{"networks": ["10.0.0.0/8", "fd00::/8"]}]},
    ]));
    assert_eq!(rules, ["deny anything", "deny anything", "allow destination {nets: 10.0.0.0/8,fd00::/8}"]);
    assert_eq!(types, (false, true));
    // Networks are no peers of ingress rules.
    let policy = cnp(json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
        "ingress": [{"action": "Deny", "from": [{"networks": ["10.0.0.0/8"]}]}]}));
    assert_eq!(ingress(&policy), ["deny anything"]);
    // What is left out leaves no rule: as if there had been none.
    let (rules, types) = egress(json!([{"action": "Accept", "to": nodes}]));
    assert_eq!((rules.len(), types), (0, (true, true)));
}

#[test]
fn a_cluster_policy_without_subject_or_of_an_unknown_tier_is_absent() {
    let object = |version: &str, kind: &str, spec: Value| {
        json!({"apiVersion": format!("policy.networking.k8s.io/{version}"), "kind": kind,
            "metadata": {"name": "default"}, "spec": spec})
    };
    for (version, kind, spec) in [
        ("v1alpha2", "ClusterNetworkPolicy", json!({"tier": "Admin", "priority": 1})),
        ("v1alpha2", "ClusterNetworkPolicy", json!({"tier": "Admin", "priority": 1, "subject": {}})),
        (
            "v1alpha2",
            "ClusterNetworkPolicy",
            json!({"tier": "Other", "priority": 1, "subject": {"namespaces": {}}}),
        ),
        ("v1alpha1", "AdminNetworkPolicy", json!({"priority": 1})),
    ] {
        let resource = resource(object(version, kind, spec));
        let Resource::Absent(reference) = resource else { panic!("{resource:?}") };
        assert!(matches!(reference.kind, ResourceKind::Policy(_)));
    }
}

#[test]
fn admin_policies_of_v1alpha1_are_the_same_in_their_own_tiers() {
    let object = |kind: &str, spec: Value| {
        policy(json!({"apiVersion": "policy.networking.k8s.io/v1alpha1", "kind": kind,
            "metadata": {"name": "default"}, "spec": spec}))
    };
    let anp = object(
        "AdminNetworkPolicy",
        json!({
            "priority": 7, "subject": {"namespaces": {}},
            "ingress": [{"name": "r", "action": "Allow", "from": [{"namespaces": {}}], "ports": [
                {"portNumber": {"protocol": "UDP", "port": 53}}, {"portRange": {"start": 1, "end": 9}},
                {"portNumber": {"port": 10}}, {"namedPort": "web"},
            ]}],
            "egress": [{"action": "Pass", "to": [{"networks": ["10.0.0.0/8"]}]}],
        }),
    );
    assert_eq!((&*anp.tier, anp.order), ("adminnetworkpolicy", Some(7.0)));
    let from = "source {selector: has(projectcalico.org/namespace)}";
    assert_eq!(
        ingress(&anp),
        [
            format!("allow {from} destination {{ports: web}}"),
            format!("allow protocol tcp {from} destination {{ports: 1-10}}"),
            format!("allow protocol udp {from} destination {{ports: 53}}"),
        ]
    );
    assert_eq!(shown(&anp.egress), ["pass destination {nets: 10.0.0.0/8}"]);
    let banp = object(
        "BaselineAdminNetworkPolicy",
        json!({"subject": {"namespaces": {}}, "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]}),
    );
    assert_eq!(&*banp.tier, "baselineadminnetworkpolicy");
}
