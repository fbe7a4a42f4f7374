//! Services of a small shop on loopback, and an engine that calls them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use ballet_core::{ExecutionId, Fixed, Policy, ServiceName, WorkflowDocument, Workflows};
use ballet_manifest::LoadOptions;
use ballet_orchestrator::{Config, Engine, Handle};
use ballet_proxy::{PolicyTable, Upstreams};
use ballet_store::{Journal, Memory};
use serde_json::{Value, json};

/// What a service was asked, in order: `POST /payments`, its key, its headers and body.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) what: String,
    pub(crate) key: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Value,
}

/// How a service answers the next requests for `METHOD /first-segment`: status and body; the default is 200.
type Script = HashMap<String, Vec<(u16, Value)>>;

/// The services, all behind one listener: like the chassis, they keep one effect per key and leave tombstones.
#[derive(Clone, Default)]
pub(crate) struct Services(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    seen: Vec<Seen>,
    script: Script,
    effects: BTreeMap<String, u32>,
    answers: HashMap<String, (u16, Value)>,
    tombstones: HashSet<String>,
}

impl Services {
    pub(crate) fn script(&self, what: &str, answers: Vec<(u16, Value)>) {
        self.0.lock().unwrap().script.insert(what.into(), answers);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.0.lock().unwrap().seen.clone()
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.seen().into_iter().map(|s| s.what).collect()
    }

    /// Effects in force, by key, and how often each was applied.
    pub(crate) fn effects(&self) -> BTreeMap<String, u32> {
        self.0.lock().unwrap().effects.clone()
    }

    fn answer(&self, seen: Seen) -> (u16, Value) {
        let mut inner = self.0.lock().unwrap();
        let word = seen.what.split(['?', '/']).take(2).collect::<Vec<_>>().join("/");
        let key = seen.key.clone();
        inner.seen.push(seen);
        if let Some(scripted) = inner.script.get_mut(&word).filter(|s| !s.is_empty()) {
            return scripted.remove(0);
        }
        if let Some(of) = key.strip_suffix("/undo") {
            inner.effects.remove(of);
            inner.tombstones.insert(of.to_owned());
            return (200, json!({}));
        }
        if inner.tombstones.contains(&key) {
            return (410, json!({}));
        }
        if let Some(known) = inner.answers.get(&key) {
            return known.clone();
        }
        *inner.effects.entry(key.clone()).or_default() += 1;
        let answer = (201, json!({ "id": format!("made-{}", inner.answers.len()) }));
        inner.answers.insert(key, answer.clone());
        answer
    }

    pub(crate) async fn serve(&self) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let services = self.clone();
        let app = Router::new().fallback(move |request: Request| {
            let services = services.clone();
            async move { services.handle(request).await }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        address
    }

    async fn handle(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let headers: HashMap<String, String> =
            parts.headers.iter().map(|(k, v)| (k.to_string(), v.to_str().unwrap().to_owned())).collect();
        let (status, body) = self.answer(Seen {
            what: format!("{} {}", parts.method, parts.uri),
            key: headers.get("idempotency-key").cloned().unwrap_or_default(),
            headers,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        });
        (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
    }
}

pub(crate) const SHOP: &str = r#"
system: shop
services:
  orders:    { run: shop-orders }
  inventory: { run: shop-inventory }
  payments:  { run: shop-payments }
workflows:
  checkout:
    timeout: 15m
    steps:
      - reserve: { call: POST inventory:/reservations, with: { orderId: "${input.id}", items: "${input.items}" }, undo: "DELETE inventory:/reservations/${input.id}" }
      - charge:  { call: POST payments:/payments, with: { orderId: "${input.id}", amount: "${input.total.amount}" }, undo: POST payments:/refunds, undo_with: { orderId: "${input.id}" } }
      - confirm: { call: "POST orders:/orders/${input.id}/confirm", with: { paymentId: "${charge.output.id}" } }
    failed: { call: "POST orders:/orders/${input.id}/reject", with: { reason: "${failure.code}" } }
  packing:
    steps:
      - reserve: { call: POST inventory:/reservations, undo: "DELETE inventory:/reservations/${input.id}" }
      - pack: { task: pack, with: { id: "${input.id}" }, attempts: 2, timeout: 1m }
      - ship: { task: ship }
  waits:
    steps:
      - wait: { task: wait }
"#;

pub(crate) fn upstreams(address: std::net::SocketAddr) -> Upstreams {
    let instances = ["orders", "inventory", "payments"].map(|name| (name.parse::<ServiceName>().unwrap(), address));
    let policy = Policy { timeout: Duration::from_secs(2), ..Policy::default() };
    Upstreams::new("orchestrator", Arc::new(Fixed::new(instances)), PolicyTable::new(policy), 1)
}

/// An engine with the shop's workflows.
pub(crate) async fn engine(journal: Arc<dyn Journal>, upstreams: Upstreams) -> Handle {
    let handle = Engine::start(Config::new(journal, upstreams, 1)).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ballet.yaml");
    std::fs::write(&file, SHOP).unwrap();
    let loaded = ballet_manifest::load(&LoadOptions { file, ..LoadOptions::default() }).unwrap();
    for workflow in loaded.manifest.workflows.values() {
        handle.register(workflow).await.unwrap();
    }
    handle
}

pub(crate) async fn shop() -> (Handle, Services) {
    let services = Services::default();
    let upstreams = upstreams(services.serve().await);
    (engine(Arc::new(Memory::default()), upstreams).await, services)
}

pub(crate) fn order(id: &str) -> Value {
    json!({ "id": id, "items": [{ "productId": "cup", "quantity": 1 }], "total": { "amount": 1299 } })
}

/// Waits until an execution is final: its end is an event that nobody announces.
pub(crate) async fn settled(handle: &Handle, id: &ExecutionId) -> WorkflowDocument {
    for _ in 0..1_000 {
        let document = handle.get(id).await.unwrap();
        if document.status.is_final() {
            return document;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not settle: {:#}", handle.get(id).await.unwrap().json);
}
