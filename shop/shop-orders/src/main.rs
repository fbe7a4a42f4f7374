//! Orders: placed by customers, settled by the workflow `checkout`.
//!
//! ```text
//! POST /orders ──▶ PENDING, order.placed ──▶ checkout ──▶ POST …/confirm ──▶ CONFIRMED, order.confirmed
//!                                                    └──▶ POST …/reject  ──▶ REJECTED,  order.rejected
//! POST …/cancel ─▶ order.cancel-requested ─▶ cancel-order ─▶ POST …/cancelled ─▶ CANCELLED, order.cancelled
//! ```

mod commands;
mod engine;
mod list;
mod order;
mod queries;
mod store;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use ballet_service::axum::Router;
use ballet_service::axum::routing::{get, post};
use ballet_service::{Builder, Service};

#[tokio::main]
async fn main() -> ExitCode {
    service().main().await
}

fn service() -> Builder {
    Service::builder("orders")
        .migrations(&[("0001_init", include_str!("../migrations/0001_init.sql"))])
        .projection(list::OrderList)
        .state(engine::Engine::new())
        .routes(
            Router::new()
                .route("/orders", post(commands::place).get(queries::list))
                .route("/orders/{id}", get(queries::read).patch(commands::change))
                .route("/orders/{id}/cancel", post(commands::cancel))
                // Internal: the gateway has no route to these.
                .route("/orders/{id}/confirm", post(commands::confirm))
                .route("/orders/{id}/reject", post(commands::reject))
                .route("/orders/{id}/cancelled", post(commands::cancelled))
                .route("/ledger", get(queries::ledger)),
        )
}
