//! Conductor's documents: the Workflow, its Tasks, and their summaries.

use ballet_core::{Timestamp, WorkflowDocument};
use serde_json::{Map, Value, json};

use crate::plan::{Plan, Work};
use crate::state::{Execution, Role, Task, TaskStatus, status_word};

/// The Workflow document.
pub(crate) fn workflow(plan: &Plan, x: &Execution, include_tasks: bool) -> WorkflowDocument {
    let tasks: Vec<Value> = if include_tasks { (0..x.tasks.len()).map(|i| task(plan, x, i)).collect() } else { vec![] };
    let failed: Vec<&Task> = x.tasks.iter().filter(|t| !t.retried && ended_badly(t.status)).collect();
    let mut references: Vec<String> = failed.iter().map(|t| reference(plan, t.role)).collect();
    references.dedup();
    let mut names: Vec<String> = failed.iter().map(|t| name(plan, t.role)).collect();
    names.dedup();
    let mut json = json!({
        "ownerApp": "",
        "createTime": x.created,
        "updateTime": x.updated,
        "status": status_word(x.status),
        "endTime": x.ended,
        "workflowId": x.id.as_str(),
        "tasks": tasks,
        "input": x.input,
        "output": object(&x.output),
        "taskToDomain": {},
        "failedReferenceTaskNames": references,
        "failedTaskNames": names,
        "workflowDefinition": plan.definition,
        "priority": x.priority,
        "variables": {},
        "lastRetriedTime": 0,
        "history": [],
        "rateLimited": false,
        "startTime": x.created,
        "workflowName": x.name,
        "workflowVersion": x.version,
    });
    let mut more = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            json[key] = value;
        }
    };
    more("correlationId", x.correlation_id.as_ref().map(|id| json!(id)));
    more("createdBy", x.created_by.as_ref().map(|name| json!(name)));
    more("reasonForIncompletion", x.ending.as_ref().map(|e| json!(e.reason)));
    more("compensation", x.compensation(plan));
    let failure = x.ending.as_ref().map(|e| {
        let status = if e.http_status == 0 { Value::Null } else { json!(e.http_status) };
        json!({ "step": e.step, "status": status, "code": e.code, "reason": e.reason })
    });
    more("failure", failure);
    WorkflowDocument { id: x.id.clone(), status: x.status, json }
}

/// One Task.
pub(crate) fn task(plan: &Plan, x: &Execution, index: usize) -> Value {
    let t = &x.tasks[index];
    let (kind, response_timeout) = match t.role {
        Role::Do(i) => match &plan.steps[i].work {
            Work::Poll(polled) => (polled.queue.clone(), polled.response_timeout.as_secs()),
            Work::Call(_) => ("HTTP".to_owned(), 0),
        },
        Role::Undo(_) | Role::Failed => ("HTTP".to_owned(), 0),
    };
    let (reference, name) = (reference(plan, t.role), name(plan, t.role));
    let workflow_task = match t.role {
        Role::Do(i) => plan.steps[i].task.clone(),
        Role::Undo(_) | Role::Failed => json!({ "name": name, "taskReferenceName": reference, "type": "HTTP" }),
    };
    let wait = if t.started == Timestamp(0) { 0 } else { t.started.0.saturating_sub(t.scheduled.0).max(0) };
    let mut json = json!({
        "taskType": kind,
        "status": t.status.as_str(),
        "inputData": object(&t.input),
        "referenceTaskName": reference,
        "retryCount": t.retry_count,
        "seq": index + 1,
        "pollCount": t.poll_count,
        "taskDefName": name,
        "scheduledTime": t.scheduled,
        "startTime": t.started,
        "endTime": t.ended,
        "updateTime": t.updated,
        "startDelayInSeconds": t.delay_s,
        "retried": t.retried,
        "executed": t.status.is_final(),
        "callbackFromWorker": true,
        "responseTimeoutSeconds": response_timeout,
        "workflowInstanceId": x.id.as_str(),
        "workflowType": x.name,
        "taskId": t.id,
        "callbackAfterSeconds": if t.status.is_final() { 0 } else { t.delay_s },
        "outputData": object(&t.output),
        "workflowTask": workflow_task,
        "rateLimitPerFrequency": 0,
        "rateLimitFrequencyInSeconds": 1,
        "workflowPriority": x.priority,
        "iteration": 0,
        "subworkflowChanged": false,
        "firstStartTime": t.started,
        "executionMetadata": {},
        "loopOverTask": false,
        "queueWaitTime": wait,
        "idempotencyKey": x.key(plan, t.role),
    });
    let mut more = |key: &str, value: Option<&String>| {
        if let Some(value) = value {
            json[key] = json!(value);
        }
    };
    more("retriedTaskId", t.retried_id.as_ref());
    more("reasonForIncompletion", t.reason.as_ref());
    more("workerId", t.worker.as_ref());
    more("correlationId", x.correlation_id.as_ref());
    json
}

/// What a worker is handed: the Task, and for the manifest's steps the key and the trace where every SDK shows them.
pub(crate) fn handed(plan: &Plan, x: &Execution, index: usize) -> Value {
    let mut json = task(plan, x, index);
    if let Role::Do(i) = x.tasks[index].role
        && plan.steps[i].task["metadata"]["ballet"].is_object()
    {
        json["inputData"]["_ballet"] = json!({ "idempotencyKey": json["idempotencyKey"], "traceparent": x.trace });
    }
    json
}

/// Conductor's WorkflowSummary.
pub(crate) fn summary(x: &Execution) -> Value {
    let (input, output) = (x.input.to_string(), object(&x.output).to_string());
    let took = if x.ended == Timestamp(0) { 0 } else { x.ended.0.saturating_sub(x.created.0).max(0) };
    let failed: Vec<&str> = x.ending.iter().map(|e| e.step.as_str()).filter(|step| !step.is_empty()).collect();
    let mut json = json!({
        "workflowType": x.name,
        "version": x.version,
        "workflowId": x.id.as_str(),
        "startTime": x.created.to_string(),
        "updateTime": x.updated.to_string(),
        "status": status_word(x.status),
        "executionTime": took,
        "failedReferenceTaskNames": failed.join(","),
        "failedTaskNames": failed,
        "priority": x.priority,
        "taskToDomain": {},
        "parentWorkflowId": "",
        "classifier": "workflow",
        "inputSize": input.len(),
        "outputSize": output.len(),
        "input": input,
        "output": output,
    });
    if let Some(id) = &x.correlation_id {
        json["correlationId"] = json!(id);
    }
    if let Some(name) = &x.created_by {
        json["createdBy"] = json!(name);
    }
    if let Some(ending) = &x.ending {
        json["reasonForIncompletion"] = json!(ending.reason);
    }
    if x.ended != Timestamp(0) {
        json["endTime"] = json!(x.ended.to_string());
    }
    json
}

fn object(value: &Value) -> Value {
    match value {
        Value::Object(_) => value.clone(),
        Value::Null => Value::Object(Map::new()),
        // Conductor wraps what is no map.
        other @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => json!({ "output": other }),
    }
}

fn reference(plan: &Plan, role: Role) -> String {
    match role {
        Role::Do(i) => plan.steps[i].reference.clone(),
        Role::Undo(i) => format!("{}.undo", plan.steps[i].reference),
        Role::Failed => "failed".into(),
    }
}

fn name(plan: &Plan, role: Role) -> String {
    match role {
        Role::Do(i) => plan.steps[i].name.clone(),
        Role::Undo(i) => format!("{}.undo", plan.steps[i].name),
        Role::Failed => "failed".into(),
    }
}

fn ended_badly(status: TaskStatus) -> bool {
    match status {
        TaskStatus::Failed | TaskStatus::FailedWithTerminalError | TaskStatus::TimedOut => true,
        TaskStatus::Scheduled
        | TaskStatus::InProgress
        | TaskStatus::Completed
        | TaskStatus::CompletedWithErrors
        | TaskStatus::Canceled => false,
    }
}
