//! One guest: boot it, listen, judge.
//!
//! In: a kernel and its file system. Out: how many cases passed, failed and were skipped. The guest has two serial
//! lines: the console (kernel and agent talk there; kept whole in the log file) and the results, one JSON object a
//! line, on which nothing else writes, so no kernel message can tear them.
//!
//! What always holds: a guest counts as good only when it said that it reached its end, ran at least one case, and none
//! failed; at the timeout it is killed, and the case that was running is the one that failed.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::architecture::Architecture;
use super::kernels::Kernel;

/// Everything that a guest is started with.
pub struct Boot<'a> {
    pub architecture: Architecture,
    pub kernel: &'a Kernel,
    pub initrd: &'a Path,
    /// Where the console is kept.
    pub log: &'a Path,
    /// Where the result lines are kept.
    pub results: &'a Path,
    pub timeout: Duration,
    pub verbose: bool,
}

/// What a guest said.
#[derive(Default)]
pub struct Report {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
    /// Why, of each that failed.
    pub failures: Vec<String>,
    reached_end: bool,
    running: Option<String>,
}

impl Report {
    pub fn is_good(&self) -> bool {
        self.reached_end && self.failed == 0 && self.passed > 0
    }

    fn fail(&mut self, why: String) {
        self.failed += 1;
        self.failures.push(why);
    }

    fn take(&mut self, release: &str, line: &str) {
        let Ok(message) = serde_json::from_str::<Value>(line) else { return };
        let text = |field: &str| message[field].as_str().unwrap_or_default().to_owned();
        match message["kind"].as_str() {
            Some("start") => self.running = Some(text("name")),
            Some("case") => {
                self.running = None;
                let seconds = message["seconds"].as_f64().unwrap_or_default();
                let (name, outcome, note) = (text("name"), text("outcome"), text("note"));
                match outcome.as_str() {
                    "pass" => self.passed += 1,
                    "skipped" => self.skipped += 1,
                    _ => self.fail(format!("{name}: {note}")),
                }
                eprintln!("vm: {release}: {name:<28} {outcome:<7} {seconds:>5.1} s  {note}");
            }
            Some("end") => self.reached_end = true,
            _ => {}
        }
    }
}

/// Boots the guest and waits for its end.
///
/// # Errors
/// When qemu cannot be started or its files cannot be read.
pub fn run(boot: &Boot<'_>) -> Result<Report> {
    let release = &boot.kernel.release;
    let _ = fs::remove_file(boot.results);
    let log = fs::File::create(boot.log).with_context(|| format!("cannot write {}", boot.log.display()))?;
    let began = Instant::now();
    let (mut machine, console) = boot.architecture.machine();
    let mut qemu = machine
        // One processor: two crash 6.12 now and then under this emulation.
        .args([
            "-accel",
            "tcg,tb-size=256",
            "-m",
            "1G",
            "-smp",
            "1",
            "-display",
            "none",
            "-no-reboot",
            "-nodefaults",
        ])
        .args(["-net", "none", "-serial", "stdio", "-chardev"])
        .arg(format!("file,id=results,path={}", boot.results.display()))
        .args(boot.architecture.second_serial())
        .arg("-kernel")
        .arg(&boot.kernel.vmlinuz)
        .arg("-initrd")
        .arg(boot.initrd)
        .arg("-append")
        .arg(format!("console={console} panic=-1 mitigations=off nokaslr quiet loglevel=5"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start qemu")?;
    let mut report = Report::default();
    let outcome = listen(boot, began, &mut qemu, &mut report);
    let _ = qemu.kill();
    let _ = qemu.wait();
    outcome?;
    if !report.is_good() {
        explain(boot, &mut report);
    } else {
        eprintln!("vm: {release}: done after {:.0} s", began.elapsed().as_secs_f64());
    }
    Ok(report)
}

/// Follows results (and the console, when wanted) until qemu ends or the time is over.
fn listen(boot: &Boot<'_>, began: Instant, qemu: &mut Child, report: &mut Report) -> Result<()> {
    let mut results = Tail::new(boot.results);
    let mut console = Tail::new(boot.log);
    loop {
        let ended = qemu.try_wait()?.is_some();
        for line in results.lines() {
            report.take(&boot.kernel.release, &line);
        }
        if boot.verbose {
            for line in console.lines() {
                eprintln!("{}: {line}", boot.kernel.release);
            }
        }
        if ended || began.elapsed() > boot.timeout {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn explain(boot: &Boot<'_>, report: &mut Report) {
    let release = &boot.kernel.release;
    let console = fs::read(boot.log).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<&str> = console.lines().collect();
    eprintln!("vm: {release}: the console's last lines ({} has all):", boot.log.display());
    for line in lines.iter().skip(lines.len().saturating_sub(60)) {
        eprintln!("vm: {release}: | {line}");
    }
    if let Some(name) = report.running.take() {
        report.fail(format!("the guest ended or hung in case {name}"));
    } else if !report.reached_end {
        report.fail("the guest ended or hung before its cases were done".to_owned());
    }
}

/// Whole lines of a file that grows.
struct Tail<'a> {
    path: &'a Path,
    file: Option<fs::File>,
    partial: Vec<u8>,
}

impl<'a> Tail<'a> {
    fn new(path: &'a Path) -> Self {
        Self { path, file: None, partial: Vec::new() }
    }

    fn lines(&mut self) -> Vec<String> {
        if self.file.is_none() {
            self.file = fs::File::open(self.path).ok();
        }
        if let Some(file) = &mut self.file {
            let _ = file.read_to_end(&mut self.partial);
        }
        let mut lines = Vec::new();
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_that_reached_its_end_is_good() {
        let mut report = Report::default();
        report.take("r", r#"{"kind":"start","name":"a"}"#);
        report.take("r", r#"{"kind":"case","name":"a","outcome":"pass","seconds":1.0}"#);
        assert!(!report.is_good());
        report.take("r", r#"{"kind":"end"}"#);
        assert!(report.is_good());
        report.take("r", r#"{"kind":"case","name":"b","outcome":"FAILED","seconds":1.0,"note":"why"}"#);
        assert!(!report.is_good());
        assert_eq!(report.failures, ["b: why"]);
    }
}
