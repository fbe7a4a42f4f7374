//! Conductor's API as its SDKs call it.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use ballet_core::Workflows;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::world::{settled, shop};

struct Api(axum::Router);

impl Api {
    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, String) {
        let builder = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let answer = self.0.clone().oneshot(builder.body(body).unwrap()).await.unwrap();
        let status = answer.status();
        let bytes = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status.as_u16(), String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn json(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, text) = self.call(method, path, body).await;
        assert!(status < 300, "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }
}

async fn api() -> (Api, ballet_orchestrator::Handle) {
    let (handle, _) = shop().await;
    (Api(ballet_orchestrator::http::router(handle.clone())), handle)
}

fn result(task: &Value, status: &str, output: Value) -> Value {
    json!({
        "workflowInstanceId": task["workflowInstanceId"], "taskId": task["taskId"], "status": status, "outputData": output,
        "workerId": "w1", "logs": [{ "log": "done", "createdTime": 1 }], "somethingNew": true,
    })
}

#[tokio::test]
async fn a_worker_serves_the_tasks_of_a_workflow() {
    let (api, _) = api().await;
    let task = |name: &str, input: Value| json!({ "name": name, "taskReferenceName": format!("{name}_ref"), "type": "SIMPLE", "inputParameters": input });
    let definition = json!({ "name": "greetings", "version": 1, "tasks": [
        task("greet", json!({ "name": "${workflow.input.name}" })), task("shout", json!({ "text": "${greet_ref.output.text}" })),
    ], "outputParameters": { "loud": "${shout_ref.output.text}" } });
    assert_eq!(api.call("POST", "/api/metadata/workflow", definition.clone()).await, (200, String::new()));
    assert_eq!(api.call("POST", "/api/metadata/workflow", definition.clone()).await.0, 409);
    assert_eq!(api.call("POST", "/api/metadata/workflow?overwrite=true", definition.clone()).await.0, 200);
    api.json("PUT", "/api/metadata/workflow", json!([definition])).await;
    assert_eq!(api.call("PUT", "/api/metadata/taskdefs", json!({ "name": "greet" })).await.0, 404);
    api.json("POST", "/api/metadata/taskdefs", json!([{ "name": "greet", "responseTimeoutSeconds": 20 }])).await;
    assert_eq!(api.json("GET", "/api/metadata/taskdefs/greet", Value::Null).await["retryCount"], 3);

    // A parked poll gets the task as soon as it is there.
    let poll = api.0.clone();
    let parked = tokio::spawn(async move {
        Api(poll).json("GET", "/api/tasks/poll/batch/greet?workerid=w1&count=10&timeout=5000", Value::Null).await
    });
    tokio::task::yield_now().await;
    let id = api.json("POST", "/api/workflow/greetings?correlationId=c7", json!({ "name": "Ada" })).await;
    let id = id.as_str().unwrap().to_owned();
    let tasks = tokio::time::timeout(Duration::from_secs(3), parked).await.unwrap().unwrap();
    let greet = &tasks[0];
    assert_eq!((tasks.as_array().unwrap().len(), &greet["status"]), (1, &json!("IN_PROGRESS")));
    assert_eq!((&greet["inputData"], &greet["taskType"]), (&json!({ "name": "Ada" }), &json!("greet")));
    assert_eq!((&greet["pollCount"], &greet["responseTimeoutSeconds"]), (&json!(1), &json!(20)));
    assert_eq!(api.json("GET", "/api/tasks/poll/batch/greet?count=1&timeout=1", Value::Null).await, json!([]));
    assert_eq!(api.call("GET", "/api/tasks/poll/greet", Value::Null).await, (204, String::new()));

    let mut heartbeat = result(greet, "IN_PROGRESS", json!({}));
    heartbeat["extendLease"] = json!(true);
    assert_eq!(api.json("POST", "/api/tasks", heartbeat).await, greet["taskId"]);
    let (status, next) =
        api.call("POST", "/api/tasks/update-v2", result(greet, "COMPLETED", json!({ "text": "hi" }))).await;
    assert_eq!((status, next.as_str()), (204, ""), "there is no other task of this type");
    let (status, _) = api.call("POST", "/api/tasks", result(greet, "FAILED", json!({}))).await;
    assert_eq!(status, 200, "a late word changes nothing");
    assert_eq!(
        api.json("GET", &format!("/api/tasks/{}/log", greet["taskId"].as_str().unwrap()), Value::Null).await[0]["log"],
        "done"
    );
    let shown = api.json("GET", &format!("/api/tasks/{}", greet["taskId"].as_str().unwrap()), Value::Null).await;
    assert_eq!((&shown["status"], &shown["outputData"]), (&json!("COMPLETED"), &json!({ "text": "hi" })));

    let shout = api.json("GET", "/api/tasks/poll/shout?workerid=w2", Value::Null).await;
    assert_eq!(shout["inputData"], json!({ "text": "hi" }));
    let task = api.json("POST", &format!("/api/tasks/{id}/shout_ref/COMPLETED"), json!({ "text": "HI" })).await;
    assert_eq!(task, shout["taskId"]);
    let document = api.json("GET", &format!("/api/workflow/{id}"), Value::Null).await;
    assert_eq!((&document["status"], &document["output"]), (&json!("COMPLETED"), &json!({ "loud": "HI" })));
    assert_eq!((&document["correlationId"], document["tasks"].as_array().unwrap().len()), (&json!("c7"), 2));
    let short = api.json("GET", &format!("/api/workflow/{id}?includeTasks=false"), Value::Null).await;
    assert_eq!(short["tasks"], json!([]));

    for (query, hits) in [
        ("query=status%3DCOMPLETED%20AND%20workflowType%3Dgreetings", 1),
        ("query=status%20IN%20(FAILED,RUNNING)", 0),
        ("freeText=ada", 1),
        ("freeText=nobody", 0),
        ("query=startTime%3E1&sort=startTime:ASC", 1),
        ("query=correlationId%3Dc7", 1),
        ("query=workflowType%3Dgree*", 1),
        ("query=startTime%3C1", 0),
        ("", 1),
    ] {
        let found = api.json("GET", &format!("/api/workflow/search?start=0&size=10&{query}"), Value::Null).await;
        assert_eq!(found["totalHits"], hits, "{query}");
    }
    let row = &api.json("GET", "/api/workflow/search", Value::Null).await["results"][0];
    assert_eq!((&row["workflowId"], &row["output"]), (&json!(id), &json!(r#"{"loud":"HI"}"#)));
}

#[tokio::test]
async fn a_failed_attempt_of_a_plain_definition_follows_its_task_definition() {
    let (api, handle) = api().await;
    let task = json!({ "name": "try", "taskReferenceName": "t", "type": "SIMPLE", "taskDefinition": { "name": "try", "retryCount": 1, "retryDelaySeconds": 0 } });
    api.json("POST", "/api/metadata/workflow", json!({ "name": "tries", "tasks": [task] })).await;
    let id = api.json("POST", "/api/workflow", json!({ "name": "tries", "input": {} })).await;
    let id = id.as_str().unwrap().to_owned();
    let mut ids = vec![];
    for status in ["FAILED", "FAILED"] {
        let task = api.json("GET", "/api/tasks/poll/try", Value::Null).await;
        ids.push(task["taskId"].clone());
        api.json("POST", "/api/tasks", result(&task, status, json!({}))).await;
    }
    assert_ne!(ids[0], ids[1]);
    let document = settled(&handle, &id.parse().unwrap()).await.json;
    assert_eq!((&document["status"], &document["failedReferenceTaskNames"]), (&json!("FAILED"), &json!(["t"])));
    assert_eq!(api.call("POST", &format!("/api/workflow/{id}/retry"), Value::Null).await.0, 204);
    let task = api.json("GET", "/api/tasks/poll/try", Value::Null).await;
    assert_eq!(task["idempotencyKey"], format!("{id}.1/t/0"));
    assert_eq!(api.call("DELETE", &format!("/api/workflow/{id}?reason=enough"), Value::Null).await.0, 200);
    assert_eq!(handle.get(&id.parse().unwrap()).await.unwrap().json["reasonForIncompletion"], "enough");
    assert_eq!(api.call("DELETE", &format!("/api/workflow/{id}/remove"), Value::Null).await.0, 200);
    assert_eq!(api.call("GET", &format!("/api/workflow/{id}"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_key_starts_once() {
    let (api, _) = api().await;
    let start = |strategy: &str| json!({ "name": "waits", "idempotencyKey": "k1", "idempotencyStrategy": strategy });
    let first = api.json("POST", "/api/workflow", start("FAIL")).await;
    assert_eq!(api.call("POST", "/api/workflow", start("FAIL")).await.0, 409);
    assert_eq!(api.json("POST", "/api/workflow", start("RETURN_EXISTING")).await, first);
    assert_eq!(api.call("POST", "/api/workflow", start("FAIL_ON_RUNNING")).await.0, 409);
    api.json("DELETE", &format!("/api/workflow/{}", first.as_str().unwrap()), Value::Null).await;
    assert_ne!(api.json("POST", "/api/workflow", start("FAIL_ON_RUNNING")).await, first);
}

#[tokio::test]
async fn bad_input_gets_clear_errors() {
    let (api, _) = api().await;
    let simple = json!({ "name": "t", "taskReferenceName": "t" });
    let cases = [
        ("POST", "/api/workflow/nothing", json!({}), 404, "not found"),
        ("GET", "/api/workflow/nothing", Value::Null, 404, "No such workflow"),
        ("POST", "/api/token", json!({ "keyId": "a" }), 404, "not found"),
        ("DELETE", "/api/workflow", Value::Null, 405, "method"),
        ("POST", "/api/workflow", json!([1]), 400, "object"),
        ("POST", "/api/workflow", json!({}), 400, "`name` is required"),
        ("POST", "/api/workflow/waits", json!([1]), 400, "object"),
        ("POST", "/api/workflow/waits?version=x", json!({}), 400, "whole number"),
        ("POST", "/api/workflow", json!({ "name": "waits", "priority": 100 }), 400, "priority"),
        ("POST", "/api/metadata/workflow", json!({ "name": "x", "tasks": [] }), 400, "at least one task"),
        ("POST", "/api/metadata/workflow", json!({ "name": "x", "tasks": [simple, simple] }), 400, "occurs twice"),
        (
            "POST",
            "/api/metadata/workflow",
            json!({ "name": "x", "tasks": [{ "name": "t", "taskReferenceName": "t", "inputParameters": { "a": "${none.output}" } }] }),
            400,
            "names no task",
        ),
        (
            "POST",
            "/api/metadata/workflow",
            json!({ "name": "x", "tasks": [{ "name": "t", "taskReferenceName": "t", "type": "SWITCH" }] }),
            400,
            "not supported yet",
        ),
        ("POST", "/api/metadata/taskdefs", json!([]), 400, "empty"),
        ("GET", "/api/tasks/poll/batch/x?timeout=9000", Value::Null, 400, "5000"),
        ("GET", "/api/tasks/nothing", Value::Null, 404, "No such task"),
        ("POST", "/api/tasks", json!({ "taskId": "x", "workflowInstanceId": "y" }), 400, "`status` is required"),
        (
            "POST",
            "/api/tasks",
            json!({ "taskId": "x", "workflowInstanceId": "y", "status": "COMPLETED" }),
            404,
            "No such workflow",
        ),
        ("GET", "/api/workflow/search?query=status", Value::Null, 400, "cannot read"),
        ("POST", "/api/workflow/bulk/retry", json!([]), 400, "1 to 1000"),
        ("POST", "/ballet/v1/workflows/x/undo", json!({}), 400, "retry"),
        ("POST", "/ballet/v1/workflows", json!({ "name": "waits", "id": "a/b" }), 400, "execution id"),
    ];
    for (method, path, body, status, word) in cases {
        let (found, text) = api.call(method, path, body).await;
        assert_eq!(found, status, "{method} {path}: {text}");
        assert!(text.contains(word), "{method} {path}: {text}");
    }
    let broken = Request::builder().method("POST").uri("/api/workflow").body(Body::from("{")).unwrap();
    assert_eq!(api.0.clone().oneshot(broken).await.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_manifests_polled_step_is_part_of_the_saga() {
    let (api, handle) = api().await;
    let started = api
        .json("POST", "/ballet/v1/workflows", json!({ "name": "packing", "id": "packing-1", "input": { "id": "1" } }))
        .await;
    assert_eq!(started, json!({ "id": "packing-1", "new": true }));
    let pack = &api.json("GET", "/api/tasks/poll/batch/pack?timeout=3000", Value::Null).await[0];
    assert_eq!(pack["responseTimeoutSeconds"], 10);
    assert_eq!(pack["inputData"]["_ballet"]["idempotencyKey"], "packing-1/pack/0");
    api.json("POST", "/api/tasks", result(pack, "COMPLETED", json!({}))).await;
    let ship = &api.json("GET", "/api/tasks/poll/batch/ship?timeout=3000", Value::Null).await[0];
    assert_eq!(ship["inputData"]["id"], "1", "the default is the workflow's input");
    api.json("POST", "/api/tasks", result(ship, "FAILED_WITH_TERMINAL_ERROR", json!({ "code": "no-boxes" }))).await;
    let document = settled(&handle, &"packing-1".parse().unwrap()).await.json;
    assert_eq!((&document["status"], &document["failure"]["code"]), (&json!("FAILED"), &json!("no-boxes")));
    let rows = api.json("GET", "/ballet/v1/workflows?status=FAILED", Value::Null).await;
    assert_eq!(
        rows["items"][0]["compensation"]["steps"][0],
        json!({ "step": "reserve", "state": "done", "attempts": 0 })
    );
    let history = api.json("GET", "/ballet/v1/workflows/packing-1/history", Value::Null).await;
    assert_eq!(history["items"][0]["entries"], json!([["started", 0], ["scheduled", 1]]));
}

#[tokio::test]
async fn a_poller_that_goes_away_loses_nothing() {
    let (_, handle) = api().await;
    for _ in 0..20 {
        // Gone before or after the task was handed to it, whatever the scheduler likes.
        let poll = tokio::spawn({
            let handle = handle.clone();
            async move { handle.poll("wait", "gone", 1, Duration::from_secs(5)).await.map(drop) }
        });
        tokio::task::yield_now().await;
        let start = ballet_core::Start::new("waits".parse().unwrap(), json!({}));
        let id = handle.start(start).await.unwrap().id;
        poll.abort();
        if poll.await.is_err() {
            let tasks = handle.poll("wait", "here", 1, Duration::from_secs(5)).await.unwrap();
            assert_eq!(tasks.len(), 1, "it was offered again at once");
        }
        handle.terminate(&id, "done").await.unwrap();
    }
}
