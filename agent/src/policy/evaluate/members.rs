//! What an address is a member of, as numbers: computed once for each distinct answer, shared by all addresses that
//! have it.
//!
//! In: identities of the address's owners and network sets, the nets and services of the rules that hold it. Out: a
//! [`Membership`], which answers every test of an entity rule, and remembers what selectors said.
//! What always holds: a membership is known by its content and never changes, so a verdict that was reached with it
//! stays right as long as its program does. Numbers grow only; the evaluator begins anew when there are too many.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::cluster::Cluster;
use crate::model::{NamedPort, Proto};
use crate::policy::ir::ServiceRef;
use crate::policy::labels::Identity;
use crate::policy::selector::Selector;

/// Numbers of selectors, lists of nets, services.
#[derive(Default)]
pub(super) struct Tables {
    selectors: HashMap<Arc<Selector>, u32, RandomState>,
    by_number: Vec<Arc<Selector>>,
    nets: HashMap<Arc<[IpNet]>, u32, RandomState>,
    v4: PrefixMap<Ipv4Net, Vec<u32>>,
    v6: PrefixMap<Ipv6Net, Vec<u32>>,
    services: HashMap<ServiceRef, u32, RandomState>,
    backends: HashMap<IpAddr, Vec<Backend>, RandomState>,
    /// Grows when an address may be a member of more than before.
    pub epoch: u64,
}

/// An address behind a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Backend {
    service: u32,
    /// `None`: the address alone. A port of `None` stands for all ports.
    serves: Option<(Proto, Option<u16>)>,
}

impl Tables {
    pub fn selector(&mut self, selector: &Arc<Selector>) -> u32 {
        if let Some(&number) = self.selectors.get(selector) {
            return number;
        }
        let number = number(self.by_number.len());
        self.by_number.push(selector.clone());
        self.selectors.insert(selector.clone(), number);
        number
    }

    pub fn nets(&mut self, nets: &Arc<[IpNet]>) -> u32 {
        if let Some(&number) = self.nets.get(nets) {
            return number;
        }
        let number = number(self.nets.len());
        self.nets.insert(nets.clone(), number);
        for net in nets.iter() {
            match net {
                IpNet::V4(net) => self.v4.entry(net.trunc()).or_default().push(number),
                IpNet::V6(net) => self.v6.entry(net.trunc()).or_default().push(number),
            }
        }
        self.epoch += 1;
        number
    }

    pub fn service(&mut self, service: &ServiceRef) -> u32 {
        let next = number(self.services.len());
        if let Some(&number) = self.services.get(service) {
            return number;
        }
        self.services.insert(service.clone(), next);
        self.epoch += 1;
        next
    }

    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// What stands behind the services that rules name.
    pub fn read_backends(&mut self, cluster: &Cluster) {
        self.backends.clear();
        self.epoch += 1;
        for backends in cluster.backends() {
            let Some(name) = &backends.service else { continue };
            let service = ServiceRef { namespace: backends.namespace.clone(), name: name.clone() };
            let Some(&service) = self.services.get(&service) else { continue };
            for group in &backends.groups {
                for ip in &group.addresses {
                    let known = self.backends.entry(*ip).or_default();
                    known.push(Backend { service, serves: None });
                    let ports = group.ports.iter();
                    known
                        .extend(ports.map(|port| Backend { service, serves: Some((port.proto, port.port)) }));
                }
            }
        }
        for known in self.backends.values_mut() {
            known.sort_unstable();
            known.dedup();
        }
    }

    /// Numbers given.
    pub fn len(&self) -> usize {
        self.by_number.len() + self.nets.len()
    }

    pub fn selector_count(&self) -> usize {
        self.by_number.len()
    }

    pub fn matches(&self, selector: u32, identity: &Identity) -> bool {
        self.by_number.get(selector as usize).is_some_and(|selector| selector.matches(identity))
    }

    /// Appends to the key what lists of nets and services hold the address.
    pub fn describe(&self, ip: IpAddr, key: &mut MembershipKey) {
        let nets = &mut key.nets;
        match ip {
            IpAddr::V4(ip) => {
                self.v4.cover_values(&Ipv4Net::from(ip)).for_each(|lists| nets.extend_from_slice(lists));
            }
            IpAddr::V6(ip) => {
                self.v6.cover_values(&Ipv6Net::from(ip)).for_each(|lists| nets.extend_from_slice(lists));
            }
        }
        nets.sort_unstable();
        nets.dedup();
        if let Some(backends) = self.backends.get(&ip) {
            key.backends.extend_from_slice(backends);
        }
    }
}

/// Places in tables fit: they are bounded far below.
pub(super) fn number(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX - 1)
}

/// What selectors said, two bits each: asked, and yes.
#[derive(Debug, Default)]
pub(super) struct Memo(Vec<[Cell<u64>; 2]>);

impl Memo {
    pub fn make_room(&mut self, selectors: usize) {
        let words = selectors.div_ceil(64);
        if self.0.len() < words {
            self.0.resize_with(words, Default::default);
        }
    }

    pub fn get(&self, selector: u32, ask: impl FnOnce() -> bool) -> bool {
        let Some([asked, yes]) = self.0.get(selector as usize / 64) else { return ask() };
        let bit = 1 << (selector % 64);
        if asked.get() & bit == 0 {
            asked.set(asked.get() | bit);
            if ask() {
                yes.set(yes.get() | bit);
            }
        }
        yes.get() & bit != 0
    }
}

/// What tells memberships apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct MembershipKey {
    /// Numbers of identities, each with the named ports of an endpoint that has it.
    pub identities: Vec<(u32, Arc<[NamedPort]>)>,
    pub nets: Vec<u32>,
    pub backends: Vec<Backend>,
}

impl MembershipKey {
    pub fn clear(&mut self) {
        self.identities.clear();
        self.nets.clear();
        self.backends.clear();
    }
}

#[derive(Debug)]
pub(super) struct Membership {
    identities: Vec<(Arc<Identity>, Arc<[NamedPort]>)>,
    nets: Vec<u32>,
    backends: Vec<Backend>,
    pub memo: Memo,
}

impl Membership {
    pub fn new(key: &MembershipKey, identity: impl Fn(u32) -> Option<Arc<Identity>>) -> Self {
        let identities = key.identities.iter();
        Self {
            identities: identities.filter_map(|(id, ports)| Some((identity(*id)?, ports.clone()))).collect(),
            nets: key.nets.clone(),
            backends: key.backends.clone(),
            memo: Memo::default(),
        }
    }

    pub fn matches(&self, tables: &Tables, selector: u32) -> bool {
        self.memo
            .get(selector, || self.identities.iter().any(|(identity, _)| tables.matches(selector, identity)))
    }

    pub fn is_in_nets(&self, nets: u32) -> bool {
        self.nets.contains(&nets)
    }

    pub fn has_backend(&self, service: u32) -> bool {
        self.backends.iter().any(|backend| backend.service == service)
    }

    pub fn serves(&self, service: u32, proto: Proto, port: u16) -> bool {
        self.backends.iter().any(|backend| {
            backend.service == service
                && backend.serves.is_some_and(|(p, served)| p == proto && served.is_none_or(|s| s == port))
        })
    }

    /// An endpoint of this address that satisfies the selector names this port so.
    pub fn names_port(
        &self,
        tables: &Tables,
        selector: u32,
        name: &Arc<str>,
        proto: Proto,
        port: u16,
    ) -> bool {
        self.identities.iter().any(|(identity, ports)| {
            ports.iter().any(|p| p.port == port && p.proto == proto && p.name.as_ref() == Some(name))
                && (selector == super::rules::NONE || tables.matches(selector, identity))
        })
    }
}
