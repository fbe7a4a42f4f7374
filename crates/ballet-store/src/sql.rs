//! SQL that the drivers share: declared tables as statements. Dialects differ in placeholders and types only.

use std::ops::Bound;

use crate::{By, Filter, Kind, Query, StoreError, Table, Value};

/// Names of columns, divided by commas.
pub fn names(table: &Table, columns: impl IntoIterator<Item = usize>) -> String {
    columns.into_iter().map(|c| table.columns[c].0).collect::<Vec<_>>().join(",")
}

/// The tail of an insert that replaces a row with the same key.
pub fn upsert(table: &Table) -> String {
    let set = |c: usize| format!("{0}=excluded.{0}", table.columns[c].0);
    let rest: Vec<String> = (table.key..table.columns.len()).map(set).collect();
    let act = if rest.is_empty() { "NOTHING".into() } else { format!("UPDATE SET {}", rest.join(",")) };
    format!(" ON CONFLICT({}) DO {act}", names(table, 0..table.key))
}

fn shape(table: &Table) -> String {
    let columns: Vec<String> = table.columns.iter().map(|(name, kind)| format!("{name} {kind:?}")).collect();
    format!("{}/{}", table.key, columns.join(","))
}

/// What `open` must run, given the shape kept from last time, and the shape to keep: create, add columns, or nothing.
///
/// `column_type` names a kind and its zero literal; `tail` follows the closing bracket. A stored table that has *more*
/// columns is fine (a newer version ran here); every other difference is `Shape`.
pub fn migrate(
    table: &Table,
    stored: Option<&str>,
    column_type: impl Fn(Kind) -> (&'static str, &'static str),
    tail: &str,
) -> Result<(Vec<String>, String), StoreError> {
    let (shape, mut out) = (shape(table), vec![]);
    let column = |c: &(&str, Kind)| format!("{} {} NOT NULL", c.0, column_type(c.1).0);
    let keep = match stored {
        None => {
            let columns: Vec<String> = table.columns.iter().map(column).collect();
            let key = names(table, 0..table.key);
            out.push(format!("CREATE TABLE {}({}, PRIMARY KEY({key})){tail}", table.name, columns.join(", ")));
            shape
        }
        Some(old) if old == shape || old.starts_with(&format!("{shape},")) => old.into(),
        Some(old) if shape.starts_with(&format!("{old},")) => {
            for c in &table.columns[old.split(',').count()..] {
                let zero = column_type(c.1).1;
                out.push(format!("ALTER TABLE {} ADD COLUMN {} DEFAULT {zero}", table.name, column(c)));
            }
            shape
        }
        Some(old) => {
            let name = table.name;
            let why =
                format!("`{name}` is stored as {old} and declared as {shape}: only columns at the end may be added");
            return Err(StoreError::Shape(why));
        }
    };
    for (i, index) in table.indexes.iter().enumerate() {
        let name = format!("{}_by_{}", table.name, names(table, index.iter().copied()).replace(',', "_"));
        let columns = names(table, table.order(By::Index(i)));
        out.push(format!("CREATE INDEX IF NOT EXISTS {name} ON {}({columns})", table.name));
    }
    Ok((out, keep))
}

/// The statement of a scan and its values; `at` writes a placeholder, `has` the case-blind containment.
pub fn select(query: &Query, at: impl Fn(usize) -> String, has: impl Fn(&str, &str) -> String) -> (String, Vec<Value>) {
    let (table, mut values, mut conditions) = (query.table, vec![], vec![]);
    let mut bind = |value: &Value| {
        values.push(value.clone());
        at(values.len())
    };
    for filter in &query.filters {
        match filter {
            Filter::Eq(c, value) => conditions.push(format!("{}={}", table.columns[*c].0, bind(value))),
            Filter::In(c, list) => {
                let places: Vec<String> = list.iter().map(&mut bind).collect();
                conditions.push(format!("{} IN ({})", table.columns[*c].0, places.join(",")));
            }
            Filter::Contains(c, needle) => {
                let place = bind(&Value::Text(needle.to_ascii_lowercase()));
                conditions.push(has(table.columns[*c].0, &place));
            }
            Filter::Range(c, from, to) => {
                for (bound, op) in [(from, '>'), (to, '<')] {
                    match bound {
                        Bound::Included(v) => conditions.push(format!("{}{op}={}", table.columns[*c].0, bind(v))),
                        Bound::Excluded(v) => conditions.push(format!("{}{op}{}", table.columns[*c].0, bind(v))),
                        Bound::Unbounded => {}
                    }
                }
            }
        }
    }
    let order = table.order(query.by);
    if let Some(after) = &query.after {
        let places: Vec<String> = after.iter().map(&mut bind).collect();
        let op = if query.down { '<' } else { '>' };
        conditions.push(format!("({}){op}({})", names(table, order.iter().copied()), places.join(",")));
    }
    let direction = if query.down { " DESC" } else { "" };
    let filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    let order: Vec<String> = order.iter().map(|c| format!("{}{direction}", table.columns[*c].0)).collect();
    let columns = names(table, 0..table.columns.len());
    let (name, order, limit) = (table.name, order.join(","), query.limit);
    (format!("SELECT {columns} FROM {name}{filter} ORDER BY {order} LIMIT {limit}"), values)
}
