//! What the handle asks of the engine's task.

use std::sync::Arc;
use std::time::Duration;

use ballet_core::{ExecutionId, Started, TraceContext, WorkflowName, WorkflowsError};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::decide::Update;
use crate::plan::Plan;
use crate::state::Execution;

/// Where an answer goes.
pub(crate) type Answer<T> = oneshot::Sender<T>;

pub(crate) enum Command {
    Start(Box<Wish>, Answer<Result<Started, WorkflowsError>>),
    Act {
        id: ExecutionId,
        act: Act,
        answer: Answer<Result<Acted, WorkflowsError>>,
    },
    /// `None`: it is not in memory; look into the journal.
    Get {
        id: ExecutionId,
        answer: Answer<Option<(Box<Execution>, Arc<Plan>)>>,
    },
    Poll {
        poll: Poll,
        answer: Answer<Vec<Value>>,
    },
    /// Attempts that were handed to a poller who had gone.
    Release(Vec<(ExecutionId, String)>),
    Queues(Answer<Vec<QueueState>>),
    Shutdown {
        grace: Duration,
        answer: Answer<()>,
    },
}

/// A wish for an execution, with all that Conductor's clients may say.
pub(crate) struct Wish {
    pub(crate) name: WorkflowName,
    pub(crate) version: Option<u32>,
    pub(crate) definition: Option<Value>,
    pub(crate) id: Option<ExecutionId>,
    pub(crate) input: Value,
    pub(crate) correlation_id: Option<String>,
    pub(crate) created_by: Option<String>,
    pub(crate) priority: u8,
    pub(crate) trace: Option<TraceContext>,
}

/// Which attempt is meant.
pub(crate) enum Target {
    /// By its id.
    Id(String),
    /// The open one of this reference name.
    Reference(String),
}

pub(crate) enum Act {
    Update { target: Target, update: Update },
    Terminate { reason: String },
    Pause,
    Resume,
    Retry,
    Restart { input: Option<Value> },
    Settle { step: Option<String>, set_aside: Option<String> },
    Remove,
}

/// What an act came to.
#[derive(Debug, Default)]
pub(crate) struct Acted {
    /// It had an effect.
    pub(crate) applied: bool,
    /// The attempt that was meant.
    pub(crate) task: Option<String>,
    /// The queue that it came from.
    pub(crate) queue: Option<String>,
}

pub(crate) struct Poll {
    pub(crate) queue: String,
    pub(crate) count: usize,
    pub(crate) worker: String,
    pub(crate) wait: Duration,
}

/// A queue as others see it.
#[derive(Clone, Debug)]
pub struct QueueState {
    /// Its name: a task type, or `domain:type`.
    pub name: String,
    /// Tasks that wait.
    pub waiting: usize,
    /// Tasks with workers.
    pub out: usize,
    /// Who polled last: worker, and when in milliseconds since 1970.
    pub last_poll: Option<(String, i64)>,
}
