//! `cargo xtask supply`: what the agent is made of, and whether others can build it.
//!
//! In: the lock file, `.deny.toml`, the workspace's packages. Out: licences, bans and sources as cargo-deny judges them;
//! the packages packed, and the agent built from its archive alone with this toolchain. With `--advisories` also known
//! vulnerabilities, for which cargo-deny fetches a database from the network. What always holds: cargo-deny is installed
//! where it is missing, at the version that is named here, and never in silence.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::workspace::{cargo, root};

const DENY: &str = "cargo-deny";
const DENY_VERSION: &str = "0.20.2";

#[derive(clap::Args)]
pub struct Arguments {
    /// Also check for known vulnerabilities (needs the network for their database)
    #[arg(long)]
    advisories: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    install(DENY, DENY_VERSION)?;
    let mut checks = vec!["licenses", "bans", "sources"];
    if arguments.advisories {
        checks.push("advisories");
    } else {
        println!("known vulnerabilities are not checked: cargo xtask supply --advisories");
    }
    let mut deny = cargo();
    deny.args(["deny", "--all-features", "--config", ".deny.toml", "check", "--hide-inclusion-graph"])
        .args(checks);
    ensure!(deny.status()?.success(), "cargo deny: see above; what is allowed stands in .deny.toml");
    package()?;
    println!("licences, bans and sources are good; the packages build from their archives");
    Ok(ExitCode::SUCCESS)
}

/// Packs the packages, and builds the agent from its archive: a file that only the checkout has is missing there.
/// Cargo's own verification would build every dependency once more; this shares what the workspace has built.
fn package() -> Result<()> {
    let mut pack = cargo();
    pack.args(["package", "--package", "flowlogd-ebpf", "--package", "flowlogd", "--no-verify", "--locked"]);
    ensure!(pack.args(["--allow-dirty", "--quiet"]).status()?.success(), "cargo package: see above");
    let folder = tempfile::Builder::new().prefix("flowlogd-packages-").tempdir()?;
    let packed = root().join("target/package");
    let version = env!("CARGO_PKG_VERSION");
    for name in ["flowlogd-ebpf", "flowlogd"] {
        let archive = packed.join(format!("{name}-{version}.crate"));
        let tar = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(folder.path()).status()?;
        ensure!(tar.success(), "{} cannot be unpacked", archive.display());
    }
    let unpacked = |name: &str| folder.path().join(format!("{name}-{version}"));
    let kernel_side = format!("patch.crates-io.flowlogd-ebpf.path={:?}", unpacked("flowlogd-ebpf"));
    let mut check = cargo();
    check.current_dir(unpacked("flowlogd")).args(["check", "--quiet", "--config", &kernel_side]);
    // As the workspace's own profile says, so that what it has built serves here.
    for setting in ["profile.dev.debug='line-tables-only'", "profile.dev.package.'*'.debug=false"] {
        check.args(["--config", setting]);
    }
    check.env("CARGO_TARGET_DIR", packed.join(".."));
    ensure!(check.status()?.success(), "the agent cannot be built from its package alone");
    Ok(())
}

/// A cargo subcommand of other people, at this version or any that is there.
pub fn install(name: &str, version: &str) -> Result<()> {
    let subcommand = name.strip_prefix("cargo-").unwrap_or(name);
    let there = cargo().args([subcommand, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    eprintln!("installing {name} {version}");
    // Not into this workspace's folder for builds, and not as this workspace's flags say.
    let status = cargo()
        .current_dir(std::env::temp_dir())
        .args(["install", "--locked", "--quiet", &format!("{name}@{version}")])
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .status()
        .context("cannot run cargo install")?;
    ensure!(status.success(), "{name} cannot be installed: cargo install --locked {name}@{version}");
    Ok(())
}
