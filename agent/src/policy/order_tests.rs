use super::*;
use crate::model::PolicyKind;
use crate::policy::Resource;
use crate::policy::selector::Selector;

fn policy(tier: &str, kind: PolicyKind, name: &str, order: Option<f64>) -> Policy {
    let (namespace, name) = match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.into()), name.into()),
        None => (None, name.into()),
    };
    Policy {
        id: PolicyId { kind, namespace, name },
        tier: tier.into(),
        order,
        subject: Arc::new(Selector::All),
        stage: Stage::Normal,
        ingress: Some([].into()),
        egress: None,
    }
}

fn tier(name: &str, order: f64) -> Resource {
    Resource::Tier(Tier { name: name.into(), order: Some(order), default_pass: false })
}

/// Tiers and policies, as `tier: policy policy`.
fn order(resources: impl IntoIterator<Item = Resource>) -> Vec<String> {
    let mut policies = Policies::default();
    for resource in resources {
        policies.apply(resource);
    }
    let names = |tier: OrderedTier| {
        let names: Vec<String> = tier
            .policies
            .iter()
            .map(|policy| match &policy.id.namespace {
                Some(namespace) => format!("{namespace}/{}", policy.id.name),
                None => policy.id.name.to_string(),
            })
            .collect();
        format!("{}: {}", tier.tier.name, names.join(" "))
    };
    tiers(&policies).into_iter().map(names).collect()
}

const GNP: PolicyKind = PolicyKind::GlobalNetworkPolicy;
const NP: PolicyKind = PolicyKind::NetworkPolicy;

#[test]
fn built_in_tiers_stand_where_calico_has_them() {
    let in_tier = |tier| Resource::Policy(policy(tier, GNP, &format!("{tier}-p"), None));
    assert_eq!(
        order(
            ["kube-baseline", "kube-admin", "default", "zzz", "aaa"]
                .map(in_tier)
                .into_iter()
                .chain([tier("zzz", DEFAULT_TIER_ORDER), tier("aaa", DEFAULT_TIER_ORDER),])
        ),
        [
            "kube-admin: kube-admin-p",
            "aaa: aaa-p",
            "default: default-p",
            "zzz: zzz-p",
            "kube-baseline: kube-baseline-p"
        ]
    );
}

#[test]
fn a_tier_that_nothing_defines_is_last_and_denies() {
    let mut policies = Policies::default();
    for name in ["ghost", "kube-baseline", "aghast"] {
        policies.apply(Resource::Policy(policy(name, GNP, "p", Some(1.0))));
        policies.apply(Resource::Policy(policy(name, GNP, name, Some(1.0))));
    }
    let tiers = tiers(&policies);
    let names: Vec<_> = tiers.iter().map(|tier| (&*tier.tier.name, tier.is_defined)).collect();
    assert_eq!(names, [("kube-baseline", true), ("aghast", false), ("ghost", false)]);
    assert!(!tiers[1].tier.default_pass && tiers[0].tier.default_pass);
}

#[test]
fn orders_are_floats_and_none_is_last() {
    let p = |name, order| Resource::Policy(policy("default", GNP, name, order));
    assert_eq!(
        order([
            p("none-b", None),
            p("none-a", None),
            p("huge", Some(1e300)),
            p("half", Some(0.5)),
            p("negative", Some(-3.0)),
            p("zero", Some(0.0)),
            p("minus-zero", Some(-0.0)),
        ]),
        ["default: negative minus-zero zero half huge none-a none-b"]
    );
}

#[test]
fn ties_compare_name_then_namespace_then_kind_with_their_slashes() {
    let p = |kind, name| Resource::Policy(policy("default", kind, name, Some(1.0)));
    assert_eq!(
        order([p(NP, "b/rule2"), p(NP, "b/rule"), p(NP, "b/rule.x"), p(NP, "b/rule-2"), p(NP, "a/rule")]),
        ["default: b/rule-2 b/rule.x a/rule b/rule b/rule2"]
    );
    let mut policies = Policies::default();
    for kind in [PolicyKind::StagedNetworkPolicy, NP, PolicyKind::KubernetesNetworkPolicy] {
        policies.apply(p(kind, "b/same"));
    }
    policies.apply(p(GNP, "same"));
    policies.apply(p(PolicyKind::ClusterNetworkPolicy, "same"));
    let kinds: Vec<_> = policies.ordered()[0].policies.iter().map(|policy| policy.id.kind).collect();
    assert_eq!(
        kinds,
        [
            GNP,
            PolicyKind::ClusterNetworkPolicy,
            PolicyKind::KubernetesNetworkPolicy,
            NP,
            PolicyKind::StagedNetworkPolicy
        ]
    );
}

#[test]
fn policies_of_other_stages_are_in_no_normal_tier() {
    let untracked = Policy { stage: Stage::DoNotTrack, ..policy("default", GNP, "u", None) };
    assert!(order([Resource::Policy(untracked)]).is_empty());
}

#[test]
fn what_cannot_be_read_is_kept_as_such_until_it_can() {
    let good = policy("default", GNP, "p", None);
    let reference = Resource::Policy(good.clone()).reference();
    let mut policies = Policies::default();
    assert!(policies.apply(Resource::Policy(good.clone())));
    assert!(policies.apply(Resource::Broken(reference.clone(), "why".into())));
    assert_eq!((policies.policies().count(), policies.broken().count()), (0, 1));
    let version = policies.version();
    assert!(!policies.apply(Resource::Broken(reference.clone(), "why".into())));
    assert_eq!(policies.version(), version);
    assert!(policies.apply(Resource::Policy(good.clone())));
    assert_eq!((policies.policies().count(), policies.broken().count()), (1, 0));
    policies.apply(Resource::Broken(reference.clone(), "why".into()));
    assert!(policies.apply(Resource::Absent(reference.clone())));
    assert!(!policies.apply(Resource::Absent(reference.clone())));
    policies.apply(Resource::Broken(reference.clone(), "why".into()));
    policies.replace_all(reference.kind, vec![]);
    assert_eq!((policies.policies().count(), policies.broken().count()), (0, 0));
}
