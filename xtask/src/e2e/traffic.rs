//! Traffic between pods, of which it is known what was sent.
//!
//! In: the pods' network namespaces. Out: what was sent, and when. UDP without an answer: the kernel's counters of a connection are then those of
//! its sender, to the packet. TCP with answers: the kernel's counters are asked for. Not here: what the agent says of it.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::netns::Namespace;

const SIZE: usize = 100;
/// With the headers of IPv4 and UDP.
pub const BYTES: u64 = SIZE as u64 + 28;
const PATIENCE: Duration = Duration::from_secs(60);

/// One datagram from each of these ports; how many were sent. Unhurried: 2,000 a second, with which a debug build keeps up.
pub fn scatter(
    from: &Namespace,
    ports: RangeInclusive<u16>,
    to: IpAddr,
    port: u16,
    is_hurried: bool,
) -> anyhow::Result<u64> {
    from.enter(|| -> anyhow::Result<u64> {
        let mut sent = 0;
        for source in ports {
            let socket = UdpSocket::bind(("0.0.0.0", source)).with_context(|| format!("port {source}"))?;
            sent += u64::from(socket.send_to(&[0; SIZE], (to, port)).is_ok());
            if !is_hurried && source % 20 == 0 {
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(sent)
    })?
}

/// Somebody who takes datagrams and says nothing: without a socket the kernel would answer with ICMP.
pub fn sink(at: &Namespace, port: u16) -> anyhow::Result<UdpSocket> {
    at.enter(|| UdpSocket::bind(("0.0.0.0", port)))?.context("cannot listen in the pod")
}

/// One connection that never rests.
pub struct Stream<R> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<R>,
    pub port: u16,
}

impl<R: Send + 'static> Stream<R> {
    fn start(port: u16, work: impl FnOnce(&AtomicBool) -> R + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        Self { stop, thread: thread::spawn(move || work(&ended)), port }
    }

    /// What was sent.
    pub fn end(self) -> anyhow::Result<R> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread of a connection panicked"))
    }
}

/// 500 datagrams a second; gives when each was sent, in seconds since 1970.
pub fn datagrams(from: &Namespace, port: u16, to: SocketAddr) -> anyhow::Result<Stream<Vec<f64>>> {
    let socket = from.enter(|| UdpSocket::bind(("0.0.0.0", port)))??;
    Ok(Stream::start(port, move |stop| {
        let mut sent = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            if socket.send_to(&[1; SIZE], to).is_ok() {
                sent.push(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
            }
            thread::sleep(Duration::from_millis(2));
        }
        sent
    }))
}

/// Questions and answers over TCP, 1,000 bytes each way; gives the bytes of one direction. It begins and ends the connection.
pub fn questions(
    from: &Namespace,
    port: u16,
    at: &Namespace,
    to: SocketAddr,
) -> anyhow::Result<Stream<std::io::Result<u64>>> {
    let listener =
        at.enter(|| TcpListener::bind(("0.0.0.0", to.port())))?.context("cannot listen in the pod")?;
    thread::spawn(move || {
        let Ok((mut answers, _)) = listener.accept() else { return };
        let mut buffer = [0; 1000];
        while answers.read_exact(&mut buffer).and_then(|()| answers.write_all(&buffer)).is_ok() {}
    });
    let mut stream = from.enter(|| -> anyhow::Result<TcpStream> {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        bind(&socket, &SocketAddr::from(([0, 0, 0, 0], port)))?;
        connect(&socket, &to)?;
        Ok(socket.into())
    })??;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(Stream::start(port, move |stop| {
        let (mut buffer, mut bytes) = ([7; 1000], 0);
        while !stop.load(Ordering::Relaxed) {
            stream.write_all(&buffer)?;
            stream.read_exact(&mut buffer)?;
            bytes += 1000;
            thread::sleep(Duration::from_millis(5));
        }
        stream.shutdown(Shutdown::Write)?;
        // The other end closes too.
        match stream.read(&mut buffer)? {
            0 => Ok(bytes),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }))
}
