//! The flow log against the kernel: the same sums, or the demo has failed.
//!
//! In: lines, connections as conntrack counted them, drop counters. Out: one row for each (reporter, action, source,
//! dest, proto, port) with both sums. What always holds: every line and every connection is in a row; a row that only
//! one side has is not equal. Who is behind an address comes from the demo's plan (`node.rs`), not from the agent.

use std::collections::BTreeMap;

use super::kernel::{Connection, Count};
use super::lines::Line;
use super::node::{self, Denied};
use super::table;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    reporter: &'static str,
    action: &'static str,
    source: String,
    dest: String,
    proto: String,
    port: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    counts: [Count; 2],
    /// `None`: the kernel does not count attempts that it drops.
    started: Option<u64>,
}

impl Sums {
    fn add(&mut self, [incoming, outgoing]: [Count; 2], started: Option<u64>) {
        let [mine_in, mine_out] = &mut self.counts;
        *mine_in += incoming;
        *mine_out += outgoing;
        if let Some(started) = started {
            *self.started.get_or_insert(0) += started;
        }
    }
}

#[derive(Default)]
pub struct Comparison(BTreeMap<Key, [Option<Sums>; 2]>);

const LINES: usize = 0;
const KERNEL: usize = 1;

impl Comparison {
    fn add(&mut self, side: usize, key: Key, counts: [Count; 2], started: Option<u64>) {
        if let Some(sums) = self.0.entry(key).or_default().get_mut(side) {
            sums.get_or_insert_default().add(counts, started);
        }
    }

    pub fn add_lines(&mut self, lines: &[Line]) {
        for line in lines {
            let key = Key {
                reporter: if line.reporter == "src" { "src" } else { "dst" },
                action: if line.action == "allow" { "allow" } else { "deny" },
                source: line.source.clone(),
                dest: line.dest.clone(),
                proto: line.proto.clone(),
                port: line.port,
            };
            self.add(LINES, key, line.counts, Some(line.started));
        }
    }

    /// `replaced`: when the pod was replaced, seconds since 1970.
    pub fn add_connections(&mut self, connections: &[Connection], replaced: f64) {
        for connection in connections {
            let Some([original, reply]) = connection.counts else { continue };
            let after = connection.at >= replaced;
            // The reply comes from where DNAT sent the connection.
            let [source, dest] =
                [connection.original.src, connection.reply.src].map(|ip| node::end_of(ip, after));
            for (reporter, end, counts) in
                [("src", &source, [reply, original]), ("dst", &dest, [original, reply])]
            {
                if end.contains('/') {
                    let key = Key {
                        reporter,
                        action: "allow",
                        source: source.clone(),
                        dest: dest.clone(),
                        proto: connection.proto.clone(),
                        port: connection.reply.src_port,
                    };
                    self.add(KERNEL, key, counts, Some(1));
                }
            }
        }
    }

    /// The last local end denies; a local source before it let the packets out.
    pub fn add_drops(&mut self, denied: &Denied, count: Count) {
        let nothing = Count::default();
        let key = |reporter, action| Key {
            reporter,
            action,
            source: denied.source.end(),
            dest: denied.dest.map_or("pvt".into(), |pod| pod.end()),
            proto: denied.proto.to_owned(),
            port: Some(denied.port),
        };
        if denied.dest.is_some() {
            self.add(KERNEL, key("src", "allow"), [nothing, count], None);
            self.add(KERNEL, key("dst", "deny"), [count, nothing], None);
        } else {
            self.add(KERNEL, key("src", "deny"), [nothing, count], None);
        }
    }

    /// Rows, and how many of them are not equal.
    pub fn show(&self) -> (String, usize) {
        let head = [
            "rep",
            "action",
            "source",
            "dest",
            "proto",
            "port",
            "started",
            "packets: lines | kernel",
            "bytes: lines | kernel",
            "equal",
        ];
        let mut unequal = 0;
        let rows: Vec<_> = self
            .0
            .iter()
            .map(|(key, [lines, kernel])| {
                let equal = is_equal(lines.as_ref(), kernel.as_ref());
                unequal += usize::from(!equal);
                let both = |show: &dyn Fn(&Sums) -> String| {
                    let [lines, kernel] =
                        [lines, kernel].map(|side| side.as_ref().map_or("nothing".into(), show));
                    format!("{lines} | {kernel}")
                };
                vec![
                    key.reporter.to_owned(),
                    key.action.to_owned(),
                    key.source.clone(),
                    key.dest.clone(),
                    key.proto.clone(),
                    table::dash(key.port),
                    both(&|sums| sums.started.map_or("-".into(), |n| n.to_string())),
                    both(&|Sums { counts: [i, o], .. }| format!("{}/{}", i.packets, o.packets)),
                    both(&|Sums { counts: [i, o], .. }| format!("{}/{}", i.bytes, o.bytes)),
                    if equal { "yes".into() } else { "NO".into() },
                ]
            })
            .collect();
        (table::table(&head, &[5, 6, 7, 8], &rows), unequal)
    }

    pub fn rows(&self) -> usize {
        self.0.len()
    }
}

fn is_equal(lines: Option<&Sums>, kernel: Option<&Sums>) -> bool {
    match (lines, kernel) {
        (Some(lines), Some(kernel)) => {
            lines.counts == kernel.counts && (kernel.started.is_none() || lines.started == kernel.started)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_one_side_or_with_one_byte_less_is_not_equal() {
        let denied = &node::DENIED[0];
        let count = Count { packets: 2, bytes: 120 };
        let mut comparison = Comparison::default();
        comparison.add_drops(denied, count);
        assert_eq!((comparison.show().1, comparison.rows()), (2, 2));
        let keys: Vec<Key> = comparison.0.keys().cloned().collect();
        for key in keys {
            let counts =
                if key.reporter == "dst" { [count, Count::default()] } else { [Count::default(), count] };
            comparison.add(LINES, key, counts, Some(1));
        }
        assert_eq!(comparison.show().1, 0);
        let (key, _) = comparison.0.first_key_value().unwrap();
        let more = [Count { packets: 0, bytes: 1 }, Count::default()];
        comparison.add(LINES, key.clone(), more, Some(0));
        assert_eq!(comparison.show().1, 1);
    }
}
