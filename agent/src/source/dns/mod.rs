//! DNS as a source: packets of port 53 become lookups.
//!
//! `capture` reads the `ring` of a packet socket with the classic `filter`; `packet` opens what it gives, `stream` puts TCP together,
//! `matcher` pairs questions with answers and tells each lookup once. Opt-in; nothing else of the node's traffic is
//! ever seen, and no qdisc, rule or route is touched.

mod capture;
mod filter;
mod matcher;
mod packet;
mod ring;
mod stream;

#[cfg(test)]
mod tests;

pub use capture::{Capture, CaptureError, CaptureStats, SETTLED, open, take};
pub use matcher::{HOLD, MatchStats, Matcher};
pub use packet::{Fault, Message};
pub use ring::Ring;
pub use stream::Streams;
