//! `cargo xtask codegen`: files that are made from the code and tracked.
//!
//! In: the types of the `flowlogd` library. Out: `deploy/flow-log.schema.json`. What always holds: the same code gives
//! the same bytes, so `--check` can compare, as the library's own tests do. Deliberately not here: what the files
//! say; each comes from one function of the library.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

#[derive(clap::Args)]
pub struct Arguments {
    /// Write nothing; fail if a tracked file is not what the code gives.
    #[arg(long)]
    check: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let schema = serde_json::to_string_pretty(&flowlogd::wire::schema::schema())? + "\n";
    let is_good = settle("deploy/flow-log.schema.json", &schema, arguments.check)?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes a tracked file if it is not what the code gives, or only says so; false if it stays stale.
fn settle(name: &str, content: &str, check: bool) -> anyhow::Result<bool> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    // A file that cannot be read is one that has to be written, and writing tells why it cannot be.
    if fs::read_to_string(&path).is_ok_and(|tracked| tracked == content) {
        println!("{name}: up to date");
        return Ok(true);
    }
    if check {
        println!("{name}: STALE, run `cargo xtask codegen`");
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder of {name}"))?;
    }
    fs::write(&path, content).with_context(|| format!("cannot write {name}"))?;
    println!("{name}: written");
    Ok(true)
}
