//! Why a call gave no answer.

use std::time::Duration;

use ballet_core::{Classify, CodeEntry, ErrorCode, Retry};

/// Why a call gave no answer. An answer with a status of 400 or more is an answer, not an error.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is not one.
    #[error("`{url}` is not an http:// address")]
    Url {
        /// What was given.
        url: String,
    },
    /// A header or the body cannot be sent.
    #[error("the request cannot be written: {0}")]
    Request(String),
    /// Nobody listens there; nothing was sent.
    #[error("cannot reach `{authority}`")]
    Connect {
        /// Host and port.
        authority: String,
        /// What the connector says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time; it may have been done.
    #[error("`{authority}` gave no answer within {} ms", .after.as_millis())]
    TimedOut {
        /// Host and port.
        authority: String,
        /// How long was waited.
        after: Duration,
    },
    /// The connection broke before the answer was whole; it may have been done.
    #[error("the answer of `{authority}` was lost")]
    Lost {
        /// Host and port.
        authority: String,
        /// What the connection says.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is longer than is taken.
    #[error("the answer of `{authority}` is longer than {limit_bytes} bytes")]
    TooLarge {
        /// Host and port.
        authority: String,
        /// The limit.
        limit_bytes: usize,
    },
    /// The answer is not the JSON that was expected.
    #[error("the answer is not what was expected: {0}")]
    Unexpected(String),
}

impl Classify for ClientError {
    fn code(&self) -> ErrorCode {
        ErrorCode(match self {
            Self::Url { .. } => "CL001",
            Self::Request(_) => "CL002",
            Self::Connect { .. } => "CL003",
            Self::TimedOut { .. } => "CL004",
            Self::Lost { .. } => "CL005",
            Self::TooLarge { .. } => "CL006",
            Self::Unexpected(_) => "CL007",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Url { .. } | Self::Request(_) | Self::TooLarge { .. } | Self::Unexpected(_) => Retry::Never,
            Self::Connect { .. } => Retry::Safe(None),
            Self::TimedOut { .. } | Self::Lost { .. } => Retry::IfIdempotent,
        }
    }
}

/// The client's rows of the error table.
pub static CODES: &[CodeEntry] = &[
    CodeEntry {
        code: ErrorCode("CL001"),
        title: "not an address",
        cause: "A URL is malformed, has no host, or is not http.",
        remedy: "Correct the variable that holds it (`<NAME>_URL`, `BALLET_PLATFORM`): `http://127.0.0.1:7070`.",
    },
    CodeEntry {
        code: ErrorCode("CL002"),
        title: "the request cannot be written",
        cause: "A header's name or value has characters that HTTP does not allow, or the body cannot be made JSON.",
        remedy: "Correct the call.",
    },
    CodeEntry {
        code: ErrorCode("CL003"),
        title: "cannot be reached",
        cause: "Nobody listens at the address; nothing was sent.",
        remedy: "See with `ballet ps` whether it runs; start it with `ballet start SERVICE`.",
    },
    CodeEntry {
        code: ErrorCode("CL004"),
        title: "no answer in time",
        cause: "The other side took longer than the call's timeout or deadline; it may have done the work.",
        remedy: "Ask again with the same Idempotency-Key; look at its log and at `ballet trace`.",
    },
    CodeEntry {
        code: ErrorCode("CL005"),
        title: "the answer was lost",
        cause: "The connection broke before the answer was whole; the work may have been done.",
        remedy: "Ask again with the same Idempotency-Key.",
    },
    CodeEntry {
        code: ErrorCode("CL006"),
        title: "the answer is too long",
        cause: "The answer is longer than the client takes (8 MiB).",
        remedy: "Ask for less at a time: with `limit`.",
    },
    CodeEntry {
        code: ErrorCode("CL007"),
        title: "not the expected answer",
        cause: "The answer is not the JSON document that was expected: something else listens there, or versions differ.",
        remedy: "Check the address and the versions of both sides.",
    },
];
