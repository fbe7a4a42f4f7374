//! Our own face.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /ballet/v1/services` | `{"services": [{"name", "version", "starting", "up", "draining", "down"}]}` |
//! | `GET /ballet/v1/services/NAME` | `{"version", "all": [instance]}`; an unknown service is an empty list with version 0 |
//! | `GET …/NAME?seen=7&wait=30s` | the same, once the version is not 7, or after the wait (default 30 s, at most 60 s) |
//! | `PUT …/NAME/INSTANCE` | registers: 201, or 200 if it replaced one; the body is the instance |
//! | `POST …/NAME/INSTANCE/heartbeat` | 204; 404 means: register again |
//! | `PUT …/NAME/INSTANCE/state` | `{"state": "draining"}`: 204 |
//! | `DELETE …/NAME/INSTANCE` | 204 |
//!
//! A registration: `{"address": "127.0.0.1:8080", "state": "up", "version": "v1", "metadata": {}, "lease": "30s",
//! "check": {"path": "/readyz", "interval": "2s", "timeout": "1s", "failures": 2}}`; all but `address` may be left out.
//! An instance: `{"id", "service", "address", "state", "version", "metadata"}`; states are `starting`, `up`, `draining`
//! and `down`. No content type is asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use ballet_core::{Discovery, Instance, InstanceId, InstanceState, NameError, Problem, ServiceName};
use serde::Deserialize;
use serde_json::json;

use super::{answer, problem};
use crate::{Handle, HealthCheck, Registration, RegistryError, limits};

type Reply = Result<Response<Body>, Failed>;

/// An error and the request's headers, which may name a trace.
struct Failed(RegistryError, HeaderMap);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Wish {
    address: String,
    #[serde(default = "up")]
    state: InstanceState,
    #[serde(default)]
    version: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    lease: Option<String>,
    check: Option<CheckWish>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CheckWish {
    path: Option<String>,
    interval: Option<String>,
    timeout: Option<String>,
    failures: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateWish {
    state: InstanceState,
}

pub(super) fn router(handle: Handle) -> Router {
    let only = |allowed: &'static str| move |method: Method, request: HeaderMap| wrong_method(method, request, allowed);
    Router::new()
        .route("/ballet/v1/services", get(list).fallback(only("GET, HEAD")))
        .route("/ballet/v1/services/{name}", get(show).fallback(only("GET, HEAD")))
        .route("/ballet/v1/services/{name}/{instance}", put(register).delete(deregister).fallback(only("PUT, DELETE")))
        .route("/ballet/v1/services/{name}/{instance}/heartbeat", post(heartbeat).fallback(only("POST")))
        .route("/ballet/v1/services/{name}/{instance}/state", put(set_state).fallback(only("PUT")))
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES))
        .with_state(handle)
}

async fn list(State(registry): State<Handle>) -> Response<Body> {
    let services: Vec<_> = registry
        .list()
        .into_iter()
        .map(|(name, known)| {
            let count = |state| known.all.iter().filter(|i| i.state == state).count();
            json!({
                "name": name,
                "version": known.version,
                "starting": count(InstanceState::Starting),
                "up": count(InstanceState::Up),
                "draining": count(InstanceState::Draining),
                "down": count(InstanceState::Down),
            })
        })
        .collect();
    Json(json!({ "services": services })).into_response()
}

async fn show(
    State(registry): State<Handle>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    request: HeaderMap,
) -> Reply {
    let fail = |error| Failed(error, request.clone());
    let service = service(&name).map_err(fail)?;
    let (seen, wait) = blocking(query.as_deref().unwrap_or_default()).map_err(fail)?;
    let known = match seen {
        None => registry.resolve(&service).await.map_err(|_| fail(RegistryError::Stopped))?,
        Some(seen) => registry.watch_for(&service, seen, wait).await.map_err(fail)?,
    };
    Ok(Json(&*known).into_response())
}

async fn register(
    State(registry): State<Handle>,
    Path((name, id)): Path<(String, String)>,
    request: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Reply {
    let fail = |error| Failed(error, request.clone());
    let (service, id) = names(&name, &id).map_err(fail)?;
    let registration = read(body).and_then(|wish| registration(service, id, wish)).map_err(fail)?;
    let instance = registration.instance.clone();
    let registered = registry.register(registration).await.map_err(fail)?;
    let status = if registered.new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(instance)).into_response())
}

async fn heartbeat(
    State(registry): State<Handle>,
    Path((name, id)): Path<(String, String)>,
    request: HeaderMap,
) -> Reply {
    let fail = |error| Failed(error, request.clone());
    let (service, id) = names(&name, &id).map_err(fail)?;
    registry.renew(&service, &id).await.map_err(fail)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn set_state(
    State(registry): State<Handle>,
    Path((name, id)): Path<(String, String)>,
    request: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Reply {
    let fail = |error| Failed(error, request.clone());
    let (service, id) = names(&name, &id).map_err(fail)?;
    let wish: StateWish = read(body).map_err(fail)?;
    registry.set_state(&service, &id, wish.state).await.map_err(fail)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn deregister(
    State(registry): State<Handle>,
    Path((name, id)): Path<(String, String)>,
    request: HeaderMap,
) -> Reply {
    let fail = |error| Failed(error, request.clone());
    let (service, id) = names(&name, &id).map_err(fail)?;
    registry.deregister(&service, &id).await.map_err(fail)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn wrong_method(method: Method, request: HeaderMap, allowed: &'static str) -> Response<Body> {
    let problem = Problem::new(405, "The method is not allowed here.")
        .detail(format!("`{method}` is not among `{allowed}`"))
        .code("RG006");
    let mut response = answer(problem, &request);
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allowed));
    response
}

fn registration(service: ServiceName, id: InstanceId, wish: Wish) -> Result<Registration, RegistryError> {
    let address = wish.address.parse().map_err(|_| RegistryError::Invalid {
        field: "address",
        detail: "must be an IP address and a port, as `127.0.0.1:8080` or `[::1]:8080`".into(),
    })?;
    let known = HealthCheck::default();
    let check = wish
        .check
        .map(|check| {
            Ok(HealthCheck {
                path: check.path.unwrap_or(known.path),
                interval: duration("check.interval", check.interval)?.unwrap_or(known.interval),
                timeout: duration("check.timeout", check.timeout)?.unwrap_or(known.timeout),
                failures: check.failures.unwrap_or(known.failures),
            })
        })
        .transpose()?;
    let instance = Instance { id, service, address, state: wish.state, version: wish.version, metadata: wish.metadata };
    // Whoever registers over the wire may vanish without a word, so there is no registration without a lease.
    let lease = duration("lease", wish.lease)?.unwrap_or(limits::LEASE);
    Ok(Registration { instance, lease: Some(lease), check })
}

fn read<T: for<'a> Deserialize<'a>>(body: Result<Bytes, BytesRejection>) -> Result<T, RegistryError> {
    let bad = |detail: String| RegistryError::Invalid { field: "body", detail };
    let body = body.map_err(|_| bad(format!("must arrive whole and have at most {} bytes", limits::BODY_BYTES)))?;
    serde_json::from_slice(&body).map_err(|error| bad(format!("must be the documented JSON: {error}")))
}

/// The query `seen=N&wait=30s`.
fn blocking(query: &str) -> Result<(Option<u64>, Duration), RegistryError> {
    let bad = |field, detail: &str| Err(RegistryError::Invalid { field, detail: detail.into() });
    let (mut seen, mut wait) = (None, Duration::from_secs(30));
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("seen", number)) => match number.parse() {
                Ok(number) => seen = Some(number),
                Err(_) => return bad("seen", "must be a version, as an earlier answer gave it"),
            },
            Some(("wait", text)) => wait = duration("wait", Some(text.into()))?.unwrap_or(wait),
            Some(_) | None => return bad("query", "may hold `seen` and `wait` only"),
        }
    }
    Ok((seen, wait))
}

/// A duration as `250ms`, `30s`, `5m`, `1h`.
fn duration(field: &'static str, text: Option<String>) -> Result<Option<Duration>, RegistryError> {
    let Some(text) = text else { return Ok(None) };
    let parse = |text: &str| {
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let number: u64 = number.parse().ok()?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        number.checked_mul(millis).map(Duration::from_millis)
    };
    match parse(&text) {
        Some(duration) => Ok(Some(duration)),
        None => {
            Err(RegistryError::Invalid { field, detail: "must be a duration, as `250ms`, `30s`, `5m` or `1h`".into() })
        }
    }
}

fn service(name: &str) -> Result<ServiceName, RegistryError> {
    name.parse()
        .map_err(|error: NameError| RegistryError::Invalid { field: "service", detail: format!("is wrong: {error}") })
}

fn names(name: &str, id: &str) -> Result<(ServiceName, InstanceId), RegistryError> {
    let id = id.parse().map_err(|error: NameError| RegistryError::Invalid {
        field: "instance",
        detail: format!("is wrong: {error}"),
    })?;
    Ok((service(name)?, id))
}

fn up() -> InstanceState {
    InstanceState::Up
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response<Body> {
        problem(&self.0, &self.1)
    }
}
