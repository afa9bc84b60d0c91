//! What the demo needs of the machine: root, four tools, the agent's binary.
//!
//! In: nothing. Out: an error that says what to do, or a machine on which the demo can run, and the path of `flowlogd`.
//! Not here: how packages are installed (`packages.rs`).

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, ensure};

use crate::packages;
use crate::workspace::cargo;

/// # Errors
/// Not root, or tools that are missing and cannot be installed.
pub fn prepare() -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this makes network namespaces and reads connection tracking, which only root may: run it from a root shell (sudo -s), or as root in a virtual machine or a container with --privileged"
    );
    packages::install_missing(&packages::NODE, &[])
}

/// Builds the agent as this very command was built, and says where it is.
pub fn build_agent() -> anyhow::Result<PathBuf> {
    build_agent_as(&[])
}

/// The same with more flags of cargo's, such as `--release`.
pub fn build_agent_as(flags: &[&str]) -> anyhow::Result<PathBuf> {
    let output = cargo()
        .args(["build", "--locked", "--package", "flowlogd", "--bin", "flowlogd"])
        .arg("--message-format=json-render-diagnostics")
        .args(flags)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "flowlogd does not build: see above");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .next_back()
        .context("cargo did not say where it put flowlogd")
}
