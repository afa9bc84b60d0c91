//! Any JSON as the spec of every kind of policy: a resource, or an error that names object and field.

#![no_main]

use flowlogd::watch::{decode, unreadable};
use serde_json::{Value, json};

const KINDS: [(&str, &str); 11] = [
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("projectcalico.org/v3", "NetworkPolicy"),
    ("projectcalico.org/v3", "GlobalNetworkPolicy"),
    ("projectcalico.org/v3", "StagedNetworkPolicy"),
    ("projectcalico.org/v3", "StagedGlobalNetworkPolicy"),
    ("projectcalico.org/v3", "StagedKubernetesNetworkPolicy"),
    ("crd.projectcalico.org/v1", "Tier"),
    ("crd.projectcalico.org/v1", "Profile"),
    ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
];

libfuzzer_sys::fuzz_target!(|input: (u8, &str)| {
    let (kind, text) = input;
    let (api_version, kind) = KINDS[usize::from(kind) % KINDS.len()];
    let Ok(spec) = serde_json::from_str::<Value>(text) else { return };
    let metadata = json!({"name": "p", "namespace": "n"});
    let object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec});
    if let Err(error) = decode(object.clone()) {
        assert!(!error.field.is_empty());
        assert!(unreadable(&object, &error).is_some());
    }
});
