//! The writer thread: what is synced and what is not, and whom a commit wakes.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use ballet_service::{Error, Result, Store, Tx};
use serde_json::json;

use crate::rig::Rig;

const FULL: u8 = 2;
const NORMAL: u8 = 1;

/// How the transaction is committed.
fn level(tx: &Tx<'_>) -> Result<u8> {
    Ok(tx.query_row("PRAGMA synchronous", [], |row| row.get(0))?)
}

/// Writes its name, once the writer is let go.
fn held(name: &'static str) -> (impl FnOnce(&Tx<'_>) -> Result<u8> + Send, mpsc::Sender<()>) {
    let (release, hold) = mpsc::channel();
    let write = move |tx: &Tx<'_>| {
        hold.recv().map_err(Error::internal)?;
        named(name)(tx)
    };
    (write, release)
}

fn named(name: &'static str) -> impl FnOnce(&Tx<'_>) -> Result<u8> + Send {
    move |tx| {
        tx.execute("INSERT INTO things VALUES (?1, ?1, '')", [name])?;
        level(tx)
    }
}

async fn names(store: &Store) -> String {
    let sql = "SELECT group_concat(name, '') FROM (SELECT name FROM things ORDER BY rowid)";
    store.read(|db| Ok(db.query_row(sql, [], |row| row.get(0))?)).await.unwrap()
}

#[tokio::test]
async fn only_what_may_be_lost_is_committed_without_a_sync() {
    let rig = Rig::start().await;
    let store = rig.service.context().store();
    for _ in 0..2 {
        assert_eq!(store.write_unsynced(level).await.unwrap(), NORMAL);
        assert_eq!(store.write(level).await.unwrap(), FULL);
    }

    // All that waits behind an ordinary write shares its sync.
    let (write, release) = held("a");
    let levels = tokio::join!(store.write(write), store.write_unsynced(named("b")), store.write(named("c")), async {
        release.send(()).unwrap();
    });
    assert_eq!((levels.0.unwrap(), levels.1.unwrap(), levels.2.unwrap()), (FULL, FULL, FULL));

    // An ordinary write never comes into a transaction without a sync; it waits for the next, and keeps its turn.
    let (write, release) = held("d");
    let levels = tokio::join!(
        store.write_unsynced(write),
        store.write_unsynced(named("e")),
        store.write(named("f")),
        store.write_unsynced(named("g")),
        async { release.send(()).unwrap() }
    );
    let levels = [levels.0, levels.1, levels.2, levels.3].map(Result::unwrap);
    assert_eq!(levels, [NORMAL, NORMAL, FULL, FULL]);
    assert_eq!(names(store).await, "abcdefg");
}

#[tokio::test]
async fn an_unsynced_write_cannot_publish() {
    let rig = Rig::start().await;
    let store = rig.service.context().store();
    let publish = |tx: &Tx<'_>| tx.publish("thing.added", "1", &json!({}));
    // Whatever it shares a transaction with.
    let (write, release) = held("a");
    let (_, refused, alone) = tokio::join!(store.write(write), store.write_unsynced(publish), async {
        release.send(()).unwrap();
        store.write_unsynced(publish).await
    });
    assert!(refused.is_err() && alone.is_err());
    store.write(publish).await.unwrap();
    rig.bus.has(1).await;
}

#[tokio::test]
async fn a_commit_wakes_the_task_it_names() {
    let rig = Rig::start().await;
    let store = Arc::new(rig.service.context().store().clone());
    let patience = Duration::from_secs(10);
    let sleeper = store.clone();
    let asleep = tokio::spawn(async move {
        sleeper.woken("sender").await;
        names(&sleeper).await
    });
    let add = |name| {
        move |tx: &Tx<'_>| {
            tx.wake("sender");
            named(name)(tx)
        }
    };
    tokio::task::yield_now().await;
    store.write(add("a")).await.unwrap();
    let seen = tokio::time::timeout(patience, asleep).await.expect("it is woken").unwrap();
    assert_eq!(seen, "a", "once it is committed");

    // Who is not asleep yet does not fall asleep.
    store.write(add("b")).await.unwrap();
    tokio::time::timeout(patience, store.woken("sender")).await.expect("the wake-up is kept");
    let others = tokio::time::timeout(Duration::from_millis(1), store.woken("other")).await;
    assert!(others.is_err(), "others sleep on");
}
