//! A real sidecar on loopback between a real app, a callee and a bus.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::routing::{any, get, post};
use ballet_core::{Delivery, Event, Events, EventsError, Fixed, Later, Offset, Pull, Receipt, ServiceName, TopicName};
use ballet_proxy::{CallRequest, CallResponse, PolicyTable, direct};
use ballet_sidecar::{Host, HostConfig};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

/// A bus with one known topic, whose events go to whoever pulls first.
#[derive(Default)]
struct Bus {
    waiting: Mutex<Vec<Event>>,
    published: Notify,
    acked: Notify,
}

impl Events for Bus {
    fn publish(&self, events: Vec<Event>) -> Later<'_, Result<Vec<Offset>, EventsError>> {
        let known: TopicName = "order.placed".parse().unwrap();
        if let Some(event) = events.iter().find(|event| event.topic != known) {
            let topic = event.topic.clone();
            return Box::pin(async { Err(EventsError::UnknownTopic(topic)) });
        }
        let places = (1..=events.len() as i64).map(Offset).collect();
        self.waiting.lock().unwrap().extend(events);
        self.published.notify_waiters();
        self.published.notify_one();
        Box::pin(async { Ok(places) })
    }

    fn pull(&self, pull: Pull) -> Later<'_, Result<Vec<Delivery>, EventsError>> {
        Box::pin(async move {
            loop {
                let events: Vec<Event> = std::mem::take(&mut *self.waiting.lock().unwrap());
                if !events.is_empty() {
                    let receipt = Receipt { topic: pull.topic, group: pull.group, offset: Offset(1), attempt: 1 };
                    return Ok(events.into_iter().map(|event| Delivery { event, receipt: receipt.clone() }).collect());
                }
                self.published.notified().await;
            }
        })
    }

    fn ack(&self, _: Receipt) -> Later<'_, Result<(), EventsError>> {
        self.acked.notify_one();
        Box::pin(async { Ok(()) })
    }

    fn nack(&self, _: Receipt, _: Duration, _: String) -> Later<'_, Result<(), EventsError>> {
        Box::pin(async { Ok(()) })
    }
}

async fn serve(routes: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

/// Tells what of a request arrived.
async fn echo(request: Request) -> String {
    let headers = request.headers();
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
    let seen = [header("ballet-caller"), header("dapr-caller-app-id"), header("dapr-api-token"), header("dapr-app-id")];
    let (method, target) = (request.method().clone(), request.uri().to_string());
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    format!("{method} {target} {} {}", seen.join(","), String::from_utf8_lossy(&body))
}

struct Rig {
    host: Host,
    bus: Arc<Bus>,
    sidecar: SocketAddr,
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

/// The sidecar of `orders`, which may call `inventory` and nobody else.
async fn rig() -> Rig {
    let inventory = serve(Router::new().fallback(any(echo))).await;
    let bus = Arc::new(Bus::default());
    let host = Host::new(HostConfig {
        discovery: Arc::new(Fixed::new([(name("inventory"), inventory)])),
        events: bus.clone(),
        policies: PolicyTable::default(),
        calls: BTreeMap::from([(name("orders"), BTreeSet::from([name("inventory")]))]),
        token: Arc::new(|id| format!("token-of-{id}")),
        seed: 1,
    });
    let port = host.open(&name("orders"), 1).await.unwrap();
    assert_eq!(host.open(&name("orders"), 1).await.unwrap(), port, "an open sidecar keeps its port");
    Rig { host, bus, sidecar: SocketAddr::from(([127, 0, 0, 1], port)) }
}

async fn ask(rig: &Rig, request: CallRequest) -> CallResponse {
    direct(rig.sidecar, request).await.unwrap()
}

fn text(response: &CallResponse) -> String {
    String::from_utf8_lossy(&response.body).into_owned()
}

#[tokio::test]
async fn a_service_is_called_by_path_header_and_host() {
    let rig = rig().await;
    let by_path = CallRequest::new("POST", "/v1.0/invoke/inventory/method/stock/a%2Fb?x=1&y=%20").body("hi");
    let answer = ask(&rig, by_path).await;
    assert_eq!(text(&answer), "POST /stock/a%2Fb?x=1&y=%20 orders,orders,-,- hi", "path and query stay as they came");
    let by_header = CallRequest::new("GET", "/stock").header("dapr-app-id", "inventory");
    assert!(text(&ask(&rig, by_header).await).starts_with("GET /stock orders,orders,-,"), "{}", text(&answer));
    let root = ask(&rig, CallRequest::new("GET", "/v1.0/invoke/inventory/method")).await;
    assert!(text(&root).starts_with("GET / "), "{}", text(&root));
}

#[tokio::test]
async fn whom_a_service_may_not_call_is_refused() {
    let rig = rig().await;
    let refused = ask(&rig, CallRequest::new("GET", "/v1.0/invoke/payments/method/x")).await;
    let body: Value = serde_json::from_slice(&refused.body).unwrap();
    assert_eq!((refused.status, &body["code"]), (403, &json!("SC002")));
    let nowhere = ask(&rig, CallRequest::new("GET", "/v1.0/state/store/key")).await;
    assert_eq!(nowhere.status, 404);
    let forged = CallRequest::new("GET", "/v1.0/metadata").header("dapr-api-token", "guess");
    assert_eq!(ask(&rig, forged).await.status, 401);
    let right = CallRequest::new("GET", "/v1.0/metadata").header("dapr-api-token", "token-of-orders-1");
    assert_eq!(ask(&rig, right).await.status, 200);
}

#[tokio::test]
async fn it_tells_its_health_and_remembers_metadata() {
    let rig = rig().await;
    let get = |path: &str| CallRequest::new("GET", path);
    assert_eq!(ask(&rig, get("/v1.0/healthz/outbound")).await.status, 204, "calls never wait for the app");
    assert_eq!(ask(&rig, get("/v1.0/healthz")).await.status, 500);
    rig.host.app(&name("orders"), 1, Some(serve(Router::new()).await));
    assert_eq!(ask(&rig, get("/v1.0/healthz")).await.status, 204);
    assert_eq!(ask(&rig, get("/v1.0/healthz?appid=other")).await.status, 500);
    assert_eq!(ask(&rig, CallRequest::new("PUT", "/v1.0/metadata/team").body("checkout")).await.status, 204);
    let told: Value = serde_json::from_slice(&ask(&rig, get("/v1.0/metadata")).await.body).unwrap();
    assert_eq!((&told["id"], &told["extended"]["team"]), (&json!("orders"), &json!("checkout")));
}

#[tokio::test]
async fn what_is_published_reaches_an_app_that_subscribed() {
    let rig = rig().await;
    let (heard, mut events) = mpsc::unbounded_channel::<Value>();
    let routes = Router::new()
        .route(
            "/dapr/subscribe",
            get(async || json!([{"pubsubname": "bus", "topic": "order.placed", "route": "/on"}]).to_string()),
        )
        .route(
            "/on",
            post(async move |body: String| {
                heard.send(serde_json::from_str(&body).unwrap()).unwrap();
                ""
            }),
        );
    rig.host.app(&name("orders"), 1, Some(serve(routes).await));
    let publish = CallRequest::new("POST", "/v1.0/publish/bus/order.placed").header("content-type", "application/json");
    let answer = ask(&rig, publish.body(r#"{"id":"7"}"#)).await;
    assert_eq!(answer.status, 204, "{}", text(&answer));
    let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.unwrap().unwrap();
    assert_eq!(
        (&event["data"], &event["type"], &event["source"]),
        (&json!({"id": "7"}), &json!("order.placed"), &json!("orders"))
    );
    tokio::time::timeout(Duration::from_secs(10), rig.bus.acked.notified()).await.unwrap();

    let unknown = CallRequest::new("POST", "/v1.0/publish/bus/nobody.knows").body("x");
    assert_eq!(ask(&rig, unknown).await.status, 404);
    rig.host.shutdown(Duration::from_secs(1)).await;
    assert!(direct(rig.sidecar, CallRequest::new("GET", "/v1.0/healthz/outbound")).await.is_err(), "it is closed");
}
