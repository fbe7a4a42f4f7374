//! Bounds the calls under way.

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::{Request, Stopped};
use crate::{Bulkhead, BulkheadFull, Place};

/// Sends every call through a bulkhead that others may share.
#[derive(Clone, Debug)]
pub struct Layer {
    bulkhead: Bulkhead,
}

/// Made by [`Layer`].
#[derive(Clone, Debug)]
pub struct Service<S> {
    inner: S,
    bulkhead: Bulkhead,
}

type Wait = Pin<Box<dyn Future<Output = Result<Place, BulkheadFull>> + Send>>;

pin_project! {
    /// The call of [`Service`].
    pub struct Call<S, R>
    where
        S: tower::Service<R>,
    {
        #[pin]
        state: State<S::Future, S, R>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, S, R> {
        /// Only who has to wait pays for a box.
        Waiting { wait: Wait, next: Option<(S, R)> },
        Under { #[pin] inner: F, _place: Place },
    }
}

impl Layer {
    /// A layer around a shared bulkhead.
    pub fn new(bulkhead: Bulkhead) -> Self {
        Self { bulkhead }
    }
}

impl<S> tower::Layer<S> for Layer {
    type Service = Service<S>;

    fn layer(&self, inner: S) -> Service<S> {
        Service { inner, bulkhead: self.bulkhead.clone() }
    }
}

impl<S, R, E> tower::Service<R> for Service<S>
where
    S: tower::Service<R, Error = Stopped<E>> + Clone,
    R: Request,
{
    type Response = S::Response;
    type Error = Stopped<E>;
    type Future = Call<S, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped<E>>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let state = match self.bulkhead.try_enter() {
            Some(place) => State::Under { inner: self.inner.call(request), _place: place },
            None => {
                let left = request.until().map_or(Duration::MAX, |until| until.left(Instant::now()));
                let bulkhead = self.bulkhead.clone();
                // The one that was polled ready goes along; its copy is polled anew.
                let copy = self.inner.clone();
                let ready = mem::replace(&mut self.inner, copy);
                let wait = Box::pin(async move { bulkhead.enter(left).await });
                State::Waiting { wait, next: Some((ready, request)) }
            }
        };
        Call { state }
    }
}

impl<S, R, E> Future for Call<S, R>
where
    S: tower::Service<R, Error = Stopped<E>>,
{
    type Output = Result<S::Response, Stopped<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProjection::Under { inner, .. } => return inner.poll(cx),
                StateProjection::Waiting { wait, next } => {
                    let place = ready!(wait.as_mut().poll(cx))?;
                    let (mut service, request) = next.take().expect("a wait ends once");
                    State::Under { inner: service.call(request), _place: place }
                }
            };
            state.set(next);
        }
    }
}
