//! Policy entries `index|tier|name|action|rule` in the two dialects that consumers know.
//!
//! In: a trace. Out: a JSON array of strings, in the order of the trace; an entry's index is its place in this list.
//! What always holds: the kind, namespace and name of a hit are kept apart until here, so the choice of dialect
//! loses nothing. Deliberately not here: which hits belong to which list. `Dotted` is the documented form of
//! Calico Enterprise and of Calico up to 3.31 (names carry their tier), `Kind` that of Calico since then
//! (`felix/types/policy_id.go`: names are the resources' own).

use crate::model::{Hit, PolicyKind, Trace};

use super::json;

/// `flowLogsPolicyNameStyle`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NameStyle {
    /// `0|tier|ns/tier.name|allow|0`
    #[default]
    Dotted,
    /// `0|tier|np:ns/name|allow|0`
    Kind,
}

/// The array of a trace's entries, `[]` for an empty one.
pub fn entries(trace: &Trace, style: NameStyle, out: &mut Vec<u8>) {
    out.push(b'[');
    for (index, hit) in trace.0.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.push(b'"');
        json::unsigned(index as u64, out);
        out.push(b'|');
        json::escaped(&hit.tier, out);
        out.push(b'|');
        match style {
            NameStyle::Dotted => dotted(hit, out),
            NameStyle::Kind => kind(hit, out),
        }
        out.push(b'|');
        json::escaped(hit.action.name(), out);
        out.push(b'|');
        json::signed(i64::from(hit.rule), out);
        out.push(b'"');
    }
    out.push(b']');
}

/// The same entries, one by one: for people and tools that do not write lines.
pub fn policy_entries(trace: &Trace, style: NameStyle) -> Vec<String> {
    let mut json = Vec::new();
    entries(trace, style, &mut json);
    serde_json::from_slice(&json).unwrap_or_default()
}

fn dotted(hit: &Hit, out: &mut Vec<u8>) {
    namespace(hit, out);
    if hit.kind.is_staged() {
        // Directly before the policy's name, after the namespace.
        out.extend_from_slice(b"staged:");
    }
    match hit.kind {
        PolicyKind::GlobalNetworkPolicy
        | PolicyKind::NetworkPolicy
        | PolicyKind::StagedGlobalNetworkPolicy
        | PolicyKind::StagedNetworkPolicy
        | PolicyKind::Profile => {
            // Older resources carry their tier in their name; it is not written twice.
            if hit.name.strip_prefix(&*hit.tier).is_none_or(|rest| !rest.starts_with('.')) {
                json::escaped(&hit.tier, out);
                out.push(b'.');
            }
        }
        PolicyKind::KubernetesNetworkPolicy | PolicyKind::StagedKubernetesNetworkPolicy => {
            out.extend_from_slice(b"knp.default.");
        }
        PolicyKind::ClusterNetworkPolicy => {
            out.extend_from_slice(b"kcnp.");
            json::escaped(&hit.tier, out);
            out.push(b'.');
        }
        PolicyKind::AdminNetworkPolicy => out.extend_from_slice(b"kanp.adminnetworkpolicy."),
        PolicyKind::BaselineAdminNetworkPolicy => {
            out.extend_from_slice(b"kbanp.baselineadminnetworkpolicy.");
        }
    }
    json::escaped(&hit.name, out);
}

fn kind(hit: &Hit, out: &mut Vec<u8>) {
    out.extend_from_slice(match hit.kind {
        PolicyKind::GlobalNetworkPolicy => b"gnp:",
        PolicyKind::NetworkPolicy => b"np:",
        PolicyKind::KubernetesNetworkPolicy => b"knp:",
        PolicyKind::StagedNetworkPolicy => b"snp:",
        PolicyKind::StagedGlobalNetworkPolicy => b"sgnp:",
        PolicyKind::StagedKubernetesNetworkPolicy => b"sknp:",
        PolicyKind::ClusterNetworkPolicy => b"kcnp:",
        PolicyKind::AdminNetworkPolicy => b"anp:",
        PolicyKind::BaselineAdminNetworkPolicy => b"banp:",
        PolicyKind::Profile => b"pro:".as_slice(),
    });
    namespace(hit, out);
    json::escaped(&hit.name, out);
}

fn namespace(hit: &Hit, out: &mut Vec<u8>) {
    if let Some(namespace) = &hit.namespace {
        json::escaped(namespace, out);
        out.push(b'/');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Action;

    fn check(tier: &str, kind: PolicyKind, namespace: &str, name: &str, want_dotted: &str, want_kind: &str) {
        let hit = Hit {
            tier: tier.into(),
            kind,
            namespace: (!namespace.is_empty()).then(|| namespace.into()),
            name: name.into(),
            action: Action::Pass,
            rule: -1,
        };
        for (style, want) in [(NameStyle::Dotted, want_dotted), (NameStyle::Kind, want_kind)] {
            let mut out = Vec::new();
            entries(&Trace([hit.clone()].into()), style, &mut out);
            let got: Vec<String> = serde_json::from_slice(&out).unwrap();
            assert_eq!(got, [format!("0|{tier}|{want}|pass|-1")]);
        }
    }

    /// The strings are those of Calico's own converters (and, for ANP and BANP, of its older releases).
    #[test]
    fn every_kind_in_both_dialects() {
        use PolicyKind as K;
        check("default", K::GlobalNetworkPolicy, "", "g", "default.g", "gnp:g");
        check("sec", K::GlobalNetworkPolicy, "", "sec.block", "sec.block", "gnp:sec.block");
        check("sec", K::GlobalNetworkPolicy, "", "second", "sec.second", "gnp:second");
        check("sec", K::GlobalNetworkPolicy, "", "sec", "sec.sec", "gnp:sec");
        check("default", K::NetworkPolicy, "b", "p", "b/default.p", "np:b/p");
        check("default", K::NetworkPolicy, "b", "default.p", "b/default.p", "np:b/default.p");
        check("default", K::KubernetesNetworkPolicy, "b", "x", "b/knp.default.x", "knp:b/x");
        check("default", K::StagedNetworkPolicy, "b", "s", "b/staged:default.s", "snp:b/s");
        check(
            "tier1",
            K::StagedNetworkPolicy,
            "ns2",
            "policy1",
            "ns2/staged:tier1.policy1",
            "snp:ns2/policy1",
        );
        check("obs", K::StagedGlobalNetworkPolicy, "", "obs.s", "staged:obs.s", "sgnp:obs.s");
        check("default", K::StagedKubernetesNetworkPolicy, "b", "k", "b/staged:knp.default.k", "sknp:b/k");
        check("kube-admin", K::ClusterNetworkPolicy, "", "adm", "kcnp.kube-admin.adm", "kcnp:adm");
        check("kube-baseline", K::ClusterNetworkPolicy, "", "b", "kcnp.kube-baseline.b", "kcnp:b");
        check(
            "adminnetworkpolicy",
            K::AdminNetworkPolicy,
            "",
            "adm",
            "kanp.adminnetworkpolicy.adm",
            "anp:adm",
        );
        check(
            "baselineadminnetworkpolicy",
            K::BaselineAdminNetworkPolicy,
            "",
            "default",
            "kbanp.baselineadminnetworkpolicy.default",
            "banp:default",
        );
        check("__PROFILE__", K::Profile, "", "kns.a", "__PROFILE__.kns.a", "pro:kns.a");
        check("__PROFILE__", K::Profile, "", "__NO_MATCH__", "__PROFILE__.__NO_MATCH__", "pro:__NO_MATCH__");
        check("__PROFILE__", K::Profile, "", "__PROFILE__", "__PROFILE__.__PROFILE__", "pro:__PROFILE__");
    }

    #[test]
    fn indexes_are_places_in_the_list_and_hostile_names_stay_json() {
        let hit = |name: &str, rule| Hit {
            tier: "t\"1".into(),
            kind: PolicyKind::NetworkPolicy,
            namespace: Some("n\\s".into()),
            name: name.into(),
            action: Action::Deny,
            rule,
        };
        let mut out = Vec::new();
        entries(&Trace([hit("a\n", 0), hit("b", -2)].into()), NameStyle::Dotted, &mut out);
        let got: Vec<String> = serde_json::from_slice(&out).unwrap();
        assert_eq!(got, ["0|t\"1|n\\s/t\"1.a\n|deny|0", "1|t\"1|n\\s/t\"1.b|deny|-2"]);
        out.clear();
        entries(&Trace::default(), NameStyle::Kind, &mut out);
        assert_eq!(out, b"[]");
    }
}
