//! What the demo needs of the machine: root, four tools, the agent's binary.
//!
//! In: nothing. Out: an error that says what to do, or a machine on which the demo can run, and the path of `flowlogd`.
//! What always holds: packages are installed only for tools that are missing, through apt, and never in silence.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use crate::netns::{search_path, tool};

/// A tool and the Debian package that has it.
const TOOLS: [(&str, &str); 4] =
    [("ip", "iproute2"), ("nft", "nftables"), ("conntrack", "conntrack"), ("setpriv", "util-linux")];

/// # Errors
/// Not root, or tools that are missing and cannot be installed.
pub fn prepare() -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces and reads connection tracking, which only root may: run it from a root shell (sudo -s, then cargo xtask demo), or as root in a virtual machine or a container with --privileged"
    );
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    let by_hand = format!("install the packages {} and run the demo again", packages.join(", "));
    if find("apt-get").is_none() {
        bail!("{} not found, and no apt-get to install with: {by_hand}", names(&missing));
    }
    eprintln!("demo: {} not found: installing {} with apt-get", names(&missing), packages.join(", "));
    // The lists of a fresh machine may be empty or old: they are fetched only where it does not go without.
    if !apt(&["install", "--yes", "--no-install-recommends"], &packages)? {
        apt(&["update"], &[])?;
        ensure!(
            apt(&["install", "--yes", "--no-install-recommends"], &packages)?,
            "apt-get failed: {by_hand}"
        );
    }
    let missing = self::missing();
    ensure!(missing.is_empty(), "{} still not found: {by_hand}", names(&missing));
    Ok(())
}

fn missing() -> Vec<(&'static str, &'static str)> {
    TOOLS.into_iter().filter(|(tool, _)| find(tool).is_none()).collect()
}

fn names(tools: &[(&str, &str)]) -> String {
    tools.iter().map(|(tool, _)| *tool).collect::<Vec<_>>().join(", ")
}

/// The tool's full path.
pub fn find(tool: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|folder| folder.join(tool)).find(|file| file.is_file())
}

/// Its output is progress, and goes to stderr.
fn apt(arguments: &[&str], packages: &[&str]) -> anyhow::Result<bool> {
    let status = tool("apt-get")
        .arg("-qq")
        .args(arguments)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .context("cannot start apt-get")?;
    Ok(status.success())
}

/// Builds the agent as this very command was built, and says where it is.
pub fn build_agent() -> anyhow::Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--locked", "--package", "flowlogd", "--bin", "flowlogd"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
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
