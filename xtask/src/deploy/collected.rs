//! What the chart turns on, and the rights that it takes.
//!
//! In: the chart. Out: an error where a collector is on without its rights, or rights are given to nobody; where a variable
//! of the environment is no configuration field. What always holds: a collector is turned on in one place, a value of the
//! chart or its field in `config` or `nodeConfig`, and the rights follow from either. Not here: whether the rights are
//! enough (the agent on a real node, `xtask e2e`).

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use flowlogd::config::Field;
use serde_json::Value;

use super::render;

/// Values, the capabilities beside NET_ADMIN, whether the node's processes are shown, and a variable that has to be set.
const CASES: [(&[&str], &[&str], bool, &str); 9] = [
    (&[], &["BPF", "PERFMON"], false, ""),
    (&["source=netlink"], &[], false, ""),
    (
        &["source=netlink", "processInfo.enabled=true"],
        &["BPF", "PERFMON"],
        true,
        "flowLogsCollectProcessInfo",
    ),
    (&["source=netlink", "config.flowLogsCollectProcessInfo=true"], &["BPF", "PERFMON"], true, ""),
    (&["source=netlink", "config.flowLogsCollectProcessInfo=false"], &[], false, ""),
    (&["source=netlink", "tcpStats.enabled=true"], &["BPF", "PERFMON"], false, "flowLogsCollectTcpStats"),
    (&["source=netlink", "dns.log=true"], &["NET_RAW"], false, "dnsLogsFileEnabled"),
    (&["source=netlink", "dns.domains=true"], &["NET_RAW"], false, "flowLogsCollectDestDomains"),
    (&["source=netlink", "nodeConfig.n1.dnsLogsFileEnabled=true"], &["NET_RAW"], false, ""),
];

/// # Errors
/// The first case that is not as it should be.
pub fn check() -> anyhow::Result<usize> {
    for (values, capabilities, shows_processes, variable) in CASES {
        of_case(values, capabilities, shows_processes, variable)
            .with_context(|| format!("the chart with {values:?}"))?;
    }
    Ok(CASES.len())
}

fn of_case(
    values: &[&str],
    capabilities: &[&str],
    shows_processes: bool,
    variable: &str,
) -> anyhow::Result<()> {
    let text = render::daemonset(values)?;
    let pod: Value = serde_saphyr::from_str(&text).context("no YAML")?;
    let pod = &pod["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let words = |list: &Value| -> BTreeSet<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let wanted: BTreeSet<String> =
        capabilities.iter().chain(&["NET_ADMIN"]).map(|name| (*name).to_owned()).collect();
    let given = words(&container["securityContext"]["capabilities"]["add"]);
    ensure!(given == wanted, "capabilities {given:?}, not {wanted:?}");
    ensure!((pod["hostPID"] == true) == shows_processes, "hostPID: {}", pod["hostPID"]);
    let set = container["env"].as_array().into_iter().flatten().filter(|env| env["value"] == "true");
    let on: BTreeSet<&str> = set.filter_map(|env| env["name"].as_str().and_then(field_of)).collect();
    ensure!(variable.is_empty() || on.contains(variable), "{variable} is not on: {on:?}");
    Ok(())
}

/// The field that a variable of the environment sets.
fn field_of(variable: &str) -> Option<&'static str> {
    Field::by_name_any_case(variable.strip_prefix("FLOWLOGD_")?).map(|field| field.name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_variable_of_the_manifests_is_a_field() {
        let mut seen = 0;
        for folder in ["deploy/helm/flowlogd/templates", "deploy/base", "deploy/overlays/calico"] {
            for entry in fs::read_dir(crate::workspace::root().join(folder)).unwrap() {
                let path = entry.unwrap().path();
                let text = fs::read_to_string(&path).unwrap();
                for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
                    if word.starts_with("FLOWLOGD_") {
                        seen += 1;
                        assert!(field_of(word).is_some(), "{}: {word} is no field", path.display());
                    }
                }
            }
        }
        assert!(seen > 15, "{seen}: the manifests are not where they were");
        assert_eq!(field_of("FLOWLOGD_FLOWLOGSFLUSHINTERVALL"), None);
    }
}
