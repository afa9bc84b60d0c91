//! The kustomize base and overlays, out of the chart.
//!
//! In: the chart, Helm. Out: the files of `deploy/` that are generated, with their content. What always holds: whoever
//! installs with kustomize gets what the chart's default values give, byte for byte; only namespace and lists of files
//! are written by hand. Not here: writing and comparing (`deploy.rs`).

use anyhow::Context as _;

use crate::netns::run;
use crate::python;
use crate::workspace::root;

pub const CHART: &str = "deploy/helm/flowlogd";
pub const CRD: &str = "deploy/base/flowlogconfigurations.flowlogd.dev.yaml";
const HEADER: &str = "# Generated from deploy/helm/flowlogd by `cargo xtask deploy`; edit the chart.\n";

/// Which template, with which values, is which file.
const FILES: [(&str, &[&str], &str); 4] = [
    ("serviceaccount", &[], "deploy/base/serviceaccount.yaml"),
    ("rbac", &[], "deploy/base/rbac.yaml"),
    ("daemonset", &[], "deploy/base/daemonset.yaml"),
    ("rbac-calico", &["calico.enabled=true"], "deploy/overlays/calico/rbac.yaml"),
];

/// The chart as Helm renders it, whole.
pub fn whole(values: &[&str]) -> anyhow::Result<String> {
    helm(&["--include-crds"], values)
}

/// The DaemonSet alone.
pub fn daemonset(values: &[&str]) -> anyhow::Result<String> {
    helm(&["--show-only", "templates/daemonset.yaml"], values)
}

/// Every generated file's path and content.
pub fn files() -> anyhow::Result<Vec<(&'static str, String)>> {
    FILES
        .iter()
        .map(|(template, values, path)| {
            let show = format!("templates/{template}.yaml");
            let text = helm(&["--show-only", &show], values)?;
            let text: String = text
                .trim_start_matches("---\n")
                .lines()
                .filter(|line| !line.starts_with("# Source: "))
                .flat_map(|line| [line, "\n"])
                .collect();
            Ok((*path, format!("{HEADER}{text}")))
        })
        .collect()
}

fn helm(arguments: &[&str], values: &[&str]) -> anyhow::Result<String> {
    let program = python::program(python::HELM)?;
    let mut command = std::process::Command::new(program);
    command
        .current_dir(root())
        .args(["template", "flowlogd", CHART, "--namespace", "flowlogd"])
        .args(arguments);
    for value in values {
        command.args(["--set", value]);
    }
    run(&mut command, None).context("helm template")
}
