//! The engine over the in-memory journal, with services on loopback.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod conductor;
mod crash;
mod saga;
mod sdk;
mod world;
