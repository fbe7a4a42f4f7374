//! How calls survive: circuit breaker, retry budget and backoff, bulkhead, rate limit, balancing, outlier ejection,
//! deadlines. One implementation for gateway, sidecar, orchestrator and client.
//!
//! Each heart is told the time and given its randomness, so it is tested without a runtime; on the way of a call that
//! succeeds none of them allocates. [`layer`] wraps them around any [`tower::Service`].
//!
//! ```
//! use ballet_core::BreakerPolicy;
//! use ballet_resilience::{Admission, Breaker, BreakerState, Outcome};
//! use tokio::time::Instant;
//!
//! let mut breaker = Breaker::new(&BreakerPolicy::default());
//! for _ in 0..5 {
//!     let Admission::Call(permit) = breaker.admit(Instant::now()) else { panic!("closed lets calls pass") };
//!     breaker.record(permit, Outcome::Failure, Instant::now());
//! }
//! assert_eq!(breaker.state(), BreakerState::Open);
//! assert!(matches!(breaker.admit(Instant::now()), Admission::Refuse { .. }));
//! ```
//!
//! It deliberately knows nothing of HTTP, of service discovery and of sockets; what counts as a failure is said by who
//! calls ([`Outcome`], [`layer::Judge`]).

pub mod balance;
pub mod breaker;
pub mod bulkhead;
pub mod deadline;
pub mod layer;
pub mod outlier;
pub mod rate;
pub mod retry;
pub mod rng;

pub use balance::{Load, Tracked, choose};
pub use breaker::{Admission, Breaker, BreakerState, Outcome, Permit, SharedBreaker};
pub use bulkhead::{Bulkhead, BulkheadFull, Place};
pub use deadline::Until;
pub use outlier::{Member, Outlier, OutlierPolicy};
pub use rate::{Gcra, Rate, RateDecision, RateLimit};
pub use retry::{Backoff, RetryBudget};
pub use rng::SharedRng;

use ballet_core::{CodeEntry, ErrorCode};

/// The errors of this crate, for `ballet explain`.
pub static CODES: &[CodeEntry] = &[
    CodeEntry {
        code: ErrorCode("RS001"),
        title: "the call took too long",
        cause: "The service gave no whole answer within the policy's `timeout` or the caller's deadline. It may have done the work.",
        remedy: "See the call's trace for where the time went. Raise `timeout` in the policy if the service needs it, or give it more instances.",
    },
    CodeEntry {
        code: ErrorCode("RS002"),
        title: "the breaker is open",
        cause: "The last calls to this service failed one after the other, so no more are sent until `open_for` is over and a probe succeeds.",
        remedy: "`ballet ps` shows the service's state and `ballet logs SERVICE` why it fails. The breaker closes by itself with the first good answer.",
    },
    CodeEntry {
        code: ErrorCode("RS003"),
        title: "too many calls under way",
        cause: "The bulkhead's places (`max`) and its queue are full, or no place came free within `wait`: the service is slower than its callers.",
        remedy: "Give the service more instances, or raise `bulkhead.max` in the policy if it can take more calls at once.",
    },
    CodeEntry {
        code: ErrorCode("RS004"),
        title: "the rate limit is reached",
        cause: "This key (address, user or claim) has sent more requests than the route's `limit` admits.",
        remedy: "Wait as long as `Retry-After` says. Raise the route's `limit` if the traffic is wanted.",
    },
];
