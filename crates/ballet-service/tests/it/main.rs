//! The chassis at its seam: real services on free ports, each with a store of its own.

mod commands;
mod outbox;
mod rig;
mod start;
mod tokens;
