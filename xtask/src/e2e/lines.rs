//! The lines of the files, and what they say of a connection.
//!
//! In: the folder of the log. Out: every line of every file; sums. What always holds: a line that is no JSON is an error.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::mininode::NODE;

/// Packets and bytes.
pub type Sum = (u64, u64);

/// Every line of every file.
pub fn read(flowlogs: &Path) -> anyhow::Result<Vec<Value>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(flowlogs)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_log = name == "flows.log"
            || name.strip_prefix("flows.log.").is_some_and(|number| number.parse::<u32>().is_ok());
        if !is_log {
            continue;
        }
        // One that was rotated away meanwhile would be missed: callers read when nothing is written.
        for line in fs::read_to_string(entry.path())?.lines() {
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

/// Lines that tell traffic of a client that used one of these ports.
pub fn of_ports(lines: &[Value], ports: std::ops::RangeInclusive<u64>) -> impl Iterator<Item = &Value> {
    lines.iter().filter(move |line| {
        // An agent that was killed adopts what is open and rests; such a connection may end before the cluster is known again.
        let moved = line["packets_in"] != 0 || line["packets_out"] != 0;
        moved && line["source_port"].as_u64().is_some_and(|port| ports.contains(&port))
    })
}

/// Every line of these ports has these names.
pub fn named(
    lines: &[Value],
    ports: std::ops::RangeInclusive<u64>,
    destination: (&str, std::net::IpAddr),
) -> anyhow::Result<usize> {
    let mut seen = 0;
    for line in of_ports(lines, ports) {
        let is_right = line["host"] == NODE
            && line["source_namespace"] == "shop"
            && line["source_name"] == "client-1"
            && line["source_name_aggr"] == "client-*"
            && line["source_type"] == "wep"
            && line["dest_namespace"] == "shop"
            && line["dest_name"] == destination.0
            && line["dest_name_aggr"] == "server-*"
            && line["dest_ip"] == destination.1.to_string()
            && line["action"] == "allow";
        ensure!(is_right, "not client-1 to {} at {}: {line}", destination.0, destination.1);
        seen += 1;
    }
    ensure!(seen > 0, "no line to {}", destination.0);
    Ok(seen)
}
