//! What the workflow engine knows of an order: the steps of its checkout, and of its cancellation.

use std::time::Duration;

use ballet_service::axum::body::Bytes;
use ballet_service::axum::http::Request;
use ballet_service::{Context, Timestamp, current_trace};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};

use crate::order::{Order, Status};

/// How long the engine may take: an order is shown without it, too.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Longest answer that is read.
const ANSWER_BYTES: usize = 1 << 20;

/// A step of an order's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    name: String,
    status: String,
    /// RFC 3339: when it ended, else when it last moved.
    at: String,
}

/// The engine's API, Conductor's, at `$BALLET_PLATFORM`.
pub(crate) struct Engine {
    client: Client<HttpConnector, Empty<Bytes>>,
}

/// What orders reads of an execution.
#[derive(Deserialize)]
struct Execution {
    #[serde(default)]
    tasks: Vec<Task>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Task {
    reference_task_name: String,
    status: String,
    /// Milliseconds since 1970, as the others; 0 or nothing: not yet.
    scheduled_time: Option<i64>,
    start_time: Option<i64>,
    update_time: Option<i64>,
    end_time: Option<i64>,
}

impl Engine {
    pub(crate) fn new() -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http() }
    }

    /// The steps of an execution; `None` if the engine is out of reach or does not know it.
    pub(crate) async fn steps(&self, ctx: &Context, execution: &str) -> Option<Vec<Step>> {
        let platform = ctx.config().platform.as_deref()?;
        let uri = format!("{platform}/api/workflow/{execution}?includeTasks=true");
        let mut request = Request::get(uri).header("ballet-caller", "orders");
        if let Some(trace) = current_trace() {
            request = request.header("traceparent", trace.to_string());
        }
        let request = request.body(Empty::new()).ok()?;
        let ask = async {
            let answer = self.client.request(request).await.ok().filter(|answer| answer.status() == 200)?;
            Limited::new(answer.into_body(), ANSWER_BYTES).collect().await.ok()
        };
        let body = tokio::time::timeout(TIMEOUT, ask).await.ok()??.to_bytes();
        Some(steps(serde_json::from_slice::<Execution>(&body).ok()?.tasks))
    }
}

/// The last attempt at each step, in the order of the first ones.
fn steps(tasks: Vec<Task>) -> Vec<Step> {
    let mut steps: Vec<Step> = vec![];
    for task in tasks {
        let times = [task.end_time, task.update_time, task.start_time, task.scheduled_time];
        let at = times.into_iter().flatten().find(|time| *time > 0).unwrap_or_default();
        let step = Step { name: task.reference_task_name, status: task.status, at: Timestamp(at).to_string() };
        match steps.iter_mut().find(|known| known.name == step.name) {
            Some(known) => *known = step,
            None => steps.push(step),
        }
    }
    steps
}

/// What an order knows of its way by itself.
pub(crate) fn known_steps(order: &Order) -> Vec<Step> {
    let done = |name: &str, at: Timestamp| Step { name: name.into(), status: "COMPLETED".into(), at: at.to_string() };
    let last = match order.status {
        Status::Pending => None,
        Status::Confirmed => Some("confirm"),
        Status::Rejected => Some("reject"),
        Status::Cancelled => Some("cancel"),
    };
    let mut steps = vec![done("place", order.created_at)];
    steps.extend(last.map(|name| done(name, order.changed_at)));
    steps
}
