//! The reference journal: what the contract means, in its shortest form. Keeps nothing on disk.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeBounds;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::{Batch, Epoch, Filter, Journal, Op, Owner, Page, Query, Reply, Row, Shard, StoreError, Table, Value};

type Rows = BTreeMap<Vec<Value>, Row>;

/// A journal in memory, for tests and simulations. Clones of the `Arc` around it are handles on one store.
#[derive(Default)]
pub struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    tables: HashMap<&'static str, (&'static Table, Rows)>,
    shards: HashMap<Shard, Claimed>,
}

struct Claimed {
    epoch: Epoch,
    owner: String,
    until: Instant,
}

impl State {
    fn rows(&mut self, table: &'static Table) -> Result<&mut Rows, StoreError> {
        let opened = self.tables.get_mut(table.name).map(|(_, rows)| rows);
        opened.ok_or_else(|| StoreError::Invalid(format!("`{}` was not opened", table.name)))
    }

    fn open(&mut self, table: &'static Table) -> Result<(), StoreError> {
        let Some((known, rows)) = self.tables.get_mut(table.name) else {
            self.tables.insert(table.name, (table, Rows::new()));
            return Ok(());
        };
        let shared = known.columns.len().min(table.columns.len());
        if known.key != table.key || known.columns[..shared] != table.columns[..shared] {
            let why = format!("`{}`: only columns at the end may be added", table.name);
            return Err(StoreError::Shape(why));
        }
        if table.columns.len() > known.columns.len() {
            for row in rows.values_mut() {
                row.extend(table.columns[shared..].iter().map(|(_, kind)| zero(*kind)));
            }
            *known = table;
        }
        Ok(())
    }

    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        batch.check()?;
        if let Some(fence) = batch.fence
            && self.shards.get(&fence.shard).is_none_or(|s| s.epoch != fence.epoch)
        {
            return Err(StoreError::Fenced(fence.shard));
        }
        for op in &batch.ops {
            let (table, row) = op.parts();
            let there = self.rows(table)?.contains_key(&row[..table.key]);
            if matches!(op, Op::Insert(..)) && there {
                return Err(StoreError::Exists(table.name));
            }
        }
        for op in batch.ops {
            match op {
                Op::Put(table, mut row) | Op::Insert(table, mut row) => {
                    let stored = self.tables.get(table.name).map_or(0, |(known, _)| known.columns.len());
                    let columns = self.tables.get(table.name).map_or(table.columns, |(known, _)| known.columns);
                    let rows = self.rows(table)?;
                    if row.len() < stored {
                        // An older version's put leaves the columns alone that it does not know.
                        match rows.get(&row[..table.key]) {
                            Some(old) => row.extend_from_slice(&old[row.len()..]),
                            None => row.extend(columns[row.len()..].iter().map(|(_, kind)| zero(*kind))),
                        }
                    }
                    rows.insert(row[..table.key].to_vec(), row);
                }
                Op::Delete(table, key) => drop(self.rows(table)?.remove(&key)),
            }
        }
        Ok(())
    }

    fn scan(&mut self, query: &Query) -> Result<Page, StoreError> {
        let order = query.table.order(query.by);
        let place = |row: &Row| order.iter().map(|c| row[*c].clone()).collect::<Row>();
        let pass = |row: &&Row| {
            query.filters.iter().all(|filter| match filter {
                Filter::Eq(c, value) => row[*c] == *value,
                Filter::In(c, list) => list.contains(&row[*c]),
                Filter::Range(c, from, to) => (from.as_ref(), to.as_ref()).contains(&row[*c]),
                Filter::Contains(c, needle) => {
                    row[*c].text().to_ascii_lowercase().contains(&needle.to_ascii_lowercase())
                }
            }) && query.after.as_ref().is_none_or(|a| if query.down { place(row) < *a } else { place(row) > *a })
        };
        let mut found: Vec<&Row> = self.rows(query.table)?.values().filter(pass).collect();
        found.sort_by_cached_key(|row| place(row));
        if query.down {
            found.reverse();
        }
        found.truncate(query.limit);
        let known = query.table.columns.len();
        Ok(query.page(found.into_iter().map(|row| row[..known].to_vec()).collect()))
    }

    fn claim(&mut self, shards: &[Shard], owner: &str, lease: Duration) -> Vec<(Shard, Epoch)> {
        let (now, mut held) = (Instant::now(), vec![]);
        for shard in shards {
            let s = self.shards.entry(*shard).or_insert(Claimed { epoch: 0, owner: String::new(), until: now });
            if s.owner != owner && s.until > now {
                continue;
            }
            let epoch = if s.owner == owner { s.epoch } else { s.epoch + 1 };
            *s = Claimed { epoch, owner: owner.into(), until: now + lease };
            held.push((*shard, epoch));
        }
        held
    }
}

fn zero(kind: crate::Kind) -> Value {
    match kind {
        crate::Kind::Int | crate::Kind::Time => Value::Int(0),
        crate::Kind::Text => Value::Text(String::new()),
        crate::Kind::Bytes => Value::Bytes(vec![]),
    }
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Journal for Memory {
    fn open(&self, tables: &[&'static Table]) -> Reply<()> {
        let mut state = self.state();
        Reply::ready(tables.iter().try_for_each(|table| state.open(table)))
    }

    fn commit(&self, batch: Batch) -> Reply<()> {
        Reply::ready(self.state().commit(batch))
    }

    fn scan(&self, query: Query) -> Reply<Page> {
        Reply::ready(self.state().scan(&query))
    }

    fn claim(&self, shards: &[Shard], owner: &Owner, lease: Duration) -> Reply<Vec<(Shard, Epoch)>> {
        Reply::ready(Ok(self.state().claim(shards, owner, lease)))
    }
}
