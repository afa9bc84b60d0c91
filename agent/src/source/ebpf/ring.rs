//! Reading a ring buffer of records.
//!
//! In: a ring that the programs fill. Out: records, in the order in which they were reserved. What always holds: one drain
//! is bounded, so that a busy kernel cannot keep the caller here. Not here: their meaning (`records.rs`).

use std::os::fd::AsFd;
use std::time::Duration;

use aya::maps::{Map, MapData, MapError, RingBuf};
use aya::{Ebpf, Pod};
use flowlogd_ebpf::ConnectionRecord;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::load::SourceError;
use crate::model::Fill;

/// Records read in one drain at most; the rest is for the next.
const DRAIN_LIMIT: usize = 1 << 17;

/// What the kernel keeps beside each record, which begins at a multiple of it (bytes).
const HEADER: usize = 8;

pub(super) struct Ring {
    ring: RingBuf<MapData>,
    capacity: u64,
    /// The most bytes that were found at once since [`Self::take_fill`].
    fill: u64,
    /// Records of another size: not from our programs' layout.
    pub malformed: u64,
}

impl Ring {
    pub fn take(bpf: &mut Ebpf, name: &str) -> Result<Self, MapError> {
        let map = bpf.take_map(name).ok_or(MapError::ElementNotFound)?;
        let capacity = match &map {
            Map::RingBuf(data) => u64::from(data.info()?.max_entries()),
            _ => 0, // refused by what follows
        };
        Ok(Self { ring: RingBuf::try_from(map)?, capacity, fill: 0, malformed: 0 })
    }

    /// How full it was found at most since the last call. What comes while it is read counts as found.
    pub fn take_fill(&mut self, name: &'static str) -> Fill {
        Fill::bytes(name, std::mem::take(&mut self.fill).min(self.capacity), self.capacity)
    }

    /// Hands out what is there now; gives how many records that were.
    pub fn drain(&mut self, mut each: impl FnMut(&ConnectionRecord)) -> usize {
        let mut malformed = 0;
        let n = self.drain_bytes(|bytes| match decode(bytes) {
            Some(record) => each(&record),
            None => malformed += 1,
        });
        self.malformed += malformed;
        n
    }

    /// The same for a ring of records of several kinds.
    pub fn drain_bytes(&mut self, mut each: impl FnMut(&[u8])) -> usize {
        let (mut n, mut bytes) = (0, 0);
        while n < DRAIN_LIMIT {
            let Some(item) = self.ring.next() else { break };
            n += 1;
            bytes += HEADER + item.len().next_multiple_of(HEADER);
            each(&item);
        }
        self.fill = self.fill.max(bytes as u64);
        n
    }

    /// Waits until the programs ask for attention (the ring fills), or there is something, or the time is over.
    pub fn wait(&self, timeout: Duration) -> Result<(), SourceError> {
        let mut fds = [PollFd::from_borrowed_fd(self.ring.as_fd(), PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(SourceError::Wait(error.into())),
        }
    }
}

pub(super) fn decode<T: Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the slice holds at least the record's size (checked above), any bytes are a valid record (`Pod`: integers
    // without padding, asserted where the type is defined), and `read_unaligned` asks for no alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_records_are_refused() {
        assert!(decode::<ConnectionRecord>(&[0; 135]).is_none());
        let mut bytes = [0_u8; 136];
        bytes[0] = 7;
        assert_eq!(
            decode::<ConnectionRecord>(&bytes).unwrap().at_ns,
            u64::from_ne_bytes([7, 0, 0, 0, 0, 0, 0, 0])
        );
    }
}
