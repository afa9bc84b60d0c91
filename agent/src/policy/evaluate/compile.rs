//! Which program judges an endpoint: found by what it is, made when it is first asked for.
//!
//! In: an endpoint, the compiled policies in order. Out: its program of a direction. What always holds: endpoints that
//! are selected by the same policies and have the same profiles share one program; a program holds the policies that
//! govern the direction, and no others.
//! When programs are forgotten is `mod.rs`.

use std::sync::Arc;

use super::members::{Tables, number};
use super::program::{Compiled, Profile, Program, Tier};
use super::{Evaluator, Slot, rules, selects};
use crate::cluster::Cluster;
use crate::model::{Action, Direction, Endpoint, EndpointKind};
use crate::policy::labels::KubernetesProfile;
use crate::policy::{DEFAULT_ALLOW, NO_MATCH, Policies, ResourceKind, broken_hit};

impl Evaluator {
    pub(super) fn program(
        &mut self,
        cluster: &Cluster,
        policies: &Policies,
        own: &Arc<Endpoint>,
        direction: Direction,
    ) -> Option<Arc<Program>> {
        let identity = self.identity(cluster, policies, own);
        let place = Arc::as_ptr(own) as usize;
        let slot = match self.endpoints.get(&place).and_then(|known| known.slot) {
            Some(slot) => slot,
            None => {
                let key = (identity, own.kind, own.policed.profiles.clone());
                let next = number(self.slots.len());
                let slot = *self.slot_numbers.entry(key).or_insert(next);
                if slot == next {
                    self.slots.push(Slot { identity, endpoint: own.clone(), programs: [None, None] });
                }
                if let Some(known) = self.endpoints.get_mut(&place) {
                    known.slot = Some(slot);
                }
                slot
            }
        };
        if let Some(program) = &self.slots.get(slot as usize)?.programs[direction as usize] {
            return Some(program.clone());
        }
        let program = self.compile(cluster, policies, own, identity, direction)?;
        self.slots.get_mut(slot as usize)?.programs[direction as usize] = Some(program.clone());
        Some(program)
    }

    fn compile(
        &mut self,
        cluster: &Cluster,
        policies: &Policies,
        own: &Arc<Endpoint>,
        identity: u32,
        direction: Direction,
    ) -> Option<Arc<Program>> {
        let profiles = self.profiles_of(cluster, policies, own);
        self.read_backends(cluster, false);
        let no_match = match &self.no_match {
            Some(known) => known.clone(),
            None => {
                let made =
                    self.meaning(|number, tables| Compiled::profile(number, &NO_MATCH.into(), None, tables));
                self.no_match = Some(made.clone());
                made
            }
        };
        let known = self.identities.get_mut(identity as usize)?;
        known.memo.make_room(self.tables.selector_count());
        let known = &*known;
        let mut tiers: Vec<Tier> = Vec::new();
        let mut numbers: Vec<u32> = Vec::new();
        let mut names: Vec<(&str, bool)> = Vec::new();
        for (frame, of_tier) in self.frames.iter().zip(&self.tiers) {
            let selected: Vec<Arc<Compiled>> = of_tier
                .iter()
                .filter(|policy| policy.governs(direction) && selects(&self.tables, policy, own, known))
                .cloned()
                .collect();
            if selected.is_empty() {
                continue;
            }
            numbers.extend(selected.iter().map(|policy| policy.number));
            numbers.push(u32::MAX);
            names.push((&*frame.name, selected.iter().any(|policy| !policy.is_staged)));
            tiers.push(Tier { pass: frame.pass, policies: selected });
        }
        let mut broken = [None, None];
        if self.has_broken {
            let mut references: Vec<_> = policies.broken().map(|(reference, _)| reference).collect();
            references.sort();
            for (place, pending) in broken.iter_mut().zip([false, true]) {
                let governs =
                    |name: &str| names.iter().any(|(n, enforced)| *n == name && (pending || *enforced));
                *place = references.iter().find_map(|reference| broken_hit(reference, own, pending, governs));
            }
        }
        for profile in profiles.iter() {
            numbers.push(profile.number());
        }
        let key = (direction, numbers.into_boxed_slice());
        let is_shared = broken == [None, None];
        if is_shared && let Some(known) = self.programs.get(&key) {
            return Some(known.clone());
        }
        let broken =
            broken.map(|hit| hit.map(|hit| self.meaning(|number, _| Compiled::broken(number, &hit))));
        self.stats.programs_compiled += 1;
        self.program_numbers = self.program_numbers.wrapping_add(1);
        let mut program = Program {
            number: self.program_numbers,
            direction,
            tiers,
            profiles,
            no_match,
            broken,
            asked: rules::Asked::default(),
        };
        program.ask();
        let program = Arc::new(program);
        if is_shared {
            self.programs.insert(key, program.clone());
        }
        Some(program)
    }

    fn meaning(&mut self, make: impl FnOnce(u32, &mut Tables) -> Compiled) -> Arc<Compiled> {
        let number = self.next_number();
        let made = Arc::new(make(number, &mut self.tables));
        self.meanings.insert(number, made.clone());
        made
    }

    /// In order: a pod's follow from its namespace, a host endpoint lists its own.
    fn profiles_of(&mut self, cluster: &Cluster, policies: &Policies, own: &Endpoint) -> Arc<[Profile]> {
        if own.kind == EndpointKind::Wep {
            let namespace = own.namespace.clone().unwrap_or_default();
            if let Some(known) = self.pod_profiles.get(&namespace) {
                return [known.clone()].into();
            }
            // A pod cannot be without its namespace, even where the namespace's object is not known.
            let name: Arc<str> = format!("kns.{namespace}").into();
            let made = self.meaning(|number, tables| Compiled::profile(number, &name, None, tables));
            let profile = Profile::Fixed(made, Action::Allow);
            self.pod_profiles.insert(namespace, profile.clone());
            return [profile].into();
        }
        let names = own.policed.profiles.clone();
        let mut profiles = Vec::new();
        for name in names.iter() {
            let fixed = |name: &str| match KubernetesProfile::parse(name) {
                Some(KubernetesProfile::Namespace(namespace)) => {
                    cluster.namespace_labels(namespace).map(|_| Action::Allow)
                }
                _ => None,
            };
            // One of a service account has labels alone, and no rules.
            if let Some(KubernetesProfile::ServiceAccount(namespace, account)) =
                KubernetesProfile::parse(name)
                && cluster.service_account_labels(&namespace.into(), &account.into()).is_some()
            {
                continue;
            }
            profiles.push(self.profile(name.clone(), fixed, policies));
        }
        profiles.into()
    }

    fn profile(
        &mut self,
        name: Arc<str>,
        fixed: impl FnOnce(&str) -> Option<Action>,
        policies: &Policies,
    ) -> Profile {
        if let Some(known) = self.profiles.get(&name) {
            return known.clone();
        }
        let built_in = if &*name == DEFAULT_ALLOW { Some(Action::Allow) } else { fixed(&name) };
        let is_broken = policies
            .broken()
            .any(|(reference, _)| reference.kind == ResourceKind::Profile && reference.name == name);
        let profile = match (built_in, policies.profile(&name)) {
            (None, _) if is_broken => {
                Profile::Broken(self.meaning(|number, tables| Compiled::profile(number, &name, None, tables)))
            }
            (None, Some(profile)) => Profile::Rules(
                self.meaning(|number, tables| Compiled::profile(number, &name, Some(profile), tables)),
            ),
            // One that is not there is replaced with rules that drop.
            (action, _) => {
                let made = self.meaning(|number, tables| Compiled::profile(number, &name, None, tables));
                Profile::Fixed(made, action.unwrap_or(Action::Deny))
            }
        };
        self.profiles.insert(name, profile.clone());
        profile
    }
}
