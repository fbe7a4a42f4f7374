//! A subscription at work: takes events as its credit allows, tells the target, settles by the answer.
//!
//! ```text
//! worker (one per subscription) ──take──> engine
//!    ├── delivery task per event: POST or start, then ack, nack, bury or give back ──> engine
//!    └── pauses as a whole while the target is out of reach; one event probes when the pause is over
//! ```
//!
//! While the target is out of reach nothing is written and no attempt is used: events go back to the engine as they came,
//! and each probe is made with another event, so that one that the target never takes does not hold up the rest.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{Instrument, debug, info, info_span, warn};

use ballet_core::{Event, ExecutionId, Problem, Start, TraceContext, Workflows, WorkflowsError, headers};
use ballet_manifest::descend;
use ballet_proxy::{CallError, CallRequest, CallResponse, Upstream};
use ballet_resilience::Backoff;
use ballet_store::{Handed, StoreError, Take};

use crate::config::{Subscription, Target};
use crate::handle::Shared;

/// How long a delivery is the worker's. It settles sooner, or its task has died.
const LEASE: Duration = Duration::from_secs(120);
/// Longest delivery, whatever the policy says: well within the lease.
const MAX_DELIVERY: Duration = Duration::from_secs(90);
/// Wait of one take; then it asks again.
const TAKE_WAIT: Duration = Duration::from_secs(600);
/// Caps of the first and of the longest pause.
const PAUSES: Backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(2));
/// Longest rest that a target may ask for with `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// What an answer means for the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is done.
    Done,
    /// An attempt was used.
    Again(String),
    /// The target cannot take anything now; no attempt was used. Perhaps it says for how long.
    Away(String, Option<Duration>),
    /// No further attempt would help.
    Dead(String),
}

/// When the subscription rests. Pure.
#[derive(Debug, Default)]
struct Pause {
    /// Pauses in a row.
    rounds: u32,
    until: Option<Instant>,
}

/// Serves one subscription until it is stopped.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) subscription: Arc<Subscription>,
    pub(crate) to: To,
    pub(crate) rng: StdRng,
}

/// The target, ready to be told.
#[derive(Clone)]
pub(crate) enum To {
    Service(Arc<Upstream>),
    Workflows(Arc<dyn Workflows>),
}

type Taking = Pin<Box<dyn Future<Output = Result<Vec<Handed>, StoreError>> + Send>>;

impl Worker {
    /// Ends once `stop` says so and what is under way is settled.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut running: JoinSet<Option<(String, Option<Duration>)>> = JoinSet::new();
        let mut taking: Option<Taking> = None;
        let mut pause = Pause::default();
        loop {
            let paused = pause.until(Instant::now());
            let credit = if pause.rounds > 0 { 1 } else { self.subscription.credit.max(1) };
            if taking.is_none() && paused.is_none() && running.len() < credit {
                taking = Some(self.take(credit - running.len()));
            }
            tokio::select! {
                () = stopped(&mut stop) => break,
                Some(done) = running.join_next() => match done {
                    Ok(Some((reason, after))) => self.rest(&mut pause, &reason, after),
                    Ok(None) => self.reached(&mut pause),
                    Err(error) => warn!(%error, "a delivery's task ended; its event comes again after its lease"),
                },
                taken = next(&mut taking), if taking.is_some() => {
                    taking = None;
                    match taken {
                        Ok(handed) => self.deliver_all(handed, &pause, &mut running).await,
                        Err(error) => self.rest(&mut pause, &error.to_string(), None),
                    }
                }
                () = sleep_until(paused), if paused.is_some() => {}
            }
        }
        if let Some(taking) = taking
            && let Ok(Ok(handed)) = tokio::time::timeout(Duration::ZERO, taking).await
        {
            self.give_back(handed).await;
        }
        while running.join_next().await.is_some() {}
    }

    fn take(&self, max: usize) -> Taking {
        let (engine, subscription) = (self.shared.engine.clone(), self.subscription.clone());
        Box::pin(async move {
            let (topic, group) = (subscription.topic.clone(), subscription.group.clone());
            engine.take(Take { topic, group, max, lease: LEASE }, TAKE_WAIT, true).await
        })
    }

    async fn deliver_all(
        &mut self,
        mut handed: Vec<Handed>,
        pause: &Pause,
        running: &mut JoinSet<Option<(String, Option<Duration>)>>,
    ) {
        // Asked for before the target went out of reach: one event is enough to see whether it is back.
        if pause.until(Instant::now()).is_some() || (pause.rounds > 0 && !running.is_empty()) {
            return self.give_back(handed).await;
        }
        if pause.rounds > 0 {
            let rest = handed.split_off(1.min(handed.len()));
            self.give_back(rest).await;
        }
        for handed in handed {
            let rng = StdRng::seed_from_u64(self.rng.next_u64());
            let delivery = Delivery {
                shared: self.shared.clone(),
                subscription: self.subscription.clone(),
                to: self.to.clone(),
                rng,
            };
            let (receipt, trace) = (&handed.receipt, handed.event.trace.map(|trace| trace.trace_id()));
            let (topic, group) = (&receipt.topic, &receipt.group);
            let span = info_span!("process", %topic, %group, offset = receipt.offset.0, attempt = receipt.attempt, trace_id = trace);
            running.spawn(delivery.run(handed).instrument(span));
        }
    }

    async fn give_back(&self, handed: Vec<Handed>) {
        for handed in handed {
            let back = self.shared.engine.give_back(handed.receipt, false, "not tried".into()).await;
            if let Err(error) = back {
                warn!(%error, "an event could not be given back; it comes again after its lease");
            }
        }
    }

    fn rest(&mut self, pause: &mut Pause, reason: &str, after: Option<Duration>) {
        if pause.rounds == 0 {
            let Subscription { topic, target, .. } = &*self.subscription;
            warn!(%topic, %target, reason, "the subscription waits: its target is out of reach");
        }
        pause.wait(after, Instant::now(), &mut self.rng);
    }

    fn reached(&self, pause: &mut Pause) {
        if pause.rounds > 0 {
            let Subscription { topic, group, target, .. } = &*self.subscription;
            info!(%topic, %target, "the subscription goes on");
            // After one round, the next event went through: it was not the target that was away, but one event that it
            // never takes, and that one keeps its rest.
            if pause.rounds > 1 {
                self.shared.engine.resume(topic, group);
            }
            *pause = Pause::default();
        }
    }
}

impl Pause {
    /// Until when it rests, if it does.
    fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// The target was out of reach. What was under way together counts as one round.
    fn wait(&mut self, after: Option<Duration>, now: Instant, rng: &mut impl Rng) {
        let after = after.unwrap_or_default().min(MAX_RETRY_AFTER);
        let mut until = now + after;
        if self.until(now).is_none() {
            self.rounds += 1;
            // Half of the cap at least: everybody's events wait for this target, so there is nothing to spread.
            let half = PAUSES.cap(self.rounds) / 2;
            until = until.max(now + half + PAUSES.rest(self.rounds, rng) / 2);
        }
        self.until = Some(self.until.map_or(until, |earlier| earlier.max(until)));
    }
}

struct Delivery {
    shared: Arc<Shared>,
    subscription: Arc<Subscription>,
    to: To,
    rng: StdRng,
}

impl Delivery {
    /// Tells the target and settles; answers why the target is out of reach, if it is.
    async fn run(mut self, handed: Handed) -> Option<(String, Option<Duration>)> {
        let verdict = match self.to.clone() {
            To::Service(upstream) => self.post(&upstream, &handed.event).await,
            To::Workflows(workflows) => self.start(&*workflows, &handed.event).await,
        };
        let (broker, receipt) = (self.shared.engine.broker(), handed.receipt);
        let redelivery = &self.subscription.redelivery;
        let (settled, away) = match verdict {
            Verdict::Done => (self.shared.engine.done(receipt).await, None),
            Verdict::Dead(reason) => {
                warn!(reason, "the event is a dead letter now");
                (broker.bury(receipt, reason).await, None)
            }
            Verdict::Again(reason) if receipt.attempt >= redelivery.max_attempts => {
                warn!(reason, "the event is a dead letter now: this was its last attempt");
                (broker.bury(receipt, reason).await, None)
            }
            Verdict::Again(reason) => {
                let rest = redelivery.rest(receipt.attempt, &mut self.rng);
                debug!(reason, rest_ms = rest.as_millis(), "the event is tried again");
                (broker.nack(receipt, rest, reason).await, None)
            }
            Verdict::Away(reason, after) => {
                let back = self.shared.engine.give_back(receipt, true, reason.clone()).await;
                (back, Some((reason, after)))
            }
        };
        if let Err(error) = settled {
            warn!(%error, "a delivery could not be settled; the event comes again");
        }
        away
    }

    async fn post(&mut self, upstream: &Upstream, event: &Event) -> Verdict {
        let Target::Service { path, .. } = &self.subscription.target else {
            return Verdict::Dead("the subscription has no service".into());
        };
        let path = match path.eval_path(&|scope, path| lookup(event, scope, path)) {
            Ok(path) => path,
            Err(error) => return Verdict::Dead(format!("no path for the event: {error}")),
        };
        let trace = match event.trace {
            Some(trace) => trace.child(&mut self.rng),
            None => TraceContext::root(&mut self.rng),
        };
        let body = Event { trace: Some(trace), ..event.clone() }.to_json().to_string();
        let request = CallRequest::new("POST", path)
            .header("content-type", Event::MEDIA_TYPE)
            .header(headers::TRACEPARENT, trace.to_string())
            .body(body)
            .timeout(MAX_DELIVERY);
        match upstream.call(request).await {
            Ok(answer) => answered(&answer),
            Err(error) => failed(&error),
        }
    }

    async fn start(&self, workflows: &dyn Workflows, event: &Event) -> Verdict {
        let start = match started(&self.subscription.target, event) {
            Ok(start) => start,
            Err(reason) => return Verdict::Dead(reason),
        };
        match tokio::time::timeout(MAX_DELIVERY, workflows.start(start)).await {
            Ok(Ok(started)) => {
                debug!(execution = %started.id, new = started.new, "the workflow runs");
                Verdict::Done
            }
            Ok(Err(error)) => refused(&error),
            Err(_) => Verdict::Away("the orchestrator gave no answer in time".into(), None),
        }
    }
}

/// The execution that an event starts.
fn started(target: &Target, event: &Event) -> Result<Start, String> {
    let Target::Workflow { name, id } = target else {
        return Err("the subscription has no workflow".into());
    };
    let text = match id {
        Some(template) => template
            .eval_text(&|scope, path| lookup(event, scope, path))
            .map_err(|error| format!("no execution id for the event: {error}"))?,
        None => format!("{name}-{}", event.subject.as_deref().unwrap_or(&event.id)),
    };
    let id: ExecutionId = text.parse().map_err(|error| format!("no execution id for the event: {error}"))?;
    // An execution's input is an object; other data gets a name.
    let input = if event.data.is_object() { event.data.clone() } else { serde_json::json!({ "data": event.data }) };
    let mut start = Start::new(name.clone(), input).id(id);
    start.correlation_id.clone_from(&event.subject);
    start.trace = event.trace;
    Ok(start)
}

fn lookup(event: &Event, scope: &str, path: &[String]) -> Option<serde_json::Value> {
    if scope == "event" { descend(&event.to_json(), path).cloned() } else { None }
}

/// What a service's answer means. Dapr's answers are understood: 200 with `{"status": "SUCCESS" | "RETRY" | "DROP"}`.
fn answered(answer: &CallResponse) -> Verdict {
    let title = || {
        let problem = serde_json::from_slice::<Problem>(&answer.body).ok();
        let said = problem.map(|p| p.detail.map_or(p.title.clone(), |detail| format!("{}: {detail}", p.title)));
        said.map_or(format!("answer {}", answer.status), |said| format!("answer {}: {said}", answer.status))
    };
    match answer.status {
        200 => match dapr_status(&answer.body).as_deref() {
            Some("RETRY") => Verdict::Again("the subscriber asks for another attempt".into()),
            Some("DROP") => Verdict::Dead("dropped by the subscriber".into()),
            Some(_) | None => Verdict::Done,
        },
        201..=299 => Verdict::Done,
        429 | 503 => Verdict::Away(title(), answer.header("retry-after").and_then(seconds)),
        408 | 425 => Verdict::Again(title()),
        400..=499 => Verdict::Dead(title()),
        _ => Verdict::Again(title()),
    }
}

fn dapr_status(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Said {
        status: String,
    }
    serde_json::from_slice::<Said>(body).ok().map(|said| said.status)
}

fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

fn failed(error: &CallError) -> Verdict {
    let reason = ballet_core::Chain(error).to_string();
    match error {
        CallError::BreakerOpen { retry_after } => Verdict::Away(reason, Some(*retry_after)),
        CallError::NoInstance
        | CallError::Connect(_)
        | CallError::BulkheadFull
        | CallError::TimedOut { sent: false } => Verdict::Away(reason, None),
        CallError::TimedOut { sent: true } | CallError::Lost(_) | CallError::TooLarge | CallError::Malformed(_) => {
            Verdict::Again(reason)
        }
        CallError::Invalid(_) => Verdict::Dead(reason),
    }
}

fn refused(error: &WorkflowsError) -> Verdict {
    match error {
        // Its definition may come with the next start of the platform.
        WorkflowsError::UnknownWorkflow { .. } => Verdict::Again(error.to_string()),
        WorkflowsError::Unavailable(_) => Verdict::Away(error.to_string(), None),
        // A start is idempotent by its id, so asking again is safe.
        WorkflowsError::Unknown(_) => Verdict::Away(error.to_string(), None),
        WorkflowsError::Invalid(_) | WorkflowsError::Conflict(_) | WorkflowsError::UnknownExecution(_) => {
            Verdict::Dead(error.to_string())
        }
    }
}

/// Ends when the owner says so, or is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn next(taking: &mut Option<Taking>) -> Result<Vec<Handed>, StoreError> {
    match taking {
        Some(taking) => taking.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use ballet_manifest::Template;
    use serde_json::json;

    use super::*;

    fn answer(status: u16, body: &str, headers: &[(&str, &str)]) -> CallResponse {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        CallResponse { status, headers, body: body.to_owned().into() }
    }

    #[test]
    fn every_answer_has_its_meaning() {
        let problem = r#"{"type":"about:blank","title":"No such order","status":404}"#;
        for (status, body, headers, expected) in [
            (200, "", &[][..], "done"),
            (204, "", &[], "done"),
            (200, r#"{"status":"SUCCESS"}"#, &[], "done"),
            (200, r#"{"status":200}"#, &[], "done"),
            (201, r#"{"status":"RETRY"}"#, &[], "done"),
            (200, r#"{"status":"RETRY"}"#, &[], "again"),
            (200, r#"{"status":"DROP"}"#, &[], "dead: dropped by the subscriber"),
            (302, "", &[], "again"),
            (400, "", &[], "dead: answer 400"),
            (404, problem, &[], "dead: answer 404: No such order"),
            (408, "", &[], "again"),
            (409, "", &[], "dead: answer 409"),
            (425, "", &[], "again"),
            (429, "", &[("retry-after", "3")], "away 3"),
            (500, problem, &[], "again"),
            (503, "", &[], "away 0"),
            (503, "", &[("Retry-After", "soon")], "away 0"),
        ] {
            let said = match answered(&answer(status, body, headers)) {
                Verdict::Done => "done".to_owned(),
                Verdict::Again(_) => "again".to_owned(),
                Verdict::Away(_, after) => format!("away {}", after.unwrap_or_default().as_secs()),
                Verdict::Dead(reason) => format!("dead: {reason}"),
            };
            assert_eq!(said, expected, "{status} {body}");
        }
    }

    #[test]
    fn what_was_not_sent_uses_no_attempt() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        for (error, away) in [
            (CallError::NoInstance, true),
            (CallError::Connect(refused()), true),
            (CallError::BreakerOpen { retry_after: Duration::from_secs(5) }, true),
            (CallError::BulkheadFull, true),
            (CallError::TimedOut { sent: false }, true),
            (CallError::TimedOut { sent: true }, false),
            (CallError::Lost(refused()), false),
            (CallError::TooLarge, false),
        ] {
            let verdict = failed(&error);
            assert_eq!(matches!(verdict, Verdict::Away(..)), away, "{error}: {verdict:?}");
        }
    }

    #[test]
    fn an_event_names_its_execution() {
        let target = |id: Option<&str>| Target::Workflow {
            name: "checkout".parse().unwrap(),
            id: id.map(|id| Template::parse(id).unwrap()),
        };
        let event = |subject: Option<&str>, data| {
            let mut event = Event::new("order.placed".parse().unwrap(), "orders", data);
            (event.id, event.subject) = ("e1".into(), subject.map(str::to_owned));
            event
        };
        for (id, subject, expected) in [
            (None, Some("7"), Ok("checkout-7")),
            (None, None, Ok("checkout-e1")),
            (Some("o-${event.data.number}"), Some("7"), Ok("o-42")),
            (Some("${event.data.nothing:-x}-${event.id}"), None, Ok("x-e1")),
            (Some("${event.data.nothing}"), None, Err(())),
            (None, Some("a/b"), Err(())),
        ] {
            let start = started(&target(id), &event(subject, json!({"number": 42})));
            let got = start.as_ref().map(|s| s.id.as_ref().unwrap().as_str()).map_err(|_| ());
            assert_eq!(got, expected, "{id:?} {subject:?}");
        }
        assert_eq!(started(&target(None), &event(None, json!([1]))).unwrap().input, json!({"data": [1]}));
    }

    #[test]
    fn pauses_grow_and_count_once_for_what_was_under_way_together() {
        let (mut pause, mut rng, mut now) = (Pause::default(), StdRng::seed_from_u64(3), Instant::now());
        let mut rests = vec![];
        for _ in 0..12 {
            for _ in 0..16 {
                pause.wait(None, now, &mut rng);
            }
            let until = pause.until(now).unwrap();
            rests.push((until - now).as_millis());
            now = until;
        }
        assert_eq!(pause.rounds, 12);
        assert!((50..=100).contains(&rests[0]), "{rests:?}");
        assert!(rests[1..5].windows(2).all(|w| w[1] * 10 >= w[0] * 9), "{rests:?}");
        assert!(rests[9..].iter().all(|r| (1_000..=2_000).contains(r)), "{rests:?}");
        pause.wait(Some(Duration::from_secs(3600)), now, &mut rng);
        assert_eq!(pause.until(now), Some(now + MAX_RETRY_AFTER), "nobody puts us off for an hour");
    }
}
