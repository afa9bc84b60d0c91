//! Counts of the programs, mapped into our memory.
//!
//! In: an array map in which each CPU has slots of its own. Out: sums over the CPUs. What always holds: reading costs no
//! system call: one that reads a map makes the kernel skip the kprobe programs of that CPU while it lasts, and with them
//! connections. Not here: what a slot means (`counts.rs`, `drops.rs`).

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{Map, MapData};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::load::OpenError;

/// CPUs that may ever come: the kernel numbers them below this.
pub(super) fn cpus() -> Result<u32, OpenError> {
    let cpus = aya::util::nr_cpus().map_err(|(what, error)| OpenError::Maps(format!("{what}: {error}")))?;
    u32::try_from(cpus).map_err(|error| OpenError::Maps(error.to_string()))
}

pub(super) struct Mapped {
    start: NonNull<AtomicU64>,
    /// Slots of one CPU, and CPUs.
    slots: usize,
    cpus: usize,
    /// The kernel frees the array when both the mapping and this are gone.
    _map: MapData,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only read, by atomic loads.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Takes the map `name`, made for `cpus` times `slots` counts.
    pub fn take(bpf: &mut Ebpf, name: &str, slots: u32, cpus: u32) -> Result<Self, OpenError> {
        let Some(Map::Array(map)) = bpf.take_map(name) else {
            return Err(OpenError::Maps(format!("the object lacks the array {name}")));
        };
        let (slots, cpus) = (slots as usize, cpus as usize);
        let bytes = slots * cpus * size_of::<AtomicU64>();
        // SAFETY: a new mapping at an address of the kernel's choice, of a file descriptor that is an mmapable array of
        // at least this size (the kernel refuses to map more than there is).
        let start = unsafe {
            mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, map.fd().as_fd(), 0)
        }
        .map_err(|error| OpenError::Maps(format!("cannot map {name} into memory: {error}")))?;
        let start = NonNull::new(start.cast())
            .ok_or_else(|| OpenError::Maps(format!("cannot map {name} into memory")))?;
        Ok(Self { start, slots, cpus, _map: map })
    }

    /// The sum of a slot over all CPUs; 0 for one that is not there.
    pub fn total(&self, slot: u32) -> u64 {
        let slot = slot as usize;
        if slot >= self.slots {
            return 0;
        }
        (0..self.cpus).fold(0, |sum, cpu| {
            // SAFETY: the index is below `cpus * slots`, the length of the mapping, which lives as long as `self` and is
            // aligned to a page; the kernel side writes the words whole.
            let count = unsafe { self.start.add(cpu * self.slots + slot).as_ref() };
            sum.wrapping_add(count.load(Ordering::Relaxed))
        })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let bytes = self.slots * self.cpus * size_of::<AtomicU64>();
        // SAFETY: exactly what `take` mapped, and nobody can hold a reference into it: `total` hands none out. It can only
        // fail for arguments that were not mapped.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), bytes) };
    }
}
