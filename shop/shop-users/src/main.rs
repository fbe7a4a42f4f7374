//! Users: accounts, logins, and the keys that the shop's tokens are signed with.
//!
//! Commands write `users` and publish `user.*`; the read `GET /users/{id}` answers from `profiles`, which those events feed.

mod commands;
mod keys;
mod passwords;
mod profiles;
mod queries;
mod seed;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use axum::Router;
use axum::routing::{get, post};
use ballet_service::{Builder, Clock, Service, SystemClock};

const MIGRATIONS: &[(&str, &str)] = &[("0001_users", include_str!("../migrations/0001_users.sql"))];

#[tokio::main]
async fn main() -> ExitCode {
    service().main().await
}

fn service() -> Builder {
    let routes = Router::new()
        .route("/users", post(commands::register))
        .route("/users/{id}", get(queries::user).put(commands::update))
        .route("/sessions", post(commands::log_in))
        .route("/.well-known/jwks.json", get(queries::jwks))
        // Internal: no route at the gateway.
        .route("/contacts/{id}", get(queries::contact))
        .route("/keys/rotate", post(commands::rotate_keys));
    Service::builder("users")
        .migrations(MIGRATIONS)
        .seed(|tx, _| seed::make(tx))
        .projection(profiles::Profiles)
        .own_keys(|db| keys::published(db, SystemClock.now()))
        .routes(routes)
}
