//! What a rule asks, in words: for people who read `flowlogd policy`, and for tests.
//!
//! In: a rule in the one form. Out: one line. What always holds: every criterion that the rule has is in it, in the
//! order in which the form has them; a rule that asks nothing says `anything`.

use std::fmt;

use super::ir::{Entity, IcmpMatch, IpVersion, PortMatch, Rule, RuleAction, Uncertain};

impl RuleAction {
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Pass => "pass",
            Self::Log => "log",
        }
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(low, high) if low == high => write!(f, "{low}"),
            Self::Range(low, high) => write!(f, "{low}-{high}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for IcmpMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, self.code) {
            (Some(kind), Some(code)) => write!(f, "{kind}/{code}"),
            (Some(kind), None) => write!(f, "{kind}"),
            (None, _) => f.write_str("any"),
        }
    }
}

/// Items with commas between.
struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            let before = if index == 0 { "" } else { "," };
            write!(f, "{before}{item}")?;
        }
        Ok(())
    }
}

impl Entity {
    /// Each criterion as `name: what`.
    fn criteria(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut add = |name: &str, asked: bool, what: &dyn fmt::Display| {
            if asked {
                all.push(format!("{name}: {what}"));
            }
        };
        if let Some(selector) = &self.selector {
            add("selector", true, selector);
        }
        if let Some(selector) = &self.not_selector {
            add("notSelector", true, selector);
        }
        add("nets", !self.nets.is_empty(), &List(&self.nets));
        add("notNets", !self.not_nets.is_empty(), &List(&self.not_nets));
        add("ports", !self.ports.is_empty(), &List(&self.ports));
        add("notPorts", !self.not_ports.is_empty(), &List(&self.not_ports));
        if let Some(service) = &self.service {
            add("service", true, &format_args!("{}/{}", service.namespace, service.name));
        }
        all
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action.name())?;
        let mut asked = false;
        let mut add = |f: &mut fmt::Formatter<'_>, name: &str, what: &dyn fmt::Display| {
            asked = true;
            write!(f, " {name} {what}")
        };
        if let Some(version) = self.ip_version {
            add(f, "ipVersion", &if version == IpVersion::V4 { 4 } else { 6 })?;
        }
        if let Some(proto) = self.proto {
            add(f, "protocol", &proto)?;
        }
        if let Some(proto) = self.not_proto {
            add(f, "notProtocol", &proto)?;
        }
        if let Some(icmp) = self.icmp {
            add(f, "icmp", &icmp)?;
        }
        if let Some(icmp) = self.not_icmp {
            add(f, "notICMP", &icmp)?;
        }
        for (side, entity) in [("source", &self.source), ("destination", &self.dest)] {
            let criteria = entity.criteria();
            if !criteria.is_empty() {
                add(f, side, &format_args!("{{{}}}", criteria.join("; ")))?;
            }
        }
        if self.uncertain == Some(Uncertain::Domains) {
            add(f, "domains", &"(not known from a flow)")?;
        }
        if !asked {
            f.write_str(" anything")?;
        }
        Ok(())
    }
}
