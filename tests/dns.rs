//! DNS on a real node: a packaged server, real questions through NAT, the agent's DNS log and `dest_domains`.
//!
//! The test makes a node of network namespaces (client - node - server over veth; a service address that is DNATed to
//! dnsmasq), runs the agent's binary on the node, asks for names that are there, that are not, and of a server that
//! fails, and connects to an address that was told. Needs root, `ip`, `nft` and `dnsmasq`; where one is missing it says
//! so and passes. Always: a lookup is one, though each packet crosses two devices and is translated in between.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

const SERVICE: &str = "10.96.0.10";
const SERVER: &str = "10.1.2.2";
const FAILING: &str = "10.1.2.3";
const OUTSIDE: &str = "198.51.100.7";
static NODES: AtomicU32 = AtomicU32::new(0);
const PATIENCE: Duration = Duration::from_secs(60);

fn sh(command: &str) {
    let out = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(out.status.success(), "{command}\n{}", String::from_utf8_lossy(&out.stderr));
}

fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root; run the tests as root".to_owned());
    }
    let there = |tool: &str| {
        Command::new("sh").args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {tool}")]).output()
    };
    [("ip", "iproute2"), ("nft", "nftables"), ("dnsmasq", "dnsmasq-base")]
        .into_iter()
        .find(|(tool, _)| !there(tool).is_ok_and(|out| out.status.success()))
        .map(|(tool, package)| format!("no {tool}; install the package {package}"))
}

struct Node(String);

impl Node {
    fn make() -> Option<Self> {
        if let Some(why) = missing() {
            eprintln!("SKIPPED DNS on a node: {why}");
            return None;
        }
        let n = format!("fd{}x{}", std::process::id(), NODES.fetch_add(1, Ordering::Relaxed));
        let node = Self(n.clone());
        sh(&format!(
            "for x in c n s; do ip netns add {n}$x; ip -n {n}$x link set lo up; done
             ip -n {n}n link add vc type veth peer name v0 netns {n}c
             ip -n {n}n link add vs type veth peer name v0 netns {n}s
             ip -n {n}n addr add 10.1.1.1/24 dev vc; ip -n {n}n addr add 10.1.2.1/24 dev vs
             ip -n {n}c addr add 10.1.1.2/24 dev v0
             ip -n {n}s addr add {SERVER}/24 dev v0; ip -n {n}s addr add {FAILING}/24 dev v0
             ip -n {n}s addr add {OUTSIDE}/32 dev lo
             ip -n {n}n link set vc up; ip -n {n}n link set vs up
             ip -n {n}c link set v0 up; ip -n {n}s link set v0 up
             ip -n {n}c route add default via 10.1.1.1; ip -n {n}s route add default via 10.1.2.1
             ip -n {n}n route add {OUTSIDE}/32 via {SERVER}"
        ));
        node.enter('n', || fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        sh(&format!(
            "ip netns exec {n}n nft -f - <<'END'
table ip t {{
  chain f {{ type filter hook forward priority 0; policy accept; ct state invalid drop; }}
  chain d {{ type nat hook prerouting priority -100; ip daddr {SERVICE} udp dport 53 dnat to {SERVER}; }}
}}
END"
        ));
        Some(node)
    }

    /// Runs `f` in a thread inside the client's (c), the node's (n) or the server's (s) namespace.
    fn enter<T: Send>(&self, place: char, f: impl FnOnce() -> T + Send) -> T {
        let ns = File::open(format!("/run/netns/{}{place}", self.0)).unwrap();
        thread::scope(|s| {
            s.spawn(move || {
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(ns.as_fd(), kind).unwrap();
                f()
            })
            .join()
            .unwrap()
        })
    }

    fn start(&self, place: char, program: &str, arguments: &[&str]) -> Running {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{place}", self.0), program]).args(arguments);
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let (to, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        // Read to its end: a pipe that is full would stop the program.
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        Running { child, log }
    }

    /// Packet sockets of the node that are given packets.
    fn packet_sockets(&self) -> usize {
        // The thread's own view: /proc/net is that of the process's first thread.
        let table = self.enter('n', || fs::read_to_string("/proc/thread-self/net/packet").unwrap());
        table.lines().skip(1).filter(|line| line.split_whitespace().nth(5) == Some("1")).count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for place in ["c", "n", "s"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{place}", self.0)]).output();
        }
    }
}

struct Running {
    child: Child,
    log: Receiver<String>,
}

impl Running {
    /// Reads its log up to a line that has this text.
    fn wait_for(&self, text: &str) {
        let mut seen = Vec::new();
        while !seen.last().is_some_and(|line: &String| line.contains(text)) {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) => seen.push(line),
                Err(why) => panic!("{why} before {text:?}:\n{}", seen.join("\n")),
            }
        }
    }

    fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lines = lines(path);
        if enough(&lines) {
            return lines;
        }
        assert!(Instant::now() < deadline, "{}: {lines:#?}", path.display());
        thread::sleep(Duration::from_millis(50));
    }
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
fn serve(node: &Node) -> Running {
    let dnsmasq = node.start(
        's',
        "dnsmasq",
        &[
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
    dnsmasq.wait_for("started");
    dnsmasq
}

#[test]
fn a_node_that_asks_a_real_server() {
    let Some(node) = Node::make() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("cluster.yaml"), CLUSTER).unwrap();
    let dnsmasq = serve(&node);
    let failing = node.enter('s', || UdpSocket::bind((FAILING, 53)).unwrap());
    failing.set_read_timeout(Some(PATIENCE)).unwrap();
    let outside = node.enter('s', || TcpListener::bind((OUTSIDE, 443)).unwrap());
    let client = node.enter('c', || UdpSocket::bind("10.1.1.2:0").unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();

    let run = |more: &[String]| {
        let mut arguments: Vec<String> = [
            "run",
            "--node",
            "node-1",
            "--source",
            "netlink",
            "--cluster",
            &path("cluster.yaml"),
            "--set",
            &format!("flowLogsFileDirectory={}", path("flows")),
            "--set",
            &format!("dnsLogsFileDirectory={}", path("dns")),
            "--set",
            &format!("dnsCacheFile={}", path("run/cache")),
            "--set",
            "flowLogsFlushInterval=1s",
            "--set",
            "dnsLogsFlushInterval=1s",
            "--set",
            &format!("dnsTrustedServers=k8s-service:kube-dns,{FAILING}"),
        ]
        .map(str::to_owned)
        .into();
        arguments.extend(more.iter().cloned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let agent = node.start('n', env!("CARGO_BIN_EXE_flowlogd"), &arguments);
        agent.wait_for("flowlogd observes this node");
        agent
    };
    let set = |values: &[&str]| -> Vec<String> {
        values.iter().flat_map(|value| ["--set".to_owned(), (*value).to_owned()]).collect()
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
    assert_eq!(node.packet_sockets(), 0);
    assert_eq!(ask(&client, SERVICE, 1, "www.example.test", TYPE::A), RCODE::NoError);
    connect();
    let is_ours = |line: &Value| line["dest_port"] == 443 && line["reporter"] == "src";
    let flows = Path::new(&path("flows")).join("flows.log");
    wait(&flows, |lines| lines.iter().any(is_ours));
    agent.stop();
    assert!(lines(&flows).iter().all(|line| line["dest_domains"].is_null()));
    fs::remove_file(&flows).unwrap();
    let log = Path::new(&path("dns")).join("dns.log");
    assert!(!log.exists());

    // On: one socket, and everything is told.
    let agent = run(&set(&["dnsLogsFileEnabled=true"]));
    assert_eq!(node.packet_sockets(), 1);
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
    agent.stop();
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
    let agent = run(&set(&["flowLogsCollectDestDomains=true"]));
    connect();
    let told = wait(&flows, |lines| lines.iter().any(is_ours));
    agent.stop();
    let line = told.iter().find(|line| is_ours(line)).unwrap();
    assert_eq!(line["dest_domains"], serde_json::json!(["www.example.test"]));
    drop(dnsmasq);
}

#[test]
fn capture_goes_on_and_off_as_the_configuration_file_of_a_running_agent_says() {
    let Some(node) = Node::make() else { return };
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
        let deadline = Instant::now() + PATIENCE;
        while node.packet_sockets() != wanted {
            assert!(Instant::now() < deadline, "{} packet sockets, not {wanted}", node.packet_sockets());
            thread::sleep(Duration::from_millis(20));
        }
    };
    let dnsmasq = serve(&node);
    let client = node.enter('c', || UdpSocket::bind("10.1.1.2:0").unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let ask = |id: u16, name: &str| {
        assert_eq!(ask(&client, SERVICE, id, name, TYPE::A), RCODE::NameError);
    };
    configure(false, false, 1);
    let arguments = [
        "run",
        "--node",
        "node-1",
        "--source",
        "netlink",
        "--cluster",
        &path("cluster.yaml"),
        "--config",
        &path("config.yaml"),
    ];
    let agent = node.start('n', env!("CARGO_BIN_EXE_flowlogd"), &arguments);
    agent.wait_for("flowlogd observes this node");
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
    agent.wait_for("the DNS log is switched off");
    // In no line: the comparison at the end holds that.
    ask(200, "names.example.test");
    assert_eq!(node.packet_sockets(), 1);
    configure(false, false, 0);
    sockets(0);
    ask(400, "off-2.example.test");
    configure(true, true, 0);
    sockets(1);
    ask(401, "on-2.example.test");
    told.push("on-2.example.test client-1".to_owned());
    wait(&log, |lines| asked(lines) == told);
    agent.stop();
    assert_eq!(asked(&lines(&log)), told);
    drop(dnsmasq);
}
