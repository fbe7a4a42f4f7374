//! Targets that are URLs: hosts outside the registry, looked up by the system's resolver.
//!
//! Each host and port becomes a service of its own (`url-example-org-80`), so that balancing over its addresses,
//! breaker, bulkhead and retries are the same as for every other one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::sleep;

use ballet_core::{Discovery, DiscoveryError, Instance, InstanceState, Instances, Later, ServiceName};
use ballet_manifest::HttpUrl;

/// Hosts are looked up again this long after they were.
const LOOKUP_EVERY: Duration = Duration::from_secs(30);
/// Addresses of one host that are used; more are ignored.
const MAX_ADDRESSES: usize = 64;

/// The hosts that routes name. Grows with the configuration only.
#[derive(Default)]
pub(crate) struct Addresses(Mutex<BTreeMap<ServiceName, Host>>);

struct Host {
    name: String,
    port: u16,
    known: Arc<Instances>,
}

impl Addresses {
    /// The service that stands for a URL's host and port.
    pub(crate) fn service(&self, url: &HttpUrl) -> ServiceName {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((service, _)) = hosts.iter().find(|(_, host)| host.name == url.host && host.port == url.port) {
            return service.clone();
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let label: String = url.host.chars().take(40).map(plain).collect();
        // `a.b` and `a-b` are two hosts with one label.
        let service = (0..).find_map(|n: usize| {
            let suffix = if n == 0 { String::new() } else { format!("-{n}") };
            let name: ServiceName = format!("url-{label}-{}{suffix}", url.port).parse().ok()?;
            (!hosts.contains_key(&name)).then_some(name)
        });
        let service = service.expect("the label holds only letters, digits and dashes, and numbers do not run out");
        let host = Host { name: url.host.clone(), port: url.port, known: Arc::default() };
        hosts.insert(service.clone(), host);
        service
    }

    /// Looks a host up; the version grows when its addresses changed.
    async fn look_up(&self, service: &ServiceName) -> Result<Arc<Instances>, DiscoveryError> {
        let (name, port) = match self.0.lock().unwrap_or_else(PoisonError::into_inner).get(service) {
            Some(host) => (host.name.clone(), host.port),
            None => return Ok(Arc::default()),
        };
        let found = lookup_host((name, port)).await.map_err(|error| DiscoveryError::Unavailable(error.to_string()))?;
        let mut addresses: Vec<SocketAddr> = found.take(MAX_ADDRESSES).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(host) = hosts.get_mut(service) else { return Ok(Arc::default()) };
        if host.known.version == 0 || !host.known.all.iter().map(|i| i.address).eq(addresses.iter().copied()) {
            let instance = |address: SocketAddr| Instance {
                id: address.to_string().parse().expect("an address has no `/` and no spaces"),
                service: service.clone(),
                address,
                state: InstanceState::Up,
                version: String::new(),
                metadata: BTreeMap::new(),
            };
            let all = addresses.into_iter().map(instance).collect();
            host.known = Arc::new(Instances { version: host.known.version + 1, all });
        }
        Ok(host.known.clone())
    }
}

impl Discovery for Addresses {
    fn resolve(&self, service: &ServiceName) -> Later<'_, Result<Arc<Instances>, DiscoveryError>> {
        let service = service.clone();
        Box::pin(async move { self.look_up(&service).await })
    }

    fn watch(&self, service: &ServiceName, seen: u64) -> Later<'_, Result<Arc<Instances>, DiscoveryError>> {
        let service = service.clone();
        Box::pin(async move {
            if seen > 0 {
                sleep(LOOKUP_EVERY).await;
            }
            self.look_up(&service).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_host_and_port_is_a_service() {
        let addresses = Addresses::default();
        let url = |host: &str, port| HttpUrl { tls: false, host: host.into(), port, path: String::new() };
        let first = addresses.service(&url("127.0.0.1", 8080));
        assert_eq!(first.as_str(), "url-127-0-0-1-8080");
        assert_eq!(addresses.service(&url("127.0.0.1", 8080)), first);
        assert_eq!(addresses.service(&url("127-0-0-1", 8080)).as_str(), "url-127-0-0-1-8080-1");
        assert_ne!(addresses.service(&url("127.0.0.1", 8081)), first);
        let known = addresses.watch(&first, 0).await.unwrap();
        assert_eq!((known.version, known.all.len()), (1, 1));
        assert_eq!(known.all[0].address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(addresses.resolve(&first).await.unwrap().version, 1);
    }
}
