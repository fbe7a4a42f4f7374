//! The gateway.

mod access_log;
mod answer;
mod files;
mod issuer;
mod jwt;
mod limit;
mod merge;
mod refusal;
mod request;
mod route;

pub use refusal::CODES;
pub use route::RouteError;
