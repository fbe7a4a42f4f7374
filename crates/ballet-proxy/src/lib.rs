//! Carries HTTP/1.1: a strict codec without I/O, calls to service instances ([`Upstreams`]), and the server loop that
//! the gateway and the sidecar share.
//!
//! ```
//! use ballet_proxy::{CallMode, CallRequest};
//!
//! let request = CallRequest::new("GET", "/orders/7").mode(CallMode::Retry).header("accept", "application/json");
//! assert_eq!(request.path, "/orders/7");
//! ```
//!
//! It deliberately knows no routes, no tokens and no rate limits: those are the gateway's. HTTP/2 is hyper's.

mod buffer;
mod call;
mod codes;
mod exchange;
mod fleet;
pub mod h1;
mod policies;
mod serve;
mod upstreams;

pub use call::{CallError, CallMode, CallRequest, CallResponse, direct};
pub use codes::CODES;
pub use h1::request::{Head, Paths, Refusal};
pub use policies::PolicyTable;
pub use serve::{
    Answer, AnswerBody, BadHeader, Collect, Context, Edits, End, Exchange, Failure, Forward, Handler, MAX_WAITS,
    Network, ServeConfig, Server, Verdict, bind,
};
pub use upstreams::{BreakerState, EndpointView, Upstream, UpstreamView, Upstreams};
