//! A service to test with, a bus that remembers, and a way to call.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ballet_client::{Client, Request, Response, Retries};
use ballet_core::{Delivery, Event, Events, EventsError, Later, Offset, Pull, Receipt};
use ballet_service::axum::Router;
use ballet_service::axum::extract::Path;
use ballet_service::axum::routing::{delete, get, post};
use ballet_service::{
    Builder, Command, Config, Context, Error, Internal, Reply, Result, Running, Service, Staff, User, new_id, problem,
};
use rusqlite::params;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Semaphore;

/// A bus in memory: keeps what was published; fails while told to.
#[derive(Default)]
pub struct Bus {
    pub published: Mutex<Vec<Event>>,
    /// How the next publishes fail: `None` takes.
    pub failing: Mutex<Option<EventsError>>,
    /// With a failure: whether the event is kept all the same (an answer that was lost).
    pub keeps: Mutex<bool>,
    pub refused_topic: Mutex<Option<String>>,
    pub calls: AtomicU32,
}

impl Bus {
    pub fn subjects(&self) -> Vec<String> {
        self.published.lock().unwrap().iter().map(|event| event.subject.clone().unwrap_or_default()).collect()
    }

    /// Waits until that many events are there.
    pub async fn has(&self, events: usize) {
        within(|| self.published.lock().unwrap().len() >= events, "the events to come").await;
    }
}

impl Events for Bus {
    fn publish(&self, events: Vec<Event>) -> Later<'_, Result<Vec<Offset>, EventsError>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let refused = self.refused_topic.lock().unwrap().clone();
            if let Some(event) = events.iter().find(|event| Some(event.topic.as_str()) == refused.as_deref()) {
                return Err(EventsError::UnknownTopic(event.topic.clone()));
            }
            let failing = self.failing.lock().unwrap().clone();
            if failing.is_none() || *self.keeps.lock().unwrap() {
                self.published.lock().unwrap().extend(events);
            }
            failing.map_or(Ok(vec![]), Err)
        })
    }

    fn pull(&self, _: Pull) -> Later<'_, Result<Vec<Delivery>, EventsError>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn ack(&self, _: Receipt) -> Later<'_, Result<(), EventsError>> {
        Box::pin(async { Ok(()) })
    }

    fn nack(&self, _: Receipt, _: Duration, _: String) -> Later<'_, Result<(), EventsError>> {
        Box::pin(async { Ok(()) })
    }
}

pub async fn within(done: impl Fn() -> bool, what: &str) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited in vain for {what}");
}

/// Lets slow commands go on, one permit each.
pub struct Gate(pub Semaphore);

#[derive(Deserialize)]
pub struct NewThing {
    name: String,
    #[serde(default)]
    tags: Vec<String>,
}

async fn add(command: Command<NewThing>) -> Result<Reply> {
    command
        .run(|tx, new| {
            let id = new_id();
            tx.execute("INSERT INTO things VALUES (?1, ?2, ?3)", params![id, new.name, new.tags.join(",")])?;
            tx.publish("thing.added", &new.name, &json!({"id": id, "name": new.name}))?;
            Ok(Reply::created(format!("/things/{id}"), &json!({"id": id})))
        })
        .await
}

async fn slow(ctx: Context, command: Command<NewThing>) -> Result<Reply> {
    let gate = async {
        ctx.state::<Gate>().0.acquire().await.map_err(Error::internal)?.forget();
        Ok(7)
    };
    command
        .run_after(gate, |tx, new, seven| {
            tx.execute("INSERT INTO things VALUES (?1, ?2, '')", params![new_id(), new.name])?;
            Ok(Reply::ok(&json!({"seven": seven})))
        })
        .await
}

/// Writes, then ends in one of the ways that a command may.
async fn end(Path(how): Path<String>, command: Command) -> Result<Reply> {
    command
        .run(move |tx, _| {
            tx.execute("INSERT INTO things VALUES (?1, ?2, '')", params![new_id(), how])?;
            match how.as_str() {
                "refused" => Err(problem::conflict("out-of-stock", "none left").into()),
                "declined" => Ok(Reply::problem(&problem::refused(402, "card-declined", "no"))),
                "flaky" => Ok(Reply::problem(&problem::unavailable("try again"))),
                "broken" => Err(Error::internal("secret text")),
                "panic" => panic!("a defect"),
                "sql" => Ok(Reply::ok(&tx.query_row("SELECT nothing", [], |row| row.get::<_, i64>(0))?)),
                _ => Ok(Reply::no_content()),
            }
        })
        .await
}

async fn count(ctx: Context, Path(name): Path<String>) -> Result<Reply> {
    let sql = "SELECT count(*) FROM things WHERE name = ?1";
    let count: i64 = ctx.store().read(move |db| Ok(db.query_row(sql, [name], |row| row.get(0))?)).await?;
    Ok(Reply::ok(&count))
}

async fn reserve(_internal: Internal, command: Command<Value>) -> Result<Reply> {
    command
        .run(|tx, body| {
            tx.execute("INSERT INTO things VALUES (?1, 'held', '')", [body["orderId"].as_str()])?;
            Ok(Reply::created("/held", &json!({"held": true})))
        })
        .await
}

async fn release(_internal: Internal, Path(order): Path<String>, command: Command) -> Result<Reply> {
    command
        .run(move |tx, _| {
            let gone = tx.execute("DELETE FROM things WHERE id = ?1 AND name = 'held'", [order])?;
            Ok(Reply::ok(&json!({"released": gone})))
        })
        .await
}

/// Takes money.
async fn charge(_internal: Internal, command: Command<Value>) -> Result<Reply> {
    command
        .run(|tx, body| {
            tx.execute("INSERT INTO things VALUES (?1, 'charged', '')", [body["orderId"].as_str()])?;
            Ok(Reply::created("/charged", &json!({})))
        })
        .await
}

/// Gives it back; until a thing named `repaired` is there, it fails in one of the ways that a command may.
async fn refund(_internal: Internal, Path(how): Path<String>, command: Command) -> Result<Reply> {
    command
        .run(move |tx, _| {
            if !tx.prepare("SELECT 1 FROM things WHERE name = 'repaired'")?.exists([])? {
                return match how.as_str() {
                    "refused" => Err(problem::conflict("closed", "not today").into()),
                    "declined" => Ok(Reply::problem(&problem::refused(402, "card-declined", "no"))),
                    "flaky" => Ok(Reply::problem(&problem::unavailable("the bank does not answer"))),
                    _ => Err(Error::internal("secret text")),
                };
            }
            let gone = tx.execute("DELETE FROM things WHERE id = ?1 AND name = 'charged'", [how])?;
            Ok(Reply::ok(&json!({"refunded": gone})))
        })
        .await
}

pub fn builder() -> Builder {
    Service::builder("things")
        .migrations(&[("0001_init", "CREATE TABLE things (id TEXT PRIMARY KEY, name TEXT NOT NULL, tags TEXT) STRICT")])
        .state(Gate(Semaphore::new(0)))
        .routes(
            Router::new()
                .route("/things", post(add))
                .route("/things/{name}/count", get(count))
                .route("/slow", post(slow))
                .route("/end/{how}", post(end))
                .route("/reservations", post(reserve))
                .route("/reservations/{order}", delete(release))
                .route("/charges", post(charge))
                .route("/refunds/{how}", post(refund))
                .route("/me", get(async |user: User| user.id))
                .route("/maybe", get(async |user: Option<User>| user.map_or("nobody".into(), |user| user.id)))
                .route("/staff", get(async |Staff(user): Staff| user.id)),
        )
        .on("thing.lost", |tx, event| {
            tx.execute("INSERT INTO things VALUES (?1, 'lost', '')", [new_id()])?;
            if event.data["bad"] == json!(true) {
                return Err(Error::internal("not now"));
            }
            Ok(())
        })
}

/// A running service with its directory.
pub struct Rig {
    pub service: Running,
    pub bus: Arc<Bus>,
    _directory: Arc<TempDir>,
    client: Client,
}

impl Rig {
    pub async fn start() -> Self {
        Self::with(builder(), Arc::new(TempDir::new().unwrap()), "things-1", &[]).await
    }

    pub async fn with(builder: Builder, directory: Arc<TempDir>, instance: &str, env: &[(&str, &str)]) -> Self {
        let bus = Arc::new(Bus::default());
        Self::on(builder, directory, instance, env, bus).await
    }

    pub async fn on(
        builder: Builder,
        directory: Arc<TempDir>,
        instance: &str,
        env: &[(&str, &str)],
        bus: Arc<Bus>,
    ) -> Self {
        let service = builder.bus(bus.clone()).build_with(config(&directory, instance, env)).start().await.unwrap();
        Self { service, bus, _directory: directory, client: Client::with("gateway", Retries::None) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.service.address())
    }

    pub fn post(&self, path: &str, body: &Value) -> Request {
        self.client.post(self.url(path)).json(body)
    }

    pub fn get(&self, path: &str) -> Request {
        self.client.get(self.url(path))
    }

    /// A call of the orchestrator.
    pub async fn step(&self, method: &str, path: &str, key: &str, body: &Value) -> Response {
        let request = self.client.request(method.parse().unwrap(), self.url(path)).json(body);
        request.header("ballet-caller", "orchestrator").idempotency_key(key).send().await.unwrap()
    }

    pub async fn count(&self, name: &str) -> i64 {
        self.get(&format!("/things/{name}/count")).send().await.unwrap().json().unwrap()
    }
}

pub fn config(directory: &TempDir, instance: &str, env: &[(&str, &str)]) -> Config {
    let store = format!("sqlite:{}", directory.path().join("store/things.db").display());
    let own = [("STORE_URL", store.as_str()), ("BALLET_INSTANCE", instance)];
    Config::from_pairs("things", own.into_iter().chain(env.iter().copied())).unwrap()
}

pub fn text(response: &Response) -> &str {
    std::str::from_utf8(&response.body).unwrap()
}
