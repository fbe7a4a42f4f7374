//! Notifications: tells customers what became of their orders. Nobody calls it for that: it listens.
//!
//! An event makes one record for its order and outcome; the records are a work queue, from which workers send.

mod commands;
mod deliver;
mod events;
mod queries;
mod queue;
mod sender;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use axum::Router;
use axum::routing::get;
use ballet_service::{Builder, Service};

const MIGRATIONS: &[(&str, &str)] = &[("0001_notifications", include_str!("../migrations/0001_notifications.sql"))];

#[tokio::main]
async fn main() -> ExitCode {
    service().main().await
}

fn service() -> Builder {
    let routes = Router::new()
        .route("/notifications", get(queries::list).post(commands::write))
        // Internal: no route at the gateway.
        .route("/ledger", get(queries::ledger));
    Service::builder("notifications")
        .migrations(MIGRATIONS)
        .routes(routes)
        .on("order.confirmed", events::confirmed)
        .on("order.rejected", events::rejected)
        .on("order.cancelled", events::cancelled)
        .task("sender", sender::run)
}
