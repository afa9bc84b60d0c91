//! `cargo xtask bench`: what a flow, a line and a lookup cost, and how much memory a connection keeps.
//!
//! In: the bench targets of the agent package. Out: their own tables as they come, then one line a bench: nanoseconds
//! and allocations an item, out of divan's table. What always holds: figures are per item and of one run, and nothing
//! is asserted about time; `--quick` runs each bench once, over few flows and without a release build, and says
//! only whether they work. Deliberately not here: what is measured (`agent/benches`), and figures to compare with
//! (`agent/benches/README.md`).

mod collectors;
mod compare;
pub mod load;
pub mod node;
mod pairs;
mod probes;
pub mod site;
#[path = "../../agent/benches/sysctl/mod.rs"]
mod sysctl;
pub mod watchers;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};

use crate::workspace::cargo;

/// Live connections that the bench of a whole node is run with, each in a process of its own.
const LIVE: [&str; 3] = ["10000", "100000", "1000000"];

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    whole: Option<Whole>,
    /// Run each bench once over few flows, in a debug build: do they work?
    #[arg(long)]
    quick: bool,
    /// Only benches of divan's whose path has this text, such as `pipeline::flush`.
    filter: Option<String>,
}

#[derive(clap::Subcommand)]
enum Whole {
    /// The agent on a node that forwards traffic, off and on; what it uses (as root, on a quiet machine).
    Node(node::Arguments),
    /// flowlogd and Debian's collectors under the same traffic (as root, on a quiet machine).
    Compare(compare::Arguments),
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.whole {
        Some(Whole::Node(arguments)) => return node::run(arguments),
        Some(Whole::Compare(arguments)) => return compare::run(arguments),
        None => {}
    }
    let filter = arguments.filter.as_deref();
    if arguments.quick {
        let mut path = bench("test", "path");
        path.args(["--"].into_iter().chain(filter));
        let mut works = path.status()?.success();
        for whole in ["node", "sockets", "cluster"] {
            works = works && (filter.is_some() || bench("test", whole).status()?.success());
        }
        return Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    if filter.is_none() {
        for live in LIVE {
            if !bench("bench", "node").args(["--", live]).status()?.success() {
                return Ok(ExitCode::FAILURE);
            }
            println!();
        }
        for whole in ["sockets", "cluster"] {
            if !bench("bench", whole).status()?.success() {
                return Ok(ExitCode::FAILURE);
            }
            println!();
        }
    }
    let mut path = bench("bench", "path");
    path.args(["--"].into_iter().chain(filter)).stdout(Stdio::piped());
    summarize(path.spawn().context("cannot run cargo")?)
}

/// One bench target of the agent package.
fn bench(verb: &str, target: &str) -> Command {
    let mut cargo = cargo();
    cargo.args([verb, "--quiet", "--package", "flowlogd", "--bench", target]);
    cargo
}

/// Passes on what divan prints, and says at the end what an item costs.
fn summarize(mut child: Child) -> anyhow::Result<ExitCode> {
    let output = child.stdout.take().context("cargo has no output")?;
    let mut summary = Summary::default();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        summary.read(&line);
    }
    if !child.wait()?.success() {
        return Ok(ExitCode::FAILURE);
    }
    if summary.benches.is_empty() {
        bail!("no bench has printed a rate: does the filter match one?");
    }
    println!("\n{:<44} {:>12} {:>12} {:>15}", "per item", "median ns", "fastest ns", "allocations");
    for bench in &summary.benches {
        let Bench { name, median, fastest, allocations } = bench;
        println!("{name:<44} {median:>12.1} {fastest:>12.1} {allocations:>15.4}");
    }
    Ok(ExitCode::SUCCESS)
}

/// One bench: nanoseconds and allocations an item.
struct Bench {
    name: String,
    median: f64,
    fastest: f64,
    allocations: f64,
}

/// Reads divan's table row by row.
#[derive(Default)]
struct Summary {
    /// The names of the tree down to the current row, one a level.
    names: Vec<String>,
    /// Seconds of the median pass of the current bench.
    pass: f64,
    /// The last row was the heading of the allocations.
    allocations_follow: bool,
    benches: Vec<Bench>,
}

impl Summary {
    fn read(&mut self, line: &str) {
        let inside = line.trim_start_matches(['│', '├', '╰', '─', ' ']);
        let depth = (line.chars().count() - inside.chars().count()) / 3;
        let is_named = line.contains("├─ ") || line.contains("╰─ ");
        let cells: Vec<&str> = inside.split('│').map(str::trim).collect();
        let Some(first) = cells.first() else { return };
        if is_named {
            let (name, fastest) = first.split_once("  ").unwrap_or((first, ""));
            self.names.truncate(depth.saturating_sub(1));
            self.names.push(name.to_owned());
            self.pass = cells.get(2).copied().and_then(seconds).unwrap_or_default();
            self.allocations_follow = false;
            debug_assert!(fastest.is_empty() || seconds(fastest.trim()).is_some(), "{line}");
        } else if let (Some(fastest), Some(median)) = (rate(first), cells.get(2).copied().and_then(rate)) {
            self.benches.push(Bench {
                name: self.names.join("::"),
                median: 1e9 / median,
                fastest: 1e9 / fastest,
                allocations: 0.0,
            });
        } else if *first == "alloc:" {
            self.allocations_follow = true;
        } else if std::mem::take(&mut self.allocations_follow)
            && let Some(bench) = self.benches.last_mut()
            && let Some(count) = cells.get(2).and_then(|count| count.parse::<f64>().ok())
        {
            let items = self.pass * 1e9 / bench.median;
            bench.allocations = if items > 0.0 { count / items } else { 0.0 };
        }
    }
}

/// `1.5 ms` in seconds.
fn seconds(text: &str) -> Option<f64> {
    let (number, unit) = text.split_once(' ')?;
    let scale = match unit {
        "ns" => 1e-9,
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

/// `1.5 Mitem/s` in items a second.
fn rate(text: &str) -> Option<f64> {
    let (number, unit) = text.split_once(' ')?;
    let scale = match unit.strip_suffix("item/s")? {
        "" => 1.0,
        "K" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Timer precision: 20 ns
path                  fastest       │ slowest       │ median        │ mean          │ samples │ iters
├─ cluster                          │               │               │               │         │
│  ╰─ service         500 µs        │ 900 µs        │ 1 ms          │ 600 µs        │ 100     │ 100
│                     20 Mitem/s    │ 11 Mitem/s    │ 10 Mitem/s    │ 16 Mitem/s    │         │
╰─ pipeline                         │               │               │               │         │
   ╰─ flush                         │               │               │               │         │
      ╰─ 10000        1 ms          │ 4 ms          │ 2 ms          │ 3 ms          │ 10      │ 10
                      10 Mitem/s    │ 2.5 Mitem/s   │ 5 Mitem/s     │ 3.3 Mitem/s   │         │
                      max alloc:    │               │               │               │         │
                        9           │ 9             │ 9             │ 9             │         │
                        1 MB        │ 1 MB          │ 1 MB          │ 1 MB          │         │
                      alloc:        │               │               │               │         │
                        500         │ 500           │ 500           │ 500           │         │
                        2 MB        │ 2 MB          │ 2 MB          │ 2 MB          │         │
";

    #[test]
    fn a_table_of_divan_is_read_per_item() {
        let mut summary = Summary::default();
        TABLE.lines().for_each(|line| summary.read(line));
        let [service, flush] = &summary.benches[..] else { panic!("{} benches", summary.benches.len()) };
        assert_eq!(service.name, "cluster::service");
        assert_eq!(
            (service.median.round(), service.fastest.round(), service.allocations),
            (100.0, 50.0, 0.0)
        );
        assert_eq!(flush.name, "pipeline::flush::10000");
        assert_eq!((flush.median.round(), flush.fastest.round()), (200.0, 100.0));
        assert!((flush.allocations - 0.05).abs() < 1e-9, "{}", flush.allocations);
    }
}
