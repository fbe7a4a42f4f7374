//! Every metric's name, kind, unit and meaning. A literal metric name elsewhere does not pass review.
//!
//! Names follow OpenTelemetry's semantic conventions where those have one; ours begin with `ballet.`.

use crate::{Kind, Metric};

macro_rules! metrics {
    ($($(#[$doc:meta])* $constant:ident = $kind:ident $name:literal $unit:literal $help:literal;)*) => {
        $($(#[$doc])* #[doc = $help] pub static $constant: Metric = Metric { name: $name, kind: Kind::$kind, unit: $unit, help: $help };)*
        /// All of them, for the reference in the documents.
        pub static ALL: &[&Metric] = &[$(&$constant),*];
    };
}

metrics! {
    GATEWAY_REQUESTS = Counter "ballet.gateway.requests" "{request}" "Requests that the gateway answered, by route and status class.";
    GATEWAY_SECONDS = Counter "ballet.gateway.request.seconds" "s" "Time spent on requests, by route; divided by the requests it is their mean.";
    GATEWAY_REFUSED = Counter "ballet.gateway.refused" "{request}" "Requests that the gateway refused, by reason.";
    ACCESS_LOG_DROPPED = Counter "ballet.gateway.access_log.dropped" "{line}" "Access log lines dropped because the writer fell behind.";
    BREAKER_STATE = Gauge "ballet.breaker.state" "{state}" "State of a breaker by caller and service: 0 closed, 1 half-open, 2 open.";
    BUS_LAG = Gauge "ballet.bus.lag" "{event}" "Events that a consumer group has not settled, waiting or in flight.";
    BUS_DEAD = Gauge "ballet.bus.dead" "{event}" "Dead letters of a consumer group.";
    BUS_IN_FLIGHT = Gauge "ballet.bus.in_flight" "{event}" "Events handed out and not settled.";
    WORKFLOWS_RUNNING = Gauge "ballet.workflows.running" "{execution}" "Executions under way.";
    WORKFLOWS_STUCK = Gauge "ballet.workflows.stuck" "{execution}" "Executions whose compensation waits for an operator.";
    JOURNAL_BATCHES = Counter "ballet.journal.batches" "{batch}" "Batches written, by journal.";
    JOURNAL_COMMITS = Counter "ballet.journal.commits" "{commit}" "Commits that put those batches on disk; each is one sync, by journal.";
    REGISTRY_INSTANCES = Gauge "ballet.registry.instances" "{instance}" "Instances known, by service and state.";
    SERVICE_RESTARTS = Counter "ballet.supervisor.restarts" "{restart}" "Restarts of an instance's process.";
    PROCESS_MEMORY = Gauge "ballet.process.memory" "By" "Resident memory of a process of the system.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_spelled_alike() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in ALL {
            assert!(seen.insert(metric.name), "{} stands twice", metric.name);
            let plain = |b: u8| b.is_ascii_lowercase() || matches!(b, b'.' | b'_');
            assert!(metric.name.bytes().all(plain), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
