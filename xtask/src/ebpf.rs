//! `cargo xtask ebpf`: the kernel side, from source to `agent-ebpf/objects/flowlogd.<arch>.bpf.o`.
//!
//! In: `agent-ebpf/`, a nightly toolchain with rust-src, and bpf-linker. Out: both objects and `toolchain.txt`, which
//! names what built them; with `--check` nothing is written, the objects are rebuilt elsewhere and compared byte for
//! byte. What always holds: the bytes do not depend on the folder, the user or the machine (paths are remapped, one
//! codegen unit, no incremental state, no DWARF). Exit codes: 0 good, 1 failed or different, 3 the tools are not here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::root;

/// What a caller takes as "skipped", to be said loudly.
pub const TOOLS_MISSING: u8 = 3;

const TOOLCHAIN: &str = "nightly";
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Rebuild and compare with the tracked objects; write nothing into the tree
    #[arg(long)]
    check: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let tools = match Tools::find()? {
        Ok(tools) => tools,
        Err(missing) => {
            eprintln!("cargo xtask ebpf: cannot build here: {missing}");
            return Ok(ExitCode::from(TOOLS_MISSING));
        }
    };
    let root = root();
    let objects = root.join("agent-ebpf/objects");
    let record = objects.join("toolchain.txt");
    if !arguments.check {
        for arch in ARCHITECTURES {
            let built = tools.build(&root, arch, &root.join("target/ebpf"))?;
            let path = objects.join(format!("flowlogd.{arch}.bpf.o"));
            std::fs::write(&path, &built).with_context(|| format!("write {}", path.display()))?;
            println!("{}: {} bytes", path.strip_prefix(&root).unwrap_or(&path).display(), built.len());
        }
        std::fs::write(&record, &tools.versions).with_context(|| format!("write {}", record.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let built_with = std::fs::read_to_string(&record).unwrap_or_default();
    if built_with != tools.versions {
        eprintln!(
            "cargo xtask ebpf --check: cannot compare: the tracked objects were built with\n{built_with}and here is\n{}",
            tools.versions
        );
        return Ok(ExitCode::from(TOOLS_MISSING));
    }
    let mut same = true;
    for arch in ARCHITECTURES {
        let built = tools.build(&root, arch, &root.join("target/ebpf"))?;
        let path = objects.join(format!("flowlogd.{arch}.bpf.o"));
        let tracked = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if built == tracked {
            println!("flowlogd.{arch}.bpf.o: same, {} bytes", tracked.len());
        } else {
            same = false;
            let at = built.iter().zip(&tracked).take_while(|(a, b)| a == b).count();
            println!(
                "flowlogd.{arch}.bpf.o: DIFFERENT from byte {at} on ({} bytes tracked, {} bytes built): run `cargo xtask ebpf` and commit the objects",
                tracked.len(),
                built.len()
            );
        }
    }
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Tools {
    sysroot: PathBuf,
    cargo_home: PathBuf,
    /// One line a tool; equal versions give equal bytes.
    versions: String,
}

impl Tools {
    /// The outer error: a tool is there but does not run. The inner one: what is missing, and what to do.
    fn find() -> Result<Result<Self, String>> {
        let Some(rustc) = stdout_of(Command::new("rustup").args(["run", TOOLCHAIN, "rustc", "-vV"])) else {
            return Ok(Err(format!(
                "no {TOOLCHAIN} toolchain: `rustup toolchain install {TOOLCHAIN} --component rust-src`"
            )));
        };
        let Some(sysroot) =
            stdout_of(Command::new("rustup").args(["run", TOOLCHAIN, "rustc", "--print", "sysroot"]))
        else {
            bail!("`rustup run {TOOLCHAIN} rustc --print sysroot` failed");
        };
        let sysroot = PathBuf::from(sysroot.trim());
        if !sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
            return Ok(Err(format!(
                "the {TOOLCHAIN} toolchain lacks rust-src: `rustup component add rust-src --toolchain {TOOLCHAIN}`"
            )));
        }
        let Some(linker) = stdout_of(Command::new("bpf-linker").arg("--version")) else {
            return Ok(Err("no bpf-linker: `cargo install bpf-linker@0.10.3 --locked`".into()));
        };
        let field = |name: &str| {
            rustc
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .unwrap_or_default()
                .to_owned()
        };
        let versions = format!(
            "rustc {} {}\nLLVM {}\n{}\n",
            field("release:"),
            field("commit-hash:"),
            field("LLVM version:"),
            linker.trim()
        );
        let cargo_home = match std::env::var_os("CARGO_HOME") {
            Some(home) => PathBuf::from(home),
            None => PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
                .join(".cargo"),
        };
        Ok(Ok(Self { sysroot, cargo_home, versions }))
    }

    fn build(&self, root: &Path, arch: &str, target_dir: &Path) -> Result<Vec<u8>> {
        // One folder an architecture: the flags differ, and a shared one would rebuild `core` each time.
        let target_dir = target_dir.join(arch);
        let flags: Vec<OsString> = [
            OsString::from(format!("--cfg=bpf_target_arch=\"{arch}\"")),
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
            remap(root, "/flowlogd"),
            remap(&self.cargo_home, "/cargo"),
            remap(&self.sysroot, "/rust"),
            remap(&target_dir, "/target"),
        ]
        .into();
        let mut encoded = OsString::new();
        for (i, flag) in flags.iter().enumerate() {
            if i > 0 {
                encoded.push("\u{1f}");
            }
            encoded.push(flag);
        }
        let status = Command::new("rustup")
            .args(["run", TOOLCHAIN, "cargo", "build", "--quiet", "--release", "--locked"])
            .args(["--package", "flowlogd-ebpf", "--bin", "flowlogd-ebpf"])
            .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core", "--target-dir"])
            .arg(&target_dir)
            .current_dir(root)
            // The caller's own toolchain and flags must not leak in.
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_BUILD_RUSTFLAGS")
            .env_remove("RUSTC")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("CARGO")
            .env("CARGO_ENCODED_RUSTFLAGS", encoded)
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_LTO", "fat")
            .env("CARGO_PROFILE_RELEASE_STRIP", "none")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            .status()
            .context("run rustup")?;
        ensure!(status.success(), "the build for {arch} failed ({status})");
        let path = target_dir.join("bpfel-unknown-none/release/flowlogd-ebpf");
        self.strip(&path)
    }

    /// Takes the DWARF out, three quarters of the object: the kernel and aya read BTF, which stays.
    fn strip(&self, path: &Path) -> Result<Vec<u8>> {
        let stripped = path.with_extension("stripped");
        let status = Command::new(self.objcopy()?)
            .arg("--strip-debug")
            .args([path, &stripped])
            .env("LD_LIBRARY_PATH", self.sysroot.join("lib"))
            .status()
            .context("run rust-objcopy")?;
        ensure!(status.success(), "rust-objcopy failed ({status})");
        std::fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))
    }

    /// The toolchain's own, so that its version is part of the recorded one.
    fn objcopy(&self) -> Result<PathBuf> {
        let hosts = self.sysroot.join("lib/rustlib");
        let entries = std::fs::read_dir(&hosts).with_context(|| format!("list {}", hosts.display()))?;
        entries
            .flatten()
            .map(|host| host.path().join("bin/rust-objcopy"))
            .find(|path| path.is_file())
            .with_context(|| format!("no rust-objcopy under {}", hosts.display()))
    }
}

fn remap(from: &Path, to: &str) -> OsString {
    let mut flag = OsString::from("--remap-path-prefix=");
    flag.push(from);
    flag.push("=");
    flag.push(to);
    flag
}

/// Standard output of a command that succeeds; `None` when it is not there or fails.
fn stdout_of(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
