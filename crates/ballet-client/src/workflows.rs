//! The orchestrator over HTTP.

use crate::Client;

/// The orchestrator over the platform's HTTP API.
#[derive(Clone)]
pub struct RemoteWorkflows {
    pub(crate) client: Client,
    pub(crate) platform: String,
}

impl RemoteWorkflows {
    /// Asks the platform at `platform` (`http://127.0.0.1:7070`).
    pub fn new(client: Client, platform: &str) -> Self {
        Self { client, platform: platform.trim_end_matches('/').to_owned() }
    }
}
