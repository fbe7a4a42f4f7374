//! The registry over HTTP.

use crate::Client;

/// The registry over the platform's HTTP API.
#[derive(Clone)]
pub struct RemoteDiscovery {
    pub(crate) client: Client,
    pub(crate) platform: String,
}

impl RemoteDiscovery {
    /// Asks the platform at `platform` (`http://127.0.0.1:7070`).
    pub fn new(client: Client, platform: &str) -> Self {
        Self { client, platform: platform.trim_end_matches('/').to_owned() }
    }
}
