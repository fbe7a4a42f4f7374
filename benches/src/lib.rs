//! What the benchmarks share: processes and their CPU time, a tiny upstream, a client that keeps its connection, and
//! the report that stands beside the design's bars.
//!
//! Each benchmark is a program of its own (`gateway.rs`, `shop.rs`, …) that does nothing unless `cargo bench` runs it.
//! They measure the real binary from outside. Ratios count, not absolute numbers: every report says on which machine.

mod client;
mod machine;
pub mod manifests;
mod options;
pub mod processes;
mod report;
mod responder;
pub mod stats;
pub mod strace;
pub mod tokens;
pub mod tools;
pub mod wrk;

pub use client::{Client, Failed};
pub use machine::Machine;
pub use options::Options;
pub use report::{Bar, Report, Table};
pub use responder::{Request, Responder};
