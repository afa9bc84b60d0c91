//! One scenario: a folder that holds what the agent is told and what it must write.
//!
//! In: a folder with `recording.jsonl`, and where they are needed `cluster.yaml`, `config.yaml` and `args` (words
//! of the command line, one or more a line). Out: what the real binary wrote on stdout, held against
//! `expected.jsonl` byte for byte (and its DNS log against `expected-dns.jsonl`, where the case has one), or against `expected-partial.json` (records that must be there, on the given
//! keys alone). Always: every case runs twice and gives the same bytes; each line fits the published schema;
//! no case reads the machine's environment. Not here: which cases there are (`scenarios.rs`, `vectors.rs`).

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// The lines of the DNS log, of a case that has one.
const DNS_EXPECTED: &str = "expected-dns.jsonl";
/// The local node of a case that does not say `--node`.
const NODE: &str = "node-1";

/// Runs a case; `Err` tells a reader what differs.
pub fn check(dir: &Path, bless: bool) -> Result<(), String> {
    let Written { stdout, dns } = replay(dir)?;
    if replay(dir)? != (Written { stdout: stdout.clone(), dns: dns.clone() }) {
        return Err("two runs of one recording gave different bytes".into());
    }
    fits_schema(&LINE, &stdout)?;
    if let Some(dns) = dns {
        fits_schema(&DNS_LINE, &dns)?;
        compare(&dir.join(DNS_EXPECTED), dns, bless)?;
    }
    let partial = dir.join("expected-partial.json");
    if partial.exists() {
        return check_partial(&partial, &stdout);
    }
    compare(&dir.join("expected.jsonl"), stdout, bless)
}

fn compare(expected: &Path, got: String, bless: bool) -> Result<(), String> {
    if bless {
        return std::fs::write(expected, got).map_err(|error| format!("{}: {error}", expected.display()));
    }
    let wanted = read(expected)?;
    if wanted == got { Ok(()) } else { Err(differences(&wanted, &got)) }
}

/// What a case wrote; `dns`: where it has [`DNS_EXPECTED`].
#[derive(PartialEq, Eq)]
struct Written {
    stdout: String,
    dns: Option<String>,
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// What `flowlogd replay` writes for the case.
fn replay(dir: &Path) -> Result<Written, String> {
    let words = std::fs::read_to_string(dir.join("args")).unwrap_or_default();
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowlogd"));
    command.env_clear().current_dir(dir).args(["replay", "recording.jsonl", "--log-level", "warn"]);
    if !words.contains(&"--node") {
        command.args(["--node", NODE]);
    }
    for (flag, file) in [("--cluster", "cluster.yaml"), ("--config", "config.yaml")] {
        if dir.join(file).exists() {
            command.args([flag, file]);
        }
    }
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let dns = dir.join(DNS_EXPECTED).exists().then(|| folder.path().join("dns.log"));
    if let Some(path) = &dns {
        command.arg("--dns-log").arg(path);
    }
    let output = command.args(&words).output().map_err(|error| format!("flowlogd: {error}"))?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let stdout = String::from_utf8(output.stdout).map_err(|_| "stdout is not UTF-8")?;
    Ok(Written { stdout, dns: dns.as_deref().map(read).transpose()? })
}

type Schema = LazyLock<jsonschema::Validator>;
static LINE: Schema = LazyLock::new(|| {
    jsonschema::validator_for(&flowlogd::wire::schema::schema()).expect("the schema is one")
});
static DNS_LINE: Schema = LazyLock::new(|| {
    jsonschema::validator_for(&flowlogd::wire::dns_log::schema()).expect("the schema is one")
});

/// Real output against the schema of the line: every scenario is a sample of it.
fn fits_schema(schema: &Schema, stdout: &str) -> Result<(), String> {
    for (number, line) in (1..).zip(stdout.lines()) {
        let value: Value = serde_json::from_str(line).map_err(|e| format!("line {number}: {e}"))?;
        schema.validate(&value).map_err(|e| format!("line {number} does not fit the schema: {e}"))?;
    }
    Ok(())
}

/// Line by line and field by field.
fn differences(wanted: &str, got: &str) -> String {
    let parse = |text: &str| -> Vec<Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| Value::from(line))).collect()
    };
    let (wanted, got) = (parse(wanted), parse(got));
    let mut out = format!("{} lines wanted, {} written", wanted.len(), got.len());
    for number in 0..wanted.len().max(got.len()) {
        match (wanted.get(number), got.get(number)) {
            (Some(wanted), Some(got)) if wanted == got => {}
            (Some(Value::Object(wanted)), Some(Value::Object(got))) => {
                let _ = write!(out, "\n  line {}:", number + 1);
                let mut keys: Vec<&String> = wanted.keys().collect();
                keys.extend(got.keys().filter(|key| !wanted.contains_key(*key)));
                for key in keys {
                    let show = |value: Option<&Value>| value.map_or("(absent)".into(), Value::to_string);
                    let (wanted, got) = (wanted.get(key), got.get(key));
                    if wanted != got {
                        let _ = write!(out, "\n    {key}: wanted {}, got {}", show(wanted), show(got));
                    }
                }
            }
            (Some(wanted), None) => {
                let _ = write!(out, "\n  line {} is missing: {wanted}", number + 1);
            }
            (_, Some(got)) => {
                let _ = write!(out, "\n  line {} is too much: {got}", number + 1);
            }
            _ => {}
        }
    }
    if !out.contains('\n') {
        out.push_str("; the same values, but not the same bytes (order of fields, spaces or escapes)");
    }
    out
}

/// `{"windows": [{"end_time", "exact"?, "records": [{key: value}]}]}`: each record matches a line of its own, on
/// its keys alone, arrays as sets; `exact` (unless false): there are no other lines in this window. Lines of a
/// window that is not listed are an error.
fn check_partial(file: &Path, stdout: &str) -> Result<(), String> {
    let expected: Value =
        serde_json::from_str(&read(file)?).map_err(|error| format!("{}: {error}", file.display()))?;
    let windows = expected["windows"].as_array().ok_or("expected-partial.json holds no `windows`")?;
    let lines: Vec<Value> = stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut problems = Vec::new();
    for line in &lines {
        if !windows.iter().any(|window| window["end_time"] == line["end_time"]) {
            problems.push(format!("a line of a window that is not expected: {line}"));
        }
    }
    for window in windows {
        let end = &window["end_time"];
        let written: Vec<&Value> = lines.iter().filter(|line| line["end_time"] == *end).collect();
        let records: Vec<&Value> = window["records"].as_array().into_iter().flatten().collect();
        let shown = || written.iter().map(|line| format!("\n    {line}")).collect::<String>();
        if window["exact"] != false && written.len() != records.len() {
            let (wanted, got) = (records.len(), written.len());
            problems.push(format!("window to {end}: {wanted} records wanted, {got} written{}", shown()));
        } else if !assign(&records, &written, &mut vec![false; written.len()]) {
            let wanted: String = records.iter().map(|record| format!("\n    {record}")).collect();
            problems.push(format!("window to {end}: wanted{wanted}\n  written{}", shown()));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n  ")) }
}

/// Is there a line of its own for each record?
fn assign(records: &[&Value], lines: &[&Value], taken: &mut Vec<bool>) -> bool {
    let Some((record, rest)) = records.split_first() else { return true };
    for (at, line) in lines.iter().enumerate() {
        if !taken[at] && matches(record, line) {
            taken[at] = true;
            if assign(rest, lines, taken) {
                return true;
            }
            taken[at] = false;
        }
    }
    false
}

fn matches(wanted: &Value, got: &Value) -> bool {
    match (wanted, got) {
        (Value::Object(wanted), Value::Object(got)) => {
            wanted.iter().all(|(key, wanted)| got.get(key).is_some_and(|got| matches(wanted, got)))
        }
        (Value::Array(wanted), Value::Array(got)) => {
            wanted.len() == got.len() && wanted.iter().all(|value| got.contains(value))
        }
        _ => wanted == got,
    }
}
