//! Suites for the three seams: the engine's own handle and the client over HTTP pass the same ones.
//!
//! Each takes the seam and what it needs to provoke; it panics with the contract's number that was broken.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::{
    Discovery, Event, Events, EventsError, ExecutionId, GroupName, Instance, Later, Pull, ServiceName, Start,
    TopicName, WorkflowName, Workflows, WorkflowsError,
};

/// What the suite of [`Discovery`] needs besides the seam: someone who registers.
pub trait Registrar: Send + Sync {
    /// Registers an instance as `Up`; done when acknowledged.
    fn register(&self, instance: Instance) -> Later<'_, ()>;
    /// Takes it out again.
    fn deregister(&self, instance: &Instance) -> Later<'_, ()>;
}

/// Contract 1 to 4 of [`Discovery`]. `instance` belongs to a service that nobody registered yet.
pub async fn discovery(seam: Arc<dyn Discovery>, registrar: &dyn Registrar, instance: Instance) {
    let service = instance.service.clone();
    let before = seam.resolve(&service).await.expect("1: an unknown service is no error");
    assert!(before.all.is_empty(), "1: nobody is there yet");

    let watching = {
        let (seam, service, seen) = (seam.clone(), service.clone(), before.version);
        async move { seam.watch(&service, seen).await.expect("3: a watch answers") }
    };
    let (woken, ()) = join(watching, registrar.register(instance.clone())).await;
    assert_eq!(woken.all.len(), 1, "3: the watch wakes with the change");

    let after = seam.resolve(&service).await.expect("2: resolve answers");
    assert_eq!(after.up().collect::<Vec<_>>().len(), 1, "2: what was acknowledged is seen");
    assert_eq!(after.all[0].address, instance.address, "2: with its address");
    assert!(after.version > before.version, "4: the version grew");
    let at_once = seam.watch(&service, before.version).await.expect("3: a watch of an old version answers at once");
    assert_eq!(at_once.version, after.version, "3: with what is known now");

    registrar.deregister(&instance).await;
    assert!(seam.resolve(&service).await.expect("resolve answers").up().next().is_none(), "2: gone is gone");
}

/// Contract 1 to 6 of [`Events`]. `topic` exists and is empty; leases of 200 ms must be possible.
pub async fn events(seam: Arc<dyn Events>, topic: TopicName) {
    let pull = |group: &str, wait: u64| Pull {
        topic: topic.clone(),
        group: group.parse::<GroupName>().expect("a valid group"),
        max: 10,
        wait: Duration::from_millis(wait),
        lease: Duration::from_secs(30),
    };
    let event = |n: i32| Event::new(topic.clone(), "conformance", json!({ "n": n })).subject(n.to_string());
    for group in ["a", "b"] {
        assert!(seam.pull(pull(group, 0)).await.expect("6: an empty topic is no error").is_empty());
    }

    let places = seam.publish(vec![event(1), event(2), event(3)]).await.expect("1: published");
    assert!(places.windows(2).all(|w| w[0] < w[1]), "1: places rise");

    let got = seam.pull(pull("a", 5_000)).await.expect("2: a pull answers");
    assert_eq!(got.iter().map(|d| d.event.data["n"].as_i64()).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)], "2");
    assert!(seam.pull(pull("a", 0)).await.expect("3").is_empty(), "3: they are with one consumer");
    assert_eq!(seam.pull(pull("b", 5_000)).await.expect("2").len(), 3, "2: every group gets every event");

    seam.ack(got[0].receipt.clone()).await.expect("an ack");
    seam.nack(got[1].receipt.clone(), Duration::ZERO, "not now".into()).await.expect("5: a nack");
    let again = seam.pull(pull("a", 5_000)).await.expect("5: comes again");
    assert_eq!(again.len(), 1, "5: only the one given back");
    assert_eq!((again[0].receipt.offset, again[0].receipt.attempt), (got[1].receipt.offset, 2), "5: as attempt 2");
    assert!(matches!(seam.ack(got[1].receipt.clone()).await, Err(EventsError::Stale)), "4: an old receipt is stale");
    seam.ack(again[0].receipt.clone()).await.expect("4: the new receipt settles");

    let short = Pull { lease: Duration::from_millis(200), ..pull("c", 0) };
    assert!(seam.pull(short.clone()).await.expect("a new group").is_empty(), "2: it starts with the next event");
    seam.publish(vec![event(4)]).await.expect("published");
    assert_eq!(seam.pull(Pull { wait: Duration::from_secs(5), ..short.clone() }).await.expect("3").len(), 1);
    let later =
        seam.pull(Pull { wait: Duration::from_secs(10), ..short }).await.expect("3: after the lease it comes again");
    assert_eq!(later.iter().map(|d| d.receipt.attempt).collect::<Vec<_>>(), [2], "3: as attempt 2");

    let unknown: TopicName = "conformance.unknown".parse().expect("a valid topic");
    let refused = seam.publish(vec![event(5), Event::new(unknown, "conformance", json!({}))]).await;
    assert!(matches!(refused, Err(EventsError::UnknownTopic(_))), "1: all or nothing");
    let waiting: Vec<_> =
        seam.pull(pull("b", 0)).await.expect("a pull").iter().map(|d| d.event.data["n"].clone()).collect();
    assert_eq!(waiting, [json!(4)], "1: nothing of the refused batch was accepted");
}

/// Contract 1 to 4 of [`Workflows`]. `name` is a definition whose first task waits for a worker and never ends by itself.
pub async fn workflows(seam: Arc<dyn Workflows>, name: WorkflowName) {
    let id: ExecutionId = "conformance-1".parse().expect("a valid id");
    let start = Start::new(name.clone(), json!({"x": 1})).id(id.clone());
    let first = seam.start(start.clone()).await.expect("1: started");
    assert_eq!((first.id.as_str(), first.new), ("conformance-1", true), "1");
    assert!(!seam.start(start.clone()).await.expect("2: a known id is no error").new, "2: it has no effect");
    let document = seam.get(&id).await.expect("3: it can be read");
    assert!(!document.status.is_final(), "3: and runs");
    assert_eq!(document.json["input"], json!({"x": 1}), "3: with its input");

    seam.terminate(&id, "no longer wanted").await.expect("4: terminated");
    assert!(seam.get(&id).await.expect("3").status.is_final(), "4: nothing had to be undone, so it is final");
    assert!(matches!(seam.terminate(&id, "again").await, Err(WorkflowsError::Conflict(_))), "4: it has ended");
    assert!(!seam.start(start).await.expect("2").new, "2: also after the end");

    let nobody: ExecutionId = "conformance-unknown".parse().expect("a valid id");
    assert!(matches!(seam.get(&nobody).await, Err(WorkflowsError::UnknownExecution(_))), "3: nothing is invented");
    let missing: WorkflowName = "conformance-missing".parse().expect("a valid name");
    assert!(
        matches!(seam.start(Start::new(missing, json!({}))).await, Err(WorkflowsError::UnknownWorkflow { .. })),
        "1"
    );
    let generated = seam.start(Start::new(name, json!({}))).await.expect("1: an id is made");
    assert_ne!(generated.id, id, "1");
}

/// The service name that suites use.
pub fn some_service() -> ServiceName {
    "conformance".parse().expect("a valid name")
}

/// Polls two futures until both are done; the first is polled first.
async fn join<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let (mut left, mut right) = (None, None);
    std::future::poll_fn(move |cx| {
        if left.is_none()
            && let std::task::Poll::Ready(value) = a.as_mut().poll(cx)
        {
            left = Some(value);
        }
        if right.is_none()
            && let std::task::Poll::Ready(value) = b.as_mut().poll(cx)
        {
            right = Some(value);
        }
        match (left.take(), right.take()) {
            (Some(l), Some(r)) => std::task::Poll::Ready((l, r)),
            (l, r) => {
                (left, right) = (l, r);
                std::task::Poll::Pending
            }
        }
    })
    .await
}
