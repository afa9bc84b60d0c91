//! The lines of the files, and what they say of a connection.
//!
//! In: the folder of the log. Out: every line of every file; sums. What always holds: a line that is no JSON is an error.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::agent::log_files;

/// Packets and bytes.
pub type Sum = (u64, u64);

/// Bytes of all files of the log.
pub fn size(flowlogs: &Path) -> anyhow::Result<u64> {
    Ok(log_files(flowlogs)?.iter().filter_map(|file| fs::metadata(file).ok()).map(|of| of.len()).sum())
}

/// Whole lines of all files; also while one is written.
pub fn count(flowlogs: &Path) -> anyhow::Result<usize> {
    let files = log_files(flowlogs)?;
    Ok(files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .map(|text| text.matches('\n').count())
        .sum())
}

/// Every line of every file.
pub fn read(flowlogs: &Path) -> anyhow::Result<Vec<Value>> {
    let mut lines = Vec::new();
    for file in log_files(flowlogs)? {
        let name = file.display();
        // One that was rotated away meanwhile would be missed: callers read when nothing is written.
        for line in fs::read_to_string(&file)?.lines() {
            lines.push(
                serde_json::from_str(line).with_context(|| format!("{name} has a line that is no JSON"))?,
            );
        }
    }
    Ok(lines)
}

/// What the reporter saw going `out` and coming `in`, of the connection from this port.
pub fn sums(lines: &[Value], port: u16, reporter: &str) -> [Sum; 2] {
    let mine = lines.iter().filter(|line| line["source_port"] == port && line["reporter"] == reporter);
    mine.fold([(0, 0); 2], |[out, back], line| [add(out, line, "out"), add(back, line, "in")])
}

pub fn add((packets, bytes): Sum, line: &Value, direction: &str) -> Sum {
    let of = |what: &str| line[format!("{what}_{direction}")].as_u64().unwrap_or_default();
    (packets + of("packets"), bytes + of("bytes"))
}

/// Every line that tells traffic of a client that used one of these ports says this. How many those are; none is an error.
pub fn all(lines: &[Value], ports: std::ops::RangeInclusive<u64>, expected: &Value) -> anyhow::Result<usize> {
    let mut seen = 0;
    let expected = expected.as_object().context("not an object")?;
    for line in lines {
        // An agent that was killed adopts what is open and rests; such a connection may end before the cluster is known again.
        let moved = line["packets_in"] != 0 || line["packets_out"] != 0;
        if !moved || !line["source_port"].as_u64().is_some_and(|port| ports.contains(&port)) {
            continue;
        }
        if let Some((name, value)) = expected.iter().find(|(name, value)| line[name.as_str()] != **value) {
            bail!("{name} is {}, not {value}: {line}", line[name.as_str()]);
        }
        seen += 1;
    }
    ensure!(seen > 0, "no line of the ports {ports:?}");
    Ok(seen)
}
