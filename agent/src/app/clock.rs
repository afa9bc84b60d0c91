//! The agent's clock: wall-clock time that never goes backwards.
//!
//! Windows abut and time only moves forward, so a wall clock that is set back must not be followed at once. Between
//! two readings the agent's time advances with the monotonic clock; it jumps forward when the wall clock is ahead,
//! and runs at half speed while the wall clock is behind, until both agree again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::Timestamp;

pub struct Clock {
    last: Timestamp,
    read: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { last: wall(), read: Instant::now() }
    }

    pub fn now(&mut self) -> Timestamp {
        let read = Instant::now();
        let elapsed = read.duration_since(self.read);
        self.read = read;
        self.last = advance(self.last, elapsed, wall());
        self.last
    }
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
    fn a_clock_set_forward_is_followed() {
        let now = advance(Timestamp(0), Duration::from_secs(1), Timestamp(3600 * SECOND));
        assert_eq!(now, Timestamp(3600 * SECOND));
    }
}
