//! What user space resolves from the running kernel's BTF and hands to the programs as one read-only global.
//!
//! In: byte offsets found by the agent. Out: [`Settings`]. What always holds: each field is a 64-bit word, so that the
//! verifier tracks it as a known constant, prunes what is switched off (an argument that a tracepoint does not have must
//! not be read by any live instruction), and checks each use. Not here: how an offset is found.

use crate::layout;

/// The kernel has no such field.
pub const ABSENT: u64 = u64::MAX;

/// Offsets in bytes, sizes in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    // struct nf_conn; all but `ct_size` lie inside the first WINDOW_BYTES
    /// Bytes of `struct nf_conn` to read: its size, at most WINDOW_BYTES.
    pub ct_read: u64,
    /// `ct_general.use`: the reference count (32 bits).
    pub ct_use: u64,
    /// `zone.id` (16 bits), or ABSENT.
    pub ct_zone: u64,
    /// `tuplehash[IP_CT_DIR_ORIGINAL].tuple`
    pub ct_original: u64,
    /// `tuplehash[IP_CT_DIR_REPLY].tuple`
    pub ct_reply: u64,
    pub ct_status: u64,
    /// `ct_net.net`, or ABSENT in a kernel without network namespaces.
    pub ct_net: u64,
    pub ct_ext: u64,
    /// `proto.tcp.state` (8 bits).
    pub ct_tcp_state: u64,
    /// `offset[NF_CT_EXT_ACCT]` inside `struct nf_ct_ext` (8 bits).
    pub ext_acct: u64,
    // struct sk_buff
    pub skb_nfct: u64,
    pub skb_dev: u64,
    pub skb_sk: u64,
    pub skb_head: u64,
    pub skb_network_header: u64,
    pub skb_tail: u64,
    pub skb_len: u64,
    pub skb_data: u64,
    pub skb_protocol: u64,
    /// `struct net_device`: `nd_net.net`
    pub dev_net: u64,
    /// `struct sock`: `__sk_common.skc_net.net`
    pub sock_net: u64,
    /// `struct task_struct`: `nsproxy`; `struct nsproxy`: `net_ns`; `struct net`: `ns.inum` (32 bits)
    pub task_nsproxy: u64,
    pub nsproxy_net: u64,
    pub net_inum: u64,
    /// Number of shards of CONNECTIONS.
    pub shards: u64,
    /// 1: the `kfree_skb` tracepoint passes a reason.
    pub has_reason: u64,
    /// Without reasons: the address range of `nf_hook_slow`.
    pub hook_start: u64,
    pub hook_end: u64,
    /// The kernel's numbers of the reasons that mean "dropped by a filter"; ABSENT where it has no such reason.
    pub filter_reasons: [u64; 5],
    /// Bytes in the ring of ends at which user space is woken; below it, it reads at its own pace.
    pub wake_bytes: u64,
}
layout!(Settings, size: 34 * 8, fields: [[u64; 29], [u64; 5]]);
