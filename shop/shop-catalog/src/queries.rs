//! What only reads.

use axum::Json;
use axum::extract::{Path, Query};
use ballet_service::{Context, Page, Paging, Result, problem};
use serde::Deserialize;

use crate::products::{self, Product, Search};

/// What to look for; absent is everything.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    #[serde(default)]
    q: String,
    #[serde(default)]
    category: String,
}

/// `GET /products?q=&category=&limit=&after=`
pub(crate) async fn list(ctx: Context, paging: Paging, Query(wanted): Query<Wanted>) -> Result<Json<Page<Product>>> {
    let search = Search {
        text: wanted.q.trim().to_owned(),
        category: wanted.category,
        after: paging.after.clone(),
        rows: paging.rows(),
    };
    let found = ctx.store().read(move |db| products::search(db, &search)).await?;
    Ok(Json(paging.page(found, |product| product.id.clone())))
}

/// `GET /products/{id}`
pub(crate) async fn product(ctx: Context, Path(id): Path<String>) -> Result<Json<Product>> {
    let found = ctx.store().read(move |db| products::find(db, &id)).await?;
    Ok(Json(found.ok_or_else(|| problem::not_found("no such product"))?))
}
