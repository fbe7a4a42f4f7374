//! The engine through its handle: what callers may rely on.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails as they do")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ballet_core::conformance::{self, Registrar};
use ballet_core::{Discovery, Instance, InstanceState, Later, ManualClock, ServiceName};
use ballet_registry::{Engine, Handle, HealthCheck, Probe, Registered, Registration, RegistryError, limits};
use ballet_store::{Batch, Epoch, Journal, Memory, Owner, Page, Query, Reply, Shard, StoreError, Table};
use tokio::time::{Instant, advance, sleep};

use InstanceState::{Down, Draining, Starting, Up};

fn orders() -> ServiceName {
    "orders".parse().unwrap()
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn instance(id: &str) -> Instance {
    Instance {
        id: id.parse().unwrap(),
        service: orders(),
        address: "127.0.0.1:8080".parse().unwrap(),
        state: Up,
        version: "v1".into(),
        metadata: BTreeMap::from([("zone".into(), "a".into())]),
    }
}

/// Answers health checks as it was told to.
#[derive(Clone, Default)]
struct Told(Arc<AtomicBool>);

impl Probe for Told {
    fn ask<'a>(&'a self, _: SocketAddr, check: &'a HealthCheck) -> Later<'a, Result<(), String>> {
        assert_eq!(check.path, "/readyz");
        let well = self.0.load(Ordering::Relaxed);
        Box::pin(async move { if well { Ok(()) } else { Err("it answers 503".into()) } })
    }
}

async fn open(journal: &Arc<dyn Journal>, probe: &Told) -> Handle {
    let (engine, handle) =
        Engine::open(journal.clone(), Arc::new(ManualClock::default()), Arc::new(probe.clone())).await.unwrap();
    tokio::spawn(engine.run());
    handle
}

async fn fresh() -> (Arc<dyn Journal>, Handle) {
    let journal: Arc<dyn Journal> = Arc::new(Memory::default());
    let handle = open(&journal, &Told::default()).await;
    (journal, handle)
}

async fn states(registry: &Handle) -> Vec<InstanceState> {
    registry.resolve(&orders()).await.unwrap().all.iter().map(|i| i.state).collect()
}

struct ByHandle(Handle);

impl Registrar for ByHandle {
    fn register(&self, instance: Instance) -> Later<'_, ()> {
        Box::pin(async {
            self.0.register(Registration::new(instance)).await.unwrap();
        })
    }

    fn deregister(&self, instance: &Instance) -> Later<'_, ()> {
        let (service, id) = (instance.service.clone(), instance.id.clone());
        Box::pin(async move { self.0.deregister(&service, &id).await.unwrap() })
    }
}

#[tokio::test]
async fn it_keeps_the_contract_of_discovery() {
    let (_, registry) = fresh().await;
    conformance::discovery(Arc::new(registry.clone()), &ByHandle(registry), instance("conformance-1")).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_when_heartbeats_stop_and_not_before() {
    let (_, registry) = fresh().await;
    let began = Instant::now();
    assert_eq!(
        registry.register(Registration::new(instance("orders-1")).lease(secs(30))).await,
        Ok(Registered { new: true })
    );
    sleep(secs(20)).await;
    registry.renew(&orders(), &"orders-1".parse().unwrap()).await.unwrap();

    let seen = registry.resolve(&orders()).await.unwrap().version;
    let down = registry.watch(&orders(), seen).await.unwrap();
    assert_eq!((down.all[0].state, began.elapsed()), (Down, secs(50)), "exactly, and the watch wakes");

    registry.renew(&orders(), &"orders-1".parse().unwrap()).await.unwrap();
    assert_eq!(states(&registry).await, [Up], "a late heartbeat brings it back");

    let removed = began + secs(50) + secs(30) + limits::LINGER;
    tokio::time::sleep_until(removed - secs(1)).await;
    assert_eq!(states(&registry).await, [Down]);
    tokio::time::sleep_until(removed + secs(1)).await;
    assert_eq!(states(&registry).await, []);
    let late = registry.renew(&orders(), &"orders-1".parse().unwrap()).await;
    assert!(matches!(late, Err(RegistryError::UnknownInstance { .. })), "register again");
    let stats = registry.stats();
    assert_eq!((stats.registrations, stats.renewals, stats.expired, stats.removed, stats.refused), (1, 2, 2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_halted_process_ends_no_lease() {
    let (_, registry) = fresh().await;
    registry.register(Registration::new(instance("orders-1")).lease(secs(10))).await.unwrap();
    sleep(secs(4)).await;
    advance(secs(3600)).await;
    sleep(secs(5)).await;
    assert_eq!(states(&registry).await, [Up]);
    sleep(secs(3)).await;
    assert_eq!(states(&registry).await, [Down], "the rest of the lease holds");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_list_is_there_with_a_grace() {
    let (journal, registry) = fresh().await;
    registry.register(Registration::new(instance("orders-1")).lease(secs(30))).await.unwrap();
    registry.register(Registration::new(instance("orders-2"))).await.unwrap();
    registry.register(Registration::new(instance("orders-3"))).await.unwrap();
    registry.set_state(&orders(), &"orders-2".parse().unwrap(), Draining).await.unwrap();
    registry.deregister(&orders(), &"orders-3".parse().unwrap()).await.unwrap();
    sleep(secs(29)).await;
    let before = registry.resolve(&orders()).await.unwrap();

    // No farewell: as after `kill -9`.
    let registry = open(&journal, &Told::default()).await;
    let after = registry.resolve(&orders()).await.unwrap();
    assert_eq!(after.all, before.all);
    assert!(after.version > before.version);
    sleep(secs(29)).await;
    assert_eq!(states(&registry).await, [Up, Draining]);
    registry.renew(&orders(), &"orders-2".parse().unwrap()).await.unwrap();
    sleep(secs(2)).await;
    assert_eq!(states(&registry).await, [Down, Draining], "who was heard of since lives on");
    sleep(limits::LINGER + limits::FLUSH).await;
    let registry = open(&journal, &Told::default()).await;
    assert_eq!(states(&registry).await, [Draining], "who was removed stays away");
}

#[tokio::test(start_paused = true)]
async fn a_check_decides_and_survives_a_restart() {
    let (journal, _) = fresh().await;
    let probe = Told::default();
    let registry = open(&journal, &probe).await;
    let checked = Registration::new(Instance { state: Starting, ..instance("orders-1") }).check(HealthCheck::default());
    registry.register(checked.clone()).await.unwrap();
    sleep(secs(5)).await;
    assert_eq!(states(&registry).await, [Starting], "not ready yet is not down");

    let (began, seen) = (Instant::now(), registry.resolve(&orders()).await.unwrap().version);
    probe.0.store(true, Ordering::Relaxed);
    assert_eq!(registry.watch(&orders(), seen).await.unwrap().all[0].state, Up);
    assert!(began.elapsed() <= Duration::from_millis(200), "services that start are asked often");

    sleep(limits::FLUSH * 2).await;
    let registry = open(&journal, &probe).await;
    assert_eq!(states(&registry).await, [Up], "known to be well before the first check");
    assert_eq!(registry.register(checked).await, Ok(Registered { new: false }));
    assert_eq!(states(&registry).await, [Up], "the same registration again changes nothing");

    probe.0.store(false, Ordering::Relaxed);
    sleep(secs(2)).await;
    assert_eq!(states(&registry).await, [Up], "one failure is forgiven");
    sleep(secs(3)).await;
    assert_eq!(states(&registry).await, [Down]);
    probe.0.store(true, Ordering::Relaxed);
    sleep(secs(2)).await;
    registry.set_state(&orders(), &"orders-1".parse().unwrap(), Draining).await.unwrap();
    assert_eq!(states(&registry).await, [Draining], "the registrant's word stands above the check's");
}

type Held = (Batch, ballet_store::Answer<()>);

/// A journal whose commits wait for leave and may fail.
#[derive(Default)]
struct Slow {
    inner: Memory,
    broken: AtomicBool,
    held: Mutex<Option<Vec<Held>>>,
    batches: Mutex<Vec<usize>>,
}

impl Slow {
    async fn release(&self) {
        let held = self.held.lock().unwrap().take().unwrap_or_default();
        for (batch, answer) in held {
            let _ = answer.send(self.inner.commit(batch).await);
        }
    }
}

impl Journal for Slow {
    fn open(&self, tables: &[&'static Table]) -> Reply<()> {
        self.inner.open(tables)
    }

    fn commit(&self, batch: Batch) -> Reply<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Reply::ready(Err(StoreError::Failed("disk full".into())));
        }
        self.batches.lock().unwrap().push(batch.ops.len());
        if let Some(held) = &mut *self.held.lock().unwrap() {
            let (answer, reply) = Reply::new();
            held.push((batch, answer));
            return reply;
        }
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
async fn a_registration_is_acknowledged_when_it_is_on_disk() {
    let slow = Arc::new(Slow::default());
    let journal: Arc<dyn Journal> = slow.clone();
    let registry = open(&journal, &Told::default()).await;
    *slow.held.lock().unwrap() = Some(vec![]);
    let registering = tokio::spawn({
        let registry = registry.clone();
        async move { registry.register(Registration::new(instance("orders-1"))).await }
    });
    sleep(secs(3)).await;
    assert!(!registering.is_finished());
    slow.release().await;
    registering.await.unwrap().unwrap();

    slow.broken.store(true, Ordering::Relaxed);
    let refused = registry.register(Registration::new(instance("orders-2"))).await;
    assert_eq!(refused, Err(RegistryError::Store(StoreError::Failed("disk full".into()))));
    sleep(secs(3)).await;
    slow.broken.store(false, Ordering::Relaxed);
    sleep(secs(3)).await;
    let failed = registry.stats().failed_commits;
    assert!((3..=4).contains(&failed), "at once, then once a second: {failed}");
    let registry = open(&journal, &Told::default()).await;
    assert_eq!(states(&registry).await.len(), 2, "written when the disk came back");
}

#[tokio::test(start_paused = true)]
async fn heartbeats_share_one_commit_a_second_at_most() {
    let slow = Arc::new(Slow::default());
    let journal: Arc<dyn Journal> = slow.clone();
    let clock = ManualClock::default();
    let (engine, registry) = Engine::open(journal, Arc::new(clock.clone()), Arc::new(Told::default())).await.unwrap();
    tokio::spawn(engine.run());
    let ids: Vec<_> = (0..50).map(|n| format!("orders-{n}")).collect();
    for id in &ids {
        registry.register(Registration::new(instance(id)).lease(secs(10))).await.unwrap();
    }
    sleep(secs(2)).await;
    slow.batches.lock().unwrap().clear();
    for _ in 0..100 {
        for id in &ids {
            registry.renew(&orders(), &id.parse().unwrap()).await.unwrap();
        }
        clock.advance(Duration::from_millis(200));
        sleep(Duration::from_millis(200)).await;
    }
    let batches = slow.batches.lock().unwrap().clone();
    assert_eq!(registry.stats().renewals, 5000);
    // In twenty seconds each of the fifty is written anew every half lease: all of them, four times, in shared commits.
    assert!(batches.len() <= 8, "{batches:?}");
    assert!((150..=200).contains(&batches.iter().sum::<usize>()), "{batches:?}");
}

#[tokio::test]
async fn a_stopped_registry_says_so_and_has_written_everything() {
    let (journal, registry) = fresh().await;
    registry.register(Registration::new(instance("orders-1")).lease(secs(30))).await.unwrap();
    let watching = tokio::spawn({
        let registry = registry.clone();
        async move { registry.watch(&orders(), registry.resolve(&orders()).await.unwrap().version).await }
    });
    while registry.stats().watches == 0 {
        tokio::task::yield_now().await;
    }
    registry.stop().await;
    assert!(watching.await.unwrap().is_err(), "whoever watches is woken");
    assert!(registry.resolve(&orders()).await.is_err() && registry.watch(&orders(), 0).await.is_err());
    assert_eq!(registry.renew(&orders(), &"orders-1".parse().unwrap()).await, Err(RegistryError::Stopped));
    registry.stop().await;
    assert_eq!(states(&open(&journal, &Told::default()).await).await, [Up]);
}
