//! The command line: what the flags mean, which verb runs, how the process ends.
//!
//! In: arguments and environment. Out: an exit code (`exit.rs`), a message on stderr if it is not 0.
//! One file a verb, each with its arguments; what a verb does lives in `app`, `source` and `config`.
//! Always: stdout carries lines and tables only; a reader that went away (`| head`) is no error; a panic anywhere
//! ends the process with 70 and a message.
//! Not here: anything that a verb does.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Given, Layers, Resolved};
use crate::sink::StdoutSink;
use crate::telemetry;

pub mod check;
pub mod config;
pub mod exit;
pub mod observe;
pub mod policy;
pub mod record;
pub mod replay;
pub mod run;
mod stop;

pub use exit::{Exit, Failure, OrExit};

/// The flow log of every Kubernetes node: exact, nearly free, Calico-compatible.
#[derive(Parser, Debug)]
#[command(name = "flowlogd", version, subcommand_precedence_over_arg = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags of every verb.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Name of this node in the cluster [default: the host's name]
    #[arg(long, global = true, env = "NODE_NAME", value_name = "NAME")]
    pub node: Option<String>,
    /// Manifests (YAML or JSON, files or directories) that tell of the cluster, instead of an API server
    #[arg(long, global = true, num_args = 1.., value_name = "PATH")]
    pub cluster: Vec<PathBuf>,
    /// Where the API server is [default: KUBECONFIG, or the service account of the pod]
    #[arg(long, global = true, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Configuration file: a YAML map of fields, or a FlowLogConfiguration object
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set a configuration field, above every other layer; repeatable
    #[arg(long, global = true, value_name = "FIELD=VALUE")]
    pub set: Vec<String>,
    /// error, warn, info, debug or trace [default: what FLOWLOGD_LOG says, or info]
    #[arg(long, global = true, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace", "off"])]
    pub log_level: Option<String>,
}

#[derive(Subcommand, Clone, Debug)]
pub enum Verb {
    Run(run::RunArgs),
    Replay(replay::ReplayArgs),
    Record(record::RecordArgs),
    Observe(observe::ObserveArgs),
    Check(check::CheckArgs),
    Config(config::ConfigArgs),
    Policy(policy::PolicyArgs),
}

impl Verb {
    /// Configuration fields that the verb's own flags set: name, value, flag.
    fn fields(&self) -> Vec<(String, String, String)> {
        match self {
            Self::Run(args) => args.fields(),
            Self::Record(args) => args.fields(),
            Self::Replay(_) | Self::Observe(_) | Self::Check(_) | Self::Config(_) | Self::Policy(_) => {
                Vec::new()
            }
        }
    }
}

impl Global {
    /// `--node`, else `NODE_NAME`, else the host's name.
    pub fn node_name(&self) -> String {
        match &self.node {
            Some(name) if !name.is_empty() => name.clone(),
            _ => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        }
    }

    /// What the configuration's layers are made of; `fields` come from the verb's flags.
    pub fn given(
        &self,
        fields: Vec<(String, String, String)>,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Given, Failure> {
        let mut flags = Vec::new();
        for text in &self.set {
            let Some((field, value)) = text.split_once('=') else {
                return Err(Failure::usage(format!(
                    "--set {text}: expected is FIELD=VALUE, such as --set flowLogsFlushInterval=15s"
                )));
            };
            flags.push((field.trim().to_owned(), value.to_owned(), "--set".to_owned()));
        }
        flags.extend(fields);
        Ok(Given { file: self.config.clone(), environment: environment.collect(), flags })
    }
}

/// Parses, dispatches, and turns errors into messages and codes.
pub fn main() -> ExitCode {
    end_with_70_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout and are no error; a reader that went away is none either.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Exit::Usage } else { Exit::Ok }.code());
        }
    };
    match dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let exit = exit::exit_of(&error);
            if exit != Exit::Ok {
                say(&format!("{error:#}"));
            }
            if exit == Exit::Bug {
                say("this is a bug in flowlogd: please report it with the message above");
            }
            ExitCode::from(exit.code())
        }
    }
}

fn dispatch(mut cli: Cli) -> anyhow::Result<u8> {
    telemetry::start_log(cli.global.log_level.as_deref()).map_err(Failure::usage)?;
    let (layers, resolved) = resolve(&cli)?;
    if matches!(cli.verb, Verb::Run(_) | Verb::Record(_))
        && let Err(error) = crate::source::privilege::confine()
    {
        tracing::warn!(%error, "more privileges than needed are kept: the kernel refuses to lower them");
    }
    match &mut cli.verb {
        Verb::Run(args) => run::run(&cli.global, layers, args),
        Verb::Replay(args) => replay::run(&cli.global, layers, args),
        Verb::Record(args) => record::run(&cli.global, layers, args),
        Verb::Observe(args) => observe::run(&resolved, args),
        Verb::Check(args) => check::run(&cli.global, layers, args),
        Verb::Config(args) => config::run(&cli.global, layers, args),
        Verb::Policy(args) => policy::run(&cli.global, &resolved, args),
    }
}

/// The configuration at first start: any bad value in file, environment or flags ends the process with 64.
fn resolve(cli: &Cli) -> anyhow::Result<(Layers, Resolved)> {
    let given = cli.global.given(cli.verb.fields(), std::env::vars_os())?;
    let (layers, resolved) = crate::config::load(&given, &cli.global.node_name())?;
    for (field, origin) in resolved.without_effect() {
        tracing::warn!(field = field.name, set_by = %origin.place, "this field has no effect:{}", field.doc);
    }
    Ok((layers, resolved))
}

/// To stdout; a broken pipe is no error, any other ends with 74.
pub fn print(text: &[u8]) -> Result<(), Failure> {
    StdoutSink::new().write_lines(text).map(|_| ()).or_exit(Exit::OutputFailed)
}

/// To stderr, each line with our name in front. A closed stderr is nobody's concern here.
fn say(message: &str) {
    let mut stderr = std::io::stderr().lock();
    for line in message.lines() {
        let _ = writeln!(stderr, "flowlogd: {line}");
    }
}

/// An agent that lost a task to a panic would go on with half of its stages: it ends at once, and is started anew.
fn end_with_70_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("{panic}\nthis is a bug in flowlogd: please report it with the message above"));
        std::process::exit(i32::from(Exit::Bug.code()));
    }));
}

#[cfg(test)]
mod tests;
