//! The `netlink` source against a real kernel, in network namespaces of its own.
//!
//! Each test makes a node (client - router - server over veth, forwarding, an nft rule that uses `ct`, a DNATed
//! service), drives bounded traffic through it, and compares what the source told, added up by the contract's
//! rules, with what `conntrack -L` and `conntrack -E` print: byte for byte. Needs root, `ip`, `nft` and
//! `conntrack`; where one is missing the tests say so and pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod node;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use flowlogd::model::{ConnectionEvent, Counters, Directional, Observation};
use flowlogd::source::Observed;
use flowlogd::source::accounting::{Accounting, ensure_accounting};
use flowlogd::source::netlink::{NetlinkOptions, NetlinkSource, OpenError};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};

use node::{Node, Process, program, until};

const SERVER: [&str; 2] = ["10.1.2.2", "fd00:1:2::2"];
const SERVICE: &str = "10.96.0.10";

/// Client (c), router (n), server (s).
fn make() -> Option<Node> {
    if !node::can("the netlink source against the kernel", &["ip", "nft", "conntrack"]) {
        return None;
    }
    let node = Node::new(1, "cs");
    node.at('c').set("net/ipv4/ping_group_range", "0 0");
    node.track(&format!("ip daddr {SERVICE} tcp dport 80 dnat ip to {}:8080;", SERVER[0]));
    Some(node)
}

fn listing(node: &Node) -> Totals {
    let both = "conntrack -L -f ipv4 2>/dev/null; conntrack -L -f ipv6 2>/dev/null";
    parse_listing(node.at('n').sh(both).lines())
}

fn flush(node: &Node) {
    node.at('n').sh("conntrack -F 2>/dev/null");
}

/// Protocol, source, destination, ports, echo identifier.
type Key = (u8, IpAddr, IpAddr, u16, u16, u16);
type Totals = BTreeMap<Key, Directional>;

fn parse_listing<'a>(lines: impl Iterator<Item = &'a str>) -> Totals {
    lines.map(parse_line).collect()
}

/// `tcp 6 431999 ESTABLISHED src=.. dst=.. sport=.. dport=.. packets=.. bytes=.. src=.. ..`
fn parse_line(line: &str) -> (Key, Directional) {
    let proto = line.split_whitespace().find_map(|t| t.parse().ok()).unwrap();
    let mut fields: [Vec<(&str, &str)>; 2] = Default::default();
    let mut direction = 0;
    for (name, value) in line.split_whitespace().filter_map(|t| t.split_once('=')) {
        if name == "src" && !fields[0].is_empty() {
            direction = 1;
        }
        fields[direction].push((name, value));
    }
    let field = |d: usize, name| fields[d].iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
    let number = |d, name| field(d, name).map_or(0, |v| v.parse().unwrap());
    let port = |name| u16::try_from(number(0, name)).unwrap();
    let counters = |d| Counters::new(number(d, "packets"), number(d, "bytes"));
    let ip = |name| field(0, name).unwrap().parse().unwrap();
    (
        (proto, ip("src"), ip("dst"), port("sport"), port("dport"), port("id")),
        Directional { original: counters(0), reply: counters(1) },
    )
}

/// Adds up observations by the rules of a recording.
#[derive(Default)]
struct Sums {
    last: Totals,
    exported: Totals,
    news: usize,
    adopted: usize,
    ended: Totals,
    replies: BTreeMap<Key, (IpAddr, u16)>,
}

impl Sums {
    fn take(&mut self, out: &mut Vec<Observed>) {
        for observed in out.drain(..) {
            assert!(observed.at.0 > 0);
            let Observation::Connection(c) = observed.observation else { panic!("only connections") };
            let o = c.original;
            let key = (c.proto.0, o.src, o.dst, o.src_port, o.dst_port, c.icmp.map_or(0, |i| i.id));
            self.replies.insert(key, (c.reply.src, c.reply.src_port));
            if c.event == ConnectionEvent::Adopt {
                self.adopted += 1;
                self.last.insert(key, c.counters);
                continue;
            }
            if c.event == ConnectionEvent::New {
                self.news += 1;
                assert!(self.last.insert(key, Directional::default()).is_none(), "new while open: {key:?}");
            }
            let last = self.last.insert(key, c.counters).unwrap_or_default();
            let total = self.exported.entry(key).or_default();
            for (total, now, last) in [
                (&mut total.original, c.counters.original, last.original),
                (&mut total.reply, c.counters.reply, last.reply),
            ] {
                // No connection of these tests is reset: a step back would be a wrong record.
                total.packets += now.packets.checked_sub(last.packets).unwrap();
                total.bytes += now.bytes.checked_sub(last.bytes).unwrap();
            }
            if matches!(c.event, ConnectionEvent::End { .. }) {
                self.last.remove(&key);
                self.ended.insert(key, c.counters);
            }
        }
    }
}

/// `conntrack -E` in the router, as the ground truth of final counters.
struct Destroys(Process);

impl Destroys {
    fn watch(node: &Node) -> Self {
        let mut conntrack = program("conntrack", ["-E", "-e", "DESTROY"]);
        let conntrack = node.at('n').start(conntrack.stdout(Stdio::piped()));
        // It is subscribed once the kernel lists a socket of group DESTROY alone; before that it misses events.
        until("conntrack -E has subscribed", || {
            let sockets = node.enter('n', || fs::read_to_string("/proc/thread-self/net/netlink").unwrap());
            let of_destroys = |line: &str| {
                let mut fields = line.split_whitespace().skip(1);
                fields.next() == Some("12") && fields.nth(1) == Some("00000004")
            };
            sockets.lines().any(of_destroys).then_some(())
        });
        Self(conntrack)
    }

    /// The next `n` ends, or those that come before a minute is over.
    fn collect(mut self, n: usize) -> Totals {
        let lines = BufReader::new(self.0.child.stdout.take().unwrap()).lines();
        let (tell, hear) = mpsc::channel();
        let reader = thread::spawn(move || {
            lines.map_while(Result::ok).take(n).all(|line| tell.send(parse_line(&line)).is_ok());
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        let left = || deadline.saturating_duration_since(Instant::now());
        let totals = std::iter::from_fn(|| hear.recv_timeout(left()).ok()).take(n).collect();
        drop(self);
        reader.join().unwrap();
        totals
    }
}

fn open(node: &Node, receive_buffer_bytes: usize) -> NetlinkSource {
    node.enter('n', || {
        assert!(!matches!(ensure_accounting(true), Accounting::Off { .. }));
        assert_eq!(ensure_accounting(false), Accounting::AlreadyOn);
        NetlinkSource::open(&NetlinkOptions { receive_buffer_bytes, ..NetlinkOptions::default() }).unwrap()
    })
}

/// Sends `up` bytes and reads `down` bytes over TCP, through `to`, from the client to the server's port 8080.
fn tcp(node: &Node, to: &str, up: usize, down: usize) {
    let any: SocketAddr = if to.contains('[') { "[::]:8080" } else { "0.0.0.0:8080" }.parse().unwrap();
    // The kernel may still be closing the listener of the call before.
    let end = Instant::now() + Duration::from_secs(60);
    let listener = node.enter('s', move || {
        loop {
            match TcpListener::bind(any) {
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < end => {
                    thread::yield_now();
                }
                bound => break bound.unwrap(),
            }
        }
    });
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&vec![7; down]).unwrap();
        got.len()
    });
    node.enter('c', || {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.write_all(&vec![5; up]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), down);
    });
    assert_eq!(server.join().unwrap(), up);
}

/// One datagram of `len` bytes from each of `sockets` client sockets, each echoed.
fn udp(node: &Node, to: &str, sockets: usize, len: usize) -> Vec<UdpSocket> {
    let any: SocketAddr = if to.contains('[') { "[::]:0" } else { "0.0.0.0:0" }.parse().unwrap();
    let to: SocketAddr = to.parse().unwrap();
    let bind_to = SocketAddr::new(any.ip(), to.port());
    let server = node.enter('s', move || UdpSocket::bind(bind_to).unwrap());
    let clients = node
        .enter('c', move || (0..sockets).map(|_| UdpSocket::bind(any).unwrap()).collect::<Vec<UdpSocket>>());
    let mut buffer = vec![0; 65536];
    for client in &clients {
        client.send_to(&vec![1; len], to).unwrap();
        let (n, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..n], from).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap().0, len);
    }
    clients
}

/// Echo requests through ping sockets: the kernel fills identifier and checksum.
fn ping(node: &Node, to: &str, len: usize, times: u8) {
    let to: IpAddr = to.parse().unwrap();
    node.enter('c', || {
        let (family, protocol, request) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
        };
        let socket =
            rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(protocol))
                .unwrap();
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        for sequence in 0..times {
            let mut packet = vec![0; 8 + len];
            packet[0] = request;
            packet[7] = sequence;
            socket.send_to(&packet, SocketAddr::new(to, 0)).unwrap();
            socket.recv(&mut packet).unwrap();
        }
    });
}

/// Waits until the table stands still over a sweep and gives what it held.
fn settle(node: &Node, source: &mut NetlinkSource, sums: &mut Sums) -> Totals {
    let mut out = Vec::new();
    for _ in 0..100 {
        source.poll(Duration::from_millis(20), &mut out).unwrap();
        let before = listing(node);
        source.sweep(&mut out).unwrap();
        sums.take(&mut out);
        if before == listing(node) {
            return before;
        }
    }
    panic!("the connection table does not come to rest");
}

#[test]
fn every_byte_is_what_conntrack_prints() {
    let Some(node) = make() else { return };
    let mut source = open(&node, 8 << 20);
    let (mut sums, mut out) = (Sums::default(), Vec::new());
    source.adopt(&mut out).unwrap();
    assert_eq!(out, []);

    tcp(&node, &format!("{}:8080", SERVER[0]), 100_000, 300_001);
    tcp(&node, &format!("{SERVICE}:80"), 17, 5_000);
    tcp(&node, &format!("[{}]:8080", SERVER[1]), 40_000, 1);
    source.poll(Duration::ZERO, &mut out).unwrap();
    source.sweep(&mut out).unwrap();
    sums.take(&mut out);
    udp(&node, &format!("{}:5353", SERVER[0]), 3, 900);
    udp(&node, &format!("[{}]:5353", SERVER[1]), 2, 3000); // fragments
    ping(&node, SERVER[0], 56, 3);
    ping(&node, SERVER[1], 1000, 2);

    let listed = settle(&node, &mut source, &mut sums);
    assert_eq!(listed.len(), 10, "{listed:#?}");
    assert_eq!(sums.exported, listed);
    assert_eq!((sums.news, sums.adopted), (10, 0));
    for proto in [1, 6, 17, 58] {
        assert!(
            listed.iter().any(|(k, c)| k.0 == proto && c.original.bytes > 0 && c.reply.bytes > 0),
            "{proto}"
        );
    }
    // DNAT: the original tuple keeps the service's address, the reply tells the server's.
    let service: IpAddr = SERVICE.parse().unwrap();
    let key = *listed.keys().find(|k| k.2 == service).unwrap();
    assert_eq!(sums.replies[&key], (SERVER[0].parse().unwrap(), 8080));

    // More on top of what was told, then everything ends.
    ping(&node, SERVER[0], 56, 1);
    let destroys = Destroys::watch(&node);
    let before = listing(&node);
    flush(&node);
    let truth = destroys.collect(before.len());
    source.poll(Duration::from_secs(5), &mut out).unwrap();
    sums.take(&mut out);
    assert_eq!(truth.len(), before.len());
    assert_eq!(sums.ended, truth);
    assert_eq!(sums.exported, truth);
    assert!(sums.last.is_empty());
    assert_eq!(source.losses(), []);
}

#[test]
fn short_connections_are_exact_without_a_sweep() {
    let Some(node) = make() else { return };
    let mut source = open(&node, 64 << 20);
    let (mut sums, mut out) = (Sums::default(), Vec::new());
    source.adopt(&mut out).unwrap();
    udp(&node, &format!("{}:9999", SERVER[0]), 500, 200);
    // `conntrack -E` itself overruns on so many ends at once: the table before them is the truth.
    let truth = listing(&node);
    flush(&node);
    source.poll(Duration::from_secs(5), &mut out).unwrap();
    sums.take(&mut out);
    assert_eq!(sums.exported, truth);
    assert_eq!((sums.news, source.losses()), (500, vec![]));
}

#[test]
fn an_overrun_is_counted_and_live_connections_stay_exact() {
    let Some(node) = make() else { return };
    let mut source = open(&node, 1);
    let (mut sums, mut out) = (Sums::default(), Vec::new());
    source.adopt(&mut out).unwrap();
    let to = format!("{}:9999", SERVER[0]);
    udp(&node, &to, 300, 100);
    let listed = settle(&node, &mut source, &mut sums);
    assert_eq!(listed.len(), 300);
    assert_eq!(sums.exported, listed);
    assert_eq!(sums.news, 300);
    let [connections, queue] = source.fills();
    assert!(connections.used == 300 && connections.capacity > 300, "{connections:?}");
    assert!(queue.capacity > 0 && queue.capacity < 8 << 10, "{queue:?}");
    let losses: BTreeMap<_, _> = source.losses().into_iter().collect();
    // The kernel said how many NEW events it dropped: all but the few that fitted.
    let lost = losses["netlink_overrun"];
    assert!((250..=300).contains(&lost), "{losses:?}");
    assert_eq!(losses.len(), 1, "{losses:?}");

    // 300 ends at once: most DESTROY events are lost, yet every connection ends on what was last known.
    flush(&node);
    for _ in 0..100 {
        source.poll(Duration::from_millis(50), &mut out).unwrap();
        sums.take(&mut out);
        if sums.last.is_empty() {
            break;
        }
    }
    assert_eq!(sums.ended.len(), 300);
    assert_eq!(sums.exported, listed);
    let losses: BTreeMap<_, _> = source.losses().into_iter().collect();
    assert_eq!(losses["netlink_overrun"], losses["netlink_missed_end"], "{losses:?}");
}

#[test]
fn connections_older_than_the_source_are_adopted_and_their_end_is_noticed() {
    let Some(node) = make() else { return };
    node.enter('n', || assert!(!matches!(ensure_accounting(true), Accounting::Off { .. })));
    let to = format!("{}:9999", SERVER[0]);
    let clients = udp(&node, &to, 2, 400);
    let before = listing(&node);
    let mut source = open(&node, 8 << 20);
    let (mut sums, mut out) = (Sums::default(), Vec::new());
    source.adopt(&mut out).unwrap();
    sums.take(&mut out);
    assert_eq!((sums.adopted, sums.news), (2, 0));
    assert_eq!(sums.last, before);
    // Only what comes after the adoption is exported: 100 bytes, and 28 of headers. Nobody listens there any
    // more; the packet is counted all the same (the refusal is an ICMP of the same connection).
    clients[0].send_to(&[0; 100], &*to).unwrap();
    let after = settle(&node, &mut source, &mut sums);
    let grown: u64 = after.iter().map(|(k, c)| c.original.bytes - before[k].original.bytes).sum();
    assert_eq!(grown, 128);
    assert_eq!(sums.exported.values().map(|c| c.original.bytes).sum::<u64>(), 128);
    flush(&node);
    for _ in 0..100 {
        source.poll(Duration::from_millis(100), &mut out).unwrap();
        sums.take(&mut out);
        if sums.last.is_empty() {
            break;
        }
    }
    assert_eq!(sums.ended, after);
    // Whether their end is told depends on who listened when they began, in any namespace of the machine.
    let losses = source.losses();
    assert!(losses.is_empty() || losses == [("adopted_tail", 2)], "{losses:?}");
}

#[test]
fn without_events_the_source_says_so() {
    let Some(node) = make() else { return };
    let error = node.enter('n', || {
        fs::write("/proc/sys/net/netfilter/nf_conntrack_events", "0").unwrap();
        NetlinkSource::open(&NetlinkOptions { receive_buffer_bytes: 1 << 20, ..NetlinkOptions::default() })
            .err()
            .unwrap()
    });
    assert!(matches!(error, OpenError::EventsOff), "{error}");
    assert!(error.to_string().contains("sysctl -w"));
}

#[test]
fn the_test_reads_conntracks_own_lines() {
    let line = "tcp      6 118 TIME_WAIT src=10.1.1.2 dst=10.96.0.10 sport=40000 dport=80 packets=5 bytes=281 src=10.1.2.2 dst=10.1.1.2 sport=8080 dport=40000 packets=6 bytes=5320 [ASSURED] mark=0 use=1";
    let (key, counters) = parse_line(line);
    assert_eq!(
        key,
        (6, Ipv4Addr::new(10, 1, 1, 2).into(), Ipv4Addr::new(10, 96, 0, 10).into(), 40000, 80, 0)
    );
    assert_eq!(counters, Directional { original: Counters::new(5, 281), reply: Counters::new(6, 5320) });
}
