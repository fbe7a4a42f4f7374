//! The examples do what their READMEs say.

use ballet_tests::{Ballet, Reply, repository};
use serde_json::{Value, json};

use crate::small::until;

#[tokio::test]
async fn the_python_worker_packs_parcels() {
    needs_python!();
    let folder = repository().join("examples/python-worker");
    let system = Ballet::up(&folder.join("ballet.yaml"), &[]);
    let send = async |key: &str, body: Value| {
        let request = system.at_gateway("POST", "/parcels").header("idempotency-key", key);
        request.json(body).send().await
    };
    let packed = async |id: &str| {
        let read = system.at_gateway("GET", &format!("/parcels/{id}"));
        until(read, |reply: &Reply| reply.json["state"] == "packed").await.json
    };

    let first = send("first", json!({"to": "Ada"})).await.expect(202);
    let id = first.json["id"].as_str().expect("an id").to_owned();
    assert_eq!(first.header("location"), Some(format!("/parcels/{id}").as_str()));
    let readme = std::fs::read_to_string(folder.join("README.md")).expect("the README");
    assert!(readme.contains(&format!("/api/workflow/parcel-{id}")), "the README tells another id than {id}");
    assert_eq!(packed(&id).await, json!({"id": id, "to": "Ada", "state": "packed", "grams": 130}));
    let workflow = system.at_platform("GET", &format!("/api/workflow/parcel-{id}"));
    let workflow = until(workflow, |document| document.json["status"] == "COMPLETED").await.json;
    let steps: Vec<_> = workflow["tasks"].as_array().expect("tasks").iter().map(|t| &t["referenceTaskName"]).collect();
    assert_eq!(steps, ["label", "pack", "tell"]);
    assert_eq!(workflow["tasks"][1]["workerId"], "packer-1");

    assert_eq!(send("first", json!({"to": "Ada"})).await.expect(202).json["id"], id, "once more is the same parcel");
    let _ = send("second", json!({})).await.expect(400);
    let _ = system.at_gateway("GET", "/parcels/nobody").send().await.expect(404);

    // Without its worker a parcel waits.
    assert!(system.command(&["stop", "packer"]).status.success());
    let waiting =
        send("third", json!({"to": "Grace"})).await.expect(202).json["id"].as_str().expect("an id").to_owned();
    let labelled = system.at_gateway("GET", &format!("/parcels/{waiting}"));
    until(labelled, |reply| reply.json["state"] == "labelled").await;
    assert!(system.command(&["start", "packer"]).status.success());
    assert_eq!(packed(&waiting).await["grams"], 150);
    let all = system.at_platform("GET", "/api/workflow/search?query=workflowType%3Dparcel").send().await.expect(200);
    assert_eq!(all.json["totalHits"], 2, "{}", all.text);
}
