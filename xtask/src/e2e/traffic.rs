//! Traffic between pods, of which it is known what was sent.
//!
//! In: the pods' network namespaces. Out: what was sent. UDP without an answer: the kernel's counters of a connection are then those of
//! its sender, to the packet.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;

use crate::netns::Namespace;

const SIZE: usize = 100;
/// With the headers of IPv4 and UDP.
pub const BYTES: u64 = SIZE as u64 + 28;

/// One datagram from each of these ports.
pub fn scatter(from: &Namespace, ports: std::ops::Range<u16>, to: IpAddr, port: u16) -> anyhow::Result<()> {
    from.enter(|| -> anyhow::Result<()> {
        for source in ports {
            let socket = UdpSocket::bind(("0.0.0.0", source)).with_context(|| format!("port {source}"))?;
            let _ = socket.send_to(&[0; SIZE], (to, port));
            // 2,000 a second: connection tracking and a debug build keep up.
            if source % 20 == 0 {
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    })?
}

/// Somebody who takes datagrams and says nothing: without a socket the kernel would answer with ICMP.
pub fn sink(at: &Namespace, port: u16) -> anyhow::Result<UdpSocket> {
    at.enter(|| UdpSocket::bind(("0.0.0.0", port)))?.context("cannot listen in the pod")
}

/// One connection that never rests.
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
    pub port: u16,
}

impl Stream {
    pub fn start(from: &Namespace, port: u16, to: SocketAddr) -> anyhow::Result<Self> {
        let socket = from.enter(|| UdpSocket::bind(("0.0.0.0", port)))??;
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let thread = thread::spawn(move || {
            let mut sent = 0;
            while !ended.load(Ordering::Relaxed) {
                sent += u64::from(socket.send_to(&[1; SIZE], to).is_ok());
                thread::sleep(Duration::from_millis(2));
            }
            sent
        });
        Ok(Self { stop, thread, port })
    }

    /// The datagrams that were sent.
    pub fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}
