//! Reads the books over the wire: where a service is, the platform says; its books are at `GET /ledger`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::books::Books;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const ANSWER_BYTES: usize = 256 << 20;

/// Why the books could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("cannot reach {url}: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url} answered {status}")]
    Status { url: String, status: u16 },
    #[error("{url} answered something else than expected: {source}")]
    Strange { url: String, source: serde_json::Error },
    #[error("no instance of `{0}` is up")]
    Down(&'static str),
}

pub(crate) struct Reader {
    platform: String,
    client: Client<HttpConnector, Empty<Bytes>>,
}

#[derive(Deserialize)]
struct Instances {
    #[serde(default)]
    all: Vec<Instance>,
}

#[derive(Deserialize)]
struct Instance {
    address: String,
    state: String,
}

#[derive(Deserialize)]
struct Topics {
    topics: Vec<Topic>,
}

#[derive(Deserialize)]
struct Topic {
    name: String,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    group: String,
    waiting: u64,
    in_flight: u64,
}

impl Reader {
    pub(crate) fn new(platform: &str) -> Self {
        let platform = platform.trim_end_matches('/').to_owned();
        Self { platform, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    /// Whether the platform is there.
    pub(crate) async fn platform(&self) -> Result<(), ReadError> {
        self.get::<serde_json::Value>(&self.services("orders")).await.map(drop)
    }

    /// Reads all of them, one behind the other: orders first, so that what follows is younger.
    pub(crate) async fn books(&self) -> Result<Books, ReadError> {
        Ok(Books {
            waiting: self.waiting().await?,
            orders: self.ledger("orders").await?,
            inventory: self.ledger("inventory").await?,
            payments: self.ledger("payments").await?,
            notifications: self.ledger("notifications").await?,
        })
    }

    async fn ledger<T: DeserializeOwned>(&self, service: &'static str) -> Result<T, ReadError> {
        let known: Instances = self.get(&self.services(service)).await?;
        let up = known.all.into_iter().find(|instance| instance.state == "up").ok_or(ReadError::Down(service))?;
        self.get(&format!("http://{}/ledger", up.address)).await
    }

    /// What the bus has yet to deliver.
    async fn waiting(&self) -> Result<BTreeMap<String, u64>, ReadError> {
        let Topics { topics } = self.get(&format!("{}/ballet/v1/topics", self.platform)).await?;
        let groups = topics.into_iter().flat_map(|Topic { name, groups }| {
            groups.into_iter().map(move |group| (format!("{name} to {}", group.group), group.waiting + group.in_flight))
        });
        Ok(groups.collect())
    }

    fn services(&self, service: &str) -> String {
        format!("{}/ballet/v1/services/{service}", self.platform)
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, ReadError> {
        let unreachable =
            |why: &dyn std::fmt::Display| ReadError::Unreachable { url: url.into(), why: why.to_string() };
        let request = Request::get(url).header("ballet-caller", "ledger").body(Empty::new());
        let request = request.map_err(|error| unreachable(&error))?;
        let call = async {
            let answer = self.client.request(request).await.map_err(|error| unreachable(&causes(&error)))?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
            Ok((status, body.map_err(|error| unreachable(&error))?.to_bytes()))
        };
        let answered = tokio::time::timeout(TIMEOUT, call).await;
        let (status, body) = answered.map_err(|_| unreachable(&"no answer in time"))??;
        if status != 200 {
            return Err(ReadError::Status { url: url.into(), status });
        }
        serde_json::from_slice(&body).map_err(|source| ReadError::Strange { url: url.into(), source })
    }
}

/// An error with all that led to it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
