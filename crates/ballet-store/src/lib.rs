//! What Ballet asks of a database or a broker: two seams, [`Journal`] and [`Broker`], and no more.
//!
//! ```
//! use ballet_store::{Batch, Journal, Kind, Memory, Op, Query, Table, row};
//!
//! static STOCK: Table = Table { name: "stock", key: 1, columns: &[("id", Kind::Text), ("count", Kind::Int)], indexes: &[] };
//! # async fn example() -> Result<(), ballet_store::StoreError> {
//! let journal = Memory::default();
//! journal.open(&[&STOCK]).await?;
//! journal.commit(Batch::of(vec![Op::Put(&STOCK, row!["cup", 3])])).await?;
//! let page = journal.scan(Query::of(&STOCK).eq(0, "cup")).await?;
//! assert_eq!(page.rows, vec![row!["cup", 3]]);
//! # Ok(()) }
//! ```
//!
//! It deliberately knows no SQL dialect, opens no file and no socket: that is the drivers' work. Outbox and inbox are not
//! here either: a service writes them in its own transaction.

mod broker;
mod error;
mod journal;
mod memory;
mod memory_broker;
pub mod sql;
mod table;

#[cfg(feature = "conformance")]
pub mod conformance;

pub use broker::{Broker, Capabilities, DeadLetter, GroupState, Handed, Position, Support, Take, TopicSpec};
pub use error::{CODES, StoreError};
pub use journal::{Answer, Batch, By, Epoch, Fence, Filter, Journal, Op, Owner, Page, Query, Reply, Shard};
pub use memory::Memory;
pub use memory_broker::MemoryBroker;
pub use table::{Kind, MAX_INDEXED_BYTES, Row, Table, Value};
