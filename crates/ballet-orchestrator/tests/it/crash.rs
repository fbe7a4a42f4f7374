//! The engine dies at every commit, before and after it, and starts again on the same journal.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ballet_core::{ExecutionStatus, Start, Workflows};
use ballet_store::{Answer, Batch, Epoch, Journal, Memory, Owner, Page, Query, Reply, Shard, Table};
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
