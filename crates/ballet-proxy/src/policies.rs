//! Which policy holds for which service.

use std::collections::BTreeMap;
use std::sync::Arc;

use ballet_core::{Policy, ServiceName};

/// Policies by name and by service, with a default. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct PolicyTable {
    default: Arc<Policy>,
    named: Arc<BTreeMap<String, Arc<Policy>>>,
    services: Arc<BTreeMap<ServiceName, Arc<Policy>>>,
}

impl PolicyTable {
    /// Everyone gets this policy, until others are added.
    pub fn new(default: Policy) -> Self {
        Self { default: Arc::new(default), ..Self::default() }
    }

    /// Adds a policy that routes and steps may name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>, policy: Policy) -> Self {
        Arc::make_mut(&mut self.named).insert(name.into(), Arc::new(policy));
        self
    }

    /// Says which policy a service's callers get when they name none.
    #[must_use]
    pub fn service(mut self, service: ServiceName, policy: Policy) -> Self {
        Arc::make_mut(&mut self.services).insert(service, Arc::new(policy));
        self
    }

    /// The policy of a call: the one that was named, else the service's, else the default. An unknown name counts as
    /// none, because the manifest was checked before.
    pub fn get(&self, service: &ServiceName, named: Option<&str>) -> Arc<Policy> {
        named
            .and_then(|name| self.named.get(name))
            .or_else(|| self.services.get(service))
            .unwrap_or(&self.default)
            .clone()
    }
}
