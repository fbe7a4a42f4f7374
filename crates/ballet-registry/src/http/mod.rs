//! The registry's faces over HTTP, one module for each protocol. The native one is here; Eureka's, Consul's and
//! Prometheus' will stand beside it.

mod native;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Response, StatusCode, header};
use ballet_core::{Classify, Problem, TraceContext, headers};

use crate::{Handle, RegistryError};

/// All faces, with their full paths, for the platform's listener.
pub fn router(handle: Handle) -> Router {
    native::router(handle)
}

/// Writes an error as a problem document.
fn problem(error: &RegistryError, request: &HeaderMap) -> Response<Body> {
    let (status, title) = match error {
        RegistryError::Stopped => (503, "The registry has stopped."),
        RegistryError::Invalid { .. } => (400, "The request is not valid."),
        RegistryError::UnknownInstance { .. } => (404, "No such instance."),
        RegistryError::Full(_) => (503, "The registry is full."),
        RegistryError::Store(_) => (503, "The registry cannot write."),
    };
    let problem = Problem::new(status, title).detail(error.to_string()).code(error.code().0);
    let problem = match error {
        RegistryError::Invalid { field, detail } => problem.field(*field, detail),
        RegistryError::Stopped
        | RegistryError::UnknownInstance { .. }
        | RegistryError::Full(_)
        | RegistryError::Store(_) => problem,
    };
    answer(problem, request)
}

fn answer(problem: Problem, request: &HeaderMap) -> Response<Body> {
    let trace = request.get(headers::TRACEPARENT).and_then(|h| h.to_str().ok()).and_then(TraceContext::parse);
    let problem = match trace {
        Some(trace) => problem.trace_id(trace.trace_id()),
        None => problem,
    };
    let mut response = Response::new(Body::from(problem.to_json()));
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let media_type = header::HeaderValue::from_static(Problem::MEDIA_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}
