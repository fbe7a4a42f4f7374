//! The table `notifications`, which is a work queue too: PENDING rows that are due wait for a worker.
//!
//! Whoever claims a row moves `due_at` to the end of its lease. A worker that dies leaves a row that becomes due again; so a
//! message is sent at least once, and always under the same id.

use std::time::Duration;

use ballet_service::{Result, Timestamp, Tx, new_id};
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

/// The task that is woken when a message is put into the queue.
pub(crate) const WAKES: &str = "sender";
/// How long a claimed message is its worker's: longer than an attempt may take.
const LEASE: Duration = Duration::from_secs(30);
/// Rest after the first failed attempt; it doubles.
const REST: Duration = Duration::from_millis(200);
/// Longest rest between two attempts.
const REST_MAX: Duration = Duration::from_secs(10);
/// How long a message is tried, as mail servers do; then it has FAILED.
const PATIENCE: Duration = Duration::from_secs(3 * 86_400);

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Channel {
    Email,
    Sms,
}

pub(crate) struct NewMessage<'a> {
    /// Order, outcome, user.
    pub(crate) order: Option<(&'a str, &'a str, &'a str)>,
    pub(crate) channel: Channel,
    pub(crate) recipient: Option<&'a str>,
    pub(crate) subject: Option<&'a str>,
    pub(crate) text: &'a str,
}

/// A claimed message.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) user_id: Option<String>,
    pub(crate) channel: Channel,
    pub(crate) recipient: Option<String>,
    pub(crate) subject: Option<String>,
    pub(crate) text: String,
    pub(crate) attempts: u32,
    pub(crate) created_at: Timestamp,
}

/// Puts a message into the queue; its id, or `None` if there is one for this order and outcome.
pub(crate) fn put(tx: &Tx<'_>, message: &NewMessage<'_>) -> Result<Option<String>> {
    let (order, outcome, user) = message.order.map_or((None, None, None), |(o, n, u)| (Some(o), Some(n), Some(u)));
    let id = new_id();
    let now = tx.now().millis();
    let put = tx
        .prepare_cached(
            "INSERT INTO notifications
                (id, order_id, outcome, user_id, channel, recipient, subject, text, due_at, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?9) ON CONFLICT (order_id, outcome) DO NOTHING",
        )?
        .execute(params![
            id,
            order,
            outcome,
            user,
            message.channel,
            message.recipient,
            message.subject,
            message.text,
            now
        ])?;
    tx.wake(WAKES);
    Ok((put > 0).then_some(id))
}

/// When the next message is due; it may have been for long.
pub(crate) fn next_due(db: &Connection) -> Result<Option<Timestamp>> {
    let sql = "SELECT min(due_at) FROM notifications WHERE status = 'PENDING'";
    let due: Option<i64> = db.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(due.map(Timestamp))
}

/// Takes messages that are due, the longest waiting first.
pub(crate) fn claim(tx: &Tx<'_>, most: usize) -> Result<Vec<Message>> {
    let claimed = tx
        .prepare_cached(
            "UPDATE notifications SET due_at = ?2, attempts = attempts + 1 WHERE id IN
                (SELECT id FROM notifications WHERE status = 'PENDING' AND due_at <= ?1 ORDER BY due_at LIMIT ?3)
             RETURNING id, user_id, channel, recipient, subject, text, attempts, created_at",
        )?
        .query_map(params![tx.now().millis(), tx.now().plus(LEASE).millis(), most as i64], read)?
        .collect::<Result<_, _>>()?;
    Ok(claimed)
}

/// It was sent, to this address.
pub(crate) fn sent(tx: &Tx<'_>, id: &str, recipient: &str) -> Result<()> {
    tx.prepare_cached(
        "UPDATE notifications SET status = 'SENT', recipient = ?2, sent_at = ?3, error = NULL
         WHERE id = ?1 AND status = 'PENDING'",
    )?
    .execute(params![id, recipient, tx.now().millis()])?;
    Ok(())
}

/// It will never be sent.
pub(crate) fn failed(tx: &Tx<'_>, id: &str, error: &str) -> Result<()> {
    tx.prepare_cached("UPDATE notifications SET status = 'FAILED', error = ?2 WHERE id = ?1 AND status = 'PENDING'")?
        .execute([id, error])?;
    Ok(())
}

/// An attempt failed: again after a rest, unless it was tried for long enough.
pub(crate) fn again(tx: &Tx<'_>, message: &Message, error: &str) -> Result<()> {
    if tx.now().since(message.created_at) > PATIENCE {
        return failed(tx, &message.id, error);
    }
    tx.prepare_cached("UPDATE notifications SET due_at = ?2, error = ?3 WHERE id = ?1 AND status = 'PENDING'")?
        .execute(params![message.id, tx.now().plus(rest(message.attempts)).millis(), error])?;
    Ok(())
}

/// Rest after this many attempts.
fn rest(attempts: u32) -> Duration {
    REST.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(REST_MAX)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Message> {
    Ok(Message {
        id: row.get(0)?,
        user_id: row.get(1)?,
        channel: row.get(2)?,
        recipient: row.get(3)?,
        subject: row.get(4)?,
        text: row.get(5)?,
        attempts: row.get(6)?,
        created_at: Timestamp(row.get(7)?),
    })
}

impl ToSql for Channel {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Email => "email".into(),
            Self::Sms => "sms".into(),
        })
    }
}

impl FromSql for Channel {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "email" => Ok(Self::Email),
            "sms" => Ok(Self::Sms),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_double_up_to_their_limit() {
        let rests = [1, 2, 3, 6, 7, 1_000_000].map(|attempts| rest(attempts).as_millis());
        assert_eq!(rests, [200, 400, 800, 6_400, 10_000, 10_000]);
    }
}
