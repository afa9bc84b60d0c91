//! A packet queue (nfnetlink_queue) that holds packets until told: the one way to have two packets of one tuple between
//! the start of tracking and its confirmation on a guest with one processor.
//!
//! In: a queue number that a `queue num N` rule feeds. Out: the number of packets held, and their release in order.
//! Written by hand, about 60 lines: three messages of a stable format, for one case.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};

const SUBSYSTEM: u16 = 3 << 8;
const PACKET: u16 = 0;
const VERDICT: u16 = 1;
const CONFIG: u16 = 2;
const ACCEPT: u32 = 1;

/// A queue bound by this process.
pub struct Queue {
    socket: OwnedFd,
    number: u16,
    held: Vec<u32>,
}

impl Queue {
    pub fn bind(number: u16) -> Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        let queue = Self { socket, number, held: Vec::new() };
        queue.send(CONFIG, 1, &[1, 0, 0, 0])?; // bind
        queue.send(CONFIG, 2, &[0, 0, 0, 0, 1])?; // headers only
        Ok(queue)
    }

    fn send(&self, message: u16, attribute: u16, value: &[u8]) -> Result<()> {
        let padded = value.len().next_multiple_of(4);
        let length = 16 + 4 + 4 + padded;
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(length)?.to_ne_bytes());
        bytes.extend((SUBSYSTEM | message).to_ne_bytes());
        bytes.extend(1_u16.to_ne_bytes()); // NLM_F_REQUEST
        bytes.extend([0; 8]); // sequence, port
        bytes.extend([0, 0]); // family, version
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(u16::try_from(4 + value.len())?.to_ne_bytes());
        bytes.extend(attribute.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(length, 0);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &bytes, SendFlags::empty(), &kernel)
            .context("cannot talk to nfnetlink_queue")?;
        Ok(())
    }

    /// Waits until so many packets are held.
    pub fn hold(&mut self, count: usize, patience: Duration) -> Result<()> {
        let began = Instant::now();
        let mut buffer = vec![0; 65536];
        while self.held.len() < count {
            match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((_, length)) => self.take(&buffer[..length])?,
                Err(Errno::AGAIN) => {
                    if began.elapsed() > patience {
                        bail!("only {} of {count} packets reached the queue", self.held.len());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn take(&mut self, mut datagram: &[u8]) -> Result<()> {
        while datagram.len() >= 20 {
            let length =
                usize::try_from(u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]))?;
            let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
            let message = datagram.get(..length).context("a message is cut")?;
            if kind == (SUBSYSTEM | PACKET) {
                self.held.push(packet_id(&message[20..]).context("a packet without header")?);
            }
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    /// Lets all held packets go on, the oldest first.
    pub fn release(&mut self) -> Result<()> {
        for id in std::mem::take(&mut self.held) {
            let mut verdict = ACCEPT.to_be_bytes().to_vec();
            verdict.extend(id.to_be_bytes());
            self.send(VERDICT, 2, &verdict)?;
        }
        Ok(())
    }
}

/// The identifier in attribute 1 (NFQA_PACKET_HDR).
fn packet_id(mut attributes: &[u8]) -> Option<u32> {
    while let [a, b, c, d, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        if u16::from_ne_bytes([c, d]) & 0x3fff == 1 {
            return Some(u32::from_be_bytes(attributes.get(4..8)?.try_into().ok()?));
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}
