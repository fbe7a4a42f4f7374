//! Calls services and the platform over plain HTTP/1.1: time-outs, careful retries, trace and deadline passed on.
//!
//! ```
//! # async fn example() -> Result<(), ballet_client::ClientError> {
//! use ballet_client::Client;
//!
//! let client = Client::new("orders");
//! let answer = client.get("http://127.0.0.1:8080/products/espresso-cup").send().await?;
//! if answer.status == 200 {
//!     let product: serde_json::Value = answer.json()?;
//!     println!("{}", product["name"]);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`RemoteEvents`], [`RemoteDiscovery`] and [`RemoteWorkflows`] are the core's seams over the platform's HTTP API.
//!
//! It deliberately speaks no TLS (the sidecar does), balances nothing and keeps no breaker: that is the sidecar's part.

mod client;
mod discovery;
mod error;
mod events;
mod workflows;

pub use client::{Client, Request, Response, Retries};
pub use discovery::RemoteDiscovery;
pub use error::{CODES, ClientError};
pub use events::RemoteEvents;
pub use workflows::RemoteWorkflows;
