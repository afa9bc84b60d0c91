//! `flowlogd record`: the arguments.
//!
//! In: the command line. Out: [`RecordArgs`].
//! Not here: recording (`app`).

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::{Limits, Notation, Setting as _, SourceKind};

/// Write what this node shows, and the cluster's objects, as a recording that `replay` understands.
#[derive(Args, Clone, Debug)]
pub struct RecordArgs {
    /// File to write, or - for stdout
    #[arg(long, value_name = "PATH", default_value = "-")]
    pub output: PathBuf,
    /// Stop after this time, such as 30s or 5m; without it, on SIGINT or SIGTERM
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Where connections are observed (the field flowLogsSource)
    #[arg(long, value_name = "SOURCE", value_parser = super::run::source)]
    pub source: Option<SourceKind>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let limits = Limits::Duration(Duration::from_millis(1), Duration::from_secs(366 * 24 * 3600));
    Duration::read(&serde_json::Value::from(text), Notation::Text, limits)
        .ok_or_else(|| "a time such as 30s, 5m or 1h30m".to_owned())
}
