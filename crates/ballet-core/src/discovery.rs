//! The seam between those who call services and those who know where they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Classify, ErrorCode, InstanceId, Later, Retry, ServiceName};

/// One running copy of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Unique among all instances.
    pub id: InstanceId,
    /// Whose copy it is.
    pub service: ServiceName,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether it may be called.
    pub state: InstanceState,
    /// Its version, as the deployer calls it: `v1`.
    #[serde(default)]
    pub version: String,
    /// What else its owner says of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// Whether an instance may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InstanceState {
    /// Registered, its health not yet known.
    Starting,
    /// Healthy: calls may go there.
    Up,
    /// Finishing what it has; nothing new goes there.
    Draining,
    /// Its health check fails or its lease ran out.
    Down,
}

/// What is known of one service at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instances {
    /// Grows with each change; 0 before anything was known. Comparable only within one run of the registry.
    pub version: u64,
    /// All instances, in the order of their ids.
    pub all: Vec<Instance>,
}

impl Instances {
    /// Those that may be called.
    pub fn up(&self) -> impl Iterator<Item = &Instance> {
        self.all.iter().filter(|i| i.state == InstanceState::Up)
    }
}

/// Why discovery gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DiscoveryError {
    /// The registry cannot be reached or has stopped. Go on with what was last known.
    #[error("the registry gives no answer: {0}")]
    Unavailable(String),
}

impl Classify for DiscoveryError {
    fn code(&self) -> ErrorCode {
        match self {
            Self::Unavailable(_) => ErrorCode("RG001"),
        }
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Unavailable(_) => Retry::Safe(None),
        }
    }
}

/// Says where services are.
///
/// # Contract
/// 1. `resolve` of a service that nobody registered answers an empty list, not an error.
/// 2. After a registration was acknowledged, every later `resolve` shows it.
/// 3. `watch(service, seen)` answers at once when the version is not `seen`, else with the next change; it may answer
///    without a change after a minute, so callers loop. Dropping it is free.
/// 4. Versions of a service grow with every change that a caller could notice.
pub trait Discovery: Send + Sync + 'static {
    /// What is known now.
    fn resolve(&self, service: &ServiceName) -> Later<'_, Result<Arc<Instances>, DiscoveryError>>;
    /// What is known once it differs from version `seen`.
    fn watch(&self, service: &ServiceName, seen: u64) -> Later<'_, Result<Arc<Instances>, DiscoveryError>>;
}

/// Discovery over a list that never changes: for tests and for systems whose addresses are configured.
#[derive(Debug, Default)]
pub struct Fixed(BTreeMap<ServiceName, Arc<Instances>>);

impl Fixed {
    /// Knows these instances, all of them up.
    pub fn new(instances: impl IntoIterator<Item = (ServiceName, SocketAddr)>) -> Self {
        let mut services: BTreeMap<ServiceName, Instances> = BTreeMap::new();
        for (service, address) in instances {
            let known = services.entry(service.clone()).or_insert_with(|| Instances { version: 1, all: vec![] });
            let id = format!("{}-{}", service.name(), known.all.len() + 1);
            known.all.push(Instance {
                id: id.parse().expect("a service name and a number make an instance id"),
                service,
                address,
                state: InstanceState::Up,
                version: "v1".into(),
                metadata: BTreeMap::new(),
            });
        }
        Self(services.into_iter().map(|(name, known)| (name, Arc::new(known))).collect())
    }
}

impl Discovery for Fixed {
    fn resolve(&self, service: &ServiceName) -> Later<'_, Result<Arc<Instances>, DiscoveryError>> {
        let known = self.0.get(service).cloned().unwrap_or_default();
        Box::pin(async move { Ok(known) })
    }

    fn watch(&self, service: &ServiceName, seen: u64) -> Later<'_, Result<Arc<Instances>, DiscoveryError>> {
        let known = self.0.get(service).cloned().unwrap_or_default();
        Box::pin(async move {
            if known.version == seen {
                std::future::pending::<()>().await;
            }
            Ok(known)
        })
    }
}
