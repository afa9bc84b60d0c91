//! A flow as a log tells it, and every flow that it may have been.
//!
//! In: a flow of which aggregation may have taken names, addresses or ports. Out: its candidates: addresses, ports and
//! ends that are known in full; or why there are none. What always holds: what the log does tell is never varied; the
//! candidates of what it does not tell stand for all that policies can tell apart; their number is bounded.
//! What policies say of a candidate is deliberately not here: see `mod.rs`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::atoms::{Atoms, Range, ports, range, rules};
use crate::cluster::{Cluster, KnownPod};
use crate::model::{Addresses, Direction, Endpoint, EndpointKind, FiveTuple, Proto};
use crate::policy::Policies;

/// Candidates of one end, and of both together.
const MOST_OF_ONE: usize = 256;
const MOST: usize = 4096;

/// One end, as far as the log tells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SeenEnd {
    pub kind: EndpointKind,
    pub namespace: Option<Arc<str>>,
    /// `None`: aggregated away.
    pub name: Option<Arc<str>>,
    pub name_aggr: Arc<str>,
    /// All addresses that it had; empty: aggregated away.
    pub ips: Vec<IpAddr>,
    /// `None`: aggregated away, or a protocol without ports.
    pub port: Option<u16>,
    /// Who it was, where that is known without asking for a name.
    pub endpoint: Option<KnownEnd>,
}

/// Compared by identity: the same endpoint in the same version.
#[derive(Clone, Debug)]
pub struct KnownEnd(pub Arc<Endpoint>);

impl PartialEq for KnownEnd {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for KnownEnd {}

impl std::hash::Hash for KnownEnd {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::ptr::hash(Arc::as_ptr(&self.0), state);
    }
}

/// What tells one flow of a log from another, without counters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SeenFlow {
    pub proto: Proto,
    /// Type and code, where they are known.
    pub icmp: Option<(u8, u8)>,
    /// `[source, destination]`, after DNAT.
    pub ends: [SeenEnd; 2],
    /// Egress: the source's.
    pub reporter: Direction,
    /// Whether the reporter's end let it pass, where a log says so.
    pub passed: Option<bool>,
    /// The service that was addressed: namespace, name.
    pub service: Option<(Arc<str>, Arc<str>)>,
    /// `Some`: the log tells whether the destination's policies were asked at all (the node itself is exempt).
    pub is_exempt: Option<bool>,
}

/// A flow in full.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub tuple: FiveTuple,
    pub ends: [Option<Arc<Endpoint>>; 2],
}

/// Namespace, and name with `*`.
type Workload = (Option<Arc<str>>, Arc<str>);
/// An address, and who has it.
type Place = (IpAddr, Option<Arc<Endpoint>>);

/// What is looked up in the world as it is.
pub struct Directory {
    pods: HashMap<Workload, Vec<Arc<KnownPod>>>,
    pub atoms: Atoms,
    /// Ports of the source and of the destination that rules tell apart.
    ports: [Vec<u16>; 2],
}

impl Directory {
    pub fn of(worlds: [(&Cluster, &Policies); 2]) -> Self {
        let [(cluster, _), _] = worlds;
        let mut pods: HashMap<_, Vec<Arc<KnownPod>>> = HashMap::new();
        for pod in cluster.pods().filter(|pod| !pod.host_network && !pod.ips.is_empty()) {
            let key = (pod.endpoint.namespace.clone(), pod.endpoint.name_aggr.clone());
            pods.entry(key).or_default().push(pod.clone());
        }
        for of_workload in pods.values_mut() {
            of_workload.sort_by(|a, b| a.endpoint.name.cmp(&b.endpoint.name));
        }
        let all_rules = || worlds.into_iter().flat_map(|(_, policies)| rules(policies));
        let named = || {
            worlds.into_iter().flat_map(|(cluster, _)| {
                let of_pods = cluster.pods().flat_map(|pod| pod.endpoint.policed.ports.iter());
                let backends = cluster.backends().flat_map(|backends| backends.groups.iter());
                let of_services = backends.flat_map(|group| group.ports.iter()).filter_map(|port| port.port);
                of_pods.map(|port| port.port).chain(of_services)
            })
        };
        Self {
            pods,
            atoms: Atoms::of(worlds),
            ports: [
                ports(all_rules(), |rule| &rule.source, named()),
                ports(all_rules(), |rule| &rule.dest, named()),
            ],
        }
    }

    /// Every flow that this one may have been.
    ///
    /// # Errors
    /// Why nothing can be told.
    pub fn candidates(&self, flow: &SeenFlow, cluster: &Cluster) -> Result<Vec<Candidate>, &'static str> {
        let [source, dest] = &flow.ends;
        let dests = self.ends(dest, cluster, &[])?;
        // The node of the destination may be the source: its policies are not asked then.
        let nodes: BTreeSet<_> = dests.iter().filter_map(|(_, end)| end.as_ref()?.node.clone()).collect();
        let nodes: Vec<IpAddr> = match flow.is_exempt {
            None => nodes.iter().flat_map(|node| cluster.addresses_of_node(node)).collect(),
            Some(_) => Vec::new(),
        };
        let sources = self.ends(source, cluster, &nodes)?;
        let source_ports = self.ports_of(flow, 0, cluster);
        let dest_ports = self.ports_of(flow, 1, cluster);
        let most = sources.len() * dests.len();
        if most.saturating_mul(source_ports.len()).saturating_mul(dest_ports.len()) > MOST {
            return Err("it may have been too many different flows");
        }
        let mut all = Vec::new();
        for (src, source) in &sources {
            for (dst, dest) in dests.iter().filter(|(dst, _)| dst.is_ipv4() == src.is_ipv4()) {
                for src_port in &source_ports {
                    for dst_port in &dest_ports {
                        all.push(Candidate {
                            tuple: FiveTuple {
                                proto: flow.proto,
                                addresses: Addresses {
                                    src: *src,
                                    dst: *dst,
                                    src_port: *src_port,
                                    dst_port: *dst_port,
                                },
                            },
                            ends: [source.clone(), dest.clone()],
                        });
                    }
                }
            }
        }
        if all.is_empty() { Err("its ends have no address of one family") } else { Ok(all) }
    }

    fn ports_of(&self, flow: &SeenFlow, side: usize, cluster: &Cluster) -> Vec<u16> {
        let [source, dest] = &flow.ends;
        let end = if side == 0 { source } else { dest };
        if !flow.proto.has_ports() {
            return vec![0];
        }
        if let Some(port) = end.port {
            return vec![port];
        }
        if side == 1
            && let Some((namespace, name)) = &flow.service
        {
            let of_service = cluster
                .backends()
                .filter(|of| of.namespace == *namespace && of.service.as_ref() == Some(name));
            let ports = of_service.flat_map(|of| of.groups.iter()).flat_map(|group| group.ports.iter());
            let ports: BTreeSet<u16> =
                ports.filter(|port| port.proto == flow.proto).filter_map(|port| port.port).collect();
            if !ports.is_empty() {
                return ports.into_iter().collect();
            }
        }
        let [of_source, of_dest] = &self.ports;
        if side == 0 { of_source.clone() } else { of_dest.clone() }
    }

    /// Addresses and endpoints that this end may have been; `nodes` are possible addresses beyond what rules tell.
    fn ends(&self, end: &SeenEnd, cluster: &Cluster, nodes: &[IpAddr]) -> Result<Vec<Place>, &'static str> {
        if let Some(known) = &end.endpoint {
            return Ok(end.ips.iter().map(|ip| (*ip, Some(known.0.clone()))).collect());
        }
        let taken = |ip: IpAddr| cluster.holders(ip).next().is_some();
        let found: Vec<_> = match end.kind {
            EndpointKind::Wep => self.pods(end)?,
            EndpointKind::Hep => host_endpoint(end, cluster)?,
            _ if !end.ips.is_empty() => end.ips.iter().map(|ip| (*ip, None)).collect(),
            EndpointKind::Ns => {
                let name = end.name.as_ref().unwrap_or(&end.name_aggr);
                let set = cluster
                    .network_sets()
                    .find(|set| set.endpoint.namespace == end.namespace && set.endpoint.name == *name)
                    .ok_or("a network set is not in the cluster any more")?;
                let ranges: Vec<Range> = set.nets.iter().map(range).collect();
                let ips = self.atoms.representatives(&ranges, false, taken);
                ips.into_iter().map(|ip| (ip, None)).collect()
            }
            EndpointKind::Net => {
                let (private, public) = private_and_public();
                let ranges = if &*end.name_aggr == "pvt" { private } else { public };
                let ips = self.atoms.representatives(&ranges, true, taken);
                let inside = |ip: &IpAddr| ranges.iter().any(|(first, last)| first <= ip && ip <= last);
                let nodes = nodes.iter().copied().filter(inside);
                ips.into_iter().chain(nodes).map(|ip| (ip, None)).collect()
            }
        };
        if found.len() > MOST_OF_ONE {
            return Err("it may have been too many different flows");
        }
        Ok(found)
    }

    /// The pod of this name; if it is gone, those of its workload stand for it; without a name all of the workload.
    /// Pods that no policy can tell apart stand for each other.
    fn pods(&self, end: &SeenEnd) -> Result<Vec<Place>, &'static str> {
        let key = (end.namespace.clone(), end.name_aggr.clone());
        let workload = self.pods.get(&key).ok_or("a pod and its workload are not in the cluster any more")?;
        let named = workload.iter().find(|pod| Some(&pod.endpoint.name) == end.name.as_ref());
        let candidates: Vec<&Arc<KnownPod>> = match named {
            Some(pod) => vec![pod],
            None if end.name.is_none() && !end.ips.is_empty() => {
                let has = |pod: &&Arc<KnownPod>| pod.ips.iter().any(|ip| end.ips.contains(ip));
                let some: Vec<_> = workload.iter().filter(has).collect();
                if some.is_empty() { workload.iter().collect() } else { some }
            }
            None => workload.iter().collect(),
        };
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        for pod in candidates {
            let own = end.ips.iter().filter(|ip| end.name.is_some() || pod.ips.contains(ip));
            let mut ips: Vec<IpAddr> = own.copied().collect();
            if ips.is_empty() {
                ips.extend(pod.ips.iter().copied());
            }
            for ip in ips {
                let what = (
                    self.atoms.signature(ip),
                    pod.endpoint.labels.clone(),
                    pod.endpoint.policed.service_account.clone(),
                    pod.endpoint.policed.ports.clone(),
                    pod.endpoint.node.clone(),
                );
                if seen.insert(what) {
                    found.push((ip, Some(pod.endpoint.clone())));
                }
            }
        }
        Ok(found)
    }
}

fn host_endpoint(end: &SeenEnd, cluster: &Cluster) -> Result<Vec<Place>, &'static str> {
    let is_it = |known: &Endpoint| match &end.name {
        Some(name) => known.name == *name,
        None => known.name_aggr == end.name_aggr,
    };
    let mut found: Vec<_> = cluster
        .host_endpoints()
        .filter(|known| end.namespace.is_none() && is_it(&known.endpoint))
        .flat_map(|known| known.ips.iter().map(|ip| (*ip, Some(known.endpoint.clone()))))
        .filter(|(ip, _)| end.ips.is_empty() || end.ips.contains(ip))
        .collect();
    if found.is_empty() {
        // The node itself, without a HostEndpoint, or a pod on its host network.
        let ips: Vec<IpAddr> = match &end.namespace {
            _ if !end.ips.is_empty() => end.ips.clone(),
            None => cluster.addresses_of_node(&end.name_aggr).collect(),
            Some(_) => {
                let is_it = |pod: &&Arc<KnownPod>| {
                    pod.host_network && pod.endpoint.namespace == end.namespace && is_it(&pod.endpoint)
                };
                let pods = cluster.pods().filter(is_it);
                let nodes: BTreeSet<_> = pods.filter_map(|pod| pod.endpoint.node.as_ref()).collect();
                nodes.into_iter().flat_map(|node| cluster.addresses_of_node(node)).collect()
            }
        };
        found.extend(ips.into_iter().map(|ip| (ip, None)));
    }
    if found.is_empty() { Err("a host endpoint is not in the cluster any more") } else { Ok(found) }
}

/// Every address that logs may call private, and every one that they may call public: which of the two a few ranges
/// are depends on `flowLogsPrivateNetworks`.
fn private_and_public() -> (Vec<Range>, Vec<Range>) {
    fn nets(list: &[&str]) -> Vec<Range> {
        let parsed = list.iter().filter_map(|text| text.parse::<ipnet::IpNet>().ok());
        parsed.map(|net| range(&net)).collect()
    }
    const RFC1918: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
    const EXTENDED: [&str; 7] =
        ["127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10", "::1/128", "fe80::/10", "fc00::/7", "::/128"];
    let mut private = nets(&RFC1918);
    // The public ones lie between them.
    let v4 = |text: &str| text.parse::<std::net::Ipv4Addr>().map_or(0, std::net::Ipv4Addr::to_bits);
    let gaps = [
        ("0.0.0.0", "9.255.255.255"),
        ("11.0.0.0", "172.15.255.255"),
        ("172.32.0.0", "192.167.255.255"),
        ("192.169.0.0", "255.255.255.255"),
    ];
    let to_ip = |bits: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(bits));
    let mut public: Vec<Range> =
        gaps.iter().map(|(first, last)| (to_ip(v4(first)), to_ip(v4(last)))).collect();
    public.extend(nets(&["::/0"]));
    private.extend(nets(&EXTENDED));
    (private, public)
}
