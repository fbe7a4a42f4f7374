//! What holds in the end, and where each value came from.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::build::default_attempts;
use crate::format::mask;
use crate::model::{Attempts, Manifest, Origin};
use crate::schema::{Field, ROOT, Record, Shape};
use crate::yaml::{At, Core, Entry, Node, Raw, Scalar};

/// Origins stand from this column on.
const ORIGIN_COLUMN: usize = 64;

/// Fills the defaults in: afterwards every value that holds stands in the tree.
pub(crate) fn fill(root: &mut Node, manifest: &Manifest) {
    if let Raw::Map(entries) = &mut root.raw {
        entries.retain(|entry| entry.key != "profiles" && !entry.value.is_null());
    }
    if root.get("system").is_none() {
        push(root, "system", scalar(&manifest.system, Origin::Default), Origin::Default);
    }
    record(root, &ROOT);
    let policies = root_map(root, "policies");
    if policies.get("default").is_none() {
        let at = at(Origin::Default);
        let mut node = Node { raw: Raw::Map(Vec::new()), at: at.clone() };
        if let Some(Shape::Record(policy)) =
            Shape::Record(&ROOT).child("policies").and_then(|shape| shape.child("default"))
        {
            record(&mut node, policy);
        }
        if let Raw::Map(entries) = &mut policies.raw {
            entries.insert(0, Entry { key: "default".to_owned(), key_at: at, value: node });
        }
    }
}

fn root_map<'a>(root: &'a mut Node, key: &str) -> &'a mut Node {
    if root.get(key).is_none() {
        let node = Node { raw: Raw::Map(Vec::new()), at: at(Origin::Default) };
        if let Raw::Map(entries) = &mut root.raw {
            entries.retain(|entry| entry.key != key);
        }
        push(root, key, node, Origin::Default);
    }
    let Raw::Map(entries) = &mut root.raw else { unreachable!("the root of a manifest without mistakes is a map") };
    let index = entries.iter().position(|entry| entry.key == key).expect("it was pushed where it was absent");
    &mut entries[index].value
}

fn record(node: &mut Node, shape: &'static Record) {
    if node.is_null() {
        node.raw = Raw::Map(Vec::new());
    }
    if let Raw::Map(entries) = &mut node.raw {
        let json =
            |key: &str| shape.field(key).is_some_and(|field| matches!(field.shape, Shape::Json | Shape::JsonTemplate));
        entries.retain(|entry| !entry.value.is_null() || json(&entry.key));
        for entry in entries.iter_mut() {
            if let Some(field) = shape.field(&entry.key) {
                fill_value(&mut entry.value, &field.shape);
            }
        }
    }
    for field in shape.fields {
        if node.entry(field.name).is_some() || !holds(node, field) {
            continue;
        }
        if let Some(default) = field.default {
            push(node, field.name, scalar(default, Origin::Default), Origin::Default);
        } else if field.expand {
            let mut child = Node { raw: Raw::Map(Vec::new()), at: at(Origin::Default) };
            fill_value(&mut child, &field.shape);
            push(node, field.name, child, Origin::Default);
        }
    }
}

fn holds(node: &Node, field: &Field) -> bool {
    !field.later
        && field.no_default_with.is_none_or(|other| node.entry(other).is_none())
        && field.not_with.iter().all(|other| node.entry(other).is_none())
}

fn fill_value(node: &mut Node, shape: &Shape) {
    match shape {
        Shape::Record(inner) => record(node, inner),
        Shape::Or(_, inner) => {
            if matches!(node.raw, Raw::Map(_)) {
                record(node, inner);
            }
        }
        Shape::Map(key, inner) => {
            let policies = *key == crate::schema::Key::Policy;
            let base = node.get("default").cloned().filter(|_| policies);
            if let Raw::Map(entries) = &mut node.raw {
                for entry in entries.iter_mut() {
                    if let Some(base) = base.as_ref().filter(|_| entry.key != "default") {
                        inherit(&mut entry.value, base, &Origin::Inherited(Arc::from("policies.default")));
                    }
                    fill_value(&mut entry.value, inner);
                }
            }
        }
        Shape::OneOrMany(inner) => match &mut node.raw {
            Raw::List(items) => items.iter_mut().for_each(|item| fill_value(item, inner)),
            Raw::Map(_) | Raw::Scalar(_) => fill_value(node, inner),
        },
        Shape::Steps(step) => steps(node, step),
        Shape::Scalar(_) | Shape::Bool | Shape::Int { .. } | Shape::Json | Shape::JsonTemplate | Shape::Profile => {}
    }
}

fn steps(node: &mut Node, shape: &'static Record) {
    let Raw::List(items) = &mut node.raw else { return };
    let undoes: Vec<bool> = items
        .iter()
        .map(|item| item.entries().first().is_some_and(|entry| entry.value.get("undo").is_some()))
        .collect();
    for (index, item) in items.iter_mut().enumerate() {
        let Raw::Map(entries) = &mut item.raw else { continue };
        for entry in entries {
            record(&mut entry.value, shape);
            if entry.value.entry("attempts").is_none() {
                let text = match default_attempts(&undoes, index) {
                    Attempts::Times(count) => count.to_string(),
                    Attempts::Unlimited => "unlimited".to_owned(),
                };
                push(&mut entry.value, "attempts", scalar(&text, Origin::Default), Origin::Default);
            }
        }
    }
}

/// Takes over from `base` what `node` does not say itself.
fn inherit(node: &mut Node, base: &Node, origin: &Origin) {
    if node.is_null() {
        node.raw = Raw::Map(Vec::new());
    }
    for entry in base.entries().iter().filter(|entry| !entry.value.is_null()) {
        let Raw::Map(entries) = &mut node.raw else { return };
        entries.retain(|known| known.key != entry.key || !known.value.is_null());
        match entries.iter_mut().find(|known| known.key == entry.key) {
            Some(known) => inherit(&mut known.value, &entry.value, origin),
            None => {
                let mut taken = entry.value.clone();
                relabel(&mut taken, origin);
                push(node, &entry.key, taken, origin.clone());
            }
        }
    }
}

fn relabel(node: &mut Node, origin: &Origin) {
    node.at.origin = origin.clone();
    match &mut node.raw {
        Raw::Scalar(_) => {}
        Raw::List(items) => items.iter_mut().for_each(|item| relabel(item, origin)),
        Raw::Map(entries) => {
            for entry in entries {
                entry.key_at.origin = origin.clone();
                relabel(&mut entry.value, origin);
            }
        }
    }
}

fn push(node: &mut Node, key: &str, value: Node, origin: Origin) {
    if let Raw::Map(entries) = &mut node.raw {
        entries.push(Entry { key: key.to_owned(), key_at: at(origin), value });
    }
}

fn scalar(text: &str, origin: Origin) -> Node {
    Node { raw: Raw::Scalar(Scalar::plain(text)), at: at(origin) }
}

fn at(origin: Origin) -> At {
    At { source: 0, line: 1, column: 1, width: 1, origin }
}

/// The listing for people.
pub(crate) fn text(root: &Node) -> String {
    let mut out = String::new();
    map(root, 0, &mut out);
    out
}

fn map(node: &Node, indent: usize, out: &mut String) {
    for entry in node.entries() {
        let head = format!("{}{}:", " ".repeat(indent), shown_key(&entry.key));
        below(&head, &entry.value, indent + 2, out);
    }
}

fn below(head: &str, node: &Node, indent: usize, out: &mut String) {
    match &node.raw {
        Raw::Scalar(scalar) => line(out, &format!("{head} {}", shown(scalar)), &node.at.origin),
        Raw::List(items) if items.is_empty() => line(out, &format!("{head} []"), &node.at.origin),
        Raw::Map(entries) if entries.is_empty() => line(out, &format!("{head} {{}}"), &node.at.origin),
        Raw::List(items) => {
            let _ = writeln!(out, "{head}");
            for item in items {
                let dash = format!("{}-", " ".repeat(indent));
                match item.entries() {
                    // A step: its name beside the dash.
                    [only] => below(&format!("{dash} {}:", shown_key(&only.key)), &only.value, indent + 4, out),
                    [first, rest @ ..] => {
                        below(&format!("{dash} {}:", shown_key(&first.key)), &first.value, indent + 4, out);
                        for entry in rest {
                            let head = format!("{}{}:", " ".repeat(indent + 2), shown_key(&entry.key));
                            below(&head, &entry.value, indent + 4, out);
                        }
                    }
                    [] => below(&dash, item, indent + 2, out),
                }
            }
        }
        Raw::Map(_) => {
            let _ = writeln!(out, "{head}");
            map(node, indent, out);
        }
    }
}

fn line(out: &mut String, text: &str, origin: &Origin) {
    let padding = ORIGIN_COLUMN.saturating_sub(text.chars().count()).max(1);
    let _ = writeln!(out, "{text}{}# {origin}", " ".repeat(padding));
}

/// The listing for machines.
pub(crate) fn json(root: &Node) -> Value {
    let mut rows = Vec::new();
    leaves(root, &mut Vec::new(), &mut rows);
    Value::Array(rows)
}

fn leaves(node: &Node, path: &mut Vec<String>, rows: &mut Vec<Value>) {
    match &node.raw {
        Raw::Map(entries) if !entries.is_empty() => {
            for entry in entries {
                path.push(entry.key.clone());
                leaves(&entry.value, path, rows);
                path.pop();
            }
        }
        Raw::List(items) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                path.push(index.to_string());
                leaves(item, path, rows);
                path.pop();
            }
        }
        Raw::Map(_) | Raw::List(_) | Raw::Scalar(_) => {
            rows.push(json!({"path": path, "value": value_of(node), "origin": origin(&node.at.origin)}));
        }
    }
}

/// The tree as JSON.
pub(crate) fn value_of(node: &Node) -> Value {
    match &node.raw {
        Raw::List(items) => Value::Array(items.iter().map(value_of).collect()),
        Raw::Map(entries) => Value::Object(
            entries.iter().map(|entry| (entry.key.clone(), value_of(&entry.value))).collect::<Map<_, _>>(),
        ),
        Raw::Scalar(_) => match node.json_as_written() {
            Value::String(text) => Value::String(mask(&text)),
            other => other,
        },
    }
}

fn origin(origin: &Origin) -> Value {
    match origin {
        Origin::File { file, line, column } => json!({"kind": "file", "file": **file, "line": line, "column": column}),
        Origin::Profile { name, file, line, column } => {
            json!({"kind": "profile", "name": **name, "file": **file, "line": line, "column": column})
        }
        Origin::Environment(name) => json!({"kind": "environment", "name": **name}),
        Origin::Set => json!({"kind": "set"}),
        Origin::Default => json!({"kind": "default"}),
        Origin::Inherited(from) => json!({"kind": "inherited", "name": **from}),
    }
}

fn shown(scalar: &Scalar) -> String {
    let text = mask(&scalar.text);
    match scalar.core() {
        Core::Null => "null".to_owned(),
        Core::Bool(_) | Core::Int(_) | Core::Float(_) => text,
        Core::Text => quoted_if_needed(&text),
    }
}

fn shown_key(key: &str) -> String {
    quoted_if_needed(key)
}

fn quoted_if_needed(text: &str) -> String {
    let plain = !text.is_empty()
        && text.trim() == text
        && !text.starts_with([
            '-', '?', ':', ',', '[', ']', '{', '}', '#', '&', '*', '!', '|', '>', '\'', '"', '%', '@', '`',
        ])
        && !text.contains(": ")
        && !text.ends_with(':')
        && !text.contains(" #")
        && !text.chars().any(char::is_control)
        && Scalar::plain(text).core() == Core::Text;
    if plain { text.to_owned() } else { Value::String(text.to_owned()).to_string() }
}
