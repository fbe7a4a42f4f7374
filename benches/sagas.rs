//! Sagas of four durable steps over HTTP, 64 at once, through the real binary on SQLite with a sync for each commit.
//!
//! The services are one tiny upstream here. A client starts an execution, hears from the upstream when the last step
//! was called, and then asks the platform until it says `COMPLETED`; so a saga costs one start and about one read beside
//! its steps.

use std::sync::Arc;
use std::time::Duration;

use ballet_benches::processes::{self, CpuTimes};
use ballet_benches::stats::Latencies;
use ballet_benches::{Bar, Client, Options, Report, Responder, Table, manifests};
use ballet_tests::{Ballet, bin};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

/// Executions at once.
const AT_ONCE: [usize; 3] = [1, 16, 64];
/// The last step came, but the end is not to be seen yet.
const ASK_AGAIN: Duration = Duration::from_millis(1);
/// A saga that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    let Some(options) = Options::asked(Duration::from_secs(10)) else { return };
    bin("ballet");
    let mut report = Report::begin("sagas", &options);
    report.setting("workflow", "reserve, charge, confirm (each with an undo), notify; input of about 250 bytes");
    let places: Arc<Vec<Notify>> = Arc::new((0..64).map(|_| Notify::new()).collect());
    let called = places.clone();
    let answer = Responder::ok(r#"{"id":"0192f0c1-7a55-7000-8000-000000000001","status":"DONE"}"#);
    let upstream = Responder::start(move |request| {
        let place = request.path.strip_prefix("/notify/").and_then(|place| place.parse::<usize>().ok());
        if let Some(place) = place.and_then(|place| called.get(place)) {
            place.notify_one();
        }
        answer.clone()
    });

    let dir = tempfile::tempdir().expect("a temporary directory");
    let manifest = manifests::write(dir.path(), "sagas", &manifests::sagas(upstream.address));
    let system = Ballet::start(&manifest, &dir.path().join("state"), &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let crowd = |at_once: usize, length: Duration| runtime.block_on(crowd(system.platform, &places, at_once, length));
    crowd(16, Duration::from_secs(1));

    let mut table = Table::new(&["at once", "sagas/s", "p50 ms", "p99 ms", "CPU s/1,000", "RSS MB", "failed"]);
    let mut rows = vec![];
    for at_once in AT_ONCE {
        let pids = processes::tree(system.pid());
        let before = CpuTimes::now(&pids);
        let begun = Instant::now();
        let (latencies, failed) = crowd(at_once, options.length);
        let took = begun.elapsed().as_secs_f64();
        let used = CpuTimes::now(&pids).since(&before);
        let rate = latencies.count() as f64 / took;
        let per_thousand = used.total() / latencies.count().max(1) as f64 * 1e3;
        let rss = processes::rss(&pids) as f64;
        table.row(vec![
            at_once.to_string(),
            format!("{rate:.0}"),
            format!("{:.1}", latencies.ms(0.5)),
            format!("{:.1}", latencies.ms(0.99)),
            format!("{per_thousand:.3}"),
            format!("{:.1}", rss / 1e6),
            failed.first().map(|why| format!("{}: {why}", failed.len())).unwrap_or_default(),
        ]);
        rows.push(json!({
            "atOnce": at_once, "seconds": took, "sagasPerSecond": rate, "completed": latencies.json(),
            "cpuSecondsPerThousand": per_thousand, "userSeconds": used.user, "systemSeconds": used.system,
            "rssBytes": rss, "failed": failed.len(),
        }));
        if at_once == 64 {
            report.bar(Bar::at_least("sagas of 4 steps, 64 at once", rate, "/s", 2_000.0, Some(3_000.0)));
            report.bar(Bar::at_most("their p50", latencies.ms(0.5), "ms", 30.0, None));
            report.bar(Bar::at_most("their CPU", per_thousand, "s/1,000", 0.4, None));
            report.bar(Bar::at_most("memory after them, RSS", rss / 1e6, "MB", 100.0, None));
        }
    }
    table.print();
    report.result("sagas", rows);
    report.end();
}

/// Runs sagas one after the other at each place until the time is over; answers how long they took, and what failed.
async fn crowd(
    platform: std::net::SocketAddr,
    places: &Arc<Vec<Notify>>,
    at_once: usize,
    length: Duration,
) -> (Latencies, Vec<String>) {
    let end = Instant::now() + length;
    let running: Vec<_> = (0..at_once)
        .map(|place| {
            let places = places.clone();
            tokio::spawn(async move {
                let mut client = Client::new(platform);
                let (mut latencies, mut failed) = (Latencies::default(), vec![]);
                let mut n = 0_u64;
                while Instant::now() < end && failed.len() < 10 {
                    n += 1;
                    let begun = Instant::now();
                    let ran = timeout(PATIENCE, run(&mut client, &places[place], place, n)).await;
                    match ran.unwrap_or_else(|_| Err("it did not end".into())) {
                        Ok(()) => latencies.add(begun.elapsed()),
                        Err(why) => failed.push(why),
                    }
                }
                (latencies, failed)
            })
        })
        .collect();
    let (mut latencies, mut failed) = (Latencies::default(), vec![]);
    for one in running {
        let (more, wrong) = one.await.expect("a client does not panic");
        latencies.extend(more);
        failed.extend(wrong);
    }
    (latencies, failed)
}

/// Starts a saga and waits until it is completed.
async fn run(client: &mut Client, called: &Notify, place: usize, n: u64) -> Result<(), String> {
    let input = json!({
        "id": format!("order-{place}-{n}"), "place": place, "amount": 1299, "currency": "EUR", "card": "card_ok",
        "items": [{ "productId": "espresso-cup", "quantity": 2 }, { "productId": "whisk", "quantity": 1 }],
        "shipTo": { "name": "Ada Lovelace", "street": "12 St James's Square", "city": "London" },
    });
    let path = format!("/api/workflow/{}", manifests::SAGA);
    let headers = [("content-type", "application/json")];
    let (status, body) = client.send("POST", &path, &headers, input.to_string()).await.map_err(|e| e.0)?;
    let id = String::from_utf8_lossy(&body).trim_matches('"').to_owned();
    if status != 200 {
        return Err(format!("{status} {id}"));
    }
    called.notified().await;
    let path = format!("/api/workflow/{id}?includeTasks=false");
    loop {
        let (status, body) = client.send("GET", &path, &[], "").await.map_err(|e| e.0)?;
        let document: Value = serde_json::from_slice(&body).unwrap_or_default();
        match document["status"].as_str() {
            Some("COMPLETED") => return Ok(()),
            Some("RUNNING") => tokio::time::sleep(ASK_AGAIN).await,
            _ => return Err(format!("{status} {document}")),
        }
    }
}
