//! `cargo xtask test`: everything that says whether the tree is good, in one table.
//!
//! In: the tree, and what the machine has. Out: what the tests that failed said, a line a step, the tests that were
//! skipped and why, the counts; the exit code is not 0 when a step failed. Always: what cannot run here is said loudly
//! and counted as skipped; with `CI` in the environment a skipped step or test is a failure, because there it should
//! have run.

mod failures;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::packages;
use crate::workspace::cargo;
use failures::Failures;

#[derive(Args)]
pub struct Arguments {
    /// Leave out the kernel cases in qemu guests
    #[arg(long)]
    no_vm: bool,
    /// Leave out the demo
    #[arg(long)]
    no_demo: bool,
    /// Leave out the mini-node
    #[arg(long)]
    no_node: bool,
}

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

#[derive(Default)]
struct Report {
    rows: Vec<(&'static str, Outcome, u64)>,
    passed: u64,
    failed: u64,
    /// Tests that could not run here.
    skipped: Vec<String>,
    failures: Failures,
}

/// Exit code of `cargo xtask ebpf` when the tools to build the objects are missing.
const TOOLS_MISSING: i32 = 3;

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    program()?;
    let mut report = Report::default();
    if is_root() {
        report.step("programs that tests run", || {
            let needed = [
                &packages::NODE[..],
                &packages::STORES,
                &packages::PROCESSES,
                &packages::DNS,
                &packages::TERMINAL,
            ]
            .concat();
            packages::install_missing(&needed, &[]).map(|()| Outcome::Passed)
        });
    }
    report.step("format", || tool(&["fmt", "--all", "--check"], "rustfmt"));
    report.step("clippy", || {
        tool(
            &["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
            "clippy-driver",
        )
    });
    report.step("eBPF objects are those of the source", ebpf);
    report.step("generated files are those of the code", || xtask(&["codegen", "--check"]));
    report.step("manifests of every way to install", deploy);
    report.step("licences, sources, packages", || xtask(&["supply"]));
    report.step_with_counts("unit, property, scenario and rim tests", tests);
    report.step("benches run", || xtask(&["bench", "--quick"]));
    if arguments.no_demo {
        report.skip("demo on real traffic", "--no-demo");
    } else if is_root() {
        report.step("demo on real traffic", || xtask(&["demo"]));
    } else {
        report.skip("demo on real traffic", "needs root: run cargo xtask test as root");
    }
    if arguments.no_node {
        report.skip("an operator's day on a real node", "--no-node");
    } else {
        report.step("an operator's day on a real node", day);
    }
    if arguments.no_vm {
        report.skip("kernel cases in guests", "--no-vm");
    } else if is_root() {
        report.step("kernel cases in guests", || xtask(&["vm"]));
    } else {
        report.skip("kernel cases in guests", "needs root: run cargo xtask test as root");
    }
    Ok(report.finish())
}

impl Report {
    fn step(&mut self, name: &'static str, step: impl FnOnce() -> Result<Outcome>) {
        self.step_with_counts(name, |_| step());
    }

    fn step_with_counts(&mut self, name: &'static str, step: impl FnOnce(&mut Self) -> Result<Outcome>) {
        eprintln!("==> {name}");
        let start = Instant::now();
        let outcome = step(self).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        self.rows.push((name, outcome, start.elapsed().as_secs()));
    }

    fn skip(&mut self, name: &'static str, why: &str) {
        self.rows.push((name, Outcome::Skipped(why.to_owned()), 0));
    }

    fn finish(self) -> ExitCode {
        let ci = std::env::var_os("CI").is_some();
        let (mut failed, mut skipped) = (self.failed, self.skipped.len() as u64);
        let mut passed = self.passed;
        println!();
        self.failures.lines().for_each(|line| println!("{line}"));
        for (name, outcome, seconds) in &self.rows {
            let (word, why) = match outcome {
                Outcome::Passed => ("passed", ""),
                Outcome::Failed(why) => ("FAILED", why.as_str()),
                Outcome::Skipped(why) => ("SKIPPED", why.as_str()),
            };
            println!("{word:8} {seconds:>5} s  {name}{}{why}", if why.is_empty() { "" } else { ": " });
            match outcome {
                Outcome::Passed => passed += 1,
                Outcome::Failed(_) => failed += 1,
                Outcome::Skipped(_) => skipped += 1,
            }
        }
        for test in &self.skipped {
            println!("{test}");
        }
        println!("\n{passed} passed, {failed} failed, {skipped} skipped");
        if failed > 0 {
            return ExitCode::FAILURE;
        }
        if ci && skipped > 0 {
            println!("CI: what was skipped should have run");
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn outcome(status: std::process::ExitStatus, what: &str) -> Outcome {
    if status.success() { Outcome::Passed } else { Outcome::Failed(format!("{what} ended with {status}")) }
}

/// A cargo command that needs a component which a toolchain may lack.
fn tool(arguments: &[&str], component: &str) -> Result<Outcome> {
    let there = Command::new(component).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        return Ok(Outcome::Skipped(format!("{component} is not installed (rustup component add)")));
    }
    let status = cargo().args(arguments).status().context("cargo cannot be run")?;
    Ok(outcome(status, arguments[0]))
}

/// This program's file, as it was found at the start: a build may put a new one in its place.
fn program() -> Result<&'static Path> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if PROGRAM.get().is_none() {
        let _ = PROGRAM.set(std::env::current_exe()?);
    }
    PROGRAM.get().map(PathBuf::as_path).context("this program's file is not known")
}

/// Another verb of this program.
fn xtask(arguments: &[&str]) -> Result<Outcome> {
    let status = Command::new(program()?).args(arguments).status()?;
    Ok(outcome(status, arguments[0]))
}

fn ebpf() -> Result<Outcome> {
    let status = Command::new(program()?).args(["ebpf", "--check"]).status()?;
    if status.code() == Some(TOOLS_MISSING) {
        return Ok(Outcome::Skipped(
            "the nightly, rust-src or bpf-linker is missing (said above)".to_owned(),
        ));
    }
    Ok(outcome(status, "ebpf --check"))
}

/// Without root there is no namespace for an API server, and without envtest no API server.
fn deploy() -> Result<Outcome> {
    if !is_root() {
        return Ok(Outcome::Skipped("needs root: run cargo xtask test as root".to_owned()));
    }
    let status = Command::new(program()?).args(["deploy", "--check", "--rights"]).status()?;
    if status.code() == Some(crate::deploy::SERVER_MISSING.into()) {
        return Ok(Outcome::Skipped("KUBEBUILDER_ASSETS names no API server (said above)".to_owned()));
    }
    Ok(outcome(status, "deploy --check"))
}

/// Without a mini-node there is no node.
fn day() -> Result<Outcome> {
    if !is_root() {
        return Ok(Outcome::Skipped("needs root: run cargo xtask test as root".to_owned()));
    }
    let status = Command::new(program()?).arg("e2e").status()?;
    if status.code() == Some(crate::e2e::NODE_MISSING.into()) {
        return Ok(Outcome::Skipped("MININODE or KUBEBUILDER_ASSETS is missing (said above)".to_owned()));
    }
    Ok(outcome(status, "e2e"))
}

/// All tests of the workspace; what they say of themselves when they cannot run is collected.
fn tests(report: &mut Report) -> Result<Outcome> {
    let mut child = cargo()
        .args(["test", "--locked", "--workspace", "--no-fail-fast", "--", "--show-output"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo cannot be run")?;
    let output = child.stdout.take().context("cargo's output cannot be read")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        report.failures.take(&line);
        if line.starts_with("SKIPPED") {
            // The kernel cases have a step of their own.
            if !line.contains("cargo xtask vm") {
                report.skipped.push(line.to_string());
            }
            println!("{line}");
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            let count = |word: &str| -> u64 {
                let before = counts.split(word).next().unwrap_or_default().trim_end();
                before.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
            };
            report.passed += count("passed");
            report.failed += count("failed");
            for _ in 0..count("ignored") {
                report.skipped.push("SKIPPED an ignored test".to_owned());
            }
        } else if !line.ends_with("... ok") && !line.is_empty() {
            println!("{line}");
        }
    }
    Ok(outcome(child.wait()?, "cargo test"))
}
