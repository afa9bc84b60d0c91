//! One kind of objects, followed: all that there are, then each change, for ever.
//!
//! In: a client, where the kind is served, a function that reads one object's text. Out: [`Told`], in order.
//! kube-runtime's watcher does the same dance and is not used, because of what it does with answers: it holds a whole
//! list in memory (hundreds of megabytes of pods), fails a list for one object that does not parse, does not fall back
//! from streaming lists, and does not know what `Retry-After` asks. The requests are kube's, and so is the client.
//! What always holds: lists come from the API server's watch cache (`resourceVersion=0` or "not older than what we have
//! seen", no page size), never from a quorum read; a relist is told whole, at its end; an object that does not parse is
//! counted and left out, alone; an answer that says nothing for [`Timing::idle`] is given up; after a failure we wait,
//! longer each time, with jitter, and as long as the server asks. Discovery is deliberately not here: `served.rs`.

use std::time::{Duration, Instant};

use backon::BackoffBuilder as _;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::api::{ListParams, VersionMatch, WatchParams};
use kube::client::Body;
use kube::core::Request;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;
use tracing::{debug, info, warn};

use super::answers::{Event, Failure, Head, HeadMeta, Refusal, chain, failure_of};
use super::decode::Unreadable;
use super::split::Splitter;
use super::status::{KindStatus, Phase};

/// No event is longer than this (bytes).
const EVENT_LIMIT: usize = 16 << 20;
/// What is read of an answer that says no (bytes).
const REFUSAL_LIMIT: usize = 64 << 10;
/// Objects of a first list that are told at once.
const PART: usize = 512;
/// A watch that ends sooner than this without an event is not opened again at once.
const SHORT: Duration = Duration::from_secs(1);
/// Unreadable events in a row after which everything is asked for anew.
const MALFORMED_IN_A_ROW: u32 = 3;

/// How long everything takes. The defaults are kind to the API server.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A server that says nothing for this time is given up: bookmarks come about once a minute.
    pub idle: Duration,
    /// The server ends a watch after this time, and up to twice as long.
    pub watch: Duration,
    pub backoff: Duration,
    pub backoff_most: Duration,
    /// How often it is looked up what the server serves, and up to half as long again.
    pub discovery: Duration,
    /// Changes are published together that come within this time.
    pub debounce: Duration,
    /// How long flows are held while the cluster is not known.
    pub hold: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(120),
            watch: Duration::from_secs(300),
            backoff: Duration::from_millis(800),
            backoff_most: Duration::from_secs(30),
            discovery: Duration::from_secs(40),
            debounce: Duration::from_millis(50),
            hold: Duration::from_secs(60),
        }
    }
}

/// What there is to know of a kind.
#[derive(Debug)]
pub enum Told<T> {
    /// Some of the objects of the first list; `All` or `Done` follows.
    Part(Vec<T>),
    /// The parts were all that there are.
    Done,
    /// All objects that there are. What is gone may have gone at any time since the watch was last heard of.
    All { objects: Vec<T>, heard: Option<Instant> },
    /// New, or changed.
    Applied(T),
    /// The last version of it, if it can be read.
    Gone { identity: Identity, object: Option<T> },
}

/// Which object of the kind.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Identity {
    pub namespace: Option<String>,
    pub name: String,
    pub uid: Option<String>,
}

/// Where a kind is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
}

impl Resource {
    fn path(&self) -> String {
        let Self { group, version, plural } = self;
        if group.is_empty() {
            format!("/api/{version}/{plural}")
        } else {
            format!("/apis/{group}/{version}/{plural}")
        }
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Follows one kind.
pub(super) struct Follower<'a, T, R> {
    pub client: Client,
    pub timing: Timing,
    pub resource: Resource,
    /// Only these objects of it.
    pub selector: Option<&'a str>,
    pub status: &'a KindStatus,
    /// `None`: the object is of no use.
    pub read: R,
    pub tell: &'a mpsc::Sender<(usize, Told<T>)>,
    pub tag: usize,
    /// The first list may be told in parts.
    pub in_parts: bool,
    state: State,
}

struct State {
    /// From where the watch goes on; `None`: everything must be asked for.
    version: Option<String>,
    /// The newest version seen: nothing older is taken.
    seen: Option<String>,
    heard: Option<Instant>,
    streaming: bool,
    progress: bool,
    malformed: u32,
}

impl<'a, T, R> Follower<'a, T, R>
where
    R: Fn(&str) -> Result<Option<T>, Unreadable<T>>,
{
    #[allow(clippy::too_many_arguments, reason = "one place makes it, with everything by name")]
    pub fn new(
        client: Client,
        timing: Timing,
        resource: Resource,
        selector: Option<&'a str>,
        status: &'a KindStatus,
        read: R,
        tell: &'a mpsc::Sender<(usize, Told<T>)>,
        tag: usize,
        in_parts: bool,
    ) -> Self {
        let state =
            State { version: None, seen: None, heard: None, streaming: true, progress: false, malformed: 0 };
        Self { client, timing, resource, selector, status, read, tell, tag, in_parts, state }
    }

    /// Until nobody listens. Cancelled from outside when the server stops serving the kind.
    pub async fn run(mut self) {
        let patience = backon::ExponentialBuilder::default()
            .with_min_delay(self.timing.backoff)
            .with_max_delay(self.timing.backoff_most)
            .with_jitter()
            .without_max_times();
        let mut waits = patience.build();
        let mut told = false;
        loop {
            let began = Instant::now();
            let result = self.round().await;
            // A quiet kind says nothing for a long time; that is progress too.
            if std::mem::take(&mut self.state.progress) || began.elapsed() >= self.timing.backoff_most {
                waits = patience.build();
                if told {
                    told = false;
                    info!(kind = self.status.kind, "the API server answers again");
                }
            }
            let mut asked = None;
            match result {
                // The end that the server gives a watch.
                Ok(()) if began.elapsed() >= SHORT => continue,
                Ok(()) => {}
                Err(Failure::Stopped) => return,
                Err(failure) => {
                    self.status.error(failure.reason(), failure.to_string());
                    if !told && !matches!(failure, Failure::Expired | Failure::Silent(_)) {
                        told = true;
                        warn!(kind = self.status.kind, problem = %failure, "what is known of this kind grows old: trying again");
                    } else {
                        debug!(kind = self.status.kind, problem = %failure, "trying again");
                    }
                    asked = self.fail(failure);
                }
            }
            let wait = waits.next().unwrap_or(self.timing.backoff_most).max(asked.unwrap_or_default());
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.tell.closed() => return,
            }
        }
    }

    /// What follows from a failure; how long the server asks us to wait.
    fn fail(&mut self, failure: Failure) -> Option<Duration> {
        let state = &mut self.state;
        match failure {
            Failure::Expired => state.version = None,
            Failure::Malformed(_) => {
                state.malformed += 1;
                if state.malformed >= MALFORMED_IN_A_ROW {
                    state.version = None;
                }
            }
            // A version that this server does not have yet, or not any more.
            Failure::Refused { code: 400 | 504, .. } if state.version.is_none() => state.seen = None,
            Failure::Refused { wait, .. } => return wait.map(|wait| wait.min(self.timing.backoff_most * 10)),
            _ => {}
        }
        None
    }

    /// From where we are to the end of a watch.
    async fn round(&mut self) -> Result<(), Failure> {
        if self.state.version.is_none() {
            self.status.add_relists(1);
            self.status.set_phase(Phase::Syncing);
            if self.state.streaming {
                match self.watch(true).await {
                    Err(Failure::NotStreaming) => self.state.streaming = false,
                    other => return other,
                }
            }
            self.list().await?;
        }
        self.watch(false).await
    }

    async fn tell(&self, told: Told<T>) -> Result<(), Failure> {
        self.tell.send((self.tag, told)).await.map_err(|_| Failure::Stopped)
    }

    fn read(&self, text: &str) -> Option<T> {
        match (self.read)(text) {
            Ok(object) => object,
            Err(Unreadable { error, stands }) => {
                self.status.add_refused(1);
                match stands {
                    Some(_) => warn!(%error, "an object cannot be read: what depends on it is unknown"),
                    None => warn!(%error, "an object cannot be used: it is left out"),
                }
                stands.map(|stands| *stands)
            }
        }
    }

    /// All objects are known, up to this version.
    async fn synced(&mut self, mut gathered: Gathered<T>, version: String) -> Result<(), Failure> {
        let told = if gathered.in_parts {
            self.tell(Told::Part(std::mem::take(&mut gathered.objects))).await?;
            Told::Done
        } else {
            Told::All { objects: gathered.objects, heard: self.state.heard }
        };
        self.tell(told).await?;
        self.in_parts = false;
        self.status.set_phase(Phase::Synced);
        self.status.recover();
        self.state.seen = Some(version.clone());
        self.state.version = Some(version);
        self.state.heard = Some(Instant::now());
        Ok(())
    }

    fn gather(&mut self) -> Gathered<T> {
        // What was told in parts of a list that failed stays until a whole one replaces it.
        Gathered { objects: Vec::new(), in_parts: std::mem::take(&mut self.in_parts) }
    }

    async fn list(&mut self) -> Result<(), Failure> {
        let mut gathered = self.gather();
        let mut params =
            ListParams { field_selector: self.selector.map(str::to_owned), ..ListParams::default() };
        match &self.state.seen {
            None => params.resource_version = Some("0".to_owned()),
            Some(seen) => {
                params.resource_version = Some(seen.clone());
                params.version_match = Some(VersionMatch::NotOlderThan);
            }
        }
        loop {
            let request = Request::new(self.resource.path()).list(&params);
            let mut body = self.open(request).await?;
            let mut splitter = Splitter::default();
            loop {
                let Ok(piece) = timeout(self.timing.idle, body.next()).await else {
                    return Err(Failure::Silent(self.timing.idle));
                };
                let Some(piece) = piece else { break };
                let piece = piece.map_err(|error| Failure::Connection(error.to_string()))?;
                let read = |item: &[u8]| match std::str::from_utf8(item) {
                    Ok(text) => gathered.objects.extend(self.read(text)),
                    Err(_) => self.status.add_refused(1),
                };
                splitter.push(&piece, read).map_err(|error| Failure::Malformed(error.to_string()))?;
                self.part(&mut gathered).await?;
            }
            let list = splitter.finish().map_err(|error| Failure::Malformed(error.to_string()))?;
            if list.more.is_empty() {
                return self.synced(gathered, list.resource_version).await;
            }
            // We ask for no pages; a server that makes them all the same gets its way.
            params.continue_token = Some(list.more);
        }
    }

    async fn part(&self, gathered: &mut Gathered<T>) -> Result<(), Failure> {
        if gathered.in_parts && gathered.objects.len() >= PART {
            self.tell(Told::Part(std::mem::take(&mut gathered.objects))).await?;
        }
        Ok(())
    }

    /// A watch to its end. `initial`: all objects come first, as events.
    async fn watch(&mut self, initial: bool) -> Result<(), Failure> {
        let seconds = self.timing.watch.as_secs();
        let seconds = fastrand::u64(seconds..=seconds * 2);
        let mut params = WatchParams::default().timeout(u32::try_from(seconds).unwrap_or(u32::MAX));
        params.field_selector = self.selector.map(str::to_owned);
        if initial {
            params = params.initial_events();
        }
        let version = if initial { self.state.seen.as_deref() } else { self.state.version.as_deref() };
        let request = Request::new(self.resource.path()).watch(&params, version.unwrap_or("0"));
        let body = match self.open(request).await {
            // Servers without streaming lists, and those older than the idea.
            Err(Failure::Refused { code: 400 | 422, .. }) if initial => return Err(Failure::NotStreaming),
            body => body?,
        };
        if !initial {
            self.status.recover();
        }
        let body = StreamReader::new(body.map_err(std::io::Error::other));
        let mut lines = FramedRead::new(body, LinesCodec::new_with_max_length(EVENT_LIMIT));
        let mut gathering = if initial { Some(self.gather()) } else { None };
        loop {
            let Ok(line) = timeout(self.timing.idle, lines.next()).await else {
                return Err(Failure::Silent(self.timing.idle));
            };
            let line = match line {
                None if gathering.is_some() => {
                    return Err(Failure::Connection("it ended before all objects had come".to_owned()));
                }
                None => return Ok(()),
                Some(line) => line.map_err(|error| Failure::Connection(error.to_string()))?,
            };
            let cut_short = |error: serde_json::Error| match error.is_eof() {
                true => Failure::Connection("it ended in the middle of an event".to_owned()),
                false => Failure::Malformed(error.to_string()),
            };
            let event: Event<'_> = serde_json::from_str(&line).map_err(cut_short)?;
            let text = event.object.get();
            if event.kind == "ERROR" {
                let refusal: Refusal = serde_json::from_str(text).unwrap_or_default();
                return Err(failure_of(refusal, None));
            }
            let head: Head = serde_json::from_str(text).map_err(cut_short)?;
            let HeadMeta { identity, version, annotations } = head.metadata;
            match (event.kind, &mut gathering) {
                ("BOOKMARK", Some(_)) => {
                    if annotations.is_none_or(|marks| marks.end.is_none()) {
                        // This server took us for one who asks for a plain watch.
                        return Err(Failure::NotStreaming);
                    }
                    if let Some(gathered) = gathering.take() {
                        self.synced(gathered, version.clone()).await?;
                    }
                }
                ("BOOKMARK", None) => {}
                ("ADDED" | "MODIFIED", Some(gathered)) => {
                    let object = self.read(text);
                    gathered.objects.extend(object);
                    if gathered.in_parts && gathered.objects.len() >= PART {
                        let part = Told::Part(std::mem::take(&mut gathered.objects));
                        self.tell(part).await?;
                    }
                    continue;
                }
                ("ADDED" | "MODIFIED", None) => {
                    if self.is_old(&version) {
                        continue;
                    }
                    if let Some(object) = self.read(text) {
                        self.tell(Told::Applied(object)).await?;
                    }
                }
                ("DELETED", None) => {
                    if self.is_old(&version) {
                        continue;
                    }
                    let object = (self.read)(text).ok().flatten();
                    self.tell(Told::Gone { identity, object }).await?;
                }
                (kind, _) => return Err(Failure::Malformed(format!("an event of type {kind:?}"))),
            }
            if !version.is_empty() && gathering.is_none() {
                self.state.seen = Some(version.clone());
                self.state.version = Some(version);
            }
            self.state.progress = true;
            self.state.malformed = 0;
            self.state.heard = Some(Instant::now());
            self.status.add_events(1);
        }
    }

    /// Events of one watch come in the order of their versions: one that is not newer than the last was told before, or is
    /// late. Aggregated API servers have orders of their own.
    fn is_old(&self, version: &str) -> bool {
        if self.resource.group == "projectcalico.org" {
            return false;
        }
        let number = |version: &str| version.parse::<u64>().ok();
        let last = self.state.version.as_deref().and_then(number);
        let old = matches!((number(version), last), (Some(new), Some(last)) if new <= last);
        self.status.add_stale_events(u64::from(old));
        old
    }

    /// An answer's body, counted; or why there is none.
    async fn open(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes, BodyError>> + Unpin + use<'a, T, R>, Failure> {
        let request = request.map_err(|error| Failure::Malformed(error.to_string()))?;
        let answer = timeout(self.timing.idle, self.client.send(request.map(Body::from)));
        let answer = match answer.await {
            Err(_) => return Err(Failure::Silent(self.timing.idle)),
            Ok(answer) => answer.map_err(|error| Failure::Connection(chain(&error)))?,
        };
        self.status.contact();
        let status = answer.status();
        let wait = answer.headers().get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let wait = wait.and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
        let counted = self.status;
        let mut body = answer.into_body().into_data_stream().inspect_ok(move |piece| {
            counted.contact();
            counted.add_bytes(piece.len() as u64);
        });
        if status.is_success() {
            return Ok(body);
        }
        let mut text = Vec::new();
        while let Ok(Some(Ok(piece))) = timeout(self.timing.idle, body.next()).await {
            text.extend_from_slice(&piece);
            if text.len() > REFUSAL_LIMIT {
                break;
            }
        }
        let mut refusal: Refusal = serde_json::from_slice(&text).unwrap_or_else(|_| Refusal {
            message: String::from_utf8_lossy(&text).chars().take(200).collect(),
            ..Refusal::default()
        });
        refusal.code = status.as_u16();
        Err(failure_of(refusal, wait))
    }
}

type BodyError = kube::Error;

struct Gathered<T> {
    objects: Vec<T>,
    in_parts: bool,
}
