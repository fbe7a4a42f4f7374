//! The tree becomes types. Here names are looked up and what contradicts itself is found; what has the wrong form was
//! reported by the walk and is passed over in silence.

mod events;
mod gateway;
mod place;
mod services;
mod workflows;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ballet_core::{ErrorCode, Fallback, Policy, ServiceName};
use indexmap::IndexMap;
use serde_json::Value;

use self::place::Place;
use crate::format::{self, KeysAt};
use crate::merge::list;
use crate::mistake::{
    ACCESS_CYCLE, BAD_EXPRESSION, BAD_VALUE, MISSING_ENV, MISSING_FILE, Mistake, NO_ENGINE, NOT_LOOPBACK, NOT_YET,
    UNKNOWN_NAME,
};
use crate::model::{Access, Attempts, Engine, HttpUrl, Jwt, Keys, Listen, Manifest, Platform, Policies, Secret};
use crate::template::{JsonTemplate, Part, Template};
use crate::walk::nearest;
use crate::yaml::{At, Core, Entry, Node, Raw, Sources};

/// A file that the manifest names may be this large.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// A secret may be this large.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

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
    let mut builder =
        Builder { around: surroundings, root, mistakes: Vec::new(), files: Vec::new(), secret_env: BTreeSet::new() };
    let mut manifest = builder.manifest();
    manifest.secret_env = builder.secret_env;
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
    secret_env: BTreeSet<String>,
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
            secret_env: BTreeSet::new(),
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
            self.secret_env.insert(text.to_owned());
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

    /// The text of a URL that may hold a password; what it takes of the environment is as secret.
    fn secret_text(&mut self, node: &Node) -> Option<Secret> {
        if let Some(Ok(template)) = node.scalar().map(|scalar| Template::parse(&scalar.text)) {
            for part in template.parts() {
                if let Part::Expr(expr) = part
                    && expr.scope == "env"
                {
                    self.secret_env.extend(expr.path.first().cloned());
                }
            }
        }
        node.text().map(Secret::new)
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
            Raw::Scalar(_) | Raw::List(_) => self.secret_text(node),
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
