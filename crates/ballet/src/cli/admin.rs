//! Speaks to a running platform: finds it by its state directory, shows the token, reads answers.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::{CliError, Place};

/// Longest wait for an answer of the admin API.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A running platform, as the commands speak to it.
pub(crate) struct Admin {
    runtime: tokio::runtime::Runtime,
    address: SocketAddr,
    token: String,
}

/// An answer of the platform.
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// The body; null if it is not JSON.
    pub(crate) json: Value,
}

impl Admin {
    /// Finds the platform of a state directory.
    pub(crate) fn connect(place: &Place) -> Result<Self, CliError> {
        let nobody = || CliError::unreachable(format!("nothing runs with the state in `{}`", place.state.display()));
        let running = ballet_supervisor::running(&place.state).ok_or_else(nobody)?;
        let url = running.addresses.get("platform").ok_or_else(nobody)?;
        let address = url.trim_start_matches("http://").parse().map_err(|_| nobody())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CliError::no(format!("cannot start a runtime: {error}")))?;
        Ok(Self { runtime, address, token: running.token })
    }

    /// Asks and reads the whole answer.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, CliError> {
        let exchange = async {
            let response = self.send(method, path, body).await?;
            let status = response.status().as_u16();
            let bytes = response.into_body().collect().await.map_err(lost)?.to_bytes();
            Ok(Answer { status, json: serde_json::from_slice(&bytes).unwrap_or(Value::Null) })
        };
        let timed = async { tokio::time::timeout(ANSWER_TIMEOUT, exchange).await };
        self.runtime.block_on(timed).map_err(|_| CliError::unreachable("the platform does not answer"))?
    }

    /// Asks and wants a success; else the problem's text is the error.
    pub(crate) fn demand(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, CliError> {
        let answer = self.ask(method, path, body)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.json);
        }
        let text = |key: &str| answer.json.get(key).and_then(Value::as_str);
        let detail = text("detail").or(text("message")).or(text("title"));
        let error = CliError::no(detail.unwrap_or("the platform refused").to_owned());
        Err(match text("code") {
            Some(code) => {
                let hint = super::errors::entry(code).map(|entry| entry.remedy);
                hint.map_or(error.code(code), |hint| CliError::no(detail.unwrap_or(code)).code(code).hint(hint))
            }
            None => error,
        })
    }

    /// Asks and hands on the body piece by piece, until it ends or `sink` says stop.
    pub(crate) fn stream(&self, path: &str, mut sink: impl FnMut(&[u8]) -> bool) -> Result<(), CliError> {
        self.runtime.block_on(async {
            let mut body = self.send("GET", path, None).await?.into_body();
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { return Ok(()) };
                if frame.data_ref().is_some_and(|data| !sink(data)) {
                    return Ok(());
                }
            }
            Ok(())
        })
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<hyper::Response<hyper::body::Incoming>, CliError> {
        let address = self.address;
        let refused = |error: std::io::Error| CliError::unreachable(format!("no platform at {address}: {error}"));
        let stream = tokio::net::TcpStream::connect(address).await.map_err(refused)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        tokio::spawn(connection);
        let bytes = body.map(|body| body.to_string()).unwrap_or_default();
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", address.to_string())
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|error| CliError::wrong(format!("not a request: {error}")))?;
        sender.send_request(request).await.map_err(lost)
    }
}

fn lost(error: hyper::Error) -> CliError {
    CliError::unreachable(format!("the platform gave no answer: {error}"))
}

/// Escapes what may not stand in a path segment.
pub(crate) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    ballet_manifest::encode(text, &mut out);
    out
}
