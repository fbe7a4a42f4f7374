//! Commands: one transaction that does the work, publishes its events and keeps its answer.
//!
//! A command that comes with a client's `Idempotency-Key` is done once per caller, method and route; asked again, it answers
//! the same. A command that comes with a *step key* of the orchestrator (`execution/reference/iteration`) is done once at
//! all; its undo (`…/undo`) leaves a tombstone, so that the step cannot happen behind it. In both cases the row that
//! remembers it is written in the transaction that does the work.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, MatchedPath, Request};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use rusqlite::{OptionalExtension, params};
use serde::de::{DeserializeOwned, IgnoredAny};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedMutexGuard;

use ballet_core::{Problem, headers};

use crate::request::{deadline, text};
use crate::{Caller, Context, Error, Reply, Result, Tx, problem};

/// Longest body that is taken.
const BODY_LIMIT_BYTES: usize = 1 << 20;
/// Longest client's key.
const KEY_LIMIT: usize = 255;
/// Longest step key: names of 200 characters, escaped, and their undo. A key that is refused could never be undone.
const STEP_KEY_LIMIT: usize = 8_192;
/// How long a second request waits for the first one with its key.
const WAIT: Duration = Duration::from_secs(3);
/// Scope of the orchestrator's keys.
const STEP: &str = "step";
/// What an undo's key ends with.
const UNDO: &str = "/undo";

/// A body that nobody reads.
pub type Ignored = IgnoredAny;

/// A JSON body, or 400 (not JSON, or not of this form), 413, 415. No body at all is read as `{}`; unknown fields are ignored
/// unless `T` denies them. For what is no command: a login, a search.
#[derive(Clone, Copy, Debug)]
pub struct Body<T>(pub T);

/// A command with its JSON body (as in [`Body`]): the last extractor of every `POST`, `PUT`, `PATCH`, `DELETE` that writes.
pub struct Command<B = Ignored> {
    /// The body.
    pub body: B,
    /// Who asks. On its own no check: a bad token makes [`Caller::Anyone`]; put [`User`](crate::User) before the command.
    pub caller: Caller,
    ctx: Context,
    key: Option<Key>,
}

impl<T: DeserializeOwned> FromRequest<Context> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, _ctx: &Context) -> Result<Self> {
        let (parts, body) = request.into_parts();
        parse(&parts.headers, &read(body).await?).map(Self)
    }
}

impl<B: DeserializeOwned> FromRequest<Context> for Command<B> {
    type Rejection = Error;

    async fn from_request(request: Request, ctx: &Context) -> Result<Self> {
        Self::hiding(request, ctx, &[]).await
    }
}

impl<B: DeserializeOwned> Command<B> {
    /// As the extractor, but these fields at the top of the body leave no trace: what remembers the request knows the rest
    /// of it only. For a password: even a digest of the body would let whoever has the store guess it. So a key that comes
    /// again with another value of such a field gives the first answer again.
    ///
    /// # Errors
    /// Those of the extractor.
    pub async fn hiding(request: Request, ctx: &Context, fields: &[&str]) -> Result<Self> {
        let (mut parts, body) = request.into_parts();
        let caller = Caller::of(&mut parts, ctx).await;
        let bytes = read(body).await?;
        let shown = if fields.is_empty() { bytes.clone() } else { without(&parts.headers, &bytes, fields)? };
        let key = match parts.headers.get(headers::IDEMPOTENCY_KEY) {
            None => None,
            Some(key) => {
                let route = parts.extensions.get::<MatchedPath>().map_or(parts.uri.path(), MatchedPath::as_str);
                let route = format!("{} {} {route}", caller.scope(), parts.method);
                let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
                let fingerprint =
                    Sha256::new().chain_update(target).chain_update(b"\n").chain_update(&shown).finalize().into();
                Some(Key::read(key.to_str().unwrap_or_default(), &caller, route, fingerprint)?)
            }
        };
        Ok(Self { body: parse(&parts.headers, &bytes)?, caller, ctx: ctx.clone(), key })
    }
}

impl<B: Send + 'static> Command<B> {
    /// Whether this undoes an earlier step.
    pub fn is_undo(&self) -> bool {
        self.key.as_ref().is_some_and(|key| key.undoes().is_some())
    }

    /// Runs `work` in one transaction and answers what it answers, now and whenever the same key comes again.
    ///
    /// - `Ok(reply)`: committed, whatever the status. Kept, unless the status is 401, 403, 408, 425, 429 or 5xx.
    /// - `Err(problem)`: a refusal. What `work` wrote is taken back; the refusal is kept under the same rule.
    /// - any other error: nothing stays, nothing is kept.
    ///
    /// A step that has an effect answers with a status below 400: an undo of a step that never came, or was refused, does
    /// not run `work` and answers 200 `{}`. A step that comes behind its undo gets 410. Of an undo only such an answer is
    /// kept: one that did not work leaves the step done, and works when it comes again.
    ///
    /// # Errors
    /// Those of `work`; 422 for a key that belongs to another request; 425 while the first request with the key still runs.
    pub async fn run(self, work: impl FnOnce(&Tx<'_>, B) -> Result<Reply> + Send + 'static) -> Result<Reply> {
        let Self { body, ctx, key, .. } = self;
        let Some(key) = key else {
            return ctx.store().write(move |tx| work(tx, body)).await;
        };
        let _turn = ctx.flights().enter(&key).await?;
        ctx.store().write(move |tx| once(tx, &key, |tx| work(tx, body))).await?
    }

    /// As [`Command::run`], with something to ask before that takes time: prices of another service. `before` is a future
    /// that was not polled yet; on a repeated request it never is. A refusal of it is kept like one of `work`.
    ///
    /// # Errors
    /// Those of `before` and of [`Command::run`].
    pub async fn run_after<P: Send + 'static>(
        self,
        before: impl Future<Output = Result<P>> + Send,
        work: impl FnOnce(&Tx<'_>, B, P) -> Result<Reply> + Send + 'static,
    ) -> Result<Reply> {
        let Self { body, ctx, key, .. } = self;
        let Some(key) = key else {
            let found = before.await?;
            return ctx.store().write(move |tx| work(tx, body, found)).await;
        };
        let _turn = ctx.flights().enter(&key).await?;
        let seen = key.clone();
        if let Some(known) = ctx.store().read(move |db| seen.known(db)).await? {
            return known;
        }
        let found = match before.await {
            Ok(found) => Ok(found),
            Err(error) if kept(error.problem().status) => Err(error),
            Err(error) => return Err(error),
        };
        ctx.store().write(move |tx| once(tx, &key, |tx| work(tx, body, found?))).await?
    }
}

/// What a key says of a request, and how it is answered the second time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    scope: String,
    key: String,
    /// Empty for steps: the orchestrator's keys name one request by themselves.
    fingerprint: Vec<u8>,
}

/// A kept answer, or what is answered instead.
type Known = Result<Reply>;

impl Key {
    fn read(key: &str, caller: &Caller, route: String, fingerprint: [u8; 32]) -> Result<Self> {
        let refuse = |detail: &str| Problem::new(400, "bad Idempotency-Key").code("CH009").detail(detail);
        let step = key.contains('/') && matches!(caller, Caller::Service(_));
        let limit = if step { STEP_KEY_LIMIT } else { KEY_LIMIT };
        if key.is_empty() || key.len() > limit || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(refuse(&format!("use 1 to {limit} visible ASCII characters")).into());
        }
        match (key.contains('/'), caller) {
            (true, Caller::Service(_)) => Ok(Self { scope: STEP.into(), key: key.into(), fingerprint: vec![] }),
            (true, Caller::User(_) | Caller::Anyone) => Err(refuse("`/` is for the platform's own keys").into()),
            (false, Caller::User(_) | Caller::Service(_) | Caller::Anyone) => {
                Ok(Self { scope: route, key: key.into(), fingerprint: fingerprint.into() })
            }
        }
    }

    /// The key of the step that this one undoes.
    fn undoes(&self) -> Option<&str> {
        self.key.strip_suffix(UNDO).filter(|_| self.scope == STEP)
    }

    /// What is to be answered, if the key was seen before.
    fn known(&self, db: &rusqlite::Connection) -> Result<Option<Known>> {
        let row = db
            .prepare_cached("SELECT state, fingerprint, reply FROM inbox WHERE scope = ?1 AND key = ?2")?
            .query_row([&self.scope, &self.key], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, Option<Vec<u8>>>(1)?, row.get::<_, Option<String>>(2)?))
            })
            .optional()?;
        let Some((state, fingerprint, reply)) = row else { return Ok(None) };
        if state == "tombstone" {
            let late = Problem::new(410, "the step was undone").code("CH012");
            return Ok(Some(Err(late.into())));
        }
        if fingerprint.unwrap_or_default() != self.fingerprint {
            let other = Problem::new(422, "the key belongs to another request").code("CH010");
            return Ok(Some(Err(other.into())));
        }
        let reply: Reply = serde_json::from_str(&reply.unwrap_or_default())?;
        Ok(Some(Ok(reply.replayed())))
    }

    fn remember(&self, tx: &Tx<'_>, state: &str, reply: &Reply) -> Result<()> {
        tx.prepare_cached("INSERT INTO inbox VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?.execute(params![
            self.scope,
            self.key,
            state,
            self.fingerprint,
            serde_json::to_string(reply)?,
            tx.now().millis()
        ])?;
        Ok(())
    }

    /// Whether the step `base` was done, and so has to be undone.
    fn was_done(tx: &Tx<'_>, base: &str) -> Result<bool> {
        let row: Option<(String, Option<String>)> = tx
            .prepare_cached("SELECT state, reply FROM inbox WHERE scope = ?1 AND key = ?2")?
            .query_row([STEP, base], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match row {
            Some((state, Some(reply))) if state == "done" => Ok(serde_json::from_str::<Reply>(&reply)?.status() < 400),
            Some(_) | None => Ok(false),
        }
    }

    /// Puts a tombstone in the place of the step `base`.
    fn entomb(tx: &Tx<'_>, base: &str) -> Result<()> {
        tx.prepare_cached("INSERT OR REPLACE INTO inbox VALUES (?1, ?2, 'tombstone', NULL, NULL, ?3)")?
            .execute(params![STEP, base, tx.now().millis()])?;
        Ok(())
    }
}

/// Does `work` unless the key was seen before, and remembers the answer in the same transaction.
fn once(tx: &Tx<'_>, key: &Key, work: impl FnOnce(&Tx<'_>) -> Result<Reply>) -> Result<Known> {
    if let Some(known) = key.known(tx)? {
        return Ok(known);
    }
    if let Some(base) = key.undoes() {
        return undo(tx, key, base, work).map(Ok);
    }
    match tx.nested(work) {
        Ok(reply) => {
            if kept(reply.status()) {
                key.remember(tx, "done", &reply)?;
            }
            Ok(Ok(reply))
        }
        Err(error @ Error::Refused { .. }) if kept(error.problem().status) => {
            let reply = error.into_reply();
            key.remember(tx, "refused", &reply)?;
            Ok(Ok(reply))
        }
        Err(error) => Err(error),
    }
}

/// Undoes the step `base`. Its row gives way to the tombstone only with the effect: an undo that was refused or failed must
/// find it when it comes again, and meanwhile a late copy of the step is answered from it.
fn undo(tx: &Tx<'_>, key: &Key, base: &str, work: impl FnOnce(&Tx<'_>) -> Result<Reply>) -> Result<Reply> {
    let reply = if Key::was_done(tx, base)? { work(tx)? } else { Reply::ok(&serde_json::json!({})) };
    if reply.status() < 400 {
        Key::entomb(tx, base)?;
        key.remember(tx, "done", &reply)?;
    }
    Ok(reply)
}

/// Whether an answer with this status is kept: one that would be the same tomorrow.
fn kept(status: u16) -> bool {
    !matches!(status, 401 | 403 | 408 | 425 | 429 | 500..)
}

/// Requests under way, by scope and key: a second one waits for the first.
#[derive(Default)]
pub(crate) struct Flights(Arc<Mutex<HashMap<(String, String), Lock>>>);

type Lock = Arc<tokio::sync::Mutex<()>>;

/// One's turn; gone when dropped.
struct Turn {
    flights: Flights,
    key: (String, String),
    guard: Option<OwnedMutexGuard<()>>,
}

impl Flights {
    async fn enter(&self, key: &Key) -> Result<Turn> {
        let key = (key.scope.clone(), key.key.clone());
        let lock = self.0.lock().expect("nobody panics while it is held").entry(key.clone()).or_default().clone();
        let mut turn = Turn { flights: Self(self.0.clone()), key, guard: None };
        // Something of the deadline has to be left to say so.
        let wait = deadline().map_or(WAIT, |deadline| deadline.within(WAIT).left().mul_f64(0.8));
        match tokio::time::timeout(wait, lock.lock_owned()).await {
            Ok(guard) => {
                turn.guard = Some(guard);
                Ok(turn)
            }
            Err(_) => {
                let early = Problem::new(425, "the first request still runs").code("CH011");
                Err(Error::from(early).retry_after(Duration::from_secs(1)))
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut flights = self.flights.0.lock().expect("nobody panics while it is held");
        self.guard = None;
        // Nobody else waits: whoever does holds a clone.
        if flights.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            flights.remove(&self.key);
        }
    }
}

async fn read(body: axum::body::Body) -> Result<Bytes> {
    to_bytes(body, BODY_LIMIT_BYTES).await.map_err(|error| {
        use std::error::Error as _;
        if error.source().is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
            Problem::new(413, "the body is too large")
                .code("CH016")
                .detail(format!("at most {BODY_LIMIT_BYTES} bytes"))
                .into()
        } else {
            Error::from(Problem::new(400, "bad request").code("CH004").detail("the body was cut off"))
        }
    })
}

/// The body without some of its fields.
fn without(headers: &HeaderMap, bytes: &Bytes, fields: &[&str]) -> Result<Bytes> {
    let mut body: serde_json::Value = parse(headers, bytes)?;
    if let Some(body) = body.as_object_mut() {
        body.retain(|name, _| !fields.contains(&name.as_str()));
    }
    Ok(serde_json::to_vec(&body)?.into())
}

fn parse<T: DeserializeOwned>(headers: &HeaderMap, bytes: &Bytes) -> Result<T> {
    let kind = text(headers, CONTENT_TYPE.as_str())
        .map(|kind| kind.split(';').next().unwrap_or_default().trim().to_lowercase());
    let json = kind.as_deref().is_none_or(|kind| kind == "application/json" || kind.ends_with("+json"));
    if !json && !bytes.is_empty() {
        return Err(Problem::new(415, "not JSON").code("CH017").detail("send `Content-Type: application/json`").into());
    }
    let bytes = if bytes.is_empty() { b"{}" } else { bytes.as_ref() };
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let (path, cause) = (error.path().to_string(), error.into_inner());
        let problem = Problem::new(400, "the body cannot be read").code("CH004");
        match cause.classify() {
            serde_json::error::Category::Data => {
                let (field, detail) = name(&path, &cause);
                problem.field(field, detail)
            }
            serde_json::error::Category::Io
            | serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof => problem.detail(format!("not JSON: {cause}")),
        }
    })?;
    reader.end().map_err(|error| problem::bad_request(format!("not JSON: {error}")).code("CH004"))?;
    Ok(value)
}

/// The field that a serde error is about, and what is wrong with it without line and column.
fn name(path: &str, cause: &serde_json::Error) -> (String, String) {
    let text = cause.to_string();
    let text = text.split(" at line ").next().unwrap_or_default().to_owned();
    let path = if path == "." { "" } else { path };
    // A missing field is reported at the object that lacks it.
    match text.strip_prefix("missing field `").and_then(|rest| rest.split_once('`')) {
        Some((field, _)) if path.is_empty() => (field.to_owned(), "is required".into()),
        Some((field, _)) => (format!("{path}.{field}"), "is required".into()),
        None => (path.to_owned(), text),
    }
}
