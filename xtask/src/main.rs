//! The project's own commands: `cargo xtask <verb>`, one file a verb.

mod bench;
mod codegen;
mod test;
mod vm;

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
    /// Write the files that are made from the code: the JSON schema of a line.
    Codegen(codegen::Arguments),
    /// Run everything that says whether the tree is good.
    Test(test::Arguments),
    /// Run the kernel cases on several real kernels, each in its own qemu guest.
    Vm(vm::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Codegen(arguments) => codegen::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Vm(arguments) => vm::run(&arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
