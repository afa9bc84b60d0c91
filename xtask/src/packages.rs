//! Programs of other people that the verbs run, and the Debian packages that bring them.
//!
//! In: program and package names. Out: every program is there, or an error that names the command which would bring
//! it. What always holds: packages are installed only for programs that are missing, as root, through apt, and never
//! in silence.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};

use crate::netns::{search_path, tool};

/// A program, and the Debian package that has it.
pub type Needed = (&'static str, &'static str);

/// What builds and watches nodes of network namespaces.
pub const NODE: [Needed; 4] =
    [("ip", "iproute2"), ("nft", "nftables"), ("conntrack", "conntrack"), ("setpriv", "util-linux")];

/// A DNS server that answers real questions.
pub const DNS: [Needed; 1] = [("dnsmasq", "dnsmasq-base")];

/// A terminal that says what stands on it.
pub const TERMINAL: [Needed; 1] = [("tmux", "tmux")];

/// What ships lines, and what watches the agent's metrics.
pub const STORES: [Needed; 2] = [("promtool", "prometheus"), ("rsyslogd", "rsyslog")];

/// rsyslog's module for Elasticsearch's API is a package of its own.
pub fn rsyslog_elasticsearch() -> Option<&'static str> {
    let folder = format!("/usr/lib/{}-linux-gnu/rsyslog", std::env::consts::ARCH);
    package_of_file(&format!("{folder}/omelasticsearch.so"), "rsyslog-elasticsearch")
}

/// What tests run as the processes at the two ends of a connection.
pub const PROCESSES: [Needed; 6] = [
    ("curl", "curl"),
    ("python3", "python3"),
    ("nc", "netcat-openbsd"),
    ("iperf3", "iperf3"),
    ("dnsmasq", "dnsmasq-base"),
    ("unshare", "util-linux"),
];

/// Where a program is, looking also where root's programs are.
pub fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path()).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Installs what is missing; `more` are packages without a program of their own.
///
/// # Errors
/// Something is missing and cannot be installed: says which command would bring it.
pub fn install_missing(needed: &[Needed], more: &[&'static str]) -> anyhow::Result<()> {
    let missing =
        || -> Vec<&Needed> { needed.iter().filter(|(program, _)| find(program).is_none()).collect() };
    let mut packages: Vec<&str> =
        missing().iter().map(|(_, package)| *package).chain(more.iter().copied()).collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let by_hand = format!("run as root: apt-get install --no-install-recommends {}", packages.join(" "));
    ensure!(
        find("apt-get").is_some(),
        "missing, and there is no apt-get here: the packages {}",
        packages.join(" ")
    );
    eprintln!("installing {}", packages.join(" "));
    // The lists of a fresh machine may be empty or old: they are fetched only where it does not go without.
    if !apt(&["install", "--yes", "--no-install-recommends"], &packages)? {
        apt(&["update"], &[])?;
        ensure!(
            apt(&["install", "--yes", "--no-install-recommends"], &packages)?,
            "apt-get failed: {by_hand}"
        );
    }
    let still: Vec<&str> = missing().iter().map(|(program, _)| *program).collect();
    ensure!(still.is_empty(), "{} still not found: {by_hand}", still.join(", "));
    Ok(())
}

/// The package is only needed where its file is missing.
pub fn package_of_file(file: &str, package: &'static str) -> Option<&'static str> {
    (!Path::new(file).exists()).then_some(package)
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
