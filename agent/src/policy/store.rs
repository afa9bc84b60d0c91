//! The policy resources that there are.
//!
//! In: resources applied and deleted. Out: the same, by kind and name, with a version that grows with each change.
//! What always holds: a clone shares its structure; applying an equal resource changes nothing; a resource that could
//! not be read is kept as such and never as absent, because whoever it may apply to is judged by an unknown policy.

use std::sync::Arc;

use super::ir::{Policy, PolicyId, Profile, Tier};
use super::order;
use crate::cluster::Map;
use crate::model::PolicyKind;

#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    Tier(Tier),
    Policy(Policy),
    Profile(Profile),
    /// The object exists, and says that it is to be taken as not there (`stagedAction: Delete`; Calico leaves out an
    /// admin policy without a subject). Applying it deletes.
    Absent(ResourceRef),
    /// The object exists and cannot be read: what it may apply to cannot be evaluated. The text says what is wrong.
    Broken(ResourceRef, Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKind {
    Tier,
    Profile,
    /// Any kind of policy; never [`PolicyKind::Profile`].
    Policy(PolicyKind),
}

/// Which resource: what a `delete` names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceRef {
    pub kind: ResourceKind,
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
}

impl Resource {
    pub fn reference(&self) -> ResourceRef {
        match self {
            Self::Tier(tier) => {
                ResourceRef { kind: ResourceKind::Tier, namespace: None, name: tier.name.clone() }
            }
            Self::Profile(profile) => {
                ResourceRef { kind: ResourceKind::Profile, namespace: None, name: profile.name.clone() }
            }
            Self::Policy(policy) => ResourceRef {
                kind: ResourceKind::Policy(policy.id.kind),
                namespace: policy.id.namespace.clone(),
                name: policy.id.name.clone(),
            },
            Self::Absent(reference) | Self::Broken(reference, _) => reference.clone(),
        }
    }
}

impl ResourceKind {
    pub fn is_namespaced(self) -> bool {
        matches!(
            self,
            Self::Policy(
                PolicyKind::NetworkPolicy
                    | PolicyKind::KubernetesNetworkPolicy
                    | PolicyKind::StagedNetworkPolicy
                    | PolicyKind::StagedKubernetesNetworkPolicy
            )
        )
    }
}

/// All policy resources. Cloning is cheap: the clone is what is published.
#[derive(Clone, Default)]
pub struct Policies {
    version: u64,
    tiers: Map<Arc<str>, Arc<Tier>>,
    profiles: Map<Arc<str>, Arc<Profile>>,
    policies: Map<PolicyId, Arc<Policy>>,
    broken: Map<ResourceRef, Arc<str>>,
}

impl Policies {
    /// Grows with each change.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn tiers(&self) -> impl Iterator<Item = &Arc<Tier>> {
        self.tiers.values()
    }

    pub fn profiles(&self) -> impl Iterator<Item = &Arc<Profile>> {
        self.profiles.values()
    }

    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// What could not be read, and why.
    pub fn broken(&self) -> impl Iterator<Item = (&ResourceRef, &Arc<str>)> {
        self.broken.iter()
    }

    /// The tier of this name: as it was applied, else as it is built in.
    pub fn tier(&self, name: &str) -> Option<Arc<Tier>> {
        self.tiers.get(name).cloned().or_else(|| order::built_in_tier(name).map(Arc::new))
    }

    /// The profile of this name as it was applied. The built-in ones are the evaluator's.
    pub fn profile(&self, name: &str) -> Option<&Arc<Profile>> {
        self.profiles.get(name)
    }

    /// The policies of normal tiers in the order in which they are evaluated; see [`order::tiers`].
    pub fn ordered(&self) -> Vec<order::OrderedTier> {
        order::tiers(self)
    }

    /// Adds the resource, or takes it in place of the one of the same kind and name. `true`: something changed.
    pub fn apply(&mut self, resource: Resource) -> bool {
        fn put<K: Clone + Eq + std::hash::Hash, V: PartialEq>(
            map: &mut Map<K, Arc<V>>,
            key: K,
            value: V,
        ) -> bool {
            if map.get(&key).is_some_and(|known| **known == value) {
                return false;
            }
            map.insert(key, Arc::new(value));
            true
        }
        let reference = resource.reference();
        let mended = !matches!(resource, Resource::Broken(..)) && self.broken.remove(&reference).is_some();
        let changed = match resource {
            Resource::Absent(reference) => return self.delete(&reference) || self.count(mended),
            Resource::Broken(reference, problem) => {
                if self.broken.get(&reference) == Some(&problem) {
                    return false;
                }
                self.delete(&reference);
                self.broken.insert(reference, problem);
                true
            }
            Resource::Tier(tier) => put(&mut self.tiers, tier.name.clone(), tier),
            Resource::Profile(profile) => put(&mut self.profiles, profile.name.clone(), profile),
            Resource::Policy(policy) => put(&mut self.policies, policy.id.clone(), policy),
        };
        self.count(changed || mended)
    }

    fn count(&mut self, changed: bool) -> bool {
        self.version += u64::from(changed);
        changed
    }

    /// `true`: it was known.
    pub fn delete(&mut self, resource: &ResourceRef) -> bool {
        let ResourceRef { kind, namespace, name } = resource;
        let was_broken = self.broken.remove(resource).is_some();
        let known = match kind {
            ResourceKind::Tier => self.tiers.remove(name).is_some(),
            ResourceKind::Profile => self.profiles.remove(name).is_some(),
            ResourceKind::Policy(kind) => {
                let id = PolicyId { kind: *kind, namespace: namespace.clone(), name: name.clone() };
                self.policies.remove(&id).is_some()
            }
        };
        self.count(known || was_broken)
    }

    /// How many resources of this kind are known.
    pub fn count_of(&self, kind: ResourceKind) -> usize {
        match kind {
            ResourceKind::Tier => self.tiers.len(),
            ResourceKind::Profile => self.profiles.len(),
            ResourceKind::Policy(of) => self.policies.keys().filter(|id| id.kind == of).count(),
        }
    }

    /// These are all resources of the kind that there are.
    pub fn replace_all(&mut self, kind: ResourceKind, resources: Vec<Resource>) {
        let present: std::collections::HashSet<_> = resources.iter().map(Resource::reference).collect();
        let reference = |namespace: Option<Arc<str>>, name: &Arc<str>| ResourceRef {
            kind,
            namespace,
            name: name.clone(),
        };
        let mut known: Vec<ResourceRef> = match kind {
            ResourceKind::Tier => self.tiers.keys().map(|name| reference(None, name)).collect(),
            ResourceKind::Profile => self.profiles.keys().map(|name| reference(None, name)).collect(),
            ResourceKind::Policy(of) => {
                let ids = self.policies.keys().filter(|id| id.kind == of);
                ids.map(|id| reference(id.namespace.clone(), &id.name)).collect()
            }
        };
        known.extend(self.broken.keys().filter(|reference| reference.kind == kind).cloned());
        for gone in known.iter().filter(|known| !present.contains(known)) {
            self.delete(gone);
        }
        for resource in resources {
            self.apply(resource);
        }
    }
}
