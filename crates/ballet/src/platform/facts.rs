//! What `ps` shows beside the processes: addresses, breakers, sidecars.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ballet_core::ServiceName;
use ballet_proxy::{BreakerState, Upstreams};
use ballet_sidecar::Host;
use ballet_supervisor::http::{Facts, SidecarPorts};
use ballet_telemetry::{Metrics, names};

/// Everyone who calls services.
#[derive(Clone)]
pub(crate) struct Callers {
    /// Gateway, orchestrator, bus.
    pub(crate) parts: Vec<Upstreams>,
    /// The services' sidecars.
    pub(crate) sidecars: Host,
}

impl Callers {
    /// Caller, service and state of every breaker.
    fn breakers(&self) -> Vec<(String, ServiceName, BreakerState)> {
        let parts = self.parts.iter().flat_map(|part| {
            let caller = part.caller().to_owned();
            part.breakers().into_iter().map(move |(service, state)| (caller.clone(), service, state))
        });
        let sidecars =
            self.sidecars.breakers().into_iter().map(|(caller, service, state)| (caller.to_string(), service, state));
        parts.chain(sidecars).collect()
    }

    /// The worst state that any caller has towards a service.
    fn worst(&self, service: &ServiceName) -> BreakerState {
        let states = self.breakers().into_iter().filter(|(_, callee, _)| callee == service).map(|(_, _, state)| state);
        states.max_by_key(|state| rank(*state)).unwrap_or(BreakerState::Closed)
    }

    /// Tells `/metrics` where the breakers stand.
    pub(crate) fn tell(self, metrics: &Metrics) {
        metrics.register(move |sink| {
            let mut worst: BTreeMap<(String, ServiceName), u8> = BTreeMap::new();
            for (caller, service, state) in self.breakers() {
                let known = worst.entry((caller, service)).or_default();
                *known = (*known).max(rank(state));
            }
            for ((caller, service), rank) in worst {
                let labels = [("caller", caller.as_str()), ("service", service.as_str())];
                sink.sample(&names::BREAKER_STATE, &labels, f64::from(rank));
            }
        });
    }
}

fn rank(state: BreakerState) -> u8 {
    match state {
        BreakerState::Closed => 0,
        BreakerState::HalfOpen => 1,
        BreakerState::Open => 2,
    }
}

/// What `ps` shows beside the processes.
pub(crate) struct SystemFacts {
    /// The gateway's listener.
    pub(crate) gateway: SocketAddr,
    /// The platform's listener.
    pub(crate) platform: SocketAddr,
    /// Everyone who calls services.
    pub(crate) callers: Callers,
}

impl Facts for SystemFacts {
    fn addresses(&self) -> BTreeMap<String, String> {
        let pair = |name: &str, address: SocketAddr| (name.to_owned(), format!("http://{address}"));
        [pair("gateway", self.gateway), pair("platform", self.platform)].into()
    }

    fn breaker(&self, service: &ServiceName) -> String {
        match self.callers.worst(service) {
            BreakerState::Closed => "closed",
            BreakerState::HalfOpen => "half-open",
            BreakerState::Open => "open",
        }
        .into()
    }

    fn sidecar(&self, service: &ServiceName, instance: u32) -> Option<SidecarPorts> {
        self.callers.sidecars.port(service, instance).map(|http| SidecarPorts { http, grpc: None })
    }
}
