//! Deadlines inside a process: the header carries time left ([`ballet_core::Deadline`]), a call needs a point in time.

use std::time::Duration;

use ballet_core::Deadline;
use tokio::time::Instant;

/// The point in time when a call must have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Until(Instant);

impl Until {
    /// A point `timeout` after `now`, or the caller's deadline if that is nearer. `deadline` is as read from the header
    /// at `now`. Timeouts beyond thirty years end in thirty years.
    pub fn new(timeout: Duration, deadline: Option<Deadline>, now: Instant) -> Self {
        const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
        let left = deadline.map_or(timeout, |deadline| deadline.within(timeout).left());
        Self(now + left.min(FAR))
    }

    /// The point itself, for `tokio::time::timeout_at`.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// Time left; zero once it has passed.
    pub fn left(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// Whether it has passed.
    pub fn passed(self, now: Instant) -> bool {
        now >= self.0
    }

    /// The nearer of this and a timeout that begins at `now`.
    #[must_use]
    pub fn within(self, timeout: Duration, now: Instant) -> Self {
        self.min(Self::new(timeout, None, now))
    }

    /// What the next hop is told; whole milliseconds, rounded down.
    pub fn to_header(self, now: Instant) -> Deadline {
        Deadline::after(self.left(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_of_timeout_and_deadline_holds() {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        for (timeout, header, left) in [(2000, None, 2000), (2000, Some("500"), 500), (300, Some("500"), 300)] {
            let until = Until::new(ms(timeout), header.and_then(Deadline::parse), now);
            assert_eq!(until.left(now), ms(left));
            assert_eq!(until.to_header(now + ms(100)).to_string(), (left - 100).to_string());
            assert!(until.passed(now + ms(left)) && !until.passed(now + ms(left - 1)));
        }
        assert!(Until::new(Duration::MAX, None, now).left(now) > ms(1_000_000));
        assert_eq!(Until::new(ms(500), None, now).within(ms(100), now).left(now), ms(100));
    }
}
