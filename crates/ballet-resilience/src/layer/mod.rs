//! The hearts as thin layers around any [`tower::Service`].
//!
//! From the outside in: [`retry`], [`breaker`], [`bulkhead`], [`timeout`]. The order matters. A retry asks the breaker
//! again; the breaker must see the time-outs, so the timeout lies inside it (a call dropped from outside tells it
//! nothing); a call waits for its place before its time-out begins, but never beyond its deadline. The innermost service
//! speaks of its own errors: lift them with `map_err(Stopped::Inner)`.
//!
//! A request that succeeds at once costs no allocation in any of them.

pub mod breaker;
pub mod bulkhead;
pub mod retry;
pub mod timeout;

use std::time::Duration;

use ballet_core::{Classify, ErrorCode, Retry};

use crate::{BulkheadFull, Outcome, Until};

/// Why a call was stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stopped<E> {
    /// No whole answer in time. It may have been done.
    #[error("no answer in time")]
    TimedOut,
    /// The breaker is open; nothing was sent.
    #[error("the breaker is open")]
    BreakerOpen {
        /// Time until the next probe.
        retry_after: Duration,
    },
    /// No place was free; nothing was sent.
    #[error(transparent)]
    Full(#[from] BulkheadFull),
    /// The call's own error.
    #[error("the call failed")]
    Inner(#[source] E),
}

/// What the layers ask of a request.
pub trait Request: Sized {
    /// A copy to send again; `None` if it can be sent only once.
    fn again(&self) -> Option<Self> {
        None
    }

    /// Whether doing it twice is as doing it once.
    fn idempotent(&self) -> bool {
        false
    }

    /// When the whole call must have ended, retries included.
    fn until(&self) -> Option<Until> {
        None
    }
}

/// What the layers ask about a call that has ended.
pub trait Judge<T, E> {
    /// What it says about the upstream's health; `None` if nothing.
    fn outcome(&self, result: &Result<T, Stopped<E>>) -> Option<Outcome>;
    /// Whether the same request may be sent again.
    fn retry(&self, result: &Result<T, Stopped<E>>) -> Retry;
}

/// Judges by the error's retry class: every answer is good, every error of the call a failure.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByError;

impl<T, E: Classify> Judge<T, E> for ByError {
    fn outcome(&self, result: &Result<T, Stopped<E>>) -> Option<Outcome> {
        match result {
            Ok(_) => Some(Outcome::Success),
            Err(Stopped::TimedOut | Stopped::Inner(_)) => Some(Outcome::Failure),
            Err(Stopped::BreakerOpen { .. } | Stopped::Full(_)) => None,
        }
    }

    fn retry(&self, result: &Result<T, Stopped<E>>) -> Retry {
        result.as_ref().err().map_or(Retry::Never, Classify::retry)
    }
}

impl<E: Classify> Classify for Stopped<E> {
    fn code(&self) -> ErrorCode {
        match self {
            Self::TimedOut => ErrorCode("RS001"),
            Self::BreakerOpen { .. } => ErrorCode("RS002"),
            Self::Full(_) => ErrorCode("RS003"),
            Self::Inner(error) => error.code(),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::TimedOut => Retry::IfIdempotent,
            // An open breaker stays open for seconds: resting here would only hold the caller.
            Self::BreakerOpen { .. } => Retry::Never,
            Self::Full(full) => full.retry(),
            Self::Inner(error) => error.retry(),
        }
    }
}

impl Classify for BulkheadFull {
    fn code(&self) -> ErrorCode {
        ErrorCode("RS003")
    }

    fn retry(&self) -> Retry {
        // The caller has waited for a place already; more waiting only adds to the crowd.
        Retry::Never
    }
}

#[cfg(test)]
mod tests;
