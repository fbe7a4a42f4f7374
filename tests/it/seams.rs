//! The seams over the wire: the suites that every part's own handle passes, against the real binary over HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;

use ballet_client::{Client, RemoteDiscovery, RemoteEvents, RemoteWorkflows};
use ballet_core::conformance::{self, Registrar};
use ballet_core::{Instance, InstanceState, Later};
use ballet_tests::{Ballet, Reply, request};
use serde_json::json;

use crate::small::Small;

const MANIFEST: &str = "
system: seams
services:
  echo: { run: <service> }
events:
  topics: { conformance.happened: {} }
workflows:
  conformance:
    steps:
      - wait: { task: conformance_wait }
";

fn up() -> (Small, Ballet) {
    let small = Small::new(MANIFEST);
    let system = small.up();
    (small, system)
}

fn platform(system: &Ballet) -> (Client, String) {
    (Client::new("conformance"), format!("http://{}", system.platform))
}

/// Registers over the registry's own face.
struct OverHttp(std::net::SocketAddr);

impl OverHttp {
    async fn send(&self, method: &str, instance: &Instance) -> Reply {
        let path = format!("/ballet/v1/services/{}/{}", instance.service, instance.id);
        request(self.0, method, &path).json(json!({"address": instance.address, "lease": "30s"})).send().await
    }
}

impl Registrar for OverHttp {
    fn register(&self, instance: Instance) -> Later<'_, ()> {
        Box::pin(async move { drop(self.send("PUT", &instance).await.expect(201)) })
    }

    fn deregister(&self, instance: &Instance) -> Later<'_, ()> {
        let instance = instance.clone();
        Box::pin(async move { drop(self.send("DELETE", &instance).await.expect(204)) })
    }
}

#[tokio::test]
async fn discovery_over_http_keeps_its_contract() {
    let (_small, system) = up();
    let (client, url) = platform(&system);
    let instance = Instance {
        id: "conformance-1".parse().expect("a valid id"),
        service: conformance::some_service(),
        address: "127.0.0.1:9".parse().expect("a valid address"),
        state: InstanceState::Up,
        version: "v1".into(),
        metadata: BTreeMap::new(),
    };
    let seam = Arc::new(RemoteDiscovery::new(client, &url));
    conformance::discovery(seam, &OverHttp(system.platform), instance).await;
}

#[tokio::test]
async fn events_over_http_keep_their_contract() {
    let (_small, system) = up();
    let (client, url) = platform(&system);
    let topic = "conformance.happened".parse().expect("a valid topic");
    conformance::events(Arc::new(RemoteEvents::new(client, &url)), topic).await;
}

#[tokio::test]
async fn workflows_over_http_keep_their_contract() {
    let (_small, system) = up();
    let (client, url) = platform(&system);
    let name = "conformance".parse().expect("a valid name");
    conformance::workflows(Arc::new(RemoteWorkflows::new(client, &url)), name).await;
}
