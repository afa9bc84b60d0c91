//! The opt-in capture of DNS: one packet socket of this network namespace, with a classic filter for port 53.
//!
//! In: packets of all devices. Out: DNS observations, from a thread of its own, through a bounded queue. Always: the
//! socket gets nothing but what the filter passes, from its first packet on; nothing on the node changes; packets that the kernel had to drop, that are malformed or that no queue takes are counted, by
//! reason. It needs CAP_NET_RAW. Stopping joins the thread; what was answered by then is told.
//! Not here: what is done with a lookup (the pipeline's), whether capture is wanted (`app`).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use socket2::{Domain, Socket, Type};

use super::super::privilege;
use super::filter;
use super::matcher::{HOLD, MatchStats, Matcher};
use super::packet::{self, Fault, PORT, Payload};
use super::ring::{RETIRE, Ring};
use super::stream::Streams;
use crate::model::{Observation, Proto, Timestamp};

/// Lookups that may wait for the pipeline.
const QUEUE: usize = 16 << 10;
/// How long the thread waits for a packet while answers are held, and while none are.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
const IDLE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// How long the last block may take to close: see [`RETIRE`].
const LAST: Timespec = Timespec { tv_sec: 0, tv_nsec: 3 * RETIRE.as_nanos() as i64 };
/// After so long a lookup has been told: its block is closed, and copies of the answer were waited for.
pub const SETTLED: Duration = Duration::from_millis((3 * RETIRE.as_millis() + HOLD.as_millis()) as u64);
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
    #[error(
        "a ring of packets cannot be made: {0}: this kernel lacks memory, or packet sockets with rings (CONFIG_PACKET_MMAP)"
    )]
    Ring(io::Error),
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
    stats: Arc<Mutex<CaptureStats>>,
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
pub fn open() -> Result<Ring, CaptureError> {
    let _raised = privilege::raise();
    // Of no protocol: it is given nothing before filter and ring are there.
    let socket =
        Socket::new(Domain::PACKET, Type::DGRAM.nonblocking().cloexec(), None).map_err(
            |error| match error.kind() {
                io::ErrorKind::PermissionDenied => CaptureError::Refused(error),
                _ => CaptureError::Socket(error),
            },
        )?;
    socket.attach_filter(&filter::program(PORT)).map_err(CaptureError::Socket)?;
    Ring::on(OwnedFd::from(socket)).map_err(CaptureError::Ring)
}

impl Capture {
    /// # Errors
    /// What keeps it from starting.
    pub fn start() -> Result<Self, CaptureError> {
        let ring = open()?;
        let (lookups, queue) = sync_channel(QUEUE);
        let stats = Arc::<Mutex<CaptureStats>>::default();
        let tell = stats.clone();
        let stop = Arc::new(Stop::new().map_err(CaptureError::Thread)?);
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("dns".into())
            .spawn(move || Reader::new(ring).run(&lookups, &tell, &stopped))
            .map_err(CaptureError::Thread)?;
        Ok(Self { lookups: queue, stats, stop, thread: Some(thread) })
    }

    /// Lookups that have been told by now.
    pub fn take(&mut self, mut told: impl FnMut(Timestamp, Observation)) {
        while let Ok((at, lookup)) = self.lookups.try_recv() {
            told(at, lookup);
        }
    }

    pub fn stats(&self) -> CaptureStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the thread and hands over what is left.
    pub fn stop(mut self, told: impl FnMut(Timestamp, Observation)) -> CaptureStats {
        self.stop.ask();
        if let Some(thread) = self.thread.take() {
            // A panic there has been told by the panic's own message; what was counted stays counted.
            let _ = thread.join();
        }
        self.take(told);
        self.stats()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.ask();
    }
}

struct Reader {
    ring: Ring,
    matcher: Matcher,
    streams: Streams,
    stats: CaptureStats,
}

impl Reader {
    fn new(ring: Ring) -> Self {
        Self {
            ring,
            matcher: Matcher::default(),
            streams: Streams::default(),
            stats: CaptureStats::default(),
        }
    }

    fn run(
        mut self,
        lookups: &SyncSender<(Timestamp, Observation)>,
        tell: &Mutex<CaptureStats>,
        stop: &Stop,
    ) {
        loop {
            let stopping = stop.asked.load(Ordering::Relaxed);
            if stopping {
                // What was answered by now lies in a block that is not closed yet.
                let _ = poll(&mut [PollFd::new(&self.ring.as_fd(), PollFlags::IN)], Some(&LAST));
            }
            // A bounded batch: held answers must not wait for an end of packets.
            let mut packets = 0;
            while packets < BATCH
                && let Some(more) = self.read()
            {
                packets += more;
            }
            if packets > 0 || stopping {
                self.stats.dropped += self.ring.take_drops();
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
            if stopping || packets < BATCH {
                tell.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.stats);
            }
            if stopping {
                return;
            }
            if packets >= BATCH {
                continue;
            }
            let socket = self.ring.as_fd();
            let mut ready = [PollFd::new(&stop.wake, PollFlags::IN), PollFd::new(&socket, PollFlags::IN)];
            let wait = if self.matcher.is_holding() { WAIT } else { IDLE };
            // Interrupted or not: the loop looks again.
            let _ = poll(&mut ready, Some(&wait));
        }
    }
}

impl Reader {
    /// The packets of a block; `None`: none is closed.
    fn read(&mut self) -> Option<usize> {
        let Self { ring, matcher, streams, stats } = self;
        ring.block(|at, bytes| {
            stats.packets += 1;
            if let Err(fault) = take(bytes, at, matcher, streams) {
                *stats.faults.entry(fault.name()).or_default() += 1;
            }
        })
    }
}

/// All that happens to a packet in user space.
pub fn take(bytes: &[u8], at: Timestamp, matcher: &mut Matcher, streams: &mut Streams) -> Result<(), Fault> {
    let sent = packet::open(bytes)?;
    match sent.payload {
        Payload::Datagram(payload) => {
            matcher.message(Proto::UDP, sent.from, sent.to, packet::message(payload)?, at);
        }
        Payload::Segment { sequence, begins, ends, bytes } => {
            let mut fault = None;
            streams.segment((sent.from, sent.to), sequence, begins, ends, bytes, |payload| {
                match packet::message(payload) {
                    Ok(message) => matcher.message(Proto::TCP, sent.from, sent.to, message, at),
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
