//! The ring in which the kernel lays packets of the capture's socket (TPACKET_V3), mapped into our memory.
//!
//! In: a packet socket with its filter. Out: the packets of closed blocks, each with the kernel's time of its arrival there. What
//! always holds: a block is read only while it is ours, and given back once; nothing is copied and no system call is made
//! for a packet. Why a ring: it stamps the packets that the filter has passed, while the socket's own timestamps
//! (SO_TIMESTAMPNS) have the kernel stamp every packet of the node, which costs that traffic more than the filter does.
//! Not here: the filter, what is in a packet. Own code: the libraries that wrap this bring a capture of their own.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::libc::{
    AF_PACKET, ETH_P_ALL, PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION, SOL_PACKET, TP_STATUS_KERNEL,
    TP_STATUS_USER, bind, c_int, c_void, getsockopt, setsockopt, sockaddr, sockaddr_ll, socklen_t,
    tpacket_block_desc, tpacket_hdr_v1, tpacket_req3, tpacket_stats_v3, tpacket_versions, tpacket3_hdr,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::model::Timestamp;

/// Has room for the largest packet there is.
const BLOCK: usize = 128 << 10;
const BLOCKS: usize = 32;
const BYTES: usize = BLOCK * BLOCKS;
/// A block that has packets is closed after this long, full or not: they come in swarms, each several times.
pub const RETIRE: Duration = Duration::from_millis(10);

/// `block_status` and its neighbours, from the block's beginning.
const HEADER: usize = offset_of!(tpacket_block_desc, hdr);
const STATUS: usize = HEADER + offset_of!(tpacket_hdr_v1, block_status);
const PACKETS: usize = HEADER + offset_of!(tpacket_hdr_v1, num_pkts);
const FIRST: usize = HEADER + offset_of!(tpacket_hdr_v1, offset_to_first_pkt);

pub struct Ring {
    socket: OwnedFd,
    start: NonNull<u8>,
    next: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and only the owner of the ring reads it.
unsafe impl Send for Ring {}

impl Ring {
    /// From here on the socket is given the packets of all devices and protocols.
    ///
    /// # Errors
    /// The kernel has no such rings, or no memory for one.
    pub fn on(socket: OwnedFd) -> io::Result<Self> {
        set(&socket, PACKET_VERSION, &(tpacket_versions::TPACKET_V3 as c_int))?;
        let wanted = tpacket_req3 {
            tp_block_size: BLOCK as u32,
            tp_block_nr: BLOCKS as u32,
            // Only checked: in this version a packet takes as much as it needs.
            tp_frame_size: BLOCK as u32,
            tp_frame_nr: BLOCKS as u32,
            tp_retire_blk_tov: RETIRE.as_millis() as u32,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        set(&socket, PACKET_RX_RING, &wanted)?;
        // SAFETY: a new mapping at an address of the kernel's choice, of exactly the ring that was just made.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                socket.as_fd(),
                0,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let ring = Self { socket, start, next: 0 };
        bind_to_all(&ring.socket)?;
        Ok(ring)
    }

    /// Readable when a block is closed.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Hands out the packets of the next closed block; `None`: there is none. Else how many they were.
    pub fn block(&mut self, mut each: impl FnMut(Timestamp, &[u8])) -> Option<usize> {
        // SAFETY: `next` is below `BLOCKS`, and the mapping has that many blocks of this size.
        let block = unsafe { self.start.add(self.next * BLOCK) };
        // SAFETY: the status is an aligned word inside of the block, which the kernel too writes as a whole.
        let status = unsafe { block.add(STATUS).cast::<AtomicU32>().as_ref() };
        if status.load(Ordering::Acquire) & TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: until it is given back below, the block is ours: the kernel does not write to it.
        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), BLOCK) };
        let count = read(bytes, &mut each);
        status.store(TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % BLOCKS;
        Some(count)
    }

    /// Packets that found no room since the last call.
    pub fn take_drops(&self) -> u64 {
        let mut stats = tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        let mut length = size_of::<tpacket_stats_v3>() as socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which is the size of what the pointer is to.
        let outcome = unsafe {
            let stats = (&raw mut stats).cast::<c_void>();
            getsockopt(self.socket.as_raw_fd(), SOL_PACKET, PACKET_STATISTICS, stats, &raw mut length)
        };
        // It does not fail for a packet socket; if it did, nothing would be known.
        if outcome == 0 { stats.tp_drops.into() } else { 0 }
    }
}

/// Walks a block's packets; what points out of it ends the walk.
fn read(block: &[u8], each: &mut impl FnMut(Timestamp, &[u8])) -> usize {
    let word = |at: usize| block.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let half = |at: usize| block.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes);
    let (Some(packets), Some(first)) = (word(PACKETS), word(FIRST)) else { return 0 };
    let mut at = first as usize;
    let mut count = 0;
    for _ in 0..packets {
        let field = |offset: usize| word(at + offset);
        let (Some(seconds), Some(nanoseconds), Some(length), Some(next), Some(start)) = (
            field(offset_of!(tpacket3_hdr, tp_sec)),
            field(offset_of!(tpacket3_hdr, tp_nsec)),
            field(offset_of!(tpacket3_hdr, tp_snaplen)),
            field(offset_of!(tpacket3_hdr, tp_next_offset)),
            half(at + offset_of!(tpacket3_hdr, tp_mac)),
        ) else {
            break;
        };
        let start = at + usize::from(start);
        let Some(packet) = block.get(start..start + length as usize) else { break };
        count += 1;
        each(Timestamp(i64::from(seconds) * 1_000_000_000 + i64::from(nanoseconds)), packet);
        if next == 0 {
            break; // the last one
        }
        at += next as usize;
    }
    count
}

fn bind_to_all(socket: &OwnedFd) -> io::Result<()> {
    let address = sockaddr_ll {
        sll_family: AF_PACKET as u16,
        sll_protocol: (ETH_P_ALL as u16).to_be(),
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<sockaddr_ll>() as socklen_t;
    // SAFETY: the kernel reads `length` bytes, which is the size of what the pointer is to.
    let outcome =
        unsafe { bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast::<sockaddr>(), length) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set<T>(socket: &OwnedFd, option: c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as socklen_t;
    // SAFETY: the kernel reads `length` bytes, which is the size of what the pointer is to; options of plain integers.
    let outcome = unsafe {
        let value = std::ptr::from_ref(value).cast::<c_void>();
        setsockopt(socket.as_raw_fd(), SOL_PACKET, option, value, length)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: exactly what `on` mapped, and nobody can hold a reference into it: `block` lends packets for a call only.
        // It can only fail for arguments that were not mapped.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(packets: &[&[u8]]) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        let mut put = |at: usize, value: u32| block[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        put(PACKETS, packets.len() as u32);
        put(FIRST, 48);
        let mut at = 48;
        for (n, packet) in (1..).zip(packets) {
            let mut field = |offset: usize, value: u32| {
                block[at + offset..at + offset + 4].copy_from_slice(&value.to_ne_bytes());
            };
            field(offset_of!(tpacket3_hdr, tp_sec), n);
            field(offset_of!(tpacket3_hdr, tp_nsec), 5);
            field(offset_of!(tpacket3_hdr, tp_snaplen), packet.len() as u32);
            field(offset_of!(tpacket3_hdr, tp_next_offset), 128 + packet.len() as u32);
            let mac = at + offset_of!(tpacket3_hdr, tp_mac);
            block[mac..mac + 2].copy_from_slice(&100_u16.to_ne_bytes());
            block[at + 100..at + 100 + packet.len()].copy_from_slice(packet);
            at += 128 + packet.len();
        }
        block
    }

    fn told(block: &[u8]) -> Vec<(i64, Vec<u8>)> {
        let mut told = Vec::new();
        let count = read(block, &mut |at: Timestamp, bytes: &[u8]| told.push((at.0, bytes.to_vec())));
        assert_eq!(count, told.len());
        told
    }

    #[test]
    fn packets_of_a_block_are_read_with_their_times() {
        let packets = told(&block(&[b"one", b"", b"three"]));
        let at = |second: i64| second * 1_000_000_000 + 5;
        assert_eq!(packets, [(at(1), b"one".to_vec()), (at(2), vec![]), (at(3), b"three".to_vec())]);
    }

    proptest::proptest! {
        /// Whatever a block says, nothing outside of it is read.
        #[test]
        fn what_points_elsewhere_ends_the_walk(
            words in proptest::collection::vec((0..64_usize, proptest::prelude::any::<u32>()), 1..20),
        ) {
            let mut block = block(&[b"one", b"two"]);
            for (place, value) in words {
                block[place * 4..place * 4 + 4].copy_from_slice(&value.to_ne_bytes());
            }
            block[PACKETS..PACKETS + 4].copy_from_slice(&100_u32.to_ne_bytes());
            let within = block.as_ptr_range();
            read(&block, &mut |_, bytes: &[u8]| {
                let packet = bytes.as_ptr_range();
                assert!(within.start <= packet.start && packet.end <= within.end);
            });
        }
    }
}
