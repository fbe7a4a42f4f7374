//! The gateway.

mod access_log;
mod answer;
mod files;
mod issuer;
mod jwt;
mod path;
mod route;

pub use path::PathError;
pub use route::RouteError;
