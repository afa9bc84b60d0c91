//! The `ebpf` source: read the counters that the kernel already keeps.
//!
//! In: programs on the start and the end of connections, a sweep over the live ones on request, counts of dropped
//! packets. Out: [`Observed`], losses by stage, a status. What always holds: nothing is attached to the packet path; only
//! this network namespace is told; only what the node permits is loaded, by trying. Synchronous: each source lives on a
//! thread of its own, the one that opened it. Not here: netlink as a source, and any meaning of what is seen.

mod btf;
mod connections;
mod containers;
mod counts;
mod datagrams;
mod drops;
mod kernel;
mod load;
mod mapped;
mod modules;
mod probe;
mod probes;
mod processes;
pub mod records;
mod ring;
mod socket_offsets;
mod sockets;
mod watch;

pub use connections::{Attached, EbpfOptions, EbpfSource, EbpfStatus, SweepBy, TEST_LIMITS};
pub use drops::DropSource;
pub use kernel::FILTER_REASONS;
pub use load::{OpenError, SourceError};
pub use probe::{EbpfProbe, probe};
pub use sockets::{Collector, SocketSource};

use super::Observed;
