//! The types that a configuration field can have: how each is read from a raw value and shown again.
//!
//! In: a raw value (YAML scalar or list, environment text, flag text) and the notation of its layer.
//! Out: the typed value, or nothing; the caller then says what would have been allowed ([`Kind::allowed`]).
//! Always: reading never panics and never rounds; what is shown can be read again to the same value.
//! Not here: which fields there are (`fields.rs`), which layer wins (`resolve.rs`).
//!
//! Booleans take what Felix takes: true 1 yes y t, false 0 no n f, in any case. Durations carry a unit (`15s`,
//! `1m30s`); a bare number counts only where the layer's notation says what it counts.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::fmt::friendly::{Designator, Spacing, SpanPrinter};
use serde_json::Value;

/// How a layer writes its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// YAML or an API object: typed scalars, durations with a unit.
    Yaml,
    /// Text of our own environment and flags: durations with a unit, or plain seconds.
    Text,
    /// Felix's environment: durations in plain seconds (a unit is understood too), empty is "not set".
    Felix,
}

/// What a field's values are bounded by, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limits {
    None,
    Integer(u64, u64),
    Duration(Duration, Duration),
    /// A host name or address as Felix allows it: `[a-zA-Z0-9:._+-]{1,64}`, or empty.
    Host,
}

/// A field's type, for messages, the README's table and the CRD's schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Boolean,
    Integer,
    Duration,
    Text,
    Path,
    FileMode,
    List,
    /// `drop FILTER` or `keep FILTER`, several.
    Rules,
    Choice(&'static [&'static str]),
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Duration => "duration",
            Self::Text => "string",
            Self::Path => "path",
            Self::FileMode => "file mode",
            Self::List => "list of strings",
            Self::Rules => "list of rules",
            Self::Choice(_) => "enum",
        }
    }

    /// What may stand there, for a person who wrote something else.
    pub fn allowed(self, limits: Limits) -> String {
        match (self, limits) {
            (Self::Boolean, _) => "true or false".to_owned(),
            (Self::Integer, Limits::Integer(low, high)) => format!("a whole number from {low} to {high}"),
            (Self::Integer, _) => "a whole number".to_owned(),
            (Self::Duration, Limits::Duration(low, high)) => {
                format!(
                    "a duration with its unit, such as 15s or 1m30s, from {} to {}",
                    show_duration(low),
                    show_duration(high)
                )
            }
            (Self::Duration, _) => "a duration with its unit, such as 15s or 1m30s".to_owned(),
            (Self::Text, Limits::Host) => {
                "a host name or address of at most 64 characters out of letters, digits and : . _ + -"
                    .to_owned()
            }
            (Self::Text, _) => "a string".to_owned(),
            (Self::Path, _) => "a path".to_owned(),
            (Self::FileMode, _) => {
                "an octal file mode for which the owner may write, such as \"0600\" or \"0640\"".to_owned()
            }
            (Self::Rules, _) => {
                "a list of rules, each drop or keep and a filter, such as \"drop namespace=kube-system port=53\""
                    .to_owned()
            }
            (Self::List, _) => "a list of strings, or one string with commas between".to_owned(),
            (Self::Choice(names), _) => match names {
                [only] => format!("only {only}"),
                _ => format!("one of {}", names.join(", ")),
            },
        }
    }
}

/// A type that a field can have.
pub trait Setting: Sized {
    const KIND: Kind;
    /// `None`: not allowed.
    fn read(raw: &Value, notation: Notation, limits: Limits) -> Option<Self>;
    fn show(&self) -> Value;
    /// What is wrong with a value that was not allowed, where that can be said better than by what is allowed.
    fn problem(_raw: &Value) -> Option<String> {
        None
    }
}

impl Setting for bool {
    const KIND: Kind = Kind::Boolean;

    fn read(raw: &Value, _: Notation, _: Limits) -> Option<Self> {
        let text = match raw {
            Value::Bool(value) => return Some(*value),
            Value::Number(number) => number.to_string(),
            Value::String(text) => text.trim().to_ascii_lowercase(),
            _ => return None,
        };
        match text.as_str() {
            "true" | "1" | "yes" | "y" | "t" => Some(true),
            "false" | "0" | "no" | "n" | "f" => Some(false),
            _ => None,
        }
    }

    fn show(&self) -> Value {
        Value::Bool(*self)
    }
}

fn read_integer(raw: &Value, limits: Limits) -> Option<u64> {
    let number = match raw {
        Value::Number(number) => number.as_u64()?,
        Value::String(text) => text.trim().parse::<u64>().ok()?,
        _ => return None,
    };
    match limits {
        Limits::Integer(low, high) if number < low || number > high => None,
        _ => Some(number),
    }
}

macro_rules! integer_setting {
    ($($type:ty),*) => {$(
        impl Setting for $type {
            const KIND: Kind = Kind::Integer;

            fn read(raw: &Value, _: Notation, limits: Limits) -> Option<Self> {
                read_integer(raw, limits).and_then(|number| number.try_into().ok())
            }

            fn show(&self) -> Value {
                Value::from(*self)
            }
        }
    )*};
}
integer_setting!(u8, u16, u32, u64);

/// Go's and Kubernetes' way of writing: `1m30s`, no spaces.
pub fn show_duration(duration: Duration) -> String {
    let signed = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    SpanPrinter::new().designator(Designator::Compact).spacing(Spacing::None).duration_to_string(&signed)
}

fn bare_number(raw: &Value) -> Option<f64> {
    let number = match raw {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse::<f64>().ok()?,
        _ => return None,
    };
    (number.is_finite() && number >= 0.0).then_some(number)
}

fn read_duration(raw: &Value, notation: Notation, limits: Limits, bare_unit: Duration) -> Option<Duration> {
    let duration = if let Some(number) = bare_number(raw) {
        match notation {
            // Ambiguous there: Felix counts some fields in seconds and some in milliseconds. Zero is zero.
            Notation::Yaml if number != 0.0 => return None,
            _ => Duration::try_from_secs_f64(number * bare_unit.as_secs_f64()).ok()?,
        }
    } else {
        let Value::String(text) = raw else { return None };
        let signed: SignedDuration = text.trim().parse().ok()?;
        signed.try_into().ok()?
    };
    match limits {
        Limits::Duration(low, high) if duration < low || duration > high => None,
        _ => Some(duration),
    }
}

impl Setting for Duration {
    const KIND: Kind = Kind::Duration;

    fn read(raw: &Value, notation: Notation, limits: Limits) -> Option<Self> {
        read_duration(raw, notation, limits, Duration::from_secs(1))
    }

    fn show(&self) -> Value {
        Value::String(show_duration(*self))
    }
}

/// A duration that Felix's environment counts in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Milliseconds(pub Duration);

impl Setting for Milliseconds {
    const KIND: Kind = Kind::Duration;

    fn read(raw: &Value, notation: Notation, limits: Limits) -> Option<Self> {
        read_duration(raw, notation, limits, Duration::from_millis(1)).map(Self)
    }

    fn show(&self) -> Value {
        self.0.show()
    }
}

fn read_text(raw: &Value) -> Option<&str> {
    // A number is refused: YAML has already read 1.10 as 1.1, and the name would be another one.
    raw.as_str().filter(|text| !text.contains(['\0', '\n']))
}

impl Setting for String {
    const KIND: Kind = Kind::Text;

    fn read(raw: &Value, _: Notation, limits: Limits) -> Option<Self> {
        let text = read_text(raw)?;
        let is_host = |c: char| c.is_ascii_alphanumeric() || ":._+-".contains(c);
        if limits == Limits::Host && (text.len() > 64 || !text.chars().all(is_host)) {
            return None;
        }
        Some(text.to_owned())
    }

    fn show(&self) -> Value {
        Value::String(self.clone())
    }
}

/// Empty text is `None`.
impl Setting for Option<String> {
    const KIND: Kind = Kind::Text;

    fn read(raw: &Value, notation: Notation, limits: Limits) -> Option<Self> {
        String::read(raw, notation, limits).map(|text| Some(text).filter(|text| !text.is_empty()))
    }

    fn show(&self) -> Value {
        self.clone().map_or(Value::Null, Value::String)
    }
}

impl Setting for PathBuf {
    const KIND: Kind = Kind::Path;

    fn read(raw: &Value, _: Notation, _: Limits) -> Option<Self> {
        read_text(raw).filter(|text| !text.is_empty()).map(Self::from)
    }

    fn show(&self) -> Value {
        Value::String(self.to_string_lossy().into_owned())
    }
}

/// Empty text is `None`.
impl Setting for Option<PathBuf> {
    const KIND: Kind = Kind::Path;

    fn read(raw: &Value, _: Notation, _: Limits) -> Option<Self> {
        read_text(raw).map(|text| (!text.is_empty()).then(|| PathBuf::from(text)))
    }

    fn show(&self) -> Value {
        self.as_ref().map_or(Value::Null, |path| Value::String(path.to_string_lossy().into_owned()))
    }
}

impl Setting for Vec<String> {
    const KIND: Kind = Kind::List;

    fn read(raw: &Value, _: Notation, _: Limits) -> Option<Self> {
        match raw {
            Value::String(text) => Some(
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect(),
            ),
            Value::Array(items) => items.iter().map(|item| read_text(item).map(str::to_owned)).collect(),
            _ => None,
        }
    }

    fn show(&self) -> Value {
        Value::Array(self.iter().cloned().map(Value::String).collect())
    }
}

/// Permission bits of a file, `0` to `0o777`, the owner's write bit set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl Setting for FileMode {
    const KIND: Kind = Kind::FileMode;

    /// Text is octal (`0600`, `600`, `0o600`). A YAML number is read as Kubernetes writes modes, in decimal (384 is
    /// 0600): the reader hands `0600` without quotes on as text, so that nobody gets 0o1130.
    fn read(raw: &Value, notation: Notation, _: Limits) -> Option<Self> {
        let mode = match raw {
            Value::Number(number) if notation == Notation::Yaml => u32::try_from(number.as_u64()?).ok()?,
            Value::Number(number) => u32::from_str_radix(&number.to_string(), 8).ok()?,
            Value::String(text) => {
                let text = text.trim();
                u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8).ok()?
            }
            _ => return None,
        };
        (mode <= 0o777 && mode & 0o200 != 0).then_some(Self(mode))
    }

    fn show(&self) -> Value {
        Value::String(self.to_string())
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// An enum whose names are the configuration's words, read in any case.
macro_rules! choice {
    ($(#[$meta:meta])* $type:ident { $($(#[$variant_meta:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[$variant_meta])* $variant),+ }

        impl $type {
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }

        impl Setting for $type {
            const KIND: Kind = Kind::Choice(Self::NAMES);

            fn read(raw: &Value, _: Notation, _: Limits) -> Option<Self> {
                let text = raw.as_str()?.trim();
                [$(Self::$variant),+].into_iter().find(|one| one.name().eq_ignore_ascii_case(text))
            }

            fn show(&self) -> Value {
                Value::String(self.name().to_owned())
            }
        }
    };
}

choice!(
    /// Which fields a line has.
    FileFormat {
        /// Calico's fields and ours after them.
        Extended = "Extended",
        /// Exactly Calico's fields.
        Calico = "Calico",
    }
);
choice!(
    /// How a policy is named in a line.
    PolicyNameStyle {
        /// `0|tier|ns/tier.name|allow|0`
        Dotted = "Dotted",
        /// `0|tier|np:ns/name|allow|0`
        Kind = "Kind",
    }
);
choice!(
    /// Which addresses are `pvt`.
    PrivateNetworks {
        /// RFC 1918, as Calico.
        Rfc1918 = "RFC1918",
        /// ULA, link-local, CGNAT and loopback too.
        Extended = "Extended",
    }
);
choice!(
    /// What becomes of live flows without traffic in a window.
    IdleFlows {
        /// A line with zero counters, as Calico.
        Emit = "Emit",
        /// No line.
        Suppress = "Suppress",
    }
);
choice!(
    /// When pending policies are evaluated.
    PolicyEvaluationMode {
        Continuous = "Continuous",
        OnNewConnection = "OnNewConnection",
        None = "None",
    }
);
choice!(
    /// Calico's `AllPolicies` (transit policies) is not offered.
    PolicyScope { EndpointPolicies = "EndpointPolicies" }
);
choice!(
    /// Where connections are observed.
    SourceKind {
        Auto = "auto",
        Ebpf = "ebpf",
        Netlink = "netlink",
    }
);
choice!(
    /// Whether a metrics client must show a certificate.
    ClientAuth {
        RequireAndVerifyClientCert = "RequireAndVerifyClientCert",
        RequireAnyClientCert = "RequireAnyClientCert",
        VerifyClientCertIfGiven = "VerifyClientCertIfGiven",
        NoClientCert = "NoClientCert",
    }
);
choice!(
    /// A switch that Felix spells out.
    Switch { Disabled = "Disabled", Enabled = "Enabled" }
);
choice!(
    /// Felix's ways to enforce DNS policy.
    DnsPolicyMode {
        DelayDeniedPacket = "DelayDeniedPacket",
        DelayDnsResponse = "DelayDNSResponse",
        NoDelay = "NoDelay",
        Inline = "Inline",
    }
);
