//! What surrounds every request: its trace and deadline, and problem documents for errors that nobody dressed.

use std::cell::Cell;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;

use ballet_core::{Deadline, Problem, TraceContext, headers};

use crate::Context;

/// Longest plain error text that is put into a problem document.
const ERROR_TEXT_BYTES: usize = 4096;

/// What belongs to the request that this task serves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current {
    pub(crate) trace: TraceContext,
    pub(crate) end: Option<Instant>,
}

tokio::task_local! {
    static CURRENT: Current;
}
thread_local! {
    /// The trace of the closure that the writer thread runs.
    static ON_THREAD: Cell<Option<TraceContext>> = const { Cell::new(None) };
}

/// The trace of the request, event or closure that runs here; `None` outside of any.
pub fn current_trace() -> Option<TraceContext> {
    CURRENT.try_with(|current| current.trace).ok().or_else(|| ON_THREAD.get())
}

/// Time left of the request that runs here.
pub(crate) fn deadline() -> Option<Deadline> {
    let end = CURRENT.try_with(|current| current.end).ok().flatten()?;
    Some(Deadline::after(end.saturating_duration_since(Instant::now())))
}

/// Runs a closure on this thread as part of a trace.
pub(crate) fn on_thread<T>(trace: Option<TraceContext>, run: impl FnOnce() -> T) -> T {
    ON_THREAD.set(trace);
    let out = run();
    ON_THREAD.set(None);
    out
}

/// The outermost layer of a service.
pub(crate) async fn surround(State(ctx): State<Context>, request: Request, next: Next) -> Response {
    let trace = text(request.headers(), headers::TRACEPARENT).and_then(TraceContext::parse);
    let trace = trace.unwrap_or_else(|| ctx.new_trace());
    let left = text(request.headers(), headers::TIMEOUT).and_then(Deadline::parse);
    // A day is for ever here, and an `Instant` cannot hold every number that fits the header.
    let end = left.map(|deadline| Instant::now() + deadline.left().min(Duration::from_secs(86_400)));
    CURRENT
        .scope(Current { trace, end }, async {
            let method = request.method().clone();
            let path = request.uri().path().to_owned();
            let response = dress(next.run(request).await).await;
            tracing::debug!(%method, path, status = response.status().as_u16(), "answered");
            response
        })
        .await
}

/// Makes a problem document of an error answer that is bare or plain text, as those of extractors and of the router are.
async fn dress(response: Response) -> Response {
    let status = response.status();
    let plain = text(response.headers(), CONTENT_TYPE.as_str()).is_none_or(|kind| kind.starts_with("text/plain"));
    if !(status.is_client_error() || status.is_server_error()) || !plain {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let detail = to_bytes(body, ERROR_TEXT_BYTES).await.unwrap_or_default();
    let detail = String::from_utf8_lossy(&detail);
    let problem = Problem::new(status.as_u16(), status.canonical_reason().unwrap_or("error").to_lowercase());
    let mut problem = match status.as_u16() {
        400 | 422 => problem.code("CH004"),
        404 => problem.code("CH018"),
        405 => problem.code("CH019"),
        413 => problem.code("CH016"),
        415 => problem.code("CH017"),
        _ => problem,
    };
    if !detail.is_empty() && status.is_client_error() {
        problem = problem.detail(detail);
    }
    if let Some(trace) = current_trace() {
        problem = problem.trace_id(trace.trace_id());
    }
    head.headers.remove(CONTENT_LENGTH);
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(Problem::MEDIA_TYPE));
    Response::from_parts(head, Body::from(problem.to_json()))
}

/// A header as text.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
