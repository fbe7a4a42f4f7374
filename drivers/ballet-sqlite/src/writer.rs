//! The writer thread: whatever waits shares one transaction, and so one sync of the disk.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Statement, ToSql};
use tokio::sync::mpsc;
use tracing::error;

use ballet_store::{Answer, Batch, Epoch, Fence, Kind, Op, Shard, StoreError, Table, Value, sql};

use crate::sqlite::{Counters, Options, failed};

/// A request to the writer.
pub(crate) enum Ask {
    Commit(Batch, Answer<()>),
    Open(Vec<&'static Table>, Answer<()>),
    Claim(Vec<Shard>, String, Duration, Answer<Vec<(Shard, Epoch)>>),
    Close(Answer<()>),
}

struct Writer<'c> {
    connection: &'c Connection,
    begin: Statement<'c>,
    commit: Statement<'c>,
    epoch: Statement<'c>,
    claim: Statement<'c>,
    tables: Vec<Opened<'c>>,
    options: &'c Options,
    counters: &'c Counters,
}

/// A table's statements, kept: parsing them costs more than running them.
struct Opened<'c> {
    table: &'static Table,
    put: Statement<'c>,
    insert: Statement<'c>,
    delete: Statement<'c>,
    find: Statement<'c>,
}

/// Serves requests until [`Ask::Close`] or until the journal is dropped.
pub(crate) fn run(connection: &Connection, mut asked: mpsc::Receiver<Ask>, options: &Options, counters: &Counters) {
    let mut writer = match Writer::new(connection, options, counters) {
        Ok(writer) => writer,
        Err(error) => {
            error!(%error, "the journal cannot write");
            while let Some(ask) = asked.blocking_recv() {
                ask.refuse(failed(rusqlite::Error::InvalidQuery));
            }
            return;
        }
    };
    let (mut group, mut other) = (vec![], None);
    while let Some(first) = other.take().or_else(|| asked.blocking_recv()) {
        let mut next = Some(first);
        while let Some(ask) = next {
            match ask {
                Ask::Commit(batch, answer) => group.push((batch, answer)),
                ask @ (Ask::Open(..) | Ask::Claim(..) | Ask::Close(_)) => {
                    other = Some(ask);
                    break;
                }
            }
            next = if group.len() < options.group { asked.try_recv().ok() } else { None };
        }
        if !group.is_empty() {
            writer.group(&mut group);
            continue;
        }
        match other.take() {
            Some(Ask::Open(tables, answer)) => {
                let _ = answer.send(tables.into_iter().try_for_each(|table| writer.open(table)));
            }
            Some(Ask::Claim(shards, owner, lease, answer)) => {
                let _ = answer.send(writer.claim(&shards, &owner, lease));
            }
            Some(Ask::Close(answer)) => {
                let carried = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
                let _ = answer.send(carried.map_err(failed));
                return;
            }
            Some(Ask::Commit(..)) | None => {}
        }
    }
}

impl Ask {
    /// Answers that nothing was done.
    pub(crate) fn refuse(self, error: StoreError) {
        match self {
            Self::Commit(_, answer) | Self::Open(_, answer) | Self::Close(answer) => drop(answer.send(Err(error))),
            Self::Claim(_, _, _, answer) => drop(answer.send(Err(error))),
        }
    }
}

impl<'c> Writer<'c> {
    fn new(connection: &'c Connection, options: &'c Options, counters: &'c Counters) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            begin: connection.prepare("BEGIN IMMEDIATE")?,
            commit: connection.prepare("COMMIT")?,
            epoch: connection.prepare("SELECT coalesce(max(epoch),-1) FROM journal_shard WHERE id=?1")?,
            claim: connection.prepare(
                "INSERT INTO journal_shard VALUES(?1,1,?2,?3) ON CONFLICT(id) DO UPDATE SET
                 epoch=epoch+(owner<>?2), owner=?2, until=?3 WHERE owner=?2 OR until<=?4 RETURNING epoch",
            )?,
            tables: vec![],
            options,
            counters,
        })
    }

    fn group(&mut self, group: &mut Vec<(Batch, Answer<()>)>) {
        let done = self.write(group).map_err(failed).and_then(|each| match self.commit.raw_execute() {
            Ok(_) => Ok(each),
            Err(e) => Err(StoreError::Unknown(e.to_string())),
        });
        match done {
            Ok(each) => {
                let written = each.iter().filter(|r| r.is_ok()).count() as u64;
                self.counters.batches.fetch_add(written, Ordering::Relaxed);
                self.counters.refused.fetch_add(each.len() as u64 - written, Ordering::Relaxed);
                self.counters.commits.fetch_add(1, Ordering::Relaxed);
                for ((_, answer), result) in group.drain(..).zip(each) {
                    let _ = answer.send(result);
                }
            }
            // A full disk or an I/O error ends the whole group.
            Err(error) => {
                self.roll_back();
                error!(%error, batches = group.len(), "the disk refuses");
                self.counters.refused.fetch_add(group.len() as u64, Ordering::Relaxed);
                for (_, answer) in group.drain(..) {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Writes a group without committing it. The outer error ends the group, an inner one only its batch.
    fn write(&mut self, group: &[(Batch, Answer<()>)]) -> rusqlite::Result<Vec<Result<(), StoreError>>> {
        self.begin.raw_execute()?;
        // Nobody else can write now: one look at each shard is enough.
        let mut epochs = vec![];
        group.iter().map(|(batch, _)| self.batch(batch, &mut epochs)).collect()
    }

    /// Whatever can refuse is asked before the first write, so no savepoint is needed (they cost a third of the
    /// throughput): nobody else writes meanwhile.
    fn batch(&mut self, batch: &Batch, epochs: &mut Vec<Fence>) -> rusqlite::Result<Result<(), StoreError>> {
        if let Err(error) = self.check(batch, epochs)? {
            return Ok(Err(error));
        }
        for op in &batch.ops {
            if let Op::Insert(table, row) = op {
                let find = &mut self.opened(table).find;
                bind(find, &row[..table.key])?;
                if find.raw_query().next()?.is_some() {
                    return Ok(Err(StoreError::Exists(table.name)));
                }
            }
        }
        for op in &batch.ops {
            let (table, row) = op.parts();
            let opened = self.opened(table);
            let statement = match op {
                Op::Put(..) => &mut opened.put,
                Op::Insert(..) => &mut opened.insert,
                Op::Delete(..) => &mut opened.delete,
            };
            bind(statement, row)?;
            statement.raw_execute()?;
        }
        Ok(Ok(()))
    }

    fn check(&mut self, batch: &Batch, epochs: &mut Vec<Fence>) -> rusqlite::Result<Result<(), StoreError>> {
        let known = |op: &Op| {
            let table = op.parts().0;
            let unknown = || StoreError::Invalid(format!("`{}` was not opened", table.name));
            self.place(table).map(drop).ok_or_else(unknown)
        };
        if let Err(error) = batch.check().and_then(|()| batch.ops.iter().try_for_each(known)) {
            return Ok(Err(error));
        }
        let Some(fence) = batch.fence else { return Ok(Ok(())) };
        let epoch = match epochs.iter().find(|e| e.shard == fence.shard) {
            Some(known) => known.epoch,
            None => {
                let epoch = self.epoch.query_row([fence.shard], |row| row.get(0))?;
                epochs.push(Fence { epoch, ..fence });
                epoch
            }
        };
        Ok(if epoch == fence.epoch { Ok(()) } else { Err(StoreError::Fenced(fence.shard)) })
    }

    fn place(&self, table: &'static Table) -> Option<usize> {
        self.tables.iter().position(|opened| std::ptr::eq(opened.table, table))
    }

    fn opened(&mut self, table: &'static Table) -> &mut Opened<'c> {
        let place = self.place(table).expect("`check` looked for it");
        &mut self.tables[place]
    }

    fn open(&mut self, table: &'static Table) -> Result<(), StoreError> {
        self.begin.raw_execute().map_err(failed)?;
        let done = self.migrate(table).and_then(|()| self.commit.raw_execute().map(drop).map_err(failed));
        if let Err(error) = done {
            self.roll_back();
            return Err(error);
        }
        if self.place(table).is_none() {
            let opened = Opened::new(self.connection, table).map_err(failed)?;
            self.tables.push(opened);
        }
        Ok(())
    }

    fn migrate(&self, table: &Table) -> Result<(), StoreError> {
        let kept = "SELECT max(shape) FROM journal_table WHERE name=?1";
        let stored: Option<String> = self.connection.query_row(kept, [table.name], |row| row.get(0)).map_err(failed)?;
        // The zero stands in the type too: a version that knows fewer columns inserts rows without the others.
        let column = |kind| match kind {
            Kind::Int | Kind::Time => ("INTEGER DEFAULT 0", "0"),
            Kind::Text => ("TEXT DEFAULT ''", "''"),
            Kind::Bytes => ("BLOB DEFAULT x''", "x''"),
        };
        // One integer as the key is SQLite's own row id; other keys get a tree of their own, not two.
        let row_id = table.key == 1 && matches!(table.columns[0].1, Kind::Int | Kind::Time);
        let tail = if row_id { " STRICT" } else { " STRICT, WITHOUT ROWID" };
        let (statements, keep) = sql::migrate(table, stored.as_deref(), column, tail)?;
        for statement in statements {
            self.connection.execute_batch(&statement).map_err(failed)?;
        }
        let keeping = "INSERT INTO journal_table VALUES(?1,?2) ON CONFLICT(name) DO UPDATE SET shape=?2";
        self.connection.execute(keeping, [table.name, &keep]).map(drop).map_err(failed)
    }

    fn claim(&mut self, shards: &[Shard], owner: &str, lease: Duration) -> Result<Vec<(Shard, Epoch)>, StoreError> {
        let done = self.take(shards, owner, lease).map_err(failed).and_then(|held| match self.commit.raw_execute() {
            Ok(_) => Ok(held),
            Err(e) => Err(StoreError::Unknown(e.to_string())),
        });
        match done {
            Ok(_) => drop(self.counters.commits.fetch_add(1, Ordering::Relaxed)),
            Err(_) => self.roll_back(),
        }
        done
    }

    fn take(&mut self, shards: &[Shard], owner: &str, lease: Duration) -> rusqlite::Result<Vec<(Shard, Epoch)>> {
        let now = self.options.clock.now();
        let until = now.plus(lease);
        self.begin.raw_execute()?;
        let mut held = vec![];
        for shard in shards {
            let mut rows = self.claim.query(rusqlite::params![shard, owner, until.millis(), now.millis()])?;
            while let Some(row) = rows.next()? {
                held.push((*shard, row.get(0)?));
            }
        }
        Ok(held)
    }

    /// Ends a failed transaction; when it has ended by itself, as after some I/O errors, there is nothing to end.
    fn roll_back(&self) {
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            error!(%error, "a transaction cannot be rolled back");
        }
    }
}

impl<'c> Opened<'c> {
    fn new(connection: &'c Connection, table: &'static Table) -> rusqlite::Result<Self> {
        let marks: Vec<String> = (1..=table.columns.len()).map(|n| format!("?{n}")).collect();
        let columns = sql::names(table, 0..table.columns.len());
        let insert = format!("INSERT INTO {}({columns}) VALUES ({})", table.name, marks.join(","));
        let key: Vec<String> = (0..table.key).map(|c| format!("{}=?{}", table.columns[c].0, c + 1)).collect();
        let (name, key) = (table.name, key.join(" AND "));
        Ok(Self {
            table,
            put: connection.prepare(&(insert.clone() + &sql::upsert(table)))?,
            insert: connection.prepare(&insert)?,
            delete: connection.prepare(&format!("DELETE FROM {name} WHERE {key}"))?,
            find: connection.prepare(&format!("SELECT 1 FROM {name} WHERE {key}"))?,
        })
    }
}

struct Bound<'v>(&'v Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Int(i) => ValueRef::Integer(*i),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// Sets a statement's parameters, in order.
pub(crate) fn bind<'a>(
    statement: &mut Statement<'_>,
    values: impl IntoIterator<Item = &'a Value>,
) -> rusqlite::Result<()> {
    values.into_iter().enumerate().try_for_each(|(i, value)| statement.raw_bind_parameter(i + 1, Bound(value)))
}
