//! What is wrong with what is wrong; and that nothing panics. What right objects mean: see `policy/compile/tests.rs`.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::model::PolicyKind;
use crate::policy::{Resource, ResourceKind, ResourceRef};
use crate::snapshot::{Object, ObjectRef};
use crate::watch::{Decoded, DecodedRef, decode, decode_ref, unreadable};

const KINDS: [(&str, &str); 11] = [
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("projectcalico.org/v3", "NetworkPolicy"),
    ("crd.projectcalico.org/v1", "GlobalNetworkPolicy"),
    ("projectcalico.org/v3", "StagedNetworkPolicy"),
    ("projectcalico.org/v3", "StagedGlobalNetworkPolicy"),
    ("projectcalico.org/v3", "StagedKubernetesNetworkPolicy"),
    ("projectcalico.org/v3", "Tier"),
    ("crd.projectcalico.org/v1", "Profile"),
    ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
];

fn object(api_version: &str, kind: &str, spec: &Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "p", "namespace": "b"}, "spec": spec})
}

/// The field and the problem.
fn error(api_version: &str, kind: &str, spec: Value) -> (String, String) {
    let error = decode(object(api_version, kind, &spec)).expect_err(&spec.to_string());
    assert!(error.object.starts_with(kind), "{error}");
    (error.field, error.problem)
}

fn rule_error(rule: Value) -> (String, String) {
    error("projectcalico.org/v3", "NetworkPolicy", json!({"ingress": [{"action": "Allow"}, rule]}))
}

#[test]
fn errors_name_the_field_and_the_problem() {
    let knp = |spec| error("networking.k8s.io/v1", "NetworkPolicy", spec);
    for (spec, field, problem) in [
        (
            json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]}),
            "spec.ingress[0].from[0].ipBlock.cidr",
            "\"10.0.0.0/33\" is neither a prefix",
        ),
        (
            json!({"ingress": [{}, {"ports": [{"port": 90, "endPort": 80}]}]}),
            "spec.ingress[1].ports[0]",
            "endPort 80 is below port 90",
        ),
        (
            json!({"egress": [{"ports": [{"port": "web", "endPort": 80}]}]}),
            "spec.egress[0].ports[0]",
            "endPort needs a port",
        ),
        (
            json!({"egress": [{"ports": [{"protocol": "ICMP"}]}]}),
            "spec.egress[0].ports[0].protocol",
            "none of TCP, UDP and SCTP",
        ),
        (json!({"ingress": [{"ports": [{"port": 65536}]}]}), "spec.ingress[0].ports[0].port", "65536"),
        (json!({"ingress": [{"ports": [{"port": "a b"}]}]}), "spec.ingress[0].ports[0].port", "a b"),
        (
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}}),
            "spec.podSelector.matchExpressions[0]",
            "unknown variant `Gt`",
        ),
        (
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
            "spec.podSelector.matchExpressions[0]",
            "In needs values",
        ),
        (
            json!({"policyTypes": ["Ingress", "Both"]}),
            "spec.policyTypes[1]",
            "\"Both\" is neither Ingress nor Egress",
        ),
    ] {
        let (at, why) = knp(spec.clone());
        assert!(at.starts_with(field) && why.contains(problem), "{spec}: {at}: {why}");
    }
    for (rule, field, problem) in [
        (json!({}), "spec.ingress[1]", "missing field `action`"),
        (
            json!({"action": "Drop"}),
            "spec.ingress[1].action",
            "\"Drop\" is none of Allow, Deny, Pass and Log",
        ),
        (json!({"action": "Deny", "ipVersion": 5}), "spec.ingress[1].ipVersion", "5 is neither 4 nor 6"),
        (json!({"action": "Deny", "icmp": {"code": 1}}), "spec.ingress[1].icmp", "a code needs a type"),
        (json!({"action": "Deny", "icmp": {"type": 256}}), "spec.ingress[1].icmp", "256"),
        (json!({"action": "Deny", "protocol": "NONE"}), "spec.ingress[1].protocol", "NONE"),
        (
            json!({"action": "Deny", "source": {"selector": "a = 'b'"}}),
            "spec.ingress[1].source.selector",
            "is not a selector: at 2",
        ),
        (
            json!({"action": "Deny", "source": {"serviceAccounts": {"selector": "("}}}),
            "spec.ingress[1].source.serviceAccounts.selector",
            "is not a selector",
        ),
        (
            json!({"action": "Deny", "destination": {"ports": ["90:80"]}}),
            "spec.ingress[1].destination.ports[0]",
            "90:80",
        ),
        (
            json!({"action": "Deny", "destination": {"nets": ["10.0.0.0/8", "x"]}}),
            "spec.ingress[1].destination.nets[1]",
            "\"x\"",
        ),
        (
            json!({"action": "Deny", "destination": {"services": {"name": ""}}}),
            "spec.ingress[1].destination.services.name",
            "is empty",
        ),
    ] {
        let (at, why) = rule_error(rule.clone());
        assert!(at.starts_with(field) && why.contains(problem), "{rule}: {at}: {why}");
    }
    let gnp = |spec| error("projectcalico.org/v3", "GlobalNetworkPolicy", spec);
    assert_eq!(
        gnp(json!({"egress": [{"action": "Allow", "destination": {"services": {"name": "s"}}}]})).0,
        "spec.egress[0].destination.services.namespace"
    );
    assert_eq!(gnp(json!({"doNotTrack": true, "preDNAT": true})).0, "spec.preDNAT");
    assert_eq!(gnp(json!({"tier": "a/b"})).0, "spec.tier");
    assert_eq!(gnp(json!({"order": "first"})).0, "spec.order");
    assert_eq!(
        error("projectcalico.org/v3", "StagedNetworkPolicy", json!({"stagedAction": "Do"})).0,
        "spec.stagedAction"
    );
    let cnp = |spec| error("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", spec);
    let with = |rule: Value| json!({"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": [rule]});
    assert_eq!(cnp(json!({"tier": "Admin", "subject": {"namespaces": {}}})).0, "spec.priority");
    assert!(cnp(with(json!({"action": "Log"}))).0.starts_with("spec.ingress[0]"));
    let (at, why) = cnp(with(json!({"action": "Deny", "protocols": [{"icmp": {}}]})));
    assert!(at.starts_with("spec.ingress[0]") && why.contains("unknown field `icmp`"), "{at}: {why}");
    assert!(cnp(with(json!({"action": "Deny", "protocols": [{"tcp": {"destinationPort": {"range": {"start": 9, "end": 1}}}}]}))).1.contains("end 1 is below start 9"));
}

#[test]
fn references_of_policies_are_read() {
    let reference = |api_version: &str, kind: &str, namespace: Option<&str>| {
        let mut value = json!({"apiVersion": api_version, "kind": kind, "name": "p"});
        if let Some(namespace) = namespace {
            value["namespace"] = namespace.into();
        }
        match decode_ref(value).unwrap() {
            DecodedRef::Ref(ObjectRef::Policy(reference)) => reference,
            other => panic!("{other:?}"),
        }
    };
    for (api_version, kind) in KINDS {
        let given = reference(api_version, kind, Some("b"));
        let Ok(Decoded::Object(decoded)) = decode(object(api_version, kind, &json!({"priority": 1}))) else {
            panic!("{kind}")
        };
        assert_eq!(decoded.reference(), ObjectRef::Policy(given.clone()), "{kind}");
        assert_eq!(given.namespace.is_some(), given.kind.is_namespaced());
    }
    let unnamed = reference("networking.k8s.io/v1", "NetworkPolicy", None);
    assert_eq!(unnamed.namespace.as_deref(), Some("default"));
}

#[test]
fn other_versions_of_the_same_kinds_are_not_used() {
    for (api_version, kind) in [
        ("networking.k8s.io/v1", "Ingress"),
        ("cilium.io/v2", "NetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha1", "ClusterNetworkPolicy"),
        ("policy.networking.k8s.io/v1alpha2", "AdminNetworkPolicy"),
        ("projectcalico.org/v3", "IPPool"),
    ] {
        let decoded = decode(object(api_version, kind, &json!({"ingress": 5}))).unwrap();
        assert_eq!(decoded, Decoded::Unused { kind: kind.to_owned() });
    }
}

#[test]
fn a_policy_that_cannot_be_read_keeps_its_place() {
    let bad = object("projectcalico.org/v3", "NetworkPolicy", &json!({"selector": "("}));
    let error = decode(bad.clone()).unwrap_err();
    let Some(Object::Policy(Resource::Broken(reference, why))) = unreadable(&bad, &error) else { panic!() };
    let kind = ResourceKind::Policy(PolicyKind::NetworkPolicy);
    assert_eq!(reference, ResourceRef { kind, namespace: Some("b".into()), name: "p".into() });
    assert!(why.contains("spec.selector"), "{why}");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": 5});
    assert!(unreadable(&pod, &decode(pod.clone()).unwrap_err()).is_none());
    let nameless = json!({"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": {}});
    assert!(unreadable(&nameless, &decode(nameless.clone()).unwrap_err()).is_none());
}

/// The fields that policies have, with values of every sort.
fn spec() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec![
        "",
        "all()",
        "global()",
        "a == 'b'",
        "(",
        "Ingress",
        "Egress",
        "Allow",
        "Deny",
        "Pass",
        "Accept",
        "TCP",
        "UDP",
        "SCTP",
        "icmp",
        "Admin",
        "10.0.0.0/8",
        "::/0",
        "80:90",
        "http",
        "In",
        "Exists",
        "Set",
        "Delete",
        "\u{0}",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    let field = prop::sample::select(vec![
        "ingress",
        "egress",
        "from",
        "to",
        "ports",
        "port",
        "endPort",
        "protocol",
        "protocols",
        "notProtocol",
        "tcp",
        "destinationPort",
        "number",
        "range",
        "start",
        "end",
        "destinationNamedPort",
        "portNumber",
        "portRange",
        "namedPort",
        "ipBlock",
        "cidr",
        "except",
        "podSelector",
        "namespaceSelector",
        "matchLabels",
        "matchExpressions",
        "key",
        "operator",
        "values",
        "policyTypes",
        "types",
        "tier",
        "order",
        "priority",
        "subject",
        "namespaces",
        "pods",
        "networks",
        "nodes",
        "selector",
        "notSelector",
        "serviceAccountSelector",
        "serviceAccounts",
        "names",
        "action",
        "source",
        "destination",
        "nets",
        "notNets",
        "notPorts",
        "services",
        "name",
        "namespace",
        "icmp",
        "notICMP",
        "type",
        "code",
        "ipVersion",
        "doNotTrack",
        "preDNAT",
        "stagedAction",
        "labelsToApply",
        "defaultAction",
    ]);
    leaf.prop_recursive(7, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(field.clone(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

proptest! {
    /// Any object of a policy's kind: a resource of the same name, or an error that says which object.
    #[test]
    fn no_object_panics(kind in prop::sample::select(KINDS.to_vec()), spec in spec()) {
        let value = object(kind.0, kind.1, &spec);
        match decode(value.clone()) {
            Ok(Decoded::Object(decoded)) => {
                let ObjectRef::Policy(reference) = decoded.reference() else { panic!("{decoded:?}") };
                prop_assert_eq!(&*reference.name, "p");
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => prop_assert!(unreadable(&value, &error).is_some(), "{}", error),
        }
    }
}
