//! The manifest as types: what every part reads instead of YAML.
//!
//! All `${env.…}` are resolved, all names are typed, policies are merged, defaults are filled in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ballet_core::{BulkheadPolicy, Policy, ServiceName, TopicName, WorkflowName};
use indexmap::IndexMap;
use serde_json::Value;

use crate::template::{JsonTemplate, Template};

/// A whole system: what `ballet.yaml` says, defaults included.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its name. Default: the name of the manifest's directory.
    pub system: String,
    /// The manifest's directory: relative paths and working directories start here.
    pub dir: PathBuf,
    /// The profile that was merged in; `None` is printed as `default`.
    pub profile: Option<String>,
    /// Command run once before the first start, as words. Default: none.
    pub build: Option<Vec<String>>,
    /// Listeners and engines of the platform itself.
    pub platform: Platform,
    /// The services, in the order of the file. Never empty.
    pub services: IndexMap<ServiceName, Service>,
    /// How calls behave.
    pub policies: Policies,
    /// Who may call, by rule name; `use:` is already followed.
    pub access: IndexMap<String, Arc<Access>>,
    /// The way in.
    pub gateway: Gateway,
    /// Declared topics.
    pub topics: IndexMap<TopicName, Topic>,
    /// Who hears of which event; one entry per topic and target, in the order of the file.
    pub subscriptions: Vec<Subscription>,
    /// Workflows by name.
    pub workflows: IndexMap<WorkflowName, Workflow>,
    /// Variables of the environment that hold credentials: those of `{ env: NAME }` and of the URLs of stores and engines.
    /// No service inherits them; whom the manifest gives one has it by its own `env` or `STORE_URL`.
    pub secret_env: BTreeSet<String>,
}

/// Listeners and engines of the platform itself.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Where the platform's faces listen.
    pub listen: Listen,
    /// DNS face. Default: off.
    pub dns: Option<SocketAddr>,
    /// Lets listeners stand on addresses that are not loopback without TLS and tokens; reported at each start.
    pub insecure: bool,
    /// Where the registry keeps its table.
    pub registry: Engine,
    /// What carries events.
    pub bus: Engine,
    /// Where workflows keep their history.
    pub workflows: Engine,
}

/// Where the platform's faces listen. Port 0 takes a free one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Everything that is not the gateway. Default: `127.0.0.1:7070`.
    pub main: SocketAddr,
    /// A listener of its own for Eureka's clients. Default: only on `main`.
    pub eureka: Option<SocketAddr>,
    /// A listener of its own for Consul's clients. Default: only on `main`.
    pub consul: Option<SocketAddr>,
    /// A listener of its own for Conductor's clients. Default: only on `main`.
    pub conductor: Option<SocketAddr>,
}

/// What a platform part stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Ours, in the platform's own files.
    Embedded,
    /// A real one. Its scheme is in the build's list of engines.
    Url {
        /// `postgres`, `nats`, `kafka`, `rabbitmq`, `redis`, `consul` or `kubernetes`.
        scheme: String,
        /// The whole URL; it may hold a password.
        url: Secret,
    },
}

/// A text that is never printed: `{ env: NAME }`, `{ file: PATH }`, or a URL that may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// One service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Where its instances come from.
    pub source: Source,
    /// Its own database. Default: none.
    pub store: Option<Store>,
    /// Commands run once, in order, before it starts; each as words.
    pub init: Vec<Vec<String>>,
    /// Its own build command, as words. Default: none; the system's is run anyway.
    pub build: Option<Vec<String>>,
    /// Its environment, over everything that the platform sets.
    pub env: IndexMap<String, EnvValue>,
    /// How many instances run. Default: 1. Range: 1 to 64.
    pub instances: u32,
    /// Path asked for readiness; `None` for a program that does not listen (`health: off`) and for `url:` services that
    /// name no path. Default: `/readyz`.
    pub health: Option<String>,
    /// Which share of the platform's places its calls take. Default: normal.
    pub pool: Pool,
    /// Policy for calls to it. Default: `None`, which is `default`.
    pub policy: Option<String>,
    /// The team that owns it.
    pub owner: Option<String>,
    /// Whom it may call. Default: `None`, everyone.
    pub calls: Option<Vec<ServiceName>>,
}

/// Where a service's instances come from: exactly one of the three.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A program, as words; the first is looked for beside `ballet`, then in `PATH`, or is a path relative to the manifest.
    Run(Vec<String>),
    /// A container image.
    Image(String),
    /// It runs elsewhere: `http://host:port`, maybe with a base path. No process; checked only if `health` is given.
    Url(HttpUrl),
}

/// An `http` or `https` URL, divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpUrl {
    /// Whether it is `https`.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port; 80 or 443 unless given.
    pub port: u16,
    /// Path without a trailing slash; empty for none.
    pub path: String,
}

/// A service's own database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A file of its own, below `.ballet/services/NAME/`.
    Sqlite,
    /// A database that the service is told of by `STORE_URL`, and nobody else is.
    Url(Secret),
}

/// A value in a service's environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvValue {
    /// Stands in the manifest; may be printed.
    Plain(String),
    /// Came from `{ env: NAME }` or `{ file: PATH }`.
    Secret(Secret),
}

/// Which share of the platform's places a service's calls take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pool {
    /// Kept free for what must go on.
    Critical,
    /// Most services.
    #[default]
    Normal,
    /// May wait.
    Batch,
}

/// All policies, each merged over `default` field by field.
#[derive(Clone, Debug)]
pub struct Policies {
    /// Everyone's.
    pub default: Arc<Policy>,
    /// The others, by name; `default` is not among them.
    pub named: BTreeMap<String, Arc<Policy>>,
}

/// Who may call: a valid token, and for each entry of `roles` at least one of its roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Its name in the manifest.
    pub name: String,
    /// The token; of the rule at the end of the `use:` chain.
    pub jwt: Arc<Jwt>,
    /// One entry per rule on the `use:` chain that has `allow: { roles: … }`; all must hold, each by any of its roles.
    pub roles: Vec<Vec<String>>,
}

/// What a token has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwt {
    /// Exact `iss`.
    pub issuer: String,
    /// Exact `aud`, or one of its entries.
    pub audience: String,
    /// Where the public keys are.
    pub keys: Keys,
}

/// Where a JWKS document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// At a service of ours.
    Service {
        /// Which.
        service: ServiceName,
        /// The document's path.
        path: String,
    },
    /// Elsewhere.
    Url(HttpUrl),
}

/// The way in.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Where it listens. Default: `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// Its routes, in the order of the file, which means nothing: the most specific wins.
    pub routes: Vec<Route>,
}

/// `METHOD PATH` and what becomes of it.
#[derive(Clone, Debug)]
pub struct Route {
    /// As written: `GET /orders/{id}`.
    pub name: String,
    /// Which methods.
    pub method: Method,
    /// Which paths.
    pub path: PathTemplate,
    /// What becomes of it.
    pub action: Action,
    /// Who may. Default: everyone.
    pub access: Option<Arc<Access>>,
    /// How often. Default: without limit.
    pub limit: Option<Limit>,
    /// The service keeps answers by `Idempotency-Key`, so a POST with one may be retried. Default: false.
    pub idempotent: bool,
    /// Its own policy (and breaker). Default: the service's.
    pub policy: Option<String>,
    /// Ends the whole call sooner or later than the policy's. Default: the policy's.
    pub timeout: Option<Duration>,
    /// Where it stands, for `explain`.
    pub origin: Origin,
}

/// Which methods a route takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    /// `ANY`: every method but CONNECT and TRACE.
    Any,
    /// One, in capitals. `GET` does not imply `HEAD`.
    One(String),
}

/// A route's path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathTemplate {
    /// Its segments; none for `/`.
    pub segments: Vec<Segment>,
}

/// One segment of a route's path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// Itself.
    Literal(String),
    /// `{name}`: any one segment, known as `${path.name}`.
    Param(String),
    /// `*`: any one segment.
    One,
    /// `**`: zero or more segments, only at the end; known as `${path.**}`.
    Rest,
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// `to: service` or `to: service:/path`.
    Service {
        /// Which.
        service: ServiceName,
        /// The path (and query) sent instead of the one that came. `None`: as it came.
        rewrite: Option<Template>,
    },
    /// `to: http://…`.
    Url {
        /// Where to; its `path` is empty.
        url: HttpUrl,
        /// The path sent instead of the one that came. `None`: as it came.
        rewrite: Option<Template>,
    },
    /// `to: workflow:NAME`.
    Workflow(WorkflowName),
    /// `to: topic:NAME`.
    Topic(TopicName),
    /// `redirect: LOCATION`.
    Redirect {
        /// 301, 302, 303, 307 or 308. Default: 307.
        status: u16,
        /// The `Location`.
        location: Template,
    },
    /// `static: DIR`: what `**` matched is looked for below it; without `**` its `index.html`.
    Static {
        /// The directory, joined with the manifest's.
        dir: PathBuf,
    },
    /// `merge:` several answers into one object.
    Merge(Vec<MergePart>),
    /// `migrate:` share by share from one to another.
    Migrate(Migrate),
}

/// One key of a merged answer.
#[derive(Clone, Debug)]
pub struct MergePart {
    /// The key.
    pub name: String,
    /// The method: `GET`.
    pub method: String,
    /// Whom to ask.
    pub service: ServiceName,
    /// Path and query.
    pub path: Template,
    /// Its failure fails the whole. Default: false.
    pub required: bool,
    /// Who gets it; others get the fallback (or a refusal if `required`). Default: everyone.
    pub access: Option<Arc<Access>>,
    /// What stands there when it fails. Default: null.
    pub fallback: Value,
    /// Its own policy. Default: the service's.
    pub policy: Option<String>,
}

/// Share by share from one service to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Migrate {
    /// The old one.
    pub from: ServiceName,
    /// The new one.
    pub to: ServiceName,
    /// Share of callers that get the new one, 0 to 1.
    pub share: f64,
}

/// `10/min by ip`: admits `count` at once, then refills evenly over `period`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Requests per `period`, and the burst. At least 1.
    pub count: u32,
    /// A second, minute, hour or day.
    pub period: Duration,
    /// Whose requests are counted together.
    pub by: LimitBy,
    /// Longest wait for a turn. Default: zero, refused at once with 429.
    pub wait: Duration,
}

/// Whose requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitBy {
    /// Everyone's.
    Everyone,
    /// The client address's.
    Ip,
    /// The token's claim at this path: `claims.sub`. The route has `access`.
    Claim(Vec<String>),
    /// The value of this header (lower case): `header.x-api-key`.
    Header(String),
}

/// A declared topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name, which is also the events' type.
    pub name: TopicName,
    /// JSON Schema of the data; a readable file, joined with the manifest's directory.
    pub schema: Option<PathBuf>,
    /// How long events stay. Default: 7 days.
    pub keep: Duration,
}

/// One topic, one target.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// The topic.
    pub topic: TopicName,
    /// Who hears of it.
    pub target: Target,
    /// Where it stands.
    pub origin: Origin,
}

/// Who hears of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Gets it by POST at this path.
    Service {
        /// Which.
        service: ServiceName,
        /// Where; scope `event`.
        path: Template,
    },
    /// Is started with the event's data as input.
    Workflow {
        /// Which.
        name: WorkflowName,
        /// The execution's id; scope `event`. Default: `NAME-SUBJECT` (CloudEvent `subject`, else `id`).
        id: Option<Template>,
    },
}

/// A workflow.
#[derive(Clone, Debug)]
pub struct Workflow {
    /// Its name.
    pub name: WorkflowName,
    /// How it goes.
    pub body: WorkflowBody,
}

/// How a workflow goes.
#[derive(Clone, Debug)]
pub enum WorkflowBody {
    /// Steps, one after the other.
    Linear(Linear),
    /// Conductor's own JSON, read from `file:`.
    Conductor {
        /// The file.
        path: PathBuf,
        /// What is in it: an object.
        definition: Value,
    },
}

/// Steps, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Longest run before undoing begins. Default: `None`, without end.
    pub timeout: Option<Duration>,
    /// At least one.
    pub steps: Vec<Step>,
    /// Called once everything is undone.
    pub failed: Option<Failed>,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its reference name.
    pub name: String,
    /// What does it.
    pub work: Work,
    /// What it is sent. Default: `None`, the workflow's input.
    pub with: Option<JsonTemplate>,
    /// What takes it back. Default: nothing.
    pub undo: Option<Call>,
    /// What the undo is sent. Default: `None`, `{input, output, key}`.
    pub undo_with: Option<JsonTemplate>,
    /// Longest time for the step, waiting included. Default: `None`, the workflow's.
    pub timeout: Option<Duration>,
    /// How often it is tried; the default rule is already applied.
    pub attempts: Attempts,
    /// Its own policy. Default: the service's.
    pub policy: Option<String>,
}

/// What does a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// `call: METHOD service:/path`: one HTTP exchange per attempt.
    Call(Call),
    /// `task: NAME`: a SIMPLE task, polled by a worker in any language.
    Task(String),
}

/// `METHOD service:/path`.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// In capitals.
    pub method: String,
    /// Whom.
    pub service: ServiceName,
    /// Path and query.
    pub path: Template,
}

/// The step that a failed workflow ends with; tried until it is answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    /// Whom to tell.
    pub call: Call,
    /// What it is sent. Default: `None`, the workflow's input.
    pub with: Option<JsonTemplate>,
    /// Its own policy. Default: the service's.
    pub policy: Option<String>,
}

/// How often a step is tried, the first time included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempts {
    /// At least 1. Default: 3.
    Times(u32),
    /// Only a known answer ends it. Default after the last step that has an undo.
    Unlimited,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The manifest.
    File {
        /// As given to `load`.
        file: Arc<str>,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// A profile, which stands in the manifest too.
    Profile {
        /// Its name.
        name: Arc<str>,
        /// As given to `load`.
        file: Arc<str>,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// An environment variable: `BALLET_GATEWAY__LISTEN`.
    Environment(Arc<str>),
    /// `--set`.
    Set,
    /// Nobody said otherwise.
    Default,
    /// Another value of the manifest: `policies.default`.
    Inherited(Arc<str>),
}

impl Manifest {
    /// All topics that are declared or subscribed to, each once.
    pub fn topic_names(&self) -> Vec<TopicName> {
        let mut names: Vec<TopicName> = self.topics.keys().cloned().collect();
        for subscription in &self.subscriptions {
            if !names.contains(&subscription.topic) {
                names.push(subscription.topic.clone());
            }
        }
        names
    }

    /// The policy for calls to `service`: the caller's choice, else the service's, else `default`.
    pub fn policy(&self, service: &ServiceName, chosen: Option<&str>) -> Arc<Policy> {
        let known = self.services.get(service);
        let name = chosen.or_else(|| known.and_then(|service| service.policy.as_deref()));
        let policy = self.policies.get(name);
        // A policy that speaks of places itself knows better than the pool.
        match known.map(|service| service.pool.places()) {
            Some(places) if policy.bulkhead == BulkheadPolicy::default() && policy.bulkhead.max != places => {
                let bulkhead = BulkheadPolicy { max: places, queue: places, ..policy.bulkhead.clone() };
                Arc::new(Policy { bulkhead, ..(*policy).clone() })
            }
            Some(_) | None => policy,
        }
    }
}

impl Policies {
    /// The policy of that name; `default` for `None` and for unknown names, which `load` does not let through.
    pub fn get(&self, name: Option<&str>) -> Arc<Policy> {
        name.and_then(|name| self.named.get(name)).unwrap_or(&self.default).clone()
    }
}

impl Default for Policies {
    fn default() -> Self {
        Self { default: Arc::new(Policy::default()), named: BTreeMap::new() }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self { main: SocketAddr::from(([127, 0, 0, 1], 7070)), eureka: None, consul: None, conductor: None }
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self {
            listen: Listen::default(),
            dns: None,
            insecure: false,
            registry: Engine::Embedded,
            bus: Engine::Embedded,
            workflows: Engine::Embedded,
        }
    }
}

impl Default for Gateway {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8080)), routes: Vec::new() }
    }
}

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl EnvValue {
    /// The text itself. Never log it.
    pub fn expose(&self) -> &str {
        match self {
            Self::Plain(text) => text,
            Self::Secret(secret) => secret.expose(),
        }
    }
}

impl Pool {
    /// Calls that one caller may have under way to a service of this pool, unless its policy says: 256, 128 or 32. So what
    /// may wait cannot take the sockets and memory of what must go on.
    pub fn places(self) -> usize {
        match self {
            Self::Critical => 256,
            Self::Normal => 128,
            Self::Batch => 32,
        }
    }

    /// As written in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Normal => "normal",
            Self::Batch => "batch",
        }
    }
}

impl Method {
    /// In capitals; `ANY` for any.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Any => "ANY",
            Self::One(name) => name,
        }
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}{}", self.host, self.port, self.path)
        } else {
            write!(f, "{scheme}://{}:{}{}", self.host, self.port, self.path)
        }
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segments.is_empty() {
            return f.write_str("/");
        }
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => write!(f, "/{text}")?,
                Segment::Param(name) => write!(f, "/{{{name}}}")?,
                Segment::One => f.write_str("/*")?,
                Segment::Rest => f.write_str("/**")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Profile { name, file, line, column } => write!(f, "profile {name} ({file}:{line}:{column})"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Set => f.write_str("--set"),
            Self::Default => f.write_str("default"),
            Self::Inherited(from) => f.write_str(from),
        }
    }
}
