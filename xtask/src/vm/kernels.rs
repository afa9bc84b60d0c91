//! Debian's kernels, of several suites, without touching the system's apt.
//!
//! In: a suite. Out: a folder with `vmlinuz` and a module tree with its `modules.dep`.
//! Found by the meta package `linux-image-cloud-<arch>`, whose dependencies name the packages of today's point release
//! (one image package before 7.x; then `linux-binary-*` has vmlinuz, `linux-modules-*` the modules and the image is an
//! empty shell: so everything named so is fetched, and the two things are looked for in what came out).
//!
//! What always holds: apt runs with lists, cache and state of our own, one set a suite, so that equal package names of
//! two suites cannot meet; the mirror is the one that this machine's own sources name; packages are checked against
//! Debian's keyring. A kernel once unpacked is used for a week without asking, and for longer when nobody answers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::architecture::Architecture::{self, Amd64, Arm64};
use super::tools::output;

/// Debian's own keys.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// One kernel that the cases run on.
pub struct Suite {
    /// The kernel's series.
    pub series: &'static str,
    pub architecture: Architecture,
    /// Debian's name of the suite.
    pub name: &'static str,
    /// Newer point releases may be found only in its security archive.
    pub with_security: bool,
    /// It is past its end of life and may vanish from the mirrors: then it is skipped, loudly.
    pub may_be_missing: bool,
}

/// Oldest first.
pub const SUITES: &[Suite] = &[
    Suite {
        series: "5.10",
        architecture: Amd64,
        name: "bullseye",
        with_security: true,
        may_be_missing: true,
    },
    Suite {
        series: "6.1",
        architecture: Amd64,
        name: "bookworm",
        with_security: false,
        may_be_missing: false,
    },
    Suite {
        series: "6.12",
        architecture: Amd64,
        name: "trixie",
        with_security: false,
        may_be_missing: false,
    },
    Suite {
        series: "7",
        architecture: Amd64,
        name: "trixie-backports",
        with_security: false,
        may_be_missing: false,
    },
    Suite {
        series: "6.12",
        architecture: Arm64,
        name: "trixie",
        with_security: false,
        may_be_missing: false,
    },
];

impl Suite {
    /// No wish chooses all; `6.1` is not `6.12`.
    pub fn is_chosen(&self, architectures: &[Architecture], wishes: &[String]) -> bool {
        if !architectures.contains(&self.architecture) {
            return false;
        }
        wishes.is_empty()
            || wishes.iter().any(|wish| wish == self.series || wish.starts_with(&format!("{}.", self.series)))
    }
}

/// An unpacked kernel.
pub struct Kernel {
    pub release: String,
    pub vmlinuz: PathBuf,
    /// `…/lib/modules/<release>`, with `modules.dep`.
    pub modules: PathBuf,
}

/// The newest kernel of a suite, from the cache when it is fresh.
///
/// # Errors
/// When nothing is cached and the mirror does not give it.
pub fn obtain(suite: &Suite, cache: &Path, mirror: Option<&str>, refresh: bool) -> Result<Kernel> {
    let folder = folder(suite, cache);
    // Several clones may share the cache: one fetches, the others wait for what it brings.
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let lock = fs::File::create(folder.join("lock")).context("cannot create the cache's lock file")?;
    lock.lock().context("cannot lock the kernel cache")?;
    let current = folder.join("current");
    let age = fs::metadata(&current)
        .and_then(|entry| entry.modified())
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    if !refresh
        && age.is_some_and(|age| age < FRESH)
        && let Ok(kernel) = unpacked(&current)
    {
        return Ok(kernel);
    }
    match fetch(suite, &folder, mirror) {
        Ok(()) => unpacked(&current),
        Err(error) => match unpacked(&current) {
            Ok(kernel) => {
                eprintln!("vm: {}: using the cached kernel, for no newer can be had: {error:#}", suite.name);
                Ok(kernel)
            }
            Err(_) => Err(error.context(format!("no kernel of suite {}", suite.name))),
        },
    }
}

/// What is kept of a suite.
pub fn folder(suite: &Suite, cache: &Path) -> PathBuf {
    cache.join(format!("{}-{}", suite.name, suite.architecture.debian()))
}

fn fetch(suite: &Suite, folder: &Path, mirror: Option<&str>) -> Result<()> {
    let apt = Apt::new(folder, suite, mirror)?;
    apt.run("apt-get", &["update", "-q"])?;
    let meta = format!("linux-image-cloud-{}", suite.architecture.debian());
    let mut packages = BTreeSet::new();
    let mut open = vec![meta];
    while let Some(package) = open.pop() {
        for dependency in apt.dependencies(&package)? {
            let carries = ["linux-image-", "linux-modules-", "linux-binary-"];
            if carries.iter().any(|prefix| dependency.starts_with(prefix))
                && packages.insert(dependency.clone())
            {
                open.push(dependency);
            }
        }
    }
    let stamp: String = packages.iter().map(|package| format!("{package}\n")).collect();
    let current = folder.join("current");
    if fs::read_to_string(current.join("packages")).is_ok_and(|had| had == stamp)
        && unpacked(&current).is_ok()
    {
        fs::write(current.join("packages"), &stamp)?;
        return touch(&current);
    }
    eprintln!("vm: fetching {}", packages.iter().cloned().collect::<Vec<_>>().join(" "));
    let fresh = folder.join("fresh");
    let _ = fs::remove_dir_all(&fresh);
    let debs = fresh.join("debs");
    fs::create_dir_all(&debs)?;
    let mut command = apt.command("apt-get");
    command.current_dir(&debs).args(["download", "-q"]).args(&packages);
    output(&mut command)?;
    for deb in fs::read_dir(&debs)? {
        output(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(&fresh))?;
    }
    fs::remove_dir_all(&debs)?;
    if !fresh.join("lib").exists() {
        // Newer packages rely on /lib being a link.
        std::os::unix::fs::symlink("usr/lib", fresh.join("lib")).context("cannot link lib")?;
    }
    let kernel = unpacked_without_index(&fresh)?;
    // Inflated here once: in the guest it would cost every run, on an emulated processor.
    let mut packed = Vec::new();
    collect(&kernel.modules, &mut packed, ".ko.xz")?;
    for some in packed.chunks(200) {
        output(Command::new("xz").arg("--decompress").args(some))?;
    }
    output(Command::new("depmod").arg("-b").arg(&fresh).arg(&kernel.release))?;
    fs::write(fresh.join("packages"), stamp)?;
    let _ = fs::remove_dir_all(&current);
    fs::rename(&fresh, &current).with_context(|| format!("cannot put {} in place", current.display()))?;
    touch(&current)
}

/// The cache's age is that of this folder: a file written and removed in it renews it.
fn touch(folder: &Path) -> Result<()> {
    let mark = folder.join(".asked");
    fs::write(&mark, "")?;
    fs::remove_file(&mark)?;
    Ok(())
}

fn unpacked(folder: &Path) -> Result<Kernel> {
    let kernel = unpacked_without_index(folder)?;
    if !kernel.modules.join("modules.dep").is_file() {
        bail!("{} has no modules.dep", kernel.modules.display());
    }
    Ok(kernel)
}

fn unpacked_without_index(folder: &Path) -> Result<Kernel> {
    let trees = folder.join("lib/modules");
    let modules = fs::read_dir(&trees)
        .with_context(|| format!("nothing in {}", trees.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.join("kernel").is_dir())
        .with_context(|| format!("no modules in {}", trees.display()))?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let vmlinuz = [folder.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("no vmlinuz of {release} in {}", folder.display()))?;
    Ok(Kernel { release, vmlinuz, modules })
}

/// Files below a folder whose name ends so.
fn collect(folder: &Path, into: &mut Vec<PathBuf>, ending: &str) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), into, ending)?;
        } else if entry.file_name().to_string_lossy().ends_with(ending) {
            into.push(entry.path());
        }
    }
    Ok(())
}

/// apt with folders of its own.
pub struct Apt {
    pub architecture: Architecture,
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    /// # Errors
    /// When the folder cannot be written, or no mirror is known.
    pub fn new(folder: &Path, suite: &Suite, mirror: Option<&str>) -> Result<Self> {
        let architecture = suite.architecture;
        let apt = folder.join("apt");
        for part in ["lists/partial", "cache/archives/partial", "state"] {
            fs::create_dir_all(apt.join(part)).with_context(|| format!("cannot create {}", apt.display()))?;
        }
        let archives = match mirror {
            Some(uri) => {
                Archives { main: uri.to_owned(), security: format!("{}-security", uri.trim_end_matches('/')) }
            }
            None => Archives::of_this_machine()?,
        };
        let mut sources = format!("deb [signed-by={KEYRING}] {} {} main\n", archives.main, suite.name);
        if suite.with_security {
            sources +=
                &format!("deb [signed-by={KEYRING}] {} {}-security main\n", archives.security, suite.name);
        }
        fs::write(apt.join("sources.list"), sources)?;
        fs::write(apt.join("state/status"), "")?;
        let at = |part: &str| apt.join(part).display().to_string();
        let options = vec![
            format!("Dir::Etc::SourceList={}", at("sources.list")),
            "Dir::Etc::SourceParts=-".to_owned(),
            "Dir::Etc::Preferences=-".to_owned(),
            "Dir::Etc::PreferencesParts=-".to_owned(),
            format!("Dir::State={}", at("state")),
            format!("Dir::State::status={}", at("state/status")),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            format!("APT::Architecture={}", architecture.debian()),
            format!("APT::Architectures={}", architecture.debian()),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Check-Valid-Until=false".to_owned(), // suites past their end of life are frozen
        ];
        Ok(Self { architecture, folder: apt, options })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        output(self.command(program).args(arguments))
    }

    /// Fetches packages with everything that they depend on; gives the files.
    ///
    /// # Errors
    /// When apt cannot resolve or fetch them.
    pub fn download_with_dependencies(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        self.run("apt-get", &["update", "-q"])?;
        let mut command = self.command("apt-get");
        command.args([
            "install",
            "-q",
            "-y",
            "--download-only",
            "--no-install-recommends",
            "-o",
            "Debug::NoLocking=1",
        ]);
        output(command.args(packages))?;
        let mut debs = Vec::new();
        collect(&self.folder.join("cache/archives"), &mut debs, ".deb")?;
        Ok(debs)
    }

    /// Names of the packages that the newest version of a package depends on.
    fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let text = self.run("apt-cache", &["show", "--no-all-versions", package])?;
        Ok(text
            .lines()
            .filter_map(|line| line.strip_prefix("Depends: "))
            .flat_map(|list| list.split([',', '|']))
            .filter_map(|entry| entry.split_whitespace().next())
            .map(str::to_owned)
            .collect())
    }
}

/// Where Debian's packages come from.
#[derive(Debug, PartialEq, Eq)]
struct Archives {
    main: String,
    security: String,
}

impl Archives {
    /// Those that this machine's own sources name.
    fn of_this_machine() -> Result<Self> {
        let mut texts = Vec::new();
        let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().filter_map(Result::ok);
        let mut paths: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
        paths.sort();
        paths.insert(0, PathBuf::from("/etc/apt/sources.list"));
        for path in paths {
            texts.extend(fs::read_to_string(path));
        }
        let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let codename = system
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .map(|name| name.trim_matches('"').to_owned())
            .context("/etc/os-release names no suite: give a Debian mirror with --mirror")?;
        Self::in_sources(&texts, &codename).with_context(|| {
            format!("no archive of suite {codename} in this machine's apt sources: give a Debian mirror with --mirror")
        })
    }

    /// Both formats of apt: one line a source, and paragraphs of fields.
    fn in_sources(texts: &[String], codename: &str) -> Option<Self> {
        let mut found: Vec<(String, String)> = Vec::new();
        for text in texts {
            for line in text.lines().filter_map(|line| line.strip_prefix("deb ")) {
                let line = line.trim();
                let rest = if line.starts_with('[') {
                    line.split_once(']').map_or("", |(_, rest)| rest)
                } else {
                    line
                };
                let mut words = rest.split_whitespace();
                if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
                    found.push((uri.to_owned(), suite.to_owned()));
                }
            }
            for paragraph in text.split("\n\n") {
                let field = |name: &str| -> Vec<String> {
                    let mut values = paragraph.lines().filter_map(|line| line.split_once(':'));
                    let value = values.find(|(key, _)| key.eq_ignore_ascii_case(name));
                    value.map_or_else(Vec::new, |(_, v)| v.split_whitespace().map(str::to_owned).collect())
                };
                for uri in field("URIs") {
                    found.extend(field("Suites").into_iter().map(|suite| (uri.clone(), suite)));
                }
            }
        }
        let of = |suite: &str| found.iter().find(|(_, name)| name == suite).map(|(uri, _)| uri.clone());
        let main = of(codename)?;
        let security = of(&format!("{codename}-security"))
            .unwrap_or_else(|| format!("{}-security", main.trim_end_matches('/')));
        Some(Self { main, security })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_read_from_both_formats() {
        let lines = "# x\ndeb [signed-by=/k arch=amd64] http://m.example/debian bookworm main\n\
                     deb http://m.example/sec bookworm-security main\n";
        let paragraphs = "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\n\n\
                          Types: deb\n# why\nURIs: http://m.example/sec\nSuites: bookworm-security\n";
        let wanted =
            Archives { main: "http://m.example/debian".into(), security: "http://m.example/sec".into() };
        for text in [lines, paragraphs] {
            assert_eq!(Archives::in_sources(&[text.to_owned()], "bookworm").as_ref(), Some(&wanted));
            assert_eq!(Archives::in_sources(&[text.to_owned()], "trixie"), None);
        }
    }

    #[test]
    fn a_series_is_not_its_neighbour() {
        let chosen = |wish: &str| -> Vec<&str> {
            SUITES
                .iter()
                .filter(|suite| suite.is_chosen(&[Amd64], &[wish.to_owned()]))
                .map(|suite| suite.series)
                .collect()
        };
        assert_eq!(chosen("6.1"), ["6.1"]);
        assert_eq!(chosen("6.12"), ["6.12"]);
        assert_eq!(chosen("7.3"), ["7"]);
        assert!(chosen("4.19").is_empty());
    }
}
