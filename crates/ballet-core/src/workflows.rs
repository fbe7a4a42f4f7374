//! The seam between those who start workflows and the orchestrator.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Classify, ErrorCode, ExecutionId, Later, Retry, TraceContext, WorkflowName};

/// A wish for an execution.
#[derive(Clone, Debug)]
pub struct Start {
    /// Which workflow.
    pub name: WorkflowName,
    /// Which version; the newest if `None`.
    pub version: Option<u32>,
    /// The execution's id; made anew if `None`. Starting a known id has no effect.
    pub id: Option<ExecutionId>,
    /// Its input, a JSON object.
    pub input: Value,
    /// Conductor's correlation id.
    pub correlation_id: Option<String>,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
}

impl Start {
    /// Starts the newest version of `name` with `input` under a new id.
    pub fn new(name: WorkflowName, input: Value) -> Self {
        Self { name, version: None, id: None, input, correlation_id: None, trace: None }
    }

    /// Chooses the id.
    #[must_use]
    pub fn id(mut self, id: ExecutionId) -> Self {
        self.id = Some(id);
        self
    }
}

/// How a start ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The execution's id.
    pub id: ExecutionId,
    /// `false` if the id was known already and nothing happened.
    pub new: bool,
}

/// Conductor's status of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ExecutionStatus {
    /// Under way; also while undos run.
    Running,
    /// Ended well.
    Completed,
    /// A task failed, and what had to be undone is undone.
    Failed,
    /// It took longer than its timeout.
    TimedOut,
    /// Somebody ended it.
    Terminated,
    /// Somebody halted it.
    Paused,
}

impl ExecutionStatus {
    /// Whether nothing will happen any more.
    pub fn is_final(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::TimedOut | Self::Terminated => true,
            Self::Running | Self::Paused => false,
        }
    }
}

/// Conductor's Workflow document, as JSON, with the fields that everyone reads at hand.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkflowDocument {
    /// The execution's id.
    pub id: ExecutionId,
    /// Its status.
    pub status: ExecutionStatus,
    /// The whole document.
    pub json: Value,
}

/// Why the orchestrator refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WorkflowsError {
    /// No such definition.
    #[error("no workflow named `{name}`{}", .version.map(|v| format!(" in version {v}")).unwrap_or_default())]
    UnknownWorkflow {
        /// The name asked for.
        name: WorkflowName,
        /// The version asked for.
        version: Option<u32>,
    },
    /// No such execution.
    #[error("no execution `{0}`")]
    UnknownExecution(ExecutionId),
    /// The request breaks a rule.
    #[error("{0}")]
    Invalid(String),
    /// The execution's state forbids it.
    #[error("{0}")]
    Conflict(String),
    /// The orchestrator cannot be reached, or its disk refuses; nothing was accepted.
    #[error("the orchestrator takes nothing now: {0}")]
    Unavailable(String),
    /// The answer was lost; it may have been done.
    #[error("the orchestrator gave no answer: {0}")]
    Unknown(String),
}

impl Classify for WorkflowsError {
    fn code(&self) -> ErrorCode {
        ErrorCode(match self {
            Self::UnknownWorkflow { .. } => "WF001",
            Self::UnknownExecution(_) => "WF002",
            Self::Invalid(_) => "WF003",
            Self::Conflict(_) => "WF004",
            Self::Unavailable(_) => "WF005",
            Self::Unknown(_) => "WF006",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::UnknownWorkflow { .. } | Self::UnknownExecution(_) | Self::Invalid(_) | Self::Conflict(_) => {
                Retry::Never
            }
            Self::Unavailable(_) => Retry::Safe(None),
            Self::Unknown(_) => Retry::IfIdempotent,
        }
    }
}

/// Runs workflows.
///
/// # Contract
/// 1. `start` answers once the execution is on disk; a crash afterwards loses nothing of it.
/// 2. `start` with a known id answers `new: false` and has no effect, also long after the execution ended.
/// 3. `get` shows every change whose call has returned.
/// 4. `terminate` undoes what has to be undone before the status is final; of an ended execution it is a `Conflict`.
pub trait Workflows: Send + Sync + 'static {
    /// Starts an execution.
    fn start(&self, start: Start) -> Later<'_, Result<Started, WorkflowsError>>;
    /// Reads an execution, with its tasks.
    fn get(&self, id: &ExecutionId) -> Later<'_, Result<WorkflowDocument, WorkflowsError>>;
    /// Completes a waiting task of the execution with an output.
    fn signal(&self, id: &ExecutionId, task: &str, output: Value) -> Later<'_, Result<(), WorkflowsError>>;
    /// Ends an execution, undoing what has to be undone.
    fn terminate(&self, id: &ExecutionId, reason: &str) -> Later<'_, Result<(), WorkflowsError>>;
}
