//! What becomes of a line that came: filtered, kept for `--last`, and shown.
//!
//! In: lines, in order; events of the live view. Out: text on stdout. Always: output is collected and written in large
//! pieces, all of it before anything is waited for; a summary is redrawn in place on a terminal, and elsewhere
//! written once at the end, or each time something was added while it is followed.

use std::collections::VecDeque;
use std::io;

use crate::filter::Filter;
use crate::sink::{Reader, StdoutSink};
use crate::wire::view::LineView;

use super::Format;
use super::files::Skipped;
use super::screen::{Paint, Screen};
use super::table::Table;
use super::top::Top;

pub enum Show {
    Table(Box<Table>),
    Lines,
    Top(Box<Top>, Format, Screen),
}

/// Bytes that are collected before they are written.
const PIECE: usize = 64 << 10;

pub struct Shown {
    show: Show,
    filter: Filter,
    since: Option<i64>,
    last: Option<usize>,
    /// The last ones, until all that there was has been read.
    kept: VecDeque<String>,
    keeping: bool,
    headed: bool,
    out: String,
    stdout: StdoutSink<io::Stdout>,
    /// Rows of the summary that stand on the terminal, and the terminal as it was then.
    drawn: Option<(usize, Screen)>,
    changed: bool,
}

/// Over what was drawn before, line by line, so that nothing is blank in between: each line ends what stood there, and
/// what is below the last one goes. Where the terminal changed its size nobody knows where the old lines are now.
fn redraw(table: &str, before: Option<(usize, bool)>, out: &mut String) {
    match before {
        None => {}
        Some((rows, true)) => out.push_str(&format!("\x1b[{rows}A")),
        Some((_, false)) => out.push_str("\x1b[H\x1b[2J"),
    }
    for line in table.lines() {
        out.push_str(line);
        out.push_str("\x1b[K\n");
    }
    out.push_str("\x1b[J");
}

impl Shown {
    pub fn new(show: Show, filter: Filter, since: Option<i64>, last: Option<usize>) -> Self {
        Self {
            show,
            filter,
            since,
            keeping: last.is_some(),
            last,
            kept: VecDeque::new(),
            headed: false,
            out: String::new(),
            stdout: StdoutSink::new(),
            drawn: None,
            changed: true,
        }
    }

    /// `false`: nobody reads any more.
    pub fn line(
        &mut self,
        line: &str,
        place: &dyn Fn() -> String,
        skipped: &mut Skipped,
    ) -> io::Result<bool> {
        match LineView::parse(line) {
            Ok(view) => self.take(line, &view, None),
            Err(error) => {
                skipped.count(|| format!("{}: {error}", place()));
                Ok(true)
            }
        }
    }

    /// A line that was parsed; `event` and its envelope where it is live.
    pub fn take(&mut self, raw: &str, view: &LineView<'_>, event: Option<&str>) -> io::Result<bool> {
        let wanted = self.since.is_none_or(|since| view.end_time >= since) && self.filter.matches(view);
        if !wanted {
            return Ok(true);
        }
        if self.keeping {
            if self.kept.len() >= self.last.unwrap_or(usize::MAX) {
                self.kept.pop_front();
            }
            self.kept.push_back(raw.to_owned());
            return Ok(true);
        }
        self.emit(raw, view, event)
    }

    fn emit(&mut self, raw: &str, view: &LineView<'_>, event: Option<&str>) -> io::Result<bool> {
        match &mut self.show {
            Show::Lines => {
                self.out.push_str(raw);
                self.out.push('\n');
            }
            Show::Table(table) => {
                if self.out.is_empty() {
                    // Rows to come are of the terminal as it is now, under titles of their own.
                    self.headed &= !table.fit();
                }
                if !std::mem::replace(&mut self.headed, true) {
                    table.header(&mut self.out);
                }
                table.row(view, event.unwrap_or_default(), &mut self.out);
            }
            Show::Top(top, ..) => {
                top.add(view);
                self.changed = true;
            }
        }
        if self.out.len() >= PIECE { self.write() } else { Ok(true) }
    }

    /// Lines that the agent could not tell.
    pub fn lost(&mut self, lines: u64) -> io::Result<bool> {
        match &self.show {
            Show::Lines => self.out.push_str(&format!("{{\"lost\":{lines}}}\n")),
            Show::Table(table) => {
                let text = format!("lost: {lines} (this reader was too slow)");
                table.screen().paint(Paint::Yellow, &text, &mut self.out);
                self.out.push('\n');
            }
            Show::Top(..) => super::super::say(&format!("lost: {lines} (this reader was too slow)")),
        }
        Ok(true)
    }

    /// All that there was has been read, or nothing comes for now. `first`: of the first time.
    pub fn settle(&mut self, first: bool) -> io::Result<bool> {
        if first && std::mem::take(&mut self.keeping) {
            for raw in std::mem::take(&mut self.kept) {
                // It parsed before.
                if let Ok(view) = LineView::parse(&raw)
                    && !self.emit(&raw, &view, None)?
                {
                    return Ok(false);
                }
            }
        }
        if let Show::Top(top, format, screen) = &self.show
            && (std::mem::take(&mut self.changed)
                || self.drawn.is_some_and(|(_, then)| then.terminal && then != screen.again()))
        {
            match format {
                Format::Json => self.out.push_str(&top.json()),
                Format::Table => {
                    let screen = screen.again();
                    let mut table = String::new();
                    top.table(&screen, &mut table);
                    if screen.terminal {
                        redraw(&table, self.drawn.map(|(rows, then)| (rows, then == screen)), &mut self.out);
                    } else {
                        self.out.push_str(&table);
                    }
                    self.drawn = Some((table.lines().count(), screen));
                }
            }
        }
        self.write()
    }

    fn write(&mut self) -> io::Result<bool> {
        if self.out.is_empty() {
            return Ok(true);
        }
        let reader = self.stdout.write_lines(self.out.as_bytes())?;
        self.out.clear();
        Ok(reader == Reader::Present)
    }
}
