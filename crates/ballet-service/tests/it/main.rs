//! The chassis at its seam: real services on free ports, each with a store of its own.

#![expect(unreachable_pub, reason = "one binary, nobody reaches in")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as they do")]

mod commands;
mod killed;
mod outbox;
mod rig;
mod start;
mod store;
mod tokens;
