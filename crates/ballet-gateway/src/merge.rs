//! `merge:` routes: several services asked at once, their answers in one object.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::value::RawValue;

use ballet_core::{Chain, Classify};
use ballet_proxy::{Answer, CallRequest, CallResponse, Upstream};

use crate::refusal::Refusal;

/// Longest merged answer, in bytes.
pub(crate) const MAX_MERGED_BYTES: usize = 16 << 20;

/// One key of the answer, with what this request found out.
pub(crate) struct Part {
    pub(crate) name: Arc<str>,
    pub(crate) required: bool,
    /// JSON that stands there when the part fails.
    pub(crate) fallback: Arc<RawValue>,
    /// The call, or why there is none (the fallback's turn).
    pub(crate) call: Result<(Arc<Upstream>, CallRequest), Refusal>,
}

/// The answer, and the parts that gave their fallback.
pub(crate) struct Merged {
    pub(crate) answer: Answer,
    pub(crate) missing: Vec<Arc<str>>,
}

/// Asks all parts at once. `timeout` ends calls sooner than their policies do.
pub(crate) async fn merge(parts: Vec<Part>, timeout: Option<Duration>) -> Result<Merged, Refusal> {
    let asked = join_all(parts.into_iter().map(|part| async move {
        let value = match part.call {
            Ok((upstream, mut request)) => {
                request.timeout = timeout;
                ask(&upstream, request).await
            }
            Err(refusal) => Err(refusal),
        };
        match value {
            Ok(value) => Ok((part.name, Some(value), part.fallback)),
            Err(refusal) if part.required => Err(of_part(&part.name, refusal)),
            Err(refusal) => {
                tracing::debug!(part = %part.name, reason = refusal.reason(), "a part gives its fallback");
                Ok((part.name, None, part.fallback))
            }
        }
    }))
    .await;
    let mut body = b"{".to_vec();
    let mut missing = vec![];
    for part in asked {
        let (name, value, fallback) = part?;
        if body.len() > 1 {
            body.push(b',');
        }
        serde_json::to_writer(&mut body, &*name).map_err(|_| Refusal::Internal { reason: "part name" })?;
        body.push(b':');
        if value.is_none() {
            missing.push(name);
        }
        body.extend_from_slice(value.as_deref().unwrap_or(&fallback).get().as_bytes());
        if body.len() > MAX_MERGED_BYTES {
            return Err(Refusal::TooLarge { detail: "the merged answer is longer than 16 MiB" });
        }
    }
    body.push(b'}');
    // It may hold what only this caller may see.
    let mut answer =
        Answer::new(200).header("content-type", "application/json").header("cache-control", "no-store").body(body);
    if !missing.is_empty() {
        answer = answer.header("ballet-merge-missing", missing.join(", "));
    }
    Ok(Merged { answer, missing })
}

async fn ask(upstream: &Upstream, request: CallRequest) -> Result<Box<RawValue>, Refusal> {
    match upstream.call(request).await {
        Ok(response) => read(&response),
        Err(error) => {
            tracing::debug!(service = %upstream.service(), code = %error.code(), error = %Chain(&error), "a part failed");
            Err(Refusal::of_call(&error, &upstream.policy()))
        }
    }
}

fn read(response: &CallResponse) -> Result<Box<RawValue>, Refusal> {
    let body: &[u8] = match response.status {
        200..300 if response.body.is_empty() => b"null",
        200..300 => &response.body,
        status => {
            let title = serde_json::from_slice::<ballet_core::Problem>(&response.body).map(|problem| problem.title);
            let reason = title.unwrap_or_else(|_| format!("the service answered {status}"));
            return Err(Refusal::Bad { status, reason });
        }
    };
    serde_json::from_slice(body).map_err(|_| Refusal::BadAnswer { reason: "answer is not JSON" })
}

/// What the failure of a required part means for the whole: what the client can do something about passes through, the
/// service's own trouble is the gateway's 502.
fn of_part(name: &str, refusal: Refusal) -> Refusal {
    let status = match refusal.status() {
        status @ (400..500 | 503 | 504) => status,
        _ => 502,
    };
    match refusal {
        Refusal::NoToken | Refusal::Token(_) | Refusal::Role { .. } | Refusal::NoKeys => refusal,
        other => {
            let detail = match &other {
                Refusal::Bad { reason, .. } => reason.clone(),
                Refusal::Unavailable { title: Some((_, title)), .. } => title.clone(),
                _ => other.reason().to_owned(),
            };
            Refusal::Part { name: name.to_owned(), status, detail }
        }
    }
}
