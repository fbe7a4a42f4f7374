//! `kill -9` while commands run: what was answered is there, nothing is there twice, every event arrives.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ballet_client::{Client, Retries};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use crate::rig::{Rig, builder, config, within};

const STORE: &str = "BALLET_TEST_STORE";
const ORDERS: usize = 300;

/// Not a test: the process that gets killed, when the test below runs this binary again.
#[tokio::test]
#[ignore = "the process that `killed_while_commands_run` kills"]
async fn victim() {
    let Some(store) = std::env::var(STORE).ok() else { return };
    // Nobody listens at port 1, so events stay in the outbox.
    let env = [("STORE_URL", store.as_str()), ("BALLET_PLATFORM", "http://127.0.0.1:1")];
    let config = config(&TempDir::new().unwrap(), "things-1", &env);
    let service = builder().build_with(config).start().await.unwrap();
    println!("\nlistening {}", service.address());
    std::future::pending::<()>().await;
}

async fn spawn(directory: &TempDir) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::victim", "--ignored", "--nocapture"])
        .env(STORE, format!("sqlite:{}", directory.path().join("store/things.db").display()))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    loop {
        let line = lines.next_line().await.unwrap().expect("the victim says where it listens");
        if let Some(address) = line.strip_prefix("listening ") {
            return (child, format!("http://{address}/things"));
        }
    }
}

#[tokio::test]
async fn killed_while_commands_run() {
    let directory = Arc::new(TempDir::new().unwrap());
    let mut answered = vec![None; ORDERS];
    let mut known = vec![];
    for round in 0..4 {
        let (mut victim, url) = spawn(&directory).await;
        let client = Client::with("gateway", Retries::None);
        let (lanes, answers) = (Arc::new(Semaphore::new(16)), Arc::new(AtomicUsize::new(0)));
        let calls: Vec<_> = (0..ORDERS)
            .map(|n| {
                let (request, lanes, answers) = (client.post(&url), lanes.clone(), answers.clone());
                let request = request.json(&json!({"name": n.to_string()})).idempotency_key(&format!("key-{n}"));
                tokio::spawn(async move {
                    let _lane = lanes.acquire().await;
                    let answer = request.timeout(Duration::from_secs(20)).send().await;
                    answers.fetch_add(1, Ordering::SeqCst);
                    answer
                })
            })
            .collect();
        if round < 3 {
            // Somewhere in the middle; the last round runs to its end.
            within(|| answers.load(Ordering::SeqCst) >= ORDERS / 4 * (round + 1), "some answers").await;
            victim.kill().await.unwrap();
        }
        for (n, call) in calls.into_iter().enumerate() {
            match call.await.unwrap() {
                Ok(answer) => {
                    assert_eq!(answer.status, 201);
                    let first = answered[n].get_or_insert(answer.body.clone());
                    assert_eq!(*first, answer.body, "the first answer again");
                }
                Err(error) => assert!(round < 3, "{error:?}"),
            }
        }
        known.push(answered.iter().flatten().count());
    }
    assert!(known[0] > 0 && known[0] < ORDERS, "killed in the middle: {known:?}");
    let rig = Rig::with(builder(), directory, "things-1", &[]).await;
    rig.bus.has(ORDERS).await;
    let count = "SELECT count(*) || ' ' || count(DISTINCT name) FROM things";
    let rows: String =
        rig.service.context().store().read(|db| Ok(db.query_row(count, [], |row| row.get(0))?)).await.unwrap();
    assert_eq!(rows, format!("{ORDERS} {ORDERS}"), "each once");
    let mut subjects = rig.bus.subjects();
    subjects.sort_unstable();
    subjects.dedup();
    assert_eq!(subjects.len(), ORDERS, "an event for each");
}
