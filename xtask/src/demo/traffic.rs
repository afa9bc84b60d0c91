//! The demo's traffic: small servers and clients over real sockets.
//!
//! In: namespaces and addresses. Out: connections that move a known, bounded number of bytes.
//! What always holds: a socket is made inside the namespace it belongs to and used from outside; nothing waits longer
//! than [`PATIENCE`]; servers end when [`Servers`] is dropped. How much was moved is deliberately not remembered: the
//! flow log is compared with what the kernel counted, headers and retransmissions included.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::net::{AddressFamily, SocketType, ipproto, socket};

use crate::netns::Namespace;

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// For a connection that a rule drops: time for a second attempt of the kernel.
const DENIED_PATIENCE: Duration = Duration::from_millis(1300);
/// How often servers look whether they shall end.
const LOOK: Duration = Duration::from_millis(20);
/// No request asks for more.
const MOST: u32 = 1 << 20;

/// Threads that answer.
#[derive(Default)]
pub struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Answers on all addresses of both families: a request says how many bytes come and how many go back.
    pub fn tcp(&mut self, place: &Namespace, port: u16) -> anyhow::Result<()> {
        let listener = place
            .enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?
            .with_context(|| format!("cannot listen on TCP port {port}"))?;
        listener.set_nonblocking(true)?;
        let stop = self.stop.clone();
        self.threads.push(thread::spawn(move || {
            thread::scope(|scope| {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        // A client that goes away has its own message.
                        Ok((stream, _)) => drop(scope.spawn(|| answer(stream, &stop))),
                        Err(_) => thread::sleep(LOOK),
                    }
                }
            });
        }));
        Ok(())
    }

    /// Answers each datagram with two of its size.
    pub fn udp(&mut self, place: &Namespace, port: u16) -> anyhow::Result<()> {
        let socket = place
            .enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))?
            .with_context(|| format!("cannot listen on UDP port {port}"))?;
        socket.set_read_timeout(Some(LOOK))?;
        let stop = self.stop.clone();
        self.threads.push(thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((size, from)) = socket.recv_from(&mut buffer) {
                    for _ in 0..2 {
                        let _ = socket.send_to(buffer.get(..size).unwrap_or_default(), from);
                    }
                }
            }
        }));
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Until the client closes.
fn answer(mut stream: TcpStream, stop: &AtomicBool) -> Option<()> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(LOOK)).ok()?;
    let mut head = [0; 8];
    let mut filled = 0;
    while !stop.load(Ordering::Relaxed) {
        match stream.read(head.get_mut(filled..)?) {
            Ok(0) => return None,
            Ok(n) => filled += n,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return None,
        }
        if filled == head.len() {
            let [a, b, c, d, e, f, g, h] = head;
            let [up, down] = [[a, b, c, d], [e, f, g, h]].map(|n| u32::from_be_bytes(n).min(MOST));
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            stream.read_exact(&mut vec![0; usize::try_from(up).ok()?]).ok()?;
            stream.write_all(&vec![b'd'; usize::try_from(down).ok()?]).ok()?;
            stream.set_read_timeout(Some(LOOK)).ok()?;
            filled = 0;
        }
    }
    None
}

/// A client's connection.
pub struct Client(TcpStream);

impl Client {
    pub fn connect(place: &Namespace, to: impl Into<IpAddr>, port: u16) -> anyhow::Result<Self> {
        let to = SocketAddr::new(to.into(), port);
        let stream = place
            .enter(|| TcpStream::connect_timeout(&to, PATIENCE))?
            .with_context(|| format!("the demo's own traffic does not pass: cannot connect to {to}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Sends `up` bytes and waits for `down`.
    pub fn ask(&mut self, up: u32, down: u32) -> anyhow::Result<()> {
        let mut request = [up.to_be_bytes(), down.to_be_bytes()].concat();
        request.resize(request.len() + usize::try_from(up)?, b'u');
        self.0.write_all(&request)?;
        self.0.read_exact(&mut vec![0; usize::try_from(down)?]).context("the demo's server does not answer")
    }
}

/// One connection that asks once and closes.
pub fn ask(place: &Namespace, to: impl Into<IpAddr>, port: u16, up: u32, down: u32) -> anyhow::Result<()> {
    Client::connect(place, to, port)?.ask(up, down)
}

/// A connection that a rule is to drop.
pub fn knock(place: &Namespace, to: impl Into<IpAddr>, port: u16) -> anyhow::Result<()> {
    let to = SocketAddr::new(to.into(), port);
    match place.enter(|| TcpStream::connect_timeout(&to, DENIED_PATIENCE))? {
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(()),
        Err(error) => bail!("{to} is to be dropped in silence, but connecting failed otherwise: {error}"),
        Ok(_) => bail!("{to} is to be denied, but it answers"),
    }
}

fn any(to: IpAddr) -> SocketAddr {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, 0)
}

/// Queries from one socket, each answered.
pub fn query(place: &Namespace, to: impl Into<IpAddr>, port: u16, sizes: &[usize]) -> anyhow::Result<()> {
    let to = SocketAddr::new(to.into(), port);
    let socket = place.enter(|| UdpSocket::bind(any(to.ip())))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 2048];
    for size in sizes {
        socket.send_to(&vec![b'q'; *size], to)?;
        for _ in 0..2 {
            socket.recv_from(&mut buffer).with_context(|| format!("no answer from UDP {to}"))?;
        }
    }
    Ok(())
}

/// Datagrams that nobody answers.
pub fn shout(place: &Namespace, to: impl Into<IpAddr>, port: u16, sizes: &[usize]) -> anyhow::Result<()> {
    let to = SocketAddr::new(to.into(), port);
    let socket = place.enter(|| UdpSocket::bind(any(to.ip())))??;
    for size in sizes {
        socket.send_to(&vec![b's'; *size], to)?;
    }
    Ok(())
}

/// Echo requests of one sender, each answered; `to` of either family.
pub fn ping(place: &Namespace, to: impl Into<IpAddr>, sizes: &[usize]) -> anyhow::Result<()> {
    let to = SocketAddr::new(to.into(), 0);
    let (family, proto, request) = match to {
        SocketAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        SocketAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    // A ping socket: the kernel fills in identifier and checksum. It reads and writes like a UDP one.
    let socket = place
        .enter(|| socket(family, SocketType::DGRAM, Some(proto)))?
        .context("cannot open a ping socket")?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 2048];
    for (sequence, size) in (0_u8..).zip(sizes) {
        let mut packet = vec![request, 0, 0, 0, 0, 0, 0, sequence];
        packet.resize(packet.len() + size, b'p');
        socket.send_to(&packet, to)?;
        let (got, _) = socket.recv_from(&mut buffer).with_context(|| format!("no echo from {}", to.ip()))?;
        ensure!(got == packet.len(), "the echo of {} has {got} bytes, not {}", to.ip(), packet.len());
    }
    Ok(())
}
