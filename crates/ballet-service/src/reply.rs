//! A command's answer: simple enough to be kept and given again.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use ballet_core::{Problem, headers};

/// A command's answer: status, headers, JSON body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    status: u16,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
    /// JSON text, or nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    body: String,
}

impl Reply {
    /// Any status with a JSON body.
    pub fn new(status: u16, body: &(impl Serialize + ?Sized)) -> Self {
        match serde_json::to_string(body) {
            Ok(body) => Self { status, headers: vec![(CONTENT_TYPE.to_string(), "application/json".into())], body },
            // Only a map with keys that are no text, or an own `Serialize` that fails, comes here.
            Err(error) => {
                tracing::error!(%error, "an answer cannot be made JSON");
                Self::problem(&Problem::new(500, "internal error").code("CH015"))
            }
        }
    }

    /// 200 with a body.
    pub fn ok(body: &(impl Serialize + ?Sized)) -> Self {
        Self::new(200, body)
    }

    /// 201 with `Location` and a body.
    pub fn created(location: impl Into<String>, body: &(impl Serialize + ?Sized)) -> Self {
        Self::new(201, body).header(LOCATION.as_str(), location)
    }

    /// 202 with `Location` and a body.
    pub fn accepted(location: impl Into<String>, body: &(impl Serialize + ?Sized)) -> Self {
        Self::new(202, body).header(LOCATION.as_str(), location)
    }

    /// 204.
    pub fn no_content() -> Self {
        Self { status: 204, headers: vec![], body: String::new() }
    }

    /// An error answer. Returned from a command as `Ok`, what the command wrote is committed with it: a declined card's
    /// payment stays. Returned as `Err(problem.into())`, it is rolled back.
    pub fn problem(problem: &Problem) -> Self {
        let mut problem = problem.clone();
        problem.trace_id = problem.trace_id.or_else(|| crate::current_trace().map(|trace| trace.trace_id()));
        Self {
            status: problem.status,
            headers: vec![(CONTENT_TYPE.to_string(), Problem::MEDIA_TYPE.into())],
            body: String::from_utf8_lossy(&problem.to_json()).into_owned(),
        }
    }

    /// Adds a header. One that HTTP cannot carry is left out.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The JSON text.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// Marks it as an answer that was given before.
    pub(crate) fn replayed(self) -> Self {
        self.header(headers::IDEMPOTENCY_REPLAYED, "true")
    }

    /// Whether it is an answer that was given before.
    pub fn is_replayed(&self) -> bool {
        self.headers.iter().any(|(name, _)| name == headers::IDEMPOTENCY_REPLAYED)
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = Response::new(if self.body.is_empty() { Body::empty() } else { Body::from(self.body) });
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in self.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                response.headers_mut().append(name, value);
            }
        }
        response
    }
}
