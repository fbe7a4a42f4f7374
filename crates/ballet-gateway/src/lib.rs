//! The way in: routes, access, rate limits, and what becomes of each request.
//!
//! ```no_run
//! use std::sync::Arc;
//! use ballet_core::Fixed;
//! use ballet_gateway::{Gateway, GatewayConfig, policy_table};
//! use ballet_manifest::{LoadOptions, load};
//! use ballet_proxy::Upstreams;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let loaded = load(&LoadOptions { file: "ballet.yaml".into(), ..LoadOptions::default() })?;
//! let discovery = Arc::new(Fixed::new([("orders".parse()?, "127.0.0.1:9000".parse()?)]));
//! let upstreams = Upstreams::new("gateway", discovery, policy_table(&loaded.manifest), 1);
//! let gateway = Gateway::start(&loaded.manifest, GatewayConfig::new(upstreams))?;
//! println!("{}", gateway.explain("GET", "/orders/7").steps.join("\n"));
//! # Ok(())
//! # }
//! ```
//!
//! It deliberately holds no HTTP codec, no sockets to services and no breakers: those are `ballet-proxy`'s. It never
//! talks to a database. `workflow:`, `topic:` and `migrate:` targets are refused at load.

mod access;
mod access_log;
mod addresses;
mod explain;
mod files;
mod gateway;
mod handler;
mod issuer;
mod jwt;
mod limit;
mod merge;
mod plan;
mod refusal;
mod request;
mod route;

pub use access_log::{LogTarget, MAX_BUFFER, MAX_LOG_FILE};
pub use explain::{ExplainedAccess, ExplainedCall, Explanation};
pub use gateway::{Gateway, GatewayConfig, StartError, Stats};
pub use plan::{LoadError, check_routes, policy_table};
pub use refusal::CODES;
pub use route::{MAX_PARAMETERS, RouteError};
