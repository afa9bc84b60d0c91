//! What is asked of an endpoint's flows in one direction: its tiers, policies and profiles, flat and in order.
//!
//! In: compiled policies (shared by all programs), the profiles of an endpoint. Out: the hits of a flow, as numbers.
//! What always holds: one walk gives the enforced trace, the one with staged hits, and the pending one; a tier without
//! a policy for this endpoint and direction is not in the program; hits are numbers that mean the same for ever, so
//! that equal traces are made once. Which endpoints have which program is `mod.rs`.
//! Source: policy semantics, sections 2 and 3.

use std::sync::Arc;

use super::members::{Membership, Tables};
use super::rules::{Answer, Asked, Packet, Rule};
use crate::model::{Action, Direction, Hit, PolicyKind};
use crate::policy::ir::{self, PolicyId, RuleAction};
use crate::policy::{PROFILE_TIER, UNKNOWN_RULE};

/// A policy, or what stands in its place in a trace. The number is never given twice.
#[derive(Debug)]
pub(super) struct Compiled {
    pub number: u32,
    pub id: PolicyId,
    pub tier: Arc<str>,
    pub is_staged: bool,
    /// The selector's number.
    pub subject: u32,
    pub source: Option<Arc<ir::Policy>>,
    /// `[egress, ingress]`.
    rules: [Option<Rules>; 2],
}

#[derive(Debug)]
struct Rules {
    rules: Vec<Rule>,
    asked: Asked,
}

/// A decision: a policy's number, an action and a rule's index in one word.
pub(super) type HitCode = u64;

/// Separates the traces of an evaluation in a row of codes.
pub(super) const END_OF_TRACE: HitCode = u64::MAX;

fn code(policy: &Compiled, action: Action, rule: i32) -> HitCode {
    u64::from(policy.number) << 34 | (action as u64) << 32 | u64::from(rule.cast_unsigned())
}

pub(super) fn number_of(code: HitCode) -> u32 {
    (code >> 34) as u32
}

impl Compiled {
    pub fn policy(number: u32, policy: &Arc<ir::Policy>, tables: &mut Tables) -> Self {
        let subject = tables.selector(&policy.subject);
        let mut compile =
            |rules: &Option<Arc<[ir::Rule]>>| rules.as_deref().map(|rules| Rules::compile(rules, tables));
        let rules = [compile(&policy.egress), compile(&policy.ingress)];
        Self {
            number,
            id: policy.id.clone(),
            tier: policy.tier.clone(),
            is_staged: policy.id.kind.is_staged(),
            subject,
            source: Some(policy.clone()),
            rules,
        }
    }

    /// A profile; `None` for one that decides by its name alone.
    pub fn profile(number: u32, name: &Arc<str>, profile: Option<&ir::Profile>, tables: &mut Tables) -> Self {
        let rules = match profile {
            Some(profile) => {
                [&profile.egress, &profile.ingress].map(|rules| Some(Rules::compile(rules, tables)))
            }
            None => [None, None],
        };
        let id = PolicyId { kind: PolicyKind::Profile, namespace: None, name: name.clone() };
        Self {
            number,
            id,
            tier: PROFILE_TIER.into(),
            is_staged: false,
            subject: super::rules::NONE,
            source: None,
            rules,
        }
    }

    /// What could not be read.
    pub fn broken(number: u32, hit: &Hit) -> Self {
        let id = PolicyId { kind: hit.kind, namespace: hit.namespace.clone(), name: hit.name.clone() };
        Self {
            number,
            id,
            tier: hit.tier.clone(),
            is_staged: false,
            subject: super::rules::NONE,
            source: None,
            rules: [None, None],
        }
    }

    pub fn governs(&self, direction: Direction) -> bool {
        self.rules[direction as usize].is_some()
    }

    pub fn hit(&self, code: HitCode) -> Hit {
        let action = match code >> 32 & 3 {
            0 => Action::Allow,
            1 => Action::Deny,
            _ => Action::Pass,
        };
        Hit {
            tier: self.tier.clone(),
            kind: self.id.kind,
            namespace: self.id.namespace.clone(),
            name: self.id.name.clone(),
            action,
            rule: (code as u32).cast_signed(),
        }
    }

    /// The first rule that matches and does not only log.
    fn decide(&self, direction: Direction, flow: &Flow<'_>) -> Option<HitCode> {
        let rules = &self.rules[direction as usize].as_ref()?.rules;
        for (at, rule) in rules.iter().enumerate() {
            if rule.action == RuleAction::Log {
                continue;
            }
            let action = match (rule.answer(&flow.packet, flow.tables, flow.members), rule.action) {
                (Answer::No, _) => continue,
                (Answer::Unknown, _) => return Some(code(self, Action::Pass, UNKNOWN_RULE)),
                (Answer::Yes, RuleAction::Deny) => Action::Deny,
                (Answer::Yes, RuleAction::Pass) => Action::Pass,
                (Answer::Yes, RuleAction::Allow | RuleAction::Log) => Action::Allow,
            };
            return Some(code(self, action, i32::try_from(at).unwrap_or(i32::MAX)));
        }
        None
    }
}

impl Rules {
    fn compile(rules: &[ir::Rule], tables: &mut Tables) -> Self {
        Self {
            rules: rules.iter().map(|rule| Rule::compile(rule, tables)).collect(),
            asked: Asked::of(rules),
        }
    }
}

/// What a walk reads.
pub(super) struct Flow<'a> {
    pub packet: Packet,
    pub tables: &'a Tables,
    pub members: [&'a Membership; 2],
}

#[derive(Clone, Debug)]
pub(super) struct Tier {
    pub pass: bool,
    pub policies: Vec<Arc<Compiled>>,
}

/// A profile of an endpoint.
#[derive(Clone, Debug)]
pub(super) enum Profile {
    /// It has one answer for everything: Kubernetes' namespaces, what is built in, what is missing.
    Fixed(Arc<Compiled>, Action),
    Rules(Arc<Compiled>),
    /// It could not be read.
    Broken(Arc<Compiled>),
}

impl Profile {
    pub fn number(&self) -> u32 {
        let (Self::Fixed(profile, _) | Self::Rules(profile) | Self::Broken(profile)) = self;
        profile.number
    }
}

#[derive(Debug)]
pub(super) struct Program {
    pub number: u32,
    pub direction: Direction,
    pub tiers: Vec<Tier>,
    pub profiles: Arc<[Profile]>,
    /// What no profile decides.
    pub no_match: Arc<Compiled>,
    /// A resource that could not be read and may judge the endpoint: what is enforced, what is pending.
    pub broken: [Option<Arc<Compiled>>; 2],
    pub asked: Asked,
}

impl Program {
    /// What the program's rules ask of a flow's ports and ICMP type.
    pub fn ask(&mut self) {
        let direction = self.direction as usize;
        let mut asked = Asked::default();
        let policies = self.tiers.iter().flat_map(|tier| tier.policies.iter());
        let profiles = self.profiles.iter().filter_map(|profile| match profile {
            Profile::Rules(profile) => Some(profile),
            Profile::Fixed(..) | Profile::Broken(_) => None,
        });
        for rules in policies.chain(profiles).filter_map(|policy| policy.rules[direction].as_ref()) {
            asked.add(&rules.asked);
        }
        asked.ports.iter_mut().for_each(super::rules::PortClasses::finish);
        self.asked = asked;
    }

    /// Appends the three traces: what is enforced, the same with staged hits, what is pending.
    pub fn walk(&self, flow: &Flow<'_>, traces: &mut [Vec<HitCode>; 3]) {
        let [enforced, all, pending] = traces;
        // Whether the trace goes on.
        let (mut enforcing, mut pends) = (true, true);
        if let Some(broken) = &self.broken[0] {
            enforced.push(code(broken, Action::Pass, UNKNOWN_RULE));
            all.push(code(broken, Action::Pass, UNKNOWN_RULE));
            enforcing = false;
        }
        if let Some(broken) = &self.broken[1] {
            pending.push(code(broken, Action::Pass, UNKNOWN_RULE));
            pends = false;
        }
        for tier in &self.tiers {
            if !enforcing && !pends {
                return;
            }
            let last_enforced = tier.policies.iter().rfind(|policy| !policy.is_staged);
            let only_staged = enforcing && last_enforced.is_none();
            // Whether the tier still waits for a decision.
            let (mut open, mut open_pending) = (enforcing && !only_staged, pends);
            for policy in &tier.policies {
                let lists = open || only_staged;
                if !lists && !open_pending {
                    break;
                }
                let Some(hit) = policy.decide(self.direction, flow) else {
                    if only_staged {
                        all.push(code(policy, Action::Deny, -1));
                    }
                    continue;
                };
                let ends = ends(hit);
                if lists {
                    all.push(hit);
                }
                if open && !policy.is_staged {
                    enforced.push(hit);
                    open = false;
                    enforcing = !ends;
                }
                if open_pending {
                    pending.push(hit);
                    open_pending = false;
                    pends = !ends;
                }
            }
            let default = if tier.pass { Action::Pass } else { Action::Deny };
            if let Some(owner) = last_enforced.filter(|_| open) {
                enforced.push(code(owner, default, -1));
                all.push(code(owner, default, -1));
                enforcing = tier.pass;
            }
            if let Some(first) = tier.policies.first().filter(|_| open_pending) {
                pending.push(code(first, default, -1));
                pends = tier.pass;
            }
        }
        if enforcing || pends {
            let hit = self.profiles(flow);
            if enforcing {
                enforced.push(hit);
                all.push(hit);
            }
            if pends {
                pending.push(hit);
            }
        }
    }

    fn profiles(&self, flow: &Flow<'_>) -> HitCode {
        for profile in self.profiles.iter() {
            let (profile, hit) = match profile {
                Profile::Fixed(profile, action) => return code(profile, *action, 0),
                Profile::Broken(profile) => return code(profile, Action::Pass, UNKNOWN_RULE),
                Profile::Rules(profile) => (profile, profile.decide(self.direction, flow)),
            };
            let Some(hit) = hit else { continue };
            if hit as u32 == UNKNOWN_RULE.cast_unsigned() || hit >> 32 & 3 == Action::Allow as u64 {
                return hit;
            }
            // There is no tier after a profile: a pass denies.
            return code(profile, Action::Deny, (hit as u32).cast_signed());
        }
        code(&self.no_match, Action::Deny, 0)
    }
}

/// The walk ends here: allowed, denied, or unknown.
fn ends(hit: HitCode) -> bool {
    hit >> 32 & 3 != Action::Pass as u64 || is_unknown(hit)
}

pub(super) fn is_unknown(hit: HitCode) -> bool {
    hit as u32 == UNKNOWN_RULE.cast_unsigned()
}
