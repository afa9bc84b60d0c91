//! The live socket: flow logs for whoever may look, while the agent runs.
//!
//! In: windows of encoded lines, events. Out: the same to each reader that asked for it; to one that just came, the
//! last lines from memory. Always: giving never waits: a reader has a queue of [`QUEUE`] bytes at most, and what does not fit
//! is counted, to the reader and in metrics; who is not root or of the socket's group cannot connect; at most
//! [`READERS`] at once, and one that takes nothing for [`PATIENCE`] is let go.
//! What a reader sees is every namespace. Not here: making events (`app`), what is shown (`cli`).

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::filter::{Filter, Subject};
use crate::wire::live::{Request, Told};

/// Readers at once.
pub const READERS: usize = 8;

/// Bytes that wait for one reader.
pub const QUEUE: usize = 16 << 20;

/// The same, where memory is short.
const SMALL_QUEUE: usize = 256 << 10;

/// Bytes of lines that are kept for readers to come.
const PAST: usize = 4 << 20;

/// Bytes of a request.
const REQUEST: u64 = 64 << 10;

/// A reader says soon what it wants.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// Of a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(600);

/// Bytes that are written at once.
const PIECE: usize = 64 << 10;

/// Where and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveOptions {
    pub path: PathBuf,
    /// Name or number; `None`: root alone.
    pub group: Option<String>,
}

#[derive(Debug, Default)]
struct Reader {
    id: u64,
    flows: bool,
    lines: bool,
    filter: Filter,
    /// Bytes that wait.
    queued: Arc<AtomicUsize>,
    lost: Arc<AtomicU64>,
    queue: Option<UnboundedSender<Arc<[u8]>>>,
}

impl Reader {
    /// `items`: lines or events in it.
    fn give(&self, bytes: &Arc<[u8]>, items: u64, most: usize) -> u64 {
        let queued = self.queued.load(Ordering::Relaxed);
        let fits = queued == 0 || queued.saturating_add(bytes.len()) <= most;
        let given = fits && self.queue.as_ref().is_some_and(|queue| queue.send(bytes.clone()).is_ok());
        if given {
            self.queued.fetch_add(bytes.len(), Ordering::Relaxed);
            return 0;
        }
        self.lost.fetch_add(items, Ordering::Relaxed);
        items
    }
}

#[derive(Default)]
struct Shared {
    /// Bytes that may wait for one reader.
    queue: usize,
    readers: Mutex<Vec<Reader>>,
    past: Mutex<VecDeque<Arc<[u8]>>>,
    /// Readers that want events.
    flows: AtomicUsize,
    lost: AtomicU64,
    next: AtomicU64,
}

/// The agent's end. Cloning is cheap.
#[derive(Clone)]
pub struct Live(Arc<Shared>);

impl Default for Live {
    fn default() -> Self {
        Self::within(usize::MAX)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The first `most` bytes of whole lines.
fn head(lines: &[u8], most: usize) -> &[u8] {
    if lines.len() <= most {
        return lines;
    }
    let part = lines.get(..most).unwrap_or_default();
    let end = part.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    part.get(..end).unwrap_or_default()
}

/// The last `most` bytes of whole lines.
fn tail(lines: &[u8], most: usize) -> &[u8] {
    let Some(from) = lines.len().checked_sub(most).filter(|from| *from > 0) else { return lines };
    // A line that begins exactly there is whole.
    let rest = lines.get(from - 1..).unwrap_or_default();
    let start = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1);
    rest.get(start..).unwrap_or_default()
}

impl Live {
    /// All readers' queues together take at most about so many bytes, and one never more than [`QUEUE`].
    pub fn within(bytes: usize) -> Self {
        let queue = (bytes / (READERS + 1)).clamp(SMALL_QUEUE, QUEUE);
        Self(Arc::new(Shared { queue, ..Shared::default() }))
    }

    /// Somebody wants events: one relaxed load.
    pub fn wants_flows(&self) -> bool {
        self.0.flows.load(Ordering::Relaxed) > 0
    }

    pub fn readers(&self) -> usize {
        locked(&self.0.readers).len()
    }

    /// Lines and events that readers were too slow for, all in all.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Events that could not even be made.
    pub fn lose_flows(&self, events: u64) {
        for reader in locked(&self.0.readers).iter().filter(|reader| reader.flows) {
            reader.lost.fetch_add(events, Ordering::Relaxed);
            self.0.lost.fetch_add(events, Ordering::Relaxed);
        }
    }

    /// One event: `encode` is called if somebody wants it.
    pub fn flow(&self, record: &impl Subject, encode: impl FnOnce() -> Vec<u8>) {
        let readers = locked(&self.0.readers);
        let mut wanting =
            readers.iter().filter(|reader| reader.flows && reader.filter.matches(record)).peekable();
        if wanting.peek().is_none() {
            return;
        }
        let bytes: Arc<[u8]> = encode().into();
        let lost = wanting.map(|reader| reader.give(&bytes, 1, self.0.queue)).sum();
        self.0.lost.fetch_add(lost, Ordering::Relaxed);
    }

    /// The lines of a window.
    pub fn lines(&self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let mut past = locked(&self.0.past);
        let most = PAST.min(self.0.queue);
        past.push_back(tail(lines, most).into());
        while past.len() > 1 && past.iter().map(|lines| lines.len()).sum::<usize>() > most {
            past.pop_front();
        }
        // Readers are added under the same lock: none gets a window twice, or not at all.
        let readers = locked(&self.0.readers);
        let mut wanting = readers.iter().filter(|reader| reader.lines).peekable();
        if wanting.peek().is_none() {
            return;
        }
        let given = head(lines, self.0.queue);
        let beyond = count_lines(lines.get(given.len()..).unwrap_or_default());
        let (bytes, items): (Arc<[u8]>, u64) = (given.into(), count_lines(given));
        let mut lost = 0;
        for reader in wanting {
            lost += reader.give(&bytes, items, self.0.queue) + beyond;
            reader.lost.fetch_add(beyond, Ordering::Relaxed);
        }
        self.0.lost.fetch_add(lost, Ordering::Relaxed);
    }

    /// Listens until it is dropped; what keeps it from listening is said, and tried again. `tell` hears that it listens, and
    /// why it cannot, each time that it was tried. `bind`: [`bind`], with what rights it may take.
    pub async fn serve(
        &self,
        options: &LiveOptions,
        retry: Duration,
        bind: impl Fn(&LiveOptions) -> io::Result<UnixListener>,
        tell: impl Fn(Result<(), &str>),
    ) {
        let mut told = String::new();
        let listener = loop {
            match bind(options) {
                Ok(listener) => break listener,
                Err(error) => {
                    let error = error.to_string();
                    tell(Err(&error));
                    if told != error {
                        warn!(path = %options.path.display(), %error, "no live view; trying again");
                        told = error;
                    }
                    sleep(retry).await;
                }
            }
        };
        info!(path = %options.path.display(), group = options.group.as_deref().unwrap_or("-"), "live view");
        let _bound = Bound { path: &options.path, identity: identity(&options.path) };
        tell(Ok(()));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                // Twice as many may connect, so that those beyond can be told why they are not served.
                Ok((stream, _)) if connections.len() < 2 * READERS => {
                    let live = self.clone();
                    connections.spawn(async move {
                        if let Err(error) = live.connection(stream).await {
                            debug!(%error, "a reader of the live view is gone");
                        }
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    debug!(%error, "cannot accept");
                    sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    async fn connection(&self, mut stream: UnixStream) -> io::Result<()> {
        let refuse = |error: String| Told::Error(error).encode();
        let Ok(asked) = timeout(REQUEST_WITHIN, request(&mut stream)).await else { return Ok(()) };
        let (request, filter) = match asked.map_err(|error| error.to_string()).and_then(|request| {
            let filter = request.filter.parse::<Filter>().map_err(|error| error.to_string())?;
            Ok((request, filter))
        }) {
            Ok(asked) => asked,
            Err(error) => return stream.write_all(&refuse(error)).await,
        };
        match self.join(&request, filter) {
            Some((registered, queue)) => registered.write(stream, queue, request.follow).await,
            None => stream.write_all(&refuse(format!("{READERS} readers are connected already"))).await,
        }
    }

    fn join(
        &self,
        request: &Request,
        filter: Filter,
    ) -> Option<(Registered<'_>, UnboundedReceiver<Arc<[u8]>>)> {
        let (queue, waiting) = mpsc::unbounded_channel();
        let past = locked(&self.0.past);
        let mut readers = locked(&self.0.readers);
        if readers.len() >= READERS {
            return None;
        }
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let reader = Reader {
            id,
            flows: request.flows && request.follow,
            lines: request.lines && request.follow,
            filter,
            queue: Some(queue),
            ..Reader::default()
        };
        if request.past {
            for lines in past.iter() {
                reader.give(lines, count_lines(lines), self.0.queue);
            }
        }
        if reader.flows {
            self.0.flows.fetch_add(1, Ordering::Relaxed);
        }
        let registered = Registered {
            live: self,
            id,
            flows: reader.flows,
            queued: reader.queued.clone(),
            lost: reader.lost.clone(),
        };
        readers.push(reader);
        Some((registered, waiting))
    }
}

/// A reader that is served; it is forgotten when this is dropped.
struct Registered<'a> {
    live: &'a Live,
    id: u64,
    flows: bool,
    queued: Arc<AtomicUsize>,
    lost: Arc<AtomicU64>,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if self.flows {
            self.live.0.flows.fetch_sub(1, Ordering::Relaxed);
        }
        locked(&self.live.0.readers).retain(|reader| reader.id != self.id);
    }
}

impl Registered<'_> {
    async fn write(
        &self,
        stream: UnixStream,
        mut queue: UnboundedReceiver<Arc<[u8]>>,
        follow: bool,
    ) -> io::Result<()> {
        let (mut reading, mut writing) = stream.into_split();
        loop {
            let bytes = match queue.try_recv() {
                Ok(bytes) => bytes,
                Err(_) => {
                    let lost = self.lost.swap(0, Ordering::Relaxed);
                    if lost > 0 {
                        timeout(PATIENCE, writing.write_all(&Told::Lost(lost).encode())).await??;
                    }
                    timeout(PATIENCE, writing.write_all(&Told::Caught(true).encode())).await??;
                    if !follow {
                        return Ok(());
                    }
                    let mut rest = [0; 64];
                    tokio::select! {
                        bytes = queue.recv() => match bytes {
                            Some(bytes) => bytes,
                            None => return Ok(()),
                        },
                        // A reader that says more, or closes, is done.
                        _ = reading.read(&mut rest) => return Ok(()),
                    }
                }
            };
            for piece in bytes.chunks(PIECE) {
                timeout(PATIENCE, writing.write_all(piece)).await??;
            }
            self.queued.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
    }
}

async fn request(stream: &mut UnixStream) -> io::Result<Request> {
    let mut text = Vec::new();
    let mut limited = stream.take(REQUEST);
    // One line: byte by byte would do, but a reader says nothing after it.
    let mut buffer = [0; 4096];
    while !text.contains(&b'\n') {
        match limited.read(&mut buffer).await? {
            0 => break,
            n => text.extend_from_slice(buffer.get(..n).unwrap_or_default()),
        }
    }
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Request::parse(line)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("not a request: {error}")))
}

/// The socket's file goes with it; another's that took its place stays.
struct Bound<'a> {
    path: &'a Path,
    identity: Option<(u64, u64)>,
}

/// Device and inode.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(self.path) == self.identity {
            let _ = fs::remove_file(self.path);
        }
    }
}

/// Made aside and put in place when owner and mode are right: nobody connects before.
///
/// # Errors
/// The path is another's, or cannot be made; there is no such group, or the socket may not be given to it.
pub fn bind(options: &LiveOptions) -> io::Result<UnixListener> {
    let path = &options.path;
    let group = options.group.as_deref().map(group_id).transpose()?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket: move it away, or set flowLogsLiveSocketPath",
            ));
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another agent listens there: set flowLogsLiveSocketPath of one of them",
            ));
        }
        _ => {}
    }
    let aside = path.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside)?;
    let settled = fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))
        .and_then(|()| match group {
            Some(group) => std::os::unix::fs::chown(&aside, None, Some(group)).map_err(|error| {
                let remedy = format!(
                    "{error}: the socket cannot be given to group {group}: let the agent be of it (supplementalGroups of \
                     the pod, SupplementaryGroups= of the unit), or grant CAP_CHOWN"
                );
                io::Error::new(error.kind(), remedy)
            }),
            None => Ok(()),
        })
        .and_then(|()| fs::set_permissions(&aside, fs::Permissions::from_mode(0o660)))
        .and_then(|()| fs::rename(&aside, path));
    if let Err(error) = settled {
        let _ = fs::remove_file(&aside);
        return Err(error);
    }
    Ok(listener)
}

/// From `/etc/group`: a container has no other source of groups, and the C library's ways to ask for one are not safe
/// to call from Rust without it.
fn group_id(group: &str) -> io::Result<u32> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group")?;
    let found = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    found.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "there is no group {group:?} in /etc/group: make it, or give flowLogsLiveSocketGroup a number"
            ),
        )
    })
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
