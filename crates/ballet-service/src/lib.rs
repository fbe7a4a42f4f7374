//! The chassis of a service: everything that is the same in each of them, so that what remains is the business.
//!
//! A whole service: it keeps notes, answers a repeated `POST` with the first answer, tells the world in the transaction
//! that wrote the note, and hears of others.
//!
//! ```no_run
//! use ballet_service::axum::{Json, Router, extract::Path, http::StatusCode, routing::{get, post}};
//! use ballet_service::{Command, Context, Reply, Result, Service, User, new_id, problem};
//! use rusqlite::{OptionalExtension, params};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize)]
//! struct NewNote {
//!     text: String,
//! }
//!
//! #[derive(Serialize)]
//! struct Note {
//!     id: String,
//!     text: String,
//! }
//!
//! /// A command: one transaction writes the note, the event, and the answer for whoever asks again with the same key.
//! async fn add(user: User, command: Command<NewNote>) -> Result<Reply> {
//!     if command.body.text.is_empty() {
//!         return Err(problem::field("text", "say something").into());
//!     }
//!     command
//!         .run(move |tx, new| {
//!             let note = Note { id: new_id(), text: new.text };
//!             tx.execute("INSERT INTO notes VALUES (?1, ?2, ?3)", params![note.id, user.id, note.text])?;
//!             tx.publish("note.added", &note.id, &note)?;
//!             Ok(Reply::created(format!("/notes/{}", note.id), &note))
//!         })
//!         .await
//! }
//!
//! /// A query: reads only.
//! async fn read(ctx: Context, Path(id): Path<String>) -> Result<Json<Note>> {
//!     let note = ctx.store().read(move |db| {
//!         let row = db.query_row("SELECT id, text FROM notes WHERE id = ?1", [id], |row| {
//!             Ok(Note { id: row.get(0)?, text: row.get(1)? })
//!         });
//!         Ok(row.optional()?)
//!     });
//!     Ok(Json(note.await?.ok_or_else(|| problem::not_found("no such note"))?))
//! }
//!
//! #[tokio::main]
//! async fn main() -> std::process::ExitCode {
//!     Service::builder("notes")
//!         .migrations(&[("0001_init", "CREATE TABLE notes (id TEXT PRIMARY KEY, author TEXT, text TEXT) STRICT")])
//!         .routes(Router::new().route("/notes", post(add)).route("/notes/{id}", get(read)))
//!         .on("user.deleted", |tx, event| {
//!             tx.execute("DELETE FROM notes WHERE author = ?1", [&event.subject])?;
//!             Ok(())
//!         })
//!         .main()
//!         .await
//! }
//! ```
//!
//! # What the chassis does
//! - **Start:** configuration from the environment ([`Config`]), migrations and seed under a lock, `/livez`, `/readyz`, JSON
//!   logs, graceful end on TERM. Arguments: none (serve), `init` (migrate, seed, end), `rebuild NAME` (a projection).
//! - **Store:** one SQLite file; [`Store::write`] runs a closure in a transaction on the one writer thread (waiting closures
//!   share a sync), [`Store::read`] on a read-only connection. Several instances may share the file.
//! - **Commands:** [`Command`] keeps answers by `Idempotency-Key` and is the inbox of a saga's steps, with tombstones.
//! - **Events:** [`Tx::publish`] writes to the outbox; a relay brings it to the bus, in order; [`Builder::on`] handles what
//!   comes to `POST /events`, once.
//! - **Queries:** [`Projection`] keeps a read model; [`Paging`] cuts lists.
//! - **Who calls:** [`User`], [`Option<User>`](User), [`Staff`], [`Caller`], [`Internal`] are extractors.
//! - **Others:** [`Context::service`] calls another service with trace and deadline.
//! - **Errors:** every error answer is a problem document with `code` and `traceId`; see [`problem`].
//!
//! It deliberately has no object-relational mapper, no dependency injection, no TLS, and no part of the platform in it.
//!
//! # Trust
//! A service listens on loopback (or inside its pod) and sees only what its sidecar or the platform lets through. A request
//! with a `ballet-caller` other than `gateway` comes from the platform or another service: [`Internal`] endpoints and step
//! keys (`Idempotency-Key` with `/`) believe it. The gateway never routes to internal endpoints.

// Postgres becomes the second one; both give `Store` and `Tx`.
#[cfg(not(feature = "sqlite"))]
compile_error!("ballet-service needs a store: switch the feature `sqlite` on");

mod auth;
mod calls;
mod command;
mod config;
mod context;
mod error;
mod events;
mod log;
mod page;
pub mod problem;
mod projection;
mod relay;
mod reply;
mod request;
mod service;
mod sqlite;

pub use auth::{Caller, Internal, Staff, User};
pub use axum;
pub use ballet_core::{Clock, Event, FieldError, ManualClock, Problem, SystemClock, Timestamp, TraceContext};
pub use calls::{Call, Peer};
pub use command::{Body, Command, Ignored};
pub use config::{Config, ConfigError};
pub use context::Context;
pub use error::{CODES, Error, Result};
pub use log::init_logs;
pub use page::{Money, Page, Paging, rfc3339};
pub use problem::Invalid;
pub use projection::Projection;
pub use reply::Reply;
pub use request::current_trace;
pub use service::{Builder, Running, Service, StartError};
pub use sqlite::{Store, Tx};

/// A new id: a UUID v7, so ids sort by the time they were made.
pub fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
