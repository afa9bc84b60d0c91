//! Processes and TCP statistics on this kernel: real programs, and what `ss` says of the same sockets.
//!
//! In each case: `flowlogd record` with the collectors on, traffic between the pods, SIGTERM, and a look at the recorded
//! observations. Names and ids are compared with the processes that were started; round trips, windows and
//! retransmissions, under delay and loss made by netem, with `ss -ti` of both ends while the sockets are idle.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::node::{Node, Pod, run};
use crate::{Outcome, kinds, traffic};

/// Loading reads the kernel's type information several times, on an emulated processor.
const START: Duration = Duration::from_secs(120);

pub struct Recorder {
    child: Child,
    output: PathBuf,
    log: PathBuf,
}

impl Recorder {
    /// Returns when it records.
    pub fn start(case: &str, fields: &[&str]) -> Result<Self> {
        let folder = kinds::folder(case);
        fs::create_dir_all(&folder)?;
        let (output, log) = (folder.join("recording.jsonl"), folder.join("agent.record"));
        let mut command = Command::new("/payload/flowlogd");
        command.args(["record", "--log-level", "info", "--output"]).arg(&output);
        command.args(fields.iter().flat_map(|field| ["--set", field]));
        command.env_remove("FLOWLOGD_GUEST").stdin(Stdio::null()).stderr(File::create(&log)?);
        let recorder = Self { child: command.spawn().context("cannot start the agent")?, output, log };
        let began = Instant::now();
        while !recorder.said()?.contains("records this node") {
            ensure!(began.elapsed() < START, "the agent does not record; it said:\n{}", recorder.said()?);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(recorder)
    }

    pub fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    pub fn stop(mut self) -> Result<Vec<Value>> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the agent ended with {status}; it said:\n{}", self.said()?);
        let text = fs::read_to_string(&self.output)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program in a pod; killed when dropped.
pub struct Program(pub Child);

impl Program {
    pub fn start(pod: &Pod, command: &[&str]) -> Result<Self> {
        let [program, arguments @ ..] = command else { bail!("no command") };
        pod.inside(|| {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Ok(Self(command.spawn().with_context(|| format!("cannot start {program}"))?))
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The last process told of this end of what goes to (src) or comes from (dst) an address and port.
pub fn process<'a>(lines: &'a [Value], end: &str, proto: &str, at: SocketAddr) -> Result<&'a Value> {
    let (address, port) = if end == "src" { ("dst", "dst_port") } else { ("src", "src_port") };
    let ip = at.ip().to_string();
    let all = lines.iter().filter_map(|line| line.get("process"));
    let mut found = all.filter(|record| {
        record["end"] == end && record["proto"] == proto && record[address] == ip && record[port] == at.port()
    });
    found.next_back().with_context(|| format!("no process at the {end} end of {proto} {at}"))
}

pub fn expect(record: &Value, pid: u32, name: &str, args: &[&str]) -> Result<()> {
    let told: Vec<&str> = record["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let is_so = record["pid"] == pid && record["name"] == name && told == args;
    ensure!(is_so, "expected {pid} {name} {args:?}: {record}");
    Ok(())
}

/// Both ends of TCP (plain, to a service, over IPv6) and UDP, by programs that are gone at once and one that stays.
pub fn processes() -> Result<Outcome> {
    let mut node = Node::new()?;
    node.rules(
        "table ip case_nat {
            chain translate_to { type nat hook prerouting priority dstnat;
                ip daddr 10.96.0.10 tcp dport 80 dnat to 10.77.2.2:8080;
            }
        }",
    )?;
    fs::create_dir_all("/tmp/www")?;
    fs::write("/tmp/www/index.html", "x")?;
    let (client, server) = (node.client(), node.server());
    let older = Program::start(server, &["httpd", "-f", "-p", "8081", "-h", "/tmp/www"])?;
    wait_listening(server, 8081)?;
    let recorder = Recorder::start("processes", &["flowLogsCollectProcessInfo=true"])?;
    if recorder.said()?.contains("processes=\"refused\"") {
        return Ok(Outcome::Skipped("this kernel refuses the programs, and the agent says so".to_owned()));
    }
    let web = Program::start(server, &["httpd", "-f", "-p", "8080", "-h", "/tmp/www"])?;
    wait_listening(server, 8080)?;
    let mut fetched = Vec::new();
    for url in [
        "http://10.96.0.10/",
        "http://10.77.2.2:8080/",
        "http://[fd77:0:0:2::2]:8080/",
        "http://10.77.2.2:8081/",
    ] {
        let mut wget = Program::start(client, &["wget", "-q", "-O", "/dev/null", url])?;
        ensure!(wget.0.wait()?.success(), "wget {url} failed");
        fetched.push((wget.0.id(), url));
    }
    let echo = traffic::udp_socket(server, true, 5353)?;
    traffic::udp(client, SocketAddr::new(server.ip(true), 5353), &echo, 2, 100)?;
    drop(echo);
    let said = recorder.said()?;
    let lines = recorder.stop()?;

    let at = ["10.96.0.10:80", "10.77.2.2:8080", "[fd77:0:0:2::2]:8080", "10.77.2.2:8081"];
    for ((pid, url), at) in fetched.iter().zip(at) {
        expect(process(&lines, "src", "tcp", at.parse()?)?, *pid, "wget", &["-q", "-O", "/dev/null", url])?;
    }
    // Where it can be told who accepted, that is the server too: it forks afterwards, and its child closes.
    let has_probe = !said.contains("inet_csk_accept");
    let ends = [("10.77.2.2:8080", &web), ("[fd77:0:0:2::2]:8080", &web), ("10.77.2.2:8081", &older)];
    for (at, program) in ends {
        let record = process(&lines, "dst", "tcp", at.parse()?)?;
        ensure!(record["name"] == "httpd", "{record}");
        // The older server was waiting in accept before the probe was there: its child, which closes, is told.
        if has_probe && at != "10.77.2.2:8081" {
            ensure!(record["pid"] == program.0.id(), "accepted by {}: {record}", program.0.id());
        }
    }
    let own = std::process::id();
    for (end, port) in [("src", 5353), ("dst", 5353)] {
        let record = process(&lines, end, "udp", SocketAddr::new(server.ip(true), port))?;
        ensure!(record["pid"] == own, "{record}");
    }
    let lacks = said.lines().filter(|line| line.contains("lack=")).count();
    Ok(Outcome::Pass(format!("4 fetches and UDP named at both ends, {lacks} parts lacking")))
}

pub fn wait_listening(pod: &Pod, port: u16) -> Result<()> {
    let began = Instant::now();
    while pod.inside(|| Ok(TcpStream::connect((pod.v4, port)).is_err()))? {
        ensure!(began.elapsed() < traffic::PATIENCE, "nothing listens on port {port}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What `ss -ti` says of the one established socket with this local or remote port: rtt and minrtt in microseconds, cwnd,
/// mss, all retransmissions.
fn ss(pod: &Pod, filter: &str) -> Result<BTreeMap<&'static str, u64>> {
    let text = pod.inside(|| run(&["ss", "-tinH", "state", "established", filter]))?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
    let micros = |text: &str| text.parse::<f64>().map(|ms| (ms * 1000.0).round() as u64);
    let rtt = value("rtt:").and_then(|v| v.split('/').next()).context("ss tells no rtt")?;
    let minrtt = value("minrtt:").with_context(|| format!("ss tells no minrtt: {text}"))?;
    let retrans = value("retrans:").and_then(|v| v.split('/').nth(1)).unwrap_or("0");
    Ok(BTreeMap::from([
        ("srtt_us", micros(rtt)?),
        ("min_rtt_us", micros(minrtt)?),
        ("send_cwnd", value("cwnd:").context("ss tells no cwnd")?.parse()?),
        ("mss", value("mss:").context("ss tells no mss")?.parse()?),
        ("retransmits", retrans.parse()?),
    ]))
}

/// The same twice in a row: nothing is under way any more.
fn settled(pod: &Pod, filter: &str) -> Result<BTreeMap<&'static str, u64>> {
    let mut last = ss(pod, filter)?;
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(500));
        let now = ss(pod, filter)?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    bail!("the socket does not come to rest: {last:?}")
}

fn tcp_record<'a>(lines: &'a [Value], at: (&str, u16)) -> Result<&'a Value> {
    let (side, port) = at;
    let all = lines.iter().filter_map(|line| line.get("tcp"));
    let mut found = all.filter(|record| record[side] == port);
    found.next_back().with_context(|| format!("no statistics with {side} {port}"))
}

fn send(stream: &mut TcpStream, peer: &mut TcpStream, bytes: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || peer.read_exact(&mut vec![0; bytes]));
        stream.write_all(&vec![7; bytes])?;
        reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        Ok(())
    })
}

/// Round trips, windows, retransmissions equal to what `ss` says, under delay and loss; timeouts that nothing answers.
pub fn tcp_statistics() -> Result<Outcome> {
    let mut node = Node::new()?;
    node.client().inside(|| {
        run(&["tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "20ms", "loss", "5%"]).map(drop)
    })?;
    let recorder = Recorder::start("tcp_statistics", &["flowLogsCollectTcpStats=true"])?;
    if recorder.said()?.contains("tcp=\"refused\"") {
        return Ok(Outcome::Skipped("this kernel refuses the programs, and the agent says so".to_owned()));
    }
    let to = SocketAddr::new(node.server().ip(false), 8080);
    let listener = traffic::listen(node.server(), false, 8080)?;
    let connect = |listener: &TcpListener| -> Result<(TcpStream, TcpStream)> {
        let near = node.client().inside(|| Ok(TcpStream::connect_timeout(&to, traffic::PATIENCE)?))?;
        Ok((near, listener.accept()?.0))
    };
    let (mut near, mut far) = connect(&listener)?;
    // Loss is by chance: until something was lost.
    let near_port = near.local_addr()?.port();
    for _ in 0..40 {
        send(&mut near, &mut far, 250_000)?;
        let so_far = ss(node.client(), &format!("( sport = :{near_port} )"))?;
        if so_far.get("retransmits").is_some_and(|lost| *lost > 0) {
            break;
        }
    }
    send(&mut far, &mut near, 20_000)?;

    // Of another connection nothing comes through any more, and the socket gives up.
    let (mut void, _peer) = connect(&listener)?;
    rustix::net::sockopt::set_tcp_user_timeout(&void, 3000)?;
    let void_port = void.local_addr()?.port();
    let hole = format!("tcp sport {void_port} drop");
    node.rules(&format!(
        "table inet case_hole {{
            chain forward {{ type filter hook forward priority 0;
                {hole}
            }}
        }}"
    ))?;
    void.write_all(b"into the void")?;
    void.set_read_timeout(Some(traffic::PATIENCE))?;
    ensure!(void.read(&mut [0; 1]).is_err(), "the connection did not break");

    let port = near_port;
    let client = settled(node.client(), &format!("( sport = :{port} )"))?;
    let server = settled(node.server(), &format!("( dport = :{port} )"))?;
    let lines = recorder.stop()?;
    for (told, at) in [(&client, ("src_port", port)), (&server, ("dst_port", port))] {
        let record = tcp_record(&lines, at)?;
        for (name, value) in told {
            ensure!(record[*name] == *value, "ss tells {name} {value}: {record}");
        }
    }
    ensure!(client["retransmits"] > 0 && client["min_rtt_us"] >= 20_000, "no loss or delay: {client:?}");
    let lost = tcp_record(&lines, ("src_port", port))?["lost"].as_u64().unwrap_or(0);
    ensure!(lost > 0, "packets were lost, and the socket is said to have lost none");
    let unrecovered = tcp_record(&lines, ("src_port", void_port))?["unrecovered_rto"].as_u64().unwrap_or(0);
    ensure!(unrecovered >= 1, "timeouts were not answered, and none is told");
    drop(near);
    drop(far);
    Ok(Outcome::Pass(format!(
        "equal to ss at both ends ({} retransmissions, {lost} lost), {unrecovered} timeouts unanswered",
        client["retransmits"]
    )))
}
