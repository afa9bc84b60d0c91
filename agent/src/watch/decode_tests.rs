//! Each kind, each rule, and what is wrong with what is wrong.

use serde_json::json;

use super::*;
use crate::cluster::Object;
use crate::model::Timestamp;
use crate::snapshot;

fn object(value: Value) -> cluster::Object {
    match decode(value).unwrap() {
        Decoded::Object(snapshot::Object::Cluster(object)) => object,
        Decoded::Object(other) => panic!("{other:?}"),
        Decoded::Configuration(resource) => panic!("{resource:?} is configuration"),
        Decoded::Unused { kind } => panic!("{kind} is used"),
    }
}

fn error(value: Value) -> (String, String, String) {
    let e = decode(value).unwrap_err();
    (e.object, e.field, e.problem)
}

fn pod_of(value: Value) -> Pod {
    match object(value) {
        Object::Pod(pod) => pod,
        other => panic!("{other:?}"),
    }
}

fn ips(list: &[IpAddr]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn full_pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-1", "namespace": "shop", "uid": "u-1", "generateName": "web-",
            "labels": {"app": "web", "empty": null},
            "annotations": {"other": "x", "cni.projectcalico.org/podIP": "10.1.0.9/32", "kubernetes.io/config.mirror": "hash"},
            "creationTimestamp": "2026-01-31T12:00:00Z",
            "managedFields": [{"manager": "x"}],
        },
        "spec": {
            "nodeName": "node-1", "serviceAccountName": "web",
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 53, "protocol": "UDP"}]}],
            "initContainers": [{"name": "i", "ports": [{"containerPort": 9000, "name": "init", "protocol": "SCTP"}]}],
        },
        "status": {"phase": "Running", "podIP": "10.1.0.1", "podIPs": [{"ip": "10.1.0.1"}, {"ip": "fd00::1"}]},
    })
}

#[test]
fn a_pod_in_full() {
    let pod = pod_of(full_pod());
    assert_eq!((&*pod.namespace, &*pod.name, pod.uid.as_deref()), ("shop", "web-1", Some("u-1")));
    assert_eq!(pod.generate_name.as_deref(), Some("web-"));
    assert_eq!(pod.mirrored_uid.as_deref(), Some("hash"));
    assert_eq!((pod.node.as_deref(), pod.service_account.as_deref()), (Some("node-1"), Some("web")));
    assert_eq!(pod.labels.get("empty").map(|v| &**v), Some(""));
    assert_eq!(ips(&pod.ips), ["10.1.0.1", "fd00::1"]);
    assert_eq!(pod.created, Some(Timestamp(1_769_860_800_000_000_000)));
    assert!(!pod.finished && !pod.host_network && pod.deletion.is_none());
    let ports: Vec<_> = pod.ports.iter().map(|p| (p.name.as_deref(), p.proto, p.port)).collect();
    assert_eq!(
        ports,
        [(Some("http"), Proto::TCP, 80), (None, Proto::UDP, 53), (Some("init"), Proto::SCTP, 9000)]
    );
}

#[test]
fn since_when_a_pod_has_had_its_addresses() {
    let since = |conditions: Value| {
        let mut value = full_pod();
        value["status"]["conditions"] = conditions;
        pod_of(value).networked
    };
    let condition = |kind: &str, status: &str, at: &str| json!({"type": kind, "status": status, "lastTransitionTime": at});
    let at = "2026-01-31T12:00:02Z";
    let other = condition("Ready", "True", "2026-01-31T12:00:09Z");
    assert_eq!(
        since(json!([other, condition("PodReadyToStartContainers", "True", at)])),
        Some(Timestamp(1_769_860_802_000_000_000))
    );
    assert_eq!(since(json!([other, condition("PodReadyToStartContainers", "False", at)])), None);
    assert_eq!(
        since(json!([condition("PodReadyToStartContainers", "True", "soon")])),
        None,
        "and the pod stays"
    );
    assert_eq!((since(json!([{}])), since(json!(null))), (None, None));
}

#[test]
fn where_a_pods_addresses_come_from() {
    let with = |status: Value, annotations: Value| {
        let mut value = full_pod();
        value["status"] = status;
        value["metadata"]["annotations"] = annotations;
        ips(&pod_of(value).ips)
    };
    let calico = json!({"cni.projectcalico.org/podIP": "10.9.0.1/32", "cni.projectcalico.org/podIPs": "10.9.0.2/32, fd00::9/128"});
    assert_eq!(with(json!({"podIP": "10.1.0.1"}), calico.clone()), ["10.1.0.1"]);
    assert_eq!(with(json!({"podIP": "", "podIPs": []}), calico), ["10.9.0.2", "fd00::9"]);
    assert_eq!(with(json!(null), json!({"cni.projectcalico.org/podIP": "10.9.0.1"})), ["10.9.0.1"]);
    assert_eq!(with(json!({"podIP": "::ffff:10.1.0.1"}), json!(null)), ["10.1.0.1"]);
    assert!(with(json!({}), json!({})).is_empty());
}

#[test]
fn finished_pods() {
    let with = |phase: &str, deletion: Value, annotation: Option<&str>| {
        let mut value = full_pod();
        value["status"]["phase"] = phase.into();
        value["metadata"]["deletionTimestamp"] = deletion;
        value["metadata"]["annotations"] = match annotation {
            Some(ip) => json!({"cni.projectcalico.org/podIP": ip}),
            None => json!({}),
        };
        pod_of(value).finished
    };
    for phase in ["Succeeded", "Failed", "Completed"] {
        assert!(with(phase, json!(null), None), "{phase}");
    }
    for phase in ["Pending", "Running", "Unknown", ""] {
        assert!(!with(phase, json!(null), None), "{phase}");
    }
    let now = json!("2026-01-31T12:00:00Z");
    assert!(!with("Running", now.clone(), None), "asked to go, but still there");
    assert!(!with("Running", now.clone(), Some("10.1.0.1/32")));
    assert!(with("Running", now, Some("")), "Calico has taken the address back");
    assert!(!with("Running", json!(null), Some("")), "not assigned yet");
}

#[test]
fn the_smallest_objects() {
    let meta = json!({"name": "x"});
    for (api_version, kind, spec) in [
        ("v1", "Namespace", json!(null)),
        ("v1", "ServiceAccount", json!(null)),
        ("v1", "Pod", json!(null)),
        ("v1", "Node", json!(null)),
        ("v1", "Service", json!(null)),
        ("v1", "Endpoints", json!(null)),
        ("discovery.k8s.io/v1", "EndpointSlice", json!(null)),
        ("discovery.k8s.io/v1beta1", "EndpointSlice", json!(null)),
        ("projectcalico.org/v3", "NetworkSet", json!(null)),
        ("crd.projectcalico.org/v1", "GlobalNetworkSet", json!({})),
        ("crd.projectcalico.org/v1", "HostEndpoint", json!({"node": "n"})),
    ] {
        let o = object(
            json!({"apiVersion": api_version, "kind": kind, "metadata": meta, "spec": spec, "status": null}),
        );
        assert_eq!(o.kind().name(), kind);
        let namespace = o.kind().is_namespaced().then(|| Arc::from("default"));
        assert_eq!(o.object_name().namespace, namespace, "{kind}");
        let reference = json!({"apiVersion": api_version, "kind": kind, "name": "x"});
        assert_eq!(
            decode_ref(reference).unwrap(),
            DecodedRef::Ref(snapshot::ObjectRef::Cluster(o.reference()))
        );
    }
}

#[test]
fn a_node_with_its_tunnels() {
    let Object::Node(node) = object(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n", "annotations": {
            "projectcalico.org/IPv4Address": "192.168.0.1/24",
            "projectcalico.org/IPv4IPIPTunnelAddr": "10.244.0.1",
            "projectcalico.org/IPv4VXLANTunnelAddr": "10.244.0.2",
            "projectcalico.org/IPv6VXLANTunnelAddr": "fd00::2",
            "projectcalico.org/IPv4WireguardInterfaceAddr": "10.244.0.3"}},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "192.168.0.1"},
            {"type": "ExternalIP", "address": "8.8.8.8"},
            {"type": "Hostname", "address": "n"},
            {"type": "InternalDNS", "address": "n.local"}]},
    })) else {
        panic!()
    };
    assert_eq!(
        ips(&node.addresses),
        ["8.8.8.8", "10.244.0.1", "10.244.0.2", "10.244.0.3", "192.168.0.1", "fd00::2"]
    );
}

#[test]
fn services_of_all_types() {
    let Object::Service(s) = object(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "externalIPs": ["1.1.1.1"],
            "ports": [{"name": "http", "port": 80, "targetPort": "x", "nodePort": 30080}, {"port": 53, "protocol": "UDP", "nodePort": 0}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}, {"hostname": "lb.example"}]}},
    })) else {
        panic!()
    };
    assert_eq!(ips(&s.ips), ["1.1.1.1", "2.2.2.2", "10.96.0.1", "fd00::1"]);
    let ports: Vec<_> = s.ports.iter().map(|p| (p.name.as_deref(), p.proto, p.port, p.node_port)).collect();
    assert_eq!(ports, [(Some("http"), Proto::TCP, 80, Some(30080)), (None, Proto::UDP, 53, None)]);
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "x.example", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]}),
    ] {
        let Object::Service(s) =
            object(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": spec}))
        else {
            panic!()
        };
        assert!(s.ips.is_empty());
    }
}

#[test]
fn what_stands_behind_a_service() {
    let Object::EndpointSlice(slice) = object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-1", "namespace": "b", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": ["10.2.0.1", "10.2.0.2"]}, {"addresses": null}],
        "ports": [{"name": "http", "port": 8080}, {"port": null, "protocol": "UDP"}],
    })) else {
        panic!()
    };
    assert_eq!(slice.service.as_deref(), Some("web"));
    assert_eq!(ips(&slice.groups[0].addresses), ["10.2.0.1", "10.2.0.2"]);
    assert_eq!((slice.groups[0].ports[0].port, slice.groups[0].ports[1].port), (Some(8080), None));
    let Object::EndpointSlice(slice) = object(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "FQDN",
        "metadata": {"name": "x"}, "endpoints": [{"addresses": ["a.example"]}],
    })) else {
        panic!()
    };
    assert!(slice.service.is_none() && slice.groups[0].addresses.is_empty());
    let Object::Endpoints(endpoints) = object(json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web", "namespace": "b"},
        "subsets": [{"addresses": [{"ip": "10.2.0.1"}], "notReadyAddresses": [{"ip": "10.2.0.2"}], "ports": [{"port": 8080}]}],
    })) else {
        panic!()
    };
    assert_eq!(endpoints.service.as_deref(), Some("web"));
    assert_eq!(ips(&endpoints.groups[0].addresses), ["10.2.0.1", "10.2.0.2"]);
}

#[test]
fn calico_objects() {
    let Object::NetworkSet(set) = object(json!({
        "apiVersion": "projectcalico.org/v3", "kind": "NetworkSet", "metadata": {"name": "s", "namespace": "b", "labels": {"k": "v"}},
        "spec": {"nets": ["10.1.2.3/8", "1.1.1.1", "fd00::1/16", "::ffff:192.168.0.0/112", "10.0.0.0/8"]},
    })) else {
        panic!()
    };
    let nets: Vec<_> = set.nets.iter().map(ToString::to_string).collect();
    assert_eq!(nets, ["1.1.1.1/32", "10.0.0.0/8", "192.168.0.0/16", "fd00::/16"]);
    assert_eq!(set.namespace.as_deref(), Some("b"));
    let Object::HostEndpoint(hep) = object(json!({
        "apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint", "metadata": {"name": "h", "labels": {"role": "node"}},
        "spec": {"node": "node-1", "interfaceName": "*", "expectedIPs": ["192.168.5.5"], "profiles": ["p"],
            "ports": [{"name": "a", "port": 1, "protocol": "ICMPv6"}, {"name": "b", "port": 2, "protocol": 33}, {"name": "c", "port": 3, "protocol": "UDPLite"}]},
    })) else {
        panic!()
    };
    assert!(hep.is_wildcard());
    assert_eq!((ips(&hep.expected_ips), &*hep.profiles[0]), (vec!["192.168.5.5".to_owned()], "p"));
    assert_eq!(hep.ports.iter().map(|p| p.proto.0).collect::<Vec<_>>(), [58, 33, 136]);
}

#[test]
fn kinds_that_are_not_used() {
    for (api_version, kind) in [
        ("networking.k8s.io/v1", "Ingress"),
        ("apps/v1", "Deployment"),
        ("serving.knative.dev/v1", "Service"),
        ("v2", "Pod"),
        ("projectcalico.org/v3", "Pod"),
        ("v1", "NetworkSet"),
    ] {
        let unused = kind.to_owned();
        assert_eq!(
            decode(json!({"apiVersion": api_version, "kind": kind})).unwrap(),
            Decoded::Unused { kind: unused.clone() }
        );
        let reference = json!({"apiVersion": api_version, "kind": kind, "name": "x", "namespace": "y"});
        assert_eq!(decode_ref(reference).unwrap(), DecodedRef::Unused { kind: unused });
    }
}

#[test]
fn errors_name_the_object_and_the_field() {
    let with = |pointer: &str, wrong: Value| {
        let mut value = full_pod();
        *value.pointer_mut(pointer).unwrap() = wrong;
        let (object, field, problem) = error(value);
        assert!(object.starts_with("Pod"), "{object}");
        (field, problem)
    };
    for (pointer, wrong, field, says) in [
        ("/metadata/name", json!(""), "metadata.name", "empty"),
        ("/metadata/name", json!(5), "metadata.name", "string"),
        ("/metadata/name", json!("a/b"), "metadata.name", "slash"),
        ("/metadata/name", json!("a\nb"), "metadata.name", "control"),
        ("/metadata/name", json!("x".repeat(254)), "metadata.name", "253"),
        ("/metadata/namespace", json!("a b"), "metadata.namespace", "white space"),
        ("/metadata/labels/app", json!(true), "metadata.labels.app", "string"),
        ("/metadata/creationTimestamp", json!("yesterday"), "metadata.creationTimestamp", "RFC 3339"),
        ("/metadata/creationTimestamp", json!("9999-01-01T00:00:00Z"), "metadata.creationTimestamp", "2262"),
        ("/status/podIPs/1/ip", json!("10.0.0.300"), "status.podIPs[1].ip", "not an IP address"),
        (
            "/spec/containers/0/ports/0/containerPort",
            json!(65536),
            "spec.containers[0].ports[0].containerPort",
            "65535",
        ),
        (
            "/spec/containers/0/ports/0/containerPort",
            json!(-1),
            "spec.containers[0].ports[0].containerPort",
            "65535",
        ),
        (
            "/spec/containers/0/ports/0/containerPort",
            json!(80.5),
            "spec.containers[0].ports[0].containerPort",
            "port",
        ),
        (
            "/spec/containers/0/ports/0/containerPort",
            json!("80"),
            "spec.containers[0].ports[0].containerPort",
            "port",
        ),
        (
            "/spec/containers/0/ports/1/protocol",
            json!("QUIC"),
            "spec.containers[0].ports[1].protocol",
            "protocol",
        ),
        ("/spec", json!([]), "spec", "invalid"),
        ("/spec", json!("x"), "spec", "invalid"),
    ] {
        let (got, problem) = with(pointer, wrong);
        assert_eq!(got, field);
        assert!(problem.contains(says), "{field}: {problem}");
    }
    let (object, field, problem) =
        error(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "a"}}));
    assert_eq!((&*object, &*field), ("Pod a/without a name", "metadata"));
    assert!(problem.contains("`name`"), "{problem}");
    assert_eq!(error(json!({"kind": "Pod"})).2, "missing field `apiVersion`");
    assert!(decode(json!([1])).is_err() && decode(json!("x")).is_err() && decode(json!(null)).is_err());
    let annotated = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "annotations": {"cni.projectcalico.org/podIPs": "10.0.0.1,nonsense"}}});
    assert_eq!(error(annotated).1, "metadata.annotations.cni.projectcalico.org/podIPs");
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}, "status": {"addresses": [{"type": "InternalIP", "address": "n"}]}});
    assert_eq!(error(node).1, "status.addresses[0].address");
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "x"}, "endpoints": [{"addresses": ["n"]}]});
    assert_eq!(error(slice).1, "endpoints[0].addresses[0]");
    let set = json!({"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet", "metadata": {"name": "x"}, "spec": {"nets": ["10.0.0.0/8", "10.0.0.0/33"]}});
    assert_eq!(error(set).1, "spec.nets[1]");
    let hep = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint", "metadata": {"name": "x"}, "spec": {"node": ""}});
    assert_eq!(error(hep).1, "spec.node");
}

#[test]
fn references_are_checked() {
    let wrong = |value: Value| decode_ref(value).unwrap_err();
    assert_eq!(wrong(json!({"apiVersion": "v1", "kind": "Pod", "name": ""})).field, "name");
    assert!(wrong(json!({"apiVersion": "v1", "kind": "Pod"})).problem.contains("`name`"));
    assert!(
        wrong(json!({"apiVersion": "v1", "kind": "Pod", "name": "x", "nmespace": "y"}))
            .problem
            .contains("nmespace")
    );
    assert_eq!(
        wrong(json!({"apiVersion": "v1", "kind": "Pod", "name": "x", "namespace": "a/b"})).field,
        "namespace"
    );
    // A namespace says nothing of a kind that has none.
    let node =
        decode_ref(json!({"apiVersion": "v1", "kind": "Node", "name": "x", "namespace": "y"})).unwrap();
    let DecodedRef::Ref(snapshot::ObjectRef::Cluster(node)) = node else { panic!() };
    assert_eq!(node.namespace, None);
}

proptest::proptest! {
    /// Whatever stands in whatever field: an object, an unused kind or an error, never a panic.
    #[test]
    fn hostile_values_never_panic(
        kind in 0..ObjectKind::ALL.len(),
        pointer in 0..8_usize,
        wrong in hostile(),
    ) {
        let kind = ObjectKind::ALL[kind];
        let api_version = match kind {
            ObjectKind::EndpointSlice => "discovery.k8s.io/v1",
            ObjectKind::NetworkSet | ObjectKind::GlobalNetworkSet | ObjectKind::HostEndpoint => "projectcalico.org/v3",
            _ => "v1",
        };
        let mut value = full_pod();
        value["apiVersion"] = api_version.into();
        value["kind"] = kind.name().into();
        let field = ["metadata", "spec", "status", "endpoints", "subsets", "ports", "kind", "apiVersion"][pointer];
        value[field] = wrong;
        if let Err(error) = decode(value.clone()) {
            proptest::prop_assert!(!error.problem.is_empty() && !error.field.is_empty());
        }
        let _ = decode_ref(value);
    }
}

fn hostile() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop_oneof![Just("10.0.0.1/99"), Just("::ffff:0:0/95"), Just(","), Just("0.0.0.0/0")]
            .prop_map(Value::from),
    ];
    let keys = prop_oneof![
        Just("name"),
        Just("nets"),
        Just("ports"),
        Just("port"),
        Just("addresses"),
        Just("labels"),
        Just("podIPs"),
        Just("ip"),
        Just("annotations"),
        Just("cni.projectcalico.org/podIPs"),
        Just("node"),
        Just("creationTimestamp"),
        Just("clusterIPs"),
        Just("expectedIPs"),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((keys.clone(), inner), 0..4).prop_map(|pairs| pairs
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

#[test]
fn configuration_objects_are_layers_not_objects() {
    let read = |api_version: &str, kind: &str| {
        decode(json!({
            "apiVersion": api_version, "kind": kind,
            "metadata": {"name": "node.n1", "generation": 3},
            "spec": {"flowLogsFlushInterval": "soon"},
        }))
    };
    for (api_version, kind, owner) in [
        ("flowlogd.dev/v1", "FlowLogConfiguration", config::Owner::Ours),
        ("crd.projectcalico.org/v1", "FelixConfiguration", config::Owner::Felix),
        ("projectcalico.org/v3", "FelixConfiguration", config::Owner::Felix),
    ] {
        let Ok(Decoded::Configuration(resource)) = read(api_version, kind) else { panic!("{kind}") };
        assert_eq!(resource.reference, config::ResourceRef { owner, name: "node.n1".into() });
        assert_eq!((resource.generation, resource.spec.len()), (3, 1));
        let reference = json!({"apiVersion": api_version, "kind": kind, "name": "node.n1"});
        assert_eq!(decode_ref(reference), Ok(DecodedRef::Configuration(resource.reference)));
    }
    let error = decode(json!({
        "apiVersion": "flowlogd.dev/v1", "kind": "FlowLogConfiguration",
        "metadata": {"name": "default"}, "spec": [1],
    }));
    assert_eq!(
        error.unwrap_err().to_string(),
        "FlowLogConfiguration default: field `spec`: is not a map of fields"
    );
    let error =
        decode(json!({"apiVersion": "flowlogd.dev/v1", "kind": "FlowLogConfiguration", "metadata": {}}));
    assert!(error.unwrap_err().to_string().contains("metadata.name"));
    assert!(matches!(read("flowlogd.dev/v2", "FlowLogConfiguration"), Ok(Decoded::Unused { .. })));
}
