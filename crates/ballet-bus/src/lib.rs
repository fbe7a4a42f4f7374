//! Ballet's bus: topics with consumer groups, push to services and workflows, retry, dead letters. An acknowledged event is
//! on disk.
//!
//! ```
//! use std::sync::Arc;
//!
//! use ballet_bus::{Bus, Embedded, TopicConfig};
//! use ballet_core::{Event, Events, SystemClock};
//! use ballet_store::Memory;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let clock = Arc::new(SystemClock);
//! let broker = Embedded::open(Arc::new(Memory::default()), clock.clone()).await?;
//! let bus = Bus::new(broker, clock, 1);
//! bus.declare(vec![TopicConfig::new("order.placed".parse()?)]).await?;
//! let event = Event::new("order.placed".parse()?, "orders", serde_json::json!({"id": "7"})).subject("7");
//! let places = bus.handle().publish(vec![event]).await?;
//! assert_eq!(places[0].0, 1);
//! # Ok(()) }
//! ```
//!
//! [`Embedded`] is the broker that needs nothing but a journal; [`Bus`] works over any [`ballet_store::Broker`] and owns the
//! one layer of retry and dead letters. Others reach it through [`Handle`] or [`http::router`].
//!
//! It deliberately promises at least once and no more: the inbox of the service makes an effect happen once. It does not
//! transform events, and it does not route by content.

mod bus;
mod config;
mod embedded;
mod engine;
mod error;
mod handle;
pub mod http;
mod push;

pub use bus::Bus;
pub use config::{Config, Redelivery, Subscription, Target, TopicConfig};
pub use embedded::{Embedded, SHARD};
pub use engine::Engine;
pub use error::{BusError, CODES};
pub use handle::{GroupInfo, Handle, MAX_EVENT_BYTES, MAX_LEASE, MAX_PUBLISH, MAX_PULL, MAX_WAIT, TopicInfo};
