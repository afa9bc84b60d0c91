//! The rights that the manifests give.
//!
//! In: manifests. Out: each right as verb, group and resource. Not here: what the server makes of them (`server.rs`).

use std::collections::BTreeSet;

use anyhow::ensure;
use serde_json::Value;

/// Kinds of Calico, and whether they are in a namespace.
pub const CALICO_KINDS: [(&str, bool); 11] = [
    ("Tier", false),
    ("Profile", false),
    ("NetworkPolicy", true),
    ("GlobalNetworkPolicy", false),
    ("StagedNetworkPolicy", true),
    ("StagedGlobalNetworkPolicy", false),
    ("StagedKubernetesNetworkPolicy", true),
    ("NetworkSet", true),
    ("GlobalNetworkSet", false),
    ("HostEndpoint", false),
    ("FelixConfiguration", false),
];

type Right = (String, String, String);

pub fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"))
}

/// (verb, group, resource) of every rule of every ClusterRole.
pub fn granted(manifests: &str) -> anyhow::Result<BTreeSet<Right>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(manifests)?;
    let mut rights = BTreeSet::new();
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    for role in documents.iter().filter(|document| document["kind"] == "ClusterRole") {
        for rule in role["rules"].as_array().into_iter().flatten() {
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    for verb in strings(&rule["verbs"]) {
                        rights.insert((verb, group.clone(), resource.clone()));
                    }
                }
            }
        }
    }
    ensure!(!rights.is_empty(), "the manifests give no right");
    Ok(rights)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_of_a_rule_are_its_products() {
        let rights = granted(
            "kind: ClusterRole\nrules:\n- {apiGroups: ['', a], resources: [pods], verbs: [list, watch]}\n---\nkind: Other\n",
        )
        .unwrap();
        assert_eq!(rights.len(), 4);
        assert!(rights.contains(&("watch".into(), "a".into(), "pods".into())));
    }

    #[test]
    fn plurals_as_the_api_has_them() {
        assert_eq!(plural("NetworkPolicy"), "networkpolicies");
        assert_eq!(plural("Tier"), "tiers");
    }
}
