//! The native face.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails as they do")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use ballet_core::SystemClock;
use ballet_registry::{Engine, Handle, HttpProbe, http};
use ballet_store::Memory;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;

async fn fresh() -> Handle {
    let (engine, handle) =
        Engine::open(Arc::new(Memory::default()), Arc::new(SystemClock), Arc::new(HttpProbe)).await.unwrap();
    tokio::spawn(engine.run());
    handle
}

async fn ask(registry: &Handle, method: &str, path: &str, body: impl Into<Body>) -> (u16, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .body(body.into())
        .unwrap();
    let response = http::router(registry.clone()).oneshot(request).await.unwrap();
    let (status, kind) = (response.status(), response.headers().get("content-type").cloned());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let expected = match status {
        StatusCode::NO_CONTENT => None,
        _ if status.is_success() => Some("application/json"),
        _ => Some("application/problem+json"),
    };
    assert_eq!(kind.as_ref().and_then(|k| k.to_str().ok()), expected, "{method} {path}");
    (status.as_u16(), if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() })
}

const ONE: &str = "/ballet/v1/services/orders/orders-1";

#[tokio::test(start_paused = true)]
async fn an_instance_comes_beats_drains_and_goes() {
    let registry = fresh().await;
    let body = r#"{"address": "127.0.0.1:8080", "version": "v2", "metadata": {"zone": "a"}, "lease": "5s"}"#;
    let instance = json!({
        "id": "orders-1", "service": "orders", "address": "127.0.0.1:8080", "state": "up", "version": "v2", "metadata": {"zone": "a"},
    });
    assert_eq!(ask(&registry, "PUT", ONE, body).await, (201, instance.clone()));
    assert_eq!(ask(&registry, "PUT", ONE, body).await, (200, instance.clone()));
    let (_, shown) = ask(&registry, "GET", "/ballet/v1/services/orders", "").await;
    assert_eq!(shown["all"], json!([instance]));
    sleep(Duration::from_secs(4)).await;
    assert_eq!(ask(&registry, "POST", &format!("{ONE}/heartbeat"), "").await, (204, Value::Null));
    sleep(Duration::from_secs(4)).await;

    let (_, list) = ask(&registry, "GET", "/ballet/v1/services", "").await;
    let version = list["services"][0]["version"].clone();
    assert_eq!(
        list,
        json!({"services": [{"name": "orders", "version": version, "starting": 0, "up": 1, "draining": 0, "down": 0}]})
    );
    assert_eq!(ask(&registry, "PUT", &format!("{ONE}/state"), r#"{"state": "draining"}"#).await.0, 204);
    let (_, shown) = ask(&registry, "GET", "/ballet/v1/services/orders", "").await;
    assert_eq!(shown["all"][0]["state"], "draining");
    assert_eq!(ask(&registry, "DELETE", ONE, "").await, (204, Value::Null));
    assert_eq!(ask(&registry, "DELETE", ONE, "").await.0, 404);
    assert_eq!(ask(&registry, "GET", "/ballet/v1/services/nobody", "").await, (200, json!({"version": 0, "all": []})));
}

#[tokio::test(start_paused = true)]
async fn a_blocking_question_waits_for_news_or_its_time() {
    let registry = fresh().await;
    let began = Instant::now();
    let waiting = tokio::spawn({
        let registry = registry.clone();
        async move { ask(&registry, "GET", "/ballet/v1/services/orders?seen=0&wait=30s", "").await }
    });
    sleep(Duration::from_secs(3)).await;
    ask(&registry, "PUT", ONE, r#"{"address": "127.0.0.1:8080"}"#).await;
    let (_, news) = waiting.await.unwrap();
    assert_eq!((news["all"][0]["id"].clone(), began.elapsed()), (json!("orders-1"), Duration::from_secs(3)));

    let began = Instant::now();
    let path = format!("/ballet/v1/services/orders?seen={}&wait=500ms", news["version"]);
    assert_eq!(ask(&registry, "GET", &path, "").await, (200, news));
    assert_eq!((began.elapsed(), registry.stats().watches), (Duration::from_millis(500), 0));
    assert_eq!(
        ask(&registry, "GET", "/ballet/v1/services/orders?seen=1", "").await.0,
        200,
        "an old version is answered at once"
    );
    assert_eq!(began.elapsed(), Duration::from_millis(500));
}

#[tokio::test]
async fn bad_input_is_named() {
    let registry = fresh().await;
    let large = format!(r#"{{"address": "127.0.0.1:1", "version": "{}"}}"#, "x".repeat(70_000));
    let fat = format!(r#"{{"address": "127.0.0.1:1", "version": "{}"}}"#, "x".repeat(9_000));
    let table = [
        ("PUT", ONE, "", 400, "RG002", "body"),
        ("PUT", ONE, "{", 400, "RG002", "body"),
        ("PUT", ONE, r#"{"address": "127.0.0.1:1", "adress": 1}"#, 400, "RG002", "body"),
        ("PUT", ONE, r#"{"address": "127.0.0.1:1", "state": "fine"}"#, 400, "RG002", "body"),
        ("PUT", ONE, &large, 400, "RG002", "body"),
        ("PUT", ONE, &fat, 400, "RG002", "metadata"),
        ("PUT", ONE, r#"{"address": "localhost"}"#, 400, "RG002", "address"),
        ("PUT", ONE, r#"{"address": "0.0.0.0:80"}"#, 400, "RG002", "address"),
        ("PUT", ONE, r#"{"address": "127.0.0.1:0"}"#, 400, "RG002", "address"),
        ("PUT", ONE, r#"{"address": "127.0.0.1:1", "lease": "30"}"#, 400, "RG002", "lease"),
        ("PUT", ONE, r#"{"address": "127.0.0.1:1", "lease": "99999999999999999999s"}"#, 400, "RG002", "lease"),
        ("PUT", ONE, r#"{"address": "127.0.0.1:1", "lease": "10ms"}"#, 400, "RG002", "lease"),
        ("PUT", ONE, r#"{"address": "127.0.0.1:1", "check": {"path": "readyz"}}"#, 400, "RG002", "check.path"),
        ("PUT", ONE, r#"{"address": "127.0.0.1:1", "check": {"path": "/a b"}}"#, 400, "RG002", "check.path"),
        ("PUT", ONE, r#"{"address": "127.0.0.1:1", "check": {"interval": "1ms"}}"#, 400, "RG002", "check.interval"),
        ("PUT", ONE, r#"{"address": "127.0.0.1:1", "check": {"timeout": "0s"}}"#, 400, "RG002", "check.timeout"),
        ("PUT", ONE, r#"{"address": "127.0.0.1:1", "check": {"failures": 0}}"#, 400, "RG002", "check.failures"),
        ("PUT", "/ballet/v1/services/Orders/1", r#"{"address": "127.0.0.1:1"}"#, 400, "RG002", "service"),
        ("PUT", "/ballet/v1/services/orders/a%2Fb", r#"{"address": "127.0.0.1:1"}"#, 400, "RG002", "instance"),
        ("GET", "/ballet/v1/services/a.b.c", "", 400, "RG002", "service"),
        ("GET", "/ballet/v1/services/orders?seen=x", "", 400, "RG002", "seen"),
        ("GET", "/ballet/v1/services/orders?seen=1&wait=soon", "", 400, "RG002", "wait"),
        ("GET", "/ballet/v1/services/orders?index=1", "", 400, "RG002", "query"),
        ("POST", "/ballet/v1/services/orders/orders-1/heartbeat", "", 404, "RG003", ""),
        ("PUT", "/ballet/v1/services/orders/orders-1/state", r#"{"state": "up"}"#, 404, "RG003", ""),
        ("DELETE", ONE, "", 404, "RG003", ""),
        ("POST", "/ballet/v1/services", "", 405, "RG006", ""),
        ("PATCH", ONE, "", 405, "RG006", ""),
    ];
    for (method, path, body, status, code, field) in table {
        let (got, problem) = ask(&registry, method, path, body.to_owned()).await;
        let case = format!("{method} {path} {body:.80}: {problem}");
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{case}");
        assert_eq!(problem["errors"][0]["field"].as_str().unwrap_or_default(), field, "{case}");
        assert_eq!(problem["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736", "{case}");
        assert!(ballet_registry::CODES.iter().any(|row| row.code.0 == code));
    }
    assert!(registry.list().is_empty());
    registry.stop().await;
    assert_eq!(ask(&registry, "GET", "/ballet/v1/services/orders", "").await.0, 503);
}

/// Answers the first request with 503 and the others with 204; counts them.
async fn serve(listener: TcpListener, asked: Arc<AtomicU32>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let read = stream.read(&mut request).await.unwrap();
        assert!(request[..read].starts_with(b"GET /healthz?deep=1 HTTP/1.1\r\n"), "it asks as registered");
        let status = if asked.fetch_add(1, Ordering::Relaxed) == 0 { 503 } else { 204 };
        let answer = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn a_check_asks_over_the_wire() {
    let (registry, asked) = (fresh().await, Arc::new(AtomicU32::new(0)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let body = json!({
        "address": listener.local_addr().unwrap().to_string(),
        "check": {"path": "/healthz?deep=1", "interval": "100ms"},
    });
    tokio::spawn(serve(listener, asked.clone()));
    assert_eq!(ask(&registry, "PUT", ONE, body.to_string()).await.0, 201);
    let mut version = json!(0);
    let state = loop {
        let path = format!("/ballet/v1/services/orders?seen={version}&wait=10s");
        let (_, known) = ask(&registry, "GET", &path, "").await;
        if known["version"] == version || known["all"][0]["state"] != "starting" {
            break known["all"][0]["state"].clone();
        }
        version = known["version"].clone();
    };
    assert_eq!(state, "up");
    assert!(asked.load(Ordering::Relaxed) >= 2, "503 was not taken for well");
}
