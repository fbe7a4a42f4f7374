//! One client's connection: its task owns both sockets and all buffers of the exchange under way.
//!
//! ```text
//! client ──input──▶ head ─▶ verdict ─▶ out ──▶ service        (upload: input ─▶ scratch ─▶ service)
//!        ◀──out─── answer's head ◀──back────── service        (download: back ─▶ out ─▶ client)
//! ```

mod forward;
mod heads;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use ballet_core::{Problem, TraceContext, headers};

use crate::CallError;
use crate::buffer::Buffer;
use crate::fleet::Endpoint;
use crate::h1::chunks::Chunks;
use crate::h1::request::{Refusal, RequestHead};
use crate::h1::response::ResponseHead;
use crate::h1::{Framing, MAX_TARGET, put_chunk};
use crate::serve::relay::{Pace, TOO_LARGE, Upward, broken, left, recode, write_within};
use crate::serve::server::Shared;
use crate::serve::{Answer, AnswerBody, Context, End, Exchange, Handler, MAX_WAITS, Verdict};
use crate::upstreams::Upstream;

/// An idle connection keeps its buffers so long; then they are given back.
const KEEP_BUFFERS: Duration = Duration::from_secs(1);
/// A body up to this many bytes goes out with the head in one write, and can be sent again.
const WITH_HEAD: usize = 32 << 10;
/// A refused request's body is read and dropped up to this many bytes to keep the connection.
const DISCARD: u64 = 64 << 10;
/// When the connection cannot be kept, what the client still sends is dropped for so long, so that it can read the
/// answer before it hears of the end.
const LINGER: Duration = Duration::from_secs(2);

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
            worth_a_look = memchr::memchr(b'\n', &data[had.min(data.len())..]).is_some() || data.len() > MAX_TARGET;
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
            // From the right: the last address that is not a trusted proxy's own. Several lines count as one.
            let lines = head.headers().filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"));
            let mut chain: Vec<&str> =
                lines.flat_map(|(_, value)| std::str::from_utf8(value).unwrap_or("").split(',')).collect();
            while let Some(Ok(address)) = chain.pop().map(|address| address.trim().parse::<IpAddr>()) {
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
                    let problem = Problem::new(500, "the request waited too often").code("PX011");
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
        pieces: &mut mpsc::Receiver<io::Result<Bytes>>,
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
}
