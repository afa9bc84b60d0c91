//! Behavioural vectors of Calico's flow logs as scenarios: `tests/scenarios/aggregation/<vector>/`.
//!
//! In: `aggregation.json` (`FLOWLOGD_VECTORS`, else `../shared/vectors/aggregation.json` beside the project; without
//! it this says SKIPPED, and `scenarios.rs` still runs the tracked scenarios). Out: each vector as a manifest, a
//! recording, a configuration and the records that must be there; they must be what the tree holds
//! (`FLOWLOGD_BLESS=1` writes them there), and the agent must give those records.
//! The adapter: the reporter's end is a pod of the local node; a trace is `verdict` lines; the end of a tier is its
//! last enforced policy with rule -1; a deny is a `drop`; an allow is a `conntrack` line. Where the contract says
//! otherwise than Calico's collector, [`contract`] holds its outcome and why. Not here: running a case (`case`).

#![allow(clippy::unwrap_used, reason = "the functions that the tests share may end a test too")]

mod case;
mod policy_vectors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// 2026-01-01T00:00:00Z, the time 0 of every vector.
const BEGIN: i64 = 1_767_225_600;
/// Windows of vectors that have no times of their own: long enough for a denied flow to complete in its own.
const WINDOW_MS: i64 = 60_000;
/// How long a flow that is seen in verdicts alone lives after the last one.
const AGE_MS: i64 = 10_000;

#[test]
fn the_policy_vectors_hold() {
    policy_vectors::check();
}

#[test]
fn the_vectors_are_the_tracked_scenarios_and_hold() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let given = std::env::var_os("FLOWLOGD_VECTORS").map(PathBuf::from);
    let file = given.clone().unwrap_or_else(|| project.join("../shared/vectors/aggregation.json"));
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if given.is_none() => {
            eprintln!(
                "SKIPPED: the vectors are not beside the project ({}: {error}); FLOWLOGD_VECTORS=FILE names them",
                file.display()
            );
            return;
        }
        Err(error) => panic!("FLOWLOGD_VECTORS={}: {error}", file.display()),
    };
    let all: Value = serde_json::from_str(&text).unwrap();
    let tracked = project.join("tests/scenarios/aggregation");
    let bless = std::env::var("FLOWLOGD_BLESS").is_ok_and(|value| value == "1");
    let scratch = tempfile::tempdir().unwrap();
    let mut problems = Vec::new();
    for vector in all["vectors"].as_array().unwrap() {
        let name = vector["name"].as_str().unwrap();
        let files = scenario(vector);
        let mut dirs = vec![scratch.path().join(name)];
        if bless {
            dirs.push(tracked.join(name));
        }
        for dir in dirs {
            std::fs::create_dir_all(&dir).unwrap();
            for (file, content) in &files {
                std::fs::write(dir.join(file), content).unwrap();
            }
        }
        if let Err(problem) = case::check(&scratch.path().join(name), false) {
            problems.push(format!("{name}: {problem}"));
        }
        // Vectors that the environment names need not all be in the tree.
        let is_tracked = given.is_none() || tracked.join(name).exists();
        for (file, content) in files.iter().filter(|_| is_tracked) {
            let known = std::fs::read_to_string(tracked.join(name).join(file)).unwrap_or_default();
            if known != *content {
                problems
                    .push(format!("{name}/{file} is not what the vector gives: run with FLOWLOGD_BLESS=1"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What the contract says where Calico's collector does otherwise (then with the windows' records), or what the
/// vector leaves to the adapter: the reason, the outcome.
fn contract(vector: &str) -> Option<(&'static str, Option<Value>)> {
    Some(match vector {
        "unknown-dst-pvt-vs-pub" => (
            "A plain address has no reporter (contract 3: lines exist for local ends only): where the vector lets the unknown destination report, the source does.",
            None,
        ),
        "deny-to-profile-allow-empty-slot" => (
            "Contract 2: a verdict that moves completes the old record and starts the new. The new record's trace is the new verdict alone, so it has no deny and is at the allowed level; Calico's list of the old deny slot is a leftover of its own slots.",
            Some(json!([
                [{"action": "deny", "num_flows_started": 1}],
                [{"action": "deny", "num_flows_completed": 1},
                 {"action": "allow", "num_flows_started": 1, "source_ip": null,
                  "policies": {"enforced_policies": ["0|__PROFILE__|pro:kns.default|allow|0"]}}],
                [{"action": "allow", "num_flows_completed": 1}],
                []
            ])),
        ),
        "endpoint-change-mid-flow" => (
            "Contract 3: identity is that of the time when the flow began; an address that moves never renames a flow.",
            Some(json!([
                [{"dest_name_aggr": "web-*", "num_flows_started": 1}],
                [{"dest_name_aggr": "web-*", "num_flows": 1, "num_flows_started": 0, "num_flows_completed": 0}]
            ])),
        ),
        "deny-then-conntrack-stale-policy-drains" => (
            "Contract 4: a confirmed connection with a reply is an allow line with conntrack's counters beside the deny line of the drops, and policy_mismatch says that the verdict in force denies it. Calico adds the connection's counters to the deny. The hit of a policy that the endpoint does not have is no verdict in both.",
            Some(json!([
                [{"action": "deny", "num_flows_started": 1, "packets_in": 1}],
                [{"action": "deny", "num_flows": 1, "num_flows_completed": 0, "packets_in": 0},
                 {"action": "allow", "policy_mismatch": true, "num_flows_started": 1, "num_flows_completed": 1,
                  "packets_in": 12, "bytes_in": 1200, "packets_out": 9, "bytes_out": 900}],
                [{"action": "deny", "num_flows_completed": 1, "packets_in": 0}]
            ])),
        ),
        "deleted-endpoint-hits-ignored" => (
            "Contract 3 and 4: a deleted pod stays resolvable for 10 s, and every drop by a filter at a local end is in a line; Calico ignores verdicts of endpoints that are marked deleted.",
            Some(
                json!([[{"action": "deny", "reporter": "dst", "dest_name_aggr": "web-*", "packets_in": 1}]]),
            ),
        ),
        _ => return None,
    })
}

/// The scenario's files.
fn scenario(vector: &Value) -> BTreeMap<&'static str, String> {
    let adapter = Adapter::new(vector);
    let mut files = BTreeMap::from([
        ("args", "--flush explicit\n".to_owned()),
        ("cluster.yaml", adapter.cluster()),
        ("config.yaml", config(&vector["config"])),
    ]);
    let (recording, ends) = adapter.recording();
    files.insert("recording.jsonl", recording);
    let name = vector["name"].as_str().unwrap();
    let (note, outcome) = contract(name).unzip();
    let mut windows = Vec::new();
    for (at, flush) in list(&vector["flushes"]).iter().enumerate() {
        let records = outcome.as_ref().and_then(|o| o.as_ref()).map_or(&flush["records"], |o| &o[at]);
        let mut window = json!({"end_time": BEGIN + ends[at].div_euclid(1000), "records": records});
        if flush["exact"] == false {
            window["exact"] = false.into();
        }
        windows.push(window);
    }
    let mut expected = json!({
        "description": vector["description"], "layer": vector["layer"], "windows": windows,
    });
    if let Some(note) = note {
        expected["note"] = note.into();
    }
    files.insert("expected-partial.json", format!("{expected:#}\n"));
    files
}

fn config(vector: &Value) -> String {
    let style = if vector["policy_name_style"] == "dotted" { "Dotted" } else { "Kind" };
    let mut text = format!("flowLogsPolicyNameStyle: {style}\n");
    for (key, value) in vector.as_object().into_iter().flatten() {
        let field = match key.as_str() {
            "allowed_level" => "flowLogsFileAggregationKindForAllowed",
            "denied_level" => "flowLogsFileAggregationKindForDenied",
            "include_labels" => "flowLogsFileIncludeLabels",
            "include_policies" => "flowLogsFileIncludePolicies",
            "include_service" => "flowLogsFileIncludeService",
            "enable_network_sets" => "flowLogsEnableNetworkSets",
            "host_endpoints" => "flowLogsEnableHostEndpoint",
            "nat_port_limit" => "flowLogsFileNatOutgoingPortLimit",
            // Calico's own clocks: delays never bind.
            "policy_name_style" | "age_timeout_ms" | "report_delay_ms" => continue,
            other => panic!("the adapter does not know the vector's configuration {other}"),
        };
        text.push_str(&format!("{field}: {value}\n"));
    }
    text
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn has_ports(proto: &Value) -> bool {
    matches!(proto.as_u64(), Some(6 | 17 | 33 | 132 | 136))
}

/// Counters as the recording has them.
fn counters(original: [u64; 2], reply: [u64; 2]) -> Value {
    json!({"packets": [original[0], reply[0]], "bytes": [original[1], reply[1]]})
}

fn pair(value: &Value) -> [u64; 2] {
    [value[0].as_u64().unwrap(), value[1].as_u64().unwrap()]
}

/// What the adapter knows of a tuple's connection so far.
#[derive(Clone, Default)]
struct Known {
    begun: bool,
    ended: bool,
    original: [u64; 2],
    reply: [u64; 2],
    /// The last verdict on a flow that no `conntrack` event tells of, in milliseconds.
    last_hit: Option<i64>,
    flow: Value,
}

struct Adapter<'a> {
    vector: &'a Value,
    /// Ids of endpoints that are removed before anything happens: they are not in the manifest.
    absent: Vec<&'a str>,
    lines: Vec<(i64, Value)>,
    known: BTreeMap<String, Known>,
}

impl<'a> Adapter<'a> {
    fn new(vector: &'a Value) -> Self {
        let before = |flow: &&Value| text(&flow["op"]) != "hits" && text(&flow["op"]) != "conntrack";
        let absent = list(&vector["flows"])
            .iter()
            .take_while(before)
            .filter(|flow| flow["op"] == "remove_endpoint")
            .map(|flow| text(&flow["id"]))
            .collect();
        Self { vector, absent, lines: Vec::new(), known: BTreeMap::new() }
    }

    fn is_aggregator(&self) -> bool {
        self.vector["layer"] == "aggregator"
    }

    fn endpoint_of(&self, ip: &Value) -> Option<&'a Value> {
        list(&self.vector["endpoints"]).iter().rfind(|endpoint| list(&endpoint["ips"]).contains(ip))
    }

    /// The side that reports: the vector's, if a pod is there.
    fn reporter(&self, flow: &Value) -> &'static str {
        let at_dst = flow["reporter"] == "dst" && self.endpoint_of(&flow["dst"]).is_some();
        if at_dst { "dst" } else { "src" }
    }

    fn is_local(&self, endpoint: &Value) -> bool {
        if !self.is_aggregator() {
            return endpoint["local"] == true;
        }
        list(&self.vector["flows"])
            .iter()
            .any(|flow| list(&endpoint["ips"]).contains(&flow[self.reporter(flow)]))
    }

    fn pod(&self, endpoint: &Value) -> Value {
        assert_eq!(endpoint["type"], "wep", "the adapter knows pods alone");
        let mut metadata = json!({
            "namespace": endpoint["ns"], "name": endpoint["name"], "labels": endpoint["labels"],
        });
        if !text(&endpoint["generate_name"]).is_empty() {
            metadata["generateName"] = endpoint["generate_name"].clone();
        }
        let ips: Vec<Value> = list(&endpoint["ips"]).iter().map(|ip| json!({"ip": ip})).collect();
        let node = if self.is_local(endpoint) { "node-1" } else { "node-2" };
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"nodeName": node}, "status": {"phase": "Running", "podIPs": ips},
        })
    }

    fn cluster(&self) -> String {
        let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        let mut objects = vec![node("node-1"), node("node-2")];
        let endpoints = list(&self.vector["endpoints"]).iter();
        objects.extend(endpoints.filter(|e| !self.absent.contains(&text(&e["id"]))).map(|e| self.pod(e)));
        for set in list(&self.vector["networksets"]) {
            let mut metadata = json!({"name": set["name"], "labels": set["labels"]});
            let kind = if set["ns"].is_null() { "GlobalNetworkSet" } else { "NetworkSet" };
            if !set["ns"].is_null() {
                metadata["namespace"] = set["ns"].clone();
            }
            objects.push(json!({
                "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata,
                "spec": {"nets": set["nets"]},
            }));
        }
        for service in list(&self.vector["services"]) {
            let ports: Vec<Value> = list(&service["ports"])
                .iter()
                .map(|port| {
                    let proto = match port["proto"].as_u64() {
                        Some(17) => "UDP",
                        Some(132) => "SCTP",
                        _ => "TCP",
                    };
                    let mut out = json!({"port": port["port"], "protocol": proto});
                    for (from, to) in [("name", "name"), ("node_port", "nodePort")] {
                        if !port[from].is_null() {
                            out[to] = port[from].clone();
                        }
                    }
                    out
                })
                .collect();
            objects.push(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"namespace": service["ns"], "name": service["name"]},
                "spec": {"clusterIP": service["cluster_ips"][0], "externalIPs": service["external_ips"], "ports": ports},
            }));
        }
        objects.iter().map(|object| format!("---\n{object}\n")).collect()
    }

    /// The recording, and when each window ends, in milliseconds.
    fn recording(mut self) -> (String, Vec<i64>) {
        let windows = list(&self.vector["flushes"]).len();
        let mut ends = vec![0; windows];
        let mut now = 0;
        for (number, flow) in (0..).zip(list(&self.vector["flows"])) {
            let window = flow["interval"].as_i64().unwrap();
            now = if self.is_aggregator() {
                window * WINDOW_MS + number
            } else {
                flow["t"].as_i64().unwrap_or(now)
            };
            self.age(now);
            self.flow(flow, now);
            let window = usize::try_from(window).unwrap();
            ends[window] = if self.is_aggregator() { (window as i64 + 1) * WINDOW_MS } else { now };
        }
        for window in 1..windows {
            if ends[window] == 0 {
                ends[window] = ends[window - 1] + WINDOW_MS.min(AGE_MS + 1_000);
            }
        }
        self.lines.extend(ends.iter().map(|end| (*end, json!({"flush": {}}))));
        self.lines.sort_by_key(|(at, line)| (*at, line.get("flush").is_some()));
        let mut recording = String::new();
        for (at, mut line) in self.lines {
            let (seconds, ms) = (at / 1000, at % 1000);
            line["at"] = format!("2026-01-01T00:{:02}:{:02}.{ms:03}Z", seconds / 60, seconds % 60).into();
            recording.push_str(&format!("{line}\n"));
        }
        (recording, ends)
    }

    /// Flows of verdicts alone end when nothing was heard of them for long enough.
    fn age(&mut self, now: i64) {
        for known in self.known.values_mut() {
            let Some(at) = known.last_hit.map(|hit| hit + AGE_MS).filter(|at| *at <= now) else { continue };
            known.last_hit = None;
            known.ended = true;
            let line = conntrack("end", &known.flow, known.original, known.reply);
            self.lines.push((at, line));
        }
    }

    fn flow(&mut self, flow: &Value, now: i64) {
        let key = ["src", "dst", "proto", "sport", "dport"].map(|key| flow[key].to_string()).join(" ");
        match text(&flow["op"]) {
            op @ ("report" | "expire") => {
                let side = self.reporter(flow);
                let direction = if side == "dst" { "ingress" } else { "egress" };
                let trace = list(&flow["trace"]);
                self.verdict(flow, direction, trace, None, now);
                if !flow["pending"].is_null() {
                    self.verdict(flow, direction, list(&flow["pending"]), Some("pending"), now);
                }
                let (toward, from) = (pair(&flow["in"]), pair(&flow["out"]));
                let (original, reply) =
                    if flow["reporter"] == "dst" { (toward, from) } else { (from, toward) };
                if is_denied(trace) {
                    self.dropped(flow, original, now);
                } else {
                    let event = if op == "expire" { "end" } else { "update" };
                    self.connection(&key, flow, event, original, reply, now);
                }
            }
            "hits" => {
                let direction = text(&flow["direction"]);
                let end = self.endpoint_of(&flow[if direction == "ingress" { "dst" } else { "src" }]);
                let hits: Vec<Value> =
                    list(&flow["hits"]).iter().filter_map(|hit| resolve(hit, end, direction)).collect();
                if hits.is_empty() {
                    return;
                }
                self.verdict(flow, direction, &hits, None, now);
                let last = list(&flow["hits"]).last().unwrap();
                let count = [last["pkts"].as_u64().unwrap_or(1), last["bytes"].as_u64().unwrap_or(60)];
                if is_denied(&hits) {
                    self.dropped(flow, count, now);
                } else if !self.is_tracked(flow) {
                    self.connection(&key, flow, "update", count, [0; 2], now);
                    self.known.entry(key).or_default().last_hit = Some(now);
                }
            }
            "conntrack" => {
                let known = self.known.entry(key).or_default();
                let event = match (known.begun, flow["expired"] == true) {
                    (false, false) => "new",
                    (_, true) => "end",
                    (true, false) => "update",
                };
                known.begun = true;
                let line = conntrack(event, flow, pair(&flow["orig"]), pair(&flow["reply"]));
                self.lines.push((now, line));
            }
            op @ ("delete_endpoint" | "remove_endpoint" | "restore_endpoint") => {
                let endpoint =
                    list(&self.vector["endpoints"]).iter().find(|e| e["id"] == flow["id"]).unwrap();
                if op == "restore_endpoint" {
                    self.lines.push((now, json!({"apply": self.pod(endpoint)})));
                } else if !self.absent.contains(&text(&flow["id"])) {
                    let (namespace, name) = (&endpoint["ns"], &endpoint["name"]);
                    let key =
                        json!({"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name});
                    self.lines.push((now, json!({"delete": key})));
                }
            }
            // Calico's housekeeping: only its time counts.
            "tick" => {}
            other => panic!("the adapter does not know the event {other}"),
        }
    }

    /// Does the vector tell of the connection itself?
    fn is_tracked(&self, flow: &Value) -> bool {
        list(&self.vector["flows"]).iter().any(|other| {
            other["op"] == "conntrack"
                && ["src", "dst", "proto", "sport", "dport"].iter().all(|key| other[*key] == flow[*key])
        })
    }

    fn verdict(&mut self, flow: &Value, direction: &str, hits: &[Value], set: Option<&str>, now: i64) {
        let hits: Vec<Value> = hits
            .iter()
            .map(|hit| {
                let mut out = json!({
                    "tier": hit["tier"], "kind": hit["kind"], "name": hit["name"],
                    "action": hit["action"], "rule": hit["rule"],
                });
                if !hit["ns"].is_null() {
                    out["namespace"] = hit["ns"].clone();
                }
                out
            })
            .collect();
        let mut verdict = tuple(flow);
        verdict["direction"] = direction.into();
        verdict["hits"] = hits.into();
        if let Some(set) = set {
            verdict["set"] = set.into();
        }
        self.lines.push((now, json!({"verdict": verdict})));
    }

    fn dropped(&mut self, flow: &Value, [packets, bytes]: [u64; 2], now: i64) {
        if packets == 0 {
            return;
        }
        let mut drop = tuple(flow);
        drop["packets"] = packets.into();
        drop["bytes"] = bytes.into();
        drop["reason"] = "NETFILTER_DROP".into();
        self.lines.push((now, json!({"drop": drop})));
    }

    /// Increments become the absolute counters of the connection.
    fn connection(
        &mut self,
        key: &str,
        flow: &Value,
        event: &str,
        original: [u64; 2],
        reply: [u64; 2],
        now: i64,
    ) {
        let known = self.known.entry(key.to_owned()).or_default();
        let event = if event == "update" && !known.begun { "new" } else { event };
        known.begun = true;
        known.flow = flow.clone();
        for at in 0..2 {
            known.original[at] += original[at];
            known.reply[at] += reply[at];
        }
        let line = conntrack(event, flow, known.original, known.reply);
        self.lines.push((now, line));
    }
}

fn is_denied(trace: &[Value]) -> bool {
    trace
        .iter()
        .rfind(|hit| !text(&hit["kind"]).starts_with("Staged"))
        .is_some_and(|hit| hit["action"] == "deny")
}

/// A dataplane's hit as a policy's: the end of a tier is its last enforced policy; a policy that the endpoint does
/// not have says nothing.
fn resolve(hit: &Value, endpoint: Option<&Value>, direction: &str) -> Option<Value> {
    if hit["kind"] == "Profile" {
        return Some(hit.clone());
    }
    let tiers = list(&endpoint?["tiers"]);
    let policies = list(&tiers.iter().find(|tier| tier["name"] == hit["tier"])?[direction]);
    if hit["kind"] != "EndOfTier" {
        let has = |policy: &&Value| policy["name"] == hit["name"] && policy["kind"] == hit["kind"];
        return policies.iter().find(has).map(|_| hit.clone());
    }
    let last = policies.iter().rfind(|policy| !text(&policy["kind"]).starts_with("Staged"))?;
    let mut out = last.clone();
    out["tier"] = hit["tier"].clone();
    out["action"] = hit["action"].clone();
    out["rule"] = (-1).into();
    Some(out)
}

fn tuple(flow: &Value) -> Value {
    let mut out = json!({"proto": flow["proto"], "src": flow["src"], "dst": flow["dst"]});
    if has_ports(&flow["proto"]) {
        out["src_port"] = flow["sport"].clone();
        out["dst_port"] = flow["dport"].clone();
    }
    out
}

fn conntrack(event: &str, flow: &Value, original: [u64; 2], reply: [u64; 2]) -> Value {
    let mut line = counters(original, reply);
    let (mut there, mut back) =
        (json!({"src": flow["src"], "dst": flow["dst"]}), json!({"src": flow["dst"], "dst": flow["src"]}));
    if has_ports(&flow["proto"]) {
        there["src_port"] = flow["sport"].clone();
        there["dst_port"] = flow["dport"].clone();
        back["src_port"] = flow["dport"].clone();
        back["dst_port"] = flow["sport"].clone();
    }
    if !flow["pre_dnat"].is_null() {
        there["dst"] = flow["pre_dnat"][0].clone();
        there["dst_port"] = flow["pre_dnat"][1].clone();
    }
    if !flow["nat_port"].is_null() {
        // Masqueraded behind an address of the node.
        back["dst"] = "192.0.2.1".into();
        back["dst_port"] = flow["nat_port"].clone();
    }
    line["event"] = event.into();
    line["proto"] = flow["proto"].clone();
    line["original"] = there;
    line["reply"] = back;
    json!({"conntrack": line})
}
