//! The sources of one node: connections from the first source that the node permits, drops beside it, and the
//! collectors of sockets that are switched on.
//!
//! In: what the configuration asks for. Out: observations, in the order in which they must be stepped; losses as
//! `lost` observations under their stage. `auto` tries `ebpf`, then `netlink`: it attaches or it does not, versions
//! are not parsed. Always: an error of a running source is logged when it begins and when it is over, and counted;
//! it never ends the agent.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use tracing::{debug, info, warn};

use crate::config::{Config, SourceKind};
use crate::model::{Fill, Observation, Timestamp};

use super::Observed;
use super::accounting::{self, ACCOUNTING_SYSCTL, ensure_accounting};
use super::collectors::Collectors;
use super::ebpf::{self, DropSource, EbpfOptions, EbpfSource};
use super::netlink::{self, NetlinkOptions, NetlinkSource};
use super::privilege;

/// How often drops are taken out of the kernel's map: it has to hold what is dropped in between, and a denied flow
/// ends by the time of its last drop.
const DROPS_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is looked whether the modules that are probed are still the same.
const MODULES_INTERVAL: Duration = Duration::from_secs(1);

/// What comes gathers for so long before it is looked at: one wake-up then reads many records. Far less than what a
/// reader of live lines notices, and than it takes to fill any buffer.
const GATHER: Duration = Duration::from_millis(20);
/// So many records of one look say that more wait.
const BUSY: usize = 1 << 11;

/// How often a module that was not loaded is looked for again.
const RETRY_ATTACH: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
pub enum SourcesError {
    #[error("the source ebpf does not work here: {0}")]
    Ebpf(#[from] ebpf::OpenError),
    #[error("the source netlink does not work here: {0}")]
    Netlink(#[from] netlink::OpenError),
    #[error(
        "no source works here; `flowlogd check` tells what is missing\n  ebpf: {ebpf}\n  netlink: {netlink}"
    )]
    None { ebpf: ebpf::OpenError, netlink: netlink::OpenError },
}

enum Connections {
    Ebpf(Box<EbpfSource>),
    Netlink(Box<NetlinkSource>),
}

/// How much the sources may remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Connections in user space (source netlink).
    pub connections: usize,
    /// Kernel memory of maps for connections (source ebpf).
    pub map_bytes: u64,
    /// Kernel memory of events that wait to be read (source netlink).
    pub event_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { connections: 1 << 21, map_bytes: 64 << 20, event_bytes: netlink::EVENT_BYTES }
    }
}

pub struct NodeSources {
    connections: Connections,
    drops: Result<Box<DropSource>, String>,
    collectors: Collectors,
    batch: Vec<Observed>,
    other_drops: Vec<(String, u64)>,
    failing: bool,
    adopted: bool,
    may_set_accounting: bool,
    accounting_off: bool,
    /// Connection tracking was there when accounting was looked at.
    accounting_settled: bool,
    next_attach: Instant,
    next_modules: Instant,
    next_drops: Instant,
    next_look: Instant,
}

impl NodeSources {
    /// # Errors
    /// The source that was asked for, or both, cannot work on this node; the message says why and what to do.
    pub fn open(config: &Config) -> Result<Self, SourcesError> {
        Self::open_within(config, &Bounds::default())
    }

    /// # Errors
    /// As [`Self::open`].
    pub fn open_within(config: &Config, bounds: &Bounds) -> Result<Self, SourcesError> {
        let _raised = privilege::raise();
        let may_set_accounting = config.flow_logs_set_conntrack_accounting;
        let accounting_settled = tracks();
        ensure_accounting(may_set_accounting);
        let limits = std::env::var(ebpf::TEST_LIMITS).unwrap_or_default();
        if !limits.is_empty() {
            warn!(variable = ebpf::TEST_LIMITS, %limits, "limits of the kernel side are set for a test: unset it");
        }
        let mut options = EbpfOptions::with_limits(&limits);
        options.map_memory_bytes = options.map_memory_bytes.min(bounds.map_bytes);
        let open_ebpf = || EbpfSource::open(&options).map(|s| Connections::Ebpf(Box::new(s)));
        let options =
            NetlinkOptions { most_connections: bounds.connections, receive_buffer_bytes: bounds.event_bytes };
        let open_netlink = || NetlinkSource::open(&options).map(|s| Connections::Netlink(Box::new(s)));
        let connections = match config.flow_logs_source {
            SourceKind::Ebpf => open_ebpf()?,
            SourceKind::Netlink => open_netlink()?,
            SourceKind::Auto => match open_ebpf() {
                Ok(source) => source,
                Err(ebpf) => {
                    info!(why = %ebpf, "the source ebpf does not work here; netlink is tried");
                    open_netlink().map_err(|netlink| SourcesError::None { ebpf, netlink })?
                }
            },
        };
        let drops = DropSource::open().map(Box::new).map_err(|error| error.to_string());
        if let Err(why) = &drops {
            warn!(%why, "drops cannot be observed: there will be no deny lines");
        }
        let mut collectors = Collectors::default();
        collectors.set(config);
        let next_attach = Instant::now();
        Ok(Self {
            connections,
            drops,
            collectors,
            batch: Vec::new(),
            other_drops: Vec::new(),
            failing: false,
            adopted: false,
            may_set_accounting,
            accounting_off: accounting::is_off(),
            accounting_settled,
            next_attach,
            next_modules: next_attach,
            next_drops: next_attach,
            next_look: next_attach,
        })
    }

    /// The chosen source of connections.
    pub fn name(&self) -> &'static str {
        match self.connections {
            Connections::Ebpf(_) => "ebpf",
            Connections::Netlink(_) => "netlink",
        }
    }

    pub fn drops_state(&self) -> &'static str {
        if self.drops.is_ok() { "on" } else { "off" }
    }

    /// Switches the collectors of sockets on and off as the configuration now asks.
    pub fn set_collectors(&mut self, config: &Config) {
        self.collectors.set(config);
    }

    /// Each collector of sockets: `on`, `off`, or `refused` by this node.
    pub fn collectors_state(&self) -> [(&'static str, &'static str); 2] {
        self.collectors.states()
    }

    /// Everything that the kernel side has counted since the start, by name: what was left out because it is of
    /// another network namespace, what found a map full, and so on.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let mut counts = match &self.connections {
            Connections::Ebpf(source) => source.counts(),
            Connections::Netlink(_) => Vec::new(),
        };
        // Connections and drops are two loads of the object, each with its own counts under the same names.
        for (name, more) in self.drops.as_ref().map(|drops| drops.counts()).unwrap_or_default() {
            match counts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, total)) => *total = total.saturating_add(more),
                None => counts.push((name, more)),
            }
        }
        counts.extend(self.collectors.counts());
        counts
    }

    /// How full what is between the kernel and us was, as the last sweep found it: maps, rings, the socket's queue.
    pub fn fills(&mut self) -> Vec<Fill> {
        let mut fills = match &mut self.connections {
            Connections::Ebpf(source) => source.fills().to_vec(),
            Connections::Netlink(source) => source.fills().to_vec(),
        };
        fills.extend(self.drops.as_mut().ok().map(|drops| drops.take_fill()));
        fills.extend(self.collectors.fills());
        fills
    }

    /// CPU time of the longest run of a sweep in the kernel since the last call; nothing where user space sweeps.
    pub fn take_longest_run(&mut self) -> Duration {
        let connections = match &mut self.connections {
            Connections::Ebpf(source) => source.take_longest_run(),
            Connections::Netlink(_) => Duration::ZERO,
        };
        connections.max(self.collectors.take_longest_run())
    }

    /// Takes over the connections that exist, before anything else.
    pub fn adopt(&mut self, step: &mut dyn FnMut(Observed)) {
        let outcome = match &mut self.connections {
            Connections::Ebpf(source) => source.adopt(&mut self.batch).map_err(|e| e.to_string()),
            Connections::Netlink(source) => source.adopt(&mut self.batch).map_err(|e| e.to_string()),
        };
        self.adopted = outcome.is_ok();
        self.hand_over(outcome, step);
    }

    /// What existed at the start has been taken over. Until then each poll tries again: what is older than the agent
    /// must not be taken for new, with all that it ever moved.
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Waits at most `timeout`, and hands over what there is.
    pub fn poll(&mut self, timeout: Duration, step: &mut dyn FnMut(Observed)) {
        self.attach_late(step);
        if !self.adopted {
            self.adopt(step);
        }
        if Instant::now() >= self.next_drops {
            self.collect_drops(step);
        }
        let pause = self.next_look.saturating_duration_since(Instant::now()).min(timeout);
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let rest = timeout.saturating_sub(pause);
        let outcome = match &mut self.connections {
            Connections::Ebpf(source) => source.poll(rest, &mut self.batch).map_err(|e| e.to_string()),
            Connections::Netlink(source) => source.poll(rest, &mut self.batch).map_err(|e| e.to_string()),
        };
        if (1..BUSY).contains(&self.batch.len()) {
            self.next_look = Instant::now() + GATHER;
        }
        let failed = outcome.is_err();
        self.hand_over(outcome, step);
        self.collectors.collect(&mut self.batch);
        self.hand_over_batch(step);
        if failed {
            // A source that fails does not wait.
            std::thread::sleep(timeout);
        }
    }

    /// nf_conntrack may be loaded after the agent started, or while it does: its connections count from then on.
    fn attach_late(&mut self, step: &mut dyn FnMut(Observed)) {
        let came = !self.accounting_settled && tracks();
        if came {
            self.accounting_settled = true;
            ensure_accounting(self.may_set_accounting);
        }
        let Connections::Ebpf(source) = &mut self.connections else { return };
        if Instant::now() >= self.next_modules {
            self.next_modules = Instant::now() + MODULES_INTERVAL;
            match source.look_at_modules() {
                Ok(true) => self.next_attach = Instant::now(),
                Ok(false) => {}
                Err(error) => warn!(%error, "the probes of a module that was unloaded cannot be renewed"),
            }
        }
        if source.is_attached() || (!came && Instant::now() < self.next_attach) {
            return;
        }
        self.next_attach = Instant::now() + RETRY_ATTACH;
        let attached = {
            let _raised = privilege::raise();
            source.retry_attach()
        };
        match attached {
            Ok(true) => {
                info!("connection tracking is there now: its functions are probed");
                self.adopt(step);
            }
            Ok(false) => {}
            Err(error) => warn!(%error, "connection tracking is there now, but cannot be probed"),
        }
    }

    /// Packets dropped for other reasons than a filter since the last call, by the kernel's name of the reason.
    pub fn take_other_drops(&mut self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.other_drops)
    }

    /// The counters of everything that lives, the drops, and what was lost since the last sweep.
    pub fn sweep(&mut self, step: &mut dyn FnMut(Observed)) {
        // Sockets are looked at first, so that a connection finds those that are known by their own end alone; they are
        // told last, when all connections are known.
        let mut sockets = Vec::new();
        self.collectors.sweep(&mut sockets);
        loop {
            // In parts, so that a million connections need no room at once, and hold up nothing.
            let (outcome, more) = match &mut self.connections {
                Connections::Ebpf(source) => match source.sweep_shard(&mut self.batch) {
                    Ok(more) => (Ok(()), more),
                    Err(error) => (Err(error.to_string()), false),
                },
                Connections::Netlink(source) => match source.sweep_part(&mut self.batch) {
                    Ok(more) => (Ok(()), more),
                    Err(error) => (Err(error.to_string()), false),
                },
            };
            self.hand_over(outcome, step);
            if !more {
                break;
            }
        }
        sockets.into_iter().for_each(&mut *step);
        self.collect_drops(step);
        let mut losses = match &mut self.connections {
            Connections::Ebpf(source) => source.losses(),
            Connections::Netlink(source) => source.losses(),
        };
        if let Ok(drops) = &mut self.drops {
            self.other_drops.extend(drops.other_reasons());
            losses.extend(drops.losses());
        }
        losses.extend(self.collectors.losses());
        for (stage, events) in losses {
            debug!(stage, events, "lost");
            step(Observed { at: now(), observation: Observation::Lost { stage: Arc::from(stage), events } });
        }
    }

    fn collect_drops(&mut self, step: &mut dyn FnMut(Observed)) {
        self.next_drops = Instant::now() + DROPS_INTERVAL;
        self.look_at_accounting();
        if let Ok(drops) = &mut self.drops {
            let outcome = drops.collect(&mut self.batch).map_err(|error| error.to_string());
            self.hand_over(outcome, step);
        }
    }

    /// Others may unload the module under us, or switch accounting off: told, never fought over, since who set it may have a reason.
    fn look_at_accounting(&mut self) {
        if self.accounting_settled && !tracks() {
            self.accounting_settled = false;
            warn!(
                "connection tracking was unloaded: its connections have ended, and nothing is tracked until it is loaded again"
            );
        }
        let off = accounting::is_off();
        if off != std::mem::replace(&mut self.accounting_off, off) {
            if off {
                warn!(
                    "net.netfilter.nf_conntrack_acct was set to 0: connections that begin from now on count nothing; find what sets it, then: sysctl -w net.netfilter.nf_conntrack_acct=1"
                );
            } else {
                info!("net.netfilter.nf_conntrack_acct is 1 again: connections that begin from now on count");
            }
        }
    }

    /// Connections that begin now count nothing.
    pub fn accounting_is_off(&self) -> bool {
        self.accounting_off
    }

    fn hand_over(&mut self, outcome: Result<(), String>, step: &mut dyn FnMut(Observed)) {
        self.hand_over_batch(step);
        match outcome {
            Err(error) if !self.failing => {
                self.failing = true;
                warn!(%error, "the kernel cannot be read");
            }
            Ok(()) if self.failing => {
                self.failing = false;
                info!("the kernel can be read again");
            }
            _ => {}
        }
    }

    fn hand_over_batch(&mut self, step: &mut dyn FnMut(Observed)) {
        let mut processes = Vec::new();
        for observed in self.batch.drain(..) {
            let at = observed.at;
            let is_last = self.collectors.of_observation(&observed, &mut processes);
            let told =
                processes.drain(..).map(|record| Observed { at, observation: Observation::Process(record) });
            if is_last {
                told.for_each(&mut *step);
                step(observed);
            } else {
                step(observed);
                told.for_each(&mut *step);
            }
        }
        // A sweep of a million connections must not leave its memory behind.
        self.batch.shrink_to(1 << 14);
    }
}

/// Connection tracking is loaded, and this network namespace has its sysctls.
fn tracks() -> bool {
    std::path::Path::new(ACCOUNTING_SYSCTL).exists()
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
