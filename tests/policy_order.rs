//! Which policies apply to an end and in what order, against Calico's own answer.
//!
//! In: `policy.json` (`FLOWLOGD_POLICY_VECTORS`, else `../shared/vectors/policy.json` beside the project; without it this
//! says SKIPPED), whose `evaluation_order` is what Calico's policy sorter and resolver made of the objects. Out: the
//! same from our decoders, compilers and order, with the labels of an end put together here, by hand, from the objects:
//! what this test trusts is neither the evaluator nor its index. Verdicts are deliberately not here.

#![allow(clippy::unwrap_used, reason = "the functions that the tests share may end a test too")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use flowlogd::policy::selector::Lookup;
use flowlogd::policy::{Policies, compile};
use flowlogd::snapshot::Object;
use flowlogd::watch::{Decoded, decode};

struct Labels(BTreeMap<String, String>);

impl Lookup for Labels {
    fn label(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

fn own(object: &Value, prefix: &str) -> Vec<(String, String)> {
    let labels = object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels
        .into_iter()
        .filter(|(key, _)| {
            !key.starts_with(compile::OF_NAMESPACE) && !key.starts_with(compile::OF_SERVICE_ACCOUNT)
        })
        .map(|(key, value)| (format!("{prefix}{key}"), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// The labels of the pod or host endpoint with this address, of itself and of what it is in.
fn labels_at(objects: &[Value], ip: &str) -> Option<Labels> {
    let find = |kind: &str, namespace: Option<&Value>, name: &Value| {
        objects.iter().find(|o| {
            o["kind"] == kind
                && o["metadata"]["name"] == *name
                && namespace.is_none_or(|ns| o["metadata"]["namespace"] == *ns)
        })
    };
    let has_ip =
        |list: &Value| list.as_array().is_some_and(|ips| ips.iter().any(|it| it["ip"] == ip || *it == ip));
    let host = |o: &&Value| o["kind"] == "HostEndpoint" && has_ip(&o["spec"]["expectedIPs"]);
    if let Some(host) = objects.iter().find(host) {
        return Some(Labels(own(host, "").into_iter().collect()));
    }
    let pod = objects.iter().find(|o| {
        o["kind"] == "Pod"
            && o["spec"]["hostNetwork"] != true
            && !["Succeeded", "Failed"].iter().any(|phase| o["status"]["phase"] == *phase)
            && (has_ip(&o["status"]["podIPs"]) || o["status"]["podIP"] == ip)
    })?;
    let namespace = &pod["metadata"]["namespace"];
    let mut labels: BTreeMap<String, String> = own(pod, "").into_iter().collect();
    let mut put = |key: String, value: &Value| labels.insert(key, value.as_str().unwrap().to_owned());
    put(compile::NAMESPACE.to_owned(), namespace);
    put(compile::ORCHESTRATOR.to_owned(), &json!(compile::KUBERNETES));
    put(format!("{}projectcalico.org/name", compile::OF_NAMESPACE), namespace);
    let account = &pod["spec"]["serviceAccountName"];
    if account.is_string() {
        put(compile::SERVICE_ACCOUNT.to_owned(), account);
        put(format!("{}projectcalico.org/name", compile::OF_SERVICE_ACCOUNT), account);
        if let Some(account) = find("ServiceAccount", Some(namespace), account) {
            labels.extend(own(account, compile::OF_SERVICE_ACCOUNT));
        }
    }
    if let Some(namespace) = find("Namespace", None, namespace) {
        labels.extend(own(namespace, compile::OF_NAMESPACE));
    }
    Some(Labels(labels))
}

fn order(policies: &Policies, labels: &Labels, ingress: bool) -> Value {
    let tiers = policies.ordered().into_iter().filter_map(|tier| {
        let applies = tier.policies.iter().filter(|policy| {
            let governed = if ingress { &policy.ingress } else { &policy.egress };
            governed.is_some() && policy.subject.matches(labels)
        });
        let names: Vec<String> = applies
            .map(|policy| {
                let namespace = policy.id.namespace.as_ref().map(|ns| format!("{ns}/")).unwrap_or_default();
                format!("{}:{namespace}{}", policy.id.kind.name(), policy.id.name)
            })
            .collect();
        let default_action = if tier.tier.default_pass { "Pass" } else { "Deny" };
        (!names.is_empty())
            .then(|| json!({"tier": *tier.tier.name, "default_action": default_action, "policies": names}))
    });
    tiers.collect()
}

#[test]
fn policies_apply_in_calicos_order() {
    let given = std::env::var_os("FLOWLOGD_POLICY_VECTORS").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/policy.json");
    let file = given.clone().unwrap_or(beside);
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if given.is_none() => {
            eprintln!(
                "SKIPPED: the policy vectors are not beside the project ({}: {error}); FLOWLOGD_POLICY_VECTORS=FILE names them",
                file.display()
            );
            return;
        }
        Err(error) => panic!("FLOWLOGD_POLICY_VECTORS={}: {error}", file.display()),
    };
    let vectors: Vec<Value> = serde_json::from_str(&text).unwrap();
    let mut compared = 0;
    let mut problems = Vec::new();
    for vector in &vectors {
        let name = vector["name"].as_str().unwrap();
        let objects = vector["objects"].as_array().unwrap();
        let mut policies = Policies::default();
        for object in objects {
            match decode(object.clone()) {
                Ok(Decoded::Object(Object::Policy(resource))) => {
                    policies.apply(resource);
                }
                Ok(Decoded::Object(Object::Cluster(_))) => {}
                other => problems.push(format!("{name}: {other:?}")),
            }
        }
        for (side, address, ingress) in [("src", "src_ip", false), ("dst", "dst_ip", true)] {
            let expected = &vector["expect"][side]["evaluation_order"];
            if expected.is_null() {
                continue;
            }
            compared += 1;
            let ip = vector["flow"][address].as_str().unwrap();
            let Some(labels) = labels_at(objects, ip) else {
                problems.push(format!("{name}: {side}: nothing has {ip}"));
                continue;
            };
            let ours = order(&policies, &labels, ingress);
            if ours != *expected {
                problems.push(format!("{name}: {side}: {ours}, Calico: {expected}"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(compared > 50, "only {compared} ends had an order to compare");
}
