//! `flowlogd observe`: the flow log for people, live from the running agent, or out of files.
//!
//! In: the agent's live socket, files (rotated ones too) or stdin; a filter. Out: a table on a terminal, the lines
//! themselves where stdout is piped; or a summary (`--top`). Always: lines that are none are left out and counted on
//! stderr; a reader that went away (`| head`) ends it with 0; memory is bounded whatever the input. The API server is not
//! asked: what is shown is as the agent is configured; only where its socket is must be known here.
//! Not here: the agent's side of the socket (`sink/live.rs`), the language of filters (`filter`).

mod files;
mod flags;
mod line;
mod live;
mod screen;
mod show;
mod table;
#[cfg(test)]
mod tests;
mod top;

use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use jiff::tz::TimeZone;

use crate::config::Resolved;

use super::{Exit, Failure, OrExit as _};

use files::{Follow, Lines, Log, Skipped, order};
use flags::FilterFlags;
use screen::{Color, Screen};
use show::{Show, Shown};
use table::Table;
use top::Top;

/// How often files are looked at again.
const LOOK: Duration = Duration::from_millis(200);

/// Follow flows live, or look through flow logs: filtered, as a table, as lines, or summed up.
///
/// Without FILE the running agent is asked over its live socket. Rotated files (flows.log*) are read oldest first.
#[derive(Args, Clone, Debug)]
pub struct ObserveArgs {
    /// Flow logs to read instead of the running agent; - is stdin
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Go on with what comes; what there is without --last and --since when the agent is asked
    #[arg(short, long)]
    pub follow: bool,
    /// The last N lines that match
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub last: Option<u32>,
    /// Only lines of windows that ended since then: a duration (5m) or a time (2026-01-01T00:00:00Z)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub since: Option<i64>,
    /// From the agent: the lines of each flush, instead of connections as they happen
    #[arg(long)]
    pub lines: bool,
    /// Sum up instead of listing
    #[arg(long, value_enum, value_name = "WHAT")]
    pub top: Option<top::Kind>,
    /// Rows of a summary
    #[arg(long, value_name = "N", default_value_t = top::ROWS as u32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rows: u32,
    /// How to show [default: table on a terminal, json elsewhere]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub output: Option<Format>,
    /// Columns of the table [default: the terminal's]
    #[arg(long, value_name = "N")]
    pub width: Option<u16>,
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub color: Color,
    /// Show times in UTC instead of this host's zone
    #[arg(long)]
    pub utc: bool,
    /// The agent's live socket [default: the field flowLogsLiveSocketPath of file, environment or --set; the cluster is not asked]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    #[command(flatten)]
    pub filter: FilterFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    /// The lines as they are, one object each
    Json,
}

/// Unix seconds.
fn since(text: &str) -> Result<i64, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_second());
    }
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|_| "a duration such as 5m, or a time such as 2026-01-01T00:00:00Z".to_owned())?;
    let ago = jiff::Timestamp::now().checked_sub(span.abs());
    ago.map(|time| time.as_second()).map_err(|_| "that is before all time".to_owned())
}

pub fn run(resolved: &Resolved, args: &ObserveArgs) -> anyhow::Result<u8> {
    let screen = Screen::of_stdout(args.width, args.color);
    let format = args.output.unwrap_or(if screen.terminal { Format::Table } else { Format::Json });
    let zone = if args.utc { TimeZone::UTC } else { TimeZone::system() };
    let live = args.files.is_empty();
    // Connections as they happen, unless lines are asked for in one way or another.
    let flows = live && !args.lines && args.top.is_none() && args.last.is_none() && args.since.is_none();
    let show = match (args.top, format) {
        (Some(kind), _) => Show::Top(Box::new(Top::new(kind, args.rows as usize)), format, screen),
        (None, Format::Table) => Show::Table(Box::new(Table::new(screen, flows, zone))),
        (None, Format::Json) => Show::Lines,
    };
    let mut shown = Shown::new(show, args.filter.0.clone(), args.since, args.last.map(|n| n as usize));
    let mut skipped = Skipped::default();
    let ended = if live {
        let path = args.socket.clone().unwrap_or_else(|| resolved.config.flow_logs_live_socket_path.clone());
        live::observe(&path, args, flows, &mut shown, &mut skipped)
    } else {
        read(args, &mut shown, &mut skipped)
    };
    if skipped.lines > 0 {
        super::say(&format!(
            "left out, for it is no flow log: {} {}, the first {}",
            skipped.lines,
            if skipped.lines == 1 { "line" } else { "lines" },
            screen::safe(skipped.first.as_deref().unwrap_or_default())
        ));
    }
    ended.map(|()| Exit::Ok.code())
}

/// Files and stdin.
fn read(args: &ObserveArgs, shown: &mut Shown, skipped: &mut Skipped) -> anyhow::Result<()> {
    let logs = order(&args.files);
    let is_stdin = |log: &Log| log.base.as_os_str() == "-";
    let mut followed = Vec::new();
    for log in &logs {
        let (newest, older) = match log.files.split_last() {
            Some((newest, older)) if args.follow && *newest == log.base && !is_stdin(log) => {
                (Some(newest), older)
            }
            _ => (None, log.files.as_slice()),
        };
        for path in older {
            let more = if path.as_os_str() == "-" {
                let mut lines = Lines::new(io::stdin().lock(), "stdin".to_owned());
                lines.read(true, skipped, &mut |line, place, skipped| shown.line(line, place, skipped))
            } else {
                let file =
                    File::open(path).with_context(|| path.display().to_string()).or_exit(Exit::NotFound)?;
                let mut lines =
                    Lines::new(BufReader::with_capacity(1 << 16, file), path.display().to_string());
                lines.read(true, skipped, &mut |line, place, skipped| shown.line(line, place, skipped))
            };
            if !more.or_exit(Exit::OutputFailed)? {
                return Ok(());
            }
        }
        if let Some(path) = newest {
            File::open(path).with_context(|| path.display().to_string()).or_exit(Exit::NotFound)?;
            followed.push(Follow::new(path.clone()));
        }
    }
    let mut first = true;
    loop {
        for follow in &mut followed {
            let more = follow.read(skipped, &mut |line, place, skipped| shown.line(line, place, skipped));
            if !more.or_exit(Exit::OutputFailed)? {
                return Ok(());
            }
        }
        if !shown.settle(std::mem::take(&mut first)).or_exit(Exit::OutputFailed)? {
            return Ok(());
        }
        if followed.is_empty() {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// Of the agent's socket.
fn cannot(path: &std::path::Path, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "run as root, or as a member of the group flowLogsLiveSocketGroup",
        _ => "is the agent running on this host? --socket names another socket, FILE reads a flow log",
    };
    Failure::new(Exit::Unavailable, anyhow::anyhow!("{}: {error}: {remedy}", path.display()))
}
