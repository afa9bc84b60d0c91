//! The compiled evaluator: who selects what is worked out once, a verdict is looked up.
//!
//! In: the cluster, the policy resources, a flow. Out: what each of its ends' policies say.
//! What always holds: nothing is compiled before it is asked for, and a change makes anew only what it touches: a
//! policy the programs of those it selects or selected, a label the identity of its endpoint. Identities, memberships
//! and programs are known by their content and keep their numbers for ever, so a cached verdict needs no
//! invalidation: it is asked for under other numbers. All tables are bounded; one that is full is begun anew.
//! A hit allocates nothing. The pipeline's task owns it; there is no lock.
//! Source: policy semantics, section 12. The naive evaluator to which the tests hold it: `policy/reference.rs`.

mod cache;
mod compile;
mod members;
mod program;
mod rules;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use self::cache::{Key, VerdictCache};
use self::members::{Membership, MembershipKey, Memo, Tables, number};
use self::program::{Compiled, END_OF_TRACE, Flow, HitCode, Profile, Program, is_unknown, number_of};
use self::rules::Packet;
use super::ir::PolicyId;
use super::labels::{Identity, members, owns_addresses};
use super::{Policies, Question, order};
use crate::cluster::Cluster;
use crate::model::{Direction, Endpoint, EndpointKind, Evaluation, Hit, NamedPort, Trace};

/// Addresses whose membership is remembered, and distinct memberships and identities.
const MOST_ADDRESSES: usize = 1 << 18;
const MOST_MEMBERSHIPS: usize = 1 << 18;
/// Distinct evaluations that are kept once each.
const MOST_EVALUATIONS: usize = 1 << 16;
/// Numbers of selectors and nets that no policy uses any more.
const MOST_STALE: usize = 8192;

/// An identity, with what it is selected by.
struct KnownIdentity {
    identity: Arc<Identity>,
    memo: Memo,
}

/// An endpoint, as it was last looked at.
struct KnownEndpoint {
    /// Kept, so that its place in memory names it alone.
    _endpoint: Arc<Endpoint>,
    identity: u32,
    /// When its identity was right.
    inherited: u64,
    slot: Option<u32>,
}

/// Identity, kind, names of profiles.
type SlotKey = (u32, EndpointKind, Arc<[Arc<str>]>);

/// What all endpoints of one identity, kind and list of profiles are judged by.
struct Slot {
    identity: u32,
    endpoint: Arc<Endpoint>,
    programs: [Option<Arc<Program>>; 2],
}

#[derive(Clone, Copy)]
struct Address {
    /// The endpoint's place in memory; 0 where no endpoint has the address.
    end: usize,
    epoch: u64,
    membership: u32,
}

/// A tier as it was ordered.
#[derive(PartialEq)]
struct TierFrame {
    name: Arc<str>,
    pass: bool,
}

#[derive(Default)]
pub struct Evaluator {
    /// Of cluster and policies.
    versions: Option<(u64, u64)>,
    generation: u64,
    /// Of what endpoints inherit: grows when identities may be others.
    inherited: u64,
    inherited_epoch: u64,
    backends_epoch: u64,
    services_read: usize,
    /// Grows when an address may be a member of something else.
    addresses_epoch: u64,
    tables: Tables,
    /// How many numbers the tables held when they were new.
    fresh_tables: usize,
    numbers: u32,
    compiled: HashMap<PolicyId, Arc<Compiled>, RandomState>,
    frames: Vec<TierFrame>,
    tiers: Vec<Vec<Arc<Compiled>>>,
    /// By number: what hits mean. Profiles and what is broken are here too.
    meanings: HashMap<u32, Arc<Compiled>, RandomState>,
    /// Of namespaces, for their pods.
    pod_profiles: HashMap<Arc<str>, Profile, RandomState>,
    /// Of host endpoints.
    profiles: HashMap<Arc<str>, Profile, RandomState>,
    seen_profiles: HashMap<Arc<str>, Arc<super::ir::Profile>, RandomState>,
    no_match: Option<Arc<Compiled>>,
    has_broken: bool,
    identities: Vec<KnownIdentity>,
    identity_numbers: HashMap<Arc<Identity>, u32, RandomState>,
    endpoints: HashMap<usize, KnownEndpoint, RandomState>,
    slots: Vec<Slot>,
    slot_numbers: HashMap<SlotKey, u32, RandomState>,
    programs: HashMap<(Direction, Box<[u32]>), Arc<Program>, RandomState>,
    program_numbers: u32,
    memberships: Vec<Membership>,
    membership_numbers: HashMap<MembershipKey, u32, RandomState>,
    addresses: HashMap<IpAddr, Address, RandomState>,
    cache: VerdictCache,
    evaluations: HashMap<Box<[HitCode]>, Arc<Evaluation>, RandomState>,
    scratch: Scratch,
    stats: EvaluatorStats,
}

/// Reused from flow to flow.
#[derive(Default)]
struct Scratch {
    key: MembershipKey,
    traces: [Vec<HitCode>; 3],
    row: Vec<HitCode>,
}

/// What the evaluator did, since its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvaluatorStats {
    pub verdicts_cached: u64,
    pub verdicts_walked: u64,
    pub programs_compiled: u64,
    pub begun_anew: u64,
}

impl Evaluator {
    pub fn stats(&self) -> &EvaluatorStats {
        &self.stats
    }

    /// Takes note of what changed. The number grows when any answer may be another.
    pub fn follow(&mut self, cluster: &Cluster, policies: &Policies) -> u64 {
        let versions = (cluster.version(), policies.version());
        if self.versions == Some(versions) {
            return self.generation;
        }
        if self.is_crowded() {
            let (generation, stats) = (self.generation, self.stats);
            *self = Self { generation, stats, ..Self::default() };
            self.stats.begun_anew += 1;
        }
        self.generation += 1;
        self.addresses_epoch += 1;
        if self.versions.is_none_or(|(_, known)| known != policies.version()) {
            self.follow_policies(policies);
        }
        if self.inherited_epoch != cluster.inherited_epoch() {
            self.inherited_epoch = cluster.inherited_epoch();
            self.inherited += 1;
            // Profiles stand for namespaces and service accounts too.
            self.forget_profiles();
        }
        let moved = self.backends_epoch != cluster.backends_epoch();
        self.backends_epoch = cluster.backends_epoch();
        self.read_backends(cluster, moved);
        self.versions = Some(versions);
        self.generation
    }

    /// Rules that ask for services need what stands behind them.
    fn read_backends(&mut self, cluster: &Cluster, moved: bool) {
        let services = self.tables.service_count();
        if services > 0 && (moved || self.services_read != services) {
            self.tables.read_backends(cluster);
            self.services_read = services;
        }
    }

    fn is_crowded(&self) -> bool {
        self.memberships.len() > MOST_MEMBERSHIPS
            || self.identities.len() > MOST_MEMBERSHIPS
            || self.slots.len() > MOST_MEMBERSHIPS
            || self.numbers > u32::MAX >> 3
            || self.tables.len() > self.fresh_tables.saturating_mul(2) + MOST_STALE
    }

    fn follow_policies(&mut self, policies: &Policies) {
        let ordered = order::tiers(policies);
        let frames: Vec<TierFrame> = ordered
            .iter()
            .map(|tier| TierFrame { name: tier.tier.name.clone(), pass: tier.tier.default_pass })
            .collect();
        let mut before = std::mem::take(&mut self.compiled);
        let mut changed: Vec<Arc<Compiled>> = Vec::new();
        let mut tiers = Vec::with_capacity(ordered.len());
        for tier in &ordered {
            let mut of_tier = Vec::with_capacity(tier.policies.len());
            for policy in &tier.policies {
                let known = before.remove(&policy.id);
                let same = |known: &Arc<Compiled>| {
                    known.source.as_ref().is_some_and(|source| Arc::ptr_eq(source, policy))
                };
                let compiled = match known {
                    Some(known) if same(&known) => known,
                    known => {
                        changed.extend(known);
                        let compiled =
                            Arc::new(Compiled::policy(self.next_number(), policy, &mut self.tables));
                        self.meanings.insert(compiled.number, compiled.clone());
                        changed.push(compiled.clone());
                        compiled
                    }
                };
                self.compiled.insert(policy.id.clone(), compiled.clone());
                of_tier.push(compiled);
            }
            tiers.push(of_tier);
        }
        changed.extend(before.into_values());
        for gone in &changed {
            if self.compiled.get(&gone.id).is_none_or(|now| now.number != gone.number) {
                self.meanings.remove(&gone.number);
            }
        }
        let has_broken = policies.broken().next().is_some();
        let all = frames != self.frames || has_broken || self.has_broken;
        self.tiers = tiers;
        self.frames = frames;
        self.has_broken = has_broken;
        self.programs.clear();
        let known_profile = |profile: &Arc<super::ir::Profile>| {
            self.seen_profiles.get(&profile.name).is_some_and(|known| Arc::ptr_eq(known, profile))
        };
        if self.seen_profiles.len() != policies.profiles().count() || !policies.profiles().all(known_profile)
        {
            self.seen_profiles = policies.profiles().map(|p| (p.name.clone(), p.clone())).collect();
            self.inherited += 1;
            self.forget_profiles();
        } else if all {
            self.forget_profiles();
        }
        let selectors = self.tables.selector_count();
        for slot in &mut self.slots {
            let Some(known) = self.identities.get_mut(slot.identity as usize) else { continue };
            known.memo.make_room(selectors);
            let touched =
                all || changed.iter().any(|policy| selects(&self.tables, policy, &slot.endpoint, known));
            if touched {
                slot.programs = [None, None];
            }
        }
        if self.fresh_tables == 0 {
            self.fresh_tables = self.tables.len();
        }
    }

    fn forget_profiles(&mut self) {
        for (_, profile) in self.profiles.drain() {
            self.meanings.remove(&profile.number());
        }
        for slot in &mut self.slots {
            if slot.endpoint.kind == EndpointKind::Hep {
                slot.programs = [None, None];
            }
        }
    }

    fn next_number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }

    /// What the policies of the asked ends say: `[egress at the source, ingress at the destination]`.
    pub fn evaluate(
        &mut self,
        cluster: &Cluster,
        policies: &Policies,
        question: &Question<'_>,
        asked: [bool; 2],
    ) -> [Option<Arc<Evaluation>>; 2] {
        self.follow(cluster, policies);
        let programs = [Direction::Egress, Direction::Ingress].map(|direction| {
            let own = question.own(direction).filter(|_| asked[direction as usize])?;
            self.program(cluster, policies, own, direction)
        });
        if programs.iter().all(Option::is_none) {
            return [None, None];
        }
        let addresses = question.tuple.addresses;
        let [source, dest] = question.ends;
        let members = [
            self.membership(cluster, policies, addresses.src, source),
            self.membership(cluster, policies, addresses.dst, dest),
        ];
        programs.map(|program| program.map(|program| self.verdict(question, members, &program)))
    }

    fn verdict(
        &mut self,
        question: &Question<'_>,
        members: [u32; 2],
        program: &Arc<Program>,
    ) -> Arc<Evaluation> {
        let tuple = question.tuple;
        let packet = Packet {
            proto: tuple.proto,
            is_v4: tuple.addresses.src.is_ipv4(),
            has_ports: tuple.proto.has_ports(),
            ports: [tuple.addresses.src_port, tuple.addresses.dst_port],
            icmp: question.icmp.filter(|_| tuple.proto.is_icmp()),
        };
        let class = |side: usize| {
            if packet.has_ports { program.asked.ports[side].class(packet.ports[side]) } else { 0 }
        };
        let key = Key {
            program: program.number,
            members,
            ports: [class(0), class(1)],
            icmp: packet.icmp.filter(|_| program.asked.icmp),
            proto: packet.proto.0,
            is_v4: packet.is_v4,
        };
        if let Some(known) = self.cache.get(&key) {
            self.stats.verdicts_cached += 1;
            return known.clone();
        }
        self.stats.verdicts_walked += 1;
        let selectors = self.tables.selector_count();
        for member in members {
            if let Some(membership) = self.memberships.get_mut(member as usize) {
                membership.memo.make_room(selectors);
            }
        }
        let traces = &mut self.scratch.traces;
        traces.iter_mut().for_each(Vec::clear);
        let at = |member: u32| self.memberships.get(member as usize);
        if let [Some(source), Some(dest)] = members.map(at) {
            program.walk(&Flow { packet, tables: &self.tables, members: [source, dest] }, traces);
        }
        let evaluation = self.keep();
        self.cache.put(key, evaluation.clone());
        evaluation
    }

    /// The evaluation of the traces just walked: one for all flows that share them.
    fn keep(&mut self) -> Arc<Evaluation> {
        let Scratch { traces, row, .. } = &mut self.scratch;
        row.clear();
        for trace in traces.iter() {
            row.extend_from_slice(trace);
            row.push(END_OF_TRACE);
        }
        if let Some(known) = self.evaluations.get(&row[..]) {
            return known.clone();
        }
        let meanings = &self.meanings;
        let hit = |code: &HitCode| -> Option<Hit> { Some(meanings.get(&number_of(*code))?.hit(*code)) };
        let trace = |codes: &[HitCode]| Trace(codes.iter().filter_map(hit).collect());
        let [enforced, all, pending] = &*traces;
        let unknown = enforced.last().is_some_and(|hit| is_unknown(*hit));
        let enforced_trace = trace(enforced);
        // Mostly the three are one.
        let same =
            |codes: &[HitCode]| if *codes == enforced[..] { enforced_trace.clone() } else { trace(codes) };
        let (all, pending) = (same(all), same(pending));
        let evaluation = Arc::new(Evaluation { enforced: enforced_trace, all, pending, unknown });
        if self.evaluations.len() >= MOST_EVALUATIONS {
            self.evaluations.clear();
        }
        self.evaluations.insert(row[..].into(), evaluation.clone());
        evaluation
    }

    fn membership(
        &mut self,
        cluster: &Cluster,
        policies: &Policies,
        ip: IpAddr,
        end: Option<&Arc<Endpoint>>,
    ) -> u32 {
        let end = end.filter(|end| owns_addresses(end));
        let place = end.map_or(0, |end| Arc::as_ptr(end) as usize);
        let epoch = self.addresses_epoch + self.tables.epoch + self.inherited;
        if let Some(known) = self.addresses.get(&ip)
            && known.end == place
            && known.epoch == epoch
        {
            return known.membership;
        }
        let mut key = std::mem::take(&mut self.scratch.key);
        key.clear();
        for member in members(cluster, ip, end) {
            let identity = self.identity(cluster, policies, &member);
            let ports: Arc<[NamedPort]> =
                if owns_addresses(&member) { member.policed.ports.clone() } else { Arc::default() };
            key.identities.push((identity, ports));
        }
        key.identities.sort_unstable();
        key.identities.dedup();
        self.tables.describe(ip, &mut key);
        let membership = match self.membership_numbers.get(&key) {
            Some(&known) => known,
            None => {
                let membership = number(self.memberships.len());
                let identity = |id: u32| self.identities.get(id as usize).map(|known| known.identity.clone());
                self.memberships.push(Membership::new(&key, identity));
                self.membership_numbers.insert(key.clone(), membership);
                membership
            }
        };
        self.scratch.key = key;
        if self.addresses.len() >= MOST_ADDRESSES {
            self.addresses.clear();
        }
        // An endpoint that is not kept could leave its place to another.
        if end.is_none() || self.endpoints.contains_key(&place) {
            self.addresses.insert(ip, Address { end: place, epoch, membership });
        }
        membership
    }

    fn identity(&mut self, cluster: &Cluster, policies: &Policies, endpoint: &Arc<Endpoint>) -> u32 {
        let place = Arc::as_ptr(endpoint) as usize;
        if let Some(known) = self.endpoints.get(&place)
            && known.inherited == self.inherited
        {
            return known.identity;
        }
        let identity = Identity::of(endpoint, cluster, policies);
        let identity = match self.identity_numbers.get(&identity) {
            Some(&known) => known,
            None => {
                let place = number(self.identities.len());
                let identity = Arc::new(identity);
                self.identities.push(KnownIdentity { identity: identity.clone(), memo: Memo::default() });
                self.identity_numbers.insert(identity, place);
                place
            }
        };
        if self.endpoints.len() >= MOST_ADDRESSES {
            self.endpoints.clear();
            self.addresses.clear();
        }
        let known =
            KnownEndpoint { _endpoint: endpoint.clone(), identity, inherited: self.inherited, slot: None };
        self.endpoints.insert(place, known);
        identity
    }

    /// How many of these endpoints each policy selects, by the policy's identity.
    pub fn selected<'a>(
        &mut self,
        cluster: &Cluster,
        policies: &Policies,
        endpoints: impl Iterator<Item = &'a Arc<Endpoint>>,
    ) -> Vec<(Arc<str>, PolicyId, u64)> {
        self.follow(cluster, policies);
        let mut counts: HashMap<u32, u64, RandomState> = HashMap::default();
        let selectors = self.tables.selector_count();
        for endpoint in endpoints {
            let identity = self.identity(cluster, policies, endpoint);
            let Some(known) = self.identities.get_mut(identity as usize) else { continue };
            known.memo.make_room(selectors);
            for policy in self.tiers.iter().flatten().filter(|p| selects(&self.tables, p, endpoint, known)) {
                *counts.entry(policy.number).or_default() += 1;
            }
        }
        let policies = self.tiers.iter().flatten();
        policies
            .map(|policy| {
                let count = counts.get(&policy.number).copied().unwrap_or(0);
                (policy.tier.clone(), policy.id.clone(), count)
            })
            .collect()
    }
}

/// A policy with a namespace selects no pod of another: its subject says so too, and this is quicker. (A host endpoint
/// may carry the label of a namespace that it is not in; Calico then lets the policy select it.)
fn selects(tables: &Tables, policy: &Compiled, endpoint: &Endpoint, identity: &KnownIdentity) -> bool {
    if policy.id.namespace.is_some()
        && endpoint.namespace.is_some()
        && policy.id.namespace != endpoint.namespace
    {
        return false;
    }
    identity.memo.get(policy.subject, || tables.matches(policy.subject, &identity.identity))
}
