//! The programs that the rig runs: started with the error that says what to do, installed when they are missing.
//!
//! In: nothing. Out: every program of `NEEDED` is there, or an error that names the command which would bring it.
//! What always holds: the system's packages are touched only to install what is missing, and only as root.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::architecture::Architecture;

/// Program, and the Debian package that brings it; those that every guest needs.
const NEEDED: &[(&str, &str)] =
    &[("modprobe", "kmod"), ("depmod", "kmod"), ("xz", "xz-utils"), ("dpkg-deb", "dpkg")];

/// Installs what `NEEDED` and these architectures lack.
///
/// # Errors
/// When something is missing and cannot be installed; says which command would.
pub fn install_missing(architectures: &[Architecture]) -> Result<()> {
    let of_architectures = architectures.iter().flat_map(|architecture| architecture.needs());
    let needed = NEEDED.iter().chain(of_architectures);
    let mut packages: Vec<&str> =
        needed.filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    packages.dedup();
    if !Path::new(super::kernels::KEYRING).exists() {
        packages.push("debian-archive-keyring");
    }
    if packages.is_empty() {
        return Ok(());
    }
    let remedy = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if find("apt-get").is_none() {
        bail!("missing programs of the Debian packages {}: install them by hand", packages.join(" "));
    }
    eprintln!("vm: installing {}", packages.join(" "));
    let install = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.args(["install", "-y", "-q", "--no-install-recommends"]).args(&packages);
        output(&mut command)
    };
    if install().is_err() {
        // A fresh machine has no package lists yet.
        output(Command::new("apt-get").args(["update", "-q"]))
            .with_context(|| format!("as root: {remedy}"))?;
        install().with_context(|| format!("as root: {remedy}"))?;
    }
    Ok(())
}

/// Where a program is, looking also where root's programs are.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
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
