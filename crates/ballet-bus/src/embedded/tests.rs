//! A group against a model of itself, and the engine over crashes, failing disks and time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::time::{Instant, advance};

use ballet_core::{Event, GroupName, ManualClock, Offset, SystemClock, Timestamp, TopicName};
use ballet_store::conformance::BrokerRig;
use ballet_store::{
    Batch, Broker, Epoch, Handed, Journal, Memory, Owner, Page, Position, Query, Reply, Shard, StoreError, Table, Take,
    TopicSpec,
};

use super::Embedded;
use super::engine::LAZY;
use super::group::{Body, Group, Taken, Want, Write};

struct Rig(Embedded);

impl Rig {
    async fn new() -> Self {
        Self(open(&(Arc::new(Memory::default()) as Arc<dyn Journal>)).await)
    }
}

impl BrokerRig for Rig {
    fn handle(&self) -> Arc<dyn Broker> {
        Arc::new(self.0.clone())
    }
}

ballet_store::broker_conformance!(Rig::new().await);

async fn open(journal: &Arc<dyn Journal>) -> Embedded {
    Embedded::open(journal.clone(), Arc::new(SystemClock)).await.unwrap()
}

fn topic() -> TopicName {
    "order.placed".parse().unwrap()
}

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

fn event(n: i64, key: &str) -> Event {
    Event::new(topic(), "test", json!({ "n": n })).subject(key)
}

fn take(name: &str, max: usize) -> Take {
    Take { topic: topic(), group: group(name), max, lease: Duration::from_secs(30) }
}

fn numbers(handed: &[Handed]) -> Vec<(i64, u32)> {
    handed.iter().map(|h| (h.event.data["n"].as_i64().unwrap(), h.receipt.attempt)).collect()
}

async fn prepared(journal: &Arc<dyn Journal>, events: i64) -> Embedded {
    let broker = open(journal).await;
    broker.declare(TopicSpec { name: topic(), keep: Duration::from_secs(3600) }).await.unwrap();
    broker.join(&topic(), &group("g"), Position::Start).await.unwrap();
    broker.publish(&topic(), (1..=events).map(|n| event(n, &n.to_string())).collect()).await.unwrap();
    broker
}

/// What stands on disk for one group, as [`Write`]s make it.
#[derive(Clone, Default)]
struct Disk {
    marks: (i64, i64),
    rows: BTreeMap<i64, Option<u32>>,
}

impl Disk {
    fn write(&mut self, group: &Group, writes: Vec<Write>) {
        for write in writes {
            match write {
                Write::Waits { offset, attempts, .. } => drop(self.rows.insert(offset, Some(attempts))),
                Write::Settled(offset) => drop(self.rows.insert(offset, None)),
                Write::Forget(offset) => drop(self.rows.remove(&offset)),
                // As the engine does: the marks as they stand at the end.
                Write::Marks { .. } => {
                    if let Write::Marks { cursor, passed } = group.marks() {
                        self.marks = (cursor, passed);
                    }
                }
            }
        }
    }

    fn load(&self, now: Instant) -> Group {
        let mut group = Group::load(self.marks.0, self.marks.1);
        for (offset, waits) in &self.rows {
            match waits {
                Some(attempts) => group.load_waiting(*offset, *attempts, now),
                None => group.load_settled(*offset),
            }
        }
        group
    }
}

/// Nothing is lost, nothing whose settling is on disk comes again, keys keep their order, over crashes at any moment.
#[tokio::test(start_paused = true)]
async fn a_group_loses_nothing_over_crashes() {
    let seed = std::env::var("BALLET_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    for seed in seed..seed + 200u64 {
        println!("BALLET_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let ordered = seed % 2 == 0;
        let events: Vec<Event> = (0..60).map(|n| event(n, &rng.random_range(0..6).to_string())).collect();
        let gone: BTreeSet<i64> = (0..4).map(|_| rng.random_range(1..60)).collect();
        let body = |offset: i64| match gone.contains(&offset) {
            true => Body::Gone,
            false => Body::Here(&events[offset as usize - 1]),
        };
        let mut disk = Disk { marks: (1, 1), ..Disk::default() };
        let (mut group, mut end) = (disk.load(Instant::now()), 1);
        let mut settled = BTreeSet::new();
        let mut out: Vec<(i64, u32)> = vec![];
        // Settled lazily: what is still to be written, and what a crash undoes.
        let (mut gathered, mut undone) = (vec![], BTreeSet::new());
        for step in 0..2000 {
            // The world ends well: from here on everything is settled.
            let calm = step >= 1400;
            end = if calm { 61 } else { (end + rng.random_range(0..2)).min(61) };
            let mut writes = vec![];
            let mut lazily = false;
            match if calm { step % 3 } else { rng.random_range(0..8) } {
                0 | 3 => {
                    let want = Want { max: rng.random_range(1..5), lease: Duration::from_secs(5), ordered };
                    let Taken::Events(taken) = group.take(Instant::now(), want, end, body, &mut writes) else {
                        panic!()
                    };
                    for (offset, attempt) in taken {
                        assert!(!settled.contains(&offset), "{offset} was settled");
                        assert!(attempt >= 1 && offset < end);
                        let key = events[offset as usize - 1].key();
                        let younger =
                            |o: &&(i64, u32)| events[o.0 as usize - 1].key() == key && group.under_way(o.0, o.1);
                        if ordered {
                            assert!(!out.iter().any(|o| younger(&o)), "one event of a key at a time");
                            let elder = (1..offset).find(|o| {
                                events[*o as usize - 1].key() == key && !settled.contains(o) && !gone.contains(o)
                            });
                            assert_eq!(elder, None, "an elder of {offset} is not settled");
                        }
                        out.push((offset, attempt));
                    }
                }
                1 | 4 if !out.is_empty() => {
                    let (offset, attempt) = out.swap_remove(rng.random_range(0..out.len()));
                    if group.under_way(offset, attempt) {
                        group.settle(offset, &mut writes);
                        settled.insert(offset);
                        lazily = !calm && rng.random();
                        if lazily {
                            undone.insert(offset);
                        }
                    }
                }
                5 if !out.is_empty() => {
                    let (offset, attempt) = out.swap_remove(rng.random_range(0..out.len()));
                    if group.under_way(offset, attempt) {
                        let delay = Duration::from_secs(rng.random_range(0..3));
                        group.give_back(offset, Instant::now(), delay, &mut writes);
                    }
                }
                6 if !out.is_empty() => {
                    let (offset, attempt) = out.swap_remove(rng.random_range(0..out.len()));
                    if group.under_way(offset, attempt) {
                        match rng.random() {
                            true => group.take_back(offset),
                            false => group.put_off(offset, Instant::now()),
                        }
                    }
                }
                2 => advance(Duration::from_secs(if calm { 6 } else { 1 })).await,
                7 if rng.random_range(0..6) == 0 => {
                    group = disk.load(Instant::now());
                    out.clear();
                    gathered.clear();
                    settled.retain(|offset| !undone.contains(offset));
                    undone.clear();
                }
                _ => {}
            }
            let something = !writes.is_empty();
            gathered.extend(writes);
            if something && !lazily {
                disk.write(&group, std::mem::take(&mut gathered));
                undone.clear();
            }
        }
        disk.write(&group, gathered);
        let lost: Vec<i64> = (1..61).filter(|o| !gone.contains(o) && !settled.contains(o)).collect();
        assert_eq!(lost, [0i64; 0], "lost");
        assert_eq!(group.counts(Instant::now(), 61), (0, 0, 0));
        // Everything is settled: the group's row says it all.
        let left: Vec<_> = disk.rows.keys().filter(|o| **o < disk.marks.0).collect();
        assert!(left.is_empty(), "rows below the cursor: {left:?}");
    }
}

/// The engine with both kinds of acks, over crashes: what was acked durably never comes again, what was acked lazily only
/// if the process died before the next write, and nothing is lost.
#[tokio::test(start_paused = true)]
async fn only_a_lazy_ack_can_be_lost() {
    let seed = std::env::var("BALLET_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let mut came_again = 0;
    for seed in seed..seed + 40u64 {
        println!("BALLET_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let journal: Arc<dyn Journal> = Arc::new(Memory::default());
        let mut broker = prepared(&journal, 0).await;
        let mut published = 0;
        let (mut settled, mut lazy, mut unsure) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut out: Vec<Handed> = vec![];
        for _ in 0..300 {
            match rng.random_range(0..8) {
                0 | 3 => {
                    for handed in broker.take(take("g", rng.random_range(1..4))).await.unwrap() {
                        let n = handed.event.data["n"].as_i64().unwrap();
                        assert!(!settled.contains(&n) && !lazy.contains(&n), "{n} was acked");
                        came_again += u32::from(unsure.remove(&n));
                        out.push(handed);
                    }
                }
                1 | 4 if !out.is_empty() => {
                    let handed = out.swap_remove(rng.random_range(0..out.len()));
                    let n = handed.event.data["n"].as_i64().unwrap();
                    if rng.random() {
                        if broker.ack_lazily(vec![handed.receipt]).await.is_ok() {
                            lazy.insert(n);
                        }
                    } else if broker.ack(vec![handed.receipt]).await.is_ok() {
                        settled.insert(n);
                        settled.append(&mut lazy);
                    }
                }
                2 => {
                    let rest = Duration::from_millis(rng.random_range(0..=400));
                    tokio::time::sleep(rest).await;
                    if rest > LAZY {
                        settled.append(&mut lazy);
                    }
                }
                5 | 6 => {
                    published += 1;
                    broker.publish(&topic(), vec![event(published, "k")]).await.unwrap();
                    settled.append(&mut lazy);
                }
                7 if rng.random_range(0..3) == 0 => {
                    // The one before hangs and is kept out from now on.
                    broker = open(&journal).await;
                    unsure.append(&mut lazy);
                    out.clear();
                }
                _ => {}
            }
        }
        // The world ends well: every lease runs out, everything is settled.
        loop {
            tokio::time::sleep(Duration::from_secs(31)).await;
            settled.append(&mut lazy);
            let rest = broker.take(take("g", 100)).await.unwrap();
            if rest.is_empty() {
                break;
            }
            for n in numbers(&rest).into_iter().map(|(n, _)| n) {
                assert!(settled.insert(n), "{n} was acked");
                unsure.remove(&n);
            }
            broker.ack(rest.into_iter().map(|handed| handed.receipt).collect()).await.unwrap();
        }
        // Some of the lazy acks before a crash had been written, by the timer.
        let lost: Vec<i64> = (1..=published).filter(|n| !settled.contains(n) && !unsure.contains(n)).collect();
        assert_eq!(lost, [0i64; 0], "lost");
    }
    assert!(came_again > 0, "no crash came between a lazy ack and its write");
}

#[tokio::test(start_paused = true)]
async fn lazy_acks_share_a_write() {
    let full = Arc::new(Full::default());
    let journal: Arc<dyn Journal> = full.clone();
    let broker = prepared(&journal, 5).await;
    let mut receipts = broker.take(take("g", 5)).await.unwrap().into_iter().map(|handed| handed.receipt);
    let mut next = || vec![receipts.next().unwrap()];
    let before = full.commits.load(Ordering::SeqCst);
    let commits = || full.commits.load(Ordering::SeqCst) - before;
    let start = Instant::now();

    let first = next();
    broker.ack_lazily(first.clone()).await.unwrap();
    broker.ack_lazily(next()).await.unwrap();
    assert!(matches!(broker.ack_lazily(first).await, Err(StoreError::Invalid(_))), "it is settled already");
    assert_eq!((commits(), start.elapsed()), (0, Duration::ZERO));
    tokio::time::sleep(LAZY * 2).await;
    assert_eq!(commits(), 1, "nobody came along");

    broker.ack_lazily(next()).await.unwrap();
    broker.publish(&topic(), vec![event(6, "6")]).await.unwrap();
    tokio::time::sleep(LAZY * 2).await;
    assert_eq!(commits(), 2, "together with the event");

    broker.ack_lazily(next()).await.unwrap();
    broker.ack(next()).await.unwrap();
    let last = broker.take(take("g", 5)).await.unwrap();
    broker.ack_lazily(vec![last[0].receipt.clone()]).await.unwrap();
    broker.close().await.unwrap();
    assert_eq!(commits(), 4, "together with the other ack, and at the end");
    let again = open(&journal).await.take(take("g", 10)).await.unwrap();
    assert_eq!(numbers(&again), [], "all of them are on disk");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_settled_comes_again_after_a_crash() {
    let journal: Arc<dyn Journal> = Arc::new(Memory::default());
    let broker = prepared(&journal, 5).await;
    let handed = broker.take(take("g", 4)).await.unwrap();
    broker.ack(vec![handed[0].receipt.clone(), handed[2].receipt.clone()]).await.unwrap();
    broker.nack(handed[3].receipt.clone(), Duration::ZERO, "busy".into()).await.unwrap();

    // The old engine is still there, as a process that hangs: its next write must not land.
    let next = open(&journal).await;
    assert_eq!(numbers(&next.take(take("g", 10)).await.unwrap()), [(2, 2), (4, 2), (5, 1)]);
    let late = broker.ack(vec![handed[1].receipt.clone()]).await;
    assert!(matches!(late, Err(StoreError::Fenced(_))), "{late:?}");
    assert!(matches!(broker.publish(&topic(), vec![event(6, "6")]).await, Err(StoreError::Fenced(_))));

    let third = open(&journal).await;
    assert_eq!(
        numbers(&third.take(take("g", 10)).await.unwrap()),
        [(2, 2), (4, 2), (5, 1)],
        "no ack of theirs counted"
    );
}

#[tokio::test(start_paused = true)]
async fn a_take_waits_for_events_leases_and_delays_without_polling() {
    let journal: Arc<dyn Journal> = Arc::new(Memory::default());
    let broker = prepared(&journal, 0).await;
    let waiting = || broker.take_within(take("g", 10), Duration::from_secs(100), false);
    let start = Instant::now();

    let parked = waiting();
    broker.publish(&topic(), vec![event(1, "a")]).await.unwrap();
    let first = parked.await.unwrap();
    assert_eq!((numbers(&first), start.elapsed()), (vec![(1, 1)], Duration::ZERO));

    let again = waiting().await.unwrap();
    assert_eq!((numbers(&again), start.elapsed()), (vec![(1, 2)], Duration::from_secs(30)), "after its lease");

    broker.nack(again[0].receipt.clone(), Duration::from_secs(9), String::new()).await.unwrap();
    let third = waiting().await.unwrap();
    assert_eq!((numbers(&third), start.elapsed()), (vec![(1, 3)], Duration::from_secs(39)), "after its delay");

    broker.give_back(third[0].receipt.clone(), false);
    assert_eq!(numbers(&waiting().await.unwrap()), [(1, 3)], "as if it had not been handed out");

    let empty = broker.take_within(take("g", 10), Duration::from_secs(20), false).await.unwrap();
    assert_eq!((empty.len(), start.elapsed()), (0, Duration::from_secs(59)), "the wait ends before the lease does");
}

#[tokio::test(start_paused = true)]
async fn a_taker_that_hung_up_costs_no_attempt() {
    let journal: Arc<dyn Journal> = Arc::new(Memory::default());
    let broker = prepared(&journal, 0).await;
    drop(broker.take_within(take("g", 10), Duration::from_secs(100), false));
    broker.publish(&topic(), vec![event(1, "a")]).await.unwrap();
    assert_eq!(numbers(&broker.take(take("g", 10)).await.unwrap()), [(1, 1)]);
}

#[tokio::test(start_paused = true)]
async fn one_event_of_a_key_at_a_time() {
    let journal: Arc<dyn Journal> = Arc::new(Memory::default());
    let broker = prepared(&journal, 0).await;
    let keys = [(1, "a"), (2, "b"), (3, "a"), (4, "b"), (5, "a")];
    broker.publish(&topic(), keys.map(|(n, key)| event(n, key)).to_vec()).await.unwrap();
    let next = || broker.take_within(take("g", 10), Duration::ZERO, true);
    let first = next().await.unwrap();
    assert_eq!(numbers(&first), [(1, 1), (2, 1)]);
    broker.nack(first[0].receipt.clone(), Duration::from_secs(5), "busy".into()).await.unwrap();
    broker.ack(vec![first[1].receipt.clone()]).await.unwrap();
    let second = next().await.unwrap();
    assert_eq!(numbers(&second), [(4, 1)], "`a` waits for its eldest, `b` goes on");

    // The exception's row does not hold the key: it is read again before the others are let go.
    let broker = open(&journal).await;
    let next = || broker.take_within(take("g", 10), Duration::from_secs(60), true);
    assert_eq!(numbers(&next().await.unwrap()), [(4, 2)]);
    let eldest = next().await.unwrap();
    assert_eq!(numbers(&eldest), [(1, 2)]);
    broker.bury(eldest[0].receipt.clone(), "no".into()).await.unwrap();
    assert_eq!(next().await.unwrap()[0].event.data["n"], json!(3));
}

#[tokio::test(start_paused = true)]
async fn events_older_than_the_memory_are_read_from_disk() {
    let journal: Arc<dyn Journal> = Arc::new(Memory::default());
    let broker = prepared(&journal, 0).await;
    let big = "x".repeat(20_000);
    for n in 0..300 {
        let event = Event::new(topic(), "test", json!({ "n": n, "big": big })).subject((n % 7).to_string());
        broker.publish(&topic(), vec![event]).await.unwrap();
    }
    let mut seen = vec![];
    while seen.len() < 300 {
        let handed = broker.take_within(take("g", 70), Duration::from_secs(1), true).await.unwrap();
        assert!(!handed.is_empty(), "after {}", seen.len());
        seen.extend(numbers(&handed).into_iter().map(|(n, _)| n));
        broker.ack(handed.into_iter().map(|h| h.receipt).collect()).await.unwrap();
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..300).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn old_events_go_once_every_group_has_settled_them() {
    let journal: Arc<dyn Journal> = Arc::new(Memory::default());
    let clock = ManualClock::at(Timestamp(1_000_000_000));
    let broker = Embedded::open(journal.clone(), Arc::new(clock.clone())).await.unwrap();
    broker.declare(TopicSpec { name: topic(), keep: Duration::from_secs(3600) }).await.unwrap();
    for name in ["g", "slow"] {
        broker.join(&topic(), &group(name), Position::Start).await.unwrap();
    }
    broker.publish(&topic(), (1..=250).map(|n| event(n, "k")).collect()).await.unwrap();
    let left = async || journal.scan(Query::of(&super::rows::EVENT)).await.unwrap().rows.len();
    let settle = async |name: &str, leave: usize| {
        let handed = broker.take(take(name, 1000)).await.unwrap();
        let all = handed.into_iter().map(|h| h.receipt).skip(leave).collect();
        broker.ack(all).await.unwrap();
    };
    let pass = async || {
        clock.advance(Duration::from_secs(3601));
        tokio::time::sleep(Duration::from_secs(61)).await;
    };
    settle("g", 0).await;
    pass().await;
    assert_eq!(left().await, 250, "`slow` has not seen them");
    settle("slow", 1).await;
    pass().await;
    assert_eq!(left().await, 250, "it has not settled the first");
    settle("slow", 0).await;
    pass().await;
    assert_eq!(left().await, 1, "the newest stays: it tells the next place");

    broker.seek(&topic(), &group("g"), Position::Start).await.unwrap();
    assert_eq!(numbers(&broker.take(take("g", 10)).await.unwrap()), [(250, 1)]);
    let next = Embedded::open(journal.clone(), Arc::new(clock)).await.unwrap();
    assert_eq!(next.publish(&topic(), vec![event(251, "k")]).await.unwrap(), [Offset(251)]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_outlives_its_event() {
    let journal: Arc<dyn Journal> = Arc::new(Memory::default());
    let clock = ManualClock::at(Timestamp(1_000_000_000));
    let broker = Embedded::open(journal.clone(), Arc::new(clock.clone())).await.unwrap();
    broker.declare(TopicSpec { name: topic(), keep: Duration::from_secs(60) }).await.unwrap();
    broker.join(&topic(), &group("g"), Position::Start).await.unwrap();
    broker.publish(&topic(), vec![event(1, "a"), event(2, "b")]).await.unwrap();
    let handed = broker.take(take("g", 10)).await.unwrap();
    broker.bury(handed[0].receipt.clone(), "bad \0 thing".into()).await.unwrap();
    broker.ack(vec![handed[1].receipt.clone()]).await.unwrap();
    clock.advance(Duration::from_secs(600));
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(journal.scan(Query::of(&super::rows::EVENT)).await.unwrap().rows.len(), 1);

    let broker = Embedded::open(journal.clone(), Arc::new(clock)).await.unwrap();
    let dead = broker.dead(&topic(), &group("g"), Offset(0), 10).await.unwrap();
    assert_eq!((dead[0].event.data["n"].as_i64(), dead[0].reason.as_str()), (Some(1), "bad   thing"));
    broker.replay(&topic(), &group("g"), dead[0].offset).await.unwrap();
    let again = broker.take_within(take("g", 10), Duration::from_secs(1), true).await.unwrap();
    assert_eq!(numbers(&again), [(1, 1)]);
    broker.ack(vec![again[0].receipt.clone()]).await.unwrap();
    assert_eq!(broker.groups(&topic()).await.unwrap()[0].dead, 0);
}

/// A journal whose disk can be full, and which then forgets answers too.
#[derive(Default)]
struct Full {
    inner: Memory,
    full: AtomicBool,
    commits: AtomicUsize,
}

impl Journal for Full {
    fn open(&self, tables: &[&'static Table]) -> Reply<()> {
        self.inner.open(tables)
    }

    fn commit(&self, batch: Batch) -> Reply<()> {
        if self.full.load(Ordering::SeqCst) {
            return Reply::ready(Err(StoreError::Failed("disk full".into())));
        }
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.inner.commit(batch)
    }

    fn scan(&self, query: Query) -> Reply<Page> {
        self.inner.scan(query)
    }

    fn claim(&self, shards: &[Shard], owner: &Owner, lease: Duration) -> Reply<Vec<(Shard, Epoch)>> {
        self.inner.claim(shards, owner, lease)
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_refuses_and_loses_nothing() {
    let full = Arc::new(Full::default());
    let journal: Arc<dyn Journal> = full.clone();
    let broker = prepared(&journal, 3).await;
    let handed = broker.take(take("g", 2)).await.unwrap();
    full.full.store(true, Ordering::SeqCst);
    let refused = [
        broker.nack(handed[0].receipt.clone(), Duration::ZERO, String::new()),
        broker.ack(vec![handed[1].receipt.clone()]),
    ];
    let published = broker.publish(&topic(), vec![event(4, "4")]);
    for reply in refused {
        assert!(matches!(reply.await, Err(StoreError::Failed(_))));
    }
    assert!(matches!(published.await, Err(StoreError::Failed(_))));
    full.full.store(false, Ordering::SeqCst);
    broker.publish(&topic(), vec![event(5, "5")]).await.unwrap();
    let again = broker.take_within(take("g", 10), Duration::from_secs(5), false).await.unwrap();
    let seen: Vec<i64> = numbers(&again).into_iter().map(|(n, _)| n).collect();
    assert_eq!(seen, [1, 2, 3, 5], "what was refused is not there, everything else is");
}

#[tokio::test(start_paused = true)]
async fn closing_writes_what_was_asked_before() {
    let journal: Arc<dyn Journal> = Arc::new(Memory::default());
    let broker = prepared(&journal, 0).await;
    let last = broker.publish(&topic(), vec![event(1, "a")]);
    broker.close().await.unwrap();
    last.await.unwrap();
    assert!(matches!(broker.publish(&topic(), vec![event(2, "a")]).await, Err(StoreError::Unknown(_))));
    assert_eq!(open(&journal).await.take(take("g", 10)).await.unwrap().len(), 1);
}
