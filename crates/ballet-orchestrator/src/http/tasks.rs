//! Conductor's tasks: what workers call in their loop.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::{Body, Failure, Params, execution_id, text};
use crate::command::{Acted, QueueState};
use crate::{Handle, TaskUpdate, Verdict};

type Answer<T> = Result<T, Failure>;

/// Longest wait of a batch poll, as in the reference.
const MAX_WAIT_MS: u64 = 5_000;

pub(super) fn routes() -> Router<Handle> {
    Router::new()
        .route("/tasks", post(update))
        .route("/tasks/update-v2", post(update_v2))
        .route("/tasks/poll/{kind}", get(poll))
        .route("/tasks/poll/batch/{kind}", get(poll_batch))
        .route("/tasks/queue/sizes", get(queue_sizes))
        .route("/tasks/queue/size", get(queue_size))
        .route("/tasks/queue/all", get(queue_all))
        .route("/tasks/queue/all/verbose", get(queue_verbose))
        .route("/tasks/queue/polldata", get(poll_data))
        .route("/tasks/queue/polldata/all", get(poll_data))
        .route("/tasks/{a}", get(one))
        .route("/tasks/{a}/log", post(add_log).get(logs))
        .route("/tasks/{a}/{b}/{c}", post(by_reference))
        .route("/tasks/{a}/{b}/{c}/sync", post(by_reference_sync))
}

fn queue(kind: &str, params: &Params) -> String {
    match params.get("domain").filter(|d| !d.is_empty()) {
        Some(domain) => format!("{domain}:{kind}"),
        None => kind.to_owned(),
    }
}

async fn poll(State(handle): State<Handle>, Path(kind): Path<String>, params: Params) -> Answer<Response> {
    let wait = Duration::from_millis(100);
    let tasks = handle.poll(&queue(&kind, &params), &params.text("workerid"), 1, wait).await?;
    Ok(first(tasks))
}

fn first(tasks: Vec<Value>) -> Response {
    match tasks.into_iter().next() {
        Some(task) => Json(task).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn poll_batch(State(handle): State<Handle>, Path(kind): Path<String>, params: Params) -> Answer<Json<Value>> {
    let (count, wait) = (params.number("count", 1_usize)?, params.number("timeout", 100_u64)?);
    if wait > MAX_WAIT_MS {
        return Err(Failure::malformed(format!("`timeout` is at most {MAX_WAIT_MS} ms")));
    }
    let worker = params.text("workerid");
    let tasks = handle.poll(&queue(&kind, &params), &worker, count, Duration::from_millis(wait)).await?;
    Ok(Json(Value::Array(tasks)))
}

/// A TaskResult.
async fn take(handle: &Handle, body: Body) -> Answer<(String, Acted, String)> {
    let result = body.object()?;
    let word = |key: &str| result[key].as_str().filter(|s| !s.is_empty()).map(str::to_owned);
    let need = |key: &str| word(key).ok_or_else(|| Failure::malformed(format!("`{key}` is required")));
    let (workflow, task, status) = (need("workflowInstanceId")?, need("taskId")?, need("status")?);
    let verdict = if result["extendLease"] == true { Verdict::Alive } else { verdict(&status)? };
    let logs = result["logs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let worker = word("workerId");
    let update = TaskUpdate {
        verdict,
        output: Some(result["outputData"].clone()).filter(Value::is_object),
        merge: false,
        reason: word("reasonForIncompletion"),
        callback_after: Duration::from_secs(result["callbackAfterSeconds"].as_u64().unwrap_or_default()),
        worker: worker.clone(),
        logs: logs.iter().filter_map(|line| Some(line["log"].as_str()?.to_owned())).collect(),
    };
    let acted = handle.update_task(&execution_id(&workflow)?, &task, update).await?;
    if acted.task.is_none() {
        return Err(Failure::missing(format!("No such task found by id: {task}")));
    }
    Ok((task, acted, worker.unwrap_or_default()))
}

fn verdict(status: &str) -> Answer<Verdict> {
    match status {
        "IN_PROGRESS" => Ok(Verdict::InProgress),
        "COMPLETED" => Ok(Verdict::Completed),
        "FAILED" => Ok(Verdict::Failed),
        "FAILED_WITH_TERMINAL_ERROR" => Ok(Verdict::Terminal),
        "CANCELED" => Ok(Verdict::Canceled),
        other => Err(Failure::malformed(format!("`{other}` is no status that a worker may report"))),
    }
}

async fn update(State(handle): State<Handle>, body: Body) -> Answer<Response> {
    Ok(text(take(&handle, body).await?.0))
}

async fn update_v2(State(handle): State<Handle>, body: Body) -> Answer<Response> {
    let (_, acted, worker) = take(&handle, body).await?;
    match acted.queue {
        Some(queue) => Ok(first(handle.poll(&queue, &worker, 1, Duration::ZERO).await?)),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

async fn reference(
    handle: &Handle,
    id: &str,
    reference: &str,
    status: &str,
    params: &Params,
    body: Body,
) -> Answer<Option<String>> {
    let update = TaskUpdate {
        merge: true,
        worker: params.get("workerid").map(str::to_owned),
        ..TaskUpdate::new(verdict(status)?, Some(body.object()?))
    };
    match handle.update_reference(&execution_id(id)?, reference, update).await {
        Err(ballet_core::WorkflowsError::UnknownExecution(_)) => Ok(None),
        other => Ok(other?),
    }
}

async fn by_reference(
    State(handle): State<Handle>,
    Path((id, name, status)): Path<(String, String, String)>,
    params: Params,
    body: Body,
) -> Answer<Response> {
    // As the reference: 200 with an empty body when no such task is open.
    Ok(text(reference(&handle, &id, &name, &status, &params, body).await?.unwrap_or_default()))
}

async fn by_reference_sync(
    State(handle): State<Handle>,
    Path((id, name, status)): Path<(String, String, String)>,
    params: Params,
    body: Body,
) -> Answer<Json<Value>> {
    match reference(&handle, &id, &name, &status, &params, body).await? {
        Some(_) => Ok(Json(handle.document(&execution_id(&id)?, true).await?.json)),
        None => Err(Failure::missing(format!("No such task open: {name}"))),
    }
}

async fn one(State(handle): State<Handle>, Path(id): Path<String>) -> Answer<Json<Value>> {
    let missing = || Failure::missing(format!("No such task found by id: {id}"));
    let execution = handle.execution_of(&id).await?.ok_or_else(missing)?;
    let (x, plan) = handle.execution(&execution).await?;
    let index = x.task_index(&id).ok_or_else(missing)?;
    Ok(Json(crate::document::task(&plan, &x, index)))
}

async fn add_log(State(handle): State<Handle>, Path(id): Path<String>, body: Bytes) -> Answer<()> {
    Ok(handle.log(&id, vec![String::from_utf8_lossy(&body).into_owned()]).await?)
}

async fn logs(State(handle): State<Handle>, Path(id): Path<String>) -> Answer<Response> {
    let lines = handle.logs(&id).await?;
    if lines.is_empty() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let lines: Vec<Value> =
        lines.into_iter().map(|(at, line)| json!({ "log": line, "taskId": id, "createdTime": at })).collect();
    Ok(Json(Value::Array(lines)).into_response())
}

async fn queue_sizes(State(handle): State<Handle>, params: Params) -> Answer<Json<Value>> {
    let queues = handle.queues().await?;
    let sizes = params.all("taskType").map(|kind| (kind.to_owned(), json!(size(&queues, kind))));
    Ok(Json(Value::Object(sizes.collect())))
}

async fn queue_size(State(handle): State<Handle>, params: Params) -> Answer<Json<Value>> {
    let queues = handle.queues().await?;
    Ok(Json(json!(size(&queues, &queue(&params.text("taskType"), &params)))))
}

fn size(queues: &[QueueState], name: &str) -> usize {
    queues.iter().find(|q| q.name == name).map_or(0, |q| q.waiting)
}

async fn queue_all(State(handle): State<Handle>) -> Answer<Json<Value>> {
    let queues = handle.queues().await?;
    Ok(Json(Value::Object(queues.into_iter().map(|q| (q.name, json!(q.waiting))).collect::<Map<_, _>>())))
}

async fn queue_verbose(State(handle): State<Handle>) -> Answer<Json<Value>> {
    let queues = handle.queues().await?.into_iter();
    let sizes = queues.map(|q| (q.name, json!({ "a": { "size": q.waiting, "uacked": q.out } })));
    Ok(Json(Value::Object(sizes.collect())))
}

async fn poll_data(State(handle): State<Handle>, params: Params) -> Answer<Json<Value>> {
    let wanted = params.get("taskType");
    let queues = handle.queues().await?.into_iter().filter(|q| wanted.is_none_or(|w| w == q.name));
    let rows = queues.filter_map(|q| {
        let (worker, at) = q.last_poll?;
        let (domain, name) = match q.name.split_once(':') {
            Some((domain, name)) => (Some(domain.to_owned()), name.to_owned()),
            None => (None, q.name),
        };
        let mut row = json!({ "queueName": name, "lastPollTime": at });
        if let Some(domain) = domain {
            row["domain"] = json!(domain);
        }
        if !worker.is_empty() {
            row["workerId"] = json!(worker);
        }
        Some(row)
    });
    Ok(Json(Value::Array(rows.collect())))
}
