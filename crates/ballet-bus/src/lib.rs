//! Ballet's bus.
mod embedded;
pub use embedded::{Embedded, SHARD};
