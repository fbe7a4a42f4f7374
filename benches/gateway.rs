//! CPU time of one request through the gateway beside Debian's nginx: plain, and with the features on.
//!
//! Upstream, load generator and proxies share the machine. *Pinned*: the proxy has CPU 0, everything else CPU 1, and so
//! the proxy runs one worker. *Unpinned*: all may run everywhere, the proxies with a worker for each CPU. CPU time per
//! request is what counts; requests per second say more about the load generator.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ballet_benches::processes::{self, CpuTimes};
use ballet_benches::strace::Strace;
use ballet_benches::wrk::{Load, Seen};
use ballet_benches::{Bar, Options, Report, Responder, Table, manifests, stats, tokens, tools};
use ballet_tests::{Ballet, bin, request};
use serde_json::{Value, json};

/// What a browser sends along.
const BROWSER: [&str; 4] = [
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) bench",
    "Accept: application/json",
    "Accept-Encoding: gzip, br",
    "Cookie: session=0123456789abcdef0123456789abcdef",
];
/// The CPU of the proxies, and that of everything else, when pinned.
const PROXY_CPU: usize = 0;
const OTHER_CPU: usize = 1;
/// Connections of the load generator.
const CONNECTIONS: [usize; 2] = [32, 128];
/// Calls that stand for less than this share of a request are not shown.
const SHOWN_CALLS: f64 = 0.005;

/// What is asked: a plain GET of 128 B, or one that needs the features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Features,
}

/// A running proxy.
struct Proxy {
    name: &'static str,
    kind: Kind,
    address: SocketAddr,
    program: Program,
}

enum Program {
    Nginx(Child),
    Ballet(Box<Ballet>),
}

/// One measurement.
struct Sample {
    proxy: &'static str,
    kind: Kind,
    connections: usize,
    seen: Seen,
    user_us: f64,
    system_us: f64,
    pss_bytes: u64,
}

fn main() {
    let Some(options) = Options::asked(Duration::from_secs(5)) else { return };
    tools::need(&["nginx", "strace", "taskset", "wrk"]);
    bin("ballet");
    let (keys, token) = tokens::issue();
    let (small, keys) = (Responder::ok(&"x".repeat(128)), Responder::ok(&keys));
    let upstream = Responder::start(
        move |request| if request.path == manifests::KEYS_PATH { keys.clone() } else { small.clone() },
    );

    let mut report = Report::begin("gateway", &options);
    report.setting("nginx", nginx_version());
    report.setting("connections", CONNECTIONS.to_vec());
    report.setting("accessLog", json!({ "ballet": "on, to a file, as by default", "nginx": "off" }));
    let mut table =
        Table::new(&["target", "c", "cpu µs", "min", "user", "sys", "req/s", "p50 µs", "p99 µs", "PSS MB", "errors"]);
    for (name, pinned) in [("pinned", true), ("unpinned", false)] {
        if !options.wants(name) || (pinned && tools::cores() < 2) {
            continue;
        }
        if pinned {
            tools::pin(upstream.thread, OTHER_CPU);
        } else {
            tools::unpin(upstream.thread);
        }
        let samples = measure(&options, &upstream, &token, pinned);
        summarise(name, &samples, &mut table, &mut report);
    }
    if options.wants("syscalls") {
        tools::unpin(upstream.thread);
        let calls = count_calls(&options, &upstream, &token);
        report.result("syscallsPerRequest", calls);
    }
    table.print();
    report.end();
}

/// Starts all proxies, asks each in turn, in alternating order; ends them.
fn measure(options: &Options, upstream: &Responder, token: &str, pinned: bool) -> Vec<Sample> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let proxies = start(dir.path(), upstream.address, pinned);
    check(&proxies, token);
    let cpu = pinned.then_some(OTHER_CPU);
    for proxy in &proxies {
        load(proxy, token, 32, Duration::from_secs(1), cpu).run();
    }
    let mut samples = vec![];
    for round in 0..options.rounds {
        for connections in CONNECTIONS {
            let mut order: Vec<&Proxy> = proxies.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for proxy in order {
                eprintln!("  round {} c={connections} {}", round + 1, proxy.name);
                let pids = processes::tree(proxy.program.pid());
                let before = CpuTimes::now(&pids);
                let seen = load(proxy, token, connections, options.length, cpu).run();
                let used = CpuTimes::now(&pids).since(&before);
                let each = 1e6 / seen.requests as f64;
                samples.push(Sample {
                    proxy: proxy.name,
                    kind: proxy.kind,
                    connections,
                    user_us: used.user * each,
                    system_us: used.system * each,
                    pss_bytes: processes::pss(&pids),
                    seen,
                });
            }
        }
    }
    samples
}

fn summarise(set_up: &str, samples: &[Sample], table: &mut Table, report: &mut Report) {
    let cpu = |name: &str, connections: usize| -> Vec<f64> {
        let mine = samples.iter().filter(|sample| sample.proxy == name && sample.connections == connections);
        mine.map(Sample::cpu_us).collect()
    };
    for connections in CONNECTIONS {
        for (name, ..) in TARGETS {
            let mine: Vec<&Sample> =
                samples.iter().filter(|sample| sample.proxy == name && sample.connections == connections).collect();
            let median = |of: fn(&Sample) -> f64| stats::median(mine.iter().map(|sample| of(sample)));
            let mut errors: Vec<&str> = mine.iter().map(|sample| sample.seen.errors.as_str()).collect();
            errors.dedup();
            table.row(vec![
                format!("{set_up} {name}"),
                connections.to_string(),
                format!("{:.2}", median(Sample::cpu_us)),
                format!("{:.2}", stats::percentile(mine.iter().map(|sample| sample.cpu_us()), 0.0)),
                format!("{:.2}", median(|sample| sample.user_us)),
                format!("{:.2}", median(|sample| sample.system_us)),
                format!("{:.0}", median(|sample| sample.seen.per_second)),
                format!("{:.0}", median(|sample| sample.seen.p50_us)),
                format!("{:.0}", median(|sample| sample.seen.p99_us)),
                format!("{:.1}", median(|sample| sample.pss_bytes as f64) / 1e6),
                errors.join(" "),
            ]);
        }
        let ratio =
            |ours: &str, theirs: &str| stats::median(cpu(ours, connections)) / stats::median(cpu(theirs, connections));
        let what = |what: &str| format!("{what}, CPU/request, {set_up}, c={connections}");
        report.bar(Bar::at_most(what("plain"), ratio("ballet", "nginx"), "× nginx", 0.92, Some(0.85)));
        let features = ratio("ballet-features", "nginx-features");
        report.bar(Bar::at_most(what("features on"), features, "× nginx", 0.80, Some(0.65)));
    }
    report.result(set_up, samples.iter().map(Sample::json).collect::<Vec<_>>());
}

/// System calls of one request, for each proxy in turn.
fn count_calls(options: &Options, upstream: &Responder, token: &str) -> Value {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let proxies = start(dir.path(), upstream.address, false);
    let mut table = Table::new(&["target", "calls/request", "which"]);
    let mut all = json!({});
    for proxy in &proxies {
        eprintln!("  system calls of {}", proxy.name);
        load(proxy, token, 32, Duration::from_secs(1), None).run();
        let strace = Strace::count(&processes::tree(proxy.program.pid()));
        let seen = load(proxy, token, 32, options.length.min(Duration::from_secs(3)), None).run();
        let counts = strace.counts();
        let each = |count: &u64| *count as f64 / seen.requests as f64;
        let mut shown: Vec<(&String, f64)> = counts.iter().map(|(name, count)| (name, each(count))).collect();
        shown.retain(|(_, each)| *each >= SHOWN_CALLS);
        shown.sort_by(|a, b| b.1.total_cmp(&a.1));
        let words: Vec<String> = shown.iter().map(|(name, each)| format!("{name} {each:.2}")).collect();
        let sum = counts.values().map(each).sum::<f64>();
        table.row(vec![proxy.name.to_owned(), format!("{sum:.2}"), words.join(", ")]);
        all[proxy.name] = json!({ "requests": seen.requests, "calls": counts, "perRequest": sum });
    }
    table.print();
    all
}

/// The proxies, in the order of the first round.
const TARGETS: [(&str, Kind); 4] = [
    ("nginx", Kind::Plain),
    ("ballet", Kind::Plain),
    ("nginx-features", Kind::Features),
    ("ballet-features", Kind::Features),
];

fn start(dir: &Path, upstream: SocketAddr, pinned: bool) -> Vec<Proxy> {
    let cpu = PROXY_CPU.to_string();
    let launcher: Vec<&str> = if pinned { vec!["taskset", "-c", &cpu] } else { vec![] };
    let workers = if pinned { 1 } else { tools::cores() };
    let nginx = |template: &str, name: &str| {
        let folder = dir.join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        start_nginx(&launcher, template, &folder, upstream, workers)
    };
    let ballet = |text: String, name: &str| {
        let manifest = manifests::write(dir, name, &text);
        let ballet = Ballet::launch(&launcher, &manifest, &dir.join(format!("{name}-state")), &[]);
        (ballet.gateway, Program::Ballet(Box::new(ballet)))
    };
    let started = TARGETS.map(|(name, kind)| {
        let (address, program) = match name {
            "nginx" => nginx(include_str!("nginx.conf"), name),
            "nginx-features" => nginx(include_str!("nginx-features.conf"), name),
            "ballet" => ballet(manifests::plain(upstream), name),
            _ => ballet(manifests::features(upstream), name),
        };
        Proxy { name, kind, address, program }
    });
    started.into()
}

fn start_nginx(
    launcher: &[&str],
    template: &str,
    folder: &Path,
    upstream: SocketAddr,
    workers: usize,
) -> (SocketAddr, Program) {
    // Free a moment ago: nginx cannot say which one it took.
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let text = manifests::nginx(template, address.port(), upstream, workers, folder);
    let file = folder.join("nginx.conf");
    std::fs::write(&file, text).expect("the configuration can be written");
    let nginx = tools::find("nginx").expect("nginx is installed");
    let words: Vec<&str> = launcher.iter().copied().chain([nginx.to_str().expect("a plain path")]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("-p").arg(folder).arg("-c").arg(&file).stdout(Stdio::null());
    let child = command.spawn().expect("nginx starts");
    let answers = || {
        std::thread::sleep(Duration::from_millis(20));
        TcpStream::connect(address).is_ok()
    };
    assert!((0..250).any(|_| answers()), "nginx does not answer: {}", file.display());
    (address, Program::Nginx(child))
}

/// Makes sure that each proxy does what it is measured for.
fn check(proxies: &[Proxy], token: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        for proxy in proxies {
            let path = proxy.kind.path();
            // The keys are fetched at the first token; a gateway may not have them at once.
            let mut reply = request(proxy.address, "GET", path).token(token).send().await;
            for _ in 0..50 {
                if reply.status == 200 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                reply = request(proxy.address, "GET", path).token(token).send().await;
            }
            assert_eq!((reply.status, reply.text.len()), (200, 128), "{}: {}", proxy.name, reply.text);
            if proxy.name == "ballet-features" {
                let refused = request(proxy.address, "GET", path).send().await;
                assert_eq!(refused.status, 401, "{}: {}", proxy.name, refused.text);
            }
        }
    });
}

fn load(proxy: &Proxy, token: &str, connections: usize, length: Duration, cpu: Option<usize>) -> Load {
    let headers = match proxy.kind {
        Kind::Plain => vec![],
        Kind::Features => {
            let token = format!("Authorization: Bearer {token}");
            BROWSER.iter().map(|header| (*header).to_owned()).chain([token]).collect()
        }
    };
    Load { address: proxy.address, path: proxy.kind.path().into(), headers, connections, length, cpu }
}

fn nginx_version() -> String {
    let nginx = tools::find("nginx").expect("nginx is installed");
    let said = Command::new(nginx).arg("-v").output().map(|output| output.stderr).unwrap_or_default();
    String::from_utf8_lossy(&said).trim().to_owned()
}

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Self::Plain => "/",
            Self::Features => manifests::FEATURED_PATH,
        }
    }
}

impl Program {
    fn pid(&self) -> u32 {
        match self {
            Self::Nginx(child) => child.id(),
            Self::Ballet(ballet) => ballet.pid(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        match self {
            // Its workers outlive a master that is killed.
            Self::Nginx(child) => {
                tools::signal(child.id(), "TERM");
                let _ = child.wait();
            }
            Self::Ballet(_) => {}
        }
    }
}

impl Sample {
    fn cpu_us(&self) -> f64 {
        self.user_us + self.system_us
    }

    fn json(&self) -> Value {
        json!({
            "target": self.proxy, "features": self.kind == Kind::Features, "connections": self.connections,
            "cpuUsPerRequest": self.cpu_us(), "userUs": self.user_us, "systemUs": self.system_us,
            "pssBytes": self.pss_bytes, "load": self.seen.json(),
        })
    }
}
