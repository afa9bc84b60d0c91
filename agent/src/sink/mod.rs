//! Where lines go: the flow log file, or stdout; and the checkpoint that a restart begins from.
//!
//! In: windows of whole lines, already encoded. Out: bytes in files or on stdout.
//! Always: a line is written whole or not at all; what cannot be written is kept within a bound, then counted.
//! Nothing here sleeps or asks the clock: `now` is an argument, and the caller decides when to retry.
//! Not here: encoding (`wire`), when to flush (`app`).

pub mod checkpoint;
pub mod dns_cache;
pub mod file;
pub mod live;
pub mod position;
mod rotate;
pub mod stdout;

pub use file::{FileOptions, FileSink, SinkError, SinkStats};
pub use stdout::{Reader, StdoutSink};

/// The sinks there are.
pub enum Sink {
    File(Box<FileSink>),
    Stdout(StdoutSink<std::io::Stdout>),
}
