//! Search over executions: Conductor's grammar, our rows. Reads what was committed, so it sees every answered call.

use std::ops::Bound;

use ballet_core::{Timestamp, WorkflowsError};
use ballet_store::{Filter, Journal, Query, Row, Value as Cell};

use crate::handle::unavailable;
use crate::state::Execution;
use crate::tables::{self, EXECUTIONS, REMOVED, execution};

/// Rows that one search reads at most; `total` stops counting there.
pub const MAX_SCANNED: usize = 20_000;

/// A question.
#[derive(Clone, Debug)]
pub struct Search {
    /// `status=FAILED AND workflowType IN (a,b) AND startTime>1700000000000`.
    pub query: String,
    /// A substring of the stored state, ASCII letters in either case; `*` or empty for all.
    pub free_text: String,
    /// `startTime:DESC`, only by time. Default: the newest first.
    pub sort: String,
    /// Results to skip.
    pub start: usize,
    /// Results at most.
    pub size: usize,
}

/// An answer.
#[derive(Debug)]
pub struct Found {
    /// Matches, at most as many as were read.
    pub total: usize,
    /// This page of them, without attempts.
    pub(crate) executions: Vec<Execution>,
}

/// One condition that an index or filter of the journal cannot answer.
#[derive(Debug)]
struct Like {
    column: usize,
    pattern: String,
}

pub(crate) async fn run(journal: &dyn Journal, search: &Search) -> Result<Found, WorkflowsError> {
    let (filters, likes) = conditions(&search.query)?;
    let ascending = match search.sort.split('|').next().unwrap_or_default().split_once(':') {
        Some(("startTime" | "createTime" | "updateTime", order)) => order.eq_ignore_ascii_case("ASC"),
        Some(_) | None => false,
    };
    let eq = |column: usize| filters.iter().any(|f| matches!(f, Filter::Eq(c, _) if *c == column));
    let by = if eq(execution::CORRELATION) {
        execution::BY_CORRELATION
    } else if eq(execution::NAME) {
        execution::BY_NAME
    } else if eq(execution::STATUS) {
        execution::BY_STATUS
    } else {
        execution::BY_CREATED
    };
    let mut query = Query::of(&EXECUTIONS).by(by);
    query.filters = filters;
    if !ascending {
        query = query.down();
    }
    if !matches!(search.free_text.as_str(), "" | "*") {
        query = query.filter(Filter::Contains(execution::STATE, search.free_text.clone()));
    }
    let (mut total, mut scanned, mut executions) = (0, 0, vec![]);
    loop {
        let page = journal.scan(query.clone()).await.map_err(unavailable)?;
        scanned += page.rows.len();
        for row in page.rows.iter().filter(|row| row[execution::STATUS].text() != REMOVED && matches(row, &likes)) {
            if total >= search.start && executions.len() < search.size {
                executions.push(tables::parse(row).map_err(unavailable)?);
            }
            total += 1;
        }
        query.after = page.next;
        if query.after.is_none() || scanned >= MAX_SCANNED {
            return Ok(Found { total, executions });
        }
    }
}

fn matches(row: &Row, likes: &[Like]) -> bool {
    likes.iter().all(|like| wildcard(&like.pattern, &row[like.column].text().to_lowercase()))
}

/// `*` stands for anything.
fn wildcard(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn conditions(query: &str) -> Result<(Vec<Filter>, Vec<Like>), WorkflowsError> {
    let (mut filters, mut likes) = (vec![], vec![]);
    for condition in query.split(" AND ").map(str::trim).filter(|c| !c.is_empty() && *c != "*") {
        let bad = || WorkflowsError::Invalid(format!("cannot read the condition `{condition}`"));
        let unquote = |text: &str| text.trim().trim_matches(|c| c == '\'' || c == '"').to_owned();
        let upper = condition.to_uppercase();
        let (field, operator, value) = if let Some(at) = upper.find(" IN ") {
            (&condition[..at], "IN", &condition[at + 4..])
        } else {
            let at = condition.find(['=', '<', '>']).ok_or_else(bad)?;
            (&condition[..at], &condition[at..=at], &condition[at + 1..])
        };
        let (column, time) = match field.trim() {
            "workflowId" => (execution::ID, false),
            "workflowType" | "workflowName" => (execution::NAME, false),
            "status" => (execution::STATUS, false),
            "correlationId" => (execution::CORRELATION, false),
            "compensation" => (execution::COMPENSATION, false),
            "version" => (execution::VERSION, true),
            "startTime" | "createTime" => (execution::CREATED, true),
            "updateTime" => (execution::UPDATED, true),
            "endTime" => (execution::ENDED, true),
            // As the grammar says: unknown fields are no error.
            _ => continue,
        };
        let cell = |text: &str| -> Result<Cell, WorkflowsError> {
            if !time {
                return Ok(Cell::Text(unquote(text)));
            }
            let text = unquote(text);
            let number = text.parse().ok().or_else(|| Timestamp::parse(&text).map(|t| t.0));
            number.map(Cell::Int).ok_or_else(bad)
        };
        match operator {
            "IN" => {
                let list = value.trim().strip_prefix('(').and_then(|v| v.strip_suffix(')')).ok_or_else(bad)?;
                filters.push(Filter::In(column, list.split(',').map(cell).collect::<Result<_, _>>()?));
            }
            "=" if !time && value.contains('*') => {
                likes.push(Like { column, pattern: unquote(value).to_lowercase() });
            }
            "=" => filters.push(Filter::Eq(column, cell(value)?)),
            ">" => filters.push(Filter::Range(column, Bound::Excluded(cell(value)?), Bound::Unbounded)),
            _ => filters.push(Filter::Range(column, Bound::Unbounded, Bound::Excluded(cell(value)?))),
        }
    }
    Ok((filters, likes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_anything() {
        for (pattern, text, hit) in [
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c", "abc", true),
            ("*", "", true),
            ("b*", "abc", false),
            ("a*b", "abc", false),
            ("*b*", "abc", true),
        ] {
            assert_eq!(wildcard(pattern, text), hit, "{pattern} {text}");
        }
    }

    #[test]
    fn conditions_are_read_or_refused() {
        let (filters, likes) =
            conditions("status IN (FAILED,'TIMED_OUT') AND workflowType=check* AND startTime>17 AND foo=1").unwrap();
        assert_eq!((filters.len(), likes.len()), (2, 1));
        for bad in ["status", "startTime>soon", "status IN FAILED"] {
            assert!(conditions(bad).is_err(), "{bad}");
        }
    }
}
