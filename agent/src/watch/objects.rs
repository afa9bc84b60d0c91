//! Kubernetes and Calico objects as they are written, trimmed while they are decoded.
//!
//! In: whatever serde can read. Out: structs with the fields that naming and policy use, addresses and ports already
//! checked. Everything else in an object is skipped, never kept. These are our own structs and not k8s-openapi's
//! because of that: 100,000 pods must fit in memory, and a full Pod is some hundred times what is used of it.
//! What always holds: `null`, an empty string where an address may stand, and a missing field are the same.
//! What the fields mean together is deliberately not here: see `decode.rs`.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use crate::model::{Labels, Proto, Timestamp, canonical};

/// Of any kind; `A` are the annotations that are read.
#[derive(Debug, Deserialize)]
pub struct Meta<A> {
    pub name: Arc<str>,
    pub namespace: Option<Arc<str>>,
    pub uid: Option<Arc<str>>,
    #[serde(rename = "generateName")]
    pub generate_name: Option<Arc<str>>,
    pub labels: Option<LabelMap>,
    pub annotations: Option<A>,
    #[serde(rename = "creationTimestamp")]
    pub created: Option<Time>,
    #[serde(rename = "deletionTimestamp")]
    pub deletion: Option<Time>,
}

/// Annotations of kinds of which none is read.
#[derive(Debug, Deserialize)]
pub struct NoAnnotations {}

/// Namespace, ServiceAccount: nothing but metadata is used.
#[derive(Debug, Deserialize)]
pub struct Bare {
    pub metadata: Meta<NoAnnotations>,
}

#[derive(Debug, Deserialize)]
pub struct Pod {
    pub metadata: Meta<PodAnnotations>,
    pub spec: Option<PodSpec>,
    pub status: Option<PodStatus>,
}

/// What Calico's CNI plugin writes as soon as it gives or takes an address.
#[derive(Debug, Default, Deserialize)]
pub struct PodAnnotations {
    #[serde(rename = "cni.projectcalico.org/podIP")]
    pub pod_ip: Option<String>,
    #[serde(rename = "cni.projectcalico.org/podIPs")]
    pub pod_ips: Option<String>,
    /// What the kubelet writes at the mirror of a static pod: the uid that it gave the static pod itself.
    #[serde(rename = "kubernetes.io/config.mirror")]
    pub mirrored_uid: Option<Arc<str>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    pub node_name: Option<Arc<str>>,
    pub host_network: Option<bool>,
    pub service_account_name: Option<Arc<str>>,
    /// The old name of the same field.
    pub service_account: Option<Arc<str>>,
    pub containers: Option<Vec<Container>>,
    pub init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Deserialize)]
pub struct Container {
    pub ports: Option<Vec<ContainerPort>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    pub name: Option<Arc<str>>,
    pub container_port: Port,
    pub protocol: Option<Protocol>,
}

#[derive(Debug, Default, Deserialize)]
pub struct PodStatus {
    pub phase: Option<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<Ip>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
    pub conditions: Option<Vec<PodCondition>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodCondition {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub status: Option<String>,
    /// As it is written: a time that cannot be read must not cost the pod.
    #[serde(rename = "lastTransitionTime")]
    pub since: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct PodIp {
    pub ip: Option<Ip>,
}

#[derive(Debug, Deserialize)]
pub struct Node {
    pub metadata: Meta<NodeAnnotations>,
    pub status: Option<NodeStatus>,
}

/// The node's own and its tunnels' addresses, as Calico writes them: an address or a prefix.
#[derive(Debug, Default, Deserialize)]
pub struct NodeAnnotations {
    #[serde(rename = "projectcalico.org/IPv4Address")]
    pub v4: Option<String>,
    #[serde(rename = "projectcalico.org/IPv6Address")]
    pub v6: Option<String>,
    #[serde(rename = "projectcalico.org/IPv4IPIPTunnelAddr")]
    pub v4_ipip: Option<String>,
    #[serde(rename = "projectcalico.org/IPv4VXLANTunnelAddr")]
    pub v4_vxlan: Option<String>,
    #[serde(rename = "projectcalico.org/IPv6VXLANTunnelAddr")]
    pub v6_vxlan: Option<String>,
    #[serde(rename = "projectcalico.org/IPv4WireguardInterfaceAddr")]
    pub v4_wireguard: Option<String>,
    #[serde(rename = "projectcalico.org/IPv6WireguardInterfaceAddr")]
    pub v6_wireguard: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub struct NodeStatus {
    pub addresses: Option<Vec<NodeAddress>>,
}

#[derive(Debug, Deserialize)]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub kind: String,
    pub address: String,
}

#[derive(Debug, Deserialize)]
pub struct Service {
    pub metadata: Meta<NoAnnotations>,
    pub spec: Option<ServiceSpec>,
    pub status: Option<ServiceStatus>,
}

#[derive(Debug, Default, Deserialize)]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<Ip>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<Ip>>,
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<Vec<Ip>>,
    pub ports: Option<Vec<ServicePort>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    pub name: Option<Arc<str>>,
    pub protocol: Option<Protocol>,
    pub port: Port,
    pub node_port: Option<Port>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    pub load_balancer: Option<LoadBalancer>,
}

#[derive(Debug, Deserialize)]
pub struct LoadBalancer {
    pub ingress: Option<Vec<Ingress>>,
}

#[derive(Debug, Deserialize)]
pub struct Ingress {
    pub ip: Option<Ip>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    pub metadata: Meta<NoAnnotations>,
    pub address_type: Option<String>,
    pub endpoints: Option<Vec<SliceEndpoint>>,
    pub ports: Option<Vec<SlicePort>>,
}

#[derive(Debug, Deserialize)]
pub struct SliceEndpoint {
    pub addresses: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
pub struct SlicePort {
    pub name: Option<Arc<str>>,
    pub protocol: Option<Protocol>,
    pub port: Option<Port>,
}

#[derive(Debug, Deserialize)]
pub struct Endpoints {
    pub metadata: Meta<NoAnnotations>,
    pub subsets: Option<Vec<Subset>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    pub addresses: Option<Vec<PodIp>>,
    pub not_ready_addresses: Option<Vec<PodIp>>,
    pub ports: Option<Vec<SlicePort>>,
}

/// NetworkSet and GlobalNetworkSet.
#[derive(Debug, Deserialize)]
pub struct NetworkSet {
    pub metadata: Meta<NoAnnotations>,
    pub spec: Option<NetworkSetSpec>,
}

#[derive(Debug, Default, Deserialize)]
pub struct NetworkSetSpec {
    pub nets: Option<Vec<Net>>,
}

#[derive(Debug, Deserialize)]
pub struct HostEndpoint {
    pub metadata: Meta<NoAnnotations>,
    pub spec: HostEndpointSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostEndpointSpec {
    pub node: Arc<str>,
    pub interface_name: Option<Arc<str>>,
    #[serde(rename = "expectedIPs")]
    pub expected_ips: Option<Vec<Ip>>,
    pub ports: Option<Vec<HostPort>>,
    pub profiles: Option<Vec<Arc<str>>>,
}

#[derive(Debug, Deserialize)]
pub struct HostPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: Port,
}

/// What tells one object from another, of any kind.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeMeta {
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
}

/// What a recording's `delete` names.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reference {
    pub api_version: Arc<str>,
    pub kind: Arc<str>,
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
}

/// `metadata.labels`; a value of `null` is the empty string, as the API server reads it.
#[derive(Debug, Default)]
pub struct LabelMap(pub Labels);

impl<'de> Deserialize<'de> for LabelMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = LabelMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<LabelMap, M::Error> {
                let mut pairs = Vec::new();
                while let Some((key, value)) = map.next_entry::<Arc<str>, Option<Arc<str>>>()? {
                    pairs.push((key, value.unwrap_or_default()));
                }
                Ok(LabelMap(Labels::new(pairs)))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// A string that is read by `$parse`.
macro_rules! from_text {
    ($(#[$doc:meta])* $name:ident($inner:ty), $parse:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name(pub $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let parse: fn(&str) -> Result<$inner, String> = $parse;
                parse(&text).map(Self).map_err(de::Error::custom)
            }
        }
    };
}

from_text! {
    /// An address; empty and `None` (a headless service) are no address.
    Ip(Option<IpAddr>), |text| match text {
        "" | "None" => Ok(None),
        _ => parse_ip(text).map(Some),
    }
}

from_text! {
    /// An address or a prefix, without host bits.
    Net(IpNet), parse_net
}

from_text! {
    /// RFC 3339.
    Time(Timestamp), |text| {
        let time: jiff::Timestamp =
            text.parse().map_err(|_| format!("{text:?} is not an RFC 3339 time such as 2026-01-31T12:00:00Z"))?;
        i64::try_from(time.as_nanosecond())
            .map(Timestamp)
            .map_err(|_| format!("{text:?} is not between the years 1677 and 2262"))
    }
}

impl Time {
    pub fn of(text: &str) -> Option<Self> {
        Self::deserialize(de::value::StrDeserializer::<de::value::Error>::new(text)).ok()
    }
}

/// 0 to 65535.
#[derive(Clone, Copy, Debug)]
pub struct Port(pub u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port number, 0 to 65535")
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Port, E> {
                u16::try_from(n).map(Port).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(n), &self))
            }

            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Port, E> {
                u16::try_from(n).map(Port).map_err(|_| E::invalid_value(de::Unexpected::Signed(n), &self))
            }
        }
        deserializer.deserialize_u64(Number)
    }
}

/// A name (TCP, UDP, SCTP; Calico also ICMP, ICMPv6, UDPLite) or, in Calico's objects, a number.
#[derive(Clone, Copy, Debug)]
pub struct Protocol(pub Proto);

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Protocol;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a protocol: TCP, UDP, SCTP, ICMP, ICMPv6, UDPLite or a number 0 to 255")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Protocol, E> {
                let known = match name.to_ascii_lowercase().as_str() {
                    "icmpv6" => Some(Proto::ICMP6),
                    "udplite" => Some(Proto::UDPLITE),
                    other => other.parse().ok(),
                };
                known.map(Protocol).ok_or_else(|| E::invalid_value(de::Unexpected::Str(name), &self))
            }

            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Protocol, E> {
                let proto = u8::try_from(n).map(|n| Protocol(Proto(n)));
                proto.map_err(|_| E::invalid_value(de::Unexpected::Unsigned(n), &self))
            }
        }
        deserializer.deserialize_any(Name)
    }
}

pub fn parse_ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map(canonical).map_err(|_| format!("{text:?} is not an IP address"))
}

/// An address, or the address part of a prefix: what Calico's annotations hold.
pub fn parse_ip_or_prefix(text: &str) -> Result<IpAddr, String> {
    let net: Option<IpNet> = text.parse().ok();
    match net {
        Some(net) => Ok(canonical(net.addr())),
        None => parse_ip(text),
    }
}

/// A prefix without host bits; an address is a prefix of full length. A prefix inside `::ffff:0:0/96` is IPv4.
pub fn parse_net(text: &str) -> Result<IpNet, String> {
    let problem = || format!("{text:?} is neither a prefix such as 10.0.0.0/8 nor an IP address");
    let net = if text.contains('/') {
        text.parse::<IpNet>().map_err(|_| problem())?
    } else {
        IpNet::from(text.parse::<IpAddr>().map_err(|_| problem())?)
    };
    let mapped = match net {
        IpNet::V6(v6) => match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
            (Some(v4), Some(len)) => IpNet::new(v4.into(), len).ok(),
            _ => None,
        },
        IpNet::V4(_) => None,
    };
    Ok(mapped.unwrap_or(net).trunc())
}
