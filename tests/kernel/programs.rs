//! Packaged programs at the ends of connections: a DNS server that is asked, iperf3 and nc as who they are.
//!
//! In each case: `flowlogd record` with the collectors on, real processes in the pods, SIGTERM, and a look at what was
//! recorded. A guest that was built without such a program says so, and the case is skipped.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::node::Node;
use crate::sockets::{Program, Recorder, expect, process, wait_listening};
use crate::{Outcome, traffic};

const DNSMASQ: &str = "/sbin/dnsmasq";
const IPERF3: &str = "/sbin/iperf3";
const NC: &str = "/sbin/nc";

fn missing(programs: &[&str]) -> Option<Outcome> {
    let lacking = programs.iter().find(|program| !Path::new(program).exists())?;
    Some(Outcome::Skipped(format!("this guest has no {lacking}")))
}

/// Answers one question with SERVFAIL.
fn fail(socket: &UdpSocket) -> Result<()> {
    socket.set_read_timeout(Some(traffic::PATIENCE))?;
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).context("nobody asked")?;
    let answer = buffer.get_mut(..length).context("too long")?;
    if let [_, _, flags, code, ..] = answer {
        *flags |= 0x80;
        *code = 2;
    }
    socket.send_to(answer, from)?;
    Ok(())
}

/// A packaged server, asked by a packaged client through NAT and over IPv6: names, failures, latencies, processes.
pub fn domains() -> Result<Outcome> {
    if let Some(skipped) = missing(&[DNSMASQ]) {
        return Ok(skipped);
    }
    let mut node = Node::new()?;
    node.rules(
        "table ip case_nat {
            chain translate_to { type nat hook prerouting priority dstnat;
                ip daddr 10.96.0.10 udp dport 53 dnat to 10.77.2.2:53;
            }
        }",
    )?;
    let (client, server) = (node.client(), node.server());
    let recorder =
        Recorder::start("domains", &["dnsLogsFileEnabled=true", "flowLogsCollectProcessInfo=true"])?;
    let served = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file",
        "--user=root",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--listen-address=10.77.2.2",
        "--local=/example.test/",
        "--host-record=edge.example.test,198.51.100.7,2001:db8::7",
        "--cname=www.example.test,edge.example.test",
    ];
    let mut command = vec![DNSMASQ];
    command.extend(served);
    let dnsmasq = Program::start(server, &command)?;
    let ask = |kind: &str, name: &str, to: &str| -> Result<(u32, bool)> {
        let mut asking = Program::start(client, &["nslookup", kind, name, to])?;
        let success = asking.0.wait()?.success();
        Ok((asking.0.id(), success))
    };
    let began = Instant::now();
    while !ask("-type=a", "edge.example.test", "10.77.2.2")?.1 {
        ensure!(began.elapsed() < traffic::PATIENCE, "the DNS server does not answer");
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(ask("-type=a", "www.example.test", "10.96.0.10")?.1, "the service does not answer");
    ask("-type=aaaa", "edge.example.test", "10.77.2.2")?;
    let (last, _) = ask("-type=a", "missing.example.test", "10.96.0.10")?;
    let failing = traffic::udp_socket(server, true, 53)?;
    std::thread::scope(|scope| {
        let failed = scope.spawn(|| fail(&failing));
        ask("-type=a", "broken.example.test", &server.v6.to_string())?;
        failed.join().map_err(|_| anyhow::anyhow!("the failing server panicked"))?
    })?;
    let said = recorder.said()?;
    let lines = recorder.stop()?;

    let of = |name: &str, qtype: &str| -> Result<&Value> {
        let mut all = lines.iter().filter_map(|line| line.get("dns"));
        all.find(|dns| dns["question"] == name && dns["qtype"] == qtype)
            .with_context(|| format!("no lookup of {name} {qtype}; the agent said:\n{said}"))
    };
    let (v4, v6) = ("10.77.1.2", client.v6.to_string());
    for (name, qtype, rcode, by, from) in [
        ("www.example.test", "A", "NoError", v4, "10.77.2.2"),
        ("edge.example.test", "AAAA", "NoError", v4, "10.77.2.2"),
        ("missing.example.test", "A", "NXDomain", v4, "10.77.2.2"),
        ("broken.example.test", "A", "ServFail", &*v6, &*server.v6.to_string()),
    ] {
        let dns = of(name, qtype)?;
        let is_so = dns["rcode"] == rcode && dns["client"] == by && dns["server"] == from;
        ensure!(is_so, "expected {rcode}, {by} asking {from}: {dns}");
        ensure!(dns["latency_us"].as_u64() > Some(0), "no latency: {dns}");
    }
    let answers = of("www.example.test", "A")?["answers"].to_string();
    ensure!(answers.contains("198.51.100.7") && answers.contains("edge.example.test"), "{answers}");
    if said.contains("processes=\"refused\"") {
        return Ok(Outcome::Pass(
            "lookups are told; this kernel refuses the programs for processes".to_owned(),
        ));
    }
    let at = "10.96.0.10:53".parse()?;
    // It puts a zero in place of the `=`, in its own arguments.
    let asked = ["-type", "a", "missing.example.test", "10.96.0.10"];
    expect(process(&lines, "src", "udp", at)?, last, "nslookup", &asked)?;
    expect(process(&lines, "dst", "udp", "10.77.2.2:53".parse()?)?, dnsmasq.0.id(), "dnsmasq", &served)?;
    Ok(Outcome::Pass(
        "4 lookups with latency, NXDOMAIN and SERVFAIL among them; both processes named".to_owned(),
    ))
}

/// iperf3 over TCP and UDP, nc over IPv6.
pub fn programs() -> Result<Outcome> {
    if let Some(skipped) = missing(&[IPERF3, NC]) {
        return Ok(skipped);
    }
    let node = Node::new()?;
    let (client, server) = (node.client(), node.server());
    let recorder = Recorder::start("programs", &["flowLogsCollectProcessInfo=true"])?;
    if recorder.said()?.contains("processes=\"refused\"") {
        return Ok(Outcome::Skipped("this kernel refuses the programs, and the agent says so".to_owned()));
    }
    let bulk = Program::start(server, &[IPERF3, "-s", "-p", "5201"])?;
    let plain = Program::start(server, &[NC, "-6", "-l", "-k", "7000"])?;
    wait_listening(server, 5201)?;
    let run = |command: &[&str]| -> Result<u32> {
        let mut program = Program::start(client, command)?;
        ensure!(program.0.wait()?.success(), "{command:?} failed");
        Ok(program.0.id())
    };
    let six = server.v6.to_string();
    let began = Instant::now();
    // As soon as it listens.
    let copy = loop {
        match run(&[NC, "-N", &six, "7000"]) {
            Ok(pid) => break pid,
            Err(error) => ensure!(began.elapsed() < traffic::PATIENCE, "{error:#}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let tcp = ["-c", "10.77.2.2", "-p", "5201", "-n", "64K"];
    let udp = ["-u", "-c", "10.77.2.2", "-p", "5201", "-n", "16K", "-b", "1M"];
    let with = |arguments: &[&'static str]| -> Vec<&'static str> {
        [IPERF3].into_iter().chain(arguments.iter().copied()).collect()
    };
    let by_tcp = run(&with(&tcp))?;
    let tcp_lines = recorder.stop()?;
    let recorder = Recorder::start("programs", &["flowLogsCollectProcessInfo=true"])?;
    let by_udp = run(&with(&udp))?;
    let udp_lines = recorder.stop()?;

    let port: SocketAddr = "10.77.2.2:5201".parse()?;
    expect(process(&tcp_lines, "src", "tcp", port)?, by_tcp, "iperf3", &tcp)?;
    expect(process(&tcp_lines, "dst", "tcp", port)?, bulk.0.id(), "iperf3", &["-s", "-p", "5201"])?;
    let nc = SocketAddr::new(server.ip(true), 7000);
    expect(process(&tcp_lines, "src", "tcp", nc)?, copy, "nc", &["-N", &six, "7000"])?;
    expect(process(&tcp_lines, "dst", "tcp", nc)?, plain.0.id(), "nc", &["-6", "-l", "-k", "7000"])?;
    expect(process(&udp_lines, "src", "udp", port)?, by_udp, "iperf3", &udp)?;
    // The server has been there before this agent: adopted.
    expect(process(&udp_lines, "dst", "udp", port)?, bulk.0.id(), "iperf3", &["-s", "-p", "5201"])?;
    Ok(Outcome::Pass("iperf3 over TCP and UDP and nc over IPv6, named at both ends".to_owned()))
}
