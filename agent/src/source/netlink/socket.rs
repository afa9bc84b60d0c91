//! The two netlink sockets: one that is subscribed to events, one for requests (dumps, statistics).
//!
//! In: nothing but the kernel's own messages (a message from any other port is dropped). Out: whole netlink
//! messages as byte slices, and the control flow around them: end of a dump, interruption, errors, overrun.
//! What holds: no wait without a limit; an overrun is told with the number of messages the kernel dropped.
//! A netlink socket sees the network namespace of the thread that opened it, and only that.
//!
//! Not here: what the messages mean (`parse`), and what to do about a loss (`mod`).

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::NetlinkBuffer;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, NetlinkAddr, recvmmsg};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, bind, getsockname, recvfrom,
    sendto, socket_with, sockopt,
};

use super::super::privilege;
use super::parse::{MSG_GET, NFGENMSG_LEN, SUBSYSTEM_CTNETLINK};

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Bits of a bind address: group n is bit n-1 (`NFNLGRP_CONNTRACK_NEW` 1, `NFNLGRP_CONNTRACK_DESTROY` 3).
const GROUPS: u32 = 1 | 1 << 2;
/// `IPCTNL_MSG_CT_GET_STATS`: answers with the number of entries.
const MSG_GET_STATS: u8 = 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
/// The kernel fills at most 32 KiB at once.
const BUFFER_LEN: usize = 64 << 10;
/// A dump answers within milliseconds; this only keeps a kernel bug from hanging the source.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// `struct nlmsghdr`
const HEADER_LEN: usize = 16;

/// Events of one call, and room for each: the kernel sends them one by one, none with more than a page.
const EVENTS_AT_ONCE: usize = 32;
const EVENT_LEN: usize = 4 << 10;

fn open() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?)
}

/// The messages in one received buffer; a broken one ends the walk with an error.
pub(super) fn messages(bytes: &[u8]) -> impl Iterator<Item = Result<&[u8], ()>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(len) = NetlinkBuffer::new_checked(rest).ok().and_then(|m| usize::try_from(m.length()).ok())
        else {
            rest = &[];
            return Some(Err(()));
        };
        let (message, _) = rest.split_at_checked(len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(message))
    })
}

pub(super) enum Received {
    Some,
    /// Nothing (more) is queued.
    Empty,
    /// The receive buffer was full: this many messages were dropped (at least 1).
    Overrun(u64),
}

pub(super) struct EventSocket {
    fd: OwnedFd,
    port: u32,
    /// /proc/net/netlink, opened where the socket was: it stays this network namespace's in any other thread.
    table: Option<File>,
    dropped: u64,
    buffer: Box<[u8]>,
}

impl EventSocket {
    /// Subscribes to NEW and DESTROY. The kernel's ENOBUFS report is left on: it is how a loss is noticed.
    pub fn subscribe(receive_buffer_bytes: usize) -> io::Result<Self> {
        let _raised = privilege::raise();
        let fd = open()?;
        // Above net.core.rmem_max only CAP_NET_ADMIN may; without it the limit applies.
        if sockopt::set_socket_recv_buffer_size_force(&fd, receive_buffer_bytes).is_err() {
            sockopt::set_socket_recv_buffer_size(&fd, receive_buffer_bytes)?;
            tracing::warn!(
                wanted = receive_buffer_bytes,
                got = sockopt::socket_recv_buffer_size(&fd).unwrap_or(0),
                "the receive buffer for conntrack events is limited by net.core.rmem_max: raise it, or give the agent CAP_NET_ADMIN"
            );
        }
        bind(&fd, &SocketAddrNetlink::new(0, GROUPS))?;
        let port = SocketAddrNetlink::try_from(getsockname(&fd)?)?.pid();
        let table = File::open("/proc/thread-self/net/netlink").ok();
        let buffer = vec![0; EVENTS_AT_ONCE * EVENT_LEN].into_boxed_slice();
        Ok(Self { fd, port, table, dropped: 0, buffer })
    }

    /// What [`Self::receive`] fills in.
    pub fn headers() -> MultiHeaders<NetlinkAddr> {
        MultiHeaders::preallocate(EVENTS_AT_ONCE, None)
    }

    /// Waits until something is queued, or until `limit` is over.
    pub fn wait(&self, limit: Duration) -> io::Result<()> {
        let limit = Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Hands over what is queued, up to [`EVENTS_AT_ONCE`]: one system call for all of them, since a call a message
    /// is what small messages cost most. One that is longer than its room is told as an overrun.
    pub fn receive(
        &mut self,
        headers: &mut MultiHeaders<NetlinkAddr>,
        mut visit: impl FnMut(&[u8]),
    ) -> io::Result<Received> {
        let mut rooms = self.buffer.chunks_exact_mut(EVENT_LEN);
        let mut slices: [[IoSliceMut<'_>; 1]; EVENTS_AT_ONCE] =
            std::array::from_fn(|_| [IoSliceMut::new(rooms.next().unwrap_or_default())]);
        let flags = MsgFlags::MSG_DONTWAIT;
        let received = match recvmmsg(self.fd.as_raw_fd(), headers, slices.iter_mut(), flags, None) {
            Ok(received) => received,
            Err(Errno::EINTR) => return Ok(Received::Some),
            Err(Errno::EAGAIN) => return Ok(Received::Empty),
            Err(Errno::ENOBUFS) => return Ok(Received::Overrun(self.newly_dropped().max(1))),
            Err(e) => return Err(e.into()),
        };
        let mut cut = 0;
        for message in received {
            // Any process may send to a netlink port; the kernel's is 0.
            if message.address.is_none_or(|address| address.pid() != 0) {
                continue;
            }
            if message.flags.contains(MsgFlags::MSG_TRUNC) {
                cut += 1;
                continue;
            }
            message.iovs().for_each(&mut visit);
        }
        Ok(if cut > 0 { Received::Overrun(cut) } else { Received::Some })
    }

    /// Messages the kernel dropped on this socket since the last call, as far as it tells.
    ///
    /// While the queue is still full more are dropped: ask again when it has been emptied.
    pub fn newly_dropped(&mut self) -> u64 {
        let Some(Queue { dropped: total, .. }) = self.queue() else { return 0 };
        let new = total.saturating_sub(self.dropped);
        self.dropped = total;
        new
    }

    /// Bytes that are queued now (as the kernel accounts them: of its buffers, not of the messages).
    pub fn queued(&mut self) -> u64 {
        self.queue().map_or(0, |queue| queue.bytes)
    }

    /// Bytes that may be queued.
    pub fn capacity(&self) -> u64 {
        sockopt::socket_recv_buffer_size(&self.fd).map_or(0, |bytes| bytes as u64)
    }

    fn queue(&mut self) -> Option<Queue> {
        let table = self.table.as_mut()?;
        let mut text = String::new();
        table.rewind().ok()?;
        table.read_to_string(&mut text).ok()?;
        queue_in(&text, self.port)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Queue {
    bytes: u64,
    dropped: u64,
}

/// Columns `Rmem` and `Drops` of the line of this port (protocol NETLINK_NETFILTER, 12) in /proc/net/netlink.
fn queue_in(table: &str, port: u32) -> Option<Queue> {
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let ours = fields.next() == Some("12") && fields.next()?.parse() == Ok(port);
        if !ours {
            return None;
        }
        // Groups, Rmem; then Wmem, Dump, Locks, Drops.
        let bytes = fields.nth(1)?.parse().ok()?;
        Some(Queue { bytes, dropped: fields.nth(3)?.parse().ok()? })
    })
}

pub(super) struct RequestSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Box<[u8]>,
    /// The table changed under the running dump.
    interrupted: bool,
}

/// How a dump ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dumped {
    Whole,
    /// The table changed under the dump: entries may be missing.
    Interrupted,
}

impl RequestSocket {
    pub fn open() -> io::Result<Self> {
        let fd = open()?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_LIMIT))?;
        let buffer = vec![0; BUFFER_LEN].into_boxed_slice();
        Ok(Self { fd, sequence: 0, buffer, interrupted: false })
    }

    /// Asks for every entry of both families; the counters are read, never zeroed.
    pub fn dump(&mut self, mut visit: impl FnMut(&[u8])) -> io::Result<Dumped> {
        self.begin_dump()?;
        loop {
            if let Some(dumped) = self.read_dump(usize::MAX, &mut visit)? {
                return Ok(dumped);
            }
        }
    }

    /// The same, to be read by [`Self::read_dump`].
    pub fn begin_dump(&mut self) -> io::Result<()> {
        self.interrupted = false;
        self.ask(MSG_GET, NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// Hands over so many datagrams' entries; the kernel writes the next datagram when one is taken. `None`: more is to come.
    pub fn read_dump(
        &mut self,
        datagrams: usize,
        mut visit: impl FnMut(&[u8]),
    ) -> io::Result<Option<Dumped>> {
        let mut interrupted = self.interrupted;
        let over = self.answers(datagrams, |flags, message| {
            interrupted |= flags & NLM_F_DUMP_INTR != 0;
            if let Some(message) = message {
                visit(message);
            }
            false
        })?;
        self.interrupted = interrupted;
        Ok(over.then_some(if interrupted { Dumped::Interrupted } else { Dumped::Whole }))
    }

    /// The number of entries in this network namespace; also proves that ctnetlink answers us.
    pub fn count_entries(&mut self) -> io::Result<u32> {
        self.ask(MSG_GET_STATS, NLM_F_REQUEST)?;
        let mut count = None;
        self.answers(usize::MAX, |_, message| {
            let Some(message) = message else { return true };
            let attributes = message.get(HEADER_LEN + NFGENMSG_LEN..).unwrap_or_default();
            count = netlink_packet_core::NlasIterator::new(attributes)
                .filter_map(Result::ok)
                .find(|a| a.kind() == CTA_STATS_GLOBAL_ENTRIES)
                .and_then(|a| a.value().try_into().ok())
                .map(u32::from_be_bytes);
            true
        })?;
        count
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "conntrack statistics without a count"))
    }

    fn ask(&mut self, message: u8, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = [0u8; HEADER_LEN + NFGENMSG_LEN];
        let len = u32::try_from(request.len()).unwrap_or(0);
        let mut header = NetlinkBuffer::new(&mut request[..]);
        header.set_length(len);
        header.set_message_type(u16::from_le_bytes([message, SUBSYSTEM_CTNETLINK]));
        header.set_flags(flags);
        header.set_sequence_number(self.sequence);
        // The kernel asks for CAP_NET_ADMIN when it takes the request; what it answers is read without.
        let _raised = privilege::raise();
        sendto(&self.fd, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    /// Hands over the answers to the last request until DONE, an error, or until `visit` returns true; or so many datagrams
    /// of them, and then gives false.
    fn answers(
        &mut self,
        datagrams: usize,
        mut visit: impl FnMut(u16, Option<&[u8]>) -> bool,
    ) -> io::Result<bool> {
        for _ in 0..datagrams {
            let (len, from) = match recvfrom(self.fd.as_fd(), &mut *self.buffer, RecvFlags::TRUNC) {
                Ok((_, len, from)) => (len, from),
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(e) => return Err(e.into()),
            };
            if !is_kernel(from) {
                continue;
            }
            let bytes = self.buffer.get(..len).ok_or_else(|| malformed("longer than 64 KiB"))?;
            for message in messages(bytes) {
                let message = message.map_err(|()| malformed("truncated"))?;
                let header = NetlinkBuffer::new(message);
                if header.sequence_number() != self.sequence {
                    continue;
                }
                let flags = header.flags();
                match header.message_type() {
                    NLMSG_NOOP => {}
                    // Both begin with an errno, negated; an error of 0 is an acknowledgement.
                    kind @ (NLMSG_ERROR | NLMSG_DONE) => {
                        let code = header.payload().first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
                        if code < 0 {
                            return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                        }
                        if kind == NLMSG_ERROR && code > 0 {
                            return Err(malformed("an error that is none"));
                        }
                        visit(flags, None);
                        return Ok(true);
                    }
                    _ => {
                        if visit(flags, Some(message)) {
                            return Ok(true);
                        }
                    }
                }
            }
        }
        Ok(false)
    }
}

/// Any process may send to a netlink port; the kernel's is 0.
fn is_kernel(from: Option<SocketAddrAny>) -> bool {
    from.and_then(|a| SocketAddrNetlink::try_from(a).ok()).is_some_and(|a| a.pid() == 0)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's netlink answer is {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_queue_is_read_from_our_own_line() {
        let table = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
            00000000b61fa2b5 0   77         00000000 0        0        0     2        9        4       \n\
            000000001dc05d66 12  77         00000005 4096     0        0     2        314      559     \n";
        assert_eq!(queue_in(table, 77), Some(Queue { bytes: 4096, dropped: 314 }));
        assert_eq!(queue_in(table, 78), None);
    }

    proptest! {
        #[test]
        fn walking_random_bytes_never_panics_and_ends(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            prop_assert!(messages(&bytes).count() <= bytes.len() / 16 + 1);
        }
    }
}
