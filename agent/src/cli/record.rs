//! `flowlogd record`: what this node shows, as a recording.
//!
//! In: the command line. Out: a file or stdout.
//! Not here: recording (`app`).

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tracing::info;

use crate::app::{self, RecordError};
use crate::config::{Limits, Notation, Resolved, Setting as _, SourceKind};

use super::{Exit, Failure, Global, OrExit as _, stop};

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

impl RecordArgs {
    /// Fields that flags of this verb set: name, value, flag.
    pub fn fields(&self) -> Vec<(String, String, String)> {
        super::run::source_field(self.source)
    }
}

pub fn run(global: &Global, resolved: &Resolved, args: &RecordArgs) -> anyhow::Result<u8> {
    let mut output: Box<dyn Write> = if args.output.as_os_str() == "-" {
        Box::new(io::stdout().lock())
    } else {
        // A recording tells who talks to whom: it is its owner's alone.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&args.output);
        Box::new(BufWriter::new(
            file.with_context(|| format!("{}: the recording cannot be created", args.output.display()))
                .or_exit(Exit::OutputFailed)?,
        ))
    };
    let stop = stop::on_signals()?;
    let kubeconfig = global.kubeconfig.as_deref();
    let lines = app::record(&resolved.config, &global.cluster, kubeconfig, args.duration, &mut output, &stop)
        .map_err(|error| {
            let exit = match &error {
                RecordError::Cluster(error) => super::exit::of_manifests(error),
                RecordError::Server(error) => super::exit::of_server(error),
                RecordError::Sources(_) | RecordError::Thread(_) => Exit::Unavailable,
                RecordError::Output(_) => Exit::OutputFailed,
            };
            Failure::new(exit, error)
        })?;
    info!(lines, "recorded");
    Ok(Exit::Ok.code())
}
