//! The sources of one node: connections from the first source that the node permits, drops beside it.
//!
//! In: what the configuration asks for. Out: observations, in the order in which they must be stepped; losses as
//! `lost` observations under their stage. Always: an error of a running source is logged when it begins and when it
//! is over, and counted; it never ends the agent.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use tracing::{info, warn};

use crate::config::{Config, SourceKind};
use crate::model::{Observation, Timestamp};

use super::Observed;
use super::netlink::{self, NetlinkOptions, NetlinkSource, SourceError};

#[derive(Debug, Error)]
pub enum SourcesError {
    #[error("the source netlink does not work here: {0}")]
    Netlink(#[from] netlink::OpenError),
}

enum Connections {
    Netlink(Box<NetlinkSource>),
}

pub struct NodeSources {
    connections: Connections,
    batch: Vec<Observed>,
    failing: bool,
}

impl NodeSources {
    pub fn open(config: &Config) -> Result<Self, SourcesError> {
        let _ = config.flow_logs_source == SourceKind::Auto;
        let netlink = NetlinkSource::open(&NetlinkOptions::default())?;
        Ok(Self { connections: Connections::Netlink(Box::new(netlink)), batch: Vec::new(), failing: false })
    }

    /// The chosen source of connections.
    pub fn name(&self) -> &'static str {
        match self.connections {
            Connections::Netlink(_) => "netlink",
        }
    }

    pub fn drops_state(&self) -> &'static str {
        "off"
    }

    /// Takes over the connections that exist. Once, before anything else.
    pub fn adopt(&mut self, step: &mut dyn FnMut(Observed)) {
        let Connections::Netlink(netlink) = &mut self.connections;
        let outcome = netlink.adopt(&mut self.batch);
        self.hand_over(outcome, step);
    }

    /// Waits at most `timeout`, and hands over what there is.
    pub fn poll(&mut self, timeout: Duration, step: &mut dyn FnMut(Observed)) {
        let Connections::Netlink(netlink) = &mut self.connections;
        let outcome = netlink.poll(timeout, &mut self.batch);
        let failed = outcome.is_err();
        self.hand_over(outcome, step);
        if failed {
            // The socket does not wait while it fails.
            std::thread::sleep(timeout);
        }
    }

    /// The counters of everything that lives, the drops, and what was lost since the last sweep.
    pub fn sweep(&mut self, step: &mut dyn FnMut(Observed)) {
        let Connections::Netlink(netlink) = &mut self.connections;
        let outcome = netlink.sweep(&mut self.batch);
        let losses = netlink.losses();
        self.hand_over(outcome, step);
        for (stage, events) in losses {
            step(Observed { at: now(), observation: Observation::Lost { stage: Arc::from(stage), events } });
        }
    }

    fn hand_over(&mut self, outcome: Result<(), SourceError>, step: &mut dyn FnMut(Observed)) {
        for observed in self.batch.drain(..) {
            step(observed);
        }
        // A sweep of a million connections must not leave its memory behind.
        self.batch.shrink_to(1 << 14);
        match outcome {
            Err(error) if !self.failing => {
                self.failing = true;
                warn!(%error, "connections cannot be read");
            }
            Ok(()) if self.failing => {
                self.failing = false;
                info!("connections can be read again");
            }
            _ => {}
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
