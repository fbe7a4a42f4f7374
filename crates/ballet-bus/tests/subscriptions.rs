//! The bus at its seams: the core's suite, subscriptions that start workflows, dead letters, HTTP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use ballet_bus::{Bus, Config, Embedded, Handle, Redelivery, Subscription, TopicConfig};
use ballet_core::{
    Event, Events, EventsError, ExecutionId, Fixed, GroupName, Later, Offset, Policy, Pull, Start, Started,
    SystemClock, TopicName, WorkflowDocument, Workflows, WorkflowsError,
};
use ballet_proxy::{PolicyTable, Upstreams};
use ballet_store::{Journal, Memory, MemoryBroker};

/// Starts workflows as a script says; answers `new` when the script is silent.
#[derive(Default)]
struct Script {
    /// Answers by execution id, first come first.
    answers: Mutex<BTreeMap<String, VecDeque<WorkflowsError>>>,
    /// Started executions, in order, with the time.
    seen: Mutex<Vec<(String, Instant)>>,
    /// Leave to answer; none needed without it.
    gate: Option<Semaphore>,
    under_way: Mutex<(usize, usize)>,
    /// Out of reach until then.
    away_until: Option<Instant>,
}

impl Script {
    fn answer(&self, id: &str, errors: impl IntoIterator<Item = WorkflowsError>) {
        self.answers.lock().unwrap().entry(id.into()).or_default().extend(errors);
    }

    fn ids(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|(id, _)| id.clone()).collect()
    }
}

impl Workflows for Script {
    fn start(&self, start: Start) -> Later<'_, Result<Started, WorkflowsError>> {
        Box::pin(async move {
            let id = start.id.expect("the bus names the execution");
            {
                let mut under_way = self.under_way.lock().unwrap();
                under_way.0 += 1;
                under_way.1 = under_way.1.max(under_way.0);
            }
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            self.under_way.lock().unwrap().0 -= 1;
            if self.away_until.is_some_and(|until| Instant::now() < until) {
                return Err(unavailable());
            }
            self.seen.lock().unwrap().push((id.to_string(), Instant::now()));
            match self.answers.lock().unwrap().get_mut(id.as_str()).and_then(VecDeque::pop_front) {
                Some(error) => Err(error),
                None => Ok(Started { id, new: true }),
            }
        })
    }

    fn get(&self, id: &ExecutionId) -> Later<'_, Result<WorkflowDocument, WorkflowsError>> {
        let error = WorkflowsError::UnknownExecution(id.clone());
        Box::pin(async { Err(error) })
    }

    fn signal(&self, id: &ExecutionId, _: &str, _: Value) -> Later<'_, Result<(), WorkflowsError>> {
        let error = WorkflowsError::UnknownExecution(id.clone());
        Box::pin(async { Err(error) })
    }

    fn terminate(&self, id: &ExecutionId, _: &str) -> Later<'_, Result<(), WorkflowsError>> {
        let error = WorkflowsError::UnknownExecution(id.clone());
        Box::pin(async { Err(error) })
    }
}

fn topic() -> TopicName {
    "order.placed".parse().unwrap()
}

fn group() -> GroupName {
    "workflow:checkout".parse().unwrap()
}

fn event(n: i64, key: &str) -> Event {
    let mut event = Event::new(topic(), "orders", json!({ "n": n })).subject(format!("{n}"));
    event.extensions.insert("partitionkey".into(), key.into());
    event
}

fn subscription() -> Subscription {
    Subscription::workflow(topic(), "checkout".parse().unwrap(), None).unwrap()
}

fn upstreams() -> Upstreams {
    Upstreams::new("bus", Arc::new(Fixed::default()), PolicyTable::new(Policy::default()), 1)
}

async fn bus(journal: &Arc<dyn Journal>) -> Bus {
    let clock = Arc::new(SystemClock);
    Bus::new(Embedded::open(journal.clone(), clock.clone()).await.unwrap(), clock, 1)
}

fn journal() -> Arc<dyn Journal> {
    Arc::new(Memory::default())
}

async fn apply(bus: &Bus, subscription: Subscription, script: &Arc<Script>) {
    let config = Config { topics: vec![TopicConfig::new(topic())], subscriptions: vec![subscription] };
    let workflows: Arc<dyn Workflows> = script.clone();
    bus.apply(config, &upstreams(), &workflows).await.unwrap();
}

/// Waits until a group has nothing left to do.
async fn settled(handle: &Handle) -> (u64, Instant) {
    loop {
        let group = handle.topics().await.unwrap()[0].groups[0].state.clone();
        if group.waiting + group.in_flight == 0 {
            return (group.dead, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn unavailable() -> WorkflowsError {
    WorkflowsError::Unavailable("starting".into())
}

#[tokio::test(start_paused = true)]
async fn the_handle_keeps_the_seams_contract() {
    let bus = bus(&journal()).await;
    bus.declare(vec![TopicConfig::new(topic())]).await.unwrap();
    ballet_core::conformance::events(Arc::new(bus.handle()), topic()).await;
}

#[tokio::test(start_paused = true)]
async fn the_handle_keeps_the_contract_over_another_broker() {
    let broker: Arc<dyn ballet_store::Broker> = Arc::new(MemoryBroker::default());
    let bus = Bus::new(broker, Arc::new(SystemClock), 1);
    bus.declare(vec![TopicConfig::new(topic())]).await.unwrap();
    ballet_core::conformance::events(Arc::new(bus.handle()), topic()).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_starts_its_workflow_once_the_platform_is_up() {
    let (bus, script) = (bus(&journal()).await, Arc::new(Script::default()));
    bus.declare(vec![TopicConfig::new(topic())]).await.unwrap();
    // Published before anybody subscribed: the group sees the topic from its beginning.
    bus.handle().publish(vec![event(1, "a"), event(2, "b")]).await.unwrap();
    // Out of reach for 30 rounds, more than there are attempts.
    script.answer("checkout-1", (0..30).map(|_| unavailable()));
    let start = Instant::now();
    apply(&bus, subscription(), &script).await;
    let (dead, end) = settled(&bus.handle()).await;
    assert_eq!(dead, 0, "an orchestrator that is away costs no attempts");
    assert!(end - start > Duration::from_secs(30), "it was not asked in a hurry");
    let ids = script.ids();
    assert_eq!(ids.iter().filter(|id| *id == "checkout-1").count(), 31);
    assert_eq!(ids.iter().filter(|id| *id == "checkout-2").count(), 1);
    let second = script.seen.lock().unwrap().iter().find(|(id, _)| id == "checkout-2").unwrap().1;
    assert!(second - start < Duration::from_secs(1), "one event that is never taken does not hold up the rest");
    bus.stop(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn everything_goes_on_at_once_when_the_target_is_back() {
    let back = Instant::now() + Duration::from_secs(120);
    let (bus, script) = (bus(&journal()).await, Arc::new(Script { away_until: Some(back), ..Script::default() }));
    apply(&bus, subscription(), &script).await;
    bus.handle().publish((0..100).map(|n| event(n, &n.to_string())).collect()).await.unwrap();
    let (dead, end) = settled(&bus.handle()).await;
    assert_eq!((dead, script.ids().len()), (0, 100));
    assert!(end - back < Duration::from_millis(2_500), "{:?}", end - back);
}

#[tokio::test(start_paused = true)]
async fn attempts_end_in_a_dead_letter_that_can_be_replayed() {
    let (bus, script) = (bus(&journal()).await, Arc::new(Script::default()));
    let redelivery = Redelivery { max_attempts: 3, ..Redelivery::default() };
    apply(&bus, Subscription { redelivery, ..subscription() }, &script).await;
    let unknown = || WorkflowsError::UnknownWorkflow { name: "checkout".parse().unwrap(), version: None };
    script.answer("checkout-1", (0..3).map(|_| unknown()));
    script.answer("checkout-2", [WorkflowsError::Invalid("no such input".into())]);
    let handle = bus.handle();
    handle.publish(vec![event(1, "a"), event(2, "a"), event(3, "a")]).await.unwrap();
    assert_eq!(settled(&handle).await.0, 2);
    assert_eq!(script.ids(), ["checkout-1", "checkout-1", "checkout-1", "checkout-2", "checkout-3"], "a key's order");

    let dead = handle.dead(&topic(), &group(), Offset(0), 10).await.unwrap();
    let letters: Vec<_> = dead.iter().map(|d| (d.offset.0, d.attempts, d.reason.as_str())).collect();
    assert_eq!(letters, [(1, 3, "no workflow named `checkout`"), (2, 1, "no such input")]);
    handle.replay(&topic(), &group(), Offset(1)).await.unwrap();
    assert_eq!(settled(&handle).await.0, 1);
    assert_eq!(script.ids().last().unwrap(), "checkout-1");
    assert!(matches!(handle.replay(&topic(), &group(), Offset(1)).await, Err(EventsError::Invalid(_))));
}

#[tokio::test(start_paused = true)]
async fn a_slow_target_gets_no_more_than_its_credit() {
    let script = Arc::new(Script { gate: Some(Semaphore::new(0)), ..Script::default() });
    let bus = bus(&journal()).await;
    apply(&bus, Subscription { credit: 4, ..subscription() }, &script).await;
    let handle = bus.handle();
    handle.publish((0..40).map(|n| event(n, &(n % 8).to_string())).collect()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(script.under_way.lock().unwrap().0, 4);
    assert_eq!(handle.topics().await.unwrap()[0].groups[0].state.in_flight, 4);
    script.gate.as_ref().unwrap().add_permits(40);
    settled(&handle).await;
    assert_eq!(script.under_way.lock().unwrap().1, 4);
    // Each key's events in the order of their publishing.
    let numbers: Vec<i64> = script.ids().iter().map(|id| id.trim_start_matches("checkout-").parse().unwrap()).collect();
    for key in 0..8 {
        let line: Vec<i64> = numbers.iter().copied().filter(|n| n % 8 == key).collect();
        assert!(line.is_sorted() && line.len() == 5, "key {key}: {line:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_stays_and_a_restart_loses_nothing() {
    let (journal, script) = (journal(), Arc::new(Script { gate: Some(Semaphore::new(0)), ..Script::default() }));
    let first = bus(&journal).await;
    apply(&first, subscription(), &script).await;
    first.handle().publish((0..20).map(|n| event(n, &n.to_string())).collect()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(script.under_way.lock().unwrap().0, 16);
    apply(&first, subscription(), &script).await;
    assert_eq!(script.under_way.lock().unwrap().0, 16, "the same subscription goes on");
    // Cut off in the middle: nothing was answered, so everything comes again.
    first.stop(Duration::from_millis(10)).await;

    let open = Arc::new(Script::default());
    let second = bus(&journal).await;
    apply(&second, subscription(), &open).await;
    settled(&second.handle()).await;
    assert_eq!(open.ids().len(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_cannot_work_is_refused() {
    let (bus, script) = (bus(&journal()).await, Arc::new(Script::default()) as Arc<dyn Workflows>);
    let twice = Config { topics: vec![TopicConfig::new(topic())], subscriptions: vec![subscription(), subscription()] };
    let unknown = Config { topics: vec![], subscriptions: vec![subscription()] };
    for (config, code) in [(twice, "BU002"), (unknown, "BU001")] {
        let error = bus.apply(config, &upstreams(), &script).await.unwrap_err();
        assert_eq!(ballet_core::Classify::code(&error).0, code);
    }
}

#[tokio::test(start_paused = true)]
async fn limits_are_refused_with_their_reason() {
    let bus = bus(&journal()).await;
    bus.declare(vec![TopicConfig::new(topic())]).await.unwrap();
    let handle = bus.handle();
    let big = Event::new(topic(), "test", json!("x".repeat(ballet_bus::MAX_EVENT_BYTES)));
    assert!(matches!(handle.publish(vec![event(1, "a"), big]).await, Err(EventsError::TooLarge { .. })));
    let many = (0..=ballet_bus::MAX_PUBLISH as i64).map(|n| event(n, "a")).collect();
    assert!(matches!(handle.publish(many).await, Err(EventsError::Invalid(_))));
    let pull = |max, lease| Pull { topic: topic(), group: group(), max, wait: Duration::ZERO, lease };
    for (max, lease) in [(0, 1), (1001, 1), (1, 0), (1, 13 * 3600)] {
        let refused = handle.pull(pull(max, Duration::from_secs(lease))).await;
        assert!(matches!(refused, Err(EventsError::Invalid(_))), "{max} {lease}");
    }
    handle.pull(pull(1, Duration::from_secs(1))).await.unwrap();
    handle.publish(vec![event(1, "a")]).await.unwrap();
    // Ten leases run out: it is a dead letter, and says why.
    for attempt in 1..=10 {
        let got = handle.pull(Pull { wait: Duration::from_secs(5), ..pull(1, Duration::from_secs(1)) }).await.unwrap();
        assert_eq!(got[0].receipt.attempt, attempt);
        assert!(got[0].event.time.is_some(), "stamped when it was accepted");
    }
    assert!(
        handle.pull(Pull { wait: Duration::from_secs(5), ..pull(1, Duration::from_secs(1)) }).await.unwrap().is_empty()
    );
    assert_eq!(handle.dead(&topic(), &group(), Offset(0), 10).await.unwrap()[0].reason, "10 leases ran out");
}
