//! CloudEvents 1.0: one struct, its JSON ("structured") form and its header ("binary") form.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{Classify, ErrorCode, Retry, TopicName, TraceContext};

/// An event. Its type is the topic's name.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Unique together with `source`; a UUID v7 unless the producer chose one.
    pub id: String,
    /// Who says so: a service's name.
    pub source: String,
    /// What happened; also the topic.
    pub topic: TopicName,
    /// What it happened to: an order's id. Also the ordering key unless `partitionkey` is given.
    pub subject: Option<String>,
    /// When it happened, RFC 3339.
    pub time: Option<String>,
    /// The data, as JSON. Data of another media type is kept as a JSON string (text) in the first version.
    pub data: Value,
    /// The trace that it happened in.
    pub trace: Option<TraceContext>,
    /// Further attributes: lower-case letters and digits, at most 20 characters, values as text.
    pub extensions: BTreeMap<String, String>,
}

/// Why something is not a CloudEvent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// A required attribute is absent or not text.
    #[error("the event has no `{0}`")]
    Missing(&'static str),
    /// An attribute has a value that it cannot have.
    #[error("the event's `{0}` is not valid: {1}")]
    Invalid(String, String),
    /// The body is not JSON.
    #[error("the event's body is not JSON: {0}")]
    Json(String),
}

impl Classify for EventError {
    fn code(&self) -> ErrorCode {
        ErrorCode("EV001")
    }

    fn retry(&self) -> Retry {
        Retry::Never
    }
}

impl Event {
    /// The media type of the structured form.
    pub const MEDIA_TYPE: &'static str = "application/cloudevents+json";
    /// The media type of a list in the structured form.
    pub const BATCH_MEDIA_TYPE: &'static str = "application/cloudevents-batch+json";

    /// An event with a new id (UUID v7) and no time; whoever accepts it stamps it.
    pub fn new(topic: TopicName, source: impl Into<String>, data: Value) -> Self {
        Self {
            id: uuid::Uuid::now_v7().to_string(),
            source: source.into(),
            topic,
            subject: None,
            time: None,
            data,
            trace: None,
            extensions: BTreeMap::new(),
        }
    }

    /// Says what it happened to.
    #[must_use]
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Sets the trace that it happened in.
    #[must_use]
    pub fn traced(mut self, trace: Option<TraceContext>) -> Self {
        self.trace = trace;
        self
    }

    /// The key that keeps events in order: `partitionkey`, else the subject.
    pub fn key(&self) -> Option<&str> {
        self.extensions.get("partitionkey").map(String::as_str).or(self.subject.as_deref())
    }

    /// The structured form, as a JSON object.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        let mut text = |name: &str, value: &str| map.insert(name.into(), Value::String(value.into()));
        text("specversion", "1.0");
        text("id", &self.id);
        text("source", &self.source);
        text("type", self.topic.as_str());
        for (name, value) in [("subject", &self.subject), ("time", &self.time)] {
            if let Some(value) = value {
                text(name, value);
            }
        }
        if let Some(trace) = &self.trace {
            text("traceparent", &trace.to_string());
        }
        for (name, value) in &self.extensions {
            text(name, value);
        }
        text("datacontenttype", "application/json");
        map.insert("data".into(), self.data.clone());
        Value::Object(map)
    }

    /// Reads the structured form.
    pub fn from_json(value: &Value) -> Result<Self, EventError> {
        let map = value.as_object().ok_or(EventError::Missing("specversion"))?;
        let mut attributes: BTreeMap<String, String> = BTreeMap::new();
        let mut data = Value::Null;
        for (name, value) in map {
            match (name.as_str(), value) {
                ("data", value) => data = value.clone(),
                ("data_base64", _) => {
                    return Err(EventError::Invalid(name.clone(), "binary data is not supported".into()));
                }
                (_, Value::Null) => {}
                (_, Value::String(text)) => drop(attributes.insert(name.clone(), text.clone())),
                (_, Value::Bool(_) | Value::Number(_)) => drop(attributes.insert(name.clone(), value.to_string())),
                (_, Value::Array(_) | Value::Object(_)) => {
                    return Err(EventError::Invalid(
                        name.clone(),
                        "an attribute is text, a number or a boolean".into(),
                    ));
                }
            }
        }
        Self::from_attributes(attributes, data)
    }

    /// The binary form's headers (`ce-…` and `traceparent`), without the content type.
    pub fn to_headers(&self) -> Vec<(String, String)> {
        let mut headers = vec![
            ("ce-specversion".into(), "1.0".into()),
            ("ce-id".into(), encode(&self.id)),
            ("ce-source".into(), encode(&self.source)),
            ("ce-type".into(), self.topic.to_string()),
        ];
        for (name, value) in [("ce-subject", &self.subject), ("ce-time", &self.time)] {
            if let Some(value) = value {
                headers.push((name.into(), encode(value)));
            }
        }
        if let Some(trace) = &self.trace {
            headers.push((crate::headers::TRACEPARENT.into(), trace.to_string()));
        }
        headers.extend(self.extensions.iter().map(|(name, value)| (format!("ce-{name}"), encode(value))));
        headers
    }

    /// Reads the binary form: headers in any order and case, and a JSON body. `None` if there is no `ce-specversion`.
    pub fn from_headers<'a>(
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        body: &[u8],
    ) -> Option<Result<Self, EventError>> {
        let mut attributes = BTreeMap::new();
        for (name, value) in headers {
            let name = name.to_ascii_lowercase();
            if let Some(name) = name.strip_prefix("ce-") {
                attributes.insert(name.to_owned(), decode(value));
            } else if name == crate::headers::TRACEPARENT {
                attributes.entry("traceparent".to_owned()).or_insert_with(|| value.to_owned());
            }
        }
        attributes.get("specversion")?;
        let data = if body.is_empty() {
            Ok(Value::Null)
        } else {
            serde_json::from_slice(body).map_err(|e| EventError::Json(e.to_string()))
        };
        Some(data.and_then(|data| Self::from_attributes(attributes, data)))
    }

    fn from_attributes(mut attributes: BTreeMap<String, String>, data: Value) -> Result<Self, EventError> {
        let mut take = |name: &'static str| attributes.remove(name).filter(|v| !v.is_empty());
        let version = take("specversion").ok_or(EventError::Missing("specversion"))?;
        if version != "1.0" {
            return Err(EventError::Invalid("specversion".into(), format!("`{version}` is not 1.0")));
        }
        let id = take("id").ok_or(EventError::Missing("id"))?;
        let source = take("source").ok_or(EventError::Missing("source"))?;
        let kind = take("type").ok_or(EventError::Missing("type"))?;
        let topic = kind.parse().map_err(|e: crate::NameError| EventError::Invalid("type".into(), e.to_string()))?;
        let (subject, time) = (take("subject"), take("time"));
        let trace = take("traceparent").and_then(|t| TraceContext::parse(&t));
        take("datacontenttype");
        if let Some(name) = attributes.keys().find(|name| {
            name.len() > 20 || name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        }) {
            return Err(EventError::Invalid(name.clone(), "use a-z and 0-9, at most 20 characters".into()));
        }
        Ok(Self { id, source, topic, subject, time, data, trace, extensions: attributes })
    }
}

/// Percent-encodes what a header cannot carry (CloudEvents HTTP binding 3.1.3.2).
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'%' | 0..=b' ' | 0x7f.. => out.push_str(&format!("%{byte:02X}")),
            _ => out.push(char::from(byte)),
        }
    }
    out
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| text.get(i + 1..i + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let mut event = Event::new("order.placed".parse().unwrap(), "orders", serde_json::json!({"id": "7"}));
        event.subject = Some("Bestellung 7 „eilig“ 100%".into());
        event.time = Some("2026-11-21T13:30:00Z".into());
        event.trace = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        event.extensions.insert("partitionkey".into(), "7".into());
        event
    }

    #[test]
    fn both_forms_carry_everything() {
        let event = event();
        assert_eq!(Event::from_json(&event.to_json()).unwrap(), event);
        let headers = event.to_headers();
        let headers = headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        assert!(headers.clone().all(|(_, v)| v.is_ascii()));
        assert_eq!(Event::from_headers(headers, br#"{"id":"7"}"#).unwrap().unwrap(), event);
        assert_eq!(event.key(), Some("7"));
    }

    #[test]
    fn what_is_not_an_event_is_refused_with_the_attribute() {
        for (json, attribute) in [
            (r#"{"id":"1","source":"a","type":"t"}"#, "specversion"),
            (r#"{"specversion":"0.3","id":"1","source":"a","type":"t"}"#, "specversion"),
            (r#"{"specversion":"1.0","source":"a","type":"t"}"#, "`id`"),
            (r#"{"specversion":"1.0","id":"1","source":"a","type":"No Good"}"#, "type"),
            (r#"{"specversion":"1.0","id":"1","source":"a","type":"t","Bad":"x"}"#, "Bad"),
            (r#"{"specversion":"1.0","id":"1","source":"a","type":"t","x":{}}"#, "x"),
        ] {
            let error = Event::from_json(&serde_json::from_str(json).unwrap()).unwrap_err().to_string();
            assert!(error.contains(attribute), "{json}: {error}");
        }
        assert!(Event::from_headers([("content-type", "application/json")], b"{}").is_none());
    }
}
