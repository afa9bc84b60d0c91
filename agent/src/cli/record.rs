//! `flowlogd record`: what this node shows, as a recording.
//!
//! In: the command line; the configuration with the cluster's layers, as `run` has it at its start. Out: a file or stdout.
//! An API server that does not tell its configuration is said, and the other layers hold. What changes while it records
//! is recorded, and acts on nothing but the replay.
//! Not here: recording (`app`).

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tracing::{info, warn};

use crate::app::{self, RecordError};
use crate::config::{Config, Layers, Limits, Notation, Setting as _, SourceKind};

use super::config::add_cluster;
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

/// What the agent would be started with.
fn configuration(global: &Global, mut layers: Layers) -> anyhow::Result<Config> {
    add_cluster(global, &mut layers)?;
    let (resolved, bad) = layers.resolve();
    for bad in bad {
        warn!(layer = bad.layer.name(), "{bad}: the lower layers' value holds");
    }
    Ok(resolved.config)
}

pub fn run(global: &Global, layers: Layers, args: &RecordArgs) -> anyhow::Result<u8> {
    let config = configuration(global, layers)?;
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
    let lines = app::record(&config, &global.cluster, kubeconfig, args.duration, &mut output, &stop)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Given, load};

    #[test]
    fn the_clusters_layers_hold_below_those_of_the_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = folder.path().join("cluster.yaml");
        let object = |api_version: &str, kind: &str, name: &str, spec: &str| {
            format!(
                "---\napiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
            )
        };
        let text = [
            object(
                "projectcalico.org/v3",
                "FelixConfiguration",
                "default",
                "flowLogsCollectProcessInfo: true, flowLogsFlushInterval: 15s",
            ),
            object("flowlogd.dev/v1", "FlowLogConfiguration", "default", "dnsLogsFileEnabled: true"),
            object("flowlogd.dev/v1", "FlowLogConfiguration", "node.n1", "flowLogsFlushInterval: 20s"),
            object("flowlogd.dev/v1", "FlowLogConfiguration", "node.n2", "flowLogsCollectTcpStats: true"),
        ];
        std::fs::write(&manifests, text.concat()).unwrap();
        let flags = vec![("flowLogsSource".to_owned(), "netlink".to_owned(), "--source".to_owned())];
        let (layers, alone) = load(&Given { flags, ..Given::default() }, "n1").unwrap();
        let global = Global { node: Some("n1".into()), cluster: vec![manifests], ..Global::default() };
        let config = configuration(&global, layers).unwrap();
        assert!(config.flow_logs_collect_process_info && config.dns_logs_file_enabled);
        assert_eq!(config.flow_logs_flush_interval, Duration::from_secs(20));
        assert_eq!(config.flow_logs_source, SourceKind::Netlink);
        assert_eq!(config.flow_logs_collect_tcp_stats, alone.config.flow_logs_collect_tcp_stats);
    }
}
