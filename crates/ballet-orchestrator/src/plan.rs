//! A definition compiled once: steps by index, expressions parsed, every reference checked.

use std::collections::HashMap;
use std::time::Duration;

use ballet_core::ServiceName;
use serde_json::{Map, Value, json};

use crate::expr::{ExprError, Key, Template};

/// Most tasks in one definition.
pub(crate) const MAX_STEPS: usize = 1_000;
/// An undo's attempts of unknown outcome before it is stuck.
pub(crate) const UNDO_ATTEMPTS: u32 = 10;
/// Response timeout of the manifest's polled steps; Conductor's own hour would hang an order.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Conductor's built-in task types that a definition may not use yet. Any other unknown type is a worker's queue.
const LATER: &[&str] = &[
    "FORK_JOIN",
    "FORK_JOIN_DYNAMIC",
    "FORK",
    "JOIN",
    "EXCLUSIVE_JOIN",
    "SWITCH",
    "DECISION",
    "DO_WHILE",
    "SUB_WORKFLOW",
    "START_WORKFLOW",
    "WAIT",
    "HUMAN",
    "SET_VARIABLE",
    "TERMINATE",
    "DYNAMIC",
    "EVENT",
    "KAFKA_PUBLISH",
    "INLINE",
    "LAMBDA",
    "JSON_JQ_TRANSFORM",
    "NOOP",
    "PULL_WORKFLOW_MESSAGES",
    "GET_WORKFLOW",
    "WAIT_FOR_WEBHOOK",
    "JDBC",
    "BUSINESS_RULE",
];

/// Why a definition is refused; the text says where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub(crate) struct PlanError {
    /// `tasks[0].taskReferenceName`.
    pub(crate) path: String,
    /// What is wrong.
    pub(crate) message: String,
    /// The value, if it is a text.
    pub(crate) value: Option<String>,
}

/// A definition ready to run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: u32,
    /// The definition as Conductor's clients see it.
    pub(crate) definition: Value,
    /// The steps, in order.
    pub(crate) steps: Vec<Step>,
    /// Longest run before undoing begins; none for never.
    pub(crate) timeout: Option<Duration>,
    /// Told at the end of an execution that failed.
    pub(crate) failed: Option<Message>,
    /// What the workflow puts out; none for the last step's output.
    pub(crate) output: Option<Template>,
    /// Defaults of the input.
    pub(crate) input_template: Map<String, Value>,
    /// What a missing value becomes inside a text.
    pub(crate) missing: &'static str,
    /// A COMPLETED execution may be restarted.
    pub(crate) restartable: bool,
    references: HashMap<String, usize>,
}

/// One step.
#[derive(Debug)]
pub(crate) struct Step {
    /// Its reference name.
    pub(crate) reference: String,
    /// Its name: a worker's queue, or what people read.
    pub(crate) name: String,
    /// The task of the definition.
    pub(crate) task: Value,
    /// Who does it.
    pub(crate) work: Work,
    /// What it is given.
    pub(crate) input: Template,
    /// Attempts of unknown outcome, the first included; none for unlimited.
    pub(crate) attempts: Option<u32>,
    /// The rest between them.
    pub(crate) rest: Rest,
    /// Longest time for the step, waiting included.
    pub(crate) timeout: Option<Duration>,
    /// Rest before it is offered at all.
    pub(crate) start_delay: Duration,
    /// A failure does not end the workflow.
    pub(crate) optional: bool,
    /// What takes it back.
    pub(crate) undo: Option<Message>,
}

/// Who does a step.
#[derive(Debug)]
pub(crate) enum Work {
    /// The engine, by one HTTP exchange with a service.
    Call(Upstream),
    /// A worker that polls.
    Poll(Polled),
}

/// Whom to call.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    /// The service.
    pub(crate) service: ServiceName,
    /// The policy that was named.
    pub(crate) policy: Option<String>,
}

/// How a polled task is watched.
#[derive(Debug)]
pub(crate) struct Polled {
    /// Its queue.
    pub(crate) queue: String,
    /// A worker that is silent for this long is gone.
    pub(crate) response_timeout: Duration,
    /// Longest time of one attempt, and whether it is then tried again.
    pub(crate) attempt_timeout: Option<(Duration, Overdue)>,
}

/// What happens when one attempt took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// The workflow times out.
    End,
    /// It uses up an attempt.
    Retry,
}

/// A call beside the flow: an undo, or `failed:`.
#[derive(Debug)]
pub(crate) struct Message {
    /// Whom to call.
    pub(crate) upstream: Upstream,
    /// `{"http_request": {uri, method, body}}`.
    pub(crate) input: Template,
    /// The body is `{input, output, key}` of the step.
    pub(crate) default_body: bool,
}

/// The rest before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// 100 ms doubling up to a cap.
    Doubling(Duration),
    /// Conductor's `retryLogic`.
    Conductor {
        /// Which.
        logic: Logic,
        /// `retryDelaySeconds`.
        delay_s: u64,
        /// `backoffScaleFactor`.
        scale: u64,
        /// `maxRetryDelaySeconds`; 0 for none.
        max_s: u64,
    },
}

/// Conductor's retry logics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    /// Always the same.
    Fixed,
    /// Grows by itself.
    Linear,
    /// Doubles.
    Exponential,
}

impl Rest {
    /// The rest after the `n`th attempt, from 1.
    pub(crate) fn after(self, n: u32) -> Duration {
        let n = n.saturating_sub(1);
        match self {
            Self::Doubling(cap) => Duration::from_millis(100 << n.min(16)).min(cap),
            Self::Conductor { logic, delay_s, scale, max_s } => {
                let s = match logic {
                    Logic::Fixed => delay_s,
                    Logic::Linear => delay_s.saturating_mul(scale).saturating_mul(u64::from(n) + 1),
                    Logic::Exponential => delay_s.saturating_mul(1 << n.min(40)),
                };
                let s = if max_s > 0 { s.min(max_s) } else { s };
                Duration::from_secs(s.min(i32::MAX as u64))
            }
        }
    }
}

impl Plan {
    /// Compiles a Conductor WorkflowDef. `task_defs` holds the registered task definitions by name.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub(crate) fn compile(definition: &Value, task_defs: &Map<String, Value>) -> Result<Self, PlanError> {
        let definition = normal(definition)?;
        let name = definition["name"].as_str().unwrap_or_default().to_owned();
        let extension = &definition["metadata"]["ballet"];
        let tasks = definition["tasks"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut steps = vec![];
        let mut references = HashMap::new();
        for (i, task) in tasks.iter().enumerate() {
            let step = step(task, task_defs).map_err(|e| e.under(&format!("tasks[{i}]")))?;
            if matches!(step.reference.as_str(), "workflow" | "failure" | "failed") {
                let why = "`workflow`, `failure` and `failed` mean something else; choose another reference name";
                return Err(PlanError::new("taskReferenceName", why).under(&format!("tasks[{i}]")));
            }
            if references.insert(step.reference.clone(), i).is_some() {
                let why = format!("the reference name `{}` occurs twice", step.reference);
                return Err(PlanError::new("taskReferenceName", why).under(&format!("tasks[{i}]")));
            }
            steps.push(step);
        }
        let failed = match &extension["failed"] {
            Value::Null => None,
            value => Some(message(value).map_err(|e| e.under("metadata.ballet.failed"))?),
        };
        let output = match &definition["outputParameters"] {
            Value::Object(map) if !map.is_empty() => {
                Some(template("outputParameters", &definition["outputParameters"])?)
            }
            _ => None,
        };
        let ended = definition["timeoutPolicy"] == "TIME_OUT_WF";
        let timeout = match extension["timeoutMs"].as_u64() {
            Some(ms) => Some(Duration::from_millis(ms)),
            None => seconds(&definition, "timeoutSeconds")?.filter(|_| ended),
        };
        let plan = Self {
            version: u32::try_from(definition["version"].as_u64().unwrap_or(1)).unwrap_or(1),
            timeout,
            failed,
            output,
            input_template: definition["inputTemplate"].as_object().cloned().unwrap_or_default(),
            missing: if extension.is_object() { "" } else { "null" },
            restartable: definition["restartable"] != false,
            references,
            name,
            steps,
            definition,
        };
        plan.check_references()?;
        Ok(plan)
    }

    /// The step with this reference name.
    pub(crate) fn step(&self, reference: &str) -> Option<usize> {
        self.references.get(reference).copied()
    }

    fn check_references(&self) -> Result<(), PlanError> {
        let check = |place: &str, template: &Template, up_to: usize, failure: bool| {
            let mut wrong = None;
            template.paths(&mut |path| {
                let known = match path.root.as_str() {
                    "workflow" => match path.keys.first() {
                        Some(Key::Name(name)) if matches!(name.as_str(), "secrets" | "env" | "variables") => {
                            wrong.get_or_insert((path.source.clone(), "is not supported yet"));
                            true
                        }
                        Some(_) | None => true,
                    },
                    "failure" => failure,
                    reference => self.references.get(reference).is_some_and(|i| *i < up_to),
                };
                if !known {
                    wrong.get_or_insert((path.source.clone(), "names no task that came before"));
                }
            });
            match wrong {
                Some((path, why)) => Err(PlanError::new(place, format!("`${{{path}}}` {why}"))),
                None => Ok(()),
            }
        };
        for (i, step) in self.steps.iter().enumerate() {
            check(&format!("tasks[{i}].inputParameters"), &step.input, i, false)?;
            if let Some(undo) = &step.undo {
                check(&format!("tasks[{i}].metadata.ballet.undo"), &undo.input, i + 1, false)?;
            }
        }
        if let Some(output) = &self.output {
            check("outputParameters", output, self.steps.len(), false)?;
        }
        match &self.failed {
            Some(failed) => check("metadata.ballet.failed", &failed.input, self.steps.len(), true),
            None => Ok(()),
        }
    }
}

/// A WorkflowDef with every default of the model written out, as Conductor's server answers it.
pub(crate) fn normal(definition: &Value) -> Result<Value, PlanError> {
    let Value::Object(given) = definition else {
        return Err(PlanError::new("", "a workflow definition is an object"));
    };
    let name = given.get("name").and_then(Value::as_str).unwrap_or_default();
    if name.parse::<ballet_core::WorkflowName>().is_err() {
        return Err(
            PlanError::new("name", "a workflow needs a name of 1 to 200 visible characters without `/`").with(name)
        );
    }
    if given.get("schemaVersion").and_then(Value::as_i64).is_some_and(|v| v != 2) {
        return Err(PlanError::new("schemaVersion", "only schema version 2 is supported"));
    }
    let version = given.get("version").filter(|v| !v.is_null()).map_or(Some(1), Value::as_u64);
    if !version.is_some_and(|v| (1..=i32::MAX as u64).contains(&v)) {
        return Err(PlanError::new("version", "a version is a whole number from 1"));
    }
    let tasks = given.get("tasks").and_then(Value::as_array).filter(|tasks| !tasks.is_empty());
    let Some(tasks) = tasks else {
        return Err(PlanError::new("tasks", "a workflow needs at least one task"));
    };
    if tasks.len() > MAX_STEPS {
        return Err(PlanError::new("tasks", format!("a workflow has at most {MAX_STEPS} tasks")));
    }
    let mut all = defaults(
        json!({
            "createTime": 0, "updateTime": 0, "name": name, "version": version, "tasks": [], "inputParameters": [],
            "outputParameters": {}, "schemaVersion": 2, "restartable": true, "workflowStatusListenerEnabled": false,
            "timeoutPolicy": "ALERT_ONLY", "timeoutSeconds": 0, "variables": {}, "inputTemplate": {}, "enforceSchema": true,
            "metadata": {}, "maskedFields": [],
        }),
        given,
    );
    let tasks = tasks.iter().enumerate();
    let tasks = tasks.map(|(i, task)| normal_task(task).map_err(|e| e.under(&format!("tasks[{i}]"))));
    all.insert("tasks".into(), Value::Array(tasks.collect::<Result<_, _>>()?));
    for (key, shape) in
        [("outputParameters", true), ("inputTemplate", true), ("metadata", true), ("inputParameters", false)]
    {
        if !(if shape { all[key].is_object() } else { all[key].is_array() }) {
            return Err(PlanError::new(key, if shape { "must be an object" } else { "must be a list" }));
        }
    }
    if !matches!(all["timeoutPolicy"].as_str(), Some("ALERT_ONLY" | "TIME_OUT_WF")) {
        return Err(PlanError::new("timeoutPolicy", "must be ALERT_ONLY or TIME_OUT_WF"));
    }
    if all.get("failureWorkflow").is_some_and(|w| w.as_str() != Some("")) {
        return Err(PlanError::new(
            "failureWorkflow",
            "failure workflows are not supported yet; use the manifest's `failed:`",
        ));
    }
    Ok(Value::Object(all))
}

/// A TaskDef with every default of the model written out.
pub(crate) fn normal_task_def(given: &Value) -> Result<Value, PlanError> {
    let Value::Object(given) = given else {
        return Err(PlanError::new("", "a task definition is an object"));
    };
    if given.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(PlanError::new("name", "a task definition needs a name"));
    }
    let all = Value::Object(defaults(
        json!({
            "createTime": 0, "updateTime": 0, "name": "", "retryCount": 3, "timeoutSeconds": 0, "inputKeys": [], "outputKeys": [],
            "timeoutPolicy": "TIME_OUT_WF", "retryLogic": "FIXED", "retryDelaySeconds": 60, "responseTimeoutSeconds": 3600,
            "inputTemplate": {}, "rateLimitPerFrequency": 0, "rateLimitFrequencyInSeconds": 1, "backoffScaleFactor": 1,
            "maxRetryDelaySeconds": 0, "backoffJitterMs": 0, "totalTimeoutSeconds": 0, "enforceSchema": false, "runtimeMetadata": [],
            "taskStatusListenerEnabled": true,
        }),
        given,
    ));
    for (key, least) in [
        ("retryCount", 0),
        ("retryDelaySeconds", 0),
        ("responseTimeoutSeconds", 1),
        ("timeoutSeconds", 0),
        ("backoffScaleFactor", 1),
        ("maxRetryDelaySeconds", 0),
    ] {
        if all[key].as_i64().is_none_or(|n| n < least) {
            return Err(PlanError::new(key, format!("must be a whole number from {least}")));
        }
    }
    logic(&all)?;
    if !matches!(all["timeoutPolicy"].as_str(), Some("ALERT_ONLY" | "TIME_OUT_WF" | "RETRY")) {
        return Err(PlanError::new("timeoutPolicy", "must be RETRY, TIME_OUT_WF or ALERT_ONLY"));
    }
    let (total, response) = (all["timeoutSeconds"].as_i64(), all["responseTimeoutSeconds"].as_i64());
    // Partial bodies are normal: the default of an hour gives way to a shorter timeout.
    if total.is_some_and(|t| t > 0) && response > total && given.contains_key("responseTimeoutSeconds") {
        return Err(PlanError::new("responseTimeoutSeconds", "must not be longer than timeoutSeconds"));
    }
    Ok(all)
}

impl PlanError {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), value: None }
    }

    fn with(mut self, value: &str) -> Self {
        self.value = Some(value.to_owned());
        self
    }

    fn under(mut self, prefix: &str) -> Self {
        self.path = if self.path.is_empty() { prefix.into() } else { format!("{prefix}.{}", self.path) };
        self
    }
}

fn defaults(defaults: Value, given: &Map<String, Value>) -> Map<String, Value> {
    let mut all = match defaults {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    };
    for (key, value) in given.iter().filter(|(_, value)| !value.is_null()) {
        all.insert(key.clone(), value.clone());
    }
    all
}

fn normal_task(task: &Value) -> Result<Value, PlanError> {
    let Value::Object(given) = task else {
        return Err(PlanError::new("", "a task is an object"));
    };
    for key in ["name", "taskReferenceName"] {
        if given.get(key).and_then(Value::as_str).is_none_or(|s| s.is_empty() || s.len() > 200 || s.contains('/')) {
            return Err(PlanError::new(key, "a task needs one of 1 to 200 characters without `/`"));
        }
    }
    let all = defaults(
        json!({
            "name": "", "taskReferenceName": "", "inputParameters": {}, "type": "SIMPLE", "decisionCases": {}, "defaultCase": [],
            "forkTasks": [], "startDelay": 0, "joinOn": [], "optional": false, "defaultExclusiveJoinTask": [],
            "asyncComplete": false, "loopOver": [], "onStateChange": {}, "permissive": false,
        }),
        given,
    );
    if !all["inputParameters"].is_object() {
        return Err(PlanError::new("inputParameters", "must be an object"));
    }
    Ok(Value::Object(all))
}

fn step(task: &Value, task_defs: &Map<String, Value>) -> Result<Step, PlanError> {
    let text = |key: &str| task[key].as_str().unwrap_or_default().to_owned();
    let (name, kind) = (text("name"), text("type"));
    let extension = &task["metadata"]["ballet"];
    for key in ["asyncComplete", "permissive"] {
        if task[key] == true {
            return Err(PlanError::new(key, "is not supported yet"));
        }
    }
    if LATER.contains(&kind.as_str()) {
        let why = format!(
            "task type `{kind}` is not supported yet: this version runs SIMPLE and HTTP tasks, one after the other"
        );
        return Err(PlanError::new("type", why));
    }
    let def = match task.get("taskDefinition").or_else(|| task_defs.get(&name)) {
        Some(def) => Some(normal_task_def(def).map_err(|e| e.under("taskDefinition"))?),
        None => None,
    };
    // A manifest's step keeps its own rules: a worker that registers its task definition would else bring Conductor's
    // default response timeout of an hour along.
    let ours = extension.is_object();
    let template_of = def.as_ref().map(|def| def["inputTemplate"].clone());
    let def = def.filter(|_| !ours);
    let retry_count = task["retryCount"].as_u64().or(def.as_ref().and_then(|d| d["retryCount"].as_u64()));
    let attempts = match (&extension["attempts"], retry_count) {
        (Value::String(word), _) if word == "unlimited" => None,
        (Value::Number(n), _) => Some(n.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(3).max(1)),
        (_, Some(retries)) => Some(u32::try_from(retries).unwrap_or(u32::MAX).saturating_add(1)),
        (_, None) if kind == "HTTP" => Some(3),
        (_, None) => Some(4),
    };
    let doubling = Rest::Doubling(Duration::from_secs(10));
    let rest = match &def {
        Some(def) => logic(def)?,
        None if ours || kind == "HTTP" => doubling,
        None => Rest::Conductor { logic: Logic::Fixed, delay_s: 60, scale: 1, max_s: 0 },
    };
    let parameters = &task["inputParameters"];
    let (work, input) = if kind == "HTTP" {
        let (upstream, input) = http(parameters)?;
        let policy = extension["policy"].as_str().map(str::to_owned);
        (Work::Call(Upstream { service: upstream, policy }), input)
    } else {
        let queue = if kind == "SIMPLE" { name.clone() } else { kind };
        let response_timeout = match &def {
            Some(def) => Duration::from_secs(def["responseTimeoutSeconds"].as_u64().unwrap_or(3600)),
            None if ours => RESPONSE_TIMEOUT,
            None => Duration::from_secs(3600),
        };
        let attempt_timeout = def.as_ref().and_then(|def| {
            let limit = Duration::from_secs(def["timeoutSeconds"].as_u64().filter(|s| *s > 0)?);
            match def["timeoutPolicy"].as_str() {
                Some("RETRY") => Some((limit, Overdue::Retry)),
                Some("TIME_OUT_WF") => Some((limit, Overdue::End)),
                _ => None,
            }
        });
        let mut all = template_of.and_then(|t| t.as_object().cloned()).unwrap_or_default();
        all.extend(parameters.as_object().cloned().unwrap_or_default());
        let input = match extension.get("with") {
            // The manifest's default: the workflow's whole input.
            Some(whole) => template("metadata.ballet.with", whole)?,
            None => template("inputParameters", &Value::Object(all))?,
        };
        (Work::Poll(Polled { queue, response_timeout, attempt_timeout }), input)
    };
    let undo = match &extension["undo"] {
        Value::Null => None,
        value => Some(message(value).map_err(|e| e.under("metadata.ballet.undo"))?),
    };
    Ok(Step {
        reference: text("taskReferenceName"),
        name,
        task: task.clone(),
        work,
        input,
        attempts,
        rest,
        timeout: extension["timeoutMs"].as_u64().map(Duration::from_millis),
        start_delay: seconds(task, "startDelay")?.unwrap_or_default(),
        optional: task["optional"] == true,
        undo,
    })
}

/// `{uri, method, body?, policy?}`: an undo or `failed:`.
fn message(value: &Value) -> Result<Message, PlanError> {
    let (service, input) = http(&json!({ "http_request": value }))?;
    let policy = value["policy"].as_str().map(str::to_owned);
    Ok(Message { upstream: Upstream { service, policy }, input, default_body: value.get("body").is_none() })
}

/// The parameters of an HTTP task: `http_request`, or its keys at the top.
fn http(parameters: &Value) -> Result<(ServiceName, Template), PlanError> {
    let (place, request) = match parameters.get("http_request") {
        Some(request) => ("http_request", request),
        None => ("", parameters),
    };
    let bad = |key: &str, why: &str| Err(PlanError::new(key, why).under(place).under("inputParameters"));
    let Some(uri) = request["uri"].as_str() else {
        return bad("uri", "an HTTP task needs a text `uri`");
    };
    let Some((service, path)) = uri.strip_prefix("service://").map(|rest| rest.split_once('/').unwrap_or((rest, "")))
    else {
        return bad("uri", "only `service://NAME/path` is supported yet");
    };
    let Ok(service) = service.parse::<ServiceName>() else {
        return bad("uri", "`service://` is followed by the name of a service");
    };
    let method = request.get("method").map_or(Some("GET"), Value::as_str);
    let Some(method) = method.filter(|m| !m.is_empty() && m.bytes().all(|b| b.is_ascii_alphabetic())) else {
        return bad("method", "an HTTP method is a word such as POST");
    };
    let mut entries = vec![
        ("uri".to_owned(), Template::uri(&format!("service://{service}/{path}"))?),
        ("method".to_owned(), Template::Plain(Value::String(method.to_ascii_uppercase()))),
    ];
    for (key, value) in request.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "uri" | "method" | "policy") {
            entries.push((key.clone(), Template::parse(value)?));
        }
    }
    if let Some(headers) = request.get("headers")
        && !headers.as_object().is_some_and(|map| map.values().all(|v| v.is_string() || v.is_number()))
    {
        return bad("headers", "headers are an object of texts");
    }
    let request = Template::Map(entries);
    Ok((service, Template::Map(vec![("http_request".to_owned(), request)])))
}

fn logic(def: &Value) -> Result<Rest, PlanError> {
    let n = |key: &str| def[key].as_u64().unwrap_or_default();
    let logic = match def["retryLogic"].as_str() {
        Some("FIXED") => Logic::Fixed,
        Some("LINEAR_BACKOFF") => Logic::Linear,
        Some("EXPONENTIAL_BACKOFF") => Logic::Exponential,
        _ => return Err(PlanError::new("retryLogic", "must be FIXED, LINEAR_BACKOFF or EXPONENTIAL_BACKOFF")),
    };
    let (delay_s, scale, max_s) = (n("retryDelaySeconds"), n("backoffScaleFactor"), n("maxRetryDelaySeconds"));
    Ok(Rest::Conductor { logic, delay_s, scale, max_s })
}

fn seconds(value: &Value, key: &str) -> Result<Option<Duration>, PlanError> {
    match &value[key] {
        Value::Null => Ok(None),
        value => match value.as_u64() {
            Some(s) => Ok(Some(Duration::from_secs(s.min(i32::MAX as u64))).filter(|d| !d.is_zero())),
            None => Err(PlanError::new(key, "must be a whole number of seconds")),
        },
    }
}

fn template(place: &str, value: &Value) -> Result<Template, PlanError> {
    Template::parse(value).map_err(|error| PlanError::from(error).under(place))
}

impl From<ExprError> for PlanError {
    fn from(error: ExprError) -> Self {
        Self::new("", error.to_string())
    }
}
