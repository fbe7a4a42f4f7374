//! Service registry: who runs where, and whether it may be called.
//!
//! Leases are exact: an instance whose heartbeats stop is `Down` the moment its lease ends, and everyone who watches is
//! told at once. A registration is acknowledged when it is on disk; after a restart the list is there again, every lease
//! with one full length from the restart.
//!
//! ```
//! use std::sync::Arc;
//!
//! use ballet_core::{Discovery, Instance, InstanceState, SystemClock};
//! use ballet_registry::{Engine, HttpProbe, Registration};
//! use ballet_store::Memory;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let journal = Arc::new(Memory::default());
//! let (engine, registry) = Engine::open(journal, Arc::new(SystemClock), Arc::new(HttpProbe)).await?;
//! tokio::spawn(engine.run());
//!
//! let orders = Instance {
//!     id: "orders-1".parse()?,
//!     service: "orders".parse()?,
//!     address: "127.0.0.1:8080".parse()?,
//!     state: InstanceState::Up,
//!     version: "v1".into(),
//!     metadata: Default::default(),
//! };
//! registry.register(Registration::new(orders)).await?;
//! assert_eq!(registry.resolve(&"orders".parse()?).await?.up().count(), 1);
//! # Ok(()) }
//! ```
//!
//! Who owns what: one [`Engine`] task owns the lease table and writes the journal; each health check is a task of the
//! engine's that sends it verdicts; [`Handle`]s send commands and read published snapshots without asking the task.
//!
//! It deliberately gossips with nobody: several replicas will share one journal. The Eureka, Consul and DNS faces will
//! stand beside the native one in [`http`].

mod engine;
mod error;
mod handle;
pub mod http;
pub mod leases;
mod probe;
mod published;
mod registration;
mod rows;

pub use engine::Engine;
pub use error::{CODES, RegistryError};
pub use handle::{Handle, Registered, Stats};
pub use probe::{HttpProbe, Probe};
pub use registration::{HealthCheck, Registration};

/// What the registry holds at most, and how long it waits.
pub mod limits {
    use std::time::Duration;

    /// Instances known at once; a registration beyond them is refused.
    pub const INSTANCES: usize = 50_000;
    /// Services known at once, those that are only watched included.
    pub const SERVICES: usize = 10_000;
    /// Bytes of an instance's version and metadata together.
    pub const METADATA_BYTES: usize = 8 * 1024;
    /// Bytes of a request's body over HTTP.
    pub const BODY_BYTES: usize = 64 * 1024;
    /// The shortest lease.
    pub const LEASE_MIN: Duration = Duration::from_secs(1);
    /// The longest lease.
    pub const LEASE_MAX: Duration = Duration::from_secs(24 * 3600);
    /// The lease over HTTP when none is given; and the grace after a restart of whoever has no lease.
    pub const LEASE: Duration = Duration::from_secs(30);
    /// An instance whose lease ran out is shown as `Down` this long, then it is removed.
    pub const LINGER: Duration = Duration::from_secs(60);
    /// The longest wait of a watch; then it answers without a change.
    pub const WATCH: Duration = Duration::from_secs(60);
    /// Watches parked at once; further ones are answered without waiting.
    pub const WATCHES: usize = 10_000;
    /// Renewals and health are written so often at most.
    pub const FLUSH: Duration = Duration::from_secs(1);
    /// Rows of one such commit; what is left over goes with the next.
    pub const FLUSH_ROWS: usize = 5_000;
    /// Commands that wait for the engine; further callers wait in their own task.
    pub const COMMANDS: usize = 4_096;
    /// Health checks under way at once; the others wait for their turn.
    pub const PROBES: usize = 256;
    /// Commits under way; at that many the engine takes no further command.
    pub const COMMITS: usize = 4_096;
}
