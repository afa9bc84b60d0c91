//! Processes: who holds a socket, told where the kernel runs in the process's own context.
//!
//! In: `inet_sock_set_state` (a connect, a listen, a close), cgroup programs at the creation and release of UDP sockets, the
//! return of `inet_csk_accept` where the kernel has kprobes, and an iterator over open files for sockets that are older than
//! the agent. Out: entries of `SOCKETS` and `LISTENERS`; a [`ProcessRecord`] the first time that a process is met, before any
//! record that names it. What always holds: nothing runs per packet or per datagram; `current` is looked at only where it is
//! the process's own; user memory is read only of `current`, and a page that is not there is no error (the agent asks /proc).
//! Not here: names as text, pods (the agent).

use core::ffi::c_void;

use aya_ebpf::{
    bindings::bpf_sock,
    btf_maps::{HashMap, LruHashMap},
    helpers::generated::{
        bpf_get_current_task, bpf_probe_read_kernel_str, bpf_probe_read_user, bpf_sock_from_file,
    },
    macros::{btf_map, kretprobe, raw_tracepoint},
    programs::{RawTracePointContext, RetProbeContext},
};
use flowlogd_ebpf::{
    ABSENT, ARGS_BYTES, ARGS_UNREAD, Listener, ListenerKey, PART_BYTES, PATH_PARTS, ProcessKey,
    ProcessRecord, Socket, SocketFlags, Stat,
};

use super::records::BPF_RB_NO_WAKEUP;
use super::sockets::{
    CLOSE, CLOSE_WAIT, ESTABLISHED, FIN_WAIT1, LAST_ACK, LISTEN, SOCKET_EVENTS, SYN_RECV, SYN_SENT, TCP, UDP,
    any_v4, enter, entry_of, leave, listener_key, protocol, socket_setting, tell_end,
};
use super::{count, read};

/// Processes that user space has been told of. One that falls out is told again.
#[btf_map]
static TOLD: LruHashMap<ProcessKey, u32, 1> = LruHashMap::new();

#[btf_map]
static LISTENERS: HashMap<ListenerKey, Listener, 1> = HashMap::new();

/// Who the task's process is, told to user space if it is new. `own`: the task is `current`.
#[inline(always)]
fn process_of(task: u64, own: bool) -> ProcessKey {
    let mut key = ProcessKey::default();
    identify(task, own, &mut key);
    key
}

/// Out of line: each copy would be verified with all its ways.
#[inline(never)]
fn identify(task: u64, own: bool, out: &mut ProcessKey) {
    *out = look(task, own);
}

#[inline(always)]
fn look(task: u64, own: bool) -> ProcessKey {
    let Some(leader) = read::<u64>(task, socket_setting!(leader)) else { return ProcessKey::default() };
    let key = ProcessKey {
        start_ns: read(leader, socket_setting!(start)).unwrap_or(0),
        pid: read(leader, socket_setting!(tgid)).unwrap_or(0),
        exec: read(leader, socket_setting!(exec_id)).unwrap_or(0),
    };
    if TOLD.get_ptr(&key).is_some() {
        return key;
    }
    let Some(mut room) = SOCKET_EVENTS.reserve_untyped::<ProcessRecord>(0) else {
        // Tried again with its next socket.
        count(Stat::ProcessesLost);
        return key;
    };
    let record: *mut ProcessRecord = room.as_mut_ptr();
    // SAFETY: a reserved ring entry; all fields are written.
    unsafe {
        (*record).key = key;
        (*record).cgroup = cgroup_of(task);
        (*record).netns = netns_of(task);
        (*record).spare = 0;
        (*record).name = read(leader, socket_setting!(comm)).unwrap_or([0; 16]);
        (*record).args_length = ARGS_UNREAD;
        (*record).path_length = 0;
        let mm = read::<u64>(task, socket_setting!(mm)).unwrap_or(0);
        if mm != 0 {
            if own {
                read_args(record, mm);
            }
            if socket_setting!(paths) != 0 {
                read_path(record, mm, task);
            }
        }
    }
    room.submit(BPF_RB_NO_WAKEUP);
    count(Stat::Processes);
    let _ = TOLD.insert(&key, &1, 0);
    key
}

#[inline(always)]
fn current() -> ProcessKey {
    // SAFETY: the helper has no preconditions.
    process_of(unsafe { bpf_get_current_task() }, true)
}

#[inline(always)]
fn cgroup_of(task: u64) -> u64 {
    let id = || -> Option<u64> {
        let set = read::<u64>(task, socket_setting!(cgroups))?;
        let group = read::<u64>(set, socket_setting!(dfl_cgrp))?;
        let node = read::<u64>(group, socket_setting!(kn))?;
        read::<u64>(node, socket_setting!(kn_id))
    };
    id().unwrap_or(0)
}

#[inline(always)]
fn netns_of(task: u64) -> u32 {
    let inum = || -> Option<u32> {
        let proxy = read::<u64>(task, socket_setting!(nsproxy))?;
        let net = read::<u64>(proxy, socket_setting!(net_ns))?;
        read::<u32>(net, socket_setting!(net_inum))
    };
    inum().unwrap_or(0)
}

/// # Safety
/// `record` must be a reserved ring entry.
#[inline(always)]
unsafe fn read_args(record: *mut ProcessRecord, mm: u64) {
    let start = read::<u64>(mm, socket_setting!(arg_start)).unwrap_or(0);
    let end = read::<u64>(mm, socket_setting!(arg_end)).unwrap_or(0);
    if start == 0 || end <= start {
        return;
    }
    let length = end - start;
    let kept = if length < ARGS_BYTES as u64 { length as u32 } else { ARGS_BYTES as u32 };
    // SAFETY: at most ARGS_BYTES into a field of that size; the helper checks the source.
    unsafe {
        let to = (&raw mut (*record).args).cast::<c_void>();
        if bpf_probe_read_user(to, kept, start as *const c_void) == 0 {
            (*record).args_length = if length < 0xffff { length as u32 } else { 0xffff };
        } else {
            count(Stat::ArgsUnread);
        }
    }
}

/// The executable's path as the process itself would write it: up to its own root, through the mounts.
///
/// # Safety
/// `record` must be a reserved ring entry.
#[inline(always)]
unsafe fn read_path(record: *mut ProcessRecord, mm: u64, task: u64) {
    let walk = || -> Option<()> {
        let file = read::<u64>(mm, socket_setting!(exe_file))?;
        let path = file.wrapping_add(socket_setting!(f_path));
        let mut dentry = read::<u64>(path, socket_setting!(path_dentry))?;
        let mnt = read::<u64>(path, socket_setting!(path_mnt))?;
        let fs = read::<u64>(task, socket_setting!(fs))?;
        let root = fs.wrapping_add(socket_setting!(fs_root));
        let root_dentry = read::<u64>(root, socket_setting!(path_dentry))?;
        let root_mnt = read::<u64>(root, socket_setting!(path_mnt))?;
        let mut mount = mnt.wrapping_sub(socket_setting!(mount_mnt));
        let root_mount = root_mnt.wrapping_sub(socket_setting!(mount_mnt));
        let mut parts = 0_usize;
        // One slot a round, also where the round goes up through a mount point (the slot stays empty): the verifier must not
        // see a round in as many states as there are ways to have come there.
        while parts < PATH_PARTS {
            if dentry == root_dentry && mount == root_mount {
                break;
            }
            // SAFETY: a slot of the path, of PART_BYTES.
            let slot = unsafe { (&raw mut (*record).path[parts & (PATH_PARTS - 1)]).cast::<u8>() };
            parts += 1;
            let top = read::<u64>(mount.wrapping_add(socket_setting!(mount_mnt)), socket_setting!(mnt_root))?;
            let parent = read::<u64>(dentry, socket_setting!(d_parent))?;
            if dentry == top || dentry == parent {
                // SAFETY: as above.
                unsafe { slot.write(0) };
                let above = read::<u64>(mount, socket_setting!(mount_parent))?;
                if above == mount {
                    break;
                }
                dentry = read::<u64>(mount, socket_setting!(mountpoint))?;
                mount = above;
                continue;
            }
            let name = read::<u64>(dentry, socket_setting!(d_name))?;
            // SAFETY: as above; the helper checks the source and closes with a zero.
            unsafe { bpf_probe_read_kernel_str(slot.cast(), PART_BYTES as u32, name as *const c_void) };
            dentry = parent;
        }
        if !(dentry == root_dentry && mount == root_mount) && parts >= PATH_PARTS {
            parts += 1;
        }
        // SAFETY: by contract.
        unsafe { (*record).path_length = parts as u32 };
        Some(())
    };
    let _ = walk();
}

/// The process that listens where this accepted socket was received.
#[inline(always)]
fn listener_of(socket: u64) -> Option<ProcessKey> {
    let key = listener_key(socket)?;
    let found = match LISTENERS.get_ptr(&key) {
        Some(found) => Some(found),
        None => {
            let of_family = any_v4(&key).and_then(|key| LISTENERS.get_ptr(&key));
            match of_family {
                Some(found) => Some(found),
                None => LISTENERS.get_ptr(&ListenerKey { address: [0; 16], ..key }),
            }
        }
    };
    // SAFETY: a live map value.
    found.map(|found| unsafe { (*found).process })
}

#[inline(always)]
fn listen(socket: u64, process: ProcessKey) {
    let Some(key) = listener_key(socket) else { return };
    if LISTENERS.insert(&key, &Listener { process, socket }, 0).is_err() {
        count(Stat::ListenersFull);
    }
}

#[inline(always)]
fn listen_no_more(socket: u64) {
    let Some(key) = listener_key(socket) else { return };
    let Some(listener) = LISTENERS.get_ptr(&key) else { return };
    // SAFETY: a live map value. Another socket may share address and port (SO_REUSEPORT) and be the last to have come.
    if unsafe { (*listener).socket } == socket {
        let _ = LISTENERS.remove(&key);
    }
}

/// `inet_sock_set_state(sk, oldstate, newstate)`
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn process_state(ctx: RawTracePointContext) -> i32 {
    let socket: u64 = ctx.arg(0);
    let old: u32 = ctx.arg(1);
    let new: u32 = ctx.arg(2);
    if protocol(socket) != TCP {
        return 0;
    }
    let proto = u32::from(TCP);
    if new == SYN_SENT {
        enter(socket, &Socket { process: current(), flags: SocketFlags::OWNER, proto });
    } else if new == LISTEN {
        listen(socket, current());
    } else if new == SYN_RECV && old == LISTEN {
        // A new socket: whatever is under its address was not seen to end.
        let _ = leave(socket);
    } else if new == ESTABLISHED && old == SYN_RECV {
        if entry_of(socket).is_some() {
            return 0; // both ends began at once
        }
        let process = listener_of(socket).unwrap_or_default();
        enter(socket, &Socket { process, flags: SocketFlags::ACCEPTED, proto });
    } else if (new == FIN_WAIT1 && (old == ESTABLISHED || old == SYN_RECV))
        || (new == LAST_ACK && old == CLOSE_WAIT)
    {
        // Only a holder closes or shuts it down: who that is matters for one that was accepted.
        own(socket);
    } else if new == CLOSE {
        if old == LISTEN {
            listen_no_more(socket);
        } else if let Some(entry) = leave(socket) {
            tell_end(socket, &entry, TCP);
        }
    }
    0
}

/// The current process holds this socket.
#[inline(always)]
fn own(socket: u64) {
    let Some(entry) = entry_of(socket) else { return };
    // SAFETY: a live map value; a holder keeps the socket, and with it the entry, from ending.
    unsafe {
        if (*entry).flags & SocketFlags::OWNER != 0 {
            return;
        }
        let process = current();
        if process.pid != 0 {
            (*entry).process = process;
            (*entry).flags |= SocketFlags::OWNER;
        }
    }
}

/// The return of `inet_csk_accept`: the process that accepts.
#[kretprobe]
pub fn process_accept(ctx: RetProbeContext) -> u32 {
    let socket: u64 = ctx.ret();
    // Null, or an error number in some versions.
    if socket != 0 && socket < u64::MAX - 4095 && protocol(socket) == TCP {
        own(socket);
    }
    0
}

/// A typed pointer as the number that it is: the verifier lets nobody calculate with the pointer itself. Privileged
/// programs may: it is stored, and read back as memory.
#[inline(always)]
fn number_of<T>(pointer: *mut T) -> u64 {
    let mut slot = 0_u64;
    // SAFETY: a slot of our own stack.
    unsafe { (&raw mut slot).write_volatile(pointer as u64) };
    read::<u64>(&raw const slot as u64, 0).unwrap_or(0)
}

/// A UDP socket is made: the process is known, its addresses are not yet.
#[unsafe(no_mangle)]
#[unsafe(link_section = "cgroup/sock_create")]
pub extern "C" fn udp_create(ctx: *mut bpf_sock) -> i32 {
    // SAFETY: the kernel passes a live context; the three fields may be read here.
    let (family, kind, proto) = unsafe { ((*ctx).family, (*ctx).type_, (*ctx).protocol) };
    if (family == 2 || family == 10) && kind == 2 && proto == u32::from(UDP) {
        enter(number_of(ctx), &Socket { process: current(), flags: SocketFlags::OWNER, proto });
    }
    1
}

/// A UDP socket is closed.
#[unsafe(no_mangle)]
#[unsafe(link_section = "cgroup/sock_release")]
pub extern "C" fn udp_release(ctx: *mut bpf_sock) -> i32 {
    // SAFETY: as above.
    let (kind, proto) = unsafe { ((*ctx).type_, (*ctx).protocol) };
    if kind == 2 && proto == u32::from(UDP) {
        let socket = number_of(ctx);
        if let Some(entry) = leave(socket) {
            tell_end(socket, &entry, UDP);
        }
    }
    1
}

/// What `bpf_iter__task_file` passes.
#[repr(C)]
pub struct OpenFile {
    meta: u64,
    task: *mut c_void,
    fd: u64,
    file: *mut aya_ebpf::bindings::file,
}

/// Open files of all processes, when the agent begins: sockets that are older.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn adopt_sockets(ctx: *mut OpenFile) -> i32 {
    // SAFETY: the kernel passes a live context; either pointer is null at the end of the walk.
    let (task, file) = unsafe { ((*ctx).task, (*ctx).file) };
    if task.is_null() || file.is_null() {
        return 0;
    }
    // SAFETY: a live file.
    let holder = unsafe { bpf_sock_from_file(file) };
    if holder.is_null() {
        return 0;
    }
    let offset = socket_setting!(socket_sk);
    if offset == ABSENT {
        return 0;
    }
    let Some(socket) = read::<u64>(number_of(holder), offset) else { return 0 };
    if socket == 0 {
        return 0;
    }
    adopt(socket, number_of(task));
    0
}

#[inline(always)]
fn adopt(socket: u64, task: u64) {
    let family = read::<u16>(socket, socket_setting!(family)).unwrap_or(0);
    if family != 2 && family != 10 {
        return;
    }
    let proto = protocol(socket);
    let state = u32::from(read::<u8>(socket, socket_setting!(state)).unwrap_or(0));
    let tcp_lives = proto == TCP && state != CLOSE;
    if !tcp_lives && proto != UDP {
        return;
    }
    if socket_setting!(processes) == 0 {
        if tcp_lives && state != LISTEN && entry_of(socket).is_none() {
            count(Stat::SocketsAdopted);
            enter(
                socket,
                &Socket {
                    process: ProcessKey::default(),
                    flags: SocketFlags::ADOPTED,
                    proto: u32::from(TCP),
                },
            );
        }
        return;
    }
    if tcp_lives && state == LISTEN {
        listen(socket, process_of(task, false));
        return;
    }
    let accepted = proto == TCP && listener_of(socket).is_some();
    let flags = SocketFlags::ADOPTED | SocketFlags::OWNER | if accepted { SocketFlags::ACCEPTED } else { 0 };
    match entry_of(socket) {
        // SAFETY: a live map value. The second walk knows the listeners of the first.
        Some(entry) => unsafe {
            if (*entry).flags & SocketFlags::ADOPTED != 0 {
                (*entry).flags = flags;
            }
        },
        None => {
            count(Stat::SocketsAdopted);
            enter(socket, &Socket { process: process_of(task, false), flags, proto: u32::from(proto) });
        }
    }
}
