//! What the guest runs: the agent's binary and the kernel cases, built as everybody builds them, stripped and packed.
//!
//! In: the workspace. Out: an archive with `/payload/flowlogd`, `/payload/kernel`, the shared libraries that the two
//! want, and `/payload/arguments` (the chosen cases, one a line). Dynamic binaries with their libraries, not static
//! ones: they are the very files of an ordinary build, so nothing is compiled twice.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::architecture::Architecture;
use super::foreign::cross_build;
use super::initramfs::{Archive, add_with_libraries};
use super::tools::output;

use crate::workspace::cargo;

/// Builds and packs the payload; gives the archive's path.
///
/// # Errors
/// When the build fails, or a built file cannot be read.
pub fn build(
    architecture: Architecture,
    root: &Path,
    out: &Path,
    release: bool,
    cases: &[String],
) -> Result<PathBuf> {
    let mut archive = Archive::new();
    for (name, selection) in [("flowlogd", ["--bin", "flowlogd"]), ("kernel", ["--test", "kernel"])] {
        let messages = match architecture {
            Architecture::Amd64 => native_build(&selection, release)?,
            Architecture::Arm64 => cross_build(root, &selection, release)?,
        };
        let built = executable(name, &messages)?;
        let stripped = out.join(format!("{name}-{}", architecture.debian()));
        let strip = match architecture {
            Architecture::Amd64 => "strip",
            Architecture::Arm64 => "aarch64-linux-gnu-strip",
        };
        output(Command::new(strip).arg("--strip-all").arg("-o").arg(&stripped).arg(&built))?;
        add_with_libraries(&mut archive, &stripped, &format!("payload/{name}"))?;
    }
    let chosen: String = cases.iter().map(|case| format!("{case}\n")).collect();
    archive.file("payload/arguments", 0o644, chosen.as_bytes());
    let path = out.join(format!("payload-{}.cpio", architecture.debian()));
    archive.write(&path)?;
    Ok(path)
}

/// Lets cargo build one target; gives its messages.
fn native_build(selection: &[&str], release: bool) -> Result<String> {
    let mut command = cargo();
    command.args(["build", "--quiet", "--package", "flowlogd", "--message-format=json-render-diagnostics"]);
    command.args(selection);
    if release {
        command.arg("--release");
    }
    let done = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !done.status.success() {
        bail!("building {} failed", selection.join(" "));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Where cargo says that it put the executable of a target.
fn executable(name: &str, messages: &str) -> Result<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo named no executable of {name}"))
}
