//! Every tracked seed of the fuzz targets through its parser, with the stable toolchain.
//!
//! In: `agent/fuzz/corpus/<target>/`, among it what fuzzing once found; each whole, cut short, and damaged a few times,
//! the same way in each run (`FLOWLOGD_DAMAGED`: how often; `FLOWLOGD_TARGET`: of this target alone). Out: no panic, and what
//! the entries assert. What always holds: every target has seeds, and every folder of seeds a target that `cargo xtask fuzz` runs. Fuzzing that
//! looks where an input leads is not here.

#[path = "../agent/fuzz/entries.rs"]
mod entries;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use entries::ENTRIES;

fn fuzz() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

#[test]
fn every_seed_goes_through_its_parser() {
    for (target, entry) in ENTRIES {
        let folder = fuzz().join("corpus").join(target);
        let mut seeds = 0;
        for seed in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = seed.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            // Whole, and cut short here and there.
            let step = (bytes.len() / 40).max(1);
            for length in (0..=bytes.len()).rev().step_by(step) {
                let run = || entry(&bytes[..length]);
                if std::panic::catch_unwind(run).is_err() {
                    panic!("{} cut at {length}: see above", path.display());
                }
            }
            seeds += 1;
        }
        assert!(seeds > 0, "{target} has no seed");
    }
}

/// Damages `bytes` here and there; `other` is a seed of the same target.
fn damage(random: &mut fastrand::Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..random.usize(1..6) {
        let at = random.usize(0..=bytes.len());
        let end = (at + random.usize(0..24)).min(bytes.len());
        match random.u8(0..7) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes.insert(at, random.u8(..)),
            2 => {
                let piece = bytes[at..end].to_vec();
                let to = random.usize(0..=bytes.len());
                bytes.splice(to..to, piece);
            }
            3 => {
                let from = random.usize(0..=other.len());
                let piece = other[from..(from + random.usize(0..40)).min(other.len())].to_vec();
                bytes.splice(at..end, piece);
            }
            4 => bytes[at..end].iter_mut().for_each(|byte| *byte = random.u8(..)),
            5 => bytes[at..end].iter_mut().take(1).for_each(|byte| *byte ^= 1 << random.u8(0..8)),
            _ => {
                let what = [
                    "-1",
                    "0",
                    "18446744073709551616",
                    "1e308",
                    "\"",
                    "\\u0000",
                    "{",
                    "[[[[",
                    "\u{fffd}",
                    "255",
                ];
                bytes.splice(at..at, random.choice(what).unwrap_or_default().bytes());
            }
        }
    }
}

#[test]
fn damaged_seeds_do_no_harm() {
    let times = std::env::var("FLOWLOGD_DAMAGED").map_or(150, |text| text.parse().unwrap());
    let only = std::env::var("FLOWLOGD_TARGET").unwrap_or_default();
    let chosen = || ENTRIES.into_iter().filter(|(target, _)| target.contains(only.as_str()));
    assert!(chosen().next().is_some(), "no target's name has {only:?}");
    for (target, entry) in chosen() {
        let mut paths: Vec<_> = fs::read_dir(fuzz().join("corpus").join(target))
            .unwrap()
            .map(|seed| seed.unwrap().path())
            .collect();
        paths.sort();
        let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..times {
            for seed in &seeds {
                let mut bytes = seed.clone();
                let other = random.choice(&seeds).unwrap();
                damage(&mut random, &mut bytes, other);
                if std::panic::catch_unwind(|| entry(&bytes)).is_err() {
                    let found =
                        std::env::temp_dir().join(format!("flowlogd-{target}-{}", std::process::id()));
                    fs::write(&found, &bytes).unwrap();
                    panic!("{target}: see above; the input is {}", found.display());
                }
            }
        }
    }
}

#[test]
fn targets_seeds_and_entries_are_the_same() {
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let entries: BTreeSet<String> = ENTRIES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), entries);
    assert_eq!(names("corpus"), entries);
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for name in &entries {
        let binary = format!("[[bin]]\nname = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"");
        assert!(manifest.contains(&binary), "{name} is not built");
        let target = fs::read_to_string(fuzz().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(target.contains(&format!("entries::{name}(bytes)")), "{name} runs another entry");
    }
}
