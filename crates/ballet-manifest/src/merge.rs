//! What is over the file: a profile, the environment, `--set`. Maps are merged key by key, all else is replaced.

use std::collections::BTreeMap;
use std::sync::Arc;

use ballet_core::ErrorCode;

use crate::mistake::{BAD_EXPRESSION, BAD_SET, MISSING_ENV, Mistake, UNKNOWN_PROFILE};
use crate::model::Origin;
use crate::schema::{Key, ROOT, Shape};
use crate::template::{Part, Template};
use crate::walk::nearest;
use crate::yaml::{self, At, Entry, Node, OriginKind, Raw, Scalar, Sources};

/// Merges the named profile into the root.
pub(crate) fn profile(root: &mut Node, name: &str, sources: &Sources, mistakes: &mut Vec<Mistake>) {
    let profiles = root.get("profiles");
    let Some(over) = profiles.and_then(|profiles| profiles.entry(name)) else {
        let known: Vec<&str> = profiles.map_or(&[][..], Node::entries).iter().map(|entry| entry.key.as_str()).collect();
        let help = match (nearest(name, known.iter().copied()), known.is_empty()) {
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, true) => "the manifest has no `profiles:`".to_owned(),
            (None, false) => format!("there are {}", list(&known)),
        };
        let at = root.entry("profiles").map_or_else(|| root.at.clone(), |entry| entry.key_at.clone());
        mistakes.push(sources.mistake(&at, UNKNOWN_PROFILE, format!("there is no profile `{name}`"), help));
        return;
    };
    let mut over = over.value.clone();
    relabel(&mut over, &Arc::from(name));
    if matches!(over.raw, Raw::Map(_)) {
        overlay(root, over);
    }
}

fn relabel(node: &mut Node, name: &Arc<str>) {
    let mark = |at: &mut At| {
        if let Origin::File { file, line, column } = &at.origin {
            at.origin = Origin::Profile { name: name.clone(), file: file.clone(), line: *line, column: *column };
        }
    };
    mark(&mut node.at);
    match &mut node.raw {
        Raw::Scalar(_) => {}
        Raw::List(items) => items.iter_mut().for_each(|item| relabel(item, name)),
        Raw::Map(entries) => {
            for entry in entries {
                mark(&mut entry.key_at);
                relabel(&mut entry.value, name);
            }
        }
    }
}

/// Lays `over` over `base`.
fn overlay(base: &mut Node, over: Node) {
    match (&mut base.raw, over.raw) {
        (Raw::Map(entries), Raw::Map(new)) => {
            for entry in new {
                match entries.iter_mut().find(|known| known.key == entry.key) {
                    Some(known) => overlay(&mut known.value, entry.value),
                    None => entries.push(entry),
                }
            }
        }
        (_, raw) => *base = Node { raw, at: over.at },
    }
}

/// Applies `BALLET_GATEWAY__LISTEN=…` and its like.
pub(crate) fn environment(
    root: &mut Node,
    env: &BTreeMap<String, String>,
    sources: &mut Sources,
    mistakes: &mut Vec<Mistake>,
) {
    for (name, text) in env {
        // One underscore is a service's own variable (`BALLET_TOKEN`); two divide a path.
        let Some(path) = name.strip_prefix("BALLET_").filter(|path| path.contains("__")) else { continue };
        let words: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        let source = sources.add(&format!("environment {name}"), text);
        let place = Place { words: &words, loose: true, label: name };
        one(root, &place, text, source, OriginKind::Environment(name.as_str().into()), sources, mistakes);
    }
}

/// Applies each `KEY=VALUE`.
pub(crate) fn sets(root: &mut Node, sets: &[String], sources: &mut Sources, mistakes: &mut Vec<Mistake>) {
    for set in sets {
        let Some((path, text)) = set.split_once('=') else {
            let source = sources.add("--set", set);
            mistakes.push(sources.mistake(
                &place(source, set.chars().count()),
                BAD_SET,
                format!("`{set}` has no `=`"),
                "write `--set KEY=VALUE`, for instance `--set gateway.listen=127.0.0.1:0`",
            ));
            continue;
        };
        let words = words(path);
        let source = sources.add(&format!("--set {path}"), text);
        if words.iter().any(String::is_empty) {
            mistakes.push(sources.mistake(
                &place(source, 1),
                BAD_SET,
                format!("`{path}` is not a path of keys"),
                "divide keys with dots: `services.orders.instances`; quote a key that has dots itself",
            ));
            continue;
        }
        let place = Place { words: &words, loose: false, label: path };
        one(root, &place, text, source, OriginKind::Set, sources, mistakes);
    }
}

struct Place<'a> {
    words: &'a [String],
    /// `-` and `_` are the same: variables cannot hold a `-`.
    loose: bool,
    label: &'a str,
}

fn one(
    root: &mut Node,
    path: &Place<'_>,
    text: &str,
    source: usize,
    origin: OriginKind,
    sources: &Sources,
    mistakes: &mut Vec<Mistake>,
) {
    let empty = place(source, 1);
    let (value, wrong) = yaml::parse(text, source, sources, origin.clone());
    if !wrong.is_empty() {
        mistakes.extend(wrong);
        return;
    }
    let mut at = empty;
    at.origin = match origin {
        OriginKind::File => at.origin,
        OriginKind::Environment(name) => Origin::Environment(name),
        OriginKind::Set => Origin::Set,
    };
    let value = value.unwrap_or(Node { raw: Raw::Scalar(Scalar::null()), at: at.clone() });
    if let Err(what) = set(root, Some(&Shape::Record(&ROOT)), path.words, path.loose, value, &at) {
        mistakes.push(sources.mistake(
            &at,
            BAD_SET,
            format!("`{}` leads nowhere: {what}", path.label),
            "name each key on the way, as `ballet config --effective` lists them",
        ));
    }
}

/// Sets the value at the path below `node`, making maps on the way.
fn set(
    node: &mut Node,
    shape: Option<&Shape>,
    words: &[String],
    loose: bool,
    value: Node,
    at: &At,
) -> Result<(), String> {
    let Some(first) = words.first() else {
        *node = value;
        return Ok(());
    };
    if node.is_null() {
        *node = Node { raw: Raw::Map(Vec::new()), at: at.clone() };
    }
    match &mut node.raw {
        Raw::Scalar(scalar) => Err(format!("`{first}` would stand below the text `{}`", scalar.text)),
        Raw::List(items) => {
            let by_number = first.parse::<usize>().ok().filter(|index| *index < items.len());
            // Steps are lists of maps with one key, which is their name.
            let index = by_number.or_else(|| items.iter().position(|item| item.entry(first).is_some()));
            let Some(index) = index else { return Err(format!("the list has no `{first}`")) };
            let rest = if by_number.is_some() { &words[1..] } else { words };
            set(&mut items[index], None, rest, loose, value, at)
        }
        Raw::Map(entries) => {
            for count in (1..=words.len()).rev() {
                let key = words[..count].join(".");
                let same = |known: &str| {
                    known == key || (loose && known.replace('_', "-").to_lowercase() == key.replace('_', "-"))
                };
                if let Some(index) = entries.iter().position(|entry| same(&entry.key)) {
                    let entry = &mut entries[index];
                    let child = shape.and_then(|shape| shape.child(&entry.key));
                    return set(&mut entry.value, child, &words[count..], loose, value, at);
                }
            }
            let count = new_key_words(shape, words);
            let key = words[..count].join(".");
            let child = shape.and_then(|shape| shape.child(&key));
            let mut fresh = Node { raw: Raw::Scalar(Scalar::null()), at: at.clone() };
            set(&mut fresh, child, &words[count..], loose, value, at)?;
            entries.push(Entry { key, key_at: at.clone(), value: fresh });
            Ok(())
        }
    }
}

/// How many words make a key that is not there yet: names of topics and routes have dots themselves.
fn new_key_words(shape: Option<&Shape>, words: &[String]) -> usize {
    match shape {
        Some(Shape::Map(Key::Topic | Key::SubscribedTopic | Key::Route, value)) => {
            match words.last().and_then(|last| value.child(last)) {
                Some(_) if words.len() > 1 => words.len() - 1,
                Some(_) | None => words.len(),
            }
        }
        Some(_) | None => 1,
    }
}

/// Divides at dots outside of double quotes.
fn words(path: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in path.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("there is always one word").push(c),
        }
    }
    words
}

/// Fills `${env.…}` in everywhere below `node`.
pub(crate) fn resolve_env(
    node: &mut Node,
    env: &BTreeMap<String, String>,
    sources: &Sources,
    mistakes: &mut Vec<Mistake>,
) {
    let wrong = match &mut node.raw {
        Raw::List(items) => {
            items.iter_mut().for_each(|item| resolve_env(item, env, sources, mistakes));
            return;
        }
        Raw::Map(entries) => {
            entries.iter_mut().for_each(|entry| resolve_env(&mut entry.value, env, sources, mistakes));
            return;
        }
        Raw::Scalar(scalar) if scalar.text.contains("${env.") => match filled(&scalar.text, env) {
            Ok(text) => {
                scalar.resolved = text;
                return;
            }
            Err(wrong) => wrong,
        },
        Raw::Scalar(_) => return,
    };
    let offset = node.text().and_then(|text| text.find(&wrong.shown).map(|at| text[..at].chars().count()));
    let at = sources.within(node, offset.unwrap_or(usize::MAX), wrong.shown.chars().count());
    mistakes.push(sources.mistake(&at, wrong.code, wrong.message, wrong.help));
    // Whatever stands there would be a mistake too, and the same one.
    if let Raw::Scalar(scalar) = &mut node.raw {
        scalar.unknown = true;
    }
}

struct Unfilled {
    code: ErrorCode,
    shown: String,
    message: String,
    help: String,
}

/// The text with its `${env.…}` filled in; `None` for a malformed one, which the walk reports.
fn filled(text: &str, env: &BTreeMap<String, String>) -> Result<Option<String>, Unfilled> {
    let Ok(template) = Template::parse(text) else { return Ok(None) };
    let mut out = String::new();
    for part in template.parts() {
        match part {
            Part::Text(text) => out.push_str(&text.replace("${", "$${")),
            Part::Expr(expr) if expr.scope == "env" => {
                let shown = expr.to_string();
                let [name] = expr.path.as_slice() else {
                    let message = format!("`{shown}` is not a variable");
                    return Err(Unfilled { code: BAD_EXPRESSION, shown, message, help: "write `${env.NAME}`".into() });
                };
                let value = env.get(name).filter(|value| !value.is_empty() || expr.default.is_none());
                let value = value.or(expr.default.as_ref());
                let Some(value) = value else {
                    let message = format!("the environment variable `{name}` is not set");
                    let help = format!("set it, or give a default: `${{env.{name}:-value}}`");
                    return Err(Unfilled { code: MISSING_ENV, shown, message, help });
                };
                if value.contains("${") {
                    let message = format!("the environment variable `{name}` holds an expression");
                    let help = "write the expression into the manifest".to_owned();
                    return Err(Unfilled { code: BAD_EXPRESSION, shown, message, help });
                }
                out.push_str(value);
            }
            Part::Expr(expr) => out.push_str(&expr.to_string()),
        }
    }
    Ok(Some(out))
}

fn place(source: usize, width: usize) -> At {
    At { source, line: 1, column: 1, width, origin: Origin::Set }
}

/// "`a`, `b` and `c`".
pub(crate) fn list<T: AsRef<str>>(names: &[T]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    match quoted.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [many @ .., last] => format!("{} and {last}", many.join(", ")),
    }
}
