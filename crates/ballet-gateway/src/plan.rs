//! What becomes of each route's requests, compiled once when configuration loads.
//!
//! A plan never changes. A reload compiles another and swaps it in; what outlives a plan (keys, verified tokens, rate
//! limits, counters) is taken over from the one before where its configuration is the same.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ballet_core::{Classify, Clock, ErrorCode, Retry};
use ballet_manifest::{Access, Action, HttpUrl, Jwt, Keys, Manifest, MergePart, Origin, Route, Template};
use ballet_proxy::{PolicyTable, Upstream, Upstreams};
use serde_json::value::RawValue;

use crate::addresses::Addresses;
use crate::issuer::Issuer;
use crate::limit::LimitPlan;
use crate::route::{Pattern, RouteError, RouteTable};

/// Everything that decides about requests, at one moment.
pub(crate) struct Plan {
    pub(crate) table: RouteTable,
    pub(crate) routes: Vec<Arc<RoutePlan>>,
    pub(crate) issuers: Vec<Arc<Issuer>>,
    /// Where the gateway should listen; a change needs a restart.
    pub(crate) listen: SocketAddr,
}

/// Targets that are URLs.
pub(crate) struct Urls {
    pub(crate) addresses: Arc<Addresses>,
    pub(crate) upstreams: Upstreams,
}

/// One route.
pub(crate) struct RoutePlan {
    /// As written: the route's name in logs and metrics.
    pub(crate) name: Arc<str>,
    pub(crate) pattern: Pattern,
    pub(crate) access: Option<AccessPlan>,
    pub(crate) limit: Option<Arc<LimitPlan>>,
    pub(crate) idempotent: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) action: ActionPlan,
    /// Where the manifest says so.
    pub(crate) origin: Origin,
    pub(crate) stats: Arc<RouteStats>,
}

/// Who may call.
pub(crate) struct AccessPlan {
    pub(crate) name: Arc<str>,
    pub(crate) issuer: Arc<Issuer>,
    /// All must hold, each by any of its roles.
    pub(crate) roles: Vec<Vec<String>>,
}

/// What becomes of a request. `workflow:`, `topic:` and `migrate:` will stand here; until then they are refused at load.
pub(crate) enum ActionPlan {
    /// `host`: what goes out as `Host` instead of the client's, for a target that is a URL.
    Forward {
        upstream: Arc<Upstream>,
        rewrite: Option<Template>,
        host: Option<String>,
    },
    Redirect {
        status: u16,
        location: Template,
    },
    Static {
        dir: Arc<PathBuf>,
    },
    Merge {
        parts: Vec<PartPlan>,
    },
}

/// One key of a merged answer.
pub(crate) struct PartPlan {
    pub(crate) name: Arc<str>,
    pub(crate) method: String,
    pub(crate) path: Template,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) required: bool,
    pub(crate) access: Option<AccessPlan>,
    pub(crate) fallback: Arc<RawValue>,
}

/// What a route's requests came to.
#[derive(Debug, Default)]
pub(crate) struct RouteStats {
    /// By the status' first digit; 0 is unused.
    classes: [AtomicU64; 6],
    micros: AtomicU64,
}

/// Why routes could not be loaded. The old ones stay.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Routes are malformed, the same, or ambiguous.
    #[error("{}", list(.0))]
    Routes(Vec<RouteError>),
    /// A target that this version does not serve.
    #[error("route `{route}`: {what} is not served yet")]
    Unsupported {
        /// The route.
        route: String,
        /// Which target.
        what: &'static str,
    },
    /// The gateway listens elsewhere; it does not move while it runs.
    #[error("`gateway: listen:` is now `{wanted}`, but the gateway listens on `{current}`; restart it")]
    Listen {
        /// In the new manifest.
        wanted: SocketAddr,
        /// In the one that it started with.
        current: SocketAddr,
    },
}

impl Classify for LoadError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Routes(_) => ErrorCode("GW020"),
            Self::Unsupported { .. } => ErrorCode("GW021"),
            Self::Listen { .. } => ErrorCode("GW022"),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Routes(_) | Self::Unsupported { .. } | Self::Listen { .. } => Retry::Never,
        }
    }
}

/// The policies of a manifest as [`Upstreams`] want them.
pub fn policy_table(manifest: &Manifest) -> PolicyTable {
    let mut table = PolicyTable::new((*manifest.policies.default).clone());
    for (name, policy) in &manifest.policies.named {
        table = table.named(name, (**policy).clone());
    }
    for name in manifest.services.keys() {
        table = table.service(name.clone(), (*manifest.policy(name, None)).clone());
    }
    table
}

impl Urls {
    pub(crate) fn new(caller: &str, seed: u64) -> Self {
        let addresses = Arc::new(Addresses::default());
        Self { upstreams: Upstreams::new(caller, addresses.clone(), PolicyTable::default(), seed), addresses }
    }
}

impl Plan {
    /// Compiles what [`check`] found right. Needs a tokio runtime: keys begin to be fetched.
    pub(crate) fn compile(
        manifest: &Manifest,
        checked: Checked,
        upstreams: &Upstreams,
        urls: &Urls,
        clock: &Arc<dyn Clock>,
        before: Option<&Self>,
    ) -> Self {
        let mut compiler = Compiler { upstreams, urls, clock, before, issuers: vec![] };
        let routes = checked.patterns.into_iter().zip(&manifest.gateway.routes);
        let routes = routes.filter_map(|(pattern, route)| compiler.route(pattern, route).map(Arc::new)).collect();
        Self { table: checked.table, routes, issuers: compiler.issuers, listen: manifest.gateway.listen }
    }
}

/// Routes that can be compiled.
pub(crate) struct Checked {
    table: RouteTable,
    patterns: Vec<Pattern>,
}

/// Says whether a gateway could serve these routes; starts nothing. For `ballet check`.
///
/// # Errors
/// [`LoadError`], as [`Gateway::start`](crate::Gateway::start) and `reload` would give it.
pub fn check_routes(manifest: &Manifest) -> Result<(), LoadError> {
    check(manifest).map(drop)
}

/// Checks a manifest's routes, changing nothing.
pub(crate) fn check(manifest: &Manifest) -> Result<Checked, LoadError> {
    let (mut patterns, mut errors) = (vec![], vec![]);
    for route in &manifest.gateway.routes {
        match Pattern::parse(&route.name) {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => errors.push(error),
        }
    }
    let table = RouteTable::build(&patterns).unwrap_or_else(|others| {
        errors.extend(others);
        RouteTable::default()
    });
    if !errors.is_empty() {
        return Err(LoadError::Routes(errors));
    }
    manifest.gateway.routes.iter().try_for_each(supported)?;
    Ok(Checked { table, patterns })
}

struct Compiler<'a> {
    upstreams: &'a Upstreams,
    urls: &'a Urls,
    clock: &'a Arc<dyn Clock>,
    before: Option<&'a Plan>,
    issuers: Vec<Arc<Issuer>>,
}

impl Compiler<'_> {
    /// `None` for a target that [`supported`] does not let through.
    fn route(&mut self, pattern: Pattern, route: &Route) -> Option<RoutePlan> {
        let before = self.before.and_then(|plan| plan.routes.iter().find(|old| *old.name == *route.name));
        let limit = route.limit.as_ref().map(|limit| {
            let kept = before.and_then(|old| old.limit.clone()).filter(|old| old.limit == *limit);
            kept.unwrap_or_else(|| Arc::new(LimitPlan::new(limit)))
        });
        let policy = route.policy.as_deref();
        let action = match &route.action {
            Action::Service { service, rewrite } => {
                let upstream = self.upstreams.upstream(service, policy);
                ActionPlan::Forward { upstream, rewrite: rewrite.clone(), host: None }
            }
            Action::Url { url, rewrite } => {
                let upstream = self.urls.upstreams.upstream(&self.urls.addresses.service(url), policy);
                ActionPlan::Forward { upstream, rewrite: rewrite.clone(), host: Some(authority(url)) }
            }
            Action::Redirect { status, location } => {
                ActionPlan::Redirect { status: *status, location: location.clone() }
            }
            Action::Static { dir } => ActionPlan::Static { dir: Arc::new(dir.clone()) },
            Action::Merge(parts) => ActionPlan::Merge { parts: parts.iter().map(|part| self.part(part)).collect() },
            Action::Workflow(_) | Action::Topic(_) | Action::Migrate(_) => return None,
        };
        Some(RoutePlan {
            name: route.name.as_str().into(),
            access: route.access.as_ref().map(|access| self.access(access)),
            limit,
            idempotent: route.idempotent,
            timeout: route.timeout,
            action,
            origin: route.origin.clone(),
            stats: before.map(|old| old.stats.clone()).unwrap_or_default(),
            pattern,
        })
    }

    fn part(&mut self, part: &MergePart) -> PartPlan {
        PartPlan {
            name: part.name.as_str().into(),
            method: part.method.clone(),
            path: part.path.clone(),
            upstream: self.upstreams.upstream(&part.service, part.policy.as_deref()),
            required: part.required,
            access: part.access.as_ref().map(|access| self.access(access)),
            fallback: serde_json::value::to_raw_value(&part.fallback).expect("a value is JSON").into(),
        }
    }

    fn access(&mut self, access: &Access) -> AccessPlan {
        AccessPlan { name: access.name.as_str().into(), issuer: self.issuer(&access.jwt), roles: access.roles.clone() }
    }

    fn issuer(&mut self, jwt: &Arc<Jwt>) -> Arc<Issuer> {
        let known = self.issuers.iter().chain(self.before.iter().flat_map(|plan| &plan.issuers));
        if let Some(issuer) = known.into_iter().find(|issuer| issuer.jwt == *jwt) {
            let issuer = issuer.clone();
            if !self.issuers.iter().any(|known| Arc::ptr_eq(known, &issuer)) {
                self.issuers.push(issuer.clone());
            }
            return issuer;
        }
        let issuer = Issuer::start(jwt.clone(), self.upstreams, self.clock.clone());
        self.issuers.push(issuer.clone());
        issuer
    }
}

impl RouteStats {
    pub(crate) fn note(&self, status: u16, took: Duration) {
        self.classes[usize::from(status / 100).min(5)].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Requests by the first digit of their status.
    pub(crate) fn classes(&self) -> [u64; 6] {
        std::array::from_fn(|class| self.classes[class].load(Ordering::Relaxed))
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.micros.load(Ordering::Relaxed) as f64 / 1e6
    }
}

fn supported(route: &Route) -> Result<(), LoadError> {
    let unsupported = |what| Err(LoadError::Unsupported { route: route.name.clone(), what });
    match &route.action {
        Action::Service { .. } | Action::Redirect { .. } | Action::Static { .. } => {}
        Action::Merge(parts) => {
            for access in parts.iter().filter_map(|part| part.access.as_ref()) {
                if !reachable(access) {
                    return unsupported("a JWKS document behind `https`");
                }
            }
        }
        Action::Url { url, .. } if url.tls => return unsupported("a target behind `https`"),
        Action::Url { .. } => {}
        Action::Workflow(_) => return unsupported("`workflow:`"),
        Action::Topic(_) => return unsupported("`topic:`"),
        Action::Migrate(_) => return unsupported("`migrate:`"),
    }
    match &route.access {
        Some(access) if !reachable(access) => unsupported("a JWKS document behind `https`"),
        Some(_) | None => Ok(()),
    }
}

/// Host and port as `Host` has them.
fn authority(url: &HttpUrl) -> String {
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    if url.port == 80 { host } else { format!("{host}:{}", url.port) }
}

fn reachable(access: &Access) -> bool {
    match &access.jwt.keys {
        Keys::Service { .. } => true,
        Keys::Url(url) => !url.tls,
    }
}

fn list(errors: &[RouteError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
