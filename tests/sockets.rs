//! The collectors of processes and TCP statistics against this kernel, with the programs that everybody runs.
//!
//! Each test makes a node (client - router - server over veth, a DNATed service), starts real processes in client and
//! server, and compares what the agent in the router tells with what is known of them: process ids, names, arguments,
//! and the tuples of the router's connections. Needs root, BTF, and those programs; where something is missing the tests say
//! so and pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod node;
#[path = "sockets/recording.rs"]
mod recording;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use flowlogd::config::Config;
use flowlogd::model::Observation;
use flowlogd::source::NodeSources;
use serde_json::Value;

use node::{OBSERVES, flowlogd};
use recording::{Node, Recording, args, at_end, of_kind};

const DNS_CLIENT: &str = "
import socket,sys
query=b'\\x12\\x34\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x01a\\x07example\\x00\\x00\\x01\\x00\\x01'
family=socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s=socket.socket(family,socket.SOCK_DGRAM); s.settimeout(2)
for _ in range(10):
    try:
        if sys.argv[3]=='connect':
            s.connect((sys.argv[1],int(sys.argv[2]))); s.send(query)
        else:
            s.sendto(query,(sys.argv[1],int(sys.argv[2])))
        if s.recv(512)[:2]==b'\\x12\\x34': sys.exit(0)
    except OSError: pass
sys.exit(1)
";

#[test]
fn both_ends_of_every_kind_are_named_with_what_is_known_of_them() {
    let Some(node) = Node::make() else { return };
    let (c4, [s4, s6], service_ip) =
        (&node.client[0], node.server.each_ref().map(String::as_str), node.service.as_str());
    let folder = tempfile::tempdir().unwrap();
    let web_args =
        ["-m", "http.server", "--bind", "::", "--directory", folder.path().to_str().unwrap(), "8080"];
    // Older than the agent, and younger.
    let web = node.start('s', "/usr/bin/python3", web_args);
    node.wait_listening('s', "127.0.0.1:8080");
    let recording = Recording::start(&node, &[], "");
    let dns_args = [
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--port=5353",
        "--address=/a.example/192.0.2.1",
        "--conf-file=/dev/null",
        "--pid-file",
        "--user=root",
    ];
    let dns = node.start('s', "dnsmasq", dns_args);
    let bulk = node.start('s', "iperf3", ["-s", "-p", "5201"]);
    let plain = node.start('s', "nc", ["-l", "-k", "7000"]);
    node.wait_listening('s', &format!("{s4}:5201"));
    node.wait_listening('s', &format!("{s4}:7000"));

    let curl = |url: &str| node.start('c', "curl", ["-s", "-g", "-o", "/dev/null", url]).finish();
    let urls =
        [format!("http://{service_ip}/"), format!("http://{s4}:8080/"), format!("http://[{s6}]:8080/")];
    let [service, direct, six] = urls.each_ref().map(|url| curl(url));
    let copy = node.start('c', "nc", ["-N", s4, "7000"]).finish();
    let iperf = node.start('c', "iperf3", ["-c", s4, "-p", "5201", "-n", "1M"]).finish();
    let script = folder.path().join("ask.py").display().to_string();
    fs::write(&script, DNS_CLIENT).unwrap();
    let ask = |to: &str, port: &str, how: &str| {
        node.start('c', "/usr/bin/python3", [&script, to, port, how]).finish()
    };
    let dns_service = ask(service_ip, "53", "connect");
    let dns_six = ask(s6, "5353", "send");
    let lines = recording.stop();

    for (end, proto, ip, port, pid, name, expected) in [
        ("src", "tcp", service_ip, 80, service, "curl", vec!["-s", "-g", "-o", "/dev/null", &urls[0]]),
        ("src", "tcp", s4, 8080, direct, "curl", vec!["-s", "-g", "-o", "/dev/null", &urls[1]]),
        ("src", "tcp", s6, 8080, six, "curl", vec!["-s", "-g", "-o", "/dev/null", &urls[2]]),
        ("dst", "tcp", s4, 8080, web.pid(), "python3", web_args.to_vec()),
        ("dst", "tcp", s6, 8080, web.pid(), "python3", web_args.to_vec()),
        ("src", "tcp", s4, 7000, copy, "nc", vec!["-N", s4, "7000"]),
        ("dst", "tcp", s4, 7000, plain.pid(), "nc", vec!["-l", "-k", "7000"]),
        ("src", "tcp", s4, 5201, iperf, "iperf3", vec!["-c", s4, "-p", "5201", "-n", "1M"]),
        ("dst", "tcp", s4, 5201, bulk.pid(), "iperf3", vec!["-s", "-p", "5201"]),
        ("dst", "udp", s4, 5353, dns.pid(), "dnsmasq", dns_args.to_vec()),
        ("dst", "udp", s6, 5353, dns.pid(), "dnsmasq", dns_args.to_vec()),
    ] {
        let record = at_end(&node, &lines, end, proto, ip, port);
        assert_eq!((&record["pid"], &record["name"]), (&pid.into(), &name.into()), "{record}");
        assert_eq!(args(record), expected);
    }
    assert_eq!(at_end(&node, &lines, "src", "udp", service_ip, 53)["pid"], dns_service);
    assert_eq!(at_end(&node, &lines, "src", "udp", s6, 5353)["pid"], dns_six);
    assert_eq!(args(at_end(&node, &lines, "src", "udp", s6, 5353)), [&script, s6, "5353", "send"]);

    // Every socket that was seen is one of the router's connections, as the pod sees it.
    let ends = |direction: &str, c: &Value| {
        let at = |key: &str| c[direction][key].to_string();
        (c["proto"].to_string(), at("src"), at("src_port"), at("dst"), at("dst_port"))
    };
    let conntrack: Vec<&Value> = lines.iter().filter_map(|line| line.get("conntrack")).collect();
    let tuple = |record: &Value| {
        let at = |key: &str| record[key].to_string();
        (at("proto"), at("src"), at("src_port"), at("dst"), at("dst_port"))
    };
    for (kind, direction) in [("src", "original"), ("dst", "reply")] {
        for record in of_kind(&node, &lines, "process")
            .iter()
            .filter(|record| record["end"] == kind && record["src"] != record["dst"])
        {
            assert!(conntrack.iter().any(|c| ends(direction, c) == tuple(record)), "{record}");
        }
    }
    // And every TCP connection has the statistics of both ends.
    let told: Vec<_> = of_kind(&node, &lines, "tcp").into_iter().map(tuple).collect();
    let of_client = |c: &&&Value| c["proto"] == "tcp" && c["original"]["src"] == c4.as_str();
    for connection in conntrack.iter().filter(of_client) {
        for direction in ["original", "reply"] {
            assert!(told.contains(&ends(direction, connection)), "{connection}");
        }
    }
    same_lines_without_them(&lines);
}

/// The lines of a recording.
fn replay(recording: &[&Value], more: &[&str]) -> Vec<Value> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_flowlogd"))
        .args(["replay", "-"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let text: String = recording.iter().map(|line| format!("{line}\n")).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What is told of sockets changes the columns of processes and TCP statistics, and nothing else.
fn same_lines_without_them(recording: &[Value]) {
    let replay = |lines: &[&Value]| replay(lines, &["--set", "flowLogsFileAggregationKindForAllowed=0"]);
    let all: Vec<&Value> = recording.iter().collect();
    let none: Vec<&Value> = recording
        .iter()
        .filter(|line| !["process", "tcp"].iter().any(|kind| line.get(kind).is_some()))
        .collect();
    assert!(none.len() < all.len());
    let bare = |lines: Vec<Value>| -> Vec<String> {
        let mut bare: Vec<String> = lines
            .into_iter()
            .map(|mut line| {
                line.as_object_mut().unwrap().retain(|key, _| {
                    !["process", "num_process", "tcp_"].iter().any(|part| key.starts_with(part))
                });
                line.to_string()
            })
            .collect();
        bare.sort();
        bare
    };
    let with = bare(replay(&all));
    assert!(!with.is_empty());
    assert_eq!(with, bare(replay(&none)));
}

#[test]
fn hostile_names_and_arguments_are_escaped_and_paths_are_whole() {
    let Some(node) = Node::make() else { return };
    let s4 = node.server[0].as_str();
    let server = node.enter('s', || TcpListener::bind((s4, 8080)).unwrap());
    let recording = Recording::start(&node, &[], "");
    let rename = "import ctypes,socket,sys
ctypes.CDLL(None).prctl(15,b'a\\x1b[2J\\xff\\n',0,0,0)
socket.create_connection((sys.argv[1],8080)).close()";
    let hostile = OsStr::from_bytes(b"x\xff\x07\xc3\xa9");
    let long = "y".repeat(4000);
    let parts = [OsStr::new("-c"), OsStr::new(rename), OsStr::new(s4), hostile, OsStr::new(&long)];
    let pid = node.start('c', "/usr/bin/python3", parts).finish();
    let lines = recording.stop();
    let record = at_end(&node, &lines, "src", "tcp", s4, 8080);
    assert_eq!((&record["pid"], &record["name"]), (&pid.into(), &"a\\x1b[2J\\xff\\x0a".into()));
    let told = args(record);
    assert_eq!(&told[2..4], [s4, "x\\xff\\x07é"]);
    assert!(told[4].starts_with("yyy") && told[4].ends_with("y...") && told[4].len() < 520);

    let recording = Recording::start(&node, &["flowLogsCollectProcessPath=true"], "");
    node.start('c', "curl", ["-s", "-m", "2", &format!("http://{s4}:8080/")]).ended();
    let lines = recording.stop();
    let curl = Command::new("sh").args(["-c", "readlink -f $(command -v curl)"]).output().unwrap();
    let path = String::from_utf8(curl.stdout).unwrap();
    assert_eq!(at_end(&node, &lines, "src", "tcp", s4, 8080)["name"], path.trim());
    drop(server);
}

/// `count` connections one after the other, or all at once.
fn connect(node: &Node, server: &TcpListener, count: usize, at_once: bool) {
    let to = server.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let accepted: Vec<_> = (0..count)
                .map(|_| server.accept().unwrap().0)
                .filter_map(|mut stream| {
                    let _ = stream.read(&mut [0; 1]);
                    at_once.then_some(stream)
                })
                .collect();
            drop(accepted);
        });
        node.enter('c', || {
            let open: Vec<_> = (0..count)
                .map(|_| TcpStream::connect(to).unwrap())
                .filter_map(|mut stream| {
                    stream.write_all(b"x").unwrap();
                    at_once.then_some(stream)
                })
                .collect();
            drop(open);
        });
    });
}

#[test]
fn churn_is_bounded_and_what_finds_no_room_is_counted() {
    let Some(node) = Node::make() else { return };
    let s4 = node.server[0].as_str();
    let server = node.enter('s', || TcpListener::bind((s4, 8080)).unwrap());
    let recording = Recording::start(&node, &[], "max_sockets=64");
    connect(&node, &server, 4000, false);
    connect(&node, &server, 200, true);
    let lines = recording.stop();
    // The end of a socket tells its statistics whether or not there was room for it.
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    for record in of_kind(&node, &lines, "tcp") {
        *ends.entry(record["src"].to_string()).or_default() += 1;
    }
    let lost = |stage: &str| -> u64 {
        let of_stage = lines.iter().filter_map(|line| line.get("lost")).filter(|lost| lost["stage"] == stage);
        of_stage.map(|lost| lost["events"].as_u64().unwrap()).sum()
    };
    assert_eq!(lost("tcp_sockets_lost"), 0);
    assert!(ends.len() == 2 && ends.values().all(|&n| n >= 4200), "{ends:?}");
    assert!(lost("process_sockets_full") >= 2 * 200 - 64, "{}", lost("process_sockets_full"));
}

#[test]
fn the_daemon_switches_them_as_its_configuration_file_says() {
    let Some(node) = Node::make() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let write = |on: bool| {
        let text = format!("flowLogsCollectProcessInfo: {on}\nflowLogsCollectTcpStats: {on}\n");
        // In one piece: what is read half is another configuration.
        let aside = folder.path().join("aside");
        fs::write(&aside, text).unwrap();
        fs::rename(aside, &file).unwrap();
    };
    write(false);
    let arguments = ["run", "--source", "netlink", "--output", "stdout", "--log-level", "info", "--config"];
    let mut command = flowlogd(arguments, [""; 0]);
    command.arg(&file).args(["--set", "flowLogsFlushInterval=300ms", "--set", "flowLogsLiveEnabled=false"]);
    let agent = node.at('n').start(&mut command);
    agent.told(OBSERVES);
    for times in [1, 2] {
        write(true);
        agent.told_times("switched on", 2 * times);
        write(false);
        agent.told_times("switched off", 2 * times);
    }
}

#[test]
fn collectors_come_and_go_while_the_agent_runs() {
    let Some(node) = Node::make() else { return };
    let s4 = node.server[0].as_str();
    let server = node.enter('s', || TcpListener::bind((s4, 8080)).unwrap());
    let all = |on: bool| Config {
        flow_logs_source: flowlogd::config::SourceKind::Netlink,
        flow_logs_collect_process_info: on,
        flow_logs_collect_tcp_stats: on,
        ..Config::default()
    };
    node.enter('n', || {
        let mut sources = NodeSources::open(&all(false)).unwrap();
        let mut round = |on: bool| {
            sources.set_collectors(&all(on));
            let state = if on { "on" } else { "off" };
            assert_eq!(sources.collectors_state(), [("processes", state), ("tcp", state)]);
            connect(&node, &server, 3, false);
            let mut told = (0, 0, 0);
            let mut step = |observed: flowlogd::source::Observed| {
                let ours =
                    |ip: IpAddr| node.client.iter().chain(&node.server).any(|own| ip.to_string() == *own);
                match observed.observation {
                    Observation::Process(record) if ours(record.tuple.addresses.src) => {
                        assert_eq!(record.pid, std::process::id());
                        told.0 += 1;
                    }
                    Observation::Tcp(record) if ours(record.tuple.addresses.src) => told.1 += 1,
                    Observation::Connection(_) => told.2 += 1,
                    _ => {}
                }
            };
            sources.poll(Duration::from_millis(100), &mut step);
            sources.sweep(&mut step);
            assert!(told.2 >= 3, "{told:?}");
            told
        };
        for on in [false, true, false, true] {
            let (processes, tcp, _) = round(on);
            if on {
                assert!(processes >= 6 && tcp >= 6, "{processes} {tcp}");
            } else {
                assert_eq!((processes, tcp), (0, 0));
            }
        }
    });
}

/// A cgroup of a container as the kubelet names it, below one of the test's own; removed when dropped.
struct Container {
    top: PathBuf,
    own: PathBuf,
}

impl Container {
    fn make(uid: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let unified = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4))?
        });
        let Some(root) = unified else {
            eprintln!("SKIPPED pods on the host network: no unified cgroup hierarchy is mounted");
            return None;
        };
        let top = Path::new(root).join(format!("flowlogd-test-{}", std::process::id()));
        let own = top.join(format!("kubepods/burstable/pod{uid}/{}", "c0ffee".repeat(8)));
        if let Err(error) = fs::create_dir_all(&own) {
            eprintln!("SKIPPED pods on the host network: no cgroup can be made: {error}");
            return None;
        }
        Some(Self { top, own })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut folder = self.own.as_path();
        // Empty as soon as its processes have been waited for.
        while fs::remove_dir(folder).is_ok() && folder != self.top {
            folder = folder.parent().unwrap();
        }
    }
}

#[test]
fn a_pod_on_the_host_network_is_named_by_the_cgroup_of_its_process() {
    let Some(node) = Node::make() else { return };
    let uid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let Some(container) = Container::make(uid) else { return };
    let s4 = node.server[0].as_str();
    let router = s4.replace(".2.2", ".2.1");
    let web = node.start('s', "nc", ["-l", "-k", "8080"]);
    node.wait_listening('s', &format!("{s4}:8080"));
    let recording = Recording::start(&node, &[], "");
    let procs = container.own.join("cgroup.procs").display().to_string();
    let inside = |command: &str| node.start('n', "sh", ["-c", &format!("echo $$ > {procs}; exec {command}")]);
    // It serves, and it asks: the second is gone at once.
    let exporter = inside("nc -l -k 9100");
    node.wait_listening('n', &format!("{router}:9100"));
    node.start('c', "nc", ["-N", &router, "9100"]).finish();
    inside(&format!("nc -N {s4} 8080")).finish();
    // And one that is in no pod.
    node.start('n', "nc", ["-N", s4, "8080"]).finish();
    let folder = tempfile::tempdir().unwrap();
    let cluster = folder.path().join("cluster.yaml");
    let objects = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": router}]}},
        {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "exporter-x1", "generateName": "exporter-", "namespace": "mon", "uid": uid},
            "spec": {"nodeName": "n", "hostNetwork": true}, "status": {"phase": "Running", "podIPs": [{"ip": router}]}},
    ]});
    fs::write(&cluster, objects.to_string()).unwrap();
    let lines = recording.stop();
    drop((exporter, web));
    let told = replay(
        &lines.iter().collect::<Vec<_>>(),
        &["--node", "n", "--cluster", cluster.to_str().unwrap(), "--set", "flowLogsEnableHostEndpoint=true"],
    );
    let names = |reporter: &str, end: &str, port: u16| -> Vec<String> {
        // Without those of the node to itself: the test's own attempts to connect, some of them before anybody listened.
        let lines = told.iter().filter(|line| {
            line["reporter"] == reporter
                && line["dest_port"] == port
                && line["source_type"] != line["dest_type"]
        });
        let mut names: Vec<String> = lines
            .map(|line| {
                let part = |key: &str| line[format!("{end}_{key}")].as_str().unwrap();
                format!("{} {} {}", part("type"), part("namespace"), part("name_aggr"))
            })
            .collect();
        names.sort();
        names.dedup();
        names
    };
    assert_eq!(names("dst", "dest", 9100), ["hep mon exporter-*"], "{told:#?}");
    assert_eq!(names("src", "source", 8080), ["hep - n", "hep mon exporter-*"], "{told:#?}");
}

/// Listens, and lets two children accept: the parent never does. They end when it ends, however that is (PR_SET_PDEATHSIG).
const PRE_FORK: &str = "
import ctypes,os,socket,sys
s=socket.create_server((sys.argv[1],8080))
for _ in range(2):
    if os.fork()==0:
        ctypes.CDLL(None).prctl(1,9)
        while True:
            c,_=s.accept(); c.sendall(str(os.getpid()).encode()); c.recv(1); c.close()
os.wait()
";

#[test]
fn a_connection_that_a_forked_child_accepts_is_named() {
    let Some(node) = Node::make() else { return };
    let s4 = node.server[0].as_str();
    let recording = Recording::start(&node, &[], "");
    let server = node.start('s', "/usr/bin/python3", ["-c", PRE_FORK, s4]);
    node.wait_listening('s', &format!("{s4}:8080"));
    // Which child accepts is the kernel's choice; it says so itself.
    let accepted: Vec<(u16, u64)> = (0..6)
        .map(|_| {
            let mut stream = node.enter('c', || TcpStream::connect((s4, 8080)).unwrap());
            let mut said = [0; 16];
            let length = stream.read(&mut said).unwrap();
            let pid = std::str::from_utf8(&said[..length]).unwrap().parse().unwrap();
            let port = stream.local_addr().unwrap().port();
            stream.write_all(b"x").unwrap();
            assert_eq!(stream.read(&mut said).unwrap(), 0);
            (port, pid)
        })
        .collect();
    let parent = u64::from(server.pid());
    drop(server);
    let lines = recording.stop();
    assert!(accepted.iter().all(|(_, child)| *child != parent));
    for (port, pid) in accepted {
        let all = of_kind(&node, &lines, "process");
        let last =
            all.into_iter().rfind(|record| record["end"] == "dst" && record["dst_port"] == port).unwrap();
        // The child that accepted, or (it closed) the same child: never the parent, which only listened.
        assert_eq!((&last["pid"], &last["name"]), (&pid.into(), &"python3".into()), "{last}");
        assert_eq!(args(last)[0], "-c");
    }
}
