//! Logs: one JSON object a line on standard output, with the trace that it belongs to.

use std::fmt::Debug;
use std::io::Write;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use ballet_core::{Clock, SystemClock};

use crate::current_trace;

/// Installs the process's logger: `{"time", "level", "service", "instance", "trace_id"?, "message", …fields}`. `BALLET_LOG`
/// filters; default `info`. A second call changes nothing.
pub fn init_logs(service: &str, instance: &str) {
    let filter = EnvFilter::try_from_env("BALLET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = Lines { service: service.to_owned(), instance: instance.to_owned() };
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
}

struct Lines {
    service: String,
    instance: String,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Map::new();
        let mut text = |name: &str, value: String| line.insert(name.to_owned(), Value::String(value));
        text("time", SystemClock.now().to_string());
        text("level", event.metadata().level().as_str().to_lowercase());
        text("service", self.service.clone());
        text("instance", self.instance.clone());
        if let Some(trace) = current_trace() {
            text("trace_id", trace.trace_id());
        }
        event.record(&mut Fields(&mut line));
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        // Whoever read our output may have gone; there is nobody to tell.
        let _ = std::io::stdout().lock().write_all(&bytes);
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), Value::String(value.to_owned()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}
