//! Sockets: what their collectors share: the shards, the ring, a socket's addresses and statistics, the sweep.
//!
//! In: addresses of `struct sock`, and the offsets in [`SOCKET_SETTINGS`]. Out: entries of `SOCKETS`, records in
//! `SOCKET_EVENTS` and `SOCKETS_SWEPT`. What always holds: each collector (processes, TCP statistics) is a load of its own
//! with maps of its own; a socket that is not told has a slot in `STATS`; memory of sockets is reused, so an entry is
//! believed only while its protocol and state are those of a socket in use. Not here: which events make and end an entry
//! (`tcp.rs`, `process.rs`).

use core::ffi::c_void;

use aya_ebpf::{
    Global, bindings::BPF_ANY, btf_maps::RingBuf, helpers::generated::bpf_for_each_map_elem, macros::btf_map,
    programs::RawTracePointContext,
};
use flowlogd_ebpf::{
    ABSENT, ListenerKey, Socket, SocketFlags, SocketKind, SocketRecord, SocketSettings, Stat, TcpStats,
    shard_of,
};

use super::hashes::{Hash, Hashes};
use super::records::BPF_RB_NO_WAKEUP;
use super::{boot_ns, count, own_netns, read};

#[unsafe(no_mangle)]
pub static SOCKET_SETTINGS: Global<SocketSettings> = Global::new(SocketSettings::NONE);

/// Reads one field of [`SOCKET_SETTINGS`], as `setting!` does.
macro_rules! socket_setting {
    ($field:ident) => {
        $crate::programs::sockets::load_socket_setting(core::mem::offset_of!(
            flowlogd_ebpf::SocketSettings,
            $field
        ))
    };
}
pub(crate) use socket_setting;

#[inline(always)]
pub fn load_socket_setting(offset: usize) -> u64 {
    let settings: *const u8 = (&raw const SOCKET_SETTINGS).cast();
    // SAFETY: as in `load_setting`: a field's offset inside an initialised global of words.
    unsafe { core::ptr::read_volatile(settings.add(offset).cast::<u64>()) }
}

/// One slice of the live sockets, keyed by the address of the `sock`. Preallocated, never LRU.
pub type Shard = Hash<u64, Socket>;

#[btf_map]
static SOCKETS: Hashes<{ size_of::<u64>() }, { size_of::<Socket>() }> = Hashes::new();

/// Sockets that ended, and processes, each before the first socket that names it. Told apart by their size.
#[btf_map]
pub static SOCKET_EVENTS: RingBuf<SocketRecord, 4096> = RingBuf::new();

/// Records of sweeps: a whole shard fits.
#[btf_map]
static SOCKETS_SWEPT: RingBuf<SocketRecord, 4096> = RingBuf::new();

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

pub const ESTABLISHED: u32 = 1;
pub const SYN_SENT: u32 = 2;
pub const SYN_RECV: u32 = 3;
pub const FIN_WAIT1: u32 = 4;
pub const CLOSE: u32 = 7;
pub const CLOSE_WAIT: u32 = 8;
pub const LAST_ACK: u32 = 9;
pub const LISTEN: u32 = 10;

/// Sixteen bytes of zero, and the prefix of an IPv4 address in them.
const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

#[inline(always)]
pub fn shard(address: u64) -> Option<&'static Shard> {
    SOCKETS.get(shard_of(address, socket_setting!(shards)))
}

/// Enters a socket, in place of whatever had its address.
#[inline(always)]
pub fn enter(address: u64, socket: &Socket) {
    count(Stat::Sockets);
    let entered = match shard(address) {
        Some(shard) => shard.insert(&address, socket, BPF_ANY),
        None => false,
    };
    if !entered {
        count(Stat::SocketsFull);
    }
}

/// Takes a socket's entry out.
#[inline(always)]
pub fn leave(address: u64) -> Option<Socket> {
    let shard = shard(address)?;
    let entry = shard.get_ptr(&address)?;
    // SAFETY: a live map value; an entry that is reused meanwhile gives another socket's process for this one, which only a
    // socket that ends twice at once could cause.
    let entry = unsafe { *entry };
    shard.remove(&address);
    Some(entry)
}

/// The entry, to be changed in place.
#[inline(always)]
pub fn entry_of(address: u64) -> Option<*mut Socket> {
    shard(address)?.get_ptr_mut(&address)
}

#[inline(always)]
pub fn protocol(socket: u64) -> u8 {
    read::<u16>(socket, socket_setting!(protocol)).unwrap_or(0) as u8
}

fn v4(address: u32) -> [u8; 16] {
    let [a, b, c, d] = address.to_ne_bytes();
    let [p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, pa, pb] = V4_PREFIX;
    [p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, pa, pb, a, b, c, d]
}

/// Local and remote address.
#[inline(always)]
fn addresses(socket: u64) -> Option<([u8; 16], [u8; 16])> {
    match read::<u16>(socket, socket_setting!(family))? {
        AF_INET => {
            Some((v4(read(socket, socket_setting!(rcv_saddr))?), v4(read(socket, socket_setting!(daddr))?)))
        }
        AF_INET6 => {
            Some((read(socket, socket_setting!(v6_rcv_saddr))?, read(socket, socket_setting!(v6_daddr))?))
        }
        _ => None,
    }
}

/// Where a socket listens, or where the listener of an accepted socket is at its most exact.
#[inline(always)]
pub fn listener_key(socket: u64) -> Option<ListenerKey> {
    let (address, _) = addresses(socket)?;
    Some(ListenerKey {
        netns: read(socket, socket_setting!(net))?,
        address,
        port: read(socket, socket_setting!(sport))?,
        spare: [0; 3],
    })
}

/// The key of a listener on all addresses of this one's family; `None`: it is IPv6.
#[inline(always)]
pub fn any_v4(key: &ListenerKey) -> Option<ListenerKey> {
    let is_v4 = u64::from_ne_bytes([
        key.address[0],
        key.address[1],
        key.address[2],
        key.address[3],
        key.address[4],
        key.address[5],
        key.address[6],
        key.address[7],
    ]) == 0
        && key.address[8] == 0
        && key.address[9] == 0
        && key.address[10] == 0xff
        && key.address[11] == 0xff;
    is_v4.then(|| ListenerKey { address: v4(0), ..*key })
}

#[inline(always)]
fn tcp_stats(socket: u64, is_end: bool) -> TcpStats {
    let word = |offset: u64| read::<u32>(socket, offset).unwrap_or(0);
    let mut stats = TcpStats {
        srtt_us_8: word(socket_setting!(srtt)),
        rtt_min_us: word(socket_setting!(rtt_min)),
        snd_cwnd: word(socket_setting!(snd_cwnd)),
        mss: word(socket_setting!(mss_cache)),
        retransmits: word(socket_setting!(total_retrans)),
        lost: word(socket_setting!(lost)),
        rtos: 0,
        rto_rows: 0,
    };
    // Timeouts in a row that are not answered yet: once it closes, they never will be.
    let pending = if is_end { read::<u8>(socket, socket_setting!(icsk_retransmits)).unwrap_or(0) } else { 0 };
    if socket_setting!(total_rto) != ABSENT {
        stats.rtos = u32::from(read::<u16>(socket, socket_setting!(total_rto)).unwrap_or(0));
        stats.rto_rows = u32::from(read::<u16>(socket, socket_setting!(total_rto_recoveries)).unwrap_or(0));
        if pending != 0 {
            // The last of them is not followed by another one.
            stats.rtos += 1;
        }
    } else {
        stats.rtos = u32::from(pending);
    }
    stats
}

/// Fills a record. False: it has no address or port to be known by, or is a loopback of another network namespace.
///
/// # Safety
/// `record` must be a reserved ring entry.
#[inline(always)]
unsafe fn fill(
    record: *mut SocketRecord,
    socket: u64,
    entry: &Socket,
    kind: SocketKind,
    at_ns: u64,
    proto: u8,
) -> bool {
    let Some((local, remote)) = addresses(socket) else {
        count(Stat::SocketsUnread);
        return false;
    };
    let net = read::<u64>(socket, socket_setting!(net)).unwrap_or(0);
    let own = net != 0 && net == own_netns();
    let is_loopback = (local[12] == 127 && local[10] == 0xff && local[11] == 0xff)
        || (local[15] == 1 && local[14] == 0 && local[0] == 0 && local[1] == 0 && local[10] == 0);
    if is_loopback && !own {
        count(Stat::SocketsOtherLoopback);
        return false;
    }
    let local_port = read::<u16>(socket, socket_setting!(sport)).unwrap_or(0);
    if local_port == 0 {
        return false;
    }
    // SAFETY: by contract; all fields are written.
    unsafe {
        (*record).at_ns = at_ns;
        (*record).process = entry.process;
        (*record).local = local;
        (*record).remote = remote;
        (*record).local_port = local_port;
        (*record).remote_port = read::<u16>(socket, socket_setting!(dport)).unwrap_or(0);
        (*record).netns = read::<u32>(net, socket_setting!(net_inum)).unwrap_or(0);
        (*record).tcp = if socket_setting!(tcp) != 0 {
            tcp_stats(socket, kind as u8 == SocketKind::End as u8)
        } else {
            TcpStats::default()
        };
        (*record).flags = entry.flags | if own { SocketFlags::OWN_NETNS } else { 0 };
        (*record).proto = proto;
        (*record).state = read::<u8>(socket, socket_setting!(state)).unwrap_or(0);
        (*record).kind = kind as u8;
        (*record).spare = 0;
    }
    true
}

/// Tells of a socket that is being closed.
#[inline(always)]
pub fn tell_end(socket: u64, entry: &Socket, proto: u8) {
    let Some(mut room) = SOCKET_EVENTS.reserve(0) else {
        count(Stat::SocketsLost);
        return;
    };
    // SAFETY: a reserved ring entry.
    if unsafe { fill(room.as_mut_ptr(), socket, entry, SocketKind::End, boot_ns(), proto) } {
        count(Stat::SocketsEnded);
        room.submit(BPF_RB_NO_WAKEUP);
    } else {
        room.discard(BPF_RB_NO_WAKEUP);
    }
}

/// What a run of the sweep carries from entry to entry.
#[repr(C)]
struct Run {
    at_ns: u64,
    found: u32,
    full: u32,
}

#[inline(always)]
fn visit(address: u64, entry: *mut Socket, run: &mut Run, shard: &Shard) {
    // SAFETY: a live map value.
    let seen = unsafe { *entry };
    let proto = protocol(address);
    let state = read::<u8>(address, socket_setting!(state)).unwrap_or(0);
    let in_use = u32::from(proto) == seen.proto && (proto != TCP || u32::from(state) != CLOSE);
    if !in_use {
        count(Stat::SocketsStale);
        shard.remove(&address);
        return;
    }
    run.found += 1;
    let Some(mut room) = SOCKETS_SWEPT.reserve(0) else {
        count(Stat::SocketSweepFull);
        run.full = 1;
        return;
    };
    // SAFETY: a reserved ring entry.
    if unsafe { fill(room.as_mut_ptr(), address, &seen, SocketKind::Live, run.at_ns, proto) } {
        room.submit(BPF_RB_NO_WAKEUP);
    } else {
        room.discard(BPF_RB_NO_WAKEUP);
    }
}

/// The callback of `sweep_sockets`; 0 goes on, 1 stops.
unsafe extern "C" fn visit_socket(
    map: *mut c_void,
    key: *const u64,
    entry: *mut Socket,
    run: *mut Run,
) -> i64 {
    // SAFETY: the kernel passes the map, a key, a value and the context that `sweep_sockets` gave, all live for this call.
    let (address, run, shard) = unsafe { (*key, &mut *run, &*map.cast::<Shard>()) };
    visit(address, entry, run, shard);
    if run.full != 0 { 1 } else { 0 }
}

/// Tells of every live socket of the shard whose number is the first argument. Returns how many there were, or a
/// negative error number. Runs by BPF_PROG_TEST_RUN in the agent's own thread.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub extern "C" fn sweep_sockets(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let Some(shard): Option<&Shard> = SOCKETS.get(ctx.arg::<u32>(0)) else { return -2 };
    let mut run = Run { at_ns: boot_ns(), found: 0, full: 0 };
    // SAFETY: the callback has the signature that the kernel expects of this map; `run` outlives the call.
    let result = unsafe {
        bpf_for_each_map_elem(shard.as_ptr(), visit_socket as *mut c_void, (&raw mut run).cast(), 0)
    };
    if result < 0 { result as i32 } else { run.found as i32 }
}
