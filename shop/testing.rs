//! What the services' tests share: a service in a directory of its own, tokens, calls, contracts.
//!
//! Each service takes it in with `#[path]`; not every one uses all of it.
#![expect(dead_code, reason = "each service uses its part")]

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use ballet_service::axum::Router;
use ballet_service::axum::body::{Body, Bytes};
use ballet_service::axum::http::{HeaderMap, Request};
use ballet_service::{Builder, Config, Event, Running};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A service under test.
pub(crate) struct Shop {
    pub(crate) running: Running,
    directory: TempDir,
    key: EncodingKey,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Body>,
}

/// A call under construction.
pub(crate) struct Call<'a> {
    shop: &'a Shop,
    request: Request<Body>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
}

impl Shop {
    /// Starts it on a free port, with further variables in its environment.
    pub(crate) async fn start(name: &str, builder: Builder, env: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        let store = format!("sqlite:{}/store.db", directory.path().display());
        let config = Config::from_pairs(name, env.iter().copied().chain([("STORE_URL", store.as_str())])).unwrap();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let key = EncodingKey::from_ec_der(pkcs8.as_ref());
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some("test".into());
        let keys = json!({"keys": [jwk]});
        let running = builder.own_keys(move |_| Ok(keys.clone())).build_with(config).start().await.unwrap();
        Self { running, directory, key, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    pub(crate) fn call(&self, method: &str, path: &str) -> Call<'_> {
        let uri = format!("http://{}{path}", self.running.address());
        Call { shop: self, request: Request::builder().method(method).uri(uri).body(Body::empty()).unwrap() }
    }

    pub(crate) fn get(&self, path: &str) -> Call<'_> {
        self.call("GET", path)
    }

    pub(crate) fn post(&self, path: &str) -> Call<'_> {
        self.call("POST", path)
    }

    /// Delivers an event, as the bus does.
    pub(crate) async fn deliver(&self, topic: &str, source: &str, subject: &str, data: Value) -> Answer {
        let event = Event::new(topic.parse().unwrap(), source, data).subject(subject);
        let mut call = self.post("/events").service("bus").json(event.to_json());
        call.request.headers_mut().insert("content-type", Event::MEDIA_TYPE.parse().unwrap());
        call.send().await
    }

    /// What it has told so far: topics and data, in order.
    pub(crate) async fn told(&self) -> Vec<(String, Value)> {
        let read = self.running.context().store().read(|db| {
            let mut select = db.prepare("SELECT topic, event FROM outbox ORDER BY id")?;
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<Vec<(String, String)>, _>>()?)
        });
        let events = read.await.unwrap().into_iter();
        events.map(|(topic, event)| (topic, serde_json::from_str::<Value>(&event).unwrap()["data"].take())).collect()
    }

    /// The bytes of every file that it keeps.
    pub(crate) fn files(&self) -> Vec<u8> {
        let files = std::fs::read_dir(self.directory.path()).unwrap();
        files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    }

    fn token(&self, user: &str, role: &str) -> String {
        let header = Header { kid: Some("test".into()), ..Header::new(Algorithm::ES256) };
        let expires = jsonwebtoken::get_current_timestamp() + 60;
        let claims = json!({"sub": user, "iss": "users", "aud": "shop", "exp": expires, "roles": [role]});
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }
}

impl Call<'_> {
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.request.headers_mut().insert(name, value.parse().unwrap());
        self
    }

    /// As a customer, through the gateway.
    pub(crate) fn user(self, id: &str) -> Self {
        let token = self.shop.token(id, "customer");
        self.header("authorization", &format!("Bearer {token}")).service("gateway")
    }

    /// As a member of staff, through the gateway.
    pub(crate) fn staff(self) -> Self {
        let token = self.shop.token("staff", "staff");
        self.header("authorization", &format!("Bearer {token}")).service("gateway")
    }

    /// As a service or a part of the platform.
    pub(crate) fn service(self, name: &str) -> Self {
        self.header("ballet-caller", name)
    }

    /// As a step of a saga.
    pub(crate) fn step(self, key: &str) -> Self {
        self.service("orchestrator").header("idempotency-key", key)
    }

    pub(crate) fn json(mut self, body: Value) -> Self {
        *self.request.body_mut() = Body::from(body.to_string());
        self.header("content-type", "application/json")
    }

    pub(crate) async fn send(self) -> Answer {
        let what = format!("{} {}", self.request.method(), self.request.uri().path());
        let call = async {
            let (head, body) = self.shop.client.request(self.request).await.unwrap().into_parts();
            (head, body.collect().await.unwrap().to_bytes())
        };
        let answered = tokio::time::timeout(Duration::from_secs(20), call).await;
        let (head, body): (_, Bytes) = answered.unwrap_or_else(|_| panic!("{what}: no answer"));
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Answer { status: head.status.as_u16(), headers: head.headers, json }
    }
}

impl Answer {
    /// Panics unless it has this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.json);
        self
    }

    /// Panics unless it is a problem document with this status and code.
    #[track_caller]
    pub(crate) fn problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.json["code"].as_str()), (status, Some(code)), "{}", self.json);
        self
    }

    /// The fields that are said to be wrong.
    pub(crate) fn fields(&self) -> Vec<&str> {
        self.json["errors"].as_array().into_iter().flatten().filter_map(|error| error["field"].as_str()).collect()
    }
}

/// The schema of a topic.
pub(crate) fn contract(topic: &str) -> Value {
    let file = format!("{}/../contracts/{topic}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap()
}

/// Panics unless every event is as the contract of its topic says.
#[track_caller]
pub(crate) fn conform(events: &[(String, Value)]) {
    for (topic, data) in events {
        let validator = jsonschema::validator_for(&contract(topic)).unwrap();
        if let Err(error) = validator.validate(data) {
            panic!("{topic} breaks its contract: {error}\n{data}");
        }
    }
}

/// Panics unless the contract of the topic promises these fields.
#[track_caller]
pub(crate) fn promised(topic: &str, fields: &[&str]) {
    let contract = contract(topic);
    for field in fields {
        let required = contract["required"].as_array().unwrap();
        assert!(required.contains(&json!(field)), "{topic} does not promise `{field}`");
    }
}

/// Another service that answers so; its address.
pub(crate) async fn other(routes: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { ballet_service::axum::serve(listener, routes).await });
    url
}
