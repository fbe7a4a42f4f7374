//! Ballet's journal in one SQLite file: one thread writes and commits together what waits together, a few threads read.
//!
//! ```
//! use ballet_sqlite::{Options, Sqlite};
//! use ballet_store::{Batch, Journal, Kind, Op, Query, Table, row};
//!
//! static STOCK: Table = Table { name: "stock", key: 1, columns: &[("id", Kind::Text), ("count", Kind::Int)], indexes: &[] };
//! # fn main() -> Result<(), ballet_store::StoreError> {
//! # let directory = tempfile::tempdir().expect("a directory");
//! let journal = Sqlite::open(&directory.path().join("journal.db"), Options::default())?;
//! journal.open(&[&STOCK]).wait()?;
//! journal.commit(Batch::of(vec![Op::Put(&STOCK, row!["cup", 3])])).wait()?;
//! assert_eq!(journal.scan(Query::of(&STOCK)).wait()?.rows, [row!["cup", 3]]);
//! journal.close().wait()
//! # }
//! ```
//!
//! WAL mode with `synchronous=FULL`: a commit is on disk when it answers. The order of the calls is the order of the
//! writes. The journal of one machine's one process; several processes want the Postgres driver.
//!
//! It deliberately knows nothing of services' own databases: those belong to the services.

mod reader;
mod sqlite;
mod writer;

pub use sqlite::{FORMAT, Options, Sqlite, Stats};
