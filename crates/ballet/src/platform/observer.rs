//! What the supervisor asks and tells: environments, sidecars, and the registry's entries of supervised instances.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ballet_core::{Chain, Instance, InstanceState, Later, ServiceName};
use ballet_registry::Registration;
use ballet_sidecar::Host;
use ballet_supervisor::{InstanceStatus, Launch, Observer, State};
use tracing::warn;

/// Brings supervisor, sidecars and registry together.
pub(crate) struct Wiring {
    /// Keeps who may be called.
    pub(crate) registry: ballet_registry::Handle,
    /// Opens sidecars.
    pub(crate) sidecars: Host,
    /// Every service of the manifest, with what the registry tells of its instances: owner and pool.
    pub(crate) services: BTreeMap<ServiceName, BTreeMap<String, String>>,
    /// The platform's listener.
    pub(crate) platform: SocketAddr,
    /// Makes an instance's token from its id.
    pub(crate) token: fn(&str, &str) -> String,
    /// Feeds the tokens.
    pub(crate) secret: String,
}

impl Wiring {
    fn variables(&self, launch: &Launch, port: u16) -> Vec<(String, String)> {
        let platform = format!("http://{}", self.platform);
        let token = (self.token)(&self.secret, launch.id.as_str());
        let mut variables: BTreeMap<String, String> = [
            ("BALLET_URL", format!("http://127.0.0.1:{port}")),
            ("DAPR_HTTP_PORT", port.to_string()),
            ("BALLET_TOKEN", token.clone()),
            ("DAPR_API_TOKEN", token.clone()),
            ("APP_API_TOKEN", token),
            ("BALLET_PLATFORM", platform.clone()),
            ("CONDUCTOR_SERVER_URL", format!("{platform}/api")),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        for service in self.services.keys().filter(|service| **service != launch.service) {
            let upper = service.as_str().to_ascii_uppercase().replace(['-', '.'], "_");
            let url = format!("http://127.0.0.1:{port}/v1.0/invoke/{service}/method");
            variables.insert(format!("{upper}_URL"), url);
        }
        variables.into_iter().collect()
    }

    async fn register(&self, status: &InstanceStatus, address: SocketAddr, state: InstanceState) {
        let instance = Instance {
            id: status.id.clone(),
            service: status.service.clone(),
            address,
            state,
            version: status.version.clone(),
            metadata: self.services.get(&status.service).cloned().unwrap_or_default(),
        };
        if let Err(error) = self.registry.register(Registration::new(instance)).await {
            warn!(instance = %status.id, error = %Chain(&error), "an instance could not be registered");
        }
    }

    async fn follow(&self, status: &InstanceStatus) {
        let ready = (status.ready && status.state == State::Running).then_some(status.address).flatten();
        self.sidecars.app(&status.service, status.instance, ready);
        match (ready, status.state, status.address) {
            (Some(address), _, _) => self.register(status, address, InstanceState::Up).await,
            (None, State::Draining, Some(address)) => self.register(status, address, InstanceState::Draining).await,
            (None, State::Starting, Some(address)) => self.register(status, address, InstanceState::Starting).await,
            (None, State::Running, Some(address)) => self.register(status, address, InstanceState::Down).await,
            // No process: nobody may try the address, somebody else may have it by now.
            _ => match self.registry.deregister(&status.service, &status.id).await {
                Ok(()) | Err(ballet_registry::RegistryError::UnknownInstance { .. }) => {}
                Err(error) => {
                    warn!(instance = %status.id, error = %Chain(&error), "an instance could not be taken out")
                }
            },
        }
    }
}

impl Observer for Wiring {
    fn environment<'a>(&'a self, launch: &'a Launch) -> Later<'a, Result<Vec<(String, String)>, String>> {
        Box::pin(async {
            let opened = self.sidecars.open(&launch.service, launch.instance).await;
            let port = opened.map_err(|error| format!("its sidecar cannot be opened: {error}"))?;
            Ok(self.variables(launch, port))
        })
    }

    fn instance_changed<'a>(&'a self, status: &'a InstanceStatus) -> Later<'a, ()> {
        Box::pin(self.follow(status))
    }
}
