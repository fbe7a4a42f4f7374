//! A service's life: built, started, serving, drained.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use ballet_client::{Client, RemoteEvents, Retries};
use ballet_core::{Chain, Classify, Clock, ErrorCode, Event, Events, Retry, SystemClock};

use crate::auth::{Keys, OwnKeys};
use crate::command::Flights;
use crate::context::{Inner, seeded};
use crate::events::{Handlers, receive};
use crate::projection::Projector;
use crate::relay::{Relay, keep_tidy};
use crate::request::surround;
use crate::sqlite::{OpenError, Setup};
use crate::{Config, ConfigError, Context, Error, Projection, Result, Store, Tx, init_logs, problem};

/// How long requests under way may take when the service ends.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the outbox may be flushed for when the service ends; the rest is sent after the next start.
const FLUSH: Duration = Duration::from_secs(1);
/// How long inbox rows are kept: longer than the longest workflow and the longest `keep` of a topic.
const KEEP_INBOX: Duration = Duration::from_secs(30 * 86_400);

type Seed = Box<dyn Fn(&Tx<'_>, &Config) -> Result<()> + Send>;
type Task = Box<dyn FnOnce(Context) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Why a service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The environment is bad.
    #[error("the configuration is not valid")]
    Config(#[from] ConfigError),
    /// A migration was edited after it had been applied.
    #[error("migration `{0}` reads differently than when it was applied")]
    MigrationChanged(String),
    /// The store cannot be opened, migrated or seeded.
    #[error("the store cannot be used")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Classify for StartError {
    fn code(&self) -> ErrorCode {
        ErrorCode(match self {
            Self::Config(_) | Self::Listen { .. } => "CH001",
            Self::MigrationChanged(_) => "CH002",
            Self::Store(_) => "CH003",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Config(_) | Self::MigrationChanged(_) => Retry::Never,
            Self::Store(_) | Self::Listen { .. } => Retry::Safe(None),
        }
    }
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Changed(name) => Self::MigrationChanged(name),
            OpenError::Open(_) | OpenError::Migration(..) | OpenError::Seed(_) => Self::Store(Box::new(error)),
        }
    }
}

/// A service, ready to run.
pub struct Service {
    builder: Builder,
    config: Config,
}

/// Puts a service together; see the crate's example.
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    name: String,
    migrations: Vec<(&'static str, &'static str)>,
    seed: Option<Seed>,
    routes: Router<Context>,
    handlers: Handlers,
    projections: Vec<Box<dyn Projection>>,
    tasks: Vec<(&'static str, Task)>,
    states: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
    own_keys: Option<OwnKeys>,
    issuer: String,
    audience: String,
    keep_inbox: Duration,
    clock: Arc<dyn Clock>,
    events: Option<Arc<dyn Events>>,
}

/// A running service; for tests, and inside [`Service::run`].
pub struct Running {
    address: SocketAddr,
    ctx: Context,
    stop: watch::Sender<bool>,
    server: JoinHandle<std::io::Result<()>>,
    tasks: Vec<(&'static str, JoinHandle<()>)>,
    relay: Option<(Relay, JoinHandle<()>)>,
}

impl Service {
    /// Begins a service of that name.
    pub fn builder(name: &str) -> Builder {
        Builder {
            name: name.to_owned(),
            migrations: vec![],
            seed: None,
            routes: Router::new(),
            handlers: Handlers::default(),
            projections: vec![],
            tasks: vec![],
            states: HashMap::new(),
            own_keys: None,
            issuer: "users".into(),
            audience: "shop".into(),
            keep_inbox: KEEP_INBOX,
            clock: Arc::new(SystemClock),
            events: None,
        }
    }

    /// Serves until TERM or INT, then drains: readiness off, no new connections, requests under way finished (10 s), the
    /// outbox flushed.
    ///
    /// # Errors
    /// Why it did not start.
    pub async fn run(self) -> Result<(), StartError> {
        let address = self.config.listen;
        let listen = |source| StartError::Listen { address, source };
        let (mut term, mut int) =
            (signal(SignalKind::terminate()).map_err(listen)?, signal(SignalKind::interrupt()).map_err(listen)?);
        let running = self.start().await?;
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        running.stop().await;
        Ok(())
    }

    /// Migrates and seeds the store, and ends: the initializer.
    ///
    /// # Errors
    /// Why the store cannot be used.
    pub fn init(self) -> Result<(), StartError> {
        self.open().map(drop)
    }

    /// Builds a projection anew, and ends.
    ///
    /// # Errors
    /// Why the store cannot be used, or the projection is unknown.
    pub async fn rebuild(self, projection: &str) -> Result<(), StartError> {
        let (store, projector, ..) = self.open()?;
        let name = projection.to_owned();
        store.write(move |tx| projector.rebuild(&name, tx)).await.map_err(|error| StartError::Store(Box::new(error)))
    }

    /// Starts, and answers once it listens.
    ///
    /// # Errors
    /// Why it did not start.
    pub async fn start(self) -> Result<Running, StartError> {
        let (store, projector, builder, config) = self.open()?;
        let listen = |source| StartError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;

        let (stop, stopping) = watch::channel(false);
        let retries = if config.sidecar.is_some() { Retries::ConnectOnly } else { Retries::Idempotent };
        let client = Client::with(config.service.as_str(), retries);
        let events = builder.events.or_else(|| {
            let platform = config.platform.as_deref()?;
            Some(Arc::new(RemoteEvents::new(client.clone(), platform)) as Arc<dyn Events>)
        });
        let instance = config.instance.clone();
        let ctx = Context::new(Inner {
            client,
            clock: builder.clock.clone(),
            keys: Keys::new(&builder.issuer, &builder.audience, builder.own_keys),
            flights: Flights::default(),
            handlers: builder.handlers,
            projector,
            states: builder.states,
            stop: stopping,
            rng: Mutex::new(seeded()),
            store: store.clone(),
            config,
        });

        let relay = events.map(|events| {
            let relay = || Relay {
                store: store.clone(),
                events: events.clone(),
                clock: builder.clock.clone(),
                instance: instance.clone(),
            };
            (relay(), tokio::spawn(relay().run()))
        });
        if relay.is_none() {
            tracing::warn!("no BALLET_PLATFORM: events wait in the outbox");
        }
        let mut tasks = vec![("tidy", tokio::spawn(keep_tidy(store.clone(), builder.clock, builder.keep_inbox)))];
        for (name, task) in builder.tasks {
            tasks.push((name, tokio::spawn(task(ctx.clone()))));
        }
        let alive = relay.as_ref().map(|(_, task)| task.abort_handle());
        let ready = move |ctx: Context| async move {
            ctx.store().read(|db| Ok(db.query_row("SELECT 1", [], |_| Ok(()))?)).await?;
            if ctx.is_stopping() {
                return Err(Error::from(problem::unavailable("the service is stopping")));
            }
            if alive.is_some_and(|relay| relay.is_finished()) {
                return Err(problem::unavailable("the relay has ended").into());
            }
            Ok(Json(json!({"status": "ready"})))
        };
        let routes = builder
            .routes
            .route("/livez", get(|| async { Json(json!({"status": "alive"})) }))
            .route("/readyz", get(ready))
            .route("/events", post(receive))
            .layer(middleware::from_fn_with_state(ctx.clone(), surround))
            .with_state(ctx.clone());
        let stopped = ctx.clone();
        let server = axum::serve(listener, routes).with_graceful_shutdown(async move { stopped.stopping().await });
        let server = tokio::spawn(async move { server.await });
        tracing::info!(%address, topics = ctx.handlers().topics().collect::<Vec<_>>().join(" "), "listening");
        Ok(Running { address, ctx, stop, server, tasks, relay })
    }

    fn open(mut self) -> Result<(Store, Projector, Builder, Config), StartError> {
        let projector = Projector::new(std::mem::take(&mut self.builder.projections));
        let (seed, config) = (self.builder.seed.take().filter(|_| self.config.seed), self.config);
        let seed = seed.map(|seed| {
            let config = config.clone();
            move |tx: &Tx<'_>| seed(tx, &config)
        });
        let store = Store::open(
            &config.store,
            Setup {
                service: config.service.as_str(),
                instance: &config.instance,
                clock: self.builder.clock.clone(),
                migrations: &self.builder.migrations,
                seed: seed.as_ref().map(|seed| seed as &dyn Fn(&Tx<'_>) -> Result<()>),
                projector: projector.clone(),
            },
        )?;
        Ok((store, projector, self.builder, config))
    }
}

impl Builder {
    /// The migrations, in order: name and SQL. They are applied once, under a lock; an applied one may never change. The
    /// chassis' own tables (`outbox`, `inbox`, `seen`, `projections`, `leases`, `migrations`) are there before.
    pub fn migrations(mut self, migrations: &[(&'static str, &'static str)]) -> Self {
        self.migrations.extend_from_slice(migrations);
        self
    }

    /// Makes seed data, once, in the transaction that migrates a new store (unless `SEED_DATA=off`).
    pub fn seed(mut self, seed: impl Fn(&Tx<'_>, &Config) -> Result<()> + Send + 'static) -> Self {
        self.seed = Some(Box::new(seed));
        self
    }

    /// The service's endpoints. `/livez`, `/readyz` and `POST /events` are the chassis'.
    pub fn routes(mut self, routes: Router<Context>) -> Self {
        self.routes = self.routes.merge(routes);
        self
    }

    /// Handles the events of a topic that the bus delivers to `POST /events`: in one transaction with the inbox row, so
    /// that its effect happens once. `Err` of a problem refuses the event; any other error has it delivered again.
    pub fn on(mut self, topic: &str, handler: impl Fn(&Tx<'_>, &Event) -> Result<()> + Send + Sync + 'static) -> Self {
        self.handlers.add(topic, Arc::new(handler));
        self
    }

    /// Keeps a read model.
    pub fn projection(mut self, projection: impl Projection) -> Self {
        self.projections.push(Box::new(projection));
        self
    }

    /// Something for [`Context::state`].
    pub fn state<T: Any + Send + Sync>(mut self, state: T) -> Self {
        self.states.insert(TypeId::of::<T>(), Box::new(state));
        self
    }

    /// Runs beside the server, from the start until the service ends: a loop that watches [`Context::stopping`], or is
    /// aborted after the drain.
    pub fn task<F>(mut self, name: &'static str, task: impl FnOnce(Context) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.push((name, Box::new(|ctx| Box::pin(task(ctx)))));
        self
    }

    /// Whose tokens are believed, and meant for whom. Default: issuer `users`, audience `shop`.
    pub fn tokens(mut self, issuer: &str, audience: &str) -> Self {
        (self.issuer, self.audience) = (issuer.to_owned(), audience.to_owned());
        self
    }

    /// Reads the JSON Web Key Set from the own store instead of `$USERS_URL/.well-known/jwks.json`: for the issuer itself.
    pub fn own_keys(
        mut self,
        keys: impl Fn(&rusqlite::Connection) -> Result<serde_json::Value> + Send + Sync + 'static,
    ) -> Self {
        self.own_keys = Some(Arc::new(keys));
        self
    }

    /// How long inbox rows are kept: longer than the longest workflow and the longest `keep` of a topic. Default: 30 days.
    pub fn keep_inbox(mut self, keep: Duration) -> Self {
        self.keep_inbox = keep;
        self
    }

    /// Another clock; for tests.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Another bus than the platform's; for tests.
    pub fn bus(mut self, events: Arc<dyn Events>) -> Self {
        self.events = Some(events);
        self
    }

    /// Reads the environment.
    ///
    /// # Errors
    /// A malformed variable.
    pub fn build(self) -> Result<Service, StartError> {
        let config = Config::from_env(&self.name)?;
        Ok(self.build_with(config))
    }

    /// With this configuration; for tests.
    pub fn build_with(self, config: Config) -> Service {
        Service { builder: self, config }
    }

    /// What `main` does: without an argument serves until TERM; `init` migrates and seeds; `rebuild NAME` builds a
    /// projection anew. Exit code 0 when done, 1 when it did not start, 2 for other
    /// arguments and a bad environment.
    pub async fn main(self) -> ExitCode {
        let name = self.name.clone();
        let args: Vec<String> = std::env::args().skip(1).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let result = async {
            let service = self.build()?;
            init_logs(service.config.service.as_str(), &service.config.instance);
            match args.as_slice() {
                [] | ["run"] => service.run().await.map(|()| ExitCode::SUCCESS),
                ["init"] => service.init().map(|()| ExitCode::SUCCESS),
                ["rebuild", projection] => service.rebuild(projection).await.map(|()| ExitCode::SUCCESS),
                _ => {
                    eprintln!("usage: {name} [run | init | rebuild PROJECTION]");
                    Ok(ExitCode::from(2))
                }
            }
        };
        result.await.unwrap_or_else(|error: StartError| {
            eprintln!("{name}: {} ({})", Chain(&error), error.code());
            match error {
                StartError::Config(_) => ExitCode::from(2),
                StartError::MigrationChanged(_) | StartError::Store(_) | StartError::Listen { .. } => ExitCode::FAILURE,
            }
        })
    }
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its handlers have at hand.
    pub fn context(&self) -> &Context {
        &self.ctx
    }

    /// Ends it: readiness off, no new connections, requests under way finished (10 s), the outbox flushed (1 s).
    pub async fn stop(self) {
        tracing::info!("stopping");
        self.stop.send_replace(true);
        let mut server = self.server;
        if tokio::time::timeout(DRAIN, &mut server).await.is_err() {
            tracing::warn!("requests still under way after {} s are cut off", DRAIN.as_secs());
            server.abort();
        }
        for (name, task) in self.tasks {
            if !task.is_finished() {
                tracing::debug!(task = name, "ending");
            }
            task.abort();
        }
        if let Some((relay, task)) = self.relay {
            task.abort();
            // It has ended before another one begins; its outcome is our abort.
            let _ = task.await;
            let _ = tokio::time::timeout(FLUSH, relay.drain()).await;
        }
        tracing::info!("stopped");
    }
}
