//! The fewest addresses and ports that stand for all of them, as far as policies can tell them apart.
//!
//! In: the networks and ports that policies and network sets name. Out: for any range one address for each way of
//! being inside and outside of those networks; for ports likewise. What always holds: two addresses with the same
//! signature are in the same networks and sets, so that no rule tells one from the other.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::FixedState;
use ipnet::IpNet;

use crate::cluster::Cluster;
use crate::policy::Policies;
use crate::policy::ir::{Entity, PortMatch, Rule};

/// A range of addresses, both ends inside.
pub type Range = (IpAddr, IpAddr);

pub fn range(net: &IpNet) -> Range {
    (net.network(), net.broadcast())
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into()
    } else {
        Ipv6Addr::from_bits(number).into()
    }
}

/// From `start` to the start of the next one.
#[derive(Clone, Copy)]
struct Atom {
    start: u128,
    end: u128,
    signature: u64,
    /// In a network set of the world as it is: a flow there would have been named after the set.
    in_set: bool,
}

#[derive(Default)]
pub struct Atoms {
    v4: Vec<Atom>,
    v6: Vec<Atom>,
}

/// A network's beginning or end: whose it is, one more or one less, of a set of the world as it is.
type Edge = (u64, i32, bool);

#[derive(Default)]
struct Edges {
    v4: BTreeMap<u128, Vec<Edge>>,
    v6: BTreeMap<u128, Vec<Edge>>,
}

impl Edges {
    fn add(&mut self, net: &IpNet, id: u64, in_set: bool) {
        let (first, last) = range(net);
        let edges = if first.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        edges.entry(number(first)).or_default().push((id, 1, in_set));
        if let Some(after) = number(last).checked_add(1) {
            edges.entry(after).or_default().push((id, -1, in_set));
        }
    }
}

fn id(of: impl Hash) -> u64 {
    FixedState::with_seed(0).hash_one(of)
}

/// Every rule of every policy and profile.
pub fn rules(policies: &Policies) -> impl Iterator<Item = &Rule> {
    let of_policies = policies.policies().flat_map(|policy| [&policy.ingress, &policy.egress]).flatten();
    let of_profiles = policies.profiles().flat_map(|profile| [&profile.ingress, &profile.egress]);
    of_policies.chain(of_profiles).flat_map(|rules| rules.iter())
}

impl Atoms {
    /// Of the world as it is, and as it would be.
    pub fn of(worlds: [(&Cluster, &Policies); 2]) -> Self {
        let mut edges = Edges::default();
        for (index, (cluster, policies)) in worlds.into_iter().enumerate() {
            for rule in rules(policies) {
                for entity in [&rule.source, &rule.dest] {
                    entity.nets.iter().chain(entity.not_nets.iter()).for_each(|net| {
                        edges.add(net, id(("rule", net)), false);
                    });
                }
            }
            for set in cluster.network_sets() {
                let of = id(("set", index, &set.endpoint.namespace, &set.endpoint.name));
                set.nets.iter().for_each(|net| edges.add(net, of, index == 0));
            }
            let backends = cluster.backends().flat_map(|backends| backends.groups.iter());
            for ip in backends.flat_map(|group| group.addresses.iter()) {
                let net = IpNet::from(*ip);
                edges.add(&net, id(("backend", index, net)), false);
            }
        }
        Self { v4: sweep(edges.v4, u128::from(u32::MAX)), v6: sweep(edges.v6, u128::MAX) }
    }

    /// Equal for addresses that no network and no set tells apart.
    pub fn signature(&self, ip: IpAddr) -> u64 {
        let atoms = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        let at = atoms.partition_point(|atom| atom.end < number(ip));
        atoms.get(at).map_or(0, |atom| atom.signature)
    }

    /// One address of these ranges for each signature. Those of which `taken` says so are passed over;
    /// `outside_sets`: what lies in a network set too.
    pub fn representatives(
        &self,
        ranges: &[Range],
        outside_sets: bool,
        taken: impl Fn(IpAddr) -> bool,
    ) -> Vec<IpAddr> {
        /// Addresses that are tried in one atom.
        const TRIES: u128 = 64;
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        for (first, last) in ranges {
            let v4 = first.is_ipv4();
            let (first, last) = (number(*first), number(*last));
            let atoms = if v4 { &self.v4 } else { &self.v6 };
            let from = atoms.partition_point(|atom| atom.end < first);
            for atom in atoms.iter().skip(from).take_while(|atom| atom.start <= last) {
                if outside_sets && atom.in_set || seen.contains(&(v4, atom.signature)) {
                    continue;
                }
                let (from, to) = (atom.start.max(first), atom.end.min(last));
                let tried = (0..TRIES).map_while(|step| from.checked_add(step)).take_while(|at| *at <= to);
                if let Some(ip) = tried.map(|at| address(at, v4)).find(|ip| !taken(*ip)) {
                    seen.insert((v4, atom.signature));
                    found.push(ip);
                }
            }
        }
        found
    }
}

fn sweep(edges: BTreeMap<u128, Vec<Edge>>, last: u128) -> Vec<Atom> {
    let mut atoms = Vec::with_capacity(edges.len() + 1);
    let mut open: HashMap<u64, i32> = HashMap::new();
    let (mut signature, mut sets, mut start) = (0_u64, 0_i32, 0_u128);
    for (at, changes) in edges {
        if let Some(end) = at.checked_sub(1)
            && end >= start
        {
            atoms.push(Atom { start, end, signature, in_set: sets > 0 });
        }
        start = at;
        for (id, change, in_set) in changes {
            sets += if in_set { change } else { 0 };
            let count = open.entry(id).or_insert(0);
            let before = *count;
            *count += change;
            signature = match (before, *count) {
                (0, _) => signature.wrapping_add(id),
                (_, 0) => signature.wrapping_sub(id),
                _ => signature,
            };
        }
    }
    if start <= last {
        atoms.push(Atom { start, end: last, signature, in_set: sets > 0 });
    }
    atoms
}

/// One port for each way in which the rules can tell ports of this side apart; `named` are the ports that names and
/// services may stand for.
pub fn ports<'a>(
    rules: impl Iterator<Item = &'a Rule>,
    side: impl Fn(&Rule) -> &Entity,
    named: impl Iterator<Item = u16>,
) -> Vec<u16> {
    let mut starts = BTreeSet::from([1]);
    let mut add = |low: u16, high: u16| {
        starts.insert(low);
        starts.extend(high.checked_add(1));
    };
    let mut by_name = false;
    for rule in rules {
        let entity = side(rule);
        for port in entity.ports.iter().chain(entity.not_ports.iter()) {
            match port {
                PortMatch::Range(low, high) => add(*low, *high),
                PortMatch::Named(_) => by_name = true,
            }
        }
        by_name |= entity.service.is_some();
    }
    if by_name {
        named.for_each(|port| add(port, port));
    }
    starts.into_iter().collect()
}
