//! DNS on a real node: a packaged server, real questions through NAT, the agent's DNS log and `dest_domains`.
//!
//! The test makes a node of network namespaces (client - node - server over veth; a service address that is DNATed to
//! dnsmasq), runs the agent's binary on the node, asks for names that are there, that are not, and of a server that
//! fails, and connects to an address that was told. Needs root, `ip`, `nft` and `dnsmasq`; where one is missing it says
//! so and passes. Always: a lookup is one, though each packet crosses two devices and is translated in between.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod node;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Instant;

use serde_json::Value;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

use node::{Node, OBSERVES, PATIENCE, Process, flowlogd, until};

const SERVICE: &str = "10.96.0.10";
const SERVER: &str = "10.1.2.2";
const FAILING: &str = "10.1.2.3";
const OUTSIDE: &str = "198.51.100.7";

/// Client (c), node (n), server (s).
fn make() -> Option<Node> {
    if !node::can("DNS on a node", &["ip", "nft", "dnsmasq"]) {
        return None;
    }
    let node = Node::new(1, "cs");
    node.at('s').ip(&format!("addr add {FAILING}/24 dev eth0\naddr add {OUTSIDE}/32 dev lo"));
    node.at('n').ip(&format!("route add {OUTSIDE}/32 via {SERVER}"));
    node.track(&format!("ip daddr {SERVICE} udp dport 53 dnat ip to {SERVER};"));
    Some(node)
}

/// Packet sockets of the node that are given packets.
fn packet_sockets(node: &Node) -> usize {
    // The thread's own view: /proc/net is that of the process's first thread.
    let table = node.enter('n', || fs::read_to_string("/proc/thread-self/net/packet").unwrap());
    table.lines().skip(1).filter(|line| line.split_whitespace().nth(5) == Some("1")).count()
}

fn stop(agent: Process) {
    let (status, _) = agent.stop();
    assert!(status.success(), "{status}");
}

fn question(name: &str, kind: TYPE) -> Question<'_> {
    Question::new(Name::new(name).unwrap(), QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false)
}

/// Asks, and gives the answer's code.
fn ask(socket: &UdpSocket, server: &str, id: u16, name: &str, kind: TYPE) -> RCODE {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(question(name, kind));
    socket.send_to(&packet.build_bytes_vec().unwrap(), (server, 53)).unwrap();
    let mut buffer = [0; 4096];
    let (length, _) = socket.recv_from(&mut buffer).unwrap();
    Packet::parse(&buffer[..length]).unwrap().rcode()
}

/// A server that has nothing but failures.
fn fail(socket: &UdpSocket) {
    let mut buffer = [0; 4096];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    let mut reply = Packet::parse(&buffer[..length]).unwrap().into_reply();
    *reply.rcode_mut() = RCODE::ServerFailure;
    socket.send_to(&reply.build_bytes_vec().unwrap(), from).unwrap();
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Until there are such lines.
fn wait(path: &Path, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    until(&format!("lines in {}", path.display()), || Some(lines(path)).filter(|lines| enough(lines)))
}

const CLUSTER: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: node-1}, status: {addresses: [{type: InternalIP, address: 10.1.2.1}]}}
- apiVersion: v1
  kind: Pod
  metadata: {name: client-1, generateName: client-, namespace: shop, labels: {app: client}}
  spec: {nodeName: node-1}
  status: {phase: Running, podIPs: [{ip: 10.1.1.2}]}
- apiVersion: v1
  kind: Service
  metadata: {name: kube-dns, namespace: kube-system}
  spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{name: dns, port: 53, protocol: UDP}]}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: kube-dns-1, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
  addressType: IPv4
  endpoints: [{addresses: [10.1.2.2]}]
  ports: [{name: dns, port: 53, protocol: UDP}]
"#;

/// The packaged server, as soon as it answers.
fn serve(node: &Node) -> Process {
    let dnsmasq = node.start(
        's',
        "dnsmasq",
        [
            "--keep-in-foreground",
            "--pid-file",
            "--log-facility=-",
            "--log-queries",
            "--conf-file=/dev/null",
            "--user=root",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            &format!("--listen-address={SERVER}"),
            "--local=/example.test/",
            "--local-ttl=300",
            &format!("--host-record=edge.example.test,{OUTSIDE},2001:db8::7"),
            "--cname=www.example.test,edge.example.test",
        ],
    );
    dnsmasq.told("started");
    dnsmasq
}

fn start(node: &Node, cluster: &str, settings: &[&str], more: &[&str]) -> Process {
    let arguments = ["run", "--node", "node-1", "--source", "netlink", "--cluster", cluster];
    node.at('n').start(flowlogd(arguments, settings).args(more))
}

#[test]
fn a_node_that_asks_a_real_server() {
    let Some(node) = make() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("cluster.yaml"), CLUSTER).unwrap();
    let dnsmasq = serve(&node);
    let failing = node.enter('s', || UdpSocket::bind((FAILING, 53)).unwrap());
    failing.set_read_timeout(Some(PATIENCE)).unwrap();
    let outside = node.enter('s', || TcpListener::bind((OUTSIDE, 443)).unwrap());
    let client = node.enter('c', || UdpSocket::bind("10.1.1.2:0").unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();

    let run = |more: &[&str]| {
        let settings = [
            &format!("flowLogsFileDirectory={}", path("flows")),
            &format!("dnsLogsFileDirectory={}", path("dns")),
            &format!("dnsCacheFile={}", path("run/cache")),
            "flowLogsFlushInterval=1s",
            "dnsLogsFlushInterval=1s",
            &format!("dnsTrustedServers=k8s-service:kube-dns,{FAILING}"),
        ];
        let agent = start(&node, &path("cluster.yaml"), &[&settings, more].concat(), &[]);
        agent.told(OBSERVES);
        agent
    };
    let connect = || {
        let to: SocketAddr = format!("{OUTSIDE}:443").parse().unwrap();
        let mut out = node.enter('c', || TcpStream::connect(to).unwrap());
        out.write_all(b"hello").unwrap();
        let (mut peer, _) = outside.accept().unwrap();
        let mut hello = [0; 5];
        peer.read_exact(&mut hello).unwrap();
    };

    // Off: no packet socket, no name, no file.
    let agent = run(&[]);
    assert_eq!(packet_sockets(&node), 0);
    assert_eq!(ask(&client, SERVICE, 1, "www.example.test", TYPE::A), RCODE::NoError);
    connect();
    let is_ours = |line: &Value| line["dest_port"] == 443 && line["reporter"] == "src";
    let flows = Path::new(&path("flows")).join("flows.log");
    wait(&flows, |lines| lines.iter().any(is_ours));
    stop(agent);
    assert!(lines(&flows).iter().all(|line| line["dest_domains"].is_null()));
    fs::remove_file(&flows).unwrap();
    let log = Path::new(&path("dns")).join("dns.log");
    assert!(!log.exists());

    // On: one socket, and everything is told.
    let agent = run(&["dnsLogsFileEnabled=true"]);
    assert_eq!(packet_sockets(&node), 1);
    for id in 2..5 {
        assert_eq!(ask(&client, SERVICE, id, "WWW.example.test", TYPE::A), RCODE::NoError);
    }
    assert_eq!(ask(&client, SERVER, 5, "edge.example.test", TYPE::AAAA), RCODE::NoError);
    assert_eq!(ask(&client, SERVICE, 6, "missing.example.test", TYPE::A), RCODE::NameError);
    thread::scope(|s| {
        s.spawn(|| fail(&failing));
        assert_eq!(ask(&client, FAILING, 7, "any.example.test", TYPE::A), RCODE::ServerFailure);
    });
    let count = |lines: &[Value]| lines.iter().map(|line| line["count"].as_u64().unwrap()).sum::<u64>();
    let told = wait(&log, |lines| count(lines) >= 6);
    connect();
    wait(&flows, |lines| lines.iter().any(is_ours));
    stop(agent);
    let flows_told = lines(&flows);
    let ours: Vec<&Value> = flows_told.iter().filter(|line| is_ours(line)).collect();
    assert!(!ours.is_empty());
    for line in ours {
        assert_eq!(line["dest_domains"], serde_json::json!(["www.example.test"]), "{line}");
    }

    let schema = jsonschema::validator_for(&flowlogd::wire::dns_log::schema()).unwrap();
    assert_eq!(count(&lines(&log)), 6, "copies count once: {told:#?}");
    for line in lines(&log) {
        assert!(schema.is_valid(&line), "{line}");
        assert_eq!(
            (&line["client_name_aggr"], &line["client_namespace"]),
            (&"client-*".into(), &"shop".into())
        );
        assert_eq!(line["latency_count"], line["count"], "{line}");
        assert!(line["latency_max"].as_u64() >= line["latency_mean"].as_u64() && line["latency_mean"] != 0);
    }
    let of =
        |name: &str| -> Vec<Value> { lines(&log).into_iter().filter(|line| line["qname"] == name).collect() };
    let www = of("www.example.test");
    assert_eq!(count(&www), 3);
    assert_eq!(www[0]["servers"][0]["ip"], SERVER, "the server that answered, not the service");
    let data: Vec<String> = www[0]["rrsets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|set| format!("{} {} {}", set["name"], set["type"], set["rdata"]).replace('"', ""))
        .collect();
    assert_eq!(
        data,
        [format!("edge.example.test A [{OUTSIDE}]"), "www.example.test CNAME [edge.example.test]".to_owned()]
    );
    assert_eq!(of("edge.example.test")[0]["rrsets"][0]["rdata"][0], "2001:db8::7");
    assert_eq!(of("missing.example.test")[0]["rcode"], "NXDomain");
    assert_eq!(of("any.example.test")[0]["rcode"], "ServFail");

    // Names outlive the agent.
    let cache = fs::read_to_string(path("run/cache")).unwrap();
    assert!(cache.contains("www.example.test"), "{cache}");
    fs::remove_file(&flows).unwrap();
    let agent = run(&["flowLogsCollectDestDomains=true"]);
    connect();
    let told = wait(&flows, |lines| lines.iter().any(is_ours));
    stop(agent);
    let line = told.iter().find(|line| is_ours(line)).unwrap();
    assert_eq!(line["dest_domains"], serde_json::json!(["www.example.test"]));
    drop(dnsmasq);
}

#[test]
fn capture_goes_on_and_off_as_the_configuration_file_of_a_running_agent_says() {
    let Some(node) = make() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("cluster.yaml"), CLUSTER).unwrap();
    let configure = |log: bool, domains: bool, kind: u8| {
        let text = format!(
            "{{flowLogsLiveEnabled: false, flowLogsFlushInterval: 300ms, dnsLogsFlushInterval: 300ms, flowLogsFileDirectory: {}, dnsLogsFileDirectory: {}, \
             dnsCacheFile: {}, dnsLogsFileEnabled: {log}, flowLogsCollectDestDomains: {domains}, \
             dnsLogsFileAggregationKind: {kind}, dnsLogsFileIncludeLabels: {}}}\n",
            path("flows"),
            path("dns"),
            path("run/cache"),
            kind == 1,
        );
        // In one piece: what is read half is another configuration.
        fs::write(path("aside"), text).unwrap();
        fs::rename(path("aside"), path("config.yaml")).unwrap();
    };
    let sockets = |wanted: usize| {
        until(&format!("{wanted} packet sockets"), || (packet_sockets(&node) == wanted).then_some(()));
    };
    let dnsmasq = serve(&node);
    let client = node.enter('c', || UdpSocket::bind("10.1.1.2:0").unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let ask = |id: u16, name: &str| {
        assert_eq!(ask(&client, SERVICE, id, name, TYPE::A), RCODE::NameError);
    };
    configure(false, false, 1);
    let agent = start(&node, &path("cluster.yaml"), &[], &["--config", &path("config.yaml")]);
    agent.told(OBSERVES);
    let log = Path::new(&path("dns")).join("dns.log");
    let asked = |lines: &[Value]| -> Vec<String> {
        let names =
            lines.iter().map(|line| format!("{} {}", line["qname"], line["client_name"]).replace('"', ""));
        names.collect()
    };

    sockets(0);
    ask(1, "off-1.example.test");
    configure(true, false, 1);
    sockets(1);
    ask(2, "on-1.example.test");
    let mut told = vec!["on-1.example.test -".to_owned()];
    wait(&log, |lines| asked(lines) == told);
    // Another form, without a new capture.
    configure(true, false, 0);
    let deadline = Instant::now() + PATIENCE;
    for id in 3.. {
        assert!(Instant::now() < deadline, "the form does not change");
        let name = format!("form-{id}.example.test");
        ask(id, &name);
        let lines = wait(&log, |lines| lines.iter().any(|line| line["qname"] == name));
        let line = lines.last().unwrap();
        told = asked(&lines);
        if line["client_name"] == "client-1" {
            assert_eq!((&line["client_ip"], &line["client_labels"]), (&"10.1.1.2".into(), &Value::Null));
            break;
        }
        assert_eq!((&line["client_ip"], &line["client_labels"]["app"]), (&Value::Null, &"client".into()));
    }
    sockets(1);
    // Names alone: captured, and no line.
    configure(false, true, 0);
    agent.told("the DNS log is switched off");
    // In no line: the comparison at the end holds that.
    ask(200, "names.example.test");
    assert_eq!(packet_sockets(&node), 1);
    configure(false, false, 0);
    sockets(0);
    ask(400, "off-2.example.test");
    configure(true, true, 0);
    sockets(1);
    ask(401, "on-2.example.test");
    told.push("on-2.example.test client-1".to_owned());
    wait(&log, |lines| asked(lines) == told);
    stop(agent);
    assert_eq!(asked(&lines(&log)), told);
    drop(dnsmasq);
}
