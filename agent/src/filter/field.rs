//! The fields of the language, and the values that each may be compared with.
//!
//! In: a field and a value's text. Out: a [`Pattern`], which matches records. Always: a pattern prints as text that
//! gives the same pattern; an error says what may stand there.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr as _;

use ipnet::IpNet;

use crate::model::{Action, EndpointKind, FlowSide, Proto, Reporter, canonical};

use super::record::{EndView, PolicyView, Subject};

macro_rules! fields {
    ($($field:ident $name:literal $of_end:literal $doc:literal;)+) => {
        /// What can be asked of a record.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Field { $(#[doc = $doc] $field),+ }

        impl Field {
            pub const ALL: &'static [Self] = &[$(Self::$field),+];

            pub fn name(self) -> &'static str {
                match self { $(Self::$field => $name),+ }
            }

            /// Source and destination have one each: `src.` and `dst.` may stand before it.
            pub fn is_of_end(self) -> bool {
                match self { $(Self::$field => $of_end),+ }
            }

            /// For people.
            pub fn doc(self) -> &'static str {
                match self { $(Self::$field => $doc),+ }
            }
        }
    };
}

fields! {
    Namespace "namespace" true "Namespace of a pod, network set or host endpoint";
    Pod "pod" true "Pod: its name, or the name of its line (client-*); NAMESPACE/NAME too";
    Name "name" true "Name of any end, as pod: also host endpoints, network sets, pub and pvt";
    Label "label" true "Label: KEY, or KEY=VALUE";
    Type "type" true "Type of an end: wep, hep, ns or net";
    Ip "ip" true "Address or CIDR";
    Port "port" true "Port or range (8000-8999); without src. or dst. also the service's port";
    Proto "proto" false "Protocol: tcp, udp, icmp ..., or its number";
    Service "service" false "Service: NAME, NAMESPACE/NAME, and perhaps :PORT";
    Action "action" false "allow or deny";
    Reporter "reporter" false "src or dst";
    Policy "policy" false "Policy that decided, or that is pending: NAME or NAMESPACE/NAME";
    Domain "domain" false "Domain name that led to the destination";
    Process "process" false "Name of the local process";
    Reason "reason" false "Why the kernel dropped, such as NETFILTER_DROP";
    Mismatch "mismatch" false "true or false: what happened contradicts the policies";
}

impl Field {
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.name() == name)
    }
}

/// Text in which `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Glob(Box<str>);

impl Glob {
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    pub fn matches(&self, text: &str) -> bool {
        self.matches_by(text, |a, b| a == b)
    }

    pub fn matches_any_case(&self, text: &str) -> bool {
        self.matches_by(text, |a, b| a.eq_ignore_ascii_case(&b))
    }

    /// Greedy, with one place to go back to: never more than the product of both lengths.
    fn matches_by(&self, text: &str, same: impl Fn(u8, u8) -> bool) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut p, mut t) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while let Some(&byte) = text.get(t) {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p + 1, t));
                    p += 1;
                }
                Some(&wanted) if same(wanted, byte) => {
                    p += 1;
                    t += 1;
                }
                _ => match &mut star {
                    Some((after, from)) => {
                        *from += 1;
                        (p, t) = (*after, *from);
                    }
                    None => return false,
                },
            }
        }
        pattern.get(p..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One value of a term.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pattern {
    Namespace(Glob),
    Pod { namespace: Option<Glob>, name: Glob },
    Name { namespace: Option<Glob>, name: Glob },
    Label { key: Glob, value: Option<Glob> },
    Type(EndpointKind),
    Ip(IpNet),
    Port { low: u16, high: u16 },
    Proto(Proto),
    Service { namespace: Option<Glob>, name: Glob, port: Option<Glob> },
    Action(Action),
    Reporter(Reporter),
    Policy { namespace: Option<Glob>, name: Glob },
    Domain(Glob),
    Process(Glob),
    Reason(Glob),
    Mismatch(bool),
}

impl Pattern {
    /// # Errors
    /// What may stand there.
    pub fn parse(field: Field, text: &str) -> Result<Self, String> {
        let glob =
            || if text.is_empty() { Err("a value is missing".to_owned()) } else { Ok(Glob::new(text)) };
        let one_of = |names: &str| format!("{text:?} is not one of {names}");
        Ok(match field {
            Field::Namespace => Self::Namespace(glob()?),
            Field::Pod => {
                let (namespace, name) = qualified(text)?;
                Self::Pod { namespace, name }
            }
            Field::Name => {
                let (namespace, name) = qualified(text)?;
                Self::Name { namespace, name }
            }
            Field::Label => {
                let (key, value) = match text.split_once('=') {
                    Some((key, value)) => (key, Some(Glob::new(value))),
                    None => (text, None),
                };
                if key.is_empty() {
                    return Err("a label is KEY or KEY=VALUE".to_owned());
                }
                Self::Label { key: Glob::new(key), value }
            }
            Field::Type => {
                let kinds = [EndpointKind::Wep, EndpointKind::Hep, EndpointKind::Ns, EndpointKind::Net];
                Self::Type(
                    by_name(kinds, EndpointKind::name, text).ok_or_else(|| one_of("wep, hep, ns, net"))?,
                )
            }
            Field::Ip => Self::Ip(network(text)?),
            Field::Port => port(text)?,
            Field::Proto => Self::Proto(Proto::from_str(text)?),
            Field::Service => {
                let (rest, port) = match text.rsplit_once(':') {
                    Some((_, "")) => return Err("a port is missing after the colon".to_owned()),
                    Some((rest, port)) => (rest, Some(Glob::new(port))),
                    None => (text, None),
                };
                let (namespace, name) = qualified(rest)?;
                Self::Service { namespace, name, port }
            }
            Field::Action => Self::Action(
                by_name([Action::Allow, Action::Deny], Action::name, text)
                    .ok_or_else(|| one_of("allow, deny"))?,
            ),
            Field::Reporter => Self::Reporter(
                by_name([Reporter::Src, Reporter::Dst], Reporter::name, text)
                    .ok_or_else(|| one_of("src, dst"))?,
            ),
            Field::Policy => {
                let (namespace, name) = qualified(text)?;
                Self::Policy { namespace, name }
            }
            Field::Domain => Self::Domain(glob()?),
            Field::Process => Self::Process(glob()?),
            Field::Reason => Self::Reason(glob()?),
            Field::Mismatch => {
                let name = |value: bool| if value { "true" } else { "false" };
                Self::Mismatch(by_name([true, false], name, text).ok_or_else(|| one_of("true, false"))?)
            }
        })
    }

    pub(super) fn matches(&self, side: Option<FlowSide>, record: &impl Subject) -> bool {
        let sides: &[FlowSide] = match side {
            Some(FlowSide::Src) => &[FlowSide::Src],
            Some(FlowSide::Dst) => &[FlowSide::Dst],
            None => &[FlowSide::Src, FlowSide::Dst],
        };
        let any_end = |test: &dyn Fn(EndView<'_>) -> bool| sides.iter().any(|side| test(record.end(*side)));
        match self {
            Self::Namespace(glob) => any_end(&|end| fits(Some(glob), end.namespace)),
            Self::Pod { namespace, name } => {
                any_end(&|end| end.kind == EndpointKind::Wep && is_named(end, namespace.as_ref(), name))
            }
            Self::Name { namespace, name } => any_end(&|end| is_named(end, namespace.as_ref(), name)),
            Self::Label { key, value } => sides.iter().any(|side| {
                record.any_label(*side, &mut |k, v| {
                    key.matches(k) && value.as_ref().is_none_or(|value| value.matches(v))
                })
            }),
            Self::Type(kind) => any_end(&|end| end.kind == *kind),
            Self::Ip(network) => {
                sides.iter().any(|side| record.any_ip(*side, &mut |ip| network.contains(&canonical(ip))))
            }
            Self::Port { low, high } => {
                let within = |port: Option<u16>| port.is_some_and(|port| (*low..=*high).contains(&port));
                any_end(&|end| within(end.port))
                    || side.is_none() && within(record.service().and_then(|service| service.port))
            }
            Self::Proto(proto) => record.proto() == *proto,
            Self::Service { namespace, name, port } => record.service().is_some_and(|service| {
                name.matches(service.name)
                    && namespace.as_ref().is_none_or(|namespace| namespace.matches(service.namespace))
                    && port.as_ref().is_none_or(|port| {
                        fits(Some(port), service.port_name)
                            || service.port.is_some_and(|number| port.matches(&number.to_string()))
                    })
            }),
            Self::Action(action) => record.action() == *action,
            Self::Reporter(reporter) => record.reporter() == *reporter,
            Self::Policy { namespace, name } => {
                record.any_policy(&mut |policy| is_policy(policy, namespace.as_ref(), name))
            }
            Self::Domain(glob) => record.any_domain(&mut |domain| glob.matches_any_case(domain)),
            Self::Process(glob) => fits(Some(glob), record.process()),
            Self::Reason(glob) => record.any_reason(&mut |reason| glob.matches_any_case(reason)),
            Self::Mismatch(value) => record.mismatch() == Some(*value),
        }
    }
}

/// No pattern fits all; what is absent fits none.
fn fits(glob: Option<&Glob>, text: Option<&str>) -> bool {
    glob.is_none_or(|glob| text.is_some_and(|text| glob.matches(text)))
}

fn is_named(end: EndView<'_>, namespace: Option<&Glob>, name: &Glob) -> bool {
    fits(namespace, end.namespace) && (fits(Some(name), end.name) || name.matches(end.name_aggr))
}

/// A policy's name may carry its tier in front, in the resource or in the line: both spellings are meant.
fn is_policy(policy: PolicyView<'_>, namespace: Option<&Glob>, name: &Glob) -> bool {
    let bare =
        policy.name.strip_prefix(policy.tier).and_then(|rest| rest.strip_prefix('.')).unwrap_or(policy.name);
    fits(namespace, policy.namespace)
        && (name.matches(bare) || name.matches(policy.name) || {
            let with_tier = [policy.tier, ".", bare].concat();
            name.matches(&with_tier)
        })
}

fn by_name<T: Copy, const N: usize>(all: [T; N], name: impl Fn(T) -> &'static str, text: &str) -> Option<T> {
    all.into_iter().find(|one| name(*one).eq_ignore_ascii_case(text))
}

/// `NAME` or `NAMESPACE/NAME`.
fn qualified(text: &str) -> Result<(Option<Glob>, Glob), String> {
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    if name.is_empty() || namespace == Some("") {
        return Err("a name is NAME or NAMESPACE/NAME".to_owned());
    }
    Ok((namespace.map(Glob::new), Glob::new(name)))
}

fn network(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{text:?} is neither an address nor a CIDR such as 10.0.0.0/8");
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(canonical(ip)));
    }
    let network = text.parse::<IpNet>().map_err(|_| wrong())?.trunc();
    match (canonical(network.addr()), network.prefix_len().checked_sub(96)) {
        // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
        (IpAddr::V4(v4), Some(length)) if network.addr().is_ipv6() => {
            IpNet::new(v4.into(), length).map_err(|_| wrong())
        }
        _ => Ok(network),
    }
}

fn port(text: &str) -> Result<Pattern, String> {
    let wrong = || format!("{text:?} is neither a port (0 to 65535) nor a range such as 8000-8999");
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits).ok_or_else(wrong)
    };
    let (low, high) = (number(low)?, number(high)?);
    if low > high { Err(wrong()) } else { Ok(Pattern::Port { low, high }) }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let qualified = |f: &mut fmt::Formatter<'_>, namespace: &Option<Glob>, name: &Glob| match namespace {
            Some(namespace) => write!(f, "{namespace}/{name}"),
            None => write!(f, "{name}"),
        };
        match self {
            Self::Namespace(glob) | Self::Domain(glob) | Self::Process(glob) | Self::Reason(glob) => {
                write!(f, "{glob}")
            }
            Self::Pod { namespace, name }
            | Self::Name { namespace, name }
            | Self::Policy { namespace, name } => qualified(f, namespace, name),
            Self::Label { key, value: None } => write!(f, "{key}"),
            Self::Label { key, value: Some(value) } => write!(f, "{key}={value}"),
            Self::Type(kind) => f.write_str(kind.name()),
            Self::Ip(network) if network.prefix_len() == network.max_prefix_len() => {
                write!(f, "{}", network.addr())
            }
            Self::Ip(network) => write!(f, "{network}"),
            Self::Port { low, high } if low == high => write!(f, "{low}"),
            Self::Port { low, high } => write!(f, "{low}-{high}"),
            Self::Proto(proto) => write!(f, "{proto}"),
            Self::Service { namespace, name, port } => {
                qualified(f, namespace, name)?;
                match port {
                    Some(port) => write!(f, ":{port}"),
                    None => Ok(()),
                }
            }
            Self::Action(action) => f.write_str(action.name()),
            Self::Reporter(reporter) => f.write_str(reporter.name()),
            Self::Mismatch(value) => write!(f, "{value}"),
        }
    }
}
