//! `flowlogd check`: what this node offers, which source would be used and why, what is missing and what to do.
//!
//! In: the configuration with the cluster's layers, as `run` has it, and the node. Out: a table on stdout (what, state, found; what to do beneath),
//! or with `--json` one JSON object. Exit code 0 where a source works, else 69. Changes nothing on the node.
//! Not here: how anything is found out (`source::probe`).

use std::fmt::Write as _;

use clap::Args;
use serde_json::json;
use tracing::warn;

use crate::config::Layers;
use crate::source::probe::{Choice, Finding, State, findings};

use super::Global;
use super::config::add_cluster;

/// Tell what this node offers, which source would be used, and what to do about what is missing.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

pub fn run(global: &Global, mut layers: Layers, args: &CheckArgs) -> anyhow::Result<u8> {
    // Where the cluster cannot be asked that is said, and the node is looked at still.
    if let Err(error) = add_cluster(global, &mut layers) {
        warn!("the cluster's layers are not known: {error:#}");
    }
    let (resolved, _) = layers.resolve();
    let (findings, choice) = findings(&resolved.config);
    let text = if args.json { json_text(&findings, &choice)? } else { table(&findings, &choice) };
    super::print(text.as_bytes())?;
    let exit = if choice.source.is_some() { super::Exit::Ok } else { super::Exit::Unavailable };
    Ok(exit.code())
}

fn json_text(findings: &[Finding], choice: &Choice) -> anyhow::Result<String> {
    let findings: Vec<_> = findings
        .iter()
        .map(|f| {
            json!({
                "topic": f.topic,
                "state": f.state.name(),
                "detail": f.detail,
                "remedy": if f.remedy.is_empty() { None } else { Some(&f.remedy) },
            })
        })
        .collect();
    let mut text = serde_json::to_string_pretty(
        &json!({ "findings": findings, "source": choice.source, "why": choice.why }),
    )?;
    text.push('\n');
    Ok(text)
}

fn table(findings: &[Finding], choice: &Choice) -> String {
    let topic = findings.iter().map(|f| f.topic.len()).max().unwrap_or(0).max(4);
    let state = [State::Ok, State::Off, State::Missing, State::Warn].map(|s| s.name().len());
    let state = state.into_iter().max().unwrap_or(0);
    let mut text = String::new();
    // Writing into memory does not fail.
    let _ = writeln!(text, "{:topic$}  {:state$}  FOUND", "WHAT", "STATE");
    for f in findings {
        let _ = writeln!(text, "{:topic$}  {:state$}  {}", f.topic, f.state.name(), f.detail);
        if !f.remedy.is_empty() {
            let _ = writeln!(text, "{:topic$}  {:state$}  -> {}", "", "", f.remedy);
        }
    }
    let _ = match choice.source {
        Some(source) => writeln!(text, "\nsource: {source}\nwhy: {}", choice.why),
        None => writeln!(text, "\nsource: none: the agent cannot run here\nwhy: {}", choice.why),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Vec<Finding>, Choice) {
        let findings = vec![
            Finding::ok("kernel", "6.18"),
            Finding::not_ok("kprobes", State::Missing, "none", "use source netlink"),
        ];
        (findings, Choice { source: Some("netlink"), why: "the first that works here".into() })
    }

    #[test]
    fn the_table_says_what_to_do_and_ends_with_the_choice() {
        let (findings, choice) = example();
        let expected = "WHAT     STATE    FOUND\n\
             kernel   ok       6.18\n\
             kprobes  missing  none\n\
             \x20                 -> use source netlink\n\
             \n\
             source: netlink\n\
             why: the first that works here\n";
        assert_eq!(table(&findings, &choice), expected);
    }

    #[test]
    fn machines_read_the_same() {
        let (findings, choice) = example();
        let value: serde_json::Value = serde_json::from_str(&json_text(&findings, &choice).unwrap()).unwrap();
        assert_eq!(value["source"], "netlink");
        assert_eq!(value["findings"][0]["remedy"], serde_json::Value::Null);
        assert_eq!(value["findings"][1]["state"], "missing");
    }
}
