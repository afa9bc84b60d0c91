//! Vectors of policy, proven against Calico's own code, through `flowlogd replay`.
//!
//! In: `policy.json` (`FLOWLOGD_POLICY_VECTORS`, else `../shared/vectors/policy.json` beside the project). Each case is
//! objects, one flow, and what each end must report. The adapter: the objects are the cluster; a flow that an end
//! denies is one `drop` line, any other a `conntrack` new and end; `--node node-1 --flush explicit`; cases of host
//! endpoints switch their lines on. Out: per reporter the action, then the enforced, pending and all policies, in both
//! styles of names; no line for an end after the one that denies; no mismatch.
//! A case is broken if the list of what must be is wrong, so each is also replayed with its flow's verdict turned
//! round: then the lines must say `policy_mismatch`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

const STYLES: [(&str, &str); 2] = [("Dotted", ""), ("Kind", "_kind")];
const LISTS: [&str; 3] = ["enforced_policies", "pending_policies", "all_policies"];

pub fn check() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let given = std::env::var_os("FLOWLOGD_POLICY_VECTORS").map(PathBuf::from);
    let file = given.clone().unwrap_or_else(|| project.join("../shared/vectors/policy.json"));
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if given.is_none() => {
            eprintln!(
                "SKIPPED: the policy vectors are not beside the project ({}: {error}); FLOWLOGD_POLICY_VECTORS=FILE names them",
                file.display()
            );
            return;
        }
        Err(error) => panic!("FLOWLOGD_POLICY_VECTORS={}: {error}", file.display()),
    };
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(!cases.is_empty());
    let mut problems = String::new();
    for case in &cases {
        for (style, suffix) in STYLES {
            for problem in problems_of(case, style, suffix) {
                let _ =
                    writeln!(problems, "{} ({style}): {problem}", case["name"].as_str().unwrap_or_default());
            }
        }
    }
    assert!(problems.is_empty(), "{problems}");
}

fn problems_of(case: &Value, style: &str, suffix: &str) -> Vec<String> {
    let denies = |end: &str| case["expect"][end]["action"] == "deny";
    let denied = denies("src") || denies("dst");
    let lines = match replay(case, style, denied) {
        Ok(lines) => lines,
        Err(problem) => return vec![problem],
    };
    let mut problems = Vec::new();
    let mut passed = true;
    for end in ["src", "dst"] {
        let expected = &case["expect"][end];
        let written: Vec<&Value> = lines.iter().filter(|line| line["reporter"] == end).collect();
        let wanted = usize::from(passed && !expected.is_null());
        if written.len() != wanted {
            problems.push(format!("{end}: {wanted} lines wanted, {} written: {lines:?}", written.len()));
            continue;
        }
        let Some(line) = written.first() else { continue };
        let mut compare = |what: &str, wanted: &Value, got: &Value| {
            if wanted != got {
                problems.push(format!("{end}: {what}: wanted {wanted}, got {got}"));
            }
        };
        compare("action", &expected["action"], &line["action"]);
        for list in LISTS {
            compare(list, &expected[format!("{list}{suffix}")], &line["policies"][list]);
        }
        compare("policy_mismatch", &false.into(), &line["policy_mismatch"]);
        passed = expected["action"] == "allow";
    }
    // The same flow with the other outcome: the kernel does not do what the policies say.
    match replay(case, style, !denied) {
        Ok(lines) if lines.iter().any(|line| line["policy_mismatch"] == true) => {}
        Ok(lines) => problems.push(format!("turned round, nothing says policy_mismatch: {lines:?}")),
        Err(problem) => problems.push(problem),
    }
    problems
}

/// The lines of the case's flow, dropped or not.
fn replay(case: &Value, style: &str, dropped: bool) -> Result<Vec<Value>, String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let cluster: String =
        case["objects"].as_array().into_iter().flatten().map(|object| format!("---\n{object}\n")).collect();
    let recording: String =
        recording(&case["flow"], dropped).iter().map(|line| format!("{line}\n")).collect();
    for (file, content) in [("cluster.yaml", cluster), ("recording.jsonl", recording)] {
        std::fs::write(dir.path().join(file), content).map_err(|error| error.to_string())?;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowlogd"));
    command.env_clear().current_dir(dir.path()).args([
        "replay",
        "recording.jsonl",
        "--cluster",
        "cluster.yaml",
    ]);
    command.args(["--node", "node-1", "--flush", "explicit", "--log-level", "warn"]);
    command.args(["--set", &format!("flowLogsPolicyNameStyle={style}")]);
    if case["tags"].as_array().is_some_and(|tags| tags.contains(&"hep".into())) {
        command.args(["--set", "flowLogsEnableHostEndpoint=true"]);
    }
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    stdout.lines().map(|line| serde_json::from_str(line).map_err(|error| error.to_string())).collect()
}

fn recording(flow: &Value, dropped: bool) -> Vec<Value> {
    let proto = &flow["proto"];
    let has_ports = ["tcp", "udp", "sctp"].iter().any(|with| proto == with) || proto.as_u64() == Some(136);
    let port = |which: &str| if has_ports { flow[which].clone() } else { 0.into() };
    let [source, dest] = [(&flow["src_ip"], port("src_port")), (&flow["dst_ip"], port("dst_port"))];
    let way = |(src, src_port): &(&Value, Value), (dst, dst_port): &(&Value, Value)| json!({"src": src, "src_port": src_port, "dst": dst, "dst_port": dst_port});
    let original = way(&source, &dest);
    let mut lines = Vec::new();
    let icmp = json!({"type": flow["icmp_type"], "code": flow["icmp_code"], "id": 1});
    if dropped {
        let mut drop = json!({"proto": proto, "packets": 1, "bytes": 60, "reason": "NETFILTER_DROP"});
        for (key, value) in original.as_object().into_iter().flatten() {
            drop[key] = value.clone();
        }
        if !flow["icmp_type"].is_null() {
            drop["icmp"] = icmp;
        }
        lines.push(json!({"at": "2026-01-01T00:00:00Z", "drop": drop}));
    } else {
        for (at, event) in [("2026-01-01T00:00:00Z", "new"), ("2026-01-01T00:00:01Z", "end")] {
            let mut conntrack = json!({
                "event": event, "proto": proto, "original": original, "reply": way(&dest, &source),
                "packets": [3, 2], "bytes": [300, 200],
            });
            if !flow["icmp_type"].is_null() {
                conntrack["icmp"] = icmp.clone();
            }
            lines.push(json!({"at": at, "conntrack": conntrack}));
        }
    }
    lines.push(json!({"at": "2026-01-01T00:00:02Z", "flush": {}}));
    lines
}
