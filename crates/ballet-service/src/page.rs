//! Lists in pages, money, and times as text.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};

use crate::{Context, Error, problem};

/// Rows of a page unless `limit` says otherwise.
const DEFAULT_LIMIT: u32 = 20;
/// Most rows of a page.
const MAX_LIMIT: u32 = 100;

/// `?limit=&after=` of a list: an extractor. `limit` is 1 to 100, 20 by default; `after` is the last page's `next`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paging {
    limit: u32,
    /// Where the page begins: behind this key. Empty for the first page.
    pub after: String,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// What to give as `after` for the next page; null when this is the last one.
    pub next: Option<String>,
}

/// An amount of money in minor units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Money {
    /// Cents of an euro.
    pub amount: i64,
    /// ISO 4217: `EUR`.
    pub currency: String,
}

impl Money {
    /// An amount in minor units.
    pub fn new(amount: i64, currency: &str) -> Self {
        Self { amount, currency: currency.to_owned() }
    }
}

impl Paging {
    /// How many rows the query should ask for: one more than the page shows, to know whether there is a next one.
    pub fn rows(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// Makes a page of the rows that were found; `key` is what the next page begins behind.
    pub fn page<T>(&self, mut rows: Vec<T>, key: impl Fn(&T) -> String) -> Page<T> {
        let limit = self.limit as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        Page { next: rows.last().filter(|_| more).map(key), items: rows }
    }
}

impl FromRequestParts<Context> for Paging {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _ctx: &Context) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Raw {
            limit: Option<String>,
            after: Option<String>,
        }
        let raw: Query<Raw> =
            Query::try_from_uri(&parts.uri).map_err(|error| problem::bad_request(error.body_text()))?;
        let limit = match raw.limit.as_deref().filter(|text| !text.is_empty()) {
            None => DEFAULT_LIMIT,
            Some(text) => match text.parse() {
                Ok(limit @ 1..=MAX_LIMIT) => limit,
                Ok(_) | Err(_) => return Err(problem::field("limit", format!("a number from 1 to {MAX_LIMIT}")).into()),
            },
        };
        Ok(Self { limit, after: raw.0.after.unwrap_or_default() })
    }
}

/// `#[serde(with = "rfc3339")]`: a [`Timestamp`](crate::Timestamp) as `2026-11-21T13:30:00.250Z`.
pub mod rfc3339 {
    use ballet_core::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes it.
    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    /// Reads it.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        Timestamp::parse(&text).ok_or_else(|| de::Error::custom("not a time as in 2026-11-21T13:30:00Z"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_knows_whether_there_is_another() {
        let paging = Paging { limit: 2, after: String::new() };
        assert_eq!(paging.rows(), 3);
        let full = paging.page(vec![1, 2, 3], ToString::to_string);
        assert_eq!((full.items, full.next.as_deref()), (vec![1, 2], Some("2")));
        let last = paging.page(vec![1, 2], ToString::to_string);
        assert_eq!((last.items, last.next), (vec![1, 2], None));
    }
}
