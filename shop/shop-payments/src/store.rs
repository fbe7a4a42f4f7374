//! The SQL, behind plain functions.

use ballet_service::{Result, Timestamp, Tx, rfc3339};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::{Value, json};

use crate::card::{Behaviour, Card};

/// A payment, as it is shown.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Payment {
    pub(crate) id: String,
    pub(crate) order_id: String,
    #[serde(skip)]
    pub(crate) user_id: Option<String>,
    pub(crate) amount: i64,
    pub(crate) currency: String,
    #[serde(skip)]
    pub(crate) card: String,
    pub(crate) status: Status,
    #[serde(with = "rfc3339")]
    pub(crate) created_at: Timestamp,
}

/// What became of the money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Status {
    Captured,
    Declined,
    Refunded,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Captured => "CAPTURED",
            Self::Declined => "DECLINED",
            Self::Refunded => "REFUNDED",
        }
    }

    fn topic(self) -> &'static str {
        match self {
            Self::Captured => "payment.captured",
            Self::Declined => "payment.declined",
            Self::Refunded => "payment.refunded",
        }
    }
}

const PAYMENT: &str = "SELECT id, order_id, user_id, amount, currency, card, status, created_at FROM payments";

pub(crate) fn add_card(tx: &Tx<'_>, id: &str, user: &str, card: &Card) -> Result<()> {
    let Card { last4, brand, expiry, behaviour } = card;
    tx.prepare_cached("INSERT INTO cards VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params![
        id,
        user,
        last4,
        brand,
        expiry,
        behaviour.name(),
        tx.now().millis()
    ])?;
    Ok(())
}

/// What the bank does with this card of this user; it refuses cards that are unknown or somebody else's.
pub(crate) fn behaviour(db: &Connection, card: &str, user: Option<&str>) -> Result<Behaviour> {
    let found: Option<String> = db
        .prepare_cached("SELECT behaviour FROM cards WHERE id = ?1 AND (user_id IS NULL OR user_id = ?2)")?
        .query_row(params![card, user], |row| row.get(0))
        .optional()?;
    Ok(match found.as_deref() {
        Some("pays") => Behaviour::Pays,
        Some("flaky") => Behaviour::Flaky,
        Some(_) | None => Behaviour::Refuses,
    })
}

/// Notes that the bank failed; how often it has for this order.
pub(crate) fn count_failure(tx: &Tx<'_>, order: &str) -> Result<i64> {
    let mut count = tx.prepare_cached(
        "INSERT INTO failures VALUES (?1, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times",
    )?;
    Ok(count.query_row([order], |row| row.get(0))?)
}

/// Keeps a payment and tells of it.
pub(crate) fn insert(tx: &Tx<'_>, payment: &Payment) -> Result<()> {
    let Payment { id, order_id, user_id, amount, currency, card, status, created_at } = payment;
    tx.prepare_cached(
        "INSERT INTO payments (id, order_id, user_id, amount, currency, card, status, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![id, order_id, user_id, amount, currency, card, status.name(), created_at.millis()])?;
    tell(tx, payment, 1)
}

/// CAPTURED -> REFUNDED.
pub(crate) fn refund(tx: &Tx<'_>, payment: &mut Payment) -> Result<()> {
    let version = tx
        .prepare_cached(
            "UPDATE payments SET status = 'REFUNDED', version = version + 1 WHERE id = ?1 AND status = 'CAPTURED'
             RETURNING version",
        )?
        .query_row([&payment.id], |row| row.get(0))?;
    payment.status = Status::Refunded;
    tell(tx, payment, version)
}

fn tell(tx: &Tx<'_>, payment: &Payment, version: i64) -> Result<()> {
    let Payment { id, order_id, user_id, amount, currency, .. } = payment;
    let data = json!({
        "id": id, "orderId": order_id, "userId": user_id, "amount": amount, "currency": currency, "version": version
    });
    tx.publish(payment.status.topic(), id, &data)
}

pub(crate) fn payment(db: &Connection, id: &str) -> Result<Option<Payment>> {
    Ok(db.prepare_cached(&format!("{PAYMENT} WHERE id = ?1"))?.query_row([id], as_payment).optional()?)
}

/// The one payment of an order that took money, refunded or not.
pub(crate) fn charge(db: &Connection, order: &str) -> Result<Option<Payment>> {
    let mut select = db.prepare_cached(&format!("{PAYMENT} WHERE order_id = ?1 AND status <> 'DECLINED'"))?;
    Ok(select.query_row([order], as_payment).optional()?)
}

pub(crate) fn of_order(db: &Connection, order: &str) -> Result<Vec<Payment>> {
    let mut select = db.prepare_cached(&format!("{PAYMENT} WHERE order_id = ?1 ORDER BY id"))?;
    let rows = select.query_map([order], as_payment)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Everything that a check of the books needs.
pub(crate) fn ledger(db: &Connection) -> Result<Value> {
    let payments =
        db.prepare(&format!("{PAYMENT} ORDER BY id"))?.query_map([], as_payment)?.collect::<Result<Vec<_>, _>>()?;
    let unsent: i64 = db.query_row("SELECT count(*) FROM outbox WHERE sent_at IS NULL", [], |row| row.get(0))?;
    Ok(json!({"payments": payments, "unsent": unsent}))
}

fn as_payment(row: &Row<'_>) -> rusqlite::Result<Payment> {
    let status = match row.get::<_, String>(6)?.as_str() {
        "CAPTURED" => Status::Captured,
        "REFUNDED" => Status::Refunded,
        _ => Status::Declined,
    };
    Ok(Payment {
        id: row.get(0)?,
        order_id: row.get(1)?,
        user_id: row.get(2)?,
        amount: row.get(3)?,
        currency: row.get(4)?,
        card: row.get(5)?,
        status,
        created_at: Timestamp(row.get(7)?),
    })
}
