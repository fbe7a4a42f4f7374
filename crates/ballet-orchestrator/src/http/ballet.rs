//! Our own face: executions with an id of the caller's choice, what is being undone, and settling what is stuck.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ballet_core::Workflows;
use serde_json::{Value, json};

use super::{Body, Failure, Params, Trace, execution_id};
use crate::command::Wish;
use crate::search::Search;
use crate::state::{Execution, status_word};
use crate::{Handle, handle};

/// Our paths answer problem documents.
struct Refusal(Failure);

type Answer<T> = Result<T, Refusal>;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.problem()
    }
}

impl<T: Into<Failure>> From<T> for Refusal {
    fn from(failure: T) -> Self {
        Self(failure.into())
    }
}

pub(super) fn routes(handle: Handle) -> Router {
    Router::new()
        .route("/ballet/v1/workflows", get(list).post(start))
        .route("/ballet/v1/workflows/{id}", get(one).delete(remove))
        .route("/ballet/v1/workflows/{id}/history", get(history))
        .route("/ballet/v1/workflows/{id}/terminate", post(terminate))
        .route("/ballet/v1/workflows/{id}/signal/{task}", post(signal))
        .route("/ballet/v1/workflows/{id}/retry", post(retry))
        .route("/ballet/v1/workflows/{id}/undo", post(undo))
        .with_state(handle)
}

/// `{name, version?, id?, input?, correlationId?}` → 201 `{id, new: true}`, 200 `{id, new: false}` for a known id.
async fn start(State(handle): State<Handle>, Trace(trace): Trace, body: Result<Body, Failure>) -> Answer<Response> {
    let request = body?.object()?;
    let word = |key: &str| request[key].as_str().map(str::to_owned);
    let id = match word("id") {
        Some(id) => Some(id.parse().map_err(|e: ballet_core::NameError| Failure::malformed(e.to_string()))?),
        None => None,
    };
    let version = match &request["version"] {
        Value::Null => None,
        value => {
            let version = value.as_u64().and_then(|v| u32::try_from(v).ok());
            Some(version.ok_or_else(|| Failure::malformed("`version` must be a whole number"))?)
        }
    };
    let wish = Wish {
        name: handle::name(&word("name").unwrap_or_default())?,
        version,
        definition: None,
        id,
        input: request["input"].clone(),
        correlation_id: word("correlationId"),
        created_by: None,
        priority: 0,
        trace,
    };
    let started = handle.start_wish(wish).await?;
    let status = if started.new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(json!({ "id": started.id.as_str(), "new": started.new }))).into_response())
}

/// `?status=&name=&query=&compensation=&limit=&start=` → `{total, items}`, the newest first.
async fn list(State(handle): State<Handle>, params: Result<Params, Failure>) -> Answer<Json<Value>> {
    let params = params?;
    let mut query = params.text("query");
    for (key, field) in [("status", "status"), ("name", "workflowType"), ("compensation", "compensation")] {
        if let Some(value) = params.get(key).filter(|v| !v.is_empty()) {
            let and = if query.is_empty() { "" } else { " AND " };
            query.push_str(&format!("{and}{field}={value}"));
        }
    }
    let size = params.number("limit", 100_usize)?.min(1_000);
    let (free_text, sort, start) = (params.text("freeText"), params.text("sort"), params.number("start", 0)?);
    let found = handle.search(&Search { query, free_text, sort, start, size }).await?;
    let rows: Vec<Value> = found.executions.iter().map(|x| row(&handle, x)).collect();
    Ok(Json(json!({ "total": found.total, "items": rows })))
}

fn row(handle: &Handle, x: &Execution) -> Value {
    let mut row = json!({
        "id": x.id.as_str(),
        "workflow": x.name,
        "version": x.version,
        "status": status_word(x.status),
        "startedAt": x.created.to_string(),
        "updatedAt": x.updated.to_string(),
    });
    if x.ended.0 != 0 {
        row["endedAt"] = json!(x.ended.to_string());
    }
    if let Some(ending) = &x.ending {
        row["reason"] = json!(ending.reason);
        row["failure"] = json!({ "step": ending.step, "code": ending.code });
    }
    if let Ok(plan) = handle.catalog().plan_of(x)
        && let Some(compensation) = x.compensation(&plan)
    {
        row["compensation"] = compensation;
    }
    row
}

async fn one(State(handle): State<Handle>, Path(id): Path<String>) -> Answer<Json<Value>> {
    Ok(Json(handle.document(&execution_id(&id)?, true).await?.json))
}

async fn history(State(handle): State<Handle>, Path(id): Path<String>) -> Answer<Json<Value>> {
    let id = execution_id(&id)?;
    handle.document(&id, false).await?;
    let rows = handle.history(&id).await?.into_iter();
    let rows: Vec<Value> = rows.map(|(at, entries)| json!({ "at": at.to_string(), "entries": entries })).collect();
    Ok(Json(json!({ "items": rows })))
}

async fn remove(State(handle): State<Handle>, Path(id): Path<String>) -> Answer<StatusCode> {
    handle.remove(&execution_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `{reason?}` → 202: it ends once what has to be undone is undone.
async fn terminate(
    State(handle): State<Handle>,
    Path(id): Path<String>,
    body: Result<Body, Failure>,
) -> Answer<StatusCode> {
    let request = body?.object()?;
    handle.terminate(&execution_id(&id)?, request["reason"].as_str().unwrap_or("terminated by an operator")).await?;
    Ok(StatusCode::ACCEPTED)
}

/// The body is the task's output.
async fn signal(
    State(handle): State<Handle>,
    Path((id, task)): Path<(String, String)>,
    body: Result<Body, Failure>,
) -> Answer<StatusCode> {
    handle.signal(&execution_id(&id)?, &task, body?.object()?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn retry(State(handle): State<Handle>, Path(id): Path<String>) -> Answer<StatusCode> {
    handle.retry(&execution_id(&id)?).await?;
    Ok(StatusCode::ACCEPTED)
}

/// `{retry: true}` or `{setAside: "REASON"}`, each with `step` for one undo only.
async fn undo(State(handle): State<Handle>, Path(id): Path<String>, body: Result<Body, Failure>) -> Answer<StatusCode> {
    let request = body?.object()?;
    let word = |key: &str| request[key].as_str().filter(|s| !s.trim().is_empty()).map(str::to_owned);
    let set_aside = word("setAside");
    if set_aside.is_some() == (request["retry"] == true) {
        return Err(Failure::malformed("say either `retry: true` or `setAside` with a reason").into());
    }
    handle.settle(&execution_id(&id)?, word("step"), set_aside).await?;
    Ok(StatusCode::ACCEPTED)
}
