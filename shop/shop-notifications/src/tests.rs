//! The rows of the shop's contract that belong to notifications, over the wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use ballet_service::{Builder, Clock, Config, Event, ManualClock, Running, Service, SystemClock};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::queue::{self, Channel, NewMessage};
use crate::{MIGRATIONS, events, service};

/// The service, the users it asks, another service that calls it, and a key that signs tokens.
struct Rig {
    notifications: Running,
    caller: Running,
    /// Whether users answers.
    users_up: Arc<AtomicBool>,
    users: Running,
    key: EncodingKey,
    dir: TempDir,
}

impl Rig {
    async fn start() -> Self {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let key = EncodingKey::from_ec_der(pkcs8.as_ref());
        let dir = TempDir::new().unwrap();
        let users_up = Arc::new(AtomicBool::new(true));
        let up = users_up.clone();
        let contact = async move |Path(id): Path<String>| match (up.load(Ordering::SeqCst), id.as_str()) {
            (false, _) => (StatusCode::SERVICE_UNAVAILABLE, Json(Value::Null)),
            (true, "ada") => {
                (StatusCode::OK, Json(json!({"email": "ada@shop.test", "phone": "+4912345", "name": "Ada"})))
            }
            (true, _) => (StatusCode::NOT_FOUND, Json(Value::Null)),
        };
        let users = Service::builder("users").routes(Router::new().route("/contacts/{id}", get(contact)));
        let users = start("users", users, &dir, &[]).await;
        let (notifications, caller) = Self::begin(&key, &users, &dir).await;
        Self { notifications, caller, users_up, users, key, dir }
    }

    async fn begin(key: &EncodingKey, users: &Running, dir: &TempDir) -> (Running, Running) {
        let mut jwk = Jwk::from_encoding_key(key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some("test".into());
        let url = format!("http://{}", users.address());
        let builder = service().own_keys(move |_| Ok(json!({"keys": [jwk]})));
        let notifications = start("notifications", builder, dir, &[("USERS_URL", &url)]).await;
        let url = format!("http://{}", notifications.address());
        let caller = start("caller", Service::builder("caller"), dir, &[("NOTIFICATIONS_URL", &url)]).await;
        (notifications, caller)
    }

    async fn restart(self) -> Self {
        self.notifications.stop().await;
        let (notifications, caller) = Self::begin(&self.key, &self.users, &self.dir).await;
        Self { notifications, caller, ..self }
    }

    async fn call(&self, method: &str, path: &str, who: Option<(&str, &str)>, body: &Value) -> (u16, Value) {
        let method = method.parse().unwrap();
        let mut call = self.caller.context().service("notifications").call(method, path).json(body);
        if let Some((user, role)) = who {
            let expires = jsonwebtoken::get_current_timestamp() + 3_600;
            let claims = json!({"sub": user, "iss": "users", "aud": "shop", "exp": expires, "roles": [role]});
            let header = Header { kid: Some("test".into()), ..Header::new(Algorithm::ES256) };
            call = call.bearer(&jsonwebtoken::encode(&header, &claims, &self.key).unwrap());
        }
        let answer = call.send().await.unwrap();
        (answer.status.as_u16(), answer.json().unwrap_or_default())
    }

    /// Delivers an event as the bus does.
    async fn hear(&self, id: &str, topic: &str, data: &Value) -> u16 {
        let mut event = Event::new(topic.parse().unwrap(), "orders", data.clone()).subject("o1");
        event.id = id.to_owned();
        let call = self.caller.context().service("notifications").post("/events").json(&event.to_json());
        call.header("content-type", Event::MEDIA_TYPE).send().await.unwrap().status.as_u16()
    }

    async fn items(&self, path: &str, who: (&str, &str)) -> Vec<Value> {
        let (status, page) = self.call("GET", path, Some(who), &Value::Null).await;
        assert_eq!(status, 200, "{page}");
        page["items"].as_array().unwrap().clone()
    }

    /// Waits until none of these is PENDING; answers them.
    async fn settled(&self, path: &str, who: (&str, &str)) -> Vec<Value> {
        for _ in 0..1_000 {
            let items = self.items(path, who).await;
            if items.iter().all(|item| item["status"] != "PENDING") {
                return items;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("still pending: {:?}", self.items(path, who).await);
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let files = std::fs::read_dir(self.dir.path().join(folder)).into_iter().flatten().flatten();
        files.map(|file| file.file_name().into_string().unwrap()).collect()
    }
}

/// Starts a service of that name in a state directory.
async fn start(name: &str, builder: Builder, state: &TempDir, env: &[(&str, &str)]) -> Running {
    let store = format!("sqlite:{}/services/{name}/{name}.db", state.path().display());
    let env = env.iter().copied().chain([("STORE_URL", store.as_str())]);
    builder.build_with(Config::from_pairs(name, env).unwrap()).start().await.unwrap()
}

/// An order's events, with every field that its schema has.
fn order(topic: &str) -> Value {
    let total = json!({"amount": 2598, "currency": "EUR"});
    let items = json!([{"productId": "whisk", "quantity": 2, "name": "Whisk", "price": total}]);
    match topic {
        "order.confirmed" => {
            json!({"id": "o1", "userId": "ada", "version": 2, "items": items, "total": total, "paymentId": "p1"})
        }
        "order.rejected" => {
            json!({"id": "o1", "userId": "ada", "version": 2, "reason": "out-of-stock", "total": total})
        }
        "order.cancelled" => json!({"id": "o1", "userId": "ada", "version": 3, "total": total}),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn one_mail_for_each_outcome_whatever_comes_twice() {
    let rig = Rig::start().await;
    for (id, topic) in [
        ("e1", "order.confirmed"),
        ("e1", "order.confirmed"),
        ("e2", "order.cancelled"),
        // The same outcome in another event.
        ("e3", "order.confirmed"),
    ] {
        assert_eq!(rig.hear(id, topic, &order(topic)).await, 200);
    }
    let ada = ("ada", "customer");
    let items = rig.settled("/notifications?orderId=o1", ada).await;
    let shown: Vec<_> = items.iter().map(|i| (&i["status"], &i["channel"], &i["to"], &i["subject"])).collect();
    let (sent, email, to) = (json!("SENT"), json!("email"), json!("ada@shop.test"));
    let subjects = [json!("Your order is confirmed"), json!("Your order is cancelled")];
    assert_eq!(shown, [(&sent, &email, &to, &subjects[0]), (&sent, &email, &to, &subjects[1])]);
    assert!(items[0]["sentAt"].as_str().unwrap().ends_with('Z'));
    assert!(items[0]["text"].as_str().unwrap().contains("25.98 EUR"), "{}", items[0]["text"]);

    let id = items[0]["id"].as_str().unwrap();
    let mail = std::fs::read_to_string(rig.dir.path().join(format!("mail/{id}.eml"))).unwrap();
    for part in ["To: ada@shop.test\r\n", &format!("Message-ID: <{id}@"), "\r\n\r\nHello Ada,\r\n\r\nYour order o1 is"]
    {
        assert!(mail.contains(part), "{part} in {mail}");
    }
    assert_eq!(rig.files("mail").len(), 2, "no part of a file is left: {:?}", rig.files("mail"));

    assert_eq!(rig.items("/notifications", ada).await, items);
    assert_eq!(rig.items("/notifications?orderId=o1", ("boss", "staff")).await, items);
    assert_eq!(rig.items("/notifications?orderId=o1", ("eve", "customer")).await, Vec::<Value>::new());
    assert_eq!(rig.items("/notifications?orderId=o2", ada).await, Vec::<Value>::new());
    assert_eq!(rig.call("GET", "/notifications?orderId=o1", None, &Value::Null).await.0, 401);

    let (_, ledger) = rig.call("GET", "/ledger", None, &Value::Null).await;
    assert_eq!(
        ledger["heard"],
        json!([
            {"orderId": "o1", "type": "order.confirmed", "version": 2},
            {"orderId": "o1", "type": "order.cancelled", "version": 3},
            {"orderId": "o1", "type": "order.confirmed", "version": 2},
        ])
    );
    let kept = ledger["notifications"].as_array().unwrap();
    assert_eq!(kept.iter().map(|n| n["outcome"].as_str().unwrap()).collect::<Vec<_>>(), ["CONFIRMED", "CANCELLED"]);
    assert_eq!(rig.call("GET", "/ledger", Some(ada), &Value::Null).await.0, 404, "it is internal");
}

#[tokio::test]
async fn what_cannot_be_sent_waits_also_over_a_restart() {
    let rig = Rig::start().await;
    rig.users_up.store(false, Ordering::SeqCst);
    assert_eq!(rig.hear("e1", "order.rejected", &order("order.rejected")).await, 200);
    let tried = rig.notifications.context().store().wait_for(Duration::from_secs(10), |db| {
        let error = db.query_row("SELECT error FROM notifications", [], |row| row.get::<_, Option<String>>(0))?;
        Ok(error)
    });
    assert!(tried.await.unwrap().unwrap().contains("users"), "it was tried, and says why not");

    let rig = rig.restart().await;
    assert_eq!(rig.items("/notifications?orderId=o1", ("ada", "customer")).await[0]["status"], "PENDING");
    rig.users_up.store(true, Ordering::SeqCst);
    let items = rig.settled("/notifications?orderId=o1", ("ada", "customer")).await;
    assert_eq!((items.len(), &items[0]["status"], rig.files("mail").len()), (1, &json!("SENT"), 1));
    assert!(items[0]["text"].as_str().unwrap().contains("in stock"));

    let mut nobodys = order("order.cancelled");
    nobodys["userId"] = json!("nobody");
    nobodys["id"] = json!("o2");
    assert_eq!(rig.hear("e2", "order.cancelled", &nobodys).await, 200);
    let items = rig.settled("/notifications?orderId=o2", ("boss", "staff")).await;
    assert_eq!(items[0]["status"], "FAILED", "users knows no such user");
}

#[tokio::test]
async fn staff_writes_to_whom_it_likes() {
    let rig = Rig::start().await;
    let staff = Some(("boss", "staff"));
    let mail = json!({"to": "eve@shop.test", "channel": "email", "subject": "Hello", "text": "Long time\nno see."});
    let sms = json!({"to": "+49 123", "channel": "sms", "text": "Hi"});
    for (who, status) in [(None, 401), (Some(("ada", "customer")), 403)] {
        assert_eq!(rig.call("POST", "/notifications", who, &mail).await.0, status);
    }
    let mut ids = vec![];
    for letter in [&mail, &sms] {
        let (status, accepted) = rig.call("POST", "/notifications", staff, letter).await;
        assert_eq!(status, 202, "{accepted}");
        ids.push(accepted["id"].as_str().unwrap().to_owned());
    }
    let items = rig.settled("/notifications", ("boss", "staff")).await;
    let shown: Vec<_> =
        items.iter().map(|i| (i["to"].as_str(), i["status"].as_str(), i["orderId"].is_null())).collect();
    assert_eq!(shown, [(Some("eve@shop.test"), Some("SENT"), true), (Some("+49 123"), Some("SENT"), true)]);
    let text = std::fs::read_to_string(rig.dir.path().join(format!("sms/{}.txt", ids[1]))).unwrap();
    assert_eq!(text, "To: +49 123\n\nHi\n");
    assert_eq!(rig.files("mail"), [format!("{}.eml", ids[0])]);

    for (field, bad) in [
        ("channel", json!({"to": "x", "channel": "pigeon", "text": "hi"})),
        ("to", json!({"to": "x", "channel": "email", "text": "hi"})),
        ("to", json!({"to": "a@b\r\nBcc: c@d", "channel": "email", "text": "hi"})),
        ("to", json!({"to": "a@b.c", "channel": "sms", "text": "hi"})),
        ("subject", json!({"to": "a@b.c", "channel": "email", "subject": "a\nBcc: c@d", "text": "hi"})),
        ("text", json!({"to": "a@b.c", "channel": "email", "text": " "})),
        ("text", json!({"to": "a@b.c", "channel": "email", "text": "x".repeat(999)})),
        ("text", json!({"to": "a@b.c", "channel": "email"})),
    ] {
        let (status, refused) = rig.call("POST", "/notifications", staff, &bad).await;
        assert_eq!((status, &refused["errors"][0]["field"]), (400, &json!(field)), "{bad}: {refused}");
    }
}

#[tokio::test]
async fn workers_share_and_a_dead_ones_message_is_due_again() {
    let (dir, clock) = (TempDir::new().unwrap(), ManualClock::at(SystemClock.now()));
    // Without its sender: the test is the worker.
    let bare = Service::builder("notifications").migrations(MIGRATIONS).clock(clock.clone());
    let running = start("notifications", bare, &dir, &[]).await;
    let store = running.context().store();
    let claim = async |most| {
        let claimed = store.write(move |tx| queue::claim(tx, most)).await.unwrap();
        claimed.into_iter().map(|message| message.text).collect::<Vec<_>>()
    };
    for text in ["one", "two", "three"] {
        let message = move |tx: &ballet_service::Tx<'_>| {
            let (channel, recipient) = (Channel::Sms, Some("+49123"));
            queue::put(tx, &NewMessage { order: None, channel, recipient, subject: None, text })
        };
        store.write(message).await.unwrap();
        clock.advance(Duration::from_millis(1));
    }
    let first = claim(2).await;
    assert_eq!((first.len(), claim(2).await.len(), claim(2).await.len()), (2, 1, 0), "nobody gets what another has");

    clock.advance(Duration::from_secs(29));
    assert_eq!(claim(9).await.len(), 0);
    clock.advance(Duration::from_secs(2));
    let again = store.write(|tx| queue::claim(tx, 9)).await.unwrap();
    assert_eq!(again.iter().map(|message| message.attempts).collect::<Vec<_>>(), [2, 2, 2]);

    let [sent, failing, late] = <[_; 3]>::try_from(again).map_err(|_| "three").unwrap();
    store.write(move |tx| queue::sent(tx, &sent.id, "+49123")).await.unwrap();
    let (tried, given_up) = (failing.clone(), late.clone());
    store.write(move |tx| queue::again(tx, &tried, "no network")).await.unwrap();
    clock.advance(Duration::from_millis(399));
    assert_eq!(claim(9).await.len(), 0);
    clock.advance(Duration::from_millis(1));
    assert_eq!(claim(9).await, [failing.text]);
    clock.advance(Duration::from_secs(3 * 86_400));
    store.write(move |tx| queue::again(tx, &given_up, "still no network")).await.unwrap();
    let status = store.read(move |db| {
        Ok(db.query_row("SELECT status FROM notifications WHERE id = ?1", [late.id], |row| row.get::<_, String>(0))?)
    });
    assert_eq!(status.await.unwrap(), "FAILED");
}

#[tokio::test]
async fn what_is_read_of_events_is_declared_in_the_contracts() {
    fn reads<T: serde::de::DeserializeOwned>(topic: &str) {
        let path = format!("{}/../contracts/{topic}.json", env!("CARGO_MANIFEST_DIR"));
        let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let full = order(topic);
        jsonschema::validate(&schema, &full).unwrap_or_else(|error| panic!("{topic}: {error}"));
        // A producer may leave out whatever is not required, so this must be enough.
        let mut least = full;
        let required = schema["required"].as_array().unwrap();
        least.as_object_mut().unwrap().retain(|field, _| required.iter().any(|name| name == field));
        jsonschema::validate(&schema, &least).unwrap_or_else(|error| panic!("{topic}: {error}"));
        let event = Event::new(topic.parse().unwrap(), "orders", least);
        assert!(events::read::<T>(&event).is_ok(), "{topic} has all that is read");
    }
    reads::<events::Confirmed>("order.confirmed");
    reads::<events::Rejected>("order.rejected");
    reads::<events::Cancelled>("order.cancelled");

    let rig = Rig::start().await;
    assert_eq!(rig.hear("e1", "order.confirmed", &json!({"id": "o1"})).await, 400, "a broken event is refused");
    assert_eq!(rig.hear("e2", "order.placed", &json!({"id": "o1"})).await, 404, "nobody here wants it");
    assert_eq!(rig.items("/notifications", ("boss", "staff")).await, Vec::<Value>::new());
}
