//! The front: starts everything, and hands words to the services' tasks.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ballet_core::ServiceName;
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::{ControlError, StateError};
use crate::logs::{Logs, Tail};
use crate::ports::Ports;
use crate::process::{Runner, clean_leftovers};
use crate::progress::{Progress, ProgressEvent};
use crate::service::{Command, Ordered, Service, Shared};
use crate::spec::{Config, MAX_INSTANCES, Observer, Runs, ServiceSpec, ServiceStatus, Snapshot};
use crate::state::StateDir;

/// Words waiting for a service.
const QUEUE: usize = 16;

/// Starts a system's services.
pub struct Supervisor;

/// Tells the supervisor what to do. Clones talk to the same one; when the last is dropped, everything is stopped.
#[derive(Clone)]
pub struct Handle(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    services: BTreeMap<ServiceName, (ServiceSpec, Option<mpsc::Sender<Ordered>>)>,
    life: watch::Sender<Life>,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    Up,
    DownRequested,
    Down,
}

impl Supervisor {
    /// Cleans up after an earlier run, then begins to build and start all services; does not wait for them.
    ///
    /// # Errors
    /// `Io` when the state directory cannot be used.
    pub async fn start(
        mut config: Config,
        state: Arc<StateDir>,
        services: Vec<ServiceSpec>,
        observer: Arc<dyn Observer>,
        progress: Arc<dyn Progress>,
    ) -> Result<Handle, StateError> {
        let io_error = |source| StateError::Io { path: state.root().to_owned(), source };
        let run_dir = state.root().join("run");
        config.cwd = absolute(&config.cwd);
        let leftovers = {
            let run_dir = run_dir.clone();
            let cleaning = tokio::task::spawn_blocking(move || clean_leftovers(&run_dir));
            cleaning.await.map_err(|error| io_error(io::Error::other(error)))?
        };
        progress.event(&ProgressEvent::Cleaned(&leftovers));
        let logs = Logs::open(state.root(), &config.limits, config.clock.clone()).map_err(io_error)?;
        let runner =
            Runner { shim: config.shim.clone(), vanish_grace: config.limits.vanish_grace, run_dir, logs: logs.clone() };
        let snapshot = Snapshot { services: services.iter().map(|spec| (spec.name.clone(), at_first(spec))).collect() };
        let shared = Arc::new(Shared {
            builds: Semaphore::new(config.limits.builds.max(1)),
            config,
            state,
            runner,
            logs,
            ports: Ports::default(),
            observer,
            progress,
            snapshot: watch::Sender::new(snapshot),
            built: Mutex::new(None),
        });

        let mut tasks = JoinSet::new();
        let mut handles = BTreeMap::new();
        let mut started = vec![];
        for mut spec in services {
            spec.cwd = absolute(&spec.cwd);
            spec.instances = spec.instances.min(MAX_INSTANCES);
            let commands = match &spec.runs {
                Runs::Elsewhere(_) => None,
                Runs::Command(_) => {
                    let (commands, inbox) = mpsc::channel(QUEUE);
                    tasks.spawn(Service::new(shared.clone(), spec.clone()).run(inbox));
                    let (reply, done) = oneshot::channel();
                    let _ = commands.send((Command::Start, reply)).await;
                    started.push(done);
                    Some(commands)
                }
            };
            handles.insert(spec.name.clone(), (spec, commands));
        }
        for done in started {
            drop(done.await);
        }
        let life = watch::Sender::new(Life::Up);
        Ok(Handle(Arc::new(Inner { shared, services: handles, life, tasks: Mutex::new(tasks) })))
    }
}

impl Handle {
    /// Starts a stopped service, or tries a failed build or initializer again. Done when taken in; see [`Handle::settled`].
    ///
    /// # Errors
    /// For a name that is unknown or runs elsewhere, and when the system is going down.
    pub async fn start(&self, name: &str) -> Result<(), ControlError> {
        self.tell(name, Command::Start).await
    }

    /// Drains and stops a service until `start`.
    ///
    /// # Errors
    /// As [`Handle::start`].
    pub async fn stop(&self, name: &str) -> Result<(), ControlError> {
        self.tell(name, Command::Stop).await
    }

    /// Replaces the instances one after the other, each when the one before is ready again. Starts a stopped service.
    ///
    /// # Errors
    /// As [`Handle::start`].
    pub async fn restart(&self, name: &str) -> Result<(), ControlError> {
        self.tell(name, Command::Restart).await
    }

    /// Changes the number of instances; the highest numbers go first.
    ///
    /// # Errors
    /// As [`Handle::start`], and for more than [`MAX_INSTANCES`].
    pub async fn scale(&self, name: &str, instances: u32) -> Result<(), ControlError> {
        if instances > MAX_INSTANCES {
            return Err(ControlError::TooMany(instances));
        }
        self.tell(name, Command::Scale(instances)).await
    }

    /// Waits until a service has become what was asked for; false when that takes longer than `limit`.
    pub async fn settled(&self, name: &str, limit: Duration) -> bool {
        let mut snapshots = self.subscribe();
        let wait = snapshots.wait_for(|snapshot| snapshot.services.get(name).is_none_or(ServiceStatus::is_settled));
        timeout(limit, wait).await.is_ok()
    }

    /// All services, now.
    pub fn snapshot(&self) -> Snapshot {
        self.0.shared.snapshot.borrow().clone()
    }

    /// All services, and each change.
    pub fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.0.shared.snapshot.subscribe()
    }

    /// Asks whoever runs the system to take it down: [`Handle::down_requested`] returns.
    pub fn request_down(&self) {
        self.0.life.send_if_modified(|life| {
            let news = *life == Life::Up;
            *life = (*life).max(Life::DownRequested);
            news
        });
    }

    /// Waits until somebody asked for the end.
    pub async fn down_requested(&self) {
        let _ = self.0.life.subscribe().wait_for(|life| *life != Life::Up).await;
    }

    /// Waits until [`Handle::shutdown`] is through.
    pub async fn down(&self) {
        let _ = self.0.life.subscribe().wait_for(|life| *life == Life::Down).await;
    }

    /// Drains and stops all services side by side and waits until every process is gone. Takes at most drain, grace and a few seconds.
    pub async fn shutdown(&self) {
        self.request_down();
        let mut replies = vec![];
        for commands in self.0.services.values().filter_map(|(_, commands)| commands.as_ref()) {
            let (reply, done) = oneshot::channel();
            if commands.send((Command::Down, reply)).await.is_ok() {
                replies.push(done);
            }
        }
        for done in replies {
            drop(done.await);
        }
        let mut tasks = self.0.tasks.lock().await;
        while tasks.join_next().await.is_some() {}
        self.0.shared.logs.flush().await;
        self.0.life.send_replace(Life::Down);
    }

    /// The last lines of a service's logs (of all without a name), and all that follow.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub async fn tail(&self, service: Option<ServiceName>, lines: usize) -> io::Result<Tail> {
        self.0.shared.logs.tail(service, lines).await
    }

    pub(crate) fn spec(&self, name: &str) -> Result<&ServiceSpec, ControlError> {
        let found = self.0.services.get(name).map(|(spec, _)| spec);
        found.ok_or_else(|| ControlError::UnknownService(name.chars().take(80).collect()))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    async fn tell(&self, name: &str, command: Command) -> Result<(), ControlError> {
        let spec = self.spec(name)?;
        if *self.0.life.borrow() != Life::Up {
            return Err(ControlError::GoingDown);
        }
        let commands = self.0.services.get(name).and_then(|(_, commands)| commands.as_ref());
        let commands = commands.ok_or_else(|| ControlError::Elsewhere(spec.name.clone()))?;
        let (reply, done) = oneshot::channel();
        commands.send((command, reply)).await.map_err(|_| ControlError::GoingDown)?;
        done.await.map_err(|_| ControlError::GoingDown)
    }
}

fn at_first(spec: &ServiceSpec) -> ServiceStatus {
    let elsewhere = match &spec.runs {
        Runs::Elsewhere(url) => Some(url.clone()),
        Runs::Command(_) => None,
    };
    let wanted = Some(spec.instances);
    ServiceStatus { wanted, busy: elsewhere.is_none(), elsewhere, instances: BTreeMap::new() }
}

fn absolute(path: &std::path::Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
