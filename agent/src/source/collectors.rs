//! The collectors beside connections and drops: processes and TCP statistics, each of its own, off unless configured.
//!
//! In: the configuration, at the start and whenever it changes: programs are loaded and unloaded then and there. Out:
//! observations of sockets, losses and totals by stage, and for each collector whether it is on, off, or refused and why.
//! What always holds: a collector that this node refuses is said once and left out; no other field of a line depends on
//! one, but for the name of a pod on the host network. Not here: what a collector does (`ebpf::sockets`), what its columns
//! mean (the pipeline).

use std::time::Duration;

use tracing::{info, warn};

use crate::config::Config;
use crate::model::{ConnectionEvent, Fill, Observation, ProcessRecord, Proto};

use super::Observed;
use super::ebpf::{Collector, SocketSource};

#[derive(Default)]
enum State {
    #[default]
    Off,
    On(Box<SocketSource>),
    Refused(Collector),
}

impl State {
    fn wanted(&self) -> Option<Collector> {
        match self {
            Self::Off => None,
            Self::On(source) => Some(source.collector()),
            Self::Refused(collector) => Some(*collector),
        }
    }

    fn set(&mut self, name: &'static str, wanted: Option<Collector>) {
        if self.wanted() == wanted {
            return;
        }
        if !matches!(self, Self::Off) {
            info!(collector = name, "switched off");
        }
        // First the old one goes, so that nobody pays for both.
        *self = Self::Off;
        let Some(collector) = wanted else { return };
        *self = match SocketSource::open(collector) {
            Ok(source) => {
                info!(collector = name, "switched on");
                for lack in source.lacks() {
                    info!(collector = name, %lack, "this kernel does not offer all of it");
                }
                Self::On(Box::new(source))
            }
            Err(error) => {
                warn!(collector = name, %error, "cannot be collected on this node: its columns stay empty");
                Self::Refused(collector)
            }
        };
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On(_) => "on",
            Self::Refused(..) => "refused",
        }
    }
}

/// What the configuration asks for.
pub(super) fn processes_wanted(config: &Config) -> Option<Collector> {
    config
        .flow_logs_collect_process_info
        .then_some(Collector::Processes { paths: config.flow_logs_collect_process_path })
}

pub(super) fn tcp_wanted(config: &Config) -> Option<Collector> {
    config.flow_logs_collect_tcp_stats.then_some(Collector::TcpStats)
}

#[derive(Default)]
pub(super) struct Collectors {
    processes: State,
    tcp: State,
    failing: bool,
}

impl Collectors {
    /// Switches on and off what differs from what is at work.
    pub fn set(&mut self, config: &Config) {
        self.processes.set("processes", processes_wanted(config));
        self.tcp.set("tcp statistics", tcp_wanted(config));
    }

    pub fn states(&self) -> [(&'static str, &'static str); 2] {
        [("processes", self.processes.name()), ("tcp", self.tcp.name())]
    }

    fn sources(&mut self) -> impl Iterator<Item = &mut SocketSource> {
        [&mut self.processes, &mut self.tcp].into_iter().filter_map(|state| match state {
            State::On(source) => Some(&mut **source),
            _ => None,
        })
    }

    /// Puts what has ended behind `out`.
    pub fn collect(&mut self, out: &mut Vec<Observed>) {
        self.sources().for_each(|source| source.collect(out));
    }

    /// Puts what lives behind `out`.
    pub fn sweep(&mut self, out: &mut Vec<Observed>) {
        let mut failure = None;
        for source in self.sources() {
            loop {
                match source.sweep_shard(out) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
        }
        if let (Some(error), false) = (&failure, self.failing) {
            warn!(%error, "sockets cannot be read");
        }
        self.failing = failure.is_some();
    }

    /// Processes of the ends of a connection, where only the connection says which sockets it is between; true: the
    /// connection ends with this observation, so that they must come before it.
    pub fn of_observation(&self, observed: &Observed, out: &mut Vec<ProcessRecord>) -> bool {
        if let State::On(source) = &self.processes
            && let Observation::Connection(connection) = &observed.observation
            && connection.proto == Proto::UDP
        {
            out.extend(source.of_connection(connection));
            return matches!(connection.event, ConnectionEvent::End { .. });
        }
        false
    }

    /// What was lost since the last call, by stage.
    pub fn losses(&mut self) -> Vec<(&'static str, u64)> {
        self.sources().flat_map(SocketSource::losses).collect()
    }

    /// How full their tables and rings were, as the last sweep found them.
    pub fn fills(&mut self) -> Vec<Fill> {
        self.sources().flat_map(SocketSource::fills).collect()
    }

    /// CPU time of the longest run of a sweep in the kernel since the last call.
    pub fn take_longest_run(&mut self) -> Duration {
        self.sources().map(SocketSource::take_longest_run).max().unwrap_or_default()
    }

    /// Totals since each was switched on, by name.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let on = [&self.processes, &self.tcp].into_iter().filter_map(|state| match state {
            State::On(source) => Some(source.counts()),
            _ => None,
        });
        on.flatten().collect()
    }
}
