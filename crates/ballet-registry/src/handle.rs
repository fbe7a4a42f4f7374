//! The way to the registry for everyone in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ballet_core::{Discovery, DiscoveryError, InstanceId, InstanceState, Instances, Later, ServiceName};
use ballet_telemetry::{Sink, names};
use tokio::sync::{mpsc, oneshot};

use crate::leases::Key;
use crate::published::Published;
use crate::{Registration, RegistryError, limits};

pub(crate) type Ack<T> = oneshot::Sender<Result<T, RegistryError>>;

pub(crate) enum Command {
    Register(Box<Registration>, Ack<Registered>),
    Renew(Key, Ack<()>),
    SetState(Key, InstanceState, Ack<()>),
    Deregister(Key, Ack<()>),
    Stop(Ack<()>),
}

/// The registry. Clones reach the same one. Reading never waits for the engine.
#[derive(Clone)]
pub struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) published: Arc<Published>,
    pub(crate) counters: Arc<Counters>,
}

/// A registration that is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// `false` if it replaced one with the same service and id.
    pub new: bool,
}

/// What the registry counts, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Services known.
    pub services: usize,
    /// Instances known.
    pub instances: usize,
    /// Watches parked.
    pub watches: usize,
    /// Registrations acknowledged.
    pub registrations: u64,
    /// Heartbeats.
    pub renewals: u64,
    /// Leases that ran out.
    pub expired: u64,
    /// Instances removed after their lease ran out.
    pub removed: u64,
    /// Requests refused.
    pub refused: u64,
    /// Commits that failed; their rows are written with a later one.
    pub failed_commits: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) registrations: AtomicU64,
    pub(crate) renewals: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) removed: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) failed_commits: AtomicU64,
}

impl Handle {
    /// Registers an instance or replaces its registration; done when it is on disk.
    ///
    /// Not cancel safe: dropped, it may have been done. Doing it again is harmless.
    ///
    /// # Errors
    /// `Invalid`, `Full`, `Store`, `Stopped`.
    pub async fn register(&self, registration: Registration) -> Result<Registered, RegistryError> {
        if let Err(error) = registration.validate() {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        self.send(|ack| Command::Register(Box::new(registration), ack)).await
    }

    /// A heartbeat: the lease begins anew.
    ///
    /// # Errors
    /// `UnknownInstance`: register again. `Stopped`.
    pub async fn renew(&self, service: &ServiceName, instance: &InstanceId) -> Result<(), RegistryError> {
        let key = Key { service: service.clone(), instance: instance.clone() };
        self.send(|ack| Command::Renew(key, ack)).await
    }

    /// Changes the registrant's word about an instance: `Draining` before it stops, `Up` when it serves. Counts as a
    /// heartbeat. With a check, `Starting` and `Up` both mean: as the check says.
    ///
    /// # Errors
    /// `UnknownInstance`, `Store`, `Stopped`.
    pub async fn set_state(
        &self,
        service: &ServiceName,
        instance: &InstanceId,
        state: InstanceState,
    ) -> Result<(), RegistryError> {
        let key = Key { service: service.clone(), instance: instance.clone() };
        self.send(|ack| Command::SetState(key, state, ack)).await
    }

    /// Takes an instance out.
    ///
    /// # Errors
    /// `UnknownInstance` if it is not there, `Store`, `Stopped`.
    pub async fn deregister(&self, service: &ServiceName, instance: &InstanceId) -> Result<(), RegistryError> {
        let key = Key { service: service.clone(), instance: instance.clone() };
        self.send(|ack| Command::Deregister(key, ack)).await
    }

    /// All services that were known in this run, by name; one whose instances are all gone has an empty list.
    pub fn list(&self) -> Vec<(ServiceName, Arc<Instances>)> {
        self.published.all()
    }

    /// As [`Discovery::watch`], but answers after `wait` at the latest (and after [`limits::WATCH`] in any case).
    ///
    /// # Errors
    /// `Stopped`, also while it waits.
    pub async fn watch_for(
        &self,
        service: &ServiceName,
        seen: u64,
        wait: Duration,
    ) -> Result<Arc<Instances>, RegistryError> {
        self.published.changed(service, seen, wait).await.ok_or(RegistryError::Stopped)
    }

    /// What was counted since the start.
    pub fn stats(&self) -> Stats {
        let all = self.published.all();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            services: all.len(),
            instances: all.iter().map(|(_, known)| known.all.len()).sum(),
            watches: self.published.watches(),
            registrations: count(&self.counters.registrations),
            renewals: count(&self.counters.renewals),
            expired: count(&self.counters.expired),
            removed: count(&self.counters.removed),
            refused: count(&self.counters.refused),
            failed_commits: count(&self.counters.failed_commits),
        }
    }

    /// Tells `/metrics` how many instances are known, by service and state.
    pub fn tell(&self, sink: &mut Sink) {
        let states = [
            (InstanceState::Starting, "starting"),
            (InstanceState::Up, "up"),
            (InstanceState::Draining, "draining"),
            (InstanceState::Down, "down"),
        ];
        for (service, known) in self.published.all() {
            for (state, name) in states {
                let n = known.all.iter().filter(|i| i.state == state).count();
                sink.sample(&names::REGISTRY_INSTANCES, &[("service", service.as_str()), ("state", name)], n as f64);
            }
        }
    }

    /// Writes what has not been written and ends the engine. Later calls answer `Stopped`.
    pub async fn stop(&self) {
        // Stopped already is as good.
        let _ = self.send(Command::Stop).await;
    }

    async fn send<T>(&self, command: impl FnOnce(Ack<T>) -> Command) -> Result<T, RegistryError> {
        let (ack, answer) = oneshot::channel();
        self.commands.send(command(ack)).await.map_err(|_| RegistryError::Stopped)?;
        answer.await.map_err(|_| RegistryError::Stopped)?
    }
}

impl Discovery for Handle {
    fn resolve(&self, service: &ServiceName) -> Later<'_, Result<Arc<Instances>, DiscoveryError>> {
        let known = if self.commands.is_closed() { Err(stopped()) } else { Ok(self.published.get(service)) };
        Box::pin(std::future::ready(known))
    }

    fn watch(&self, service: &ServiceName, seen: u64) -> Later<'_, Result<Arc<Instances>, DiscoveryError>> {
        let service = service.clone();
        Box::pin(async move { self.published.changed(&service, seen, limits::WATCH).await.ok_or_else(stopped) })
    }
}

fn stopped() -> DiscoveryError {
    DiscoveryError::Unavailable("it has stopped".into())
}
