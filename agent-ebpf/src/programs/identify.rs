//! Who runs the agent: its network namespace and its thread, as the kernel names them.
//!
//! In: one run by BPF_PROG_TEST_RUN from the agent's own thread. Out: `CONTROL.netns`, `netns_inum`, `thread`. What
//! always holds: the other programs report nothing before this has run (a namespace of 0 is nobody's). Not here: the
//! check that the namespace is the one user space sees (the agent compares inode numbers).

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_get_current_task};

use super::{CONTROL, read, setting};

/// Returns 0, or 1 where the chain task, nsproxy, net could not be read.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub extern "C" fn identify(_ctx: *mut core::ffi::c_void) -> i32 {
    // SAFETY: the helper has no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let Some(nsproxy) = read::<u64>(task, setting!(task_nsproxy)) else { return 1 };
    let Some(net) = read::<u64>(nsproxy, setting!(nsproxy_net)) else { return 1 };
    let inum = read::<u32>(net, setting!(net_inum)).unwrap_or(0);
    let Some(control) = CONTROL.get_ptr_mut(0) else { return 1 };
    // SAFETY: an array's slot lives as long as the map; other programs read single words of it.
    unsafe {
        (*control).netns_inum = u64::from(inum);
        (*control).thread = bpf_get_current_pid_tgid() as u32;
        (*control).netns = net;
    }
    0
}
