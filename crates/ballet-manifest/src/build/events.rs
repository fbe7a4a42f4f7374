//! `events:` as types.

use std::time::Duration;

use ballet_core::TopicName;
use indexmap::IndexMap;

use super::place::Place;
use super::{Builder, duration, one_or_many};
use crate::format::{self, Subscriber};
use crate::mistake::{BAD_EXPRESSION, EXCLUSIVE, MISSING_FILE, TWICE, UNKNOWN_NAME};
use crate::model::{Subscription, Target, Topic};
use crate::template::Template;
use crate::walk::nearest;
use crate::yaml::Raw;

/// Events stay for so long unless their topic says otherwise.
const KEEP: Duration = Duration::from_secs(7 * 86_400);

impl Builder<'_> {
    pub(super) fn topics(&mut self) -> IndexMap<TopicName, Topic> {
        let mut topics = IndexMap::new();
        for entry in self.section(&["events", "topics"]) {
            let schema = entry.value.get("schema").and_then(|node| {
                let (path, value) = self.json_file(node, "schema")?;
                if !value.is_object() && !value.is_boolean() {
                    let text = node.text().unwrap_or_default();
                    let help = "a JSON Schema is an object, or `true`";
                    self.note(&node.at, MISSING_FILE, format!("`{text}` is not a JSON Schema"), help);
                }
                Some(path)
            });
            let keep = entry.value.get("keep").and_then(duration).unwrap_or(KEEP);
            if let Ok(name) = entry.key.parse::<TopicName>() {
                topics.insert(name.clone(), Topic { name, schema, keep });
            }
        }
        topics
    }

    pub(super) fn subscriptions(&mut self) -> Vec<Subscription> {
        let topics = self.known(&["events", "topics"]);
        let mut subscriptions: Vec<Subscription> = Vec::new();
        for entry in self.section(&["events", "subscriptions"]) {
            if !topics.contains(&entry.key.as_str())
                && let Some(near) = nearest(&entry.key, topics.iter().copied())
            {
                // Topics need no declaration, but one that is nearly declared is a slip.
                let message = format!("there is no topic `{}`", entry.key);
                let help = format!("did you mean `{near}`? if not, declare it under `events.topics:`");
                self.note(&entry.key_at, UNKNOWN_NAME, message, help);
            }
            for node in one_or_many(&entry.value) {
                let (to, id) = match &node.raw {
                    Raw::Map(_) => (node.get("to"), node.get("id")),
                    Raw::Scalar(_) | Raw::List(_) => (Some(node), None),
                };
                let Some(to) = to else { continue };
                let Some(Ok(subscriber)) = to.text().map(format::subscriber) else { continue };
                let target = match subscriber {
                    Subscriber::Service { service, path } => {
                        self.service_known(to, &service);
                        self.expressions(to, &path, &Place::Event);
                        if let Some(id) = id {
                            let help = "it names the execution of a workflow: delete it";
                            self.note(&id.at, EXCLUSIVE, "`id` has no meaning for a service", help);
                        }
                        Target::Service { service, path }
                    }
                    Subscriber::Workflow(name) => {
                        self.look_up(&self.part(to, name.as_str()), "workflow", name.as_str(), &["workflows"]);
                        let template = id.and_then(|id| Template::parse(id.text()?).ok());
                        if let (Some(id), Some(template)) = (id, &template) {
                            self.expressions(id, template, &Place::Event);
                            if template.exprs().next().is_none() {
                                let help = "put something of the event into it: `${event.subject}`";
                                let message = "every event would start the same execution";
                                self.note(&id.at, BAD_EXPRESSION, message, help);
                            }
                        }
                        Target::Workflow { name, id: template }
                    }
                };
                let Ok(topic) = entry.key.parse::<TopicName>() else { continue };
                let same = |other: &Subscription| {
                    other.topic == topic
                        && match (&other.target, &target) {
                            (Target::Service { service, path }, Target::Service { service: s, path: p }) => {
                                service == s && path == p
                            }
                            (Target::Workflow { name, .. }, Target::Workflow { name: n, .. }) => name == n,
                            (Target::Service { .. }, Target::Workflow { .. })
                            | (Target::Workflow { .. }, Target::Service { .. }) => false,
                        }
                };
                if subscriptions.iter().any(same) {
                    let message = format!("`{}` goes to `{}` already", entry.key, to.text().unwrap_or_default());
                    self.note(&to.at, TWICE, message, "delete one of them");
                }
                subscriptions.push(Subscription { topic, target, origin: node.at.origin.clone() });
            }
        }
        subscriptions
    }
}
