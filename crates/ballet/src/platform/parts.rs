//! The parts of a running system: started in the order in which they need each other, ended in the reverse one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Query;
use axum::routing::get;
use axum::{Json, Router};
use ballet_bus::Bus;
use ballet_core::{Chain, Discovery, Events, ServiceName, SystemClock, Workflows};
use ballet_gateway::{Gateway, GatewayConfig, LogTarget, StartError, policy_table};
use ballet_manifest::Manifest;
use ballet_proxy::Upstreams;
use ballet_sidecar::{Host, HostConfig};
use ballet_sqlite::{Options, Sqlite};
use ballet_supervisor::{StateDir, Supervisor, progress};
use ballet_telemetry::{Metrics, names};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::facts::{Callers, SystemFacts};
use super::observer::Wiring;
use super::reload::Reload;
use super::{bus, listener, specs};
use crate::cli::{CliError, Place};

/// Everything that runs.
pub(crate) struct Parts {
    /// Starts and stops the services' processes.
    pub(crate) supervisor: ballet_supervisor::Handle,
    gateway: Gateway,
    orchestrator: ballet_orchestrator::Handle,
    bus: Arc<Bus>,
    telling: JoinHandle<()>,
    registry: ballet_registry::Handle,
    registry_task: JoinHandle<()>,
    sidecars: Host,
    upstreams: Vec<Upstreams>,
    to_bus: Upstreams,
    journals: Vec<Arc<Sqlite>>,
    platform: SocketAddr,
    serving: JoinHandle<()>,
    stop_serving: oneshot::Sender<()>,
}

/// Swaps what a changed manifest may change while the system runs.
pub(crate) struct Reloader {
    gateway: Gateway,
    sidecars: Host,
    upstreams: Vec<Upstreams>,
    to_bus: Upstreams,
    bus: Arc<Bus>,
    orchestrator: ballet_orchestrator::Handle,
    /// What runs.
    manifest: Arc<Manifest>,
}

impl Parts {
    /// Starts all parts; services are still being built when this returns.
    pub(crate) async fn start(
        manifest: &Arc<Manifest>,
        state: &Arc<StateDir>,
        place: &Place,
        listener: TcpListener,
    ) -> Result<Self, CliError> {
        let platform = listener.local_addr().map_err(|e| CliError::no(format!("cannot listen: {e}")))?;
        let seed = seed();
        let metrics = Metrics::default();
        // Apart, so that their syncs do not wait for each other.
        let open = |name: &'static str| open_journal(state, name, &metrics);
        let (registry_journal, workflows_journal, bus_journal) = (open("registry")?, open("workflows")?, open("bus")?);

        let probe = Arc::new(ballet_registry::HttpProbe);
        let (engine, registry) = ballet_registry::Engine::open(registry_journal.clone(), Arc::new(SystemClock), probe)
            .await
            .map_err(part)?;
        let registry_task = tokio::spawn(engine.run());
        let discovery: Arc<dyn Discovery> = Arc::new(registry.clone());
        let upstreams = |caller: &str, n: u64| {
            Upstreams::new(caller, discovery.clone(), policy_table(manifest), seed.wrapping_add(n))
        };
        let (to_gateway, to_orchestrator, to_bus) =
            (upstreams("gateway", 1), upstreams("orchestrator", 2), upstreams("bus", 3));

        let mut config =
            ballet_orchestrator::Config::new(workflows_journal.clone(), to_orchestrator.clone(), seed.wrapping_add(4));
        // The state directory is ours alone, so nobody waits for this lease; each renewal costs a sync.
        config.lease = Duration::from_secs(60);
        let orchestrator = ballet_orchestrator::Engine::start(config).await.map_err(part)?;
        for workflow in manifest.workflows.values() {
            orchestrator.register(workflow).await.map_err(part)?;
        }
        let workflows: Arc<dyn Workflows> = Arc::new(orchestrator.clone());
        let bus = bus::start(manifest, bus_journal.clone(), &to_bus, &workflows, seed.wrapping_add(5)).await?;
        let events: Arc<dyn Events> = Arc::new(bus.handle());

        let secret = state.token().to_string();
        let of_host = secret.clone();
        let sidecars = Host::new(HostConfig {
            discovery: discovery.clone(),
            events,
            policies: policy_table(manifest),
            calls: calls(manifest),
            token: Arc::new(move |id| token(&of_host, id)),
            seed: seed.wrapping_add(6),
        });

        let mut config = GatewayConfig::new(to_gateway.clone());
        config.access_log = LogTarget::File(state.platform().join("access.log"));
        config.serve.seed = seed.wrapping_add(7);
        let gateway = Gateway::start(manifest, config).map_err(|error| match error {
            StartError::Listen { address, source } => listener::taken(address, "gateway.listen", &source),
            StartError::Load(_) | StartError::Log(_) => part(error),
        })?;

        let wiring = Wiring {
            registry: registry.clone(),
            sidecars: sidecars.clone(),
            services: manifest.services.values().map(|service| (service.name.clone(), told_of(service))).collect(),
            platform,
            token,
            secret,
        };
        for service in manifest.services.values() {
            register_elsewhere(&registry, service).await;
        }
        let services = specs::services(manifest)?;
        let supervisor =
            Supervisor::start(specs::config(manifest), state.clone(), services, Arc::new(wiring), progress::stderr())
                .await
                .map_err(part)?;

        let all = vec![to_gateway, to_orchestrator, to_bus.clone()];
        let callers = Callers { parts: all.clone(), sidecars: sidecars.clone() };
        callers.clone().tell(&metrics);
        let told = registry.clone();
        metrics.register(move |sink| told.tell(sink));
        let told = orchestrator.clone();
        metrics.register(move |sink| told.tell(sink));
        gateway.register(&metrics);
        let telling = bus::tell(&metrics, bus.handle());
        let facts = Arc::new(SystemFacts { gateway: gateway.address(), platform, callers });
        let routes = Router::new()
            .merge(ballet_supervisor::http::router(supervisor.clone(), facts))
            .merge(ballet_registry::http::router(registry.clone()))
            .merge(ballet_bus::http::router(bus.handle()))
            .merge(ballet_orchestrator::http::router(orchestrator.clone()))
            .merge(own_routes(metrics, supervisor.clone(), gateway.clone()));
        let (stop_serving, stopped) = oneshot::channel::<()>();
        let routes = listener::dress(routes, platform);
        let serving = tokio::spawn(async move {
            let ended = async { drop(stopped.await) };
            let _ = axum::serve(listener, routes).with_graceful_shutdown(ended).await;
        });
        tracing::info!(%platform, gateway = %gateway.address(), manifest = %place.file.display(), "the platform is up");
        Ok(Self {
            supervisor,
            gateway,
            orchestrator,
            bus,
            telling,
            registry,
            registry_task,
            sidecars,
            upstreams: all,
            to_bus,
            journals: vec![registry_journal, workflows_journal, bus_journal],
            platform,
            serving,
            stop_serving,
        })
    }

    /// The gateway's listener.
    pub(crate) fn gateway_address(&self) -> SocketAddr {
        self.gateway.address()
    }

    /// The platform's listener.
    pub(crate) fn platform_address(&self) -> SocketAddr {
        self.platform
    }

    /// What swaps routes and policies.
    pub(crate) fn reloader(&self, manifest: &Arc<Manifest>) -> Reloader {
        Reloader {
            manifest: manifest.clone(),
            gateway: self.gateway.clone(),
            sidecars: self.sidecars.clone(),
            upstreams: self.upstreams.clone(),
            to_bus: self.to_bus.clone(),
            bus: self.bus.clone(),
            orchestrator: self.orchestrator.clone(),
        }
    }

    /// Ends everything: first nothing new comes in, then what runs finishes, then the stores are closed.
    pub(crate) async fn stop(self, grace: Duration) {
        self.gateway.shutdown(grace).await;
        self.telling.abort();
        self.bus.stop(grace).await;
        self.orchestrator.shutdown(grace).await;
        self.supervisor.shutdown().await;
        self.sidecars.shutdown(Duration::from_millis(500)).await;
        let _ = self.stop_serving.send(());
        // A client that follows a log would hold the listener open.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.serving).await;
        self.registry.stop().await;
        let _ = self.registry_task.await;
        for journal in self.journals {
            if let Err(error) = journal.close().await {
                tracing::error!(%error, "a journal could not be closed");
            }
        }
    }
}

impl Reload for Reloader {
    async fn reload(&self, manifest: &Manifest) -> Result<Vec<ServiceName>, String> {
        let subscriptions = bus::config(manifest).map_err(|error| error.to_string())?;
        self.gateway.reload(manifest).map_err(|error| Chain(&error).to_string())?;
        let policies = policy_table(manifest);
        self.sidecars.set_policies(policies.clone());
        for upstreams in &self.upstreams {
            upstreams.set_policies(policies.clone());
        }
        for workflow in manifest.workflows.values() {
            self.orchestrator.register(workflow).await.map_err(|error| Chain(&error).to_string())?;
        }
        let workflows: Arc<dyn Workflows> = Arc::new(self.orchestrator.clone());
        self.bus.apply(subscriptions, &self.to_bus, &workflows).await.map_err(|error| Chain(&error).to_string())?;
        Ok(changed(&self.manifest, manifest))
    }
}

/// Services that are new, gone, or other processes than before. (Policies are swapped while they run.)
fn changed(running: &Manifest, new: &Manifest) -> Vec<ServiceName> {
    let process = |manifest: &Manifest, name: &ServiceName| {
        let service = manifest.services.get(name).cloned();
        service.map(|service| ballet_manifest::Service { policy: None, ..service })
    };
    let names: BTreeSet<&ServiceName> = running.services.keys().chain(new.services.keys()).collect();
    names.into_iter().filter(|name| process(running, name) != process(new, name)).cloned().collect()
}

fn open_journal(state: &StateDir, name: &'static str, metrics: &Metrics) -> Result<Arc<Sqlite>, CliError> {
    let path = state.platform().join(format!("{name}.db"));
    // A laptop's engines share two cores and little memory: small caches do.
    let options = Options { readers: 1, cache_bytes: 4 << 20, sole: true, ..Options::default() };
    let journal = Arc::new(Sqlite::open(&path, options).map_err(|error| CliError::from_part(&error))?);
    let told = journal.clone();
    metrics.register(move |sink| {
        let stats = told.stats();
        sink.sample(&names::JOURNAL_BATCHES, &[("journal", name)], stats.batches as f64);
        sink.sample(&names::JOURNAL_COMMITS, &[("journal", name)], stats.commits as f64);
    });
    Ok(journal)
}

/// What the registry tells of a service's instances beside their addresses.
fn told_of(service: &ballet_manifest::Service) -> BTreeMap<String, String> {
    let owner = service.owner.clone().map(|owner| ("owner".to_owned(), owner));
    owner.into_iter().chain([("pool".to_owned(), service.pool.as_str().to_owned())]).collect()
}

/// A service that runs elsewhere is registered at its address.
async fn register_elsewhere(registry: &ballet_registry::Handle, service: &ballet_manifest::Service) {
    let ballet_manifest::Source::Url(url) = &service.source else { return };
    let found = tokio::net::lookup_host((url.host.as_str(), url.port)).await.ok().and_then(|mut found| found.next());
    let Some(address) = found else {
        eprintln!("{}: the host of {url} is not known; calls to it fail until it is started again", service.name);
        return;
    };
    let instance = ballet_core::Instance {
        id: format!("{}-1", service.name.name()).parse().expect("a service name and a number make an instance id"),
        service: service.name.clone(),
        address,
        state: ballet_core::InstanceState::Up,
        version: "v1".into(),
        metadata: told_of(service),
    };
    let mut registration = ballet_registry::Registration::new(instance);
    if let Some(path) = &service.health {
        registration = registration
            .check(ballet_registry::HealthCheck { path: path.clone(), ..ballet_registry::HealthCheck::default() });
    }
    if let Err(error) = registry.register(registration).await {
        eprintln!("{}: cannot be registered: {error}", service.name);
    }
}

fn calls(manifest: &Manifest) -> BTreeMap<ServiceName, BTreeSet<ServiceName>> {
    let limited = manifest.services.values().filter_map(|service| Some((service.name.clone(), service.calls.clone()?)));
    limited.map(|(name, calls)| (name, calls.into_iter().collect())).collect()
}

#[derive(serde::Deserialize)]
struct Asked {
    method: String,
    url: String,
}

/// `/metrics`, `/livez`, `/readyz`, and what the gateway would do with a request.
fn own_routes(metrics: Metrics, supervisor: ballet_supervisor::Handle, gateway: Gateway) -> Router {
    let explain = async move |Query(asked): Query<Asked>| Json(gateway.explain(&asked.method, &asked.url));
    let kind = [("content-type", "text/plain; version=0.0.4")];
    Router::new()
        .route("/metrics", get(async move || (kind, metrics.encode())))
        .route("/livez", get(async || "ok\n"))
        .route("/ballet/v1/explain", get(explain))
        .route(
            "/readyz",
            get(async move || match supervisor.snapshot().is_ready() {
                true => (axum::http::StatusCode::OK, "ready\n"),
                false => (axum::http::StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            }),
        )
}

/// The token of an instance's sidecar: known to the instance and to us.
fn token(secret: &str, id: &str) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::new().chain_update(secret).chain_update([0]).chain_update(id).finalize();
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Different at each start; what is drawn from it is no secret.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

fn part<E: std::error::Error + ballet_core::Classify>(error: E) -> CliError {
    CliError::from_part(&error)
}
