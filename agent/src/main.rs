//! The thin binary: parse, dispatch, exit code. Everything else is the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    flowlogd::cli::main()
}
