//! A recording as a stream of lines.
//!
//! In: any `BufRead`. Out: (line number, time, [`Line`]) one by one, errors in their place. What always holds: a line
//! longer than [`MAX_LINE`] is refused before it is held in memory; blank lines are skipped and counted; after
//! an error of reading, or a line that is too long, the stream ends. Deliberately not here: opening files, and what
//! to do about a time that goes backwards (the replay's).

use std::io::{self, BufRead, Read as _};

use thiserror::Error;

use crate::model::Timestamp;

use super::{Line, RecordingError, parse_line};

/// Longest line, in bytes. A Kubernetes object is far smaller (etcd takes 1.5 MB).
pub const MAX_LINE: usize = 16 << 20;

/// Memory that is kept from one line to the next.
const KEPT: usize = 1 << 20;

/// Why a recording cannot be read on.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The input is malformed.
    #[error(transparent)]
    Malformed(#[from] RecordingError),
    /// The input cannot be read.
    #[error("recording line {line}: cannot be read: {source}")]
    Io { line: u64, source: io::Error },
}

/// Reads a recording line by line.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    buffer: Vec<u8>,
    number: u64,
    blank: u64,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    pub fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), number: 0, blank: 0, ended: false }
    }

    /// Blank lines that were skipped so far.
    pub fn blank_lines(&self) -> u64 {
        self.blank
    }

    /// Takes one line into the buffer; `false` at the end.
    fn fill(&mut self) -> Result<bool, ReadError> {
        self.buffer.clear();
        self.buffer.shrink_to(KEPT);
        self.number = self.number.saturating_add(1);
        // One byte more than a line may have shows that it has more; the newline is not counted.
        let limit = MAX_LINE as u64 + 1;
        let mut line = self.input.by_ref().take(limit);
        line.read_until(b'\n', &mut self.buffer)
            .map_err(|source| ReadError::Io { line: self.number, source })?;
        if self.buffer.len() > MAX_LINE && self.buffer.last() != Some(&b'\n') {
            let message = format!("the line is longer than {MAX_LINE} bytes: split it");
            return Err(RecordingError::new(self.number, MAX_LINE, None, &message).into());
        }
        Ok(!self.buffer.is_empty())
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<(u64, Timestamp, Line), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.fill() {
                Ok(true) if self.buffer.trim_ascii().is_empty() => self.blank = self.blank.saturating_add(1),
                Ok(true) => {
                    let number = self.number;
                    let line = parse_line(&self.buffer, number);
                    return Some(line.map(|(at, line)| (number, at, line)).map_err(ReadError::from));
                }
                Ok(false) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLUSH: &str = "{\"at\":\"1970-01-01T00:00:00Z\",\"flush\":{}}";

    #[test]
    fn blank_lines_are_counted_and_numbers_are_those_of_the_file() {
        let text = format!("{FLUSH}\n\n \t\r\n{FLUSH}\r\nnonsense\n{FLUSH}");
        let mut reader = Reader::new(text.as_bytes());
        let got: Vec<_> = reader.by_ref().collect();
        let numbers: Vec<_> = got.iter().map(|line| line.as_ref().map(|line| line.0).ok()).collect();
        assert_eq!(numbers, [Some(1), Some(4), None, Some(6)]);
        assert_eq!(reader.blank_lines(), 2);
        let message = got[2].as_ref().unwrap_err().to_string();
        assert!(message.starts_with("recording line 5, column 2: not valid JSON"), "{message}");
    }

    #[test]
    fn the_longest_line_is_read_and_a_longer_one_is_not() {
        let padded = |length: usize| {
            let mut line = FLUSH.as_bytes().to_vec();
            line.resize(length, b' ');
            line.extend_from_slice(b"\n");
            line.extend_from_slice(FLUSH.as_bytes());
            line
        };
        let fits = padded(MAX_LINE);
        assert!(Reader::new(fits.as_slice()).all(|line| line.is_ok()));
        let long = padded(MAX_LINE + 1);
        let got: Vec<_> = Reader::new(long.as_slice()).collect();
        assert_eq!(got.len(), 1, "what comes after is not taken for a line");
        assert!(got[0].as_ref().unwrap_err().to_string().contains("longer than 16777216 bytes"));
    }

    #[test]
    fn an_error_of_reading_ends_the_stream() {
        struct Broken;
        impl io::Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("gone"))
            }
        }
        let got: Vec<_> = Reader::new(io::BufReader::new(Broken)).collect();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].as_ref().unwrap_err().to_string(), "recording line 1: cannot be read: gone");
    }
}
