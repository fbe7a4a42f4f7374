//! The orchestrator over HTTP, by our own API: Conductor's knows neither ids of the caller's choice nor codes of errors.

use std::time::Duration;

use http::Method;
use percent_encoding::utf8_percent_encode;
use serde::Deserialize;
use serde_json::{Value, json};

use ballet_core::{
    Chain, Classify, ExecutionId, ExecutionStatus, Later, Retry, Start, Started, WorkflowDocument, Workflows,
    WorkflowsError,
};

use crate::events::{SEGMENT, said};
use crate::{Client, ClientError, Request, Response, Retries};

/// How long the orchestrator may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The orchestrator over the platform's HTTP API: the [`Workflows`] seam for a process of its own.
#[derive(Clone)]
pub struct RemoteWorkflows {
    client: Client,
    platform: String,
}

impl RemoteWorkflows {
    /// Asks the platform at `platform` (`http://127.0.0.1:7070`).
    pub fn new(client: Client, platform: &str) -> Self {
        Self { client, platform: platform.trim_end_matches('/').to_owned() }
    }

    fn request(&self, method: Method, path: &str) -> Request {
        self.client.request(method, format!("{}{path}", self.platform)).timeout(TIMEOUT)
    }

    async fn send(
        &self,
        request: Request,
        unknown: impl FnOnce() -> WorkflowsError,
    ) -> Result<Response, WorkflowsError> {
        let answer = request.send().await.map_err(|error| match error.retry() {
            Retry::Never => WorkflowsError::Invalid(Chain(&error).to_string()),
            Retry::Safe(_) => WorkflowsError::Unavailable(Chain(&error).to_string()),
            Retry::IfIdempotent => WorkflowsError::Unknown(Chain(&error).to_string()),
        })?;
        if answer.is_success() { Ok(answer) } else { Err(refused(&answer, unknown)) }
    }

    fn command(&self, id: &ExecutionId, request: Request) -> Later<'_, Result<(), WorkflowsError>> {
        let id = id.clone();
        Box::pin(async move {
            let request = request.retries(Retries::ConnectOnly);
            self.send(request, || unknown(&id)).await.map(drop)
        })
    }
}

fn path(id: &ExecutionId, rest: &str) -> String {
    format!("/ballet/v1/workflows/{}{rest}", segment(id.as_str()))
}

fn unknown(id: &ExecutionId) -> WorkflowsError {
    WorkflowsError::UnknownExecution(id.clone())
}

#[derive(Deserialize)]
struct RawStarted {
    id: ExecutionId,
    new: bool,
}

impl Workflows for RemoteWorkflows {
    fn start(&self, start: Start) -> Later<'_, Result<Started, WorkflowsError>> {
        Box::pin(async move {
            let body = json!({
                "name": start.name, "version": start.version, "id": start.id, "input": start.input,
                "correlationId": start.correlation_id,
            });
            let request = self.request(Method::POST, "/ballet/v1/workflows").json(&body).trace(start.trace);
            // With an id of its own a start may come twice.
            let retries = if start.id.is_some() { Retries::Idempotent } else { Retries::ConnectOnly };
            let unknown = || WorkflowsError::UnknownWorkflow { name: start.name.clone(), version: start.version };
            let answer = self.send(request.retries(retries), unknown).await?;
            let started: RawStarted = answer.json().map_err(unexpected)?;
            Ok(Started { id: started.id, new: started.new })
        })
    }

    fn get(&self, id: &ExecutionId) -> Later<'_, Result<WorkflowDocument, WorkflowsError>> {
        let id = id.clone();
        Box::pin(async move {
            let answer = self.send(self.request(Method::GET, &path(&id, "")), || unknown(&id)).await?;
            let json: Value = answer.json().map_err(unexpected)?;
            let status = ExecutionStatus::deserialize(&json["status"])
                .map_err(|error| WorkflowsError::Unknown(format!("the document's status: {error}")))?;
            Ok(WorkflowDocument { id, status, json })
        })
    }

    fn signal(&self, id: &ExecutionId, task: &str, output: Value) -> Later<'_, Result<(), WorkflowsError>> {
        let request = self.request(Method::POST, &path(id, &format!("/signal/{}", segment(task)))).json(&output);
        self.command(id, request)
    }

    fn terminate(&self, id: &ExecutionId, reason: &str) -> Later<'_, Result<(), WorkflowsError>> {
        let request = self.request(Method::POST, &path(id, "/terminate")).json(&json!({"reason": reason}));
        self.command(id, request)
    }
}

/// The orchestrator's own error back: by its code, else by the status.
fn refused(answer: &Response, unknown: impl FnOnce() -> WorkflowsError) -> WorkflowsError {
    let problem = answer.problem();
    let text = said(&problem);
    match (problem.code.as_deref(), answer.status.as_u16()) {
        (Some("WF001" | "WF002"), _) | (_, 404) => unknown(),
        (Some("WF003"), _) => WorkflowsError::Invalid(text),
        (Some("WF004"), _) | (_, 409) => WorkflowsError::Conflict(text),
        (Some("WF005"), _) | (_, 408 | 429 | 503) => WorkflowsError::Unavailable(text),
        (Some("WF006"), _) | (_, 500..) => WorkflowsError::Unknown(text),
        (Some(_) | None, _) => WorkflowsError::Invalid(text),
    }
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

fn unexpected(error: ClientError) -> WorkflowsError {
    WorkflowsError::Unknown(error.to_string())
}
