//! Runs workflows: Netflix Conductor's REST API in front, durable sagas behind.

#![allow(dead_code, reason = "being laid down")]

use std::sync::Arc;
use std::time::Duration;

use ballet_core::{Clock, SystemClock, WorkflowsError};
use ballet_proxy::Upstreams;
use ballet_store::{Journal, StoreError};

/// What an engine needs.
pub struct Config {
    /// Where executions are kept.
    pub journal: Arc<dyn Journal>,
    /// Calls the services of HTTP steps. Its caller name is `orchestrator`.
    pub upstreams: Upstreams,
    /// Stamps records. Default: the machine's clock.
    pub clock: Arc<dyn Clock>,
    /// Feeds trace and execution ids.
    pub seed: u64,
    /// HTTP steps under way at once. Default: 256.
    pub calls: usize,
    /// How long the shards stay ours without a renewal. Default: 15 s.
    pub lease: Duration,
}

impl Config {
    /// Defaults for all that has one.
    pub fn new(journal: Arc<dyn Journal>, upstreams: Upstreams, seed: u64) -> Self {
        Self { journal, upstreams, clock: Arc::new(SystemClock), seed, calls: 256, lease: Duration::from_secs(15) }
    }
}

/// The engine.
pub struct Engine;

impl Engine {
    /// Opens the tables, claims all shards (waiting for another owner's lease to end), loads what is not finished, and goes on with it.
    ///
    /// # Errors
    /// What the journal says.
    pub async fn start(config: Config) -> Result<Handle, StoreError> {
        drop(config);
        Ok(Handle {})
    }
}

/// Speaks to a running engine. Cheap to clone.
#[derive(Clone)]
pub struct Handle {}

impl Handle {
    /// Registers a workflow of the manifest; answers the version that new executions get. The same content keeps its version.
    ///
    /// # Errors
    /// `Invalid` if the definition cannot be compiled.
    pub async fn register(&self, workflow: &ballet_manifest::Workflow) -> Result<u32, WorkflowsError> {
        let _ = workflow;
        Ok(1)
    }

    /// Stops: calls under way get `grace` to end, then everything is flushed and the shards are given back.
    pub async fn shutdown(&self, grace: Duration) {
        let _ = grace;
    }
}

/// The HTTP faces: Conductor's under `/api`, ours under `/ballet/v1/workflows`.
pub mod http {
    /// All routes, to be merged on the platform listener.
    pub fn router(handle: super::Handle) -> axum::Router {
        drop(handle);
        axum::Router::new()
    }
}
