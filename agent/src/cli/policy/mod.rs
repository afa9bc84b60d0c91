//! `flowlogd policy`: what policies say of flows, before anybody is cut off.
//!
//! In: the command line. Out: `preview` (what a change would mean for flows that were seen), `explain` (why one flow is
//! allowed or denied), `unused` (policies and rules that no flow needed), each as a table or as JSON.
//! Here: what the three share: the cluster, how policies are named (as in the lines: `knp:shop/allow-web`), which
//! paths are inputs. Not here: what policies mean (`policy`), how files of flows are read (`flows.rs`).

mod explain;
mod flows;
mod preview;
mod table;
mod unused;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use tracing::info;

use crate::config::Resolved;
use crate::model::{Hit, PolicyKind, Timestamp};
use crate::policy::{ResourceKind, ResourceRef};
use crate::snapshot::{Object, World};
use crate::watch;

use super::{Failure, Global};

/// What the cluster's policies say of flows: of seen ones after a change, of one in detail, of none.
#[derive(Args, Clone, Debug)]
pub struct PolicyArgs {
    #[command(subcommand)]
    verb: PolicyVerb,
}

#[derive(Subcommand, Clone, Debug)]
enum PolicyVerb {
    Preview(preview::PreviewArgs),
    Explain(explain::ExplainArgs),
    Unused(unused::UnusedArgs),
}

pub fn run(global: &Global, resolved: &Resolved, args: &mut PolicyArgs) -> anyhow::Result<u8> {
    match &mut args.verb {
        PolicyVerb::Preview(args) => preview::run(global, resolved, args),
        PolicyVerb::Explain(args) => explain::run(global, args),
        PolicyVerb::Unused(args) => unused::run(global, resolved, args),
    }
}

/// The objects of these manifests; what is wrong with one of them ends the verb.
fn objects(paths: &[PathBuf]) -> anyhow::Result<Vec<Object>> {
    let manifests =
        watch::load(paths, true).map_err(|error| Failure::new(super::exit::of_manifests(&error), error))?;
    for (kind, objects) in &manifests.unused {
        info!(%kind, objects, "objects of this kind are not used");
    }
    Ok(manifests.objects)
}

/// The cluster as `--cluster` tells it.
fn world(global: &Global, paths: &[PathBuf]) -> anyhow::Result<World> {
    let mut world = World::new(global.node_name().into());
    if !paths.is_empty() {
        world.inhabit();
        for object in objects(paths)? {
            world.apply(object, Timestamp::MIN);
        }
    }
    Ok(world)
}

/// A list that ends with the command's inputs: the parser cannot know where a list of paths ends, so that in
/// `--with change.yaml flows.log` the last ones are taken by what is in them.
fn take_inputs(lists: [&mut Vec<PathBuf>; 2], inputs: &mut Vec<PathBuf>) -> Result<(), Failure> {
    if inputs.is_empty() {
        for list in lists {
            while let Some(path) = list.pop_if(|path| flows::is_input(path)) {
                inputs.insert(0, path);
            }
            if !inputs.is_empty() {
                break;
            }
        }
    }
    if inputs.is_empty() {
        return Err(Failure::usage(
            "needs flows: give a recording, flow log files (rotated ones too), or - for stdin",
        ));
    }
    Ok(())
}

/// The kinds as lines of the style `Kind` write them.
const PREFIXES: [(&str, PolicyKind); 10] = [
    ("np", PolicyKind::NetworkPolicy),
    ("gnp", PolicyKind::GlobalNetworkPolicy),
    ("knp", PolicyKind::KubernetesNetworkPolicy),
    ("snp", PolicyKind::StagedNetworkPolicy),
    ("sgnp", PolicyKind::StagedGlobalNetworkPolicy),
    ("sknp", PolicyKind::StagedKubernetesNetworkPolicy),
    ("kcnp", PolicyKind::ClusterNetworkPolicy),
    ("anp", PolicyKind::AdminNetworkPolicy),
    ("banp", PolicyKind::BaselineAdminNetworkPolicy),
    ("pro", PolicyKind::Profile),
];

fn prefix(kind: PolicyKind) -> &'static str {
    PREFIXES.iter().find(|(_, of)| *of == kind).map_or("", |(prefix, _)| prefix)
}

/// `knp:shop/allow-web`
fn policy_name(kind: PolicyKind, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{}:{namespace}/{name}", prefix(kind)),
        None => format!("{}:{name}", prefix(kind)),
    }
}

/// `knp:shop/allow-web deny 0`, `… deny -1` at the end of its tier.
fn hit_name(hit: &Hit) -> String {
    let name = policy_name(hit.kind, hit.namespace.as_deref(), &hit.name);
    format!("{name} {} {}", hit.action.name(), hit.rule)
}

/// A policy, tier or profile by its name: `knp:shop/allow-web`, `gnp:deny-all`, `tier:security`, `pro:strict`.
fn resource(text: &str) -> Result<ResourceRef, Failure> {
    let wrong = || {
        let known: Vec<&str> = PREFIXES.iter().map(|(prefix, _)| *prefix).collect();
        Failure::usage(format!(
            "{text:?} names no policy: expected is KIND:NAME or KIND:NAMESPACE/NAME with KIND one of {} tier, such as \
             knp:shop/allow-web",
            known.join(" ")
        ))
    };
    let (prefix, name) = text.split_once(':').ok_or_else(wrong)?;
    let kind = match prefix {
        "tier" => ResourceKind::Tier,
        "pro" => ResourceKind::Profile,
        _ => ResourceKind::Policy(PREFIXES.iter().find(|(known, _)| *known == prefix).ok_or_else(wrong)?.1),
    };
    let (namespace, name): (Option<Arc<str>>, &str) = match name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.into()), name),
        None => (None, name),
    };
    if namespace.is_some() != kind.is_namespaced() || name.is_empty() {
        return Err(wrong());
    }
    Ok(ResourceRef { kind, namespace, name: name.into() })
}

#[cfg(test)]
mod tests {
    use super::super::Exit;
    use super::*;

    #[test]
    fn policies_are_named_as_in_the_lines() {
        for text in
            ["knp:shop/allow-web", "np:a/b", "gnp:x.y", "kcnp:adm", "banp:default", "tier:sec", "pro:strict"]
        {
            let reference = resource(text).unwrap();
            let prefix = match reference.kind {
                ResourceKind::Policy(kind) => prefix(kind),
                ResourceKind::Tier => "tier",
                ResourceKind::Profile => "pro",
            };
            let name = match &reference.namespace {
                Some(namespace) => format!("{prefix}:{namespace}/{}", reference.name),
                None => format!("{prefix}:{}", reference.name),
            };
            assert_eq!(name, text);
        }
        for wrong in ["", "knp", "knp:no-namespace", "gnp:a/b", "what:x", "tier:"] {
            assert_eq!(resource(wrong).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
    }
}
