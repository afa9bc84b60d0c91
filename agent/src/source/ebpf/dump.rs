//! Makes the kernel walk its connection table: a ctnetlink dump whose answers nobody reads.
//!
//! In: nothing. Out: the side effect that each live connection of this namespace passes `ctnetlink_fill_info` in this
//! thread, where the program `conntrack_dump` takes its address. What always holds: only asks, never changes. Not here:
//! decoding (the program reads the connection itself).

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const IPCTNL_MSG_CT_GET: u16 = (1 << 8) | 1;
const NLM_F_REQUEST_DUMP: u16 = 0x0001 | 0x0300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// `between` runs after each answer, so that what the program sends can be read while the dump goes on.
pub(super) fn dump(mut between: impl FnMut()) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // struct nlmsghdr, then struct nfgenmsg: every family, version 0.
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend(IPCTNL_MSG_CT_GET.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 12]);
    socket.send(&request, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        between();
        let mut rest = answer.as_slice();
        while let Some((length, kind, body)) = header(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code =
                        body.get(..4).and_then(|raw| raw.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    return if code == 0 {
                        Ok(())
                    } else {
                        Err(io::Error::from_raw_os_error(code.saturating_neg()))
                    };
                }
                _ => rest = rest.get(length..).unwrap_or_default(),
            }
        }
    }
}

/// Aligned length, type and body of the message at the front.
fn header(bytes: &[u8]) -> Option<(usize, u16, &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    if length < 16 {
        return None;
    }
    Some((length.next_multiple_of(4), kind, bytes.get(16..length)?))
}
