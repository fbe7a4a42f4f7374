//! What a call is made of, and how it can fail.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use ballet_core::{Classify, ErrorCode, Retry};

use crate::{exchange, fleet};

/// Time that [`direct`] has when the request says nothing.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A request to a service, whole.
#[derive(Clone, Debug)]
pub struct CallRequest {
    /// `GET`, `POST`, …
    pub method: String,
    /// Path with query: `/orders/7?full=1`.
    pub path: String,
    /// Headers, in the order they are sent. `Host`, framing and hop-by-hop headers are the proxy's and are ignored.
    pub headers: Vec<(String, String)>,
    /// The body; empty for none.
    pub body: Bytes,
    /// Ends the call earlier than the policy does; the nearer of the two holds. Default: the policy's.
    pub timeout: Option<Duration>,
    /// Whether the call may be tried again.
    pub mode: CallMode,
}

/// Whether a call may be tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallMode {
    /// One exchange, as a saga's attempt wants it: timeout, breaker and bulkhead of the policy; no retry, no resend.
    #[default]
    Once,
    /// The policy's retries when the method is idempotent or an `Idempotency-Key` goes along, on another instance if
    /// there is one. What failed before a byte was written is tried again in any case.
    Retry,
}

/// A service's answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallResponse {
    /// The status.
    pub status: u16,
    /// Headers as they came, names in lower case, hop-by-hop ones removed.
    pub headers: Vec<(String, String)>,
    /// The body. Default limit: [`CallResponse::MAX_BODY`].
    pub body: Bytes,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No instance is up.
    #[error("no instance of the service is up")]
    NoInstance,
    /// No connection came about. Nothing was sent.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The service failed too often lately. Nothing was sent.
    #[error("the breaker is open for another {} ms", retry_after.as_millis())]
    BreakerOpen {
        /// Rest until the next probe.
        retry_after: Duration,
    },
    /// Too many calls are under way and no place came free in time. Nothing was sent.
    #[error("too many calls to the service are under way")]
    BulkheadFull,
    /// The time was up first.
    #[error("no answer in time")]
    TimedOut {
        /// Whether a byte of the request was written: then the outcome is unknown.
        sent: bool,
    },
    /// The connection ended before the whole answer came. A byte of the request was written: the outcome is unknown.
    #[error("the connection was lost")]
    Lost(#[source] io::Error),
    /// The answer is longer than [`CallResponse::MAX_BODY`].
    #[error("the answer is too large")]
    TooLarge,
    /// The answer is not HTTP.
    #[error("the answer is not HTTP: {0}")]
    Malformed(String),
    /// The request cannot be written: a header or the path holds bytes that do not belong there. Nothing was sent.
    #[error("the request is not valid HTTP: {0}")]
    Invalid(String),
}

impl CallRequest {
    /// A request without headers and body; one exchange.
    pub fn new(method: impl Into<String>, path: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            path: path.into(),
            headers: vec![],
            body: Bytes::new(),
            timeout: None,
            mode: CallMode::Once,
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the body to JSON, with its content type.
    #[must_use]
    pub fn json(self, value: &impl serde::Serialize) -> Self {
        let body = serde_json::to_vec(value).expect("a value without exotic map keys is JSON");
        self.header("content-type", "application/json").body(body)
    }

    /// Ends the call earlier than the policy does.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Says whether the call may be tried again.
    #[must_use]
    pub fn mode(mut self, mode: CallMode) -> Self {
        self.mode = mode;
        self
    }
}

impl CallResponse {
    /// Longest body of an answer, in bytes: 8 MiB.
    pub const MAX_BODY: usize = 8 << 20;

    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

impl CallError {
    /// Whether a byte of the request was written: the outcome is unknown then.
    pub fn sent(&self) -> bool {
        match self {
            Self::NoInstance
            | Self::Connect(_)
            | Self::BreakerOpen { .. }
            | Self::BulkheadFull
            | Self::Invalid(_)
            | Self::TimedOut { sent: false } => false,
            Self::TimedOut { sent: true } | Self::Lost(_) | Self::TooLarge | Self::Malformed(_) => true,
        }
    }
}

impl Classify for CallError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NoInstance => ErrorCode("PX001"),
            Self::Connect(_) => ErrorCode("PX002"),
            Self::BreakerOpen { .. } => ErrorCode("PX003"),
            Self::BulkheadFull => ErrorCode("PX004"),
            Self::TimedOut { .. } => ErrorCode("PX005"),
            Self::Lost(_) => ErrorCode("PX006"),
            Self::TooLarge => ErrorCode("PX007"),
            Self::Malformed(_) => ErrorCode("PX008"),
            Self::Invalid(_) => ErrorCode("PX009"),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::BreakerOpen { retry_after } => Retry::Safe(Some(*retry_after)),
            Self::NoInstance | Self::Connect(_) | Self::BulkheadFull | Self::TimedOut { sent: false } => {
                Retry::Safe(None)
            }
            Self::TimedOut { sent: true } | Self::Lost(_) | Self::Malformed(_) => Retry::IfIdempotent,
            Self::TooLarge | Self::Invalid(_) => Retry::Never,
        }
    }
}

/// Sends one request to an address and reads the whole answer, on a connection of its own: for health checks. The
/// request's mode is ignored; without a timeout it has 2 s.
///
/// # Errors
/// Any [`CallError`] but those of discovery, breaker and bulkhead.
pub async fn direct(address: SocketAddr, request: CallRequest) -> Result<CallResponse, CallError> {
    exchange::check(&request)?;
    let mut sent = false;
    let head = exchange::head(&request, &address, None, false);
    let exchange = async {
        let stream = fleet::connect(address).await.map_err(CallError::Connect)?;
        exchange::exchange(stream, &head, &request, &mut sent).await
    };
    match timeout(request.timeout.unwrap_or(DIRECT_TIMEOUT), exchange).await {
        Ok(result) => result.map(|exchanged| exchanged.response),
        Err(_) => Err(CallError::TimedOut { sent }),
    }
}
