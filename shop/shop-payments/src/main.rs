//! Payments: cards, charges and refunds, with a bank that is played.
//!
//! A card's number comes in once and goes no further: what is kept is its last four digits, its brand, and how the played
//! bank treats it.

mod card;
mod commands;
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
    Service::builder("payments")
        .migrations(&[("0001_init", include_str!("../migrations/0001_init.sql"))])
        .seed(|tx, _| Ok(tx.execute_batch(include_str!("../migrations/seed.sql"))?))
        .routes(
            Router::new()
                .route("/cards", post(commands::add_card))
                .route("/payments", post(commands::pay).get(queries::list))
                .route("/payments/{id}", get(queries::read))
                // Internal: the gateway has no route to these.
                .route("/refunds", post(commands::refund))
                .route("/ledger", get(queries::ledger)),
        )
}
