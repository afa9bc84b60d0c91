//! The rights that the manifests give, held to what a real agent asks of a real API server.
//!
//! In: the rules, a server that writes an audit log, the agent's binary. Out: an error where a request was forbidden (the
//! rules are not sufficient) or a right was not used (they are not minimal). What always holds: rights on what this
//! server cannot serve are named one by one in [`NOT_SERVED`]. Not here: what the agent does with what it reads.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::apiserver::ApiServer;
use crate::demo::tools::build_agent;

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

/// Rights for what only other servers have: EndpointSlice of version 1, and Calico's API server with its tiers.
const NOT_SERVED: [(&str, &str); 3] =
    [("discovery.k8s.io", "endpointslices"), ("projectcalico.org", "tier."), ("projectcalico.org", "tiers")];

const PATIENCE: Duration = Duration::from_secs(60);

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

/// Lets an agent run with the account's rights, and compares.
pub fn check(server: &ApiServer, granted: &BTreeSet<Right>, folder: &Path) -> anyhow::Result<()> {
    let binary = build_agent()?;
    // One object that it has to answer in the status, with a value that the schema cannot refuse.
    server.apply(
        "apiVersion: flowlogd.dev/v1\nkind: FlowLogConfiguration\nmetadata: {name: default}\nspec: {flowLogsFlushInterval: 1s}\n",
    )?;
    server.apply("apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n")?;
    let kubeconfig = server.agent_kubeconfig().display().to_string();
    let directory = format!("flowLogsFileDirectory={}", folder.join("flowlogs").display());
    let log = folder.join("agent.log");
    let mut agent = server.namespace.start(
        binary.as_os_str(),
        &["run", "--node", "n1", "--kubeconfig", &kubeconfig, "--source", "netlink", "--set", &directory]
            .map(AsRef::as_ref),
        File::create(folder.join("agent.out"))?,
        File::create(&log)?,
    )?;
    let until = Instant::now() + PATIENCE;
    let unused = loop {
        let asked = server.asked()?;
        for (request, status) in &asked {
            ensure!(*status != 403, "the rules are not sufficient: {request:?} was forbidden");
        }
        let used: BTreeSet<Right> =
            asked.into_keys().map(|asked| (asked.verb, asked.group, asked.resource)).collect();
        let unused: Vec<Right> =
            granted.difference(&used).filter(|right| !is_excused(right, &used)).cloned().collect();
        if unused.is_empty() || Instant::now() > until {
            break unused;
        }
        ensure!(agent.is_running(), "flowlogd ended:\n{}", std::fs::read_to_string(&log).unwrap_or_default());
        thread::sleep(Duration::from_millis(200));
    };
    agent.stop(Signal::TERM, PATIENCE).context("flowlogd does not stop")?;
    ensure!(
        unused.is_empty(),
        "the rules are not minimal: not used within {PATIENCE:?}: {unused:?}\n{}",
        std::fs::read_to_string(&log).unwrap_or_default()
    );
    println!("rights: {} given, every one used by a running agent, none lacking", granted.len());
    Ok(())
}

/// Not asked for here, because of this server.
fn is_excused((verb, group, resource): &Right, used: &BTreeSet<Right>) -> bool {
    let not_served = NOT_SERVED.iter().any(|(of, prefix)| {
        group == of && resource.starts_with(prefix) && (*prefix != "tiers" || verb == "get")
    });
    // Of Calico's two groups an agent reads one.
    let other = match group.as_str() {
        "projectcalico.org" => "crd.projectcalico.org",
        "crd.projectcalico.org" => "projectcalico.org",
        _ => return not_served,
    };
    not_served || used.contains(&(verb.clone(), other.to_owned(), resource.clone()))
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
