//! The `ballet` program as a library: the command line ([`cli`]) and the assembly of the parts ([`platform`]).
//!
//! This crate alone wires parts to drivers. It deliberately holds no logic of its own: what decides something lives in a part.

pub mod cli;
pub mod platform;
