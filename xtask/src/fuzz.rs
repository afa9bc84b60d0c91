//! `cargo xtask fuzz`: hostile bytes into every parser, for as long as is asked.
//!
//! In: `agent/fuzz/` (targets, tracked seeds), seconds a target. Out: what libFuzzer finds; a finding ends the command with
//! 1 and stays in `target/fuzz/artifacts/`. What always holds: cargo-fuzz is installed where it is missing, at the version
//! named here and never in silence; new inputs go into `target/fuzz/corpus/`, tracked seeds are only read; the lock
//! file is the workspace's. Built without a sanitizer: no parser has unsafe code of its own, and then the stable
//! toolchain does. What a finding taught is kept as a seed: `tests/corpus.rs` runs them all.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::supply;
use crate::workspace::{cargo, root};

const FUZZ: &str = "cargo-fuzz";
const FUZZ_VERSION: &str = "0.13.2";

/// An input that takes longer (seconds) is a finding, as is one that takes more memory (megabytes).
const SLOW: u32 = 10;
const MEMORY: u32 = 2048;

#[derive(clap::Args)]
pub struct Arguments {
    /// For each target
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Which parsers; all where none is named
    targets: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = root();
    let seeds = root.join("agent/fuzz/corpus");
    let known = targets(&seeds)?;
    for target in &arguments.targets {
        ensure!(known.contains(target), "no target is called {target}: there are {}", known.join(", "));
    }
    let chosen = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    supply::install(FUZZ, FUZZ_VERSION)?;
    std::fs::copy(root.join("Cargo.lock"), root.join("agent/fuzz/Cargo.lock")).context("copy Cargo.lock")?;
    ensure!(cargo_fuzz(&root, "build").status()?.success(), "cargo fuzz build: see above");
    let mut findings = Vec::new();
    for target in chosen {
        let grown = root.join("target/fuzz/corpus").join(target);
        let artifacts = root.join("target/fuzz/artifacts").join(target);
        for folder in [&grown, &artifacts] {
            std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        println!("==> {target}: {} s", arguments.seconds);
        let mut fuzz = cargo_fuzz(&root, "run");
        fuzz.arg(target).arg(grown).arg(seeds.join(target)).arg("--");
        fuzz.arg(format!("-max_total_time={}", arguments.seconds));
        fuzz.arg(format!("-timeout={SLOW}")).arg(format!("-rss_limit_mb={MEMORY}"));
        fuzz.arg(format!("-artifact_prefix={}/", artifacts.display()));
        fuzz.args(["-print_final_stats=1", "-verbosity=1"]);
        if !fuzz.status()?.success() {
            findings.push(target.as_str());
        }
    }
    if findings.is_empty() {
        println!("{} targets, {} s each: nothing found", chosen.len(), arguments.seconds);
        return Ok(ExitCode::SUCCESS);
    }
    println!("found something: {} (the inputs are in target/fuzz/artifacts)", findings.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Each has a folder of seeds.
fn targets(seeds: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(seeds).with_context(|| format!("read {}", seeds.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn cargo_fuzz(root: &Path, verb: &str) -> Command {
    let mut fuzz = cargo();
    fuzz.current_dir(root.join("agent")).args(["fuzz", verb, "--sanitizer", "none", "--target-dir"]);
    fuzz.arg(root.join("target/fuzz/build"));
    fuzz
}
