//! The sidecar: one port beside each service instance, through which it calls others, publishes events and asks about itself.
//!
//! It speaks a frozen subset of Dapr's HTTP API. One process hosts the sidecars of all instances of a laptop ([`Host`]); the
//! port is the identity.
//!
//! | request | does |
//! |---|---|
//! | any verb `/v1.0/invoke/{service}/method/{path}` | calls a service; `$<NAME>_URL` is this up to `method` |
//! | any verb and path with a header `dapr-app-id`, or a `Host` of `{service}.ballet.localhost` | calls that service |
//! | POST or PUT `/v1.0/publish/{pubsub}/{topic}` | publishes; 204 once the event is on disk |
//! | GET `/v1.0/healthz`, `/v1.0/healthz/outbound`, `/v1.0/metadata`; PUT `/v1.0/metadata/{key}` | about itself |
//!
//! Events that the app asks for at `GET /dapr/subscribe` are pulled for the group named after the service and posted to it.
//!
//! ```no_run
//! # async fn up(config: ballet_sidecar::HostConfig) -> std::io::Result<()> {
//! let host = ballet_sidecar::Host::new(config);
//! let orders = "orders".parse().expect("a name");
//! let port = host.open(&orders, 1).await?;
//! println!("INVENTORY_URL=http://127.0.0.1:{port}/v1.0/invoke/inventory/method");
//! # Ok(()) }
//! ```
//!
//! Outbound calls never wait for the app. It deliberately has no state store, secrets or gRPC yet: paths of those answer 404 in
//! Dapr's form.

mod deliver;
mod envelope;
mod handler;
mod host;

use ballet_core::{CodeEntry, ErrorCode};

pub use host::{Host, HostConfig};

/// The sidecar's rows of the error table.
pub static CODES: &[CodeEntry] = &[
    CodeEntry {
        code: ErrorCode("SC001"),
        title: "no such sidecar API",
        cause: "the path is none of those that this sidecar serves",
        remedy: "call a service at `$<NAME>_URL`, publish at `/v1.0/publish/bus/{topic}`; the table stands in the sidecar's reference",
    },
    CodeEntry {
        code: ErrorCode("SC002"),
        title: "this service may not call that one",
        cause: "`calls:` of the service in the manifest does not name the other one",
        remedy: "add it to `calls:`, or leave `calls:` out to allow all",
    },
    CodeEntry {
        code: ErrorCode("SC003"),
        title: "not an event",
        cause: "the published body or its content type makes no CloudEvent, or the topic is unknown",
        remedy: "publish JSON to a topic that the manifest declares under `events.topics`",
    },
    CodeEntry {
        code: ErrorCode("SC004"),
        title: "wrong sidecar token",
        cause: "a token was sent, and it is not this instance's",
        remedy: "send the value of `$BALLET_TOKEN`, or none on loopback",
    },
];
