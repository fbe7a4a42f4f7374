//! Decides each request: route, rate limit, access, and what becomes of it.
//!
//! [`Front::decide`] runs on the connection's task and only looks things up. What takes time is handed back as
//! something to wait for (keys, a turn in a rate limit; then the same request is decided again with the same
//! [`Note`]) or as work (files, merged answers).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::time::sleep;

use ballet_core::{Chain, Clock, headers};
use ballet_manifest::LimitBy;
use ballet_proxy::{Answer, CallMode, CallRequest, Context, End, Exchange, Failure, Forward, Handler, Head, Verdict};

use crate::access::{self, Verdict as AccessVerdict};
use crate::access_log::{AccessLog, Line};
use crate::files::{self, FileError, FileRequest};
use crate::issuer::Issuer;
use crate::jwt::Claims;
use crate::limit::Admitted;
use crate::merge::{self, Part};
use crate::plan::{AccessPlan, ActionPlan, PartPlan, Plan, RoutePlan};
use crate::refusal::{self, Refusal};
use crate::request::View;
use crate::route::{Allow, Found, Parameters};

/// Longest `Idempotency-Key`, in characters.
const MAX_IDEMPOTENCY_KEY: usize = 255;
/// Headers of the client that go along to the parts of a merged answer.
const PASSED_TO_PARTS: [&str; 5] = ["authorization", "accept-language", "cookie", "user-agent", headers::TRACESTATE];
/// Codes `GW001` to `GW017`.
pub(crate) const REFUSALS: usize = 18;

/// What decides about all requests of a gateway.
pub(crate) struct Front {
    pub(crate) plan: ArcSwap<Plan>,
    pub(crate) log: AccessLog,
    pub(crate) clock: Arc<dyn Clock>,
    /// Refusals by the number of their code.
    pub(crate) refused: [AtomicU64; REFUSALS],
}

/// What is kept of a request from its decision to its log line.
#[derive(Default)]
pub(crate) struct Note {
    route: Option<Arc<RoutePlan>>,
    claims: Option<Arc<Claims>>,
    refusal: Option<Refusal>,
    admitted: Option<Admitted>,
    /// Issuers were asked for the token's key.
    asked: bool,
    /// What came out of work that was begun for this request.
    late: Option<Arc<OnceLock<Late>>>,
}

/// What came out of work.
enum Late {
    Refused(Refusal),
    Missing(Vec<Arc<str>>),
}

/// What to do, or wait for, or why not.
type Judged = Result<Verdict, Refusal>;

impl Handler for Front {
    type Note = Note;

    fn decide(&self, head: &Head<'_>, context: &Context, note: &mut Note) -> Verdict {
        match self.judge(head, context, note) {
            Ok(verdict) => verdict,
            Err(refusal) => {
                let answer = refusal.answer(&context.trace);
                note.refusal = Some(refusal);
                Verdict::Answer(answer)
            }
        }
    }

    fn failed(&self, failure: &Failure<'_>, note: &mut Note) -> Answer {
        let refusal = Refusal::of_call(failure.error, failure.policy);
        let answer = refusal.answer(&failure.context.trace);
        note.refusal = Some(refusal);
        answer
    }

    fn finished(&self, exchange: &Exchange<'_>, note: &Note) {
        let late = note.late.as_ref().and_then(|late| late.get());
        let refusal = note.refusal.as_ref().or(match late {
            Some(Late::Refused(refusal)) => Some(refusal),
            Some(Late::Missing(_)) | None => None,
        });
        if let Some(route) = &note.route {
            route.stats.note(exchange.status, exchange.took);
        }
        if let Some(refusal) = refusal {
            self.count(refusal);
        }
        if self.log.is_on() {
            self.log_line(exchange, note, refusal, late);
        }
    }

    fn refused(&self, refusal: &ballet_proxy::Refusal, peer: SocketAddr) {
        self.count(&Refusal::Bad { status: refusal.status, reason: String::new() });
        if self.log.is_on() {
            self.log.put(&Line {
                time: self.clock.now(),
                peer: Some(peer.ip()),
                status: refusal.status,
                reason: refusal.reason,
                ..Line::default()
            });
        }
    }
}

impl Front {
    fn judge(&self, head: &Head<'_>, context: &Context, note: &mut Note) -> Judged {
        let plan = self.plan.load();
        let (route, parameters) = match plan.table.find(head.method(), head.path()) {
            Found::Route { route, parameters } => (&plan.routes[route], parameters),
            Found::OtherMethods(allow) => return Err(Refusal::Method(allow)),
            Found::Nothing => return Err(Refusal::NoRoute),
        };
        note.route = Some(route.clone());
        let key = head.header(headers::IDEMPOTENCY_KEY);
        if key.is_some_and(|key| key.contains('/') || key.len() > MAX_IDEMPOTENCY_KEY) {
            return Err(Refusal::IdempotencyKey);
        }
        // A limit by claim has to know who it is; every other one comes first, so that guessing tokens is limited too.
        let by_claim = route.limit.as_ref().is_some_and(|limit| matches!(limit.limit.by, LimitBy::Claim(_)));
        if !by_claim && let Some(wait) = limit(route, head, context, &parameters, note)? {
            return Ok(wait);
        }
        let authorization = head.raw_header("authorization");
        if let Some(access) = &route.access {
            match access.check(authorization, note.asked) {
                AccessVerdict::Granted(claims) => note.claims = Some(claims),
                AccessVerdict::Refused(refusal) => return Err(refusal),
                AccessVerdict::Ask => return Ok(ask_for_keys(vec![access.issuer.clone()], note)),
            }
        }
        if by_claim && let Some(wait) = limit(route, head, context, &parameters, note)? {
            return Ok(wait);
        }
        let claims = note.claims.clone();
        let view = view(route, head, context, &parameters, claims.as_deref());
        match &route.action {
            ActionPlan::Forward { upstream, rewrite, host } => {
                let mut forward = Forward::to(upstream.clone());
                forward.timeout = route.timeout;
                forward.replay = route.idempotent && key.is_some();
                if let Some(template) = rewrite {
                    let mut target = view.path(template).map_err(expression)?;
                    // The client's query goes along, unless the route writes one.
                    if let Some(query) = head.query().filter(|_| !target.contains('?')) {
                        target.push('?');
                        target.push_str(query);
                    }
                    forward.target = Some(target);
                }
                if let Some(host) = host {
                    forward.set.push(("host".into(), host.clone()));
                }
                if let (Some(limit), Some(admitted)) = (&route.limit, note.admitted) {
                    forward.response = Some(limit.edits.clone());
                    forward.set_response = vec![("ratelimit".into(), refusal::state(admitted.left, admitted.reset))];
                }
                Ok(Verdict::Forward(forward))
            }
            ActionPlan::Redirect { status, location } => {
                let location = view.path(location).map_err(expression)?;
                Ok(Verdict::Answer(Answer::new(*status).header("location", location)))
            }
            ActionPlan::Static { dir } => {
                let dir = dir.clone();
                serve_file(head, context, route, &parameters, dir, note)
            }
            ActionPlan::Merge { parts } => self.merge(parts, route, &view, context, note),
        }
    }

    fn merge(
        &self,
        parts: &[PartPlan],
        route: &RoutePlan,
        view: &View<'_>,
        context: &Context,
        note: &mut Note,
    ) -> Judged {
        let authorization = view.head.raw_header("authorization");
        let mut to_ask: Vec<Arc<Issuer>> = vec![];
        let mut prepared = Vec::with_capacity(parts.len());
        for part in parts {
            let granted = part.access.as_ref().map(|access| check_part(access, authorization, note.asked, &mut to_ask));
            let claims = match &granted {
                Some(Ok(claims)) => Some(claims.clone()),
                Some(Err(_)) | None => note.claims.clone(),
            };
            if note.claims.is_none() {
                note.claims = claims.clone();
            }
            let call = match granted {
                Some(Err(refusal)) => Err(refusal),
                Some(Ok(_)) | None => {
                    let view = View { claims: claims.as_deref(), ..*view };
                    view.path(&part.path)
                        .map_err(expression)
                        .map(|path| (part.upstream.clone(), part_request(part, path, &view, context)))
                }
            };
            let (name, fallback) = (part.name.clone(), part.fallback.clone());
            prepared.push(Part { name, required: part.required, fallback, call });
        }
        if !to_ask.is_empty() {
            return Ok(ask_for_keys(to_ask, note));
        }
        let (timeout, trace) = (route.timeout, context.trace);
        Ok(later(note, move |late| async move {
            match merge::merge(prepared, timeout).await {
                Ok(merged) => {
                    if !merged.missing.is_empty() {
                        let _ = late.set(Late::Missing(merged.missing));
                    }
                    merged.answer
                }
                Err(refusal) => {
                    let answer = refusal.answer(&trace);
                    let _ = late.set(Late::Refused(refusal));
                    answer
                }
            }
        }))
    }

    fn count(&self, refusal: &Refusal) {
        if let Some(counter) = self.refused.get(refusal::number(refusal.code())) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn log_line(&self, exchange: &Exchange<'_>, note: &Note, refusal: Option<&Refusal>, late: Option<&Late>) {
        let context = exchange.context;
        let route = note.route.as_deref();
        let missing;
        let reason = match (refusal, exchange.end) {
            (Some(refusal), _) => refusal.reason(),
            (None, End::ClientLeft) => "client left",
            (None, End::Cut) => "answer broke off",
            (None, End::Tunnel) => "tunnel ended",
            (None, End::Whole) => match (route.map(|route| &route.action), late) {
                (Some(ActionPlan::Forward { .. }), _) => "forwarded",
                (Some(ActionPlan::Redirect { .. }), _) => "redirect",
                (Some(ActionPlan::Static { .. }), _) => "file",
                (Some(ActionPlan::Merge { .. }), Some(Late::Missing(parts))) => {
                    missing = format!("merged without {}", parts.join(", "));
                    &missing
                }
                (Some(ActionPlan::Merge { .. }), Some(Late::Refused(_)) | None) => "merged",
                // Refused by the server itself, while the body was read.
                (None, _) => "refused",
            },
        };
        let access = route.map(|route| route.access.as_ref().map_or("open", |access| &access.name));
        let subject = note.claims.as_ref().and_then(|claims| claims.all.get("sub")).and_then(Value::as_str);
        self.log.put(&Line {
            time: self.clock.now(),
            peer: Some(context.client),
            method: exchange.head.method(),
            path: exchange.head.path(),
            route: route.map(|route| &*route.name),
            status: exchange.status,
            reason,
            code: refusal.map(|refusal| refusal.code().0),
            access,
            subject,
            limit_left: note.admitted.map(|admitted| admitted.left),
            upstream: exchange.service.map(|service| service.as_str()),
            instance: exchange.instance.map(|instance| instance.as_str()),
            attempts: (exchange.attempts > 0).then_some(exchange.attempts),
            bytes_in: exchange.received,
            bytes_out: exchange.sent,
            duration_ms: (exchange.took.as_secs_f64() * 1e6).round() / 1e3,
            trace_id: Some(context.trace),
        });
    }
}

fn view<'a>(
    route: &'a RoutePlan,
    head: &Head<'a>,
    context: &Context,
    parameters: &'a Parameters,
    claims: Option<&'a Claims>,
) -> View<'a> {
    View { head: *head, peer: context.client, claims, pattern: &route.pattern, parameters }
}

/// Asks the route's limit, once for a request. What to wait for, if it has to queue.
fn limit(
    route: &RoutePlan,
    head: &Head<'_>,
    context: &Context,
    parameters: &Parameters,
    note: &mut Note,
) -> Result<Option<Verdict>, Refusal> {
    let Some(limit) = &route.limit else { return Ok(None) };
    if note.admitted.is_some() {
        return Ok(None);
    }
    let claims = note.claims.clone();
    let admitted = limit.check(&view(route, head, context, parameters, claims.as_deref()))?;
    note.admitted = Some(admitted);
    if admitted.after.is_zero() {
        return Ok(None);
    }
    Ok(Some(Verdict::Wait(Box::pin(sleep(admitted.after)))))
}

fn ask_for_keys(issuers: Vec<Arc<Issuer>>, note: &mut Note) -> Verdict {
    note.asked = true;
    Verdict::Wait(Box::pin(access::ask(issuers)))
}

/// Checks a part's own rule; who has to be asked for keys is added to `to_ask`.
fn check_part(
    access: &AccessPlan,
    authorization: Option<&[u8]>,
    asked: bool,
    to_ask: &mut Vec<Arc<Issuer>>,
) -> Result<Arc<Claims>, Refusal> {
    match access.check(authorization, asked) {
        AccessVerdict::Granted(claims) => Ok(claims),
        AccessVerdict::Refused(refusal) => Err(refusal),
        AccessVerdict::Ask => {
            if !to_ask.iter().any(|issuer| Arc::ptr_eq(issuer, &access.issuer)) {
                to_ask.push(access.issuer.clone());
            }
            Err(Refusal::NoKeys)
        }
    }
}

fn part_request(part: &PartPlan, path: String, view: &View<'_>, context: &Context) -> CallRequest {
    let mut request = CallRequest::new(part.method.as_str(), path)
        .mode(CallMode::Retry)
        .header("accept", "application/json")
        .header(headers::TRACEPARENT, context.trace.to_string())
        .header("x-forwarded-for", context.client.to_string())
        .header("x-forwarded-proto", if context.secure { "https" } else { "http" })
        .header("x-forwarded-host", view.head.host());
    for name in PASSED_TO_PARTS {
        if let Some(value) = view.head.header(name) {
            request = request.header(name, value);
        }
    }
    request
}

fn serve_file(
    head: &Head<'_>,
    context: &Context,
    route: &RoutePlan,
    parameters: &Parameters,
    dir: Arc<std::path::PathBuf>,
    note: &mut Note,
) -> Judged {
    if !matches!(head.method(), "GET" | "HEAD") {
        return Err(Refusal::Method(Allow::FILES));
    }
    let header = |name| head.header(name).map(str::to_owned);
    let request = FileRequest {
        if_none_match: header("if-none-match"),
        if_modified_since: header("if-modified-since"),
        range: header("range"),
        if_range: header("if-range"),
    };
    let path = head.path().to_owned();
    // Without `**` it is the directory's own page, whatever the path's last character is.
    let (rest, slash) = match route.pattern.has_tail() {
        true => (parameters.rest(&path).to_owned(), path.ends_with('/')),
        false => (String::new(), true),
    };
    let trace = context.trace;
    Ok(later(note, move |late| async move {
        let refusal = match files::serve(&dir, &rest, slash, &request).await {
            Ok(answer) => return answer,
            Err(FileError::Directory) => return Answer::new(308).header("location", path + "/"),
            Err(FileError::NotFound) => Refusal::NotFound,
            Err(FileError::Io(error)) => {
                tracing::error!(dir = %dir.display(), error = %Chain(&error), "cannot read a file");
                Refusal::Internal { reason: "file unreadable" }
            }
        };
        let answer = refusal.answer(&trace);
        let _ = late.set(Late::Refused(refusal));
        answer
    }))
}

/// Work whose outcome the log line tells.
fn later<F: Future<Output = Answer> + Send + 'static>(
    note: &mut Note,
    work: impl FnOnce(Arc<OnceLock<Late>>) -> F,
) -> Verdict {
    let late = Arc::new(OnceLock::new());
    note.late = Some(late.clone());
    let work = work(late);
    Verdict::Later(Box::pin(async move { Verdict::Answer(work.await) }))
}

fn expression(error: ballet_manifest::EvalError) -> Refusal {
    Refusal::Expression { detail: error.to_string() }
}
