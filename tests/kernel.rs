//! The kernel cases: the real agent on a real kernel, compared byte for byte with what the kernel itself counted.
//!
//! They load programs, tracking and rules, so they run only as the payload of a qemu guest (`cargo xtask vm`, which sets
//! `FLOWLOGD_GUEST`); anywhere else this target says so loudly and counts them as skipped. In the guest: the cases one
//! after the other, each on a fresh node with a deadline of its own; results as JSON lines on the guest's second serial
//! line (`start`, `case`, at last `end`), everything said for people on the console.
//!
//! Outside of a guest nothing is touched.

// Each of the cases' files is a topic; this file is the runner.
#[path = "kernel/agent.rs"]
mod agent;
#[path = "kernel/cases.rs"]
mod cases;
#[path = "kernel/denied.rs"]
mod denied;
#[path = "kernel/kinds.rs"]
mod kinds;
#[path = "kernel/limits.rs"]
mod limits;
#[path = "kernel/node.rs"]
mod node;
#[path = "kernel/programs.rs"]
mod programs;
#[path = "kernel/queue.rs"]
mod queue;
#[path = "kernel/reference.rs"]
mod reference;
#[path = "kernel/sockets.rs"]
mod sockets;
#[path = "kernel/sweeps.rs"]
mod sweeps;
#[path = "kernel/traffic.rs"]
mod traffic;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::json;

/// What a case found, when it did not fail.
pub enum Outcome {
    /// With a word on what was compared.
    Pass(String),
    /// With the reason.
    Skipped(String),
}

/// One thing that must hold on every kernel.
pub struct Case {
    pub name: &'static str,
    pub run: fn() -> anyhow::Result<Outcome>,
}

/// Until a case is taken for hung.
const DEADLINE: Duration = Duration::from_secs(480);
/// The machine of aarch64 has its console on another kind of serial line.
const RESULTS: &str = if cfg!(target_arch = "aarch64") { "/dev/ttyS0" } else { "/dev/ttyS1" };

fn main() {
    if std::env::var_os("FLOWLOGD_GUEST").is_none() {
        // Test runners ask for a list first; there is nothing to run here.
        if !std::env::args().any(|argument| argument == "--list") {
            eprintln!(
                "SKIPPED: {} kernel cases; they need a guest of their own: cargo xtask vm",
                cases::CASES.len()
            );
        }
        return;
    }
    let wishes = std::fs::read_to_string("/payload/arguments").unwrap_or_default();
    let wishes: Vec<&str> = wishes.lines().filter(|wish| !wish.is_empty()).collect();
    for case in cases::CASES {
        if wishes.is_empty() || wishes.iter().any(|wish| case.name.contains(wish)) {
            run(case);
        }
    }
    tell(&json!({"kind": "end"}));
}

fn run(case: &'static Case) {
    tell(&json!({"kind": "start", "name": case.name}));
    eprintln!("--- {} ---", case.name);
    let began = Instant::now();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let _ = sender.send((case.run)());
    });
    let (outcome, note) = match receiver.recv_timeout(DEADLINE) {
        Ok(Ok(Outcome::Pass(note))) => ("pass", note),
        Ok(Ok(Outcome::Skipped(why))) => ("skipped", why),
        Ok(Err(error)) => ("FAILED", format!("{error:#}")),
        Err(RecvTimeoutError::Timeout) => ("FAILED", format!("not done after {DEADLINE:?}")),
        Err(RecvTimeoutError::Disconnected) => ("FAILED", "panicked (see the console)".to_owned()),
    };
    if outcome == "FAILED" {
        show_agents(case.name);
    }
    let hung = began.elapsed() >= DEADLINE;
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("--- {}: {outcome} after {seconds:.1} s: {note}", case.name);
    tell(&json!({"kind": "case", "name": case.name, "outcome": outcome, "seconds": seconds, "note": note}));
    if hung {
        // Its threads still hold the node: nothing that follows would mean anything.
        std::process::exit(1);
    }
}

/// What the agents of a case logged.
fn show_agents(case: &str) {
    let logs = std::fs::read_dir(kinds::folder(case)).into_iter().flatten().filter_map(Result::ok);
    let mut logs: Vec<_> = logs.map(|entry| entry.path()).collect();
    logs.sort();
    for log in logs.iter().filter(|path| path.to_string_lossy().contains("/agent.")) {
        eprintln!("{}:\n{}", log.display(), std::fs::read_to_string(log).unwrap_or_default());
    }
}

fn tell(message: &serde_json::Value) {
    let path = Path::new(RESULTS);
    let line = format!("{message}\n");
    let sent = OpenOptions::new().write(true).open(path).and_then(|mut out| out.write_all(line.as_bytes()));
    if let Err(error) = sent {
        eprintln!("cannot write to {}: {error}: {line}", path.display());
    }
}
