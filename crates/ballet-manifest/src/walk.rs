//! The walk of the tree against the schema: finds everything that can be seen without knowing what names mean.

use ballet_core::{ErrorCode, NameError, Namespace, ServiceName, TopicName, WorkflowName};

use crate::format::{self, Bad, Format};
use crate::merge::list;
use crate::mistake::{BAD_EXPRESSION, BAD_VALUE, EXCLUSIVE, MISSING_KEY, Mistake, NOT_YET, UNKNOWN_KEY, WRONG_TYPE};
use crate::schema::{Field, Key, ROOT, Record, Shape};
use crate::template::{Part, Template};
use crate::yaml::{At, Core, Entry, Node, Raw, Sources};

/// Walks the merged tree. Texts that hold only `$${` are unescaped on the way.
pub(crate) fn walk(root: &mut Node, chosen: Option<&str>, sources: &Sources) -> Vec<Mistake> {
    let mut walker = Walker { sources, mistakes: Vec::new(), partial: false, chosen };
    if root.is_null() {
        root.raw = Raw::Map(Vec::new());
    }
    let at = root.at.clone();
    walker.value(root, &Shape::Record(&ROOT), "the manifest", &at);
    walker.mistakes
}

/// The known name that was probably meant.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (name.len().min(candidate.len()) / 3).clamp(1, 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

struct Walker<'a> {
    sources: &'a Sources,
    mistakes: Vec<Mistake>,
    /// In a profile that is not chosen: parts may be absent, the environment is not asked.
    partial: bool,
    chosen: Option<&'a str>,
}

impl Walker<'_> {
    fn note(&mut self, at: &At, code: ErrorCode, message: impl Into<String>, help: impl Into<String>) {
        self.mistakes.push(self.sources.mistake(at, code, message, help));
    }

    /// `what` is what a person would call the value: "`timeout`". `key_at` is where something missing is reported.
    fn value(&mut self, node: &mut Node, shape: &Shape, what: &str, key_at: &At) {
        if node.scalar().is_some_and(|scalar| scalar.unknown || (self.partial && scalar.text.contains("${env."))) {
            return;
        }
        match shape {
            Shape::Scalar(format) => match &node.raw {
                Raw::Scalar(_) => self.scalar(node, *format, what),
                Raw::List(_) | Raw::Map(_) => self.wrong_type(node, what, format_noun(*format)),
            },
            Shape::Bool => {
                if !matches!(node.scalar().map(crate::yaml::Scalar::typed), Some(Core::Bool(_))) {
                    self.wrong_type(node, what, "`true` or `false`");
                }
            }
            Shape::Int { min, max } => self.int(node, *min, *max, what),
            Shape::Json => self.json(node, false),
            Shape::JsonTemplate => self.json(node, true),
            Shape::Map(key, value) => match &mut node.raw {
                Raw::Map(entries) => {
                    for entry in entries {
                        self.key(entry, *key);
                        let what = format!("`{}`", entry.key);
                        self.map_value(&mut entry.value, value, &what, &entry.key_at);
                    }
                }
                Raw::Scalar(_) | Raw::List(_) => {
                    self.wrong_type(node, what, key_noun(*key));
                }
            },
            Shape::Record(record) => match &node.raw {
                Raw::Map(_) => self.record(node, record, key_at),
                Raw::Scalar(_) | Raw::List(_) => {
                    let known: Vec<&str> =
                        record.fields.iter().filter(|field| !field.later).map(|field| field.name).collect();
                    self.wrong_type(node, what, &format!("a map with {}", list(&known)));
                }
            },
            Shape::Or(format, record) => match &node.raw {
                Raw::Map(_) => self.record(node, record, key_at),
                Raw::Scalar(_) => self.scalar(node, *format, what),
                Raw::List(_) => self.wrong_type(node, what, &format!("{} or a map", format_noun(*format))),
            },
            Shape::OneOrMany(item) => match &mut node.raw {
                Raw::List(items) => {
                    for node in items {
                        let at = node.at.clone();
                        self.value(node, item, &format!("an item of {what}"), &at);
                    }
                }
                Raw::Scalar(_) | Raw::Map(_) => self.value(node, item, what, key_at),
            },
            Shape::Steps(record) => self.steps(node, record, what),
            Shape::Profile => {
                if matches!(node.raw, Raw::Map(_)) {
                    let before = std::mem::replace(&mut self.partial, true);
                    self.record(node, &ROOT, key_at);
                    self.partial = before;
                } else {
                    self.wrong_type(node, what, "a map of keys of the manifest");
                }
            }
        }
    }

    /// The value of a named thing: nothing is an empty map where all keys may be absent.
    fn map_value(&mut self, node: &mut Node, shape: &Shape, what: &str, key_at: &At) {
        if node.is_null() && matches!(shape, Shape::Record(_) | Shape::Profile) {
            node.raw = Raw::Map(Vec::new());
        }
        if node.is_null() && self.partial {
            return; // takes the name away
        }
        self.value(node, shape, what, key_at);
    }

    fn record(&mut self, node: &mut Node, record: &'static Record, key_at: &At) {
        let Raw::Map(entries) = &mut node.raw else { return };
        let present: Vec<String> = entries
            .iter()
            .filter(|entry| !entry.value.is_null() || is_json(record.field(&entry.key)))
            .map(|entry| entry.key.clone())
            .collect();
        let has = |name: &str| present.iter().any(|key| key == name);
        for entry in entries.iter_mut() {
            let Some(field) = record.field(&entry.key) else {
                self.unknown_key(entry, record);
                continue;
            };
            if entry.value.is_null() && !is_json(Some(field)) {
                continue;
            }
            let what = format!("`{}`", field.name);
            if field.later {
                let message = format!("{what} is not supported yet");
                self.note(&entry.key_at, NOT_YET, message, "delete it: nothing reads it in this version");
                continue;
            }
            if record.name == "manifest" && field.name == "profiles" {
                if self.partial {
                    let help = "move them up beside this one";
                    self.note(&entry.key_at, UNKNOWN_KEY, "a profile has no `profiles` of its own", help);
                    continue;
                }
                self.profiles(&mut entry.value);
                continue;
            }
            if let Some(other) = field.not_with.iter().find(|other| has(other)) {
                let message = format!("{what} has no meaning beside `{other}`");
                self.note(&entry.key_at, EXCLUSIVE, message, "delete one of them");
            }
            if let Some(other) = field.needs.filter(|other| !has(other)) {
                let message = format!("{what} has no meaning without `{other}`");
                self.note(&entry.key_at, EXCLUSIVE, message, format!("add `{other}`, or delete {what}"));
            }
            self.value(&mut entry.value, &field.shape, &what, &entry.key_at);
        }
        let usable: Vec<&str> = record
            .fields
            .iter()
            .filter(|field| record.one_of.contains(&field.name) && !field.later)
            .map(|field| field.name)
            .collect();
        let entries = node.entries();
        let mut chosen = entries.iter().filter(|entry| record.one_of.contains(&entry.key.as_str()) && has(&entry.key));
        match (chosen.next(), chosen.next()) {
            (Some(first), Some(second)) => {
                let message = format!("`{}` and `{}` exclude each other", first.key, second.key);
                let help = format!(
                    "keep exactly one of {}; a profile takes a key away with `{}: null`",
                    list(&usable),
                    first.key
                );
                self.note(&second.key_at, EXCLUSIVE, message, help);
            }
            (None, _) if !record.one_of.is_empty() && !self.partial => {
                let message = format!("this {} needs one of {}", record.name, list(&usable));
                self.note(key_at, MISSING_KEY, message, "add one of them");
            }
            (Some(_) | None, _) => {}
        }
        if self.partial {
            return;
        }
        for field in record.fields.iter().filter(|field| field.required && !has(field.name)) {
            let message = if record.name == "manifest" {
                format!("the manifest has no `{}`", field.name)
            } else {
                format!("this {} has no `{}`", record.name, field.name)
            };
            let help = match example(&field.shape) {
                Some(example) => format!("add `{}: {example}`", field.name),
                None => format!("add `{}:`", field.name),
            };
            self.note(key_at, MISSING_KEY, message, help);
        }
    }

    fn profiles(&mut self, node: &mut Node) {
        let Raw::Map(entries) = &mut node.raw else {
            return self.wrong_type(node, "`profiles`", "a map of profiles");
        };
        for entry in entries {
            self.key(entry, Key::Profile);
            // The chosen one was merged in: its mistakes are found there.
            if self.chosen == Some(entry.key.as_str()) || entry.value.is_null() {
                continue;
            }
            self.value(&mut entry.value, &Shape::Profile, "a profile", &entry.key_at);
        }
    }

    fn steps(&mut self, node: &mut Node, record: &'static Record, what: &str) {
        let Raw::List(items) = &mut node.raw else {
            return self.wrong_type(node, what, "a list of steps: `- name: { call: … }`");
        };
        if items.is_empty() {
            let at = node.at.clone();
            self.note(
                &at,
                BAD_VALUE,
                "there are no steps",
                "write at least one: `- name: { call: POST service:/path }`",
            );
            return;
        }
        let mut seen: Vec<String> = Vec::new();
        for item in items {
            let at = item.at.clone();
            let one = item.entries().len() == 1;
            let Raw::Map(entries) = &mut item.raw else {
                self.wrong_type(item, "a step", "a map with its name: `- name: { call: … }`");
                continue;
            };
            if !one {
                let message = format!("a step is a map with one key, its name; this one has {}", entries.len());
                self.note(&at, WRONG_TYPE, message, "write `- name: { call: … }`, or indent what follows the name");
                continue;
            }
            for entry in entries {
                let good = entry.key.starts_with(|c: char| c.is_ascii_alphabetic())
                    && entry.key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
                if !good || ["input", "failure", "execution", "env"].contains(&entry.key.as_str()) {
                    let message = format!("`{}` cannot name a step", entry.key);
                    let help = "use letters, digits, `_` and `-`; `input`, `failure`, `execution` and `env` are taken";
                    self.note(&entry.key_at, BAD_VALUE, message, help);
                }
                if seen.contains(&entry.key) {
                    let message = format!("there is a step `{}` already", entry.key);
                    self.note(&entry.key_at, crate::mistake::TWICE, message, "give it another name");
                }
                seen.push(entry.key.clone());
                let what = format!("`{}`", entry.key);
                self.map_value(&mut entry.value, &Shape::Record(record), &what, &entry.key_at);
            }
        }
    }

    fn scalar(&mut self, node: &mut Node, format: Format, what: &str) {
        let Raw::Scalar(scalar) = &node.raw else { return };
        let typed = scalar.core();
        if typed == Core::Null {
            let help = format!("write {}, or delete it", format_noun(format));
            let at = node.at.clone();
            return self.note(&at, WRONG_TYPE, format!("{what} is empty"), help);
        }
        let is_text = matches!(format, Format::Text | Format::Name | Format::Policy | Format::Access | Format::Role);
        if is_text && typed != Core::Text {
            let message = format!("{what} must be text, not {}", node.kind());
            let help = format!("put it in quotes: \"{}\"", scalar.text);
            let at = node.at.clone();
            return self.note(&at, WRONG_TYPE, message, help);
        }
        let text = scalar.value().to_owned();
        if !format.holds_expressions() && text.contains("${") {
            match literal(&text) {
                Ok(text) => {
                    if let Raw::Scalar(scalar) = &mut node.raw {
                        scalar.resolved = Some(text);
                    }
                }
                Err(bad) => self.bad(node, what, &bad),
            }
        }
        if let Err(bad) = format.check(node.text().unwrap_or_default()) {
            self.bad(node, what, &bad);
        }
    }

    fn bad(&mut self, node: &Node, what: &str, bad: &Bad) {
        let at = match bad.at {
            Some((offset, width)) => self.sources.within(node, offset, width),
            None => node.at.clone(),
        };
        let code = if bad.expression { BAD_EXPRESSION } else { BAD_VALUE };
        let message =
            if bad.message.starts_with('`') { format!("{what}: {}", bad.message) } else { bad.message.clone() };
        self.note(&at, code, message, bad.help.clone());
    }

    fn int(&mut self, node: &Node, min: i64, max: i64, what: &str) {
        let range = if min == max { format!("{min}") } else { format!("a whole number from {min} to {max}") };
        match node.scalar().map(crate::yaml::Scalar::typed) {
            Some(Core::Int(number)) if (min..=max).contains(&number) => {}
            Some(Core::Int(number)) => {
                let message = format!("{what} cannot be {number}");
                self.note(&node.at, BAD_VALUE, message, format!("write {range}"));
            }
            Some(Core::Null | Core::Bool(_) | Core::Float(_) | Core::Text) | None => {
                self.wrong_type(node, what, &range);
            }
        }
    }

    fn json(&mut self, node: &Node, templates: bool) {
        match &node.raw {
            Raw::List(items) => items.iter().for_each(|item| self.json(item, templates)),
            Raw::Map(entries) => {
                for entry in entries {
                    if entry.key.contains("${") {
                        let help = "expressions stand in values only";
                        self.note(&entry.key_at, BAD_EXPRESSION, "a key cannot hold an expression", help);
                    }
                    self.json(&entry.value, templates);
                }
            }
            Raw::Scalar(scalar) => {
                if matches!(scalar.core(), Core::Float(number) if number.is_none_or(|number| !number.is_finite())) {
                    let help = "put it in quotes to send it as text";
                    self.note(&node.at, BAD_VALUE, "JSON cannot write this number", help);
                }
                let bad = match (Template::parse(scalar.value()), templates) {
                    (Ok(_), true) => None,
                    (Ok(_), false) => literal(scalar.value()).err(),
                    (Err(_), _) => format::template(scalar.value(), 0).err(),
                };
                if let Some(bad) = bad {
                    self.bad(node, "this text", &bad);
                }
            }
        }
    }

    fn key(&mut self, entry: &Entry, key: Key) {
        let text = entry.key.as_str();
        let named = |result: Result<(), NameError>| {
            result.map_err(|error| (format!("`{}` is not a {}", error.text, error.noun), error.rule.to_owned(), None))
        };
        let result = match key {
            Key::Service => named(text.parse::<ServiceName>().map(drop)),
            Key::Topic | Key::SubscribedTopic => named(text.parse::<TopicName>().map(drop)),
            Key::Workflow => named(text.parse::<WorkflowName>().map(drop)),
            Key::Policy | Key::Access | Key::Profile => named(text.replace('_', "-").parse::<Namespace>().map(drop))
                .map_err(|(_, help, at)| {
                    let noun = match key {
                        Key::Policy => "policy name",
                        Key::Access => "name of an access rule",
                        Key::Service
                        | Key::Route
                        | Key::Topic
                        | Key::SubscribedTopic
                        | Key::Workflow
                        | Key::Profile
                        | Key::Variable
                        | Key::Part => "profile name",
                    };
                    (format!("`{text}` is not a {noun}"), help, at)
                }),
            Key::Route => format::route_key(text).map(drop).map_err(|bad| (bad.message, bad.help, bad.at)),
            Key::Variable => {
                let good = !text.is_empty()
                    && !text.starts_with(|c: char| c.is_ascii_digit())
                    && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
                let help = "use letters, digits and `_`, not a digit first".to_owned();
                if good { Ok(()) } else { Err((format!("`{text}` is not the name of a variable"), help, None)) }
            }
            Key::Part => {
                let message = "a part needs a name".to_owned();
                if text.is_empty() { Err((message, "write the key of the answer".to_owned(), None)) } else { Ok(()) }
            }
        };
        if let Err((message, help, part)) = result {
            let mut at = entry.key_at.clone();
            if let Some((offset, width)) = part
                && self.sources.line(&at).chars().skip(at.column - 1).collect::<String>().starts_with(text)
            {
                at.column += offset;
                at.width = width;
            }
            self.note(&at, BAD_VALUE, message, help);
        }
    }

    fn unknown_key(&mut self, entry: &Entry, record: &Record) {
        let known: Vec<&str> = record.fields.iter().filter(|field| !field.later).map(|field| field.name).collect();
        let place = if record.name == "manifest" { "the manifest".to_owned() } else { format!("this {}", record.name) };
        let help = match nearest(&entry.key, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known are {}", list(&known)),
        };
        self.note(&entry.key_at, UNKNOWN_KEY, format!("{place} has no key `{}`", entry.key), help);
    }

    fn wrong_type(&mut self, node: &Node, what: &str, expected: &str) {
        let help = match node.text() {
            Some(text) if expected.starts_with("`true`") && ["yes", "on", "no", "off"].contains(&text) => {
                let meant = matches!(text, "yes" | "on");
                format!("write `{meant}`: in YAML 1.2 `{text}` is a text")
            }
            Some(_) | None => format!("write {expected}"),
        };
        let message = if node.is_null() {
            format!("{what} is empty")
        } else {
            format!("{what} must be {expected}, not {}", node.kind())
        };
        self.note(&node.at, WRONG_TYPE, message, help);
    }
}

fn is_json(field: Option<&Field>) -> bool {
    field.is_some_and(|field| matches!(field.shape, Shape::Json | Shape::JsonTemplate) && !field.later)
}

/// A text where no scope but `env` has a meaning: unescaped, or the first expression in it.
fn literal(text: &str) -> Result<String, Bad> {
    let template = format::template(text, 0)?;
    let mut out = String::new();
    for part in template.parts() {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Expr(expr) => {
                let shown = expr.to_string();
                let at = text.find(&shown).map(|at| (text[..at].chars().count(), shown.chars().count()));
                return Err(Bad {
                    message: format!("`{shown}` has no meaning here"),
                    help: "only `${env.NAME}` may stand here; `$${` is a plain `${`".into(),
                    at,
                    expression: true,
                });
            }
        }
    }
    Ok(out)
}

fn example(shape: &Shape) -> Option<String> {
    match shape {
        Shape::Scalar(Format::Text) => None,
        Shape::Scalar(format) | Shape::Or(format, _) => format.pattern_and_example().1.map(str::to_owned),
        Shape::Int { min, .. } => Some(min.to_string()),
        Shape::Map(Key::Service, _) => Some("{ orders: { run: shop-orders } }".to_owned()),
        Shape::Bool
        | Shape::Json
        | Shape::JsonTemplate
        | Shape::Map(..)
        | Shape::Record(_)
        | Shape::OneOrMany(_)
        | Shape::Steps(_)
        | Shape::Profile => None,
    }
}

fn key_noun(key: Key) -> &'static str {
    match key {
        Key::Service => "a map of services: `orders: { run: shop-orders }`",
        Key::Policy => "a map of policies: `default: { timeout: 2s }`",
        Key::Access => "a map of access rules: `user: { jwt: … }`",
        Key::Route => "a map of routes: `GET /products: catalog`",
        Key::Topic => "a map of topics: `order.placed: { keep: 7d }`",
        Key::SubscribedTopic => "a map of topics to who hears of them: `order.placed: workflow:checkout`",
        Key::Workflow => "a map of workflows",
        Key::Profile => "a map of profiles",
        Key::Variable => "a map of variables: `LOG: debug`",
        Key::Part => "a map of parts: `products: { get: \"catalog:/products\" }`",
    }
}

fn format_noun(format: Format) -> &'static str {
    match format {
        Format::Text | Format::Loose | Format::Name => "text",
        Format::Command => "a command, as one text",
        Format::File => "the path of a file",
        Format::Duration => "a duration such as `2s`",
        Format::Percent => "a percentage such as `20%`",
        Format::Backoff => "durations such as `100ms..400ms`",
        Format::Address => "an address such as `127.0.0.1:8080`",
        Format::ServiceUrl => "a URL such as `http://10.0.0.7:8080`",
        Format::Engine => "`embedded` or a URL",
        Format::Store => "`sqlite` or a URL",
        Format::Service => "the name of a service",
        Format::Health => "a path such as `/readyz`",
        Format::Pool => "`critical`, `normal` or `batch`",
        Format::RouteTarget => "a service",
        Format::Redirect => "a location",
        Format::Limit => "a rate such as `10/min by ip`",
        Format::Rate => "a rate such as `10/min`",
        Format::LimitBy => "`ip`, `claims.…` or `header.…`",
        Format::Keys => "`service:/path` or a URL",
        Format::MergeGet => "`service:/path`",
        Format::Call => "a call such as `POST payments:/payments`",
        Format::Subscriber => "`service:/path` or `workflow:NAME`",
        Format::Template => "text",
        Format::Task => "the name of a task",
        Format::Attempts => "a number, or `unlimited`",
        Format::Policy => "the name of a policy",
        Format::Access => "the name of an access rule",
        Format::Role => "the name of a role",
    }
}
