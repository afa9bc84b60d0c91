//! `flowlogd policy preview`: what a change of policies would mean for flows that were seen.
//!
//! In: the cluster as it is (`--cluster`), changes (`--with` manifests applied over it, `--without` policies that would
//! be gone), flows (a recording, or flow logs of any level). Out: a table, or with `--json` one object: what becomes
//! denied, becomes allowed, stays, and what is uncertain because aggregation took it away. Exit code 1 where anything
//! becomes denied (`--strict`: or may), so that a pipeline stops. Always: a flow that both of its ends reported is
//! counted once. Not here: what policies say of a flow (`policy::preview`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use tracing::warn;

use crate::cluster::private_or_public;
use crate::config::Resolved;
use crate::flow::is_filter_reason;
use crate::model::{
    Addresses, ConnectionEvent, ConnectionRecord, Direction, DropRecord, EndpointKind, FiveTuple,
    Observation, Proto, Timestamp,
};
use crate::policy::Evaluator;
use crate::policy::preview::{
    Candidate, Change, Decider, Directory, KnownEnd, Outcome, SeenEnd, SeenFlow, View, compare, untold,
};
use crate::snapshot::{Object, ObjectRef, World};

use super::super::{Exit, Failure, Global};
use super::flows::{Counts, LogFlow, Reader, read};
use super::table::{self, Column, render};
use super::{hit_name, objects, resource, take_inputs, world};

/// Rows of the table; what does not fit is in one more row of its change.
const MOST_ROWS: usize = 100_000;
/// Outcomes that are remembered for lines that tell of the same flow.
const MOST_OUTCOMES: usize = 1 << 20;
/// Connections of a recording that are open at once; beyond it the counters of the oldest count no more.
const MOST_OPEN: usize = 1 << 20;

/// Tell which flows a change of policies would deny or allow.
#[derive(Args, Clone, Debug)]
pub struct PreviewArgs {
    /// Manifests that would be applied over the cluster (policies, namespaces, network sets, anything)
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub with: Vec<PathBuf>,
    /// Policies that would be gone, named as in the lines: knp:shop/allow-web, gnp:deny-all, tier:security
    #[arg(long, num_args = 1.., value_name = "KIND:NAME")]
    pub without: Vec<String>,
    /// Staged policies count as enforced after the change
    #[arg(long)]
    pub enforce_staged: bool,
    /// Exit code 1 also where a flow may become denied
    #[arg(long)]
    pub strict: bool,
    /// The flows that stay as they are too
    #[arg(long)]
    pub all: bool,
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// A recording, or flow log files of any level (rotated ones too), or - for stdin
    #[arg(value_name = "RECORDING|FLOWS.LOG")]
    pub inputs: Vec<PathBuf>,
}

pub fn run(global: &Global, resolved: &Resolved, args: &mut PreviewArgs) -> anyhow::Result<u8> {
    let mut paths = global.cluster.clone();
    take_inputs([&mut args.with, &mut paths], &mut args.inputs)?;
    if args.with.is_empty() && args.without.is_empty() && !args.enforce_staged {
        return Err(Failure::usage(
            "preview needs a change: --with MANIFESTS, --without KIND:NAME or --enforce-staged",
        )
        .into());
    }
    let before = world(global, &paths)?;
    let mut after = before.clone();
    after.inhabit();
    let mut changed = HashSet::new();
    for text in &args.without {
        let reference = ObjectRef::Policy(resource(text)?);
        let version = after.version();
        after.delete(&reference, Timestamp::MIN);
        if after.version() == version {
            return Err(Failure::usage(format!("--without {text}: there is none in the cluster")).into());
        }
        changed.insert(reference);
    }
    for object in objects(&args.with)? {
        changed.insert(object.reference());
        after.apply(object, Timestamp::MIN);
    }
    let mut preview = Preview {
        directory: Directory::of([(&before.cluster, &before.policies), (&after.cluster, &after.policies)]),
        before,
        after,
        changed,
        staged: args.enforce_staged,
        evaluators: [Evaluator::default(), Evaluator::default()],
        outcomes: HashMap::new(),
        open: HashMap::new(),
        rows: BTreeMap::new(),
        not_kept: 0,
    };
    let most_ips = usize::try_from(resolved.config.flow_logs_file_ips_limit).unwrap_or(usize::MAX);
    read(&args.inputs, most_ips, &mut preview)?;
    preview.close();
    if preview.not_kept > 0 {
        warn!(rows = preview.not_kept, "more rows than a table can hold: the rest is in the sums alone");
    }
    let width = table::width();
    let text = if args.json { preview.json() } else { preview.table(args.all, width) };
    super::super::print(text.as_bytes())?;
    let is_denied = |row: &Row| row.change == Change::BecomesDenied || args.strict && row.possible_deny;
    let denied = preview.settled().iter().any(|(row, _)| is_denied(row));
    Ok(if denied { Exit::NewDeny } else { Exit::Ok }.code())
}

/// A row of the table: flows that differ in nothing that it shows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    change: Change,
    source: Arc<str>,
    dest: Arc<str>,
    proto: Proto,
    port: Option<u16>,
    before: Option<Decider>,
    after: Option<Decider>,
    why: &'static str,
    /// Uncertain, and one of the flows that it may be would newly be denied.
    possible_deny: bool,
}

/// Zone, protocol, original direction, ICMP identifier.
type ConnectionId = (u16, Proto, Addresses, u16);
/// A connection of a recording: its row, its counters before the recording and now.
type Open = (Row, Counts, Counts);

struct Preview {
    before: World,
    after: World,
    /// What the change says stays so, whatever a recording applies later.
    changed: HashSet<ObjectRef>,
    directory: Directory,
    staged: bool,
    evaluators: [Evaluator; 2],
    outcomes: HashMap<SeenFlow, Outcome>,
    /// Connections of a recording, with their row and counters so far.
    open: HashMap<ConnectionId, Open>,
    /// What the sources reported, and what the destinations did.
    rows: BTreeMap<Row, [Counts; 2]>,
    not_kept: u64,
}

impl Preview {
    fn outcome(&mut self, flow: &SeenFlow, candidates: &[Candidate]) -> Outcome {
        let [first, second] = &mut self.evaluators;
        let mut before =
            View { cluster: &self.before.cluster, policies: &self.before.policies, evaluator: first };
        let mut after =
            View { cluster: &self.after.cluster, policies: &self.after.policies, evaluator: second };
        compare(&mut before, &mut after, flow, candidates, self.staged)
    }

    fn count(&mut self, row: Row, reporter: Direction, counts: Counts) {
        if self.rows.len() >= MOST_ROWS && !self.rows.contains_key(&row) {
            self.not_kept += 1;
            let rest = Row {
                source: "(others)".into(),
                dest: "(others)".into(),
                port: None,
                before: None,
                after: None,
                ..row
            };
            return self.add(rest, reporter, counts);
        }
        self.add(row, reporter, counts);
    }

    fn add(&mut self, row: Row, reporter: Direction, counts: Counts) {
        let [source, dest] = self.rows.entry(row).or_default();
        if reporter == Direction::Egress { source } else { dest }.add(counts);
    }

    /// What a recording tells of a flow, with its ends as they are at that time.
    fn exact(&mut self, tuple: FiveTuple, icmp: Option<(u8, u8)>, at: Timestamp) -> Row {
        let cluster = &self.before.cluster;
        let ports = |port: u16| tuple.proto.has_ports().then_some(port);
        let Addresses { src, dst, src_port, dst_port } = tuple.addresses;
        let ends = [src, dst].map(|ip| cluster.endpoint_at(ip, at, false).cloned());
        let namespace = |side: usize| ends.get(side)?.as_ref()?.namespace.clone();
        let seen = |ip: IpAddr, port: u16, side: usize| {
            let endpoint = ends.get(side).and_then(Option::as_ref);
            let peer = namespace(1 - side);
            let named = endpoint.or_else(|| cluster.network_set(ip, peer.as_deref()));
            SeenEnd {
                kind: named.map_or(EndpointKind::Net, |named| named.kind),
                namespace: named.and_then(|named| named.namespace.clone()),
                name: named.map(|named| named.name.clone()),
                name_aggr: named
                    .map_or_else(|| private_or_public(ip, false).into(), |named| named.name_aggr.clone()),
                ips: vec![ip],
                port: ports(port),
                endpoint: endpoint.map(|endpoint| KnownEnd(endpoint.clone())),
            }
        };
        let flow = SeenFlow {
            proto: tuple.proto,
            icmp,
            ends: [seen(src, src_port, 0), seen(dst, dst_port, 1)],
            reporter: Direction::Egress,
            passed: None,
            service: None,
            is_exempt: None,
        };
        let outcome = self.outcome(&flow, &[Candidate { tuple, ends }]);
        row(&flow, &outcome)
    }

    fn connection(&mut self, at: Timestamp, record: &ConnectionRecord) {
        let key = (record.zone, record.proto, record.original, record.icmp.map_or(0, |icmp| icmp.id));
        let now = Counts {
            flows: 1,
            packets: record.counters.original.packets.saturating_add(record.counters.reply.packets),
            bytes: record.counters.original.bytes.saturating_add(record.counters.reply.bytes),
        };
        if matches!(record.event, ConnectionEvent::End { confirmed: false }) {
            self.open.remove(&key);
            return;
        }
        if record.event == ConnectionEvent::New
            && let Some((row, base, last)) = self.open.remove(&key)
        {
            self.settle(row, base, last);
        }
        let (row, base, _) = match self.open.remove(&key) {
            Some(known) => known,
            None => {
                let tuple = FiveTuple {
                    proto: record.proto,
                    addresses: Addresses {
                        src: record.original.src,
                        src_port: record.original.src_port,
                        dst: record.reply.src,
                        dst_port: record.reply.src_port,
                    },
                };
                let icmp = record.icmp.map(|icmp| (icmp.kind, icmp.code));
                let row = self.exact(tuple, icmp, at);
                let base = if record.event == ConnectionEvent::Adopt { now } else { Counts::default() };
                (row, base, now)
            }
        };
        if matches!(record.event, ConnectionEvent::End { .. }) || self.open.len() >= MOST_OPEN {
            self.settle(row, base, now);
        } else {
            self.open.insert(key, (row, base, now));
        }
    }

    fn settle(&mut self, row: Row, base: Counts, last: Counts) {
        let counts = Counts {
            flows: 1,
            packets: last.packets.saturating_sub(base.packets),
            bytes: last.bytes.saturating_sub(base.bytes),
        };
        self.count(row, Direction::Egress, counts);
    }

    fn dropped(&mut self, at: Timestamp, record: &DropRecord) {
        if !is_filter_reason(&record.reason) {
            return;
        }
        let row = self.exact(record.tuple, record.icmp.map(|icmp| (icmp.kind, icmp.code)), at);
        self.count(row, Direction::Egress, Counts { flows: 1, packets: record.packets, bytes: record.bytes });
    }

    fn close(&mut self) {
        for (row, base, last) in std::mem::take(&mut self.open).into_values() {
            self.settle(row, base, last);
        }
    }

    /// What is shown, each flow once: of a flow that both ends reported, the numbers of the end that saw more; and
    /// where the source's line leaves open what the destination's tells, the destination's alone.
    fn settled(&self) -> Vec<(&Row, Counts)> {
        let key = |row: &Row| (row.source.clone(), row.dest.clone(), row.proto, row.port);
        let mut arrived: HashMap<_, u64> = HashMap::new();
        for (row, [_, dest]) in &self.rows {
            let flows = arrived.entry(key(row)).or_default();
            *flows = flows.saturating_add(dest.flows);
        }
        let told = |row: &Row, [source, dest]: &[Counts; 2]| {
            let arrived = arrived.get(&key(row)).copied().unwrap_or_default();
            row.change == Change::Uncertain && dest.flows == 0 && arrived >= source.flows && arrived > 0
        };
        let shown = self.rows.iter().filter(|(row, counts)| !told(row, counts));
        shown
            .map(|(row, [source, dest])| {
                let counts = Counts {
                    flows: source.flows.max(dest.flows),
                    packets: source.packets.max(dest.packets),
                    bytes: source.bytes.max(dest.bytes),
                };
                (row, counts)
            })
            .collect()
    }

    fn of(&self, change: Change) -> (Vec<(&Row, Counts)>, Counts) {
        let mut rows = self.settled();
        rows.retain(|(row, _)| row.change == change);
        let mut sum = Counts::default();
        rows.iter().for_each(|(_, counts)| sum.add(*counts));
        (rows, sum)
    }

    fn table(&self, all: bool, width: Option<usize>) -> String {
        let columns = [
            ("SOURCE", Column::Shrinks),
            ("DESTINATION", Column::Shrinks),
            ("PROTO", Column::Text),
            ("PORT", Column::Number),
            ("FLOWS", Column::Number),
            ("BYTES", Column::Number),
            ("NOW > THEN", Column::Shrinks),
        ];
        let mut text = String::new();
        let mut sums = Vec::new();
        for change in Change::ALL {
            let (mut rows, sum) = self.of(change);
            sums.push(vec![
                change.name().to_owned(),
                rows.len().to_string(),
                sum.flows.to_string(),
                sum.packets.to_string(),
                sum.bytes.to_string(),
            ]);
            let stays = matches!(change, Change::StaysAllowed | Change::StaysDenied);
            if rows.is_empty() || stays && !all {
                continue;
            }
            rows.sort_by_key(|(row, counts)| (std::cmp::Reverse(counts.bytes), *row));
            let cells: Vec<Vec<String>> = rows
                .iter()
                .map(|(row, counts)| {
                    vec![
                        row.source.to_string(),
                        row.dest.to_string(),
                        row.proto.to_string(),
                        row.port.map_or_else(|| "-".to_owned(), |port| port.to_string()),
                        counts.flows.to_string(),
                        counts.bytes.to_string(),
                        decision(row),
                    ]
                })
                .collect();
            // Writing into memory does not fail.
            let _ = writeln!(text, "{}", change.name());
            let wide = render(&columns, &cells, 2, None);
            let fits = width.is_none_or(|width| wide.lines().all(|line| line.chars().count() <= width));
            if fits {
                text.push_str(&wide);
            } else {
                // What decides stands beneath its flow.
                let columns = columns.get(..columns.len() - 1).unwrap_or_default();
                let narrow = render(columns, &cells, 2, width);
                let beneath = cells.iter().filter_map(|row| row.last());
                let mut lines = narrow.lines();
                let _ = writeln!(text, "{}", lines.next().unwrap_or_default());
                for (line, decision) in lines.zip(beneath) {
                    let _ = writeln!(text, "{line}\n    {decision}");
                }
            }
            text.push('\n');
        }
        let columns = [
            ("CHANGE", Column::Text),
            ("ROWS", Column::Number),
            ("FLOWS", Column::Number),
            ("PACKETS", Column::Number),
            ("BYTES", Column::Number),
        ];
        text.push_str(&render(&columns, &sums, 0, width));
        text
    }

    fn json(&self) -> String {
        let decider = |decider: &Option<Decider>| {
            decider.as_ref().map(|decider| {
                json!({
                    "direction": direction(decider.direction),
                    "tier": *decider.hit.tier,
                    "policy": super::policy_name(decider.hit.kind, decider.hit.namespace.as_deref(), &decider.hit.name),
                    "action": decider.hit.action.name(),
                    "rule": decider.hit.rule,
                })
            })
        };
        let mut summary = serde_json::Map::new();
        let mut flows = Vec::new();
        for change in Change::ALL {
            let (rows, sum) = self.of(change);
            let key = change.name().replace(' ', "_");
            let sums =
                json!({"rows": rows.len(), "flows": sum.flows, "packets": sum.packets, "bytes": sum.bytes});
            summary.insert(key.clone(), sums);
            for (row, counts) in rows {
                flows.push(json!({
                    "change": key,
                    "source": *row.source,
                    "dest": *row.dest,
                    "proto": row.proto.to_string(),
                    "dest_port": row.port,
                    "flows": counts.flows,
                    "packets": counts.packets,
                    "bytes": counts.bytes,
                    "now": decider(&row.before),
                    "then": decider(&row.after),
                    "why": if row.why.is_empty() { Value::Null } else { row.why.into() },
                    "may_become_denied": row.possible_deny,
                }));
            }
        }
        let mut text =
            serde_json::to_string_pretty(&json!({"summary": summary, "flows": flows})).unwrap_or_default();
        text.push('\n');
        text
    }
}

impl Reader for Preview {
    fn log(&mut self, line: LogFlow) -> anyhow::Result<()> {
        let LogFlow { flow, counts, .. } = line;
        let outcome = match self.outcomes.get(&flow) {
            Some(known) => known.clone(),
            None => {
                let outcome = match self.directory.candidates(&flow, &self.before.cluster) {
                    Ok(candidates) => self.outcome(&flow, &candidates),
                    Err(why) => untold(why),
                };
                if self.outcomes.len() >= MOST_OUTCOMES {
                    self.outcomes.clear();
                }
                self.outcomes.insert(flow.clone(), outcome.clone());
                outcome
            }
        };
        self.count(row(&flow, &outcome), flow.reporter, counts);
        Ok(())
    }

    fn observation(&mut self, at: Timestamp, observation: &Observation) -> anyhow::Result<()> {
        match observation {
            Observation::Connection(record) => self.connection(at, record),
            Observation::Drop(record) => self.dropped(at, record),
            _ => {}
        }
        Ok(())
    }

    fn apply(&mut self, at: Timestamp, object: Object) -> anyhow::Result<()> {
        if !self.changed.contains(&object.reference()) {
            self.after.apply(object.clone(), at);
        }
        self.before.apply(object, at);
        Ok(())
    }

    fn delete(&mut self, at: Timestamp, object: &ObjectRef) -> anyhow::Result<()> {
        if !self.changed.contains(object) {
            self.after.delete(object, at);
        }
        self.before.delete(object, at);
        Ok(())
    }
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    }
}

fn row(flow: &SeenFlow, outcome: &Outcome) -> Row {
    let [source, dest] = &flow.ends;
    Row {
        change: outcome.change,
        source: label(source),
        dest: label(dest),
        proto: flow.proto,
        port: dest.port,
        before: outcome.before.clone().filter(|_| outcome.change != Change::Uncertain),
        after: outcome.after.clone().filter(|_| outcome.change != Change::Uncertain),
        why: outcome.why,
        possible_deny: outcome.possible.contains(&Change::BecomesDenied),
    }
}

fn label(end: &SeenEnd) -> Arc<str> {
    match &end.namespace {
        Some(namespace) => format!("{namespace}/{}", end.name_aggr).into(),
        None => end.name_aggr.clone(),
    }
}

/// What decides now and then; one alone where it is the same, and the policy's name once.
fn decision(row: &Row) -> String {
    let name = |decider: &Option<Decider>| {
        decider.as_ref().map_or_else(|| "-".to_owned(), |decider| hit_name(&decider.hit))
    };
    let policy = |decider: &Option<Decider>| {
        decider.as_ref().map(|of| (of.hit.kind, of.hit.namespace.clone(), of.hit.name.clone()))
    };
    let (before, after) = (name(&row.before), name(&row.after));
    match (row.change, &row.after) {
        (Change::Uncertain, _) if row.possible_deny => format!("may be denied: {}", row.why),
        (Change::Uncertain, _) => row.why.to_owned(),
        _ if before == after => before,
        (_, Some(then)) if policy(&row.before) == policy(&row.after) => {
            format!("{before} > {} {}", then.hit.action.name(), then.hit.rule)
        }
        _ => format!("{before} > {after}"),
    }
}
