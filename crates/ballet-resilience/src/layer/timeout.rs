//! Ends a call that takes too long.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Timeout as Timed, timeout_at};

use super::{Request, Stopped};
use crate::Until;

/// Ends each attempt after a time, or at the request's deadline if that is nearer.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    timeout: Duration,
}

/// Made by [`Layer`].
#[derive(Clone, Debug)]
pub struct Service<S> {
    inner: S,
    timeout: Duration,
}

pin_project! {
    /// The call of [`Service`].
    #[derive(Debug)]
    pub struct Call<F> {
        #[pin]
        inner: Timed<F>,
    }
}

impl Layer {
    /// A layer with a time-out.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout }
    }
}

impl<S> tower::Layer<S> for Layer {
    type Service = Service<S>;

    fn layer(&self, inner: S) -> Service<S> {
        Service { inner, timeout: self.timeout }
    }
}

impl<S, R, E> tower::Service<R> for Service<S>
where
    S: tower::Service<R, Error = Stopped<E>>,
    R: Request,
{
    type Response = S::Response;
    type Error = Stopped<E>;
    type Future = Call<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped<E>>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let now = Instant::now();
        let until = Until::new(self.timeout, None, now);
        let until = request.until().map_or(until, |whole| whole.min(until));
        Call { inner: timeout_at(until.instant(), self.inner.call(request)) }
    }
}

impl<F, T, E> Future for Call<F>
where
    F: Future<Output = Result<T, Stopped<E>>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Poll::Ready(ready!(self.project().inner.poll(cx)).unwrap_or(Err(Stopped::TimedOut)))
    }
}
