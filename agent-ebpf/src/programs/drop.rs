//! Dropped packets: counted in the kernel by tuple and reason, never sent one by one.
//!
//! In: the tracepoint `kfree_skb`. Out: `DROPS` (drops by a filter, by tuple and reason) and `REASONS` (all others,
//! by reason). What always holds: a drop by a filter inside the agent's network namespace is in `DROPS` or in a `STATS`
//! slot with its packets and bytes; bytes are IP bytes. Not here: names of reasons, who denied (the agent).

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::{btf_map, raw_tracepoint},
    programs::RawTracePointContext,
};
use flowlogd_ebpf::{
    ABSENT, DropCount, DropKey, KernelTuple, OLD_FILTER_REASON, REASON_SLOTS, REASON_SUBSYSTEM_BASE,
    Settings, Stat,
};

use super::hashes::{Hash, Hashes};
use super::{CpuCounts, add, add_to, boot_ns, count, load_setting, own_netns, read, setting};

/// The current generation of counts. User space puts a fresh map in its place and reads the old one once no program
/// can still be using it (the kernel waits for that before the replacement returns).
#[btf_map]
static DROPS: Hashes<{ size_of::<DropKey>() }, { size_of::<DropCount>() }> = Hashes::new();

#[btf_map]
static REASONS: CpuCounts<{ REASON_SLOTS as usize }> = CpuCounts::new();

const ETH_P_IP: u16 = 0x0800_u16.to_be();
const ETH_P_IPV6: u16 = 0x86DD_u16.to_be();
/// Extension headers walked at most; more is counted without ports.
const EXTENSION_HEADERS: usize = 6;

#[raw_tracepoint(tracepoint = "kfree_skb")]
pub fn drops(ctx: RawTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    let (reason, by_filter) = if setting!(has_reason) != 0 {
        let reason: u32 = ctx.arg(2);
        (reason, is_filter_reason(reason))
    } else {
        // Before 5.17 there is no reason: netfilter frees what its rules drop inside nf_hook_slow.
        let location: u64 = ctx.arg(1);
        let by_filter = location >= setting!(hook_start) && location < setting!(hook_end);
        (if by_filter { OLD_FILTER_REASON } else { 0 }, by_filter)
    };
    match is_ours(skb) {
        Some(true) => {}
        Some(false) => {
            count(Stat::DropsOtherNetns);
            return 0;
        }
        None => {
            count(Stat::DropsUnknownNetns);
            return 0;
        }
    }
    if by_filter {
        record(skb, reason);
    } else {
        let subsystem = reason >> 16;
        let index = if subsystem == 0 { reason } else { REASON_SUBSYSTEM_BASE.wrapping_add(subsystem) };
        add_to(&REASONS, if index < REASON_SLOTS { index } else { REASON_SLOTS - 1 }, 1);
    }
    0
}

#[inline(always)]
fn is_filter_reason(reason: u32) -> bool {
    let reason = u64::from(reason);
    let at = core::mem::offset_of!(Settings, filter_reasons);
    reason == load_setting(at)
        || reason == load_setting(at + 8)
        || reason == load_setting(at + 16)
        || reason == load_setting(at + 24)
        || reason == load_setting(at + 32)
}

/// Whether the packet is in the agent's network namespace: its device tells, else its socket. `None`: neither can.
#[inline(always)]
fn is_ours(skb: u64) -> Option<bool> {
    let own = own_netns();
    if own == 0 {
        return None;
    }
    let device: u64 = read(skb, setting!(skb_dev))?;
    if device != 0 {
        // A queued packet's device word may hold something else: unreadable then, and the socket tells.
        if let Some(net) = read::<u64>(device, setting!(dev_net)) {
            return Some(net == own);
        }
    }
    let socket: u64 = read(skb, setting!(skb_sk))?;
    if socket == 0 {
        return None;
    }
    Some(read::<u64>(socket, setting!(sock_net))? == own)
}

/// Where the packet's transport header is, and which.
struct Transport {
    offset: u32,
    proto: u8,
    /// False for a later fragment, or where the header is out of reach.
    reachable: bool,
}

fn record(skb: u64, reason: u32) {
    let mut key = DropKey { reason, ..Default::default() };
    let Some(bytes) = parse(skb, &mut key) else {
        count(Stat::DropsNotIp);
        return;
    };
    original(skb, &mut key);
    let drops: Option<&Hash<DropKey, DropCount>> = DROPS.get(0);
    let Some(drops) = drops else {
        full(bytes);
        return;
    };
    if let Some(counts) = drops.get_ptr_mut(&key) {
        grow(counts, bytes);
        return;
    }
    if drops.insert(&key, &DropCount { packets: 1, bytes, first_ns: boot_ns() }, BPF_NOEXIST) {
        return;
    }
    // Another CPU was first, or the map is full.
    match drops.get_ptr_mut(&key) {
        Some(counts) => grow(counts, bytes),
        None => full(bytes),
    }
}

#[inline(always)]
fn full(bytes: u64) {
    count(Stat::DropsFullPackets);
    add(Stat::DropsFullBytes, bytes);
}

#[inline(always)]
fn grow(counts: *mut DropCount, bytes: u64) {
    // SAFETY: a live map value, aligned to 8; every writer adds atomically.
    unsafe {
        add_atomically(&raw mut (*counts).packets, 1);
        add_atomically(&raw mut (*counts).bytes, bytes);
    }
}

/// The target has no compare-and-swap on old kernels, so `core` leaves `AtomicU64::fetch_add` out; the plain atomic add
/// has been there from the start.
///
/// # Safety
/// `to` must be a live map value, aligned to 8.
#[inline(always)]
unsafe fn add_atomically(to: *mut u64, n: u64) {
    // SAFETY: by contract; the instruction touches nothing else.
    unsafe {
        core::arch::asm!("lock *(u64 *)({to} + 0) += {n}", to = in(reg) to, n = in(reg) n, options(nostack))
    }
}

/// Fills addresses, protocol and ports; gives the IP length in bytes. `None`: not IP.
#[inline(always)]
fn parse(skb: u64, key: &mut DropKey) -> Option<u64> {
    let head: u64 = read(skb, setting!(skb_head))?;
    let network = u32::from(read::<u16>(skb, setting!(skb_network_header))?);
    let tail: u32 = read(skb, setting!(skb_tail))?;
    let protocol: u16 = read(skb, setting!(skb_protocol))?;
    let ip = head.wrapping_add(u64::from(network));
    let linear = tail.wrapping_sub(network);
    let (transport, mut bytes) = if protocol == ETH_P_IP {
        ipv4(ip, linear, key)?
    } else if protocol == ETH_P_IPV6 {
        ipv6(ip, linear, key)?
    } else {
        return None;
    };
    if bytes == 0 {
        // A length that does not fit its field (BIG TCP): what the buffer holds from the IP header on.
        let data: u64 = read(skb, setting!(skb_data))?;
        let len: u32 = read(skb, setting!(skb_len))?;
        bytes = u64::from(len).wrapping_add(data).wrapping_sub(ip);
    }
    key.proto = transport.proto;
    let has_ports = matches!(transport.proto, 6 | 17 | 33 | 132 | 136);
    let is_icmp = matches!(transport.proto, 1 | 58);
    if !has_ports && !is_icmp {
        return Some(bytes);
    }
    let start = ip.wrapping_add(u64::from(transport.offset));
    if !transport.reachable || transport.offset.wrapping_add(8) > linear {
        count(Stat::DropsNoPorts);
        return Some(bytes);
    }
    if has_ports {
        let ports: [u16; 2] = read(start, 0)?;
        key.src_port = ports[0];
        key.dst_port = ports[1];
    } else {
        let icmp: [u8; 8] = read(start, 0)?;
        key.icmp_type = icmp[0];
        key.icmp_code = icmp[1];
        let has_id = if transport.proto == 1 {
            // echo, timestamp, information and address mask, requests and replies
            matches!(icmp[0], 0 | 8 | 13 | 14 | 15 | 16 | 17 | 18)
        } else {
            // echo request and reply
            matches!(icmp[0], 128 | 129)
        };
        if has_id {
            key.src_port = u16::from_ne_bytes([icmp[4], icmp[5]]);
        }
    }
    Some(bytes)
}

#[inline(always)]
fn ipv4(ip: u64, linear: u32, key: &mut DropKey) -> Option<(Transport, u64)> {
    if linear < 20 {
        return None;
    }
    let header: [u8; 20] = read(ip, 0)?;
    if header[0] >> 4 != 4 {
        return None;
    }
    key.version = 4;
    key.src = [header[12], header[13], header[14], header[15], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    key.dst = [header[16], header[17], header[18], header[19], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let later_fragment = (u16::from_be_bytes([header[6], header[7]]) & 0x1fff) != 0;
    let transport =
        Transport { offset: u32::from(header[0] & 0x0f) * 4, proto: header[9], reachable: !later_fragment };
    Some((transport, u64::from(u16::from_be_bytes([header[2], header[3]]))))
}

#[inline(always)]
fn ipv6(ip: u64, linear: u32, key: &mut DropKey) -> Option<(Transport, u64)> {
    if linear < 40 {
        return None;
    }
    let first: [u8; 8] = read(ip, 0)?;
    if first[0] >> 4 != 6 {
        return None;
    }
    key.version = 6;
    key.src = read(ip, 8)?;
    key.dst = read(ip, 24)?;
    let payload = u64::from(u16::from_be_bytes([first[4], first[5]]));
    let bytes = if payload == 0 { 0 } else { payload + 40 };
    let mut transport = Transport { offset: 40, proto: first[6], reachable: true };
    for _ in 0..EXTENSION_HEADERS {
        let is_extension = matches!(transport.proto, 0 | 43 | 44 | 51 | 60);
        if !is_extension {
            break;
        }
        if transport.offset.wrapping_add(8) > linear {
            transport.reachable = false;
            break;
        }
        let Some(header) = read::<[u8; 4]>(ip.wrapping_add(u64::from(transport.offset)), 0) else {
            transport.reachable = false;
            break;
        };
        let length = match transport.proto {
            44 => {
                if (u16::from_be_bytes([header[2], header[3]]) & 0xfff8) != 0 {
                    transport.reachable = false;
                }
                8
            }
            51 => (u32::from(header[1]) + 2) * 4,
            _ => (u32::from(header[1]) + 1) * 8,
        };
        transport.proto = header[0];
        transport.offset += length;
        if !transport.reachable {
            break;
        }
    }
    Some((transport, bytes))
}

/// The address before DNAT: the connection's original tuple, if this packet travels in its original direction.
#[inline(always)]
fn original(skb: u64, key: &mut DropKey) {
    const IP_CT_NEW: u64 = 2;
    let Some(nfct) = read::<u64>(skb, setting!(skb_nfct)) else { return };
    let (conn, info) = (nfct & !7, nfct & 7);
    if conn == 0 || info > IP_CT_NEW {
        return;
    }
    let offset = setting!(ct_original);
    if offset == ABSENT {
        return;
    }
    let Some(words) = read::<[u64; 5]>(conn, offset) else { return };
    // The protocol is the seventh byte of the last word: an ICMP error rides on another protocol's connection.
    let bytes = words[4].to_ne_bytes();
    if bytes[6] != key.proto {
        return;
    }
    key.original = KernelTuple { words };
    key.has_original = 1;
}
