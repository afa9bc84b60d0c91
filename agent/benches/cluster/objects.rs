//! Objects of a large cluster, as an API server writes them.
//!
//! In: a number. Out: the JSON text of the object, always the same for the same number. Sizes and contents are those of
//! ordinary objects: a pod has two containers with environment, probes and volumes, conditions, container states and
//! managed fields (3.6 KB). Names have a real cluster's cardinality: 20 pods a workload, 500 namespaces.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde_json::json;

/// 2026-11-01, seconds.
pub const NOW: i64 = 1_793_491_200;

#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub pods: u64,
    pub nodes: u64,
    pub services: u64,
    pub sets: u64,
    pub policies: u64,
}

impl Size {
    pub const LARGE: Self =
        Self { pods: 100_000, nodes: 5_000, services: 10_000, sets: 1_000, policies: 2_000 };
    pub const FEW: Self = Self { pods: 2_000, nodes: 50, services: 100, sets: 20, policies: 20 };
}

/// splitmix64.
pub fn noise(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn v4(net: u8, n: u64) -> IpAddr {
    let [.., b, c, d] = n.to_be_bytes();
    IpAddr::from([net, b, c, d])
}

pub fn pod_ip(n: u64) -> IpAddr {
    v4(10, n)
}

/// An address in the set `n`.
pub fn set_ip(n: u64, other: u64) -> IpAddr {
    v4(52, (n * 100 + other % 100) << 4 | other >> 8 & 0xf)
}

/// `change`: 0 as it was, 1 and 2 other labels, 3 another address.
pub fn pod(n: u64, change: u64, version: u64) -> String {
    let workload = n / 20;
    let (namespace, app) = (workload % 500, format!("backend-{workload}"));
    let hash = format!("{:08x}", noise(workload) as u32);
    let name = format!("{app}-{hash}-{:05x}", n & 0xfffff);
    let node = n % 5_000;
    let ip = if change == 3 { v4(11, n) } else { pod_ip(n) };
    let v6 = format!("fd00::{:x}:{:x}", n >> 16, n & 0xffff);
    let uid = format!("{:08x}-0000-4000-8000-{n:012x}", noise(n) as u32);
    let mut text = String::with_capacity(4_096);
    // Writing into memory does not fail.
    let _ = write!(
        text,
        r#"{{"metadata":{{"name":"{name}","generateName":"{app}-{hash}-","namespace":"team-{namespace}","uid":"{uid}","resourceVersion":"{version}","creationTimestamp":"2026-10-01T12:00:00Z","labels":{{"app.kubernetes.io/name":"{app}","app.kubernetes.io/instance":"{app}-prod","app.kubernetes.io/version":"1.24.{change}","pod-template-hash":"{hash}","team":"team-{namespace}"}},"annotations":{{"checksum/config":"9b2f0e7a3f0c8f6f4a5e2b1d0c9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a","cni.projectcalico.org/containerID":"7d1f3b0e5c2a9d8f6b4e1a0c3d5f7b9e2c4a6d8f0b1e3c5a7d9f2b4e6c8a0d1f","cni.projectcalico.org/podIP":"{ip}/32","cni.projectcalico.org/podIPs":"{ip}/32,{v6}/128","prometheus.io/scrape":"true","prometheus.io/port":"9090"}},"ownerReferences":[{{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"{app}-{hash}","uid":"{uid}","controller":true,"blockOwnerDeletion":true}}],"managedFields":["#
    );
    for manager in ["kube-controller-manager", "calico", "kubelet"] {
        let _ = write!(
            text,
            r#"{{"manager":"{manager}","operation":"Update","apiVersion":"v1","time":"2026-10-01T12:00:01Z","fieldsType":"FieldsV1","fieldsV1":{{"f:metadata":{{"f:labels":{{".":{{}},"f:app.kubernetes.io/name":{{}},"f:pod-template-hash":{{}}}},"f:ownerReferences":{{".":{{}},"k:{{\"uid\":\"{uid}\"}}":{{}}}}}},"f:status":{{"f:conditions":{{"k:{{\"type\":\"Ready\"}}":{{".":{{}},"f:status":{{}}}}}},"f:podIPs":{{}}}}}}}},"#
        );
    }
    text.pop();
    let _ = write!(
        text,
        r#"]}},"spec":{{"volumes":[{{"name":"config","configMap":{{"name":"{app}","defaultMode":420}}}},{{"name":"kube-api-access","projected":{{"sources":[{{"serviceAccountToken":{{"expirationSeconds":3607,"path":"token"}}}}],"defaultMode":420}}}}],"containers":["#
    );
    for (container, port) in [("server", 8080), ("metrics", 9090)] {
        let _ = write!(
            text,
            r#"{{"name":"{container}","image":"registry.example.com/team-{namespace}/{app}:1.24.3","ports":[{{"name":"{container}","containerPort":{port},"protocol":"TCP"}}],"env":[{{"name":"POD_NAME","valueFrom":{{"fieldRef":{{"apiVersion":"v1","fieldPath":"metadata.name"}}}}}},{{"name":"LOG_LEVEL","value":"info"}}],"resources":{{"limits":{{"cpu":"1","memory":"512Mi"}},"requests":{{"cpu":"100m","memory":"256Mi"}}}},"volumeMounts":[{{"name":"config","mountPath":"/etc/config"}},{{"name":"kube-api-access","readOnly":true,"mountPath":"/var/run/secrets/kubernetes.io/serviceaccount"}}],"livenessProbe":{{"httpGet":{{"path":"/healthz","port":{port},"scheme":"HTTP"}},"timeoutSeconds":1,"periodSeconds":10,"successThreshold":1,"failureThreshold":3}},"imagePullPolicy":"IfNotPresent"}},"#
        );
    }
    text.pop();
    let _ = write!(
        text,
        r#"],"restartPolicy":"Always","terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","serviceAccountName":"{app}","serviceAccount":"{app}","nodeName":"node-{node}","schedulerName":"default-scheduler","tolerations":[{{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}}],"priority":0,"enableServiceLinks":true}},"status":{{"phase":"Running","conditions":[{{"type":"Initialized","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-10-01T12:00:00Z"}},{{"type":"Ready","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-10-01T12:00:05Z"}}],"hostIP":"192.168.{}.{}","podIP":"{ip}","podIPs":[{{"ip":"{ip}"}},{{"ip":"{v6}"}}],"startTime":"2026-10-01T12:00:00Z","containerStatuses":[{{"name":"server","state":{{"running":{{"startedAt":"2026-10-01T12:00:04Z"}}}},"ready":true,"restartCount":0,"image":"registry.example.com/team-{namespace}/{app}:1.24.3","imageID":"registry.example.com/app@sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0","containerID":"containerd://7d1f3b0e5c2a9d8f6b4e1a0c3d5f7b9e2c4a6d8f0b1e3c5a7d9f2b4e6c8a0d1f"}}],"qosClass":"Burstable"}}}}"#,
        node >> 8,
        node & 0xff,
    );
    text
}

pub fn node(n: u64) -> String {
    json!({"metadata": {"name": format!("node-{n}"), "resourceVersion": "5", "labels": {"kubernetes.io/hostname": format!("node-{n}"), "topology.kubernetes.io/zone": format!("z{}", n % 3)}},
           "status": {"addresses": [{"type": "InternalIP", "address": v4(192, 168 << 16 | n).to_string()}, {"type": "Hostname", "address": format!("node-{n}")}],
                      "images": (0..20).map(|i| json!({"names": [format!("registry.example.com/app-{i}:1.24.3")], "sizeBytes": 123_456_789 + i})).collect::<Vec<_>>()}})
    .to_string()
}

pub fn namespace(n: u64) -> String {
    json!({"metadata": {"name": format!("team-{n}"), "resourceVersion": "5", "labels": {"kubernetes.io/metadata.name": format!("team-{n}")}}}).to_string()
}

/// One a workload.
pub fn service_account(n: u64) -> String {
    json!({"metadata": {"name": format!("backend-{n}"), "namespace": format!("team-{}", n % 500), "resourceVersion": "5"}}).to_string()
}

pub fn service(n: u64) -> String {
    json!({"metadata": {"name": format!("backend-{n}"), "namespace": format!("team-{}", n % 500), "resourceVersion": "5"},
           "spec": {"type": "ClusterIP", "clusterIP": v4(172, 16 << 16 | n).to_string(), "clusterIPs": [v4(172, 16 << 16 | n).to_string()],
                    "selector": {"app.kubernetes.io/name": format!("backend-{n}")},
                    "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}, {"name": "metrics", "protocol": "TCP", "port": 9090, "targetPort": 9090}]}})
    .to_string()
}

/// Ten addresses a service.
pub fn slice(n: u64) -> String {
    let endpoint = |i: u64| {
        json!({"addresses": [pod_ip((n * 10 + i) % 100_000).to_string()], "nodeName": format!("node-{}", n % 5_000),
               "conditions": {"ready": true, "serving": true, "terminating": false},
               "targetRef": {"kind": "Pod", "namespace": format!("team-{}", n % 500), "name": format!("backend-{n}-{i}"), "uid": "5a9e1c1e-0000-4000-8000-000000000000"}})
    };
    json!({"metadata": {"name": format!("backend-{n}-abcde"), "namespace": format!("team-{}", n % 500), "resourceVersion": "5",
                        "labels": {"kubernetes.io/service-name": format!("backend-{n}"), "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
           "addressType": "IPv4", "endpoints": (0..10).map(endpoint).collect::<Vec<_>>(),
           "ports": [{"name": "http", "protocol": "TCP", "port": 8080}, {"name": "metrics", "protocol": "TCP", "port": 9090}]})
    .to_string()
}

/// A hundred prefixes.
pub fn set(n: u64) -> String {
    let nets: Vec<String> = (0..100).map(|i| format!("{}/28", v4(52, (n * 100 + i) << 4))).collect();
    json!({"metadata": {"name": format!("partner-{n}"), "resourceVersion": "5", "labels": {"partner": format!("{n}")}}, "spec": {"nets": nets}}).to_string()
}

pub fn policy(n: u64) -> String {
    json!({"metadata": {"name": format!("allow-{n}"), "namespace": format!("team-{}", n % 500), "resourceVersion": "5"},
           "spec": {"podSelector": {"matchLabels": {"app.kubernetes.io/name": format!("backend-{n}")}}, "policyTypes": ["Ingress"],
                    "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": format!("team-{}", (n + 1) % 500)}}}, {"podSelector": {"matchLabels": {"team": "payments"}}}],
                                 "ports": [{"protocol": "TCP", "port": 8080}]}]}})
    .to_string()
}
