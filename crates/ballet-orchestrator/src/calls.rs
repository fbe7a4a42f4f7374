//! The exchanges under way: every one of them comes to an outcome, also one whose task panics.

use std::collections::HashMap;

use ballet_core::{ExecutionId, TraceContext, headers};
use ballet_proxy::{CallError, CallMode, CallRequest};
use serde_json::{Value, json};
use tokio::task::{Id, JoinSet};
use tracing::error;

use crate::outcome::Outcome;

/// Calls under way. Dropping it ends them all.
#[derive(Default)]
pub(crate) struct Calls {
    set: JoinSet<Outcome>,
    /// Whose they are: a task that panics cannot say so itself.
    whose: HashMap<Id, (ExecutionId, usize)>,
}

impl Calls {
    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.set.len()
    }

    /// Begins the call of an attempt.
    pub(crate) fn spawn(&mut self, id: ExecutionId, task: usize, call: impl Future<Output = Outcome> + Send + 'static) {
        let handle = self.set.spawn(call);
        self.whose.insert(handle.id(), (id, task));
    }

    /// Waits for the next call that ends; none if none is under way. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<(ExecutionId, usize, Outcome)> {
        loop {
            let (id, outcome) = match self.set.join_next_with_id().await? {
                Ok(done) => done,
                Err(error) => {
                    error!(%error, "the call of a step broke off");
                    let reason = "the call broke off inside the orchestrator".into();
                    let output = json!({});
                    (error.id(), Outcome::Unknown { reason, code: None, status: 0, timed_out: false, output })
                }
            };
            if let Some((execution, task)) = self.whose.remove(&id) {
                return Some((execution, task, outcome));
            }
        }
    }

    /// Ends them all where they stand.
    pub(crate) fn abort_all(&mut self) {
        self.set.abort_all();
    }
}

/// The exchange of one attempt.
///
/// # Errors
/// `Invalid` without an address: nothing may be sent that nobody asked for.
pub(crate) fn request(of: &Value, key: &str, trace: &TraceContext) -> Result<CallRequest, CallError> {
    let Some(path) = of["uri"].as_str().and_then(|uri| uri.strip_prefix("service://")) else {
        return Err(CallError::Invalid("it has no address".into()));
    };
    let path = path.split_once('/').map_or("", |(_, path)| path);
    let method = of["method"].as_str().unwrap_or("GET");
    let mut request = CallRequest::new(method, format!("/{path}")).mode(CallMode::Once);
    for (name, value) in of["headers"].as_object().into_iter().flatten() {
        let own = [headers::IDEMPOTENCY_KEY, headers::TRACEPARENT, headers::CALLER, "content-type"];
        if !own.iter().any(|h| name.eq_ignore_ascii_case(h)) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            request = request.header(name.to_ascii_lowercase(), value);
        }
    }
    // `ballet-caller` is the upstreams' own.
    request = request.header(headers::IDEMPOTENCY_KEY, key).header(headers::TRACEPARENT, trace.to_string());
    Ok(match of.get("body") {
        Some(body) if !body.is_null() => request.json(body),
        Some(_) | None => request,
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[tokio::test]
    async fn a_call_that_panics_has_an_unknown_outcome() {
        let mut calls = Calls::default();
        assert_eq!(calls.next().await, None);
        calls.spawn("a-1".parse().unwrap(), 7, async { panic!("a bug") });
        let (id, task, outcome) = calls.next().await.unwrap();
        assert_eq!((id.as_str(), task), ("a-1", 7));
        assert!(matches!(outcome, Outcome::Unknown { timed_out: false, .. }), "{outcome:?}");
        calls.spawn("a-2".parse().unwrap(), 0, async { Outcome::Done(json!(1)) });
        assert_eq!(calls.next().await, Some(("a-2".parse().unwrap(), 0, Outcome::Done(json!(1)))));
        assert!(calls.whose.is_empty() && calls.len() == 0);
    }

    #[test]
    fn what_has_no_address_is_not_sent() {
        let trace = TraceContext::root(&mut StdRng::seed_from_u64(1));
        for of in [json!({}), Value::Null, json!({ "method": "POST" }), json!({ "uri": 7 }), json!({ "uri": "/x" })] {
            assert!(matches!(request(&of, "k", &trace), Err(CallError::Invalid(_))), "{of}");
        }
        let sent = request(&json!({ "uri": "service://a/b?c=d", "method": "PUT" }), "k", &trace).unwrap();
        assert_eq!((sent.method.as_str(), sent.path.as_str()), ("PUT", "/b?c=d"));
    }
}
