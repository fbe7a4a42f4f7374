//! The driver's front: opens the file, starts its threads, hands them the requests.
//!
//! ```text
//! commit, open, claim, close ──queue──> writer thread ──> its connection     (one, so order is the calls' order)
//! scan ─────────────────────────queue──> reader threads ──> a connection each (WAL: never waits for the writer)
//! ```

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use ballet_core::{Clock, SystemClock};
use ballet_store::{Answer, Batch, Epoch, Journal, Owner, Page, Query, Reply, Shard, StoreError, Table};

use crate::{reader, writer};

/// Version of the file's layout, kept in `user_version`. A file with a later one is refused.
pub const FORMAT: i64 = 1;

/// "Blt1" in `application_id`: says whose file it is, to us and to file(1).
const APPLICATION_ID: i64 = 0x426c_7431;

/// How a [`Sqlite`] is opened.
#[derive(Clone)]
pub struct Options {
    /// Threads that read, each with a connection. Default: 2.
    pub readers: usize,
    /// Requests that may wait for the writer, and scans that may wait for readers. More are refused with `Failed`, and
    /// nothing is written. Default: 16,384.
    pub queue: usize,
    /// Batches that one transaction may hold. Default: 1,024.
    pub group: usize,
    /// Page cache of each connection, in bytes; filled only as pages are touched. Default: 16 MiB.
    pub cache_bytes: usize,
    /// Pages in the log before a commit carries them over to the database file. Default: 4,000 (16 MB), which keeps that
    /// commit's stall to some ten milliseconds on an SSD.
    pub checkpoint_pages: u32,
    /// This process alone uses the file: whatever process held shards before has ended, so its leases are void at once.
    /// Epochs still grow. Default: false.
    pub sole: bool,
    /// Tells when leases end. Default: the machine's clock.
    pub clock: Arc<dyn Clock>,
}

/// What the writer did since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Batches that were written.
    pub batches: u64,
    /// Transactions that carried them, and claims: each is one sync of the disk.
    pub commits: u64,
    /// Batches that were refused, for whatever reason.
    pub refused: u64,
}

/// A journal in a SQLite file.
///
/// Dropped without [`Sqlite::close`], it still writes what was queued, but nobody waits for that.
pub struct Sqlite {
    writer: mpsc::Sender<writer::Ask>,
    readers: mpsc::Sender<(Query, Answer<Page>)>,
    counters: Arc<Counters>,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) batches: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            readers: 2,
            queue: 16_384,
            group: 1024,
            cache_bytes: 16 << 20,
            checkpoint_pages: 4000,
            sole: false,
            clock: Arc::new(SystemClock),
        }
    }
}

impl Sqlite {
    /// Opens the file, made with its directories if it is not there. Blocks for some milliseconds.
    ///
    /// # Errors
    /// `Shape` for a file of a later version or of another program, `Failed` for what the disk refuses.
    pub fn open(file: &Path, options: Options) -> Result<Self, StoreError> {
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory)
                .map_err(|e| StoreError::Failed(format!("cannot make `{}`: {e}", directory.display())))?;
        }
        let connection = connect(file, &options)?;
        prepare(file, &connection, options.sole)?;
        let counters = Arc::new(Counters::default());

        let (readers, scans) = mpsc::channel(options.queue);
        let scans = Arc::new(Mutex::new(scans));
        for n in 0..options.readers.max(1) {
            let (connection, scans) = (connect(file, &options)?, scans.clone());
            connection.execute_batch("PRAGMA query_only=1").map_err(failed)?;
            spawn(format!("sqlite-read-{n}"), move || reader::run(&connection, &scans))?;
        }
        let (writer, asked) = mpsc::channel(options.queue);
        let counted = counters.clone();
        spawn("sqlite-write".into(), move || writer::run(&connection, asked, &options, &counted))?;
        Ok(Self { writer, readers, counters })
    }

    /// Writes what was queued before, carries the log over to the database file and ends the writer. Later requests
    /// answer `Unknown`.
    pub fn close(&self) -> Reply<()> {
        self.ask(writer::Ask::Close)
    }

    /// What the writer did so far.
    pub fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            batches: read(&self.counters.batches),
            commits: read(&self.counters.commits),
            refused: read(&self.counters.refused),
        }
    }

    fn ask<T>(&self, make: impl FnOnce(Answer<T>) -> writer::Ask) -> Reply<T> {
        let (answer, reply) = Reply::new();
        // A stopped writer drops the answer, and the reply says so.
        if let Err(TrySendError::Full(ask)) = self.writer.try_send(make(answer)) {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            ask.refuse(full());
        }
        reply
    }
}

impl Journal for Sqlite {
    fn open(&self, tables: &[&'static Table]) -> Reply<()> {
        self.ask(|answer| writer::Ask::Open(tables.to_vec(), answer))
    }

    fn commit(&self, batch: Batch) -> Reply<()> {
        self.ask(|answer| writer::Ask::Commit(batch, answer))
    }

    fn scan(&self, query: Query) -> Reply<Page> {
        let (answer, reply) = Reply::new();
        if let Err(TrySendError::Full((_, answer))) = self.readers.try_send((query, answer)) {
            let _ = answer.send(Err(full()));
        }
        reply
    }

    fn claim(&self, shards: &[Shard], owner: &Owner, lease: Duration) -> Reply<Vec<(Shard, Epoch)>> {
        self.ask(|answer| writer::Ask::Claim(shards.to_vec(), owner.into(), lease, answer))
    }
}

/// What SQLite says, as a refusal.
pub(crate) fn failed(error: rusqlite::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

fn full() -> StoreError {
    StoreError::Failed("too many requests wait for the disk".into())
}

fn connect(file: &Path, options: &Options) -> Result<Connection, StoreError> {
    let connect = || -> rusqlite::Result<Connection> {
        let connection = Connection::open(file)?;
        // The checkpoint size is per connection, and only the writer's counts. fullfsync: macOS's fsync does not reach
        // the disk; elsewhere it means nothing.
        connection.execute_batch(&format!(
            "PRAGMA busy_timeout=10000; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA fullfsync=1;
             PRAGMA wal_autocheckpoint={}; PRAGMA cache_size=-{}",
            options.checkpoint_pages,
            options.cache_bytes / 1024,
        ))?;
        Ok(connection)
    };
    connect().map_err(|e| StoreError::Failed(format!("cannot open `{}`: {e}", file.display())))
}

/// Checks whose file it is, and makes our own tables in a new one.
fn prepare(file: &Path, connection: &Connection, sole: bool) -> Result<(), StoreError> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(failed);
    let whole = || connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
    let (id, format) = (pragma("application_id")?, pragma("user_version")?);
    if id != APPLICATION_ID && (id != 0 || format != 0 || whole().map_err(failed)? != 0) {
        return Err(StoreError::Shape(format!("`{}` is the database of another program", file.display())));
    }
    if format > FORMAT {
        let path = file.display();
        let why = format!("`{path}` has format {format} of a later version of Ballet; this one knows up to {FORMAT}");
        return Err(StoreError::Shape(why));
    }
    let void = if sole { "UPDATE journal_shard SET until=0;" } else { "" };
    connection
        .execute_batch(&format!(
            "BEGIN IMMEDIATE;
             PRAGMA application_id={APPLICATION_ID};
             PRAGMA user_version={FORMAT};
             CREATE TABLE IF NOT EXISTS journal_table(name TEXT PRIMARY KEY, shape TEXT NOT NULL) STRICT;
             CREATE TABLE IF NOT EXISTS journal_shard(
                 id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, owner TEXT NOT NULL, until INTEGER NOT NULL) STRICT;
             {void}
             COMMIT"
        ))
        .map_err(failed)
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
    // The thread ends when its queue's sender is dropped or the writer is closed.
    let spawned = thread::Builder::new().name(name).spawn(work);
    spawned.map(drop).map_err(|e| StoreError::Failed(format!("cannot start a thread: {e}")))
}
