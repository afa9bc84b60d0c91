//! The agent's clock: wall-clock time that never goes backwards.
//!
//! Windows abut and time only moves forward, so a wall clock that is set back must not be followed at once. Between
//! two readings the agent's time advances with the monotonic clock; it jumps forward when the wall clock is ahead,
//! and runs at half speed while the wall clock is behind, until both agree again. Steps back are told, not acted on.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::Timestamp;

/// What time synchronisation may correct between two readings without it being called a step.
const SLEW: Duration = Duration::from_secs(1);

pub struct Clock {
    last: Timestamp,
    /// The wall clock itself, at the last reading.
    wall: Timestamp,
    read: Instant,
    stepped_back: bool,
}

impl Clock {
    pub fn start() -> Self {
        let wall = wall();
        Self { last: wall, wall, read: Instant::now(), stepped_back: false }
    }

    pub fn now(&mut self) -> Timestamp {
        let read = Instant::now();
        let elapsed = read.duration_since(self.read);
        self.read = read;
        let wall = wall();
        self.stepped_back |= is_step_back(self.wall, elapsed, wall);
        self.wall = wall;
        self.last = advance(self.last, elapsed, wall);
        self.last
    }

    /// Whether the wall clock was set back since the last call.
    pub fn take_step_back(&mut self) -> bool {
        std::mem::take(&mut self.stepped_back)
    }
}

fn is_step_back(before: Timestamp, elapsed: Duration, wall: Timestamp) -> bool {
    wall.plus(SLEW) < before.plus(elapsed)
}

fn advance(last: Timestamp, elapsed: Duration, wall: Timestamp) -> Timestamp {
    let even = last.plus(elapsed);
    if wall >= even {
        wall
    } else {
        // Behind: half speed, but not behind the wall clock.
        last.plus(elapsed / 2).max(wall)
    }
}

/// The wall clock as it is.
fn wall() -> Timestamp {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)),
        Err(_) => Timestamp(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_clock_set_back_is_approached_slowly_and_never_followed() {
        let mut now = Timestamp(1000 * SECOND);
        let mut wall = 940 * SECOND; // set back by a minute
        for _ in 0..120 {
            wall += SECOND;
            let next = advance(now, Duration::from_secs(1), Timestamp(wall));
            assert!(next > now);
            now = next;
        }
        assert_eq!(now, Timestamp(wall));
    }

    #[test]
    fn a_step_back_is_told_also_where_it_is_shorter_than_what_has_passed() {
        let (minute, hour) = (Duration::from_secs(60), Timestamp(3600 * SECOND));
        assert!(is_step_back(hour, minute, Timestamp(3630 * SECOND)));
        assert!(is_step_back(hour, Duration::ZERO, Timestamp(0)));
        assert!(!is_step_back(hour, minute, Timestamp(3660 * SECOND - SECOND / 2)));
        assert!(!is_step_back(hour, minute, Timestamp(i64::MAX)));
    }

    proptest::proptest! {
        /// Whatever becomes of the wall clock, time goes on, and by no more than it or the monotonic clock did.
        #[test]
        fn time_never_goes_backwards(
            jumps in proptest::collection::vec((0_u64..600_000, -4_000_000_i64..4_000_000), 1..50)
        ) {
            let (mut now, mut wall) = (Timestamp(1 << 50), 1_i64 << 50);
            for (milliseconds, jump) in jumps {
                let elapsed = Duration::from_millis(milliseconds);
                wall += i64::try_from(elapsed.as_nanos()).unwrap() + jump * 1_000_000;
                let next = advance(now, elapsed, Timestamp(wall));
                proptest::prop_assert!(next >= now.plus(elapsed / 2));
                proptest::prop_assert!(next <= now.plus(elapsed).max(Timestamp(wall)));
                now = next;
            }
        }
    }

    #[test]
    fn a_clock_set_forward_is_followed() {
        let now = advance(Timestamp(0), Duration::from_secs(1), Timestamp(3600 * SECOND));
        assert_eq!(now, Timestamp(3600 * SECOND));
    }
}
