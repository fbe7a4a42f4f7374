//! What the supervisor is told: services, limits, and whom to ask and tell.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ballet_core::{Clock, InstanceId, Later, ServiceName, SystemClock};

use crate::machine::State;

/// Most instances of one service.
pub const MAX_INSTANCES: u32 = 64;

/// One service, as the supervisor needs to know it.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Its name.
    pub name: ServiceName,
    /// How it comes to run.
    pub runs: Runs,
    /// How many instances. Default: 1; at most [`MAX_INSTANCES`].
    pub instances: u32,
    /// Variables over all others. A `PORT` here is the port, and is never changed.
    pub env: Vec<(String, String)>,
    /// Its own store.
    pub store: Option<Store>,
    /// Initializers: commands that run in order before the instances start.
    pub init: Vec<Vec<String>>,
    /// Its own build command.
    pub build: Option<Vec<String>>,
    /// How to see that it is ready.
    pub health: Health,
    /// Working directory of everything that is run for it: the manifest's.
    pub cwd: PathBuf,
    /// Its version. Default: `v1`.
    pub version: String,
}

impl ServiceSpec {
    /// A service that runs a command, with all defaults.
    pub fn run(name: ServiceName, words: Vec<String>, cwd: impl Into<PathBuf>) -> Self {
        Self {
            name,
            runs: Runs::Command(words),
            instances: 1,
            env: vec![],
            store: None,
            init: vec![],
            build: None,
            health: Health::Default,
            cwd: cwd.into(),
            version: "v1".into(),
        }
    }

    /// A service that runs elsewhere.
    pub fn elsewhere(name: ServiceName, url: impl Into<String>) -> Self {
        Self { runs: Runs::Elsewhere(url.into()), ..Self::run(name, vec![], ".") }
    }
}

/// How a service comes to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runs {
    /// By a command, already split into words. A first word without `/` is looked for beside `ballet`, then in `PATH`;
    /// one with `/` is relative to the working directory.
    Command(Vec<String>),
    /// Elsewhere, at this URL: it gets no process and counts as ready.
    Elsewhere(String),
}

/// A service's own store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// `services/NAME/NAME.db` in the state directory.
    Sqlite,
    /// A server, with the service's own credentials.
    Url(String),
}

/// How to see that an instance is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing was said: `GET /readyz`. An answer of 404, 405 or 501 counts as ready, because a service that knows nothing
    /// of Ballet has no such path, but it listens and answers.
    Default,
    /// `GET` of this path answers 2xx.
    Path(String),
    /// It does not listen; running is enough.
    Off,
}

impl Health {
    /// The path to ask for, if any.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Default => Some("/readyz"),
            Self::Path(path) => Some(path),
            Self::Off => None,
        }
    }
}

/// The supervisor's numbers.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the word that an instance drains to TERM. Default: 250 ms.
    pub drain: Duration,
    /// From TERM to KILL. Default: 10 s.
    pub grace: Duration,
    /// From TERM to KILL when `ballet` itself has vanished. Default: 3 s.
    pub vanish_grace: Duration,
    /// A run of at least this length is restarted at once. Default: 1 s.
    pub steady: Duration,
    /// First rest after a shorter run; doubled each time. Default: 100 ms.
    pub backoff_first: Duration,
    /// Longest rest. Default: 2 s.
    pub backoff_last: Duration,
    /// Between health checks until the first good one. Default: 100 ms.
    pub probe_starting: Duration,
    /// Between health checks later. Default: 2 s.
    pub probe_running: Duration,
    /// Longest health check. Default: 2 s.
    pub probe_timeout: Duration,
    /// Failed checks in a row that make an instance unready. Default: 3.
    pub probe_misses: u32,
    /// Longest wait for the next instance's readiness in a rolling restart; then the next one's turn comes. Default: 30 s.
    pub roll_timeout: Duration,
    /// Size at which a log file is rotated, in bytes. Default: 8 MiB.
    pub log_bytes: u64,
    /// Rotated log files kept beside the current one. Default: 3.
    pub log_keep: u32,
    /// Builds that run side by side. Default: 2.
    pub builds: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            drain: Duration::from_millis(250),
            grace: Duration::from_secs(10),
            vanish_grace: Duration::from_secs(3),
            steady: Duration::from_secs(1),
            backoff_first: Duration::from_millis(100),
            backoff_last: Duration::from_secs(2),
            probe_starting: Duration::from_millis(100),
            probe_running: Duration::from_secs(2),
            probe_timeout: Duration::from_secs(2),
            probe_misses: 3,
            roll_timeout: Duration::from_secs(30),
            log_bytes: 8 << 20,
            log_keep: 3,
            builds: 2,
        }
    }
}

/// The system around the services.
#[derive(Clone)]
pub struct Config {
    /// The system's name.
    pub system: String,
    /// The profile in use, for `ps`.
    pub profile: String,
    /// The manifest's directory: builds run here, and paths in `ps` are relative to it.
    pub cwd: PathBuf,
    /// The system's build command: runs once before the first start.
    pub build: Option<Vec<String>>,
    /// Program and first arguments of the shim. Default: this program with `__shim`.
    pub shim: Vec<OsString>,
    /// Where programs are looked for before `PATH`. Default: this program's directory.
    pub beside: Option<PathBuf>,
    /// Variables of our own environment that services do not get: those the manifest reads secrets from.
    pub hidden_env: Vec<String>,
    /// Numbers.
    pub limits: Limits,
    /// Stamps log lines.
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// All defaults, for a system whose manifest lies in `cwd`.
    pub fn new(system: impl Into<String>, cwd: impl Into<PathBuf>) -> Self {
        let own = std::env::current_exe().ok();
        // A build may replace our own file while we run; the kernel's link still leads to what runs.
        let program = if cfg!(target_os = "linux") { Some("/proc/self/exe".into()) } else { own.clone() };
        Self {
            system: system.into(),
            profile: "default".into(),
            cwd: cwd.into(),
            build: None,
            shim: vec![program.unwrap_or_else(|| "ballet".into()).into(), "__shim".into()],
            beside: own.and_then(|path| path.parent().map(PathBuf::from)),
            hidden_env: vec![],
            limits: Limits::default(),
            clock: Arc::new(SystemClock),
        }
    }
}

/// A process that is about to be started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The service.
    pub service: ServiceName,
    /// The instance's number, from 1.
    pub instance: u32,
    /// `orders-1`.
    pub id: InstanceId,
    /// Where it is asked to listen; none for an initializer.
    pub address: Option<SocketAddr>,
}

/// Whom the supervisor asks and tells: the binary, which opens sidecars and keeps the registry.
pub trait Observer: Send + Sync + 'static {
    /// Asked before each start: what the instance's environment holds beside `PORT`, `APP_PORT`, `APP_ID`, `BALLET_SERVICE`,
    /// `BALLET_INSTANCE`, `STORE_URL`, `OTEL_SERVICE_NAME` and the manifest's own. Opens what the variables speak of, the sidecar.
    ///
    /// Asked again for each restart (maybe with another address) and before the initializers, as instance 1 without an
    /// address: answer with the sidecar that is open. An `Err`, or no answer within 10 s, is
    /// shown as the reason of a waiting instance.
    fn environment<'a>(&'a self, launch: &'a Launch) -> Later<'a, Result<Vec<(String, String)>, String>>;

    /// Told of each change, in order for each instance, and waited for (2 s at most): when `Draining` was taken in, callers
    /// are expected to choose others. The last word on a removed instance is `Stopped`.
    fn instance_changed<'a>(&'a self, status: &'a InstanceStatus) -> Later<'a, ()>;
}

/// Observes nothing and adds nothing.
impl Observer for () {
    fn environment<'a>(&'a self, _: &'a Launch) -> Later<'a, Result<Vec<(String, String)>, String>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn instance_changed<'a>(&'a self, _: &'a InstanceStatus) -> Later<'a, ()> {
        Box::pin(async {})
    }
}

/// One instance, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceStatus {
    /// The service.
    pub service: ServiceName,
    /// The instance's number, from 1.
    pub instance: u32,
    /// `orders-1`.
    pub id: InstanceId,
    /// Where it stands.
    pub state: State,
    /// Whether it answers its health check.
    pub ready: bool,
    /// The service's own process, while there is one.
    pub pid: Option<i32>,
    /// Where it listens, while there is a process.
    pub address: Option<SocketAddr>,
    /// The service's version.
    pub version: String,
    /// Restarts after ends that nobody asked for.
    pub restarts: u32,
    /// Why it waits or failed.
    pub reason: Option<String>,
}

/// One service, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    /// How many instances are asked for; none while it is stopped.
    pub wanted: Option<u32>,
    /// Whether it is being built, initialized or restarted.
    pub busy: bool,
    /// Where it runs when it is not ours.
    pub elsewhere: Option<String>,
    /// Its instances by number.
    pub instances: BTreeMap<u32, InstanceStatus>,
}

impl ServiceStatus {
    /// Whether every wanted instance is ready. A stopped service is not; one that runs elsewhere is.
    pub fn is_ready(&self) -> bool {
        self.elsewhere.is_some()
            || self.wanted.is_some_and(|n| {
                self.instances.values().filter(|i| i.ready && i.state == State::Running).count() >= n as usize
            })
    }

    /// Whether it has become what was asked for, and nothing is under way.
    pub fn is_settled(&self) -> bool {
        !self.busy
            && match self.wanted {
                Some(n) => self.is_ready() && (self.elsewhere.is_some() || self.instances.len() == n as usize),
                None => self.instances.values().all(|i| i.state == State::Stopped),
            }
    }
}

/// All services, now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By name.
    pub services: BTreeMap<ServiceName, ServiceStatus>,
}

impl Snapshot {
    /// Whether every service that is not stopped is ready.
    pub fn is_ready(&self) -> bool {
        self.services.values().all(|service| service.wanted.is_none() || service.is_ready())
    }
}
