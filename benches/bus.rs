//! The bus over its HTTP API: 1 KB events, 16 producers with 16 events in flight each, 4 consumers of one group, a sync
//! before each acknowledgement.
//!
//! Producers send their 16 events as one batch (*batches*), or as 16 posts at once (*posts*).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ballet_benches::processes::{self, CpuTimes};
use ballet_benches::stats::Latencies;
use ballet_benches::{Bar, Client, Options, Report, Table, manifests};
use ballet_core::Event;
use ballet_tests::{Ballet, bin};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::Instant;

const PRODUCERS: usize = 16;
const CONSUMERS: usize = 4;
const IN_FLIGHT: usize = 16;
/// Bytes of one event's data.
const DATA_BYTES: usize = 1024;
/// Events that a consumer takes at once.
const PULL: usize = 256;
const GROUP: &str = "bench";
const CONSUMED_WAIT: Duration = Duration::from_secs(30);

/// How events are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Batches,
    Posts,
}

#[derive(Deserialize)]
struct Pulled<'a> {
    #[serde(borrow)]
    deliveries: Vec<Delivery<'a>>,
}

#[derive(Deserialize)]
struct Delivery<'a> {
    receipt: Receipt,
    /// Read past, not into.
    #[serde(borrow, rename = "event")]
    _event: &'a RawValue,
}

#[derive(Deserialize, Serialize)]
struct Receipt {
    offset: i64,
    attempt: u32,
}

fn main() {
    let Some(options) = Options::asked(Duration::from_secs(10)) else { return };
    bin("ballet");
    let mut report = Report::begin("bus", &options);
    report.setting("producers", PRODUCERS);
    report.setting("inFlightEach", IN_FLIGHT);
    report.setting("consumers", CONSUMERS);
    report.setting("dataBytes", DATA_BYTES);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut table = Table::new(&[
        "mode",
        "published/s",
        "consumed/s",
        "all consumed/s",
        "ack p50 ms",
        "p99 ms",
        "CPU s/1,000",
        "RSS MB",
        "failed",
    ]);
    let mut rows = vec![];
    let mut lost = 0;
    for (mode, name) in [(Mode::Batches, "batches"), (Mode::Posts, "posts")] {
        if !options.wants(name) {
            continue;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
        let manifest = manifests::write(dir.path(), "bus", &manifests::bus(nobody));
        let system = Ballet::start(&manifest, &dir.path().join("state"), &[]);
        let pids = processes::tree(system.pid());
        let before = CpuTimes::now(&pids);
        let run = runtime.block_on(run(system.platform, mode, options.length));
        let used = CpuTimes::now(&pids).since(&before);
        let rss = processes::rss(&pids) as f64;
        let seconds = options.length.as_secs_f64();
        let (published, consumed) = (run.published as f64 / run.publishing, run.consumed_meanwhile as f64 / seconds);
        let overall = run.consumed as f64 / run.consuming;
        let per_thousand = used.total() / run.published.max(1) as f64 * 1e3;
        table.row(vec![
            name.into(),
            format!("{published:.0}"),
            format!("{consumed:.0}"),
            format!("{overall:.0}"),
            format!("{:.1}", run.acks.ms(0.5)),
            format!("{:.1}", run.acks.ms(0.99)),
            format!("{per_thousand:.3}"),
            format!("{:.1}", rss / 1e6),
            run.failed.first().map(|why| format!("{}: {why}", run.failed.len())).unwrap_or_default(),
        ]);
        if mode == Mode::Batches {
            report.bar(Bar::at_least("events published, sync before ack", published, "/s", 20_000.0, Some(30_000.0)));
            report.bar(Bar::at_least("events consumed, all of them", overall, "/s", 20_000.0, Some(30_000.0)));
            report.bar(Bar::at_most("publish acknowledged, p50", run.acks.ms(0.5), "ms", 10.0, None));
            report.bar(Bar::at_most("memory after them, RSS", rss / 1e6, "MB", 64.0, None));
        }
        rows.push(json!({
            "mode": name, "published": run.published, "consumed": run.consumed, "consumedWhilePublishing": run.consumed_meanwhile,
            "publishingSeconds": run.publishing, "consumingSeconds": run.consuming, "acks": run.acks.json(),
            "cpuSecondsPerThousand": per_thousand, "userSeconds": used.user, "systemSeconds": used.system,
            "rssBytes": rss, "failed": run.failed,
        }));
        lost += run.published.saturating_sub(run.consumed);
    }
    table.print();
    report.result("bus", rows);
    report.end();
    assert_eq!(lost, 0, "events were acknowledged and did not come");
}

/// What one run found.
struct Run {
    published: u64,
    consumed: u64,
    /// Until producers stopped.
    consumed_meanwhile: u64,
    /// Seconds until the last publish was acknowledged, and until the last event was consumed.
    publishing: f64,
    consuming: f64,
    acks: Latencies,
    failed: Vec<String>,
}

async fn run(platform: SocketAddr, mode: Mode, length: Duration) -> Run {
    let (stop, consumed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    // The first pull makes the group, at the topic's end.
    consume(&mut Client::new(platform), 0).await.expect("the group can be made");
    let consumers: Vec<_> = (0..CONSUMERS)
        .map(|_| {
            let (stop, consumed) = (stop.clone(), consumed.clone());
            tokio::spawn(async move {
                let mut client = Client::new(platform);
                let mut failed = vec![];
                while !stop.load(Ordering::Relaxed) {
                    match consume(&mut client, 200).await {
                        Ok(count) => drop(consumed.fetch_add(count, Ordering::Relaxed)),
                        Err(why) => failed.push(why),
                    }
                }
                failed
            })
        })
        .collect();

    let begun = Instant::now();
    let end = begun + length;
    let senders = match mode {
        Mode::Batches => PRODUCERS,
        Mode::Posts => PRODUCERS * IN_FLIGHT,
    };
    let producers: Vec<_> = (0..senders).map(|n| tokio::spawn(produce(platform, mode, n, end))).collect();
    tokio::time::sleep_until(end).await;
    let consumed_meanwhile = consumed.load(Ordering::Relaxed);
    let mut run = Run {
        published: 0,
        consumed: 0,
        consumed_meanwhile,
        publishing: 0.0,
        consuming: 0.0,
        acks: Latencies::default(),
        failed: vec![],
    };
    for producer in producers {
        let (published, acks, failed) = producer.await.expect("a producer does not panic");
        run.published += published;
        run.acks.extend(acks);
        run.failed.extend(failed);
    }
    run.publishing = begun.elapsed().as_secs_f64();
    let patience = Instant::now() + CONSUMED_WAIT;
    while consumed.load(Ordering::Relaxed) < run.published && Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    run.consuming = begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for consumer in consumers {
        run.failed.extend(consumer.await.expect("a consumer does not panic"));
    }
    run.consumed = consumed.load(Ordering::Relaxed);
    run
}

async fn produce(platform: SocketAddr, mode: Mode, producer: usize, end: Instant) -> (u64, Latencies, Vec<String>) {
    let mut client = Client::new(platform);
    let path = format!("/ballet/v1/topics/{}/events", manifests::TOPIC);
    let data = "x".repeat(DATA_BYTES);
    let (kind, each) = match mode {
        Mode::Batches => (Event::BATCH_MEDIA_TYPE, IN_FLIGHT),
        Mode::Posts => (Event::MEDIA_TYPE, 1),
    };
    let (mut published, mut acks, mut failed) = (0_u64, Latencies::default(), vec![]);
    while Instant::now() < end && failed.len() < 10 {
        let event = |n: usize| {
            let id = published as usize + n;
            let topic = manifests::TOPIC;
            format!(
                r#"{{"specversion":"1.0","id":"{producer}-{id}","source":"bench","type":"{topic}","data":"{data}"}}"#
            )
        };
        let body = match mode {
            Mode::Batches => format!("[{}]", (0..each).map(event).collect::<Vec<_>>().join(",")),
            Mode::Posts => event(0),
        };
        let begun = Instant::now();
        match client.send("POST", &path, &[("content-type", kind)], body).await {
            Ok((202, _)) => {
                acks.add(begun.elapsed());
                published += each as u64;
            }
            Ok((status, body)) => failed.push(format!("publish: {status} {}", String::from_utf8_lossy(&body))),
            Err(error) => failed.push(format!("publish: {}", error.0)),
        }
    }
    (published, acks, failed)
}

/// Pulls once and acknowledges what came; answers how many.
async fn consume(client: &mut Client, wait_ms: u64) -> Result<u64, String> {
    let group = format!("/ballet/v1/topics/{}/groups/{GROUP}", manifests::TOPIC);
    let headers = [("content-type", "application/json")];
    let body = json!({ "max": PULL, "waitMs": wait_ms, "leaseMs": 30_000 }).to_string();
    let (status, body) =
        client.send("POST", &format!("{group}/pull"), &headers, body).await.map_err(|e| format!("pull: {}", e.0))?;
    if status != 200 {
        return Err(format!("pull: {status} {}", String::from_utf8_lossy(&body)));
    }
    let pulled: Pulled<'_> = serde_json::from_slice(&body).map_err(|error| format!("pull: {error}"))?;
    if pulled.deliveries.is_empty() {
        return Ok(0);
    }
    let count = pulled.deliveries.len() as u64;
    let receipts: Vec<Receipt> = pulled.deliveries.into_iter().map(|delivery| delivery.receipt).collect();
    let body = json!({ "receipts": receipts }).to_string();
    let (status, body) =
        client.send("POST", &format!("{group}/ack"), &headers, body).await.map_err(|e| format!("ack: {}", e.0))?;
    if status != 204 {
        return Err(format!("ack: {status} {}", String::from_utf8_lossy(&body)));
    }
    Ok(count)
}
