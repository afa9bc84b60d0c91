//! Recordings in, lines out: what the contract says, case by case, through the real binary.
//!
//! In: `tests/scenarios/<topic>/<case>/`, each with a recording and what `flowlogd replay` must write for it (see
//! `case/mod.rs` for the files). Always: a difference is shown by line and field; the same recording gives the
//! same bytes. `FLOWLOGD_BLESS=1` writes what the binary wrote over each `expected.jsonl` (read every field of the
//! difference before you commit it); `FLOWLOGD_SCENARIO=TEXT` runs only the cases whose path contains it.
//! Not here: exit codes and messages (`cli.rs`), how `aggregation/` is made (`vectors.rs`).

#![allow(clippy::unwrap_used, reason = "the functions that the tests share may end a test too")]

mod case;

use std::path::{Path, PathBuf};

#[test]
fn every_scenario_gives_its_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios");
    let bless = std::env::var("FLOWLOGD_BLESS").is_ok_and(|value| value == "1");
    let only = std::env::var("FLOWLOGD_SCENARIO").unwrap_or_default();
    let cases: Vec<_> = find(&root)
        .into_iter()
        .filter(|dir| dir.strip_prefix(&root).unwrap().to_string_lossy().contains(&only))
        .collect();
    assert!(!cases.is_empty(), "no scenario below {}", root.display());
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|dir| {
            let problem = case::check(dir, bless).err()?;
            Some(format!("{}: {problem}", dir.strip_prefix(&root).unwrap().display()))
        })
        .collect();
    assert!(failed.is_empty(), "{} of {} scenarios:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// Folders below `root` that hold a recording, sorted.
fn find(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        if dir.join("recording.jsonl").exists() {
            found.push(dir);
            continue;
        }
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            }
        }
    }
    found.sort();
    found
}
