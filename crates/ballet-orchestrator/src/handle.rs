//! Speaks to the engine's task, and reads the journal where the engine has nothing in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ballet_core::{
    Clock, ExecutionId, Later, Start, Started, Timestamp, WorkflowDocument, WorkflowName, Workflows, WorkflowsError,
};
use ballet_store::{Batch, Journal, Op, StoreError, row};
use ballet_telemetry::{Sink, names};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::catalog::{Catalog, Existing};
use crate::command::{Act, Acted, Answer, Command, Poll, QueueState, Target, Wish};
use crate::decide::{Update, Verdict};
use crate::engine::Counts;
use crate::plan::Plan;
use crate::search::{self, Found, Search};
use crate::state::Execution;
use crate::tables::{self, LOGS};
use crate::{document, manifest};

/// Log lines of one task that are kept; later ones are dropped.
const MAX_LOG_LINES: usize = 1_000;
/// Longest log line, in bytes; the rest is cut.
const MAX_LOG_LINE: usize = 4_096;
/// Longest wait of a poll.
pub const MAX_POLL_WAIT: Duration = Duration::from_secs(60);

/// Speaks to a running engine. Cheap to clone; the engine stops when the last one is dropped.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    journal: Arc<dyn Journal>,
    clock: Arc<dyn Clock>,
    catalog: Arc<Catalog>,
    counts: Arc<Counts>,
    task: AbortHandle,
}

/// What a worker says of a task, as [`Handle::update`] takes it.
#[derive(Clone, Debug)]
pub struct TaskUpdate {
    /// The verdict.
    pub verdict: Verdict,
    /// The output; none keeps what is there.
    pub output: Option<Value>,
    /// Adds to the output instead of replacing it.
    pub merge: bool,
    /// Why it did not complete.
    pub reason: Option<String>,
    /// With [`Verdict::InProgress`]: offered again after this long.
    pub callback_after: Duration,
    /// Who says it.
    pub worker: Option<String>,
    /// Lines to keep.
    pub logs: Vec<String>,
}

impl TaskUpdate {
    /// A verdict and an output.
    pub fn new(verdict: Verdict, output: Option<Value>) -> Self {
        let (reason, worker) = (None, None);
        Self { verdict, output, merge: false, reason, callback_after: Duration::ZERO, worker, logs: vec![] }
    }

    fn split(self) -> (Update, Vec<String>) {
        let Self { verdict, output, merge, reason, callback_after, worker, logs } = self;
        (Update { verdict, output, merge, reason, callback_after, worker }, logs)
    }
}

impl Handle {
    pub(crate) fn new(
        commands: mpsc::Sender<Command>,
        journal: Arc<dyn Journal>,
        clock: Arc<dyn Clock>,
        catalog: Arc<Catalog>,
        counts: Arc<Counts>,
        task: AbortHandle,
    ) -> Self {
        Self { commands, journal, clock, catalog, counts, task }
    }

    /// Registers a workflow of the manifest; answers the version that new executions get. The same content keeps its
    /// version, an edit makes the next one, running executions keep theirs.
    ///
    /// # Errors
    /// `Invalid` if the definition cannot be compiled, `Unavailable` if it cannot be written.
    pub async fn register(&self, workflow: &ballet_manifest::Workflow) -> Result<u32, WorkflowsError> {
        self.register_definition(&manifest::definition(workflow), Existing::NextVersion).await
    }

    /// Registers a Conductor WorkflowDef; answers its version.
    ///
    /// # Errors
    /// `Invalid`, `Conflict` if the version exists and may not be replaced, `Unavailable`.
    pub async fn register_definition(&self, definition: &Value, existing: Existing) -> Result<u32, WorkflowsError> {
        Ok(self.catalog.register(definition, existing).await?)
    }

    /// Asks for tasks of a type; waits for the first one as long as `wait`, at most a minute. A task that nobody could
    /// be given any more goes back to its queue. Each is Conductor's Task document.
    ///
    /// # Errors
    /// `Unavailable` when the engine stops.
    pub async fn poll(
        &self,
        queue: &str,
        worker: &str,
        count: usize,
        wait: Duration,
    ) -> Result<Vec<Value>, WorkflowsError> {
        let (answer, reply) = oneshot::channel();
        let (queue, worker) = (short(queue), short(worker));
        let poll = Poll { queue, worker, count, wait: wait.min(MAX_POLL_WAIT) };
        let mut reply = Undelivered { reply, commands: self.commands.clone() };
        self.send(Command::Poll { poll, answer }).await?;
        (&mut reply.reply).await.map_err(|_| stopped())
    }

    /// Takes a worker's word for the task with this id. `false` if it changed nothing: the task had ended, or another
    /// attempt has taken its place.
    ///
    /// # Errors
    /// `UnknownExecution`, `Unavailable`.
    pub async fn update(&self, id: &ExecutionId, task: &str, update: TaskUpdate) -> Result<bool, WorkflowsError> {
        Ok(self.update_task(id, task, update).await?.applied)
    }

    pub(crate) async fn update_task(
        &self,
        id: &ExecutionId,
        task: &str,
        update: TaskUpdate,
    ) -> Result<Acted, WorkflowsError> {
        let (update, logs) = update.split();
        self.log(task, logs).await?;
        self.act(id, Act::Update { target: Target::Id(task.to_owned()), update }).await
    }

    pub(crate) async fn history(&self, id: &ExecutionId) -> Result<Vec<(Timestamp, Value)>, WorkflowsError> {
        tables::history(&*self.journal, id).await.map_err(unavailable)
    }

    /// The same for the open task of this reference name; answers its id, or none if no such task is open.
    ///
    /// # Errors
    /// `UnknownExecution`, `Unavailable`.
    pub async fn update_reference(
        &self,
        id: &ExecutionId,
        reference: &str,
        update: TaskUpdate,
    ) -> Result<Option<String>, WorkflowsError> {
        let (update, _) = update.split();
        let acted = self.act(id, Act::Update { target: Target::Reference(reference.to_owned()), update }).await?;
        Ok(acted.task)
    }

    /// Begins nothing new in an execution.
    ///
    /// # Errors
    /// `UnknownExecution`; `Conflict` if it does not go forward.
    pub async fn pause(&self, id: &ExecutionId) -> Result<(), WorkflowsError> {
        self.act(id, Act::Pause).await.map(drop)
    }

    /// Goes on with a paused execution.
    ///
    /// # Errors
    /// `UnknownExecution`; `Conflict` if it is not paused.
    pub async fn resume(&self, id: &ExecutionId) -> Result<(), WorkflowsError> {
        self.act(id, Act::Resume).await.map(drop)
    }

    /// Tries the failed step of an ended execution again, with new keys.
    ///
    /// # Errors
    /// `UnknownExecution`; `Conflict` if it runs, completed, or something of it was undone.
    pub async fn retry(&self, id: &ExecutionId) -> Result<(), WorkflowsError> {
        self.act(id, Act::Retry).await.map(drop)
    }

    /// Starts an ended execution over, with another input if given.
    ///
    /// # Errors
    /// As of [`Handle::retry`].
    pub async fn restart(&self, id: &ExecutionId, input: Option<Value>) -> Result<(), WorkflowsError> {
        self.act(id, Act::Restart { input }).await.map(drop)
    }

    /// Settles stuck undos (of one step, or all): tries them again, or sets them aside for a reason.
    ///
    /// # Errors
    /// `UnknownExecution`; `Conflict` if none is stuck.
    pub async fn settle(
        &self,
        id: &ExecutionId,
        step: Option<String>,
        set_aside: Option<String>,
    ) -> Result<(), WorkflowsError> {
        self.act(id, Act::Settle { step, set_aside }).await.map(drop)
    }

    /// Removes an ended execution. Its id stays known: starting it again has no effect.
    ///
    /// # Errors
    /// `UnknownExecution`; `Conflict` until it has ended.
    pub async fn remove(&self, id: &ExecutionId) -> Result<(), WorkflowsError> {
        self.act(id, Act::Remove).await.map(drop)
    }

    /// Finds executions, the newest first unless asked otherwise.
    ///
    /// # Errors
    /// `Invalid` if the query cannot be read, `Unavailable`.
    pub async fn search(&self, search: &Search) -> Result<Found, WorkflowsError> {
        search::run(&*self.journal, search).await
    }

    /// The queues, by name.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn queues(&self) -> Result<Vec<QueueState>, WorkflowsError> {
        self.ask(Command::Queues).await
    }

    /// Tells `/metrics` how many executions are under way, and how many wait for an operator.
    pub fn tell(&self, sink: &mut Sink) {
        let count = |of: &AtomicUsize| of.load(Ordering::Relaxed) as f64;
        sink.sample(&names::WORKFLOWS_RUNNING, &[], count(&self.counts.running));
        sink.sample(&names::WORKFLOWS_STUCK, &[], count(&self.counts.stuck));
    }

    /// Stops: calls under way get `grace` to end, what is decided is written, the shards are given back.
    pub async fn shutdown(&self, grace: Duration) {
        let (answer, done) = oneshot::channel();
        if self.commands.send(Command::Shutdown { grace, answer }).await.is_ok() {
            let _ = done.await;
        }
    }

    /// Ends the engine's task where it stands, as `kill -9` would. For tests.
    #[doc(hidden)]
    pub fn crash(&self) {
        self.task.abort();
    }

    pub(crate) async fn start_wish(&self, wish: Wish) -> Result<Started, WorkflowsError> {
        self.ask(|answer| Command::Start(Box::new(wish), answer)).await?
    }

    pub(crate) async fn document(&self, id: &ExecutionId, tasks: bool) -> Result<WorkflowDocument, WorkflowsError> {
        let (x, plan) = self.execution(id).await?;
        Ok(document::workflow(&plan, &x, tasks))
    }

    pub(crate) async fn execution(&self, id: &ExecutionId) -> Result<(Box<Execution>, Arc<Plan>), WorkflowsError> {
        if let Some(found) = self.ask(|answer| Command::Get { id: id.clone(), answer }).await? {
            return Ok(found);
        }
        let found = tables::load(&*self.journal, id).await.map_err(unavailable)?;
        let (x, _) = found.ok_or_else(|| WorkflowsError::UnknownExecution(id.clone()))?;
        let plan = self.catalog.plan_of(&x)?;
        Ok((Box::new(x), plan))
    }

    /// The execution that a task belongs to.
    pub(crate) async fn execution_of(&self, task: &str) -> Result<Option<ExecutionId>, WorkflowsError> {
        tables::find_task(&*self.journal, task).await.map_err(unavailable)
    }

    pub(crate) async fn log(&self, task: &str, lines: Vec<String>) -> Result<(), WorkflowsError> {
        if lines.is_empty() || task.is_empty() || task.len() > 200 {
            return Ok(());
        }
        let there = self.logs(task).await?.len();
        let now = self.clock.now().0;
        let ops = lines.into_iter().take(MAX_LOG_LINES.saturating_sub(there)).enumerate().map(|(i, mut line)| {
            while line.len() > MAX_LOG_LINE {
                line.pop();
            }
            let seq = i64::try_from(there + i).unwrap_or(i64::MAX);
            Op::Put(&LOGS, row![task, seq, now, line.replace('\0', " ")])
        });
        self.journal.commit(Batch::of(ops.collect())).await.map_err(unavailable)
    }

    pub(crate) async fn logs(&self, task: &str) -> Result<Vec<(Timestamp, String)>, WorkflowsError> {
        tables::logs(&*self.journal, task).await.map_err(unavailable)
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(crate) async fn act(&self, id: &ExecutionId, act: Act) -> Result<Acted, WorkflowsError> {
        self.ask(|answer| Command::Act { id: id.clone(), act, answer }).await?
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, WorkflowsError> {
        let (answer, reply) = oneshot::channel();
        self.send(command(answer)).await?;
        reply.await.map_err(|_| WorkflowsError::Unknown("the engine began anew before it answered".into()))
    }

    async fn send(&self, command: Command) -> Result<(), WorkflowsError> {
        self.commands.send(command).await.map_err(|_| stopped())
    }
}

impl Workflows for Handle {
    fn start(&self, start: Start) -> Later<'_, Result<Started, WorkflowsError>> {
        let Start { name, version, id, input, correlation_id, trace } = start;
        let (definition, created_by, priority) = (None, None, 0);
        let wish = Wish { name, version, definition, id, input, correlation_id, created_by, priority, trace };
        Box::pin(self.start_wish(wish))
    }

    fn get(&self, id: &ExecutionId) -> Later<'_, Result<WorkflowDocument, WorkflowsError>> {
        let id = id.clone();
        Box::pin(async move { self.document(&id, true).await })
    }

    fn signal(&self, id: &ExecutionId, task: &str, output: Value) -> Later<'_, Result<(), WorkflowsError>> {
        let (id, task) = (id.clone(), task.to_owned());
        Box::pin(async move {
            let update = TaskUpdate::new(Verdict::Completed, Some(output));
            match self.update_reference(&id, &task, update).await? {
                Some(_) => Ok(()),
                None => Err(WorkflowsError::Conflict(format!("execution `{id}` has no open task `{task}`"))),
            }
        })
    }

    fn terminate(&self, id: &ExecutionId, reason: &str) -> Later<'_, Result<(), WorkflowsError>> {
        let (id, reason) = (id.clone(), reason.to_owned());
        Box::pin(async move { self.act(&id, Act::Terminate { reason }).await.map(drop) })
    }
}

/// A poll's answer. When the poller goes away between hand-out and delivery, the tasks go back.
struct Undelivered {
    reply: oneshot::Receiver<Vec<Value>>,
    commands: mpsc::Sender<Command>,
}

impl Drop for Undelivered {
    fn drop(&mut self) {
        self.reply.close();
        if let Ok(tasks) = self.reply.try_recv() {
            let text = |task: &Value, key: &str| task[key].as_str().unwrap_or_default().to_owned();
            let names = tasks.iter().filter_map(|task| {
                Some((text(task, "workflowInstanceId").parse::<ExecutionId>().ok()?, text(task, "taskId")))
            });
            let names: Vec<_> = names.collect();
            if !names.is_empty() {
                // With a full queue their response timeout brings them back.
                let _ = self.commands.try_send(Command::Release(names));
            }
        }
    }
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

fn stopped() -> WorkflowsError {
    WorkflowsError::Unavailable("the engine has stopped".into())
}

pub(crate) fn unavailable(error: StoreError) -> WorkflowsError {
    WorkflowsError::Unavailable(error.to_string())
}

/// What a name in a path must be.
pub(crate) fn name(text: &str) -> Result<WorkflowName, WorkflowsError> {
    text.parse().map_err(|e: ballet_core::NameError| WorkflowsError::Invalid(e.to_string()))
}
