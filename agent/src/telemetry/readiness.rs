//! Is the agent ready: does what it writes carry the names that it should?
//!
//! In: the state of the watch. Out: yes, or the reasons why not, for people. What always holds: an agent that is not ready
//! goes on observing and writing; being unready restarts nothing. Where no API server is watched, it is ready.
//! The HTTP path that serves this is deliberately not here.

use std::time::Duration;

use crate::watch::Status;

/// An API server that says nothing of a kind for this long is out of reach: bookmarks come about once a minute, and a
/// silent watch is given up and opened anew after two.
const STALE: Duration = Duration::from_secs(240);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    pub ready: bool,
    /// Why not; empty when ready.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// `watch`: of the API server, where one is watched.
    pub fn of(watch: Option<&Status>) -> Self {
        let reasons = watch.map(|status| status.reasons(STALE)).unwrap_or_default();
        Self { ready: reasons.is_empty(), reasons }
    }
}
