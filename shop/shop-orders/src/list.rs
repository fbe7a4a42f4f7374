//! The projection behind `GET /orders`: a customer's orders, kept up to date by the orders' own events.

use ballet_service::{Event, Money, Projection, Result, Timestamp, Tx, rfc3339};
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::store::as_json;

/// A row of the list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listed {
    pub(crate) id: String,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    items: Value,
    total: Money,
    #[serde(with = "rfc3339")]
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_id: Option<String>,
}

/// What the list reads of an order's events.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    id: String,
    user_id: String,
    #[serde(default)]
    items: Value,
    total: Money,
    reason: Option<String>,
    payment_id: Option<String>,
}

pub(crate) struct OrderList;

impl Projection for OrderList {
    fn name(&self) -> &'static str {
        "order_list"
    }

    fn apply(&self, tx: &Tx<'_>, event: &Event) -> Result<()> {
        let status = match event.topic.as_str() {
            "order.placed" => return placed(tx, event),
            "order.confirmed" => "CONFIRMED",
            "order.rejected" => "REJECTED",
            "order.cancelled" => "CANCELLED",
            _ => return Ok(()),
        };
        let Told { id, reason, payment_id, .. } = serde_json::from_value(event.data.clone())?;
        tx.prepare_cached(
            "UPDATE order_list SET status = ?2, reason = ?3, payment_id = coalesce(?4, payment_id) WHERE id = ?1",
        )?
        .execute(params![id, status, reason, payment_id])?;
        Ok(())
    }

    fn rebuild(&self, tx: &Tx<'_>) -> Result<()> {
        Ok(tx.execute_batch(
            "DELETE FROM order_list;
             INSERT INTO order_list SELECT id, user_id, status, reason, items, amount, currency, payment_id, created_at
             FROM orders;",
        )?)
    }
}

fn placed(tx: &Tx<'_>, event: &Event) -> Result<()> {
    let Told { id, user_id, items, total, .. } = serde_json::from_value(event.data.clone())?;
    let created_at = event.time.as_deref().and_then(Timestamp::parse).unwrap_or_else(|| tx.now());
    tx.prepare_cached("INSERT OR IGNORE INTO order_list VALUES (?1, ?2, 'PENDING', NULL, ?3, ?4, ?5, NULL, ?6)")?
        .execute(params![id, user_id, items.to_string(), total.amount, total.currency, created_at.millis()])?;
    Ok(())
}

/// A user's orders behind the order `after`, newest first.
pub(crate) fn of_user(db: &Connection, user: &str, after: &str, rows: i64) -> Result<Vec<Listed>> {
    let mut select = db.prepare_cached(
        "SELECT id, status, reason, items, amount, currency, created_at, payment_id FROM order_list
         WHERE user_id = ?1 AND (?2 = '' OR (created_at, id) < (SELECT created_at, id FROM order_list WHERE id = ?2))
         ORDER BY created_at DESC, id DESC LIMIT ?3",
    )?;
    let found = select.query_map(params![user, after, rows], as_listed)?;
    Ok(found.collect::<Result<_, _>>()?)
}

fn as_listed(row: &Row<'_>) -> rusqlite::Result<Listed> {
    Ok(Listed {
        id: row.get(0)?,
        status: row.get(1)?,
        reason: row.get(2)?,
        items: as_json(row, 3)?.unwrap_or_default(),
        total: Money { amount: row.get(4)?, currency: row.get(5)? },
        created_at: Timestamp(row.get(6)?),
        payment_id: row.get(7)?,
    })
}
