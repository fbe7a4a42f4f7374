//! Makes a CloudEvent of what an app publishes, as Dapr's sidecar does.

use std::collections::BTreeMap;

use ballet_core::{Event, TraceContext};
use serde_json::Value;

/// What came with a publish request beside its body.
pub(crate) struct Published {
    pub(crate) topic: String,
    pub(crate) source: String,
    pub(crate) content_type: String,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) trace: TraceContext,
}

impl Published {
    /// The event: a CloudEvent stays as it is (its type becomes the topic), anything else is wrapped.
    pub(crate) fn event(&self, body: &[u8]) -> Result<Event, String> {
        let topic = self.topic.parse().map_err(|error: ballet_core::NameError| error.to_string())?;
        let kind = self.content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if kind == Event::MEDIA_TYPE {
            let mut json: Value =
                serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
            let Some(map) = json.as_object_mut() else { return Err("the body is not a CloudEvent".into()) };
            map.entry("source").or_insert_with(|| self.source.clone().into());
            map.entry("specversion").or_insert_with(|| "1.0".into());
            map.entry("id")
                .or_insert_with(|| Event::new("x".parse().expect("a valid topic"), "", Value::Null).id.into());
            map.insert("type".into(), self.topic.clone().into());
            let mut event = Event::from_json(&json).map_err(|error| error.to_string())?;
            event.trace = event.trace.or(Some(self.trace));
            return Ok(event);
        }
        let data = if kind == "application/json" || kind.ends_with("+json") {
            serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into())
        } else {
            Value::String(String::from_utf8_lossy(body).into_owned())
        };
        let mut event = Event::new(topic, self.source.clone(), data).traced(Some(self.trace));
        if let Some(id) = self.metadata.get("cloudevent.id") {
            event.id.clone_from(id);
        }
        if let Some(source) = self.metadata.get("cloudevent.source") {
            event.source.clone_from(source);
        }
        event.subject = self.metadata.get("cloudevent.subject").cloned();
        Ok(event)
    }
}

/// `metadata.NAME=VALUE` pairs of a query; names in lower case.
pub(crate) fn metadata(query: &str) -> BTreeMap<String, String> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((name.strip_prefix("metadata.")?.to_ascii_lowercase(), decode(value)))
    };
    query.split('&').filter_map(pair).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut out = vec![];
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = [bytes.next(), bytes.next()].map(|b| b.and_then(|b| char::from(b).to_digit(16)));
                match digits {
                    [Some(high), Some(low)] => out.push((high * 16 + low) as u8),
                    _ => out.push(b'%'),
                }
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn published(content_type: &str, query: &str) -> Published {
        Published {
            topic: "order.placed".into(),
            source: "orders".into(),
            content_type: content_type.into(),
            metadata: metadata(query),
            trace: TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap(),
        }
    }

    #[test]
    fn json_text_and_events_become_events() {
        let event = published("application/json; charset=utf-8", "metadata.cloudevent.subject=a%20b")
            .event(b"{\"n\":1}")
            .unwrap();
        assert_eq!((event.data.clone(), event.subject.as_deref()), (json!({"n": 1}), Some("a b")));
        assert_eq!((event.topic.as_str(), event.source.as_str()), ("order.placed", "orders"));
        assert!(event.trace.is_some());
        assert_eq!(published("text/plain", "").event(b"hi").unwrap().data, json!("hi"));
        let own = json!({"id": "7", "type": "other", "subject": "s", "data": {"x": 1}});
        let event = published("application/cloudevents+json", "").event(own.to_string().as_bytes()).unwrap();
        assert_eq!(
            (event.id.as_str(), event.topic.as_str(), event.subject.as_deref()),
            ("7", "order.placed", Some("s"))
        );
        assert!(published("application/cloudevents+json", "").event(b"no").is_err());
    }
}
