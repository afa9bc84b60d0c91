//! `flowlogd run`: the arguments of the daemon.
//!
//! In: the command line. Out: [`RunArgs`], and the configuration fields that its flags stand for.
//! Not here: the daemon (`app`).

use clap::{Args, ValueEnum};

use crate::config::SourceKind;

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
        self.source
            .iter()
            .map(|source| ("flowLogsSource".to_owned(), source.name().to_owned(), "--source".to_owned()))
            .collect()
    }
}

/// For every verb that has a `--source`.
pub fn source(text: &str) -> Result<SourceKind, String> {
    [SourceKind::Auto, SourceKind::Ebpf, SourceKind::Netlink]
        .into_iter()
        .find(|source| source.name() == text)
        .ok_or_else(|| format!("one of {}", SourceKind::NAMES.join(", ")))
}
