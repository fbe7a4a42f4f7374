//! Calls to services: which instance, whether at all, and again on another one.
//!
//! [`Upstreams`] owns an [`Upstream`] for each service and named policy (breaker, bulkhead, retry budget), and one fleet
//! of instances for each service, which its upstreams share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use ballet_core::{Deadline, Discovery, InstanceId, Policy, ServiceName, headers};
use ballet_resilience::{
    Admission, Backoff, Bulkhead, Outcome, Permit, Place, RetryBudget, SharedBreaker, SharedRng, Tracked, Until,
};

pub use ballet_resilience::BreakerState;

use crate::exchange::{self, Exchanged};
use crate::fleet::{Endpoint, Fleet};
use crate::{CallError, CallMode, CallRequest, CallResponse, PolicyTable};

/// All services that one part calls: `gateway`, `orchestrator`, `bus`, or a service's sidecar. Cheap to clone.
///
/// Breakers belong to it, so one part's trouble with a service is not another's.
#[derive(Clone)]
pub struct Upstreams(Arc<Shared>);

struct Shared {
    caller: Arc<str>,
    discovery: Arc<dyn Discovery>,
    seed: u64,
    table: Mutex<Table>,
}

struct Table {
    policies: PolicyTable,
    fleets: BTreeMap<ServiceName, Arc<Fleet>>,
    upstreams: BTreeMap<(ServiceName, Option<String>), Arc<Upstream>>,
}

/// One service as one part calls it under one policy: its instances kept up to date, their connections, the guards.
pub struct Upstream {
    service: ServiceName,
    caller: Arc<str>,
    fleet: Arc<Fleet>,
    rules: ArcSwap<Rules>,
    breaker: SharedBreaker,
    /// Calls in a row that found no instance.
    absences: AtomicU32,
    calls: AtomicU64,
    failures: AtomicU64,
    retries: AtomicU64,
}

/// A policy with what it needs to be obeyed.
pub(crate) struct Rules {
    pub(crate) policy: Arc<Policy>,
    pub(crate) backoff: Backoff,
    pub(crate) budget: Arc<RetryBudget>,
    pub(crate) bulkhead: Bulkhead,
}

/// How one upstream stands, for metrics, `ps` and `explain`.
#[derive(Clone, Debug)]
pub struct UpstreamView {
    /// The service.
    pub service: ServiceName,
    /// The policy it is called under.
    pub policy: Arc<Policy>,
    /// Its breaker.
    pub breaker: BreakerState,
    /// How often the breaker changed its state.
    pub breaker_transitions: u64,
    /// Attempts since the start.
    pub calls: u64,
    /// Attempts that counted as failures.
    pub failures: u64,
    /// Retries among the attempts.
    pub retries: u64,
    /// Calls under way.
    pub busy: usize,
    /// Calls that wait for a place.
    pub waiting: usize,
    /// Calls that the bulkhead refused.
    pub refused: u64,
    /// Instances that may be called.
    pub instances: Vec<EndpointView>,
}

/// How one instance stands.
#[derive(Clone, Debug)]
pub struct EndpointView {
    /// Its id.
    pub id: InstanceId,
    /// Where it listens.
    pub address: SocketAddr,
    /// Calls under way.
    pub pending: u32,
    /// Smoothed latency; zero before the first answer.
    pub latency: Duration,
    /// Whether it is left out for a while because it failed.
    pub ejected: bool,
    /// Connections kept for the next call.
    pub idle: usize,
}

/// An attempt that was let through; settle it. Dropping it counts for nothing.
pub(crate) struct Attempt {
    pub(crate) endpoint: Arc<Endpoint>,
    permit: Permit,
    tracked: Tracked,
}

impl Upstreams {
    /// Calls as `caller` (sent as `ballet-caller`). `seed` feeds the balancer and the retries' jitter.
    pub fn new(caller: &str, discovery: Arc<dyn Discovery>, policies: PolicyTable, seed: u64) -> Self {
        let table = Table { policies, fleets: BTreeMap::new(), upstreams: BTreeMap::new() };
        Self(Arc::new(Shared { caller: caller.into(), discovery, seed, table: Mutex::new(table) }))
    }

    /// The service as called under the policy of this name (`None`: the service's own). Made on first use: then a task
    /// begins to follow discovery, so this must be called inside a tokio runtime.
    pub fn upstream(&self, service: &ServiceName, policy: Option<&str>) -> Arc<Upstream> {
        let mut table = self.0.table.lock().unwrap_or_else(PoisonError::into_inner);
        let table = &mut *table;
        let key = (service.clone(), policy.map(str::to_owned));
        if let Some(upstream) = table.upstreams.get(&key) {
            return upstream.clone();
        }
        let fleet = table.fleets.entry(service.clone()).or_insert_with(|| {
            let seed = service.as_str().bytes().fold(self.0.seed, |s, b| s.wrapping_mul(31).wrapping_add(u64::from(b)));
            Fleet::follow(service.clone(), self.0.discovery.clone(), seed)
        });
        let rules = Rules::new(table.policies.get(service, policy), None);
        let upstream = Arc::new(Upstream {
            service: service.clone(),
            caller: self.0.caller.clone(),
            fleet: fleet.clone(),
            breaker: SharedBreaker::new(&rules.policy.breaker),
            absences: AtomicU32::new(0),
            rules: ArcSwap::from_pointee(rules),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            retries: AtomicU64::new(0),
        });
        table.upstreams.insert(key, upstream.clone());
        upstream
    }

    /// Who calls, as written to `ballet-caller`.
    pub fn caller(&self) -> &str {
        &self.0.caller
    }

    /// Takes over new policies. Calls under way keep theirs; breakers keep their state.
    pub fn set_policies(&self, policies: PolicyTable) {
        let mut table = self.0.table.lock().unwrap_or_else(PoisonError::into_inner);
        for ((service, name), upstream) in &table.upstreams {
            upstream.obey(policies.get(service, name.as_deref()));
        }
        table.policies = policies;
    }

    /// Where the breakers stand, in the order of the services' names. A service that is called under several policies has
    /// a breaker for each.
    pub fn breakers(&self) -> Vec<(ServiceName, BreakerState)> {
        self.all().iter().map(|u| (u.service.clone(), u.state())).collect()
    }

    /// How all upstreams stand, in the order of the services' names.
    pub fn views(&self) -> Vec<UpstreamView> {
        self.all().iter().map(|u| u.view()).collect()
    }

    fn all(&self) -> Vec<Arc<Upstream>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner).upstreams.values().cloned().collect()
    }
}

impl Rules {
    /// Keeps the old bulkhead and budget where their policy did not change, and with them who is inside.
    fn new(policy: Arc<Policy>, old: Option<&Self>) -> Self {
        let bulkhead = match old {
            Some(old) if old.policy.bulkhead == policy.bulkhead => old.bulkhead.clone(),
            Some(_) | None => Bulkhead::new(&policy.bulkhead),
        };
        let budget = match old {
            Some(old) if old.policy.retry == policy.retry => old.budget.clone(),
            Some(_) | None => Arc::new(RetryBudget::new(&policy.retry, Instant::now())),
        };
        Self { backoff: Backoff::new(&policy.retry), budget, bulkhead, policy }
    }
}

impl Upstream {
    /// Whose instances these are.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The policy that holds now.
    pub fn policy(&self) -> Arc<Policy> {
        self.rules.load().policy.clone()
    }

    /// How it stands.
    pub fn view(&self) -> UpstreamView {
        let (now, rules) = (Instant::now(), self.rules.load());
        let endpoints = self.fleet.endpoints();
        let instances = endpoints.iter().map(|e| EndpointView {
            id: e.id.clone(),
            address: e.address,
            pending: e.load.pending(),
            latency: e.load.latency(now),
            ejected: e.member.is_ejected(now),
            idle: e.idle(),
        });
        UpstreamView {
            service: self.service.clone(),
            policy: rules.policy.clone(),
            breaker: self.state(),
            breaker_transitions: self.breaker.transitions(),
            calls: self.calls.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
            busy: rules.bulkhead.busy(),
            waiting: rules.bulkhead.waiting(),
            refused: rules.bulkhead.refused(),
            instances: instances.collect(),
        }
    }

    /// Calls one instance, as the policy says. When dropped the connection is closed; the outcome is unknown then.
    ///
    /// # Errors
    /// Any [`CallError`]; ask [`CallError::sent`] whether the service may have seen the request.
    pub async fn call(&self, request: CallRequest) -> Result<CallResponse, CallError> {
        exchange::check(&request)?;
        let rules = self.rules.load_full();
        let began = Instant::now();
        let deadline = header(&request, headers::TIMEOUT).and_then(Deadline::parse);
        let timeout = request.timeout.map_or(rules.policy.timeout, |timeout| timeout.min(rules.policy.timeout));
        let until = Until::new(timeout, deadline, began);
        let _place = self.enter(&rules, until).await?;
        rules.budget.note_call(began);
        let replayable = match request.mode {
            CallMode::Once => false,
            CallMode::Retry => is_idempotent(&request.method) || header(&request, headers::IDEMPOTENCY_KEY).is_some(),
        };
        let mut tried = vec![];
        let mut retries = 0;
        let mut last: Option<Result<CallResponse, CallError>> = None;
        loop {
            let result = match self.attempt(&tried, until).await {
                Ok(attempt) => {
                    tried.push(attempt.endpoint.address);
                    self.perform(attempt, &request, until).await
                }
                // What an earlier attempt met says more than that there was no further one.
                Err(error) => match last.take() {
                    Some(earlier) => return earlier,
                    None => Err(error),
                },
            };
            let again = match (request.mode, &result) {
                (CallMode::Once, _) => false,
                (CallMode::Retry, Ok(response)) => replayable && is_passing(response.status),
                (CallMode::Retry, Err(error)) => self.may_repeat(error, replayable),
            };
            let now = Instant::now();
            if !again || retries >= rules.policy.retry.max {
                return result;
            }
            retries += 1;
            let rest = match &result {
                Err(error) => self.rest(&rules, retries, error, &tried, now),
                Ok(_) => rules.backoff.rest(retries, &mut self.fleet.rng()),
            };
            if until.passed(now + rest) || !rules.budget.take(now) {
                return result;
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            last = Some(result);
            sleep_until(now + rest).await;
        }
    }

    /// Rest before a retry: none where nobody answered the door and there is another one to knock at.
    pub(crate) fn rest(
        &self,
        rules: &Rules,
        retry: u32,
        error: &CallError,
        tried: &[SocketAddr],
        now: Instant,
    ) -> Duration {
        if matches!(error, CallError::Connect(_)) && self.fleet.has_another(tried, now) {
            return Duration::ZERO;
        }
        rules.backoff.rest(retry, &mut self.fleet.rng())
    }

    fn may_repeat(&self, error: &CallError, replayable: bool) -> bool {
        match error {
            CallError::NoInstance | CallError::Connect(_) => true,
            CallError::Lost(_) | CallError::Malformed(_) | CallError::TimedOut { .. } => replayable,
            CallError::BreakerOpen { .. } | CallError::BulkheadFull | CallError::TooLarge | CallError::Invalid(_) => {
                false
            }
        }
    }

    /// One attempt with an instance, settled.
    async fn perform(&self, attempt: Attempt, request: &CallRequest, until: Until) -> Result<CallResponse, CallError> {
        let mut sent = false;
        let exchanged = timeout_at(until.instant(), self.exchange(&attempt.endpoint, request, until, &mut sent)).await;
        let now = Instant::now();
        let result = match exchanged {
            Ok(Ok(Exchanged { response, reusable })) => {
                if let Some(stream) = reusable {
                    attempt.endpoint.keep(stream, now);
                }
                Ok(response)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(CallError::TimedOut { sent }),
        };
        let outcome = match &result {
            Ok(response) => outcome_of(response.status),
            // It answered, only too much.
            Err(CallError::TooLarge | CallError::Invalid(_)) => Outcome::Success,
            Err(
                CallError::NoInstance
                | CallError::Connect(_)
                | CallError::BreakerOpen { .. }
                | CallError::BulkheadFull
                | CallError::TimedOut { .. }
                | CallError::Lost(_)
                | CallError::Malformed(_),
            ) => Outcome::Failure,
        };
        self.settle(attempt, outcome, now);
        result
    }

    async fn exchange(
        &self,
        endpoint: &Endpoint,
        request: &CallRequest,
        until: Until,
        sent: &mut bool,
    ) -> Result<Exchanged, CallError> {
        let now = Instant::now();
        let left = until.to_header(now);
        let head = exchange::head(request, &endpoint.address, Some((&self.caller, left)), true);
        while let Some(stream) = endpoint.take(true, now) {
            match exchange::exchange(stream, &head, request, sent).await {
                // It had been closed under us before a byte was written: that was no attempt.
                Err(_) if !*sent => {}
                result => return result,
            }
        }
        let stream = endpoint.connect().await.map_err(CallError::Connect)?;
        match exchange::exchange(stream, &head, request, sent).await {
            Err(CallError::Lost(error)) if !*sent => Err(CallError::Connect(error)),
            result => result,
        }
    }

    /// Takes a place in the bulkhead.
    pub(crate) async fn enter(&self, rules: &Rules, until: Until) -> Result<Place, CallError> {
        if let Some(place) = rules.bulkhead.try_enter() {
            return Ok(place);
        }
        rules.bulkhead.enter(until.left(Instant::now())).await.map_err(|_| CallError::BulkheadFull)
    }

    /// Asks for leave to try an instance, one that was not tried if there is such. Waits only while discovery has not
    /// spoken at all.
    pub(crate) async fn attempt(&self, tried: &[SocketAddr], until: Until) -> Result<Attempt, CallError> {
        if !self.fleet.is_known() && timeout_at(until.instant(), self.fleet.known()).await.is_err() {
            return Err(CallError::NoInstance);
        }
        self.try_attempt(tried, Instant::now())
    }

    pub(crate) fn try_attempt(&self, tried: &[SocketAddr], now: Instant) -> Result<Attempt, CallError> {
        // First the instance: a probe's permit must not be lost for want of one.
        let Some(endpoint) = self.fleet.choose(tried, now) else { return Err(self.absent()) };
        if self.absences.load(Ordering::Relaxed) != 0 {
            self.absences.store(0, Ordering::Relaxed);
        }
        let permit = match self.breaker.admit(now) {
            Admission::Call(permit) => permit,
            Admission::Probe(permit) => {
                info!(service = %self.service, caller = %self.caller, instance = %endpoint.id, "breaker half-open: probing");
                permit
            }
            Admission::Refuse { retry_after } => return Err(CallError::BreakerOpen { retry_after }),
        };
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(Attempt { tracked: endpoint.load.begin(now), endpoint, permit })
    }

    /// Where the breaker stands. A service without instances that calls ask for in vain counts as open, and as closed
    /// again as soon as there is an instance: discovery knows that better than a probe.
    fn state(&self) -> BreakerState {
        let open = self.absences.load(Ordering::Relaxed) >= self.rules.load().policy.breaker.failures.get();
        if open && self.fleet.endpoints().is_empty() { BreakerState::Open } else { self.breaker.state() }
    }

    /// Notes a call that found no instance.
    fn absent(&self) -> CallError {
        let breaker = &self.rules.load().policy.breaker;
        let before = self.absences.fetch_add(1, Ordering::Relaxed);
        // It must not wrap round to zero.
        if before == u32::MAX {
            self.absences.store(u32::MAX, Ordering::Relaxed);
        }
        if before.saturating_add(1) == breaker.failures.get() {
            info!(service = %self.service, caller = %self.caller, "breaker open: no instance");
        }
        if before >= breaker.failures.get() {
            CallError::BreakerOpen { retry_after: breaker.open_for }
        } else {
            CallError::NoInstance
        }
    }

    /// Notes how an attempt ended.
    pub(crate) fn settle(&self, attempt: Attempt, outcome: Outcome, now: Instant) {
        if outcome == Outcome::Failure {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(state) = self.breaker.record(attempt.permit, outcome, now) {
            info!(service = %self.service, caller = %self.caller, %state, "breaker changed");
        }
        if let Some(rest) = self.fleet.outlier().record(&attempt.endpoint.member, outcome, now) {
            warn!(service = %self.service, instance = %attempt.endpoint.id, ?rest, "instance left out for a while");
        }
        attempt.tracked.finish(outcome, now);
    }

    pub(crate) fn rules(&self) -> arc_swap::Guard<Arc<Rules>> {
        self.rules.load()
    }

    pub(crate) fn rng(&self) -> &SharedRng {
        self.fleet.rng()
    }

    pub(crate) fn caller(&self) -> &str {
        &self.caller
    }

    pub(crate) fn note_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    fn obey(&self, policy: Arc<Policy>) {
        let old = self.rules.load();
        if old.policy == policy {
            return;
        }
        self.breaker.set_policy(&policy.breaker);
        self.rules.store(Arc::new(Rules::new(policy, Some(&old))));
    }
}

/// What an answer says of the service's health: 5xx are failures, except 501, which is an answer to a wrong question.
pub(crate) fn outcome_of(status: u16) -> Outcome {
    if status >= 500 && status != 501 { Outcome::Failure } else { Outcome::Success }
}

/// Statuses that another instance may not have, or this one a moment later: nothing says that the work was done.
pub(crate) fn is_passing(status: u16) -> bool {
    matches!(status, 502..=504)
}

/// RFC 9110 §9.2.2.
pub(crate) fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "TRACE")
}

fn header<'a>(request: &'a CallRequest, name: &str) -> Option<&'a str> {
    request.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}
