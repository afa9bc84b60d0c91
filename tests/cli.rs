//! The agent's command line from outside: exit codes, what goes to stdout, what goes to stderr.
//!
//! In: the built binary. Always: no test reads the machine's own configuration or environment.
//! Not here: what lines a recording gives (`scenarios.rs`).

#![allow(clippy::unwrap_used, reason = "the functions that the tests share may end a test too")]

use assert_cmd::Command;

fn flowlogd() -> Command {
    let mut command = Command::cargo_bin("flowlogd").unwrap();
    command.env_clear();
    command
}

struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

fn end(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code().expect("ended by itself"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(arguments: &[&str]) -> Ended {
    end(flowlogd().args(arguments))
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [&["--help"][..], &["--version"], &["help"], &["config", "--help"]] {
        let ended = run(arguments);
        assert_eq!(ended.code, 0, "{arguments:?}");
        assert!(!ended.stdout.is_empty() && ended.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(run(&["--version"]).stdout, format!("flowlogd {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_64() {
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["config", "--no-such-flag"],
        &["config", "--log-level", "loud"],
        &["config", "--set", "flowLogsFlushInterval"],
        &["config", "--config"],
    ] {
        let ended = run(arguments);
        assert_eq!(ended.code, 64, "{arguments:?}: {}", ended.stderr);
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(end(flowlogd().env("FLOWLOGD_LOG", "flowlogd=loud").arg("config")).code, 64);
}

#[test]
fn config_shows_every_value_and_its_layer() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(
        &file,
        "flowLogsFlushInterval: 15s\nflowLogsFileMaxFiles: 7\nflowLogsFileFormat: Calico\n",
    )
    .unwrap();
    let mut command = flowlogd();
    command
        .env("FELIX_FLOWLOGSFILEMAXFILES", "8")
        .env("FLOWLOGD_FLOWLOGSFILEFORMAT", "Extended")
        .args(["config", "--config"])
        .arg(&file)
        .args(["--set", "flowLogsFileFormat=Calico", "--node", "n1"]);
    let ended = end(&mut command);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let row = |field: &str| -> Vec<String> {
        let line = ended.stdout.lines().find(|line| line.starts_with(&format!("{field} "))).unwrap();
        line.splitn(3, "  ").map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect()
    };
    assert!(row("flowLogsFlushInterval").join(" ").contains("15s"));
    assert!(row("flowLogsFlushInterval").join(" ").ends_with("config.yaml:1)"));
    assert!(row("flowLogsFileMaxFiles").join(" ").contains("environment (FELIX_FLOWLOGSFILEMAXFILES)"));
    assert!(row("flowLogsFileFormat").join(" ").contains("flag (--set)"));
    assert!(row("flowLogsFileMode").join(" ").ends_with("built-in"));

    let json = end(command.arg("--json"));
    let fields: Vec<serde_json::Value> = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(fields.len(), ended.stdout.lines().count() - 1);
    let mode = fields.iter().find(|field| field["field"] == "flowLogsFileMode").unwrap();
    assert_eq!((&mode["value"], &mode["layer"]), (&"0600".into(), &"built-in".into()));
}

#[test]
fn a_bad_value_at_the_start_is_64_and_says_where_and_what() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(
        &file,
        "flowLogsFlushInterval: never\nflowLogsPolicyScope: AllPolicies\nflowLogsFilModee: 0600\n",
    )
    .unwrap();
    let ended = end(flowlogd().args(["config", "--config"]).arg(&file));
    assert_eq!((ended.code, ended.stdout.as_str()), (64, ""));
    for part in [
        "config.yaml:1: flowLogsFlushInterval: \"never\" is not allowed",
        "config.yaml:2: flowLogsPolicyScope: \"AllPolicies\" is not allowed; allowed is only EndpointPolicies",
        "config.yaml:3: there is no field flowLogsFilModee; did you mean flowLogsFileMode?",
    ] {
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
    }
    let ended = end(flowlogd().env("FLOWLOGD_FLOWLOGSFLUSHINTERVAL", "0").arg("config"));
    assert_eq!(ended.code, 64);
    assert!(ended.stderr.contains("FLOWLOGD_FLOWLOGSFLUSHINTERVAL"), "{}", ended.stderr);
    let ended = run(&["config", "--set", "flowLogsFileMode=0999"]);
    assert_eq!(ended.code, 64);
    assert!(ended.stderr.contains("--set: flowLogsFileMode: \"0999\""), "{}", ended.stderr);
}

#[test]
fn a_configuration_file_that_is_not_there_is_66_and_one_that_is_no_yaml_64() {
    let ended = run(&["config", "--config", "/nonexistent/config.yaml"]);
    assert_eq!(ended.code, 66);
    assert!(ended.stderr.contains("/nonexistent/config.yaml") && ended.stderr.contains("--config"));
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(end(flowlogd().args(["config", "--config"]).arg(dir.path())).code, 66);
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, [b'a', b':', 0xff, b'\n']).unwrap();
    assert_eq!(end(flowlogd().args(["config", "--config"]).arg(&file)).code, 64);
    std::fs::write(&file, "a: [\n").unwrap();
    let ended = end(flowlogd().args(["config", "--config"]).arg(&file));
    assert_eq!(ended.code, 64);
    assert!(ended.stderr.contains("config.yaml"), "{}", ended.stderr);
}

#[test]
fn a_field_without_effect_is_warned_about() {
    let ended = run(&["config", "--set", "dnsPolicyMode=DelayDNSResponse"]);
    assert_eq!(ended.code, 0);
    assert!(ended.stderr.contains("dnsPolicyMode") && ended.stderr.contains("no effect"), "{}", ended.stderr);
    assert_eq!(run(&["config", "--log-level", "off", "--set", "dnsPolicyMode=Inline"]).stderr, "");
}

#[test]
fn a_reader_that_went_away_is_no_error_and_a_full_output_is_74() {
    use std::process::{Command, Stdio};
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(assert_cmd::cargo::cargo_bin("flowlogd"))
        .env_clear()
        .arg("config")
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());

    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else {
        eprintln!("SKIPPED: there is no /dev/full to write to");
        return;
    };
    let output = Command::new(assert_cmd::cargo::cargo_bin("flowlogd"))
        .env_clear()
        .arg("config")
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(!output.stderr.is_empty());
}
