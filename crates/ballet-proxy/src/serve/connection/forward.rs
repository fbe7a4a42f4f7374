//! Sends a request to a service and its answer to the client: attempts, and one exchange after the other.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use ballet_core::{Deadline, headers};
use ballet_resilience::{Outcome, Until};

use super::{Connection, Next, Pending, Record, WITH_HEAD, heads};
use crate::CallError;
use crate::buffer::Buffer;
use crate::fleet::Endpoint;
use crate::h1::chunks::{Chunks, Piece};
use crate::h1::request::{Refusal, RequestHead};
use crate::h1::response::{BadResponse, ResponseHead};
use crate::h1::{Framing, put_chunk};
use crate::serve::relay::{
    Downstream, Downward, Pace, TOO_LARGE, UploadLimits, Upward, broken, left, upload, write_within,
};
use crate::serve::{Answer, Context, End, Failure, Forward, Handler, ServeConfig};
use crate::upstreams::{is_idempotent, is_passing, outcome_of};

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

impl<H: Handler> Connection<H> {
    pub(super) async fn forward(
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
            retries += 1;
            tried.push(address);
            let rules = upstream.rules();
            // The policy's rest; a passing answer has been granted its retry.
            let Some(error) = error else {
                let rest = rules.backoff.rest(retries, &mut upstream.rng());
                drop(rules);
                upstream.note_retry();
                sleep(rest).await;
                continue;
            };
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
            let rest = upstream.rest(&rules, retries, &error, &tried, now);
            if !again || !may_retry || until.passed(now + rest) || !rules.budget.take(now) {
                return Err(Trouble::Call(error));
            }
            drop(rules);
            last = Some(error);
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
        heads::put_timeout(&mut self.out, setting.timeout_field, setting.until.to_header(now));
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
        let marks = Marks::default();
        let delivery = Delivery { setting, head, config, draining, marks: &marks };
        let mut uploaded = true;
        let result = {
            let mut download =
                pin!(delivery.run(answer, back, &mut upstream_read, &mut client_write, out, &mut facts.head));
            // First the request's body, while an answer may already come.
            let mut early = None;
            let mut answer_by = limit;
            if !matches!(setting.upload, Upload::Done) {
                uploaded = false;
                let mut uploading = pin!(async {
                    match setting.upload {
                        Upload::Done => Ok(()),
                        Upload::Memory(bytes) => write_within(&mut upstream_write, bytes, config.upstream)
                            .await
                            .map_err(|_| Upward::Upstream),
                        Upload::Client(framing) => {
                            let limits = UploadLimits {
                                pace: Pace::new(config.body),
                                max: setting.plan.max_body,
                                write: config.upstream,
                            };
                            let (read, write) = (&mut client_read, &mut upstream_write);
                            upload(*framing, input, read, write, scratch, limits, &marks.received).await
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
                                if !marks.headed.load(Ordering::Relaxed) {
                                    break Err(Trouble::Call(CallError::TimedOut { sent: true }));
                                }
                                timing = false;
                            }
                        }
                    }
                }
            }
        };
        record.received += marks.received.load(Ordering::Relaxed);
        record.sent = marks.sent.load(Ordering::Relaxed);
        if matches!(setting.upload, Upload::Client(_)) {
            *pending = if uploaded { Pending::Nothing } else { Pending::Rest };
        }
        if let Some((_, status)) = facts.head {
            record.status = status;
        }
        match result {
            Ok((next, Afterwards::Keep | Afterwards::Drop)) if !uploaded => {
                Ok((if *pending == Pending::Rest { Next::Linger } else { next }, Afterwards::Drop))
            }
            Err(Trouble::Refused(_)) if marks.answered.load(Ordering::Relaxed) => {
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

/// What two sides of an exchange tell each other.
#[derive(Default)]
struct Marks {
    /// Whether the answer's head has come.
    headed: AtomicBool,
    /// Whether a byte of the answer may have gone to the client.
    answered: AtomicBool,
    received: AtomicU64,
    sent: AtomicU64,
}

/// Brings an answer to the client.
struct Delivery<'a> {
    setting: &'a Setting<'a>,
    head: &'a RequestHead,
    config: &'a ServeConfig,
    draining: bool,
    marks: &'a Marks,
}

impl Delivery<'_> {
    async fn run<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &self,
        answer: &mut ResponseHead,
        back: &mut Buffer,
        read: &mut R,
        write: &mut W,
        out: &mut Vec<u8>,
        head_at: &mut Option<(Instant, u16)>,
    ) -> Result<(Next, Afterwards), Trouble> {
        let (head, plan) = (self.head, self.setting.plan);
        read_answer(answer, back, read, head.view().method() == "HEAD").await.map_err(Trouble::Call)?;
        self.marks.headed.store(true, Ordering::Relaxed);
        let now = Instant::now();
        *head_at = Some((now, answer.status));
        if answer.status == 101 {
            if !(plan.websocket && head.view().is_websocket()) {
                return Err(Trouble::Call(CallError::Malformed("it switches protocols unasked".into())));
            }
            out.clear();
            answer.put_switch(back.data(), out);
            back.eat(answer.length);
            let written = write_within(write, out, self.config.write).await;
            return written.map(|()| (Next::Close, Afterwards::Tunnel)).map_err(|_| Trouble::ClientLeft);
        }
        if is_passing(answer.status) && self.setting.may_pass(now) {
            return Err(Trouble::Passing);
        }
        let framing = answer.framing.unwrap_or(Framing::Close);
        let (old, unknown) = (head.is_old(), matches!(framing, Framing::Chunked | Framing::Close));
        let close = !head.keep_alive() || self.draining || (old && unknown);
        out.clear();
        heads::put_answer(answer, back.data(), plan, out, unknown && !old, close, old);
        let kind = answer.header(back.data(), b"content-type");
        let events = kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"));
        back.eat(answer.length);
        self.marks.answered.store(true, Ordering::Relaxed);
        let pause = (!events).then_some(self.config.upstream);
        let relay = Downstream { framing, as_chunks: unknown && !old, pause, write: self.config.write };
        match relay.relay(back, read, write, out, &self.marks.sent).await {
            Ok(()) => {}
            Err(Downward::ClientLeft) => return Err(Trouble::ClientLeft),
            Err(Downward::Upstream(error)) => return Err(Trouble::Cut(CallError::Lost(error))),
        }
        let afterwards = if answer.keep_alive && back.is_empty() { Afterwards::Keep } else { Afterwards::Drop };
        Ok((if close { Next::Close } else { Next::Request }, afterwards))
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
async fn read_answer<R: AsyncRead + Unpin>(
    answer: &mut ResponseHead,
    back: &mut Buffer,
    read: &mut R,
    is_head: bool,
) -> Result<(), CallError> {
    loop {
        if !back.is_empty() {
            let malformed = |error: BadResponse| CallError::Malformed(error.to_string());
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
