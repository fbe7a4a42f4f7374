//! What a handler may return instead of an answer, and the crate's rows of the error table.

use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};

use ballet_client::ClientError;
use ballet_core::{Chain, Classify, CodeEntry, ErrorCode, Problem, Retry};

use crate::Reply;

/// What handlers return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no answer. `?` makes it from a [`Problem`] (a refusal that the caller sees as it is) and from the errors of
/// the store, JSON and calls (which the caller sees as 500 or 503 without their text; the text is logged).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller is refused; see [`crate::problem`].
    #[error("{}", .problem.detail.as_deref().unwrap_or(&.problem.title))]
    Refused {
        /// What the caller sees.
        problem: Box<Problem>,
        /// When to come again.
        retry_after: Option<Duration>,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] rusqlite::Error),
    /// The store took too long or is full of waiting work; nothing was done.
    #[error("the store is busy: {0}")]
    Busy(String),
    /// Another service gave no answer, or one that says that it cannot.
    #[error("service `{service}` is out of reach")]
    Unreachable {
        /// Its name.
        service: String,
        /// Why.
        #[source]
        source: ClientError,
    },
    /// Whatever else must not happen.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// Something that must not happen: the caller sees a bare 500, the log the text.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        Self::Internal(what.to_string())
    }

    /// Asks the caller to come again after a while.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        match self {
            Self::Refused { problem, .. } => Self::Refused { problem, retry_after: Some(after) },
            Self::Store(_) => self,
            Self::Busy(_) | Self::Unreachable { .. } | Self::Internal(_) => self,
        }
    }

    /// The problem document that the caller sees.
    pub fn problem(&self) -> Problem {
        let code = self.code().0;
        let problem = match self {
            Self::Refused { problem, .. } => problem.as_ref().clone(),
            Self::Store(_) => Problem::new(500, "internal error").code(code),
            Self::Internal(_) => Problem::new(500, "internal error").code(code),
            Self::Busy(_) => Problem::new(503, "the store is busy").code(code),
            Self::Unreachable { .. } => {
                Problem::new(503, "another service is out of reach").detail(self.to_string()).code(code)
            }
        };
        match (&problem.trace_id, crate::current_trace()) {
            (None, Some(trace)) => problem.trace_id(trace.trace_id()),
            (Some(_), _) | (None, None) => problem,
        }
    }

    fn rest(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Busy(_) | Self::Unreachable { .. } => Some(Duration::from_secs(1)),
            Self::Store(_) => None,
            Self::Internal(_) => None,
        }
    }

    /// The answer that the caller gets. Logs what the caller does not see.
    pub(crate) fn into_reply(self) -> Reply {
        let problem = self.problem();
        if problem.status >= 500 && !matches!(self, Self::Refused { .. }) {
            tracing::error!(status = problem.status, code = problem.code, error = %Chain(&self), "request failed");
        }
        let reply = Reply::problem(&problem);
        match self.rest() {
            Some(rest) => reply.header(RETRY_AFTER.as_str(), rest.as_secs().max(1).to_string()),
            None => reply,
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = self.into_reply().into_response();
        if response.status() == 401 {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Refused { problem: Box::new(problem), retry_after: None }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                Self::Busy(error.to_string())
            }
            Some(_) | None => Self::Store(error),
        }
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Internal(format!("JSON: {error}"))
    }
}

impl Classify for Error {
    fn code(&self) -> ErrorCode {
        ErrorCode(match self {
            Self::Refused { .. } => "CH005",
            Self::Store(_) => "CH015",
            Self::Internal(_) => "CH015",
            Self::Busy(_) => "CH014",
            Self::Unreachable { .. } => "CH013",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Refused { problem, retry_after } => match problem.status {
                408 | 425 | 429 | 503 => Retry::Safe(*retry_after),
                500.. => Retry::IfIdempotent,
                _ => Retry::Never,
            },
            Self::Store(_) => Retry::IfIdempotent,
            Self::Internal(_) => Retry::IfIdempotent,
            Self::Busy(_) | Self::Unreachable { .. } => Retry::Safe(None),
        }
    }
}

/// The chassis' rows of the error table.
pub static CODES: &[CodeEntry] = &[
    entry(
        "CH001",
        "bad configuration",
        "A variable of the service's environment is absent or malformed.",
        "Correct it; the message names the variable and what it should hold.",
    ),
    entry(
        "CH002",
        "a migration has changed",
        "A migration that the store has applied reads differently in this program.",
        "Never edit an applied migration: restore its text and add a new one behind it.",
    ),
    entry(
        "CH003",
        "the store cannot be opened",
        "The file of STORE_URL cannot be opened or a migration failed.",
        "Read the cause in the log; check the path, its owner, and the free space.",
    ),
    entry(
        "CH004",
        "the body cannot be read",
        "The request's body is not JSON, or not of the expected form.",
        "Correct the body; `errors` names the field.",
    ),
    entry(
        "CH005",
        "refused",
        "A value of the request breaks a rule.",
        "Correct the request; `errors` names the fields.",
    ),
    entry(
        "CH006",
        "no valid token",
        "The bearer token is absent, malformed, expired, or signed by a key that users does not publish.",
        "Log in again (`POST /sessions`) and send `Authorization: Bearer TOKEN`.",
    ),
    entry(
        "CH007",
        "not allowed",
        "The token is valid, but its owner may not do this.",
        "Use an account that has the role.",
    ),
    entry(
        "CH008",
        "the signing keys are unknown",
        "The keys that tokens are signed with could not be fetched since the start.",
        "See that the users service runs: `ballet ps`; it heals by itself.",
    ),
    entry(
        "CH009",
        "bad Idempotency-Key",
        "The key is empty, longer than 255 characters, has invisible characters, or holds `/`, which only the platform's own keys may.",
        "Send a UUID.",
    ),
    entry(
        "CH010",
        "the key belongs to another request",
        "The same Idempotency-Key came with another path or body.",
        "Use a new key for a new request.",
    ),
    entry(
        "CH011",
        "the first request still runs",
        "A request with this Idempotency-Key is still under way.",
        "Ask again with the same key after `Retry-After`.",
    ),
    entry(
        "CH012",
        "the step was undone",
        "An undo of this step came before it; its work will not be done any more.",
        "Nothing: this is how a saga keeps a late request from doing harm.",
    ),
    entry(
        "CH013",
        "another service is out of reach",
        "A service that this one needs gave no answer or said that it cannot.",
        "See `ballet ps`; ask again.",
    ),
    entry(
        "CH014",
        "the store is busy",
        "Another process held the store for longer than the busy timeout, or too much work waits.",
        "Ask again; look for long transactions.",
    ),
    entry("CH015", "internal error", "A defect or a failing disk.", "Find the `traceId` in the service's log."),
    entry(
        "CH016",
        "the body is too large",
        "The body is longer than the service takes (1 MiB).",
        "Send less at a time.",
    ),
    entry("CH017", "not JSON", "The body's Content-Type is not JSON.", "Send `Content-Type: application/json`."),
    entry("CH018", "no such path", "The service has no such path.", "Compare with the service's contract."),
    entry("CH019", "no such method", "The path exists, but not with this method.", "See the `Allow` header."),
    entry(
        "CH020",
        "a projection is stuck",
        "A projection cannot apply an event; its read model stands still, commands go on.",
        "Correct it and start again, or `SERVICE rebuild NAME`.",
    ),
    entry(
        "CH021",
        "the bus refuses an event",
        "The topic is unknown or the event breaks its schema; it stays in the outbox and is tried again.",
        "Declare the topic in the manifest, or correct the producer; `outbox.error` says what the bus said.",
    ),
    entry(
        "CH022",
        "no handler for the event",
        "The bus delivered an event of a type that the service does not handle.",
        "Correct the subscription, or add a handler with `Builder::on`.",
    ),
];

const fn entry(code: &'static str, title: &'static str, cause: &'static str, remedy: &'static str) -> CodeEntry {
    CodeEntry { code: ErrorCode(code), title, cause, remedy }
}
