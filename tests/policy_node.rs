//! Policy on a live node of network namespaces: the kernel enforces with nftables what the objects say, or does not.
//!
//! In: a client and a server pod behind a node (veth, forwarding, connection tracking), the real sources in the node's
//! namespace, the pipeline with a world that changes while flows live. Out: lines on which allowed and denied traffic
//! has the right policy and rule on both reporters; `policy_mismatch` of a policy that nothing enforces; a staged deny
//! that is pending only; a pending list that moves with an edit while the enforced one stays.
//! Needs root, `ip` and `nft`; without them it says so and passes. Namespaces are removed at the end; nothing outside
//! them is touched. Deliberately not here: what the daemon does with lines (`kernel.rs`, `cli.rs`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod node;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flowlogd::aggregate::{Level, Settings};
use flowlogd::config::Config;
use flowlogd::model::{Action, FlowLog, FlowLogs, Reporter, Timestamp, Trace};
use flowlogd::pipeline::{Input, Limits, Pipeline};
use flowlogd::snapshot::World;
use flowlogd::source::NodeSources;
use flowlogd::watch::{Decoded, DecodedRef, decode, decode_ref};
use serde_json::{Value, json};

use node::PATIENCE;

const CLIENT: &str = "10.1.1.2";
const SERVER: &str = "10.1.2.2";
/// Client (c), node (n), server (s).
struct Node(node::Node);

impl Node {
    fn make() -> Option<Self> {
        if !node::can("policy on a live node", &["ip", "nft"]) {
            return None;
        }
        let node = node::Node::new(1, "cs");
        // What the network plugin makes of the NetworkPolicy `web`: port 80 from the client, nothing else to the server.
        node.at('n').nft(&format!(
            "table inet t {{
  chain f {{
    type filter hook forward priority 0; policy accept;
    ct state established,related accept
    ip daddr {SERVER} tcp dport {{ 80, 81 }} accept
    ip daddr {SERVER} drop
  }}
}}"
        ));
        Some(Self(node))
    }

    fn listen(&self, port: u16) -> TcpListener {
        self.0.enter('s', move || TcpListener::bind((SERVER, port)).unwrap())
    }

    /// A connection that has moved data both ways, and its two sockets.
    fn connect(&self, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let address = listener.local_addr().unwrap();
        let client = self.0.enter('c', move || TcpStream::connect(address).unwrap());
        let (server, _) = listener.accept().unwrap();
        let mut pair = (client, server);
        say(&mut pair);
        pair
    }

    /// A connection that is never answered.
    fn try_connect(&self, port: u16) {
        let address: SocketAddr = format!("{SERVER}:{port}").parse().unwrap();
        self.0.enter('c', move || {
            let outcome = TcpStream::connect_timeout(&address, Duration::from_millis(300));
            assert_eq!(outcome.err().map(|error| error.kind()), Some(ErrorKind::TimedOut));
        });
    }
}

fn say((client, server): &mut (TcpStream, TcpStream)) {
    let mut buffer = [0; 5];
    client.write_all(b"hello").unwrap();
    server.read_exact(&mut buffer).unwrap();
    server.write_all(b"there").unwrap();
    client.read_exact(&mut buffer).unwrap();
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(i64::try_from(since.as_nanos()).unwrap())
}

/// The agent's own parts, in the node's namespace.
struct Agent {
    sources: NodeSources,
    pipeline: Pipeline,
    world: World,
}

impl Agent {
    fn start(node: &Node, objects: &[Value]) -> Self {
        let mut world = World::new("node-1".into());
        for object in objects {
            apply(&mut world, object, Timestamp::MIN);
        }
        let sources = node.0.enter('n', || NodeSources::open(&Config::default())).unwrap();
        let settings =
            Settings { level_for_allowed: Level::None, level_for_denied: Level::None, ..Settings::default() };
        let pipeline = Pipeline::new(settings, Limits::default(), now());
        let mut agent = Self { sources, pipeline, world };
        agent.adopt();
        agent
    }

    fn adopt(&mut self) {
        let snapshot = self.world.snapshot();
        let Self { sources, pipeline, .. } = self;
        sources.adopt(&mut |observed| {
            pipeline.step(Input::Observation(&observed.observation), observed.at, &snapshot);
        });
    }

    fn change(&mut self, object: &Value) {
        apply(&mut self.world, object, now());
    }

    /// Sweeps and closes the window.
    fn flush(&mut self) -> FlowLogs {
        let snapshot = self.world.snapshot();
        let Self { sources, pipeline, .. } = self;
        let mut step = |observed: flowlogd::source::Observed| {
            pipeline.step(Input::Observation(&observed.observation), observed.at, &snapshot);
        };
        sources.poll(Duration::from_millis(50), &mut step);
        sources.sweep(&mut step);
        pipeline.step(Input::Flush, now(), &snapshot).unwrap()
    }

    /// Flushes until a window has what is asked for, on both reporters or one.
    fn until(
        &mut self,
        what: &str,
        wanted: impl Fn(&FlowLog) -> bool,
        reporters: &[Reporter],
    ) -> Vec<FlowLog> {
        let begin = Instant::now();
        let mut seen: Vec<FlowLog> = Vec::new();
        loop {
            seen.extend(self.flush().records);
            let found: Vec<FlowLog> = reporters
                .iter()
                .filter_map(|reporter| {
                    seen.iter().rev().find(|log| log.reporter == *reporter && wanted(log)).cloned()
                })
                .collect();
            if found.len() == reporters.len() {
                return found;
            }
            assert!(begin.elapsed() < PATIENCE, "not seen: {what}; seen: {seen:#?}");
        }
    }
}

fn apply(world: &mut World, object: &Value, at: Timestamp) {
    match decode(object.clone()).unwrap() {
        Decoded::Object(object) => world.apply(object, at),
        other => panic!("not an object of the world: {other:?}"),
    }
}

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"nodeName": "node-1"}, "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
    })
}

/// Ports that the client may use, one rule each.
fn web(ports: &[u16]) -> Value {
    let rules: Vec<Value> = ports
        .iter()
        .map(|port| {
            json!({"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": [{"port": port}]})
        })
        .collect();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": rules},
    })
}

fn shown(trace: &Trace) -> Vec<String> {
    let hits = trace.0.iter();
    hits.map(|hit| format!("{}|{}|{}|{}", hit.tier, hit.name, hit.action.name(), hit.rule)).collect()
}

fn enforced(log: &FlowLog) -> Vec<String> {
    shown(&log.policies.as_ref().unwrap().enforced)
}

fn pending(log: &FlowLog) -> Vec<String> {
    shown(log.policies.as_ref().unwrap().pending.as_ref().unwrap())
}

const PROFILE: &str = "__PROFILE__|kns.shop|allow|0";

#[test]
fn lines_say_which_policy_and_whether_the_kernel_agrees() {
    let Some(node) = Node::make() else { return };
    let node_object = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.1.1.1"}]},
    });
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    let objects = [node_object, namespace, pod("client", CLIENT), pod("server", SERVER), web(&[80, 81])];
    let mut agent = Agent::start(&node, &objects);
    let both = [Reporter::Src, Reporter::Dst];
    let to = |port: u16| move |log: &FlowLog| log.dest.port == Some(port);

    // Allowed: the rule that allows it, on both reporters.
    let listener = node.listen(81);
    let mut open = node.connect(&listener);
    let lines = agent.until("the allowed connection", to(81), &both);
    assert_eq!(lines.iter().map(|log| log.action).collect::<Vec<_>>(), [Action::Allow; 2]);
    assert_eq!(enforced(&lines[0]), [PROFILE]);
    assert_eq!(enforced(&lines[1]), ["default|web|allow|1"]);
    assert!(lines.iter().all(|log| log.policy_mismatch == Some(false)));

    // Denied by the kernel and by the policy: the source lets it go, the destination denies.
    node.try_connect(82);
    if agent.sources.drops_state() == "on" {
        let lines = agent.until("the denied connection", to(82), &both);
        assert_eq!(lines.iter().map(|log| log.action).collect::<Vec<_>>(), [Action::Allow, Action::Deny]);
        assert_eq!(enforced(&lines[0]), [PROFILE]);
        assert_eq!(enforced(&lines[1]), ["default|web|deny|-1"]);
        assert_eq!(lines[1].drop_reasons, ["NETFILTER_DROP".into()]);
        assert!(lines.iter().all(|log| log.policy_mismatch == Some(false)));
    } else {
        eprintln!(
            "SKIPPED: denied traffic was not seen on a live node: this kernel does not let drops be observed"
        );
    }

    // A staged deny is pending only.
    agent.change(&json!({
        "apiVersion": "projectcalico.org/v3", "kind": "StagedNetworkPolicy",
        "metadata": {"name": "stop", "namespace": "shop"},
        "spec": {"order": 1, "selector": "app == 'server'", "types": ["Ingress"], "ingress": [{"action": "Deny"}]},
    }));
    let changed = Instant::now();
    let staged = |log: &FlowLog| to(81)(log) && pending(log) == ["default|stop|deny|0"];
    let lines = agent.until("the staged deny in the pending policies", staged, &[Reporter::Dst]);
    eprintln!(
        "pending moved {} ms after the change, with a flush after each sweep",
        changed.elapsed().as_millis()
    );
    assert_eq!(lines[0].action, Action::Allow);
    assert_eq!(enforced(&lines[0]), ["default|web|allow|1"]);
    let staged = decode_ref(json!({
        "apiVersion": "projectcalico.org/v3", "kind": "StagedNetworkPolicy", "namespace": "shop", "name": "stop",
    }));
    match staged.unwrap() {
        DecodedRef::Ref(reference) => agent.world.delete(&reference, now()),
        other => panic!("not an object of the world: {other:?}"),
    }

    // An edit while the flow lives moves what is pending, and leaves what is enforced.
    agent.change(&web(&[80]));
    let edited = |log: &FlowLog| to(81)(log) && pending(log) == ["default|web|deny|-1"];
    say(&mut open);
    let lines = agent.until("the edit in the pending policies", edited, &[Reporter::Dst]);
    assert_eq!(enforced(&lines[0]), ["default|web|allow|1"]);
    assert_eq!(lines[0].policy_mismatch, Some(false));
    assert_eq!(lines[0].action, Action::Allow);

    // The kernel still lets new connections through that the edited policy denies: it is not enforced.
    let _unenforced = node.connect(&listener);
    let denied = |log: &FlowLog| to(81)(log) && enforced(log) == ["default|web|deny|-1"];
    let lines = agent.until("the policy that is not enforced", denied, &[Reporter::Dst]);
    assert_eq!((lines[0].action, lines[0].policy_mismatch), (Action::Allow, Some(true)));

    // And denies what the policies allow.
    agent.change(&web(&[80, 81, 82]));
    node.try_connect(82);
    if agent.sources.drops_state() == "on" {
        let unexplained = |log: &FlowLog| to(82)(log) && log.policy_mismatch == Some(true);
        let lines = agent.until("the drop that nothing explains", unexplained, &[Reporter::Dst]);
        assert_eq!(lines[0].action, Action::Deny);
        assert_eq!(enforced(&lines[0]), ["default|web|allow|2"]);
    }
}
