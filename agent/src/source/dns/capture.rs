//! The opt-in capture of DNS: one packet socket of this network namespace, with a classic filter for port 53.
//!
//! In: packets of all devices. Out: DNS observations, from a thread of its own, through a bounded queue. Always: the
//! socket gets nothing but what the filter passes (what came in before the filter stood is thrown away); nothing on
//! the node changes; packets that the kernel had to drop, that are malformed or that no queue takes are counted, by
//! reason. It needs CAP_NET_RAW. Stopping joins the thread; what was answered by then is told.
//! Not here: what is done with a lookup (the pipeline's), whether capture is wanted (`app`).

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::super::privilege;
use super::filter;
use super::matcher::{MatchStats, Matcher};
use super::packet::{self, Fault, PORT, Payload};
use super::stream::Streams;
use crate::model::{Observation, Timestamp};

/// Lookups that may wait for the pipeline.
const QUEUE: usize = 16 << 10;
/// Of the kernel's, asked for; it may give less (`net.core.rmem_max`).
const RECEIVE_BUFFER: usize = 4 << 20;
/// The largest packet there is.
const PACKET: usize = 64 << 10;
/// How long the thread waits for a packet while answers are held, and while none are.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
const IDLE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// Packets come in swarms, each several times: one look for many of them. Times are the kernel's, so that no latency
/// changes; the receive buffer has room for what comes meanwhile.
const GATHER: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
/// Packets between two looks at held answers.
const BATCH: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(
        "a packet socket is refused: {0}: give the agent CAP_NET_RAW, or turn dnsLogsFileEnabled and flowLogsCollectDestDomains off"
    )]
    Refused(io::Error),
    #[error(
        "a packet socket cannot be set up: {0}: this kernel lacks classic socket filters or packet sockets"
    )]
    Socket(io::Error),
    #[error("cannot start a thread: {0}: the process limit of this container or user may be too low")]
    Thread(io::Error),
}

/// What a capture has counted. Totals.
#[derive(Clone, Debug, Default)]
pub struct CaptureStats {
    pub packets: u64,
    /// Of the kernel, for want of buffer.
    pub dropped: u64,
    /// Lookups for which the queue was full.
    pub queue_full: u64,
    pub broken_streams: u64,
    pub faults: BTreeMap<&'static str, u64>,
    pub matches: MatchStats,
}

impl CaptureStats {
    /// Everything, each under its name.
    pub fn events(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let MatchStats { lookups, copies, unanswered, unasked, overflow } = self.matches;
        [
            ("packet", self.packets),
            ("packet_dropped_by_kernel", self.dropped),
            ("queue_full", self.queue_full),
            ("stream_broken", self.broken_streams),
            ("lookup", lookups),
            ("copy", copies),
            ("unanswered", unanswered),
            ("answer_without_question", unasked),
            ("table_full", overflow),
        ]
        .into_iter()
        .chain(self.faults.iter().map(|(fault, total)| (*fault, *total)))
    }
}

pub struct Capture {
    lookups: Receiver<(Timestamp, Observation)>,
    stats: Receiver<CaptureStats>,
    last: CaptureStats,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

/// Ends the thread, and wakes it for that.
struct Stop {
    asked: AtomicBool,
    wake: OwnedFd,
}

impl Stop {
    fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { asked: AtomicBool::new(false), wake })
    }

    fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
        // It cannot be full; and if it were, the thread would be awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// Opens the socket: what may go wrong goes wrong here. Also how `check` asks.
///
/// # Errors
/// What is missing.
pub fn open() -> Result<OwnedFd, CaptureError> {
    let _raised = privilege::raise();
    // ETH_P_ALL, in network order.
    let everything = Protocol::from(i32::from(3_u16.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking().cloexec(), Some(everything)).map_err(
        |error| match error.kind() {
            io::ErrorKind::PermissionDenied => CaptureError::Refused(error),
            _ => CaptureError::Socket(error),
        },
    )?;
    socket.attach_filter(&filter::program(PORT)).map_err(CaptureError::Socket)?;
    let socket = OwnedFd::from(socket);
    let failed = |error: Errno| CaptureError::Socket(error.into());
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).map_err(failed)?;
    setsockopt(&socket, sockopt::RxqOvfl, &1).map_err(failed)?;
    // Beyond net.core.rmem_max where CAP_NET_ADMIN is there.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER).map_err(failed)?;
    }
    // What came in between the socket and its filter is whatever the node sent.
    let mut one = [0_u8; 1];
    while rustix::io::read(&socket, &mut one).is_ok() {}
    Ok(socket)
}

impl Capture {
    /// # Errors
    /// What keeps it from starting.
    pub fn start() -> Result<Self, CaptureError> {
        let socket = open()?;
        let (lookups, queue) = sync_channel(QUEUE);
        let (tell, stats) = sync_channel(4);
        let stop = Arc::new(Stop::new().map_err(CaptureError::Thread)?);
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("dns".into())
            .spawn(move || Reader::new(socket).run(&lookups, &tell, &stopped))
            .map_err(CaptureError::Thread)?;
        Ok(Self { lookups: queue, stats, last: CaptureStats::default(), stop, thread: Some(thread) })
    }

    /// Lookups that have been told by now.
    pub fn take(&mut self, mut told: impl FnMut(Timestamp, Observation)) {
        while let Ok((at, lookup)) = self.lookups.try_recv() {
            told(at, lookup);
        }
    }

    pub fn stats(&mut self) -> &CaptureStats {
        while let Ok(stats) = self.stats.try_recv() {
            self.last = stats;
        }
        &self.last
    }

    /// Ends the thread and hands over what is left.
    pub fn stop(mut self, told: impl FnMut(Timestamp, Observation)) -> CaptureStats {
        self.stop.ask();
        if let Some(thread) = self.thread.take() {
            // A panic there has been told by the panic's own message; what was counted stays counted.
            let _ = thread.join();
        }
        self.take(told);
        self.stats().clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.ask();
    }
}

struct Reader {
    socket: OwnedFd,
    matcher: Matcher,
    streams: Streams,
    stats: CaptureStats,
}

impl Reader {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            matcher: Matcher::default(),
            streams: Streams::default(),
            stats: CaptureStats::default(),
        }
    }

    fn run(
        mut self,
        lookups: &SyncSender<(Timestamp, Observation)>,
        tell: &SyncSender<CaptureStats>,
        stop: &Stop,
    ) {
        let mut buffer = vec![0_u8; PACKET];
        loop {
            let stopping = stop.asked.load(Ordering::Relaxed);
            // A bounded batch: held answers must not wait for an end of packets.
            let mut packets = 0;
            while packets < BATCH && self.read(&mut buffer) {
                packets += 1;
            }
            let mut queue_full = 0;
            self.matcher.tell(now(), stopping, |at, record| {
                match lookups.try_send((at, Observation::Dns(record))) {
                    Ok(()) | Err(TrySendError::Disconnected(_)) => {}
                    Err(TrySendError::Full(_)) => queue_full += 1,
                }
            });
            self.stats.queue_full += queue_full;
            self.stats.matches = self.matcher.stats;
            self.stats.broken_streams = self.streams.broken;
            // A full channel holds older numbers, which the next ones replace.
            if stopping || packets < BATCH {
                let _ = tell.try_send(self.stats.clone());
            }
            if stopping {
                return;
            }
            let mut ready =
                [PollFd::new(&stop.wake, PollFlags::IN), PollFd::new(&self.socket, PollFlags::IN)];
            let (ready, wait) = match packets {
                BATCH => continue,
                0 if self.matcher.is_holding() => (&mut ready[..], WAIT),
                0 => (&mut ready[..], IDLE),
                _ => (&mut ready[..1], GATHER),
            };
            // Interrupted or not: the loop looks again.
            let _ = poll(ready, Some(&wait));
        }
    }

    /// One packet; `false`: there is none.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        let mut space = nix::cmsg_space!(nix::sys::time::TimeSpec, u32);
        let mut parts = [IoSliceMut::new(buffer)];
        let received =
            recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT);
        let (length, at) = match received {
            Ok(message) => {
                let mut at = None;
                for control in message.cmsgs().into_iter().flatten() {
                    match control {
                        ControlMessageOwned::ScmTimestampns(time) => {
                            let seconds = time.tv_sec().saturating_mul(1_000_000_000);
                            at = Some(Timestamp(seconds.saturating_add(time.tv_nsec())));
                        }
                        ControlMessageOwned::RxqOvfl(total) => self.stats.dropped = total.into(),
                        _ => {}
                    }
                }
                (message.bytes, at.unwrap_or_else(now))
            }
            Err(Errno::EAGAIN) => return false,
            Err(Errno::EINTR) => return true,
            // A device went down, say: the socket lives on.
            Err(_) => {
                *self.stats.faults.entry("receive").or_default() += 1;
                return false;
            }
        };
        self.stats.packets += 1;
        let bytes = buffer.get(..length).unwrap_or_default();
        if let Err(fault) = take(bytes, at, &mut self.matcher, &mut self.streams) {
            *self.stats.faults.entry(fault.name()).or_default() += 1;
        }
        true
    }
}

/// All that happens to a packet in user space.
pub fn take(bytes: &[u8], at: Timestamp, matcher: &mut Matcher, streams: &mut Streams) -> Result<(), Fault> {
    let sent = packet::open(bytes)?;
    match sent.payload {
        Payload::Datagram(payload) => matcher.message(sent.from, sent.to, packet::message(payload)?, at),
        Payload::Segment { sequence, begins, ends, bytes } => {
            let mut fault = None;
            streams.segment((sent.from, sent.to), sequence, begins, ends, bytes, |payload| {
                match packet::message(payload) {
                    Ok(message) => matcher.message(sent.from, sent.to, message, at),
                    Err(error) => fault = Some(error),
                }
            });
            if let Some(fault) = fault {
                return Err(fault);
            }
        }
    }
    Ok(())
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
