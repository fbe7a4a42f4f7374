//! Conductor's metadata: definitions of workflows and of tasks.

use axum::extract::{Path, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::{Body, Failure, Params};
use crate::Handle;
use crate::catalog::Existing;
use crate::plan::{self, Plan};

type Answer<T> = Result<T, Failure>;

pub(super) fn routes() -> Router<Handle> {
    Router::new()
        .route("/metadata/workflow", post(create).put(update).get(list))
        .route("/metadata/workflow/validate", post(validate))
        .route("/metadata/workflow/latest-versions", get(latest))
        .route("/metadata/workflow/names", get(names))
        .route("/metadata/workflow/names-and-versions", get(names_and_versions))
        .route("/metadata/workflow/{name}", get(one))
        .route("/metadata/workflow/{name}/versions", get(versions))
        .route("/metadata/workflow/{name}/{version}", delete(remove))
        .route("/metadata/taskdefs", post(put_task_defs).put(put_task_def).get(task_defs))
        .route("/metadata/taskdefs/{name}", get(task_def).delete(remove_task_def))
}

async fn create(State(handle): State<Handle>, params: Params, body: Body) -> Answer<()> {
    let existing = if params.flag("overwrite", false)? { Existing::Replace } else { Existing::Refuse };
    handle.catalog().register(&body.object()?, existing).await?;
    Ok(())
}

async fn update(State(handle): State<Handle>, body: Body) -> Answer<Json<Value>> {
    let list = body.list()?;
    // One invalid definition refuses the whole list.
    for definition in &list {
        Plan::compile(definition, &Map::new())?;
    }
    let (mut done, mut failed) = (vec![], Map::new());
    for definition in &list {
        let name = definition["name"].as_str().unwrap_or_default().to_owned();
        match handle.catalog().register(definition, Existing::Replace).await {
            Ok(_) => done.push(name),
            Err(error) => drop(failed.insert(name, json!(error.to_string()))),
        }
    }
    Ok(Json(
        json!({ "bulkErrorResults": failed, "bulkSuccessfulResults": done, "message": "Bulk Request has been processed." }),
    ))
}

async fn validate(body: Body) -> Answer<()> {
    Plan::compile(&body.object()?, &Map::new())?;
    Ok(())
}

async fn list(State(handle): State<Handle>) -> Json<Value> {
    Json(handle.catalog().definitions(None).iter().map(|d| Value::clone(d)).collect())
}

async fn latest(State(handle): State<Handle>) -> Json<Value> {
    let mut newest: Map<String, Value> = Map::new();
    for definition in handle.catalog().definitions(None) {
        newest.insert(definition["name"].as_str().unwrap_or_default().to_owned(), Value::clone(&definition));
    }
    Json(newest.into_iter().map(|(_, definition)| definition).collect())
}

async fn names(State(handle): State<Handle>) -> Json<Value> {
    let mut names: Vec<Value> = handle.catalog().definitions(None).iter().map(|d| d["name"].clone()).collect();
    names.dedup();
    Json(Value::Array(names))
}

async fn names_and_versions(State(handle): State<Handle>) -> Json<Value> {
    let mut names: Map<String, Value> = Map::new();
    for definition in handle.catalog().definitions(None) {
        let name = definition["name"].as_str().unwrap_or_default().to_owned();
        if let Value::Array(list) = names.entry(name).or_insert_with(|| json!([])) {
            list.push(version_row(&definition));
        }
    }
    Json(Value::Object(names))
}

async fn versions(State(handle): State<Handle>, Path(name): Path<String>) -> Json<Value> {
    Json(handle.catalog().definitions(Some(&name)).iter().map(|d| version_row(d)).collect())
}

fn version_row(definition: &Value) -> Value {
    let (name, version) = (&definition["name"], &definition["version"]);
    json!({ "name": name, "version": version, "createTime": definition["createTime"], "updateTime": definition["updateTime"] })
}

async fn one(State(handle): State<Handle>, Path(name): Path<String>, params: Params) -> Answer<Json<Value>> {
    let version: u32 = params.number("version", 0)?;
    let found = handle.catalog().definition(&name, Some(version).filter(|v| *v > 0));
    let found =
        found.ok_or_else(|| Failure::missing(format!("No such workflow found by name: {name}, version: {version}")))?;
    Ok(Json(Value::clone(&found)))
}

async fn remove(State(handle): State<Handle>, Path((name, version)): Path<(String, String)>) -> Answer<()> {
    let version = version.parse().map_err(|_| Failure::malformed("a version is a whole number"))?;
    Ok(handle.catalog().remove(&name, version).await?)
}

async fn put_task_defs(State(handle): State<Handle>, body: Body) -> Answer<()> {
    let list = body.list()?;
    if list.is_empty() {
        return Err(Failure::malformed("the list of task definitions is empty"));
    }
    Ok(handle.catalog().put_task_defs(&list).await?)
}

async fn put_task_def(State(handle): State<Handle>, body: Body) -> Answer<()> {
    let def = plan::normal_task_def(&body.object()?)?;
    let name = def["name"].as_str().unwrap_or_default();
    if handle.catalog().task_def(name).is_none() {
        return Err(Failure::missing(format!("No such task definition: {name}, not found")));
    }
    Ok(handle.catalog().put_task_defs(&[def]).await?)
}

async fn task_defs(State(handle): State<Handle>) -> Json<Value> {
    Json(Value::Array(handle.catalog().task_defs()))
}

async fn task_def(State(handle): State<Handle>, Path(name): Path<String>) -> Answer<Json<Value>> {
    let missing = || Failure::missing(format!("No such task definition: {name}, not found"));
    Ok(Json(handle.catalog().task_def(&name).ok_or_else(missing)?))
}

async fn remove_task_def(State(handle): State<Handle>, Path(name): Path<String>) -> Answer<()> {
    Ok(handle.catalog().remove_task_def(&name).await?)
}
