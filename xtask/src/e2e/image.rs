//! The agent as an image, without a container engine: the very binary of an ordinary build, with its libraries.
//!
//! In: the binary, a folder. Out: an archive as `ctr images import` takes it. Not here: the image that is released (`deploy/Dockerfile`),
//! whose binary is static.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;

use crate::netns::{run, tool};

pub const NAME: &str = "localhost/flowlogd";
pub const TAG: &str = "e2e";

pub fn build(binary: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let root = folder.join("rootfs");
    fs::create_dir_all(&root)?;
    run(tool("strip").arg("--strip-all").arg("-o").arg(root.join("flowlogd")).arg(binary), None)?;
    // A static program makes ldd fail: it wants nothing.
    for line in run(tool("ldd").arg(binary), None).unwrap_or_default().lines() {
        let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
        let place = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a library in no folder")?)?;
        fs::copy(library, place).with_context(|| format!("cannot copy {library}"))?;
    }
    let image = folder.join("image");
    fs::create_dir_all(&image)?;
    let layer = image.join("layer.tar");
    run(tool("tar").arg("-C").arg(&root).arg("-cf").arg(&layer).arg("."), None)?;
    let sum = run(tool("sha256sum").arg(&layer), None)?;
    let digest = sum.split_whitespace().next().context("sha256sum says nothing")?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": ["/flowlogd"], "Cmd": ["run"], "User": "0:0"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    fs::write(image.join("config.json"), config.to_string())?;
    let manifest =
        json!([{"Config": "config.json", "RepoTags": [format!("{NAME}:{TAG}")], "Layers": ["layer.tar"]}]);
    fs::write(image.join("manifest.json"), manifest.to_string())?;
    let archive = folder.join("flowlogd.tar");
    run(
        tool("tar").arg("-C").arg(&image).arg("-cf").arg(&archive).args([
            "manifest.json",
            "config.json",
            "layer.tar",
        ]),
        None,
    )?;
    Ok(archive)
}
