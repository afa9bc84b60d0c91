//! Summaries: who talks most, what is denied, on which ports, by which policies, and where policy and kernel differ.
//!
//! In: lines. Out: a table of the greatest, or the same as JSON. Always: memory is bounded: of more keys than
//! [`MOST_KEYS`] the rest is summed under `others`, and said. Traffic between two pods of one node is told by both
//! ends: where a summary adds traffic, the greater of both tellings counts, not their sum.

use std::collections::HashMap;

use clap::ValueEnum;
use foldhash::fast::RandomState;
use serde_json::json;

use crate::wire::view::LineView;

use super::screen::{Paint, Screen, cell, short};
use super::table;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Pairs by bytes
    Talkers,
    /// Denied flows by packets
    Denied,
    /// Protocols and ports by bytes
    Ports,
    /// Policies that decided, by flows
    Policies,
    /// Flows of which policy says otherwise than the kernel did
    Mismatch,
}

/// Keys that are kept apart.
const MOST_KEYS: usize = 20_000;

/// Rows that are shown unless it is said otherwise.
pub const ROWS: usize = 20;

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    bytes: u64,
    packets: u64,
    flows: u64,
}

impl Sums {
    fn add(&mut self, line: &LineView<'_>) {
        self.bytes = self.bytes.saturating_add(line.bytes_in).saturating_add(line.bytes_out);
        self.packets = self.packets.saturating_add(line.packets_in).saturating_add(line.packets_out);
        self.flows = self.flows.saturating_add(line.num_flows_started.max(u64::from(line.num_flows > 0)));
    }

    fn greater(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.max(other.bytes),
            packets: self.packets.max(other.packets),
            flows: self.flows.max(other.flows),
        }
    }
}

pub struct Top {
    kind: Kind,
    rows: usize,
    lines: u64,
    /// By what the row shows; as the source and as the destination tell it.
    keys: HashMap<Vec<String>, [Sums; 2], RandomState>,
    /// Lines whose keys had no place.
    others: u64,
}

impl Top {
    pub fn new(kind: Kind, rows: usize) -> Self {
        Self { kind, rows, lines: 0, keys: HashMap::default(), others: 0 }
    }

    pub fn add(&mut self, line: &LineView<'_>) {
        self.lines += 1;
        let policies = || line.policies.iter().flat_map(|policies| &policies.enforced_policies);
        match self.kind {
            Kind::Talkers => self.count(vec![table::source(line), table::dest(line)], line),
            Kind::Denied if line.action == "deny" => {
                self.count(
                    vec![table::source(line), table::dest(line), table::port(line), table::why(line)],
                    line,
                );
            }
            Kind::Ports => {
                self.count(
                    vec![table::port(line), table::service(line).unwrap_or_else(|| "-".to_owned())],
                    line,
                );
            }
            Kind::Policies => {
                for entry in policies() {
                    // index|tier|name|action|rule
                    let mut parts = entry.splitn(3, '|').skip(1);
                    let (Some(tier), Some(rest)) = (parts.next(), parts.next()) else { continue };
                    let mut back = rest.rsplitn(3, '|').skip(1);
                    let (Some(action), Some(name)) = (back.next(), back.next()) else { continue };
                    self.count(vec![tier.to_owned(), name.to_owned(), action.to_owned()], line);
                }
            }
            Kind::Mismatch if line.policy_mismatch == Some(true) => {
                let action = line.action.to_string();
                self.count(
                    vec![action, table::source(line), table::dest(line), table::port(line), table::why(line)],
                    line,
                );
            }
            Kind::Denied | Kind::Mismatch => {}
        }
    }

    fn count(&mut self, key: Vec<String>, line: &LineView<'_>) {
        let side = usize::from(line.reporter == "dst");
        if self.keys.len() >= MOST_KEYS && !self.keys.contains_key(&key) {
            self.others += 1;
            return;
        }
        self.keys.entry(key).or_default()[side].add(line);
    }

    /// The greatest first; equal ones by name.
    fn greatest(&self, rows: usize) -> Vec<(&[String], Sums)> {
        let both = |[src, dst]: &[Sums; 2]| match self.kind {
            // Each end has its own verdict.
            Kind::Policies | Kind::Denied | Kind::Mismatch => Sums {
                bytes: src.bytes.saturating_add(dst.bytes),
                packets: src.packets.saturating_add(dst.packets),
                flows: src.flows.saturating_add(dst.flows),
            },
            Kind::Talkers | Kind::Ports => src.greater(*dst),
        };
        let weight = |sums: &Sums| match self.kind {
            Kind::Talkers | Kind::Ports => sums.bytes,
            Kind::Denied | Kind::Mismatch => sums.packets,
            Kind::Policies => sums.flows,
        };
        let mut all: Vec<(&[String], Sums)> =
            self.keys.iter().map(|(key, sums)| (&**key, both(sums))).collect();
        all.sort_unstable_by(|(a, x), (b, y)| weight(y).cmp(&weight(x)).then_with(|| a.cmp(b)));
        all.truncate(rows);
        all
    }

    fn titles(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Talkers => &["SOURCE", "DEST"],
            Kind::Denied => &["SOURCE", "DEST", "PORT", "POLICY"],
            Kind::Ports => &["PORT", "SERVICE"],
            Kind::Policies => &["TIER", "POLICY", "ACTION"],
            Kind::Mismatch => &["ACTION", "SOURCE", "DEST", "PORT", "POLICY"],
        }
    }

    pub fn table(&self, screen: &Screen, out: &mut String) {
        const NUMBERS: [(&str, usize); 3] = [("BYTES", 6), ("PACKETS", 7), ("FLOWS", 6)];
        // All of it stands on the screen: titles, rows, the foot, and the line on which the cursor waits.
        let rows = self.greatest(self.rows.min(screen.height.saturating_sub(3)));
        let titles = self.titles();
        let taken: usize = NUMBERS.iter().map(|(_, width)| width + 1).sum();
        let free = screen.width.saturating_sub(taken + titles.len() - 1);
        let mut widths: Vec<usize> = titles
            .iter()
            .enumerate()
            .map(|(n, title)| {
                let cells = rows.iter().filter_map(|(key, _)| key.get(n));
                cells
                    .map(|text| super::screen::width(&super::screen::safe(text)))
                    .chain([title.len()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        // The widest gives way first.
        while widths.iter().sum::<usize>() > free {
            let Some(widest) = widths.iter_mut().max().filter(|widest| **widest > 4) else { break };
            *widest -= 1;
        }
        let mut line = String::new();
        for (title, width) in NUMBERS {
            line.push_str(&cell(title, width, true));
            line.push(' ');
        }
        let cells = |texts: &mut dyn Iterator<Item = &str>| {
            texts.zip(&widths).map(|(text, width)| cell(text, *width, false)).collect::<Vec<_>>().join(" ")
        };
        line.push_str(&cells(&mut titles.iter().copied()));
        screen.paint(Paint::Bold, line.trim_end(), out);
        out.push('\n');
        for (key, sums) in &rows {
            for (n, (_, width)) in [sums.bytes, sums.packets, sums.flows].into_iter().zip(NUMBERS) {
                out.push_str(&cell(&short(n), width, true));
                out.push(' ');
            }
            out.push_str(cells(&mut key.iter().map(String::as_str)).trim_end());
            out.push('\n');
        }
        let mut foot = format!("{} of {} from {} lines", rows.len(), self.keys.len(), self.lines);
        if self.others > 0 {
            foot.push_str(&format!(", {} lines of others", self.others));
        }
        screen.paint(Paint::Dim, &foot, out);
        out.push('\n');
    }

    /// One object.
    pub fn json(&self) -> String {
        let rows: Vec<_> = self
            .greatest(self.rows)
            .into_iter()
            .map(|(key, sums)| {
                let mut row = serde_json::Map::new();
                for (title, value) in self.titles().iter().zip(key) {
                    row.insert(title.to_lowercase(), value.as_str().into());
                }
                row.insert("bytes".into(), sums.bytes.into());
                row.insert("packets".into(), sums.packets.into());
                row.insert("flows".into(), sums.flows.into());
                row
            })
            .collect();
        json!({ "rows": rows, "keys": self.keys.len(), "lines": self.lines, "lines_of_others": self.others })
            .to_string()
            + "\n"
    }
}
