//! The reader threads: scans, on connections of their own.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Statement};
use tokio::sync::mpsc;

use ballet_store::{Answer, Page, Query, Row, StoreError, Value, sql};

use crate::sqlite::failed;
use crate::writer::bind;

/// Statements that a reader keeps. Engines ask a few dozen different questions; beyond that all are made anew.
const STATEMENTS: usize = 128;

/// Answers scans until the journal is dropped.
pub(crate) fn run(connection: &Connection, scans: &Mutex<mpsc::Receiver<(Query, Answer<Page>)>>) {
    let mut kept = HashMap::new();
    loop {
        // Held while waiting: the other readers wait for the lock instead of the queue.
        let next = scans.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some((query, answer)) = next else { return };
        if answer.is_closed() {
            continue;
        }
        let _ = answer.send(scan(connection, &mut kept, &query));
    }
}

fn scan<'c>(
    connection: &'c Connection,
    kept: &mut HashMap<String, Statement<'c>>,
    query: &Query,
) -> Result<Page, StoreError> {
    let (text, values) = sql::select(query, |n| format!("?{n}"), |column, v| format!("instr(lower({column}),{v})>0"));
    if !kept.contains_key(&text) {
        if kept.len() == STATEMENTS {
            kept.clear();
        }
        let statement = connection.prepare(&text).map_err(|e| StoreError::Invalid(e.to_string()))?;
        kept.insert(text.clone(), statement);
    }
    let statement = kept.get_mut(&text).expect("it was put there above");
    bind(statement, &values).map_err(failed)?;
    let mut found = statement.raw_query();
    let mut rows = vec![];
    while let Some(row) = found.next().map_err(failed)? {
        let value = |i| {
            Ok(match row.get_ref(i)? {
                ValueRef::Integer(i) => Value::Int(i),
                ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
                ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
                // No column of a STRICT, NOT NULL table of ours holds these.
                ValueRef::Null | ValueRef::Real(_) => Value::Int(0),
            })
        };
        rows.push((0..query.table.columns.len()).map(value).collect::<rusqlite::Result<Row>>().map_err(failed)?);
    }
    Ok(query.page(rows))
}
