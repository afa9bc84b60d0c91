//! What DNS tells: names of addresses, servers that are believed, and the records of the DNS log.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use super::{Labels, Timestamp};

/// A name as it is compared and kept: lower case, no dot at its end. `None`: it is no name of DNS (RFC 1035: at most
/// 255 octets), or the root.
pub fn domain_name(text: &str) -> Option<Arc<str>> {
    let text = text.strip_suffix('.').unwrap_or(text);
    if text.is_empty() || text.len() > 1024 {
        return None;
    }
    Some(if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        text.to_ascii_lowercase().into()
    } else {
        text.into()
    })
}

/// One name of one address, as a client learnt it; `[::]` stands for all clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownDomain {
    pub client: IpAddr,
    pub ip: IpAddr,
    pub name: Arc<str>,
    pub expires: Timestamp,
}

/// An entry of `dnsTrustedServers`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TrustedServer {
    Address(IpAddr),
    /// The addresses of a service and of what stands behind it.
    Service {
        namespace: Arc<str>,
        name: Arc<str>,
    },
}

impl TrustedServer {
    /// What Felix takes where an entry names no namespace.
    const NAMESPACE: &'static str = "kube-system";
    const SERVICE: &'static str = "k8s-service:";
}

impl FromStr for TrustedServer {
    type Err = String;

    /// `IP`, `IP:port`, `[IPv6]:port`, `k8s-service:[namespace/]name[:port]`. Ports are read and say nothing: answers
    /// are observed on port 53.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || format!("{text:?} is neither an address nor k8s-service:[namespace/]name[:port]");
        if let Some(service) = text.strip_prefix(Self::SERVICE) {
            let (namespace, rest) = service.split_once('/').unwrap_or((Self::NAMESPACE, service));
            let (name, port) = rest.split_once(':').unwrap_or((rest, "53"));
            let is_label = |text: &str| {
                !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'.')
            };
            if !is_label(namespace) || !is_label(name) || port.parse::<u16>().is_err() {
                return Err(wrong());
            }
            return Ok(Self::Service { namespace: namespace.into(), name: name.into() });
        }
        let ip = text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|server| server.ip()));
        ip.map(|ip| Self::Address(ip.to_canonical())).map_err(|_| wrong())
    }
}

impl fmt::Display for TrustedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Service { namespace, name } if **namespace == *Self::NAMESPACE => {
                write!(f, "{}{name}", Self::SERVICE)
            }
            Self::Service { namespace, name } => write!(f, "{}{namespace}/{name}", Self::SERVICE),
        }
    }
}

/// A pod or other endpoint in a line of the DNS log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsEnd {
    /// `None`: aggregated, or no endpoint.
    pub name: Option<Arc<str>>,
    pub name_aggr: Arc<str>,
    pub namespace: Option<Arc<str>>,
    pub ip: Option<IpAddr>,
    /// `None`: labels are not included.
    pub labels: Option<Labels>,
}

/// Name, class and type of records, with their data, sorted.
pub type RrSets = BTreeMap<(Arc<str>, Arc<str>, Arc<str>), Vec<Arc<str>>>;

/// Nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsLatency {
    /// Lookups of which it was measured.
    pub count: u64,
    pub mean: u64,
    pub max: u64,
}

/// Lookups of one window that share a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsLog {
    pub count: u64,
    pub client: DnsEnd,
    pub servers: Vec<DnsEnd>,
    pub question: Arc<str>,
    pub class: Arc<str>,
    pub kind: Arc<str>,
    pub rcode: Arc<str>,
    pub rrsets: RrSets,
    pub latency: DnsLatency,
}

/// All lines of one window of the DNS log, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsLogs {
    pub start: Timestamp,
    pub end: Timestamp,
    pub records: Vec<DnsLog>,
    /// Lookups beyond `dnsLogsFilePerNodeLimit`, or beyond the memory of a window.
    pub unlogged: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_in_one_form() {
        assert_eq!(domain_name("WWW.Example.COM.").as_deref(), Some("www.example.com"));
        assert_eq!(domain_name("."), None);
        assert_eq!(domain_name(""), None);
        assert_eq!(domain_name(&"a".repeat(2000)), None);
    }

    #[test]
    fn trusted_servers_are_read_as_felix_reads_them() {
        let service = |namespace: &str, name: &str| TrustedServer::Service {
            namespace: namespace.into(),
            name: name.into(),
        };
        for (text, wanted) in [
            ("10.0.0.1", TrustedServer::Address([10, 0, 0, 1].into())),
            ("10.0.0.1:5353", TrustedServer::Address([10, 0, 0, 1].into())),
            ("[fd00::1]:53", TrustedServer::Address("fd00::1".parse().unwrap())),
            ("fd00::1", TrustedServer::Address("fd00::1".parse().unwrap())),
            ("k8s-service:kube-dns", service("kube-system", "kube-dns")),
            ("k8s-service:openshift-dns/dns-default:5353", service("openshift-dns", "dns-default")),
        ] {
            assert_eq!(text.parse(), Ok(wanted.clone()), "{text}");
            assert_eq!(wanted.to_string().parse(), Ok(wanted));
        }
        for text in [
            "",
            "dns",
            "k8s-service:",
            "k8s-service:a/b/c",
            "k8s-service:a:b",
            "10.0.0.1:x",
            "k8s-service:/x",
        ] {
            assert!(text.parse::<TrustedServer>().is_err(), "{text}");
        }
    }
}
