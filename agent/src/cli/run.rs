//! `flowlogd run`: the daemon, from its arguments to its exit code.
//!
//! In: the command line. Out: [`RunArgs`], and the configuration fields that its flags stand for.
//! Not here: the daemon (`app`).

use std::sync::Arc;

use clap::{Args, ValueEnum};

use crate::app::{self, DaemonOptions, RunError};
use crate::config::{Layers, SourceKind};
use crate::telemetry::Metrics;

use super::{Exit, Failure, Global, stop};

/// Observe this node and write its flow log, until SIGTERM.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Where connections are observed (the field flowLogsSource)
    #[arg(long, value_name = "SOURCE", value_parser = source)]
    pub source: Option<SourceKind>,
    /// Where lines go
    #[arg(long, value_enum, default_value_t = Output::File, value_name = "OUTPUT")]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// `flows.log` in flowLogsFileDirectory
    File,
    Stdout,
}

impl RunArgs {
    /// Fields that flags of this verb set: name, value, flag.
    pub fn fields(&self) -> Vec<(String, String, String)> {
        source_field(self.source)
    }
}

pub fn run(global: &Global, layers: Layers, args: &RunArgs) -> anyhow::Result<u8> {
    let options = DaemonOptions {
        layers,
        config_file: global.config.clone(),
        node: global.node_name().into(),
        cluster: global.cluster.clone(),
        kubeconfig: global.kubeconfig.clone(),
        stdout: args.output == Output::Stdout,
    };
    let metrics = Arc::new(Metrics::default());
    let stop = stop::on_signals()?;
    match app::run(&options, &metrics, &stop) {
        Ok(()) => Ok(Exit::Ok.code()),
        Err(RunError::Cluster(error)) => Err(Failure::new(super::exit::of_manifests(&error), error).into()),
        Err(RunError::Server(error)) => Err(Failure::new(super::exit::of_server(&error), error).into()),
        Err(error @ (RunError::Sources(_) | RunError::Thread(_))) => {
            Err(Failure::new(Exit::Unavailable, error).into())
        }
        Err(error @ RunError::Stdout(_)) => Err(Failure::new(Exit::OutputFailed, error).into()),
        Err(error) => Err(error.into()),
    }
}

/// The field that `--source` sets.
pub fn source_field(source: Option<SourceKind>) -> Vec<(String, String, String)> {
    source
        .iter()
        .map(|source| ("flowLogsSource".to_owned(), source.name().to_owned(), "--source".to_owned()))
        .collect()
}

/// For every verb that has a `--source`.
pub fn source(text: &str) -> Result<SourceKind, String> {
    [SourceKind::Auto, SourceKind::Ebpf, SourceKind::Netlink]
        .into_iter()
        .find(|source| source.name() == text)
        .ok_or_else(|| format!("one of {}", SourceKind::NAMES.join(", ")))
}
