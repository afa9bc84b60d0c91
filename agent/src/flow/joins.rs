//! What is told of sockets, on its way to their flows: processes and TCP statistics, by five-tuple.
//!
//! In: records of a socket, with the connection's original or reply tuple, in any order with the connection's own.
//! Out: a flow's processes (of both ends) and TCP samples (one a window and end). Always: a record waits until the
//! flush after the next, then it is counted as unmatched; a TCP record belongs to the end whose socket has this very
//! tuple (the original one is the client's, the reply the server's); totals are told as what they grew by, also over
//! resets and where a socket is told of several times; names and arguments are bounded, and so is the table.
//! Own code: the rules of which flow a tuple means are this project's.

use std::num::NonZeroUsize;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use lru::LruCache;

use crate::model::{Addresses, FiveTuple, FlowSide, Process, ProcessRecord, Proto, TcpRecord, TcpSample};

use super::{Askers, Connection, Denied, Flags};

/// Bytes of a process's name, or path, that are kept.
const NAME_BYTES: usize = 1024;
/// Arguments of a process that are kept, and their bytes in all.
const ARGS: usize = 64;
const ARGS_BYTES: usize = 4096;
/// Processes that are kept once for all of their flows.
const KNOWN_PROCESSES: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Retransmissions, lost packets, unrecovered timeouts: totals since the socket's start.
type Totals = [u64; 3];

/// By how much totals grew; one that went down began anew.
fn growth(before: Totals, now: Totals) -> Totals {
    let mut grown = now;
    for (grown, before) in grown.iter_mut().zip(before) {
        *grown = grown.checked_sub(before).unwrap_or(*grown);
    }
    grown
}

fn sum(a: Totals, b: Totals) -> Totals {
    let mut sum = a;
    for (sum, more) in sum.iter_mut().zip(b) {
        *sum = sum.saturating_add(more);
    }
    sum
}

/// A socket's records since it was last looked at.
#[derive(Clone, Copy, Debug)]
struct Told {
    latest: TcpRecord,
    first: Totals,
    /// Since `first`.
    grown: Totals,
}

fn totals(record: &TcpRecord) -> Totals {
    [record.retransmits, record.lost, record.unrecovered_rto]
}

/// The TCP state of one end of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpEnd {
    totals: Option<Totals>,
    /// Of this window.
    pub sample: Option<TcpSample>,
}

impl TcpEnd {
    /// `adopted`: what the socket counted before anybody looked is not this window's.
    fn tell(&mut self, told: &Told, adopted: bool) {
        let before = match self.totals {
            Some(totals) => growth(totals, told.first),
            None if adopted => Totals::default(),
            None => told.first,
        };
        self.totals = Some(totals(&told.latest));
        let earlier = self.sample.map(|s| [s.retransmits, s.lost, s.unrecovered_rto]).unwrap_or_default();
        let [retransmits, lost, unrecovered_rto] = sum(sum(before, told.grown), earlier);
        let TcpRecord { srtt_us, min_rtt_us, send_cwnd, mss, .. } = told.latest;
        self.sample =
            Some(TcpSample { srtt_us, min_rtt_us, send_cwnd, mss, retransmits, lost, unrecovered_rto });
    }
}

/// A tuple without its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pair(FiveTuple);

impl Pair {
    /// And whether the tuple was turned around for it.
    fn of(proto: Proto, addresses: Addresses) -> (Self, bool) {
        let turned = (addresses.src, addresses.src_port) > (addresses.dst, addresses.dst_port);
        let addresses = if turned { addresses.reversed() } else { addresses };
        (Self(FiveTuple { proto, addresses }), turned)
    }
}

/// `[source's, destination's]`.
pub type Processes = [Option<Arc<Process>>; 2];

#[derive(Clone, Debug, Default)]
struct Entry {
    processes: Processes,
    /// By whether the record's tuple was turned around.
    tcp: [Option<Told>; 2],
    /// A flow has taken it.
    taken: bool,
    /// It belongs to a connection that is over: nothing for the next one of this tuple.
    stale: bool,
    /// It has waited through a flush.
    old: bool,
}

impl Entry {
    fn has_processes(&self) -> bool {
        self.processes.iter().any(Option::is_some)
    }
}

/// What could not be joined. Totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JoinStats {
    /// Records that no flow was found for.
    pub process_unmatched: u64,
    pub tcp_unmatched: u64,
    /// Records refused because too many waited, and clients of DNS servers that gave way to others.
    pub overflow: u64,
    /// Processes of which a name or arguments were cut.
    pub process_truncated: u64,
}

pub struct Joins {
    entries: HashMap<Pair, Entry, RandomState>,
    limit: usize,
    processes: LruCache<u32, Arc<Process>>,
    pub askers: Askers,
    pub stats: JoinStats,
}

impl Joins {
    pub fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::default(),
            limit,
            processes: LruCache::new(KNOWN_PROCESSES),
            askers: Askers::new(limit),
            stats: JoinStats::default(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn entry(&mut self, pair: Pair) -> Option<&mut Entry> {
        if self.entries.len() >= self.limit && !self.entries.contains_key(&pair) {
            self.stats.overflow += 1;
            return None;
        }
        let entry = self.entries.entry(pair).or_default();
        if entry.stale {
            *entry = Entry::default();
        }
        entry.old = false;
        Some(entry)
    }

    pub fn observe_process(&mut self, record: &ProcessRecord) {
        let process = self.bounded(record);
        let (pair, _) = Pair::of(record.tuple.proto, record.tuple.addresses);
        let side = match record.side {
            FlowSide::Src => 0,
            FlowSide::Dst => 1,
        };
        if let Some(entry) = self.entry(pair) {
            entry.processes[side] = Some(process);
            entry.taken = false;
        }
    }

    /// The process within its bounds, the same in memory for all of its flows.
    fn bounded(&mut self, record: &ProcessRecord) -> Arc<Process> {
        let known = self.processes.get(&record.pid);
        if let Some(known) = known.filter(|known| is_same(known, record)) {
            return known.clone();
        }
        let name = cut(&record.name, NAME_BYTES);
        let mut left = ARGS_BYTES;
        let mut args = Vec::new();
        for arg in record.args.iter().take(ARGS) {
            let kept = cut(arg, left);
            left -= kept.len();
            let whole = kept.len() == arg.len();
            if whole || !kept.is_empty() {
                args.push(kept);
            }
            if !whole {
                break;
            }
        }
        let args: Arc<[Arc<str>]> = if args == *record.args { record.args.clone() } else { args.into() };
        self.stats.process_truncated += u64::from(name != record.name || args != record.args);
        let process = Arc::new(Process { pid: record.pid, name, args, pod_uid: record.pod_uid.clone() });
        self.processes.put(record.pid, process.clone());
        process
    }

    pub fn observe_tcp(&mut self, record: &TcpRecord) {
        let (pair, turned) = Pair::of(record.tuple.proto, record.tuple.addresses);
        let Some(entry) = self.entry(pair) else { return };
        match &mut entry.tcp[usize::from(turned)] {
            Some(told) => {
                told.grown = sum(told.grown, growth(totals(&told.latest), totals(record)));
                told.latest = *record;
            }
            none => *none = Some(Told { latest: *record, first: totals(record), grown: Totals::default() }),
        }
    }

    /// A connection begins: what was told of an earlier one of its tuple is not its own. `reopened`: an earlier one
    /// ended in this window, so what has been told since is taken at once.
    pub fn begin(&mut self, connection: &mut Connection, reopened: bool) {
        if self.entries.is_empty() {
            return;
        }
        let pairs = pairs(connection);
        if reopened {
            self.take_processes(connection, false);
            self.take_tcp(connection);
        }
        for (pair, _) in pairs {
            if reopened || self.entries.get(&pair).is_some_and(|entry| entry.stale) {
                self.entries.remove(&pair);
            }
        }
    }

    /// A connection ends: it takes what was told of it so far.
    pub fn end(&mut self, connection: &mut Connection) {
        if self.entries.is_empty() {
            return;
        }
        self.take_processes(connection, false);
        self.take_tcp(connection);
        for (pair, _) in pairs(connection) {
            if let Some(entry) = self.entries.get_mut(&pair) {
                entry.stale = true;
            }
        }
    }

    /// `over`: what came after its end is the connection's only where nothing came before.
    pub fn take_processes(&mut self, connection: &mut Connection, over: bool) {
        if self.entries.is_empty() {
            return;
        }
        for (pair, _) in pairs(connection) {
            let Some(entry) = self.entries.get_mut(&pair) else { continue };
            if entry.has_processes() {
                entry.taken = true;
                take(&mut connection.extra().processes, entry, over);
            }
        }
    }

    /// What [`Self::take_processes`] would give the connection by now: looked at, not taken.
    pub fn processes_of(&self, connection: &Connection, over: bool) -> Processes {
        let mut known = connection.extra.as_ref().map(|extra| extra.processes.clone()).unwrap_or_default();
        for entry in pairs(connection).iter().filter_map(|(pair, _)| self.entries.get(pair)) {
            take(&mut known, entry, over);
        }
        known
    }

    pub fn take_tcp(&mut self, connection: &mut Connection) {
        if self.entries.is_empty() {
            return;
        }
        let adopted = connection.flags.has(Flags::ADOPTED);
        let [original, reply] = pairs(connection);
        let mut tell = |side: usize, (pair, turned): (Pair, bool)| {
            let Some(entry) = self.entries.get_mut(&pair) else { return };
            if let Some(told) = entry.tcp[usize::from(turned)].take() {
                connection.extra().tcp[side].tell(&told, adopted);
            }
        };
        tell(0, original);
        if original != reply {
            tell(1, reply);
        }
    }

    /// A denied flow has processes too: the socket's tuple is the one before DNAT, or the one at the drop.
    pub fn take_denied(&mut self, denied: &mut Denied) {
        if self.entries.is_empty() {
            return;
        }
        for pair in pairs_of_denied(denied) {
            let Some(entry) = self.entries.get_mut(&pair) else { continue };
            entry.taken |= entry.has_processes();
            take(&mut denied.processes, entry, false);
        }
    }

    /// What [`Self::take_denied`] would give the denied flow by now: looked at, not taken.
    pub fn processes_of_denied(&self, denied: &Denied) -> Processes {
        let mut known = denied.processes.clone();
        for entry in pairs_of_denied(denied).filter_map(|pair| self.entries.get(&pair)) {
            take(&mut known, entry, false);
        }
        known
    }

    /// Every flow of the window has taken what is its own.
    pub fn close_window(&mut self) {
        self.askers.close_window();
        self.stats.overflow += std::mem::take(&mut self.askers.forgotten);
        let stats = &mut self.stats;
        self.entries.retain(|_, entry| {
            let waiting = entry.tcp.iter().flatten().count() as u64;
            if !entry.stale && !entry.old && (waiting > 0 || !entry.taken) {
                entry.old = true;
                return true;
            }
            stats.tcp_unmatched += waiting;
            if !entry.taken {
                stats.process_unmatched += entry.processes.iter().flatten().count() as u64;
            }
            false
        });
    }
}

/// Of the original and of the reply tuple.
fn pairs(connection: &Connection) -> [(Pair, bool); 2] {
    let proto = connection.key.proto;
    [Pair::of(proto, connection.key.original), Pair::of(proto, connection.reply())]
}

fn pairs_of_denied(denied: &Denied) -> impl Iterator<Item = Pair> + use<> {
    let proto = denied.key.tuple.proto;
    let tuples = [Some(denied.key.tuple.addresses), denied.original];
    tuples.into_iter().flatten().map(move |addresses| Pair::of(proto, addresses).0)
}

/// What was told last holds; `over`: what came after the end only where nothing came before.
fn take(known: &mut Processes, entry: &Entry, over: bool) {
    for (known, told) in known.iter_mut().zip(&entry.processes) {
        if let Some(told) = told.as_ref().filter(|_| !over || known.is_none()) {
            *known = Some(told.clone());
        }
    }
}

/// Records of one process share their texts, so that mostly no text is read.
fn is_same(known: &Process, record: &ProcessRecord) -> bool {
    known.pid == record.pid
        && known.name == record.name
        && (Arc::ptr_eq(&known.args, &record.args) || known.args == record.args)
        && known.pod_uid == record.pod_uid
}

/// The text, or as much of it as fits.
fn cut(text: &Arc<str>, bytes: usize) -> Arc<str> {
    if text.len() <= bytes {
        return text.clone();
    }
    text.get(..text.floor_char_boundary(bytes)).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::model::{ConnectionEvent, ConnectionRecord, Directional, Timestamp};

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn addresses(src: u8, src_port: u16, dst: u8, dst_port: u16) -> Addresses {
        Addresses { src: ip(src), dst: ip(dst), src_port, dst_port }
    }

    fn connection(original: Addresses, reply: Addresses) -> Connection {
        let record = ConnectionRecord {
            event: ConnectionEvent::New,
            proto: Proto::TCP,
            original,
            reply,
            icmp: None,
            zone: 0,
            counters: Directional::default(),
            tcp_state: None,
        };
        Connection::new(&record, Directional::default(), Timestamp(0))
    }

    fn tcp(addresses: Addresses, retransmits: u64) -> TcpRecord {
        TcpRecord {
            tuple: FiveTuple { proto: Proto::TCP, addresses },
            srtt_us: 100,
            min_rtt_us: 50,
            send_cwnd: 10,
            mss: 1448,
            retransmits,
            lost: 0,
            unrecovered_rto: 0,
        }
    }

    fn process(addresses: Addresses, side: FlowSide, name: &str) -> ProcessRecord {
        ProcessRecord {
            tuple: FiveTuple { proto: Proto::TCP, addresses },
            side,
            pid: 1,
            name: name.into(),
            args: Arc::default(),
            pod_uid: None,
            container: None,
        }
    }

    fn sample(connection: &Connection, side: usize) -> Option<u64> {
        connection.extra.as_ref()?.tcp[side].sample.map(|sample| sample.retransmits)
    }

    #[test]
    fn each_socket_is_of_the_end_that_has_its_tuple() {
        let plain = addresses(1, 1000, 2, 80);
        let dnat = (addresses(1, 1000, 9, 80), addresses(2, 8080, 7, 3333));
        for (original, reply) in [(plain, plain.reversed()), dnat] {
            let mut joins = Joins::new(10);
            joins.observe_tcp(&tcp(original, 1));
            joins.observe_tcp(&tcp(reply, 2));
            let mut connection = connection(original, reply);
            joins.take_tcp(&mut connection);
            assert_eq!((sample(&connection, 0), sample(&connection, 1)), (Some(1), Some(2)));
        }
    }

    #[test]
    fn totals_are_told_as_their_growth_over_records_resets_and_windows() {
        let original = addresses(1, 1000, 2, 80);
        let mut connection = connection(original, original.reversed());
        let mut joins = Joins::new(10);
        let mut window = |totals: &[u64]| {
            for n in totals {
                joins.observe_tcp(&tcp(original, *n));
            }
            joins.take_tcp(&mut connection);
            joins.close_window();
            let told = sample(&connection, 0);
            connection.extra().tcp[0].sample = None;
            told
        };
        assert_eq!(window(&[3]), Some(3));
        assert_eq!(window(&[5, 8]), Some(5));
        assert_eq!(window(&[9, 2, 4]), Some(5));
        assert_eq!(window(&[]), None);
        assert_eq!(window(&[1]), Some(1));
    }

    #[test]
    fn an_adopted_connection_begins_with_what_was_there() {
        let original = addresses(1, 1000, 2, 80);
        let mut connection = connection(original, original.reversed());
        connection.flags.set(Flags::ADOPTED);
        let mut joins = Joins::new(10);
        joins.observe_tcp(&tcp(original, 7));
        joins.observe_tcp(&tcp(original, 9));
        joins.take_tcp(&mut connection);
        assert_eq!(sample(&connection, 0), Some(2));
    }

    #[test]
    fn the_next_connection_of_a_tuple_does_not_take_the_last_ones_process() {
        let original = addresses(1, 1000, 2, 80);
        let mut joins = Joins::new(10);
        joins.observe_process(&process(original, FlowSide::Src, "first"));
        let mut first = connection(original, original.reversed());
        joins.begin(&mut first, false);
        joins.end(&mut first);
        let mut second = connection(original, original.reversed());
        joins.begin(&mut second, true);
        joins.observe_process(&process(original, FlowSide::Src, "second"));
        joins.take_processes(&mut second, false);
        joins.take_processes(&mut first, true);
        let name = |connection: &Connection| connection.extra.as_ref()?.processes[0].clone();
        assert_eq!(name(&first).map(|process| process.name.clone()).as_deref(), Some("first"));
        assert_eq!(name(&second).map(|process| process.name.clone()).as_deref(), Some("second"));
    }

    #[test]
    fn what_no_flow_takes_waits_through_one_flush_and_is_counted() {
        let mut joins = Joins::new(1);
        joins.observe_process(&process(addresses(1, 1, 2, 2), FlowSide::Dst, "a"));
        joins.observe_tcp(&tcp(addresses(1, 1, 2, 2), 1));
        joins.observe_tcp(&tcp(addresses(1, 1, 2, 3), 1));
        assert_eq!(joins.stats.overflow, 1);
        joins.close_window();
        assert!(!joins.is_empty());
        joins.close_window();
        assert!(joins.is_empty());
        assert_eq!((joins.stats.process_unmatched, joins.stats.tcp_unmatched), (1, 1));
    }

    #[test]
    fn names_and_arguments_are_cut_at_characters_and_shared() {
        let mut joins = Joins::new(10);
        let mut record = process(addresses(1, 1, 2, 2), FlowSide::Src, &"ä".repeat(NAME_BYTES));
        record.args = (0..ARGS + 10).map(|_| Arc::from("x".repeat(100))).collect();
        let process = joins.bounded(&record);
        assert_eq!(process.name.len(), NAME_BYTES);
        assert_eq!(process.args.iter().map(|arg| arg.len()).sum::<usize>(), ARGS_BYTES);
        assert_eq!(joins.stats.process_truncated, 1);
        let same = ProcessRecord { name: process.name.clone(), args: process.args.clone(), ..record };
        assert!(Arc::ptr_eq(&joins.bounded(&same), &process));
    }

    #[test]
    fn a_million_sockets_are_bounded() {
        let mut joins = Joins::new(1000);
        for n in 0..1_000_000_u32 {
            let [a, b, c, d] = n.to_be_bytes();
            let mut record = tcp(addresses(1, 1, 2, 2), 1);
            record.tuple.addresses.src = IpAddr::from([a | 11, b, c, d]);
            joins.observe_tcp(&record);
        }
        assert_eq!(joins.entries.len(), 1000);
        assert_eq!(joins.stats.overflow, 999_000);
    }

    /// Short-lived processes, each with a socket, a third of which are of a connection, in windows that hold fewer.
    #[test]
    fn a_million_processes_and_sockets_are_joined_or_counted() {
        const RECORDS: u32 = 1_000_000;
        let mut joins = Joins::new(4000);
        let mut joined = (0, 0);
        for n in 0..RECORDS {
            let [_, a, b, c] = n.to_be_bytes();
            let mut original = addresses(1, 1000, 2, 80);
            original.src = IpAddr::from([11, a, b, c]);
            let mut record = process(original, FlowSide::Src, "sh");
            record.pid = n;
            joins.observe_process(&record);
            joins.observe_tcp(&tcp(original, 1));
            if n % 3 == 0 {
                let mut connection = connection(original, original.reversed());
                joins.begin(&mut connection, false);
                joins.end(&mut connection);
                let Some(extra) = &connection.extra else { continue };
                joined.0 += extra.processes.iter().flatten().count() as u64;
                joined.1 += extra.tcp.iter().filter(|end| end.sample.is_some()).count() as u64;
            }
            if n % 5000 == 0 {
                joins.close_window();
            }
            assert!(joins.entries.len() <= 4000 && joins.processes.len() <= KNOWN_PROCESSES.get());
        }
        for _ in 0..3 {
            joins.close_window();
        }
        assert!(joins.is_empty());
        let JoinStats { process_unmatched, tcp_unmatched, overflow, .. } = joins.stats;
        let sum = joined.0 + joined.1 + process_unmatched + tcp_unmatched + overflow;
        assert_eq!(sum, 2 * u64::from(RECORDS), "{joined:?} {:?}", joins.stats);
        assert!(joined.0 > 0 && process_unmatched > 0 && overflow > 0);
    }
}
