//! Answers that are given here.

use std::borrow::Cow;
use std::io;

use bytes::Bytes;
use tokio::sync::mpsc;

use ballet_core::{Classify, Problem};

use crate::h1::request::Refusal;
use crate::h1::{put, put_number};
use crate::serve::Failure;
use crate::serve::edits::may_set;
use crate::{CallError, CallResponse};

/// An answer given by this part itself.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Headers. Framing and the connection's own are written by the server; invalid ones are left out.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// The body.
    pub body: AnswerBody,
    /// Whether the connection is closed afterwards.
    pub close: bool,
}

/// The body of an answer.
#[derive(Debug)]
pub enum AnswerBody {
    /// All of it.
    Full(Bytes),
    /// Piece by piece until the sender is dropped; an error breaks the answer off. For server-sent events.
    Stream(mpsc::Receiver<io::Result<Bytes>>),
}

impl Answer {
    /// An answer without headers and body.
    pub fn new(status: u16) -> Self {
        Self { status, headers: vec![], body: AnswerBody::Full(Bytes::new()), close: false }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = AnswerBody::Full(body.into());
        self
    }

    /// Sets the body to JSON, with its content type.
    #[must_use]
    pub fn json(self, value: &impl serde::Serialize) -> Self {
        let body = serde_json::to_vec(value).expect("a value without exotic map keys is JSON");
        self.header("content-type", "application/json").body(body)
    }

    /// Sets a body that comes piece by piece.
    #[must_use]
    pub fn stream(mut self, pieces: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        self.body = AnswerBody::Stream(pieces);
        self
    }

    /// An answer that is a problem document (RFC 9457).
    pub fn problem(problem: &Problem) -> Self {
        Self::new(problem.status).header("content-type", Problem::MEDIA_TYPE).body(problem.to_json())
    }

    pub(crate) fn refusal(refusal: &Refusal) -> Self {
        let problem = Problem::new(refusal.status, reason(refusal.status)).detail(refusal.reason).code("PX010");
        let mut answer = Self::problem(&problem);
        answer.close = true;
        answer
    }

    /// Appends the head. `framed` is the body's length, `None` for chunks; `close` as the connection will do.
    pub(crate) fn put_head(&self, out: &mut Vec<u8>, framed: Option<usize>, close: bool, old: bool) {
        put_status(out, self.status);
        for (name, value) in &self.headers {
            if may_set(name.as_bytes(), value.as_bytes()) {
                put(out, name.as_bytes(), value.as_bytes());
            }
        }
        match framed {
            // RFC 9110 §8.6: never with these.
            Some(_) if self.status < 200 || self.status == 204 => {}
            Some(length) => {
                out.extend_from_slice(b"content-length: ");
                put_number(out, length as u64);
                out.extend_from_slice(b"\r\n");
            }
            None if old => {}
            None => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        }
        put_connection(out, close, old);
        out.extend_from_slice(b"\r\n");
    }
}

impl From<CallResponse> for Answer {
    fn from(response: CallResponse) -> Self {
        let headers = response.headers.into_iter().filter(|(name, _)| name != "content-length");
        Self {
            status: response.status,
            headers: headers.map(|(name, value)| (Cow::Owned(name), value)).collect(),
            body: AnswerBody::Full(response.body),
            close: false,
        }
    }
}

impl CallError {
    /// The status for a client whose request failed so: 502, 503 or 504.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoInstance | Self::Connect(_) | Self::BreakerOpen { .. } | Self::BulkheadFull => 503,
            Self::TimedOut { .. } => 504,
            Self::Lost(_) | Self::TooLarge | Self::Malformed(_) | Self::Invalid(_) => 502,
        }
    }
}

impl Failure<'_> {
    /// The policy's fallback, else a problem document; both with code, trace and, where it is known, `Retry-After`.
    pub fn answer(&self) -> Answer {
        let (status, title) = match &self.policy.fallback {
            Some(fallback) => (fallback.status, fallback.title.clone()),
            None => (self.error.status(), format!("{} is not available", self.service)),
        };
        // Only what the variant says: the cause may name addresses.
        let problem = Problem::new(status, title)
            .detail(self.error.to_string())
            .code(self.error.code().0)
            .trace_id(self.context.trace.trace_id());
        let answer = Answer::problem(&problem);
        match self.error {
            CallError::BreakerOpen { retry_after } => {
                answer.header("retry-after", retry_after.as_secs().max(1).to_string())
            }
            CallError::BulkheadFull | CallError::NoInstance | CallError::Connect(_) => {
                answer.header("retry-after", "1")
            }
            CallError::TimedOut { .. }
            | CallError::Lost(_)
            | CallError::TooLarge
            | CallError::Malformed(_)
            | CallError::Invalid(_) => answer,
        }
    }
}

pub(crate) fn put_status(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    put_number(out, u64::from(status.clamp(100, 999)));
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// What a client is told of the connection's future.
pub(crate) fn put_connection(out: &mut Vec<u8>, close: bool, old: bool) {
    if close {
        put(out, b"connection", b"close");
    } else if old {
        put(out, b"connection", b"keep-alive");
    }
}

pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        425 => "Too Early",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}
