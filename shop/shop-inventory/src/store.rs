//! The SQL, behind plain functions. Every change of stock tells the world (`stock.changed`).

use ballet_service::{Result, Tx};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Stock of one product.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stock {
    pub(crate) product_id: String,
    pub(crate) available: i64,
    pub(crate) reserved: i64,
    /// Grows with every change.
    #[serde(skip)]
    pub(crate) version: i64,
}

/// So many of a product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Item {
    pub(crate) product_id: String,
    pub(crate) quantity: i64,
}

/// What was set aside for an order.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reservation {
    pub(crate) order_id: String,
    pub(crate) state: State,
    pub(crate) items: Vec<Item>,
}

/// Where a reservation is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Held,
    Sold,
    Returned,
    Released,
}

/// How stock changes. Each is one conditional statement: no row, no change.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Increase,
    Decrease,
    Hold,
    Release,
    Sell,
    Return,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Sold => "sold",
            Self::Returned => "returned",
            Self::Released => "released",
        }
    }
}

impl Change {
    fn sql(self) -> &'static str {
        match self {
            Self::Increase => "increased = increased + ?2, available = available + ?2",
            Self::Decrease => "decreased = decreased + ?2, available = available - ?2",
            Self::Hold => "available = available - ?2, reserved = reserved + ?2",
            Self::Release => "available = available + ?2, reserved = reserved - ?2",
            Self::Sell => "reserved = reserved - ?2",
            Self::Return => "available = available + ?2",
        }
    }

    /// Whether there must be as many as are taken.
    fn takes(self) -> bool {
        match self {
            Self::Decrease | Self::Hold => true,
            Self::Increase | Self::Release | Self::Sell | Self::Return => false,
        }
    }
}

pub(crate) fn stock(db: &Connection, product: &str) -> Result<Option<Stock>> {
    let mut select =
        db.prepare_cached("SELECT product_id, available, reserved, version FROM stock WHERE product_id = ?1")?;
    Ok(select.query_row([product], as_stock).optional()?)
}

/// Changes the stock of a product and tells of it. `None` if there is no such product, or not enough of it.
pub(crate) fn change(tx: &Tx<'_>, change: Change, product: &str, quantity: i64) -> Result<Option<Stock>> {
    let enough = if change.takes() { "available >= ?2" } else { "true" };
    let sql = format!(
        "UPDATE stock SET {}, version = version + 1 WHERE product_id = ?1 AND {enough}
         RETURNING product_id, available, reserved, version",
        change.sql()
    );
    let changed = tx.prepare_cached(&sql)?.query_row(params![product, quantity], as_stock).optional()?;
    if let Some(stock) = &changed {
        let Stock { product_id, available, reserved, version } = stock;
        let told = json!({"productId": product_id, "available": available, "reserved": reserved, "version": version});
        tx.publish("stock.changed", product_id, &told)?;
    }
    Ok(changed)
}

pub(crate) fn reservation(db: &Connection, order: &str) -> Result<Option<Reservation>> {
    let mut select = db.prepare_cached("SELECT order_id, state, items FROM reservations WHERE order_id = ?1")?;
    Ok(select.query_row([order], as_reservation).optional()?)
}

pub(crate) fn insert(tx: &Tx<'_>, reservation: &Reservation) -> Result<()> {
    let Reservation { order_id, state, items } = reservation;
    tx.prepare_cached("INSERT INTO reservations VALUES (?1, ?2, ?3, ?4)")?.execute(params![
        order_id,
        state.name(),
        serde_json::to_string(items)?,
        tx.now().millis()
    ])?;
    Ok(())
}

/// Moves a reservation on, and its goods with it.
pub(crate) fn step(tx: &Tx<'_>, reservation: &mut Reservation, to: State, goods: Change) -> Result<()> {
    tx.prepare_cached("UPDATE reservations SET state = ?3 WHERE order_id = ?1 AND state = ?2")?.execute(params![
        reservation.order_id,
        reservation.state.name(),
        to.name()
    ])?;
    reservation.state = to;
    for item in &reservation.items {
        change(tx, goods, &item.product_id, item.quantity)?;
    }
    Ok(())
}

/// Everything that a check of the books needs.
pub(crate) fn ledger(db: &Connection) -> Result<Value> {
    let products = db
        .prepare(
            "SELECT product_id, initial, increased, decreased, available, reserved FROM stock ORDER BY product_id",
        )?
        .query_map([], |row| {
            Ok(json!({
                "productId": row.get::<_, String>(0)?, "initial": row.get::<_, i64>(1)?,
                "increased": row.get::<_, i64>(2)?, "decreased": row.get::<_, i64>(3)?,
                "available": row.get::<_, i64>(4)?, "reserved": row.get::<_, i64>(5)?,
            }))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    let reservations = db
        .prepare("SELECT order_id, state, items FROM reservations ORDER BY order_id")?
        .query_map([], as_reservation)?
        .collect::<Result<Vec<_>, _>>()?;
    let unsent: i64 = db.query_row("SELECT count(*) FROM outbox WHERE sent_at IS NULL", [], |row| row.get(0))?;
    Ok(json!({"products": products, "reservations": reservations, "unsent": unsent}))
}

fn as_stock(row: &Row<'_>) -> rusqlite::Result<Stock> {
    Ok(Stock { product_id: row.get(0)?, available: row.get(1)?, reserved: row.get(2)?, version: row.get(3)? })
}

fn as_reservation(row: &Row<'_>) -> rusqlite::Result<Reservation> {
    let state = match row.get::<_, String>(1)?.as_str() {
        "held" => State::Held,
        "sold" => State::Sold,
        "returned" => State::Returned,
        _ => State::Released,
    };
    let items: String = row.get(2)?;
    let items = serde_json::from_str(&items)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, Box::new(error)))?;
    Ok(Reservation { order_id: row.get(0)?, state, items })
}
