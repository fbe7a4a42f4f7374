//! Events that come in: `POST /events`, each handled once.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use rusqlite::params;
use serde_json::json;

use ballet_core::{Event, Problem};

use crate::request::text;
use crate::{Context, Error, Internal, Reply, Result, Tx, problem};

/// Longest event that is taken.
const EVENT_LIMIT_BYTES: usize = 1 << 20;

/// What is done with an event, in the transaction that remembers it.
pub(crate) type Handler = Arc<dyn Fn(&Tx<'_>, &Event) -> Result<()> + Send + Sync>;

/// Handlers by topic.
#[derive(Clone, Default)]
pub(crate) struct Handlers(BTreeMap<String, Vec<Handler>>);

impl Handlers {
    pub(crate) fn add(&mut self, topic: &str, handler: Handler) {
        self.0.entry(topic.to_owned()).or_default().push(handler);
    }

    pub(crate) fn topics(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    fn of(&self, topic: &str) -> Option<Vec<Handler>> {
        self.0.get(topic).cloned()
    }
}

/// The endpoint: one CloudEvent, structured or binary. 200 once its effect is on disk, also when it was before.
pub(crate) async fn receive(ctx: Context, _internal: Internal, request: Request) -> Result<Reply> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, EVENT_LIMIT_BYTES)
        .await
        .map_err(|error| problem::bad_request(error.to_string()).code("CH016"))?;
    let kind = text(&parts.headers, CONTENT_TYPE.as_str()).unwrap_or_default();
    let structured = kind.to_ascii_lowercase().starts_with(Event::MEDIA_TYPE);
    let bad = |what: String| Error::from(problem::bad_request(what).code("CH004"));
    let event = if structured {
        let json = serde_json::from_slice(&body).map_err(|error| bad(format!("not JSON: {error}")))?;
        Event::from_json(&json)
    } else {
        let headers = parts.headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        Event::from_headers(headers, &body).ok_or_else(|| bad("not a CloudEvent".into()))?
    };
    let event = event.map_err(|error| bad(error.to_string()))?;
    let Some(handlers) = ctx.handlers().of(event.topic.as_str()) else {
        let problem = Problem::new(404, "no handler for the event").code("CH022");
        return Err(problem.detail(format!("nothing here handles `{}`", event.topic)).into());
    };
    ctx.store()
        .write(move |tx| {
            let new = tx
                .prepare_cached("INSERT OR IGNORE INTO inbox VALUES ('event', ?1, 'done', NULL, NULL, ?2)")?
                .execute(params![format!("{} {}", event.source, event.id), tx.now().millis()])?;
            if new > 0 {
                for handler in &handlers {
                    handler(tx, &event)?;
                }
            }
            // The same words that Dapr's subscribers use.
            Ok(Reply::ok(&json!({"status": "SUCCESS"})))
        })
        .await
}
