//! Retries: how long to rest before the next one, and how many a caller may make at all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ballet_core::RetryPolicy;
use rand::Rng;
use tokio::time::Instant;

/// Rests between attempts: an even draw between zero and a cap that doubles from the first to the last
/// ("full jitter", Brooker, "Exponential Backoff And Jitter", 2015).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
}

/// Bounds retries to a share of the calls plus a few per second, over the last ten seconds; so retries cannot multiply
/// the load of what is already failing (Finagle's and Linkerd's retry budget). Counting a call takes no lock.
#[derive(Debug)]
pub struct RetryBudget {
    origin: Instant,
    share: f64,
    floor_per_second: f64,
    /// Calls of each of the last [`WINDOW`] seconds, each packed by [`pack`].
    calls: [AtomicU64; WINDOW as usize],
    retries: Mutex<[u64; WINDOW as usize]>,
}

/// Seconds that a budget looks back.
const WINDOW: u64 = 10;

impl Backoff {
    /// Rests as the policy says. By default the caps are 100, 200, 400 ms.
    pub fn new(policy: &RetryPolicy) -> Self {
        Self::between(policy.backoff_first, policy.backoff_max)
    }

    /// Rests whose cap begins at `first`, doubles, and never grows above `max`.
    pub const fn between(first: Duration, max: Duration) -> Self {
        Self { first, max }
    }

    /// The longest rest before retry number `retry`, which counts from 1.
    pub fn cap(&self, retry: u32) -> Duration {
        let factor = 2u32.saturating_pow(retry.saturating_sub(1));
        self.first.saturating_mul(factor).min(self.max)
    }

    /// Draws the rest before retry number `retry`, which counts from 1.
    pub fn rest(&self, retry: u32, rng: &mut impl Rng) -> Duration {
        let cap = u64::try_from(self.cap(retry).as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(((u128::from(rng.next_u64()) * (u128::from(cap) + 1)) >> 64) as u64)
    }
}

impl RetryBudget {
    /// A budget as the policy says; `now` is when its first second begins.
    pub fn new(policy: &RetryPolicy, now: Instant) -> Self {
        Self {
            origin: now,
            share: policy.budget.clamp(0.0, 1.0),
            floor_per_second: policy.budget_floor_per_second.max(0.0),
            calls: [const { AtomicU64::new(0) }; WINDOW as usize],
            retries: Mutex::new([0; WINDOW as usize]),
        }
    }

    /// Notes a call (not a retry).
    pub fn note_call(&self, now: Instant) {
        let second = self.second(now);
        let slot = &self.calls[(second % WINDOW) as usize];
        let mut seen = slot.load(Ordering::Relaxed);
        while let Err(newer) = slot.compare_exchange_weak(seen, add(seen, second), Ordering::Relaxed, Ordering::Relaxed)
        {
            seen = newer;
        }
    }

    /// Asks leave for one retry and takes it out of the budget.
    pub fn take(&self, now: Instant) -> bool {
        let second = self.second(now);
        let mut retries = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        let made: u64 = retries.iter().map(|slot| count(*slot, second)).sum();
        let calls: u64 = self.calls.iter().map(|slot| count(slot.load(Ordering::Relaxed), second)).sum();
        let allowed = calls as f64 * self.share + self.floor_per_second * WINDOW as f64;
        if made as f64 + 1.0 > allowed {
            return false;
        }
        let slot = &mut retries[(second % WINDOW) as usize];
        *slot = add(*slot, second);
        true
    }

    /// Seconds since the origin; at least 1, so that a zeroed slot is never current.
    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.origin).as_secs() + 1
    }
}

/// A slot: the second it counts in the upper half, the count in the lower.
fn pack(second: u64, count: u64) -> u64 {
    (second << 32) | count.min(u64::from(u32::MAX))
}

/// What the slot counts, if its second is within the window that ends with `second`.
fn count(slot: u64, second: u64) -> u64 {
    let age = second.wrapping_sub(slot >> 32);
    // A slot of the next second, written by a neighbour whose clock reading was later, counts too.
    if age < WINDOW || slot >> 32 > second { slot & u64::from(u32::MAX) } else { 0 }
}

fn add(slot: u64, second: u64) -> u64 {
    if slot >> 32 >= second { pack(slot >> 32, (slot & u64::from(u32::MAX)) + 1) } else { pack(second, 1) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::SharedRng;

    #[test]
    fn rests_fill_their_caps_and_never_leave_them() {
        let (backoff, rng) = (Backoff::new(&RetryPolicy::default()), SharedRng::new(7));
        for (retry, cap_ms) in [(1, 100), (2, 200), (3, 400), (4, 400), (u32::MAX, 400)] {
            let cap = Duration::from_millis(cap_ms);
            assert_eq!(backoff.cap(retry), cap);
            let rests: Vec<_> = (0..500).map(|_| backoff.rest(retry, &mut &rng)).collect();
            assert!(rests.iter().all(|rest| *rest <= cap), "retry {retry}");
            assert!(
                rests.iter().min() < Some(&(cap / 20)) && rests.iter().max() > Some(&(cap * 19 / 20)),
                "full jitter"
            );
        }
    }

    #[test]
    fn a_flood_of_failures_gets_a_fifth_and_a_little() {
        let t = Instant::now();
        let budget = RetryBudget::new(&RetryPolicy::default(), t);
        for _ in 0..1000 {
            budget.note_call(t);
        }
        let taken = |at| (0..5000).filter(|_| budget.take(at)).count();
        assert_eq!(taken(t), 300, "20 % of 1,000 and ten a second over ten seconds");
        assert_eq!(taken(t + Duration::from_secs(9)), 0);
        assert_eq!(taken(t + Duration::from_secs(10)), 100, "ten seconds later all is forgotten");
    }

    proptest! {
        /// As a list of all calls and retries decides.
        #[test]
        fn the_budget_agrees_with_a_ledger(
            steps in proptest::collection::vec((any::<bool>(), 0u64..1500), 1..400),
            share in 0u32..=100,
            floor in 0u32..3,
        ) {
            let policy = RetryPolicy {
                budget: f64::from(share) / 100.0,
                budget_floor_per_second: f64::from(floor) / 10.0,
                ..RetryPolicy::default()
            };
            let origin = Instant::now();
            let budget = RetryBudget::new(&policy, origin);
            let (mut ms, mut calls, mut retries) = (0, Vec::<u64>::new(), Vec::<u64>::new());
            for (is_call, pause) in steps {
                ms += pause;
                let now = origin + Duration::from_millis(ms);
                if is_call {
                    budget.note_call(now);
                    calls.push(ms / 1000);
                    continue;
                }
                let recent = |list: &[u64]| list.iter().filter(|second| ms / 1000 - *second < 10).count() as f64;
                let allowed = recent(&retries) + 1.0 <= recent(&calls) * policy.budget + policy.budget_floor_per_second * 10.0;
                prop_assert_eq!(budget.take(now), allowed);
                if allowed {
                    retries.push(ms / 1000);
                }
            }
        }
    }
}
