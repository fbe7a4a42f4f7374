//! Builds, starts, watches, drains and stops the processes of a system's services.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use ballet_supervisor::{Config, ServiceSpec, StateDir, Supervisor, progress};
//!
//! # async fn up() -> Result<(), ballet_supervisor::StateError> {
//! let state = Arc::new(StateDir::open(".ballet")?);
//! let orders = ServiceSpec::run("orders".parse().expect("a name"), vec!["shop-orders".into()], ".");
//! let handle = Supervisor::start(Config::new("shop", "."), state, vec![orders], Arc::new(()), progress::stderr()).await?;
//! handle.down_requested().await;
//! handle.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! Each instance runs under a [`shim`], so nothing outlives the supervisor's own death. What an instance's life looks like is decided
//! by a pure state machine; a task per instance performs it, and a task per service prepares it and keeps the right number of instances.
//! The [`Observer`] is asked for each environment and told of each change.
//!
//! It deliberately knows nothing of registry, sidecars or the manifest: the binary brings them together.

pub mod http;
pub mod progress;
pub mod shim;

mod error;
mod instance;
mod logs;
mod machine;
mod ports;
mod process;
mod procs;
mod service;
mod spec;
mod state;
mod supervisor;

pub use error::{CODES, ControlError, StateError};
pub use logs::{LogLine, MAX_LINE_BYTES, MAX_TAIL_LINES, Tail};
pub use machine::State;
pub use spec::{
    Config, Health, InstanceStatus, Launch, Limits, MAX_INSTANCES, Observer, Runs, ServiceSpec, ServiceStatus,
    Snapshot, Store,
};
pub use state::{FORMAT, Running, StateDir, running};
pub use supervisor::{Handle, Supervisor};
