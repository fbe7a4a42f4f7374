//! The whole shop from outside: start, memory, one order's way, syncs per order, orders per second.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ballet_benches::manifests::NO_ORDER_LIMIT;
use ballet_benches::processes::{self, CpuTimes};
use ballet_benches::stats::Latencies;
use ballet_benches::strace::Strace;
use ballet_benches::{Bar, Client, Options, Report, Table, tools};
use ballet_core::{Clock, SystemClock, Timestamp};
use ballet_tests::{Ballet, Command, bin, repository};
use serde_json::{Value, json};
use tokio::time::Instant;

const CUSTOMER: &str = "ada@shop.test";
const STAFF: &str = "staff@shop.test";
const PASSWORD: &str = "correct-horse-battery";
/// What staff adds to each product before orders come.
const STOCK: u64 = 10_000;
/// Not sold here: the tests want their stock as it is.
const SPARED: [&str; 2] = ["last-one", "sold-out"];
/// Buyers at once.
const BUYERS: [usize; 3] = [1, 16, 64];
/// Memory is looked at so long after the shop is ready.
const SETTLE: Duration = Duration::from_secs(5);
/// Between two orders while syncs are counted, so that what follows an order is over before the next.
const APART: Duration = Duration::from_millis(300);
/// `build:` is done already.
const BUILT: &str = "build=true";

/// What a buyer needs.
#[derive(Clone)]
struct Shop {
    gateway: SocketAddr,
    customer: String,
    products: Vec<String>,
}

fn main() {
    let Some(options) = Options::asked(Duration::from_secs(10)) else { return };
    tools::need(&["strace"]);
    bin("ballet");
    let mut report = Report::begin("shop", &options);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a temporary directory");

    if options.wants("start") {
        starts(&options, &mut report, dir.path());
    }
    if options.wants("memory") {
        memory(&options, &mut report, &dir.path().join("memory"));
    }
    if !["latency", "syncs", "throughput"].iter().any(|part| options.wants(part)) {
        return report.end();
    }
    let system = start(&dir.path().join("orders"));
    let shop = runtime.block_on(open(system.gateway));
    runtime.block_on(async {
        let mut buyer = Client::new(shop.gateway);
        for n in 0..options.count(20, 3) {
            buy(&mut buyer, &shop, n).await;
        }
    });
    if options.wants("latency") {
        runtime.block_on(latency(&options, &mut report, &shop));
    }
    if options.wants("syncs") {
        syncs(&options, &mut report, &shop, system.pid(), &runtime);
    }
    if options.wants("throughput") {
        throughput(&options, &mut report, &shop, system.pid(), &runtime);
        let agreed = ledger_agrees(system.platform);
        eprintln!("  the ledger {}", if agreed { "agrees" } else { "DOES NOT AGREE" });
        report.result("ledgerAgrees", agreed);
    }
    report.end();
}

fn start(state: &Path) -> Ballet {
    Ballet::start(&repository().join("shop"), state, &[BUILT, NO_ORDER_LIMIT])
}

/// From the start of the process until everything is ready: with nothing there yet, and again on the same state.
fn starts(options: &Options, report: &mut Report, dir: &Path) {
    let (mut first, mut again) = (Latencies::default(), Latencies::default());
    for n in 0..options.count(5, 1) {
        let state = dir.join(format!("start-{n}"));
        for latencies in [&mut first, &mut again] {
            let begun = Instant::now();
            let system = start(&state);
            latencies.add(begun.elapsed());
            drop(system);
        }
    }
    let mut table = Table::new(&["start until ready", "p50 ms", "max ms"]);
    for (name, latencies) in [("on nothing: migrations, seed data", &first), ("on its state", &again)] {
        table.row(vec![name.into(), format!("{:.0}", latencies.ms(0.5)), format!("{:.0}", latencies.ms(1.0))]);
    }
    table.print();
    report.bar(Bar::at_most("shop ready after build, p50", first.ms(0.5) / 1e3, "s", 3.0, Some(1.5)));
    report.result("start", json!({ "fresh": first.json(), "again": again.json() }));
}

fn memory(options: &Options, report: &mut Report, state: &Path) {
    let system = start(state);
    std::thread::sleep(if options.quick { Duration::from_secs(1) } else { SETTLE });
    let pids = processes::tree(system.pid());
    let by_process = processes::memory(&pids);
    let mut table = Table::new(&["process, idle", "PSS MB", "RSS MB"]);
    let mb = |bytes: &Value| format!("{:.1}", bytes.as_f64().unwrap_or(0.0) / 1e6);
    for process in by_process.as_array().into_iter().flatten() {
        let name = process["name"].as_str().unwrap_or_default().to_owned();
        table.row(vec![name, mb(&process["pssBytes"]), mb(&process["rssBytes"])]);
    }
    table.print();
    let before = CpuTimes::now(&pids);
    let rest = Duration::from_secs(if options.quick { 1 } else { 10 });
    std::thread::sleep(rest);
    let used = CpuTimes::now(&pids).since(&before).total() / rest.as_secs_f64();
    let sum = processes::pss(&pids) as f64;
    report.bar(Bar::at_most("platform and six services, idle, PSS", sum / 1e6, "MB", 120.0, Some(80.0)));
    report.result("memory", json!({ "pssBytes": sum, "processes": by_process, "idleCpuShareOfOneCore": used }));
}

/// Logs in, and fills the shelves.
async fn open(gateway: SocketAddr) -> Shop {
    let mut client = Client::new(gateway);
    let (customer, staff) = (login(&mut client, CUSTOMER).await, login(&mut client, STAFF).await);
    let (status, body) = client.send("GET", "/products?limit=100", &[], "").await.expect("the catalog answers");
    let listed = json_of(&body);
    let items = listed["items"].as_array().unwrap_or_else(|| panic!("{status} {listed}"));
    let products = items.iter().filter_map(|item| item["id"].as_str()).filter(|id| !SPARED.contains(id));
    let shop = Shop { gateway, customer, products: products.map(str::to_owned).collect() };
    assert!(!shop.products.is_empty(), "the shop sells something: {listed}");
    for product in &shop.products {
        let path = format!("/inventory/{product}/increase");
        let headers = [("authorization", staff.as_str()), ("content-type", "application/json")];
        let sent = client.send("POST", &path, &headers, json!({ "quantity": STOCK }).to_string()).await;
        let (status, body) = sent.expect("the inventory answers");
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
    }
    shop
}

/// Answers the value of the `Authorization` header.
async fn login(client: &mut Client, email: &str) -> String {
    let body = json!({ "email": email, "password": PASSWORD }).to_string();
    let sent = client.send("POST", "/sessions", &[("content-type", "application/json")], body).await;
    let (status, body) = sent.expect("the users service answers");
    let session = json_of(&body);
    let token = session["token"].as_str().unwrap_or_else(|| panic!("{email}: {status} {session}"));
    format!("Bearer {token}")
}

/// Orders one piece and waits until the order is settled; answers `CONFIRMED` or what came instead.
async fn buy(client: &mut Client, shop: &Shop, n: usize) -> String {
    let product = &shop.products[n % shop.products.len()];
    let body = json!({ "items": [{ "productId": product, "quantity": 1 }], "card": "card_ok" }).to_string();
    let headers =
        [("authorization", shop.customer.as_str()), ("content-type", "application/json"), ("prefer", "wait=10")];
    match client.send("POST", "/orders", &headers, body).await {
        Ok((201, body)) => json_of(&body)["status"].as_str().unwrap_or("?").to_owned(),
        Ok((status, body)) => match json_of(&body)["code"].as_str() {
            Some(code) => format!("{status} {code}"),
            None => status.to_string(),
        },
        Err(error) => error.0,
    }
}

async fn latency(options: &Options, report: &mut Report, shop: &Shop) {
    let mut buyer = Client::new(shop.gateway);
    let mut latencies = Latencies::default();
    let mut others: BTreeMap<String, u64> = BTreeMap::new();
    for n in 0..options.count(200, 20) {
        let begun = Instant::now();
        match buy(&mut buyer, shop, n).await.as_str() {
            "CONFIRMED" => latencies.add(begun.elapsed()),
            other => *others.entry(other.to_owned()).or_default() += 1,
        }
    }
    let mut table = Table::new(&["POST to CONFIRMED, one at a time", "p50 ms", "p90 ms", "p99 ms", "others"]);
    let at = |share| format!("{:.1}", latencies.ms(share));
    table.row(vec![format!("{} orders", latencies.count()), at(0.5), at(0.9), at(0.99), format!("{others:?}")]);
    table.print();
    let what = format!(
        "an order, POST to CONFIRMED, p50 (the bar: where a sync costs 0.2 ms; here {:.2})",
        report.machine().sync_ms
    );
    report.bar(Bar::at_most(what, latencies.ms(0.5), "ms", 40.0, Some(20.0)));
    report.result("latency", json!({ "confirmed": latencies.json(), "others": others }));
}

fn syncs(options: &Options, report: &mut Report, shop: &Shop, pid: u32, runtime: &tokio::runtime::Runtime) {
    // What earlier orders left to do is done by then.
    std::thread::sleep(SETTLE);
    let pids = processes::tree(pid);
    let threads = threads(&pids);
    let strace = Strace::watch_syncs(&pids);
    let idle_from = SystemClock.now();
    std::thread::sleep(if options.quick { Duration::from_secs(2) } else { Duration::from_secs(10) });
    let idle_to = SystemClock.now();
    let orders = options.count(50, 5);
    let mut windows: Vec<(Timestamp, Timestamp)> = vec![];
    runtime.block_on(async {
        let mut buyer = Client::new(shop.gateway);
        for n in 0..orders {
            let from = SystemClock.now();
            let outcome = buy(&mut buyer, shop, n).await;
            windows.push((from, SystemClock.now()));
            assert_eq!(outcome, "CONFIRMED", "an order while syncs are counted");
            tokio::time::sleep(APART).await;
        }
    });
    std::thread::sleep(Duration::from_secs(1));
    let ended = SystemClock.now();

    let idle_seconds = idle_to.since(idle_from).as_secs_f64();
    let way_seconds: f64 = windows.iter().map(|(from, to)| to.since(*from).as_secs_f64()).sum();
    let mut by_file: BTreeMap<String, Counted> = BTreeMap::new();
    for sync in strace.syncs() {
        let process = threads.get(&sync.thread).map_or("?", String::as_str);
        let counted = by_file.entry(format!("{process} {}", sync.file)).or_default();
        if sync.within(idle_from, idle_to) {
            counted.idle_per_second += 1.0 / idle_seconds;
        } else if windows.iter().any(|(from, to)| sync.within(*from, *to)) {
            counted.way += 1.0 / orders as f64;
        } else if sync.within(idle_to, ended) {
            counted.after += 1.0 / orders as f64;
        }
    }
    let mut all = Counted::default();
    let mut table = Table::new(&["syncs of one order", "until CONFIRMED", "after it", "idle, in a second"]);
    for (name, counted) in &by_file {
        all.way += counted.way;
        all.after += counted.after;
        all.idle_per_second += counted.idle_per_second;
        table.row(counted.cells(name));
    }
    table.row(all.cells("all"));
    table.print();
    // What the system does by itself meanwhile is not the order's.
    let by_itself = all.idle_per_second * way_seconds / orders as f64;
    report.bar(Bar::at_most("syncs on an order's way", all.way - by_itself, "syncs", 12.0, None));
    let files = by_file.iter().map(|(name, counted)| (name.clone(), counted.json()));
    report.result(
        "syncs",
        json!({
            "orders": orders, "perOrder": all.json(), "ofTheseByItself": by_itself, "secondsUntilConfirmed": way_seconds,
            "byProcessAndFile": files.collect::<serde_json::Map<_, _>>(),
        }),
    );
}

/// Syncs of one order, and those that come without any.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    /// Between `POST` and the answer that says `CONFIRMED`.
    way: f64,
    /// Until the next order.
    after: f64,
    idle_per_second: f64,
}

impl Counted {
    fn cells(&self, name: &str) -> Vec<String> {
        let cell = |value: f64| format!("{value:.2}");
        vec![name.to_owned(), cell(self.way), cell(self.after), cell(self.idle_per_second)]
    }

    fn json(&self) -> Value {
        json!({ "untilConfirmed": self.way, "after": self.after, "idlePerSecond": self.idle_per_second })
    }
}

/// Names of the processes that threads belong to.
fn threads(pids: &[u32]) -> BTreeMap<u32, String> {
    let of = |pid: &u32| {
        let name = processes::name(*pid);
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let ids = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
        ids.map(move |id| (id, name.clone())).collect::<Vec<_>>()
    };
    pids.iter().flat_map(of).collect()
}

fn throughput(options: &Options, report: &mut Report, shop: &Shop, pid: u32, runtime: &tokio::runtime::Runtime) {
    let mut table =
        Table::new(&["buyers", "orders/s", "p50 ms", "p99 ms", "CPU s/1,000", "busiest", "PSS MB", "others"]);
    let mut rows = vec![];
    for buyers in BUYERS {
        eprintln!("  {buyers} buyers");
        let pids = processes::tree(pid);
        let before = CpuTimes::now(&pids);
        let begun = Instant::now();
        let (latencies, others) = runtime.block_on(crowd(shop, buyers, options.length));
        let took = begun.elapsed().as_secs_f64();
        // What follows an order belongs to it: the mail, the sale, the projections.
        std::thread::sleep(Duration::from_secs(2));
        let after = CpuTimes::now(&processes::tree(pid));
        let orders = latencies.count().max(1) as f64;
        let (used, by_name) = (after.since(&before), after.since_by_name(&before));
        let per_thousand = used.total() / orders * 1e3;
        let busiest = by_name.iter().max_by(|a, b| a.1.total_cmp(b.1));
        let busiest = busiest.map(|(name, seconds)| format!("{name} {:.0} %", seconds / used.total() * 100.0));
        let rate = latencies.count() as f64 / took;
        let pss = processes::pss(&pids);
        table.row(vec![
            buyers.to_string(),
            format!("{rate:.0}"),
            format!("{:.1}", latencies.ms(0.5)),
            format!("{:.1}", latencies.ms(0.99)),
            format!("{per_thousand:.2}"),
            busiest.unwrap_or_default(),
            format!("{:.1}", pss as f64 / 1e6),
            if others.is_empty() { String::new() } else { format!("{others:?}") },
        ]);
        rows.push(json!({
            "buyers": buyers, "seconds": took, "ordersPerSecond": rate, "confirmed": latencies.json(), "others": others,
            "cpuSecondsPerThousand": per_thousand, "userSeconds": used.user, "systemSeconds": used.system,
            "cpuSecondsByProcess": by_name, "pssBytes": pss,
        }));
    }
    table.print();
    report.result("throughput", rows);
}

/// Buyers who order one after the other, each on a connection of their own, until the time is over.
async fn crowd(shop: &Shop, buyers: usize, length: Duration) -> (Latencies, BTreeMap<String, u64>) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let end = Instant::now() + length;
    let buying: Vec<_> = (0..buyers)
        .map(|_| {
            let shop = shop.clone();
            tokio::spawn(async move {
                let mut client = Client::new(shop.gateway);
                let (mut latencies, mut others) = (Latencies::default(), BTreeMap::<String, u64>::new());
                while Instant::now() < end {
                    let n = NEXT.fetch_add(1, Ordering::Relaxed) as usize;
                    let begun = Instant::now();
                    match buy(&mut client, &shop, n).await.as_str() {
                        "CONFIRMED" => latencies.add(begun.elapsed()),
                        other => *others.entry(other.to_owned()).or_default() += 1,
                    }
                }
                (latencies, others)
            })
        })
        .collect();
    let (mut latencies, mut others) = (Latencies::default(), BTreeMap::new());
    for buyer in buying {
        let (more, strange) = buyer.await.expect("a buyer does not panic");
        latencies.extend(more);
        for (what, count) in strange {
            *others.entry(what).or_default() += count;
        }
    }
    (latencies, others)
}

fn ledger_agrees(platform: SocketAddr) -> bool {
    let mut check = Command::new(bin("shop-ledger"));
    let output = check.arg("--platform").arg(format!("http://{platform}")).output();
    output.is_ok_and(|output| {
        if !output.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&output.stdout));
        }
        output.status.success()
    })
}

fn json_of(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or(Value::Null)
}
