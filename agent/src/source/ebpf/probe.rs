//! What this node offers to the `ebpf` source, found by trying.
//!
//! In: nothing. Out: [`EbpfProbe`], for `check` and for choosing a source. What always holds: everything that was
//! loaded is gone again when this returns. Not here: the choice.

use super::connections::{Attached, EbpfOptions, EbpfSource, SweepBy};
use super::drops::DropSource;
use super::kernel::Kernel;

/// Each part works, or says why not and what to do.
#[derive(Clone, Debug)]
pub struct EbpfProbe {
    /// Offsets can be resolved.
    pub btf: Result<(), String>,
    /// Connections can be followed; with how.
    pub connections: Result<ConnectionsProbe, String>,
    /// Drops can be counted.
    pub drops: Result<(), String>,
}

#[derive(Clone, Debug)]
pub struct ConnectionsProbe {
    pub attached: Attached,
    pub sweep: SweepBy,
    /// Connections that exist at start can be adopted. False also while nf_conntrack_netlink is not loaded.
    pub can_adopt: bool,
}

pub fn probe() -> EbpfProbe {
    let kernel = Kernel::resolve();
    // Small: nothing is meant to be followed.
    let options = EbpfOptions { max_connections: Some(1), ring_bytes: 4096, ..EbpfOptions::default() };
    EbpfProbe {
        btf: kernel.as_ref().map(|_| ()).map_err(ToString::to_string),
        connections: EbpfSource::open(&options).map_err(|error| error.to_string()).map(|source| {
            let status = source.status();
            ConnectionsProbe { attached: status.attached, sweep: status.sweep, can_adopt: status.can_adopt }
        }),
        drops: match kernel {
            Ok(kernel) => DropSource::attach(kernel).map(drop).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        },
    }
}
