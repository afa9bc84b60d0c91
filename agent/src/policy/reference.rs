//! The naive evaluator: the specification, sentence by sentence, with a reason for each answer.
//!
//! In: the cluster, the policy resources, a [`Question`]. Out: the same [`Evaluation`] as the compiled evaluator's, or
//! step by step what each tier, policy and rule said ([`explain`]). It looks at everything anew for every question:
//! the tests hold the compiled evaluator to it, and `flowlogd policy explain` prints its steps.
//! What always holds: what cannot be told is unknown, never guessed: it ends the walk with a hit of rule -2.
//! Source: policy semantics, sections 2, 3, 5, 6, 7.

use std::sync::Arc;

use ipnet::IpNet;

use super::ir::{Entity, IcmpMatch, IpVersion, Policy, PolicyId, PortMatch, Rule, RuleAction, ServiceRef};
use super::labels::{Identity, KubernetesProfile, members};
use super::order;
use super::{DEFAULT_ALLOW, NO_MATCH, PROFILE_TIER, Policies, Question, ResourceKind, UNKNOWN_RULE};
use crate::cluster::Cluster;
use crate::model::{Action, Direction, Endpoint, EndpointKind, Evaluation, Hit, PolicyKind, Proto, Trace};

/// Whether a rule matches, and for what reason if not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Matches,
    /// The first criterion that fails, in words.
    Differs(&'static str),
    /// Everything that can be told matches.
    Unknown(&'static str),
}

/// A policy on the way, and what its rules said until one decided.
#[derive(Clone, Debug)]
pub struct Step {
    pub tier: Arc<str>,
    pub policy: PolicyId,
    pub rules: Vec<(RuleAction, Answer)>,
    /// The rule that decided.
    pub decided: Option<usize>,
}

/// What an end's policies say, step by step.
#[derive(Clone, Debug, Default)]
pub struct Explanation {
    pub evaluation: Evaluation,
    /// Every policy that selects the end in this direction, in the order of evaluation, reached or not.
    pub steps: Vec<Step>,
}

pub fn evaluate(
    cluster: &Cluster,
    policies: &Policies,
    question: &Question<'_>,
    direction: Direction,
) -> Evaluation {
    explain(cluster, policies, question, direction).evaluation
}

pub fn explain(
    cluster: &Cluster,
    policies: &Policies,
    question: &Question<'_>,
    direction: Direction,
) -> Explanation {
    let Some(own) = question.own(direction) else { return Explanation::default() };
    let identity = Identity::of(own, cluster, policies);
    let [source, dest] = [0, 1].map(|side| Side::of(cluster, policies, question, side));
    let flow = Flow { question, cluster, sides: [&source, &dest], direction };
    let rules = |policy: &Policy| match direction {
        Direction::Egress => policy.egress.clone(),
        Direction::Ingress => policy.ingress.clone(),
    };
    let mut steps = Vec::new();
    let mut tiers = Vec::new();
    for tier in order::tiers(policies) {
        let mut of_tier = Vec::new();
        for policy in tier.policies.iter().filter(|policy| policy.subject.matches(&identity)) {
            let Some(rules) = rules(policy) else { continue };
            let (answers, decided) = flow.decide(&rules);
            let decision = decided.and_then(|at| Some((at, *answers.get(at)?)));
            of_tier.push((policy.id.clone(), decision));
            steps.push(Step {
                tier: tier.tier.name.clone(),
                policy: policy.id.clone(),
                rules: answers,
                decided,
            });
        }
        if !of_tier.is_empty() {
            tiers.push(Governing {
                tier: tier.tier.name.clone(),
                pass: tier.tier.default_pass,
                policies: of_tier,
            });
        }
    }
    let mut evaluation = Evaluation::default();
    let profile = flow.profiles(own, policies);
    let broken = |pending: bool| broken_policy(policies, own, pending, &tiers);
    let (enforced, all) = match broken(false) {
        Some(hit) => (vec![hit.clone()], vec![hit]),
        None => walk_enforced(&tiers, &profile),
    };
    evaluation.unknown = enforced.last().is_some_and(|hit| hit.rule == UNKNOWN_RULE);
    evaluation.enforced = Trace(enforced.into());
    evaluation.all = Trace(all.into());
    let pending = broken(true).map_or_else(|| walk_pending(&tiers, &profile), |hit| vec![hit]);
    evaluation.pending = Trace(pending.into());
    Explanation { evaluation, steps }
}

/// The rule that decided: its index, what it says, whether that is certain.
type Decision = (usize, (RuleAction, Answer));

/// A tier with the policies that govern the end in this direction, each with the rule that decided.
struct Governing {
    tier: Arc<str>,
    pass: bool,
    policies: Vec<(PolicyId, Option<Decision>)>,
}

impl Governing {
    fn hit(&self, policy: &PolicyId, action: Action, rule: i32) -> Hit {
        Hit {
            tier: self.tier.clone(),
            kind: policy.kind,
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            action,
            rule,
        }
    }

    fn decided(&self, policy: &PolicyId, (at, (action, answer)): Decision) -> Hit {
        if let Answer::Unknown(_) = answer {
            return self.hit(policy, Action::Pass, UNKNOWN_RULE);
        }
        let action = match action {
            RuleAction::Allow | RuleAction::Log => Action::Allow,
            RuleAction::Deny => Action::Deny,
            RuleAction::Pass => Action::Pass,
        };
        self.hit(policy, action, i32::try_from(at).unwrap_or(i32::MAX))
    }

    fn default_action(&self) -> Action {
        if self.pass { Action::Pass } else { Action::Deny }
    }
}

/// The enforced trace, and the same with the staged hits on the way.
fn walk_enforced(tiers: &[Governing], profile: &Hit) -> (Vec<Hit>, Vec<Hit>) {
    let (mut enforced, mut all) = (Vec::new(), Vec::new());
    'tiers: for tier in tiers {
        let last_enforced = tier.policies.iter().rfind(|(id, _)| !id.kind.is_staged());
        for (policy, decision) in &tier.policies {
            match (*decision, policy.kind.is_staged()) {
                (Some(decision), true) => all.push(tier.decided(policy, decision)),
                (None, true) if last_enforced.is_none() => all.push(tier.hit(policy, Action::Deny, -1)),
                (None, _) => {}
                (Some(decision), false) => {
                    let hit = tier.decided(policy, decision);
                    enforced.push(hit.clone());
                    all.push(hit.clone());
                    if hit.action != Action::Pass || hit.rule == UNKNOWN_RULE {
                        return (enforced, all);
                    }
                    continue 'tiers;
                }
            }
        }
        let Some((owner, _)) = last_enforced else { continue };
        let hit = tier.hit(owner, tier.default_action(), -1);
        enforced.push(hit.clone());
        all.push(hit);
        if !tier.pass {
            return (enforced, all);
        }
    }
    enforced.push(profile.clone());
    all.push(profile.clone());
    (enforced, all)
}

/// Staged policies count as if they were enforced; the end of a tier is its first policy's.
fn walk_pending(tiers: &[Governing], profile: &Hit) -> Vec<Hit> {
    let mut trace = Vec::new();
    for tier in tiers {
        let decided = tier.policies.iter().find_map(|(policy, decision)| Some((policy, (*decision)?)));
        let hit = match (decided, tier.policies.first()) {
            (Some((policy, decision)), _) => tier.decided(policy, decision),
            (None, Some((first, _))) => tier.hit(first, tier.default_action(), -1),
            (None, None) => continue,
        };
        let ends = hit.action != Action::Pass || hit.rule == UNKNOWN_RULE;
        trace.push(hit);
        if ends {
            return trace;
        }
    }
    trace.push(profile.clone());
    trace
}

/// A policy or tier that exists and could not be read, and may judge this end: nothing can be told then.
fn broken_policy(policies: &Policies, own: &Endpoint, pending: bool, tiers: &[Governing]) -> Option<Hit> {
    let mut broken: Vec<_> = policies.broken().map(|(reference, _)| reference).collect();
    broken.sort();
    broken.into_iter().find_map(|reference| {
        super::broken_hit(reference, own, pending, |name| {
            tiers.iter().any(|tier| {
                *tier.tier == *name && (pending || tier.policies.iter().any(|(id, _)| !id.kind.is_staged()))
            })
        })
    })
}

/// An end's address as the rules see it.
struct Side {
    ip: std::net::IpAddr,
    port: Option<u16>,
    members: Vec<(Arc<Endpoint>, Identity)>,
}

impl Side {
    fn of(cluster: &Cluster, policies: &Policies, question: &Question<'_>, side: usize) -> Self {
        let addresses = question.tuple.addresses;
        let (ip, port) = [(addresses.src, addresses.src_port), (addresses.dst, addresses.dst_port)]
            [usize::from(side == 1)];
        let end = if side == 0 { question.ends[0] } else { question.ends[1] };
        let members = members(cluster, ip, end)
            .into_iter()
            .map(|member| (member.clone(), Identity::of(&member, cluster, policies)))
            .collect();
        Self { ip, port: question.tuple.proto.has_ports().then_some(port), members }
    }
}

struct Flow<'a> {
    question: &'a Question<'a>,
    cluster: &'a Cluster,
    sides: [&'a Side; 2],
    direction: Direction,
}

impl Flow<'_> {
    /// What the rules say, up to the one that decides.
    fn decide(&self, rules: &[Rule]) -> (Vec<(RuleAction, Answer)>, Option<usize>) {
        let mut answers = Vec::new();
        for (at, rule) in rules.iter().enumerate() {
            let answer = self.answer(rule);
            answers.push((rule.action, answer));
            if rule.action != RuleAction::Log && !matches!(answer, Answer::Differs(_)) {
                return (answers, Some(at));
            }
        }
        (answers, None)
    }

    fn answer(&self, rule: &Rule) -> Answer {
        let [source, dest] = self.sides;
        let proto = self.question.tuple.proto;
        let is_v4 = source.ip.is_ipv4();
        let family = match rule.ip_version {
            None => true,
            Some(IpVersion::V4) => is_v4,
            Some(IpVersion::V6) => !is_v4,
        };
        if !family {
            return Answer::Differs("ipVersion");
        }
        // A list without a net of the flow's family drops the rule for that family.
        let of_family =
            |nets: &[IpNet]| nets.is_empty() || nets.iter().any(|net| matches!(net, IpNet::V4(_)) == is_v4);
        let lists = [&rule.source.nets, &rule.source.not_nets, &rule.dest.nets, &rule.dest.not_nets];
        if !lists.iter().all(|nets| of_family(nets)) {
            return Answer::Differs("no net of the address family");
        }
        if rule.proto.is_some_and(|wanted| wanted != proto) {
            return Answer::Differs("protocol");
        }
        if rule.not_proto == Some(proto) {
            return Answer::Differs("notProtocol");
        }
        let mut unknown = rule.uncertain.map(|_| "domains");
        match (rule.icmp.map(|wanted| self.is_icmp(wanted)), rule.not_icmp.map(|wanted| self.is_icmp(wanted)))
        {
            (Some(Some(false)), _) => return Answer::Differs("icmp"),
            (_, Some(Some(true))) => return Answer::Differs("notICMP"),
            (Some(None), _) | (_, Some(None)) => unknown = Some("the ICMP type"),
            _ => {}
        }
        let of_source = [
            "source nets",
            "source notNets",
            "source selector",
            "source notSelector",
            "source ports",
            "source notPorts",
            "source services",
        ];
        let of_dest = [
            "destination nets",
            "destination notNets",
            "destination selector",
            "destination notSelector",
            "destination ports",
            "destination notPorts",
            "destination services",
        ];
        for (entity, side, names, is_source) in
            [(&rule.source, source, of_source, true), (&rule.dest, dest, of_dest, false)]
        {
            let holds = [
                entity.nets.is_empty() || entity.nets.iter().any(|net| net.contains(&side.ip)),
                !entity.not_nets.iter().any(|net| net.contains(&side.ip)),
                entity
                    .selector
                    .as_ref()
                    .is_none_or(|s| side.members.iter().any(|(_, identity)| s.matches(identity))),
                entity
                    .not_selector
                    .as_ref()
                    .is_none_or(|s| !side.members.iter().any(|(_, identity)| s.matches(identity))),
                entity.ports.is_empty() || self.is_port(&entity.ports, entity, side) == Some(true),
                entity.not_ports.is_empty() || self.is_port(&entity.not_ports, entity, side) == Some(false),
                entity.service.as_ref().is_none_or(|service| self.is_backend(service, side, is_source)),
            ];
            if let Some(at) = holds.iter().position(|holds| !holds) {
                return Answer::Differs(names.get(at).copied().unwrap_or_default());
            }
        }
        unknown.map_or(Answer::Matches, Answer::Unknown)
    }

    /// `None`: the flow does not tell its type.
    fn is_icmp(&self, wanted: IcmpMatch) -> Option<bool> {
        if !self.question.tuple.proto.is_icmp() {
            return Some(false);
        }
        let IcmpMatch { kind, code } = wanted;
        let Some(kind) = kind else { return Some(true) };
        let (is_kind, is_code) = self.question.icmp?;
        Some(kind == is_kind && code.is_none_or(|code| code == is_code))
    }

    /// `None`: the protocol has no ports, so that a rule with ports never matches.
    fn is_port(&self, ports: &[PortMatch], entity: &Entity, side: &Side) -> Option<bool> {
        let port = side.port?;
        let named =
            |name: &Arc<str>| {
                // The endpoints of this side that satisfy its selector give the name its meaning.
                let meant = |(member, identity): &&(Arc<Endpoint>, Identity)| {
                    super::labels::owns_addresses(member)
                        && entity.selector.as_ref().is_none_or(|selector| selector.matches(identity))
                };
                let proto: Proto = self.question.tuple.proto;
                side.members.iter().filter(meant).flat_map(|(member, _)| member.policed.ports.iter()).any(
                    |known| known.name.as_ref() == Some(name) && known.proto == proto && known.port == port,
                )
            };
        Some(ports.iter().any(|wanted| match wanted {
            PortMatch::Range(first, last) => (*first..=*last).contains(&port),
            PortMatch::Named(name) => named(name),
        }))
    }

    /// As a source by address alone, as a destination with protocol and port.
    fn is_backend(&self, service: &ServiceRef, side: &Side, is_source: bool) -> bool {
        let of_service = self.cluster.backends().filter(|backends| {
            backends.namespace == service.namespace && backends.service.as_ref() == Some(&service.name)
        });
        of_service.flat_map(|backends| backends.groups.iter()).any(|group| {
            let serves = || {
                group.ports.iter().any(|port| {
                    port.proto == self.question.tuple.proto
                        && side.port.is_some()
                        && port.port.is_none_or(|port| Some(port) == side.port)
                })
            };
            group.addresses.contains(&side.ip) && (is_source || serves())
        })
    }

    /// The profiles' verdict: the first rule that matches; a pod's namespace allows everything.
    fn profiles(&self, own: &Endpoint, policies: &Policies) -> Hit {
        let hit = |name: Arc<str>, action: Action, rule: i32| Hit {
            tier: PROFILE_TIER.into(),
            kind: PolicyKind::Profile,
            namespace: None,
            name,
            action,
            rule,
        };
        if own.kind == EndpointKind::Wep {
            let namespace = own.namespace.as_deref().unwrap_or_default();
            return hit(format!("kns.{namespace}").into(), Action::Allow, 0);
        }
        for name in own.policed.profiles.iter() {
            match KubernetesProfile::parse(name) {
                Some(KubernetesProfile::Namespace(ns)) if self.cluster.namespace_labels(ns).is_some() => {
                    return hit(name.clone(), Action::Allow, 0);
                }
                Some(KubernetesProfile::ServiceAccount(ns, account))
                    if self.cluster.service_account_labels(&ns.into(), &account.into()).is_some() =>
                {
                    continue;
                }
                _ => {}
            }
            if &**name == DEFAULT_ALLOW {
                return hit(name.clone(), Action::Allow, 0);
            }
            let is_broken = |reference: &super::ResourceRef| {
                reference.kind == ResourceKind::Profile && reference.name == *name
            };
            if policies.broken().any(|(reference, _)| is_broken(reference)) {
                return hit(name.clone(), Action::Pass, UNKNOWN_RULE);
            }
            // One that is not there is replaced with rules that drop.
            let Some(profile) = policies.profile(name) else { return hit(name.clone(), Action::Deny, 0) };
            let rules = match self.direction {
                Direction::Egress => &profile.egress,
                Direction::Ingress => &profile.ingress,
            };
            let (answers, decided) = self.decide(rules);
            if let Some(at) = decided
                && let Some(&(action, answer)) = answers.get(at)
            {
                let rule = i32::try_from(at).unwrap_or(i32::MAX);
                return match (answer, action) {
                    (Answer::Unknown(_), _) => hit(name.clone(), Action::Pass, UNKNOWN_RULE),
                    (_, RuleAction::Allow) => hit(name.clone(), Action::Allow, rule),
                    _ => hit(name.clone(), Action::Deny, rule),
                };
            }
        }
        hit(NO_MATCH.into(), Action::Deny, 0)
    }
}
