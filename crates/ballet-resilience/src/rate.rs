//! Rate limit: the generic cell rate algorithm (GCRA, ITU-T I.371). `10/min` admits ten at once, then one each six
//! seconds.
//!
//! A key costs sixteen bytes in a table made once: it never grows, never allocates, and needs no sweep. Each key may
//! stand in one of eight places; when all eight are taken, the one nearest to its full allowance makes room. Then that
//! key may send a little more than its rate: a full table errs towards admitting.

use std::hash::{BuildHasher, Hash, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::rng::nanos;

/// So many per so long, as in `10/min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many; also how many at once.
    pub count: NonZeroU32,
    /// Per how long.
    pub per: Duration,
}

/// The algorithm for one key. Its whole state is one number: when the allowance will be full again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gcra {
    /// Nanoseconds from one to the next.
    interval: u64,
    /// Nanoseconds of allowance that may be used up at once, without the first.
    tolerance: u64,
}

/// A rate for each key: address, user, claim.
#[derive(Debug)]
pub struct RateLimit {
    gcra: Gcra,
    rate: Rate,
    origin: Instant,
    hasher: RandomState,
    shards: Box<[Mutex<Box<[Set]>>]>,
    sets: usize,
    refused: AtomicU64,
    evicted: AtomicU64,
}

/// The limit's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateDecision {
    /// Go on after this time, which is zero unless waiting was allowed. The allowance is taken.
    Admit {
        /// Time to wait first.
        after: Duration,
        /// How many more could follow at once.
        remaining: u32,
        /// Time until the allowance is full again.
        reset: Duration,
    },
    /// Refused; nothing was taken.
    Refuse {
        /// Time until one would be admitted at once.
        retry_after: Duration,
        /// Time until the allowance is full again.
        reset: Duration,
    },
}

/// Eight places: `(key, full again at)`; the key 0 is nobody.
type Set = [(u64, u64); WAYS];
const WAYS: usize = 8;
const SHARDS: usize = 16;

impl Gcra {
    /// The algorithm for a rate; a rate quicker than one per nanosecond is one per nanosecond.
    pub fn new(rate: Rate) -> Self {
        let per = u64::try_from(rate.per.as_nanos()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4);
        let interval = (per / u64::from(rate.count.get())).max(1);
        Self { interval, tolerance: interval.saturating_mul(u64::from(rate.count.get()) - 1) }
    }

    /// Decides at `now` for a key whose allowance is full again at `full_at`; both in nanoseconds since any origin.
    /// Returns the decision and the new `full_at`.
    pub fn decide(&self, full_at: u64, now: u64, max_wait: Duration) -> (RateDecision, u64) {
        let from = full_at.max(now);
        // The earliest moment at which one more conforms.
        let earliest = from.saturating_sub(self.tolerance).max(now);
        let (after, reset) = (Duration::from_nanos(earliest - now), Duration::from_nanos(from - now));
        if after > max_wait {
            return (RateDecision::Refuse { retry_after: after, reset }, full_at);
        }
        let next = from.saturating_add(self.interval);
        let room = (now + self.tolerance + self.interval).saturating_sub(next);
        let remaining = u32::try_from(room / self.interval).unwrap_or(u32::MAX);
        (RateDecision::Admit { after, remaining, reset: Duration::from_nanos(next - now) }, next)
    }
}

impl RateLimit {
    /// Keys that a limit remembers unless told otherwise: 16,384, a quarter of a megabyte.
    pub const KEYS: usize = 16_384;

    /// A limit that remembers up to `keys` keys, rounded up to a multiple of 128.
    pub fn new(rate: Rate, keys: usize, now: Instant) -> Self {
        let sets = keys.div_ceil(SHARDS * WAYS).max(1);
        let shard = || Mutex::new(vec![[(0, 0); WAYS]; sets].into_boxed_slice());
        Self {
            gcra: Gcra::new(rate),
            rate,
            origin: now,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            sets,
            refused: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }
    }

    /// Its rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Asks leave for one request of `key`. With `max_wait` above zero it may be admitted for later; then the caller
    /// waits for `after`, and whoever gives up waiting has used it up all the same.
    ///
    /// Keys are told apart by a 64-bit keyed hash (SipHash); nobody outside can aim at a neighbour's.
    pub fn check(&self, key: impl Hash, now: Instant, max_wait: Duration) -> RateDecision {
        let now = nanos(self.origin, now);
        let hash = self.hasher.hash_one(key).max(1);
        let shard = &self.shards[(hash >> 60) as usize % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let set = &mut shard[(hash & 0xffff_ffff) as usize % self.sets];
        let place = match set.iter().position(|(key, _)| *key == hash) {
            Some(place) => place,
            None => {
                // Expired keys and empty places lie furthest back, so they go first.
                let place = (0..WAYS).min_by_key(|i| set[*i].1).unwrap_or(0);
                if set[place].1 > now {
                    self.evicted.fetch_add(1, Ordering::Relaxed);
                }
                set[place] = (hash, 0);
                place
            }
        };
        let (decision, full_at) = self.gcra.decide(set[place].1, now, max_wait);
        set[place].1 = full_at;
        drop(shard);
        if matches!(decision, RateDecision::Refuse { .. }) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        decision
    }

    /// Requests refused since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Keys forgotten too early, because the table was full, since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(count: u32, per: Duration) -> Rate {
        Rate { count: NonZeroU32::new(count).unwrap(), per }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn admitted(decision: RateDecision) -> bool {
        matches!(decision, RateDecision::Admit { .. })
    }

    #[test]
    fn ten_a_minute_admits_ten_at_once_then_one_each_six_seconds() {
        let t = Instant::now();
        let limit = RateLimit::new(rate(10, secs(60)), 100, t);
        for n in 1..=10u32 {
            let RateDecision::Admit { after, remaining, reset } = limit.check("ann", t, Duration::ZERO) else {
                panic!("{n}")
            };
            assert_eq!((after, remaining, reset), (Duration::ZERO, 10 - n, secs(6 * u64::from(n))));
        }
        let refused = RateDecision::Refuse { retry_after: secs(6), reset: secs(60) };
        assert_eq!(limit.check("ann", t, Duration::ZERO), refused);
        assert!(admitted(limit.check("bob", t, Duration::ZERO)), "each key for itself");
        assert!(admitted(limit.check("ann", t + secs(6), Duration::ZERO)));
        assert!(!admitted(limit.check("ann", t + secs(11), Duration::ZERO)));
        assert_eq!((limit.refused(), limit.evicted()), (2, 0));
    }

    #[test]
    fn waiting_reserves_a_turn() {
        let t = Instant::now();
        let limit = RateLimit::new(rate(1, secs(1)), 100, t);
        let after: Vec<_> = (0..4)
            .map(|_| match limit.check(7, t, secs(2)) {
                RateDecision::Admit { after, .. } => Ok(after),
                RateDecision::Refuse { retry_after, .. } => Err(retry_after),
            })
            .collect();
        assert_eq!(after, [Ok(secs(0)), Ok(secs(1)), Ok(secs(2)), Err(secs(3))]);
    }

    #[test]
    fn a_full_table_forgets_the_least_indebted_and_stays_as_large() {
        let t = Instant::now();
        let limit = RateLimit::new(rate(10, secs(60)), 1, t);
        while admitted(limit.check("greedy", t, Duration::ZERO)) {}
        for key in 0..2000 {
            assert!(admitted(limit.check(key, t, Duration::ZERO)));
        }
        assert!(limit.evicted() > 1000);
        assert!(!admitted(limit.check("greedy", t, Duration::ZERO)), "those who used all are kept to the last");
        let evicted = limit.evicted();
        for key in 5000..5020 {
            limit.check(key, t + secs(600), Duration::ZERO);
        }
        assert_eq!(limit.evicted(), evicted, "who is full again is no loss");
    }

    proptest! {
        /// As a bucket decides that fills evenly and from which each request takes one.
        #[test]
        fn gcra_agrees_with_a_bucket(
            count in 1u32..20,
            interval_ms in 1u64..100,
            steps in proptest::collection::vec((0u64..300_000_000, 0u64..200_000_000), 1..200),
        ) {
            let interval = interval_ms * 1_000_000;
            let gcra = Gcra::new(rate(count, Duration::from_nanos(interval * u64::from(count))));
            let full = i128::from(interval) * i128::from(count);
            // The bucket counts nanoseconds; whoever waits takes it below one.
            let (mut now, mut full_at, mut bucket) = (0u64, 0u64, full);
            for (pause, max_wait) in steps {
                now += pause;
                bucket = (bucket + i128::from(pause)).min(full);
                let missing = (i128::from(interval) - bucket).max(0);
                let (decision, next) = gcra.decide(full_at, now, Duration::from_nanos(max_wait));
                full_at = next;
                match decision {
                    RateDecision::Admit { after, remaining, .. } => {
                        prop_assert!(missing <= i128::from(max_wait));
                        prop_assert_eq!(after.as_nanos() as i128, missing);
                        bucket -= i128::from(interval);
                        prop_assert_eq!(i128::from(remaining), bucket.max(0) / i128::from(interval));
                    }
                    RateDecision::Refuse { retry_after, .. } => {
                        prop_assert!(missing > i128::from(max_wait));
                        prop_assert_eq!(retry_after.as_nanos() as i128, missing);
                    }
                }
            }
        }
    }
}
