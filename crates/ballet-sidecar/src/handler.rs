//! What one sidecar does with a request of its app.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ballet_core::{Events, EventsError, ServiceName, headers};

use ballet_proxy::{Answer, Collect, Context, Failure, Forward, Handler, Head, Upstreams, Verdict};
use serde_json::{Value, json};

use crate::envelope;

/// Longest event that is published, in bytes; the bus has its own limit below it.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// Longest value of a metadata key, in bytes, and how many keys there may be.
const MAX_METADATA_BYTES: usize = 4096;
const MAX_METADATA_KEYS: usize = 64;

/// The sidecar of one instance.
pub(crate) struct Sidecar {
    pub(crate) service: ServiceName,
    pub(crate) id: String,
    pub(crate) token: String,
    pub(crate) upstreams: Upstreams,
    pub(crate) events: Arc<dyn Events>,
    /// Whom the service may call; `None`: all.
    pub(crate) calls: Option<BTreeSet<ServiceName>>,
    /// Where the app listens while it is ready.
    pub(crate) app: Mutex<Option<SocketAddr>>,
    pub(crate) metadata: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Sidecar {
    pub(crate) fn app(&self) -> MutexGuard<'_, Option<SocketAddr>> {
        locked(&self.app)
    }

    /// Whom a request is for, and which path it gets there; `None` for the sidecar's own API.
    fn callee<'a>(head: &Head<'a>) -> Option<(&'a str, &'a str)> {
        if let Some(service) = head.header("dapr-app-id") {
            return Some((service, head.path()));
        }
        if let Some(rest) = head.path().strip_prefix("/v1.0/invoke/") {
            let (service, rest) = rest.split_once('/')?;
            // `…/method` alone is the callee's root.
            let path = rest.strip_prefix("method").filter(|path| path.is_empty() || path.starts_with('/'))?;
            return Some((service, if path.is_empty() { "/" } else { path }));
        }
        let host = head.host().split(':').next().unwrap_or_default();
        host.strip_suffix(".ballet.localhost").map(|service| (service, head.path()))
    }

    fn call(&self, head: &Head<'_>, service: &str, path: &str) -> Verdict {
        let Ok(service) = service.parse::<ServiceName>() else {
            return dapr_error(404, "ERR_DIRECT_INVOKE", "SC001", &format!("`{service}` is not a service name")).into();
        };
        if self.calls.as_ref().is_some_and(|calls| !calls.contains(&service)) {
            let message = format!("`{}` may not call `{service}`", self.service);
            return dapr_error(403, "ERR_DIRECT_INVOKE", "SC002", &message).into();
        }
        let target = match head.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let set = vec![
            (Cow::Borrowed(headers::CALLER), self.service.to_string()),
            (Cow::Borrowed("dapr-caller-app-id"), self.service.name().to_owned()),
            (Cow::Borrowed("dapr-callee-app-id"), service.name().to_owned()),
        ];
        Forward {
            target: Some(target),
            set,
            request: None,
            replay: head.header(headers::IDEMPOTENCY_KEY).is_some(),
            ..Forward::to(self.upstreams.upstream(&service, None))
        }
        .into()
    }

    fn publish(&self, head: &Head<'_>, context: &Context, topic: &str) -> Verdict {
        let published = envelope::Published {
            topic: topic.to_owned(),
            source: self.service.to_string(),
            content_type: head.header("content-type").unwrap_or("text/plain").to_owned(),
            metadata: envelope::metadata(head.query().unwrap_or_default()),
            trace: context.trace,
        };
        let events = self.events.clone();
        let then = move |body: bytes::Bytes| -> ballet_core::Later<'static, Verdict> {
            Box::pin(async move {
                let event = match published.event(&body) {
                    Ok(event) => event,
                    Err(error) => return dapr_error(400, "ERR_PUBSUB_CLOUD_EVENTS_SER", "SC003", &error).into(),
                };
                match events.publish(vec![event]).await {
                    Ok(_) => Answer::new(204).into(),
                    Err(error) => publish_refused(&error).into(),
                }
            })
        };
        Verdict::Buffer(Collect { max: MAX_EVENT_BYTES, then: Box::new(then) })
    }

    fn describe(&self) -> Value {
        let app = self.app().map(|address| address.port());
        let mut extended = serde_json::Map::new();
        for (key, value) in locked(&self.metadata).iter() {
            extended.insert(key.clone(), Value::String(value.clone()));
        }
        json!({
            "id": self.service.name(),
            "runtimeVersion": env!("CARGO_PKG_VERSION"),
            "extended": extended,
            "components": [{"name": "bus", "type": "pubsub.ballet", "version": "v1", "capabilities": []}],
            "appConnectionProperties": {"port": app, "protocol": "http", "channelAddress": "127.0.0.1"},
            "instance": self.id,
        })
    }

    fn remember(&self, key: &str) -> Verdict {
        let (metadata, key) = (self.metadata.clone(), key.to_owned());
        let then = move |body: bytes::Bytes| -> ballet_core::Later<'static, Verdict> {
            let mut known = locked(&metadata);
            let full = known.len() >= MAX_METADATA_KEYS && !known.contains_key(&key);
            let answer = if full {
                dapr_error(400, "ERR_METADATA", "SC001", "too many metadata keys")
            } else {
                known.insert(key, String::from_utf8_lossy(&body).into_owned());
                Answer::new(204)
            };
            Box::pin(std::future::ready(answer.into()))
        };
        Verdict::Buffer(Collect { max: MAX_METADATA_BYTES, then: Box::new(then) })
    }

    fn health(&self, query: Option<&str>) -> Answer {
        let asked = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("appid=")));
        if asked.is_some_and(|id| id != self.service.name()) {
            return dapr_error(500, "ERR_HEALTH_APPID_NOT_MATCH", "SC001", "this is another app's sidecar");
        }
        match *self.app() {
            Some(_) => Answer::new(204),
            None => dapr_error(500, "ERR_HEALTH_NOT_READY", "SC001", "the app is not ready"),
        }
    }
}

impl Handler for Sidecar {
    type Note = ();

    fn decide(&self, head: &Head<'_>, context: &Context, (): &mut ()) -> Verdict {
        let path = head.path();
        match path {
            "/v1.0/healthz/outbound" if head.method() == "GET" => return Answer::new(204).into(),
            "/v1.0/healthz" if head.method() == "GET" => return self.health(head.query()).into(),
            _ => {}
        }
        // On loopback the port is the identity; a token is checked only when it is sent.
        if head.header("dapr-api-token").is_some_and(|token| token != self.token) {
            return dapr_error(401, "ERR_API_TOKEN", "SC004", "invalid api token").into();
        }
        if let Some((service, path)) = Self::callee(head) {
            return self.call(head, service, path);
        }
        let write = matches!(head.method(), "POST" | "PUT");
        if let Some((_, topic)) = path.strip_prefix("/v1.0/publish/").and_then(|rest| rest.split_once('/'))
            && write
            && !topic.is_empty()
        {
            return self.publish(head, context, topic);
        }
        match (head.method(), path.strip_prefix("/v1.0/metadata")) {
            ("GET", Some("")) => Answer::new(200).json(&self.describe()).into(),
            ("PUT", Some(key)) if key.len() > 1 => self.remember(&key[1..]),
            _ => {
                dapr_error(404, "ERR_DIRECT_INVOKE", "SC001", &format!("no sidecar API at `{} {path}`", head.method()))
                    .into()
            }
        }
    }

    fn failed(&self, failure: &Failure<'_>, (): &mut ()) -> Answer {
        failure.answer()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn publish_refused(error: &EventsError) -> Answer {
    let message = error.to_string();
    match error {
        EventsError::UnknownTopic(_) => dapr_error(404, "ERR_PUBSUB_NOT_FOUND", "SC003", &message),
        EventsError::Invalid(_) => dapr_error(400, "ERR_PUBSUB_EVENTS_SER", "SC003", &message),
        EventsError::TooLarge { .. } => dapr_error(413, "ERR_PUBSUB_PUBLISH_MESSAGE", "SC003", &message),
        EventsError::Stale | EventsError::Unavailable(_) | EventsError::Unknown(_) => {
            dapr_error(503, "ERR_PUBSUB_PUBLISH_MESSAGE", "SC003", &message)
        }
    }
}

/// An error in Dapr's form, with our code beside it.
pub(crate) fn dapr_error(status: u16, dapr: &str, code: &str, message: &str) -> Answer {
    Answer::new(status).json(&json!({"errorCode": dapr, "message": message, "code": code}))
}
