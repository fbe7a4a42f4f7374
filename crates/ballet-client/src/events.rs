//! The bus over HTTP.

use std::time::Duration;

use http::StatusCode;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use ballet_core::{
    Chain, Classify, Delivery, Event, Events, EventsError, Later, Offset, Problem, Pull, Receipt, Retry, TopicName,
};

use crate::{Client, ClientError, Response, Retries};

/// How long the bus may take to answer, besides the wait of a pull.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What stays as it is in a path segment (RFC 3986, unreserved).
pub(crate) const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The bus over the platform's HTTP API: the [`Events`] seam for a process of its own.
#[derive(Clone)]
pub struct RemoteEvents {
    client: Client,
    platform: String,
}

impl RemoteEvents {
    /// Asks the platform at `platform` (`http://127.0.0.1:7070`).
    pub fn new(client: Client, platform: &str) -> Self {
        Self { client, platform: platform.trim_end_matches('/').to_owned() }
    }

    async fn send(&self, path: String, body: Value, kind: &str, wait: Duration) -> Result<Response, EventsError> {
        let bytes = serde_json::to_vec(&body).map_err(|error| EventsError::Invalid(error.to_string()))?;
        let request = self.client.post(format!("{}{path}", self.platform)).body(bytes, kind).timeout(wait + TIMEOUT);
        // Publishing has no key: whoever asks decides whether an event may come twice.
        let answer = request.retries(Retries::ConnectOnly).send().await.map_err(|error| match error.retry() {
            Retry::Never => EventsError::Invalid(Chain(&error).to_string()),
            Retry::Safe(_) => EventsError::Unavailable(Chain(&error).to_string()),
            Retry::IfIdempotent => EventsError::Unknown(Chain(&error).to_string()),
        })?;
        if answer.is_success() { Ok(answer) } else { Err(refused(&answer)) }
    }

    fn group(receipt: &Receipt, verb: &str) -> String {
        group_path(receipt.topic.as_str(), receipt.group.as_str(), verb)
    }
}

#[derive(Deserialize)]
struct Published {
    offsets: Vec<Offset>,
}

#[derive(Deserialize)]
struct Pulled {
    deliveries: Vec<RawDelivery>,
}

#[derive(Deserialize)]
struct RawDelivery {
    event: Value,
    receipt: Receipt,
}

impl Events for RemoteEvents {
    fn publish(&self, events: Vec<Event>) -> Later<'_, Result<Vec<Offset>, EventsError>> {
        Box::pin(async move {
            if events.is_empty() {
                return Ok(vec![]);
            }
            let body = events.iter().map(Event::to_json).collect();
            let answer = self.send("/ballet/v1/events".into(), body, Event::BATCH_MEDIA_TYPE, Duration::ZERO).await?;
            Ok(answer.json::<Published>().map_err(unexpected)?.offsets)
        })
    }

    fn pull(&self, pull: Pull) -> Later<'_, Result<Vec<Delivery>, EventsError>> {
        Box::pin(async move {
            let path = group_path(pull.topic.as_str(), pull.group.as_str(), "pull");
            let body = json!({"max": pull.max, "waitMs": millis(pull.wait), "leaseMs": millis(pull.lease)});
            let answer = self.send(path, body, "application/json", pull.wait).await?;
            let pulled: Pulled = answer.json().map_err(unexpected)?;
            pulled
                .deliveries
                .into_iter()
                .map(|raw| {
                    let event =
                        Event::from_json(&raw.event).map_err(|error| EventsError::Unknown(error.to_string()))?;
                    Ok(Delivery { event, receipt: raw.receipt })
                })
                .collect()
        })
    }

    fn ack(&self, receipt: Receipt) -> Later<'_, Result<(), EventsError>> {
        Box::pin(async move {
            let body = serde_json::to_value(&receipt).map_err(|error| EventsError::Invalid(error.to_string()))?;
            self.send(Self::group(&receipt, "ack"), body, "application/json", Duration::ZERO).await.map(drop)
        })
    }

    fn nack(&self, receipt: Receipt, delay: Duration, reason: String) -> Later<'_, Result<(), EventsError>> {
        Box::pin(async move {
            let mut body = serde_json::to_value(&receipt).map_err(|error| EventsError::Invalid(error.to_string()))?;
            body["delayMs"] = json!(millis(delay));
            body["reason"] = json!(reason);
            self.send(Self::group(&receipt, "nack"), body, "application/json", Duration::ZERO).await.map(drop)
        })
    }
}

fn group_path(topic: &str, group: &str, verb: &str) -> String {
    format!("/ballet/v1/topics/{topic}/groups/{}/{verb}", utf8_percent_encode(group, SEGMENT))
}

/// The bus' own error back from its problem document: by its code, else by the status.
fn refused(answer: &Response) -> EventsError {
    let problem = answer.problem();
    let text = said(&problem);
    match problem.code.as_deref() {
        Some("EV010") => match quoted(&text).and_then(|name| name.parse::<TopicName>().ok()) {
            Some(topic) => EventsError::UnknownTopic(topic),
            None => EventsError::Invalid(text),
        },
        Some("EV012") => {
            let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
            EventsError::TooLarge { bytes: numbers.next().unwrap_or(0), limit_bytes: numbers.next().unwrap_or(0) }
        }
        Some("EV013") => EventsError::Stale,
        Some("EV014") => EventsError::Unavailable(text),
        Some("EV015") => EventsError::Unknown(text),
        _ => match answer.status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                EventsError::Unavailable(text)
            }
            status if status.is_server_error() => EventsError::Unknown(text),
            _ => EventsError::Invalid(text),
        },
    }
}

/// What a problem says, as one text.
pub(crate) fn said(problem: &Problem) -> String {
    problem.detail.clone().unwrap_or_else(|| problem.title.clone())
}

/// The first text between backticks.
pub(crate) fn quoted(text: &str) -> Option<&str> {
    text.split('`').nth(1)
}

fn unexpected(error: ClientError) -> EventsError {
    EventsError::Unknown(error.to_string())
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
