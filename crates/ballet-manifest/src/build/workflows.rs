//! `workflows:` as types.

use ballet_core::WorkflowName;
use indexmap::IndexMap;
use serde_json::Value;

use super::place::Place;
use super::{Builder, default_attempts, duration};
use crate::format;
use crate::mistake::MISSING_FILE;
use crate::model::{Attempts, Call, Failed, Linear, Step, Work, Workflow, WorkflowBody};
use crate::yaml::{Entry, Node};

impl Builder<'_> {
    pub(super) fn workflows(&mut self) -> IndexMap<WorkflowName, Workflow> {
        let mut workflows = IndexMap::new();
        for entry in self.section(&["workflows"]) {
            let body = match entry.value.get("file") {
                Some(node) => self.conductor(node, &entry.key),
                None => Some(WorkflowBody::Linear(self.linear(&entry.value))),
            };
            if let (Some(body), Ok(name)) = (body, entry.key.parse::<WorkflowName>()) {
                workflows.insert(name.clone(), Workflow { name, body });
            }
        }
        workflows
    }

    pub(super) fn conductor(&mut self, node: &Node, name: &str) -> Option<WorkflowBody> {
        let (path, definition) = self.json_file(node, "workflow")?;
        let text = node.text().unwrap_or_default();
        if !definition.get("tasks").is_some_and(Value::is_array) {
            let help = "it is an object with `name` and a list of `tasks`";
            self.note(&node.at, MISSING_FILE, format!("`{text}` is not a workflow definition"), help);
        } else if let Some(other) = definition.get("name").and_then(Value::as_str).filter(|other| *other != name) {
            let help = format!("name it `{other}` here, or `{name}` there");
            self.note(&node.at, MISSING_FILE, format!("`{text}` defines `{other}`, not `{name}`"), help);
        }
        Some(WorkflowBody::Conductor { path, definition })
    }

    pub(super) fn linear(&mut self, node: &Node) -> Linear {
        let entries: Vec<&Entry> =
            node.get("steps").map_or(&[][..], Node::items).iter().filter_map(|item| item.entries().first()).collect();
        let all: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let undoes: Vec<bool> = entries.iter().map(|entry| entry.value.get("undo").is_some()).collect();
        let mut steps = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let node = &entry.value;
            let before = Place::Workflow { before: &all[..index], all: &all, failure: false };
            // By the time of an undo the step's own output may be known.
            let after = Place::Workflow { before: &all[..=index], all: &all, failure: false };
            let work = match (node.get("call"), node.get("task").and_then(Node::text)) {
                (Some(call), _) => self.call(call, &before).map(Work::Call),
                (None, Some(name)) => Some(Work::Task(name.to_owned())),
                (None, None) => None,
            };
            let with = node.entry("with").map(|entry| self.json_template(&entry.value, &before));
            let undo = node.get("undo").and_then(|undo| self.call(undo, &after));
            let undo_with = node.entry("undo_with").map(|entry| self.json_template(&entry.value, &after));
            let policy = self.policy_name(node.get("policy"));
            let attempts = node.get("attempts").and_then(Node::text).and_then(|text| format::attempts(text).ok());
            let Some(work) = work else { continue };
            steps.push(Step {
                name: entry.key.clone(),
                work,
                with,
                undo,
                undo_with,
                timeout: node.get("timeout").and_then(duration),
                attempts: match attempts {
                    Some(Some(count)) => Attempts::Times(count),
                    Some(None) => Attempts::Unlimited,
                    None => default_attempts(&undoes, index),
                },
                policy,
            });
        }
        let failed = node.get("failed").and_then(|node| {
            let place = Place::Workflow { before: &all, all: &all, failure: true };
            let with = node.entry("with").map(|entry| self.json_template(&entry.value, &place));
            let policy = self.policy_name(node.get("policy"));
            Some(Failed { call: self.call(node.get("call")?, &place)?, with, policy })
        });
        Linear { timeout: node.get("timeout").and_then(duration), steps, failed }
    }

    pub(super) fn call(&mut self, node: &Node, place: &Place<'_>) -> Option<Call> {
        let (method, service, path) = format::call(node.text()?).ok()?;
        self.service_known(node, &service);
        self.expressions(node, &path, place);
        Some(Call { method, service, path })
    }
}
