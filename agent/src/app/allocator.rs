//! Freed memory goes back to the system.
//!
//! In: nothing. Out: thresholds of glibc's allocator that stay as they are. Why: its threshold for memory of its own mapping
//! grows with every large block that is freed (the kernel's BTF at the start, a burst of events); later
//! blocks of that size then lie in the heap, which keeps them: 12 MiB of an agent without flows.
//! `unsafe` is for the one call; where else there is some: `crate::threats`.

/// Nothing happens where the C library is another one.
pub(super) fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt changes two numbers of the allocator, under the allocator's own lock.
        let set = unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10)
                + libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10)
        };
        if set != 2 {
            tracing::debug!("the allocator takes no thresholds: it may keep more memory than it needs");
        }
    }
}
