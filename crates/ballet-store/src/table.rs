//! Declared tables: what an engine keeps, by column, key and index.

use crate::{By, StoreError};

/// A column's kind. There is no NULL: a column that was added later reads as its kind's zero in old rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Int,
    /// Milliseconds since 1970, as an integer in every driver.
    Time,
    /// UTF-8 without U+0000, ordered by its bytes.
    Text,
    /// Bytes, ordered by themselves.
    Bytes,
}

/// A value of a column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// Of `Int` and `Time` columns.
    Int(i64),
    /// Of `Text` columns.
    Text(String),
    /// Of `Bytes` columns.
    Bytes(Vec<u8>),
}

impl Value {
    /// The integer, or 0 of another kind.
    pub fn int(&self) -> i64 {
        match self {
            Self::Int(i) => *i,
            Self::Text(_) | Self::Bytes(_) => 0,
        }
    }

    /// The text, or "" of another kind.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(t) => t,
            Self::Int(_) | Self::Bytes(_) => "",
        }
    }

    /// The bytes of a `Bytes` or `Text` value, or none.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(b) => b,
            Self::Text(t) => t.as_bytes(),
            Self::Int(_) => &[],
        }
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.into())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(value)
    }
}

/// One value for each declared column, in declared order.
pub type Row = Vec<Value>;

/// Builds a [`Row`] from integers, texts and byte vectors.
#[macro_export]
macro_rules! row {
    ($($value:expr),* $(,)?) => { vec![$($crate::Value::from($value)),*] };
}

/// A table. Declare it as a `static`: operations name it by reference.
#[derive(Debug)]
pub struct Table {
    /// Its name: a-z, 0-9 and `_`.
    pub name: &'static str,
    /// The first `key` columns are the primary key.
    pub key: usize,
    /// Name and kind of each column. Later versions may add columns at the end.
    pub columns: &'static [(&'static str, Kind)],
    /// Each index: positions of its columns. The key follows them, so that pages have a total order.
    pub indexes: &'static [&'static [usize]],
}

/// Key and indexed columns of one row together, in bytes. (Postgres refuses index entries above 2,704.)
pub const MAX_INDEXED_BYTES: usize = 1024;

impl Table {
    /// Checks number, kinds and sizes of the first `columns` values.
    pub fn check(&self, columns: usize, values: &[Value]) -> Result<(), StoreError> {
        let bad = |why: &str| Err(StoreError::Invalid(format!("{}: {why}", self.name)));
        if values.len() != columns {
            return bad("wrong number of values");
        }
        let mut indexed = 0;
        for (i, value) in values.iter().enumerate() {
            let len = match (value, self.columns[i].1) {
                (Value::Int(_), Kind::Int | Kind::Time) => 8,
                (Value::Text(s), Kind::Text) if s.as_bytes().contains(&0) => return bad("U+0000 in text"),
                (Value::Text(s), Kind::Text) => s.len(),
                (Value::Bytes(b), Kind::Bytes) => b.len(),
                (Value::Int(_) | Value::Text(_) | Value::Bytes(_), _) => return bad("wrong kind of value"),
            };
            if i < self.key || self.indexes.iter().any(|x| x.contains(&i)) {
                indexed += len;
            }
        }
        if indexed > MAX_INDEXED_BYTES { bad("key and indexed columns are too long") } else { Ok(()) }
    }

    /// The columns that order an answer: those of an index and then the key, or the key alone.
    pub fn order(&self, by: By) -> Vec<usize> {
        let first: &[usize] = match by {
            By::Key => &[],
            By::Index(i) => self.indexes[i],
        };
        first.iter().copied().chain((0..self.key).filter(|k| !first.contains(k))).collect()
    }
}
