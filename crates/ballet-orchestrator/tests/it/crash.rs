//! The engine dies at every commit, before and after it, and starts again on the same journal.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ballet_core::{ExecutionStatus, Start, Workflows};
use ballet_store::{Answer, Batch, Epoch, Journal, Memory, Owner, Page, Query, Reply, Shard, StoreError, Table};
use serde_json::json;
use tokio::sync::Notify;

use crate::world::{Services, engine, order, settled, upstreams};

/// Commits `left` more batches of the engine, then answers nobody any more.
struct Dying {
    inner: Arc<Memory>,
    left: AtomicI64,
    /// The last batch is written, but nobody hears of it.
    after: bool,
    dead: Notify,
    unanswered: Mutex<Vec<Answer<()>>>,
}

impl Journal for Dying {
    fn open(&self, tables: &[&'static Table]) -> Reply<()> {
        self.inner.open(tables)
    }

    fn commit(&self, batch: Batch) -> Reply<()> {
        // Definitions carry no fence: only the executions' commits count.
        let left = if batch.fence.is_none() { i64::MAX } else { self.left.fetch_sub(1, Ordering::SeqCst) };
        if left > 1 {
            return self.inner.commit(batch);
        }
        if left == 1 && self.after {
            drop(self.inner.commit(batch));
        }
        let (answer, reply) = Reply::new();
        self.unanswered.lock().unwrap().push(answer);
        self.dead.notify_one();
        reply
    }

    fn scan(&self, query: Query) -> Reply<Page> {
        self.inner.scan(query)
    }

    /// As a store that one process alone uses: whoever held shards before has ended.
    fn claim(&self, shards: &[Shard], owner: &Owner, _: Duration) -> Reply<Vec<(Shard, Epoch)>> {
        self.inner.claim(shards, owner, Duration::ZERO)
    }
}

/// Runs an order and lets the engine die at its `n`th commit; `false` once it ends before that.
async fn die_at(n: i64, after: bool, card: &str) -> bool {
    let text = format!("{card} card, commit {n}, {}", if after { "after" } else { "before" });
    let services = Services::default();
    if card == "refused" {
        services.script("POST /payments", vec![(402, json!({ "code": "card-declined" })); 20]);
    }
    let address = services.serve().await;
    let memory = Arc::new(Memory::default());
    let dying = |left: i64| {
        let (inner, left) = (memory.clone(), AtomicI64::new(left));
        Arc::new(Dying { inner, left, after, dead: Notify::new(), unanswered: Mutex::default() })
    };
    let first = dying(n);
    let handle = engine(first.clone(), upstreams(address)).await;
    let start = Start::new("checkout".parse().unwrap(), order("7")).id("checkout-7".parse().unwrap());
    let id = start.id.clone().unwrap();
    let whole = async {
        handle.start(start.clone()).await.unwrap();
        settled(&handle, &id).await
    };
    let died = tokio::select! {
        _ = whole => false,
        () = first.dead.notified() => true,
    };
    handle.crash();
    let second = engine(dying(i64::MAX), upstreams(address)).await;
    // Whoever got no answer asks again, with its id.
    second.start(start).await.unwrap();
    let document = settled(&second, &id).await;
    let expected = if card == "refused" { ExecutionStatus::Failed } else { ExecutionStatus::Completed };
    assert_eq!(document.status, expected, "{text}: {:#}", document.json);
    let effects = services.effects();
    assert!(effects.values().all(|n| *n == 1), "{text}: an effect was applied twice: {effects:?}");
    let keys: Vec<&str> = effects.keys().map(String::as_str).collect();
    if card == "refused" {
        assert_eq!(keys, ["checkout-7/failed/0"], "{text}: all of it is undone");
    } else {
        assert_eq!(keys, ["checkout-7/charge/0", "checkout-7/confirm/0", "checkout-7/reserve/0"], "{text}");
    }
    let tasks = document.json["tasks"].as_array().unwrap();
    assert!(tasks.iter().all(|t| t["executed"] == true), "{text}: every attempt has ended: {tasks:#?}");
    second.shutdown(Duration::from_secs(1)).await;
    died
}

#[tokio::test]
async fn it_goes_on_after_a_crash_at_every_commit() {
    for card in ["good", "refused"] {
        for after in [false, true] {
            let mut n = 1;
            while die_at(n, after, card).await {
                n += 1;
            }
            assert!(n >= 5, "{card}: an order has at least four commits, not {}", n - 1);
        }
    }
}

/// What goes wrong with one commit.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// The disk refuses once.
    Refused,
    /// It is written, but the answer is lost.
    LostAfter,
    /// It is not written, and nobody knows.
    LostBefore,
}

/// A journal with one bad moment.
struct Moody {
    inner: Memory,
    left: AtomicI64,
    trouble: Trouble,
}

impl Journal for Moody {
    fn open(&self, tables: &[&'static Table]) -> Reply<()> {
        self.inner.open(tables)
    }

    fn commit(&self, batch: Batch) -> Reply<()> {
        if batch.fence.is_none() || self.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return self.inner.commit(batch);
        }
        match self.trouble {
            Trouble::Refused => Reply::ready(Err(StoreError::Failed("no space left".into()))),
            Trouble::LostAfter => {
                drop(self.inner.commit(batch));
                Reply::ready(Err(StoreError::Unknown("gone".into())))
            }
            Trouble::LostBefore => Reply::ready(Err(StoreError::Unknown("gone".into()))),
        }
    }

    fn scan(&self, query: Query) -> Reply<Page> {
        self.inner.scan(query)
    }

    fn claim(&self, shards: &[Shard], owner: &Owner, lease: Duration) -> Reply<Vec<(Shard, Epoch)>> {
        self.inner.claim(shards, owner, lease)
    }
}

async fn goes_on(trouble: Trouble, n: i64) {
    let services = Services::default();
    let address = services.serve().await;
    let journal = Arc::new(Moody { inner: Memory::default(), left: AtomicI64::new(n), trouble });
    let handle = engine(journal, upstreams(address)).await;
    let start = Start::new("checkout".parse().unwrap(), order("7")).id("checkout-7".parse().unwrap());
    // Refused or unanswered: ask again.
    for _ in 0..3 {
        if handle.start(start.clone()).await.is_ok() {
            break;
        }
    }
    let document = settled(&handle, &"checkout-7".parse().unwrap()).await;
    assert_eq!(document.status, ExecutionStatus::Completed, "{trouble:?} at commit {n}: {:#}", document.json);
    let effects = services.effects();
    assert!(effects.len() == 3 && effects.values().all(|n| *n == 1), "{trouble:?} at commit {n}: {effects:?}");
}

#[tokio::test]
async fn it_goes_on_when_the_journal_refuses_or_does_not_answer() {
    let mut cases = tokio::task::JoinSet::new();
    for trouble in [Trouble::Refused, Trouble::LostAfter, Trouble::LostBefore] {
        for n in 1..=4 {
            cases.spawn(goes_on(trouble, n));
        }
    }
    while let Some(done) = cases.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn a_stopped_engine_gives_its_shards_to_the_next() {
    let services = Services::default();
    let address = services.serve().await;
    let memory = Arc::new(Memory::default());
    let first = engine(memory.clone(), upstreams(address)).await;
    let waits = first.start(Start::new("waits".parse().unwrap(), json!({}))).await.unwrap();
    first.shutdown(Duration::from_secs(5)).await;
    assert!(first.start(Start::new("waits".parse().unwrap(), json!({}))).await.is_err(), "it has stopped");

    // A lease of 15 s would hold the second one up.
    let second = tokio::time::timeout(Duration::from_secs(5), engine(memory, upstreams(address))).await.unwrap();
    let task = second.poll("wait", "w", 1, Duration::from_secs(5)).await.unwrap();
    assert_eq!(task[0]["workflowInstanceId"], waits.id.as_str(), "it is offered again");
    second.signal(&waits.id, "wait", json!({})).await.unwrap();
    assert_eq!(settled(&second, &waits.id).await.status, ExecutionStatus::Completed);
}

/// Commits that wait to be let through.
type HeldBack = Vec<(Batch, Answer<()>)>;

/// A journal that can be made to hold commits back.
#[derive(Default)]
struct Held {
    inner: Memory,
    held: Mutex<Option<HeldBack>>,
    asked: Notify,
}

impl Held {
    fn hold(&self) {
        *self.held.lock().unwrap() = Some(vec![]);
    }

    async fn release(&self) {
        let held = self.held.lock().unwrap().take().unwrap();
        for (batch, answer) in held {
            let _ = answer.send(self.inner.commit(batch).await);
        }
    }
}

impl Journal for Held {
    fn open(&self, tables: &[&'static Table]) -> Reply<()> {
        self.inner.open(tables)
    }

    fn commit(&self, batch: Batch) -> Reply<()> {
        let mut held = self.held.lock().unwrap();
        let Some(held) = held.as_mut() else { return self.inner.commit(batch) };
        let (answer, reply) = Reply::new();
        held.push((batch, answer));
        self.asked.notify_one();
        reply
    }

    fn scan(&self, query: Query) -> Reply<Page> {
        self.inner.scan(query)
    }

    fn claim(&self, shards: &[Shard], owner: &Owner, lease: Duration) -> Reply<Vec<(Shard, Epoch)>> {
        self.inner.claim(shards, owner, lease)
    }
}

#[tokio::test]
async fn no_task_is_handed_out_before_its_commit() {
    let journal = Arc::new(Held::default());
    let handle = engine(journal.clone(), upstreams(Services::default().serve().await)).await;
    let id = handle.start(Start::new("waits".parse().unwrap(), json!({}))).await.unwrap().id;
    // Its first task still stands in the queue, and the new one takes over its row.
    handle.terminate(&id, "not yet").await.unwrap();
    settled(&handle, &id).await;
    journal.hold();
    let restart = tokio::spawn({
        let (handle, id) = (handle.clone(), id.clone());
        async move { handle.restart(&id, None).await }
    });
    journal.asked.notified().await;
    let early = handle.poll("wait", "w", 1, Duration::ZERO).await.unwrap();
    assert!(early.is_empty(), "it may never have been: {early:#?}");
    journal.release().await;
    restart.await.unwrap().unwrap();
    assert_eq!(handle.poll("wait", "w", 1, Duration::from_secs(5)).await.unwrap().len(), 1);
}
