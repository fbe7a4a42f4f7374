//! The seam that keeps an engine's rows.

use std::collections::HashSet;
use std::ops::Bound;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::{Row, StoreError, Table, Value};

/// Keeps an engine's rows. All of a batch survives a crash, or none of it.
///
/// # Contract
/// Tables
/// 1. Tables are `static`; operations name them by reference; the first `key` columns are the key.
/// 2. There is no NULL; an added column reads as its kind's zero in old rows.
/// 3. A process may open fewer columns than are stored (an older version beside a newer): its puts leave the others alone.
/// 4. Changed kinds, names, order or keys answer `Shape` and change nothing; indexes are only ever added.
///
/// Commit
///
/// 5. `Ok` means on disk, and every later `scan` by anyone sees it.
/// 6. Batches of one shard are written in the order of the calls, and a batch in its own order; the last word on a key wins.
/// 7. Batches that share a transaction fail alone: one that is fenced out, clashes or is invalid leaves its neighbours untouched.
/// 8. A fence is checked against the epoch inside the same transaction, never against a clock.
/// 9. `Insert` answers `Exists`; a batch does not name an inserted key twice.
/// 10. `Fenced`, `Exists`, `Invalid`, `Failed` mean that nothing was written. `Unknown`: the answer was lost. Key and indexed
///     columns together have at most [`crate::MAX_INDEXED_BYTES`], text is without U+0000: `Invalid` otherwise.
///
/// Scan
///
/// 11. A page is one moment; pages together are not: rows that move may be seen twice or missed.
/// 12. Order is by index columns, then key; text by bytes. `next` is the last row's place.
/// 13. `Contains` ignores the case of ASCII letters only and reads what the other filters leave.
///
/// Claim
///
/// 14. A new owner raises the epoch; renewal does not. A zero lease gives back.
/// 15. Once `claim` has answered, nothing of an older epoch can land.
/// 16. Time is the store's. An owner's name is made anew at each process start; the owner stops by its own monotonic clock
///     before its lease ends.
pub trait Journal: Send + Sync + 'static {
    /// Creates the tables, adds columns at the end and indexes; refuses every other difference (1 to 4).
    fn open(&self, tables: &[&'static Table]) -> Reply<()>;
    /// Writes the batch (5 to 10). Queued when called, not when awaited; dropping the reply takes nothing back.
    fn commit(&self, batch: Batch) -> Reply<()>;
    /// Reads one page by key or declared index (11 to 13).
    fn scan(&self, query: Query) -> Reply<Page>;
    /// Takes, renews or (zero lease) gives back shards; answers those held with their epochs (14 to 16).
    fn claim(&self, shards: &[Shard], owner: &Owner, lease: Duration) -> Reply<Vec<(Shard, Epoch)>>;
}

/// An answer under way. The request was queued when this was made; dropping it takes nothing back.
#[must_use = "a commit is only done once its reply says so"]
pub struct Reply<T>(oneshot::Receiver<Result<T, StoreError>>);

/// The driver's end of a [`Reply`]. Dropped without an answer, the caller reads `Unknown`.
pub type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// A part of an engine's data with one writer at a time.
pub type Shard = i64;
/// Counts the owners that a shard has had.
pub type Epoch = i64;
/// Name of an owner, made anew at each process start.
pub type Owner = str;

/// A change of one row.
#[derive(Clone, Debug)]
pub enum Op {
    /// Inserts or replaces.
    Put(&'static Table, Row),
    /// Refuses the batch with `Exists` if the key is there.
    Insert(&'static Table, Row),
    /// Deletes by key (the row holds the key's columns only); an absent row is no error.
    Delete(&'static Table, Row),
}

/// Who must still own which shard for a batch to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fence {
    /// The shard.
    pub shard: Shard,
    /// The epoch that `claim` answered.
    pub epoch: Epoch,
}

/// Changes that are written together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Checked inside the transaction.
    pub fence: Option<Fence>,
    /// Applied in order.
    pub ops: Vec<Op>,
}

/// Which order a scan follows.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// The key's.
    Key,
    /// That of the declared index with this position.
    Index(usize),
}

/// A condition on one column.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Equal.
    Eq(usize, Value),
    /// One of these.
    In(usize, Vec<Value>),
    /// Between.
    Range(usize, Bound<Value>, Bound<Value>),
    /// Text holds the needle; ASCII letters match in either case. Reads every row that the rest leaves.
    Contains(usize, String),
}

/// A question for one page of rows.
#[derive(Clone, Debug)]
pub struct Query {
    /// The table.
    pub table: &'static Table,
    /// All of them must hold.
    pub filters: Vec<Filter>,
    /// The order.
    pub by: By,
    /// Descending.
    pub down: bool,
    /// Begin after this place, as an earlier page's `next` says.
    pub after: Option<Row>,
    /// Rows at most. Default: 1,000.
    pub limit: usize,
}

/// One page of rows.
#[derive(Debug)]
pub struct Page {
    /// The rows, all declared columns.
    pub rows: Vec<Row>,
    /// Where the next page starts; none after the last.
    pub next: Option<Row>,
}

impl<T> Reply<T> {
    /// A reply and the end that answers it.
    pub fn new() -> (Answer<T>, Self) {
        let (answer, reply) = oneshot::channel();
        (answer, Self(reply))
    }

    /// A reply that is there already.
    pub fn ready(value: Result<T, StoreError>) -> Self {
        let (answer, reply) = Self::new();
        let _ = answer.send(value);
        reply
    }

    /// The answer if it is there already, else `Unknown`; for drivers whose replies are always ready.
    pub(crate) fn now(mut self) -> Result<T, StoreError> {
        self.0.try_recv().unwrap_or_else(|_| Err(stopped()))
    }

    /// Blocks the thread until the answer comes; for threads outside a runtime.
    pub fn wait(self) -> Result<T, StoreError> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(stopped()))
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|r| r.unwrap_or_else(|_| Err(stopped())))
    }
}

fn stopped() -> StoreError {
    StoreError::Unknown("the driver has stopped".into())
}

impl Op {
    /// Table and values.
    pub fn parts(&self) -> (&'static Table, &Row) {
        match self {
            Self::Put(table, row) | Self::Insert(table, row) | Self::Delete(table, row) => (table, row),
        }
    }

    /// The table's name and the key's values. Call [`Batch::check`] first: a short row has no key.
    pub fn key(&self) -> (&'static str, &[Value]) {
        let (table, row) = self.parts();
        (table.name, &row[..table.key])
    }
}

impl Batch {
    /// A batch without a fence.
    pub fn of(ops: Vec<Op>) -> Self {
        Self { fence: None, ops }
    }

    /// A batch that counts only while the fence holds.
    pub fn fenced(fence: Fence, ops: Vec<Op>) -> Self {
        Self { fence: Some(fence), ops }
    }

    /// Checks what can be checked without looking at the store (9, 10).
    pub fn check(&self) -> Result<(), StoreError> {
        for op in &self.ops {
            match op {
                Op::Put(table, row) | Op::Insert(table, row) => table.check(table.columns.len(), row)?,
                Op::Delete(table, key) => table.check(table.key, key)?,
            }
        }
        if !self.ops.iter().any(|op| matches!(op, Op::Insert(..))) {
            return Ok(());
        }
        // An inserted key that another op names too has no order that all drivers would keep.
        let mut inserted = HashSet::new();
        for op in self.ops.iter().filter(|op| matches!(op, Op::Insert(..))) {
            if !inserted.insert(op.key()) {
                return Err(StoreError::Invalid(format!("{}: an inserted key occurs twice in a batch", op.key().0)));
            }
        }
        match self.ops.iter().find(|op| !matches!(op, Op::Insert(..)) && inserted.contains(&op.key())) {
            Some(op) => Err(StoreError::Invalid(format!("{}: an inserted key occurs twice in a batch", op.key().0))),
            None => Ok(()),
        }
    }
}

impl Query {
    /// The first 1,000 rows by key.
    pub fn of(table: &'static Table) -> Self {
        Self { table, filters: vec![], by: By::Key, down: false, after: None, limit: 1000 }
    }

    /// Follows the declared index with this position.
    #[must_use]
    pub fn by(self, index: usize) -> Self {
        Self { by: By::Index(index), ..self }
    }

    /// Descends.
    #[must_use]
    pub fn down(self) -> Self {
        Self { down: true, ..self }
    }

    /// Rows at most.
    #[must_use]
    pub fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// Begins after a place.
    #[must_use]
    pub fn after(self, after: Option<Row>) -> Self {
        Self { after, ..self }
    }

    /// Adds a condition.
    #[must_use]
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filters.push(filter);
        self
    }

    /// Adds the condition that a column equals a value.
    #[must_use]
    pub fn eq(self, column: usize, value: impl Into<Value>) -> Self {
        self.filter(Filter::Eq(column, value.into()))
    }

    /// Makes a page of rows that were found in order.
    pub fn page(&self, rows: Vec<Row>) -> Page {
        let place = |row: &Row| self.table.order(self.by).iter().map(|c| row[*c].clone()).collect();
        Page { next: if rows.len() < self.limit { None } else { rows.last().map(place) }, rows }
    }
}
