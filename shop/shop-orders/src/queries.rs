//! Queries.

use ballet_service::axum::Json;
use ballet_service::axum::extract::Path;
use ballet_service::{Context, Internal, Page, Paging, Result, User, problem};
use serde::Serialize;
use serde_json::Value;

use crate::engine::{self, Engine, Step};
use crate::list::{self, Listed};
use crate::order::Order;
use crate::store;

/// An order and how it came so far.
#[derive(Serialize)]
pub(crate) struct WithSteps {
    #[serde(flatten)]
    order: Order,
    steps: Vec<Step>,
}

pub(crate) async fn read(user: User, ctx: Context, Path(id): Path<String>) -> Result<Json<WithSteps>> {
    let order = ctx.store().read(move |db| store::find(db, &id)).await?;
    let order = order.filter(|order| user.may_see(&order.user_id));
    Ok(Json(with_steps(&ctx, order.ok_or_else(|| problem::not_found("no such order"))?).await))
}

/// The own orders, newest first.
pub(crate) async fn list(user: User, ctx: Context, paging: Paging) -> Result<Json<Page<Listed>>> {
    let (rows, after) = (paging.rows(), paging.after.clone());
    let found = ctx.store().read(move |db| list::of_user(db, &user.id, &after, rows)).await?;
    Ok(Json(paging.page(found, |order| order.id.clone())))
}

pub(crate) async fn ledger(_: Internal, ctx: Context) -> Result<Json<Value>> {
    Ok(Json(ctx.store().read(store::ledger).await?))
}

/// The steps of the order's workflows as the engine tells them; when it is out of reach, what the order itself knows.
pub(crate) async fn with_steps(ctx: &Context, order: Order) -> WithSteps {
    let engine: &Engine = ctx.state();
    let (checkout, cancellation) = (format!("checkout-{}", order.id), format!("cancel-order-{}", order.id));
    let cancellation = async { if order.cancel_requested { engine.steps(ctx, &cancellation).await } else { None } };
    let steps = match tokio::join!(engine.steps(ctx, &checkout), cancellation) {
        (Some(checkout), cancellation) => [checkout, cancellation.unwrap_or_default()].concat(),
        (None, _) => engine::known_steps(&order),
    };
    WithSteps { order, steps }
}
