//! The fields of a recording's lines, each with its own range and its own words for what is out of it.
//!
//! In: one JSON value. Out: a number, an address, a name. What always holds: a value that is refused says what would
//! be right. `null` where a field may be absent is the same as absent. Deliberately not here: what fields say of
//! each other (`kinds`).

use std::fmt;
use std::net::IpAddr;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

use crate::model::{Action, PolicyKind, Proto, TcpState};

/// A whole number with a range and a name.
macro_rules! whole {
    ($(#[$doc:meta])* $name:ident($inner:ty), $range:expr, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Number;
                impl Number {
                    fn check<E: Error>(n: i128) -> Result<$name, E> {
                        match <$inner>::try_from(n) {
                            Ok(number) if $range.contains(&number) => Ok($name(number)),
                            _ => Err(E::custom(format_args!("{n} is not {}", Self::what()))),
                        }
                    }
                    fn what() -> String {
                        format!("{} ({} to {})", $what, $range.start(), $range.end())
                    }
                }
                impl Visitor<'_> for Number {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(&Self::what())
                    }
                    fn visit_u64<E: Error>(self, n: u64) -> Result<$name, E> {
                        Self::check(i128::from(n))
                    }
                    fn visit_i64<E: Error>(self, n: i64) -> Result<$name, E> {
                        Self::check(i128::from(n))
                    }
                    fn visit_f64<E: Error>(self, n: f64) -> Result<$name, E> {
                        Err(E::custom(format_args!("{n} is not {}, a whole number", Self::what())))
                    }
                }
                deserializer.deserialize_any(Number)
            }
        }
    };
}

whole!(Port(u16), (0..=u16::MAX), "a port");
whole!(
    /// Packets, bytes, events, microseconds.
    Count(u64), (0..=u64::MAX), "a count"
);
whole!(
    /// ICMP's type and code.
    Number8(u8), (0..=u8::MAX), "a number of 8 bits"
);
whole!(Number16(u16), (0..=u16::MAX), "a number of 16 bits");
whole!(Number32(u32), (0..=u32::MAX), "a number of 32 bits");
whole!(
    /// Index of a rule; -1 the tier's default action, -2 unknown.
    RuleIndex(i32), (-2..=i32::MAX), "the index of a rule, -1 for the tier's default action, or -2 for unknown"
);

/// An address; v4-mapped is IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip(pub IpAddr);

impl Serialize for Ip {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Ip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Ip;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an IP address as text")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Ip, E> {
                if let Ok(ip) = text.parse::<IpAddr>() {
                    return Ok(Ip(ip.to_canonical()));
                }
                Err(E::custom(if text.contains('%') {
                    format!("{text:?} names a zone: write the address without `%` and what follows")
                } else {
                    format!("{text:?} is not an IP address, such as 10.0.0.1 or fd00::1")
                }))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// `tcp` or `6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtoName(pub Proto);

impl Serialize for ProtoName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.name() {
            Some(name) => serializer.serialize_str(name),
            None => serializer.serialize_u8(self.0.0),
        }
    }
}

impl<'de> Deserialize<'de> for ProtoName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrNumber;
        impl Visitor<'_> for NameOrNumber {
            type Value = ProtoName;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a protocol: one of icmp ipip tcp udp esp icmp6 sctp, or a number 0 to 255")
            }
            fn visit_u64<E: Error>(self, n: u64) -> Result<ProtoName, E> {
                let n = u8::try_from(n)
                    .map_err(|_| E::custom(format_args!("{n} is not the number of a protocol (0 to 255)")))?;
                Ok(ProtoName(Proto(n)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<ProtoName, E> {
                text.parse().map(ProtoName).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(NameOrNumber)
    }
}

/// `[original, reply]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub original: u64,
    pub reply: u64,
}

impl Serialize for Pair {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [self.original, self.reply].serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Pair {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Two;
        impl<'de> Visitor<'de> for Two {
            type Value = Pair;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two counts, [original, reply]")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Pair, A::Error> {
                let original: Option<Count> = seq.next_element()?;
                let reply: Option<Count> = seq.next_element()?;
                match (original, reply, seq.next_element::<Count>()?) {
                    (Some(original), Some(reply), None) => Ok(Pair { original: original.0, reply: reply.0 }),
                    _ => Err(A::Error::custom("there must be two counts, [original, reply]")),
                }
            }
        }
        deserializer.deserialize_seq(Two)
    }
}

/// A name out of a list that `lookup` knows.
fn named<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    lookup: impl Fn(&str) -> Option<T>,
    remedy: impl Fn(&str) -> String,
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    lookup(&text).ok_or_else(|| D::Error::custom(remedy(&text)))
}

/// The kernel's names.
pub mod tcp_state {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TcpState>, D::Error> {
        struct State(TcpState);
        impl<'de> Deserialize<'de> for State {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                named(deserializer, TcpState::from_name, |text| {
                    let known: Vec<_> = TcpState::ALL.iter().map(|state| state.name()).collect();
                    format!("{text:?} is not a TCP state; the kernel's names are {}", known.join(" "))
                })
                .map(State)
            }
        }
        Ok(Option::<State>::deserialize(deserializer)?.map(|state| state.0))
    }

    pub fn serialize<S: Serializer>(state: &Option<TcpState>, serializer: S) -> Result<S::Ok, S::Error> {
        state.map(TcpState::name).serialize(serializer)
    }
}

pub mod action {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Action, D::Error> {
        named(deserializer, Action::from_name, |text| {
            format!("{text:?} is not an action: allow, deny or pass")
        })
    }

    pub fn serialize<S: Serializer>(action: &Action, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(action.name())
    }
}

pub mod policy_kind {
    use super::*;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PolicyKind, D::Error> {
        named(deserializer, PolicyKind::from_name, |text| {
            if text == "EndOfTier" {
                return String::from(
                    "EndOfTier is no kind: write the tier's last enforced policy with \"rule\": -1",
                );
            }
            let known: Vec<_> = PolicyKind::ALL.iter().map(|kind| kind.name()).collect();
            format!("{text:?} is not a kind of policy; the kinds are {}", known.join(" "))
        })
    }

    pub fn serialize<S: Serializer>(kind: &PolicyKind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(kind.name())
    }
}
