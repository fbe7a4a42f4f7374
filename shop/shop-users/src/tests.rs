//! The rows of the shop's contract that belong to users, over the wire.

use ballet_service::Clock;
use ballet_service::{Config, ManualClock, Running, Service, SystemClock};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::keys::{KEY_AFTERLIFE, TOKEN_LIFE};
use crate::service;

const ADA: &str = "00000000-0000-7000-8000-000000000ada";
const PASSWORD: &str = "correct-horse-battery";

/// The service, and another one that calls it.
struct Rig {
    users: Running,
    caller: Running,
    dir: TempDir,
}

struct Answer {
    status: u16,
    json: Value,
    location: Option<String>,
}

impl Rig {
    async fn start(clock: impl Clock) -> Self {
        let dir = TempDir::new().unwrap();
        let users = start(service().clock(clock), &dir, &[]).await;
        let url = format!("http://{}", users.address());
        let caller = start(Service::builder("caller"), &dir, &[("USERS_URL", &url)]).await;
        Self { users, caller, dir }
    }

    async fn call(&self, method: &str, path: &str, token: Option<&str>, body: Value) -> Answer {
        let method = method.parse().unwrap();
        let mut call = self.caller.context().service("users").call(method, path).json(&body);
        if let Some(token) = token {
            call = call.bearer(token);
        }
        let answer = call.send().await.unwrap();
        Answer {
            status: answer.status.as_u16(),
            json: answer.json().unwrap_or_default(),
            location: answer.header("location").map(str::to_owned),
        }
    }

    async fn log_in(&self, email: &str, password: &str) -> Answer {
        self.call("POST", "/sessions", None, json!({"email": email, "password": password})).await
    }

    async fn token(&self, email: &str) -> String {
        let answer = self.log_in(email, PASSWORD).await;
        assert_eq!(answer.status, 201, "{}", answer.json);
        answer.json["token"].as_str().unwrap().to_owned()
    }

    async fn keys(&self) -> Vec<Value> {
        let answer = self.call("GET", "/.well-known/jwks.json", None, Value::Null).await;
        answer.json["keys"].as_array().unwrap().clone()
    }

    /// Every event in the outbox: topic and data.
    async fn events(&self) -> Vec<(String, Value)> {
        let read = self.users.context().store().read(|db| {
            let mut rows = db.prepare("SELECT topic, event FROM outbox ORDER BY id")?;
            let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
            Ok(rows.collect::<Result<Vec<(String, String)>, _>>()?)
        });
        let rows = read.await.unwrap();
        rows.into_iter()
            .map(|(topic, event)| (topic, serde_json::from_str::<Value>(&event).unwrap()["data"].clone()))
            .collect()
    }
}

async fn start(builder: ballet_service::Builder, dir: &TempDir, env: &[(&str, &str)]) -> Running {
    let name = if env.is_empty() { "users" } else { "caller" };
    let store = format!("sqlite:{}/{name}.db", dir.path().display());
    let env = env.iter().copied().chain([("STORE_URL", store.as_str())]);
    builder.build_with(Config::from_pairs(name, env).unwrap()).start().await.unwrap()
}

fn fields(answer: &Answer) -> Vec<&str> {
    answer.json["errors"].as_array().into_iter().flatten().filter_map(|error| error["field"].as_str()).collect()
}

#[tokio::test]
async fn a_repeated_registration_is_answered_and_leaves_no_trace_of_the_password() {
    let rig = Rig::start(SystemClock).await;
    let send = |name: &str, password: &str| {
        let body = json!({"email": "grace@shop.test", "name": name, "password": password});
        rig.caller.context().service("users").post("/users").json(&body).header("idempotency-key", "k1").send()
    };
    let first = send("Grace", "longer-than-ten").await.unwrap();
    let again = send("Grace", "longer-than-ten").await.unwrap();
    assert_eq!((first.status.as_u16(), again.status.as_u16()), (201, 201));
    assert_eq!((again.header("idempotency-replayed"), &again.body), (Some("true"), &first.body));
    assert_eq!(send("Hopper", "longer-than-ten").await.unwrap().status, 422);
    // If what is kept told this password from that one, whoever has the file could guess it.
    let other = send("Grace", "another-password").await.unwrap();
    assert_eq!((other.status.as_u16(), other.header("idempotency-replayed")), (201, Some("true")));
    assert_eq!(rig.log_in("grace@shop.test", "longer-than-ten").await.status, 201);
    assert_eq!(rig.log_in("grace@shop.test", "another-password").await.status, 401);
}

#[tokio::test]
async fn somebody_registers_logs_in_and_changes_their_profile() {
    let rig = Rig::start(SystemClock).await;
    let grace =
        json!({"email": "Grace@Shop.Test", "name": "Grace", "password": "longer-than-ten", "phone": "+4912345"});
    let made = rig.call("POST", "/users", None, grace.clone()).await;
    assert_eq!(made.status, 201, "{}", made.json);
    let id = made.json["id"].as_str().unwrap().to_owned();
    let path = format!("/users/{id}");
    assert_eq!(made.json, json!({"id": id, "email": "Grace@Shop.Test", "name": "Grace"}));
    assert_eq!(made.location.as_deref(), Some(path.as_str()));

    let mut again = grace;
    again["email"] = json!("grace@sHop.test");
    let known = rig.call("POST", "/users", None, again).await;
    assert_eq!((known.status, &known.json["code"]), (409, &json!("known-email")));

    let session = rig.log_in("GRACE@SHOP.TEST", "longer-than-ten").await;
    assert_eq!((session.status, &session.json["user"]), (201, &json!({"id": id, "name": "Grace"})));
    assert!(session.json["expiresAt"].as_str().unwrap().ends_with('Z'));
    let token = session.json["token"].as_str();

    let change = rig.call("PUT", &path, token, json!({"name": "Grace H."})).await;
    assert_eq!(change.status, 200, "{}", change.json);
    let expected = json!({"id": id, "email": "Grace@Shop.Test", "name": "Grace H.", "phone": null});
    assert_eq!(rig.call("GET", &path, token, Value::Null).await.json, expected);
    rig.users.context().rebuild("profiles").await.unwrap();
    assert_eq!(rig.call("GET", &path, token, Value::Null).await.json, expected, "a rebuilt projection says the same");

    let contact = rig.call("GET", &format!("/contacts/{id}"), None, Value::Null).await;
    assert_eq!(contact.json, json!({"email": "Grace@Shop.Test", "phone": null, "name": "Grace H."}));
}

#[tokio::test]
async fn who_may_see_and_change_whom() {
    let rig = Rig::start(SystemClock).await;
    let (ada, staff) = (rig.token("ada@shop.test").await, rig.token("staff@shop.test").await);
    let staff_id = rig.log_in("staff@shop.test", PASSWORD).await.json["user"]["id"].as_str().unwrap().to_owned();
    let change = json!({"name": "X"});
    for (method, path, token, status) in [
        ("GET", format!("/users/{ADA}"), Some(&ada), 200),
        ("GET", format!("/users/{ADA}"), Some(&staff), 200),
        ("GET", format!("/users/{ADA}"), None, 401),
        ("GET", format!("/users/{staff_id}"), Some(&ada), 403),
        ("GET", "/users/nobody".into(), Some(&ada), 403),
        ("GET", "/users/nobody".into(), Some(&staff), 404),
        ("PUT", format!("/users/{ADA}"), Some(&staff), 403),
        ("PUT", format!("/users/{ADA}"), None, 401),
        // Internal endpoints are not for people.
        ("GET", format!("/contacts/{ADA}"), Some(&staff), 404),
        ("POST", "/keys/rotate".into(), Some(&staff), 404),
        ("GET", "/contacts/nobody".into(), None, 404),
    ] {
        let answer = rig.call(method, &path, token.map(String::as_str), change.clone()).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.json);
    }
}

#[tokio::test]
async fn bad_input_is_refused_field_by_field() {
    let rig = Rig::start(SystemClock).await;
    let long = "x".repeat(201);
    for (body, expected) in [
        (json!({"email": "nobody", "name": " ", "password": "short", "phone": "call me"}), "email name password phone"),
        (json!({"email": "a@b@c", "name": long, "password": long}), "email name password"),
        (json!({"email": "a@b\r\nBcc: c@d", "name": "a\nb", "password": "longer-than-ten"}), "email name"),
        (json!({"email": "a@b.c", "password": "longer-than-ten"}), "name"),
        (json!({"email": 7, "name": "N", "password": "longer-than-ten"}), "email"),
        (json!([]), ""),
    ] {
        let answer = rig.call("POST", "/users", None, body.clone()).await;
        assert_eq!((answer.status, fields(&answer).join(" ").as_str()), (400, expected), "{body}: {}", answer.json);
    }
    let ada = rig.token("ada@shop.test").await;
    let answer = rig.call("PUT", &format!("/users/{ADA}"), Some(&ada), json!({"name": "", "phone": "1"})).await;
    assert_eq!((answer.status, fields(&answer)), (400, vec!["name", "phone"]), "{}", answer.json);

    let wrong = rig.log_in("ada@shop.test", "not-the-password").await;
    let unknown = rig.log_in("nobody@shop.test", PASSWORD).await;
    assert_eq!((wrong.status, unknown.status), (401, 401));
    assert_eq!((&wrong.json["detail"], &wrong.json["code"]), (&unknown.json["detail"], &json!("wrong-credentials")));
    assert_eq!(fields(&rig.call("POST", "/sessions", None, json!({"email": "a@b"})).await), ["password"]);
}

#[tokio::test]
async fn keys_rotate_without_a_restart_and_survive_one() {
    let clock = ManualClock::at(SystemClock.now());
    let rig = Rig::start(clock.clone()).await;
    let old = rig.token("ada@shop.test").await;
    let before = rig.keys().await;
    assert_eq!(before.len(), 1);
    assert_eq!(
        (&before[0]["kty"], &before[0]["crv"], &before[0]["alg"]),
        (&json!("EC"), &json!("P-256"), &json!("ES256"))
    );
    assert!(before[0].get("d").is_none(), "the private key stays home");

    let rotated = rig.call("POST", "/keys/rotate", None, json!({})).await;
    assert_eq!(rotated.status, 200, "{}", rotated.json);
    let both = rig.keys().await;
    assert_eq!((both.len(), &both[0]["kid"], &both[1]), (2, &rotated.json["kid"], &before[0]));
    let new = rig.token("ada@shop.test").await;
    let path = format!("/users/{ADA}");
    for token in [&old, &new] {
        assert_eq!(rig.call("GET", &path, Some(token), Value::Null).await.status, 200);
    }

    // A second instance on the same store, as after a restart, has the same keys and makes none.
    let second = start(service().clock(clock.clone()), &rig.dir, &[]).await;
    let url = format!("http://{}", second.address());
    let caller = start(Service::builder("caller"), &rig.dir, &[("USERS_URL", &url)]).await;
    let answer = caller.context().service("users").get("/.well-known/jwks.json").fetch::<Value>().await.unwrap();
    assert_eq!(answer.unwrap()["keys"], json!(both));

    clock.advance(TOKEN_LIFE);
    assert_eq!(rig.keys().await.len(), 2, "its last token may still be good");
    clock.advance(KEY_AFTERLIFE - TOKEN_LIFE);
    assert_eq!(rig.keys().await, both[..1]);
}

#[tokio::test]
async fn the_first_key_is_made_once_without_seed_data_too() {
    let dir = TempDir::new().unwrap();
    let users = start(service(), &dir, &[("SEED_DATA", "off")]).await;
    let url = format!("http://{}", users.address());
    let rig = Rig { users, caller: start(Service::builder("caller"), &dir, &[("USERS_URL", &url)]).await, dir };
    let (one, two) = tokio::join!(rig.keys(), rig.keys());
    assert_eq!((one.len(), &one), (1, &two));
    assert_eq!(rig.log_in("ada@shop.test", PASSWORD).await.status, 401);
}

#[tokio::test]
async fn what_is_published_keeps_the_contracts() {
    let rig = Rig::start(SystemClock).await;
    let ada = rig.token("ada@shop.test").await;
    let change = rig.call("PUT", &format!("/users/{ADA}"), Some(&ada), json!({"name": "Ada L.", "phone": ""})).await;
    assert_eq!(change.status, 200, "{}", change.json);
    let events = rig.events().await;
    let topics: Vec<&str> = events.iter().map(|(topic, _)| topic.as_str()).collect();
    assert_eq!(topics, ["user.registered", "user.registered", "user.updated"]);
    for (topic, data) in &events {
        let path = format!("{}/../contracts/{topic}.json", env!("CARGO_MANIFEST_DIR"));
        let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        jsonschema::validate(&schema, data).unwrap_or_else(|error| panic!("{topic}: {error}"));
    }
    assert_eq!((&events[2].1["version"], &events[2].1["phone"]), (&json!(2), &Value::Null));
}
