//! Catalog: the products, for everyone to search and for staff to change.

mod commands;
mod products;
mod queries;
mod seed;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use axum::Router;
use axum::routing::get;
use ballet_service::{Builder, Service};

const MIGRATIONS: &[(&str, &str)] = &[("0001_products", include_str!("../migrations/0001_products.sql"))];

#[tokio::main]
async fn main() -> ExitCode {
    service().main().await
}

fn service() -> Builder {
    let routes = Router::new()
        .route("/products", get(queries::list))
        .route("/products/{id}", get(queries::product).put(commands::change));
    Service::builder("catalog").migrations(MIGRATIONS).seed(|tx, _| seed::make(tx)).routes(routes)
}
