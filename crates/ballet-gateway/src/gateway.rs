//! The running gateway: starts, reloads, explains, stops.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::info;

use ballet_core::{Classify, Clock, CodeEntry, ErrorCode, Retry, SystemClock};
use ballet_manifest::Manifest;
use ballet_proxy::{BreakerState, ServeConfig, Server, Upstreams, bind};
use ballet_telemetry::{Metrics, Sink, names};

use crate::access_log::{AccessLog, LogTarget};
use crate::explain::{Explanation, explain};
use crate::handler::Front;
use crate::plan::{self, LoadError, Plan, Urls, policy_table};
use crate::refusal::{CODES, number};

/// What a gateway needs beside the manifest.
pub struct GatewayConfig {
    /// How it calls services; the caller is `gateway`. Its policies are replaced by the manifest's.
    pub upstreams: Upstreams,
    /// Stamps log lines and judges tokens' times. Default: the machine's.
    pub clock: Arc<dyn Clock>,
    /// Where to listen. Default: the manifest's `gateway: listen:`.
    pub listen: Option<SocketAddr>,
    /// Where the access log goes. Default: nowhere.
    pub access_log: LogTarget,
    /// How connections are treated.
    pub serve: ServeConfig,
}

/// A running gateway. Cheap to clone; dropping all clones closes it at once.
#[derive(Clone)]
pub struct Gateway(Arc<Running>);

struct Running {
    front: Arc<Front>,
    upstreams: Upstreams,
    urls: Urls,
    address: SocketAddr,
    server: Mutex<Option<Server>>,
    /// One reload at a time.
    reloading: Mutex<()>,
}

/// What a gateway did since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests by route, and by their status' first digit.
    pub requests: Vec<(String, [u64; 6])>,
    /// Refusals by code, those that happened.
    pub refused: Vec<(ErrorCode, u64)>,
    /// Requests that rate limits of today's routes refused.
    pub limited: u64,
    /// Tokens that were found among the verified ones.
    pub token_hits: u64,
    /// Tokens that had to be verified.
    pub token_misses: u64,
    /// Lines of the access log that were taken.
    pub log_lines: u64,
    /// Lines that were dropped.
    pub log_dropped: u64,
}

/// Why a gateway could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The routes cannot be loaded.
    #[error("cannot load the routes")]
    Load(#[from] LoadError),
    /// The address is taken, or not ours.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// Where it should listen.
        address: SocketAddr,
        /// Why it cannot.
        #[source]
        source: io::Error,
    },
    /// The access log's file cannot be opened.
    #[error("cannot open the access log")]
    Log(#[source] io::Error),
}

impl Classify for StartError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Load(error) => error.code(),
            Self::Listen { .. } => ErrorCode("GW022"),
            Self::Log(_) => ErrorCode("GW023"),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Load(_) | Self::Listen { .. } | Self::Log(_) => Retry::Never,
        }
    }
}

impl GatewayConfig {
    /// Calls services through `upstreams`; the rest as the defaults have it.
    pub fn new(upstreams: Upstreams) -> Self {
        Self {
            upstreams,
            clock: Arc::new(SystemClock),
            listen: None,
            access_log: LogTarget::Off,
            serve: ServeConfig::default(),
        }
    }
}

impl Gateway {
    /// Compiles the manifest's routes and listens. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start(manifest: &Manifest, config: GatewayConfig) -> Result<Self, StartError> {
        let checked = plan::check(manifest)?;
        let address = config.listen.unwrap_or(manifest.gateway.listen);
        let of_io = |source| StartError::Listen { address, source };
        let listener = bind(address).map_err(of_io)?;
        let log = AccessLog::start(config.access_log).map_err(StartError::Log)?;
        let urls = Urls::new(config.upstreams.caller(), config.serve.seed);
        config.upstreams.set_policies(policy_table(manifest));
        urls.upstreams.set_policies(policy_table(manifest));
        let plan = Plan::compile(manifest, checked, &config.upstreams, &urls, &config.clock, None);
        let front = Arc::new(Front {
            plan: ArcSwap::from_pointee(plan),
            log,
            clock: config.clock,
            refused: Default::default(),
        });
        let server = Server::start(listener, front.clone(), config.serve).map_err(of_io)?;
        let address = server.address();
        info!(%address, routes = front.plan.load().routes.len(), "gateway listens");
        let server = Mutex::new(Some(server));
        let upstreams = config.upstreams;
        Ok(Self(Arc::new(Running { front, upstreams, urls, address, server, reloading: Mutex::default() })))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Takes over another manifest: the next request is decided by it, those under way keep what they have, no
    /// connection is closed. Keys, verified tokens, rate limits and breakers go on where their configuration is the same.
    ///
    /// # Errors
    /// [`LoadError`]: then all stays as it was.
    pub fn reload(&self, manifest: &Manifest) -> Result<(), LoadError> {
        let Running { front, upstreams, urls, reloading, .. } = &*self.0;
        let _one = reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let checked = plan::check(manifest)?;
        let before = front.plan.load_full();
        if manifest.gateway.listen != before.listen {
            return Err(LoadError::Listen { wanted: manifest.gateway.listen, current: before.listen });
        }
        upstreams.set_policies(policy_table(manifest));
        urls.upstreams.set_policies(policy_table(manifest));
        let plan = Plan::compile(manifest, checked, upstreams, urls, &front.clock, Some(&before));
        info!(routes = plan.routes.len(), "gateway's routes reloaded");
        front.plan.store(Arc::new(plan));
        Ok(())
    }

    /// What would happen to a request. `url` is a path with a query, or a whole address.
    pub fn explain(&self, method: &str, url: &str) -> Explanation {
        explain(&self.0.front.plan.load(), method, url)
    }

    /// How the services stand that it calls.
    pub fn upstreams(&self) -> &Upstreams {
        &self.0.upstreams
    }

    /// What it did since its start.
    pub fn stats(&self) -> Stats {
        self.0.front.stats()
    }

    /// Tells its numbers to `/metrics`, for as long as it runs.
    pub fn register(&self, metrics: &Metrics) {
        let running = Arc::downgrade(&self.0);
        metrics.register(move |sink| {
            if let Some(running) = running.upgrade() {
                running.tell(sink);
            }
        });
    }

    /// Stops accepting, lets every exchange finish and closes; what is not done within `grace` is cut off. The access
    /// log is complete afterwards. Says whether all was done.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        let server = self.0.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        let done = match server {
            Some(server) => server.shutdown(grace).await,
            None => true,
        };
        let front = self.0.front.clone();
        // It may have to wait for a slow disk.
        let _ = tokio::task::spawn_blocking(move || front.log.close()).await;
        done
    }
}

impl Front {
    fn stats(&self) -> Stats {
        let plan = self.plan.load();
        let tokens = plan.issuers.iter().map(|issuer| issuer.cache_counts());
        let (token_hits, token_misses) = tokens.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let (log_lines, log_dropped) = self.log.counts();
        Stats {
            requests: plan.routes.iter().map(|r| (r.name.to_string(), r.stats.classes())).collect(),
            refused: self.refusals().map(|(entry, count)| (entry.code, count)).collect(),
            limited: plan.routes.iter().filter_map(|r| r.limit.as_ref()).map(|limit| limit.refused()).sum(),
            token_hits,
            token_misses,
            log_lines,
            log_dropped,
        }
    }

    fn refusals(&self) -> impl Iterator<Item = (&'static CodeEntry, u64)> {
        let counted = |entry: &'static CodeEntry| {
            let count = self.refused.get(number(entry.code))?.load(Ordering::Relaxed);
            (count > 0).then_some((entry, count))
        };
        CODES.iter().filter_map(counted)
    }
}

impl Running {
    fn tell(&self, sink: &mut Sink) {
        for route in &self.front.plan.load().routes {
            for (class, count) in route.stats.classes().into_iter().enumerate().filter(|(_, count)| *count > 0) {
                let labels = [("route", &*route.name), ("status", &format!("{class}xx"))];
                sink.sample(&names::GATEWAY_REQUESTS, &labels, count as f64);
            }
            sink.sample(&names::GATEWAY_SECONDS, &[("route", &route.name)], route.stats.seconds());
        }
        for (entry, count) in self.front.refusals() {
            sink.sample(&names::GATEWAY_REFUSED, &[("reason", entry.title)], count as f64);
        }
        sink.sample(&names::ACCESS_LOG_DROPPED, &[], self.front.log.counts().1 as f64);
        for view in self.upstreams.views().into_iter().chain(self.urls.upstreams.views()) {
            let state = match view.breaker {
                BreakerState::Closed => 0.0,
                BreakerState::HalfOpen => 1.0,
                BreakerState::Open => 2.0,
            };
            let labels = [
                ("caller", self.upstreams.caller()),
                ("service", view.service.as_str()),
                ("policy", &view.policy.name),
            ];
            sink.sample(&names::BREAKER_STATE, &labels, state);
        }
    }
}

#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;
