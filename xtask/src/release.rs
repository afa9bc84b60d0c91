//! `cargo xtask release`: the static binary that images are made of, with its bill of materials.
//!
//! In: the tree, the stable toolchain. Out: in `target/dist/` the binary, its SHA-256 sum and a CycloneDX bill of materials;
//! with `--check` it is built a second time from another folder, and the two must be the same byte for byte.
//! What always holds: the binary asks for no library of the machine that it runs on (the C library is linked in); paths
//! of the machine that built it are not in it, nor in the bill. Source date, user and host have no say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::supply::install;
use crate::workspace::{cargo, root};

const BILL: &str = "cargo-cyclonedx";
const BILL_VERSION: &str = "0.5.9";

#[derive(clap::Args)]
pub struct Arguments {
    /// Build it again elsewhere and compare
    #[arg(long)]
    check: bool,
    /// Leave out the bill of materials
    #[arg(long)]
    no_sbom: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = root();
    let dist = root.join("target/dist");
    fs::create_dir_all(&dist)?;
    let built = build(&root, &root.join("target/release-static"))?;
    let binary = dist.join("flowlogd");
    fs::copy(&built, &binary).context("cannot copy the binary into target/dist")?;
    is_static(&binary)?;
    let sum = sha256(&binary)?;
    fs::write(dist.join("flowlogd.sha256"), format!("{sum}  flowlogd\n"))?;
    println!("target/dist/flowlogd: {} bytes, static, sha256 {sum}", fs::metadata(&binary)?.len());
    if !arguments.no_sbom {
        bill_of_materials(&root, &dist)?;
    }
    if arguments.check {
        let elsewhere = tempfile::Builder::new().prefix("flowlogd-release-").tempdir()?;
        let tree = elsewhere.path().join("another/tree");
        export(&root, &tree)?;
        let again = sha256(&build(&tree, &elsewhere.path().join("objects"))?)?;
        ensure!(again == sum, "not reproducible: built from {} its sum is {again}", tree.display());
        println!("reproducible: the same bytes from another folder");
    }
    Ok(ExitCode::SUCCESS)
}

fn build(tree: &Path, objects: &Path) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let mut flags = format!("-C target-feature=+crt-static --remap-path-prefix={}=/flowlogd", tree.display());
    if let Some(home) = home {
        flags += &format!(" --remap-path-prefix={}=/cargo", home.display());
    }
    let status = cargo()
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "flowlogd",
            "--bin",
            "flowlogd",
            "--target",
            &target,
        ])
        .arg("--target-dir")
        .arg(objects)
        .env("RUSTFLAGS", flags)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(tree)
        .status()?;
    ensure!(status.success(), "the release build failed");
    Ok(objects.join(target).join("release/flowlogd"))
}

/// An ELF file without an interpreter (`PT_INTERP`) needs nothing of the machine but its kernel.
fn is_static(binary: &Path) -> Result<()> {
    let output = Command::new("readelf").arg("--program-headers").arg(binary).output();
    let output = output.context("readelf (binutils) tells whether the binary is static")?;
    let headers = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && headers.contains("LOAD"), "{} is no ELF file", binary.display());
    ensure!(!headers.contains("INTERP"), "{} needs a dynamic linker", binary.display());
    Ok(())
}

fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output().context("cannot run sha256sum (coreutils)")?;
    let text = String::from_utf8(output.stdout)?;
    let sum = text.split_whitespace().next().map(str::to_owned);
    sum.filter(|sum| sum.len() == 64).with_context(|| format!("no sum of {}", file.display()))
}

/// The tracked files as they are committed.
fn export(root: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    let archive = into.with_extension("tar");
    let git = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(["archive", "--output"])
        .arg(&archive)
        .arg("HEAD")
        .status()?;
    ensure!(git.success(), "git archive failed: --check needs a checkout");
    let tar = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(into).status()?;
    ensure!(tar.success(), "tar cannot unpack the tree");
    Ok(())
}

fn bill_of_materials(root: &Path, dist: &Path) -> Result<()> {
    install(BILL, BILL_VERSION)?;
    let mut cyclonedx = cargo();
    // A bill has a time: that of the tree, where it is a checkout.
    let committed = Command::new("git").arg("-C").arg(root).args(["log", "-1", "--format=%ct"]).output();
    if let Some(output) = committed.ok().filter(|output| output.status.success()) {
        cyclonedx.env("SOURCE_DATE_EPOCH", String::from_utf8(output.stdout)?.trim());
    }
    let status = cyclonedx
        .args([
            "cyclonedx",
            "--format",
            "json",
            "--describe",
            "binaries",
            "--quiet",
            "--manifest-path",
            "agent/Cargo.toml",
        ])
        .status()?;
    ensure!(status.success(), "cargo cyclonedx failed");
    // It writes beside each package's manifest.
    let mut bill = None;
    for package in ["agent", "agent-ebpf", "xtask"] {
        for entry in fs::read_dir(root.join(package))? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !name.ends_with(".cdx.json") {
                continue;
            }
            if name.starts_with("flowlogd_bin") || name == "flowlogd.cdx.json" {
                bill = Some(fs::read_to_string(&path)?);
            }
            fs::remove_file(&path)?;
        }
    }
    let bill = bill.context("cargo cyclonedx wrote no bill of the binary")?;
    // It names the workspace's own packages by their folders.
    let bill = bill.replace(&format!("path+file://{}", root.display()), "path+file:///flowlogd");
    fs::write(dist.join("flowlogd.cdx.json"), bill)?;
    println!("target/dist/flowlogd.cdx.json: bill of materials (CycloneDX)");
    Ok(())
}
