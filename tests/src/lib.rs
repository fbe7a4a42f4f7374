//! What whole-system tests share: the built programs, a running system, and a plain HTTP client.

mod client;
mod system;

pub use client::{Reply, Request, request};
pub use system::{Ballet, Command, bin, repository};
