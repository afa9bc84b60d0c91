//! What is known of the watches: per kind how far they are, and what went wrong.
//!
//! In: what the followers meet. Out: numbers for metrics, reasons for readiness. What always holds: writing never waits;
//! kinds are few and fixed when the watch begins; a kind that the server does not serve is no reason to be unready.
//! Names of metrics (`telemetry`) and HTTP are deliberately not here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far the watch of a kind is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It is not known yet whether the server serves it.
    Unknown,
    NotServed,
    /// Served; not all objects are known yet.
    Syncing,
    Synced,
}

impl Phase {
    pub const ALL: [Self; 4] = [Self::Unknown, Self::NotServed, Self::Syncing, Self::Synced];

    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NotServed => "not_served",
            Self::Syncing => "syncing",
            Self::Synced => "synced",
        }
    }
}

/// One kind.
#[derive(Debug)]
pub struct KindStatus {
    pub kind: &'static str,
    began: Instant,
    phase: AtomicU8,
    /// Since `began`; milliseconds.
    contact: AtomicU64,
    objects: AtomicU64,
    bytes: AtomicU64,
    events: AtomicU64,
    relists: AtomicU64,
    refused: AtomicU64,
    stale_events: AtomicU64,
    errors: Mutex<Errors>,
}

#[derive(Debug, Default)]
struct Errors {
    by_reason: BTreeMap<&'static str, u64>,
    /// The last one, until contact is made again.
    last: Option<String>,
}

impl KindStatus {
    pub fn new(kind: &'static str) -> Self {
        Self {
            kind,
            began: Instant::now(),
            phase: AtomicU8::new(Phase::Unknown as u8),
            contact: AtomicU64::new(0),
            objects: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            events: AtomicU64::new(0),
            relists: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            stale_events: AtomicU64::new(0),
            errors: Mutex::default(),
        }
    }

    pub fn phase(&self) -> Phase {
        let phase = self.phase.load(Ordering::Relaxed);
        Phase::ALL.into_iter().find(|known| *known as u8 == phase).unwrap_or(Phase::Unknown)
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// The server said something of this kind just now.
    pub(super) fn contact(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.contact.store(now, Ordering::Relaxed);
    }

    /// All is well again.
    pub(super) fn recover(&self) {
        self.contact();
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).last = None;
    }

    /// Since the server last said something of this kind; since the start, if it never did.
    pub fn silent(&self) -> Duration {
        let contact = Duration::from_millis(self.contact.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(contact)
    }

    pub(super) fn error(&self, reason: &'static str, message: String) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        *errors.by_reason.entry(reason).or_insert(0) += 1;
        errors.last = Some(message);
    }

    /// By reason: how often.
    pub fn errors(&self) -> BTreeMap<&'static str, u64> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).by_reason.clone()
    }

    pub fn last_error(&self) -> Option<String> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).last.clone()
    }

    /// Objects that are known.
    pub fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }

    /// Whoever takes what is told knows how many there are.
    pub fn set_objects(&self, count: usize) {
        self.objects.store(count as u64, Ordering::Relaxed);
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $member:ident, $add:ident;)+) => {
        impl KindStatus {
            $($(#[$doc])*
            pub fn $member(&self) -> u64 {
                self.$member.load(Ordering::Relaxed)
            }

            pub fn $add(&self, n: u64) {
                self.$member.fetch_add(n, Ordering::Relaxed);
            }
            )+
        }
    };
}

counts! {
    /// Bytes of answers read.
    bytes, add_bytes;
    /// Events of watches.
    events, add_events;
    /// Times that all objects were asked for.
    relists, add_relists;
    /// Objects that could not be used.
    refused, add_refused;
    /// Events that were older than what was known already.
    stale_events, add_stale_events;
}

/// All kinds.
#[derive(Debug)]
pub struct Status {
    pub kinds: Vec<KindStatus>,
    synced: AtomicBool,
    held_too_long: AtomicBool,
}

impl Status {
    pub(super) fn new(kinds: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            kinds: kinds.into_iter().map(KindStatus::new).collect(),
            synced: AtomicBool::new(false),
            held_too_long: AtomicBool::new(false),
        }
    }

    /// The world was published once: names are known.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// All kinds are known, and what is made of them is in use.
    pub fn set_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    /// Flows need not be held any more: names are known, or they have been waited for long enough.
    pub fn may_name(&self) -> bool {
        self.is_synced() || self.held_too_long.load(Ordering::Relaxed)
    }

    pub(super) fn give_up_holding(&self) {
        self.held_too_long.store(true, Ordering::Relaxed);
    }

    /// Since the kind that was not heard of for the longest time was heard of.
    pub fn silent(&self) -> Duration {
        let followed = |kind: &&KindStatus| matches!(kind.phase(), Phase::Syncing | Phase::Synced);
        self.kinds.iter().filter(followed).map(KindStatus::silent).max().unwrap_or_default()
    }

    /// Why names may be missing or old; nothing if all is well. `stale`: the silence that is taken for an outage.
    pub fn reasons(&self, stale: Duration) -> Vec<String> {
        let mut reasons = Vec::new();
        for kind in &self.kinds {
            let problem = match kind.phase() {
                Phase::NotServed => continue,
                Phase::Synced if kind.silent() <= stale => continue,
                Phase::Synced => format!("not heard of for {} s", kind.silent().as_secs()),
                Phase::Unknown => "not known yet whether the API server serves it".to_owned(),
                Phase::Syncing => "not all objects are known yet".to_owned(),
            };
            let why = kind.last_error().map(|error| format!(": {error}")).unwrap_or_default();
            reasons.push(format!("{}: {problem}{why}", kind.kind));
        }
        if reasons.is_empty() && !self.is_synced() {
            reasons.push("what is known is not in use yet".to_owned());
        }
        reasons
    }
}
