//! TCP statistics: which sockets there are, and what each did at its end.
//!
//! In: the tracepoint `inet_sock_set_state`, which fires when a connection begins, changes its state and ends: never per
//! packet. Out: entries of `SOCKETS`, and a record of each socket that closes. What always holds: an end is told whether or
//! not the map had room for the socket. Not here: the statistics of live sockets (`sockets.rs`, the sweep).

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use flowlogd_ebpf::{ProcessKey, Socket, SocketFlags};

use super::sockets::{
    CLOSE, ESTABLISHED, LISTEN, SYN_RECV, SYN_SENT, TCP, enter, entry_of, leave, protocol, tell_end,
};

/// `inet_sock_set_state(sk, oldstate, newstate)`
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn tcp_state(ctx: RawTracePointContext) -> i32 {
    let socket: u64 = ctx.arg(0);
    let old: u32 = ctx.arg(1);
    let new: u32 = ctx.arg(2);
    let begins = new == SYN_SENT || (new == ESTABLISHED && old == SYN_RECV);
    let ends = new == CLOSE && old != LISTEN;
    if !(begins || ends) || protocol(socket) != TCP {
        return 0;
    }
    if begins {
        if new == ESTABLISHED && entry_of(socket).is_some() {
            // Both ends began at once: it is in the map since it sent its SYN.
            return 0;
        }
        let flags = if new == ESTABLISHED { SocketFlags::ACCEPTED } else { 0 };
        enter(socket, &Socket { process: ProcessKey::default(), flags, proto: u32::from(TCP) });
        return 0;
    }
    let entry = match leave(socket) {
        Some(entry) => entry,
        None => Socket { proto: u32::from(TCP), ..Socket::default() },
    };
    tell_end(socket, &entry, TCP);
    0
}
