//! The programs that the rig runs: started with the error that says what to do, installed when they are missing.
//!
//! In: nothing. Out: every program of `NEEDED` is there, or an error that names the command which would bring it.
//! What always holds: the system's packages are touched only to install what is missing, and only as root.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::architecture::Architecture;
use crate::packages;
pub use crate::packages::find;

/// Program, and the Debian package that brings it; those that every guest needs.
const NEEDED: &[(&str, &str)] =
    &[("modprobe", "kmod"), ("depmod", "kmod"), ("xz", "xz-utils"), ("dpkg-deb", "dpkg")];

/// Installs what `NEEDED` and these architectures lack.
///
/// # Errors
/// When something is missing and cannot be installed; says which command would.
pub fn install_missing(architectures: &[Architecture]) -> Result<()> {
    let of_architectures = architectures.iter().flat_map(|architecture| architecture.needs());
    let needed: Vec<_> = NEEDED.iter().chain(of_architectures).copied().collect();
    let keyring = packages::package_of_file(super::kernels::KEYRING, "debian-archive-keyring");
    packages::install_missing(&needed, keyring.as_slice())
}

/// Runs a program to its end and gives its stdout.
///
/// # Errors
/// When it cannot be started or fails; the error carries the tail of what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let line = format!("{name} {}", arguments.join(" "));
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if !done.status.success() {
        let said = [done.stdout.as_slice(), done.stderr.as_slice()].concat();
        let said = String::from_utf8_lossy(&said);
        let tail: Vec<&str> = said.lines().rev().take(12).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("`{line}` failed ({}):\n{}", done.status, tail.join("\n"));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
