//! Inventory: how much of each product is there, and what is reserved for which order.
//!
//! Orders are reserved for, released and returned by sagas; that an order was confirmed, and its goods so are sold, inventory
//! hears from an event.

mod commands;
mod events;
mod queries;
mod store;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use ballet_service::axum::Router;
use ballet_service::axum::routing::{delete, get, post};
use ballet_service::{Builder, Service};

#[tokio::main]
async fn main() -> ExitCode {
    service().main().await
}

fn service() -> Builder {
    Service::builder("inventory")
        .migrations(&[("0001_init", include_str!("../migrations/0001_init.sql"))])
        .seed(|tx, _| Ok(tx.execute_batch(include_str!("../migrations/seed.sql"))?))
        .routes(
            Router::new()
                .route("/inventory/{productId}", get(queries::stock))
                .route("/inventory/{productId}/decrease", post(commands::decrease))
                .route("/inventory/{productId}/increase", post(commands::increase))
                // Internal: the gateway has no route to these.
                .route("/reservations", post(commands::reserve))
                .route("/reservations/{orderId}", delete(commands::release))
                .route("/reservations/{orderId}/return", post(commands::take_back))
                .route("/ledger", get(queries::ledger)),
        )
        .on("order.confirmed", events::order_confirmed)
}
