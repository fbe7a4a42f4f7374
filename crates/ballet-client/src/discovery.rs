//! The registry over HTTP.

use std::sync::Arc;
use std::time::Duration;

use ballet_core::{Chain, Discovery, DiscoveryError, Instances, Later, ServiceName};

use crate::Client;

/// How long the registry may take to answer, besides the wait of a watch.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long one watch hangs; callers loop.
const WATCH: Duration = Duration::from_secs(30);

/// The registry over the platform's HTTP API: the [`Discovery`] seam for a process of its own.
#[derive(Clone)]
pub struct RemoteDiscovery {
    client: Client,
    platform: String,
}

impl RemoteDiscovery {
    /// Asks the platform at `platform` (`http://127.0.0.1:7070`).
    pub fn new(client: Client, platform: &str) -> Self {
        Self { client, platform: platform.trim_end_matches('/').to_owned() }
    }

    async fn ask(&self, path: String, timeout: Duration) -> Result<Arc<Instances>, DiscoveryError> {
        let unavailable = |text: String| DiscoveryError::Unavailable(text);
        let request = self.client.get(format!("{}/ballet/v1/services/{path}", self.platform)).timeout(timeout);
        let answer = request.send().await.map_err(|error| unavailable(Chain(&error).to_string()))?;
        if !answer.is_success() {
            return Err(unavailable(crate::events::said(&answer.problem())));
        }
        Ok(Arc::new(answer.json().map_err(|error| unavailable(error.to_string()))?))
    }
}

impl Discovery for RemoteDiscovery {
    fn resolve(&self, service: &ServiceName) -> Later<'_, Result<Arc<Instances>, DiscoveryError>> {
        Box::pin(self.ask(service.to_string(), TIMEOUT))
    }

    fn watch(&self, service: &ServiceName, seen: u64) -> Later<'_, Result<Arc<Instances>, DiscoveryError>> {
        let path = format!("{service}?seen={seen}&wait={}s", WATCH.as_secs());
        Box::pin(self.ask(path, WATCH + TIMEOUT))
    }
}
