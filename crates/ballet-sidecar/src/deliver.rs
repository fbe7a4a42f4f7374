//! Delivers what an app asked for at `GET /dapr/subscribe`: pulls from the bus, posts to the app, acks by its answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ballet_core::{Delivery, Event, EventsError, GroupName, Pull, TopicName};
use ballet_proxy::{CallRequest, CallResponse, direct};
use serde_json::Value;
use tokio::task::JoinSet;
use tracing::warn;

use crate::handler::Sidecar;

/// Events pulled at once for one subscription; so many are with the app at most.
const CREDIT: usize = 16;
/// How long a pull waits at the bus.
const WAIT: Duration = Duration::from_secs(30);
/// How long the app may take for one event; the lease is a little longer.
const HANDLE: Duration = Duration::from_secs(30);
/// Rest after trouble with the bus, and before an event is offered to the app again.
const REST: Duration = Duration::from_secs(1);

struct Subscription {
    topic: TopicName,
    route: String,
}

/// What becomes of an event by the app's answer.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Ack,
    Drop,
    Again,
}

/// Asks the app for its subscriptions, then delivers until it is aborted.
pub(crate) async fn run(sidecar: Arc<Sidecar>, app: SocketAddr) {
    let asked =
        direct(app, CallRequest::new("GET", "/dapr/subscribe").header("dapr-app-id", sidecar.service.name())).await;
    // 404 is normal: the app wants nothing in this way.
    let Ok(CallResponse { status: 200, body, .. }) = asked else { return };
    let mut tasks = JoinSet::new();
    for subscription in parse(&body) {
        tasks.spawn(subscribe(sidecar.clone(), app, subscription));
    }
    while tasks.join_next().await.is_some() {}
}

fn parse(body: &[u8]) -> Vec<Subscription> {
    let list: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let entry = |entry: &Value| {
        let route = entry["route"].as_str().or(entry["routes"]["default"].as_str());
        let topic = entry["topic"].as_str().unwrap_or_default();
        match (topic.parse(), route) {
            (Ok(topic), Some(route)) => {
                Some(Subscription { topic, route: format!("/{}", route.trim_start_matches('/')) })
            }
            (Err(_), _) | (_, None) => {
                warn!(topic, "a subscription without a valid topic and a route is ignored");
                None
            }
        }
    };
    list.as_array().into_iter().flatten().filter_map(entry).collect()
}

async fn subscribe(sidecar: Arc<Sidecar>, app: SocketAddr, subscription: Subscription) {
    let group: GroupName = sidecar.service.as_str().parse().expect("a service name is a group name");
    let pull = Pull {
        topic: subscription.topic.clone(),
        group,
        max: CREDIT,
        wait: WAIT,
        lease: HANDLE + Duration::from_secs(5),
    };
    loop {
        let deliveries = match sidecar.events.pull(pull.clone()).await {
            Ok(deliveries) => deliveries,
            Err(error) => {
                warn!(topic = %subscription.topic, %error, "cannot pull events");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        // One after the other: so the events of one subject stay in order.
        for delivery in deliveries {
            settle(&sidecar, app, &subscription.route, delivery).await;
        }
    }
}

async fn settle(sidecar: &Sidecar, app: SocketAddr, route: &str, delivery: Delivery) {
    let outcome = post(sidecar, app, route, &delivery.event).await;
    let settled: Result<(), EventsError> = match outcome {
        Outcome::Ack => sidecar.events.ack(delivery.receipt).await,
        Outcome::Drop => {
            warn!(event = delivery.event.id, route, "the app dropped an event");
            sidecar.events.ack(delivery.receipt).await
        }
        Outcome::Again => {
            let rest = REST.saturating_mul(delivery.receipt.attempt.min(30));
            sidecar.events.nack(delivery.receipt, rest, "the app did not take it".into()).await
        }
    };
    if let Err(error) = settled {
        warn!(%error, "a delivery could not be settled; it comes again");
    }
}

async fn post(sidecar: &Sidecar, app: SocketAddr, route: &str, event: &Event) -> Outcome {
    let mut envelope = event.to_json();
    envelope["topic"] = event.topic.as_str().into();
    envelope["pubsubname"] = "bus".into();
    let mut request = CallRequest::new("POST", route)
        .header("content-type", Event::MEDIA_TYPE)
        .header("dapr-api-token", &sidecar.token)
        .header(ballet_core::headers::CALLER, "bus")
        .body(envelope.to_string())
        .timeout(HANDLE);
    if let Some(trace) = event.trace {
        request = request.header(ballet_core::headers::TRACEPARENT, trace.to_string());
    }
    match direct(app, request).await {
        Ok(answer) => read(&answer),
        Err(_) => Outcome::Again,
    }
}

/// Dapr's table: 2xx acks unless the body says `RETRY` or `DROP`; 404 drops; all else comes again.
fn read(answer: &CallResponse) -> Outcome {
    match answer.status {
        200..=299 => {
            let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
            match body["status"].as_str() {
                None | Some("" | "SUCCESS") => Outcome::Ack,
                Some("DROP") => Outcome::Drop,
                Some(_) => Outcome::Again,
            }
        }
        404 => Outcome::Drop,
        _ => Outcome::Again,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn the_apps_answer_decides() {
        for (status, body, wanted) in [
            (200, "", Outcome::Ack),
            (204, "", Outcome::Ack),
            (200, r#"{"status":"SUCCESS"}"#, Outcome::Ack),
            (200, "not json", Outcome::Ack),
            (200, r#"{"status":"RETRY"}"#, Outcome::Again),
            (200, r#"{"status":"what"}"#, Outcome::Again),
            (200, r#"{"status":"DROP"}"#, Outcome::Drop),
            (404, "", Outcome::Drop),
            (500, "", Outcome::Again),
            (400, "", Outcome::Again),
        ] {
            let answer = CallResponse { status, headers: vec![], body: Bytes::from_static(body.as_bytes()) };
            assert_eq!(read(&answer), wanted, "{status} {body}");
        }
    }

    #[test]
    fn subscriptions_are_read_in_both_forms() {
        let body = br#"[{"pubsubname":"bus","topic":"order.placed","route":"placed"},
            {"topic":"order.confirmed","routes":{"default":"/confirmed"}},{"topic":"no route"}]"#;
        let routes: Vec<String> = parse(body).into_iter().map(|s| s.route).collect();
        assert_eq!(routes, ["/placed", "/confirmed"]);
        assert!(parse(b"no json").is_empty());
    }
}
