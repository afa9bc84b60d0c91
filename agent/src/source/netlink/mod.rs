//! The `netlink` source: connection tracking without BPF.
//!
//! In: ctnetlink NEW and DESTROY events and dumps of this network namespace. Out: observations with absolute
//! counters: New, Update, End, Adopt. Synchronous, for a thread of its own.
//!
//! What holds: DESTROY carries final counters, so that short connections are exact. An overrun of the receive
//! buffer (ENOBUFS) is counted with the number of messages lost and answered by a dump. With
//! `nf_conntrack_events=2` (the default since Linux 5.19) connections older than the subscription end without
//! a word: these are watched by a dump a second and ended on their last counters. Counters are never zeroed.
//!
//! Not here: deltas and expiry (flow), the one sysctl the agent may set (`accounting`).

mod live;
mod parse;
mod socket;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

pub use parse::{CtKey, CtKind, CtMessage, ParseError, parse_message};

use self::live::{Completeness, Live, Pass};
use self::socket::{Dumped, EventSocket, Received, RequestSocket, messages};
use crate::model::{Fill, Timestamp};
use crate::source::Observed;

const EVENTS_SYSCTL: &str = "/proc/sys/net/netfilter/nf_conntrack_events";
const MAX_SYSCTL: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// Messages the kernel dropped because the receive buffer was full.
const OVERRUN: &str = "netlink_overrun";
/// Messages that could not be read.
const PARSE_ERROR: &str = "netlink_parse_error";

/// How often connections that end without an event are looked at.
const TAIL_INTERVAL: Duration = Duration::from_secs(1);
/// After a loss: soon, but not in a tight loop while the burst that caused it goes on.
const RESYNC_INTERVAL: Duration = Duration::from_millis(100);
/// Dumps after a loss take at most a tenth of the time.
const RESYNC_SHARE: u32 = 10;
/// Those for adopted connections a hundredth: a TCP connection that is over stays in the table for ten seconds and more, a UDP
/// flow that rests for thirty, so that even some seconds between two looks miss little.
const TAIL_SHARE: u32 = 100;
/// Datagrams of a dump between two looks at the events: some thousand entries, milliseconds.
const TURN: usize = 32;
/// Entries that are looked up together: few enough that the caches hold them and what is found of them.
const BATCH: usize = 256;
/// How often an interrupted dump is tried.
const DUMP_ATTEMPTS: usize = 3;
/// Events of one drain behind a dump: more than any receive buffer holds, so that a drain ends under a storm too.
const DRAIN_LIMIT: usize = 1 << 18;
/// Events of one poll, so that what they become needs little room; the next poll goes on.
const POLL_LIMIT: usize = 1 << 15;
/// Room for events that is kept between polls.
const QUEUE_KEPT: usize = 1 << 12;

/// Kernel memory of events that wait to be read, where there is no reason for less.
pub const EVENT_BYTES: usize = 64 << 20;

#[derive(Clone, Debug)]
pub struct NetlinkOptions {
    /// Wanted size of the socket's receive buffer: an event takes about 1 KiB of it. The kernel's collector ends expired
    /// connections in bursts of tens of thousands; memory is taken only while events wait.
    pub receive_buffer_bytes: usize,
    /// Connections that are remembered; fewer where the kernel has no more.
    pub most_connections: usize,
}

impl Default for NetlinkOptions {
    fn default() -> Self {
        Self { receive_buffer_bytes: EVENT_BYTES, most_connections: 1 << 21 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "connection tracking may not be read: give the agent CAP_NET_ADMIN in this network namespace (or run it as root)"
    )]
    Permission(#[source] io::Error),
    #[error(
        "the kernel does not answer conntrack requests: load the module nf_conntrack_netlink (modprobe nf_conntrack_netlink), or use --source ebpf"
    )]
    Unavailable(#[source] io::Error),
    #[error(
        "net.netfilter.nf_conntrack_events is 0, so that no connection's end is told: set it to 2 (sysctl -w net.netfilter.nf_conntrack_events=2), or use --source ebpf"
    )]
    EventsOff,
    #[error(
        "this kernel has no conntrack events (CONFIG_NF_CONNTRACK_EVENTS is not set): use --source ebpf, or another kernel"
    )]
    EventsUnsupported,
    #[error("cannot {step}")]
    Socket { step: &'static str, source: io::Error },
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot read conntrack events: restart the agent if this stays")]
    Events(#[source] io::Error),
    #[error("cannot dump the connection table: the next pass tries again")]
    Dump(#[source] io::Error),
}

pub struct NetlinkSource {
    events: EventSocket,
    requests: RequestSocket,
    /// Read and not yet told: the queue is emptied first, told afterwards, so that a burst finds room.
    read: Vec<CtMessage>,
    /// Entries of a dump, read and not yet looked up.
    dumped: Vec<CtMessage>,
    /// The kernel was dropping messages when the queue was last looked at.
    congested: bool,
    live: Live,
    running: Option<Running>,
    /// `nf_conntrack_events=2`: adopted connections end without an event.
    silent_tail: bool,
    /// The sysctls of connection tracking could be seen at the start: without them it is not there.
    has_sysctls: bool,
    /// Messages were lost since the last pass began.
    lost: bool,
    last_pass: Instant,
    last_pass_took: Duration,
    /// The most bytes that were queued behind a dump since [`Self::fills`] was asked.
    queued: u64,
}

/// A pass whose dump is being read.
struct Running {
    pass: Pass,
    /// The time that its turns took so far.
    took: Duration,
    after_loss: bool,
    attempts: usize,
}

impl NetlinkSource {
    /// Subscribes to this thread's network namespace. Nothing is missed from here on: [`Self::adopt`] next.
    ///
    /// # Errors
    /// What is missing on this node, and what to do about it.
    pub fn open(options: &NetlinkOptions) -> Result<Self, OpenError> {
        let socket = |step: &'static str| {
            move |e: io::Error| match Errno::from_io_error(&e) {
                Some(Errno::PERM | Errno::ACCESS) => OpenError::Permission(e),
                _ => OpenError::Socket { step, source: e },
            }
        };
        let mut requests = RequestSocket::open().map_err(socket("open a netfilter netlink socket"))?;
        // Also makes the kernel load ctnetlink where it is a module.
        requests.count_entries().map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::PERM | Errno::ACCESS) => OpenError::Permission(e),
            _ => OpenError::Unavailable(e),
        })?;
        let silent_tail = match read_number(EVENTS_SYSCTL) {
            Some(0) => return Err(OpenError::EventsOff),
            Some(mode) => mode == 2,
            None if fs::exists(MAX_SYSCTL).unwrap_or(false) => return Err(OpenError::EventsUnsupported),
            // No sysctls to read (a masked /proc): the dump each second is the safe side.
            None => true,
        };
        let events = EventSocket::subscribe(options.receive_buffer_bytes)
            .map_err(socket("subscribe to conntrack events"))?;
        let capacity = read_number(MAX_SYSCTL)
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(262_144)
            .clamp(1 << 12, 1 << 21)
            .min(options.most_connections);
        Ok(Self {
            events,
            requests,
            read: Vec::new(),
            dumped: Vec::with_capacity(BATCH),
            congested: false,
            live: Live::new(capacity),
            running: None,
            silent_tail,
            has_sysctls: fs::exists(MAX_SYSCTL).unwrap_or(false),
            lost: false,
            last_pass: Instant::now(),
            last_pass_took: Duration::ZERO,
            queued: 0,
        })
    }

    /// Takes over the connections that already exist, each as Adopt; those born since [`Self::open`] as New.
    ///
    /// # Errors
    /// The sockets fail. `out` then holds what was read before.
    pub fn adopt(&mut self, out: &mut Vec<Observed>) -> Result<(), SourceError> {
        self.begin(Pass::Adopt, out)?;
        while self.turn(out)? {}
        Ok(())
    }

    /// Waits at most `timeout` for events and drains them; also does the dumps that are due on their own
    /// (after a loss, and for adopted connections), in parts, so that it may return later than `timeout` by a part's time.
    ///
    /// # Errors
    /// The sockets fail. `out` then holds what was read before.
    pub fn poll(&mut self, timeout: Duration, out: &mut Vec<Observed>) -> Result<(), SourceError> {
        if self.running.is_some() {
            return self.turn(out).map(drop);
        }
        let wait = self.next_own_pass().map_or(timeout, |due| timeout.min(due));
        self.events.wait(wait).map_err(SourceError::Events)?;
        self.tell_queued(POLL_LIMIT, out)?;
        if self.next_own_pass() == Some(Duration::ZERO) {
            self.begin(Pass::Quiet, out)?;
            self.turn(out)?;
        }
        Ok(())
    }

    /// An Update for every live connection; New for one that was never announced (after a loss).
    ///
    /// # Errors
    /// The sockets fail. `out` then holds what was read before.
    pub fn sweep(&mut self, out: &mut Vec<Observed>) -> Result<(), SourceError> {
        while self.sweep_part(out)? {}
        Ok(())
    }

    /// Some milliseconds of [`Self::sweep`], with the events that came meanwhile, so that many live connections hold up neither
    /// these nor much memory. True: more is to come.
    ///
    /// # Errors
    /// The sockets fail: this sweep is over. `out` then holds what was read before.
    pub fn sweep_part(&mut self, out: &mut Vec<Observed>) -> Result<bool, SourceError> {
        // One that is on its way on its own is finished first.
        if self.running.is_none() {
            self.begin(Pass::Sweep, out)?;
            if self.running.is_none() {
                return Ok(false);
            }
        }
        let is_sweep = self.running.as_ref().is_some_and(|running| running.pass == Pass::Sweep);
        Ok(self.turn(out)? || !is_sweep)
    }

    /// What was lost or left out since the last call, by stage:
    ///
    /// - `netlink_overrun`: event messages the kernel dropped; live connections are picked up by a dump
    /// - `netlink_parse_error`: messages that could not be read
    /// - `netlink_missed_end`: connections ended on their last known counters, their final ones were lost
    /// - `adopted_tail`: the same for connections older than the agent (`nf_conntrack_events=2`)
    /// - `adopted_unseen`: ended while the agent started, before a baseline could be read: not exported
    /// - `netlink_untracked`: looks at connections that found no room in the memory of live ones
    pub fn losses(&mut self) -> Vec<(&'static str, u64)> {
        self.live.losses.take()
    }

    /// How full the memory of live connections is, and the queue of events was behind the dumps since the last call.
    pub fn fills(&mut self) -> [Fill; 2] {
        let queued = std::mem::take(&mut self.queued);
        [self.live.fill(), Fill::bytes("netlink_events", queued, self.events.capacity())]
    }

    /// Time until a dump is due that nobody asks for; none is due while nothing is lost or silent.
    fn next_own_pass(&self) -> Option<Duration> {
        let (interval, share) = if self.lost {
            (RESYNC_INTERVAL, RESYNC_SHARE)
        } else if self.silent_tail && self.live.adopted() > 0 {
            (TAIL_INTERVAL, TAIL_SHARE)
        } else {
            return None;
        };
        let interval = interval.max(self.last_pass_took.saturating_mul(share));
        Some(interval.saturating_sub(self.last_pass.elapsed()))
    }

    /// Asks for a dump. Where nothing is tracked any more there is none, and the pass is over.
    fn begin(&mut self, pass: Pass, out: &mut Vec<Observed>) -> Result<(), SourceError> {
        if pass != Pass::Adopt {
            // Older events first: only what comes during the dump can race with it.
            self.tell_queued(DRAIN_LIMIT, out)?;
        }
        if self.has_sysctls && !fs::exists(MAX_SYSCTL).unwrap_or(true) {
            // The module was unloaded, and asking would make the kernel load it again (`nfnetlink_rcv_msg`). All that lived
            // has ended without a word. Once it is there again, the next pass must be soon, and tells what began meanwhile.
            self.live.begin_pass(pass);
            self.live.finish_pass(Completeness { whole: true, after_loss: true }, now(), out);
            self.last_pass = Instant::now();
            self.lost = true;
            return Ok(());
        }
        let after_loss = std::mem::take(&mut self.lost);
        self.live.begin_pass(pass);
        self.running = Some(Running { pass, took: Duration::ZERO, after_loss, attempts: 1 });
        self.requests.begin_dump().or_else(|e| self.abandon(SourceError::Dump(e)))
    }

    /// Reads a part of the dump, then the events that came meanwhile. False: the pass is over.
    fn turn(&mut self, out: &mut Vec<Observed>) -> Result<bool, SourceError> {
        let began = Instant::now();
        let Self { requests, live, running, dumped: batch, .. } = self;
        let Some(running) = running else { return Ok(false) };
        let at = now();
        let mut unread = 0;
        let read = requests.read_dump(TURN, |bytes| {
            match parse_message(bytes) {
                Ok(Some(m)) => batch.push(m),
                Ok(None) => {}
                Err(_) => unread += 1,
            }
            if batch.len() == BATCH {
                live.see(batch, at, out);
                batch.clear();
            }
        });
        live.see(batch, at, out);
        batch.clear();
        live.end_turn();
        if unread > 0 {
            live.losses.add(PARSE_ERROR, unread);
        }
        let again = matches!(read, Ok(Some(Dumped::Interrupted))) && running.attempts < DUMP_ATTEMPTS;
        if again {
            // A repeated dump adds to the same pass: what was seen twice counts once.
            running.attempts += 1;
            let begun = requests.begin_dump();
            begun.or_else(|e| self.abandon(SourceError::Dump(e)))?;
        }
        let dumped = match read {
            Err(e) => return self.abandon(SourceError::Dump(e)),
            Ok(dumped) => dumped.filter(|_| !again),
        };
        // A dump is what keeps us longest from reading.
        self.queued = self.queued.max(self.events.queued());
        // Nothing that this part of the dump was older than may be left untold.
        let mut emptied = false;
        for _ in 0..DRAIN_LIMIT / POLL_LIMIT {
            emptied = self.tell_queued(POLL_LIMIT, out).or_else(|e| self.abandon(e))?;
            if emptied {
                break;
            }
        }
        if emptied || self.lost {
            self.live.tell_seen(at, out);
        } else {
            self.live.forget_seen();
        }
        let Some(dumped) = dumped else {
            if let Some(running) = &mut self.running {
                running.took += began.elapsed();
            }
            return Ok(true);
        };
        let Some(Running { took, after_loss, .. }) = self.running.take() else { return Ok(false) };
        let whole = dumped == Dumped::Whole && emptied && !self.lost;
        // Ends that are owed but could not be told by an incomplete pass are owed to the next one.
        self.lost |= after_loss && !whole;
        self.live.finish_pass(Completeness { whole, after_loss }, now(), out);
        self.last_pass = Instant::now();
        self.last_pass_took = took + began.elapsed();
        Ok(false)
    }

    /// The pass cannot go on.
    fn abandon<T>(&mut self, error: SourceError) -> Result<T, SourceError> {
        self.live.abandon_pass();
        if let Some(running) = self.running.take() {
            self.lost |= running.after_loss;
        }
        self.last_pass = Instant::now();
        // A dump that was broken off leaves its rest in the socket.
        self.requests = RequestSocket::open().map_err(SourceError::Dump)?;
        Err(error)
    }

    /// Reads queued events, about `limit` of them at most, and tells them. True: see [`Self::drain`].
    fn tell_queued(&mut self, limit: usize, out: &mut Vec<Observed>) -> Result<bool, SourceError> {
        let mut read = std::mem::take(&mut self.read);
        let drained = self.drain(limit, &mut read);
        let at = now();
        for event in read.drain(..) {
            self.live.event(&event, at, out);
        }
        read.shrink_to(QUEUE_KEPT);
        self.read = read;
        drained
    }

    /// Reads queued events, about `limit` of them at most. True: the queue was emptied and nothing was lost on the way.
    fn drain(&mut self, limit: usize, queued: &mut Vec<CtMessage>) -> Result<bool, SourceError> {
        let Self { events, live, .. } = self;
        let mut headers = EventSocket::headers();
        let mut unread = 0;
        let mut overrun = 0;
        let mut failed = None;
        let emptied = loop {
            if queued.len() >= limit {
                break false;
            }
            let received = events.receive(&mut headers, |bytes| {
                for message in messages(bytes) {
                    match message.map_err(|()| ParseError::Header).and_then(parse_message) {
                        Ok(Some(m)) => queued.push(m),
                        Ok(None) => {}
                        Err(_) => unread += 1,
                    }
                }
            });
            match received {
                Ok(Received::Empty) => break true,
                Ok(Received::Overrun(n)) => {
                    self.congested = true;
                    overrun += n;
                }
                Ok(Received::Some) => {}
                Err(error) => {
                    failed = Some(SourceError::Events(error));
                    break false;
                }
            }
        };
        if self.congested {
            // Once it has dropped one, the kernel drops until the queue is empty.
            overrun += events.newly_dropped();
            self.congested = !emptied;
        }
        for (stage, n) in [(PARSE_ERROR, unread), (OVERRUN, overrun)] {
            if n > 0 {
                live.losses.add(stage, n);
                self.lost = true;
            }
        }
        failed.map_or(Ok(emptied && unread == 0 && overrun == 0), Err)
    }
}

/// Does the connection table of this thread's network namespace hold an entry with one of these addresses?
///
/// # Errors
/// The table cannot be dumped.
pub fn any_connection_of(addresses: &HashSet<IpAddr>) -> io::Result<bool> {
    let mut found = false;
    RequestSocket::open()?.dump(|bytes| {
        if let Ok(Some(m)) = parse_message(bytes) {
            let a = m.key.original.addresses;
            found |= [a.src, a.dst, m.reply.src, m.reply.dst].iter().any(|ip| addresses.contains(ip));
        }
    })?;
    Ok(found)
}

/// Makes the kernel walk its connection table: a dump whose answers nobody reads, for a program on the kernel's
/// side of it. `between` runs as it goes on.
///
/// # Errors
/// The table cannot be dumped.
pub fn walk_table(mut between: impl FnMut()) -> io::Result<()> {
    let mut entries = 0_u32;
    RequestSocket::open()?.dump(|_| {
        entries = entries.wrapping_add(1);
        if entries.is_multiple_of(64) {
            between();
        }
    })?;
    between();
    Ok(())
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
