//! One client's connection: its task owns both sockets and all buffers of the exchange under way.
//!
//! ```text
//! client ──input──▶ head ─▶ verdict ─▶ out ──▶ service        (upload: input ─▶ scratch ─▶ service)
//!        ◀──out─── answer's head ◀──back────── service        (download: back ─▶ out ─▶ client)
//! ```

use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use ballet_core::{Deadline, TraceContext, headers};
use ballet_resilience::{Outcome, Until};

use crate::CallError;
use crate::buffer::Buffer;
use crate::fleet::Endpoint;
use crate::h1::chunks::{Chunks, Piece};
use crate::h1::request::{Refusal, RequestHead};
use crate::h1::response::ResponseHead;
use crate::h1::{Framing, is, put, put_chunk, put_number};
use crate::serve::answer::put_connection;
use crate::serve::edits::may_set;
use crate::serve::relay::{Downstream, Downward, Pace, TOO_LARGE, Upward, broken, left, recode, upload, write_within};
use crate::serve::server::Shared;
use crate::serve::{Answer, AnswerBody, Context, End, Exchange, Failure, Forward, Handler, MAX_WAITS, Verdict};
use crate::upstreams::{Upstream, is_idempotent, is_passing, outcome_of};

/// An idle connection keeps its buffers so long; then they are given back.
const KEEP_BUFFERS: Duration = Duration::from_secs(1);
/// A body up to this many bytes goes out with the head in one write, and can be sent again.
const WITH_HEAD: usize = 32 << 10;
/// A refused request's body is read and dropped up to this many bytes to keep the connection.
const DISCARD: u64 = 64 << 10;
/// When the connection cannot be kept, what the client still sends is dropped for so long, so that it can read the
/// answer before it hears of the end.
const LINGER: Duration = Duration::from_secs(2);
/// Width of the number in `ballet-timeout-ms`, so that a retry can write it anew in place.
const TIMEOUT_WIDTH: usize = 10;

struct Connection<H> {
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared<H>>,
    input: Buffer,
    head: RequestHead,
    pending: Pending,
    out: Vec<u8>,
    scratch: Vec<u8>,
    back: Buffer,
    answer: ResponseHead,
}

/// What is still to be read of the request's body.
#[derive(Clone, Copy, PartialEq)]
enum Pending {
    Nothing,
    All(Framing),
    /// Some of it, or all but broken: the next request cannot be found.
    Rest,
}

/// What comes after an exchange.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    Request,
    Close,
    /// Close, but let the client read the answer first.
    Linger,
    /// Close in a way that cannot be taken for the answer's end.
    Reset,
}

enum Arrival {
    Head,
    Nothing,
    Refused(Refusal),
}

/// What is told of an exchange when it is over.
#[derive(Default)]
struct Record {
    status: u16,
    received: u64,
    sent: u64,
    attempts: u32,
    upstream: Option<Arc<Upstream>>,
    endpoint: Option<Arc<Endpoint>>,
    error: Option<CallError>,
    end: End,
}

/// The body that goes out with an attempt.
enum Upload {
    /// It stands in `out` already, or there is none.
    Done,
    Memory(Bytes),
    Client(Framing),
}

/// Why an attempt gave the client nothing, or not all.
enum Trouble {
    /// No answer came. Nothing was written to the client.
    Call(CallError),
    /// The answer was a passing failure and another attempt is granted. Nothing was written to the client.
    Passing,
    /// The request turned out to be bad. Nothing was written to the client.
    Refused(Refusal),
    ClientLeft,
    /// The answer broke off in its midst.
    Cut(CallError),
}

/// What stays the same over a request's attempts, or nearly.
struct Setting<'a> {
    plan: &'a Forward,
    upload: &'a Upload,
    /// When the answer's head must be there.
    until: Until,
    began: Instant,
    /// Where the time left stands in `out`.
    timeout_field: usize,
    /// Whether the request may be sent twice and can be.
    replayable: bool,
    may_retry: bool,
}

/// One attempt's facts, for the breaker and the balancer.
#[derive(Default)]
struct Facts {
    sent: bool,
    /// When the answer's head had come, and its status.
    head: Option<(Instant, u16)>,
}

/// An attempt that gave the client an answer.
struct Done {
    next: Next,
    /// The connection, if it can be kept or has become a tunnel.
    stream: Option<TcpStream>,
    switched: bool,
}

/// What becomes of the connection to the service.
#[derive(Clone, Copy)]
enum Afterwards {
    Keep,
    Drop,
    Tunnel,
}

/// Serves one connection to its end.
pub(crate) async fn serve<H: Handler>(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared<H>>) {
    let mut connection = Connection {
        stream,
        peer,
        shared,
        input: Buffer::default(),
        head: RequestHead::default(),
        pending: Pending::Nothing,
        out: vec![],
        scratch: vec![],
        back: Buffer::default(),
        answer: ResponseHead::default(),
    };
    // The future is large and lives as long as the connection: one allocation for it.
    match Box::pin(connection.run()).await {
        Next::Request | Next::Close => {
            let _ = connection.stream.shutdown().await;
        }
        Next::Linger => connection.linger().await,
        Next::Reset => {
            let _ = SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl<H: Handler> Connection<H> {
    async fn run(&mut self) -> Next {
        loop {
            match self.read_head().await {
                Arrival::Head => {}
                Arrival::Nothing => return Next::Close,
                Arrival::Refused(refusal) => {
                    self.shared.handler.refused(&refusal, self.peer);
                    self.pending = Pending::Rest;
                    self.head.release();
                    return self.answer(Answer::refusal(&refusal), &mut Record::default()).await;
                }
            }
            let context = self.context(Instant::now());
            self.pending = match self.head.framing() {
                Framing::None => Pending::Nothing,
                framing => Pending::All(framing),
            };
            let (mut note, mut record) = (H::Note::default(), Record::default());
            let next = self.exchange(&context, &mut note, &mut record).await;
            let exchange = Exchange {
                head: self.head.view(),
                context: &context,
                status: record.status,
                took: context.began.elapsed(),
                received: record.received,
                sent: record.sent,
                service: record.upstream.as_deref().map(Upstream::service),
                instance: record.endpoint.as_deref().map(|endpoint| &endpoint.id),
                attempts: record.attempts,
                error: record.error.as_ref(),
                end: record.end,
            };
            self.shared.handler.finished(&exchange, &note);
            if next != Next::Request {
                return next;
            }
        }
    }

    // ---- reading a request ----

    async fn read_head(&mut self) -> Arrival {
        let mut began = None;
        let mut worth_a_look = !self.input.is_empty();
        loop {
            if worth_a_look {
                match self.head.parse(self.input.data(), self.shared.config.paths) {
                    Ok(Some(length)) => {
                        self.input.eat(length);
                        return Arrival::Head;
                    }
                    Ok(None) => {}
                    Err(refusal) => return Arrival::Refused(refusal),
                }
            }
            let had = self.input.len();
            let read = if had == 0 {
                self.rest().await
            } else {
                let began = *began.get_or_insert_with(Instant::now);
                match timeout_at(began + self.shared.config.head, self.input.fill(&mut self.stream)).await {
                    Ok(read) => read,
                    Err(_) => return Arrival::Refused(Refusal { status: 408, reason: "the head came too slowly" }),
                }
            };
            if !matches!(read, Ok(1..)) {
                return Arrival::Nothing;
            }
            // A head that drips in is not read from its start for each byte.
            let data = self.input.data();
            worth_a_look =
                memchr::memchr(b'\n', &data[had.min(data.len())..]).is_some() || data.len() > crate::h1::MAX_TARGET;
        }
    }

    /// Waits for the first byte of the next request.
    async fn rest(&mut self) -> io::Result<usize> {
        let config = &self.shared.config;
        if !self.draining() {
            let quick = KEEP_BUFFERS.min(config.idle);
            if let Ok(read) = timeout(quick, self.input.fill(&mut self.stream)).await {
                return read;
            }
            self.release();
            let mut drain = self.shared.drain.clone();
            let mut byte = [0];
            tokio::select! {
                read = self.stream.read(&mut byte) => {
                    let read = read?;
                    self.input.push(&byte[..read]);
                    return Ok(read);
                }
                () = sleep(self.shared.config.idle.saturating_sub(quick)) => return Ok(0),
                _ = drain.wait_for(|drain| *drain) => {}
            }
        }
        // A request may be on its way that was sent before its client could know.
        timeout(self.shared.config.drain_idle, self.input.fill(&mut self.stream)).await.unwrap_or(Ok(0))
    }

    fn release(&mut self) {
        self.input.release();
        self.back.release();
        self.head.release();
        (self.out, self.scratch) = (vec![], vec![]);
        self.answer = ResponseHead::default();
    }

    fn draining(&self) -> bool {
        *self.shared.drain.borrow()
    }

    fn context(&self, began: Instant) -> Context {
        let head = self.head.view();
        let rng = &mut &self.shared.rng;
        let parent = head.header(headers::TRACEPARENT).and_then(TraceContext::parse);
        let trace = match parent {
            Some(parent) => parent.child(rng),
            None => TraceContext::root(rng),
        };
        let mut context =
            Context { peer: self.peer, client: self.peer.ip().to_canonical(), secure: false, trace, parent, began };
        if self.is_trusted(context.client) {
            context.secure = head.header("x-forwarded-proto") == Some("https");
            // From the right: the last address that is not a trusted proxy's own.
            for address in head.header("x-forwarded-for").unwrap_or("").rsplit(',') {
                let Ok(address) = address.trim().parse::<IpAddr>() else { break };
                context.client = address;
                if !self.is_trusted(address) {
                    break;
                }
            }
        }
        context
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.shared.config.trusted.iter().any(|network| network.contains(address))
    }

    // ---- one exchange ----

    async fn exchange(&mut self, context: &Context, note: &mut H::Note, record: &mut Record) -> Next {
        let handler = self.shared.handler.clone();
        let mut verdict = handler.decide(&self.head.view(), context, note);
        let (mut body, mut waits) = (None, 0);
        loop {
            verdict = match verdict {
                Verdict::Forward(forward) => return self.forward(forward, body, context, note, record).await,
                Verdict::Answer(answer) => return self.answer(answer, record).await,
                Verdict::Wait(_) if waits == MAX_WAITS => {
                    let problem = ballet_core::Problem::new(500, "the request waited too often").code("PX011");
                    return self.answer(Answer::problem(&problem), record).await;
                }
                Verdict::Wait(wait) => {
                    waits += 1;
                    wait.await;
                    handler.decide(&self.head.view(), context, note)
                }
                Verdict::Later(later) => later.await,
                Verdict::Buffer(collect) => {
                    let bytes = match body.take() {
                        Some(bytes) => bytes,
                        None => match self.collect(collect.max, record).await {
                            Ok(bytes) => bytes,
                            Err(Upward::Client(refusal)) => {
                                return self.answer(Answer::refusal(&refusal), record).await;
                            }
                            Err(Upward::ClientLeft | Upward::Upstream) => {
                                (record.status, record.end) = (499, End::ClientLeft);
                                return Next::Close;
                            }
                        },
                    };
                    body = Some(bytes.clone());
                    (collect.then)(bytes).await
                }
            }
        }
    }

    /// Reads the whole body.
    async fn collect(&mut self, max: usize, record: &mut Record) -> Result<Bytes, Upward> {
        let Pending::All(framing) = std::mem::replace(&mut self.pending, Pending::Rest) else {
            self.pending = Pending::Nothing;
            return Ok(Bytes::new());
        };
        let mut pace = Pace::new(self.shared.config.body);
        let mut body = Vec::new();
        if let Framing::Length(length) = framing {
            if length > max as u64 {
                return Err(Upward::Client(TOO_LARGE));
            }
            body.reserve_exact(length as usize);
        }
        let mut chunks = Chunks::default();
        let mut continued = !self.head.expects_continue();
        loop {
            let ended = match framing {
                Framing::Length(length) => {
                    let take = (length as usize - body.len()).min(self.input.len());
                    body.extend_from_slice(&self.input.data()[..take]);
                    self.input.eat(take);
                    body.len() as u64 == length
                }
                Framing::None | Framing::Chunked | Framing::Close => {
                    let recoded = recode(&mut chunks, &mut self.input, &mut body, false);
                    let (_, ended) = recoded.map_err(|bad| Upward::Client(broken(bad)))?;
                    if body.len() > max {
                        return Err(Upward::Client(TOO_LARGE));
                    }
                    ended
                }
            };
            record.received = body.len() as u64;
            if ended {
                self.pending = Pending::Nothing;
                return Ok(body.into());
            }
            if !std::mem::replace(&mut continued, true) {
                self.say_continue().await?;
            }
            pace.fill(&mut self.input, &mut self.stream).await?;
        }
    }

    async fn say_continue(&mut self) -> Result<(), Upward> {
        let written = write_within(&mut self.stream, b"HTTP/1.1 100 Continue\r\n\r\n", self.shared.config.write).await;
        written.map_err(|_| Upward::ClientLeft)
    }

    // ---- answering here ----

    async fn answer(&mut self, answer: Answer, record: &mut Record) -> Next {
        // What is unread of the body is dropped if it is short and sure to come; else nobody knows where the next
        // request begins.
        let discard = match self.pending {
            Pending::Nothing => Some(0),
            Pending::All(Framing::Length(n)) => {
                let comes = !self.head.expects_continue() || self.input.len() as u64 >= n;
                (n <= DISCARD && comes).then_some(n)
            }
            Pending::All(_) | Pending::Rest => None,
        };
        let old = self.head.is_old();
        let streams = matches!(answer.body, AnswerBody::Stream(_));
        let close = answer.close || discard.is_none() || !self.head.keep_alive() || self.draining() || (streams && old);
        record.status = answer.status;
        let bodiless = self.head.view().method() == "HEAD" || answer.status == 204 || answer.status == 304;
        self.out.clear();
        let pause = self.shared.config.write;
        let written = match answer.body {
            AnswerBody::Full(ref body) => {
                answer.put_head(&mut self.out, Some(body.len()), close, old);
                let body = if bodiless { &Bytes::new() } else { body };
                record.sent = body.len() as u64;
                if body.len() <= WITH_HEAD {
                    self.out.extend_from_slice(body);
                    write_within(&mut self.stream, &self.out, pause).await
                } else {
                    match write_within(&mut self.stream, &self.out, pause).await {
                        Ok(()) => write_within(&mut self.stream, body, pause).await,
                        error => error,
                    }
                }
            }
            AnswerBody::Stream(_) => {
                answer.put_head(&mut self.out, None, close, old);
                let AnswerBody::Stream(mut pieces) = answer.body else { return Next::Close };
                self.stream_answer(&mut pieces, bodiless, old, record).await
            }
        };
        if let Err(error) = written {
            record.end = if error.kind() == io::ErrorKind::InvalidData { End::Cut } else { End::ClientLeft };
            return if streams && old { Next::Reset } else { Next::Close };
        }
        match discard {
            Some(count) if self.discard(count).await => {
                if close {
                    Next::Close
                } else {
                    Next::Request
                }
            }
            Some(_) | None => Next::Linger,
        }
    }

    async fn stream_answer(
        &mut self,
        pieces: &mut tokio::sync::mpsc::Receiver<io::Result<Bytes>>,
        bodiless: bool,
        old: bool,
        record: &mut Record,
    ) -> io::Result<()> {
        let pause = self.shared.config.write;
        write_within(&mut self.stream, &self.out, pause).await?;
        if bodiless {
            return Ok(());
        }
        let (mut read, mut write) = self.stream.split();
        loop {
            let piece = tokio::select! {
                piece = pieces.recv() => piece,
                () = left(&mut self.input, &mut read) => return Err(io::ErrorKind::BrokenPipe.into()),
            };
            self.out.clear();
            match piece {
                Some(Ok(data)) => {
                    record.sent += data.len() as u64;
                    if old { self.out.extend_from_slice(&data) } else { put_chunk(&mut self.out, &data) }
                }
                Some(Err(error)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                None if old => return Ok(()),
                None => return write_within(&mut write, b"0\r\n\r\n", pause).await,
            }
            write_within(&mut write, &self.out, pause).await?;
        }
    }

    /// Drops so much of the body; says whether it came.
    async fn discard(&mut self, count: u64) -> bool {
        let mut left = count as usize;
        let mut pace = Pace::new(self.shared.config.body);
        loop {
            let take = left.min(self.input.len());
            self.input.eat(take);
            left -= take;
            if left == 0 {
                self.pending = Pending::Nothing;
                return true;
            }
            if pace.fill(&mut self.input, &mut self.stream).await.is_err() {
                return false;
            }
        }
    }

    async fn linger(&mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let rest = async {
            loop {
                self.input.clear();
                if !matches!(self.input.fill(&mut self.stream).await, Ok(1..)) {
                    return;
                }
            }
        };
        let _ = timeout(LINGER, rest).await;
    }

    // ---- forwarding ----

    async fn forward(
        &mut self,
        plan: Forward,
        body: Option<Bytes>,
        context: &Context,
        note: &mut H::Note,
        record: &mut Record,
    ) -> Next {
        record.upstream = Some(plan.upstream.clone());
        match self.try_forward(&plan, body, context, record).await {
            Ok(next) => next,
            Err(Trouble::ClientLeft) => {
                (record.status, record.end) = (499, End::ClientLeft);
                Next::Close
            }
            Err(Trouble::Refused(refusal)) => {
                self.pending = Pending::Rest;
                self.answer(Answer::refusal(&refusal), record).await
            }
            Err(Trouble::Cut(error)) => {
                (record.error, record.end) = (Some(error), End::Cut);
                // HTTP/1.0 knows no other end of a body without length than the connection's.
                if self.head.is_old() { Next::Reset } else { Next::Close }
            }
            // A passing failure is only taken for one when another attempt follows.
            Err(Trouble::Passing) => self.fail(CallError::TimedOut { sent: true }, &plan, context, note, record).await,
            Err(Trouble::Call(error)) => self.fail(error, &plan, context, note, record).await,
        }
    }

    async fn fail(
        &mut self,
        error: CallError,
        plan: &Forward,
        context: &Context,
        note: &mut H::Note,
        record: &mut Record,
    ) -> Next {
        let policy = plan.upstream.policy();
        let (head, service) = (self.head.view(), plan.upstream.service());
        let failure = Failure { head, context, error: &error, service, policy: &policy };
        let answer = self.shared.handler.failed(&failure, note);
        record.error = Some(error);
        self.answer(answer, record).await
    }

    async fn try_forward(
        &mut self,
        plan: &Forward,
        body: Option<Bytes>,
        context: &Context,
        record: &mut Record,
    ) -> Result<Next, Trouble> {
        if let Pending::All(Framing::Length(n)) = self.pending
            && n > plan.max_body
        {
            return Err(Trouble::Refused(TOO_LARGE));
        }
        let upstream = &*plan.upstream;
        let rules = upstream.rules();
        let (policy, bulkhead) = (rules.policy.clone(), rules.bulkhead.clone());
        drop(rules);
        let deadline = self.head.view().header(headers::TIMEOUT).and_then(Deadline::parse);
        let until = Until::new(plan.timeout.unwrap_or(policy.timeout), deadline, context.began);
        let mut place = Some(match bulkhead.try_enter() {
            Some(place) => place,
            None => {
                let full = |_| Trouble::Call(CallError::BulkheadFull);
                bulkhead.enter(until.left(Instant::now())).await.map_err(full)?
            }
        });
        let timeout_field = self.put_request(plan, body.as_ref(), context).map_err(Trouble::Call)?;
        let upload = self.put_body(plan, body, record)?;
        let streams = matches!(upload, Upload::Client(_));
        let replayable = !streams && (plan.replay || is_idempotent(self.head.view().method()));
        upstream.rules().budget.note_call(context.began);
        let mut tried = vec![];
        let mut retries = 0;
        let mut last = None;
        loop {
            let attempt = match upstream.attempt(&tried, until).await {
                Ok(attempt) => attempt,
                // What an earlier attempt met says more than that there was no further one.
                Err(error) => return Err(Trouble::Call(last.unwrap_or(error))),
            };
            record.attempts += 1;
            record.endpoint = Some(attempt.endpoint.clone());
            let may_retry = retries < policy.retry.max;
            let setting =
                Setting { plan, upload: &upload, until, began: context.began, timeout_field, replayable, may_retry };
            let mut facts = Facts::default();
            let result = self.attempt(&attempt.endpoint, &setting, &mut facts, record).await;
            let now = Instant::now();
            let (address, endpoint) = (attempt.endpoint.address, attempt.endpoint.clone());
            match (&result, facts.head) {
                // A client's fault says nothing of the service: the permit counts for nothing.
                (Err(Trouble::Refused(_) | Trouble::ClientLeft), None) => drop(attempt),
                (Err(Trouble::Call(_) | Trouble::Cut(_)), _) | (_, None) => {
                    upstream.settle(attempt, Outcome::Failure, now)
                }
                (_, Some((at, status))) => upstream.settle(attempt, outcome_of(status), at),
            }
            let error = match result {
                Ok(Done { next, stream: Some(stream), switched: true }) => {
                    // A tunnel may last for days: it takes no place from ordinary calls.
                    drop(place.take());
                    return Ok(self.tunnel(stream, next, record).await);
                }
                Ok(Done { next, stream, switched: _ }) => {
                    if let Some(stream) = stream {
                        endpoint.keep(stream, now);
                    }
                    return Ok(next);
                }
                Err(Trouble::Passing) => None,
                Err(Trouble::Call(error)) => Some(error),
                Err(trouble) => return Err(trouble),
            };
            let rest = upstream.rules().backoff.rest(retries + 1, &mut upstream.fleet().rng());
            if let Some(error) = error {
                let again = match &error {
                    // Nothing of a body that comes from the client is used before the connection stands.
                    CallError::Connect(_) => true,
                    CallError::Lost(_) | CallError::Malformed(_) => replayable,
                    CallError::NoInstance
                    | CallError::BreakerOpen { .. }
                    | CallError::BulkheadFull
                    | CallError::TimedOut { .. }
                    | CallError::TooLarge
                    | CallError::Invalid(_) => false,
                };
                if !again || !may_retry || until.passed(now + rest) || !upstream.rules().budget.take(now) {
                    return Err(Trouble::Call(error));
                }
                last = Some(error);
            }
            retries += 1;
            tried.push(address);
            upstream.note_retry();
            sleep(rest).await;
        }
    }

    /// One attempt with one instance, on a connection that was kept or on a new one.
    async fn attempt(
        &mut self,
        endpoint: &Endpoint,
        setting: &Setting<'_>,
        facts: &mut Facts,
        record: &mut Record,
    ) -> Result<Done, Trouble> {
        let now = Instant::now();
        self.put_timeout(setting.timeout_field, setting.until.to_header(now));
        let streams = matches!(setting.upload, Upload::Client(_));
        loop {
            // Where a stale connection could not be made good, the kernel is asked first.
            let (mut stream, reused) = match endpoint.take(!setting.replayable, now) {
                Some(stream) => (stream, true),
                None => match timeout_at(setting.until.instant(), endpoint.connect()).await {
                    Ok(Ok(stream)) => (stream, false),
                    Ok(Err(error)) => return Err(Trouble::Call(CallError::Connect(error))),
                    Err(_) => return Err(Trouble::Call(CallError::TimedOut { sent: false })),
                },
            };
            if streams && self.head.expects_continue() {
                self.say_continue().await.map_err(|_| Trouble::ClientLeft)?;
            }
            self.back.clear();
            match self.perform(&mut stream, setting, facts, record).await {
                // Closed under us: that was no attempt. A new connection tells whether the instance lives.
                Err(Trouble::Call(CallError::Lost(_)))
                    if reused && !streams && facts.head.is_none() && (setting.replayable || !facts.sent) =>
                {
                    facts.sent = false;
                }
                Err(trouble) => return Err(trouble),
                Ok((next, Afterwards::Keep)) => return Ok(Done { next, stream: Some(stream), switched: false }),
                Ok((next, Afterwards::Drop)) => return Ok(Done { next, stream: None, switched: false }),
                Ok((next, Afterwards::Tunnel)) => return Ok(Done { next, stream: Some(stream), switched: true }),
            }
        }
    }

    /// One exchange on one connection.
    async fn perform(
        &mut self,
        upstream: &mut TcpStream,
        setting: &Setting<'_>,
        facts: &mut Facts,
        record: &mut Record,
    ) -> Result<(Next, Afterwards), Trouble> {
        let lost = |error| Trouble::Call(CallError::Lost(error));
        let limit = setting.until.instant();
        match timeout_at(limit, send(upstream, &self.out, &mut facts.sent)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if !facts.sent => return Err(lost(error)),
            // What was taken may have been enough for an answer.
            Ok(Err(_)) => {}
            Err(_) => return Err(Trouble::Call(CallError::TimedOut { sent: facts.sent })),
        }
        let draining = self.draining();
        let Self { stream: client, shared, input, head, out, scratch, back, answer, pending, .. } = self;
        let config = &shared.config;
        let (mut client_read, mut client_write) = client.split();
        let (mut upstream_read, mut upstream_write) = upstream.split();
        let (received, sent) = (AtomicU64::new(0), AtomicU64::new(0));
        // Whether the answer's head has come, and whether a byte of it went to the client.
        let (headed, answered) = (AtomicBool::new(false), AtomicBool::new(false));
        let mut uploaded = true;
        let is_head = head.view().method() == "HEAD";
        let result = {
            let mut download = pin!(async {
                read_answer(answer, back, &mut upstream_read, is_head).await.map_err(Trouble::Call)?;
                headed.store(true, Ordering::Relaxed);
                let now = Instant::now();
                facts.head = Some((now, answer.status));
                if answer.status == 101 {
                    if !(setting.plan.websocket && head.view().is_websocket()) {
                        return Err(Trouble::Call(CallError::Malformed("it switches protocols unasked".into())));
                    }
                    out.clear();
                    answer.put_switch(back.data(), out);
                    back.eat(answer.length);
                    let written = write_within(&mut client_write, out, config.write).await;
                    return written.map(|()| (Next::Close, Afterwards::Tunnel)).map_err(|_| Trouble::ClientLeft);
                }
                if is_passing(answer.status) && setting.may_pass(now) {
                    return Err(Trouble::Passing);
                }
                let framing = answer.framing.unwrap_or(Framing::Close);
                let old = head.is_old();
                let unknown = matches!(framing, Framing::Chunked | Framing::Close);
                let close = !head.keep_alive() || draining || (old && unknown);
                out.clear();
                put_answer(answer, back.data(), setting.plan, out, unknown && !old, close, old);
                let events =
                    answer.header(back.data(), b"content-type").is_some_and(|t| t.starts_with(b"text/event-stream"));
                back.eat(answer.length);
                answered.store(true, Ordering::Relaxed);
                let pause = (!events).then_some(config.upstream);
                let relay = Downstream { framing, as_chunks: unknown && !old, pause, write: config.write };
                match relay.relay(back, &mut upstream_read, &mut client_write, out, &sent).await {
                    Ok(()) => {}
                    Err(Downward::ClientLeft) => return Err(Trouble::ClientLeft),
                    Err(Downward::Upstream(error)) => return Err(Trouble::Cut(CallError::Lost(error))),
                }
                let afterwards = if answer.keep_alive && back.is_empty() { Afterwards::Keep } else { Afterwards::Drop };
                Ok((if close { Next::Close } else { Next::Request }, afterwards))
            });
            // First the request's body, while an answer may already come.
            let mut early = None;
            let mut answer_by = limit;
            if !matches!(setting.upload, Upload::Done) {
                uploaded = false;
                let mut uploading = pin!(async {
                    match setting.upload {
                        Upload::Done => Ok(()),
                        Upload::Memory(bytes) => upstream_write.write_all(bytes).await.map_err(|_| Upward::Upstream),
                        Upload::Client(framing) => {
                            let (pace, max) = (Pace::new(config.body), setting.plan.max_body);
                            let write = &mut upstream_write;
                            upload(*framing, input, &mut client_read, write, scratch, pace, max, &received).await
                        }
                    }
                });
                tokio::select! {
                    biased;
                    result = &mut download => early = Some(result),
                    result = &mut uploading => match result {
                        Ok(()) => uploaded = true,
                        // It does not want more; what it says is still to be read.
                        Err(Upward::Upstream) => {}
                        Err(Upward::ClientLeft) => early = Some(Err(Trouble::ClientLeft)),
                        Err(Upward::Client(refusal)) => early = Some(Err(Trouble::Refused(refusal))),
                    },
                }
                // The service's time begins when it has the whole request.
                answer_by = answer_by.max(Instant::now() + setting.until.left(setting.began));
            }
            match early {
                Some(result) => result,
                None => {
                    let mut timer = pin!(sleep_until(answer_by));
                    let mut timing = true;
                    loop {
                        tokio::select! {
                            biased;
                            result = &mut download => break result,
                            () = left(input, &mut client_read), if uploaded => break Err(Trouble::ClientLeft),
                            () = &mut timer, if timing => {
                                if !headed.load(Ordering::Relaxed) {
                                    break Err(Trouble::Call(CallError::TimedOut { sent: true }));
                                }
                                timing = false;
                            }
                        }
                    }
                }
            }
        };
        record.received += received.into_inner();
        record.sent = sent.into_inner();
        if matches!(setting.upload, Upload::Client(_)) {
            *pending = if uploaded { Pending::Nothing } else { Pending::Rest };
        }
        if let Some((_, status)) = facts.head {
            record.status = status;
        }
        match result {
            Ok((_, Afterwards::Keep | Afterwards::Drop)) if !uploaded => {
                let next = if *pending == Pending::Rest { Next::Linger } else { Next::Request };
                Ok((next, Afterwards::Drop))
            }
            Err(Trouble::Refused(_)) if answered.into_inner() => {
                Err(Trouble::Cut(CallError::Lost(io::ErrorKind::InvalidData.into())))
            }
            result => result,
        }
    }

    /// Two byte streams, side by side, until both have ended.
    async fn tunnel(&mut self, mut upstream: TcpStream, next: Next, record: &mut Record) -> Next {
        record.end = End::Tunnel;
        let early = self.input.data();
        if !early.is_empty() && upstream.write_all(early).await.is_err() {
            return next;
        }
        record.received += early.len() as u64;
        self.input.clear();
        let late = self.back.data();
        if !late.is_empty() && self.stream.write_all(late).await.is_err() {
            return next;
        }
        record.sent += late.len() as u64;
        self.release();
        if let Ok((up, down)) = copy_bidirectional(&mut self.stream, &mut upstream).await {
            record.received += up;
            record.sent += down;
        }
        next
    }

    // ---- writing heads ----

    /// Writes the request's head to `out`; says where the time left stands in it.
    fn put_request(&mut self, plan: &Forward, body: Option<&Bytes>, context: &Context) -> Result<usize, CallError> {
        let (head, config, out) = (&self.head, &self.shared.config, &mut self.out);
        let view = head.view();
        let trusted = self.shared.config.trusted.iter().any(|network| network.contains(context.peer.ip()));
        out.clear();
        out.extend_from_slice(view.method().as_bytes());
        out.push(b' ');
        match &plan.target {
            Some(target) => {
                if !target.starts_with('/') || !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
                    return Err(CallError::Invalid("the rewritten path holds a forbidden character".into()));
                }
                out.extend_from_slice(target.as_bytes());
            }
            None => {
                out.extend_from_slice(view.path().as_bytes());
                if let Some(query) = view.query() {
                    out.push(b'?');
                    out.extend_from_slice(query.as_bytes());
                }
            }
        }
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let sets = |name: &[u8]| plan.set.iter().any(|(set, _)| is(name, set.as_bytes()));
        let edits = plan.request.as_deref();
        let (mut proto, mut host) = (!config.forwarded, !config.forwarded);
        for (name, value) in head.forwarded() {
            let ours = match name.len() {
                11 => is(name, headers::TRACEPARENT.as_bytes()),
                13 => is(name, headers::CALLER.as_bytes()),
                14 => is(name, b"content-length") && body.is_some(),
                17 => is(name, headers::TIMEOUT.as_bytes()),
                _ => false,
            };
            if ours
                || edits.is_some_and(|e| e.drops(name) && !is(name, b"content-length"))
                || (!plan.set.is_empty() && sets(name))
            {
                continue;
            }
            if config.forwarded {
                match standing(name) {
                    Standing::Ordinary => {}
                    Standing::Chain => continue,
                    _ if !trusted => continue,
                    Standing::Proto => proto = true,
                    Standing::Host => host = true,
                    Standing::Word => {}
                }
            }
            put(out, name, value);
        }
        if view.host().is_empty() && !sets(b"host") {
            put(out, b"host", plan.upstream.service().as_str().as_bytes());
        }
        if let Some(edits) = edits {
            out.extend_from_slice(edits.lines());
        }
        for (name, value) in &plan.set {
            if !may_set(name.as_bytes(), value.as_bytes()) {
                return Err(CallError::Invalid(format!("the header `{}` cannot be set", name.escape_debug())));
            }
            put(out, name.as_bytes(), value.as_bytes());
        }
        // Writing to a vector cannot fail.
        if config.forwarded {
            out.extend_from_slice(b"x-forwarded-for: ");
            if trusted && let Some(chain) = view.raw_header("x-forwarded-for") {
                out.extend_from_slice(chain);
                out.extend_from_slice(b", ");
            }
            let _ = write!(out, "{}\r\n", context.peer.ip().to_canonical());
        }
        if !proto {
            put(out, b"x-forwarded-proto", if context.secure { b"https" } else { b"http" });
        }
        if !host && !view.host().is_empty() {
            put(out, b"x-forwarded-host", view.host().as_bytes());
        }
        let _ = write!(out, "{}: {}\r\n", headers::TRACEPARENT, context.trace);
        put(out, headers::CALLER.as_bytes(), plan.upstream.caller().as_bytes());
        if plan.websocket && view.is_websocket() {
            out.extend_from_slice(b"connection: Upgrade\r\nupgrade: websocket\r\n");
        }
        match body {
            Some(body) => {
                out.extend_from_slice(b"content-length: ");
                put_number(out, body.len() as u64);
                out.extend_from_slice(b"\r\n");
            }
            None if head.framing() == Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            None => {}
        }
        out.extend_from_slice(headers::TIMEOUT.as_bytes());
        out.extend_from_slice(b": ");
        let at = out.len();
        out.extend_from_slice(&[b' '; TIMEOUT_WIDTH]);
        out.extend_from_slice(b"\r\n\r\n");
        Ok(at)
    }

    /// Writes the time left in its place; blanks before a value are allowed.
    fn put_timeout(&mut self, at: usize, left: Deadline) {
        let left = left.left().as_millis().min(9_999_999_999);
        let mut place = &mut self.out[at..at + TIMEOUT_WIDTH];
        let _ = write!(place, "{left:>TIMEOUT_WIDTH$}");
    }

    /// Puts a body that is here already behind the head.
    fn put_body(&mut self, plan: &Forward, body: Option<Bytes>, record: &mut Record) -> Result<Upload, Trouble> {
        if let Some(body) = body {
            if body.len() > WITH_HEAD {
                return Ok(Upload::Memory(body));
            }
            self.out.extend_from_slice(&body);
            return Ok(Upload::Done);
        }
        let Pending::All(framing) = self.pending else { return Ok(Upload::Done) };
        match framing {
            Framing::Length(n) if n <= WITH_HEAD as u64 && self.input.len() as u64 >= n => {
                self.out.extend_from_slice(&self.input.data()[..n as usize]);
                self.input.eat(n as usize);
                record.received = n;
            }
            Framing::Chunked if self.input.len() <= WITH_HEAD => {
                let mark = self.out.len();
                let Some((used, bytes)) = recode_whole(self.input.data(), &mut self.out).map_err(Trouble::Refused)?
                else {
                    self.out.truncate(mark);
                    return Ok(Upload::Client(framing));
                };
                self.input.eat(used);
                record.received = bytes;
                if bytes > plan.max_body {
                    return Err(Trouble::Refused(TOO_LARGE));
                }
            }
            Framing::None | Framing::Length(_) | Framing::Chunked | Framing::Close => {
                return Ok(Upload::Client(framing));
            }
        }
        self.pending = Pending::Nothing;
        Ok(Upload::Done)
    }
}

impl Setting<'_> {
    /// Whether an answer that says "not now" may be dropped for another attempt; takes it out of the budget.
    fn may_pass(&self, now: Instant) -> bool {
        let rules = self.plan.upstream.rules();
        let longest = rules.backoff.cap(u32::MAX);
        self.replayable && self.may_retry && !self.until.passed(now + longest) && rules.budget.take(now)
    }
}

/// Writes all; `sent` becomes true with the first byte that the kernel took.
async fn send(stream: &mut TcpStream, mut bytes: &[u8], sent: &mut bool) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => bytes = &bytes[n..],
        }
        *sent = true;
    }
    Ok(())
}

/// Reads an answer's head; drops 1xx, but 101.
async fn read_answer<R: tokio::io::AsyncRead + Unpin>(
    answer: &mut ResponseHead,
    back: &mut Buffer,
    read: &mut R,
    is_head: bool,
) -> Result<(), CallError> {
    loop {
        if !back.is_empty() {
            let malformed = |error: crate::h1::response::BadResponse| CallError::Malformed(error.to_string());
            if answer.parse(back.data(), is_head).map_err(malformed)? {
                if answer.status >= 200 || answer.status == 101 {
                    return Ok(());
                }
                back.eat(answer.length);
                continue;
            }
        }
        match back.fill(read).await {
            Ok(0) => return Err(CallError::Lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(CallError::Lost(error)),
        }
    }
}

/// Writes an answer's head as the client gets it.
fn put_answer(
    answer: &ResponseHead,
    bytes: &[u8],
    plan: &Forward,
    out: &mut Vec<u8>,
    chunks: bool,
    close: bool,
    old: bool,
) {
    answer.put_status(bytes, out);
    let edits = plan.response.as_deref();
    let sets = |name: &[u8]| plan.set_response.iter().any(|(set, _)| is(name, set.as_bytes()));
    for (name, value) in answer.forwarded(bytes) {
        let length = is(name, b"content-length");
        let dropped =
            !length && (edits.is_some_and(|e| e.drops(name)) || (!plan.set_response.is_empty() && sets(name)));
        // RFC 9110 §8.6: never with 204.
        if !dropped && !(length && answer.status == 204) {
            put(out, name, value);
        }
    }
    if let Some(edits) = edits {
        out.extend_from_slice(edits.lines());
    }
    for (name, value) in &plan.set_response {
        if may_set(name.as_bytes(), value.as_bytes()) {
            put(out, name.as_bytes(), value.as_bytes());
        }
    }
    if chunks {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    put_connection(out, close, old);
    out.extend_from_slice(b"\r\n");
}

/// A chunked body, if all of it is here: appends it to `out`; gives the bytes used and the data's length.
fn recode_whole(data: &[u8], out: &mut Vec<u8>) -> Result<Option<(usize, u64)>, Refusal> {
    let (mut chunks, mut at, mut bytes) = (Chunks::default(), 0, 0);
    loop {
        let (used, piece) = chunks.next(&data[at..]).map_err(broken)?;
        match piece {
            Piece::Data(range) => {
                bytes += range.len() as u64;
                put_chunk(out, &data[at..][range]);
                at += used;
            }
            Piece::More => return Ok(None),
            Piece::End => {
                out.extend_from_slice(b"0\r\n\r\n");
                return Ok(Some((at + used, bytes)));
            }
        }
    }
}

/// What a header says of the way a request came.
enum Standing {
    Ordinary,
    /// `X-Forwarded-For`: always written anew.
    Chain,
    Proto,
    Host,
    /// Others that only a trusted proxy may say.
    Word,
}

fn standing(name: &[u8]) -> Standing {
    match name.first() {
        Some(b'x' | b'X') => match name.len() {
            9 if is(name, b"x-real-ip") => Standing::Word,
            13 if is(name, b"x-rewrite-url") => Standing::Word,
            14 if is(name, b"x-original-url") => Standing::Word,
            15 if is(name, b"x-forwarded-for") => Standing::Chain,
            16 if is(name, b"x-forwarded-host") => Standing::Host,
            17 if is(name, b"x-forwarded-proto") => Standing::Proto,
            12.. if name[..12].eq_ignore_ascii_case(b"x-forwarded-") => Standing::Word,
            _ => Standing::Ordinary,
        },
        Some(b'f' | b'F') if is(name, b"forwarded") => Standing::Word,
        Some(b'b' | b'B') if name.len() > 7 && name[..7].eq_ignore_ascii_case(b"ballet-") => Standing::Word,
        Some(_) | None => Standing::Ordinary,
    }
}
