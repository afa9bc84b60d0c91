//! What a guest of a foreign architecture runs: cross-compiled agent and cases, Debian's tools of that architecture.
//!
//! In: the workspace, the apt of the suite. Out: the same two archives as for this machine's own architecture.
//! Neither the stable toolchain nor rustup is asked for a foreign standard library: it is built from the source that
//! the nightly of `cargo xtask ebpf` carries (`-Z build-std`), linked statically by Debian's cross compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::initramfs::{Archive, INIT, PROGRAMS};
use super::kernels::Apt;
use super::tools::output;

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// Why cross-compiled guests cannot be had here; `None`: they can.
pub fn missing() -> Option<String> {
    let sysroot = output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
    let sources = sysroot.map(|path| Path::new(path.trim()).join("lib/rustlib/src/rust/library/Cargo.lock"));
    match sources {
        Ok(lock) if lock.is_file() => None,
        Ok(_) => Some(
            "the nightly toolchain has no rust-src (rustup component add rust-src --toolchain nightly)"
                .into(),
        ),
        Err(_) => Some(
            "there is no nightly toolchain (rustup toolchain install nightly --component rust-src)".into(),
        ),
    }
}

/// Cross-compiles one target of the agent's package; gives cargo's messages.
///
/// # Errors
/// When the build fails.
pub fn cross_build(root: &Path, selection: &[&str], release: bool) -> Result<String> {
    let mut command = Command::new("rustup");
    command.current_dir(root).args(["run", "nightly", "cargo", "build", "--quiet", "-Z", "build-std"]);
    command.args(["--target", TARGET, "--package", "flowlogd", "--message-format=json-render-diagnostics"]);
    command.args(selection);
    if release {
        command.arg("--release");
    }
    command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
    command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
    command.env("CC_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-gcc");
    let done = command.stderr(Stdio::inherit()).output().context("cannot start rustup")?;
    if !done.status.success() {
        bail!("cross-compiling for {TARGET} failed");
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Shell and tools out of Debian's packages, with every library that came with them.
///
/// # Errors
/// When the mirror does not give them.
pub fn userland(apt: &Apt, out: &Path) -> Result<PathBuf> {
    let path = out.join(format!("userland-{}.cpio", apt.architecture.debian()));
    if path.is_file() {
        return Ok(path);
    }
    let packages = ["busybox-static", "nftables", "conntrack", "iproute2", "kmod"];
    let root = out.join(format!("userland-{}", apt.architecture.debian()));
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root)?;
    for deb in apt.download_with_dependencies(&packages)? {
        output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&root))?;
    }
    let mut archive = Archive::new();
    let find = |name: &str| {
        ["usr/bin", "usr/sbin", "bin", "sbin"]
            .iter()
            .map(|place| root.join(place).join(name))
            .find(|at| at.is_file())
    };
    for (name, place) in [("busybox", "bin/busybox"), ("kmod", "sbin/kmod")]
        .into_iter()
        .map(|(name, place)| (name, place.to_owned()))
        .chain(PROGRAMS.iter().map(|name| (*name, format!("sbin/{name}"))))
    {
        let program = find(name).with_context(|| format!("no package brought {name}"))?;
        archive.file(&place, 0o755, &fs::read(program)?);
    }
    for name in ["modprobe", "rmmod", "lsmod"] {
        archive.link(&format!("sbin/{name}"), "kmod");
    }
    let triple = "aarch64-linux-gnu";
    for folder in ["lib", "usr/lib"].map(|place| root.join(place).join(triple)) {
        for entry in fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains(".so")
                && let Ok(content) = fs::read(entry.path())
            {
                archive.file(&format!("lib/{triple}/{name}"), 0o755, &content);
                if name.starts_with("ld-linux") {
                    archive.file(&format!("lib/{name}"), 0o755, &content);
                }
            }
        }
    }
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("init", 0o755, INIT.as_bytes());
    archive.write(&path)?;
    Ok(path)
}
