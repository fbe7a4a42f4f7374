//! Runs workflows: Netflix Conductor's REST API in front, durable sagas behind.
//!
//! ```no_run
//! # async fn example(journal: std::sync::Arc<dyn ballet_store::Journal>, upstreams: ballet_proxy::Upstreams) -> Result<(), Box<dyn std::error::Error>> {
//! use ballet_core::{Start, Workflows};
//! use ballet_orchestrator::{Config, Engine, Existing};
//! use serde_json::json;
//!
//! let handle = Engine::start(Config::new(journal, upstreams, 1)).await?;
//! let task = json!({"name": "greet", "taskReferenceName": "greet", "type": "SIMPLE"});
//! handle.register_definition(&json!({"name": "hello", "tasks": [task]}), Existing::NextVersion).await?;
//! let started = handle.start(Start::new("hello".parse()?, json!({"who": "world"}))).await?;
//! let routes: axum::Router = ballet_orchestrator::http::router(handle);
//! # Ok(()) }
//! ```
//!
//! State, attempts, timers and history of a step are one commit; replies and hand-outs come after it. What a step may do
//! to money is fixed by the saga contract, all of it in `decide`. Timeouts count time that an engine was seen running.
//!
//! It deliberately runs nobody's code: steps are calls to services or tasks that workers poll. Forks, switches, loops and
//! sub-workflows are refused at registration until they come.

mod calls;
mod catalog;
mod codes;
mod command;
mod decide;
mod document;
mod engine;
mod expr;
mod handle;
pub mod http;
mod manifest;
mod outcome;
mod plan;
mod queue;
mod search;
mod state;
mod tables;

pub use catalog::Existing;
pub use codes::CODES;
pub use command::QueueState;
pub use decide::Verdict;
pub use engine::{Config, Engine};
pub use handle::{Handle, MAX_POLL_WAIT, TaskUpdate};
pub use manifest::{check, definition};
pub use search::{Found, MAX_SCANNED, Search};
