//! Whether the shippers' files are well formed, and speak of fields that the line has.
//!
//! In: `deploy/shippers/`. Out: an error that names file and place. What always holds: a file that this project could not run says so in
//! its header. Not here: rsyslog's own word (`rsyslogd -N1`, in the caller), and that lines arrive (the end-to-end test).

use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::workspace::root;

const YAML: [&str; 4] = ["fluent-bit.yaml", "vector.yaml", "filebeat.yml", "otel-collector.yaml"];
const PROVEN: &str = "rsyslog.conf";
const ALL: [&str; 6] =
    ["fluent-bit.yaml", "vector.yaml", "filebeat.yml", "otel-collector.yaml", "fluentd.conf", PROVEN];
/// What each has to have: the file, its time, the host of lines that have none, and the time's name.
const SAID: [&str; 4] = ["/var/log/calico/flowlogs/flows.log", "end_time", "host", "@timestamp"];

pub fn check() -> anyhow::Result<()> {
    for name in ALL {
        let text = read(name)?;
        for word in SAID {
            // Filebeat sets the time by a processor of its own, whose field has no name in the file.
            let implied = name == "filebeat.yml" && word == "@timestamp";
            ensure!(implied || text.contains(word), "{name} says nothing of {word}");
        }
        ensure!(
            text.contains("Untested here") != (name == PROVEN),
            "{name}: its header does not say whether it was run"
        );
    }
    for name in YAML {
        let value: Value =
            serde_saphyr::from_str(&read(name)?).with_context(|| format!("{name} is no YAML"))?;
        ensure!(value.is_object(), "{name} is no map");
    }
    balanced(&read("fluentd.conf")?).context("fluentd.conf")
}

fn read(name: &str) -> anyhow::Result<String> {
    fs::read_to_string(root().join("deploy/shippers").join(name))
        .with_context(|| format!("cannot read {name}"))
}

/// Fluentd's blocks: what is opened is closed, by its name and in order.
fn balanced(text: &str) -> anyhow::Result<()> {
    let mut open: Vec<&str> = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
        if let Some(name) = line.strip_prefix("</").and_then(|rest| rest.strip_suffix('>')) {
            ensure!(open.pop() == Some(name), "line {number} closes {name}, which is not what is open");
        } else if let Some(inside) = line.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')) {
            open.push(inside.split_whitespace().next().unwrap_or_default());
        }
    }
    ensure!(open.is_empty(), "never closed: {open:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_well_formed() {
        check().unwrap();
    }

    #[test]
    fn blocks_that_do_not_match_are_found() {
        assert!(balanced("<a x>\n<b>\n</b>\n</a>\n").is_ok());
        for wrong in ["<a>\n", "<a>\n</b>\n", "</a>\n", "<a>\n<b>\n</a>\n</b>\n"] {
            assert!(balanced(wrong).is_err(), "{wrong}");
        }
    }
}
