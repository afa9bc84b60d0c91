//! `flowlogd replay`: a recording's lines on stdout.
//!
//! In: the command line. Out: lines, a summary in the log.
//! Not here: replaying (`app`).

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tracing::{info, warn};

use crate::app::{Flushing, Replay, ReplayError};
use crate::config::Layers;
use crate::model::Timestamp;
use crate::pipeline::Limits;
use crate::snapshot::World;
use crate::watch;
use crate::wire::recording::ReadError;

use super::{Exit, Failure, Global, OrExit as _};

/// Turn a recording into flow-log lines on stdout.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The recording, or - for stdin
    #[arg(value_name = "RECORDING")]
    pub recording: Option<PathBuf>,
    /// What closes a window: the interval flowLogsFlushInterval in the recording's time, or its flush lines alone
    #[arg(long, value_enum, default_value_t = Flush::Interval)]
    pub flush: Flush,
    /// Write the lines of the DNS log to this file, which is replaced; without it `dns` lines only name destinations
    #[arg(long, value_name = "PATH")]
    pub dns_log: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flush {
    Interval,
    Explicit,
}

impl ReplayArgs {
    /// The recording. In `replay --cluster a.yaml b.yaml recording.jsonl` the parser cannot know where the list of
    /// `--cluster` ends: without a recording elsewhere, its last path is the recording.
    pub fn take_recording(&mut self, cluster: &mut Vec<PathBuf>) -> Result<PathBuf, super::Failure> {
        if let Some(recording) = self.recording.take() {
            return Ok(recording);
        }
        match cluster.pop() {
            Some(recording) if !cluster.is_empty() => Ok(recording),
            _ => Err(super::Failure::usage(
                "replay needs a recording: give its path, or - for stdin (see flowlogd replay --help)",
            )),
        }
    }
}

pub fn run(global: &Global, mut layers: Layers, args: &mut ReplayArgs) -> anyhow::Result<u8> {
    let mut paths = global.cluster.clone();
    let recording = args.take_recording(&mut paths)?;
    let mut world = World::new(global.node_name().into());
    if !paths.is_empty() {
        let manifests = watch::load(&paths, true)
            .map_err(|error| Failure::new(super::exit::of_manifests(&error), error))?;
        for (kind, objects) in &manifests.unused {
            info!(%kind, objects, "objects of this kind are not used");
        }
        for resource in manifests.configuration {
            layers.apply(resource);
        }
        world.inhabit();
        for object in manifests.objects {
            world.apply(object, Timestamp::MIN);
        }
    }
    let replay = Replay {
        layers,
        world,
        flushing: match args.flush {
            Flush::Interval => Flushing::Interval,
            Flush::Explicit => Flushing::Explicit,
        },
        limits: Limits::default(),
    };
    let mut output = BufWriter::new(io::stdout().lock());
    let mut dns_log = match &args.dns_log {
        Some(path) => Some(BufWriter::new(
            File::create(path)
                .with_context(|| format!("{}: the DNS log cannot be written there", path.display()))
                .or_exit(Exit::OutputFailed)?,
        )),
        None => None,
    };
    let dns_log = dns_log.as_mut().map(|file| file as &mut dyn io::Write);
    let summary = replay.run(open(&recording)?, &mut output, dns_log).map_err(|error| {
        let exit = match &error {
            ReplayError::Recording(ReadError::Io { .. }) => Exit::NotFound,
            ReplayError::Recording(ReadError::Malformed(_))
            | ReplayError::Object { .. }
            | ReplayError::EndOfTime { .. } => Exit::Malformed,
            ReplayError::Output(_) | ReplayError::DnsLog(_) => Exit::OutputFailed,
            ReplayError::UnknownNode { .. } => Exit::Usage,
        };
        Failure::new(exit, error)
    })?;
    if summary.times_went_back > 0 {
        warn!(
            lines = summary.times_went_back,
            "lines whose time was before the last one's were taken at its time"
        );
    }
    info!(lines = summary.lines, windows = summary.windows, records = summary.records, "replayed");
    Ok(Exit::Ok.code())
}

fn open(recording: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    if recording.as_os_str() == "-" {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(recording)
        .with_context(|| {
            format!(
                "{}: the recording cannot be opened: give the path of a recording, or - for stdin",
                recording.display()
            )
        })
        .or_exit(Exit::NotFound)?;
    Ok(Box::new(BufReader::with_capacity(1 << 16, file)))
}
