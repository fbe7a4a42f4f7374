//! Refuses calls while the breaker is open.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::{Judge, Stopped};
use crate::{Admission, Permit, SharedBreaker};

/// Guards a service with a breaker that others may share.
#[derive(Clone, Debug)]
pub struct Layer<J> {
    breaker: Arc<SharedBreaker>,
    judge: J,
}

/// Made by [`Layer`].
#[derive(Clone, Debug)]
pub struct Service<S, J> {
    inner: S,
    breaker: Arc<SharedBreaker>,
    judge: J,
}

pin_project! {
    /// The call of [`Service`]. Dropped before its end it tells the breaker nothing.
    #[derive(Debug)]
    #[project = CallProjection]
    pub struct Call<F, J> {
        #[pin]
        state: State<F>,
        breaker: Option<Arc<SharedBreaker>>,
        judge: J,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProjection]
    enum State<F> {
        Under { #[pin] inner: F, permit: Option<Permit> },
        Refused { retry_after: std::time::Duration },
    }
}

impl<J> Layer<J> {
    /// A layer around a shared breaker; `judge` says what counts as a failure.
    pub fn new(breaker: Arc<SharedBreaker>, judge: J) -> Self {
        Self { breaker, judge }
    }
}

impl<S, J: Clone> tower::Layer<S> for Layer<J> {
    type Service = Service<S, J>;

    fn layer(&self, inner: S) -> Service<S, J> {
        Service { inner, breaker: self.breaker.clone(), judge: self.judge.clone() }
    }
}

impl<S, J, R, E> tower::Service<R> for Service<S, J>
where
    S: tower::Service<R, Error = Stopped<E>>,
    J: Judge<S::Response, E> + Clone,
{
    type Response = S::Response;
    type Error = Stopped<E>;
    type Future = Call<S::Future, J>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped<E>>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (state, breaker) = match self.breaker.admit(Instant::now()) {
            Admission::Call(permit) | Admission::Probe(permit) => {
                (State::Under { inner: self.inner.call(request), permit: Some(permit) }, Some(self.breaker.clone()))
            }
            Admission::Refuse { retry_after } => (State::Refused { retry_after }, None),
        };
        Call { state, breaker, judge: self.judge.clone() }
    }
}

impl<F, J, T, E> Future for Call<F, J>
where
    F: Future<Output = Result<T, Stopped<E>>>,
    J: Judge<T, E>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        match this.state.project() {
            StateProjection::Refused { retry_after } => {
                Poll::Ready(Err(Stopped::BreakerOpen { retry_after: *retry_after }))
            }
            StateProjection::Under { inner, permit } => {
                let result = ready!(inner.poll(cx));
                if let (Some(breaker), Some(permit), Some(outcome)) =
                    (this.breaker.take(), permit.take(), this.judge.outcome(&result))
                {
                    breaker.record(permit, outcome, Instant::now());
                }
                Poll::Ready(result)
            }
        }
    }
}
