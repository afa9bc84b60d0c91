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
fn config_shows_the_clusters_layers_and_says_when_they_are_not_known() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = dir.path().join("configuration.yaml");
    std::fs::write(
        &manifest,
        "apiVersion: crd.projectcalico.org/v1\nkind: FelixConfiguration\nmetadata: {name: default}\n\
         spec: {flowLogsFlushInterval: 20s, flowLogsFileMaxFiles: 3}\n---\n\
         apiVersion: flowlogd.dev/v1\nkind: FlowLogConfiguration\nmetadata: {name: node.n1}\n\
         spec: {flowLogsFlushInterval: 48h, flowLogsFileMaxFiles: 4}\n",
    )
    .unwrap();
    let ended = end(flowlogd().args(["config", "--node", "n1", "--cluster"]).arg(&manifest));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let row = |field: &str| ended.stdout.lines().find(|line| line.starts_with(field)).unwrap();
    assert!(row("flowLogsFlushInterval").contains("20s"), "a bad value leaves the lower layer's");
    assert!(row("flowLogsFlushInterval").contains("FelixConfiguration default"));
    assert!(
        row("flowLogsFileMaxFiles ").contains("FlowLogConfiguration node"),
        "{}",
        row("flowLogsFileMaxFiles ")
    );
    assert!(ended.stderr.contains("\"48h\" is not allowed"), "{}", ended.stderr);

    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(
        &kubeconfig,
        "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
         clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
         users: [{name: u, user: {}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n",
    )
    .unwrap();
    let ended = end(flowlogd().args(["config", "--kubeconfig"]).arg(&kubeconfig));
    assert_eq!(ended.code, 69, "{}", ended.stderr);
    assert!(
        ended.stdout.contains("flowLogsFlushInterval") && ended.stderr.contains("not known"),
        "{}",
        ended.stderr
    );
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

/// A recording of one connection, two looks at it.
const RECORDING: &str = concat!(
    r#"{"at":"2026-01-01T00:00:00Z","conntrack":{"event":"new","proto":"tcp","original":{"src":"10.1.1.1","src_port":40000,"dst":"10.1.2.1","dst_port":80},"reply":{"src":"10.1.2.1","src_port":80,"dst":"10.1.1.1","dst_port":40000},"packets":[2,1],"bytes":[120,60]}}"#,
    "\n",
    r#"{"at":"2026-01-01T00:00:01Z","lost":{"stage":"ring","events":1}}"#,
    "\n",
);

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: n}\n\
                   spec: {nodeName: node-1}\nstatus: {podIP: 10.1.1.1}\n";

/// `flowlogd replay` of this text with these arguments.
fn replay(recording: &str, arguments: &[&str]) -> Ended {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("recording.jsonl");
    std::fs::write(&file, recording).unwrap();
    end(flowlogd().arg("replay").arg(&file).args(arguments))
}

#[test]
fn a_malformed_recording_is_65_with_line_column_field_and_remedy() {
    let good = RECORDING.lines().next().unwrap();
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let kind = |content: &str| format!(r#"{{"at":"2026-01-01T00:00:00Z",{content}}}"#);
    let cases = [
        (good.get(..50).unwrap().to_owned(), vec!["one whole JSON object"]),
        ("[]".to_owned(), vec!["an object with `at` and one kind"]),
        (with(r#""at":"2026-01-01T00:00:00Z","#, ""), vec!["`at` is missing", "RFC 3339"]),
        (with("2026-01-01T00:00:00Z", "yesterday"), vec!["`at`", "RFC 3339"]),
        (kind(r#""flush":{},"lost":{"stage":"x","events":1}"#), vec!["one kind", "write two lines"]),
        (kind(r#""conntrak":{}"#), vec!["unknown kind `conntrak`", "conntrack, drop, verdict"]),
        (with(r#""event":"new""#, r#""event":"began""#), vec!["conntrack.event", "`new`"]),
        (with(r#""event":"new""#, r#""event":"new","colour":1"#), vec!["conntrack", "colour"]),
        (
            with(r#""proto":"tcp""#, r#""proto":"tpc""#),
            vec!["conntrack.proto", "icmp ipip tcp udp esp icmp6 sctp"],
        ),
        (with(r#""proto":"tcp""#, r#""proto":256"#), vec!["conntrack.proto", "0 to 255"]),
        (with(r#""src":"10.1.1.1""#, r#""src":"10.1.1.256""#), vec!["conntrack.original.src", "10.1.1.256"]),
        (
            with(r#""dst":"10.1.2.1""#, r#""dst":"fd00::1""#),
            vec!["conntrack.original.dst", "address families"],
        ),
        (with(r#""src_port":40000"#, r#""src_port":65536"#), vec!["conntrack.original.src_port"]),
        (with(r#""src_port":40000,"#, ""), vec!["conntrack.original.src_port", "has ports"]),
        (with("[2,1]", "[2]"), vec!["conntrack.packets", "[original, reply]"]),
        (with("[2,1]", "[-2,1]"), vec!["conntrack.packets"]),
        (with(r#""bytes""#, r#""tcp_state":"OPEN","bytes""#), vec!["conntrack.tcp_state", "ESTABLISHED"]),
        (with(r#""bytes""#, r#""confirmed":false,"bytes""#), vec!["conntrack.confirmed", "leave it out"]),
        (
            kind(
                r#""drop":{"proto":"udp","src":"10.0.0.1","src_port":1,"dst":"10.0.0.2","dst_port":2,"packets":1,"bytes":1,"reason":""}"#,
            ),
            vec!["drop.reason", "NETFILTER_DROP"],
        ),
        (
            kind(
                r#""verdict":{"proto":"udp","src":"10.0.0.1","src_port":1,"dst":"10.0.0.2","dst_port":2,"direction":"ingress","hits":[{"tier":"t","kind":"EndOfTier","name":"n","action":"deny","rule":0}]}"#,
            ),
            vec!["verdict.hits[0].kind", "last enforced policy"],
        ),
        (
            kind(
                r#""verdict":{"proto":"udp","src":"10.0.0.1","src_port":1,"dst":"10.0.0.2","dst_port":2,"direction":"in","hits":[]}"#,
            ),
            vec!["verdict.direction", "ingress"],
        ),
        (kind(r#""apply":{"kind":"Pod"}"#), vec!["apply.apiVersion"]),
        (kind(r#""delete":{"apiVersion":"v1","kind":"Pod"}"#), vec!["delete", "name"]),
        (kind(r#""flush":{"now":true}"#), vec!["flush", "now"]),
        (
            kind(
                r#""apply":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"status":{"podIP":"ten"}}"#,
            ),
            vec!["Pod p", "status.podIP", "ten"],
        ),
    ];
    for (line, parts) in cases {
        let ended = replay(&format!("{good}\n\n{line}\n"), &["--node", "node-1"]);
        assert_eq!(ended.code, 65, "{line}: {}", ended.stderr);
        assert!(ended.stderr.contains("line 3"), "{line}: {}", ended.stderr);
        for part in parts {
            assert!(ended.stderr.contains(part), "{line}: {part} is not in {}", ended.stderr);
        }
    }
    let ended = end(flowlogd().args(["replay", "-"]).write_stdin(&b"{\"at\":\"\xff\"}\n"[..]));
    assert_eq!(ended.code, 65);
    assert!(ended.stderr.contains("line 1") && ended.stderr.contains("UTF-8"), "{}", ended.stderr);
}

#[test]
fn a_malformed_manifest_is_65_with_file_document_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.yaml");
    for (document, parts) in [
        ("apiVersion: v1\nkind: Pod\nmetadata: {}\n", &["document 2", "metadata", "name"][..]),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIP: 10.0.0.300}\n",
            &["Pod p", "status.podIP", "10.0.0.300"],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 70000}]}\n",
            &["Service s", "spec.ports[0].port"],
        ),
        (
            "apiVersion: projectcalico.org/v3\nkind: NetworkSet\nmetadata: {name: s}\nspec: {nets: [10.0.0.0/33]}\n",
            &["NetworkSet s", "spec.nets[0]", "10.0.0.0/33"],
        ),
        (
            "apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {name: h}\nspec: {}\n",
            &["HostEndpoint h", "node"],
        ),
        ("kind: Pod\n", &["document 2", "apiVersion"]),
        ("a: [\n", &["cluster.yaml"]),
    ] {
        std::fs::write(&file, format!("{POD}---\n{document}")).unwrap();
        let ended = replay(RECORDING, &["--node", "node-1", "--cluster", file.to_str().unwrap()]);
        assert_eq!((ended.code, ended.stdout.as_str()), (65, ""), "{document}: {}", ended.stderr);
        for part in parts.iter().chain(&["cluster.yaml"]) {
            assert!(ended.stderr.contains(part), "{document}: {part} is not in {}", ended.stderr);
        }
    }
    let ended = replay(RECORDING, &["--node", "node-1", "--cluster", "/nonexistent/cluster.yaml"]);
    assert_eq!(ended.code, 66);
    assert!(ended.stderr.contains("/nonexistent/cluster.yaml") && ended.stderr.contains("--cluster"));
}

#[test]
fn manifests_come_in_many_forms() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("deep/er")).unwrap();
    std::fs::write(
        dir.path().join("deep/er/list.json"),
        r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b","namespace":"n"},"spec":{"nodeName":"node-2"},"status":{"podIP":"10.1.2.1"}},{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"}}]}"#,
    )
    .unwrap();
    std::fs::write(dir.path().join("deep/notes.txt"), "not: [a manifest").unwrap();
    std::fs::write(dir.path().join("a.yml"), format!("# a comment alone\n---\n{POD}---\n")).unwrap();
    let recording = dir.path().join("recording.jsonl");
    std::fs::write(&recording, RECORDING).unwrap();
    // The last path after --cluster is the recording.
    let ended = end(flowlogd().args(["replay", "--node", "node-1", "--cluster"]).args([
        &dir.path().join("deep"),
        &dir.path().join("a.yml"),
        &recording,
    ]));
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("Deployment"), "{}", ended.stderr);
    let line: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let names = ["source_name_aggr", "dest_name_aggr", "reporter"].map(|key| line[key].as_str().unwrap());
    assert_eq!(names, ["a", "b", "src"]);
}

#[test]
fn a_node_that_the_cluster_does_not_know_is_64_and_lists_those_it_knows() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.yaml");
    let other = POD.replace("name: a", "name: b").replace("node-1", "node-2");
    std::fs::write(&file, format!("{POD}---\n{other}")).unwrap();
    let ended = replay(RECORDING, &["--node", "nod-1", "--cluster", file.to_str().unwrap()]);
    assert_eq!((ended.code, ended.stdout.as_str()), (64, ""), "{}", ended.stderr);
    for part in ["\"nod-1\"", "node-1, node-2", "--node"] {
        assert!(ended.stderr.contains(part), "{part} is not in {}", ended.stderr);
    }
    // NODE_NAME stands in for --node, and the flag wins.
    let recording = dir.path().join("recording.jsonl");
    std::fs::write(&recording, RECORDING).unwrap();
    let given = |node: &str, flag: &[&str]| {
        end(flowlogd()
            .env("NODE_NAME", node)
            .arg("replay")
            .arg(&recording)
            .arg("--cluster")
            .arg(&file)
            .args(flag))
        .code
    };
    assert_eq!([given("node-1", &[]), given("x", &[]), given("x", &["--node", "node-2"])], [0, 64, 0]);
}

#[test]
fn what_replay_cannot_do_without() {
    let ended = end(flowlogd().args(["replay", "/nonexistent/recording.jsonl"]));
    assert_eq!(ended.code, 66);
    assert!(ended.stderr.contains("/nonexistent/recording.jsonl"), "{}", ended.stderr);
    assert_eq!(run(&["replay"]).code, 64);
    assert_eq!(run(&["replay", "-", "--flush", "sometimes"]).code, 64);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(end(flowlogd().arg("replay").arg(dir.path())).code, 66);
    for (setting, parts) in [
        ("flowLogsFileAggregationKindForAllowed=4", ["flowLogsFileAggregationKindForAllowed", "0 to 3"]),
        ("flowLogsPolicyScope=AllPolicies", ["flowLogsPolicyScope", "EndpointPolicies"]),
        ("flowLogsFileFormat=Yaml", ["flowLogsFileFormat", "Extended"]),
    ] {
        let ended = replay(RECORDING, &["--set", setting]);
        assert_eq!((ended.code, ended.stdout.as_str()), (64, ""), "{setting}");
        assert!(parts.iter().all(|part| ended.stderr.contains(part)), "{setting}: {}", ended.stderr);
    }
}

#[test]
fn replay_gives_the_same_bytes_from_a_file_and_from_stdin() {
    let mut recording = String::new();
    for number in 0..3_000 {
        let (a, b) = (number % 256, number / 256);
        recording.push_str(&format!(
            r#"{{"at":"2026-01-01T00:00:{:02}Z","conntrack":{{"event":"new","proto":"udp","original":{{"src":"10.1.{b}.{a}","src_port":{},"dst":"10.2.{a}.{b}","dst_port":53}},"reply":{{"src":"10.2.{a}.{b}","src_port":53,"dst":"10.1.{b}.{a}","dst_port":{}}},"packets":[1,1],"bytes":[60,90]}}}}"#,
            number / 100, 1024 + number, 1024 + number,
        ));
        recording.push('\n');
    }
    let level = [
        "--set",
        "flowLogsFileAggregationKindForAllowed=0",
        "--set",
        "flowLogsFlushInterval=5s",
        "--node",
        "n",
    ];
    let file = replay(&recording, &level);
    assert_eq!(file.code, 0, "{}", file.stderr);
    assert!(file.stdout.lines().count() > 3_000);
    let stdin = || end(flowlogd().args(["replay", "-"]).args(level).write_stdin(recording.clone()));
    assert_eq!(stdin().stdout, file.stdout);
    assert_eq!(stdin().stdout, file.stdout);

    // `| head`: the reader is gone long before the last line.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording.jsonl");
    std::fs::write(&path, &recording).unwrap();
    let output = std::process::Command::new(assert_cmd::cargo::cargo_bin("flowlogd"))
        .env_clear()
        .arg("replay")
        .arg(&path)
        .args(level)
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn replay_into_a_full_disk_is_74() {
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else {
        eprintln!("SKIPPED: there is no /dev/full to write to");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recording.jsonl");
    std::fs::write(&path, RECORDING).unwrap();
    let output = std::process::Command::new(assert_cmd::cargo::cargo_bin("flowlogd"))
        .env_clear()
        .arg("replay")
        .arg(&path)
        .stdout(full)
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert_eq!(String::from_utf8_lossy(&output.stderr).matches("No space left").count(), 1);
}

#[test]
fn a_recording_at_the_end_of_time_ends() {
    let line = "{\"at\":\"2262-04-11T23:47:16.854775807Z\",\"lost\":{\"stage\":\"s\",\"events\":1}}\n";
    let replay = |mode: &str| {
        let mut command = flowlogd();
        command
            .args(["replay", "-", "--flush", mode])
            .write_stdin(line)
            .timeout(std::time::Duration::from_secs(60));
        end(&mut command)
    };
    let ended = replay("interval");
    assert_eq!((ended.code, ended.stdout.as_str()), (65, ""), "{}", ended.stderr);
    assert!(ended.stderr.contains("recording line 1: at:"), "{}", ended.stderr);
    assert_eq!(replay("explicit").code, 0);
}
