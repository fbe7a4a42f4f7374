//! The bus over HTTP, under `/ballet/v1`. Answers come once what was asked is on disk.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /topics/{topic}/events` | a CloudEvent (binary, structured), a batch of them, or plain JSON data | 202 `{offsets, ids}` |
//! | `POST /events` | a CloudEvent or a batch, each to the topic of its type | 202 `{offsets, ids}` |
//! | `POST /topics/{topic}/groups/{group}/pull` | `{max, waitMs, leaseMs}` | 200 `{deliveries: [{event, receipt}]}` |
//! | `POST …/groups/{group}/ack` | `{offset, attempt}` or `{receipts: [{offset, attempt}]}` | 204 |
//! | `POST …/groups/{group}/nack` | `{offset, attempt, delayMs, reason}` | 204 |
//! | `GET /topics` | | 200 `{topics: [{name, keepMs, groups: [{group, target, waiting, inFlight, dead}]}]}` |
//! | `GET …/groups/{group}/dead?from=&limit=` | | 200 `{deadLetters: [{offset, attempts, reason, at, event}]}` |
//! | `POST …/groups/{group}/dead/{offset}/replay` | | 204 |
//! | `GET /topics/capabilities` | | 200 `{delay, deadLetters, replay, ackMeansOnDisk}` |
//!
//! Refusals are problem documents with a code.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use ballet_core::{
    Classify, Event, EventError, Events, EventsError, GroupName, NameError, Offset, Problem, Pull, Receipt, TopicName,
    TraceContext, headers,
};
use ballet_store::Support;

use crate::handle::Handle;

/// Longest body of a request, in bytes: 8 MiB.
pub const MAX_BODY: usize = 8 << 20;

/// Mounts the bus' routes.
pub fn router(handle: Handle) -> Router {
    let group = "/ballet/v1/topics/{topic}/groups/{group}";
    Router::new()
        .route("/ballet/v1/events", post(publish_anywhere))
        .route("/ballet/v1/topics", get(topics))
        .route("/ballet/v1/topics/capabilities", get(capabilities))
        .route("/ballet/v1/topics/{topic}/events", post(publish))
        .route(&format!("{group}/pull"), post(pull))
        .route(&format!("{group}/ack"), post(ack))
        .route(&format!("{group}/nack"), post(nack))
        .route(&format!("{group}/dead"), get(dead))
        .route(&format!("{group}/dead/{{offset}}/replay"), post(replay))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(handle)
}

/// A refusal, as it leaves.
struct Refusal(Box<Problem>);

type Answered = Result<Response, Refusal>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PullBody {
    #[serde(default = "one")]
    max: usize,
    #[serde(default)]
    wait_ms: u64,
    #[serde(default = "half_a_minute")]
    lease_ms: u64,
}

/// A receipt; topic and group stand in the path, and may stand here too.
#[derive(Deserialize)]
struct ReceiptBody {
    offset: Offset,
    attempt: u32,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AckBody {
    Several { receipts: Vec<ReceiptBody> },
    One(ReceiptBody),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NackBody {
    #[serde(flatten)]
    receipt: ReceiptBody,
    #[serde(default)]
    delay_ms: u64,
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct DeadQuery {
    #[serde(default)]
    from: i64,
    #[serde(default = "hundred")]
    limit: usize,
}

async fn publish(State(bus): State<Handle>, Path(topic): Path<String>, head: HeaderMap, body: Bytes) -> Answered {
    let trace = trace(&head);
    let events = name::<TopicName>(&topic).and_then(|topic| {
        let (events, batch) = match read_events(&head, &body)? {
            Some(read) => read,
            None => (vec![plain(&topic, &head, &body)?], false),
        };
        // A batch may hold events of other topics; a single event says where it belongs.
        if let Some(event) = events.iter().find(|event| !batch && event.topic != topic) {
            let why = format!("the event's type is `{}`, not `{topic}`", event.topic);
            return Err(EventsError::Invalid(why).into());
        }
        Ok(events)
    });
    accept(&bus, events, trace).await
}

async fn publish_anywhere(State(bus): State<Handle>, head: HeaderMap, body: Bytes) -> Answered {
    let trace = trace(&head);
    let events = read_events(&head, &body).and_then(|read| {
        let hint = "send a CloudEvent: `ce-…` headers, `application/cloudevents+json` or its batch form";
        read.map(|(events, _)| events).ok_or_else(|| EventsError::Invalid(hint.into()).into())
    });
    accept(&bus, events, trace).await
}

async fn accept(bus: &Handle, events: Result<Vec<Event>, Refusal>, trace: Option<TraceContext>) -> Answered {
    let mut events = events.map_err(|refusal| refusal.traced(trace))?;
    for event in &mut events {
        event.trace = event.trace.or(trace);
    }
    let ids: Vec<String> = events.iter().map(|event| event.id.clone()).collect();
    let offsets = bus.publish(events).await.map_err(|error| Refusal::from(error).traced(trace))?;
    Ok((StatusCode::ACCEPTED, axum::Json(json!({ "offsets": offsets, "ids": ids }))).into_response())
}

async fn pull(State(bus): State<Handle>, path: Path<(String, String)>, head: HeaderMap, body: Bytes) -> Answered {
    let (topic, group) = names(&path)?;
    let PullBody { max, wait_ms, lease_ms } = parse(if body.is_empty() { b"{}" } else { &body })?;
    let (wait, lease) = (Duration::from_millis(wait_ms), Duration::from_millis(lease_ms));
    let pulled = bus.pull(Pull { topic, group, max, wait, lease }).await;
    let deliveries = pulled.map_err(|error| Refusal::from(error).traced(trace(&head)))?;
    let delivery = |d: &ballet_core::Delivery| json!({ "event": d.event.to_json(), "receipt": d.receipt });
    Ok(axum::Json(json!({ "deliveries": deliveries.iter().map(delivery).collect::<Vec<_>>() })).into_response())
}

async fn ack(State(bus): State<Handle>, path: Path<(String, String)>, head: HeaderMap, body: Bytes) -> Answered {
    let (topic, group) = names(&path)?;
    let receipts = match parse(&body)? {
        AckBody::Several { receipts } => receipts,
        AckBody::One(receipt) => vec![receipt],
    };
    let receipts = receipts.into_iter().map(|receipt| receipt.of(&topic, &group)).collect();
    done(bus.ack_all(receipts).await, &head)
}

async fn nack(State(bus): State<Handle>, path: Path<(String, String)>, head: HeaderMap, body: Bytes) -> Answered {
    let (topic, group) = names(&path)?;
    let NackBody { receipt, delay_ms, reason } = parse(&body)?;
    done(bus.nack(receipt.of(&topic, &group), Duration::from_millis(delay_ms), reason).await, &head)
}

async fn topics(State(bus): State<Handle>) -> Answered {
    let topics = bus.topics().await?;
    let group = |g: &crate::GroupInfo| {
        json!({
            "group": g.state.group, "target": g.target,
            "waiting": g.state.waiting, "inFlight": g.state.in_flight, "dead": g.state.dead,
        })
    };
    let topic = |t: &crate::TopicInfo| {
        let groups: Vec<Value> = t.groups.iter().map(group).collect();
        json!({ "name": t.name, "keepMs": u64::try_from(t.keep.as_millis()).unwrap_or(u64::MAX), "groups": groups })
    };
    Ok(axum::Json(json!({ "topics": topics.iter().map(topic).collect::<Vec<_>>() })).into_response())
}

async fn capabilities(State(bus): State<Handle>) -> Answered {
    let word = |support| match support {
        Support::Native => "native",
        Support::Emulated => "emulated",
        Support::Absent => "absent",
    };
    let has = bus.capabilities();
    let body = json!({
        "delay": word(has.delay), "deadLetters": word(has.dead_letters),
        "replay": word(has.replay), "ackMeansOnDisk": word(has.ack_means_on_disk),
    });
    Ok(axum::Json(body).into_response())
}

async fn dead(
    State(bus): State<Handle>,
    path: Path<(String, String)>,
    Query(query): Query<DeadQuery>,
    head: HeaderMap,
) -> Answered {
    let (topic, group) = names(&path)?;
    let letters = bus.dead(&topic, &group, Offset(query.from), query.limit).await;
    let letters = letters.map_err(|error| Refusal::from(error).traced(trace(&head)))?;
    let letter = |d: &ballet_store::DeadLetter| {
        json!({
            "offset": d.offset, "attempts": d.attempts, "reason": d.reason,
            "at": d.at.to_string(), "event": d.event.to_json(),
        })
    };
    Ok(axum::Json(json!({ "deadLetters": letters.iter().map(letter).collect::<Vec<_>>() })).into_response())
}

async fn replay(
    State(bus): State<Handle>,
    Path((topic, group, offset)): Path<(String, String, i64)>,
    head: HeaderMap,
) -> Answered {
    let (topic, group) = (name(&topic)?, name(&group)?);
    done(bus.replay(&topic, &group, Offset(offset)).await, &head)
}

/// Reads CloudEvents in whatever form they come, and whether it was a batch; `None` if the request holds none.
fn read_events(head: &HeaderMap, body: &[u8]) -> Result<Option<(Vec<Event>, bool)>, Refusal> {
    let kind = media_type(head);
    if kind == Event::MEDIA_TYPE {
        return Ok(Some((vec![Event::from_json(&parse(body)?)?], false)));
    }
    if kind == Event::BATCH_MEDIA_TYPE {
        let list: Vec<Value> = parse(body)?;
        return Ok(Some((list.iter().map(Event::from_json).collect::<Result<_, _>>()?, true)));
    }
    let texts = head.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let json = kind.is_empty() || kind == "application/json" || kind.ends_with("+json");
    match Event::from_headers(texts, body) {
        Some(_) if !json && !body.is_empty() => Err(not_json(&kind)),
        Some(event) => Ok(Some((vec![event?], false))),
        None => Ok(None),
    }
}

/// Makes an event of plain JSON data.
fn plain(topic: &TopicName, head: &HeaderMap, body: &[u8]) -> Result<Event, Refusal> {
    let kind = media_type(head);
    if !kind.is_empty() && kind != "application/json" && !kind.ends_with("+json") {
        return Err(not_json(&kind));
    }
    let source = head.get(headers::CALLER).and_then(|value| value.to_str().ok()).filter(|source| !source.is_empty());
    Ok(Event::new(topic.clone(), source.unwrap_or("http"), parse(body)?))
}

fn media_type(head: &HeaderMap) -> String {
    let value = head.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn not_json(kind: &str) -> Refusal {
    let detail = format!("`{kind}` is not supported; send JSON");
    Problem::new(415, "event data of another media type").code("EV001").detail(detail).into()
}

fn trace(head: &HeaderMap) -> Option<TraceContext> {
    head.get(headers::TRACEPARENT).and_then(|value| value.to_str().ok()).and_then(TraceContext::parse)
}

fn names(path: &Path<(String, String)>) -> Result<(TopicName, GroupName), Refusal> {
    Ok((name(&path.0.0)?, name(&path.0.1)?))
}

fn name<T: std::str::FromStr<Err = NameError>>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|error: NameError| EventsError::Invalid(error.to_string()).into())
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| EventsError::Invalid(format!("the body cannot be read: {error}")).into())
}

fn done(result: Result<(), EventsError>, head: &HeaderMap) -> Answered {
    result.map_err(|error| Refusal::from(error).traced(trace(head)))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn one() -> usize {
    1
}

fn hundred() -> usize {
    100
}

fn half_a_minute() -> u64 {
    30_000
}

impl ReceiptBody {
    fn of(self, topic: &TopicName, group: &GroupName) -> Receipt {
        Receipt { topic: topic.clone(), group: group.clone(), offset: self.offset, attempt: self.attempt }
    }
}

impl Refusal {
    fn traced(self, trace: Option<TraceContext>) -> Self {
        match trace {
            Some(trace) => self.0.trace_id(trace.trace_id()).into(),
            None => self,
        }
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

impl From<EventsError> for Refusal {
    fn from(error: EventsError) -> Self {
        let (status, title) = match &error {
            EventsError::UnknownTopic(_) => (404, "unknown topic"),
            EventsError::Invalid(_) => (400, "invalid request to the bus"),
            EventsError::TooLarge { .. } => (413, "event too large"),
            EventsError::Stale => (409, "delivery settled or somebody else's"),
            EventsError::Unavailable(_) => (503, "the bus takes nothing now"),
            EventsError::Unknown(_) => (500, "no answer from the bus"),
        };
        Problem::new(status, title).code(error.code().0).detail(error.to_string()).into()
    }
}

impl From<EventError> for Refusal {
    fn from(error: EventError) -> Self {
        Problem::new(400, "not a CloudEvent").code(error.code().0).detail(error.to_string()).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, Problem::MEDIA_TYPE)], self.0.to_json()).into_response()
    }
}
