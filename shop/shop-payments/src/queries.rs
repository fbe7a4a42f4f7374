//! Queries.

use ballet_service::axum::Json;
use ballet_service::axum::extract::{Path, Query};
use ballet_service::{Caller, Context, Internal, Result, Staff, problem};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::store::{self, Payment};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OfOrder {
    order_id: Option<String>,
}

pub(crate) async fn read(caller: Caller, ctx: Context, Path(id): Path<String>) -> Result<Json<Payment>> {
    if caller == Caller::Anyone {
        return Err(problem::unauthorized("a bearer token is needed").into());
    }
    let payment = ctx.store().read(move |db| store::payment(db, &id)).await?;
    let payment = payment.ok_or_else(|| problem::not_found("no such payment"))?;
    match caller {
        Caller::User(user) if !user.may_see(payment.user_id.as_deref().unwrap_or_default()) => {
            Err(problem::forbidden("somebody else's payment").into())
        }
        Caller::User(_) | Caller::Service(_) | Caller::Anyone => Ok(Json(payment)),
    }
}

/// Every attempt at an order that was kept.
pub(crate) async fn list(_: Staff, ctx: Context, Query(of): Query<OfOrder>) -> Result<Json<Value>> {
    let order = of.order_id.ok_or_else(|| problem::field("orderId", "is required"))?;
    let items = ctx.store().read(move |db| store::of_order(db, &order)).await?;
    Ok(Json(json!({"items": items})))
}

pub(crate) async fn ledger(_: Internal, ctx: Context) -> Result<Json<Value>> {
    Ok(Json(ctx.store().read(store::ledger).await?))
}
