//! The sources of one node: connections from the first source that the node permits, drops beside it.
//!
//! In: what the configuration asks for. Out: observations, in the order in which they must be stepped; losses as
//! `lost` observations under their stage. Always: an error of a running source is logged once per kind and counted;
//! it never ends the agent.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use tracing::{info, warn};

use crate::config::{Config, SourceKind};
use crate::model::{Observation, Timestamp};

use super::Observed;
use super::netlink::{self, NetlinkOptions, NetlinkSource};

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
