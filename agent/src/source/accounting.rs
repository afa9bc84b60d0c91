//! Connection accounting: the one sysctl that the agent may set.
//!
//! In: whether it may. Out: whether the kernel counts, and if not, why and what to do. It is of this thread's
//! network namespace, and takes effect for connections that begin afterwards: those that exist keep no counters.
//! What was switched on stays on when the agent ends: other readers may have come to rely on it.
//! In a container `/proc/sys` is read-only, and runtimes refuse every mount below `/proc`: there the host's
//! `/proc/sys/net` is looked for where it can be mounted. Whatever its path, it is that of the reader's namespace.

use std::fs;
use std::io;

pub const ACCOUNTING_SYSCTL: &str = "/proc/sys/net/netfilter/nf_conntrack_acct";
/// The same file where a pod has the host's `/proc/sys/net` mounted.
const MOUNTED_SYSCTL: &str = "/host/proc/sys/net/netfilter/nf_conntrack_acct";

/// Where the sysctl can be written, if anywhere.
///
/// # Errors
/// The kernel's word on the file in `/proc/sys`.
pub fn writable_sysctl() -> io::Result<&'static str> {
    let access = |path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK);
    match access(ACCOUNTING_SYSCTL) {
        Ok(()) => Ok(ACCOUNTING_SYSCTL),
        Err(_) if access(MOUNTED_SYSCTL).is_ok() => Ok(MOUNTED_SYSCTL),
        Err(error) => Err(error.into()),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accounting {
    AlreadyOn,
    SwitchedOn,
    /// Nothing is counted. `why` says what to do.
    Off {
        why: String,
    },
}

/// Connection tracking is there and does not count.
pub fn is_off() -> bool {
    fs::read_to_string(ACCOUNTING_SYSCTL).is_ok_and(|value| value.trim() == "0")
}

/// Makes sure that the kernel counts packets and bytes of connections. `allowed`: the agent may write the sysctl.
pub fn ensure_accounting(allowed: bool) -> Accounting {
    let off = |why: String| {
        tracing::warn!("connections are not counted: {why}");
        Accounting::Off { why }
    };
    match fs::read_to_string(ACCOUNTING_SYSCTL) {
        Ok(value) if value.trim() == "1" => return Accounting::AlreadyOn,
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return off(format!(
                "{ACCOUNTING_SYSCTL} does not exist: connection tracking is not loaded (modprobe nf_conntrack)"
            ));
        }
        Err(e) => return off(format!("cannot read {ACCOUNTING_SYSCTL}: {e}")),
    }
    if !allowed {
        return off("net.netfilter.nf_conntrack_acct is 0 and the agent may not set it: \
             sysctl -w net.netfilter.nf_conntrack_acct=1"
            .to_owned());
    }
    match writable_sysctl().and_then(|path| fs::write(path, "1")) {
        Ok(()) => {
            tracing::info!(
                "switched on net.netfilter.nf_conntrack_acct; connections that began before are not counted"
            );
            Accounting::SwitchedOn
        }
        Err(e) => off(format!(
            "cannot write {ACCOUNTING_SYSCTL} ({e}): run sysctl -w net.netfilter.nf_conntrack_acct=1 on the node, \
             or mount the node's /proc/sys/net writable at /host/proc/sys/net"
        )),
    }
}
