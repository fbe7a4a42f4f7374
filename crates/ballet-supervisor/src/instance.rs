//! One instance: the task that does what its [`Machine`] decides.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ballet_core::InstanceId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::logs::{Part, Source};
use crate::machine::{Action, Input, Machine, State};
use crate::ports;
use crate::process::{Exit, Order, Process, find_program, inherited};
use crate::progress::ProgressEvent;
use crate::service::Shared;
use crate::spec::{Health, InstanceStatus, Launch, Limits, Runs, ServiceSpec, Store};

/// Longest wait for the observer to take in a change.
const OBSERVER_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for what the observer adds to an environment.
const ENVIRONMENT_LIMIT: Duration = Duration::from_secs(10);

/// A word to an instance; answered when it was acted on.
pub(crate) type Word = (Input, oneshot::Sender<()>);

pub(crate) struct Instance {
    shared: Arc<Shared>,
    spec: Arc<ServiceSpec>,
    number: u32,
    machine: Machine,
    process: Option<Process>,
    port: Option<u16>,
    probes: Option<Probes>,
    last: Option<InstanceStatus>,
}

struct Probes {
    answers: mpsc::Receiver<bool>,
    task: AbortHandle,
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Instance {
    pub(crate) fn new(shared: Arc<Shared>, spec: Arc<ServiceSpec>, number: u32) -> Self {
        let machine = Machine::new(&shared.config.limits);
        Self { shared, spec, number, machine, process: None, port: None, probes: None, last: None }
    }

    /// Lives until its last word was heard (the channel is closed) and its process is gone.
    pub(crate) async fn run(mut self, mut words: mpsc::Receiver<Word>) {
        let mut closed = false;
        while !(closed && self.machine.state() == State::Stopped) {
            let wake = self.machine.wake();
            let mut done = None;
            let input = tokio::select! {
                word = words.recv(), if !closed => match word {
                    Some((input, reply)) => {
                        done = Some(reply);
                        input
                    }
                    None => {
                        closed = true;
                        Input::Stop
                    }
                },
                exit = ended(&mut self.process) => self.ended(&exit),
                good = answer(&mut self.probes) => Input::Probe(good),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => Input::Timer,
            };
            self.step(input).await;
            if let Some(done) = done {
                let _ = done.send(());
            }
        }
        if let Some(port) = self.port {
            self.shared.ports.give_back(port);
        }
        let (service, number) = (&self.spec.name, self.number);
        self.shared.change(service, |status| drop(status.instances.remove(&number)));
    }

    async fn step(&mut self, mut input: Input) {
        loop {
            let action = self.machine.on(input, Instant::now());
            self.publish().await;
            match action {
                Action::Rest => return,
                Action::Terminate => {
                    if let Some(process) = &self.process {
                        process.stop(self.shared.config.limits.grace).await;
                    }
                    return;
                }
                Action::Spawn => {
                    input = match self.spawn().await {
                        Ok(()) => Input::Spawned,
                        Err(reason) => Input::SpawnFailed(reason),
                    }
                }
            }
        }
    }

    async fn spawn(&mut self) -> Result<(), String> {
        let port = self.choose_port()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let env = environment(&self.shared, &self.spec, self.number, Some(address)).await?;
        let order = order(&self.shared, &self.spec, command(&self.spec)?, env, Part::Instance(self.number), |_| {})?;
        self.process = Some(self.shared.runner.spawn(order).await?);
        self.probes = Some(Probes::start(address, self.spec.health.clone(), &self.shared.config.limits));
        Ok(())
    }

    /// The old port when it is free, else another; one in the manifest's `env` is never changed.
    fn choose_port(&mut self) -> Result<u16, String> {
        if let Some(port) = self.fixed_port() {
            return Ok(port);
        }
        if let Some(port) = self.port.take() {
            if ports::is_free(port) {
                self.port = Some(port);
                return Ok(port);
            }
            self.shared.ports.give_back(port);
        }
        let port = self.shared.ports.take().map_err(|error| format!("cannot find a free port: {error}"))?;
        self.port = Some(port);
        Ok(port)
    }

    fn fixed_port(&self) -> Option<u16> {
        self.spec.env.iter().rfind(|(name, _)| name == "PORT").and_then(|(_, port)| port.parse().ok())
    }

    fn ended(&mut self, exit: &Exit) -> Input {
        self.process = None;
        self.probes = None;
        let mut reason = exit.to_string();
        // Everything of the service is gone, so whoever holds the port is somebody else.
        if self.machine.state() == State::Starting
            && let Some(port) = self.fixed_port().or(self.port)
            && !ports::is_free(port)
        {
            reason = format!("{reason}; port {port} is taken by another program");
        }
        Input::Exited(reason)
    }

    async fn publish(&mut self) {
        let status = self.status();
        if self.last.as_ref() == Some(&status) {
            return;
        }
        self.shared.progress.event(&ProgressEvent::Instance(&status));
        if timeout(OBSERVER_LIMIT, self.shared.observer.instance_changed(&status)).await.is_err() {
            tracing::warn!(instance = %status.id, "the observer did not take in a change in time");
        }
        // Last, so that whoever waits for a state finds registry and sidecars there already.
        self.shared.change(&status.service, |service| {
            service.instances.insert(status.instance, status.clone());
        });
        self.last = Some(status);
    }

    fn status(&self) -> InstanceStatus {
        let port = self.fixed_port().or(self.port);
        InstanceStatus {
            service: self.spec.name.clone(),
            instance: self.number,
            id: instance_id(&self.spec, self.number),
            state: self.machine.state(),
            ready: self.machine.ready(),
            pid: self.process.as_ref().map(|process| process.pid),
            address: port.filter(|_| self.process.is_some()).map(|port| (Ipv4Addr::LOCALHOST, port).into()),
            version: self.spec.version.clone(),
            restarts: self.machine.restarts(),
            reason: self.machine.reason().map(str::to_owned),
        }
    }
}

impl Probes {
    fn start(address: SocketAddr, health: Health, limits: &Limits) -> Self {
        let (tell, answers) = mpsc::channel(1);
        let limits = limits.clone();
        let task = tokio::spawn(async move {
            let Some(path) = health.path() else {
                let _ = tell.send(true).await;
                return std::future::pending().await;
            };
            let mut was_good = false;
            loop {
                let status = ports::ask(address, path, limits.probe_timeout).await;
                let good = status.is_ok_and(|status| is_good(&health, status));
                was_good |= good;
                if tell.send(good).await.is_err() {
                    return;
                }
                sleep(if was_good { limits.probe_running } else { limits.probe_starting }).await;
            }
        });
        Self { answers, task: task.abort_handle() }
    }
}

fn is_good(health: &Health, status: u16) -> bool {
    match health {
        Health::Default => matches!(status, 200..=299 | 404 | 405 | 501),
        Health::Path(_) => matches!(status, 200..=299),
        Health::Off => true,
    }
}

async fn ended(process: &mut Option<Process>) -> Exit {
    match process {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}

async fn answer(probes: &mut Option<Probes>) -> bool {
    if let Some(probes) = probes
        && let Some(good) = probes.answers.recv().await
    {
        return good;
    }
    std::future::pending().await
}

pub(crate) fn instance_id(spec: &ServiceSpec, number: u32) -> InstanceId {
    format!("{}-{number}", spec.name).parse().expect("a service name, `-` and a number are an instance id")
}

fn command(spec: &ServiceSpec) -> Result<&[String], String> {
    match &spec.runs {
        Runs::Command(words) => Ok(words),
        Runs::Elsewhere(url) => Err(format!("it runs elsewhere, at {url}")),
    }
}

/// The `STORE_URL` of a service.
pub(crate) fn store_url(shared: &Shared, spec: &ServiceSpec) -> Result<Option<String>, String> {
    match &spec.store {
        None => Ok(None),
        Some(Store::Url(url)) => Ok(Some(url.clone())),
        Some(Store::Sqlite) => {
            let dir = shared.state.service(&spec.name).map_err(|error| ballet_core::Chain(&error).to_string())?;
            Ok(Some(format!("sqlite:{}", dir.join(format!("{}.db", spec.name)).display())))
        }
    }
}

/// The whole environment of an instance: ours, the table of the platform, the manifest's.
pub(crate) async fn environment(
    shared: &Shared,
    spec: &ServiceSpec,
    number: u32,
    address: Option<SocketAddr>,
) -> Result<BTreeMap<OsString, OsString>, String> {
    let mut env = inherited(&shared.config.hidden_env);
    let mut set = |name: &str, value: &str| drop(env.insert(name.into(), value.into()));
    if let Some(address) = address {
        set("PORT", &address.port().to_string());
        set("APP_PORT", &address.port().to_string());
    }
    set("APP_ID", spec.name.as_str());
    set("BALLET_SERVICE", spec.name.as_str());
    set("BALLET_INSTANCE", &number.to_string());
    set("OTEL_SERVICE_NAME", spec.name.as_str());
    if let Some(url) = store_url(shared, spec)? {
        set("STORE_URL", &url);
    }
    let launch = Launch { service: spec.name.clone(), instance: number, id: instance_id(spec, number), address };
    let added = timeout(ENVIRONMENT_LIMIT, shared.observer.environment(&launch)).await;
    for (name, value) in added.map_err(|_| "the sidecar was not opened in time".to_owned())?? {
        set(&name, &value);
    }
    for (name, value) in &spec.env {
        set(name, value);
    }
    Ok(env)
}

/// Makes an order of a command's words.
pub(crate) fn order(
    shared: &Shared,
    spec: &ServiceSpec,
    words: &[String],
    env: BTreeMap<OsString, OsString>,
    part: Part,
    watch: impl Fn(&str) + Send + Sync + 'static,
) -> Result<Order, String> {
    let (first, args) = words.split_first().ok_or("the command has no words")?;
    let path = env.get(std::ffi::OsStr::new("PATH"));
    let program = find_program(first, &spec.cwd, shared.config.beside.as_deref(), path.map(OsString::as_os_str))?;
    let id = match part {
        Part::Instance(n) => format!("{}-{n}", spec.name),
        Part::Init => format!("{}-init", spec.name),
        Part::Build => format!("{}-build", spec.name),
    };
    Ok(Order {
        program,
        args: args.to_vec(),
        cwd: PathBuf::from(&spec.cwd),
        env,
        id,
        source: Source { service: Some(spec.name.clone()), part },
        watch: Arc::new(watch),
    })
}
