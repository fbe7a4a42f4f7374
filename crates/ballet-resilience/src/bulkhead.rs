//! Bulkhead: bounds the calls under way to one upstream, so that a slow one cannot take every worker with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use ballet_core::BulkheadPolicy;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Admits so many calls at once, lets so many wait in order for so long, refuses the rest. Clones share the places.
#[derive(Clone, Debug)]
pub struct Bulkhead(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Arc<Semaphore>,
    max: usize,
    queue: usize,
    wait: Duration,
    waiting: AtomicUsize,
    refused: AtomicU64,
}

/// One place; given back when dropped.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// No place came free in time, or the queue is full. Nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many calls are under way")]
pub struct BulkheadFull;

impl Bulkhead {
    /// A bulkhead with all its places free. Places beyond a million million are not counted.
    pub fn new(policy: &BulkheadPolicy) -> Self {
        let max = policy.max.min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Inner {
            places: Arc::new(Semaphore::new(max)),
            max,
            queue: policy.queue,
            wait: policy.wait,
            waiting: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// Takes a place if one is free and nobody waits for it. Counts no refusal: who asks may go on to [`Self::enter`].
    pub fn try_enter(&self) -> Option<Place> {
        let permit = self.0.places.clone().try_acquire_owned().ok()?;
        Some(Place { _permit: permit })
    }

    /// Takes a place, waiting for it at most as long as the policy says and `left` allows. Cancel safe: whoever stops
    /// waiting leaves the queue.
    pub async fn enter(&self, left: Duration) -> Result<Place, BulkheadFull> {
        if let Some(place) = self.try_enter() {
            return Ok(place);
        }
        let Some(_turn) = Turn::take(&self.0) else { return Err(self.refuse()) };
        match timeout(self.0.wait.min(left), self.0.places.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Place { _permit: permit }),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(self.refuse()),
        }
    }

    /// Calls under way.
    pub fn busy(&self) -> usize {
        self.0.max - self.0.places.available_permits().min(self.0.max)
    }

    /// Calls that wait.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Calls refused since the start.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    fn refuse(&self) -> BulkheadFull {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        BulkheadFull
    }
}

/// One turn in the queue; given back when dropped.
struct Turn<'a>(&'a Inner);

impl<'a> Turn<'a> {
    fn take(inner: &'a Inner) -> Option<Self> {
        let enter = |n: usize| (n < inner.queue).then_some(n + 1);
        inner.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).ok().map(|_| Self(inner))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
