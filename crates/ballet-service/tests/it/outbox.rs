//! Outbox, relay, inbox of events, projections.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ballet_core::{Event, EventsError, ManualClock, Timestamp};
use ballet_service::{Projection, Result, Running, Store, Tx};
use serde_json::json;
use tempfile::TempDir;

use crate::rig::{Bus, Rig, builder, within};

async fn one<T: Send + 'static + rusqlite::types::FromSql>(store: &Store, sql: &'static str) -> T {
    store.read(move |db| Ok(db.query_row(sql, [], |row| row.get(0))?)).await.unwrap()
}

async fn publish(service: &Running, subjects: std::ops::Range<u32>) {
    for n in subjects {
        let write =
            service.context().store().write(move |tx| tx.publish("thing.added", &n.to_string(), &json!({"n": n})));
        write.await.unwrap();
    }
}

#[tokio::test]
async fn events_arrive_in_order_with_trace_and_sequence() {
    let rig = Rig::start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for name in ["a", "b", "c"] {
        rig.post("/things", &json!({"name": name})).header("traceparent", trace).send().await.unwrap();
    }
    rig.bus.has(3).await;
    assert_eq!(rig.bus.subjects(), ["a", "b", "c"]);
    let events = rig.bus.published.lock().unwrap().clone();
    assert_eq!(events[0].trace.unwrap().trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!((events[0].source.as_str(), events[0].topic.as_str()), ("things", "thing.added"));
    assert!(events[0].time.is_some() && events[0].extensions["sequence"] < events[1].extensions["sequence"]);
    // An idle relay has let its lease go and marked everything.
    let store = rig.service.context().store();
    let sql =
        "SELECT (SELECT count(*) FROM outbox WHERE sent_at IS NULL) + (SELECT count(*) FROM leases WHERE until > 0)";
    for _ in 0..500 {
        if one::<i64>(store, sql).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the relay holds on");
}

#[tokio::test]
async fn what_was_committed_before_a_crash_is_sent_after_it() {
    let directory = Arc::new(TempDir::new().unwrap());
    let rig = Rig::with(builder(), directory.clone(), "things-1", &[]).await;
    *rig.bus.failing.lock().unwrap() = Some(EventsError::Unavailable("gone".into()));
    publish(&rig.service, 0..5).await;
    within(|| rig.bus.calls.load(Ordering::SeqCst) > 0, "the relay to try").await;
    rig.service.stop().await;

    // Another instance, an hour later: the dead one's lease is over.
    let now = ballet_core::Clock::now(&ballet_core::SystemClock).plus(Duration::from_secs(3_600));
    let rig = Rig::with(builder().clock(ManualClock::at(now)), directory, "things-2", &[]).await;
    rig.bus.has(5).await;
    assert_eq!(rig.bus.subjects(), ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn a_lost_answer_sends_the_same_event_again() {
    let rig = Rig::start().await;
    *rig.bus.keeps.lock().unwrap() = true;
    *rig.bus.failing.lock().unwrap() = Some(EventsError::Unknown("reset".into()));
    publish(&rig.service, 0..1).await;
    rig.bus.has(2).await;
    *rig.bus.failing.lock().unwrap() = None;
    let events = rig.bus.published.lock().unwrap().clone();
    assert_eq!(events[0], events[1]);
}

#[tokio::test]
async fn two_instances_share_the_store_and_one_relays() {
    let directory = Arc::new(TempDir::new().unwrap());
    let bus = Arc::new(Bus::default());
    let (one, two) = tokio::join!(
        Rig::on(builder(), directory.clone(), "things-1", &[], bus.clone()),
        Rig::on(builder(), directory.clone(), "things-2", &[], bus.clone()),
    );
    tokio::join!(publish(&one.service, 0..100), publish(&two.service, 100..200));
    bus.has(200).await;
    one.service.stop().await;
    two.service.stop().await;
    let sent: Vec<u32> = bus.subjects().iter().map(|subject| subject.parse().unwrap()).collect();
    assert_eq!(sent.len(), 200, "each once");
    for half in [0..100, 100..200] {
        let of_one: Vec<u32> = sent.iter().copied().filter(|n| half.contains(n)).collect();
        assert_eq!(of_one, half.collect::<Vec<_>>(), "in the order of its writer");
    }
}

#[tokio::test]
async fn what_was_sent_is_noted_without_a_sync() {
    let rig = Rig::start().await;
    let store = rig.service.context().store();
    let notes = "CREATE TABLE levels (level INTEGER) STRICT;
                 CREATE TRIGGER noted AFTER UPDATE OF sent_at ON outbox
                 BEGIN INSERT INTO levels SELECT synchronous FROM pragma_synchronous; END;";
    store.write(move |tx| Ok(tx.execute_batch(notes)?)).await.unwrap();
    publish(&rig.service, 0..1).await;
    let level = store.wait_for(Duration::from_secs(10), |db| {
        Ok(db.query_row("SELECT max(level) FROM levels", [], |row| row.get::<_, Option<u8>>(0))?)
    });
    assert_eq!(level.await.unwrap(), Some(1), "NORMAL");
}

#[tokio::test]
async fn what_another_instance_is_relaying_is_left_to_it() {
    let rig = Rig::start().await;
    let write = rig.service.context().store().write(|tx| {
        assert!(tx.claim("relay", "things-2", Duration::from_secs(60))?);
        tx.publish("thing.added", "1", &json!({}))
    });
    write.await.unwrap();
    // Its end flushes the outbox, whoever woke it.
    rig.service.stop().await;
    assert_eq!(rig.bus.subjects(), [""; 0]);
}

#[tokio::test]
async fn a_refused_event_holds_up_its_own_key_only() {
    let rig = Rig::start().await;
    *rig.bus.refused_topic.lock().unwrap() = Some("thing.unknown".into());
    let write = rig.service.context().store().write(|tx| {
        tx.publish("thing.added", "1", &json!({}))?;
        tx.publish("thing.unknown", "2", &json!({}))?;
        tx.publish("thing.added", "2", &json!({}))?;
        tx.publish("thing.added", "3", &json!({}))
    });
    write.await.unwrap();
    rig.bus.has(2).await;
    assert_eq!(rig.bus.subjects(), ["1", "3"]);
    *rig.bus.refused_topic.lock().unwrap() = None;
    rig.bus.has(4).await;
    assert_eq!(rig.bus.subjects(), ["1", "3", "2", "2"]);
}

#[tokio::test]
async fn an_event_takes_effect_once() {
    let rig = Rig::start().await;
    let event = Event::new("thing.lost".parse().unwrap(), "elsewhere", json!({"n": 1})).subject("7");
    let structured = || rig.post("/events", &json!(0)).body(event.to_json().to_string(), Event::MEDIA_TYPE);
    let mut binary = rig.post("/events", &event.data);
    for (name, value) in event.to_headers() {
        binary = binary.header(&name, value);
    }
    assert_eq!(structured().send().await.unwrap().status, 404, "nobody comes in through the gateway");
    assert_eq!(structured().header("ballet-caller", "bus").send().await.unwrap().status, 200);
    assert_eq!(binary.header("ballet-caller", "bus").send().await.unwrap().status, 200);
    assert_eq!(rig.count("lost").await, 1);

    let bad = Event::new("thing.lost".parse().unwrap(), "elsewhere", json!({"bad": true}));
    let unknown = Event::new("thing.else".parse().unwrap(), "elsewhere", json!({}));
    for (event, status) in [(bad, 500), (unknown, 404)] {
        let request = rig.post("/events", &json!(0)).body(event.to_json().to_string(), Event::MEDIA_TYPE);
        assert_eq!(request.header("ballet-caller", "bus").send().await.unwrap().status, status);
    }
    assert_eq!(rig.count("lost").await, 1, "what failed left nothing");
}

struct Names(u32);

impl Projection for Names {
    fn name(&self) -> &'static str {
        "names"
    }

    fn version(&self) -> u32 {
        self.0
    }

    fn apply(&self, tx: &Tx<'_>, event: &Event) -> Result<()> {
        if event.data["name"] == json!("poison") && self.0 == 1 {
            return Err(ballet_service::Error::internal("cannot"));
        }
        assert!(event.data["name"] != "panic" || self.0 > 1, "a defect of a projection");
        tx.execute("INSERT INTO names VALUES (?1)", [event.data["name"].as_str()])?;
        Ok(())
    }

    fn rebuild(&self, tx: &Tx<'_>) -> Result<()> {
        tx.execute_batch("CREATE TABLE IF NOT EXISTS names (name TEXT) STRICT; DELETE FROM names; INSERT INTO names SELECT name FROM things ORDER BY id")?;
        Ok(())
    }
}

#[tokio::test]
async fn a_projection_follows_its_commands_and_can_be_rebuilt() {
    let directory = Arc::new(TempDir::new().unwrap());
    let clock = ManualClock::at(Timestamp(1_000_000));
    let rig = Rig::with(builder().clock(clock.clone()).projection(Names(1)), directory.clone(), "things-1", &[]).await;
    let names = "SELECT coalesce(group_concat(name), '') FROM (SELECT name FROM names ORDER BY rowid)";
    let store = rig.service.context().store().clone();
    for name in ["a", "b"] {
        rig.post("/things", &json!({"name": name})).send().await.unwrap();
    }
    assert_eq!(one::<String>(&store, names).await, "a,b", "a query sees what was answered");

    // A stuck projection keeps no command from its work.
    for name in ["poison", "c"] {
        assert_eq!(rig.post("/things", &json!({"name": name})).send().await.unwrap().status, 201);
    }
    assert_eq!(one::<String>(&store, names).await, "a,b");
    rig.service.context().rebuild("names").await.unwrap();
    assert_eq!(one::<String>(&store, names).await, "a,b,poison,c");
    clock.advance(Duration::from_secs(5));
    rig.post("/things", &json!({"name": "d"})).send().await.unwrap();
    assert_eq!(one::<String>(&store, names).await, "a,b,poison,c,d", "it goes on behind the rebuild");
    // Nor does one that panics.
    for name in ["panic", "e"] {
        clock.advance(Duration::from_secs(5));
        assert_eq!(rig.post("/things", &json!({"name": name})).send().await.unwrap().status, 201);
    }
    assert_eq!(one::<String>(&store, names).await, "a,b,poison,c,d");
    rig.service.stop().await;
    drop(store);

    // It does not keep the service from its start.
    let rig = Rig::with(builder().projection(Names(1)), directory.clone(), "things-1", &[]).await;
    assert_eq!(rig.post("/things", &json!({"name": "f"})).send().await.unwrap().status, 201);
    rig.service.stop().await;

    let rig = Rig::with(builder().projection(Names(2)), directory.clone(), "things-1", &[]).await;
    let all = "a,b,poison,c,d,panic,e,f";
    assert_eq!(one::<String>(rig.service.context().store(), names).await, all, "a new version is rebuilt");

    // Another instance without it forgets it: the outbox need not be kept for what nobody reads.
    let other = Rig::with(builder(), directory, "things-2", &[]).await;
    let kept = "SELECT count(*) FROM projections";
    assert_eq!(one::<i64>(other.service.context().store(), kept).await, 0);
    other.post("/things", &json!({"name": "g"})).send().await.unwrap();
    rig.post("/things", &json!({"name": "h"})).send().await.unwrap();
    let all = format!("{all},g,h");
    assert_eq!(one::<String>(rig.service.context().store(), names).await, all, "whoever knows it builds it anew");
}
