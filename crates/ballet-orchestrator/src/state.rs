//! What the engine knows of one execution. Rows hold it as JSON; nothing here is a wire format.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use ballet_core::{ExecutionId, ExecutionStatus, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::expr::Scope;
use crate::plan::Plan;

/// Two times: the clock's for records, and the engine's own for every timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// The clock's.
    pub(crate) stamp: Timestamp,
    /// Milliseconds that engines of this store were seen running. It stands still while nobody runs, so a suspended
    /// laptop, a restart or a jump of the clock ends nothing.
    pub(crate) run: u64,
}

impl Now {
    /// Engine time after a rest.
    pub(crate) fn after(self, rest: Duration) -> u64 {
        self.run.saturating_add(u64::try_from(rest.as_millis()).unwrap_or(u64::MAX))
    }
}

/// One run of a workflow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Execution {
    /// Its id.
    pub(crate) id: ExecutionId,
    /// Its workflow.
    pub(crate) name: String,
    /// Its definition's version.
    pub(crate) version: u32,
    /// Which content of that version.
    pub(crate) revision: u32,
    /// A definition that came with the start, instead of a registered one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inline: Option<Value>,
    /// Registered task definitions as they were at the start.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) task_defs: Map<String, Value>,
    /// What others see.
    pub(crate) status: ExecutionStatus,
    /// What it is really at.
    pub(crate) phase: Phase,
    /// Its input.
    pub(crate) input: Value,
    /// Its output, once it has ended.
    #[serde(default)]
    pub(crate) output: Value,
    /// Conductor's correlation id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) correlation_id: Option<String>,
    /// Who started it, as Conductor's clients say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created_by: Option<String>,
    /// The trace that it belongs to, as a `traceparent`.
    pub(crate) trace: String,
    /// 0 to 99; kept and shown.
    #[serde(default)]
    pub(crate) priority: u8,
    /// When it was made, last changed, and ended (0 while open).
    pub(crate) created: Timestamp,
    /// Last change.
    pub(crate) updated: Timestamp,
    /// End; 0 while open.
    #[serde(default)]
    pub(crate) ended: Timestamp,
    /// Engine time of the workflow's timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) due: Option<u64>,
    /// Grows with each operator's retry or restart, and changes the keys.
    #[serde(default)]
    pub(crate) reopened: u32,
    /// Nothing new is begun.
    #[serde(default)]
    pub(crate) paused: bool,
    /// How it ends once nothing is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ending: Option<Ending>,
    /// What each step came to, by index.
    pub(crate) steps: Vec<Option<Series>>,
    /// What each undo came to.
    pub(crate) undos: Vec<Option<Series>>,
    /// What `failed:` came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<Series>,
    /// Rows of history so far.
    #[serde(default)]
    pub(crate) history: u64,
    /// The attempt that the last row is about, if the next row of its kind takes its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) repeats: Option<usize>,
    /// Engine time of the last commit.
    #[serde(default)]
    pub(crate) seen: u64,
    /// All attempts, in the order of their making; rows of their own.
    #[serde(skip)]
    pub(crate) tasks: Vec<Task>,
    /// Attempts whose rows are older than they.
    #[serde(skip)]
    pub(crate) dirty: BTreeSet<usize>,
}

/// What an execution is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Doing its steps.
    Forward,
    /// Undoing them.
    Undoing,
    /// Telling that it failed.
    Telling,
    /// Nothing more will happen.
    Ended,
}

/// How an execution that cannot complete will end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ending {
    /// FAILED, TIMED_OUT or TERMINATED.
    pub(crate) status: ExecutionStatus,
    /// For people.
    pub(crate) reason: String,
    /// The step that failed; empty for none.
    pub(crate) step: String,
    /// The HTTP status of its refusal, or 0.
    pub(crate) http_status: u16,
    /// For `${failure.code}`.
    pub(crate) code: String,
}

/// What one step (or undo, or `failed:`) came to, over all its attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Series {
    /// Index of the current attempt.
    pub(crate) task: usize,
    /// Index of the first attempt: the order of hand-out.
    pub(crate) first: usize,
    /// Attempts of unknown outcome so far.
    pub(crate) attempts: u32,
    /// Waits since the last one.
    #[serde(default)]
    pub(crate) waits: u32,
    /// Engine time when it was first scheduled.
    pub(crate) since: u64,
    /// A byte was written, or it was offered; after a restart: it was scheduled.
    pub(crate) handed_out: bool,
    /// It was in contact before: a refusal now is not its first contact.
    pub(crate) contacted: bool,
    /// Some attempt's outcome is unknown.
    pub(crate) unknown: bool,
    /// A person was told that it takes long.
    #[serde(default)]
    pub(crate) alarmed: bool,
    /// How it stands.
    pub(crate) state: SeriesState,
}

/// How a series stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SeriesState {
    /// Under way or waiting.
    Open,
    /// Done.
    Done,
    /// Refused on its first contact: nothing happened there.
    Refused,
    /// Ended otherwise: attempts used up, cancelled, refused later.
    GivenUp,
    /// An undo that needs a person.
    Stuck,
    /// An undo that a person settled, for this reason.
    SetAside(String),
}

/// What an attempt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// Doing the step with this index.
    Do(usize),
    /// Undoing it.
    Undo(usize),
    /// Telling that the workflow failed.
    Failed,
}

/// Conductor's status of a task. Its clients lose tasks with any other word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum TaskStatus {
    /// Waits.
    Scheduled,
    /// With a worker, or a call under way.
    InProgress,
    /// Done.
    Completed,
    /// An optional task that failed.
    CompletedWithErrors,
    /// Failed; may be tried again.
    Failed,
    /// Refused.
    FailedWithTerminalError,
    /// No answer in time.
    TimedOut,
    /// No longer wanted.
    Canceled,
}

/// One attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Its id.
    pub(crate) id: String,
    /// What it is for.
    pub(crate) role: Role,
    /// Its status.
    pub(crate) status: TaskStatus,
    /// Attempts before it.
    pub(crate) retry_count: u32,
    /// The attempt before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retried_id: Option<String>,
    /// Another attempt follows.
    #[serde(default)]
    pub(crate) retried: bool,
    /// What it is given.
    pub(crate) input: Value,
    /// What it put out.
    #[serde(default)]
    pub(crate) output: Value,
    /// Why it did not complete, or why it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// When it was made.
    pub(crate) scheduled: Timestamp,
    /// When it was first handed out; 0 before.
    #[serde(default)]
    pub(crate) started: Timestamp,
    /// Last change.
    pub(crate) updated: Timestamp,
    /// End; 0 while open.
    #[serde(default)]
    pub(crate) ended: Timestamp,
    /// Engine time before which it is not handed out.
    #[serde(default)]
    pub(crate) due: u64,
    /// The rest that `due` came from, in seconds, as Conductor shows it.
    #[serde(default)]
    pub(crate) delay_s: u64,
    /// Times it was handed out.
    #[serde(default)]
    pub(crate) poll_count: u32,
    /// The worker that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) worker: Option<String>,
    /// It is with a worker or a call is under way. In memory only: after a restart it is handed out again.
    #[serde(skip)]
    pub(crate) out: Option<Out>,
    /// It stands in its queue.
    #[serde(skip)]
    pub(crate) queued: bool,
}

/// Where an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Out {
    /// A call is under way.
    Call,
    /// A worker has it until these engine times: the response timeout, and the attempt's own.
    Worker {
        /// Silent for too long.
        until: u64,
        /// The attempt's own timeout.
        attempt_until: Option<u64>,
    },
}

impl TaskStatus {
    /// Whether nothing will happen to it any more.
    pub(crate) fn is_final(self) -> bool {
        match self {
            Self::Scheduled | Self::InProgress => false,
            Self::Completed
            | Self::CompletedWithErrors
            | Self::Failed
            | Self::FailedWithTerminalError
            | Self::TimedOut
            | Self::Canceled => true,
        }
    }

    /// Conductor's word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "SCHEDULED",
            Self::InProgress => "IN_PROGRESS",
            Self::Completed => "COMPLETED",
            Self::CompletedWithErrors => "COMPLETED_WITH_ERRORS",
            Self::Failed => "FAILED",
            Self::FailedWithTerminalError => "FAILED_WITH_TERMINAL_ERROR",
            Self::TimedOut => "TIMED_OUT",
            Self::Canceled => "CANCELED",
        }
    }
}

/// Conductor's word for an execution's status.
pub(crate) fn status_word(status: ExecutionStatus) -> &'static str {
    match status {
        ExecutionStatus::Running => "RUNNING",
        ExecutionStatus::Completed => "COMPLETED",
        ExecutionStatus::Failed => "FAILED",
        ExecutionStatus::TimedOut => "TIMED_OUT",
        ExecutionStatus::Terminated => "TERMINATED",
        ExecutionStatus::Paused => "PAUSED",
    }
}

impl Series {
    /// Whether it is under way or waiting.
    pub(crate) fn is_open(&self) -> bool {
        self.state == SeriesState::Open
    }

    /// Whether what it did has to be undone.
    pub(crate) fn needs_undo(&self) -> bool {
        self.handed_out && self.state != SeriesState::Refused
    }
}

impl Execution {
    /// The series of a role.
    pub(crate) fn series(&self, role: Role) -> Option<&Series> {
        match role {
            Role::Do(i) => self.steps.get(i)?.as_ref(),
            Role::Undo(i) => self.undos.get(i)?.as_ref(),
            Role::Failed => self.failed.as_ref(),
        }
    }

    /// The place of a role's series.
    pub(crate) fn series_mut(&mut self, role: Role) -> &mut Option<Series> {
        match role {
            Role::Do(i) => &mut self.steps[i],
            Role::Undo(i) => &mut self.undos[i],
            Role::Failed => &mut self.failed,
        }
    }

    /// The role whose series is open, with its current attempt. In a line there is at most one.
    pub(crate) fn open_roles(&self) -> impl Iterator<Item = (Role, usize)> + '_ {
        let of = |role: fn(usize) -> Role, all: &'_ [Option<Series>]| {
            let open =
                all.iter().enumerate().filter_map(|(i, s)| s.as_ref().filter(|s| s.is_open()).map(|s| (i, s.task)));
            open.map(|(i, task)| (role(i), task)).collect::<Vec<_>>()
        };
        let failed = self.failed.as_ref().filter(|s| s.is_open()).map(|s| (Role::Failed, s.task));
        of(Role::Do, &self.steps).into_iter().chain(of(Role::Undo, &self.undos)).chain(failed)
    }

    /// The attempt with this id.
    pub(crate) fn task_index(&self, id: &str) -> Option<usize> {
        self.tasks.iter().rposition(|task| task.id == id)
    }

    /// The idempotency key of a role: the same over all its attempts.
    pub(crate) fn key(&self, plan: &Plan, role: Role) -> String {
        // What a header cannot carry is escaped, and then everywhere alike.
        let plain = |text: &str| -> String {
            let mut out = String::with_capacity(text.len());
            for byte in text.bytes() {
                match byte {
                    b'!'..=b'$' | b'&'..=b'~' => out.push(char::from(byte)),
                    byte => out.push_str(&format!("%{byte:02X}")),
                }
            }
            out
        };
        let mut execution = plain(self.id.as_str());
        if self.reopened > 0 {
            execution.push_str(&format!(".{}", self.reopened));
        }
        match role {
            Role::Do(i) => format!("{execution}/{}/0", plain(&plan.steps[i].reference)),
            Role::Undo(i) => format!("{execution}/{}/0/undo", plain(&plan.steps[i].reference)),
            Role::Failed => format!("{execution}/failed/0"),
        }
    }

    /// `running`, `done` or `stuck`; none while nothing has to be undone.
    pub(crate) fn compensation_state(&self) -> Option<&'static str> {
        match (self.phase, self.status) {
            (Phase::Forward, _) | (Phase::Ended, ExecutionStatus::Completed) => None,
            (Phase::Undoing, _) if self.undos.iter().flatten().any(|s| s.state == SeriesState::Stuck) => Some("stuck"),
            (Phase::Undoing, _) => Some("running"),
            (Phase::Telling | Phase::Ended, _) => Some("done"),
        }
    }

    /// The field `compensation` of the document.
    pub(crate) fn compensation(&self, plan: &Plan) -> Option<Value> {
        let state = self.compensation_state()?;
        let mut steps: Vec<(usize, Value)> = vec![];
        for (i, step) in self.steps.iter().enumerate() {
            let (Some(step), Some(def)) = (step, plan.steps.get(i)) else { continue };
            if def.undo.is_none() || !(step.needs_undo() || self.undos[i].is_some()) {
                continue;
            }
            let mut row = json!({ "step": def.reference });
            match &self.undos[i] {
                None => row["state"] = json!("pending"),
                Some(undo) => {
                    row["state"] = json!(match &undo.state {
                        SeriesState::Open => "running",
                        SeriesState::Done => "done",
                        SeriesState::SetAside(_) => "set-aside",
                        SeriesState::Refused | SeriesState::GivenUp | SeriesState::Stuck => "stuck",
                    });
                    row["attempts"] = json!(undo.attempts);
                    if let SeriesState::SetAside(reason) = &undo.state {
                        row["reason"] = json!(reason);
                    } else if let Some(reason) = self.tasks.get(undo.task).and_then(|t| t.reason.as_ref()) {
                        row["reason"] = json!(reason);
                    }
                }
            }
            steps.push((step.first, row));
        }
        steps.sort_by_key(|(first, _)| std::cmp::Reverse(*first));
        Some(json!({ "state": state, "steps": steps.into_iter().map(|(_, row)| row).collect::<Vec<_>>() }))
    }
}

/// What expressions see of an execution.
pub(crate) struct View<'a> {
    /// The execution.
    pub(crate) execution: &'a Execution,
    /// Its plan.
    pub(crate) plan: &'a Plan,
}

impl Scope for View<'_> {
    fn field(&self, root: &str, name: &str) -> Option<Cow<'_, Value>> {
        let x = self.execution;
        let owned = |value: Value| Some(Cow::Owned(value));
        match root {
            "workflow" => match name {
                "input" => Some(Cow::Borrowed(&x.input)),
                "output" => Some(Cow::Borrowed(&x.output)),
                "status" => owned(json!(status_word(x.status))),
                "workflowId" => owned(json!(x.id.as_str())),
                "workflowType" => owned(json!(x.name)),
                "version" => owned(json!(x.version)),
                "correlationId" => owned(json!(x.correlation_id)),
                "reasonForIncompletion" => owned(json!(x.ending.as_ref().map(|e| &e.reason))),
                "schemaVersion" => owned(json!(2)),
                _ => None,
            },
            "failure" => {
                let ending = x.ending.as_ref()?;
                match name {
                    "step" => owned(json!(ending.step)),
                    "status" => owned(if ending.http_status == 0 { Value::Null } else { json!(ending.http_status) }),
                    "code" => owned(json!(ending.code)),
                    "reason" => owned(json!(ending.reason)),
                    _ => None,
                }
            }
            reference => {
                let task = &x.tasks[x.series(Role::Do(self.plan.step(reference)?))?.task];
                match name {
                    "output" => Some(Cow::Borrowed(&task.output)),
                    "input" => Some(Cow::Borrowed(&task.input)),
                    "status" => owned(json!(task.status.as_str())),
                    "taskId" => owned(json!(task.id)),
                    "referenceTaskName" => owned(json!(reference)),
                    "retryCount" => owned(json!(task.retry_count)),
                    "pollCount" => owned(json!(task.poll_count)),
                    "workflowInstanceId" => owned(json!(x.id.as_str())),
                    "reasonForIncompletion" => owned(json!(task.reason)),
                    "workerId" => owned(json!(task.worker)),
                    "scheduledTime" => owned(json!(task.scheduled)),
                    "startTime" => owned(json!(task.started)),
                    "endTime" => owned(json!(task.ended)),
                    _ => None,
                }
            }
        }
    }

    fn missing(&self) -> &'static str {
        self.plan.missing
    }
}
