//! `cargo xtask deploy`: the manifests of every way to install, from one truth, and their proof.
//!
//! In: the chart, Helm. Out: `deploy/base/`, `deploy/overlays/`; with `--check` nothing is
//! written: stale files fail, and so does what Helm's linter, the values' schema or a real API server refuses. What
//! always holds: the chart is the truth for kustomize too. Exit code 3: all is good that could be looked at, but there is
//! no API server here (`KUBEBUILDER_ASSETS`).

mod refusals;
mod render;
mod rights;
mod server;
mod values;

use std::process::{Command, ExitCode};

use anyhow::ensure;

use crate::codegen::settle;
use crate::{apiserver, netns, python};

#[derive(clap::Args)]
pub struct Arguments {
    /// Write nothing; fail if a tracked file is stale or a manifest is refused.
    #[arg(long)]
    check: bool,
}

/// The chart's files that come from the code, with their content; `cargo xtask codegen` writes them.
pub fn generated() -> anyhow::Result<Vec<(String, String)>> {
    let schema = serde_json::to_string_pretty(&values::schema(&flowlogd::config::crd())?)? + "\n";
    Ok(vec![
        (format!("{}/values.schema.json", render::CHART), schema),
        (
            format!("{}/crds/flowlogconfigurations.flowlogd.dev.yaml", render::CHART),
            flowlogd::config::crd_yaml(),
        ),
    ])
}

/// Exit code where the API server is missing.
pub const SERVER_MISSING: u8 = 3;

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut is_good = true;
    for (name, content) in render::files()? {
        is_good &= settle(name, &content, arguments.check)?;
    }
    if !arguments.check {
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(is_good, "stale files: run cargo xtask deploy");

    let helm = python::program(python::HELM)?;
    netns::run(
        Command::new(&helm).args(["lint", "--strict", "--quiet"]).arg(render::root().join(render::CHART)),
        None,
    )?;
    println!("helm lint: good");
    println!("values that the schema refuses: {} of {}", refusals::check()?, refusals::VALUES.len());

    let Some(assets) = apiserver::assets() else {
        println!(
            "SKIPPED manifests against a real API server: KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver"
        );
        return Ok(SERVER_MISSING.into());
    };
    server::check(&assets)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use super::*;

    /// What is installed is what was released.
    #[test]
    fn one_version_everywhere() {
        let version = env!("CARGO_PKG_VERSION");
        let read = |name: &str| fs::read_to_string(render::root().join(name)).unwrap();
        let chart: Value = serde_saphyr::from_str(&read("deploy/helm/flowlogd/Chart.yaml")).unwrap();
        assert_eq!((chart["version"].as_str(), chart["appVersion"].as_str()), (Some(version), Some(version)));
        let base: Value = serde_saphyr::from_str(&read("deploy/base/kustomization.yaml")).unwrap();
        assert_eq!(base["images"][0]["newTag"], version);
    }
}
