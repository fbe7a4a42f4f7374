//! Checkout, all its ways.

use std::sync::Arc;
use std::time::Duration;

use ballet_core::{ExecutionId, ExecutionStatus, Start, TraceContext, Workflows, WorkflowsError};
use serde_json::{Value, json};

use crate::world::{Services, order, settled, shop};

#[tokio::test]
async fn the_handle_keeps_the_contract_of_the_seam() {
    let (handle, _) = shop().await;
    ballet_core::conformance::workflows(Arc::new(handle), "waits".parse().unwrap()).await;
}

#[tokio::test]
async fn an_order_is_reserved_charged_and_confirmed() {
    let (handle, services) = shop().await;
    let trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
    let mut start = Start::new("checkout".parse().unwrap(), order("7")).id("checkout-7".parse().unwrap());
    start.trace = Some(trace);
    assert!(handle.start(start.clone()).await.unwrap().new);
    assert!(!handle.start(start.clone()).await.unwrap().new, "a known id has no effect");
    let document = settled(&handle, &"checkout-7".parse().unwrap()).await;
    assert!(!handle.start(start).await.unwrap().new, "also after the end");

    assert_eq!(document.status, ExecutionStatus::Completed, "{:#}", document.json);
    assert_eq!(services.log(), ["POST /reservations", "POST /payments", "POST /orders/7/confirm"]);
    let seen = services.seen();
    let keys: Vec<&str> = seen.iter().map(|s| s.key.as_str()).collect();
    assert_eq!(keys, ["checkout-7/reserve/0", "checkout-7/charge/0", "checkout-7/confirm/0"]);
    assert_eq!(seen[0].body["items"], order("7")["items"]);
    assert_eq!(seen[1].body["amount"], 1299, "values keep their type");
    assert_eq!(seen[2].body, json!({ "paymentId": "made-1" }), "a step sees the answers before it");
    for s in &seen {
        let sent = TraceContext::parse(&s.headers["traceparent"]).unwrap();
        assert_eq!(sent.trace_id(), trace.trace_id(), "one trace shows it all");
        assert_eq!(s.headers["ballet-caller"], "orchestrator");
        assert_eq!(s.headers["content-type"], "application/json");
    }
    let tasks = document.json["tasks"].as_array().unwrap();
    let names: Vec<(&str, &str)> =
        tasks.iter().map(|t| (t["referenceTaskName"].as_str().unwrap(), t["status"].as_str().unwrap())).collect();
    assert_eq!(names, [("reserve", "COMPLETED"), ("charge", "COMPLETED"), ("confirm", "COMPLETED")]);
    assert_eq!(tasks[1]["inputData"]["http_request"]["uri"], "service://payments/payments");
    assert_eq!(document.json.get("compensation"), None);
}

async fn run(services: &Services, handle: &ballet_orchestrator::Handle, id: &str) -> (Value, Vec<String>) {
    let start = Start::new("checkout".parse().unwrap(), order(id));
    let started = handle.start(start).await.unwrap();
    (settled(handle, &started.id).await.json, services.log())
}

#[tokio::test]
async fn a_sold_out_line_and_a_refused_card_end_it_at_once() {
    let (handle, services) = shop().await;
    services.script("POST /reservations", vec![(409, json!({ "code": "out-of-stock", "detail": "none left" }))]);
    let (document, log) = run(&services, &handle, "1").await;
    assert_eq!((&document["status"], &document["failure"]["code"]), (&json!("FAILED"), &json!("out-of-stock")));
    assert_eq!(log, ["POST /reservations", "POST /orders/1/reject"], "nothing to undo");
    assert_eq!(services.seen()[1].body, json!({ "reason": "out-of-stock" }));
    assert_eq!(document["failedReferenceTaskNames"], json!(["reserve"]));

    let (handle, services) = shop().await;
    services.script("POST /payments", vec![(402, json!({ "code": "card-declined" }))]);
    let (document, log) = run(&services, &handle, "2").await;
    assert_eq!(log[2..], ["DELETE /reservations/2", "POST /orders/2/reject"]);
    assert_eq!(document["compensation"]["state"], "done");
    assert_eq!(document["compensation"]["steps"][0]["step"], "reserve");
    assert_eq!(document["compensation"]["steps"].as_array().unwrap().len(), 1);
    assert!(services.effects().keys().all(|key| key.ends_with("/failed/0")), "{:?}", services.effects());
}

#[tokio::test]
async fn a_flaky_card_pays_and_a_broken_service_is_undone() {
    let (handle, services) = shop().await;
    services.script("POST /payments", vec![(503, json!({})), (503, json!({}))]);
    let (document, log) = run(&services, &handle, "1").await;
    assert_eq!(document["status"], "COMPLETED");
    assert_eq!(log.iter().filter(|w| *w == "POST /payments").count(), 3);
    assert_eq!(document["tasks"].as_array().unwrap().len(), 3, "waiting makes no new attempts");

    let (handle, services) = shop().await;
    services.script("POST /payments", vec![(500, json!({})); 3]);
    let (document, log) = run(&services, &handle, "2").await;
    assert_eq!((&document["status"], &document["failure"]["code"]), (&json!("FAILED"), &json!("payments-unavailable")));
    let expected = ["POST /payments", "POST /refunds", "DELETE /reservations/2", "POST /orders/2/reject"];
    assert_eq!(log[3..], expected, "unknown is undone too, in reverse");
    let attempts: Vec<&Value> =
        document["tasks"].as_array().unwrap().iter().filter(|t| t["referenceTaskName"] == "charge").collect();
    assert_eq!(attempts.len(), 3);
    assert_ne!(attempts[0]["taskId"], attempts[1]["taskId"], "a new id");
    assert_eq!(attempts[0]["idempotencyKey"], attempts[2]["idempotencyKey"], "the same key");
    assert_eq!(attempts[1]["retriedTaskId"], attempts[0]["taskId"]);
    let refund = services.seen().into_iter().find(|s| s.what == "POST /refunds").unwrap();
    assert!(refund.key.ends_with("/charge/0/undo"), "{}", refund.key);
    assert_eq!(refund.body, json!({ "orderId": "2" }));
}

#[tokio::test]
async fn what_is_stuck_is_seen_and_settled() {
    let (handle, services) = shop().await;
    services.script("POST /payments", vec![(500, json!({})); 3]);
    services.script("POST /refunds", vec![(422, json!({ "detail": "no such charge" }))]);
    let started = handle.start(Start::new("checkout".parse().unwrap(), order("1"))).await.unwrap();
    let mut document = json!({});
    for _ in 0..500 {
        document = handle.get(&started.id).await.unwrap().json;
        if document["compensation"]["state"] == "stuck" && document["compensation"]["steps"][1]["state"] == "done" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(document["status"], "RUNNING", "{document:#}");
    assert_eq!(document["compensation"]["steps"][0]["reason"], "the service answered 422: no such charge");
    assert!(matches!(handle.remove(&started.id).await, Err(WorkflowsError::Conflict(_))), "not until settled");
    handle.settle(&started.id, None, Some("refunded by hand".into())).await.unwrap();
    let document = settled(&handle, &started.id).await.json;
    assert_eq!((&document["status"], &document["compensation"]["state"]), (&json!("FAILED"), &json!("done")));
    assert!(matches!(handle.retry(&started.id).await, Err(WorkflowsError::Conflict(_))), "something was undone");

    handle.remove(&started.id).await.unwrap();
    assert!(matches!(handle.get(&started.id).await, Err(WorkflowsError::UnknownExecution(_))));
    let again = Start::new("checkout".parse().unwrap(), order("1")).id(started.id);
    assert!(!handle.start(again).await.unwrap().new, "ids outlive what they named");
}

#[tokio::test]
async fn nothing_is_removed_until_it_is_settled() {
    let (handle, services) = shop().await;
    let kept = async |id: &ExecutionId, when: &str| {
        assert!(matches!(handle.remove(id).await, Err(WorkflowsError::Conflict(_))), "{when}");
        handle.get(id).await.unwrap().json
    };
    let waits = handle.start(Start::new("waits".parse().unwrap(), json!({}))).await.unwrap().id;
    kept(&waits, "a worker is waited for").await;

    // Services that are away: it stays where it is.
    services.script("DELETE /reservations", vec![(503, json!({})); 3]);
    services.script("POST /orders", vec![(503, json!({})); 3]);
    services.script("POST /payments", vec![(402, json!({ "code": "card-declined" }))]);
    let id = handle.start(Start::new("checkout".parse().unwrap(), order("1"))).await.unwrap().id;
    for (away, state) in [("DELETE /reservations/1", "running"), ("POST /orders/1/reject", "done")] {
        let asked = async {
            while !services.log().iter().any(|seen| seen == away) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), asked).await.expect("it is asked");
        let document = kept(&id, away).await;
        assert_eq!((&document["status"], &document["compensation"]["state"]), (&json!("RUNNING"), &json!(state)));
    }
    settled(&handle, &id).await;
    handle.remove(&id).await.unwrap();
    assert!(matches!(handle.get(&id).await, Err(WorkflowsError::UnknownExecution(_))));
}

#[tokio::test]
async fn the_same_content_keeps_its_version() {
    let (handle, _) = shop().await;
    let definition = |name: &str, word: &str| json!({ "name": name, "description": word, "tasks": [{ "name": "t", "taskReferenceName": "t" }] });
    let next = ballet_orchestrator::Existing::NextVersion;
    for (word, version) in [("a", 1), ("a", 1), ("b", 2), ("b", 2), ("a", 3)] {
        assert_eq!(handle.register_definition(&definition("x", word), next).await.unwrap(), version, "{word}");
    }
    let running = handle.start(Start::new("x".parse().unwrap(), json!({}))).await.unwrap();
    handle.register_definition(&definition("x", "c"), next).await.unwrap();
    let document = handle.get(&running.id).await.unwrap().json;
    assert_eq!(
        (&document["workflowVersion"], &document["workflowDefinition"]["description"]),
        (&json!(3), &json!("a"))
    );
    let fork = json!({ "name": "f", "tasks": [{ "name": "f", "taskReferenceName": "f", "type": "FORK_JOIN" }] });
    let refused = handle.register_definition(&fork, next).await.unwrap_err().to_string();
    assert!(refused.contains("tasks[0].type: task type `FORK_JOIN` is not supported yet"), "{refused}");
}

#[test]
fn the_shops_own_workflows_can_be_run() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shop/ballet.yaml").into();
    let loaded = ballet_manifest::load(&ballet_manifest::LoadOptions { file, ..Default::default() }).unwrap();
    for workflow in loaded.manifest.workflows.values() {
        ballet_orchestrator::check(workflow).unwrap();
    }
    let checkout = ballet_orchestrator::definition(&loaded.manifest.workflows["checkout"]);
    let confirm = &checkout["tasks"][2];
    assert_eq!(
        confirm["inputParameters"]["http_request"]["uri"],
        "service://orders/orders/${workflow.input.id}/confirm"
    );
    assert_eq!(confirm["inputParameters"]["http_request"]["body"]["paymentId"], "${charge.output.response.body.id}");
    assert_eq!(confirm["metadata"]["ballet"]["attempts"], "unlimited");
    assert_eq!(checkout["timeoutSeconds"], 900);
}
