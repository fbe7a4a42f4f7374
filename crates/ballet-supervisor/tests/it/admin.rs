//! The admin API.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use ballet_core::ServiceName;
use ballet_supervisor::http::{Facts, SidecarPorts, router};
use ballet_supervisor::{ServiceSpec, Store};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::rig::{Rig, orders, web};

struct Known;

impl Facts for Known {
    fn addresses(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("gateway".into(), "http://127.0.0.1:8080".into())])
    }

    fn breaker(&self, service: &ServiceName) -> String {
        if service.as_str() == "payments" { "open".into() } else { "closed".into() }
    }

    fn sidecar(&self, _: &ServiceName, _: u32) -> Option<SidecarPorts> {
        Some(SidecarPorts { http: 40214, grpc: Some(40215) })
    }
}

async fn call(rig: &Rig, method: &str, path: &str, token: Option<&str>, body: &str) -> Response {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    router(rig.handle.clone(), Arc::new(Known)).oneshot(request).await.unwrap()
}

async fn text(answer: Response) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn json_of(answer: Response) -> Value {
    serde_json::from_str(&text(answer).await).unwrap()
}

pub async fn the_system_document_has_the_shape_that_machines_rely_on() {
    let rig = Rig::up(|dir| {
        let spec = ServiceSpec { store: Some(Store::Sqlite), ..orders(web(&[]), dir) };
        vec![spec, ServiceSpec::elsewhere("payments".parse().unwrap(), "http://user:secret@10.0.0.7:9000")]
    })
    .await;
    rig.settled().await;
    let mut document = json_of(call(&rig, "GET", "/ballet/v1/system", None, "").await).await;
    let status = rig.instance(1);
    let rss = document["services"][0]["rssBytes"].take();
    assert!(rss.as_u64().is_some_and(|bytes| bytes > 100_000), "{rss}");
    assert_eq!(
        document,
        json!({
            "system": "shop", "pid": std::process::id(), "profile": "default", "ready": true,
            "addresses": {"gateway": "http://127.0.0.1:8080"},
            "services": [
                {"name": "orders", "instance": 1, "state": "running", "ready": true, "pid": status.pid,
                 "address": format!("http://{}", status.address.unwrap()), "version": "v1",
                 "sidecar": {"http": 40214, "grpc": 40215}, "restarts": 0, "breaker": "closed", "rssBytes": null,
                 "store": "sqlite:.ballet/services/orders/orders.db", "log": ".ballet/services/orders/orders-1.log"},
                {"name": "payments", "instance": 1, "state": "running", "ready": true,
                 "address": "http://user@10.0.0.7:9000", "version": "v1", "restarts": 0, "breaker": "open"},
            ],
        })
    );
    let token = rig.state.token();
    let refused = call(&rig, "POST", "/ballet/v1/system/services/payments/stop", Some(&token), "").await;
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    rig.down().await;
}

pub async fn only_the_token_changes_the_system() {
    let rig = Rig::one(&[]).await;
    let token = rig.state.token();
    let path = |rest: &str| format!("/ballet/v1/system/{rest}");
    for (rest, given, body, status, code) in [
        ("down", None, "", 401, "SV014"),
        ("services/orders/stop", None, "", 401, "SV014"),
        ("services/orders/stop", Some("0123"), "", 401, "SV014"),
        ("services/nobody/stop", Some(&*token), "", 404, "SV010"),
        ("services/orders/scale", Some(&token), r#"{"instances": -1}"#, 400, "SV015"),
        ("services/orders/scale", Some(&token), r#"{"instances": 65}"#, 400, "SV012"),
        ("services/orders/stop?wait=soon", Some(&token), "", 400, "SV015"),
    ] {
        let answer = call(&rig, "POST", &path(rest), given, body).await;
        assert_eq!(answer.status().as_u16(), status, "{rest}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        assert_eq!(json_of(answer).await["code"], code, "{rest}");
    }
    assert!(rig.instance(1).ready, "nothing has happened");

    let answer = call(&rig, "POST", &path("services/orders/scale?wait=20"), Some(&token), r#"{"instances": 2}"#).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let rows = json_of(answer).await;
    assert_eq!(rows["services"].as_array().unwrap().len(), 2, "{rows}");
    let answer = call(&rig, "POST", &path("services/orders/stop?wait=20"), Some(&token), "").await;
    assert_eq!(json_of(answer).await["services"][1]["state"], "stopped");
    let answer = call(&rig, "POST", &path("services/orders/start"), Some(&token), "").await;
    assert_eq!((answer.status(), json_of(answer).await["settled"].clone()), (StatusCode::ACCEPTED, json!(false)));
    rig.settled().await;

    let answer = call(&rig, "POST", &path("down"), Some(&token), "").await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    rig.handle.down_requested().await;
    let answer = call(&rig, "POST", &path("services/orders/stop"), Some(&token), "").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    rig.down().await;
}

pub async fn logs_are_followed_until_the_end() {
    let rig = Rig::one(&["say", "hello"]).await;
    rig.heard("orders", "hello").await;
    rig.heard("orders", "from stderr").await;
    let lines = text(call(&rig, "GET", "/ballet/v1/system/services/orders/logs?lines=5", None, "").await).await;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find =
        |message: &str| lines.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("{lines:?}"));
    assert_eq!((find("hello")["stream"].as_str(), find("hello")["instance"].as_u64()), (Some("stdout"), Some(1)));
    let line = find("from stderr");
    assert_eq!((line["stream"].as_str(), line["level"].as_str()), (Some("stderr"), Some("warn")));
    assert_eq!(line["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");

    let following = call(&rig, "GET", "/ballet/v1/system/logs?follow=true", None, "").await;
    assert_eq!(following.headers()["content-type"], "application/x-ndjson");
    let reader = tokio::spawn(text(following));
    rig.down().await;
    let all = reader.await.unwrap();
    assert!(all.contains("hello") && all.contains("\"message\":\"term\""), "{all}");
}
