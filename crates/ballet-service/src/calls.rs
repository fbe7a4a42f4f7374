//! Calls to other services, at `$<NAME>_URL`, with the trace and the deadline of the request that is served.

use std::time::Duration;

use http::Method;
use http::header::AUTHORIZATION;
use serde::Serialize;
use serde::de::DeserializeOwned;

use ballet_client::{Client, ClientError, Request, Response};

use crate::request::{current_trace, deadline};
use crate::{Error, Result};

/// Another service: `ctx.service("catalog")`.
pub struct Peer {
    pub(crate) client: Client,
    pub(crate) name: String,
    pub(crate) url: Option<String>,
}

/// A call under construction.
#[must_use = "a call does nothing until it is sent"]
pub struct Call {
    service: String,
    request: Option<Request>,
}

impl Peer {
    /// A call of any method. `path` begins with `/` and may have a query.
    pub fn call(&self, method: Method, path: &str) -> Call {
        let request = self
            .url
            .as_ref()
            .map(|url| self.client.request(method, format!("{url}{path}")).trace(current_trace()).deadline(deadline()));
        Call { service: self.name.clone(), request }
    }

    /// Reads.
    pub fn get(&self, path: &str) -> Call {
        self.call(Method::GET, path)
    }

    /// Posts.
    pub fn post(&self, path: &str) -> Call {
        self.call(Method::POST, path)
    }

    /// Puts.
    pub fn put(&self, path: &str) -> Call {
        self.call(Method::PUT, path)
    }

    /// Deletes.
    pub fn delete(&self, path: &str) -> Call {
        self.call(Method::DELETE, path)
    }
}

impl Call {
    /// Sends JSON.
    pub fn json(self, body: &(impl Serialize + ?Sized)) -> Self {
        self.map(|request| request.json(body))
    }

    /// Sets a header.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.map(|request| request.header(name, value))
    }

    /// Makes it repeatable: a POST with a key is retried.
    pub fn idempotency_key(self, key: &str) -> Self {
        self.map(|request| request.idempotency_key(key))
    }

    /// Calls in a user's name.
    pub fn bearer(self, token: &str) -> Self {
        self.map(|request| request.header(AUTHORIZATION.as_str(), format!("Bearer {token}")))
    }

    /// How long it may take. Default: 10 s, or what is left of the own deadline.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.map(|request| request.timeout(timeout).deadline(deadline()))
    }

    /// Sends it. Any status is an answer.
    ///
    /// # Errors
    /// [`Error::Unreachable`], which the own caller sees as 503.
    pub async fn send(self) -> Result<Response> {
        let unreachable = |source| Error::Unreachable { service: self.service.clone(), source };
        match self.request {
            Some(request) => request.send().await.map_err(unreachable),
            None => Err(unreachable(ClientError::Url { url: format!("{}_URL", self.service.to_uppercase()) })),
        }
    }

    /// Sends it and reads the answer's JSON; `None` for 404.
    ///
    /// # Errors
    /// [`Error::Unreachable`] without an answer and for statuses of 500 or more, 429 and 408; an internal error for any
    /// other status and for JSON that does not fit.
    pub async fn fetch<T: DeserializeOwned>(self) -> Result<Option<T>> {
        let service = self.service.clone();
        let answer = self.send().await?;
        match answer.status.as_u16() {
            200..=299 => {
                answer.json().map(Some).map_err(|error| Error::Internal(format!("answer of `{service}`: {error}")))
            }
            404 => Ok(None),
            408 | 425 | 429 | 500.. => {
                let said = ClientError::Unexpected(format!("status {}", answer.status));
                Err(Error::Unreachable { service, source: said })
            }
            status => Err(Error::Internal(format!("`{service}` answered {status}"))),
        }
    }

    fn map(mut self, change: impl FnOnce(Request) -> Request) -> Self {
        self.request = self.request.map(change);
        self
    }
}
