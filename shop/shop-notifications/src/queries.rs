//! What only reads.

use axum::Json;
use axum::extract::Query;
use ballet_service::{Context, Internal, Page, Paging, Result, Timestamp, User};
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::queue::Channel;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Wanted {
    #[serde(default)]
    order_id: String,
}

/// A notification as its user sees it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Notification {
    id: String,
    order_id: Option<String>,
    channel: Channel,
    /// Null until it is sent, if users is asked then.
    to: Option<String>,
    subject: Option<String>,
    text: String,
    status: String,
    sent_at: Option<String>,
}

/// `GET /notifications?orderId=`: of that order, or all; users see their own, staff sees everyone's.
pub(crate) async fn list(
    ctx: Context,
    user: User,
    paging: Paging,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Page<Notification>>> {
    let (after, rows) = (paging.after.clone(), paging.rows());
    let found = ctx.store().read(move |db| {
        let found = db
            .prepare_cached(
                "SELECT id, order_id, channel, recipient, subject, text, status, sent_at FROM notifications
                 WHERE id > ?1 AND (?2 = '' OR order_id = ?2) AND (?3 OR user_id = ?4) ORDER BY id LIMIT ?5",
            )?
            .query_map(params![after, wanted.order_id, user.is_staff(), user.id, rows], read)?
            .collect::<Result<Vec<_>, _>>()?;
        Ok(found)
    });
    Ok(Json(paging.page(found.await?, |notification| notification.id.clone())))
}

/// `GET /ledger`: what the ledger's checker compares with the other services.
pub(crate) async fn ledger(ctx: Context, _internal: Internal) -> Result<Json<Value>> {
    let read = ctx.store().read(|db| {
        let notifications = db
            .prepare("SELECT id, order_id, outcome, status FROM notifications WHERE order_id IS NOT NULL ORDER BY id")?
            .query_map([], |row| {
                let (id, order): (String, String) = (row.get(0)?, row.get(1)?);
                let (outcome, status): (String, String) = (row.get(2)?, row.get(3)?);
                Ok(json!({"id": id, "orderId": order, "outcome": outcome, "status": status}))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        let heard = db
            .prepare("SELECT order_id, type, version FROM heard ORDER BY seq")?
            .query_map([], |row| {
                let (order, kind, version): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                Ok(json!({"orderId": order, "type": kind, "version": version}))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        Ok(json!({"notifications": notifications, "heard": heard}))
    });
    read.await.map(Json)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Notification> {
    let sent_at: Option<i64> = row.get(7)?;
    Ok(Notification {
        id: row.get(0)?,
        order_id: row.get(1)?,
        channel: row.get(2)?,
        to: row.get(3)?,
        subject: row.get(4)?,
        text: row.get(5)?,
        status: row.get(6)?,
        sent_at: sent_at.map(|at| Timestamp(at).to_string()),
    })
}
