//! Push to a service over real sockets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};

use ballet_bus::{Bus, Config, Embedded, Redelivery, Subscription, TopicConfig};
use ballet_core::{
    BreakerPolicy, Event, Events, ExecutionId, Fixed, GroupName, Later, Offset, Policy, Start, Started, SystemClock,
    TopicName, TraceContext, WorkflowDocument, Workflows, WorkflowsError,
};
use ballet_manifest::Template;
use ballet_proxy::{PolicyTable, Upstreams};
use ballet_store::Memory;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Status and body.
type Answer = (u16, &'static str);

/// A service that answers as it is told, and 204 when it is not.
#[derive(Clone, Default)]
struct Inventory {
    answers: Arc<Mutex<BTreeMap<String, VecDeque<Answer>>>>,
    seen: Arc<Mutex<Vec<(HeaderMap, Value)>>>,
}

impl Inventory {
    async fn start(&self) -> Upstreams {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/events/{topic}", post(hear)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let breaker = BreakerPolicy { open_for: Duration::from_millis(20), ..BreakerPolicy::default() };
        let policies = PolicyTable::new(Policy { breaker, ..Policy::default() });
        Upstreams::new("bus", Arc::new(Fixed::new([("inventory".parse().unwrap(), address)])), policies, 1)
    }

    fn answer(&self, subject: &str, answers: impl IntoIterator<Item = Answer>) {
        self.answers.lock().unwrap().insert(subject.into(), answers.into_iter().collect());
    }

    fn subjects(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|(_, event)| event["subject"].as_str().unwrap().to_owned()).collect()
    }
}

async fn hear(State(inventory): State<Inventory>, headers: HeaderMap, body: String) -> Response {
    let event: Value = serde_json::from_str(&body).unwrap();
    let subject = event["subject"].as_str().unwrap().to_owned();
    inventory.seen.lock().unwrap().push((headers, event));
    let answer = inventory.answers.lock().unwrap().get_mut(&subject).and_then(VecDeque::pop_front);
    let (status, body) = answer.unwrap_or((204, ""));
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}

struct NoWorkflows;

impl Workflows for NoWorkflows {
    fn start(&self, start: Start) -> Later<'_, Result<Started, WorkflowsError>> {
        Box::pin(async { Err(WorkflowsError::UnknownWorkflow { name: start.name, version: None }) })
    }

    fn get(&self, id: &ExecutionId) -> Later<'_, Result<WorkflowDocument, WorkflowsError>> {
        let error = WorkflowsError::UnknownExecution(id.clone());
        Box::pin(async { Err(error) })
    }

    fn signal(&self, id: &ExecutionId, _: &str, _: Value) -> Later<'_, Result<(), WorkflowsError>> {
        let error = WorkflowsError::UnknownExecution(id.clone());
        Box::pin(async { Err(error) })
    }

    fn terminate(&self, id: &ExecutionId, _: &str) -> Later<'_, Result<(), WorkflowsError>> {
        let error = WorkflowsError::UnknownExecution(id.clone());
        Box::pin(async { Err(error) })
    }
}

fn topic() -> TopicName {
    "order.confirmed".parse().unwrap()
}

fn event(subject: &str, key: &str) -> Event {
    let mut event = Event::new(topic(), "orders", json!({"id": subject})).subject(subject);
    event.extensions.insert("partitionkey".into(), key.into());
    event.traced(TraceContext::parse(TRACE))
}

/// Publishes, waits until all is settled, and answers the dead letters.
async fn run(upstreams: &Upstreams, max_attempts: u32, events: Vec<Event>) -> Vec<(i64, u32, String)> {
    let clock = Arc::new(SystemClock);
    let bus = Bus::new(Embedded::open(Arc::new(Memory::default()), clock.clone()).await.unwrap(), clock, 1);
    let path = Template::parse("/events/${event.type}").unwrap();
    let backoff = Duration::from_millis(2);
    let redelivery = Redelivery { max_attempts, backoff_first: backoff, backoff_max: backoff };
    let told = Subscription::service(topic(), "inventory".parse().unwrap(), path).unwrap();
    let config =
        Config { topics: vec![TopicConfig::new(topic())], subscriptions: vec![Subscription { redelivery, ..told }] };
    let workflows: Arc<dyn Workflows> = Arc::new(NoWorkflows);
    bus.apply(config, upstreams, &workflows).await.unwrap();
    let handle = bus.handle();
    handle.publish(events).await.unwrap();
    let group: GroupName = "inventory".parse().unwrap();
    loop {
        let info = &handle.topics().await.unwrap()[0].groups[0];
        assert_eq!(info.target.as_deref(), Some("inventory:/events/${event.type}"));
        if info.state.waiting + info.state.in_flight == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let dead = handle.dead(&topic(), &group, Offset(0), 10).await.unwrap();
    bus.stop(Duration::from_secs(1)).await;
    dead.into_iter().map(|d| (d.offset.0, d.attempts, d.reason)).collect()
}

#[tokio::test]
async fn a_service_gets_cloudevents_and_its_answers_count() {
    let inventory = Inventory::default();
    let upstreams = inventory.start().await;
    inventory.answer("2", [(500, ""), (408, "")]);
    inventory.answer("3", [(404, r#"{"type":"about:blank","title":"No such order","status":404}"#)]);
    inventory.answer("4", [(200, r#"{"status":"RETRY"}"#), (200, r#"{"status":"SUCCESS"}"#)]);
    inventory.answer("5", [(200, r#"{"status":"DROP"}"#)]);
    inventory.answer("6", [(500, ""), (500, ""), (500, "")]);
    let dead = run(&upstreams, 3, ["1", "2", "3", "4", "5", "6", "7"].map(|s| event(s, "one")).to_vec()).await;
    assert_eq!(inventory.subjects().concat(), "1222344566".to_owned() + "67", "in order, each as often as it takes");
    let expected = [(3, 1, "answer 404: No such order"), (5, 1, "dropped by the subscriber"), (6, 3, "answer 500")];
    assert_eq!(dead, expected.map(|(offset, attempts, reason)| (offset, attempts, reason.to_owned())));

    let seen = inventory.seen.lock().unwrap();
    let (headers, event) = &seen[0];
    assert_eq!(headers["content-type"], "application/cloudevents+json");
    assert_eq!(headers["ballet-caller"], "bus");
    let trace = TraceContext::parse(headers["traceparent"].to_str().unwrap()).unwrap();
    assert_eq!(trace.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736", "one trace");
    assert_ne!(trace.span_id(), "00f067aa0ba902b7", "a span of its own");
    assert_eq!((&event["type"], &event["data"]), (&json!("order.confirmed"), &json!({"id": "1"})));
}

#[tokio::test]
async fn a_service_that_is_not_ready_costs_no_attempts() {
    let inventory = Inventory::default();
    let upstreams = inventory.start().await;
    // More often than there are attempts, and more than the breaker takes.
    for subject in ["1", "2"] {
        inventory.answer(subject, [(503, ""); 3]);
    }
    let dead = run(&upstreams, 1, vec![event("1", "one"), event("2", "two"), event("3", "three")]).await;
    assert_eq!(dead, []);
    let seen = inventory.subjects();
    let times = |subject: &str| seen.iter().filter(|s| *s == subject).count();
    assert_eq!([times("1"), times("2"), times("3")], [4, 4, 1]);
}
