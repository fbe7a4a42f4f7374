//! The bus' HTTP face.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use ballet_bus::{Bus, Embedded, TopicConfig, http};
use ballet_core::SystemClock;
use ballet_store::Memory;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

struct Http(Router, #[expect(dead_code, reason = "keeps the bus alive")] Bus);

impl Http {
    async fn new() -> Self {
        let clock = Arc::new(SystemClock);
        let bus = Bus::new(Embedded::open(Arc::new(Memory::default()), clock.clone()).await.unwrap(), clock, 1);
        let topics = ["order.placed", "stock.changed"].map(|name| TopicConfig::new(name.parse().unwrap()));
        bus.declare(topics.to_vec()).await.unwrap();
        Self(http::router(bus.handle()), bus)
    }

    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(format!("/ballet/v1{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.0.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let status = answer.status();
        if status.is_client_error() {
            assert_eq!(answer.headers()["content-type"], "application/problem+json", "{method} {path}");
        }
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status.as_u16(), serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.call("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    async fn pull(&self, group: &str) -> Vec<Value> {
        let path = format!("/topics/order.placed/groups/{group}/pull");
        let (status, body) = self.post(&path, json!({"max": 10, "waitMs": 0, "leaseMs": 5000})).await;
        assert_eq!(status, 200, "{body}");
        body["deliveries"].as_array().unwrap().clone()
    }
}

fn structured(topic: &str, id: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "orders", "type": topic, "subject": "7", "data": {"id": id}})
}

#[tokio::test(start_paused = true)]
async fn every_form_of_event_is_accepted() {
    let http = Http::new().await;
    assert!(http.pull("g").await.is_empty());
    let events = "/topics/order.placed/events";
    let batch = json!([structured("order.placed", "c"), structured("stock.changed", "d")]).to_string();
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "b"),
        ("ce-source", "orders"),
        ("ce-type", "order.placed"),
        ("ce-subject", "K%C3%B6ln"),
        ("content-type", "application/json; charset=utf-8"),
    ];
    let one = structured("order.placed", "a").to_string();
    let structured_type = [("content-type", "application/cloudevents+json"), ("traceparent", TRACE)];
    let batch_type = [("content-type", "application/cloudevents-batch+json")];
    let plain = [("content-type", "application/json"), ("ballet-caller", "shop"), ("traceparent", TRACE)];
    for (path, headers, body, offsets) in [
        (events, &structured_type[..], one.as_str(), json!([1])),
        (events, &binary[..], r#"{"id":"b"}"#, json!([2])),
        (events, &batch_type[..], batch.as_str(), json!([3, 1])),
        (events, &plain[..], r#"{"id":"e"}"#, json!([4])),
        ("/events", &structured_type[..], one.as_str(), json!([5])),
        ("/events", &batch_type[..], batch.as_str(), json!([6, 2])),
    ] {
        let (status, answer) = http.call("POST", path, headers, body.to_owned()).await;
        assert_eq!((status, &answer["offsets"]), (StatusCode::ACCEPTED.as_u16(), &offsets), "{answer}");
        assert_eq!(answer["ids"].as_array().unwrap().len(), offsets.as_array().unwrap().len());
    }
    let got = http.pull("g").await;
    let of = |n: usize, field: &str| got[n]["event"][field].clone();
    assert_eq!((0..6).map(|n| of(n, "data")["id"].clone()).collect::<Vec<_>>(), ["a", "b", "c", "e", "a", "c"]);
    assert_eq!((of(0, "traceparent"), of(1, "subject")), (json!(TRACE), json!("Köln")));
    assert_eq!(
        (of(3, "source"), of(3, "traceparent"), of(3, "type")),
        (json!("shop"), json!(TRACE), json!("order.placed"))
    );
    assert!((0..6).all(|n| of(n, "time").is_string()), "stamped");
}

#[tokio::test(start_paused = true)]
async fn what_is_pulled_is_settled_by_its_receipt() {
    let http = Http::new().await;
    let group = "/topics/order.placed/groups/workflow%3Acheckout";
    assert!(http.pull("workflow%3Acheckout").await.is_empty());
    for id in ["a", "b", "c"] {
        assert_eq!(http.post("/topics/order.placed/events", json!({ "id": id })).await.0, 202);
    }
    let got = http.pull("workflow%3Acheckout").await;
    assert_eq!(
        got[0]["receipt"],
        json!({"topic": "order.placed", "group": "workflow:checkout", "offset": 1, "attempt": 1})
    );
    assert_eq!(http.post(&format!("{group}/ack"), got[0]["receipt"].clone()).await.0, 204);
    let (status, problem) =
        http.post(&format!("{group}/ack"), json!({"receipts": [{"offset": 1, "attempt": 1}]})).await;
    assert_eq!((status, problem["code"].as_str()), (409, Some("EV013")));
    let nack = json!({"offset": 2, "attempt": 1, "delayMs": 0, "reason": "busy"});
    assert_eq!(http.post(&format!("{group}/nack"), nack).await.0, 204);

    let (_, topics) = http.call("GET", "/topics", &[], "").await;
    let counts = json!({"group": "workflow:checkout", "target": null, "waiting": 1, "inFlight": 1, "dead": 0});
    assert_eq!(topics["topics"][0]["name"], "order.placed");
    assert_eq!(topics["topics"][0]["groups"], json!([counts]));

    // Given back until it is a dead letter, then brought back.
    let mut last = json!(null);
    for _ in 2..=10 {
        let got = http.pull("workflow%3Acheckout").await;
        last = got[0]["receipt"].clone();
        assert_eq!(http.post(&format!("{group}/nack"), last.clone()).await.0, 204);
    }
    assert_eq!(last["attempt"], 10);
    let (_, dead) = http.call("GET", &format!("{group}/dead"), &[], "").await;
    let letter = &dead["deadLetters"][0];
    assert_eq!(
        (&letter["offset"], &letter["attempts"], &letter["event"]["data"]["id"]),
        (&json!(2), &json!(10), &json!("b"))
    );
    assert_eq!(http.post(&format!("{group}/dead/2/replay"), json!(null)).await.0, 204);
    assert_eq!(http.post(&format!("{group}/dead/2/replay"), json!(null)).await.0, 400);
    assert_eq!(http.pull("workflow%3Acheckout").await[0]["receipt"]["attempt"], 1);

    let (status, has) = http.call("GET", "/topics/capabilities", &[], "").await;
    assert_eq!((status, &has["ackMeansOnDisk"]), (200, &json!("native")));
}

#[tokio::test(start_paused = true)]
async fn bad_requests_get_their_code() {
    let http = Http::new().await;
    let json = [("content-type", "application/json")];
    let event = [("content-type", "application/cloudevents+json"), ("traceparent", TRACE)];
    let text = [("content-type", "text/plain")];
    let other = structured("stock.changed", "x").to_string();
    let unknown = structured("no.such.topic", "x").to_string();
    let big = json!("x".repeat(ballet_bus::MAX_EVENT_BYTES)).to_string();
    for (path, headers, body, status, code) in [
        ("/topics/no.such.topic/events", &json[..], "{}", 404, "EV010"),
        ("/topics/No%20Good/events", &json, "{}", 400, "EV011"),
        ("/topics/order.placed/events", &json, "{", 400, "EV011"),
        ("/topics/order.placed/events", &text, "hello", 415, "EV001"),
        ("/topics/order.placed/events", &event, r#"{"specversion":"1.0"}"#, 400, "EV001"),
        ("/topics/order.placed/events", &event, &other, 400, "EV011"),
        ("/topics/order.placed/events", &json, &big, 413, "EV012"),
        ("/events", &event, &unknown, 404, "EV010"),
        ("/events", &json, "{}", 400, "EV011"),
        ("/topics/order.placed/groups/g/pull", &json, r#"{"max":0}"#, 400, "EV011"),
        ("/topics/order.placed/groups/g/pull", &json, r#"{"most":1}"#, 400, "EV011"),
        ("/topics/order.placed/groups/g/ack", &json, r#"{"offset":1}"#, 400, "EV011"),
        ("/topics/order.placed/groups/g/ack", &json, r#"{"offset":1,"attempt":1}"#, 409, "EV013"),
    ] {
        let (got, problem) = http.call("POST", path, headers, body.to_owned()).await;
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{path} {problem}");
        if headers.len() == 2 {
            assert_eq!(problem["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
        }
    }
    let (status, problem) = http.call("GET", "/topics/order.placed/groups/nobody/dead", &[], "").await;
    assert_eq!((status, problem["code"].as_str()), (400, Some("EV011")));
}
