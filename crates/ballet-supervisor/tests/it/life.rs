//! Instances, from their build to their end.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ballet_supervisor::{Health, ServiceSpec, State, StateDir, StateError, Store, Supervisor};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::rig::{LONG, Rig, Watcher, eventually, gone, is_alive, kill, orders, pids, sh, web};

/// A `ballet up` that runs one service with grandchildren: itself, and the pids of service, sleepers and shim.
async fn host(dir: &Path, words: &[&str]) -> (Child, [i32; 4]) {
    use std::io::{BufRead, BufReader};
    let file = dir.join("pids");
    let mut host = Command::new(std::env::current_exe().unwrap())
        .arg("host")
        .args([dir, &file])
        .args(words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(host.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pids = pids(&file).await;
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    (host, pids)
}

pub async fn nothing_outlives_a_killed_supervisor() {
    for words in [&[][..], &["ignore-term"]] {
        let dir = tempfile::tempdir().unwrap();
        let (mut host, pids) = host(dir.path(), words).await;
        let taken = StateDir::open(dir.path().join(".ballet")).unwrap_err();
        assert!(matches!(taken, StateError::Locked { pid: Some(pid), .. } if pid == host.id()), "{taken}");
        let running = ballet_supervisor::running(&dir.path().join(".ballet"));
        assert_eq!(running, None, "it has announced no address");

        host.kill().unwrap();
        host.wait().unwrap();
        gone(&pids, Duration::from_secs(5)).await;
        StateDir::open(dir.path().join(".ballet")).expect("the kernel gave the lock back");
    }
}

pub async fn nothing_outlives_a_killed_shim() {
    let rig = Rig::up(|dir| vec![orders(web(&["children", &dir.join("pids").to_string_lossy()]), dir)]).await;
    rig.settled().await;
    let before = pids(&rig.path("pids")).await;
    assert_eq!(rig.instance(1).pid, Some(before[0]), "the service's own process");
    kill(before[3], Signal::KILL);
    gone(&before, LONG).await;
    let after = rig.until(1, |status| status.ready && status.restarts > 0).await;
    assert!(after.pid.is_some_and(|pid| pid != before[0]));
    rig.down().await;
}

pub async fn leftovers_of_a_killed_shim_and_supervisor_are_cleaned_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (mut host, pids) = host(dir.path(), &[]).await;
    // Stopped first, so that it cannot see the shim's end. (Stopping the shim would not do: the kernel wakes an orphaned group.)
    kill(host.id().cast_signed(), Signal::STOP);
    kill(pids[3], Signal::KILL);
    host.kill().unwrap();
    host.wait().unwrap();
    gone(&pids[3..], LONG).await;
    assert!(pids[..3].iter().all(|pid| is_alive(*pid)), "nobody could clean up");

    let state = Arc::new(StateDir::open(dir.path().join(".ballet")).unwrap());
    let config = ballet_supervisor::Config::new("shop", dir.path());
    // A note about a process that has our own pid and another start must not hurt.
    let strange = format!(r#"{{"marker":"","shim":null,"service":{{"pid":{},"start":"x"}}}}"#, std::process::id());
    std::fs::write(state.root().join("run/other-1.process.json"), strange).unwrap();
    let handle = Supervisor::start(config, state, vec![], Arc::new(()), Arc::new(())).await.unwrap();
    gone(&pids, Duration::from_secs(1)).await;
    handle.shutdown().await;
}

pub async fn a_crashed_instance_restarts_and_keeps_its_port() {
    let rig = Rig::one(&[]).await;
    let before = rig.instance(1);
    tokio::time::sleep(Duration::from_millis(200)).await; // a steady run, by this rig's limits
    kill(before.pid.unwrap(), Signal::KILL);
    let after = rig.until(1, |status| status.ready && status.restarts == 1).await;
    assert_eq!(after.address, before.address);
    assert_ne!(after.pid, before.pid);
    let events = rig.events.lock().unwrap().clone();
    assert!(events.contains(&"orders-1 restarting".into()), "{events:?}");
    rig.down().await;
}

pub async fn a_service_that_ends_at_once_is_tried_again_and_again() {
    let rig = Rig::up(|dir| vec![orders(sh("exit 7"), dir)]).await;
    let status = rig.until(1, |status| status.restarts >= 4 && status.state == State::Waiting).await;
    assert_eq!(status.reason.as_deref(), Some("exited with code 7"));
    assert_eq!((status.pid, status.address), (None, None));
    rig.down().await;

    let rig = Rig::up(|dir| vec![orders(vec!["no-such-program".into()], dir)]).await;
    let status = rig.until(1, |status| status.restarts >= 2 && status.reason.is_some()).await;
    assert!(status.reason.unwrap().contains("no program `no-such-program`"));
    rig.down().await;
}

pub async fn a_taken_port_is_answered_with_another() {
    // Whoever is quicker than the service: takes the first port that is offered.
    let thief: Arc<Mutex<Option<TcpListener>>> = Arc::default();
    let watcher = Watcher {
        on_launch: Box::new({
            let thief = thief.clone();
            move |launch| {
                thief.lock().unwrap().get_or_insert_with(|| TcpListener::bind(launch.address.unwrap()).unwrap());
                vec![]
            }
        }),
        ..Watcher::default()
    };
    let rig = Rig::with(|dir| vec![orders(web(&["say", "hello"]), dir)], |_| {}, watcher).await;
    // The thief answers no health check, so only the service's end shows what happened.
    let reason = rig.until(1, |status| status.reason.is_some()).await.reason.unwrap();
    let stolen = thief.lock().unwrap().as_ref().unwrap().local_addr().unwrap();
    assert_eq!(reason, format!("exited with code 3; port {} is taken by another program", stolen.port()));
    let status = rig.until(1, |status| status.ready).await;
    assert_ne!(status.address.unwrap(), stolen);
    rig.down().await;
}

pub async fn an_instance_drains_before_it_gets_term() {
    let answered: Arc<Mutex<Vec<bool>>> = Arc::default();
    let watcher = Watcher {
        on_change: Box::new({
            let answered = answered.clone();
            move |status| {
                let answered = answered.clone();
                Box::pin(async move {
                    if status.state == State::Draining {
                        // Whoever is told may still send what it has begun.
                        let connection = tokio::net::TcpStream::connect(status.address.unwrap()).await;
                        answered.lock().unwrap().push(connection.is_ok() && is_alive(status.pid.unwrap()));
                    }
                })
            }
        }),
        ..Watcher::default()
    };
    let rig = Rig::with(|dir| vec![orders(web(&[]), dir)], |_| {}, watcher).await;
    rig.settled().await;
    let pid = rig.instance(1).pid.unwrap();
    rig.handle.stop("orders").await.unwrap();
    rig.settled().await;
    assert!(!is_alive(pid));
    assert_eq!(*answered.lock().unwrap(), [true]);
    let events = rig.events.lock().unwrap().clone();
    assert_eq!(
        events,
        ["orders-1 starting", "orders-1 starting", "orders-1 running ready", "orders-1 draining", "orders-1 stopped"]
    );
    rig.heard("orders", "term").await; // and not just KILL

    rig.handle.start("orders").await.unwrap();
    rig.settled().await;
    rig.down().await;
}

pub async fn one_that_ignores_term_is_killed_after_the_grace() {
    let grace = Duration::from_millis(300);
    let words = |dir: &Path| web(&["ignore-term", "children", &dir.join("pids").to_string_lossy()]);
    let rig =
        Rig::with(|dir| vec![orders(words(dir), dir)], |config| config.limits.grace = grace, Watcher::default()).await;
    rig.settled().await;
    let pids = pids(&rig.path("pids")).await;
    let started = Instant::now();
    rig.handle.stop("orders").await.unwrap();
    rig.settled().await;
    assert!(started.elapsed() >= grace && started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "none is left when it is called stopped");
    rig.down().await;
}

fn with_init(dir: &Path, init: &[&str]) -> ServiceSpec {
    let mut spec = orders(web(&[]), dir);
    spec.init = init.iter().map(|script| sh(script)).collect();
    spec
}

pub async fn initializers_run_in_order_and_once() {
    let rig = Rig::up(|dir| {
        let mut spec =
            with_init(dir, &["echo first $BALLET_SERVICE >> init; echo said", "echo second $STORE_URL >> init"]);
        spec.instances = 2;
        spec.store = Some(Store::Sqlite);
        vec![spec]
    })
    .await;
    rig.settled().await;
    let pid = rig.instance(2).pid.unwrap();
    kill(pid, Signal::KILL);
    rig.until(2, |status| status.ready && status.pid != Some(pid)).await;
    let store = rig.state.root().join("services/orders/orders.db");
    let text = std::fs::read_to_string(rig.path("init")).unwrap();
    assert_eq!(text, format!("first orders\nsecond sqlite:{}\n", store.display()));
    assert!(rig.printed().await.iter().any(|line| line["part"] == "init" && line["message"] == "said"));
    assert!(rig.events.lock().unwrap().contains(&"orders-1 initializing".into()));

    // A new start of the whole set runs them again.
    rig.handle.stop("orders").await.unwrap();
    rig.settled().await;
    rig.handle.start("orders").await.unwrap();
    rig.settled().await;
    assert_eq!(std::fs::read_to_string(rig.path("init")).unwrap().lines().count(), 4);
    rig.down().await;
}

pub async fn a_failed_initializer_says_why_and_can_be_tried_again() {
    let rig = Rig::up(|dir| vec![with_init(dir, &["test -e good || { echo no such table >&2; exit 1; }"])]).await;
    let status = rig.until(1, |status| status.state == State::Failed).await;
    let reason = status.reason.unwrap();
    assert!(
        reason.starts_with("initializer `sh -c") && reason.ends_with("exited with code 1: no such table"),
        "{reason}"
    );
    std::fs::write(rig.path("good"), "").unwrap();
    rig.handle.restart("orders").await.unwrap();
    rig.settled().await;
    rig.down().await;
}

pub async fn builds_come_first_and_a_failed_one_says_why() {
    let script = "echo built >> system; test -e good || { echo 'error: could not compile' >&2; exit 101; }";
    let two = |dir: &Path| {
        let mut one = orders(web(&[]), dir);
        one.build = Some(sh("test -e system && echo built >> own"));
        let other = ServiceSpec { name: "payments".parse().unwrap(), ..orders(web(&[]), dir) };
        vec![one, other]
    };
    let rig = Rig::with(two, |config| config.build = Some(sh(script)), Watcher::default()).await;
    let reason = rig.until(1, |status| status.state == State::Failed).await.reason.unwrap();
    assert!(reason.ends_with("exited with code 101: error: could not compile"), "{reason}");
    eventually("the other's failure", LONG, || {
        rig.handle.snapshot().services["payments"].instances.get(&1).is_some_and(|i| i.state == State::Failed)
    })
    .await;
    let built = |name: &str| std::fs::read_to_string(rig.path(name)).unwrap_or_default().lines().count();
    assert_eq!((built("system"), built("own")), (1, 0), "one build for both");

    std::fs::write(rig.path("good"), "").unwrap();
    rig.handle.start("orders").await.unwrap();
    rig.settled().await;
    rig.handle.start("payments").await.unwrap();
    assert!(rig.handle.settled("payments", LONG).await);
    assert_eq!((built("system"), built("own")), (2, 1));
    rig.down().await;
}

pub async fn a_stop_interrupts_a_build() {
    let build = |config: &mut ballet_supervisor::Config| config.build = Some(sh("echo $$ > pid; sleep 300"));
    let rig = Rig::with(|dir| vec![orders(web(&[]), dir)], build, Watcher::default()).await;
    let file: PathBuf = rig.path("pid");
    eventually("a build", LONG, || std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n'))).await;
    rig.until(1, |status| status.state == State::Building).await;
    let pid = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    rig.handle.stop("orders").await.unwrap();
    rig.settled().await;
    gone(&[pid], Duration::from_secs(5)).await;
    rig.down().await;
}

pub async fn a_service_gets_its_environment_and_nobody_elses() {
    let spec = |dir: &Path| {
        let mut spec = orders(web(&["env"]), dir);
        spec.store = Some(Store::Url("postgres://orders:secret@db/orders".into()));
        spec.env = vec![("INVENTORY_URL".into(), "http://over.all".into())];
        spec.health = Health::Path("/healthz".into());
        let other = ServiceSpec { name: "payments".parse().unwrap(), ..orders(web(&["env"]), dir) };
        vec![spec, other]
    };
    let watcher = Watcher {
        on_launch: Box::new(|launch| {
            let url = format!("http://127.0.0.1:1/{}", launch.id);
            vec![("INVENTORY_URL".into(), url.clone()), ("BALLET_URL".into(), url)]
        }),
        ..Watcher::default()
    };
    // PATH is certainly in the environment of this test; hidden it reaches no service.
    let rig = Rig::with(spec, |config| config.hidden_env = vec!["PATH".into()], watcher).await;
    rig.settled().await;
    assert!(rig.handle.settled("payments", LONG).await);
    rig.heard("orders", "that was all").await;
    rig.heard("payments", "that was all").await;
    let lines = rig.printed().await;
    let port = rig.instance(1).address.unwrap().port().to_string();
    for (name, value) in [
        ("PORT", Some(port.as_str())),
        ("APP_PORT", Some(&port)),
        ("APP_ID", Some("orders")),
        ("BALLET_SERVICE", Some("orders")),
        ("BALLET_INSTANCE", Some("1")),
        ("OTEL_SERVICE_NAME", Some("orders")),
        ("STORE_URL", Some("postgres://orders:secret@db/orders")),
        ("BALLET_URL", Some("http://127.0.0.1:1/orders-1")),
        ("INVENTORY_URL", Some("http://over.all")),
        ("PATH", None),
        ("CARGO_MANIFEST_DIR", None),
    ] {
        let start = format!("{name}=");
        let found = lines.iter().filter_map(|line| line["message"].as_str()?.strip_prefix(&start)).next_back();
        assert_eq!(found, value, "{name}");
    }
    let others = rig.handle.tail(Some("payments".parse().unwrap()), 1000).await.unwrap();
    assert!(others.lines.len() > 5 && !others.lines.iter().any(|line| line.contains("STORE_URL")));
    rig.down().await;
}

fn two(dir: &Path) -> Vec<ServiceSpec> {
    vec![ServiceSpec { instances: 2, ..orders(web(&[]), dir) }]
}

pub async fn a_rolling_restart_leaves_one_ready() {
    let rig = Rig::up(two).await;
    rig.settled().await;
    let before = [rig.instance(1), rig.instance(2)];
    let mut snapshots = rig.handle.subscribe();
    let watch = tokio::spawn(async move {
        let mut least = usize::MAX;
        while snapshots.changed().await.is_ok() {
            let snapshot = snapshots.borrow_and_update().clone();
            let orders = &snapshot.services["orders"];
            least = least.min(orders.instances.values().filter(|i| i.ready).count());
            if orders.is_settled() {
                break;
            }
        }
        least
    });
    rig.handle.restart("orders").await.unwrap();
    rig.settled().await;
    assert_eq!(watch.await.unwrap(), 1);
    for (number, before) in [1, 2].into_iter().zip(before) {
        let after = rig.instance(number);
        assert!(after.pid != before.pid && after.address == before.address && after.restarts == 0, "{after:?}");
    }
    rig.down().await;
}

pub async fn scaling_starts_and_stops_the_highest() {
    let rig = Rig::up(two).await;
    rig.settled().await;
    let first = rig.instance(1).pid;
    for count in [3, 1, 2, 0] {
        rig.handle.scale("orders", count).await.unwrap();
        rig.settled().await;
        let numbers: Vec<u32> = rig.handle.snapshot().services["orders"].instances.keys().copied().collect();
        assert_eq!(numbers, (1..=count).collect::<Vec<_>>());
        assert!(count == 0 || rig.instance(1).pid == first, "the first is left alone");
    }
    assert!(rig.handle.scale("orders", 65).await.is_err());
    assert!(rig.handle.scale("nobody", 1).await.is_err());
    rig.down().await;
}
