//! Start and end: migrations, seed, health, drain.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ballet_core::Classify;
use ballet_service::{Service, StartError};
use serde_json::json;
use tempfile::TempDir;

use crate::rig::{Gate, Rig, builder, config, within};

#[tokio::test]
async fn migrations_and_seed_run_once_and_may_not_change() {
    let directory = Arc::new(TempDir::new().unwrap());
    let seeded = Arc::new(AtomicU32::new(0));
    let service = |sql: &'static str| {
        let seeded = seeded.clone();
        Service::builder("things").migrations(&[("0001", sql)]).seed(move |tx, config| {
            seeded.fetch_add(1, Ordering::SeqCst);
            tx.execute("INSERT INTO t VALUES (?1)", [config.instance.as_str()])?;
            tx.publish("thing.added", "1", &json!({}))
        })
    };
    let sql = "CREATE TABLE t (x TEXT) STRICT; CREATE INDEX t_x ON t (x)";
    // Two instances and the initializer at once.
    let starts: Vec<_> = (1..=3)
        .map(|n| {
            let service = service(sql).build_with(config(&directory, &format!("things-{n}"), &[]));
            tokio::task::spawn_blocking(move || service.init())
        })
        .collect();
    for start in starts {
        start.await.unwrap().unwrap();
    }
    assert_eq!(seeded.load(Ordering::SeqCst), 1);

    let changed =
        service("CREATE TABLE t (x INTEGER)").build_with(config(&directory, "things-1", &[])).init().unwrap_err();
    assert!(matches!(&changed, StartError::MigrationChanged(name) if name == "0001"), "{changed}");
    assert_eq!(changed.code().0, "CH002");
    let broken = builder().migrations(&[("0002", "CREATE TABLE (")]);
    let broken = broken.build_with(config(&TempDir::new().unwrap(), "things-1", &[])).init().unwrap_err();
    assert_eq!(broken.code().0, "CH003");
}

#[tokio::test]
async fn the_end_waits_for_what_is_under_way() {
    let rig = Rig::start().await;
    assert_eq!(rig.get("/livez").send().await.unwrap().status, 200);
    assert_eq!(rig.get("/readyz").send().await.unwrap().status, 200);
    let (url, bus) = (rig.url("/livez"), rig.bus.clone());
    let ctx = rig.service.context().clone();
    let slow = tokio::spawn(rig.post("/slow", &json!({"name": "slow"})).idempotency_key("k").send());
    // Under way once a second one with the key has to wait.
    loop {
        let probe = rig.post("/slow", &json!({"name": "slow"})).idempotency_key("k");
        if probe.timeout(std::time::Duration::from_millis(200)).send().await.is_ok_and(|early| early.status == 425) {
            break;
        }
    }
    ctx.store().write(|tx| tx.publish("thing.added", "last", &json!({}))).await.unwrap();
    let stop = tokio::spawn(rig.service.stop());
    within(|| ctx.is_stopping(), "the end to begin").await;
    let client = ballet_client::Client::with("test", ballet_client::Retries::None);
    let mut refused = false;
    for _ in 0..200 {
        refused |= client.get(&url).send().await.is_err();
    }
    assert!(refused, "no new connections");
    assert!(!stop.is_finished());
    ctx.state::<Gate>().0.add_permits(1);
    assert_eq!(slow.await.unwrap().unwrap().status, 200);
    stop.await.unwrap();
    assert_eq!(bus.subjects(), ["last"]);
}
