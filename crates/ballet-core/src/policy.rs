//! How calls to a service behave: the manifest writes it, the resilience layers obey it.

use std::num::NonZeroU32;
use std::time::Duration;

/// How calls to a service behave. [`Policy::default`] is what an empty manifest gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name in the manifest; callers that name the same policy for the same service share a breaker.
    pub name: String,
    /// The whole call, retries included; for a workflow step one attempt. Default: 2 s.
    pub timeout: Duration,
    /// Retries of idempotent calls. Default: see [`RetryPolicy`].
    pub retry: RetryPolicy,
    /// Stops calling what keeps failing. Default: see [`BreakerPolicy`].
    pub breaker: BreakerPolicy,
    /// Bounds the calls under way. Default: see [`BulkheadPolicy`].
    pub bulkhead: BulkheadPolicy,
    /// What a caller at the gateway gets when the service is out of reach. Default: none, the plain 503.
    pub fallback: Option<Fallback>,
}

/// Retries of idempotent calls: full jitter under exponential caps (Brooker, "Exponential Backoff And Jitter").
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Retries after the first attempt; 0 switches them off. Default: 3.
    pub max: u32,
    /// Cap of the first rest. Default: 100 ms.
    pub backoff_first: Duration,
    /// No cap grows above this. Default: 400 ms.
    pub backoff_max: Duration,
    /// Share of calls that may be retried, 0 to 1. Default: 0.2.
    pub budget: f64,
    /// Retries per second that are always allowed on top. Default: 10.
    pub budget_floor_per_second: f64,
}

/// When a breaker opens and how long it rests.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerPolicy {
    /// Consecutive failures that open it. Default: 5.
    pub failures: NonZeroU32,
    /// Rest before the next probe. Default: 5 s.
    pub open_for: Duration,
}

/// How many calls to one upstream may be under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BulkheadPolicy {
    /// Calls under way. Default: 256.
    pub max: usize,
    /// Calls that wait for a place; more are refused. Default: 256.
    pub queue: usize,
    /// Longest wait for a place. Default: 500 ms.
    pub wait: Duration,
}

/// The answer that a caller gets instead of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// HTTP status. Default: 503.
    pub status: u16,
    /// Title of the problem document: "Payment service is unavailable."
    pub title: String,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            name: "default".into(),
            timeout: Duration::from_secs(2),
            retry: RetryPolicy::default(),
            breaker: BreakerPolicy::default(),
            bulkhead: BulkheadPolicy::default(),
            fallback: None,
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max: 3,
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_millis(400),
            budget: 0.2,
            budget_floor_per_second: 10.0,
        }
    }
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self { failures: NonZeroU32::new(5).expect("five is not zero"), open_for: Duration::from_secs(5) }
    }
}

impl Default for BulkheadPolicy {
    fn default() -> Self {
        Self { max: 256, queue: 256, wait: Duration::from_millis(500) }
    }
}
