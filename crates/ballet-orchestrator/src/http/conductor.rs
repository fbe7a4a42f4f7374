//! Conductor's executions: start, read, search, control.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use ballet_core::{ExecutionId, ExecutionStatus, WorkflowName, Workflows, WorkflowsError};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Body, Failure, Params, Trace, execution_id, text};
use crate::command::{Act, Wish};
use crate::search::Search;
use crate::state::status_word;
use crate::{Handle, document, handle};

type Answer<T> = Result<T, Failure>;

/// Most ids in one bulk call.
const MAX_BULK: usize = 1_000;
/// Most results of one search.
const MAX_RESULTS: usize = 5_000;
/// Runs that one idempotency key may have had, one after the other.
const MAX_RUNS_PER_KEY: u32 = 1_000;

pub(super) fn routes() -> Router<Handle> {
    Router::new()
        .route("/workflow", post(start))
        .route("/workflow/{id}", post(start_by_name).get(one).delete(terminate))
        .route("/workflow/start/{name}/{version}", post(start_version))
        .route("/workflow/{id}/status", get(status))
        .route("/workflow/{id}/tasks", get(tasks))
        .route("/workflow/running/{name}", get(running))
        .route("/workflow/{id}/correlated/{cid}", get(correlated))
        .route("/workflow/search", get(search))
        .route("/workflow/search-v2", get(search_v2))
        .route("/workflow/{id}/pause", put(pause))
        .route("/workflow/{id}/resume", put(resume))
        .route("/workflow/{id}/restart", post(restart))
        .route("/workflow/{id}/retry", post(retry))
        .route("/workflow/{id}/rerun", post(rerun))
        .route("/workflow/{id}/remove", delete(remove))
        .route("/workflow/decide/{id}", put(decide))
        .route("/workflow/bulk/{what}", put(bulk).post(bulk).delete(bulk))
        .route("/health", get(health))
        .route("/version", get(|| async { text(env!("CARGO_PKG_VERSION")) }))
}

async fn health() -> Json<Value> {
    Json(json!({ "healthy": true, "healthResults": [], "suppressedHealthResults": [] }))
}

async fn start(State(handle): State<Handle>, Trace(trace): Trace, body: Body) -> Answer<Response> {
    let request = body.object()?;
    let word = |key: &str| request[key].as_str().filter(|s| !s.is_empty()).map(str::to_owned);
    let definition = request.get("workflowDef").filter(|d| d.is_object()).cloned();
    let name = word("name").or_else(|| definition.as_ref().and_then(|d| d["name"].as_str().map(str::to_owned)));
    let name = handle::name(&name.ok_or_else(|| Failure::malformed("`name` is required"))?)?;
    let version = match &request["version"] {
        Value::Null => None,
        value => {
            let version = value.as_u64().and_then(|v| u32::try_from(v).ok());
            Some(version.ok_or_else(|| Failure::malformed("`version` must be a whole number"))?).filter(|v| *v > 0)
        }
    };
    let wish = Wish {
        name: name.clone(),
        version,
        definition,
        id: None,
        input: request["input"].clone(),
        correlation_id: word("correlationId"),
        created_by: word("createdBy"),
        priority: priority(request["priority"].as_i64().unwrap_or_default())?,
        trace,
    };
    // The Python SDK sends a strategy without a key: it means nothing.
    let id = match word("idempotencyKey") {
        None => handle.start_wish(wish).await?.id,
        Some(key) => start_once(&handle, wish, &name, &key, &word("idempotencyStrategy").unwrap_or_default()).await?,
    };
    Ok(text(id.as_str()))
}

/// Starts under an id made of name and key: whoever comes second finds it.
async fn start_once(
    handle: &Handle,
    wish: Wish,
    name: &WorkflowName,
    key: &str,
    strategy: &str,
) -> Answer<ExecutionId> {
    for run in 0..MAX_RUNS_PER_KEY {
        let digest = Sha256::digest(format!("{name}\0{key}\0{run}"));
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        let id = uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string();
        let id: ExecutionId = id.parse().map_err(|_| Failure::malformed("the idempotency key makes no id"))?;
        let Wish { version, priority, trace, .. } = wish;
        let again = Wish {
            name: name.clone(),
            version,
            definition: wish.definition.clone(),
            id: Some(id.clone()),
            input: wish.input.clone(),
            correlation_id: wish.correlation_id.clone(),
            created_by: wish.created_by.clone(),
            priority,
            trace,
        };
        if handle.start_wish(again).await?.new {
            return Ok(id);
        }
        let status = match handle.document(&id, false).await {
            Ok(document) => document.status,
            // It was removed, which frees the key.
            Err(WorkflowsError::UnknownExecution(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        match strategy {
            "RETURN_EXISTING" => return Ok(id),
            "FAIL_ON_RUNNING" if status.is_final() => {}
            _ => {
                let why = format!("workflow `{name}` was started with this idempotency key before, as `{id}`");
                return Err(Failure::new(409, "WF004", why));
            }
        }
    }
    Err(Failure::new(409, "WF004", "this idempotency key was used too often"))
}

fn priority(value: i64) -> Answer<u8> {
    match u8::try_from(value) {
        Ok(priority) if priority <= 99 => Ok(priority),
        Ok(_) | Err(_) => Err(crate::plan::PlanError::new("priority", "priority must be from 0 to 99").into()),
    }
}

async fn start_by_name(
    State(handle): State<Handle>,
    Path(name): Path<String>,
    params: Params,
    Trace(trace): Trace,
    body: Body,
) -> Answer<Response> {
    let version = params.number::<u32>("version", 0)?;
    let correlation_id = params.get("correlationId").filter(|s| !s.is_empty()).map(str::to_owned);
    let wish = Wish {
        name: handle::name(&name)?,
        version: Some(version).filter(|v| *v > 0),
        definition: None,
        id: None,
        input: body.object()?,
        correlation_id,
        created_by: None,
        priority: priority(params.number("priority", 0)?)?,
        trace,
    };
    Ok(text(handle.start_wish(wish).await?.id.as_str()))
}

async fn start_version(
    state: State<Handle>,
    Path((name, version)): Path<(String, String)>,
    Params(mut params): Params,
    trace: Trace,
    body: Body,
) -> Answer<Response> {
    params.insert(0, ("version".into(), version));
    start_by_name(state, Path(name), Params(params), trace, body).await
}

async fn one(State(handle): State<Handle>, Path(id): Path<String>, params: Params) -> Answer<Json<Value>> {
    let tasks = params.flag("includeTasks", true)?;
    Ok(Json(handle.document(&execution_id(&id)?, tasks).await?.json))
}

async fn status(State(handle): State<Handle>, Path(id): Path<String>, params: Params) -> Answer<Json<Value>> {
    let document = handle.document(&execution_id(&id)?, false).await?;
    let mut json = json!({ "workflowId": id, "status": status_word(document.status) });
    for (key, flag) in [("output", "includeOutput"), ("variables", "includeVariables")] {
        if params.flag(flag, false)? {
            json[key] = document.json[key].clone();
        }
    }
    if let Some(id) = document.json.get("correlationId") {
        json["correlationId"] = id.clone();
    }
    Ok(Json(json))
}

async fn tasks(State(handle): State<Handle>, Path(id): Path<String>, params: Params) -> Answer<Json<Value>> {
    let (start, count) = (params.number("start", 0_usize)?, params.number("count", 15_usize)?);
    let document = handle.document(&execution_id(&id)?, true).await?;
    let wanted: Vec<&str> = params.all("status").collect();
    let all = document.json["tasks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let all = all.iter().filter(|t| wanted.is_empty() || wanted.iter().any(|w| t["status"] == *w));
    let all: Vec<&Value> = all.collect();
    let page: Vec<&Value> = all.iter().skip(start).take(count).copied().collect();
    Ok(Json(json!({ "totalHits": all.len(), "results": page })))
}

async fn running(State(handle): State<Handle>, Path(name): Path<String>, params: Params) -> Answer<Json<Value>> {
    let mut query = format!("workflowType={name} AND status=RUNNING");
    for (key, condition) in [("version", "version="), ("startTime", "startTime>"), ("endTime", "startTime<")] {
        if let Some(value) = params.get(key).filter(|v| !v.is_empty()) {
            query.push_str(&format!(" AND {condition}{value}"));
        }
    }
    let found = handle.search(&of_query(query)).await?;
    Ok(Json(found.executions.iter().map(|x| json!(x.id.as_str())).collect()))
}

async fn correlated(
    State(handle): State<Handle>,
    Path((name, cid)): Path<(String, String)>,
    params: Params,
) -> Answer<Json<Value>> {
    let mut query = format!("workflowType={name} AND correlationId={cid}");
    if !params.flag("includeClosed", false)? {
        query.push_str(" AND status IN (RUNNING,PAUSED)");
    }
    documents(&handle, &of_query(query), params.flag("includeTasks", false)?).await.map(|(_, list)| Json(json!(list)))
}

fn of_query(query: String) -> Search {
    Search { query, free_text: String::new(), sort: String::new(), start: 0, size: MAX_RESULTS }
}

fn wanted(params: &Params) -> Answer<Search> {
    let size = params.number("size", 100_usize)?;
    if size > MAX_RESULTS {
        return Err(Failure::malformed(format!("`size` is at most {MAX_RESULTS}")));
    }
    Ok(Search {
        query: params.text("query"),
        free_text: params.text("freeText"),
        sort: params.text("sort"),
        start: params.number("start", 0)?,
        size,
    })
}

async fn search(State(handle): State<Handle>, params: Params) -> Answer<Json<Value>> {
    let found = handle.search(&wanted(&params)?).await?;
    let results: Vec<Value> = found.executions.iter().map(document::summary).collect();
    Ok(Json(json!({ "totalHits": found.total, "results": results })))
}

async fn search_v2(State(handle): State<Handle>, params: Params) -> Answer<Json<Value>> {
    let (total, results) = documents(&handle, &wanted(&params)?, true).await?;
    Ok(Json(json!({ "totalHits": total, "results": results })))
}

async fn documents(handle: &Handle, search: &Search, tasks: bool) -> Answer<(usize, Vec<Value>)> {
    let found = handle.search(search).await?;
    let mut documents = vec![];
    for x in &found.executions {
        match handle.document(&x.id, tasks).await {
            Ok(document) => documents.push(document.json),
            Err(WorkflowsError::UnknownExecution(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((found.total, documents))
}

async fn pause(State(handle): State<Handle>, Path(id): Path<String>) -> Answer<()> {
    Ok(handle.pause(&execution_id(&id)?).await?)
}

async fn resume(State(handle): State<Handle>, Path(id): Path<String>) -> Answer<()> {
    Ok(handle.resume(&execution_id(&id)?).await?)
}

async fn restart(State(handle): State<Handle>, Path(id): Path<String>, params: Params) -> Answer<StatusCode> {
    if params.flag("useLatestDefinitions", false)? {
        return Err(Failure::unsupported("restart with the latest definition"));
    }
    handle.restart(&execution_id(&id)?, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn retry(State(handle): State<Handle>, Path(id): Path<String>) -> Answer<StatusCode> {
    handle.retry(&execution_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn rerun(State(handle): State<Handle>, Path(id): Path<String>, body: Body) -> Answer<Response> {
    let request = body.object()?;
    if request["reRunFromTaskId"].as_str().is_some_and(|task| !task.is_empty()) {
        return Err(Failure::unsupported("rerun from a task"));
    }
    let input = request.get("workflowInput").filter(|input| input.is_object()).cloned();
    handle.restart(&execution_id(&id)?, input).await?;
    Ok(text(id))
}

async fn terminate(State(handle): State<Handle>, Path(id): Path<String>, params: Params) -> Answer<()> {
    let id = execution_id(&id)?;
    match handle.terminate(&id, &params.text("reason")).await {
        // Terminating what was terminated is no error; what completed or failed by itself is.
        Err(WorkflowsError::Conflict(why)) => match handle.document(&id, false).await?.status {
            ExecutionStatus::Terminated => Ok(()),
            ExecutionStatus::Running
            | ExecutionStatus::Completed
            | ExecutionStatus::Failed
            | ExecutionStatus::TimedOut
            | ExecutionStatus::Paused => Err(WorkflowsError::Conflict(why).into()),
        },
        other => Ok(other?),
    }
}

async fn remove(State(handle): State<Handle>, Path(id): Path<String>) -> Answer<()> {
    Ok(handle.remove(&execution_id(&id)?).await?)
}

/// Nothing waits to be decided: every event is decided when it comes.
async fn decide(State(handle): State<Handle>, Path(id): Path<String>) -> Answer<()> {
    handle.document(&execution_id(&id)?, false).await?;
    Ok(())
}

async fn bulk(State(handle): State<Handle>, Path(what): Path<String>, params: Params, body: Body) -> Answer<Response> {
    let ids = body.list()?;
    if ids.is_empty() || ids.len() > MAX_BULK {
        return Err(Failure::malformed(format!("a bulk call takes 1 to {MAX_BULK} ids")));
    }
    let reason = params.text("reason");
    let (mut done, mut failed) = (vec![], Map::new());
    for id in ids {
        let id = id.as_str().unwrap_or_default().to_owned();
        let act = match what.as_str() {
            "pause" => Act::Pause,
            "resume" => Act::Resume,
            "restart" => Act::Restart { input: None },
            "retry" => Act::Retry,
            "terminate" => Act::Terminate { reason: reason.clone() },
            "remove" | "delete" => Act::Remove,
            _ => return Err(Failure::missing("no such bulk call: not found")),
        };
        let result = match execution_id(&id) {
            Ok(id) => handle.act(&id, act).await.map_err(Failure::from),
            Err(failure) => Err(failure),
        };
        match result {
            Ok(_) => done.push(id),
            Err(failure) => drop(failed.insert(id, json!(failure.message))),
        }
    }
    let body = json!({ "bulkErrorResults": failed, "bulkSuccessfulResults": done, "message": "Bulk Request has been processed." });
    Ok(Json(body).into_response())
}
