//! What an API server answers a watch: its events, and why one came to nothing.
//!
//! In: the text of an event, an error. Out: what of it a watch must know. Not here: what is done then (`follow`), what an
//! object says (`decode`).

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::follow::Identity;

/// Why a request or a watch came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the server has forgotten this version: everything is asked for anew")]
    Expired,
    #[error("the server answers {code}: {message}")]
    Refused { code: u16, message: String, wait: Option<Duration> },
    #[error("the connection failed: {0}")]
    Connection(String),
    #[error("the server said nothing for {0:?}")]
    Silent(Duration),
    #[error("what the server says cannot be read: {0}")]
    Malformed(String),
    /// No streaming lists: not an error.
    #[error("no streaming lists")]
    NotStreaming,
    /// Nobody listens.
    #[error("stopped")]
    Stopped,
}

impl Failure {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Refused { code, .. } => match code {
                401 => "unauthorized",
                403 => "forbidden",
                404 => "not_found",
                429 => "too_many_requests",
                500..=599 => "server_error",
                _ => "refused",
            },
            Self::Connection(_) => "connection",
            Self::Silent(_) => "silent",
            Self::Malformed(_) => "malformed",
            Self::NotStreaming | Self::Stopped => "none",
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "type")]
    pub kind: &'a str,
    #[serde(borrow)]
    pub object: &'a RawValue,
}

/// Of any object: what a watch must know.
#[derive(Deserialize)]
pub(super) struct Head {
    pub metadata: HeadMeta,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct HeadMeta {
    #[serde(flatten)]
    pub identity: Identity,
    #[serde(rename = "resourceVersion")]
    pub version: String,
    pub annotations: Option<EndMark>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct EndMark {
    #[serde(rename = "k8s.io/initial-events-end")]
    pub end: Option<String>,
}

/// The object of an `ERROR` event.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Refusal {
    pub code: u16,
    pub reason: String,
    pub message: String,
    pub details: Option<RefusalDetails>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct RefusalDetails {
    pub retry_after_seconds: Option<u64>,
}

pub(super) fn failure_of(refusal: Refusal, wait: Option<Duration>) -> Failure {
    let Refusal { code, reason, message, details } = refusal;
    if code == 410 || reason == "Expired" || reason == "Gone" {
        return Failure::Expired;
    }
    let asked = details.and_then(|details| details.retry_after_seconds).map(Duration::from_secs);
    Failure::Refused { code, message, wait: wait.or(asked) }
}

/// The error and its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
