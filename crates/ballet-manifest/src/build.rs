//! The tree becomes types. Here names are looked up and what contradicts itself is found; what has the wrong form was
//! reported by the walk and is passed over in silence.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ballet_core::{ErrorCode, Fallback, Policy, ServiceName, TopicName, WorkflowName};
use indexmap::IndexMap;
use serde_json::Value;

use crate::format::{self, KeysAt, RouteTarget, Subscriber};
use crate::merge::list;
use crate::mistake::{
    ACCESS_CYCLE, AMBIGUOUS_ROUTE, BAD_EXPRESSION, BAD_VALUE, EXCLUSIVE, MISSING_ENV, MISSING_FILE, MISSING_KEY,
    Mistake, NO_ENGINE, NOT_LOOPBACK, NOT_YET, SHARED_STORE, TWICE, UNKNOWN_NAME,
};
use crate::model::{
    Access, Action, Attempts, Call, Engine, EnvValue, Failed, Gateway, HttpUrl, Jwt, Keys, Limit, LimitBy, Linear,
    Listen, Manifest, MergePart, Platform, Policies, Pool, Route, Secret, Segment, Service, Source, Step, Store,
    Subscription, Target, Topic, Work, Workflow, WorkflowBody,
};
use crate::template::{JsonTemplate, Template};
use crate::walk::nearest;
use crate::yaml::{At, Core, Entry, Node, Raw, Sources};

/// A file that the manifest names may be this large.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// A secret may be this large.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Events stay for so long unless their topic says otherwise.
const KEEP: Duration = Duration::from_secs(7 * 86_400);

/// What building needs to know beside the tree.
pub(crate) struct Surroundings<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) profile: Option<&'a str>,
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) engines: &'a [String],
    pub(crate) sources: &'a Sources,
}

/// Builds the manifest; it is whole only if there are no mistakes. Also the files that it names.
pub(crate) fn build(root: &Node, surroundings: Surroundings<'_>) -> (Manifest, Vec<PathBuf>, Vec<Mistake>) {
    let mut builder = Builder { around: surroundings, root, mistakes: Vec::new(), files: Vec::new() };
    let manifest = builder.manifest();
    (manifest, builder.files, builder.mistakes)
}

/// How often a step is tried that does not say it itself; `undoes` tells which steps have an undo.
///
/// After the last step that has an undo there is no way back, so those go on until they are answered.
pub(crate) fn default_attempts(undoes: &[bool], index: usize) -> Attempts {
    match undoes.iter().rposition(|undo| *undo) {
        Some(last) if index > last => Attempts::Unlimited,
        Some(_) | None => Attempts::Times(3),
    }
}

struct Builder<'a> {
    around: Surroundings<'a>,
    root: &'a Node,
    mistakes: Vec<Mistake>,
    files: Vec<PathBuf>,
}

/// Which expressions have a meaning at a place.
enum Place<'a> {
    Route {
        segments: &'a [Segment],
        access: bool,
    },
    Event,
    /// `before`: steps whose output is there; `all`: every step; `failure`: in `failed`.
    Workflow {
        before: &'a [&'a str],
        all: &'a [&'a str],
        failure: bool,
    },
}

impl<'a> Builder<'a> {
    fn note(&mut self, at: &At, code: ErrorCode, message: impl Into<String>, help: impl Into<String>) {
        self.mistakes.push(self.around.sources.mistake(at, code, message, help));
    }

    fn section(&self, path: &[&str]) -> &'a [Entry] {
        path.iter().try_fold(self.root, |node, key| node.get(key)).map_or(&[], Node::entries)
    }

    fn manifest(&mut self) -> Manifest {
        let default_name = || {
            let name = self.around.dir.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
            if format::system(&name).is_ok() { name } else { "system".to_owned() }
        };
        let system = self.root.get("system").and_then(Node::text).map_or_else(default_name, str::to_owned);
        let policies = self.policies();
        let access = self.access();
        Manifest {
            system,
            dir: self.around.dir.to_owned(),
            profile: self.around.profile.map(str::to_owned),
            build: self.root.get("build").and_then(command),
            platform: self.platform(),
            services: self.services(),
            policies,
            gateway: self.gateway(&access),
            access,
            topics: self.topics(),
            subscriptions: self.subscriptions(),
            workflows: self.workflows(),
        }
    }

    // ---- names

    fn known(&self, path: &[&str]) -> Vec<&'a str> {
        self.section(path).iter().map(|entry| entry.key.as_str()).collect()
    }

    /// Whether `name` is a key of the section; a mistake if not.
    fn look_up(&mut self, at: &At, noun: &str, name: &str, section: &[&str]) -> bool {
        let known = self.known(section);
        if known.contains(&name) {
            return true;
        }
        let help = match (nearest(name, known.iter().copied()), known.as_slice()) {
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, []) => format!("there are none; add it under `{}:`", section.join(".")),
            (None, known) => format!("add it under `{}:`; there are {}", section.join("."), list(known)),
        };
        self.note(at, UNKNOWN_NAME, format!("there is no {noun} `{name}`"), help);
        false
    }

    fn service_known(&mut self, node: &Node, name: &ServiceName) -> bool {
        let at = self.part(node, name.as_str());
        self.look_up(&at, "service", name.as_str(), &["services"])
    }

    fn policy_name(&mut self, node: Option<&Node>) -> Option<String> {
        let node = node?;
        let name = node.text()?;
        if name == "default" {
            return Some(name.to_owned());
        }
        self.look_up(&node.at.clone(), "policy", name, &["policies"]).then(|| name.to_owned())
    }

    fn access_rule(&mut self, node: Option<&Node>, rules: &IndexMap<String, Arc<Access>>) -> Option<Arc<Access>> {
        let node = node?;
        let name = node.text()?;
        if !self.look_up(&node.at.clone(), "access rule", name, &["access"]) {
            return None;
        }
        rules.get(name).cloned()
    }

    /// The place of a piece of a scalar's text.
    fn part(&self, node: &Node, piece: &str) -> At {
        let offset = node
            .scalar()
            .and_then(|scalar| scalar.text.find(piece).map(|at| scalar.text[..at].chars().count()))
            .unwrap_or(usize::MAX);
        self.around.sources.within(node, offset, piece.chars().count())
    }

    // ---- expressions

    fn expressions(&mut self, node: &Node, template: &Template, place: &Place<'_>) {
        for expr in template.exprs() {
            let Err((message, help)) = place.check(&expr.scope, &expr.path) else { continue };
            let at = self.part(node, &expr.to_string());
            self.note(&at, BAD_EXPRESSION, format!("`{expr}` {message}"), help);
        }
    }

    fn json_template(&mut self, node: &Node, place: &Place<'_>) -> JsonTemplate {
        match &node.raw {
            Raw::List(items) => JsonTemplate::List(items.iter().map(|item| self.json_template(item, place)).collect()),
            Raw::Map(entries) => JsonTemplate::Map(
                entries.iter().map(|entry| (entry.key.clone(), self.json_template(&entry.value, place))).collect(),
            ),
            Raw::Scalar(scalar) => match (scalar.core(), Template::parse(scalar.value())) {
                (Core::Text, Ok(template)) => {
                    self.expressions(node, &template, place);
                    JsonTemplate::Text(template)
                }
                (Core::Text | Core::Null | Core::Bool(_) | Core::Int(_) | Core::Float(_), _) => {
                    JsonTemplate::Literal(node.json())
                }
            },
        }
    }

    // ---- files and secrets

    fn read(&mut self, node: &Node, noun: &str, limit: u64) -> Option<(PathBuf, String)> {
        let text = node.text().filter(|text| !text.is_empty())?;
        let path = self.around.dir.join(text);
        let size = std::fs::metadata(&path).map(|data| (data.is_file(), data.len()));
        let what = match size {
            Ok((false, _)) => "is not a file".to_owned(),
            Ok((true, size)) if size > limit => format!("is larger than {} KiB", limit / 1024),
            Ok(_) => match std::fs::read(&path).map(String::from_utf8) {
                Ok(Ok(content)) => {
                    self.files.push(path.clone());
                    return Some((path, content));
                }
                Ok(Err(_)) => "is not UTF-8".to_owned(),
                Err(error) => format!("cannot be read: {}", plain(&error)),
            },
            Err(error) => format!("cannot be read: {}", plain(&error)),
        };
        self.note(&node.at, MISSING_FILE, format!("the {noun} `{text}` {what}"), "paths are relative to the manifest");
        None
    }

    fn json_file(&mut self, node: &Node, noun: &str) -> Option<(PathBuf, Value)> {
        let (path, content) = self.read(node, noun, MAX_FILE_BYTES)?;
        match serde_json::from_str(&content) {
            Ok(value) => Some((path, value)),
            Err(error) => {
                let text = node.text().unwrap_or_default();
                let help = format!("look at {}:{}:{}", text, error.line(), error.column());
                self.note(&node.at, MISSING_FILE, format!("the {noun} `{text}` is not JSON"), help);
                None
            }
        }
    }

    /// `{ env: NAME }` or `{ file: PATH }`.
    fn secret(&mut self, node: &Node) -> Option<Secret> {
        if let Some(name) = node.get("env") {
            let text = name.text()?;
            let value = self.around.env.get(text);
            if value.is_none() {
                let message = format!("the environment variable `{text}` is not set");
                self.note(&name.at, MISSING_ENV, message, "set it before `ballet` starts");
            }
            return value.map(Secret::new);
        }
        let (_, content) = self.read(node.get("file")?, "secret", MAX_SECRET_BYTES)?;
        Some(Secret::new(content.strip_suffix('\n').map_or(&*content, |line| line.strip_suffix('\r').unwrap_or(line))))
    }

    // ---- platform

    fn platform(&mut self) -> Platform {
        let Some(node) = self.root.get("platform") else { return Platform::default() };
        let insecure = node.get("insecure").and_then(boolean).unwrap_or(false);
        let mut listen = Listen::default();
        if let Some(place) = node.get("listen") {
            let main = if matches!(place.raw, Raw::Map(_)) { place.get("main") } else { Some(place) };
            listen.main = self.listener(main).unwrap_or(listen.main);
        }
        Platform {
            listen,
            dns: None,
            insecure,
            registry: self.engine(node, "registry", &["postgres", "consul", "kubernetes"]),
            bus: self.engine(node, "bus", &["postgres", "nats", "kafka", "rabbitmq", "redis"]),
            workflows: self.engine(node, "workflows", &["postgres"]),
        }
    }

    fn listener(&mut self, node: Option<&Node>) -> Option<SocketAddr> {
        let node = node?;
        let address = format::address(node.text()?).ok()?;
        let insecure =
            self.root.get("platform").and_then(|node| node.get("insecure")).and_then(boolean).unwrap_or(false);
        if !address.ip().is_loopback() && !insecure {
            self.note(
                &node.at,
                NOT_LOOPBACK,
                format!("`{address}` is open to the network"),
                format!("listen on `127.0.0.1:{}`, or say `platform: {{ insecure: true }}`", address.port()),
            );
        }
        Some(address)
    }

    fn engine(&mut self, platform: &Node, key: &str, kinds: &[&str]) -> Engine {
        let Some(node) = platform.get(key) else { return Engine::Embedded };
        let url = match &node.raw {
            Raw::Map(_) => self.secret(node),
            Raw::Scalar(_) | Raw::List(_) => node.text().map(Secret::new),
        };
        let Some(url) = url else { return Engine::Embedded };
        let Ok(scheme) = format::engine(url.expose()) else {
            if matches!(node.raw, Raw::Map(_)) {
                let help = "it must hold a URL such as `postgres://host/database`";
                self.note(&node.at, BAD_VALUE, format!("the secret for `{key}` is not an engine"), help);
            }
            return Engine::Embedded;
        };
        let Some(scheme) = scheme else { return Engine::Embedded };
        if !kinds.contains(&scheme) {
            let help = match nearest(scheme, kinds.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("it runs `embedded` or on {}", list(kinds)),
            };
            self.note(&node.at, UNKNOWN_NAME, format!("`{key}` cannot run on `{scheme}`"), help);
        } else if !self.around.engines.iter().any(|engine| engine == scheme) {
            let mut known: Vec<&str> = vec!["embedded"];
            known.extend(self.around.engines.iter().map(String::as_str).filter(|engine| kinds.contains(engine)));
            let help = format!(
                "this build runs `{key}` on {}; `cargo build --release --features {scheme}` adds it where it exists",
                list(&known)
            );
            self.note(&node.at, NO_ENGINE, format!("this build has no `{scheme}`"), help);
        }
        Engine::Url { scheme: scheme.to_owned(), url }
    }

    // ---- policies

    fn policies(&mut self) -> Policies {
        let entries = self.section(&["policies"]);
        let default = entries.iter().find(|entry| entry.key == "default");
        let default = default.map_or_else(Policy::default, |entry| policy("default", &entry.value, &Policy::default()));
        let named = entries
            .iter()
            .filter(|entry| entry.key != "default")
            .map(|entry| (entry.key.clone(), Arc::new(policy(&entry.key, &entry.value, &default))))
            .collect();
        Policies { default: Arc::new(default), named }
    }

    // ---- access

    fn access(&mut self) -> IndexMap<String, Arc<Access>> {
        let mut rules = IndexMap::new();
        for entry in self.section(&["access"]) {
            if let Some(next) = entry.value.get("use")
                && let Some(name) = next.text()
            {
                self.look_up(&next.at.clone(), "access rule", name, &["access"]);
            }
            if let Some(node) = entry.value.get("jwt").and_then(|jwt| jwt.get("keys")) {
                self.keys(node);
            }
            let mut chain: Vec<&Entry> = vec![entry];
            let jwt = loop {
                let last = chain[chain.len() - 1];
                if let Some(jwt) = last.value.get("jwt") {
                    break jwt;
                }
                let Some(next) = last.value.get("use") else { break last.value.get("use").unwrap_or(&last.value) };
                let Some(following) =
                    next.text().and_then(|name| self.section(&["access"]).iter().find(|entry| entry.key == name))
                else {
                    break next;
                };
                if following.key == entry.key {
                    let names: Vec<&str> = chain.iter().chain([&following]).map(|entry| entry.key.as_str()).collect();
                    let message = format!("the access rule `{}` uses itself: {}", entry.key, names.join(" → "));
                    let at = entry.value.get("use").map_or_else(|| entry.key_at.clone(), |node| node.at.clone());
                    self.note(&at, ACCESS_CYCLE, message, "give one of them a `jwt:` instead of its `use:`");
                    break next;
                }
                if chain.iter().any(|known| known.key == following.key) {
                    break next; // a circle of others, reported there
                }
                chain.push(following);
            };
            let Some(jwt) = self.jwt(jwt) else { continue };
            let roles: Vec<Vec<String>> = chain
                .iter()
                .rev()
                .filter_map(|entry| entry.value.get("allow")?.get("roles"))
                .map(|roles| one_or_many(roles).iter().filter_map(|node| node.text().map(str::to_owned)).collect())
                .collect();
            let name = entry.key.clone();
            rules.insert(name.clone(), Arc::new(Access { name, jwt: Arc::new(jwt), roles }));
        }
        rules
    }

    /// The names behind `keys`, and what cannot be asked yet.
    fn keys(&mut self, node: &Node) {
        match node.text().map(format::keys) {
            Some(Ok(KeysAt::Service { service, .. })) => {
                self.service_known(node, &service);
            }
            Some(Ok(KeysAt::Url(url))) => self.no_tls(node, &url),
            Some(Err(_)) | None => {}
        }
    }

    fn jwt(&self, node: &Node) -> Option<Jwt> {
        let text = |key: &str| node.get(key)?.text().map(str::to_owned);
        Some(Jwt {
            issuer: text("issuer")?,
            audience: text("audience")?,
            keys: match format::keys(node.get("keys")?.text()?).ok()? {
                KeysAt::Service { service, path } => Keys::Service { service, path },
                KeysAt::Url(url) => Keys::Url(url),
            },
        })
    }

    fn no_tls(&mut self, node: &Node, url: &HttpUrl) {
        if url.tls {
            let help = "use `http://` inside a network that you trust";
            self.note(&node.at, NOT_YET, "calls over `https` are not supported yet", help);
        }
    }

    // ---- services

    fn services(&mut self) -> IndexMap<ServiceName, Service> {
        let mut stores: HashMap<String, &str> = HashMap::new();
        let mut services = IndexMap::new();
        let entries = self.section(&["services"]);
        if let Some(entry) = self.root.entry("services")
            && matches!(entry.value.raw, Raw::Map(_))
            && entries.is_empty()
        {
            let help = "add one: `orders: { run: shop-orders }`";
            self.note(&entry.key_at, MISSING_KEY, "there is no service", help);
        }
        for entry in entries {
            let service = self.service(entry);
            if let Some(node) = entry.value.get("store")
                && let Some(Store::Url(url)) = self.store(node)
                && let Some(other) = stores.insert(url.expose().to_owned(), &entry.key)
            {
                self.note(
                    &node.at,
                    SHARED_STORE,
                    format!("`{}` and `{other}` have the same store", entry.key),
                    "give each service its own database; others ask the service that owns it",
                );
            }
            if let Some(service) = service {
                services.insert(service.name.clone(), service);
            }
        }
        services
    }

    fn store(&mut self, node: &Node) -> Option<Store> {
        let url = match &node.raw {
            Raw::Map(_) => {
                let quiet = self.mistakes.len();
                let secret = self.secret(node);
                // Asked for twice (here and for the comparison), reported once.
                let fresh = self.mistakes.split_off(quiet);
                for mistake in fresh {
                    if !self.mistakes.contains(&mistake) {
                        self.mistakes.push(mistake);
                    }
                }
                secret?
            }
            Raw::Scalar(_) | Raw::List(_) => Secret::new(node.text()?),
        };
        match format::store(url.expose()) {
            Ok(true) => Some(Store::Url(url)),
            Ok(false) => Some(Store::Sqlite),
            Err(_) => None,
        }
    }

    fn service(&mut self, entry: &Entry) -> Option<Service> {
        let node = &entry.value;
        let source = if let Some(node) = node.get("run") {
            command(node).map(Source::Run)
        } else if let Some(node) = node.get("url") {
            let url = node.text().and_then(|text| format::http_url(text, false).ok());
            if let Some(url) = &url {
                self.no_tls(node, url);
            }
            url.map(Source::Url)
        } else {
            node.get("image").and_then(Node::text).map(|text| Source::Image(text.to_owned()))
        };
        let env = node.get("env").map_or(&[][..], Node::entries).iter();
        let env: IndexMap<String, EnvValue> = env
            .filter_map(|entry| {
                let value = match &entry.value.raw {
                    Raw::Map(_) => EnvValue::Secret(self.secret(&entry.value)?),
                    Raw::Scalar(scalar) => EnvValue::Plain(scalar.value().to_owned()),
                    Raw::List(_) => return None,
                };
                Some((entry.key.clone(), value))
            })
            .collect();
        let calls = node.get("calls").map(|calls| {
            let mut names = Vec::new();
            for node in one_or_many(calls) {
                if let Some(Ok(name)) = node.text().map(format::service)
                    && self.service_known(node, &name)
                {
                    names.push(name);
                }
            }
            names
        });
        let outside = node.get("url").is_some();
        let health = node.get("health").and_then(Node::text).map(str::to_owned);
        Some(Service {
            name: entry.key.parse().ok()?,
            store: node.get("store").and_then(|node| self.store(node)),
            init: node
                .get("init")
                .map(|init| one_or_many(init).iter().filter_map(command).collect())
                .unwrap_or_default(),
            build: node.get("build").and_then(command),
            env,
            instances: node.get("instances").and_then(integer).and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
            health: health.or_else(|| (!outside).then(|| "/readyz".to_owned())),
            pool: node.get("pool").and_then(Node::text).and_then(|t| format::pool(t).ok()).unwrap_or(Pool::Normal),
            policy: self.policy_name(node.get("policy")),
            owner: node.get("owner").and_then(Node::text).map(str::to_owned),
            calls,
            source: source?,
        })
    }

    // ---- gateway

    fn gateway(&mut self, rules: &IndexMap<String, Arc<Access>>) -> Gateway {
        let mut gateway = Gateway::default();
        let Some(node) = self.root.get("gateway") else { return gateway };
        gateway.listen = self.listener(node.get("listen")).unwrap_or(gateway.listen);
        let mut seen: HashMap<(String, String), &Entry> = HashMap::new();
        for entry in node.get("routes").map_or(&[][..], Node::entries) {
            let Ok((method, path)) = format::route_key(&entry.key) else { continue };
            let shape: String = path
                .segments
                .iter()
                .map(|segment| match segment {
                    Segment::Literal(text) => format!("/{text}"),
                    Segment::Param(_) | Segment::One => "/*".to_owned(),
                    Segment::Rest => "/**".to_owned(),
                })
                .collect();
            if let Some(first) = seen.insert((method.as_str().to_owned(), shape), entry) {
                let message = format!("`{}` takes the same requests as `{}`", entry.key, first.key);
                let help = format!("the other is on line {}; delete one, or make it more specific", first.key_at.line);
                self.note(&entry.key_at, AMBIGUOUS_ROUTE, message, help);
            }
            let node = &entry.value;
            let access_node = node.get("access");
            let access = self.access_rule(access_node, rules);
            let guarded = access_node.is_some();
            let place = Place::Route { segments: &path.segments, access: guarded };
            let action = self.action(node, &place, &path.segments, guarded, rules);
            let limit = self.limit(node.get("limit"), guarded);
            let policy = self.policy_name(node.get("policy"));
            let Some(action) = action else { continue };
            gateway.routes.push(Route {
                name: entry.key.clone(),
                method,
                action,
                access,
                limit,
                idempotent: node.get("idempotent").and_then(boolean).unwrap_or(false),
                policy,
                timeout: node.get("timeout").and_then(duration),
                origin: entry.key_at.origin.clone(),
                path,
            });
        }
        gateway
    }

    fn action(
        &mut self,
        node: &Node,
        place: &Place<'_>,
        segments: &[Segment],
        guarded: bool,
        rules: &IndexMap<String, Arc<Access>>,
    ) -> Option<Action> {
        let to = if matches!(node.raw, Raw::Scalar(_)) { Some(node) } else { node.get("to") };
        if let Some(node) = to {
            return self.route_target(node, place);
        }
        if let Some(node) = node.get("redirect") {
            let (location_node, status) = match &node.raw {
                Raw::Map(_) => (node.get("to")?, node.get("status")),
                Raw::Scalar(_) | Raw::List(_) => (node, None),
            };
            let location = format::redirect(location_node.text()?).ok()?;
            self.expressions(location_node, &location, place);
            let number = status.and_then(integer).and_then(|n| u16::try_from(n).ok()).unwrap_or(307);
            if let Some(node) = status.filter(|_| (304..=306).contains(&number)) {
                let message = format!("{number} does not redirect");
                self.note(&node.at, BAD_VALUE, message, "write 301, 302, 303, 307 or 308");
            }
            return Some(Action::Redirect { status: number, location });
        }
        if let Some(node) = node.get("static") {
            return Some(Action::Static { dir: self.around.dir.join(node.text()?) });
        }
        let merge = node.get("merge")?;
        if merge.entries().is_empty() && matches!(merge.raw, Raw::Map(_)) {
            let help = "add one: `products: { get: \"catalog:/products\" }`";
            self.note(&merge.at, MISSING_KEY, "there is nothing to merge", help);
        }
        let mut parts = Vec::new();
        for entry in merge.entries() {
            let node = &entry.value;
            let access_node = node.get("access");
            let access = self.access_rule(access_node, rules);
            let required = node.get("required").and_then(boolean).unwrap_or(false);
            if required && let Some(fallback) = node.entry("fallback") {
                let help = "a required part fails the whole: delete one of them";
                let message = "`fallback` has no meaning beside `required: true`";
                self.note(&fallback.key_at.clone(), EXCLUSIVE, message, help);
            }
            let policy = self.policy_name(node.get("policy"));
            let Some(get) = node.get("get") else { continue };
            let Some(Ok((service, path))) = get.text().map(|text| format::service_path(text, 0)) else { continue };
            self.service_known(get, &service);
            let place = Place::Route { segments, access: guarded || access_node.is_some() };
            self.expressions(get, &path, &place);
            parts.push(MergePart {
                name: entry.key.clone(),
                method: "GET".to_owned(),
                service,
                path,
                required,
                access,
                fallback: node.entry("fallback").map_or(Value::Null, |entry| entry.value.json()),
                policy,
            });
        }
        Some(Action::Merge(parts))
    }

    fn route_target(&mut self, node: &Node, place: &Place<'_>) -> Option<Action> {
        Some(match format::route_target(node.text()?).ok()? {
            RouteTarget::Service { service, rewrite } => {
                self.service_known(node, &service);
                if let Some(rewrite) = &rewrite {
                    self.expressions(node, rewrite, place);
                }
                Action::Service { service, rewrite }
            }
            RouteTarget::Url { url, rewrite } => {
                self.no_tls(node, &url);
                if let Some(rewrite) = &rewrite {
                    self.expressions(node, rewrite, place);
                }
                Action::Url { url, rewrite }
            }
            RouteTarget::Workflow(name) => {
                self.look_up(&self.part(node, name.as_str()), "workflow", name.as_str(), &["workflows"]);
                let help = "let a service publish an event, and start the workflow by a subscription";
                self.note(&node.at, NOT_YET, "routes to a workflow are not supported yet", help);
                Action::Workflow(name)
            }
            RouteTarget::Topic(name) => {
                let help = "let a service publish the event";
                self.note(&node.at, NOT_YET, "routes to a topic are not supported yet", help);
                Action::Topic(name)
            }
        })
    }

    fn limit(&mut self, node: Option<&Node>, guarded: bool) -> Option<Limit> {
        let node = node?;
        let (limit, by_node) = match &node.raw {
            Raw::Map(_) => {
                let (count, period) = format::rate(node.get("rate")?.text()?).ok()?;
                let by_node = node.get("by");
                let by = match by_node {
                    Some(node) => format::limit_by(node.text()?).ok()?,
                    None => LimitBy::Everyone,
                };
                let wait = node.get("wait").and_then(duration).unwrap_or(Duration::ZERO);
                (Limit { count, period, by, wait }, by_node.unwrap_or(node))
            }
            Raw::Scalar(_) | Raw::List(_) => (format::limit(node.text()?).ok()?, node),
        };
        match &limit.by {
            LimitBy::Claim(path) if !guarded => {
                let at = self.part(by_node, &format!("claims.{}", path.join(".")));
                let help = "add `access:` to this route, or count `by ip`";
                self.note(&at, EXCLUSIVE, "there are no claims on a route without `access`", help);
            }
            LimitBy::Claim(_) | LimitBy::Everyone | LimitBy::Ip | LimitBy::Header(_) => {}
        }
        Some(limit)
    }

    // ---- events

    fn topics(&mut self) -> IndexMap<TopicName, Topic> {
        let mut topics = IndexMap::new();
        for entry in self.section(&["events", "topics"]) {
            let schema = entry.value.get("schema").and_then(|node| {
                let (path, value) = self.json_file(node, "schema")?;
                if !value.is_object() && !value.is_boolean() {
                    let text = node.text().unwrap_or_default();
                    let help = "a JSON Schema is an object, or `true`";
                    self.note(&node.at, MISSING_FILE, format!("`{text}` is not a JSON Schema"), help);
                }
                Some(path)
            });
            let keep = entry.value.get("keep").and_then(duration).unwrap_or(KEEP);
            if let Ok(name) = entry.key.parse::<TopicName>() {
                topics.insert(name.clone(), Topic { name, schema, keep });
            }
        }
        topics
    }

    fn subscriptions(&mut self) -> Vec<Subscription> {
        let topics = self.known(&["events", "topics"]);
        let mut subscriptions: Vec<Subscription> = Vec::new();
        for entry in self.section(&["events", "subscriptions"]) {
            if !topics.contains(&entry.key.as_str())
                && let Some(near) = nearest(&entry.key, topics.iter().copied())
            {
                // Topics need no declaration, but one that is nearly declared is a slip.
                let message = format!("there is no topic `{}`", entry.key);
                let help = format!("did you mean `{near}`? if not, declare it under `events.topics:`");
                self.note(&entry.key_at, UNKNOWN_NAME, message, help);
            }
            for node in one_or_many(&entry.value) {
                let (to, id) = match &node.raw {
                    Raw::Map(_) => (node.get("to"), node.get("id")),
                    Raw::Scalar(_) | Raw::List(_) => (Some(node), None),
                };
                let Some(to) = to else { continue };
                let Some(Ok(subscriber)) = to.text().map(format::subscriber) else { continue };
                let target = match subscriber {
                    Subscriber::Service { service, path } => {
                        self.service_known(to, &service);
                        self.expressions(to, &path, &Place::Event);
                        if let Some(id) = id {
                            let help = "it names the execution of a workflow: delete it";
                            self.note(&id.at, EXCLUSIVE, "`id` has no meaning for a service", help);
                        }
                        Target::Service { service, path }
                    }
                    Subscriber::Workflow(name) => {
                        self.look_up(&self.part(to, name.as_str()), "workflow", name.as_str(), &["workflows"]);
                        let template = id.and_then(|id| Template::parse(id.text()?).ok());
                        if let (Some(id), Some(template)) = (id, &template) {
                            self.expressions(id, template, &Place::Event);
                            if template.exprs().next().is_none() {
                                let help = "put something of the event into it: `${event.subject}`";
                                let message = "every event would start the same execution";
                                self.note(&id.at, BAD_EXPRESSION, message, help);
                            }
                        }
                        Target::Workflow { name, id: template }
                    }
                };
                let Ok(topic) = entry.key.parse::<TopicName>() else { continue };
                let same = |other: &Subscription| {
                    other.topic == topic
                        && match (&other.target, &target) {
                            (Target::Service { service, path }, Target::Service { service: s, path: p }) => {
                                service == s && path == p
                            }
                            (Target::Workflow { name, .. }, Target::Workflow { name: n, .. }) => name == n,
                            (Target::Service { .. }, Target::Workflow { .. })
                            | (Target::Workflow { .. }, Target::Service { .. }) => false,
                        }
                };
                if subscriptions.iter().any(same) {
                    let message = format!("`{}` goes to `{}` already", entry.key, to.text().unwrap_or_default());
                    self.note(&to.at, TWICE, message, "delete one of them");
                }
                subscriptions.push(Subscription { topic, target, origin: node.at.origin.clone() });
            }
        }
        subscriptions
    }

    // ---- workflows

    fn workflows(&mut self) -> IndexMap<WorkflowName, Workflow> {
        let mut workflows = IndexMap::new();
        for entry in self.section(&["workflows"]) {
            let body = match entry.value.get("file") {
                Some(node) => self.conductor(node, &entry.key),
                None => Some(WorkflowBody::Linear(self.linear(&entry.value))),
            };
            if let (Some(body), Ok(name)) = (body, entry.key.parse::<WorkflowName>()) {
                workflows.insert(name.clone(), Workflow { name, body });
            }
        }
        workflows
    }

    fn conductor(&mut self, node: &Node, name: &str) -> Option<WorkflowBody> {
        let (path, definition) = self.json_file(node, "workflow")?;
        let text = node.text().unwrap_or_default();
        if !definition.get("tasks").is_some_and(Value::is_array) {
            let help = "it is an object with `name` and a list of `tasks`";
            self.note(&node.at, MISSING_FILE, format!("`{text}` is not a workflow definition"), help);
        } else if let Some(other) = definition.get("name").and_then(Value::as_str).filter(|other| *other != name) {
            let help = format!("name it `{other}` here, or `{name}` there");
            self.note(&node.at, MISSING_FILE, format!("`{text}` defines `{other}`, not `{name}`"), help);
        }
        Some(WorkflowBody::Conductor { path, definition })
    }

    fn linear(&mut self, node: &Node) -> Linear {
        let entries: Vec<&Entry> =
            node.get("steps").map_or(&[][..], Node::items).iter().filter_map(|item| item.entries().first()).collect();
        let all: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let undoes: Vec<bool> = entries.iter().map(|entry| entry.value.get("undo").is_some()).collect();
        let mut steps = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let node = &entry.value;
            let before = Place::Workflow { before: &all[..index], all: &all, failure: false };
            // By the time of an undo the step's own output may be known.
            let after = Place::Workflow { before: &all[..=index], all: &all, failure: false };
            let work = match (node.get("call"), node.get("task").and_then(Node::text)) {
                (Some(call), _) => self.call(call, &before).map(Work::Call),
                (None, Some(name)) => Some(Work::Task(name.to_owned())),
                (None, None) => None,
            };
            let with = node.entry("with").map(|entry| self.json_template(&entry.value, &before));
            let undo = node.get("undo").and_then(|undo| self.call(undo, &after));
            let undo_with = node.entry("undo_with").map(|entry| self.json_template(&entry.value, &after));
            let policy = self.policy_name(node.get("policy"));
            let attempts = node.get("attempts").and_then(Node::text).and_then(|text| format::attempts(text).ok());
            let Some(work) = work else { continue };
            steps.push(Step {
                name: entry.key.clone(),
                work,
                with,
                undo,
                undo_with,
                timeout: node.get("timeout").and_then(duration),
                attempts: match attempts {
                    Some(Some(count)) => Attempts::Times(count),
                    Some(None) => Attempts::Unlimited,
                    None => default_attempts(&undoes, index),
                },
                policy,
            });
        }
        let failed = node.get("failed").and_then(|node| {
            let place = Place::Workflow { before: &all, all: &all, failure: true };
            let with = node.entry("with").map(|entry| self.json_template(&entry.value, &place));
            let policy = self.policy_name(node.get("policy"));
            Some(Failed { call: self.call(node.get("call")?, &place)?, with, policy })
        });
        Linear { timeout: node.get("timeout").and_then(duration), steps, failed }
    }

    fn call(&mut self, node: &Node, place: &Place<'_>) -> Option<Call> {
        let (method, service, path) = format::call(node.text()?).ok()?;
        self.service_known(node, &service);
        self.expressions(node, &path, place);
        Some(Call { method, service, path })
    }
}

impl Place<'_> {
    /// Whether an expression has a meaning here; if not, what to say after it, and what to do.
    fn check(&self, scope: &str, path: &[String]) -> Result<(), (String, String)> {
        let here = match self {
            Self::Route { segments, access } => match (scope, path) {
                ("claims", []) | ("query" | "header" | "path", [] | [_, _, ..]) => {
                    return Err((format!("needs one name after `{scope}`"), format!("write `${{{scope}.name}}`")));
                }
                ("claims", _) if *access => return Ok(()),
                ("claims", _) => {
                    return Err((
                        "has no claims to look at".into(),
                        "add `access:`: without it there is no token".into(),
                    ));
                }
                ("query" | "header", [_]) => return Ok(()),
                ("path", [name]) => {
                    let mut known: Vec<String> = Vec::new();
                    for segment in *segments {
                        match segment {
                            Segment::Param(name) => known.push(name.clone()),
                            Segment::Rest => known.push("**".to_owned()),
                            Segment::Literal(_) | Segment::One => {}
                        }
                    }
                    if known.contains(name) {
                        return Ok(());
                    }
                    let help = match (nearest(name, known.iter().map(String::as_str)), known.is_empty()) {
                        (Some(near), _) => format!("did you mean `${{path.{near}}}`?"),
                        (None, true) => "name a segment in the route: `/orders/{id}`".to_owned(),
                        (None, false) => format!("the route has {}", list(&known)),
                    };
                    return Err(("is not in the route's path".into(), help));
                }
                _ => "in routes there are `claims`, `path`, `query` and `header`".to_owned(),
            },
            Self::Event => match (scope, path) {
                ("event", [_, ..]) => return Ok(()),
                _ => {
                    "in subscriptions there is `event`: `${event.subject}`, `${event.id}`, `${event.data.…}`".to_owned()
                }
            },
            Self::Workflow { before, all, failure } => match (scope, path) {
                ("input", _) | ("execution", []) => return Ok(()),
                ("execution", _) => {
                    return Err(("is not known".into(), "`${execution}` is the execution's id".into()));
                }
                ("failure", [word]) if *failure && ["step", "status", "code"].contains(&word.as_str()) => return Ok(()),
                ("failure", _) if *failure => {
                    let help = "there are `${failure.step}`, `${failure.status}` and `${failure.code}`";
                    return Err(("is not known".into(), help.into()));
                }
                ("failure", _) => {
                    return Err(("has a meaning only in `failed:`".into(), "delete it".into()));
                }
                (step, path) if all.contains(&step) => {
                    if path.first().map(String::as_str) != Some("output") {
                        let help = format!("write `${{{step}.output}}`, or a field below it");
                        return Err(("is not known".into(), help));
                    }
                    if before.contains(&step) {
                        return Ok(());
                    }
                    let help = "move this step behind it, or take the value from somewhere else";
                    return Err(("is not there yet: that step has not run".into(), help.into()));
                }
                (step, _) => match nearest(step, all.iter().copied().chain(["input", "failure", "execution"])) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => {
                        "in workflows there are `input`, `STEP.output` and `execution`, in `failed:` also `failure`"
                            .to_owned()
                    }
                },
            },
        };
        Err(("has no meaning here".into(), here))
    }
}

fn policy(name: &str, node: &Node, base: &Policy) -> Policy {
    let mut policy = Policy { name: name.to_owned(), ..base.clone() };
    let number = |node: Option<&Node>| node.and_then(integer).and_then(|number| u32::try_from(number).ok());
    let set = |place: &mut Duration, node: Option<&Node>| {
        if let Some(value) = node.and_then(duration) {
            *place = value;
        }
    };
    set(&mut policy.timeout, node.get("timeout"));
    if let Some(retry) = node.get("retry") {
        policy.retry.max = number(retry.get("max")).unwrap_or(policy.retry.max);
        if let Some(Ok((first, last))) = retry.get("backoff").and_then(Node::text).map(format::backoff) {
            (policy.retry.backoff_first, policy.retry.backoff_max) = (first, last);
        }
        if let Some(Ok(share)) = retry.get("budget").and_then(Node::text).map(format::percent) {
            policy.retry.budget = share;
        }
    }
    if let Some(breaker) = node.get("breaker") {
        let failures = number(breaker.get("failures")).and_then(std::num::NonZeroU32::new);
        policy.breaker.failures = failures.unwrap_or(policy.breaker.failures);
        set(&mut policy.breaker.open_for, breaker.get("open_for"));
    }
    if let Some(bulkhead) = node.get("bulkhead") {
        let size = |node: Option<&Node>| number(node).map(|number| number as usize);
        policy.bulkhead.max = size(bulkhead.get("max")).unwrap_or(policy.bulkhead.max);
        policy.bulkhead.queue = size(bulkhead.get("queue")).unwrap_or(policy.bulkhead.queue);
        set(&mut policy.bulkhead.wait, bulkhead.get("wait"));
    }
    if let Some(fallback) = node.get("fallback") {
        let known = policy.fallback.take();
        let status = number(fallback.get("status")).and_then(|status| u16::try_from(status).ok());
        let title = fallback.get("title").and_then(Node::text).map(str::to_owned);
        policy.fallback = Some(Fallback {
            status: status.or(known.as_ref().map(|known| known.status)).unwrap_or(503),
            title: title.or(known.map(|known| known.title)).unwrap_or_default(),
        });
    }
    policy
}

fn one_or_many(node: &Node) -> &[Node] {
    match &node.raw {
        Raw::List(items) => items,
        Raw::Scalar(_) | Raw::Map(_) => std::slice::from_ref(node),
    }
}

fn command(node: &Node) -> Option<Vec<String>> {
    format::command(node.text()?).ok()
}

fn duration(node: &Node) -> Option<Duration> {
    format::duration(node.text()?).ok()
}

fn boolean(node: &Node) -> Option<bool> {
    match node.scalar()?.typed() {
        Core::Bool(flag) => Some(flag),
        Core::Null | Core::Int(_) | Core::Float(_) | Core::Text => None,
    }
}

fn integer(node: &Node) -> Option<i64> {
    match node.scalar()?.typed() {
        Core::Int(number) => Some(number),
        Core::Null | Core::Bool(_) | Core::Float(_) | Core::Text => None,
    }
}

/// The operating system's words without its number.
pub(crate) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
