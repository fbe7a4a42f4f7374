//! The manifest's workflows as stock Conductor definitions.
//!
//! Steps become HTTP tasks with `service://` URIs, or SIMPLE tasks; what Conductor has no field for (undo, attempts,
//! `failed:`) stands in the stock field `metadata`, under `ballet`, where its tools show it and ignore it.

use ballet_manifest::{Attempts, Call, JsonTemplate, Linear, Part, Step, Template, Work, Workflow, WorkflowBody};
use serde_json::{Map, Value, json};

/// The WorkflowDef of a workflow, without a version.
pub fn definition(workflow: &Workflow) -> Value {
    match &workflow.body {
        WorkflowBody::Conductor { definition, .. } => {
            let mut definition = definition.clone();
            definition["name"] = json!(workflow.name.as_str());
            definition
        }
        WorkflowBody::Linear(linear) => of_steps(workflow.name.as_str(), linear),
    }
}

/// Whether a workflow of the manifest can be run, without running anything: what `ballet check` asks.
///
/// # Errors
/// The first mistake, with its place in the Conductor definition.
pub fn check(workflow: &Workflow) -> Result<(), String> {
    let mut definition = definition(workflow);
    definition["version"] = json!(1);
    crate::plan::Plan::compile(&definition, &Map::new()).map(drop).map_err(|error| error.to_string())
}

fn of_steps(name: &str, linear: &Linear) -> Value {
    let names = Names { steps: &linear.steps };
    let mut ballet = Map::new();
    if let Some(timeout) = linear.timeout {
        ballet.insert("timeoutMs".into(), json!(millis(timeout)));
    }
    if let Some(failed) = &linear.failed {
        let body = failed.with.as_ref().map_or(json!("${workflow.input}"), |with| names.json(with));
        let mut request = names.request(&failed.call, Some(body));
        if let Some(policy) = &failed.policy {
            request["policy"] = json!(policy);
        }
        ballet.insert("failed".into(), request);
    }
    let tasks: Vec<Value> = linear.steps.iter().map(|step| names.task(step)).collect();
    json!({
        "name": name,
        "description": "written by the manifest",
        "tasks": tasks,
        "timeoutSeconds": linear.timeout.map_or(0, |t| millis(t).div_ceil(1000)),
        "timeoutPolicy": if linear.timeout.is_some() { "TIME_OUT_WF" } else { "ALERT_ONLY" },
        "schemaVersion": 2,
        "metadata": { "ballet": ballet },
    })
}

fn millis(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Knows which steps are calls: their output lies deeper in Conductor's HTTP task.
struct Names<'a> {
    steps: &'a [Step],
}

impl Names<'_> {
    fn task(&self, step: &Step) -> Value {
        let mut ballet = Map::new();
        ballet.insert(
            "attempts".into(),
            match step.attempts {
                Attempts::Times(n) => json!(n),
                Attempts::Unlimited => json!("unlimited"),
            },
        );
        if let Some(timeout) = step.timeout {
            ballet.insert("timeoutMs".into(), json!(millis(timeout)));
        }
        if let Some(policy) = &step.policy {
            ballet.insert("policy".into(), json!(policy));
        }
        if let Some(undo) = &step.undo {
            let mut request = self.request(undo, step.undo_with.as_ref().map(|with| self.json(with)));
            if let Some(policy) = &step.policy {
                request["policy"] = json!(policy);
            }
            ballet.insert("undo".into(), request);
        }
        let with = step.with.as_ref().map_or(json!("${workflow.input}"), |with| self.json(with));
        match &step.work {
            Work::Call(call) => json!({
                "name": step.name, "taskReferenceName": step.name, "type": "HTTP",
                "inputParameters": { "http_request": self.request(call, Some(with)) },
                "metadata": { "ballet": ballet },
            }),
            Work::Task(name) => {
                let parameters = if with.is_object() {
                    with
                } else {
                    // Conductor's parameters are an object; the whole input needs our own word.
                    ballet.insert("with".into(), with);
                    json!({})
                };
                json!({
                    "name": name, "taskReferenceName": step.name, "type": "SIMPLE", "inputParameters": parameters,
                    "metadata": { "ballet": ballet },
                })
            }
        }
    }

    fn request(&self, call: &Call, body: Option<Value>) -> Value {
        let uri = format!("service://{}{}", call.service, self.text(&call.path));
        let mut request = json!({ "uri": uri, "method": call.method });
        if let Some(body) = body.filter(|_| !matches!(call.method.as_str(), "GET" | "HEAD")) {
            request["body"] = body;
        } else if matches!(call.method.as_str(), "GET" | "HEAD") {
            request["body"] = Value::Null;
        }
        request
    }

    fn json(&self, template: &JsonTemplate) -> Value {
        match template {
            JsonTemplate::Literal(value) => value.clone(),
            JsonTemplate::Text(template) => Value::String(self.text(template)),
            JsonTemplate::List(items) => Value::Array(items.iter().map(|item| self.json(item)).collect()),
            JsonTemplate::Map(entries) => {
                Value::Object(entries.iter().map(|(key, item)| (key.clone(), self.json(item))).collect())
            }
        }
    }

    /// The same text with Conductor's roots.
    fn text(&self, template: &Template) -> String {
        let mut out = String::new();
        for part in template.parts() {
            let expr = match part {
                Part::Text(text) => {
                    out.push_str(&text.replace("${", "$${"));
                    continue;
                }
                Part::Expr(expr) => expr,
            };
            let mut path = expr.path.as_slice();
            out.push_str("${");
            match expr.scope.as_str() {
                "input" => out.push_str("workflow.input"),
                "execution" => {
                    out.push_str("workflow.workflowId");
                    path = &[];
                }
                "failure" => out.push_str("failure"),
                step => {
                    out.push_str(step);
                    let call = self.steps.iter().any(|s| s.name == step && matches!(s.work, Work::Call(_)));
                    if call && path.first().is_some_and(|word| word == "output") {
                        out.push_str(".output.response.body");
                        path = &path[1..];
                    }
                }
            }
            for word in path {
                out.push('.');
                out.push_str(word);
            }
            if let Some(default) = &expr.default {
                out.push_str(":-");
                out.push_str(default);
            }
            out.push('}');
        }
        out
    }
}
