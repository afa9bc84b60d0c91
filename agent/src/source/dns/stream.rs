//! DNS over TCP, best effort: segments in order become messages.
//!
//! In: segments of one direction. Out: the messages in them (RFC 1035 4.2.2: each with its length before it). Always:
//! streams and their bytes are bounded, the one used least recently gives way; a segment that does not follow the last
//! one drops the stream until its next beginning or a segment that begins with a whole message; what was seen twice
//! (on several devices) counts once. Own code: reassembly libraries want whole connections from their first packet.

use std::net::SocketAddr;
use std::num::NonZeroUsize;

use lru::LruCache;

/// Streams that may be open.
const STREAMS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Bytes of one message with its length.
const MESSAGE: usize = 2 + u16::MAX as usize;
/// Bytes that all streams may wait with.
const BYTES: usize = 8 << 20;

#[derive(Debug, Default)]
struct Stream {
    next: u32,
    waiting: Vec<u8>,
}

#[derive(Debug)]
pub struct Streams {
    open: LruCache<(SocketAddr, SocketAddr), Stream>,
    bytes: usize,
    /// Streams of which a part was missed, or that had to give way. A total.
    pub broken: u64,
}

impl Default for Streams {
    fn default() -> Self {
        Self { open: LruCache::new(STREAMS), bytes: 0, broken: 0 }
    }
}

impl Streams {
    /// Hands each message that the segment completes to `told`.
    pub fn segment(
        &mut self,
        ends: (SocketAddr, SocketAddr),
        sequence: u32,
        begins: bool,
        over: bool,
        payload: &[u8],
        mut told: impl FnMut(&[u8]),
    ) {
        if begins {
            self.drop(&ends);
            let next = sequence.wrapping_add(1).wrapping_add(payload.len() as u32);
            self.keep(ends, Stream { next, waiting: Vec::new() });
        }
        if !payload.is_empty() && !begins {
            self.read(ends, sequence, payload, &mut told);
        }
        if over {
            self.drop(&ends);
        }
    }

    fn read(
        &mut self,
        ends: (SocketAddr, SocketAddr),
        sequence: u32,
        payload: &[u8],
        told: &mut impl FnMut(&[u8]),
    ) {
        let mut stream = match self.open.pop(&ends) {
            Some(stream) => {
                self.bytes = self.bytes.saturating_sub(stream.waiting.len());
                stream
            }
            // Not seen from its beginning: a message may well begin here.
            None => Stream { next: sequence, waiting: Vec::new() },
        };
        let end = sequence.wrapping_add(payload.len() as u32);
        // Signed, as TCP compares sequence numbers.
        if (end.wrapping_sub(stream.next) as i32) <= 0 {
            return self.keep(ends, stream); // seen already
        }
        let behind = stream.next.wrapping_sub(sequence) as i32;
        let new = if behind < 0 {
            self.broken += 1;
            stream.waiting.clear();
            payload
        } else {
            payload.get(behind as usize..).unwrap_or_default()
        };
        stream.next = end;
        stream.waiting.extend_from_slice(new);
        let mut rest = stream.waiting.as_slice();
        while let Some((length, body)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            let Some((message, after)) = body.split_at_checked(length) else { break };
            told(message);
            rest = after;
        }
        let left = rest.len();
        stream.waiting.drain(..stream.waiting.len() - left);
        if left >= MESSAGE {
            self.broken += 1;
            stream.waiting.clear();
        }
        self.keep(ends, stream);
    }

    fn keep(&mut self, ends: (SocketAddr, SocketAddr), stream: Stream) {
        self.bytes += stream.waiting.len();
        if let Some((key, over)) = self.open.push(ends, stream)
            && key != ends
        {
            self.give_up(&over);
        }
        while self.bytes > BYTES
            && let Some((_, over)) = self.open.pop_lru()
        {
            self.give_up(&over);
        }
    }

    fn give_up(&mut self, stream: &Stream) {
        self.bytes = self.bytes.saturating_sub(stream.waiting.len());
        self.broken += u64::from(!stream.waiting.is_empty());
    }

    fn drop(&mut self, ends: &(SocketAddr, SocketAddr)) {
        if let Some(stream) = self.open.pop(ends) {
            self.bytes = self.bytes.saturating_sub(stream.waiting.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ends() -> (SocketAddr, SocketAddr) {
        (([10, 0, 0, 1], 1000).into(), ([10, 0, 0, 2], 53).into())
    }

    fn framed(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut stream = Vec::new();
        for message in messages {
            stream.extend_from_slice(&(message.len() as u16).to_be_bytes());
            stream.extend_from_slice(message);
        }
        stream
    }

    proptest! {
        /// However a stream is cut, and though each segment is seen twice, the messages are those that were sent.
        #[test]
        fn messages_are_put_together(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6),
            cuts in prop::collection::vec(1..90_usize, 1..30),
            start in any::<u32>(),
        ) {
            let bytes = framed(&messages);
            let mut streams = Streams::default();
            let mut told = Vec::new();
            streams.segment(ends(), start, true, false, &[], |_| ());
            let mut at = 0;
            for cut in cuts.iter().cycle() {
                let end = bytes.len().min(at + cut);
                for _ in 0..2 {
                    let sequence = start.wrapping_add(1 + at as u32);
                    streams.segment(ends(), sequence, false, false, &bytes[at..end], |m| told.push(m.to_vec()));
                }
                at = end;
                if at == bytes.len() { break }
            }
            prop_assert_eq!(told, messages);
            prop_assert_eq!(streams.broken, 0);
        }

        #[test]
        fn hostile_segments_stay_within_bounds(
            segments in prop::collection::vec(
                (any::<u32>(), any::<bool>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..300), 0..4_u16), 0..60),
        ) {
            let mut streams = Streams::default();
            for (sequence, begins, over, bytes, port) in segments {
                let ends = (([10, 0, 0, 1], port).into(), ([10, 0, 0, 2], 53).into());
                streams.segment(ends, sequence, begins, over, &bytes, |_| ());
            }
            let waiting: usize = streams.open.iter().map(|(_, stream)| stream.waiting.len()).sum();
            prop_assert_eq!(streams.bytes, waiting);
        }
    }

    #[test]
    fn the_largest_message_fits_and_a_gap_is_counted() {
        let large = framed(&[vec![7; u16::MAX as usize]]);
        let mut streams = Streams::default();
        let mut told = Vec::new();
        let (mut at, step) = (0, 1448);
        while at < large.len() {
            let end = large.len().min(at + step);
            streams.segment(ends(), at as u32, false, false, &large[at..end], |m| told.push(m.len()));
            at = end;
        }
        assert_eq!(told, [65_535]);
        streams.segment(ends(), at as u32 + 5, false, false, &[0, 9, 1], |_| unreachable!());
        assert_eq!(streams.broken, 1);
    }

    #[test]
    fn a_million_streams_are_bounded() {
        let mut streams = Streams::default();
        for n in 0..1_000_000_u32 {
            let from = SocketAddr::from((n.to_be_bytes(), 1));
            streams.segment((from, ends().1), 0, false, false, &[255, 255, 0, 0], |_| ());
        }
        assert_eq!(streams.open.len(), STREAMS.get());
        assert!(streams.bytes <= 4 * STREAMS.get());
    }
}
