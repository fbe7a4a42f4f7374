//! Workflows with polled tasks: the official SDK serves one, and whoever reorders the manifest's steps sees them obeyed.

use std::net::SocketAddr;

use ballet_tests::{Ballet, repository, request};
use serde_json::{Value, json};

use crate::small::{Small, until};

/// Names a Python that has the official SDK.
const PYTHON: &str = "BALLET_TEST_PYTHON";

async fn start(platform: SocketAddr, name: &str, input: Value) -> String {
    let started = request(platform, "POST", &format!("/api/workflow/{name}")).json(input).send().await.expect(200);
    started.text
}

async fn ended(system: &Ballet, id: &str) -> Value {
    let read = system.at_platform("GET", &format!("/api/workflow/{id}"));
    until(read, |document| document.status == 200 && document.json["status"] != "RUNNING").await.json
}

#[tokio::test]
async fn the_official_sdk_serves_a_step() {
    needs_python!();
    let Ok(python) = std::env::var(PYTHON) else {
        assert!(
            std::env::var_os("CI").is_none(),
            "{PYTHON} must name a Python with `conductor-python`; `cargo xtask test` sets it"
        );
        eprintln!("SKIPPED: {PYTHON} names no Python with `conductor-python`; `cargo xtask test` installs one");
        return;
    };
    let worker = repository().join("tests/it/worker.py");
    // The worker is a service like any other: it finds the platform in its environment, and ends with the system.
    let small = Small::new(&format!(
        "
services:
  desk:   {{ run: <service> }}
  packer: {{ run: \"'{python}' '{}'\", health: off, env: {{ PYTHONDONTWRITEBYTECODE: 1 }} }}
workflows:
  parcel:
    steps:
      - label: {{ call: POST desk:/labels, with: {{ to: \"${{input.to}}\" }} }}
      - pack:  {{ task: pack, with: {{ to: \"${{input.to}}\", label: \"${{label.output.n}}\" }} }}
",
        worker.display()
    ));
    let system = small.up();
    let id = start(system.platform, "parcel", json!({"to": "Ada"})).await;
    let document = ended(&system, &id).await;
    let logs = || small.run(&["logs", "packer"]).out;
    assert_eq!(document["status"], "COMPLETED", "{document:#}\n{}", logs());
    assert_eq!(document["output"], json!({"parcel": "number 1 for Ada"}), "the last step's output");
    let tasks: Vec<_> = document["tasks"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|task| (&task["referenceTaskName"], &task["taskType"], &task["status"], &task["outputData"]["parcel"]))
        .collect();
    let (done, parcel) = (json!("COMPLETED"), json!("number 1 for Ada"));
    assert_eq!(
        tasks,
        [(&json!("label"), &json!("HTTP"), &done, &Value::Null), (&json!("pack"), &json!("pack"), &done, &parcel)]
    );
}

/// A workflow that waits for a worker and then visits the desk in this order.
fn visits(order: [&str; 2]) -> String {
    let steps: String = order.map(|name| format!("      - {name}: {{ call: POST desk:/{name} }}\n")).concat();
    format!(
        "services:\n  desk: {{ run: <service> }}\nworkflows:\n  visit:\n    steps:\n      - arrive: {{ task: arrive }}\n{steps}"
    )
}

/// Serves the task that the execution waits for, by the plain API.
async fn arrive(system: &Ballet) {
    let poll = system.at_platform("GET", "/api/tasks/poll/arrive?workerid=test");
    let task = until(poll, |reply| reply.status == 200).await.json;
    let result = json!({
        "taskId": task["taskId"], "workflowInstanceId": task["workflowInstanceId"], "status": "COMPLETED", "outputData": {},
    });
    let _ = system.at_platform("POST", "/api/tasks").json(result).send().await.expect(200);
}

async fn paths(system: &Ballet) -> Vec<String> {
    let desk = system.instance("desk")["address"].as_str().expect("an address").replace("http://", "");
    let calls = request(desk.parse().expect("an address"), "GET", "/calls").send().await.json;
    calls.as_array().expect("a list").iter().map(|call| call["path"].as_str().expect("a path").to_owned()).collect()
}

#[tokio::test]
async fn reordered_steps_are_obeyed_by_new_executions_and_old_ones_keep_theirs() {
    needs_python!();
    let small = Small::new(&visits(["pay", "pack"]));
    let system = small.up();
    let old = start(system.platform, "visit", json!({})).await;

    small.edit(&visits(["pack", "pay"]));
    let newest = system.at_platform("GET", "/api/metadata/workflow/visit");
    until(newest, |definition| definition.json["version"] == 2).await;
    // The old one is served first: it waits for longer.
    arrive(&system).await;
    let old = ended(&system, &old).await;
    assert_eq!((&old["status"], &old["workflowVersion"]), (&json!("COMPLETED"), &json!(1)));
    assert_eq!(paths(&system).await, ["/pay", "/pack"]);

    let new = start(system.platform, "visit", json!({})).await;
    arrive(&system).await;
    let new = ended(&system, &new).await;
    assert_eq!((&new["status"], &new["workflowVersion"]), (&json!("COMPLETED"), &json!(2)));
    assert_eq!(paths(&system).await, ["/pay", "/pack", "/pack", "/pay"]);
}
