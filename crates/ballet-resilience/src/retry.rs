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
        Self { first: policy.backoff_first, max: policy.backoff_max }
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
        while let Err(newer) =
            slot.compare_exchange_weak(seen, add(seen, second), Ordering::Relaxed, Ordering::Relaxed)
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
