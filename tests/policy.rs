//! `flowlogd policy` from outside: preview, explain and unused on a small shop, against tracked output.
//!
//! In: `tests/policy/shop/` (a cluster, a change, a recording) and the built binary; flow logs of every level are what
//! `replay` makes of the recording. Out: exactly the tracked text (`FLOWLOGD_BLESS=1` writes it) and exit codes.
//! What always holds: no test reads the machine's own configuration or environment.

#![allow(clippy::unwrap_used, reason = "the functions that the tests share may end a test too")]

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;

fn shop() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/policy/shop")
}

struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

/// In the shop's folder; `columns`: the terminal's width, if there is one.
fn run(arguments: &[&str], columns: Option<&str>, stdin: &str) -> Ended {
    let mut command = Command::cargo_bin("flowlogd").unwrap();
    command.env_clear().env("NODE_NAME", "node-1").current_dir(shop()).args(arguments);
    if let Some(columns) = columns {
        command.env("COLUMNS", columns);
    }
    let output = command.write_stdin(stdin).output().unwrap();
    Ended {
        code: output.status.code().expect("ended by itself"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The output of this command is what the file holds.
fn golden(file: &str, arguments: &[&str], columns: Option<&str>, stdin: &str, code: i32) {
    let ended = run(arguments, columns, stdin);
    assert_eq!(ended.code, code, "{file}: {}", ended.stderr);
    let path = shop().join("expected").join(file);
    if std::env::var("FLOWLOGD_BLESS").is_ok_and(|value| value == "1") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &ended.stdout).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(ended.stdout, expected, "{file}: run with FLOWLOGD_BLESS=1 if this is meant");
}

/// The recording as a flow log of this level.
fn log(level: usize, style: &str) -> String {
    let allowed = format!("flowLogsFileAggregationKindForAllowed={level}");
    let denied = format!("flowLogsFileAggregationKindForDenied={level}");
    let style = format!("flowLogsPolicyNameStyle={style}");
    let arguments = [
        "replay",
        "--cluster",
        "cluster.yaml",
        "--set",
        &allowed,
        "--set",
        &denied,
        "--set",
        &style,
        "recording.jsonl",
    ];
    let ended = run(&arguments, None, "");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    ended.stdout
}

const PREVIEW: [&str; 6] = ["policy", "preview", "--cluster", "cluster.yaml", "--with", "change.yaml"];

fn preview<'a>(more: &[&'a str]) -> Vec<&'a str> {
    PREVIEW.iter().chain(more).copied().collect()
}

#[test]
fn a_recording_is_previewed_exactly() {
    golden("preview.txt", &preview(&["--all", "recording.jsonl"]), None, "", 1);
    golden("preview-80.txt", &preview(&["--all", "recording.jsonl"]), Some("80"), "", 1);
    golden("preview.json", &preview(&["--json", "recording.jsonl"]), None, "", 1);
}

#[test]
fn logs_of_every_level_are_previewed_as_far_as_they_tell() {
    for level in 0..4 {
        // At level 3 nothing is sure to be denied any more, and --strict still stops.
        let code = i32::from(level < 3);
        golden(&format!("preview-level-{level}.txt"), &preview(&["-"]), None, &log(level, "Dotted"), code);
        assert_eq!(run(&preview(&["--strict", "-"]), None, &log(level, "Dotted")).code, 1);
    }
    // Without aggregation a log tells as much as the recording.
    let exact = run(&preview(&["--all", "recording.jsonl"]), None, "").stdout;
    assert_eq!(run(&preview(&["--all", "-"]), None, &log(0, "Kind")).stdout, exact);
}

#[test]
fn rotated_files_count_together_and_a_torn_end_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let log = log(0, "Dotted");
    let (first, second) = log.split_at(log.match_indices('\n').nth(6).unwrap().0 + 1);
    let [one, two] = ["flows.log.1", "flows.log"].map(|name| folder.path().join(name));
    fs::write(&one, first).unwrap();
    fs::write(&two, format!("{second}{{\"start_time\":17672")).unwrap();
    let paths = [one.to_str().unwrap(), two.to_str().unwrap()];
    let ended = run(&preview(&["--all", paths[0], paths[1]]), None, "");
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains("not whole"), "{}", ended.stderr);
    assert_eq!(ended.stdout, run(&preview(&["--all", "-"]), None, &log).stdout);
    fs::write(&one, format!("{{}}\n{first}")).unwrap();
    let ended = run(&preview(&["--", paths[0]]), None, "");
    assert_eq!(ended.code, 65, "{}", ended.stderr);
    assert!(ended.stderr.contains("flows.log.1: line 1"), "{}", ended.stderr);
}

#[test]
fn a_policy_that_would_be_gone_is_named_as_in_the_lines() {
    let without = |name: &'static str, more: &[&'static str]| {
        let mut arguments = vec!["policy", "preview", "--cluster", "cluster.yaml", "--without", name];
        arguments.extend(more);
        arguments.push("recording.jsonl");
        run(&arguments, None, "")
    };
    // The flag's list ends where another flag begins.
    let ended = without("knp:shop/allow-web", &["--all"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.starts_with("becomes allowed\n"), "{}", ended.stdout);
    for (name, problem) in [("knp:shop/none", "there is none"), ("allow-web", "names no policy")] {
        let ended = without(name, &["--all"]);
        assert_eq!(ended.code, 64, "{}", ended.stderr);
        assert!(ended.stderr.contains(problem), "{}", ended.stderr);
    }
}

#[test]
fn staged_policies_can_be_previewed_as_enforced() {
    let arguments = ["policy", "preview", "--cluster", "cluster.yaml", "--enforce-staged", "recording.jsonl"];
    golden("preview-staged.txt", &arguments, None, "", 1);
}

#[test]
fn a_flow_is_explained_at_both_ends() {
    let explain = |more: &[&'static str]| -> Vec<&'static str> {
        ["policy", "explain", "--cluster", "cluster.yaml"].iter().chain(more).copied().collect()
    };
    let admin =
        ["--src", "shop/client-6d9f7c-bbbbb", "--dst", "10.1.0.3", "--dport", "9090", "--sport", "40000"];
    golden("explain.txt", &explain(&admin), None, "", 0);
    golden("explain.json", &explain(&[&admin[..], &["--json"]].concat()), None, "", 0);
    let denied =
        ["--src", "203.0.113.9", "--dst", "infra/dns-7c5d94-ddddd", "--proto", "udp", "--dport", "53"];
    golden("explain-denied.txt", &explain(&denied), None, "", 0);
    golden(
        "explain-node.txt",
        &explain(&["--src", "192.168.5.1", "--dst", "10.1.0.3", "--dport", "80"]),
        None,
        "",
        0,
    );
    for (wrong, problem) in [
        (&["--src", "shop/none", "--dst", "10.1.0.3", "--dport", "1"][..], "there is no pod shop/none"),
        (&["--src", "10.1.0.1", "--dst", "10.1.0.3"], "needs --dport"),
        (&["--src", "10.1.0.1", "--dst", "fd00::1", "--dport", "1"], "one family"),
        (&["--src", "10.1.0.1", "--dst", "10.1.0.3", "--proto", "icmp", "--dport", "1"], "has no ports"),
        (&["--src", "10.1.0.1", "--dst", "10.1.0.3", "--proto", "icmp", "--icmp", "x"], "--icmp x"),
    ] {
        let ended = run(&explain(wrong), None, "");
        assert_eq!(ended.code, 64, "{wrong:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(problem), "{wrong:?}: {}", ended.stderr);
    }
}

#[test]
fn policies_and_rules_that_no_flow_used_are_told() {
    let unused = ["policy", "unused", "--cluster", "cluster.yaml"];
    golden("unused.txt", &[&unused[..], &["recording.jsonl"]].concat(), None, "", 0);
    golden("unused.json", &[&unused[..], &["--json", "recording.jsonl"]].concat(), None, "", 0);
    // One flow alone, as a log names it, in either style.
    for name in ["infra/knp.default.dns-from-all", "knp:infra/dns-from-all"] {
        let line = format!(
            concat!(
                r#"{{"source_ip":"10.1.0.1","source_name":"-","source_name_aggr":"client-*","source_namespace":"shop","#,
                r#""source_port":null,"source_type":"wep","dest_ip":"10.2.0.1","dest_name":"-","dest_name_aggr":"dns-*","#,
                r#""dest_namespace":"infra","dest_port":53,"dest_type":"wep","proto":"udp","action":"allow","reporter":"dst","#,
                r#""policies":{{"all_policies":["0|default|{}|allow|0"]}},"num_flows_started":3,"some_other_field":{{}}}}"#
            ),
            name
        );
        golden("unused-one-flow.txt", &[&unused[..], &["-"]].concat(), None, &format!("{line}\n"), 0);
    }
}

#[test]
fn what_is_missing_is_said() {
    for (arguments, code, problem) in [
        (&["policy", "preview", "--cluster", "cluster.yaml", "--with", "change.yaml"][..], 64, "needs flows"),
        (&["policy", "preview", "--cluster", "cluster.yaml", "recording.jsonl"], 64, "needs a change"),
        (&["policy", "preview", "--with", "none.yaml", "--", "recording.jsonl"], 66, "none.yaml"),
        (&["policy", "preview", "--with", "change.yaml", "--", "none.jsonl"], 66, "none.jsonl"),
        (&["policy", "unused", "--", "recording.jsonl"], 64, "there are no policies"),
        (
            &["policy", "explain", "--src", "1.1.1.1", "--dst", "1.1.1.1", "--dport", "1"],
            64,
            "needs the cluster",
        ),
        (&["policy"], 64, "Usage"),
    ] {
        let ended = run(arguments, None, "");
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(problem), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stdout.is_empty(), "{arguments:?}");
    }
}

/// A policy that cannot be read is an error that names it, wherever it stands.
#[test]
fn a_broken_policy_ends_with_65_and_names_object_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.yaml");
    fs::write(
        &file,
        "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec: {selector: \"a = 'b'\"}\n",
    )
    .unwrap();
    let path = file.to_str().unwrap();
    for arguments in [
        &["policy", "preview", "--cluster", "cluster.yaml", "--with", path, "--", "recording.jsonl"][..],
        &["policy", "explain", "--cluster", path, "--src", "1.1.1.1", "--dst", "1.1.1.1", "--dport", "1"],
        &["replay", "--cluster", path, "--", "recording.jsonl"],
    ] {
        let ended = run(arguments, None, "");
        assert_eq!(ended.code, 65, "{arguments:?}: {}", ended.stderr);
        let says = "NetworkPolicy shop/p: field `spec.selector`: \"a = 'b'\" is not a selector: at 2";
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
    let apply = "{\"at\":\"2026-01-01T00:00:00Z\",\"apply\":{\"apiVersion\":\"networking.k8s.io/v1\",\"kind\":\"NetworkPolicy\",\"metadata\":{\"name\":\"p\",\"namespace\":\"shop\"},\"spec\":{\"policyTypes\":[\"x\"]}}}\n";
    for arguments in [&["replay", "--cluster", "cluster.yaml", "--", "-"][..], &preview(&["-"])] {
        let ended = run(arguments, None, apply);
        assert_eq!(ended.code, 65, "{}", ended.stderr);
        assert!(ended.stderr.contains("spec.policyTypes[0]"), "{}", ended.stderr);
    }
}
