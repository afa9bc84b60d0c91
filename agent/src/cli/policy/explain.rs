//! `flowlogd policy explain`: why one flow is allowed or denied, step by step.
//!
//! In: the cluster, a five-tuple (ends by address, or by namespace and name). Out: for both ends every tier, policy and
//! rule in the order of evaluation, with why it applies or not, matches or not; the traces in both name styles. Always:
//! the walk is the naive evaluator's, the one that the compiled one is held to. Not here: that walk
//! (`policy::reference`).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use crate::model::{
    Addresses, Direction, Endpoint, EndpointKind, FiveTuple, Proto, Timestamp, Trace, canonical,
};
use crate::policy::ir::{Policy, Rule};
use crate::policy::order::OrderedTier;
use crate::policy::reference::{self, Answer, Step};
use crate::policy::{Policies, Question};
use crate::snapshot::World;
use crate::wire::flow_log::{NameStyle, policy_entries};

use super::super::{Exit, Failure, Global};
use super::{hit_name, policy_name, world};

/// A port that stands for any: none that people give to a service.
const ANY_PORT: u16 = 49_152;

/// Tell which tiers, policies and rules one flow meets, and why each matches or not.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The source: an address, or NAMESPACE/POD
    #[arg(long, value_name = "IP|NS/POD")]
    pub src: String,
    /// The destination, after the service was resolved: an address, or NAMESPACE/POD
    #[arg(long, value_name = "IP|NS/POD")]
    pub dst: String,
    /// tcp, udp, sctp, icmp, icmp6 or a number
    #[arg(long, default_value = "tcp")]
    pub proto: Proto,
    /// The source's port [default: any]
    #[arg(long, value_name = "PORT")]
    pub sport: Option<u16>,
    /// The destination's port
    #[arg(long, value_name = "PORT")]
    pub dport: Option<u16>,
    /// ICMP type, or type/code
    #[arg(long, value_name = "TYPE[/CODE]")]
    pub icmp: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

pub fn run(global: &Global, args: &ExplainArgs) -> anyhow::Result<u8> {
    if global.cluster.is_empty() {
        return Err(Failure::usage("explain needs the cluster: give its manifests with --cluster").into());
    }
    let world = world(global, &global.cluster)?;
    let question = Asked::of(&world, args)?;
    let text = if args.json { question.json(&world)? } else { question.text(&world) };
    super::super::print(text.as_bytes())?;
    Ok(Exit::Ok.code())
}

struct Asked {
    tuple: FiveTuple,
    icmp: Option<(u8, u8)>,
    ends: [Option<Arc<Endpoint>>; 2],
    /// What the user should know about the question.
    notes: Vec<String>,
}

impl Asked {
    fn of(world: &World, args: &ExplainArgs) -> Result<Self, Failure> {
        let [sources, dests] = [&args.src, &args.dst].map(|text| addresses(world, text));
        let (sources, dests) = (sources?, dests?);
        let pair = sources
            .iter()
            .find_map(|src| Some((*src, *dests.iter().find(|dst| dst.is_ipv4() == src.is_ipv4())?)));
        let Some((src, dst)) = pair else {
            return Err(Failure::usage("source and destination have no addresses of one family"));
        };
        let mut notes = Vec::new();
        let has_ports = args.proto.has_ports();
        let dst_port = match args.dport {
            Some(port) if has_ports => port,
            Some(_) => return Err(Failure::usage(format!("{} has no ports: leave out --dport", args.proto))),
            None if has_ports => return Err(Failure::usage(format!("{} needs --dport", args.proto))),
            None => 0,
        };
        let src_port = if has_ports { args.sport.unwrap_or(ANY_PORT) } else { 0 };
        let icmp = args.icmp.as_deref().map(icmp).transpose()?;
        if icmp.is_some() && !args.proto.is_icmp() {
            return Err(Failure::usage(format!("{} has no ICMP type: leave out --icmp", args.proto)));
        }
        let ends = [src, dst].map(|ip| world.cluster.endpoint_at(ip, Timestamp(i64::MAX), false).cloned());
        if ends[1].is_none()
            && let Some(service) = world.cluster.service(args.proto, dst, dst_port, false)
        {
            notes.push(format!(
                "{dst}:{dst_port} is the service {}/{}: policies see the address behind it; ask for one of its pods",
                service.namespace, service.name
            ));
        }
        if has_ports && args.sport.is_none() {
            notes.push(format!("source port {ANY_PORT} stands for any: --sport asks for another"));
        }
        let tuple = FiveTuple { proto: args.proto, addresses: Addresses { src, dst, src_port, dst_port } };
        Ok(Self { tuple, icmp, ends, notes })
    }

    fn question(&self) -> Question<'_> {
        let [source, dest] = &self.ends;
        Question { tuple: self.tuple, icmp: self.icmp, ends: [source.as_ref(), dest.as_ref()] }
    }

    /// Why nobody asks the policies of this end; `None`: they are asked.
    fn exempt(&self, world: &World, direction: Direction) -> Option<String> {
        let [source, dest] = &self.ends;
        let (ip, end) = match direction {
            Direction::Egress => (self.tuple.addresses.src, source),
            Direction::Ingress => (self.tuple.addresses.dst, dest),
        };
        let Some(own) = end else {
            return Some(format!("{ip} is no pod or host endpoint: no policy is asked"));
        };
        let node = own.node.as_ref()?;
        let is_host = |end: &Arc<Endpoint>| end.kind == EndpointKind::Hep && end.node.as_ref() == Some(node);
        let from_node = source.as_ref().is_some_and(is_host)
            || world.cluster.addresses_of_node(node).any(|ip| ip == self.tuple.addresses.src);
        (direction == Direction::Ingress && own.kind == EndpointKind::Wep && from_node)
            .then(|| format!("the source is the pod's own node {node}: no policy is asked, it is allowed"))
    }

    fn text(&self, world: &World) -> String {
        let mut text = String::new();
        let addresses = self.tuple.addresses;
        let end = |ip: IpAddr, port: u16, side: usize| {
            let port = if self.tuple.proto.has_ports() { format!(" port {port}") } else { String::new() };
            match self.ends.get(side).and_then(Option::as_ref) {
                Some(end) => format!("{} ({ip}){port}", end_name(end)),
                None => format!("{ip}{port}"),
            }
        };
        // Writing into memory does not fail.
        let _ = writeln!(
            text,
            "{} {} -> {}",
            self.tuple.proto,
            end(addresses.src, addresses.src_port, 0),
            end(addresses.dst, addresses.dst_port, 1)
        );
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        for (reference, problem) in sorted_broken(&world.policies) {
            let _ = writeln!(text, "note: {reference} cannot be read: {problem}");
        }
        for direction in [Direction::Egress, Direction::Ingress] {
            self.side_text(world, direction, &mut text);
        }
        text
    }

    fn side_text(&self, world: &World, direction: Direction, text: &mut String) {
        let (title, side) = match direction {
            Direction::Egress => ("egress of the source", 0),
            Direction::Ingress => ("ingress of the destination", 1),
        };
        let _ = writeln!(text, "\n{title}");
        if let Some(why) = self.exempt(world, direction) {
            let _ = writeln!(text, "  {why}");
            return;
        }
        let Some(own) = self.ends.get(side).and_then(Option::as_ref) else { return };
        let node = own.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        let _ = writeln!(text, "  {}{node}", end_name(own));
        let explanation = reference::explain(&world.cluster, &world.policies, &self.question(), direction);
        for tier in walked(&world.policies, &explanation.steps, &explanation.evaluation.enforced, direction) {
            let _ = writeln!(text, "  {}", tier.title());
            for policy in &tier.policies {
                let _ = writeln!(text, "    {}{}", policy.title(), policy.state());
                for (index, (rule, state)) in policy.rules.iter().enumerate() {
                    let _ = writeln!(text, "      rule {index}: {rule}  [{}]", state.words());
                }
            }
        }
        let evaluation = &explanation.evaluation;
        let verdict = match evaluation.enforced.0.last() {
            _ if evaluation.unknown => "unknown".to_owned(),
            Some(hit) => format!("{}, by {}", evaluation.enforced.action().name(), hit_name(hit)),
            None => "allow".to_owned(),
        };
        let _ = writeln!(text, "  verdict: {verdict}");
        for (list, trace) in lists(evaluation) {
            for (style, name) in STYLES {
                let _ = writeln!(text, "  {list:8} {name:6} {}", policy_entries(trace, style).join("  "));
            }
        }
    }

    fn json(&self, world: &World) -> anyhow::Result<String> {
        let addresses = self.tuple.addresses;
        let ports = self.tuple.proto.has_ports();
        let mut sides = Vec::new();
        for (direction, side) in [(Direction::Egress, 0), (Direction::Ingress, 1)] {
            let own = self.ends.get(side).and_then(Option::as_ref);
            let exempt = self.exempt(world, direction);
            let mut object = json!({
                "reporter": if side == 0 { "src" } else { "dst" },
                "endpoint": own.map(|own| end_name(own)),
                "not_asked": exempt,
            });
            if own.is_some() && exempt.is_none() {
                let explanation =
                    reference::explain(&world.cluster, &world.policies, &self.question(), direction);
                let enforced = &explanation.evaluation.enforced;
                let tiers = walked(&world.policies, &explanation.steps, enforced, direction);
                let action =
                    if explanation.evaluation.unknown { "unknown" } else { enforced.action().name() };
                object["action"] = action.into();
                object["tiers"] = tiers.iter().map(Walked::json).collect();
                for (list, trace) in lists(&explanation.evaluation) {
                    for (style, name) in STYLES {
                        object[list][name.to_lowercase()] = policy_entries(trace, style).into();
                    }
                }
            }
            sides.push(object);
        }
        let mut text = serde_json::to_string_pretty(&json!({
            "proto": self.tuple.proto.to_string(),
            "src": addresses.src, "src_port": ports.then_some(addresses.src_port),
            "dst": addresses.dst, "dst_port": ports.then_some(addresses.dst_port),
            "notes": self.notes,
            "unreadable": sorted_broken(&world.policies).iter().map(|(name, why)| json!({"policy": name, "problem": why})).collect::<Vec<_>>(),
            "ends": sides,
        }))?;
        text.push('\n');
        Ok(text)
    }
}

const STYLES: [(NameStyle, &str); 2] = [(NameStyle::Dotted, "Dotted"), (NameStyle::Kind, "Kind")];

fn lists(evaluation: &crate::model::Evaluation) -> [(&'static str, &Trace); 3] {
    [("enforced", &evaluation.enforced), ("pending", &evaluation.pending), ("all", &evaluation.all)]
}

fn sorted_broken(policies: &Policies) -> Vec<(String, String)> {
    let mut broken: Vec<_> = policies
        .broken()
        .map(|(reference, why)| {
            let name = match &reference.namespace {
                Some(namespace) => format!("{:?} {namespace}/{}", reference.kind, reference.name),
                None => format!("{:?} {}", reference.kind, reference.name),
            };
            (name, why.to_string())
        })
        .collect();
    broken.sort();
    broken
}

/// A tier of the walk, with all its policies: those that do not apply too.
struct Walked {
    tier: OrderedTier,
    policies: Vec<WalkedPolicy>,
}

struct WalkedPolicy {
    policy: Arc<Policy>,
    /// Why it does not apply.
    not: Option<&'static str>,
    /// Nothing got so far: something before it decided.
    not_reached: bool,
    rules: Vec<(Rule, State)>,
    decided: Option<usize>,
}

#[derive(Clone, Copy)]
enum State {
    Answer(Answer),
    NotReached,
}

impl State {
    fn words(self) -> String {
        match self {
            Self::Answer(Answer::Matches) => "matches".to_owned(),
            Self::Answer(Answer::Differs(criterion)) => format!("no: {criterion}"),
            Self::Answer(Answer::Unknown(criterion)) => format!("unknown: {criterion}"),
            Self::NotReached => "not reached".to_owned(),
        }
    }
}

fn walked(policies: &Policies, steps: &[Step], enforced: &Trace, direction: Direction) -> Vec<Walked> {
    let steps: HashMap<_, _> = steps.iter().map(|step| (&step.policy, step)).collect();
    let last = enforced.0.last();
    let mut ended = false;
    let mut tiers = Vec::new();
    for tier in policies.ordered() {
        let mut of_tier = Vec::new();
        // Staged policies never end the tier.
        let mut decided = false;
        for policy in &tier.policies {
            let rules = match direction {
                Direction::Egress => &policy.egress,
                Direction::Ingress => &policy.ingress,
            };
            let step = steps.get(&policy.id);
            let not = match (rules, step) {
                (None, _) if direction == Direction::Egress => Some("does not govern egress"),
                (None, _) => Some("does not govern ingress"),
                (Some(_), None) => Some("does not select this end"),
                (Some(_), Some(_)) => None,
            };
            let not_reached = ended || decided;
            let answers = step.map(|step| &*step.rules).unwrap_or_default();
            let listed = if not.is_some() { None } else { rules.as_ref() };
            let rules = listed.into_iter().flat_map(|rules| rules.iter()).enumerate().map(|(index, rule)| {
                let state = match answers.get(index) {
                    Some((_, answer)) if !not_reached => State::Answer(*answer),
                    _ => State::NotReached,
                };
                (rule.clone(), state)
            });
            let by = step.and_then(|step| step.decided);
            of_tier.push(WalkedPolicy {
                not,
                not_reached,
                rules: rules.collect(),
                decided: by.filter(|_| !not_reached),
                policy: policy.clone(),
            });
            decided |= by.is_some() && !policy.id.kind.is_staged();
        }
        ended |= last.is_some_and(|hit| *hit.tier == *tier.tier.name);
        tiers.push(Walked { tier, policies: of_tier });
    }
    tiers
}

impl Walked {
    fn default_action(&self) -> &'static str {
        if self.tier.tier.default_pass { "pass" } else { "deny" }
    }

    fn title(&self) -> String {
        let order = self.tier.tier.order.map_or_else(|| "last".to_owned(), |order| format!("order {order}"));
        let defined = if self.tier.is_defined { "" } else { "; no such tier exists" };
        format!("tier {} ({order}; at its end: {}{defined})", self.tier.tier.name, self.default_action())
    }

    fn json(&self) -> Value {
        let policies: Vec<Value> = self.policies.iter().map(WalkedPolicy::json).collect();
        json!({
            "tier": *self.tier.tier.name,
            "order": self.tier.tier.order,
            "default_action": self.default_action(),
            "is_defined": self.tier.is_defined,
            "policies": policies,
        })
    }
}

impl WalkedPolicy {
    fn name(&self) -> String {
        let id = &self.policy.id;
        policy_name(id.kind, id.namespace.as_deref(), &id.name)
    }

    fn title(&self) -> String {
        let order = self.policy.order.map_or_else(|| "last".to_owned(), |order| format!("order {order}"));
        format!("{} ({order})", self.name())
    }

    fn state(&self) -> String {
        match (self.not, self.not_reached, self.decided) {
            (Some(why), _, _) => format!(" {why}: {}", self.policy.subject),
            (None, true, _) => " not reached".to_owned(),
            (None, false, Some(rule)) => format!(" rule {rule} matches"),
            (None, false, None) => " applies, no rule matches".to_owned(),
        }
    }

    fn json(&self) -> Value {
        let rules: Vec<Value> = self
            .rules
            .iter()
            .enumerate()
            .map(|(index, (rule, state))| {
                let (answer, criterion) = match state {
                    State::Answer(Answer::Matches) => ("matches", None),
                    State::Answer(Answer::Differs(criterion)) => ("differs", Some(*criterion)),
                    State::Answer(Answer::Unknown(criterion)) => ("unknown", Some(*criterion)),
                    State::NotReached => ("not reached", None),
                };
                json!({"rule": index, "says": rule.to_string(), "answer": answer, "criterion": criterion})
            })
            .collect();
        json!({
            "policy": self.name(),
            "order": self.policy.order,
            "selects": self.policy.subject.to_string(),
            "applies": self.not.is_none(),
            "why_not": self.not,
            "reached": !self.not_reached,
            "decided_by_rule": self.decided,
            "rules": rules,
        })
    }
}

fn end_name(end: &Endpoint) -> String {
    let kind = if end.kind == EndpointKind::Wep { "pod" } else { "host endpoint" };
    match &end.namespace {
        Some(namespace) => format!("{kind} {namespace}/{}", end.name),
        None => format!("{kind} {}", end.name),
    }
}

fn addresses(world: &World, text: &str) -> Result<Vec<IpAddr>, Failure> {
    if let Ok(ip) = text.parse() {
        return Ok(vec![canonical(ip)]);
    }
    let Some((namespace, name)) = text.split_once('/') else {
        return Err(Failure::usage(format!("{text:?} is neither an address nor NAMESPACE/POD")));
    };
    let is_it = |end: &Endpoint| end.namespace.as_deref() == Some(namespace) && &*end.name == name;
    match world.cluster.pods().find(|pod| is_it(&pod.endpoint)) {
        Some(pod) if pod.host_network => Err(Failure::usage(format!(
            "{text} is on the host network: policies see its node's address; ask for that"
        ))),
        Some(pod) if pod.ips.is_empty() => Err(Failure::usage(format!("{text} has no address"))),
        Some(pod) => Ok(pod.ips.to_vec()),
        None => Err(Failure::usage(format!("there is no pod {text} in the cluster"))),
    }
}

fn icmp(text: &str) -> Result<(u8, u8), Failure> {
    let (kind, code) = text.split_once('/').unwrap_or((text, "0"));
    let number = |text: &str| text.parse::<u8>().ok();
    let wrong = || Failure::usage(format!("--icmp {text}: expected is TYPE or TYPE/CODE, such as 8/0"));
    Ok((number(kind).ok_or_else(wrong)?, number(code).ok_or_else(wrong)?))
}
