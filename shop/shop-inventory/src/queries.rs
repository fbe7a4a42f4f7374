//! Queries.

use ballet_service::axum::Json;
use ballet_service::axum::extract::Path;
use ballet_service::{Context, Internal, Result, problem};
use serde_json::Value;

use crate::store::{self, Stock};

pub(crate) async fn stock(ctx: Context, Path(product): Path<String>) -> Result<Json<Stock>> {
    let stock = ctx.store().read(move |db| store::stock(db, &product)).await?;
    Ok(Json(stock.ok_or_else(|| problem::not_found("no such product"))?))
}

pub(crate) async fn ledger(_: Internal, ctx: Context) -> Result<Json<Value>> {
    Ok(Json(ctx.store().read(store::ledger).await?))
}
