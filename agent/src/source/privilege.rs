//! The least privilege: what of its capabilities a thread may use, and when.
//!
//! In: the capabilities that the process was started with. Out: a process that keeps only those which its sources need
//! ([`confine`]), and a guard that makes them effective for as long as a system call of the kernel side needs them
//! ([`raise`]). What always holds: outside such a guard no capability is effective, so that whatever reads hostile bytes
//! runs without any; nothing is ever gained that was not permitted; children gain nothing by their file's bits.
//! Capabilities belong to a thread, and a new thread has its parent's: `confine` comes before the first one.
//! Which source needs which is told by `probe`; what the manifest grants, by `deploy`.

use rustix::io;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs,
};

/// What may ever be needed: bpf(2), perf_event_open(2) and netlink; where they are granted also the packets of DNS, the
/// addresses in /proc/kallsyms (kernels without drop reasons), and to give the live socket to its group.
pub const KEPT: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYSLOG)
    .union(CapabilitySet::CHOWN);

/// Debian's kernels ask for CAP_SYS_ADMIN in perf_event_open(2), and so for kprobes, above this level.
const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";
const STRICT: i32 = 2;

/// Does this kernel ask for more than CAP_PERFMON before it lets a kprobe be attached?
pub fn kprobes_need_sys_admin() -> bool {
    let level = std::fs::read_to_string(PARANOID).ok().and_then(|text| text.trim().parse::<i32>().ok());
    level.is_some_and(|level| level > STRICT)
}

fn kept() -> CapabilitySet {
    if kprobes_need_sys_admin() { KEPT | CapabilitySet::SYS_ADMIN } else { KEPT }
}

/// Keeps of what is permitted only [`KEPT`] (and CAP_SYS_ADMIN where kprobes need it), and makes none of it effective. Once, before any other thread.
///
/// # Errors
/// The kernel refuses; then everything is as it was.
pub fn confine() -> io::Result<()> {
    set_no_new_privs(true)?;
    // A kernel that knows no ambient set has nothing in it.
    let _ = clear_ambient_capability_set();
    let before = capabilities(None)?;
    let sets = confined(before);
    set_capabilities(None, sets)
}

fn confined(before: CapabilitySets) -> CapabilitySets {
    CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: before.permitted & kept(),
        inheritable: CapabilitySet::empty(),
    }
}

/// While it lives, everything that this thread is permitted is effective.
#[must_use = "capabilities are lowered again when this is dropped"]
pub struct Raised {
    before: Option<CapabilitySets>,
}

/// Makes effective what this thread is permitted. Does nothing where it is already (in a guard, or in a process that was
/// not confined); a refusal shows in the call that then fails.
pub fn raise() -> Raised {
    let before = capabilities(None).ok().filter(|sets| sets.effective != sets.permitted);
    let raised = before
        .filter(|sets| set_capabilities(None, CapabilitySets { effective: sets.permitted, ..*sets }).is_ok());
    Raised { before: raised }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // Lowering is never refused.
            let _ = set_capabilities(None, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own: capabilities are a thread's.
    fn on_a_thread(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn only_what_the_sources_need_is_kept_and_it_is_effective_only_in_a_guard() {
        on_a_thread(|| {
            let start = capabilities(None).unwrap();
            confine().unwrap();
            let kept = start.permitted & kept();
            let now = || capabilities(None).unwrap();
            let none = CapabilitySet::empty();
            assert_eq!((now().permitted, now().effective, now().inheritable), (kept, none, none));
            {
                let _outer = raise();
                assert_eq!(now().effective, kept);
                {
                    let _inner = raise();
                    assert_eq!(now().effective, kept);
                }
                assert_eq!(now().effective, kept, "an inner guard does not lower what the outer one needs");
            }
            assert_eq!(now().effective, none);
            // What was given up does not come back.
            let all = CapabilitySets { permitted: CapabilitySet::all(), ..now() };
            assert!(set_capabilities(None, all).is_err());
        });
    }

    #[test]
    fn a_process_that_was_not_confined_is_left_as_it_is() {
        on_a_thread(|| {
            let start = capabilities(None).unwrap();
            drop(raise());
            assert_eq!(capabilities(None).unwrap(), start);
        });
    }
}
