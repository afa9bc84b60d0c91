//! `flowlogd policy unused`: policies and rules that no flow of the given logs or recordings needed.
//!
//! In: the cluster, flow logs (their policy lists, in either name style) or recordings (evaluated). Out: a table, or
//! with `--json` one object: policies that no trace names, and rules of the others that none does. Always: a rule of one
//! direction is not the rule of the same number of the other. What the answer is worth is bounded by the flows given:
//! the end of a tier names one policy of several, so that a policy with rules alone for show may stand there unused.
//! Not here: how traces come about.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use crate::config::Resolved;
use crate::model::{
    Action, Addresses, ConnectionEvent, Direction, Endpoint, FiveTuple, Hit, Observation, Timestamp, Trace,
};
use crate::policy::ir::{Policy, PolicyId};
use crate::policy::{Evaluator, Question};
use crate::snapshot::{Object, ObjectRef, World};
use crate::wire::flow_log::{NameStyle, policy_entries};

use super::super::{Exit, Failure, Global};
use super::flows::{LogFlow, Reader, read};
use super::table::{self, Column, render};
use super::{policy_name, take_inputs, world};

/// Tell which policies and rules no flow of these logs used.
#[derive(Args, Clone, Debug)]
pub struct UnusedArgs {
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// A recording, or flow log files of any level (rotated ones too), or - for stdin
    #[arg(value_name = "RECORDING|FLOWS.LOG")]
    pub inputs: Vec<PathBuf>,
}

pub fn run(global: &Global, resolved: &Resolved, args: &mut UnusedArgs) -> anyhow::Result<u8> {
    let mut paths = global.cluster.clone();
    take_inputs([&mut paths, &mut Vec::new()], &mut args.inputs)?;
    let world = world(global, &paths)?;
    let mut used = Used {
        names: HashMap::new(),
        named_at: None,
        world,
        evaluator: Evaluator::default(),
        hits: BTreeSet::new(),
        policies: BTreeMap::new(),
        flows: 0,
    };
    used.note_policies();
    let most_ips = usize::try_from(resolved.config.flow_logs_file_ips_limit).unwrap_or(usize::MAX);
    read(&args.inputs, most_ips, &mut used)?;
    if used.policies.is_empty() {
        return Err(Failure::usage(
            "there are no policies: give the cluster's manifests with --cluster, or a recording that has them",
        )
        .into());
    }
    let unused = used.unused();
    let text = if args.json { used.json(&unused) } else { used.table(&unused) };
    super::super::print(text.as_bytes())?;
    Ok(Exit::Ok.code())
}

struct Used {
    world: World,
    evaluator: Evaluator,
    /// Tier and name of an entry, in either style, and which policy it is.
    names: HashMap<(String, String), PolicyId>,
    /// The version of the policies of which `names` tells.
    named_at: Option<u64>,
    hits: BTreeSet<(PolicyId, Direction, i32)>,
    /// Every policy that there was.
    policies: BTreeMap<PolicyId, Arc<Policy>>,
    flows: u64,
}

/// A policy that is not used, or a rule of one that is.
struct Unused<'a> {
    policy: &'a Policy,
    /// Direction, number and text.
    rule: Option<(Direction, usize, String)>,
    endpoints: usize,
}

impl Used {
    fn note_policies(&mut self) {
        if self.named_at == Some(self.world.policies.version()) {
            return;
        }
        self.named_at = Some(self.world.policies.version());
        for policy in self.world.policies.policies() {
            self.policies.insert(policy.id.clone(), policy.clone());
            let hit = Hit {
                tier: policy.tier.clone(),
                kind: policy.id.kind,
                namespace: policy.id.namespace.clone(),
                name: policy.id.name.clone(),
                action: Action::Pass,
                rule: -1,
            };
            let trace = Trace([hit].into());
            for style in [NameStyle::Dotted, NameStyle::Kind] {
                for entry in policy_entries(&trace, style) {
                    if let Some((tier, name, _)) = parts(&entry) {
                        self.names.insert((tier.to_owned(), name.to_owned()), policy.id.clone());
                    }
                }
            }
        }
    }

    fn evaluated(&mut self, at: Timestamp, tuple: FiveTuple, icmp: Option<(u8, u8)>) {
        self.flows += 1;
        let cluster = &self.world.cluster;
        let Addresses { src, dst, .. } = tuple.addresses;
        let ends = [src, dst].map(|ip| cluster.endpoint_at(ip, at, false).cloned());
        let [source, dest]: [Option<&Arc<Endpoint>>; 2] = [ends[0].as_ref(), ends[1].as_ref()];
        let question = Question { tuple, icmp, ends: [source, dest] };
        let evaluations = self.evaluator.evaluate(cluster, &self.world.policies, &question, [true, true]);
        for (direction, evaluation) in [Direction::Egress, Direction::Ingress].into_iter().zip(evaluations) {
            let Some(evaluation) = evaluation else { continue };
            for hit in [&evaluation.enforced, &evaluation.pending, &evaluation.all]
                .into_iter()
                .flat_map(|t| t.0.iter())
            {
                let id =
                    PolicyId { kind: hit.kind, namespace: hit.namespace.clone(), name: hit.name.clone() };
                self.hits.insert((id, direction, hit.rule));
            }
        }
    }

    fn unused(&self) -> Vec<Unused<'_>> {
        let used: BTreeSet<&PolicyId> = self.hits.iter().map(|(id, ..)| id).collect();
        let mut all = Vec::new();
        for policy in self.policies.values() {
            let endpoints = self.selected(policy);
            if !used.contains(&policy.id) {
                all.push(Unused { policy, rule: None, endpoints });
                continue;
            }
            for (direction, rules) in
                [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)]
            {
                for (index, rule) in rules.iter().flat_map(|rules| rules.iter()).enumerate() {
                    let number = i32::try_from(index).unwrap_or(i32::MAX);
                    // A rule that logs never decides.
                    let logs = rule.action == crate::policy::ir::RuleAction::Log;
                    if !logs && !self.hits.contains(&(policy.id.clone(), direction, number)) {
                        let rule = Some((direction, index, rule.to_string()));
                        all.push(Unused { policy, rule, endpoints });
                    }
                }
            }
        }
        all
    }

    /// How many pods and host endpoints the policy selects now.
    fn selected(&self, policy: &Policy) -> usize {
        let cluster = &self.world.cluster;
        let pods = cluster.pods().filter(|pod| !pod.host_network && !pod.finished).map(|pod| &pod.endpoint);
        let hosts = cluster.host_endpoints().map(|host| &host.endpoint);
        pods.chain(hosts)
            .filter(|end| crate::policy::selects(policy, end, cluster, &self.world.policies))
            .count()
    }

    fn table(&self, unused: &[Unused<'_>]) -> String {
        let columns = [
            ("TIER", Column::Text),
            ("POLICY", Column::Shrinks),
            ("ENDPOINTS", Column::Number),
            ("RULE", Column::Text),
            ("WHAT", Column::Shrinks),
        ];
        let rows: Vec<Vec<String>> = unused
            .iter()
            .map(|unused| {
                let id = &unused.policy.id;
                let (rule, what) = match &unused.rule {
                    Some((direction, index, text)) => (format!("{} {index}", word(*direction)), text.clone()),
                    None => ("-".to_owned(), "the whole policy".to_owned()),
                };
                vec![
                    unused.policy.tier.to_string(),
                    policy_name(id.kind, id.namespace.as_deref(), &id.name),
                    unused.endpoints.to_string(),
                    rule,
                    what,
                ]
            })
            .collect();
        let whole = unused.iter().filter(|unused| unused.rule.is_none()).count();
        let mut text =
            if rows.is_empty() { String::new() } else { render(&columns, &rows, 0, table::width()) + "\n" };
        text.push_str(&format!(
            "{whole} of {} policies and {} rules of the others were used by none of {} flows\n",
            self.policies.len(),
            unused.len() - whole,
            self.flows,
        ));
        text
    }

    fn json(&self, unused: &[Unused<'_>]) -> String {
        let policy = |unused: &Unused<'_>| {
            let id = &unused.policy.id;
            json!({
                "tier": *unused.policy.tier,
                "policy": policy_name(id.kind, id.namespace.as_deref(), &id.name),
                "endpoints": unused.endpoints,
            })
        };
        let policies: Vec<Value> = unused.iter().filter(|unused| unused.rule.is_none()).map(policy).collect();
        let rules: Vec<Value> = unused
            .iter()
            .filter_map(|unused| {
                let (direction, index, says) = unused.rule.as_ref()?;
                let mut object = policy(unused);
                object["direction"] = word(*direction).into();
                object["rule"] = (*index).into();
                object["says"] = says.clone().into();
                Some(object)
            })
            .collect();
        let mut text = serde_json::to_string_pretty(&json!({
            "flows": self.flows,
            "policies_known": self.policies.len(),
            "policies": policies,
            "rules": rules,
        }))
        .unwrap_or_default();
        text.push('\n');
        text
    }
}

impl Reader for Used {
    fn log(&mut self, line: LogFlow) -> anyhow::Result<()> {
        self.flows += line.counts.flows;
        for entry in &line.policies {
            let Some((tier, name, rule)) = parts(entry) else { continue };
            // How some releases wrote a staged policy: the word after the tier.
            let key = (tier.to_owned(), name.replace(&format!("{tier}.staged:"), &format!("staged:{tier}.")));
            if let Some(id) = self.names.get(&key) {
                self.hits.insert((id.clone(), line.flow.reporter, rule));
            }
        }
        Ok(())
    }

    fn observation(&mut self, at: Timestamp, observation: &Observation) -> anyhow::Result<()> {
        match observation {
            Observation::Connection(record)
                if matches!(record.event, ConnectionEvent::New | ConnectionEvent::Adopt) =>
            {
                let Addresses { src, src_port, .. } = record.original;
                let Addresses { src: dst, src_port: dst_port, .. } = record.reply;
                let addresses = Addresses { src, dst, src_port, dst_port };
                let icmp = record.icmp.map(|icmp| (icmp.kind, icmp.code));
                self.evaluated(at, FiveTuple { proto: record.proto, addresses }, icmp);
            }
            Observation::Drop(record) => {
                self.evaluated(at, record.tuple, record.icmp.map(|icmp| (icmp.kind, icmp.code)));
            }
            _ => {}
        }
        Ok(())
    }

    fn apply(&mut self, at: Timestamp, object: Object) -> anyhow::Result<()> {
        self.world.apply(object, at);
        self.note_policies();
        Ok(())
    }

    fn delete(&mut self, at: Timestamp, object: &ObjectRef) -> anyhow::Result<()> {
        self.world.delete(object, at);
        Ok(())
    }
}

fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    }
}

/// Tier, name and rule of `index|tier|name|action|rule`.
fn parts(entry: &str) -> Option<(&str, &str, i32)> {
    let mut parts = entry.split('|');
    let (_, tier, name, _, rule) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some((tier, name, rule.parse().ok()?))
}
