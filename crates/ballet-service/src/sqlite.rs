//! The store: one SQLite file, one writer thread, a few readers.
//!
//! ```text
//! write(closure) ──queue──▶ writer thread: BEGIN IMMEDIATE · closure · closure · … · projections · COMMIT ──▶ answers
//! read(closure)  ──────────▶ a read-only connection on a blocking thread
//! ```
//!
//! Closures that wait share a transaction and its sync; each runs in a savepoint of its own, so that one which fails takes
//! nothing of its neighbours along. Answers go out after the commit. Several processes may share the file: `BEGIN IMMEDIATE`
//! waits for its turn.
//!
//! What may be lost ([`Store::write_unsynced`]) rides along in a transaction with ordinary closures, and is synced with
//! them; only a transaction with nothing else in it is committed without a sync. The log is one file that is written in
//! order: the next sync of whichever process covers it too.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use ballet_core::{Clock, Event, Timestamp, TopicName, TraceContext};

use crate::projection::Projector;
use crate::request::{current_trace, on_thread};
use crate::{Error, Result};

/// Closures that may wait for the writer; more wait at the caller.
const QUEUE: usize = 1024;
/// Closures that share one transaction.
const BATCH: usize = 64;
/// Readers at work at once.
const READERS: usize = 4;
/// How long another process may hold the file.
const BUSY: Duration = Duration::from_secs(5);
/// How long to wait for another instance that migrates.
const MIGRATION_BUSY: Duration = Duration::from_secs(60);
/// Largest event; the bus takes no larger one.
const EVENT_BYTES: usize = 256 << 10;
/// The lease of the relay.
pub(crate) const RELAY: &str = "relay";
/// How long the relay's lease holds.
pub(crate) const RELAY_LEASE: Duration = Duration::from_secs(10);

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("cannot open the store")]
    Open(#[source] Error),
    #[error("migration `{0}` reads differently than when it was applied")]
    Changed(String),
    #[error("migration `{0}` failed")]
    Migration(String, #[source] rusqlite::Error),
    #[error("the seed failed")]
    Seed(#[source] Error),
}

/// The service's own database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    jobs: mpsc::Sender<Box<dyn Job>>,
    readers: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    file: std::path::PathBuf,
    committed: watch::Receiver<u64>,
    relay: Arc<Notify>,
    tasks: Arc<Tasks>,
}

/// What tasks sleep on, by their names; see [`Tx::wake`].
#[derive(Default)]
struct Tasks(Mutex<BTreeMap<&'static str, Arc<Notify>>>);

/// A transaction under way. Runs SQL as a `rusqlite::Connection` does (never `COMMIT` or `ROLLBACK` in it).
pub struct Tx<'a> {
    db: &'a Connection,
    now: Timestamp,
    service: &'a str,
    trace: Option<TraceContext>,
    /// Whether what runs now has its sync for certain.
    synced: bool,
    notes: &'a Notes,
}

/// What is to be done once the transaction is committed.
#[derive(Default)]
struct Notes {
    published: Cell<bool>,
    wake: RefCell<BTreeSet<&'static str>>,
}

impl Deref for Tx<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.db
    }
}

impl Tx<'_> {
    /// The time to stamp rows with; one for the whole transaction.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Publishes an event: writes it to the outbox, from where the relay brings it to the bus once this transaction is
    /// committed. `subject` is the id of what it happened to; events with one subject arrive in order.
    ///
    /// # Errors
    /// The topic's name is none, the write is [unsynced](Store::write_unsynced), or the store fails.
    pub fn publish(&self, topic: &str, subject: &str, data: &(impl Serialize + ?Sized)) -> Result<()> {
        let topic: TopicName = topic.parse().map_err(Error::internal)?;
        self.put(Event::new(topic, self.service, serde_json::to_value(data)?).subject(subject))
    }

    /// Writes an event to the outbox. Absent time and trace are filled in; the extension `sequence` becomes the outbox'
    /// number of the event, so that readers can tell older from newer (see [`Tx::is_newer`]).
    ///
    /// # Errors
    /// The write is [unsynced](Store::write_unsynced), or the store fails.
    pub fn put(&self, mut event: Event) -> Result<()> {
        if !self.synced {
            return Err(Error::internal("an unsynced write publishes nothing: the event could be lost"));
        }
        event.time.get_or_insert_with(|| self.now.to_string());
        event.trace = event.trace.or(self.trace);
        let next = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0) + 1";
        let id: i64 = self.db.prepare_cached(next)?.query_row([], |row| row.get(0))?;
        event.extensions.insert("sequence".into(), format!("{id:016}"));
        let json = event.to_json();
        // What the bus would refuse must not get as far as the outbox.
        Event::from_json(&json).map_err(Error::internal)?;
        let text = json.to_string();
        if text.len() > EVENT_BYTES {
            return Err(Error::Internal(format!("an event of {} bytes, more than {EVENT_BYTES}", text.len())));
        }
        self.db
            .prepare_cached("INSERT INTO outbox (id, topic, key, event, created_at) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![
            id,
            event.topic.as_str(),
            event.key().unwrap_or_default(),
            event.to_json().to_string(),
            self.now.millis()
        ])?;
        self.notes.published.set(true);
        Ok(())
    }

    /// Whether no newer event of the same source and subject was seen by `reader`; remembers it. For handlers that keep
    /// only the latest state of something: events may come twice, and again after newer ones.
    ///
    /// # Errors
    /// The store fails.
    pub fn is_newer(&self, reader: &str, event: &Event) -> Result<bool> {
        let Some(sequence) = event.extensions.get("sequence") else { return Ok(true) };
        let changed = self
            .db
            .prepare_cached(
                "INSERT INTO seen VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET sequence = excluded.sequence
                 WHERE excluded.sequence > sequence",
            )?
            .execute(params![reader, event.source, event.subject.as_deref().unwrap_or_default(), sequence])?;
        Ok(changed > 0)
    }

    /// Wakes the task that waits in [`Store::woken`] under this name, in this process, once this transaction is committed.
    /// It may be woken for nothing: it looks itself whether there is something to do.
    pub fn wake(&self, task: &'static str) {
        self.notes.wake.borrow_mut().insert(task);
    }

    /// Takes or extends a lease that only one instance of the service may hold; `false` if another holds it.
    ///
    /// # Errors
    /// The store fails.
    pub fn claim(&self, lease: &str, owner: &str, lasts: Duration) -> Result<bool> {
        Ok(claim(self.db, lease, owner, self.now, lasts)?)
    }

    /// Runs `work` in a savepoint: what it wrote is taken back if it fails.
    ///
    /// # Errors
    /// Those of `work`, and of the store.
    pub fn nested<T>(&self, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        self.db.prepare_cached("SAVEPOINT nested")?.execute([])?;
        let published = self.notes.published.get();
        let out = work(self);
        if out.is_err() {
            self.notes.published.set(published);
            self.db.prepare_cached("ROLLBACK TO nested")?.execute([])?;
        }
        self.db.prepare_cached("RELEASE nested")?.execute([])?;
        out
    }
}

impl Store {
    /// Runs `work` in one transaction on the writer thread; done when it is on disk. If `work` fails, nothing of it stays.
    /// It should be short: other writers wait. Cancel safe in that a dropped call is either done or not, never by half.
    ///
    /// # Errors
    /// Those of `work`; [`Error::Busy`] when another process holds the file for longer than 5 s; those of the store.
    pub async fn write<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T> + Send + 'static,
    {
        self.queue(work, true).await
    }

    /// As [`Store::write`], for what may be lost: everybody sees it when this returns, but it may be on disk only with the
    /// next ordinary write. A crash of the process loses nothing; a crash of the machine may take back what was written so
    /// since the last ordinary write, the latest first. For what is done again or found out again then: that something was
    /// sent which may be sent twice, a lease that only processes on this machine hold, the deletion of what is old.
    ///
    /// # Errors
    /// Those of [`Store::write`]. `work` cannot publish.
    pub async fn write_unsynced<T, F>(&self, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T> + Send + 'static,
    {
        self.queue(work, false).await
    }

    async fn queue<T, F>(&self, work: F, synced: bool) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Work { work: Some(work), out: None, reply, trace: current_trace(), synced };
        let stopped = || Error::Busy("the service is stopping".into());
        self.shared.jobs.send(Box::new(job)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Runs `query` on a read-only connection: one consistent picture, everything that was committed before.
    ///
    /// # Errors
    /// Those of `query` and of the store.
    pub async fn read<T, F>(&self, query: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T> + Send + 'static,
    {
        let permit = self.shared.permits.clone().acquire_owned().await.map_err(Error::internal)?;
        let shared = self.shared.clone();
        let trace = current_trace();
        let run = move || {
            let _permit = permit;
            let waiting = shared.readers.lock().expect("nobody panics while it is held").pop();
            let reader = match waiting {
                Some(reader) => reader,
                None => open_reader(&shared.file)?,
            };
            let out = on_thread(trace, || {
                let picture = reader.unchecked_transaction()?;
                let out = query(&picture)?;
                picture.finish()?;
                Ok(out)
            });
            shared.readers.lock().expect("nobody panics while it is held").push(reader);
            out
        };
        tokio::task::spawn_blocking(run).await.map_err(|_| Error::internal("a query panicked"))?
    }

    /// Asks `query` until it has an answer: now, after each commit of this process, and every 50 ms because of others.
    /// `None` when `wait` is over.
    ///
    /// # Errors
    /// Those of `query` and of the store.
    pub async fn wait_for<T, F>(&self, wait: Duration, query: F) -> Result<Option<T>>
    where
        T: Send + 'static,
        F: Fn(&Connection) -> Result<Option<T>> + Send + Sync + 'static,
    {
        let query = Arc::new(query);
        let end = tokio::time::Instant::now() + wait;
        let mut committed = self.shared.committed.clone();
        loop {
            committed.mark_unchanged();
            let asked = query.clone();
            if let Some(found) = self.read(move |db| asked(db)).await? {
                return Ok(Some(found));
            }
            let now = tokio::time::Instant::now();
            if now >= end {
                return Ok(None);
            }
            let _ = tokio::time::timeout((end - now).min(Duration::from_millis(50)), committed.changed()).await;
        }
    }

    /// Waits until a transaction of this process was committed that called [`Tx::wake`] with this name, after the last time
    /// that this returned. One task for each name. What other instances write wakes nobody: look now and then, too. Cancel
    /// safe.
    pub async fn woken(&self, task: &'static str) {
        self.shared.tasks.of(task).notified().await;
    }

    /// Wakes when this process has claimed the relay's lease together with a commit that published.
    pub(crate) async fn relay_wanted(&self) {
        self.shared.relay.notified().await;
    }

    /// Applies migrations and seed, catches up projections, and starts the writer thread. It ends with the last clone.
    pub(crate) fn open(file: &Path, setup: Setup<'_>) -> Result<Self, OpenError> {
        let open = |error: rusqlite::Error| OpenError::Open(error.into());
        if let Some(directory) = file.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory).map_err(|error| {
                OpenError::Open(Error::Internal(format!("cannot make `{}`: {error}", directory.display())))
            })?;
        }
        let mut db = Connection::open(file).map_err(open)?;
        // First of all: two instances that start together must not trip over the change to WAL.
        db.busy_timeout(MIGRATION_BUSY).map_err(open)?;
        // fullfsync: macOS's fsync does not reach the disk; elsewhere it means nothing.
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA foreign_keys = ON;
             PRAGMA temp_store = MEMORY; PRAGMA journal_size_limit = 16777216;",
        )
        .map_err(open)?;
        db.set_prepared_statement_cache_capacity(128);
        migrate(&mut db, &setup)?;
        db.busy_handler(Some(wait_for_turn)).map_err(open)?;

        let (jobs, queue) = mpsc::channel(QUEUE);
        let (committed, watcher) = watch::channel(0);
        let (relay, tasks) = (Arc::new(Notify::new()), Arc::new(Tasks::default()));
        let writer = Writer {
            db,
            queue,
            next: None,
            synced: true,
            service: setup.service.to_owned(),
            instance: setup.instance.to_owned(),
            clock: setup.clock,
            projector: setup.projector,
            committed,
            relay: relay.clone(),
            tasks: tasks.clone(),
        };
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| OpenError::Open(Error::Internal(format!("cannot start the writer: {error}"))))?;
        let permits = Arc::new(Semaphore::new(READERS));
        let (readers, file) = (Mutex::default(), file.to_owned());
        let shared = Shared { jobs, readers, permits, file, committed: watcher, relay, tasks };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Tasks {
    fn of(&self, task: &'static str) -> Arc<Notify> {
        self.0.lock().expect("nobody panics while it is held").entry(task).or_default().clone()
    }
}

/// What opening a store needs.
pub(crate) struct Setup<'a> {
    pub(crate) service: &'a str,
    pub(crate) instance: &'a str,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) migrations: &'a [(&'static str, &'static str)],
    #[expect(clippy::type_complexity, reason = "named where it is public: `Builder::seed`")]
    pub(crate) seed: Option<&'a dyn Fn(&Tx<'_>) -> Result<()>>,
    pub(crate) projector: Projector,
}

fn open_reader(file: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let reader = Connection::open_with_flags(file, flags)?;
    reader.busy_timeout(BUSY)?;
    reader.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -512;")?;
    reader.set_prepared_statement_cache_capacity(64);
    Ok(reader)
}

/// Applies what is missing, all in one immediate transaction: that is the lock.
fn migrate(db: &mut Connection, setup: &Setup<'_>) -> Result<(), OpenError> {
    let open = |error: rusqlite::Error| OpenError::Open(error.into());
    let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(open)?;
    tx.execute_batch(
        "CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, checksum BLOB, applied_at INTEGER NOT NULL) STRICT",
    )
    .map_err(open)?;
    let applied = |name: &str| {
        let row = tx.query_row("SELECT checksum FROM migrations WHERE name = ?1", [name], |row| row.get(0));
        row.optional().map_err(open)
    };
    let now = setup.clock.now();
    let note = |name: &str, checksum: Option<&[u8]>| {
        tx.execute("INSERT INTO migrations VALUES (?1, ?2, ?3)", params![name, checksum, now.millis()]).map_err(open)
    };
    let own = [("ballet_0001_chassis", include_str!("schema.sql"))];
    for (name, sql) in own.iter().chain(setup.migrations) {
        let checksum = Sha256::digest(sql).to_vec();
        match applied(name)? {
            Some(Some::<Vec<u8>>(known)) if known == checksum => {}
            Some(_) => return Err(OpenError::Changed((*name).to_owned())),
            None => {
                tx.execute_batch(sql).map_err(|error| OpenError::Migration((*name).to_owned(), error))?;
                note(name, Some(&checksum))?;
                tracing::info!(migration = name, "migrated");
            }
        }
    }
    let notes = Notes::default();
    let work = Tx { db: &tx, now, service: setup.service, trace: None, synced: true, notes: &notes };
    if let Some(seed) = setup.seed
        && applied("seed")?.is_none()
    {
        seed(&work).map_err(OpenError::Seed)?;
        note("seed", None)?;
        tracing::info!("seeded");
    }
    setup.projector.prepare(&work).map_err(OpenError::Open)?;
    tx.commit().map_err(open)
}

/// Another instance writes: looks again each half millisecond. SQLite's own handler rests for up to 100 ms, and transactions
/// here last for a sync.
fn wait_for_turn(tries: i32) -> bool {
    const REST: Duration = Duration::from_micros(500);
    std::thread::sleep(REST);
    REST.saturating_mul(u32::try_from(tries).unwrap_or(0)) < BUSY
}

fn claim(db: &Connection, lease: &str, owner: &str, now: Timestamp, lasts: Duration) -> rusqlite::Result<bool> {
    let changed = db
        .prepare_cached(
            "INSERT INTO leases VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET owner = excluded.owner, until = excluded.until
             WHERE owner = excluded.owner OR until <= ?4",
        )?
        .execute(params![lease, owner, now.plus(lasts).millis(), now.millis()])?;
    Ok(changed > 0)
}

/// A closure on its way through the writer thread.
trait Job: Send {
    /// Whether it must be on disk before it is answered.
    fn synced(&self) -> bool;
    /// Runs it; `false` if what it wrote must be taken back.
    fn run(&mut self, tx: &mut Tx<'_>) -> bool;
    /// Answers: with its own result if the transaction was committed, else with this error.
    fn finish(self: Box<Self>, failed: Option<Error>);
}

struct Work<F, T> {
    work: Option<F>,
    out: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
    trace: Option<TraceContext>,
    synced: bool,
}

impl<F, T> Job for Work<F, T>
where
    T: Send,
    F: FnOnce(&Tx<'_>) -> Result<T> + Send,
{
    fn synced(&self) -> bool {
        self.synced
    }

    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        let Some(work) = self.work.take() else { return false };
        (tx.trace, tx.synced) = (self.trace, self.synced);
        let out = on_thread(self.trace, || catch_unwind(AssertUnwindSafe(|| work(tx))));
        let out = out.unwrap_or_else(|panic| Err(Error::Internal(format!("a command panicked: {}", message(&*panic)))));
        let keep = out.is_ok();
        self.out = Some(out);
        keep
    }

    fn finish(self: Box<Self>, failed: Option<Error>) {
        let out = match (failed, self.out) {
            // Its own error says more than the batch's.
            (_, Some(Err(own))) => Err(own),
            (Some(error), _) => Err(error),
            (None, Some(out)) => out,
            (None, None) => Err(Error::internal("the command did not run")),
        };
        // Whoever asked may have gone.
        let _ = self.reply.send(out);
    }
}

/// What a panic said.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}

struct Writer {
    db: Connection,
    queue: mpsc::Receiver<Box<dyn Job>>,
    /// Taken from the queue too early: it begins the next transaction.
    next: Option<Box<dyn Job>>,
    /// Whether the connection syncs what it commits.
    synced: bool,
    service: String,
    instance: String,
    clock: Arc<dyn Clock>,
    projector: Projector,
    committed: watch::Sender<u64>,
    relay: Arc<Notify>,
    tasks: Arc<Tasks>,
}

impl Writer {
    fn run(mut self) {
        while let Some(first) = self.next.take().or_else(|| self.queue.blocking_recv()) {
            let mut done = Vec::new();
            let notes = Notes::default();
            let result = self.batch(first, &mut done, &notes);
            let failed = result.as_ref().err().map(ToString::to_string);
            if failed.is_some() && !self.db.is_autocommit() {
                let _ = self.db.execute_batch("ROLLBACK");
            }
            if let Ok(true) = result {
                self.relay.notify_one();
            }
            if result.is_ok() {
                for task in notes.wake.take() {
                    self.tasks.of(task).notify_one();
                }
            }
            self.committed.send_modify(|commits| *commits += 1);
            let busy = result.err().is_some_and(|error| {
                matches!(
                    error.sqlite_error_code(),
                    Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
                )
            });
            for job in done {
                job.finish(failed.clone().map(|text| match busy {
                    true => Error::Busy(text),
                    false => Error::Internal(format!("the store failed: {text}")),
                }));
            }
        }
    }

    /// Runs `first` and what waits behind it in one transaction. `true` if the relay is wanted.
    fn batch(&mut self, first: Box<dyn Job>, done: &mut Vec<Box<dyn Job>>, notes: &Notes) -> rusqlite::Result<bool> {
        let synced = first.synced();
        done.push(first);
        self.sync(synced)?;
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let now = self.clock.now();
        let mut tx = Tx { db: &self.db, now, service: &self.service, trace: None, synced, notes };
        let mut next = 0;
        while next < done.len() {
            self.db.prepare_cached("SAVEPOINT job")?.execute([])?;
            let before = notes.published.get();
            if !done[next].run(&mut tx) {
                notes.published.set(before);
                if self.db.is_autocommit() {
                    // A full disk or a broken file: SQLite has taken everything back already.
                    return Err(rusqlite::Error::SqliteFailure(
                        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT),
                        Some("the transaction was taken back".into()),
                    ));
                }
                self.db.prepare_cached("ROLLBACK TO job")?.execute([])?;
            }
            self.db.prepare_cached("RELEASE job")?.execute([])?;
            next += 1;
            if done.len() < BATCH
                && self.next.is_none()
                && let Ok(job) = self.queue.try_recv()
            {
                if job.synced() && !synced {
                    // SQLite does not change its mind within a transaction.
                    self.next = Some(job);
                } else {
                    done.push(job);
                }
            }
        }
        let mut wanted = false;
        if notes.published.get() {
            tx.synced = true;
            self.projector.catch_up(&mut tx)?;
            // Whoever publishes takes the relay's lease along, unless somebody else is at it: then that one sees our rows
            // before it lets go, because it lets go in a transaction too.
            wanted = claim(&self.db, RELAY, &self.instance, now, RELAY_LEASE)?;
        }
        self.db.prepare_cached("COMMIT")?.execute([])?;
        Ok(wanted)
    }

    /// From the next transaction on, commits with a sync or without. In WAL mode both leave a file that can be read.
    fn sync(&mut self, synced: bool) -> rusqlite::Result<()> {
        if self.synced != synced {
            self.db.pragma_update(None, "synchronous", if synced { "FULL" } else { "NORMAL" })?;
            self.synced = synced;
        }
        Ok(())
    }
}
