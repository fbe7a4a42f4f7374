//! The HTTP faces: Conductor's API under `/api`, ours under `/ballet/v1/workflows`.

mod ballet;
mod conductor;
mod metadata;
mod tasks;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ballet_core::{Classify, Problem, TraceContext, WorkflowsError, headers};
use serde_json::{Value, json};

use crate::Handle;
use crate::catalog::CatalogError;
use crate::plan::PlanError;

/// Longest request body, in bytes: 8 MiB.
pub const MAX_BODY: usize = 8 << 20;

/// All routes, to be merged on the platform listener: `/api/**` and `/ballet/v1/workflows/**`.
pub fn router(handle: Handle) -> Router {
    let api = Router::new()
        .merge(metadata::routes())
        .merge(conductor::routes())
        .merge(tasks::routes())
        .fallback(|| async { Failure::missing("no such path: not found") })
        .method_not_allowed_fallback(|| async { Failure::new(405, "WF010", "this path does not take this method") })
        .with_state(handle.clone());
    Router::new().nest("/api", api).merge(ballet::routes(handle)).layer(DefaultBodyLimit::max(MAX_BODY))
}

/// An answer of Conductor's API that says no.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u16,
    code: &'static str,
    message: String,
    validation: Option<PlanError>,
}

impl Failure {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), validation: None }
    }

    fn missing(message: impl Into<String>) -> Self {
        Self::new(404, "WF011", message)
    }

    fn malformed(message: impl Into<String>) -> Self {
        Self::new(400, "WF010", message)
    }

    fn unsupported(what: &str) -> Self {
        Self::new(501, "WF012", format!("{what} is not supported yet"))
    }

    /// The same as a problem document, for our own paths.
    fn problem(self) -> Response {
        let status = match self.status {
            // Conductor's clients want 500 with `retryable`; everyone else the status that says it.
            500 => 503,
            status => status,
        };
        let title = StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error");
        let problem = Problem::new(status, title).detail(self.message).code(self.code);
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, Problem::MEDIA_TYPE)], problem.to_json()).into_response()
    }
}

impl From<WorkflowsError> for Failure {
    fn from(error: WorkflowsError) -> Self {
        let code = error.code().0;
        let (status, message) = match &error {
            // The SDKs' clean-up helpers look for these words.
            WorkflowsError::UnknownWorkflow { .. } => (404, format!("{error}: not found")),
            WorkflowsError::UnknownExecution(id) => (404, format!("No such workflow found by id: {id}")),
            WorkflowsError::Invalid(_) => (400, error.to_string()),
            WorkflowsError::Conflict(_) => (409, error.to_string()),
            WorkflowsError::Unavailable(_) | WorkflowsError::Unknown(_) => (500, error.to_string()),
        };
        Self::new(status, code, message)
    }
}

impl From<CatalogError> for Failure {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Invalid(error) => Self::from(error),
            CatalogError::Exists(..) => Self::new(409, "WF004", error.to_string()),
            CatalogError::Missing(_) => Self::missing(error.to_string()),
            CatalogError::Store(_) => Self::new(500, "WF005", error.to_string()),
        }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let message = "Validation failed, check below errors for detail.";
        Self { validation: Some(error), ..Self::new(400, "WF003", message) }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut body = json!({
            "status": self.status, "message": self.message, "retryable": self.status == 500, "code": self.code,
        });
        match self.validation {
            Some(error) => {
                let mut entry = json!({ "path": error.path, "message": error.message });
                if let Some(value) = error.value {
                    entry["invalidValue"] = json!(value);
                }
                body["validationErrors"] = json!([entry]);
            }
            None => body["instance"] = json!("ballet"),
        }
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(body)).into_response()
    }
}

/// A JSON body; an empty one is null.
pub(crate) struct Body(pub(crate) Value);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|e| Failure::new(e.status().as_u16(), "WF010", e.body_text()))?;
        if bytes.is_empty() {
            return Ok(Self(Value::Null));
        }
        if kind.is_some_and(|kind| !kind.contains("json")) {
            return Err(Failure::new(415, "WF010", "the body must be application/json"));
        }
        let value = serde_json::from_slice(&bytes);
        Ok(Self(value.map_err(|e| Failure::malformed(format!("the body is not JSON: {e}")))?))
    }
}

impl Body {
    /// An object, or nothing at all.
    fn object(self) -> Result<Value, Failure> {
        match self.0 {
            Value::Null => Ok(json!({})),
            object @ Value::Object(_) => Ok(object),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Err(Failure::malformed("the body must be a JSON object"))
            }
        }
    }

    fn list(self) -> Result<Vec<Value>, Failure> {
        match self.0 {
            Value::Array(list) => Ok(list),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                Err(Failure::malformed("the body must be a JSON list"))
            }
        }
    }
}

/// The query's parameters; some may come several times.
pub(crate) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        Ok(Self(query.map_err(|e| Failure::malformed(e.body_text()))?.0))
    }
}

impl Params {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    fn number<T: std::str::FromStr>(&self, key: &str, default: T) -> Result<T, Failure> {
        match self.get(key).filter(|text| !text.is_empty()) {
            Some(text) => text.parse().map_err(|_| Failure::malformed(format!("`{key}` must be a whole number"))),
            None => Ok(default),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, Failure> {
        match self.get(key).filter(|text| !text.is_empty()) {
            Some("true" | "True") => Ok(true),
            Some("false" | "False") => Ok(false),
            Some(_) => Err(Failure::malformed(format!("`{key}` must be true or false"))),
            None => Ok(default),
        }
    }

    fn text(&self, key: &str) -> String {
        self.get(key).unwrap_or_default().to_owned()
    }
}

/// The trace that a request belongs to.
pub(crate) struct Trace(Option<TraceContext>);

impl<S: Send + Sync> FromRequestParts<S> for Trace {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let header = parts.headers.get(headers::TRACEPARENT).and_then(|v| v.to_str().ok());
        Ok(Self(header.and_then(TraceContext::parse)))
    }
}

/// An execution's id in a path; what cannot be one is not there.
fn execution_id(text: &str) -> Result<ballet_core::ExecutionId, Failure> {
    text.parse().map_err(|_| Failure::missing(format!("No such workflow found by id: {text}")))
}

/// A bare text, as Conductor answers ids and counts.
fn text(text: impl Into<String>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain;charset=UTF-8")], text.into()).into_response()
}
