//! Layouts of sockets: the map entry of a live socket, its records, a process as it was seen, a listener, and the
//! offsets that the programs need.
//!
//! In and out: plain numbers and raw bytes. What always holds: an address is 16 bytes, IPv4 as `::ffff:a.b.c.d`, whatever
//! the socket's family, so that a listener on all addresses is found by both. Not here: what the bytes of a name or an
//! argument mean (the agent).

use crate::layout;

/// Who a process is over its life and its `exec`s. All zero: nobody.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProcessKey {
    /// `start_boottime` of the thread group's leader.
    pub start_ns: u64,
    /// In the initial pid namespace.
    pub pid: u32,
    /// `self_exec_id`: one more with each `exec`.
    pub exec: u32,
}
layout!(ProcessKey, size: 16, fields: [u64, u32, u32]);

/// The value of `SOCKETS`, keyed by the address of `struct sock`. Preallocated, hence small: addresses and statistics
/// stand in the socket itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Socket {
    /// Nobody, where processes are not collected or it is not known.
    pub process: ProcessKey,
    /// [`SocketFlags`]
    pub flags: u32,
    /// IP protocol.
    pub proto: u32,
}
layout!(Socket, size: 24, fields: [ProcessKey, u32, u32]);

/// Bits of [`Socket::flags`] and [`SocketRecord::flags`].
#[derive(Clone, Copy, Debug)]
pub struct SocketFlags;

impl SocketFlags {
    /// It was accepted from a listener: its remote end began the connection.
    pub const ACCEPTED: u32 = 1;
    /// It existed before the agent looked.
    pub const ADOPTED: u32 = 1 << 1;
    /// The process is the one that accepted or closed it, not only the one that listened.
    pub const OWNER: u32 = 1 << 2;
    /// It is in the agent's network namespace.
    pub const OWN_NETNS: u32 = 1 << 3;
}

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SocketKind {
    /// From a sweep.
    Live = 1,
    /// It is closed.
    End = 2,
}

/// `struct tcp_sock`, the fields that are told. Totals since the socket's start, but for the first four.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpStats {
    /// Eight times the smoothed round trip, microseconds.
    pub srtt_us_8: u32,
    /// Microseconds; all ones: none was measured.
    pub rtt_min_us: u32,
    pub snd_cwnd: u32,
    pub mss: u32,
    pub retransmits: u32,
    pub lost: u32,
    /// Retransmission timeouts, and how many of them were the first of a row: the others came because a timeout was not
    /// recovered by what it had sent again. Before 6.7 only the row that a closing socket was in is known.
    pub rtos: u32,
    pub rto_rows: u32,
}
layout!(TcpStats, size: 32, fields: [u32, u32, u32, u32, u32, u32, u32, u32]);

/// One look at a socket, as it crosses a ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketRecord {
    /// Boot time, ns.
    pub at_ns: u64,
    pub process: ProcessKey,
    pub local: [u8; 16],
    pub remote: [u8; 16],
    /// Network byte order.
    pub local_port: u16,
    pub remote_port: u16,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    pub tcp: TcpStats,
    /// [`SocketFlags`]
    pub flags: u32,
    /// IP protocol.
    pub proto: u8,
    /// The kernel's TCP state.
    pub state: u8,
    /// [`SocketKind`]
    pub kind: u8,
    pub spare: u8,
}
layout!(
    SocketRecord,
    size: 104,
    fields: [u64, ProcessKey, [u8; 16], [u8; 16], u16, u16, u32, TcpStats, u32, u8, u8, u8, u8]
);

/// Bytes of a process's arguments that are kept; more is cut.
pub const ARGS_BYTES: usize = 512;
/// Components of a path that are kept, and bytes of each with the closing zero.
pub const PATH_PARTS: usize = 16;
pub const PART_BYTES: usize = 64;

/// A process when it was first seen to hold a socket, in its own context.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProcessRecord {
    pub key: ProcessKey,
    /// `kernfs_node.id` of its cgroup in the unified hierarchy; 0: not known.
    pub cgroup: u64,
    /// Inode number of its network namespace; 0: not known.
    pub netns: u32,
    /// Length of all arguments, which may be more than is kept; [`ARGS_UNREAD`]: they could not be read.
    pub args_length: u32,
    /// Slots of `path` that are set; the last component first, empty where a mount was left. More than `PATH_PARTS`: it
    /// is cut.
    pub path_length: u32,
    pub spare: u32,
    /// Of the thread group's leader.
    pub name: [u8; 16],
    /// Separated by zeros, the program's name first.
    pub args: [u8; ARGS_BYTES],
    pub path: [[u8; PART_BYTES]; PATH_PARTS],
}
layout!(
    ProcessRecord,
    size: 56 + ARGS_BYTES + PART_BYTES * PATH_PARTS,
    fields: [ProcessKey, u64, u32, u32, u32, u32, [u8; 16], [u8; ARGS_BYTES], [[u8; PART_BYTES]; PATH_PARTS]]
);

pub const ARGS_UNREAD: u32 = u32::MAX;

/// Where something listens: the key of `LISTENERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Address of the `struct net`.
    pub netns: u64,
    /// All zero: all addresses; `::ffff:0.0.0.0`: all of IPv4.
    pub address: [u8; 16],
    /// Network byte order.
    pub port: u16,
    pub spare: [u16; 3],
}
layout!(ListenerKey, size: 32, fields: [u64, [u8; 16], u16, [u16; 3]]);

/// Who listens there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Listener {
    pub process: ProcessKey,
    /// Address of the listening `struct sock`.
    pub socket: u64,
}
layout!(Listener, size: 24, fields: [ProcessKey, u64]);

/// Sockets in one shard of `SOCKETS`: what one run of the sweep reads, well below 2 ms at a measured 0.9 us each.
pub const SOCKET_SHARD_CAPACITY: usize = 1024;

/// Offsets in bytes, as in [`crate::Settings`]; `ABSENT` where this kernel has no such field or it is not wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SocketSettings {
    /// 1: processes are collected. 1: also the path of the executable. 1: TCP statistics are.
    pub processes: u64,
    pub paths: u64,
    pub tcp: u64,
    /// Number of shards of SOCKETS.
    pub shards: u64,
    // struct sock
    pub family: u64,
    pub state: u64,
    pub net: u64,
    pub protocol: u64,
    pub daddr: u64,
    pub rcv_saddr: u64,
    pub v6_daddr: u64,
    pub v6_rcv_saddr: u64,
    pub dport: u64,
    /// `struct inet_sock`: `inet_sport`
    pub sport: u64,
    /// `struct net`: `ns.inum`
    pub net_inum: u64,
    // struct tcp_sock
    pub srtt: u64,
    pub rtt_min: u64,
    pub snd_cwnd: u64,
    pub mss_cache: u64,
    pub total_retrans: u64,
    pub lost: u64,
    /// 16 bits each, from 6.7.
    pub total_rto: u64,
    pub total_rto_recoveries: u64,
    /// `struct inet_connection_sock`: `icsk_retransmits` (8 bits).
    pub icsk_retransmits: u64,
    // struct task_struct
    pub leader: u64,
    pub tgid: u64,
    pub exec_id: u64,
    pub start: u64,
    pub comm: u64,
    pub mm: u64,
    pub fs: u64,
    pub cgroups: u64,
    pub nsproxy: u64,
    /// `struct nsproxy`: `net_ns`
    pub net_ns: u64,
    // struct mm_struct
    pub arg_start: u64,
    pub arg_end: u64,
    pub exe_file: u64,
    /// `struct css_set`: `dfl_cgrp`; `struct cgroup`: `kn`; `struct kernfs_node`: `id`
    pub dfl_cgrp: u64,
    pub kn: u64,
    pub kn_id: u64,
    /// `struct file`: `f_path`; `struct fs_struct`: `root`; `struct path`: `mnt`, `dentry`
    pub f_path: u64,
    pub fs_root: u64,
    pub path_mnt: u64,
    pub path_dentry: u64,
    /// `struct dentry`: `d_parent`, `d_name.name`; `struct vfsmount`: `mnt_root`
    pub d_parent: u64,
    pub d_name: u64,
    pub mnt_root: u64,
    /// `struct mount`: `mnt`, `mnt_parent`, `mnt_mountpoint`
    pub mount_mnt: u64,
    pub mount_parent: u64,
    pub mountpoint: u64,
    /// `struct socket`: `sk`
    pub socket_sk: u64,
}
layout!(SocketSettings, size: 51 * 8, fields: [[u64; 51]]);

impl SocketSettings {
    /// Nothing is collected, and nothing can be read.
    pub const NONE: Self = {
        // SAFETY: 51 words, as asserted above; any bits are valid.
        let mut none: Self = unsafe { core::mem::transmute([crate::ABSENT; 51]) };
        none.processes = 0;
        none.paths = 0;
        none.tcp = 0;
        none.shards = 1;
        none
    };
}
