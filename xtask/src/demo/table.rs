//! Tables on stdout.
//!
//! In: lines, comparisons. Out: text, 80 to 140 columns wide as long as names are those of the demo.

use std::fmt::Write as _;

use super::lines::Line;

/// Columns as wide as their widest cell, two blanks between; `right` are flush right. A row of one cell is a heading.
pub fn table(head: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.len()).collect();
    for row in rows.iter().filter(|row| row.len() > 1) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        if let [heading] = row.as_slice() {
            text.push_str(heading);
            text.push('\n');
            continue;
        }
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing to memory does not fail.
            let _ = if right.contains(&column) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

pub fn dash(port: Option<u16>) -> String {
    port.map_or("-".into(), |port| port.to_string())
}

/// The flow log, window by window. Lines of connections that were open and silent are only counted.
pub fn flow_logs(lines: &[Line]) -> String {
    let head = [
        "rep",
        "action",
        "source",
        "dest",
        "service",
        "proto",
        "ip",
        "port",
        "packets",
        "bytes",
        "flows",
        "drop reason",
    ];
    let mut rows = Vec::new();
    let mut window = None;
    let mut silent = 0;
    for line in lines {
        if line.is_silent() {
            silent += 1;
            continue;
        }
        if window != Some(line.start) {
            window = Some(line.start);
            rows.push(vec![format!("window {} to {}", clock(line.start), clock(line.end))]);
        }
        let [incoming, outgoing] = line.counts;
        rows.push(vec![
            line.reporter.clone(),
            line.action.clone(),
            line.source.clone(),
            line.dest.clone(),
            line.service.clone().unwrap_or("-".into()),
            line.proto.clone(),
            line.families().to_owned(),
            dash(line.port),
            format!("{}/{}", incoming.packets, outgoing.packets),
            format!("{}/{}", incoming.bytes, outgoing.bytes),
            format!("{}/{}/{}", line.flows, line.started, line.completed),
            if line.drop_reasons.is_empty() { "-".into() } else { line.drop_reasons.join(",") },
        ]);
    }
    let mut text = table(&head, &[7, 8, 9, 10], &rows);
    if silent > 0 {
        let _ = writeln!(text, "({silent} more lines of connections that were open and silent in a window)");
    }
    text
}

fn clock(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or("?".into(), |at| at.strftime("%H:%M:%S").to_string())
}
