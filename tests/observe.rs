//! `flowlogd observe` from outside: what it prints of recorded files, byte for byte, and how it ends.
//!
//! In: the built binary, `tests/observe/flows.log*` (lines of scenarios, and one whose names a terminal would obey),
//! golden files beside them. `FLOWLOGD_BLESS=1` writes what the binary printed over each golden file; read it before
//! it is kept. Always: no test reads the machine's own configuration, terminal or zone.
//! The live view against a real agent is in `live.rs`.
//! The live view against a real agent is in `live.rs`.

#![allow(clippy::unwrap_used, reason = "the functions that the tests share may end a test too")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn flowlogd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowlogd"));
    command.env_clear().arg("observe");
    command
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/observe")
}

fn recorded() -> Vec<PathBuf> {
    // As a shell gives them: not in the order of their age.
    ["flows.log", "flows.log.1", "flows.log.2"].map(|name| folder().join(name)).to_vec()
}

fn golden(name: &str, arguments: &[&str]) {
    golden_of(&recorded(), name, arguments);
}

fn golden_of(logs: &[PathBuf], name: &str, arguments: &[&str]) {
    let output = flowlogd().args(logs).args(arguments).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{name}");
    let path = folder().join(name);
    if std::env::var("FLOWLOGD_BLESS").is_ok_and(|value| value == "1") {
        fs::write(&path, &output.stdout).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), wanted, "{name}");
}

#[test]
fn tables_fit_80_columns_and_show_more_in_160_and_the_process_in_200() {
    let table = ["--output", "table", "--utc"];
    // One of the processes has a name that a terminal would obey.
    let processes = vec![folder().join("processes.log")];
    for (width, logs) in [("80", recorded()), ("160", recorded()), ("200", processes)] {
        golden_of(&logs, &format!("table-{width}.txt"), &[&table[..], &["--width", width]].concat());
        let text = fs::read_to_string(folder().join(format!("table-{width}.txt"))).unwrap();
        let most: usize = width.parse().unwrap();
        for line in text.lines() {
            assert!(unicode_width::UnicodeWidthStr::width(line) <= most, "{line}");
            assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
        }
    }
}

#[test]
fn color_is_there_when_it_is_asked_for() {
    golden(
        "table-color.txt",
        &["--output", "table", "--utc", "--width", "120", "--color", "always", "--last", "6"],
    );
}

#[test]
fn summaries() {
    for kind in ["talkers", "denied", "ports", "policies", "mismatch"] {
        golden(
            &format!("top-{kind}.txt"),
            &["--top", kind, "--output", "table", "--width", "100", "--rows", "8"],
        );
    }
    golden("top-ports.json", &["--top", "ports", "--rows", "3"]);
}

#[test]
fn lines_are_piped_as_they_are_and_filters_choose() {
    let all: String = recorded().iter().rev().map(|path| fs::read_to_string(path).unwrap()).collect();
    let output = flowlogd().args(recorded()).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), all, "oldest first, not a byte changed");
    golden("denied-not-80.jsonl", &["--action", "deny", "--not-port", "80"]);
    golden("filter.jsonl", &["--filter", "dst.namespace=other (proto=udp or port=443)"]);
    golden("from-last.jsonl", &["--from-pod", "shop/client-a-*", "--last", "3"]);
}

#[test]
fn stdin_is_read_and_what_is_no_line_is_counted() {
    let mut child = flowlogd()
        .args(["-", "--output", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let good = fs::read_to_string(&recorded()[0]).unwrap();
    let first = good.lines().next().unwrap();
    let mut input = Vec::new();
    for hostile in [&b"{\"start_time\":1}"[..], b"\xff\xfe", b"\x1b[2J", b"[", b"{}", b""] {
        input.extend_from_slice(hostile);
        input.push(b'\n');
    }
    input.extend_from_slice(first.as_bytes());
    child.stdin.take().unwrap().write_all(&input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{first}\n"));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("5 lines, the first stdin line 1: missing field"), "{told}");
    assert!(!told.contains('\u{1b}'), "{told:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("flows.log");
    let some = fs::read(&recorded()[0]).unwrap();
    // More than any pipe holds.
    fs::write(&large, some.repeat(4_000_000 / some.len())).unwrap();
    for format in ["json", "table"] {
        let mut child = flowlogd()
            .arg(&large)
            .args(["--output", format])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::with_capacity(64, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}

#[test]
fn a_log_is_followed_over_its_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("flows.log");
    let recorded = fs::read_to_string(&recorded()[0]).unwrap();
    let lines: Vec<&str> = recorded.lines().take(4).collect();
    fs::write(&base, format!("{}\n", lines[0])).unwrap();
    let mut child = flowlogd().arg(&base).args(["--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut next = || {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    assert_eq!(next(), lines[0]);
    let append = |text: &str| {
        fs::File::options()
            .append(true)
            .create(true)
            .open(&base)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    };
    append(&format!("{}\n", lines[1]));
    fs::rename(&base, dir.path().join("flows.log.1")).unwrap();
    append(&format!("{}\n{}\n", lines[2], lines[3]));
    assert_eq!([next(), next(), next()], [lines[1], lines[2], lines[3]]);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_cannot_be_read_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    let output = flowlogd().arg(&none).output().unwrap();
    assert_eq!(output.status.code(), Some(66));
    let output = flowlogd().arg("--socket").arg(&none).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is the agent running on this host?"));
    for wrong in [&["--port", "http"][..], &["--filter", "nope=1"], &["--since", "soon"], &["--last", "0"]] {
        assert_eq!(flowlogd().args(wrong).output().unwrap().status.code(), Some(64), "{wrong:?}");
    }
}
