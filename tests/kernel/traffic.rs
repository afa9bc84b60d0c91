//! Bounded traffic between pods, with the sockets that everybody uses.
//!
//! In: where from, where to, how much. Out: nothing but packets; each function returns when both ends are done, so the
//! kernel's counters stand still afterwards. What always holds: every wait has an end (`PATIENCE`), every amount is
//! given by the caller. Ping and SCTP have no type in std; they go over plain file descriptors.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};

use crate::node::Pod;

/// Until a packet is taken for lost, on a processor that is emulated and shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server's listening socket, inside its pod, that answers until it is dropped from outside.
pub fn listen(pod: &Pod, v6: bool, port: u16) -> Result<TcpListener> {
    let address = SocketAddr::new(pod.ip(v6), port);
    pod.inside(|| TcpListener::bind(address).with_context(|| format!("cannot listen on {address}")))
}

/// `connections` TCP connections one after the other: each sends `up` bytes, is answered with `down` bytes, and closes.
pub fn tcp(
    from: &Pod,
    to: SocketAddr,
    listener: &TcpListener,
    connections: u32,
    up: usize,
    down: usize,
) -> Result<()> {
    std::thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<()> {
            for _ in 0..connections {
                let (mut stream, _) = listener.accept()?;
                serve(&mut stream, up, down)?;
            }
            Ok(())
        });
        let client = from.inside(|| {
            for _ in 0..connections {
                let mut stream =
                    TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect {to}"))?;
                converse(&mut stream, up, down)?;
            }
            Ok(())
        });
        // A client that failed would leave the server waiting for ever.
        if client.is_err() {
            let _ = listener.set_nonblocking(true);
            if let Ok(address) = listener.local_addr() {
                let _ = TcpStream::connect_timeout(&address, Duration::from_millis(200));
            }
            return client;
        }
        server.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
    })
}

/// A connection that has moved data and stays open until it is dropped.
pub struct Open {
    client: TcpStream,
    server: TcpStream,
}

impl Open {
    pub fn new(from: &Pod, to: SocketAddr, listener: &TcpListener) -> Result<Self> {
        let client = from
            .inside(|| TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect {to}")))?;
        let (server, _) = listener.accept()?;
        Ok(Self { client, server })
    }

    /// Sends `up` bytes and is answered with `down` bytes.
    pub fn exchange(&mut self, up: usize, down: usize) -> Result<()> {
        for stream in [&self.client, &self.server] {
            stream.set_read_timeout(Some(PATIENCE))?;
        }
        std::thread::scope(|scope| {
            let server = &mut self.server;
            let answer = scope.spawn(move || -> Result<()> {
                swallow(server, up)?;
                Ok(server.write_all(&vec![2; down])?)
            });
            self.client.write_all(&vec![1; up])?;
            swallow(&mut self.client, down)?;
            answer.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
        })
    }

    /// Closes both directions and waits until the other side has seen it.
    pub fn close(mut self) -> Result<()> {
        self.client.shutdown(Shutdown::Write)?;
        finish(&mut self.server)?;
        self.server.shutdown(Shutdown::Write)?;
        finish(&mut self.client)
    }
}

/// The client closes first, always: its port then rests for a while, so no later connection has the same tuple (which
/// would make the kernel forget the earlier one in the middle of a case).
fn serve(stream: &mut TcpStream, up: usize, down: usize) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    swallow(stream, up)?;
    stream.write_all(&vec![2; down])?;
    finish(stream)
}

fn converse(stream: &mut TcpStream, up: usize, down: usize) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&vec![1; up])?;
    swallow(stream, down)?;
    stream.shutdown(Shutdown::Write)?;
    finish(stream)
}

fn swallow(stream: &mut TcpStream, bytes: usize) -> Result<()> {
    let mut left = bytes;
    let mut buffer = [0; 16384];
    while left > 0 {
        let wanted = left.min(buffer.len());
        match stream.read(&mut buffer[..wanted]) {
            Ok(0) => bail!("the connection ended {left} bytes early"),
            Ok(count) => left -= count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn finish(stream: &mut TcpStream) -> Result<()> {
    let extra = stream.read(&mut [0; 1])?;
    if extra == 0 { Ok(()) } else { bail!("more data than was agreed on") }
}

/// A connection attempt that nobody answers: the first packet and its repetitions are dropped on the way.
pub fn tcp_denied(from: &Pod, to: SocketAddr, wait: Duration) -> Result<()> {
    from.inside(|| match TcpStream::connect_timeout(&to, wait) {
        Ok(_) => bail!("{to} answered although it is denied"),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(()),
        Err(error) => Err(error).with_context(|| format!("connect {to}")),
    })
}

/// `packets` datagrams of `size` bytes to an echo, each answered.
pub fn udp(from: &Pod, to: SocketAddr, echo: &UdpSocket, packets: u32, size: usize) -> Result<()> {
    echo.set_read_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<()> {
            let mut buffer = [0; 65536];
            for _ in 0..packets {
                let (length, peer) = echo.recv_from(&mut buffer).context("the echo heard nothing")?;
                echo.send_to(&buffer[..length], peer)?;
            }
            Ok(())
        });
        from.inside(|| {
            let socket = UdpSocket::bind(unspecified(to))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            let mut buffer = [0; 65536];
            for _ in 0..packets {
                socket.send(&vec![3; size])?;
                socket.recv(&mut buffer).context("no echo")?;
            }
            Ok(())
        })?;
        server.join().map_err(|_| anyhow::anyhow!("the echo panicked"))?
    })
}

/// Datagrams that nobody answers.
pub fn udp_unanswered(from: &Pod, to: SocketAddr, packets: u32, size: usize) -> Result<()> {
    from.inside(|| {
        let socket = UdpSocket::bind(unspecified(to))?;
        for _ in 0..packets {
            match socket.send_to(&vec![4; size], to) {
                Ok(_) => {}
                // A reject rule's ICMP error of an earlier packet.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error).with_context(|| format!("send to {to}")),
            }
        }
        Ok(())
    })
}

/// An answered exchange of `packets` datagrams of `size` bytes, and then, from the same socket, `more` datagrams of
/// `large` bytes that are not waited for.
pub fn udp_then_oversized(
    from: &Pod,
    to: SocketAddr,
    echo: &UdpSocket,
    packets: u32,
    size: usize,
    more: u32,
    large: usize,
) -> Result<()> {
    echo.set_read_timeout(Some(PATIENCE))?;
    let socket = from.inside(|| Ok(UdpSocket::bind(unspecified(to))?))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 65536];
    for _ in 0..packets {
        socket.send_to(&vec![3; size], to)?;
        let (length, peer) = echo.recv_from(&mut buffer).context("the echo heard nothing")?;
        echo.send_to(&buffer[..length], peer)?;
        socket.recv(&mut buffer).context("no echo")?;
    }
    for _ in 0..more {
        socket.send_to(&vec![3; large], to)?;
    }
    Ok(())
}

pub fn udp_socket(pod: &Pod, v6: bool, port: u16) -> Result<UdpSocket> {
    let address = SocketAddr::new(pod.ip(v6), port);
    pod.inside(|| UdpSocket::bind(address).with_context(|| format!("cannot bind {address}")))
}

/// The address that a client binds to talk to `to`.
pub fn unspecified(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0_u16; 8], 0)),
    }
}

/// `count` echo requests with `size` bytes, each waited for; `id` is the identifier that conntrack keys by.
pub fn ping(from: &Pod, to: IpAddr, id: u16, count: u16, size: usize) -> Result<()> {
    from.inside(|| {
        let (family, protocol, request, reply) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
        };
        let socket = rustix::net::socket(family, SocketType::RAW, Some(protocol))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        for sequence in 0..count {
            let mut packet = vec![request, 0, 0, 0];
            packet.extend(id.to_be_bytes());
            packet.extend(sequence.to_be_bytes());
            packet.extend(vec![5; size]);
            if to.is_ipv4() {
                // The kernel fills in the checksum of ICMPv6 only.
                let sum = checksum(&packet);
                packet[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            rustix::net::sendto(&socket, &packet, SendFlags::empty(), &SocketAddr::new(to, 0))?;
            let mut buffer = [0; 65536];
            loop {
                let (_, length) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())
                    .with_context(|| format!("no answer to ping {sequence} of {to}"))?;
                // A raw IPv4 socket shows the IP header too.
                let header = if to.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
                let answer = buffer.get(header..length).unwrap_or_default();
                if answer.len() >= 8 && answer[0] == reply && answer[4..6] == id.to_be_bytes() {
                    break;
                }
            }
        }
        Ok(())
    })
}

fn checksum(packet: &[u8]) -> u16 {
    let words =
        packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}

/// One SCTP association: `up` bytes there, `down` bytes back, closed.
pub fn sctp(from: &Pod, server: &Pod, v6: bool, port: u16, up: usize, down: usize) -> Result<()> {
    let to = SocketAddr::new(server.ip(v6), port);
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let open = || -> Result<OwnedFd> {
        let socket = rustix::net::socket(family, SocketType::STREAM, Some(ipproto::SCTP))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
        Ok(socket)
    };
    let listener = server.inside(|| {
        let socket = open().context("cannot make an SCTP socket")?;
        rustix::net::bind(&socket, &to)?;
        rustix::net::listen(&socket, 4)?;
        Ok(TcpListener::from(socket))
    })?;
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| -> Result<()> {
            // `accept` of std asks for nothing that is TCP's own.
            let (mut stream, _) = listener.accept().context("no association arrived")?;
            swallow(&mut stream, up)?;
            stream.write_all(&vec![2; down])?;
            finish(&mut stream)
        });
        from.inside(|| {
            let socket = open()?;
            rustix::net::connect(&socket, &to).with_context(|| format!("connect sctp {to}"))?;
            let mut stream = TcpStream::from(socket);
            stream.write_all(&vec![1; up])?;
            swallow(&mut stream, down)?;
            Ok(())
        })?;
        answer.join().map_err(|_| anyhow::anyhow!("the SCTP server panicked"))?
    })
}
