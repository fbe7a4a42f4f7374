//! The server that the gateway and the sidecar share: it reads requests strictly, asks a [`Handler`] what to do with each,
//! and does it: forwards with streaming both ways, or answers.
//!
//! ```text
//! Server (accepts) ──spawns──▶ one task per connection: owns the sockets and all buffers of its exchange
//!                               │ read head ▶ Handler::decide ▶ forward: pick, write, relay ▶ Handler::finished
//! ```
//! Nothing is shared between connections but the handler, the upstreams and their idle connections.

mod answer;
mod connection;
mod edits;
mod relay;
mod server;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use ballet_core::{InstanceId, Later, Policy, ServiceName, TraceContext};

use crate::h1::request::{Head, Paths, Refusal};
use crate::{CallError, Upstream};

pub use answer::{Answer, AnswerBody};
pub use edits::{BadHeader, Edits};
pub use server::{Network, Server, bind};

/// What a part does with requests. One handler serves all connections of a server; a reload swaps what is inside it.
pub trait Handler: Send + Sync + 'static {
    /// What the handler keeps of one request from its decision to its log line: the route, the caller's subject.
    type Note: Default + Send + Sync;

    /// Says what to do with a request. Called on the connection's task, so it must not block; what takes time goes into
    /// [`Verdict::Wait`] or [`Verdict::Later`].
    fn decide(&self, head: &Head<'_>, context: &Context, note: &mut Self::Note) -> Verdict;

    /// The answer when forwarding failed. Default: the policy's fallback, else a problem document.
    fn failed(&self, failure: &Failure<'_>, note: &mut Self::Note) -> Answer {
        let _ = note;
        failure.answer()
    }

    /// Told once after each exchange, however it ended: for the access log and metrics. Must not block.
    fn finished(&self, exchange: &Exchange<'_>, note: &Self::Note) {
        let _ = (exchange, note);
    }

    /// Told of a request that was refused before there was anything to decide about.
    fn refused(&self, refusal: &Refusal, peer: SocketAddr) {
        let _ = (refusal, peer);
    }
}

/// What to do with a request.
pub enum Verdict {
    /// Send it to a service.
    Forward(Forward),
    /// Answer it here.
    Answer(Answer),
    /// Wait, then decide again with the same note: keys are being fetched, a rate limit queues. At most
    /// [`MAX_WAITS`] times for one request.
    Wait(Later<'static, ()>),
    /// Wait for the verdict.
    Later(Later<'static, Verdict>),
    /// Read the whole body, then go on with the verdict that it gives.
    Buffer(Collect),
}

/// How often one request may answer [`Verdict::Wait`].
pub const MAX_WAITS: u32 = 8;

/// Whole-body handling, see [`Verdict::Buffer`].
pub struct Collect {
    /// Longest body in bytes; a longer one gets 413.
    pub max: usize,
    /// What to do with it. A [`Verdict::Forward`] then sends this body; a second `Buffer` gives it again.
    pub then: Box<dyn FnOnce(Bytes) -> Later<'static, Verdict> + Send>,
}

/// How a request is forwarded.
#[derive(Clone)]
pub struct Forward {
    /// To whom.
    pub upstream: Arc<Upstream>,
    /// Path with query that goes out. Default: the client's, in its one form.
    pub target: Option<String>,
    /// Changes to the request's headers that a route always makes.
    pub request: Option<Arc<Edits>>,
    /// Changes to the answer's headers that a route always makes.
    pub response: Option<Arc<Edits>>,
    /// Request headers of this one request; they replace what the client sent under the same name.
    pub set: Vec<(Cow<'static, str>, String)>,
    /// Answer headers of this one request; they replace what the service sent under the same name.
    pub set_response: Vec<(Cow<'static, str>, String)>,
    /// Time until the answer's head must be there, retries included. Default: the policy's timeout.
    pub timeout: Option<Duration>,
    /// Longest request body in bytes; a longer one gets 413. Default: [`Forward::MAX_BODY`].
    pub max_body: u64,
    /// Whether a request whose method is not idempotent may be sent again: it has an `Idempotency-Key` and the service
    /// honours it. Default: no.
    pub replay: bool,
    /// Whether a WebSocket may be opened. Default: no.
    pub websocket: bool,
}

/// What is known of a request beside its head.
#[derive(Clone, Debug)]
pub struct Context {
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// Who asks: the peer, or whom trusted proxies before it name.
    pub client: IpAddr,
    /// Whether the client's side is TLS, by our own or by a trusted proxy's word.
    pub secure: bool,
    /// The span of this request; what is forwarded carries it as the parent.
    pub trace: TraceContext,
    /// The client's own span, if it sent one.
    pub parent: Option<TraceContext>,
    /// When the head had been read.
    pub began: Instant,
}

/// A request that could not be forwarded.
pub struct Failure<'a> {
    /// The request.
    pub head: Head<'a>,
    /// What is known beside it.
    pub context: &'a Context,
    /// What went wrong.
    pub error: &'a CallError,
    /// The service.
    pub service: &'a ServiceName,
    /// The policy with its fallback.
    pub policy: &'a Policy,
}

/// One exchange, told when it is over.
pub struct Exchange<'a> {
    /// The request.
    pub head: Head<'a>,
    /// What is known beside it.
    pub context: &'a Context,
    /// The status that the client got; 499 if it left before.
    pub status: u16,
    /// Time from the head's arrival to the end.
    pub took: Duration,
    /// Bytes of the request's body that were read.
    pub received: u64,
    /// Bytes of the answer's body that were written.
    pub sent: u64,
    /// The service, if the request was forwarded.
    pub service: Option<&'a ServiceName>,
    /// The instance that was tried last.
    pub instance: Option<&'a InstanceId>,
    /// Attempts made.
    pub attempts: u32,
    /// What kept it from being forwarded.
    pub error: Option<&'a CallError>,
    /// How it ended.
    pub end: End,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// The whole answer was written.
    #[default]
    Whole,
    /// The client left first.
    ClientLeft,
    /// The service's answer broke off, and so did ours.
    Cut,
    /// It became a tunnel, which has ended.
    Tunnel,
}

/// How a server treats its connections. Every limit has a default.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Connections at once; more wait in the kernel's queue. Default: 10,000.
    pub max_connections: usize,
    /// Longest rest between two requests of a connection. Default: 60 s.
    pub idle: Duration,
    /// Time for a whole head once its first byte came. Default: 10 s; then 408.
    pub head: Duration,
    /// A body may pause so long in all; 1 KiB received earns a second back. Default: 10 s; then 408.
    pub body: Duration,
    /// Longest pause of a service inside an answer's body, unless it is an event stream. Default: 60 s.
    pub upstream: Duration,
    /// Longest wait for a client to take what is written. Default: 60 s.
    pub write: Duration,
    /// During shutdown, an idle connection is given this long for a request that is on its way. Default: 250 ms.
    pub drain_idle: Duration,
    /// How paths are treated. Default: strictly.
    pub paths: Paths,
    /// Proxies whose `X-Forwarded-*` are believed. Default: none.
    pub trusted: Vec<Network>,
    /// Whether `X-Forwarded-For`, `-Proto` and `-Host` are written. Default: yes; a sidecar says no.
    pub forwarded: bool,
    /// Feeds trace ids. Give each server another one.
    pub seed: u64,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            idle: Duration::from_secs(60),
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            upstream: Duration::from_secs(60),
            write: Duration::from_secs(60),
            drain_idle: Duration::from_millis(250),
            paths: Paths::Strict,
            trusted: vec![],
            forwarded: true,
            seed: 1,
        }
    }
}

impl Forward {
    /// Default of [`Forward::max_body`]: 10 MiB.
    pub const MAX_BODY: u64 = 10 << 20;

    /// Forwards as it came.
    pub fn to(upstream: Arc<Upstream>) -> Self {
        Self {
            upstream,
            target: None,
            request: None,
            response: None,
            set: vec![],
            set_response: vec![],
            timeout: None,
            max_body: Self::MAX_BODY,
            replay: false,
            websocket: false,
        }
    }
}

impl From<Forward> for Verdict {
    fn from(forward: Forward) -> Self {
        Self::Forward(forward)
    }
}

impl From<Answer> for Verdict {
    fn from(answer: Answer) -> Self {
        Self::Answer(answer)
    }
}
