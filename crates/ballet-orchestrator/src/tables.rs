//! The orchestrator's rows: an execution's state, its attempts and its history, definitions, and the engine's clock.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use ballet_core::{ExecutionId, Timestamp};
use ballet_store::{Filter, Journal, Kind, Op, Query, Row, Shard, StoreError, Table, row};

use crate::decide::Effects;
use crate::plan::{Plan, Work};
use crate::state::{Execution, Phase, Role, Task, status_word};

/// Parts of the data with one writer each. Never changes: it stands in every row.
pub(crate) const SHARDS: Shard = 32;
/// The status of a row whose execution was removed: its id is still known.
pub(crate) const REMOVED: &str = "REMOVED";

/// One row for each execution; a removed one leaves its id behind.
pub(crate) static EXECUTIONS: Table = Table {
    name: "wf_execution",
    key: 1,
    columns: &[
        ("id", Kind::Text),
        ("shard", Kind::Int),
        ("name", Kind::Text),
        ("version", Kind::Int),
        ("status", Kind::Text),
        ("open", Kind::Int),
        ("created", Kind::Time),
        ("updated", Kind::Time),
        ("ended", Kind::Time),
        ("correlation", Kind::Text),
        ("compensation", Kind::Text),
        ("state", Kind::Text),
    ],
    indexes: &[&[5], &[2, 6], &[4, 6], &[6], &[9]],
};
/// Columns of [`EXECUTIONS`].
pub(crate) mod execution {
    pub(crate) const ID: usize = 0;
    pub(crate) const NAME: usize = 2;
    pub(crate) const VERSION: usize = 3;
    pub(crate) const STATUS: usize = 4;
    pub(crate) const OPEN: usize = 5;
    pub(crate) const CREATED: usize = 6;
    pub(crate) const UPDATED: usize = 7;
    pub(crate) const ENDED: usize = 8;
    pub(crate) const CORRELATION: usize = 9;
    pub(crate) const COMPENSATION: usize = 10;
    pub(crate) const STATE: usize = 11;
    pub(crate) const BY_OPEN: usize = 0;
    pub(crate) const BY_NAME: usize = 1;
    pub(crate) const BY_STATUS: usize = 2;
    pub(crate) const BY_CREATED: usize = 3;
    pub(crate) const BY_CORRELATION: usize = 4;
}

/// One row for each attempt.
pub(crate) static TASKS: Table = Table {
    name: "wf_task",
    key: 2,
    columns: &[
        ("execution", Kind::Text),
        ("seq", Kind::Int),
        ("id", Kind::Text),
        ("type", Kind::Text),
        ("status", Kind::Text),
        ("updated", Kind::Time),
        ("body", Kind::Text),
    ],
    indexes: &[&[2]],
};

/// One row for each commit: what it was about. One that only repeats the row before takes its place.
pub(crate) static HISTORY: Table = Table {
    name: "wf_history",
    key: 2,
    columns: &[("execution", Kind::Text), ("seq", Kind::Int), ("at", Kind::Time), ("entries", Kind::Text)],
    indexes: &[],
};

/// One row for each content of a definition.
pub(crate) static DEFINITIONS: Table = Table {
    name: "wf_definition",
    key: 3,
    columns: &[
        ("name", Kind::Text),
        ("version", Kind::Int),
        ("revision", Kind::Int),
        ("live", Kind::Int),
        ("hash", Kind::Text),
        ("body", Kind::Text),
    ],
    indexes: &[],
};

/// Conductor's task definitions.
pub(crate) static TASK_DEFS: Table =
    Table { name: "wf_task_def", key: 1, columns: &[("name", Kind::Text), ("body", Kind::Text)], indexes: &[] };

/// How long engines of this store were seen running.
pub(crate) static CLOCK: Table =
    Table { name: "wf_clock", key: 1, columns: &[("shard", Kind::Int), ("run", Kind::Int)], indexes: &[] };

/// What workers log.
pub(crate) static LOGS: Table = Table {
    name: "wf_log",
    key: 2,
    columns: &[("task", Kind::Text), ("seq", Kind::Int), ("at", Kind::Time), ("line", Kind::Text)],
    indexes: &[],
};

/// All tables.
pub(crate) static ALL: &[&Table] = &[&EXECUTIONS, &TASKS, &HISTORY, &DEFINITIONS, &TASK_DEFS, &CLOCK, &LOGS];

/// Where an execution's rows belong. `DefaultHasher::new()` has fixed keys, but its algorithm is not promised: so the
/// shard stands in the row, and only new rows are placed by it.
pub(crate) fn shard_of(id: &ExecutionId) -> Shard {
    let mut hasher = DefaultHasher::new();
    id.as_str().hash(&mut hasher);
    i64::try_from(hasher.finish() % SHARDS.unsigned_abs()).unwrap_or_default()
}

/// The writes of a decision: state, changed attempts and one row of history.
pub(crate) fn writes(plan: &Plan, x: &mut Execution, shard: Shard, fx: &Effects, new: bool) -> Vec<Op> {
    let mut ops = vec![];
    let state = execution_row(x, shard);
    ops.push(if new { Op::Insert(&EXECUTIONS, state) } else { Op::Put(&EXECUTIONS, state) });
    for seq in 0..fx.erased {
        ops.push(Op::Delete(&TASKS, row![x.id.as_str(), seq_of(seq)]));
    }
    for index in std::mem::take(&mut x.dirty) {
        ops.push(Op::Put(&TASKS, task_row(plan, x, index)));
    }
    let entries: Vec<(&str, i64)> = fx.history.iter().map(|(what, task)| (*what, task.map_or(0, seq_of))).collect();
    let entries = serde_json::to_string(&entries).unwrap_or_default();
    ops.push(Op::Put(
        &HISTORY,
        row![x.id.as_str(), i64::try_from(x.history).unwrap_or(i64::MAX), x.updated.0, entries],
    ));
    ops
}

/// Conductor counts attempts from 1.
pub(crate) fn seq_of(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX - 1) + 1
}

fn execution_row(x: &Execution, shard: Shard) -> Row {
    let open = i64::from(x.phase != Phase::Ended);
    let state = serde_json::to_string(x).unwrap_or_default();
    row![
        x.id.as_str(),
        shard,
        x.name.as_str(),
        i64::from(x.version),
        status_word(x.status),
        open,
        x.created.0,
        x.updated.0,
        x.ended.0,
        x.correlation_id.as_deref().unwrap_or_default(),
        x.compensation_state().unwrap_or_default(),
        state
    ]
}

/// What is left of a removed execution.
pub(crate) fn tombstone(x: &Execution, shard: Shard) -> Vec<Op> {
    let mut row = execution_row(x, shard);
    row[execution::STATUS] = REMOVED.into();
    row[execution::STATE] = "".into();
    row[execution::CORRELATION] = "".into();
    let mut ops = vec![Op::Put(&EXECUTIONS, row)];
    ops.extend((0..x.tasks.len()).map(|i| Op::Delete(&TASKS, row![x.id.as_str(), seq_of(i)])));
    let history = 1..=i64::try_from(x.history).unwrap_or_default();
    ops.extend(history.map(|n| Op::Delete(&HISTORY, row![x.id.as_str(), n])));
    ops
}

fn task_row(plan: &Plan, x: &Execution, index: usize) -> Row {
    let task = &x.tasks[index];
    let kind = match task.role {
        Role::Do(i) => match &plan.steps[i].work {
            Work::Poll(polled) => polled.queue.as_str(),
            Work::Call(_) => "HTTP",
        },
        Role::Undo(_) | Role::Failed => "HTTP",
    };
    let body = serde_json::to_string(task).unwrap_or_default();
    row![x.id.as_str(), seq_of(index), task.id.as_str(), kind, task.status.as_str(), task.updated.0, body]
}

/// Reads one execution with its attempts; none if it is unknown or removed.
pub(crate) async fn load(journal: &dyn Journal, id: &ExecutionId) -> Result<Option<(Execution, Shard)>, StoreError> {
    let page = journal.scan(Query::of(&EXECUTIONS).eq(execution::ID, id.as_str()).limit(1)).await?;
    match page.rows.first() {
        Some(row) if row[execution::STATUS].text() != REMOVED => Ok(Some(read(journal, row).await?)),
        Some(_) | None => Ok(None),
    }
}

/// Reads every execution that has not ended.
pub(crate) async fn load_open(journal: &dyn Journal) -> Result<Vec<(Execution, Shard)>, StoreError> {
    let mut found = vec![];
    let mut after = None;
    loop {
        let query = Query::of(&EXECUTIONS).by(execution::BY_OPEN).eq(execution::OPEN, 1).after(after);
        let page = journal.scan(query).await?;
        for row in &page.rows {
            found.push(read(journal, row).await?);
        }
        after = page.next;
        if after.is_none() {
            return Ok(found);
        }
    }
}

async fn read(journal: &dyn Journal, row: &Row) -> Result<(Execution, Shard), StoreError> {
    let mut x = parse(row)?;
    let mut after = None;
    loop {
        let page = journal.scan(Query::of(&TASKS).eq(0, x.id.as_str()).after(after)).await?;
        for row in &page.rows {
            let task: Task = serde_json::from_str(row[6].text()).map_err(|e| broken("wf_task", &e))?;
            x.tasks.push(task);
        }
        after = page.next;
        if after.is_none() {
            return Ok((x, row[1].int()));
        }
    }
}

/// The state in a row of [`EXECUTIONS`], without its attempts.
pub(crate) fn parse(row: &Row) -> Result<Execution, StoreError> {
    serde_json::from_str(row[execution::STATE].text()).map_err(|e| broken("wf_execution", &e))
}

/// The execution and the sequence number of an attempt.
pub(crate) async fn find_task(journal: &dyn Journal, id: &str) -> Result<Option<ExecutionId>, StoreError> {
    let page = journal.scan(Query::of(&TASKS).by(0).eq(2, id).limit(1)).await?;
    Ok(page.rows.first().and_then(|row| row[0].text().parse().ok()))
}

/// An attempt's log lines.
pub(crate) async fn logs(journal: &dyn Journal, task: &str) -> Result<Vec<(Timestamp, String)>, StoreError> {
    let page = journal.scan(Query::of(&LOGS).filter(Filter::Eq(0, task.into()))).await?;
    Ok(page.rows.into_iter().map(|row| (Timestamp(row[2].int()), row[3].text().to_owned())).collect())
}

/// What happened to an execution: time and entries, each `[what, attempt]`.
pub(crate) async fn history(
    journal: &dyn Journal,
    id: &ExecutionId,
) -> Result<Vec<(Timestamp, serde_json::Value)>, StoreError> {
    let page = journal.scan(Query::of(&HISTORY).eq(0, id.as_str())).await?;
    let entries = |row: &Row| serde_json::from_str(row[3].text()).unwrap_or_default();
    Ok(page.rows.iter().map(|row| (Timestamp(row[2].int()), entries(row))).collect())
}

/// Engine time as last written.
pub(crate) async fn clock(journal: &dyn Journal) -> Result<HashMap<Shard, u64>, StoreError> {
    let page = journal.scan(Query::of(&CLOCK)).await?;
    Ok(page.rows.iter().map(|row| (row[0].int(), u64::try_from(row[1].int()).unwrap_or_default())).collect())
}

fn broken(table: &str, error: &serde_json::Error) -> StoreError {
    StoreError::Failed(format!("a row of `{table}` cannot be read: {error}"))
}
