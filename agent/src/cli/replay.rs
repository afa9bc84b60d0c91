//! `flowlogd replay`: the arguments.
//!
//! In: the command line. Out: [`ReplayArgs`].
//! Not here: replaying (`app`).

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Turn a recording into flow-log lines on stdout.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The recording, or - for stdin
    #[arg(value_name = "RECORDING")]
    pub recording: Option<PathBuf>,
    /// What closes a window: the interval flowLogsFlushInterval in the recording's time, or its flush lines alone
    #[arg(long, value_enum, default_value_t = Flush::Interval)]
    pub flush: Flush,
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
