//! Sends again what failed, if that is safe and the budget allows.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ballet_core::{Retry, RetryPolicy};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};

use super::{Judge, Request, Stopped};
use crate::{Backoff, RetryBudget, SharedRng};

/// Retries by a policy; all clones share the budget.
#[derive(Clone, Debug)]
pub struct Layer<J> {
    shared: Arc<Shared>,
    judge: J,
}

/// Made by [`Layer`].
#[derive(Clone, Debug)]
pub struct Service<S, J> {
    inner: S,
    shared: Arc<Shared>,
    judge: J,
}

#[derive(Debug)]
struct Shared {
    max: u32,
    backoff: Backoff,
    budget: RetryBudget,
    rng: SharedRng,
    retries: AtomicU64,
}

pin_project! {
    /// The call of [`Service`].
    pub struct Call<S, J, R>
    where
        S: tower::Service<R>,
    {
        #[pin]
        state: State<S::Future>,
        service: S,
        shared: Arc<Shared>,
        judge: J,
        again: Option<R>,
        retries: u32,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        Under { #[pin] inner: F },
        Resting { #[pin] sleep: Sleep },
        Readying,
    }
}

impl<J> Layer<J> {
    /// A layer with a budget of its own; `seed` decides the jitter.
    pub fn new(policy: &RetryPolicy, judge: J, seed: u64, now: Instant) -> Self {
        let shared = Shared {
            max: policy.max,
            backoff: Backoff::new(policy),
            budget: RetryBudget::new(policy, now),
            rng: SharedRng::new(seed),
            retries: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), judge }
    }

    /// Retries since the start.
    pub fn retries(&self) -> u64 {
        self.shared.retries.load(Ordering::Relaxed)
    }
}

impl<S, J: Clone> tower::Layer<S> for Layer<J> {
    type Service = Service<S, J>;

    fn layer(&self, inner: S) -> Service<S, J> {
        Service { inner, shared: self.shared.clone(), judge: self.judge.clone() }
    }
}

impl<S, J, R, E> tower::Service<R> for Service<S, J>
where
    S: tower::Service<R, Error = Stopped<E>> + Clone,
    J: Judge<S::Response, E> + Clone,
    R: Request,
{
    type Response = S::Response;
    type Error = Stopped<E>;
    type Future = Call<S, J, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped<E>>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.shared.budget.note_call(Instant::now());
        let again = if self.shared.max > 0 { request.again() } else { None };
        let state = State::Under { inner: self.inner.call(request) };
        Call {
            state,
            service: self.inner.clone(),
            shared: self.shared.clone(),
            judge: self.judge.clone(),
            again,
            retries: 0,
        }
    }
}

impl<S, J, R, E> Future for Call<S, J, R>
where
    S: tower::Service<R, Error = Stopped<E>>,
    J: Judge<S::Response, E>,
    R: Request,
{
    type Output = Result<S::Response, Stopped<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Under { inner } => {
                    let result = ready!(inner.poll(cx));
                    let Some(request) = this.again.as_ref() else { return Poll::Ready(result) };
                    let asked = match this.judge.retry(&result) {
                        Retry::Never => return Poll::Ready(result),
                        Retry::Safe(rest) => rest.unwrap_or_default(),
                        Retry::IfIdempotent if request.idempotent() => Duration::ZERO,
                        Retry::IfIdempotent => return Poll::Ready(result),
                    };
                    if *this.retries >= this.shared.max {
                        return Poll::Ready(result);
                    }
                    let now = Instant::now();
                    let rest = this.shared.backoff.rest(*this.retries + 1, &mut &this.shared.rng).max(asked);
                    // A rest that ends after the deadline only delays the news.
                    let too_late = request.until().is_some_and(|until| until.left(now) <= rest);
                    if too_late || !this.shared.budget.take(now) {
                        return Poll::Ready(result);
                    }
                    *this.retries += 1;
                    this.shared.retries.fetch_add(1, Ordering::Relaxed);
                    State::Resting { sleep: sleep(rest) }
                }
                StateProjection::Resting { sleep } => {
                    ready!(sleep.poll(cx));
                    State::Readying
                }
                StateProjection::Readying => {
                    ready!(this.service.poll_ready(cx))?;
                    let request = this.again.take().expect("only a request that can be sent again gets here");
                    *this.again = request.again();
                    State::Under { inner: this.service.call(request) }
                }
            };
            this.state.set(next);
        }
    }
}
