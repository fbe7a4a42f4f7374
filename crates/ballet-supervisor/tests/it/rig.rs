//! A supervisor in a directory of its own, and what the tests ask about processes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ballet_core::Later;
use ballet_supervisor::{
    Config, Handle, InstanceStatus, Launch, Limits, Observer, ServiceSpec, Snapshot, StateDir, Supervisor,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::time::{Instant, sleep, timeout};

/// Longest wait for anything.
pub const LONG: Duration = Duration::from_secs(20);

pub struct Rig {
    pub dir: tempfile::TempDir,
    pub state: Arc<StateDir>,
    pub handle: Handle,
    pub events: Arc<Mutex<Vec<String>>>,
}

type OnChange = Box<dyn Fn(InstanceStatus) -> Later<'static, ()> + Send + Sync>;
type OnLaunch = Box<dyn Fn(&Launch) -> Vec<(String, String)> + Send + Sync>;

pub struct Watcher {
    pub on_change: OnChange,
    pub on_launch: OnLaunch,
}

impl Default for Watcher {
    fn default() -> Self {
        Self { on_change: Box::new(|_| Box::pin(async {})), on_launch: Box::new(|_| vec![]) }
    }
}

struct Recorder {
    watcher: Watcher,
    events: Arc<Mutex<Vec<String>>>,
}

impl Observer for Recorder {
    fn environment<'a>(&'a self, launch: &'a Launch) -> Later<'a, Result<Vec<(String, String)>, String>> {
        Box::pin(async { Ok((self.watcher.on_launch)(launch)) })
    }

    fn instance_changed<'a>(&'a self, status: &'a InstanceStatus) -> Later<'a, ()> {
        let ready = if status.ready { " ready" } else { "" };
        self.events.lock().unwrap().push(format!("{} {}{ready}", status.id, status.state.as_str()));
        (self.watcher.on_change)(status.clone())
    }
}

/// Short waits, so that a test needs no patience.
pub fn quick() -> Limits {
    Limits {
        drain: Duration::from_millis(50),
        grace: Duration::from_secs(5),
        steady: Duration::from_millis(150),
        backoff_first: Duration::from_millis(20),
        backoff_last: Duration::from_millis(100),
        probe_starting: Duration::from_millis(10),
        ..Limits::default()
    }
}

/// The words that make this binary a service.
pub fn web(words: &[&str]) -> Vec<String> {
    let own = std::env::current_exe().unwrap().to_string_lossy().into_owned();
    [own, "web".into()].into_iter().chain(words.iter().map(|word| (*word).to_owned())).collect()
}

pub fn sh(script: &str) -> Vec<String> {
    vec!["sh".into(), "-c".into(), script.into()]
}

pub fn orders(words: Vec<String>, dir: &Path) -> ServiceSpec {
    ServiceSpec::run("orders".parse().unwrap(), words, dir)
}

impl Rig {
    pub async fn up(make: impl FnOnce(&Path) -> Vec<ServiceSpec>) -> Self {
        Self::with(make, |_| {}, Watcher::default()).await
    }

    pub async fn with(
        make: impl FnOnce(&Path) -> Vec<ServiceSpec>,
        configure: impl FnOnce(&mut Config),
        watcher: Watcher,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::open(dir.path().join(".ballet")).unwrap());
        let mut config = Config { limits: quick(), ..Config::new("shop", dir.path()) };
        configure(&mut config);
        let events = Arc::new(Mutex::new(vec![]));
        let observer = Arc::new(Recorder { watcher, events: events.clone() });
        let services = make(dir.path());
        let handle = Supervisor::start(config, state.clone(), services, observer, Arc::new(())).await.unwrap();
        Self { dir, state, handle, events }
    }

    /// A system of one settled service.
    pub async fn one(words: &[&str]) -> Self {
        let rig = Self::up(|dir| vec![orders(web(words), dir)]).await;
        rig.settled().await;
        rig
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn settled(&self) {
        assert!(self.handle.settled("orders", LONG).await, "{:?}", self.handle.snapshot());
    }

    pub fn instance(&self, number: u32) -> InstanceStatus {
        self.handle.snapshot().services["orders"].instances[&number].clone()
    }

    /// Waits until an instance of `orders` is as wanted.
    pub async fn until(&self, number: u32, wanted: impl Fn(&InstanceStatus) -> bool) -> InstanceStatus {
        let mut snapshots = self.handle.subscribe();
        let is = |snapshot: &Snapshot| snapshot.services["orders"].instances.get(&number).is_some_and(&wanted);
        match timeout(LONG, snapshots.wait_for(is)).await {
            Ok(snapshot) => snapshot.unwrap().services["orders"].instances[&number].clone(),
            Err(_) => panic!("never seen; last {:?}", self.handle.snapshot()),
        }
    }

    pub async fn down(self) {
        self.handle.shutdown().await;
    }

    /// Waits until a service has printed a text: a pipe may be slower than a health check.
    pub async fn heard(&self, service: &str, text: &str) {
        let mut tail = self.handle.tail(Some(service.parse().unwrap()), 1000).await.unwrap();
        let wait = async {
            while !tail.lines.iter().any(|line| line.contains(text)) {
                let line = tail.follow.recv().await.unwrap();
                if line.service.as_str() == service {
                    tail.lines.push(line.text);
                }
            }
        };
        assert!(timeout(LONG, wait).await.is_ok(), "{service} never said {text}");
    }

    /// All that `orders` and its initializers have printed.
    pub async fn printed(&self) -> Vec<serde_json::Value> {
        let tail = self.handle.tail(Some("orders".parse().unwrap()), 1000).await.unwrap();
        tail.lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

pub fn is_alive(pid: i32) -> bool {
    let zombie = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')));
    !zombie && test_kill_process(Pid::from_raw(pid).unwrap()).is_ok()
}

/// Waits for a condition that nobody announces.
pub async fn eventually(what: &str, limit: Duration, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !is() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Service, sleeper, sleeper with its own session, shim: as a `web children` wrote them.
pub async fn pids(file: &Path) -> [i32; 4] {
    eventually("pids on disk", LONG, || file.exists()).await;
    let text = std::fs::read_to_string(file).unwrap();
    let pids: Vec<i32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    pids.try_into().unwrap()
}

pub async fn gone(pids: &[i32], limit: Duration) {
    eventually(&format!("the end of {pids:?}"), limit, || pids.iter().all(|pid| !is_alive(*pid))).await;
}
