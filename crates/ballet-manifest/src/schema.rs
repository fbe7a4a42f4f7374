//! The one description of `ballet.yaml`: what may stand where, what it means, what holds when it is absent.
//!
//! The walk, the JSON Schema, `--set` and the effective listing all read this and nothing else.

use crate::format::Format;

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    Scalar(Format),
    Bool,
    Int {
        min: i64,
        max: i64,
    },
    /// Any JSON, without expressions (but `env`).
    Json,
    /// Any JSON with expressions in its texts.
    JsonTemplate,
    /// Names to values.
    Map(Key, &'static Shape),
    Record(&'static Record),
    /// A scalar that says it shortly, or a record.
    Or(Format, &'static Record),
    /// One, or a list of them.
    OneOrMany(&'static Shape),
    /// A list of maps with one key each: the step's name.
    Steps(&'static Record),
    /// The whole manifest again, in parts.
    Profile,
}

/// What the keys of a map are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Service,
    Policy,
    Access,
    Route,
    Topic,
    SubscribedTopic,
    Workflow,
    Profile,
    Variable,
    Part,
}

/// A map with known keys.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) fields: &'static [Field],
    /// Exactly one of these stands, unless empty.
    pub(crate) one_of: &'static [&'static str],
}

/// A known key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) shape: Shape,
    pub(crate) required: bool,
    /// What holds when it is absent, as YAML.
    pub(crate) default: Option<&'static str>,
    /// Listed with its own defaults even when it is absent.
    pub(crate) expand: bool,
    /// Keys beside which this one has no meaning.
    pub(crate) not_with: &'static [&'static str],
    /// A key beside which the default does not hold.
    pub(crate) no_default_with: Option<&'static str>,
    /// The key without which this one has no meaning.
    pub(crate) needs: Option<&'static str>,
    /// Reserved: nothing reads it in this version.
    pub(crate) later: bool,
}

const fn key(name: &'static str, shape: Shape, doc: &'static str) -> Field {
    Field {
        name,
        doc,
        shape,
        required: false,
        default: None,
        expand: false,
        not_with: &[],
        no_default_with: None,
        needs: None,
        later: false,
    }
}

impl Field {
    const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    const fn default(mut self, text: &'static str) -> Self {
        self.default = Some(text);
        self
    }

    const fn expand(mut self) -> Self {
        self.expand = true;
        self
    }

    const fn not_with(mut self, keys: &'static [&'static str]) -> Self {
        self.not_with = keys;
        self
    }

    const fn no_default_with(mut self, key: &'static str) -> Self {
        self.no_default_with = Some(key);
        self
    }

    const fn needs(mut self, key: &'static str) -> Self {
        self.needs = Some(key);
        self
    }

    const fn later(mut self) -> Self {
        self.later = true;
        self
    }
}

impl Record {
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

impl Shape {
    /// The shape below a key, for `--set`.
    pub(crate) fn child(&self, key: &str) -> Option<&'static Shape> {
        match self {
            Self::Record(record) | Self::Or(_, record) | Self::Steps(record) => {
                record.fields.iter().find(|field| field.name == key).map(|field| &field.shape)
            }
            Self::Map(_, value) => Some(value),
            Self::Profile => Self::Record(&ROOT).child(key),
            Self::OneOrMany(item) => Some(item),
            Self::Scalar(_) | Self::Bool | Self::Int { .. } | Self::Json | Self::JsonTemplate => None,
        }
    }
}

use Format as F;
use Shape::{Bool, Int, Json, JsonTemplate, Map, OneOrMany, Or, Profile, Scalar, Steps};

/// The whole manifest.
pub(crate) static ROOT: Record = Record {
    name: "manifest",
    doc: "A whole system. Only `services` is required; every other key may be absent or empty.",
    one_of: &[],
    fields: &[
        key("ballet", Int { min: 1, max: 1 }, "The format's version.").default("1"),
        key("system", Scalar(F::Name), "The system's name. Default: the name of the manifest's directory."),
        key("build", Scalar(F::Command), "Command run once before the first start."),
        key("platform", Shape::Record(&PLATFORM), "Listeners and engines of the platform itself.").expand(),
        key("services", Map(Key::Service, &SERVICE_SHAPE), "The services.").required(),
        key(
            "policies",
            Map(Key::Policy, &POLICY_SHAPE),
            "How calls behave. `default` is everyone's; the others are merged over it field by field.",
        )
        .expand(),
        key("access", Map(Key::Access, &ACCESS_SHAPE), "Who may call. A route without it is open."),
        key("gateway", Shape::Record(&GATEWAY), "The way in.").expand(),
        key("events", Shape::Record(&EVENTS), "Topics, and who hears of what."),
        key("workflows", Map(Key::Workflow, &WORKFLOW_SHAPE), "Workflows by name."),
        key(
            "profiles",
            Map(Key::Profile, &PROFILE_SHAPE),
            "Parts of a manifest, merged in key by key when `--profile` names them. A null takes a key away.",
        ),
    ],
};

static SERVICE_SHAPE: Shape = Shape::Record(&SERVICE);
static POLICY_SHAPE: Shape = Shape::Record(&POLICY);
static ACCESS_SHAPE: Shape = Shape::Record(&ACCESS);
static WORKFLOW_SHAPE: Shape = Shape::Record(&WORKFLOW);
static PROFILE_SHAPE: Shape = Profile;
static TOPIC_SHAPE: Shape = Shape::Record(&TOPIC);
static ROUTE_SHAPE: Shape = Or(F::RouteTarget, &ROUTE);
static MERGE_SHAPE: Shape = Shape::Record(&MERGE_PART);
static SUBSCRIBER_SHAPE: Shape = Or(F::Subscriber, &SUBSCRIBER);
static SUBSCRIBERS_SHAPE: Shape = OneOrMany(&SUBSCRIBER_SHAPE);
static COMMAND_SHAPE: Shape = Scalar(F::Command);
static ROLE_SHAPE: Shape = Scalar(F::Role);
static SERVICE_NAME_SHAPE: Shape = Scalar(F::Service);
static VARIABLE_SHAPE: Shape = Or(F::Loose, &SECRET);

static PLATFORM: Record = Record {
    name: "platform",
    doc: "Listeners and engines of the platform itself.",
    one_of: &[],
    fields: &[
        key(
            "listen",
            Or(F::Address, &LISTEN),
            "Where everything listens that is not the gateway: an address, or a map.",
        )
        .default("127.0.0.1:7070"),
        key("dns", Scalar(F::Address), "Where the DNS face listens. Default: off.").later(),
        key("insecure", Bool, "Lets listeners stand on addresses that are not loopback, without TLS and tokens.")
            .default("false"),
        key("secure", Bool, "Demands tokens and TLS between services.").later(),
        key(
            "registry",
            Or(F::Engine, &SECRET),
            "Where the registry keeps its table: embedded, postgres://, consul:// or kubernetes.",
        )
        .default("embedded"),
        key(
            "bus",
            Or(F::Engine, &SECRET),
            "What carries events: embedded, postgres://, nats://, kafka://, rabbitmq:// or redis://.",
        )
        .default("embedded"),
        key("workflows", Or(F::Engine, &SECRET), "Where workflows keep their history: embedded or postgres://.")
            .default("embedded"),
    ],
};

static LISTEN: Record = Record {
    name: "listen",
    doc: "The platform's listeners.",
    one_of: &[],
    fields: &[
        key("main", Scalar(F::Address), "All faces.").default("127.0.0.1:7070"),
        key("eureka", Scalar(F::Address), "A listener of its own for Eureka's clients.").later(),
        key("consul", Scalar(F::Address), "A listener of its own for Consul's clients.").later(),
        key("conductor", Scalar(F::Address), "A listener of its own for Conductor's clients.").later(),
    ],
};

static SECRET: Record = Record {
    name: "secret",
    doc: "A text that is never printed.",
    one_of: &["env", "file"],
    fields: &[
        key("env", Scalar(F::Text), "The environment variable that holds it."),
        key("file", Scalar(F::File), "The file that holds it; a line end after it does not count."),
    ],
};

static SERVICE: Record = Record {
    name: "service",
    doc: "A service: exactly one of `run`, `image`, `url`.",
    one_of: &["run", "image", "url"],
    fields: &[
        key(
            "run",
            Scalar(F::Command),
            "A program and its arguments. Without `/` it is looked for beside `ballet`, then in `PATH`; with one it is relative to the manifest.",
        ),
        key("image", Scalar(F::Text), "A container image.").later(),
        key(
            "url",
            Scalar(F::ServiceUrl),
            "It runs elsewhere: gets no process, counts as ready, is checked only if `health` is given.",
        ),
        key("store", Or(F::Store, &SECRET), "Its own database: `sqlite` or a URL. Two services may not name one.")
            .not_with(&["url"]),
        key("init", OneOrMany(&COMMAND_SHAPE), "Commands run once, in order, before it starts.").not_with(&["url"]),
        key("build", Scalar(F::Command), "Its own build command.").not_with(&["url"]),
        key("env", Map(Key::Variable, &VARIABLE_SHAPE), "Its environment, over everything that the platform sets.")
            .not_with(&["url"]),
        key("instances", Int { min: 1, max: 64 }, "How many instances run.").default("1").not_with(&["url"]),
        key("health", Scalar(F::Health), "Path asked for readiness; `off` for a program that does not listen.")
            .default("/readyz")
            .no_default_with("url"),
        key("pool", Scalar(F::Pool), "How many calls one caller may have under way to it, unless its policy says: critical 256, normal 128, batch 32.")
            .default("normal"),
        key("policy", Scalar(F::Policy), "How calls to it behave.").default("default"),
        key("owner", Scalar(F::Text), "The team that owns it."),
        key("calls", OneOrMany(&SERVICE_NAME_SHAPE), "Whom it may call. Default: everyone.").not_with(&["url"]),
    ],
};

static POLICY: Record = Record {
    name: "policy",
    doc: "How calls behave.",
    one_of: &[],
    fields: &[
        key("timeout", Scalar(F::Duration), "The whole call, retries included; for a workflow step one attempt.")
            .default("2s"),
        key("retry", Shape::Record(&RETRY), "Retries of idempotent calls.").expand(),
        key("breaker", Shape::Record(&BREAKER), "Stops calling what keeps failing.").expand(),
        key("bulkhead", Shape::Record(&BULKHEAD), "Bounds the calls under way.").expand(),
        key(
            "fallback",
            Shape::Record(&FALLBACK),
            "What a caller at the gateway gets when the service is out of reach.",
        ),
    ],
};

static RETRY: Record = Record {
    name: "retry",
    doc: "Retries of idempotent calls, with full jitter.",
    one_of: &[],
    fields: &[
        key("max", Int { min: 0, max: 10 }, "Retries after the first attempt; 0 switches them off.").default("3"),
        key("backoff", Scalar(F::Backoff), "First and longest cap of the rest between attempts.")
            .default("100ms..400ms"),
        key("budget", Scalar(F::Percent), "Share of calls that may be retried, beside ten per second.").default("20%"),
    ],
};

static BREAKER: Record = Record {
    name: "breaker",
    doc: "When a breaker opens and how long it rests.",
    one_of: &[],
    fields: &[
        key("failures", Int { min: 1, max: 1000 }, "Consecutive failures that open it.").default("5"),
        key("open_for", Scalar(F::Duration), "Rest before the next probe.").default("5s"),
    ],
};

static BULKHEAD: Record = Record {
    name: "bulkhead",
    doc: "How many calls to one service may be under way.",
    one_of: &[],
    fields: &[
        key("max", Int { min: 1, max: 65_536 }, "Calls under way.").default("256"),
        key("queue", Int { min: 0, max: 65_536 }, "Calls that wait for a place; more are refused.").default("256"),
        key("wait", Scalar(F::Duration), "Longest wait for a place.").default("500ms"),
    ],
};

static FALLBACK: Record = Record {
    name: "fallback",
    doc: "The answer that a caller gets instead of an error.",
    one_of: &[],
    fields: &[
        key("status", Int { min: 200, max: 599 }, "HTTP status.").default("503"),
        key("title", Scalar(F::Text), "Title of the problem document.").required(),
    ],
};

static ACCESS: Record = Record {
    name: "access rule",
    doc: "Who may call: a token of its own, or that of another rule, and what it must allow.",
    one_of: &["jwt", "use"],
    fields: &[
        key("jwt", Shape::Record(&JWT), "The token."),
        key("use", Scalar(F::Access), "The rule that this one adds to."),
        key("allow", Shape::Record(&ALLOW), "What the token must allow."),
    ],
};

static JWT: Record = Record {
    name: "jwt",
    doc: "What a token has to be: signed with ES256 or RS256 by one of the keys.",
    one_of: &[],
    fields: &[
        key("issuer", Scalar(F::Text), "Exact `iss`.").required(),
        key("audience", Scalar(F::Text), "Exact `aud`, or one of its entries.").required(),
        key("keys", Scalar(F::Keys), "Where the JWKS document is: `service:/path` or a URL.").required(),
    ],
};

static ALLOW: Record = Record {
    name: "allow",
    doc: "What a token must allow.",
    one_of: &[],
    fields: &[key("roles", OneOrMany(&ROLE_SHAPE), "Any of these in the token's `roles`.").required()],
};

static GATEWAY: Record = Record {
    name: "gateway",
    doc: "The way in.",
    one_of: &[],
    fields: &[
        key("listen", Scalar(F::Address), "Where it listens; port 0 takes a free one.").default("127.0.0.1:8080"),
        key(
            "routes",
            Map(Key::Route, &ROUTE_SHAPE),
            "`METHOD PATH` to what becomes of it. Order means nothing, the most specific wins.",
        ),
    ],
};

static ROUTE: Record = Record {
    name: "route",
    doc: "A route: exactly one of `to`, `redirect`, `static`, `merge`, `migrate`.",
    one_of: &["to", "redirect", "static", "merge", "migrate"],
    fields: &[
        key("to", Scalar(F::RouteTarget), "`service`, `service:/path`, `workflow:NAME`, `topic:NAME` or a URL."),
        key("redirect", Or(F::Redirect, &REDIRECT), "Another location."),
        key("static", Scalar(F::File), "A directory: what `**` matched is looked for below it, else its `index.html`."),
        key("merge", Map(Key::Part, &MERGE_SHAPE), "Several answers in one object."),
        key("migrate", Json, "Share by share from one service to another.").later(),
        key("access", Scalar(F::Access), "Who may. Default: everyone."),
        key("limit", Or(F::Limit, &LIMIT), "How often: `10/min by ip`."),
        key("idempotent", Bool, "The service keeps answers by `Idempotency-Key`, so a POST with one may be retried.")
            .default("false")
            .not_with(&["redirect", "static", "merge"]),
        key("policy", Scalar(F::Policy), "Its own policy, and so its own breaker. Default: the service's.")
            .not_with(&["redirect", "static", "merge"]),
        key("timeout", Scalar(F::Duration), "Ends the whole call. Default: the policy's.")
            .not_with(&["redirect", "static"]),
    ],
};

static REDIRECT: Record = Record {
    name: "redirect",
    doc: "Another location.",
    one_of: &[],
    fields: &[
        key("to", Scalar(F::Redirect), "The location.").required(),
        key("status", Int { min: 301, max: 308 }, "301, 302, 303, 307 or 308.").default("307"),
    ],
};

static MERGE_PART: Record = Record {
    name: "merge part",
    doc: "One key of a merged answer.",
    one_of: &[],
    fields: &[
        key("get", Scalar(F::MergeGet), "Whom to ask: `service:/path`.").required(),
        key("required", Bool, "Its failure fails the whole.").default("false"),
        key("access", Scalar(F::Access), "Who gets it; others get the fallback. Default: everyone."),
        key("fallback", Json, "What stands there when it fails.").default("null"),
        key("policy", Scalar(F::Policy), "Its own policy. Default: the service's."),
    ],
};

static LIMIT: Record = Record {
    name: "limit",
    doc: "How often.",
    one_of: &[],
    fields: &[
        key("rate", Scalar(F::Rate), "`10/min` admits ten at once, then refills evenly.").required(),
        key(
            "by",
            Scalar(F::LimitBy),
            "Whose requests are counted together: `ip`, `claims.sub`, `header.x-api-key`. Default: everyone's.",
        ),
        key("wait", Scalar(F::Duration), "Queues for so long instead of refusing."),
    ],
};

static EVENTS: Record = Record {
    name: "events",
    doc: "Topics, and who hears of what.",
    one_of: &[],
    fields: &[
        key("topics", Map(Key::Topic, &TOPIC_SHAPE), "Topics by name, which is also the events' type."),
        key(
            "subscriptions",
            Map(Key::SubscribedTopic, &SUBSCRIBERS_SHAPE),
            "Topic to `service:/path`, `workflow:NAME`, or a list of them.",
        ),
    ],
};

static TOPIC: Record = Record {
    name: "topic",
    doc: "A topic.",
    one_of: &[],
    fields: &[
        key("schema", Scalar(F::File), "JSON Schema of the events' data."),
        key("keep", Scalar(F::Duration), "How long events stay.").default("7d"),
    ],
};

static SUBSCRIBER: Record = Record {
    name: "subscriber",
    doc: "Who hears of an event.",
    one_of: &[],
    fields: &[
        key("to", Scalar(F::Subscriber), "`service:/path` or `workflow:NAME`.").required(),
        key("id", Scalar(F::Template), "Id of the execution that is started. Default: `NAME-SUBJECT`."),
    ],
};

static WORKFLOW: Record = Record {
    name: "workflow",
    doc: "A workflow: steps, or a file of Conductor's JSON.",
    one_of: &["steps", "file"],
    fields: &[
        key("timeout", Scalar(F::Duration), "Longest run before undoing begins. Default: without end.")
            .not_with(&["file"]),
        key("steps", Steps(&STEP), "Steps, one after the other."),
        key("failed", Shape::Record(&FAILED), "Called once everything is undone; tried until it is answered.")
            .not_with(&["file"]),
        key("file", Scalar(F::File), "A workflow definition in Conductor's own JSON."),
    ],
};

static STEP: Record = Record {
    name: "step",
    doc: "A step: one HTTP call, or a task that a worker polls.",
    one_of: &["call", "task"],
    fields: &[
        key("call", Scalar(F::Call), "`METHOD service:/path`: one exchange per attempt."),
        key("task", Scalar(F::Task), "A SIMPLE task of this name, polled by a worker in any language."),
        key("with", JsonTemplate, "What it is sent. Default: the workflow's input."),
        key("undo", Scalar(F::Call), "What takes it back."),
        key("undo_with", JsonTemplate, "What the undo is sent. Default: `{input, output, key}`.").needs("undo"),
        key("timeout", Scalar(F::Duration), "Longest time for the step, waiting included. Default: the workflow's."),
        key(
            "attempts",
            Scalar(F::Attempts),
            "How often it is tried, the first time included, or `unlimited`. Default: 3; unlimited after the last step that has an undo.",
        ),
        key("policy", Scalar(F::Policy), "Its own policy. Default: the service's.").not_with(&["task"]),
    ],
};

static FAILED: Record = Record {
    name: "failed",
    doc: "The step that a failed workflow ends with.",
    one_of: &[],
    fields: &[
        key("call", Scalar(F::Call), "Whom to tell: `METHOD service:/path`.").required(),
        key("with", JsonTemplate, "What it is sent. Default: the workflow's input."),
        key("policy", Scalar(F::Policy), "Its own policy. Default: the service's."),
    ],
};
