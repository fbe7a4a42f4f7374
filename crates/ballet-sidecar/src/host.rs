//! Hosts the sidecars of all instances of one machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ballet_core::{Discovery, Events, ServiceName};
use ballet_proxy::{BreakerState, PolicyTable, Upstreams};
use ballet_proxy::{ServeConfig, Server, bind};
use tokio::task::JoinHandle;

use crate::deliver;
use crate::handler::Sidecar;

/// What all sidecars need.
#[derive(Clone)]
pub struct HostConfig {
    /// Where services are.
    pub discovery: Arc<dyn Discovery>,
    /// Takes what is published, gives what is subscribed to.
    pub events: Arc<dyn Events>,
    /// How calls behave.
    pub policies: PolicyTable,
    /// Whom a service may call; a service that is not named may call all.
    pub calls: BTreeMap<ServiceName, BTreeSet<ServiceName>>,
    /// The token that an instance's sidecar accepts, by `NAME-N`; one that is sent is compared, none need be sent.
    pub token: Arc<dyn Fn(&str) -> String + Send + Sync>,
    /// Feeds balancing and trace ids.
    pub seed: u64,
}

/// The sidecars of one machine. Cheap to clone.
#[derive(Clone)]
pub struct Host(Arc<Inner>);

struct Inner {
    config: HostConfig,
    policies: Mutex<PolicyTable>,
    open: Mutex<BTreeMap<(ServiceName, u32), Open>>,
}

struct Open {
    sidecar: Arc<Sidecar>,
    server: Server,
    /// Delivers what the app subscribed to; ends with the app.
    delivering: Option<JoinHandle<()>>,
}

impl Host {
    /// A host without sidecars.
    pub fn new(config: HostConfig) -> Self {
        let policies = Mutex::new(config.policies.clone());
        Self(Arc::new(Inner { config, policies, open: Mutex::default() }))
    }

    /// Opens the sidecar of an instance on a free port of loopback; one that is open keeps its port.
    ///
    /// # Errors
    /// When no port can be opened.
    pub async fn open(&self, service: &ServiceName, instance: u32) -> io::Result<u16> {
        if let Some(open) = self.all().get(&(service.clone(), instance)) {
            return Ok(open.server.address().port());
        }
        let config = &self.0.config;
        let seed = config.seed.wrapping_add(u64::from(instance)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let policies = self.0.policies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let upstreams = Upstreams::new(service.as_str(), config.discovery.clone(), policies, seed);
        let id = format!("{}-{instance}", service.name());
        let sidecar = Arc::new(Sidecar {
            service: service.clone(),
            token: (config.token)(&id),
            id,
            upstreams,
            events: config.events.clone(),
            calls: config.calls.get(service).cloned(),
            app: Mutex::default(),
            metadata: Arc::default(),
        });
        let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let serve = ServeConfig {
            paths: ballet_proxy::Paths::AsIs,
            forwarded: false,
            // A service that asks slowly is its own business.
            idle: Duration::from_secs(600),
            max_connections: 4_096,
            seed: seed ^ 1,
            ..ServeConfig::default()
        };
        let server = Server::start(listener, sidecar.clone(), serve)?;
        let port = server.address().port();
        self.all().entry((service.clone(), instance)).or_insert(Open { sidecar, server, delivering: None });
        Ok(port)
    }

    /// The port of an instance's sidecar, if it is open.
    pub fn port(&self, service: &ServiceName, instance: u32) -> Option<u16> {
        self.all().get(&(service.clone(), instance)).map(|open| open.server.address().port())
    }

    /// Says where the instance listens once it is ready, or that it is not ready any more. A new readiness asks the app for
    /// its subscriptions again.
    pub fn app(&self, service: &ServiceName, instance: u32, address: Option<SocketAddr>) {
        let mut all = self.all();
        let Some(open) = all.get_mut(&(service.clone(), instance)) else { return };
        let before = std::mem::replace(&mut *open.sidecar.app(), address);
        if before == address {
            return;
        }
        if let Some(task) = open.delivering.take() {
            task.abort();
        }
        if let Some(address) = address {
            open.delivering = Some(tokio::spawn(deliver::run(open.sidecar.clone(), address)));
        }
    }

    /// Closes the sidecar of an instance that is gone for good.
    pub async fn close(&self, service: &ServiceName, instance: u32, grace: Duration) {
        let open = self.all().remove(&(service.clone(), instance));
        if let Some(open) = open {
            finish(open, grace).await;
        }
    }

    /// Closes all of them.
    pub async fn shutdown(&self, grace: Duration) {
        let all = std::mem::take(&mut *self.all());
        let closing: Vec<_> = all.into_values().map(|open| tokio::spawn(finish(open, grace))).collect();
        for task in closing {
            let _ = task.await;
        }
    }

    /// Swaps how calls behave; calls under way keep what they began with.
    pub fn set_policies(&self, policies: PolicyTable) {
        *self.0.policies.lock().unwrap_or_else(PoisonError::into_inner) = policies.clone();
        for open in self.all().values() {
            open.sidecar.upstreams.set_policies(policies.clone());
        }
    }

    /// Where the breakers of all callers stand: caller, service, state.
    pub fn breakers(&self) -> Vec<(ServiceName, ServiceName, BreakerState)> {
        let all = self.all();
        let states = all.values().flat_map(|open| {
            let caller = open.sidecar.service.clone();
            open.sidecar.upstreams.breakers().into_iter().map(move |(service, state)| (caller.clone(), service, state))
        });
        states.collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<(ServiceName, u32), Open>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn finish(open: Open, grace: Duration) {
    if let Some(task) = open.delivering {
        task.abort();
    }
    open.server.shutdown(grace).await;
}
