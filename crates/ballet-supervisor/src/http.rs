//! The admin API under `/ballet/v1/system`.
//!
//! | call | does |
//! |---|---|
//! | `GET /ballet/v1/system` | the document of `ballet ps --json` |
//! | `GET …/logs`, `GET …/services/{name}/logs` | log lines, one JSON object each; `lines=100`, `follow=true` |
//! | `POST …/services/{name}/start`, `stop`, `restart` | what the words say |
//! | `POST …/services/{name}/scale` | body `{"instances": 2}` |
//! | `POST …/down` | takes everything down |
//!
//! A POST needs `Authorization: Bearer` with the token of the state directory. It answers 202 with the service's rows as soon as the
//! word is taken in, or with `?wait=SECONDS` 200 once it has come true. Whoever serves this checks `Host`.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State as Given};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ballet_core::{Classify, Problem, ServiceName};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;

use crate::error::ControlError;
use crate::instance::store_url;
use crate::logs::{MAX_TAIL_LINES, Part, Source, Tail};
use crate::machine::State;
use crate::procs;
use crate::spec::{InstanceStatus, ServiceSpec};
use crate::supervisor::Handle;

/// Longest body of a call, in bytes.
const MAX_BODY: usize = 16 * 1024;
/// Longest `wait`.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Lines of `logs` when nothing is said.
const DEFAULT_LINES: usize = 100;

/// What only the binary knows.
pub trait Facts: Send + Sync + 'static {
    /// Addresses by name: `gateway`, `platform`.
    fn addresses(&self) -> BTreeMap<String, String>;
    /// The worst state that any caller's breaker has towards a service. Default: `closed`.
    fn breaker(&self, service: &ServiceName) -> String {
        let _ = service;
        "closed".into()
    }
    /// The ports of an instance's sidecar.
    fn sidecar(&self, service: &ServiceName, instance: u32) -> Option<SidecarPorts> {
        let _ = (service, instance);
        None
    }
}

/// A sidecar's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SidecarPorts {
    /// The HTTP port.
    pub http: u16,
    /// The gRPC port, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<u16>,
}

/// The document of `ballet ps --json`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemDocument {
    system: String,
    pid: u32,
    profile: String,
    ready: bool,
    addresses: BTreeMap<String, String>,
    services: Vec<Row>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    instance: u32,
    state: &'static str,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sidecar: Option<SidecarPorts>,
    restarts: u32,
    breaker: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
}

#[derive(Clone)]
struct Admin {
    handle: Handle,
    facts: Arc<dyn Facts>,
}

/// The routes; merge them into the platform's listener.
pub fn router(handle: Handle, facts: Arc<dyn Facts>) -> Router {
    Router::new()
        .route("/ballet/v1/system", get(system))
        .route("/ballet/v1/system/down", post(down))
        .route("/ballet/v1/system/logs", get(all_logs))
        .route("/ballet/v1/system/services/{name}/logs", get(service_logs))
        .route("/ballet/v1/system/services/{name}/{verb}", post(command))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Admin { handle, facts })
}

/// The document of `ballet ps --json`.
pub fn document(handle: &Handle, facts: &dyn Facts) -> SystemDocument {
    let snapshot = handle.snapshot();
    let config = &handle.shared().config;
    SystemDocument {
        system: config.system.clone(),
        pid: std::process::id(),
        profile: config.profile.clone(),
        ready: snapshot.is_ready(),
        addresses: facts.addresses(),
        services: snapshot.services.keys().flat_map(|name| rows(handle, facts, name)).collect(),
    }
}

fn rows(handle: &Handle, facts: &dyn Facts, name: &ServiceName) -> Vec<Row> {
    let snapshot = handle.snapshot();
    let (Some(service), Ok(spec)) = (snapshot.services.get(name), handle.spec(name.as_str())) else { return vec![] };
    if let Some(url) = &service.elsewhere {
        return vec![Row {
            name: name.to_string(),
            instance: 1,
            state: State::Running.as_str(),
            ready: true,
            reason: None,
            pid: None,
            address: Some(without_password(url)),
            version: spec.version.clone(),
            sidecar: None,
            restarts: 0,
            breaker: facts.breaker(name),
            rss_bytes: None,
            store: None,
            log: None,
        }];
    }
    service.instances.values().map(|status| row(handle, facts, spec, status)).collect()
}

fn row(handle: &Handle, facts: &dyn Facts, spec: &ServiceSpec, status: &InstanceStatus) -> Row {
    let root = handle.shared().state.root();
    let source = Source { service: Some(spec.name.clone()), part: Part::Instance(status.instance) };
    Row {
        name: spec.name.to_string(),
        instance: status.instance,
        state: status.state.as_str(),
        ready: status.ready,
        reason: status.reason.clone(),
        pid: status.pid,
        address: status.address.map(|address| format!("http://{address}")),
        version: status.version.clone(),
        sidecar: facts.sidecar(&spec.name, status.instance),
        restarts: status.restarts,
        breaker: facts.breaker(&spec.name),
        rss_bytes: status.pid.and_then(procs::rss_bytes),
        store: store_url(handle.shared(), spec).ok().flatten().map(|url| shown_store(handle, &url)),
        log: Some(shown_path(handle, &root.join(source.file()))),
    }
}

async fn system(Given(admin): Given<Admin>) -> Response {
    json(StatusCode::OK, &document(&admin.handle, &*admin.facts))
}

async fn down(Given(admin): Given<Admin>, headers: HeaderMap) -> Response {
    if let Some(refusal) = unauthorized(&admin, &headers) {
        return refusal;
    }
    admin.handle.request_down();
    json(
        StatusCode::ACCEPTED,
        &serde_json::json!({ "system": admin.handle.shared().config.system, "pid": std::process::id() }),
    )
}

#[derive(Deserialize)]
struct Wait {
    wait: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scale {
    instances: u32,
}

async fn command(
    Given(admin): Given<Admin>,
    UrlPath((name, verb)): UrlPath<(String, String)>,
    query: Result<Query<Wait>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(refusal) = unauthorized(&admin, &headers) {
        return refusal;
    }
    let wait = match query {
        Ok(Query(Wait { wait })) => wait.map(|seconds| Duration::from_secs(seconds).min(MAX_WAIT)),
        Err(error) => return misunderstood(&error.body_text()),
    };
    let outcome = match verb.as_str() {
        "start" => admin.handle.start(&name).await,
        "stop" => admin.handle.stop(&name).await,
        "restart" => admin.handle.restart(&name).await,
        "scale" => match serde_json::from_slice::<Scale>(&body) {
            Ok(Scale { instances }) => admin.handle.scale(&name, instances).await,
            Err(error) => return misunderstood(&format!("{error}; expected {{\"instances\": 2}}")),
        },
        _ => return problem(Problem::new(404, "no such command").detail("use start, stop, restart or scale")),
    };
    if let Err(error) = outcome {
        return refused(&error);
    }
    let settled = match wait {
        Some(limit) => admin.handle.settled(&name, limit).await,
        None => false,
    };
    let Ok(spec) = admin.handle.spec(&name) else { return refused(&ControlError::UnknownService(name)) };
    let rows = rows(&admin.handle, &*admin.facts, &spec.name);
    json(
        if settled { StatusCode::OK } else { StatusCode::ACCEPTED },
        &serde_json::json!({ "settled": settled, "services": rows }),
    )
}

#[derive(Deserialize)]
struct LogQuery {
    lines: Option<usize>,
    #[serde(default)]
    follow: bool,
}

type LogQueryResult = Result<Query<LogQuery>, axum::extract::rejection::QueryRejection>;

async fn all_logs(Given(admin): Given<Admin>, query: LogQueryResult) -> Response {
    logs(&admin, None, query).await
}

async fn service_logs(Given(admin): Given<Admin>, UrlPath(name): UrlPath<String>, query: LogQueryResult) -> Response {
    match admin.handle.spec(&name) {
        Ok(spec) => logs(&admin, Some(spec.name.clone()), query).await,
        Err(error) => refused(&error),
    }
}

async fn logs(admin: &Admin, service: Option<ServiceName>, query: LogQueryResult) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => return misunderstood(&error.body_text()),
    };
    let lines = query.lines.unwrap_or(DEFAULT_LINES).min(MAX_TAIL_LINES);
    let tail = match admin.handle.tail(service.clone(), lines).await {
        Ok(tail) => tail,
        Err(error) => {
            tracing::warn!(%error, "cannot read logs");
            return problem(Problem::new(500, "logs not readable").code("SV016"));
        }
    };
    let body = if query.follow {
        Body::from_stream(stream(admin.handle.clone(), service, tail))
    } else {
        Body::from(tail.lines.iter().flat_map(|line| [line, "\n"]).collect::<String>())
    };
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// The tail, then what follows, until the system is down or the reader hangs up.
fn stream(
    handle: Handle,
    service: Option<ServiceName>,
    tail: Tail,
) -> impl futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> {
    let early: VecDeque<Arc<str>> = tail.lines.into();
    futures_util::stream::unfold(
        (handle, service, early, tail.follow),
        |(handle, service, mut early, mut follow)| async {
            let line = match early.pop_front() {
                Some(line) => line,
                None => loop {
                    tokio::select! {
                        biased;
                        line = follow.recv() => match line {
                            Ok(line) if service.as_ref().is_none_or(|name| *name == line.service) => break line.text,
                            Ok(_) => {}
                            Err(RecvError::Lagged(lost)) => {
                                break serde_json::json!({ "message": "lines were skipped", "skipped": lost }).to_string().into();
                            }
                            Err(RecvError::Closed) => return None,
                        },
                        () = handle.down() => return None,
                    }
                },
            };
            Some((Ok(Bytes::from(format!("{line}\n"))), (handle, service, early, follow)))
        },
    )
}

/// The refusal of a call without the right token.
fn unauthorized(admin: &Admin, headers: &HeaderMap) -> Option<Response> {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let token = admin.handle.shared().state.token();
    // Every byte is looked at, so that the time tells nothing about the token.
    let same = given.is_some_and(|given| {
        given.len() == token.len() && given.bytes().zip(token.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
    });
    if same {
        return None;
    }
    let mut answer = problem(
        Problem::new(401, "the admin token is missing or wrong")
            .code("SV014")
            .detail("send `Authorization: Bearer` with the content of the file `token` in the state directory"),
    );
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    Some(answer)
}

fn refused(error: &ControlError) -> Response {
    let status = match error {
        ControlError::UnknownService(_) => 404,
        ControlError::Elsewhere(_) => 409,
        ControlError::TooMany(_) => 400,
        ControlError::GoingDown => 503,
    };
    problem(Problem::new(status, error.to_string()).code(error.code().0))
}

fn misunderstood(detail: &str) -> Response {
    problem(Problem::new(400, "request not understood").code("SV015").detail(detail))
}

fn problem(problem: Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, Problem::MEDIA_TYPE)], problem.to_json()).into_response()
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    (status, axum::Json(body)).into_response()
}

/// A path relative to the manifest's directory when it lies below.
fn shown_path(handle: &Handle, path: &Path) -> String {
    let cwd = std::fs::canonicalize(&handle.shared().config.cwd).unwrap_or_default();
    path.strip_prefix(&cwd).unwrap_or(path).display().to_string()
}

fn shown_store(handle: &Handle, url: &str) -> String {
    match url.strip_prefix("sqlite:") {
        Some(path) => format!("sqlite:{}", shown_path(handle, Path::new(path))),
        None => without_password(url),
    }
}

/// A URL without password and query, which may hold one too.
fn without_password(url: &str) -> String {
    let url = url.split('?').next().unwrap_or(url);
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority = rest.split('/').next().unwrap_or(rest);
    // Somebody may have left a `/` of the password as it is; then it looks like a host with a strange port.
    let strange = authority.split_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_err());
    match rest.rsplit_once('@') {
        Some((user, host)) if authority.contains('@') || strange => {
            let user = user.split(':').next().unwrap_or(user);
            format!("{scheme}://{user}@{host}")
        }
        _ => format!("{scheme}://{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        for (url, shown) in [
            ("postgres://shop:secret@db:5432/orders?sslmode=off&password=x", "postgres://shop@db:5432/orders"),
            ("postgres://shop:se/cr@et@db/orders", "postgres://shop@db/orders"),
            ("http://10.0.0.7:9000/a@b", "http://10.0.0.7:9000/a@b"),
            ("postgres://db/orders", "postgres://db/orders"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }
}
