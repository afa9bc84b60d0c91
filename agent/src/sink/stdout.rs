//! Lines to stdout, for `replay`, `record` and `--output stdout`.
//!
//! In: whole lines. Out: the same, flushed at the end of each call.
//! Always: a reader that has gone (`| head`) is no error, it is told to the caller, who then ends with 0.
//! Not here: files.

use std::io::{self, Write};

/// Whether anybody still reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Present,
    Gone,
}

pub struct StdoutSink<W> {
    out: W,
    reader: Reader,
    pub written_bytes: u64,
}

impl StdoutSink<io::Stdout> {
    pub fn new() -> Self {
        Self::to(io::stdout())
    }
}

impl Default for StdoutSink<io::Stdout> {
    fn default() -> Self {
        Self::new()
    }
}

impl<W: Write> StdoutSink<W> {
    pub fn to(out: W) -> Self {
        Self { out, reader: Reader::Present, written_bytes: 0 }
    }

    /// Any error but a broken pipe is the caller's to report (exit code 74).
    pub fn write_lines(&mut self, lines: &[u8]) -> io::Result<Reader> {
        if self.reader == Reader::Gone {
            return Ok(Reader::Gone);
        }
        match self.out.write_all(lines).and_then(|()| self.out.flush()) {
            Ok(()) => self.written_bytes += lines.len() as u64,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.reader = Reader::Gone,
            Err(error) => return Err(error),
        }
        Ok(self.reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_is_no_error_and_stays_gone() {
        let mut sink = StdoutSink::to(Failing(io::ErrorKind::BrokenPipe));
        assert_eq!(sink.write_lines(b"{}\n").unwrap(), Reader::Gone);
        assert_eq!(sink.write_lines(b"{}\n").unwrap(), Reader::Gone);
        assert_eq!(sink.written_bytes, 0);
    }

    #[test]
    fn any_other_error_is_told() {
        let mut sink = StdoutSink::to(Failing(io::ErrorKind::StorageFull));
        assert_eq!(sink.write_lines(b"{}\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn lines_arrive() {
        let mut out = Vec::new();
        let mut sink = StdoutSink::to(&mut out);
        assert_eq!(sink.write_lines(b"{}\n").unwrap(), Reader::Present);
        assert_eq!(sink.written_bytes, 3);
        assert_eq!(out, b"{}\n");
    }
}
