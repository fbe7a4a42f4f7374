//! The task that owns all live executions: one writer, many commits under way.
//!
//! ```text
//! Handle ──Command──▶ ┌────────────┐ ──Batch──▶ Journal           (an execution has at most one commit under way;
//! call   ──outcome──▶ │ this task  │ ◀─done────                    what else happens to it waits in its slot)
//! timers ──due──────▶ └────────────┘ ──after the commit──▶ replies, calls, hand-outs
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use ballet_core::{
    Chain, Clock, ExecutionId, ExecutionStatus, Started, SystemClock, Timestamp, TraceContext, WorkflowsError,
};
use ballet_proxy::Upstreams;
use ballet_store::{Batch, Epoch, Fence, Journal, Op, Shard, StoreError, row};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::calls::{Calls, request};
use crate::catalog::Catalog;
use crate::command::{Act, Acted, Answer, Command, Poll, QueueState, Target, Wish};
use crate::decide::{Effects, Event, decide, next_due};
use crate::document;
use crate::handle::Handle;
use crate::outcome::classify;
use crate::plan::{Plan, Work};
use crate::queue::{Offer, Queue};
use crate::state::{Execution, Now, Out, Phase, Role};
use crate::tables::{self, CLOCK, SHARDS, shard_of};

/// Commands that wait for the engine's task; senders wait beyond it.
const COMMANDS: usize = 4_096;
/// Commands that wait for one execution's commit; more are refused.
const WAITING_PER_EXECUTION: usize = 1_000;
/// Most tasks in one answer to a poll.
const MAX_POLL: usize = 1_000;
/// Polls that wait at once, over all queues; more are answered empty at once.
const MAX_PARKED: usize = 10_000;
/// Longest input of an execution, in bytes of JSON: 1 MiB.
const MAX_INPUT: usize = 1 << 20;
/// How often engine time is written while something is live: what a crash may add to a timeout.
const CLOCK_EVERY: u64 = 10_000;
/// Rest before an execution whose commit failed is read again.
const RELOAD_AFTER: Duration = Duration::from_secs(1);

/// What an engine needs.
pub struct Config {
    /// Where executions are kept.
    pub journal: Arc<dyn Journal>,
    /// Calls the services of HTTP steps. Its caller name is `orchestrator`.
    pub upstreams: Upstreams,
    /// Stamps records. Default: the machine's clock.
    pub clock: Arc<dyn Clock>,
    /// Feeds execution ids and traces.
    pub seed: u64,
    /// HTTP steps under way at once; more wait their turn. Default: 256.
    pub calls: usize,
    /// Executions that have not ended, all of them in memory; more are refused. Default: 100,000.
    pub live: usize,
    /// How long the shards stay ours without a renewal, which comes three times as often. A journal that one process
    /// alone uses may have hours. Default: 15 s.
    pub lease: Duration,
}

impl Config {
    /// Defaults for all that has one.
    pub fn new(journal: Arc<dyn Journal>, upstreams: Upstreams, seed: u64) -> Self {
        Self {
            journal,
            upstreams,
            clock: Arc::new(SystemClock),
            seed,
            calls: 256,
            live: 100_000,
            lease: Duration::from_secs(15),
        }
    }
}

/// Runs workflows; spoken to by its [`Handle`].
pub struct Engine {
    journal: Arc<dyn Journal>,
    upstreams: Upstreams,
    clock: Arc<dyn Clock>,
    catalog: Arc<Catalog>,
    rng: StdRng,
    max_calls: usize,
    max_live: usize,
    lease: Duration,
    owner: String,
    commands: mpsc::Receiver<Command>,

    epochs: HashMap<Shard, Epoch>,
    /// By our own clock; before it, nobody else can own the shards.
    lease_ends: Instant,
    /// Engine time at `since`.
    base: u64,
    since: Instant,

    slots: HashMap<ExecutionId, Slot>,
    live: usize,
    counts: Arc<Counts>,
    timers: BTreeSet<(u64, Timer)>,
    queues: HashMap<String, Queue>,
    parked: HashMap<u64, Parked>,
    tickets: u64,

    commits: FuturesUnordered<Later<Committed>>,
    loads: FuturesUnordered<Later<Loaded>>,
    upkeep: FuturesUnordered<Later<Upkeep>>,
    calls: Calls,
    pending_calls: VecDeque<(ExecutionId, usize)>,
    draining: Option<(Instant, Vec<Answer<()>>)>,
}

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Clock,
    Renew,
    Poll(u64),
    Execution(ExecutionId),
}

struct Slot {
    ready: Option<Ready>,
    /// A commit is under way.
    busy: bool,
    waiting: VecDeque<Pending>,
    timer: Option<u64>,
    /// Counted among those that wait for an operator.
    stuck: bool,
}

/// What `/metrics` is told of.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Executions in memory.
    pub(crate) running: AtomicUsize,
    /// Of these, executions with a stuck undo.
    pub(crate) stuck: AtomicUsize,
}

struct Ready {
    x: Box<Execution>,
    plan: Arc<Plan>,
    shard: Shard,
}

enum Pending {
    Event(Event),
    Act(Act, Answer<Result<Acted, WorkflowsError>>),
    Get(Answer<Option<(Box<Execution>, Arc<Plan>)>>),
    Start(Box<Wish>, Answer<Result<Started, WorkflowsError>>),
}

struct Parked {
    poll: Poll,
    answer: Answer<Vec<Value>>,
}

struct Committed {
    id: ExecutionId,
    result: Result<(), StoreError>,
    fx: Effects,
    then: Then,
}

/// Who is told of a commit.
enum Then {
    Nobody,
    Started(Answer<Result<Started, WorkflowsError>>),
    Acted(Answer<Result<Acted, WorkflowsError>>, Acted),
    Removed(Answer<Result<Acted, WorkflowsError>>),
}

struct Loaded {
    id: ExecutionId,
    result: Result<Option<(Execution, Shard)>, StoreError>,
    recover: bool,
}

enum Upkeep {
    Clock(Result<(), StoreError>),
    Renewed { asked: Instant, result: Result<Vec<(Shard, Epoch)>, StoreError> },
}

/// Why the loop stopped.
enum Stop {
    /// Somebody else may own the shards, or a commit's outcome is unknown: claim and read again.
    Lost(StoreError),
    /// It was asked to, or nobody is left who could ask for anything.
    Shutdown,
}

impl Engine {
    /// Opens the tables, claims all shards (waiting for another owner's lease to end), reads what has not ended, and
    /// goes on with it in a task of its own.
    ///
    /// # Errors
    /// What the journal says.
    pub async fn start(config: Config) -> Result<Handle, StoreError> {
        config.journal.open(tables::ALL).await?;
        let catalog = Arc::new(Catalog::load(config.journal.clone(), config.clock.clone()).await?);
        let (sender, commands) = mpsc::channel(COMMANDS);
        let mut rng = StdRng::seed_from_u64(config.seed);
        let now = Instant::now();
        let mut owner = [0; 16];
        rng.fill_bytes(&mut owner);
        let stamp = u64::try_from(config.clock.now().0).unwrap_or_default();
        let counts = Arc::new(Counts::default());
        let mut engine = Self {
            // The stamp and the process tell owners apart even when seeds are equal.
            owner: format!("orchestrator-{stamp}-{}-{}", std::process::id(), uuid::Uuid::from_bytes(owner).simple()),
            journal: config.journal.clone(),
            upstreams: config.upstreams,
            clock: config.clock.clone(),
            catalog: catalog.clone(),
            rng,
            max_calls: config.calls.max(1),
            max_live: config.live,
            lease: config.lease.max(Duration::from_secs(1)),
            commands,
            epochs: HashMap::new(),
            lease_ends: now,
            base: 0,
            since: now,
            slots: HashMap::new(),
            live: 0,
            counts: counts.clone(),
            timers: BTreeSet::new(),
            queues: HashMap::new(),
            parked: HashMap::new(),
            tickets: 0,
            commits: FuturesUnordered::new(),
            loads: FuturesUnordered::new(),
            upkeep: FuturesUnordered::new(),
            calls: Calls::default(),
            pending_calls: VecDeque::new(),
            draining: None,
        };
        engine.claim().await?;
        engine.recover().await?;
        let task = tokio::spawn(engine.run());
        Ok(Handle::new(sender, config.journal, config.clock, catalog, counts, task.abort_handle()))
    }

    async fn run(mut self) {
        loop {
            let lost = match self.serve().await {
                Stop::Shutdown => break,
                Stop::Lost(error) => error,
            };
            warn!(error = %Chain(&lost), "the workflow shards may have another owner: claiming and reading them again");
            self.forget();
            let mut rest = Duration::from_millis(100);
            while let Err(error) = self.again().await {
                error!(error = %Chain(&error), "the workflow journal cannot be read");
                tokio::time::sleep(rest).await;
                rest = (rest * 2).min(Duration::from_secs(10));
            }
        }
        self.calls.abort_all();
        let shards: Vec<Shard> = (0..SHARDS).collect();
        if let Err(error) = self.journal.claim(&shards, &self.owner, Duration::ZERO).await {
            warn!(error = %Chain(&error), "the workflow shards could not be given back");
        }
        for answer in self.draining.take().map(|(_, answers)| answers).unwrap_or_default() {
            let _ = answer.send(());
        }
        info!("the orchestrator has stopped");
    }

    async fn again(&mut self) -> Result<(), StoreError> {
        self.claim().await?;
        self.recover().await
    }

    /// Takes all shards, waiting for leases of others to end.
    async fn claim(&mut self) -> Result<(), StoreError> {
        let shards: Vec<Shard> = (0..SHARDS).collect();
        let mut told = false;
        loop {
            let asked = Instant::now();
            let held = self.journal.claim(&shards, &self.owner, self.lease).await?;
            if held.len() == shards.len() {
                self.epochs = held.into_iter().collect();
                self.lease_ends = asked + self.lease;
                return Ok(());
            }
            if !told {
                info!("waiting for another orchestrator's lease to end");
                told = true;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn recover(&mut self) -> Result<(), StoreError> {
        let open = tables::load_open(&*self.journal).await?;
        let clock = tables::clock(&*self.journal).await?.into_values().max().unwrap_or_default();
        self.base = open.iter().map(|(x, _)| x.seen).max().unwrap_or_default().max(clock).max(self.run_ms());
        self.since = Instant::now();
        let now = self.now();
        self.timers.insert((now.run + CLOCK_EVERY, Timer::Clock));
        self.timers.insert((now.run + ms(self.lease) / 3, Timer::Renew));
        if !open.is_empty() {
            info!(executions = open.len(), "going on with workflows that have not ended");
        }
        for (x, shard) in open {
            self.adopt(x, shard);
        }
        Ok(())
    }

    /// Takes an execution that was read, and goes on with it.
    fn adopt(&mut self, x: Execution, shard: Shard) {
        let id = x.id.clone();
        let plan = match self.catalog.plan_of(&x) {
            Ok(plan) => plan,
            Err(error) => {
                error!(execution = %id, %error, "an execution cannot go on");
                self.slots.remove(&id);
                return;
            }
        };
        let open = x.phase != Phase::Ended;
        let slot = self.slots.entry(id.clone()).or_insert_with(Slot::empty);
        if slot.ready.is_none() {
            self.live += 1;
        }
        slot.ready = Some(Ready { x: Box::new(x), plan, shard });
        slot.busy = false;
        if open {
            self.event(&id, Event::Recover, Then::Nobody);
        }
        self.drain(&id);
    }

    /// Drops all that a new owner would read anew. Whoever waits is told that the answer is unknown.
    fn forget(&mut self) {
        self.calls = Calls::default();
        self.pending_calls.clear();
        self.commits = FuturesUnordered::new();
        self.loads = FuturesUnordered::new();
        self.upkeep = FuturesUnordered::new();
        self.slots.clear();
        self.live = 0;
        self.counts.running.store(0, Relaxed);
        self.counts.stuck.store(0, Relaxed);
        self.queues.clear();
        let polls: BTreeSet<_> = self.timers.iter().filter(|(_, t)| matches!(t, Timer::Poll(_))).cloned().collect();
        self.timers = polls;
        // Parked polls stay: their tasks will be offered again.
        for (ticket, parked) in &self.parked {
            self.queues.entry(parked.poll.queue.clone()).or_default().parked.push_back(*ticket);
        }
    }

    async fn serve(&mut self) -> Stop {
        loop {
            if let Some((until, _)) = &self.draining
                && ((self.calls.len() == 0 && self.commits.is_empty()) || *until <= Instant::now())
                && self.commits.is_empty()
            {
                return Stop::Shutdown;
            }
            if Instant::now() >= self.lease_ends {
                return Stop::Lost(StoreError::Unknown("the lease was not renewed in time".into()));
            }
            let next = self.timers.first().map(|(at, _)| *at).unwrap_or(u64::MAX);
            if next <= self.run_ms() {
                self.due();
            }
            let next = self.timers.first().map(|(at, _)| *at).unwrap_or(u64::MAX);
            let wake = self.since + Duration::from_millis(next.saturating_sub(self.base).min(3_600_000));
            let mut wake = wake.min(self.lease_ends);
            if let Some((until, _)) = &self.draining {
                wake = wake.min((*until).max(Instant::now() + Duration::from_millis(1)));
            }
            tokio::select! {
                biased;
                Some(done) = self.commits.next(), if !self.commits.is_empty() => {
                    if let Err(lost) = self.committed(done) {
                        return Stop::Lost(lost);
                    }
                }
                Some(done) = self.upkeep.next(), if !self.upkeep.is_empty() => {
                    if let Err(lost) = self.kept_up(done) {
                        return Stop::Lost(lost);
                    }
                }
                Some((id, task, outcome)) = self.calls.next(), if self.calls.len() > 0 => {
                    self.submit(id, Pending::Event(Event::Answered { task, outcome }));
                    self.start_calls();
                }
                Some(done) = self.loads.next(), if !self.loads.is_empty() => self.loaded(done),
                command = self.commands.recv(), if self.draining.is_none() => match command {
                    Some(command) => self.command(command),
                    None => self.draining = Some((Instant::now(), vec![])),
                },
                () = tokio::time::sleep_until(wake) => self.due(),
            }
        }
    }

    // --- commands --------------------------------------------------------------------------------------------------

    fn command(&mut self, command: Command) {
        match command {
            Command::Start(wish, answer) => self.start_execution(wish, answer),
            Command::Act { id, act, answer } => self.submit(id, Pending::Act(act, answer)),
            Command::Get { id, answer } => match self.slots.get(&id) {
                Some(_) => self.submit(id, Pending::Get(answer)),
                None => drop(answer.send(None)),
            },
            Command::Poll { poll, answer } => self.poll(poll, answer),
            Command::Release(tasks) => {
                for (id, task) in tasks {
                    let ready = self.slots.get(&id).and_then(|slot| slot.ready.as_ref());
                    if let Some(task) = ready.and_then(|r| r.x.task_index(&task)) {
                        self.submit(id, Pending::Event(Event::Released { task }));
                    }
                }
            }
            Command::Queues(answer) => drop(answer.send(self.queue_states())),
            Command::Shutdown { grace, answer } => {
                let until = Instant::now() + grace;
                self.draining.get_or_insert_with(|| (until, vec![])).1.push(answer);
                self.commands.close();
                for (_, parked) in std::mem::take(&mut self.parked) {
                    let _ = parked.answer.send(vec![]);
                }
            }
        }
    }

    fn start_execution(&mut self, wish: Box<Wish>, answer: Answer<Result<Started, WorkflowsError>>) {
        if let Some(id) = &wish.id
            && let Some(slot) = self.slots.get_mut(id)
        {
            // Known, or about to be: whatever its commit says holds for this one too.
            if slot.busy || slot.ready.is_none() {
                let id = id.clone();
                return self.submit(id, Pending::Start(wish, answer));
            }
            let _ = answer.send(Ok(Started { id: id.clone(), new: false }));
            return;
        }
        match self.new_execution(&wish) {
            Err(error) => drop(answer.send(Err(error))),
            Ok((x, plan)) => {
                let (id, shard) = (x.id.clone(), shard_of(&x.id));
                let mut slot = Slot::empty();
                slot.ready = Some(Ready { x: Box::new(x), plan, shard });
                self.slots.insert(id.clone(), slot);
                self.live += 1;
                self.event(&id, Event::Start, Then::Started(answer));
            }
        }
    }

    fn new_execution(&mut self, wish: &Wish) -> Result<(Execution, Arc<Plan>), WorkflowsError> {
        if self.live >= self.max_live {
            let why = format!("{} executions have not ended, which is the limit", self.live);
            return Err(WorkflowsError::Unavailable(why));
        }
        let (chosen, inline) = match &wish.definition {
            Some(definition) => {
                let (chosen, definition) = self.catalog.inline(definition)?;
                (chosen, Some(definition))
            }
            None => (self.catalog.choose(&wish.name, wish.version)?, None),
        };
        let mut input = match &wish.input {
            Value::Null => Map::new(),
            Value::Object(map) => map.clone(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(WorkflowsError::Invalid("a workflow's input is a JSON object".into()));
            }
        };
        let size = serde_json::to_vec(&input).map_or(0, |json| json.len());
        if size > MAX_INPUT {
            return Err(WorkflowsError::Invalid(format!("the input has {size} bytes; {MAX_INPUT} are the limit")));
        }
        for (key, value) in &chosen.plan.input_template {
            input.entry(key.clone()).or_insert_with(|| value.clone());
        }
        if wish.correlation_id.as_ref().is_some_and(|id| id.len() > 200 || id.contains('\0')) {
            return Err(WorkflowsError::Invalid("a correlation id has at most 200 bytes".into()));
        }
        let now = self.clock.now();
        let id = match &wish.id {
            Some(id) => id.clone(),
            None => self.new_id(now)?,
        };
        let trace = wish.trace.unwrap_or_else(|| TraceContext::root(&mut self.rng));
        let steps = chosen.plan.steps.len();
        let x = Execution {
            id,
            name: chosen.plan.name.clone(),
            version: chosen.version,
            revision: chosen.revision,
            inline,
            task_defs: chosen.task_defs,
            status: ExecutionStatus::Running,
            phase: Phase::Forward,
            input: Value::Object(input),
            output: Value::Null,
            correlation_id: wish.correlation_id.clone(),
            created_by: wish.created_by.clone(),
            trace: trace.to_string(),
            priority: wish.priority,
            created: now,
            updated: now,
            ended: Timestamp(0),
            due: None,
            reopened: 0,
            paused: false,
            ending: None,
            steps: vec![None; steps],
            undos: vec![None; steps],
            failed: None,
            history: 0,
            repeats: None,
            seen: 0,
            tasks: vec![],
            dirty: BTreeSet::new(),
        };
        Ok((x, chosen.plan))
    }

    fn new_id(&mut self, now: Timestamp) -> Result<ExecutionId, WorkflowsError> {
        let mut random = [0; 10];
        self.rng.fill_bytes(&mut random);
        let at = u64::try_from(now.0).unwrap_or_default();
        let id = uuid::Builder::from_unix_timestamp_millis(at, &random).into_uuid().to_string();
        id.parse().map_err(|e: ballet_core::NameError| WorkflowsError::Invalid(e.to_string()))
    }

    // --- one execution ---------------------------------------------------------------------------------------------

    /// Does it now, after the commit under way, or after the execution was read.
    fn submit(&mut self, id: ExecutionId, pending: Pending) {
        match self.slots.get_mut(&id) {
            None => match pending {
                // Only what somebody waits for is worth a look into the journal.
                Pending::Event(_) => {}
                Pending::Act(..) | Pending::Get(_) | Pending::Start(..) => {
                    let mut slot = Slot::empty();
                    slot.waiting.push_back(pending);
                    self.slots.insert(id.clone(), slot);
                    self.load(id, false, Duration::ZERO);
                }
            },
            Some(slot) if slot.busy || slot.ready.is_none() => {
                if slot.waiting.len() >= WAITING_PER_EXECUTION && !matches!(pending, Pending::Event(_)) {
                    return pending.refuse(WorkflowsError::Unavailable("too much waits for this execution".into()));
                }
                slot.waiting.push_back(pending);
            }
            Some(_) => {
                self.apply(&id, pending);
                self.drain(&id);
            }
        }
    }

    fn drain(&mut self, id: &ExecutionId) {
        loop {
            let Some(slot) = self.slots.get_mut(id) else { return };
            if slot.busy || slot.ready.is_none() {
                return;
            }
            match slot.waiting.pop_front() {
                Some(pending) => self.apply(id, pending),
                None => break,
            }
        }
        let ended = self.slots.get(id).and_then(|s| s.ready.as_ref()).is_some_and(|r| r.x.phase == Phase::Ended);
        if ended {
            self.evict(id);
        }
    }

    fn evict(&mut self, id: &ExecutionId) {
        if let Some(slot) = self.slots.remove(id) {
            if let Some(at) = slot.timer {
                self.timers.remove(&(at, Timer::Execution(id.clone())));
            }
            if slot.ready.is_some() {
                self.live -= 1;
            }
            if slot.stuck {
                self.counts.stuck.fetch_sub(1, Relaxed);
            }
            self.counts.running.store(self.live, Relaxed);
            for pending in slot.waiting {
                self.submit(id.clone(), pending);
            }
        }
    }

    fn apply(&mut self, id: &ExecutionId, pending: Pending) {
        match pending {
            Pending::Event(event) => self.event(id, event, Then::Nobody),
            Pending::Start(_, answer) => drop(answer.send(Ok(Started { id: id.clone(), new: false }))),
            Pending::Get(answer) => {
                let found = self.slots.get(id).and_then(|slot| slot.ready.as_ref());
                let _ = answer.send(found.map(|ready| (ready.x.clone(), ready.plan.clone())));
            }
            Pending::Act(act, answer) => {
                let mut acted = Acted::default();
                let event = match act {
                    Act::Terminate { reason } => Event::Terminate { reason },
                    Act::Pause => Event::Pause,
                    Act::Resume => Event::Resume,
                    Act::Retry => Event::Retry,
                    Act::Restart { input } => Event::Restart { input },
                    Act::Settle { step, set_aside } => Event::Settle { step, set_aside },
                    Act::Remove => return self.remove(id, answer),
                    Act::Update { target, update } => {
                        let Some(ready) = self.slots.get(id).and_then(|slot| slot.ready.as_ref()) else { return };
                        let found = match target {
                            Target::Id(task) => ready.x.task_index(&task),
                            // Only what waits for somebody; a call under way has its own end.
                            Target::Reference(reference) => ready
                                .plan
                                .step(&reference)
                                .filter(|i| matches!(ready.plan.steps[*i].work, Work::Poll(_)))
                                .and_then(|i| ready.x.steps[i].as_ref().filter(|s| s.is_open()).map(|s| s.task)),
                        };
                        let Some(task) = found else {
                            let _ = answer.send(Ok(acted));
                            return;
                        };
                        acted.task = Some(ready.x.tasks[task].id.clone());
                        if let Role::Do(i) = ready.x.tasks[task].role
                            && let Work::Poll(polled) = &ready.plan.steps[i].work
                        {
                            acted.queue = Some(polled.queue.clone());
                        }
                        Event::Updated { task, update }
                    }
                };
                self.event(id, event, Then::Acted(answer, acted));
            }
        }
    }

    /// Decides, and writes or does what follows.
    fn event(&mut self, id: &ExecutionId, event: Event, then: Then) {
        let new = matches!(event, Event::Start);
        let now = self.now();
        let Some(slot) = self.slots.get_mut(id) else { return };
        let Some(ready) = slot.ready.as_mut() else { return };
        let fx = match decide(&ready.plan, &mut ready.x, event, now) {
            Ok(fx) => fx,
            Err(conflict) => return then.tell(id, Err(WorkflowsError::Conflict(conflict.0)), false),
        };
        if !fx.durable {
            then.tell(id, Ok(()), fx.applied);
            self.perform(id, fx);
            self.arm(id);
            return;
        }
        slot.busy = true;
        let ops = tables::writes(&ready.plan, &mut ready.x, ready.shard, &fx, new);
        let fence = Fence { shard: ready.shard, epoch: self.epochs.get(&ready.shard).copied().unwrap_or_default() };
        let reply = self.journal.commit(Batch::fenced(fence, ops));
        let id = id.clone();
        self.commits.push(Box::pin(async move { Committed { id, result: reply.await, fx, then } }));
    }

    fn committed(&mut self, done: Committed) -> Result<(), StoreError> {
        let Committed { id, result, fx, then } = done;
        match result {
            Ok(()) => {
                if let Some(slot) = self.slots.get_mut(&id) {
                    slot.busy = false;
                }
                let removed = matches!(then, Then::Removed(_));
                then.tell(&id, Ok(()), fx.applied);
                if removed {
                    self.evict(&id);
                    return Ok(());
                }
                self.perform(&id, fx);
                self.arm(&id);
                self.drain(&id);
            }
            // The id is known: that is no error, and what was begun here never happened.
            Err(StoreError::Exists(_)) if matches!(then, Then::Started(_)) => {
                if let Then::Started(answer) = then {
                    let _ = answer.send(Ok(Started { id: id.clone(), new: false }));
                }
                self.evict(&id);
            }
            Err(error @ (StoreError::Fenced(_) | StoreError::Unknown(_))) => {
                then.tell(&id, Err(WorkflowsError::Unknown(error.to_string())), false);
                return Err(error);
            }
            Err(
                error @ (StoreError::Exists(_) | StoreError::Invalid(_) | StoreError::Shape(_) | StoreError::Failed(_)),
            ) => {
                error!(execution = %id, error = %Chain(&error), "a step of a workflow could not be written");
                let started = matches!(then, Then::Started(_));
                then.tell(&id, Err(WorkflowsError::Unavailable(error.to_string())), false);
                if started {
                    self.evict(&id);
                } else if let Some(slot) = self.slots.get_mut(&id) {
                    // What was decided never happened: read what holds, and go on from there.
                    slot.ready = None;
                    slot.busy = false;
                    self.live -= 1;
                    self.load(id, true, RELOAD_AFTER);
                }
            }
        }
        Ok(())
    }

    /// What may happen once the decision is on disk.
    fn perform(&mut self, id: &ExecutionId, fx: Effects) {
        for text in &fx.alarms {
            error!(execution = %id, "{text}");
        }
        for task in fx.calls {
            self.pending_calls.push_back((id.clone(), task));
        }
        let mut touched = vec![];
        for task in fx.offers {
            let Some(ready) = self.slots.get(id).and_then(|slot| slot.ready.as_ref()) else { continue };
            let Some(offered) = ready.x.tasks.get(task) else { continue };
            if let Role::Do(i) = offered.role
                && let Work::Poll(polled) = &ready.plan.steps[i].work
            {
                let (name, offer) =
                    (polled.queue.clone(), Offer { execution: id.clone(), task, id: offered.id.clone() });
                let slots = &self.slots;
                let holds = |offer: &Offer| {
                    let ready = slots.get(&offer.execution).and_then(|slot| slot.ready.as_ref());
                    ready.is_some_and(|ready| on_offer(&ready.x, offer))
                };
                self.queues.entry(name.clone()).or_default().push(offer, holds);
                touched.push(name);
            }
        }
        self.start_calls();
        for name in touched {
            self.serve_queue(&name);
        }
    }

    fn arm(&mut self, id: &ExecutionId) {
        self.counts.running.store(self.live, Relaxed);
        let Some(slot) = self.slots.get_mut(id) else { return };
        let stuck = slot.ready.as_ref().is_some_and(|ready| ready.x.compensation_state() == Some("stuck"));
        match (std::mem::replace(&mut slot.stuck, stuck), stuck) {
            (false, true) => drop(self.counts.stuck.fetch_add(1, Relaxed)),
            (true, false) => drop(self.counts.stuck.fetch_sub(1, Relaxed)),
            (true, true) | (false, false) => {}
        }
        let due = slot.ready.as_ref().filter(|_| !slot.busy).and_then(|ready| next_due(&ready.plan, &ready.x));
        if slot.timer == due {
            return;
        }
        if let Some(at) = slot.timer.take() {
            self.timers.remove(&(at, Timer::Execution(id.clone())));
        }
        if let Some(at) = due {
            self.timers.insert((at, Timer::Execution(id.clone())));
        }
        slot.timer = due;
    }

    fn remove(&mut self, id: &ExecutionId, answer: Answer<Result<Acted, WorkflowsError>>) {
        let Some(slot) = self.slots.get_mut(id) else { return };
        let Some(ready) = slot.ready.as_ref() else { return };
        if ready.x.phase != Phase::Ended {
            let why = format!("execution `{id}` has not ended: terminate it first");
            let _ = answer.send(Err(WorkflowsError::Conflict(why)));
            return;
        }
        slot.busy = true;
        let fence = Fence { shard: ready.shard, epoch: self.epochs.get(&ready.shard).copied().unwrap_or_default() };
        let reply = self.journal.commit(Batch::fenced(fence, tables::tombstone(&ready.x, ready.shard)));
        let (id, fx) = (id.clone(), Effects { applied: true, ..Effects::default() });
        let then = Then::Removed(answer);
        self.commits.push(Box::pin(async move { Committed { id, result: reply.await, fx, then } }));
    }

    fn load(&mut self, id: ExecutionId, recover: bool, rest: Duration) {
        let journal = self.journal.clone();
        self.loads.push(Box::pin(async move {
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
            }
            let result = tables::load(&*journal, &id).await;
            Loaded { id, result, recover }
        }));
    }

    fn loaded(&mut self, done: Loaded) {
        let Loaded { id, result, recover } = done;
        let error = match result {
            Ok(Some((x, shard))) => return self.adopt(x, shard),
            Err(error) if recover => {
                error!(execution = %id, error = %Chain(&error), "an execution cannot be read");
                return self.load(id, true, RELOAD_AFTER);
            }
            Ok(None) => WorkflowsError::UnknownExecution(id.clone()),
            Err(error) => WorkflowsError::Unavailable(error.to_string()),
        };
        for pending in self.slots.remove(&id).map(|slot| slot.waiting).unwrap_or_default() {
            match pending {
                Pending::Start(wish, answer) => self.start_execution(wish, answer),
                other @ (Pending::Event(_) | Pending::Act(..) | Pending::Get(_)) => other.refuse(error.clone()),
            }
        }
    }

    // --- calls -----------------------------------------------------------------------------------------------------

    fn start_calls(&mut self) {
        // While draining, what is due waits for the next start.
        while self.draining.is_none() && self.calls.len() < self.max_calls {
            let Some((id, index)) = self.pending_calls.pop_front() else { return };
            let Some(ready) = self.slots.get(&id).and_then(|slot| slot.ready.as_ref()) else { continue };
            let (x, plan) = (&ready.x, &ready.plan);
            let Some(task) = x.tasks.get(index).filter(|t| t.out == Some(Out::Call)) else { continue };
            let (upstream, keep_headers) = match task.role {
                Role::Do(i) => match &plan.steps[i].work {
                    Work::Call(upstream) => (Some(upstream), !plan.steps[i].task["metadata"]["ballet"].is_object()),
                    Work::Poll(_) => (None, false),
                },
                Role::Undo(i) => (plan.steps[i].undo.as_ref().map(|undo| &undo.upstream), false),
                Role::Failed => (plan.failed.as_ref().map(|failed| &failed.upstream), false),
            };
            let Some(upstream) = upstream else { continue };
            let trace = TraceContext::parse(&x.trace).unwrap_or_else(|| TraceContext::root(&mut self.rng));
            let request = request(&task.input["http_request"], &x.key(plan, task.role), &trace.child(&mut self.rng));
            let upstream = self.upstreams.upstream(&upstream.service, upstream.policy.as_deref());
            self.calls.spawn(id, index, async move {
                let answer = match request {
                    Ok(request) => upstream.call(request).await,
                    Err(error) => Err(error),
                };
                classify(answer, keep_headers)
            });
        }
    }

    // --- polls -----------------------------------------------------------------------------------------------------

    fn poll(&mut self, mut poll: Poll, answer: Answer<Vec<Value>>) {
        poll.count = poll.count.clamp(1, MAX_POLL);
        self.tickets += 1;
        let (ticket, name) = (self.tickets, poll.queue.clone());
        let until = self.now().after(poll.wait);
        let at_once = poll.wait.is_zero() || self.parked.len() >= MAX_PARKED;
        let queue = self.queues.entry(name.clone()).or_default();
        queue.last_poll = Some((poll.worker.clone(), self.clock.now().0));
        queue.parked.push_back(ticket);
        self.parked.insert(ticket, Parked { poll, answer });
        self.serve_queue(&name);
        if self.parked.contains_key(&ticket) {
            if at_once {
                self.unpark(ticket);
            } else {
                self.timers.insert((until, Timer::Poll(ticket)));
            }
        }
    }

    fn unpark(&mut self, ticket: u64) {
        if let Some(parked) = self.parked.remove(&ticket) {
            if let Some(queue) = self.queues.get_mut(&parked.poll.queue) {
                queue.parked.retain(|t| *t != ticket);
            }
            let _ = parked.answer.send(vec![]);
        }
    }

    /// Gives what waits to who waits.
    fn serve_queue(&mut self, name: &str) {
        loop {
            let Some(queue) = self.queues.get_mut(name) else { return };
            if queue.is_empty() {
                return;
            }
            let Some(ticket) = queue.parked.pop_front() else { return };
            let Some(parked) = self.parked.remove(&ticket) else { continue };
            if parked.answer.is_closed() {
                continue;
            }
            let (mut tasks, mut names) = (vec![], vec![]);
            while tasks.len() < parked.poll.count {
                let Some(offer) = self.queues.get_mut(name).and_then(Queue::pop) else { break };
                let now = self.now();
                let ready = self.slots.get_mut(&offer.execution).and_then(|slot| slot.ready.as_mut());
                let Some(ready) = ready.filter(|ready| on_offer(&ready.x, &offer)) else { continue };
                let Offer { execution: id, task, id: task_id } = offer;
                let event = Event::Polled { task, worker: parked.poll.worker.clone() };
                // Not durable: a lease lives in memory, and pollCount rides along with the next commit.
                if !matches!(decide(&ready.plan, &mut ready.x, event, now), Ok(fx) if fx.applied) {
                    continue;
                }
                tasks.push(document::handed(&ready.plan, &ready.x, task));
                names.push((id.clone(), task_id));
                self.arm(&id);
            }
            if tasks.is_empty() {
                // All of it was stale: the poller waits on, in its place.
                self.parked.insert(ticket, parked);
                if let Some(queue) = self.queues.get_mut(name) {
                    queue.parked.push_front(ticket);
                }
                return;
            }
            if parked.answer.send(tasks).is_err() {
                for (id, task) in names {
                    let ready = self.slots.get(&id).and_then(|slot| slot.ready.as_ref());
                    if let Some(task) = ready.and_then(|r| r.x.task_index(&task)) {
                        self.submit(id, Pending::Event(Event::Released { task }));
                    }
                }
            }
        }
    }

    fn queue_states(&self) -> Vec<QueueState> {
        let mut out: HashMap<&str, (usize, usize)> = HashMap::new();
        for ready in self.slots.values().filter_map(|slot| slot.ready.as_ref()) {
            for (role, task) in ready.x.open_roles() {
                if let Role::Do(i) = role
                    && let Work::Poll(polled) = &ready.plan.steps[i].work
                {
                    let t = &ready.x.tasks[task];
                    let count = out.entry(&polled.queue).or_default();
                    count.0 += usize::from(t.queued);
                    count.1 += usize::from(matches!(t.out, Some(Out::Worker { .. })));
                }
            }
        }
        let mut names: BTreeSet<&str> = out.keys().copied().collect();
        names.extend(self.queues.keys().map(String::as_str));
        let state = |name: &str| {
            let (waiting, with_workers) = out.get(name).copied().unwrap_or_default();
            let last_poll = self.queues.get(name).and_then(|q| q.last_poll.clone());
            QueueState { name: name.to_owned(), waiting, out: with_workers, last_poll }
        };
        names.into_iter().map(state).collect()
    }

    // --- time ------------------------------------------------------------------------------------------------------

    fn due(&mut self) {
        let now = self.now();
        while let Some((at, _)) = self.timers.first()
            && *at <= now.run
        {
            let Some((_, timer)) = self.timers.pop_first() else { return };
            match timer {
                Timer::Poll(ticket) => self.unpark(ticket),
                Timer::Execution(id) => {
                    if let Some(slot) = self.slots.get_mut(&id) {
                        slot.timer = None;
                        if !slot.busy {
                            self.submit(id, Pending::Event(Event::Tick));
                        }
                    }
                }
                Timer::Clock => {
                    if self.live > 0 {
                        let run = i64::try_from(now.run).unwrap_or(i64::MAX);
                        let fence = Fence { shard: 0, epoch: self.epochs.get(&0).copied().unwrap_or_default() };
                        let reply = self.journal.commit(Batch::fenced(fence, vec![Op::Put(&CLOCK, row![0, run])]));
                        self.upkeep.push(Box::pin(async move { Upkeep::Clock(reply.await) }));
                    }
                    self.timers.insert((now.run + CLOCK_EVERY, Timer::Clock));
                }
                Timer::Renew => {
                    let shards: Vec<Shard> = (0..SHARDS).collect();
                    let asked = Instant::now();
                    let reply = self.journal.claim(&shards, &self.owner, self.lease);
                    self.upkeep.push(Box::pin(async move { Upkeep::Renewed { asked, result: reply.await } }));
                    self.timers.insert((now.run + ms(self.lease) / 3, Timer::Renew));
                }
            }
        }
    }

    fn kept_up(&mut self, done: Upkeep) -> Result<(), StoreError> {
        match done {
            Upkeep::Clock(Ok(())) => Ok(()),
            Upkeep::Clock(Err(error @ StoreError::Fenced(_))) => Err(error),
            Upkeep::Clock(Err(error)) => {
                warn!(error = %Chain(&error), "engine time could not be written");
                Ok(())
            }
            Upkeep::Renewed { asked, result: Ok(held) } => {
                if held.len() < self.epochs.len() || held.iter().any(|(s, e)| self.epochs.get(s) != Some(e)) {
                    return Err(StoreError::Fenced(0));
                }
                self.lease_ends = asked + self.lease;
                Ok(())
            }
            Upkeep::Renewed { result: Err(error), .. } => {
                warn!(error = %Chain(&error), "the lease of the workflow shards could not be renewed");
                Ok(())
            }
        }
    }

    fn run_ms(&self) -> u64 {
        self.base + ms(self.since.elapsed())
    }

    fn now(&self) -> Now {
        Now { stamp: self.clock.now(), run: self.run_ms() }
    }
}

impl Slot {
    fn empty() -> Self {
        Self { ready: None, busy: false, waiting: VecDeque::new(), timer: None, stuck: false }
    }
}

impl Pending {
    fn refuse(self, error: WorkflowsError) {
        match self {
            Self::Event(_) => {}
            Self::Act(_, answer) => drop(answer.send(Err(error))),
            Self::Get(answer) => drop(answer.send(None)),
            Self::Start(_, answer) => drop(answer.send(Err(error))),
        }
    }
}

impl Then {
    fn tell(self, id: &ExecutionId, result: Result<(), WorkflowsError>, applied: bool) {
        match self {
            Self::Nobody => {}
            Self::Started(answer) => drop(answer.send(result.map(|()| Started { id: id.clone(), new: true }))),
            Self::Acted(answer, acted) => drop(answer.send(result.map(|()| Acted { applied, ..acted }))),
            Self::Removed(answer) => drop(answer.send(result.map(|()| Acted { applied, ..Acted::default() }))),
        }
    }
}

/// Whether it is still this attempt that waits for a worker.
fn on_offer(x: &Execution, offer: &Offer) -> bool {
    x.tasks.get(offer.task).is_some_and(|task| task.queued && task.id == offer.id)
}

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
