//! One service: the task that prepares it, keeps its instances, and obeys.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ballet_core::{Chain, ServiceName};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::instance::{self, Instance, Word};
use crate::logs::{Logs, Part, Source};
use crate::machine::{Input, State};
use crate::ports::Ports;
use crate::process::{Exit, Order, Runner, find_program, inherited};
use crate::progress::{Progress, ProgressEvent};
use crate::spec::{Config, Observer, Runs, ServiceSpec, ServiceStatus, Snapshot};
use crate::state::StateDir;

/// Between two looks at the initializers' lock.
const LOCK_STEP: Duration = Duration::from_millis(100);
/// Words waiting for a service or an instance.
const QUEUE: usize = 16;

/// What all services share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) state: Arc<StateDir>,
    pub(crate) runner: Runner,
    pub(crate) logs: Logs,
    pub(crate) ports: Ports,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) snapshot: watch::Sender<Snapshot>,
    /// The outcome of the system's build; held while it runs.
    pub(crate) built: tokio::sync::Mutex<Option<Result<(), String>>>,
    pub(crate) builds: Semaphore,
}

impl Shared {
    /// Changes what is known of a service.
    pub(crate) fn change(&self, service: &ServiceName, change: impl FnOnce(&mut ServiceStatus)) {
        self.snapshot.send_if_modified(|snapshot| {
            let Some(status) = snapshot.services.get_mut(service) else { return false };
            let before = status.clone();
            change(status);
            *status != before
        });
    }
}

/// A word to a service; answered when it was taken in and the snapshot shows it.
pub(crate) enum Command {
    Start,
    Stop,
    Restart,
    Scale(u32),
    /// Stop, then end the task.
    Down,
}

pub(crate) type Ordered = (Command, oneshot::Sender<()>);

pub(crate) struct Service {
    shared: Arc<Shared>,
    spec: Arc<ServiceSpec>,
    count: u32,
    up: bool,
    down: bool,
    instances: BTreeMap<u32, mpsc::Sender<Word>>,
    retiring: BTreeSet<u32>,
    tasks: JoinSet<u32>,
    preparation: Option<Preparation>,
    /// Whether build and initializers are done, so that instances may start.
    prepared: bool,
    /// Whether a preparation was asked for before: then this is an operator who wants a failed build tried again.
    asked_before: bool,
    /// Instances still to be restarted; the first one is under way.
    rolling: VecDeque<u32>,
    roll_until: Option<Instant>,
}

/// Building and initializing under way; dropping it ends them.
struct Preparation {
    phases: mpsc::Receiver<Phase>,
    task: AbortHandle,
}

impl Drop for Preparation {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Phase {
    Building,
    Initializing,
    Done(Result<(), String>),
}

impl Service {
    pub(crate) fn new(shared: Arc<Shared>, spec: ServiceSpec) -> Self {
        Self {
            shared,
            count: spec.instances,
            spec: Arc::new(spec),
            up: false,
            down: false,
            instances: BTreeMap::new(),
            retiring: BTreeSet::new(),
            tasks: JoinSet::new(),
            preparation: None,
            prepared: false,
            asked_before: false,
            rolling: VecDeque::new(),
            roll_until: None,
        }
    }

    /// Lives until it is told `Down` and all its processes are gone.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Ordered>) {
        let mut snapshots = self.shared.snapshot.subscribe();
        while !(self.down && self.tasks.is_empty()) {
            let until = self.roll_until;
            tokio::select! {
                command = commands.recv(), if !self.down => match command {
                    Some((command, reply)) => {
                        self.obey(command).await;
                        self.publish();
                        let _ = reply.send(());
                    }
                    None => self.obey(Command::Down).await,
                },
                Some(ended) = self.tasks.join_next() => if let Ok(number) = ended {
                    self.retiring.remove(&number);
                    self.keep().await;
                },
                phase = next_phase(&mut self.preparation) => self.prepared(phase).await,
                Ok(()) = snapshots.changed(), if !self.rolling.is_empty() => self.roll().await,
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => self.roll().await,
            }
            self.publish();
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Start => {
                self.up = true;
                self.start().await;
            }
            Command::Restart if !self.up || !self.prepared => {
                self.up = true;
                self.start().await;
            }
            Command::Restart => {
                self.rolling = self.instances.keys().copied().collect();
                self.roll_next().await;
            }
            Command::Scale(count) => {
                self.count = count;
                self.keep().await;
            }
            Command::Stop => self.stop().await,
            Command::Down => {
                self.stop().await;
                self.down = true;
                self.instances.clear();
            }
        }
    }

    async fn stop(&mut self) {
        self.up = false;
        self.prepared = false;
        self.preparation = None;
        self.rolling.clear();
        self.roll_until = None;
        self.tell_all(&Input::Stop).await;
    }

    /// Prepares the service if that has to be done, then starts what does not run.
    async fn start(&mut self) {
        if self.preparation.is_some() {
            return;
        }
        if self.prepared {
            self.keep().await;
            self.tell_all(&Input::Start).await;
            return;
        }
        let again = std::mem::replace(&mut self.asked_before, true);
        let (tell, phases) = mpsc::channel(4);
        let (shared, spec) = (self.shared.clone(), self.spec.clone());
        let task = tokio::spawn(async move {
            let outcome = prepare(&shared, &spec, again, &tell).await;
            let _ = tell.send(Phase::Done(outcome)).await;
        });
        self.preparation = Some(Preparation { phases, task: task.abort_handle() });
        self.keep().await;
    }

    async fn prepared(&mut self, phase: Phase) {
        match phase {
            Phase::Building => self.tell_all(&Input::Building).await,
            Phase::Initializing => self.tell_all(&Input::Initializing).await,
            Phase::Done(Ok(())) => {
                self.preparation = None;
                self.prepared = true;
                self.keep().await;
                self.tell_all(&Input::Start).await;
            }
            Phase::Done(Err(reason)) => {
                self.preparation = None;
                self.tell_all(&Input::Failed(reason)).await;
            }
        }
    }

    /// Makes the instances be those that are asked for.
    async fn keep(&mut self) {
        if !self.up {
            return;
        }
        let extra: Vec<u32> = self.instances.keys().copied().filter(|n| *n > self.count).collect();
        for number in extra {
            // It hears the end of its channel and stops.
            self.instances.remove(&number);
            self.retiring.insert(number);
            self.rolling.retain(|n| *n != number);
        }
        let mut fresh = vec![];
        for number in 1..=self.count {
            if self.instances.contains_key(&number) || self.retiring.contains(&number) {
                continue;
            }
            let (words, inbox) = mpsc::channel(QUEUE);
            let instance = Instance::new(self.shared.clone(), self.spec.clone(), number);
            self.tasks.spawn(async move {
                instance.run(inbox).await;
                number
            });
            self.instances.insert(number, words);
            fresh.push(number);
        }
        if self.prepared {
            self.tell(fresh, &Input::Start).await;
        }
    }

    /// Goes on with a rolling restart when its instance is ready again, or has had its time.
    async fn roll(&mut self) {
        let Some(first) = self.rolling.front() else { return };
        let back = self.shared.snapshot.borrow().services.get(&self.spec.name).is_some_and(|service| {
            service.instances.get(first).is_none_or(|status| status.state == State::Running && status.ready)
        });
        if back || self.roll_until.is_some_and(|at| Instant::now() >= at) {
            self.rolling.pop_front();
            self.roll_next().await;
        }
    }

    async fn roll_next(&mut self) {
        self.roll_until = None;
        if let Some(first) = self.rolling.front().copied() {
            self.roll_until = Some(Instant::now() + self.shared.config.limits.roll_timeout);
            self.tell(vec![first], &Input::Restart).await;
        }
    }

    async fn tell_all(&self, input: &Input) {
        self.tell(self.instances.keys().copied().collect(), input).await;
    }

    /// Tells some instances, all at once, and waits until they have acted.
    async fn tell(&self, numbers: Vec<u32>, input: &Input) {
        let mut replies = vec![];
        for words in numbers.iter().filter_map(|number| self.instances.get(number)) {
            let (done, reply) = oneshot::channel();
            if words.send((input.clone(), done)).await.is_ok() {
                replies.push(reply);
            }
        }
        for reply in replies {
            drop(reply.await);
        }
    }

    fn publish(&self) {
        let (up, count) = (self.up, self.count);
        let busy = self.preparation.is_some() || !self.rolling.is_empty() || !self.retiring.is_empty();
        self.shared.change(&self.spec.name, |status| {
            status.wanted = up.then_some(count);
            status.busy = busy;
        });
    }
}

async fn next_phase(preparation: &mut Option<Preparation>) -> Phase {
    match preparation {
        Some(preparation) => {
            let ended = || Phase::Done(Err("its preparation broke off".to_owned()));
            preparation.phases.recv().await.unwrap_or_else(ended)
        }
        None => std::future::pending().await,
    }
}

/// Builds and initializes a service.
async fn prepare(
    shared: &Arc<Shared>,
    spec: &ServiceSpec,
    again: bool,
    tell: &mpsc::Sender<Phase>,
) -> Result<(), String> {
    if shared.config.build.is_some() || spec.build.is_some() {
        let _ = tell.send(Phase::Building).await;
    }
    build_system(shared, again).await?;
    if let Some(words) = &spec.build {
        let _leave = shared.builds.acquire().await;
        build(shared, Some(&spec.name), words, &spec.cwd).await?;
    }
    let Runs::Command(_) = &spec.runs else { return Ok(()) };
    let dir = shared.state.service(&spec.name).map_err(|error| Chain(&error).to_string())?;
    if spec.init.is_empty() {
        return Ok(());
    }
    let _ = tell.send(Phase::Initializing).await;
    let _lock = lock(&dir.join("init.lock")).await?;
    for words in &spec.init {
        let env = instance::environment(shared, spec, 1, None).await?;
        let last = Last::default();
        let order = instance::order(shared, spec, words, env, Part::Init, last.watch())?;
        let exit = shared.runner.run(order).await?;
        if exit != Exit::Code(0) {
            return Err(format!("initializer `{}` {exit}{}", words.join(" "), last.said()));
        }
    }
    Ok(())
}

/// Builds the system unless that was done; `again` tries a build that failed earlier once more.
async fn build_system(shared: &Arc<Shared>, again: bool) -> Result<(), String> {
    let Some(words) = &shared.config.build else { return Ok(()) };
    let (mut built, is_old) = match shared.built.try_lock() {
        Ok(built) => (built, true),
        // Somebody builds now, so what will be in there is news.
        Err(_) => (shared.built.lock().await, false),
    };
    match &*built {
        Some(Err(_)) if again && is_old => {}
        Some(outcome) => return outcome.clone(),
        None => {}
    }
    let outcome = build(shared, None, words, &shared.config.cwd).await;
    *built = Some(outcome.clone());
    outcome
}

async fn build(
    shared: &Arc<Shared>,
    service: Option<&ServiceName>,
    words: &[String],
    cwd: &Path,
) -> Result<(), String> {
    let command = words.join(" ");
    let (first, args) = words.split_first().ok_or("the build command has no words")?;
    let env = inherited(&shared.config.hidden_env);
    let program = find_program(first, cwd, None, std::env::var_os("PATH").as_deref())?;
    shared.progress.event(&ProgressEvent::Building { service, command: &command });
    let started = Instant::now();
    let last = Last::default();
    let watch = {
        let (note, progress, service) = (last.watch(), shared.progress.clone(), service.cloned());
        move |line: &str| {
            note(line);
            progress.event(&ProgressEvent::BuildLine { service: service.as_ref(), line });
        }
    };
    let order = Order {
        program,
        args: args.to_vec(),
        cwd: cwd.to_owned(),
        env,
        id: service.map_or_else(|| "build".to_owned(), |name| format!("{name}-build")),
        source: Source { service: service.cloned(), part: Part::Build },
        watch: Arc::new(watch),
    };
    let outcome = match shared.runner.run(order).await {
        Ok(Exit::Code(0)) => Ok(()),
        Ok(exit) => Err(format!("`{command}` {exit}{}", last.said())),
        Err(reason) => Err(reason),
    };
    let failure = outcome.as_ref().err().map(String::as_str);
    shared.progress.event(&ProgressEvent::Built { service, failure, took: started.elapsed() });
    outcome
}

/// The last line that was not empty.
#[derive(Clone, Default)]
struct Last(Arc<Mutex<String>>);

impl Last {
    fn watch(&self) -> impl Fn(&str) + Send + Sync + 'static {
        let last = self.0.clone();
        move |line| {
            if !line.trim().is_empty() {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = line.trim().chars().take(300).collect();
            }
        }
    }

    fn said(&self) -> String {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_empty() { String::new() } else { format!(": {last}") }
    }
}

/// Takes a lock file, waiting for whoever has it.
async fn lock(path: &Path) -> Result<File, String> {
    let cannot = |error: std::io::Error| format!("cannot lock {}: {error}", path.display());
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(cannot)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => sleep(LOCK_STEP).await,
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
    }
}
