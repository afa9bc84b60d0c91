//! The client of the agent's live socket.
//!
//! In: a socket, what is asked for. Out: lines and events, shown as they come. Always: what the agent says is taken
//! for no more than data: a line that is none is left out and counted.

use std::cell::Cell;
use std::io::{self, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::wire::live::{Request, TOLD, Told};
use crate::wire::view::LineView;

use super::super::{Exit, Failure, OrExit as _};
use super::files::{Lines, Skipped};
use super::show::Shown;
use super::{LOOK, ObserveArgs, cannot};

pub fn observe(
    path: &Path,
    args: &ObserveArgs,
    flows: bool,
    shown: &mut Shown,
    skipped: &mut Skipped,
) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(path).map_err(|error| cannot(path, &error))?;
    let past = args.last.is_some() || args.since.is_some() || args.top.is_some();
    let follow = args.follow || !past;
    let request = Request { flows, lines: !flows, past, follow, filter: args.filter.0.to_string() };
    stream.write_all(&request.encode()).map_err(|error| cannot(path, &error))?;
    // A terminal that changes its size is drawn anew, also while the agent has nothing to say.
    stream.set_read_timeout(Some(LOOK)).map_err(|error| cannot(path, &error))?;
    let mut refused = None;
    let first = Cell::new(true);
    let mut lines = Lines::new(BufReader::with_capacity(1 << 16, stream), path.display().to_string());
    let mut take = |text: &str, place: &dyn Fn() -> String, skipped: &mut Skipped, shown: &mut Shown| {
        if !text.starts_with(TOLD) {
            return shown.line(text, place, skipped);
        }
        match Told::parse(text) {
            Ok(Told::Flow { event, line }) => match LineView::parse(line.get()) {
                Ok(view) => {
                    let raw = format!("{{\"event\":\"{event}\",\"line\":{}}}", line.get());
                    shown.take(&raw, &view, Some(event))
                }
                Err(error) => {
                    skipped.count(|| format!("{}: {error}", place()));
                    Ok(true)
                }
            },
            Ok(Told::Lost(n)) => shown.lost(n),
            Ok(Told::Caught(_)) => shown.settle(first.take()),
            Ok(Told::Error(error)) => {
                refused = Some(error);
                Ok(false)
            }
            Err(error) => {
                skipped.count(|| format!("{}: {error}", place()));
                Ok(true)
            }
        }
    };
    let ended = loop {
        match lines.read(true, skipped, &mut |text, place, skipped| take(text, place, skipped, shown)) {
            // Nothing is drawn before the past is whole.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && first.get() => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => match shown.settle(false) {
                Ok(true) => {}
                other => break other,
            },
            other => break other,
        }
    };
    if let Some(error) = refused {
        return Err(Failure::new(Exit::Unavailable, anyhow::anyhow!("the agent says: {error}")).into());
    }
    match ended {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        // The agent went away, or stdout did.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error).or_exit(Exit::OutputFailed).map_err(Into::into),
    }
    shown.settle(first.get()).or_exit(Exit::OutputFailed)?;
    if follow {
        super::super::say("the agent has ended");
    }
    Ok(())
}
