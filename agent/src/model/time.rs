//! Time as an argument: nanoseconds since the Unix epoch. Nothing in the pure block asks the clock.

use std::ops::Sub;
use std::time::Duration;

/// Nanoseconds since the Unix epoch (years 1677 to 2262).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub const MIN: Self = Self(i64::MIN);

    /// Whole seconds, floored (also before 1970): what a line's `start_time` and `end_time` carry.
    pub fn floor_seconds(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }

    pub fn plus(self, d: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))
    }

    pub fn minus(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)))
    }
}

impl Sub for Timestamp {
    type Output = Duration;
    /// Zero when `other` is later.
    fn sub(self, other: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(other.0)).unwrap_or(0))
    }
}
