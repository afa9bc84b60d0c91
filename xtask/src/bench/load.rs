//! Traffic of a known amount: flows of one datagram at a pace, TCP connections one after the other, iperf3.
//!
//! In: a [`Site`]. Out: how much was sent, and how fast. What always holds: each flow has a tuple that no other of the run
//! has; clients close with a reset, so that no port waits; everything ends by itself after the time that was asked for.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use rustix::net::sockopt;
use serde_json::Value;

use super::site::{CLIENT, SERVER, Site, VOID};

/// Bytes of a datagram, and of it on the wire with the headers of UDP and IP.
const DATAGRAM: [u8; 64] = [b'd'; 64];
/// Hosts of [`VOID`].
const HOSTS: u32 = 1 << 10;
/// Clients at once, and servers: more than the cores of a small machine, so that none idles.
const AT_ONCE: u16 = 4;
const FIRST_PORT: u16 = 5001;
/// Of one connection, which takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(5);

/// Flows of one datagram each, out of one socket.
pub struct Flows {
    socket: UdpSocket,
    next: u32,
}

impl Flows {
    pub fn new(site: &Site) -> anyhow::Result<Self> {
        Self::of(site, CLIENT, 0)
    }

    /// From an address of the client's, with the `next` of all its tuples.
    pub fn of(site: &Site, address: Ipv4Addr, next: u32) -> anyhow::Result<Self> {
        let socket = site.client.enter(|| UdpSocket::bind((address, 4000)))??;
        Ok(Self { socket, next })
    }

    /// Begins so many, as fast as they go out.
    pub fn begin(&mut self, count: u64) -> anyhow::Result<()> {
        for _ in 0..count {
            let host = Ipv4Addr::from(u32::from(VOID) + self.next % HOSTS);
            let port = u16::try_from(1000 + self.next / HOSTS % 64_000)?;
            self.socket.send_to(&DATAGRAM, (host, port)).context("a datagram is refused")?;
            self.next = self.next.wrapping_add(1);
        }
        Ok(())
    }

    /// Begins `rate` a second. Says how many: fewer, where the machine is too slow.
    pub fn pace(&mut self, rate: u64, time: Duration) -> anyhow::Result<u64> {
        let began = Instant::now();
        let mut done = 0;
        while began.elapsed() < time {
            let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
            // No more than a tenth of a second's at once, should the machine have stood still.
            let now = due.saturating_sub(done).min(rate / 10 + 1);
            self.begin(now)?;
            done += now;
            thread::sleep(Duration::from_millis(1));
        }
        Ok(done)
    }
}

/// Connections that were made, with a byte there and one back.
pub struct Connections {
    pub per_second: f64,
    /// From connect to the answer, sorted.
    pub times: Vec<Duration>,
}

impl Connections {
    /// Microseconds of a percentile.
    pub fn percentile(&self, percent: usize) -> f64 {
        let at = self.times.len().saturating_sub(1) * percent / 100;
        self.times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }
}

/// As many as four clients make, one after the other each.
pub fn connections(site: &Site, time: Duration) -> anyhow::Result<Connections> {
    let stop = AtomicBool::new(false);
    let listeners = site.server.enter(|| {
        (FIRST_PORT..FIRST_PORT + AT_ONCE)
            .map(|port| TcpListener::bind((SERVER, port)))
            .collect::<Result<Vec<_>, _>>()
    })??;
    for listener in &listeners {
        listener.set_nonblocking(true)?;
    }
    thread::scope(|scope| {
        for listener in &listeners {
            let stop = &stop;
            scope.spawn(move || serve(listener, stop));
        }
        let began = Instant::now();
        let clients: Vec<_> = (FIRST_PORT..FIRST_PORT + AT_ONCE)
            .map(|port| {
                scope.spawn(move || site.client.enter(|| connect(SocketAddr::from((SERVER, port)), time)))
            })
            .collect();
        let mut times = Vec::new();
        let mut outcome = Ok(());
        for client in clients {
            match client.join().map_err(|_| anyhow!("a client panicked")).flatten().flatten() {
                Ok(more) => times.extend(more),
                Err(error) => outcome = Err(error),
            }
        }
        stop.store(true, Ordering::Relaxed);
        outcome?;
        ensure!(!times.is_empty(), "no connection was made");
        let per_second = times.len() as f64 / began.elapsed().as_secs_f64();
        times.sort_unstable();
        Ok(Connections { per_second, times })
    })
}

fn connect(to: SocketAddr, time: Duration) -> anyhow::Result<Vec<Duration>> {
    let until = Instant::now() + time;
    let mut times = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// A byte there, a byte back.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
        if !matches!(rustix::event::poll(&mut ready, Some(&limit)), Ok(1)) {
            continue;
        }
        while let Ok((mut stream, _)) = listener.accept() {
            // A client that goes away has its own message.
            let _ = stream
                .set_nonblocking(false)
                .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
                .and_then(|()| stream.read_exact(&mut [0]))
                .and_then(|()| stream.write_all(b"x"));
        }
    }
}

/// What iperf3 reports of `seconds` from client to server; its server must run.
fn iperf(site: &Site, seconds: u64, more: &[&str]) -> anyhow::Result<Value> {
    let (server, seconds) = (SERVER.to_string(), seconds.to_string());
    let arguments: Vec<&str> = ["-c", &server, "-t", &seconds, "-J"].iter().chain(more).copied().collect();
    let text = site.client.run("iperf3", &arguments, None)?;
    serde_json::from_str(&text).context("iperf3 wrote what is no JSON")
}

/// TCP throughput that arrived, Gbit/s.
pub fn tcp_throughput(site: &Site, seconds: u64) -> anyhow::Result<f64> {
    let report = iperf(site, seconds, &[])?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.context("iperf3 does not say what was received")? / 1e9)
}

/// Datagrams of 64 bytes that arrived, thousands a second.
pub fn datagram_rate(site: &Site, seconds: u64) -> anyhow::Result<f64> {
    let report = iperf(site, seconds, &["-u", "-l", "64", "-b", "0"])?;
    let sum = &report["end"]["sum"];
    let (packets, lost) = (sum["packets"].as_f64(), sum["lost_packets"].as_f64());
    let (packets, lost) = packets.zip(lost).context("iperf3 does not say what was lost")?;
    Ok((packets - lost) / seconds as f64 / 1e3)
}
