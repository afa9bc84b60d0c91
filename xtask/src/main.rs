//! The project's own commands: `cargo xtask <verb>`, one file a verb.

mod agent;
mod apiserver;
mod bench;
mod codegen;
mod dashboards;
mod demo;
mod deploy;
mod e2e;
mod ebpf;
mod fuzz;
mod netns;
mod packages;
mod pages;
mod python;
mod release;
#[cfg(test)]
mod rooms;
mod soak;
mod stores;
mod supply;
mod test;
mod usage;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "flowlogd's own commands")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure what a flow, a line and a lookup cost.
    Bench(bench::Arguments),
    /// Write the files that are made from the code: schemas, references, dashboards, templates, completions.
    Codegen(codegen::Arguments),
    /// Write the manifests that are made from the chart, or check every way to install against a real API server.
    Deploy(deploy::Arguments),
    /// An operator's day on a real node: install, ship, watch, roll, kill (as root).
    E2e(e2e::Arguments),
    /// Show the flow log of real traffic on a small node, beside the kernel's own counts (as root).
    Demo(demo::Arguments),
    /// Build the static binary that images are made of, with its bill of materials.
    Release(release::Arguments),
    /// Run the daemon for a while under everything that changes on a node: does it stay flat, is every byte told (as root)?
    Soak(soak::Arguments),
    /// Check licences, bans and sources of what the agent is made of, and that its packages can be built.
    Supply(supply::Arguments),
    /// Run everything that says whether the tree is good.
    Test(test::Arguments),
    /// Run the kernel cases on several real kernels, each in its own qemu guest.
    Vm(vm::Arguments),
    /// Put hostile bytes into every parser, for as long as is asked.
    Fuzz(fuzz::Arguments),
    /// Build the eBPF objects, or check that the tracked ones are what the source gives.
    Ebpf(ebpf::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Codegen(arguments) => codegen::run(&arguments),
        Verb::Deploy(arguments) => deploy::run(&arguments),
        Verb::E2e(arguments) => e2e::run(&arguments),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Release(arguments) => release::run(&arguments),
        Verb::Soak(arguments) => soak::run(&arguments),
        Verb::Supply(arguments) => supply::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Vm(arguments) => vm::run(&arguments),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
        Verb::Ebpf(arguments) => ebpf::run(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
