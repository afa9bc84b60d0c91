//! `cargo xtask deploy`: the manifests of every way to install, from one truth, and their proof.
//!
//! In: the chart, Helm. Out: `deploy/base/`, `deploy/overlays/`; with `--check` nothing is
//! written: stale files fail, and so does what Helm's linter, the values' schema or a real API server refuses. What
//! always holds: the chart is the truth for kustomize too. Exit code 3: all is good that could be looked at, but there is
//! no API server here (`KUBEBUILDER_ASSETS`).

mod collected;
mod refusals;
pub mod render;
mod rights;
mod server;
mod shippers;
mod values;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::ensure;

use crate::codegen::settle;
use crate::netns::tool;
use crate::workspace::root;
use crate::{apiserver, netns, packages, python};

#[derive(clap::Args)]
pub struct Arguments {
    /// Write nothing; fail if a tracked file is stale or a manifest is refused.
    #[arg(long)]
    check: bool,
    /// With --check: also let an agent run there, and hold every right to what it asks for
    #[arg(long, requires = "check")]
    rights: bool,
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
        Command::new(&helm).args(["lint", "--strict", "--quiet"]).arg(root().join(render::CHART)),
        None,
    )?;
    println!("helm lint: good");
    println!("values that the schema refuses: {} of {}", refusals::check()?, refusals::VALUES.len());

    println!("collectors and the rights that each takes: {} renderings", collected::check()?);

    packages::install_missing(&packages::STORES, packages::rsyslog_elasticsearch().as_slice())?;
    let at = |name: &str| root().join("deploy").join(name);
    netns::run(tool("promtool").args(["check", "rules"]).arg(at("dashboards/alerts.yaml")), None)?;
    netns::run(tool("promtool").args(["test", "rules"]).arg(at("dashboards/alerts.test.yaml")), None)?;
    println!("alert rules: good, and each fires on what it is for");
    shippers::check()?;
    rsyslog(&at("shippers/rsyslog.conf"))?;
    println!("shippers: well formed, rsyslog's by its own word");

    let Some(assets) = apiserver::assets() else {
        println!(
            "SKIPPED manifests against a real API server: KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver"
        );
        return Ok(SERVER_MISSING.into());
    };
    server::check(&assets, arguments.rights)?;
    Ok(ExitCode::SUCCESS)
}

/// rsyslog reads the file and says what is wrong with it, in a configuration as Debian's, which names a work directory.
fn rsyslog(file: &Path) -> anyhow::Result<()> {
    let main = tempfile::Builder::new().suffix(".conf").tempfile()?;
    let include = format!(
        "global(workDirectory=\"/var/spool/rsyslog\")\ninclude(file=\"{}\")\n",
        file.canonicalize()?.display()
    );
    fs::write(main.path(), include)?;
    netns::run(tool("rsyslogd").args(["-N1", "-f"]).arg(main.path()), None).map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// What is installed is what was released.
    #[test]
    fn one_version_everywhere() {
        let version = env!("CARGO_PKG_VERSION");
        let read = |name: &str| fs::read_to_string(root().join(name)).unwrap();
        let chart: Value = serde_saphyr::from_str(&read("deploy/helm/flowlogd/Chart.yaml")).unwrap();
        assert_eq!((chart["version"].as_str(), chart["appVersion"].as_str()), (Some(version), Some(version)));
        let base: Value = serde_saphyr::from_str(&read("deploy/base/kustomization.yaml")).unwrap();
        assert_eq!(base["images"][0]["newTag"], version);
    }
}
