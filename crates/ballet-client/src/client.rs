//! The HTTP client.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use ballet_core::{Classify, Deadline, Problem, Retry, TraceContext, headers};
use ballet_resilience::Backoff;

use crate::ClientError;

/// Longest answer that is taken.
const ANSWER_LIMIT_BYTES: usize = 8 << 20;
/// Connections kept per host while idle.
const IDLE_PER_HOST: usize = 32;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a whole call may take, retries included, unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Rests before the retries, drawn under caps of 100, 200 and 400 ms.
const RESTS: Backoff = Backoff::between(Duration::from_millis(100), Duration::from_millis(400));
/// Retries after the first attempt.
const MAX_RETRIES: u32 = 3;

/// What is sent again when it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retries {
    /// Failed connects, and for idempotent calls (by method, or with an `Idempotency-Key`) also time-outs, lost answers,
    /// 502, 503 and 504. At most three retries with caps of 100, 200 and 400 ms.
    Idempotent,
    /// Failed connects only: a sidecar on the way does the rest.
    ConnectOnly,
    /// Nothing.
    None,
}

/// Calls others over HTTP/1.1. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    http: hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>,
    caller: String,
    retries: Retries,
    rng: Mutex<StdRng>,
}

/// A call under construction: `client.post(url).json(&body).send().await`.
#[must_use = "a request does nothing until it is sent"]
pub struct Request {
    shared: Arc<Shared>,
    method: Method,
    url: String,
    headers: HeaderMap,
    body: Bytes,
    timeout: Duration,
    retries: Retries,
    broken: Option<String>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, at most 8 MiB.
    pub body: Bytes,
}

impl Client {
    /// Calls as `caller`, the name of the own service or part; sent as `ballet-caller`. Retries idempotent calls.
    pub fn new(caller: &str) -> Self {
        Self::with(caller, Retries::Idempotent)
    }

    /// Calls as `caller` with these retries.
    pub fn with(caller: &str, retries: Retries) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_timer(TokioTimer::new())
            .build(connector);
        // Jitter only has to differ between processes, and an address does.
        let seed = u64::from(std::process::id()) << 32 | std::ptr::from_ref(&http).addr() as u64;
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Self { shared: Arc::new(Shared { http, caller: caller.to_owned(), retries, rng }) }
    }

    /// A call of any method.
    pub fn request(&self, method: Method, url: impl Into<String>) -> Request {
        let mut request = Request {
            shared: self.shared.clone(),
            method,
            url: url.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout: TIMEOUT,
            retries: self.shared.retries,
            broken: None,
        };
        request = request.header(headers::CALLER, &self.shared.caller);
        request
    }

    /// Reads.
    pub fn get(&self, url: impl Into<String>) -> Request {
        self.request(Method::GET, url)
    }

    /// Posts.
    pub fn post(&self, url: impl Into<String>) -> Request {
        self.request(Method::POST, url)
    }

    /// Puts.
    pub fn put(&self, url: impl Into<String>) -> Request {
        self.request(Method::PUT, url)
    }

    /// Deletes.
    pub fn delete(&self, url: impl Into<String>) -> Request {
        self.request(Method::DELETE, url)
    }
}

impl Request {
    /// Sets a header, replacing an earlier one.
    pub fn header(mut self, name: &str, value: impl AsRef<str>) -> Self {
        match (HeaderName::try_from(name), HeaderValue::try_from(value.as_ref())) {
            (Ok(name), Ok(value)) => drop(self.headers.insert(name, value)),
            (Err(_), _) => self.broken = Some(format!("`{name}` is not a header name")),
            (_, Err(_)) => {
                self.broken = Some(format!("the value of `{name}` has characters that headers cannot carry"))
            }
        }
        self
    }

    /// Sends JSON.
    pub fn json(mut self, value: &(impl Serialize + ?Sized)) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => self.body(body, "application/json"),
            Err(error) => {
                self.broken = Some(error.to_string());
                self
            }
        }
    }

    /// Sends bytes of a media type.
    pub fn body(mut self, body: impl Into<Bytes>, content_type: &str) -> Self {
        self.body = body.into();
        self.header(CONTENT_TYPE.as_str(), content_type)
    }

    /// How long the whole call may take, retries included. Default: 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Ends the call at the caller's own deadline if that is nearer than the timeout.
    pub fn deadline(mut self, deadline: Option<Deadline>) -> Self {
        if let Some(deadline) = deadline {
            self.timeout = deadline.within(self.timeout).left();
        }
        self
    }

    /// Makes the call part of a trace, with a span of its own.
    pub fn trace(self, trace: Option<TraceContext>) -> Self {
        let Some(trace) = trace else { return self };
        let child = trace.child(&mut *self.shared.rng.lock().expect("nobody panics while drawing"));
        self.header(headers::TRACEPARENT, child.to_string())
    }

    /// Makes the call repeatable.
    pub fn idempotency_key(self, key: &str) -> Self {
        self.header(headers::IDEMPOTENCY_KEY, key)
    }

    /// Chooses what is sent again when it fails.
    pub fn retries(mut self, retries: Retries) -> Self {
        self.retries = retries;
        self
    }

    /// Sends it and waits for the whole answer. Dropping the future gives the call up; it may have been done.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Unexpected`. Whatever status comes back is no error.
    pub async fn send(self) -> Result<Response, ClientError> {
        if let Some(broken) = self.broken {
            return Err(ClientError::Request(broken));
        }
        let uri: Uri = self.url.parse().map_err(|_| ClientError::Url { url: self.url.clone() })?;
        let authority = match (uri.scheme_str(), uri.authority()) {
            (Some("http"), Some(authority)) => authority.to_string(),
            _ => return Err(ClientError::Url { url: self.url }),
        };
        let idempotent = self.method.is_idempotent() || self.headers.contains_key(headers::IDEMPOTENCY_KEY);
        let end = Instant::now() + self.timeout;
        let mut retries = 0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut request = http::Request::new(Full::new(self.body.clone()));
            *request.method_mut() = self.method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = self.headers.clone();
            request.headers_mut().insert(headers::TIMEOUT, HeaderValue::from(millis(left)));

            let result = match tokio::time::timeout(left, exchange(&self.shared, request, &authority)).await {
                Ok(result) => result,
                Err(_) => return Err(ClientError::TimedOut { authority, after: self.timeout }),
            };
            let Some(at_least) = self.retries.rest(&result, idempotent) else { return result };
            if retries == MAX_RETRIES {
                return result;
            }
            retries += 1;
            let drawn = RESTS.rest(retries, &mut *self.shared.rng.lock().expect("nobody panics while drawing"));
            let rest = at_least.max(drawn);
            if Instant::now() + rest >= end {
                return result;
            }
            tokio::time::sleep(rest).await;
        }
    }
}

impl Retries {
    /// How long to rest at least before the call is sent again; `None` if it is not.
    fn rest(self, result: &Result<Response, ClientError>, idempotent: bool) -> Option<Duration> {
        let (status_counts, errors_count) = match self {
            Self::Idempotent => (idempotent, idempotent),
            Self::ConnectOnly => (false, false),
            Self::None => return None,
        };
        match result {
            Ok(response) if status_counts && matches!(response.status.as_u16(), 502..=504) => {
                Some(response.retry_after().unwrap_or_default())
            }
            Ok(_) => None,
            Err(error) => match error.retry() {
                Retry::Never => None,
                Retry::Safe(rest) => Some(rest.unwrap_or_default()),
                Retry::IfIdempotent => errors_count.then_some(Duration::ZERO),
            },
        }
    }
}

impl Response {
    /// Reads the body as JSON.
    ///
    /// # Errors
    /// [`ClientError::Unexpected`] if it is not JSON, or other JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|error| ClientError::Unexpected(error.to_string()))
    }

    /// Whether the status is 200 to 299.
    pub fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// The problem document of an error answer; made from the status if the body holds none.
    pub fn problem(&self) -> Problem {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| Problem::new(self.status.as_u16(), self.status.canonical_reason().unwrap_or("error")))
    }

    /// A header's value as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// `Retry-After` in seconds, as time.
    pub fn retry_after(&self) -> Option<Duration> {
        self.header(RETRY_AFTER.as_str())?.trim().parse().ok().map(Duration::from_secs)
    }
}

async fn exchange(
    shared: &Shared,
    request: http::Request<Full<Bytes>>,
    authority: &str,
) -> Result<Response, ClientError> {
    let authority = || authority.to_owned();
    let answer = shared.http.request(request).await.map_err(|source| {
        if source.is_connect() {
            ClientError::Connect { authority: authority(), source: source.into() }
        } else {
            ClientError::Lost { authority: authority(), source: source.into() }
        }
    })?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT_BYTES).collect().await.map_err(|source| {
        if source.is::<LengthLimitError>() {
            ClientError::TooLarge { authority: authority(), limit_bytes: ANSWER_LIMIT_BYTES }
        } else {
            ClientError::Lost { authority: authority(), source }
        }
    })?;
    Ok(Response { status: head.status, headers: head.headers, body: body.to_bytes() })
}

fn millis(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
}
