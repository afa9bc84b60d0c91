//! Which network set names an address: the longest prefix, by category.
//!
//! In: NetworkSets and GlobalNetworkSets. Out: the set's [`Endpoint`] for an address and the other end's namespace.
//! What always holds: the category decides before the length of the prefix (the peer's own namespace, then global,
//! then the other namespaces); in a category the longest prefix wins; of equal ones the smallest key
//! (`namespace/name`, or `name`), in byte order (calico-facts 2.8).
//! The tries are behind `Arc`s: a clone of the cluster shares them, and the first change after a clone copies one.
//! Policy asks for every set that holds an address, whether it names it or not.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::model::Endpoint;

/// The sets that hold one prefix, in the order of their keys.
type Holders = Arc<[Arc<Endpoint>]>;

#[derive(Clone, Default)]
pub(super) struct Networks {
    v4: Arc<PrefixMap<Ipv4Net, Holders>>,
    v6: Arc<PrefixMap<Ipv6Net, Holders>>,
}

impl Networks {
    pub fn find(&self, ip: IpAddr, peer_namespace: Option<&str>) -> Option<&Arc<Endpoint>> {
        let mut best = Best { peer_namespace, own: None, global: None, other: None };
        match ip {
            IpAddr::V4(ip) => {
                self.v4.cover_values(&Ipv4Net::from(ip)).for_each(|holders| best.offer(holders));
            }
            IpAddr::V6(ip) => {
                self.v6.cover_values(&Ipv6Net::from(ip)).for_each(|holders| best.offer(holders));
            }
        }
        best.own.or(best.global).or(best.other)
    }

    /// Every set that holds `ip`, once for each of its prefixes that do.
    pub fn each(&self, ip: IpAddr, found: &mut impl FnMut(&Arc<Endpoint>)) {
        match ip {
            IpAddr::V4(ip) => self.v4.cover_values(&Ipv4Net::from(ip)).flat_map(|h| h.iter()).for_each(found),
            IpAddr::V6(ip) => self.v6.cover_values(&Ipv6Net::from(ip)).flat_map(|h| h.iter()).for_each(found),
        }
    }

    pub fn insert(&mut self, net: IpNet, set: &Arc<Endpoint>) {
        match net {
            IpNet::V4(net) => change(Arc::make_mut(&mut self.v4), net.trunc(), set, true),
            IpNet::V6(net) => change(Arc::make_mut(&mut self.v6), net.trunc(), set, true),
        }
    }

    pub fn remove(&mut self, net: IpNet, set: &Arc<Endpoint>) {
        match net {
            IpNet::V4(net) => change(Arc::make_mut(&mut self.v4), net.trunc(), set, false),
            IpNet::V6(net) => change(Arc::make_mut(&mut self.v6), net.trunc(), set, false),
        }
    }
}

/// The best of each category so far; prefixes come from the shortest to the longest.
struct Best<'a, 'n> {
    peer_namespace: Option<&'n str>,
    own: Option<&'a Arc<Endpoint>>,
    global: Option<&'a Arc<Endpoint>>,
    other: Option<&'a Arc<Endpoint>>,
}

impl<'a> Best<'a, '_> {
    fn offer(&mut self, holders: &'a Holders) {
        let (mut own, mut global, mut other) = (None, None, None);
        for set in holders.iter() {
            let category = match set.namespace.as_deref() {
                None => &mut global,
                namespace if namespace == self.peer_namespace => &mut own,
                Some(_) => &mut other,
            };
            if category.is_none() {
                *category = Some(set);
            }
        }
        self.own = own.or(self.own);
        self.global = global.or(self.global);
        self.other = other.or(self.other);
    }
}

fn change<P>(trie: &mut PrefixMap<P, Holders>, net: P, set: &Arc<Endpoint>, insert: bool)
where
    P: prefix_trie::Prefix,
{
    let mut holders: Vec<_> = trie.get(&net).map(|known| known.to_vec()).unwrap_or_default();
    match (holders.binary_search_by(|known| by_key(known, set)), insert) {
        (Ok(index), true) => {
            if let Some(known) = holders.get_mut(index) {
                *known = set.clone();
            }
        }
        (Err(index), true) => holders.insert(index, set.clone()),
        (Ok(index), false) => {
            holders.remove(index);
        }
        (Err(_), false) => return,
    }
    if holders.is_empty() {
        trie.remove(&net);
    } else {
        trie.insert(net, holders.into());
    }
}

/// Byte order of `namespace/name` or `name`, without building the string.
fn by_key(a: &Endpoint, b: &Endpoint) -> Ordering {
    fn key(e: &Endpoint) -> impl Iterator<Item = u8> {
        let namespace = e.namespace.iter().flat_map(|ns| ns.bytes().chain(std::iter::once(b'/')));
        namespace.chain(e.name.bytes())
    }
    key(a).cmp(key(b))
}
