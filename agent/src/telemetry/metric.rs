//! The kinds of numbers that are counted, and how a list of them is declared.
//!
//! In: increments and values from any thread. Out: [`Metric`]s, each with its description and its series.
//! Always: adding takes a relaxed atomic, or a short lock of one family; a family holds no more than
//! [`MOST_SERIES`] series and counts what is beyond them under `other`, so that no count is lost; a histogram's
//! buckets are fixed. Ours rather than `prometheus-client`'s own types, because the stages keep most totals
//! themselves and hand them over whole (its counters only grow), and because a list declared once gives members,
//! values and the documentation. Its encoders write the text (`http`).
//! Not here: which metrics there are (`metrics.rs`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::{Equivalent, HashMap};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that is what it is now; also a counter that another room keeps.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A span of time, shown in seconds; nanoseconds are kept.
#[derive(Debug, Default)]
pub struct Seconds(AtomicU64);

impl Seconds {
    pub fn set(&self, span: Duration) {
        self.0.store(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Upper bounds of a histogram's buckets in seconds: from a short sweep to a flush of a large node.
const BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How long things took.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Per bucket, the last one for what is above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let place = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn get(&self) -> Distribution {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        Distribution {
            count: counts.iter().sum(),
            sum: self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9,
            buckets: BOUNDS.into_iter().chain([f64::INFINITY]).zip(counts).collect(),
        }
    }
}

/// What a histogram holds. Each bucket counts what is above the bound before it, up to its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    pub count: u64,
    /// Seconds.
    pub sum: f64,
    pub buckets: Vec<(f64, u64)>,
}

/// Series that a family keeps apart, if it does not say otherwise.
const MOST_SERIES: usize = 200;

/// Numbers under one name, told apart by `N` labels, `MOST` of them.
#[derive(Debug)]
pub struct Families<const N: usize, const MOST: usize = MOST_SERIES>(
    Mutex<HashMap<[Box<str>; N], u64, RandomState>>,
);

pub type Family = Families<1>;
pub type Family2 = Families<2>;
pub type Family3 = Families<3>;

impl<const N: usize, const MOST: usize> Default for Families<N, MOST> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// Label values, to look a series up without making it.
#[derive(Hash)]
struct Labels<'a, const N: usize>([&'a str; N]);

impl<const N: usize> Equivalent<[Box<str>; N]> for Labels<'_, N> {
    fn equivalent(&self, key: &[Box<str>; N]) -> bool {
        self.0.iter().zip(key).all(|(a, b)| **a == **b)
    }
}

impl<const N: usize, const MOST: usize> Families<N, MOST> {
    fn change(&self, labels: [&str; N], change: impl FnOnce(u64) -> u64) {
        let mut series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = series.get_mut(&Labels(labels)) {
            *value = change(*value);
            return;
        }
        let labels = if series.len() < MOST { labels } else { ["other"; N] };
        let value = series.entry(labels.map(Into::into)).or_default();
        *value = change(*value);
    }

    pub fn add_to(&self, labels: [&str; N], n: u64) {
        self.change(labels, |value| value.saturating_add(n));
    }

    /// What it is now, or a total that another room keeps.
    pub fn set_to(&self, labels: [&str; N], value: u64) {
        self.change(labels, |_| value);
    }

    /// 0 for labels never seen.
    pub fn value_of(&self, labels: [&str; N]) -> u64 {
        let series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        series.get(&Labels(labels)).copied().unwrap_or(0)
    }

    /// For what is gone: a gauge of it would tell of it for ever.
    pub fn remove(&self, labels: [&str; N]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&Labels(labels));
    }

    /// All of it anew, at once: who reads meanwhile sees the old series or the new. Those of the same labels add up.
    pub fn replace<L: Into<Box<str>>>(&self, all: impl Iterator<Item = ([L; N], u64)>) {
        let new = Self::default();
        for (labels, value) in all {
            let labels = labels.map(Into::into);
            new.add_to(labels.each_ref().map(|label| &**label), value);
        }
        let new = new.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }

    pub fn sum(&self) -> u64 {
        let series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        series.values().fold(0, |sum, value| sum.saturating_add(*value))
    }

    fn all(&self) -> Vec<Series> {
        let series = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Series> = series
            .iter()
            .map(|(labels, value)| Series { labels: labels.to_vec(), value: Value::Whole(*value) })
            .collect();
        drop(series);
        all.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
        all
    }
}

impl Families<1> {
    pub fn add(&self, label: &str, n: u64) {
        self.add_to([label], n);
    }

    pub fn set(&self, label: &str, value: u64) {
        self.set_to([label], value);
    }

    pub fn get(&self, label: &str) -> u64 {
        self.value_of([label])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    /// Of seconds.
    Histogram,
}

impl MetricKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One row of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: &'static str,
    pub kind: MetricKind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Whole(u64),
    Real(f64),
    Histogram(Distribution),
}

/// One value, or one histogram, under one combination of labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Parallel to the description's.
    pub labels: Vec<Box<str>>,
    pub value: Value,
}

impl Series {
    fn alone(value: Value) -> Vec<Self> {
        vec![Self { labels: Vec::new(), value }]
    }
}

/// One metric as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    pub description: &'static Description,
    /// Sorted by their labels.
    pub series: Vec<Series>,
}

/// What a member of a list is.
pub trait Read {
    fn series(&self) -> Vec<Series>;
}

impl Read for Counter {
    fn series(&self) -> Vec<Series> {
        Series::alone(Value::Whole(self.get()))
    }
}

impl Read for Gauge {
    fn series(&self) -> Vec<Series> {
        Series::alone(Value::Whole(self.get()))
    }
}

impl Read for Seconds {
    fn series(&self) -> Vec<Series> {
        Series::alone(Value::Real(self.get().as_secs_f64()))
    }
}

impl Read for Histogram {
    fn series(&self) -> Vec<Series> {
        Series::alone(Value::Histogram(self.get()))
    }
}

impl<const N: usize, const MOST: usize> Read for Families<N, MOST> {
    fn series(&self) -> Vec<Series> {
        self.all()
    }
}

/// A list of metrics: a struct of members, their descriptions, and their values in the list's order.
/// A row: `/// meaning.` `member: Type(Kind) = "name" ["label", …];`
macro_rules! metrics {
    (
        $(#[doc = $doc:literal])+
        pub struct $list:ident;
        $($(#[doc = $help:literal])+ $member:ident: $type:ident($kind:ident) = $name:literal $([$($label:literal),+])?;)+
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Default)]
        pub struct $list { $($(#[doc = $help])+ pub $member: $type,)+ }

        impl $list {
            /// Every metric, in the order of the list.
            pub const DESCRIPTIONS: &'static [$crate::telemetry::Description] = &[$($crate::telemetry::Description {
                name: $name,
                kind: $crate::telemetry::MetricKind::$kind,
                labels: &[$($($label),+)?],
                help: concat!($($help),+).trim_ascii(),
            }),+];

            /// Every value there is now, in the order of the list.
            pub fn snapshot(&self) -> Vec<$crate::telemetry::Metric> {
                let series = [$($crate::telemetry::metric::Read::series(&self.$member)),+];
                let described = Self::DESCRIPTIONS.iter().zip(series);
                described.map(|(description, series)| $crate::telemetry::Metric { description, series }).collect()
            }
        }
    };
}
pub(crate) use metrics;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_bounded_and_loses_no_count() {
        let family = Family::default();
        for n in 0..1000 {
            family.add(&format!("REASON_{n}"), 1);
        }
        assert_eq!(family.all().len(), MOST_SERIES + 1);
        assert_eq!((family.sum(), family.get("other")), (1000, 800));
        family.add("REASON_1", u64::MAX);
        assert_eq!(family.get("REASON_1"), u64::MAX);
        family.remove(["REASON_1"]);
        assert_eq!(family.get("REASON_1"), 0);
    }

    #[test]
    fn labels_are_told_apart_one_by_one() {
        let family = Family2::default();
        family.add_to(["a", "bc"], 1);
        family.add_to(["ab", "c"], 2);
        family.set_to(["a", "bc"], 5);
        assert_eq!((family.value_of(["a", "bc"]), family.value_of(["ab", "c"])), (5, 2));
        assert_eq!(family.all().iter().map(|series| &*series.labels[0]).collect::<Vec<_>>(), ["a", "ab"]);
    }

    #[test]
    fn a_histogram_counts_up_to_its_bounds() {
        let histogram = Histogram::default();
        for took in [0, 500, 501, 1_000, 11_000_000] {
            histogram.observe(Duration::from_micros(took));
        }
        let Distribution { count, sum, buckets } = histogram.get();
        assert_eq!(count, 5);
        assert!((sum - 11.002_001).abs() < 1e-9, "{sum}");
        assert_eq!((buckets[0], buckets[1]), ((0.0005, 2), (0.001, 2)));
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, 1)));
    }
}
