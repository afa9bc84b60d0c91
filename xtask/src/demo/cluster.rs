//! What Kubernetes would say of the demo's node: the manifests that the agent reads.
//!
//! In: the second at which a pod is replaced. Out: one JSON file with a List.
//! What always holds: two pods have the same address; the one that goes has a deletionTimestamp and the one that comes a
//! creationTimestamp, the moment of the replacement, which is yet to come when the agent reads the file. That a file can
//! know it beforehand is the demo's licence: it replaces the pod at that second.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::node::{
    ADMIN_PORT, BATCH, CACHE, DNS, DNS_SERVICE_V4, NODE_V4, NODE_V6, PODS, PodSpec, WEB_1, WEB_2,
    WEB_NODE_PORT, WEB_PORT, WEB_SERVICE_V4, WEB_SERVICE_V6,
};

pub const NODE_NAME: &str = "demo-node";

/// `replaced`: seconds since 1970.
pub fn write(path: &Path, replaced: i64) -> anyhow::Result<()> {
    let mut items = vec![namespace("shop"), namespace("infra"), node()];
    for (index, spec) in PODS.iter().enumerate() {
        items.push(pod(index, spec, replaced)?);
    }
    items.extend(web_service());
    items.extend(dns_service());
    items.push(json!({
        "apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkSet",
        "metadata": {"name": "partners", "labels": {"trust": "partner"}},
        "spec": {"nets": ["203.0.113.0/24", "2001:db8:cafe::/48"]},
    }));
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    fs::write(path, serde_json::to_vec_pretty(&list)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}})
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME},
        "status": {"addresses": [
            {"type": "InternalIP", "address": NODE_V4}, {"type": "InternalIP", "address": NODE_V6},
            {"type": "Hostname", "address": NODE_NAME},
        ]},
    })
}

fn pod(index: usize, spec: &PodSpec, replaced: i64) -> anyhow::Result<Value> {
    let created = if spec.generate_name == CACHE.generate_name { replaced } else { replaced - 3600 };
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{}{}", spec.generate_name, spec.suffix), "generateName": spec.generate_name,
            "namespace": spec.namespace, "labels": {"app": spec.app},
            "uid": format!("00000000-0000-4000-8000-{index:012}"),
            "creationTimestamp": rfc3339(created)?,
        },
        "spec": {"nodeName": NODE_NAME, "containers": [{"name": spec.app}]},
        "status": {"phase": "Running", "podIP": spec.v4(), "podIPs": [{"ip": spec.v4()}, {"ip": spec.v6()}]},
    });
    if spec.generate_name == BATCH.generate_name {
        pod["metadata"]["deletionTimestamp"] = rfc3339(replaced)?.into();
    }
    Ok(pod)
}

fn rfc3339(seconds: i64) -> anyhow::Result<String> {
    Ok(jiff::Timestamp::from_second(seconds).context("a time beyond the calendar")?.to_string())
}

fn web_service() -> [Value; 3] {
    let ports = json!([
        {"name": "http", "port": 80, "targetPort": WEB_PORT, "nodePort": WEB_NODE_PORT, "protocol": "TCP"},
        {"name": "admin", "port": ADMIN_PORT, "targetPort": ADMIN_PORT, "protocol": "TCP"},
    ]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "NodePort", "clusterIP": WEB_SERVICE_V4, "clusterIPs": [WEB_SERVICE_V4, WEB_SERVICE_V6], "ports": ports},
    });
    let ports = json!([
        {"name": "http", "port": WEB_PORT, "protocol": "TCP"}, {"name": "admin", "port": ADMIN_PORT, "protocol": "TCP"},
    ]);
    let [v4, v6] = [
        ("IPv4", [WEB_1, WEB_2].map(|pod| pod.v4().to_string())),
        ("IPv6", [WEB_1, WEB_2].map(|pod| pod.v6().to_string())),
    ]
    .map(|(family, addresses)| slice("shop", "web", family, &addresses, &ports));
    [service, v4, v6]
}

fn dns_service() -> [Value; 2] {
    let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}]);
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns", "namespace": "infra"},
        "spec": {"clusterIP": DNS_SERVICE_V4, "clusterIPs": [DNS_SERVICE_V4], "ports": ports},
    });
    [service, slice("infra", "dns", "IPv4", &[DNS.v4().to_string()], &ports)]
}

fn slice(namespace: &str, service: &str, family: &str, addresses: &[String], ports: &Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {
            "name": format!("{service}-{}", family.to_lowercase()), "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "endpoints": addresses.iter().map(|address| json!({"addresses": [address]})).collect::<Vec<_>>(),
        "ports": ports,
    })
}
