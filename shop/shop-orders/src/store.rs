//! The SQL, behind plain functions.

use ballet_service::{Error, Money, Result, Timestamp, Tx, problem};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::order::{Order, Status, Told};

const ORDER: &str = "SELECT id, user_id, status, reason, items, amount, currency, card, ship_to, payment_id,
    cancel_requested, version, created_at, changed_at FROM orders";

/// Writes a new order and tells of it.
pub(crate) fn insert(tx: &Tx<'_>, order: &mut Order) -> Result<()> {
    let (topic, data) = order.placed();
    tx.prepare_cached("INSERT INTO orders VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)")?
        .execute(params![
            order.id,
            order.user_id,
            order.status.name(),
            order.reason,
            serde_json::to_string(&order.items)?,
            order.total.amount,
            order.total.currency,
            order.card,
            order.ship_to.as_ref().map(Value::to_string),
            order.payment_id,
            order.cancel_requested,
            order.version,
            order.created_at.millis(),
            order.changed_at.millis(),
        ])?;
    tx.publish(topic, &order.id, &data)
}

/// Lets an order take a step: reads it, asks `decide`, writes what changed and tells what there is to tell.
pub(crate) fn step(tx: &Tx<'_>, id: &str, decide: impl FnOnce(&mut Order) -> Result<Vec<Told>>) -> Result<Order> {
    let mut order = find(tx, id)?.ok_or_else(|| problem::not_found("no such order"))?;
    let before = (order.status, order.version);
    let told = decide(&mut order)?;
    let mut update = tx.prepare_cached(
        "UPDATE orders SET status = ?4, reason = ?5, ship_to = ?6, payment_id = ?7, cancel_requested = ?8, version = ?9,
         changed_at = ?10 WHERE id = ?1 AND status = ?2 AND version = ?3",
    )?;
    let changed = update.execute(params![
        id,
        before.0.name(),
        before.1,
        order.status.name(),
        order.reason,
        order.ship_to.as_ref().map(Value::to_string),
        order.payment_id,
        order.cancel_requested,
        order.version,
        order.changed_at.millis(),
    ])?;
    if changed != 1 {
        return Err(Error::internal("an order changed under our hands"));
    }
    for (topic, data) in told {
        tx.publish(topic, id, &data)?;
    }
    Ok(order)
}

pub(crate) fn find(db: &Connection, id: &str) -> Result<Option<Order>> {
    Ok(db.prepare_cached(&format!("{ORDER} WHERE id = ?1"))?.query_row([id], as_order).optional()?)
}

/// Everything that a check of the books needs.
pub(crate) fn ledger(db: &Connection) -> Result<Value> {
    let mut select = db.prepare(&format!("{ORDER} ORDER BY id"))?;
    let orders = select
        .query_map([], as_order)?
        .map(|order| {
            let order = order?;
            let line = |item: &crate::order::Item| json!({"productId": item.product_id, "quantity": item.quantity});
            Ok(json!({
                "id": order.id, "userId": order.user_id, "status": order.status, "reason": order.reason,
                "items": order.items.iter().map(line).collect::<Vec<_>>(), "total": order.total,
                "paymentId": order.payment_id, "card": order.card, "cancelRequested": order.cancel_requested,
            }))
        })
        .collect::<Result<Vec<_>>>()?;
    let unsent: i64 = db.query_row("SELECT count(*) FROM outbox WHERE sent_at IS NULL", [], |row| row.get(0))?;
    Ok(json!({"orders": orders, "unsent": unsent}))
}

fn as_order(row: &Row<'_>) -> rusqlite::Result<Order> {
    let status: String = row.get(2)?;
    Ok(Order {
        id: row.get(0)?,
        user_id: row.get(1)?,
        status: Status::named(&status).ok_or_else(|| strange(2, "unknown status"))?,
        reason: row.get(3)?,
        items: as_json(row, 4)?.ok_or_else(|| strange(4, "no items"))?,
        total: Money { amount: row.get(5)?, currency: row.get(6)? },
        card: row.get(7)?,
        ship_to: as_json(row, 8)?,
        payment_id: row.get(9)?,
        cancel_requested: row.get(10)?,
        version: row.get(11)?,
        created_at: Timestamp(row.get(12)?),
        changed_at: Timestamp(row.get(13)?),
    })
}

/// A column that holds JSON, or nothing.
pub(crate) fn as_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text)).transpose().map_err(|error| strange(column, error))
}

fn strange(column: usize, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, why.into())
}
