//! The schema as JSON Schema (2020-12), for editors.

use serde_json::{Map, Value, json};

use crate::format::Format;
use crate::schema::{Field, Key, ROOT, Record, Shape};

/// The JSON Schema of `ballet.yaml`. The committed `schema/ballet.schema.json` is its pretty print.
pub fn schema() -> Value {
    let mut definitions = Map::new();
    let root = record(&ROOT, false, &mut definitions);
    let mut document = Map::new();
    document.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    document.insert("title".into(), json!("ballet.yaml"));
    if let Value::Object(root) = root {
        document.extend(root);
    }
    definitions.sort_keys();
    document.insert("$defs".into(), Value::Object(definitions));
    Value::Object(document)
}

fn shape(shape: &Shape, partial: bool, definitions: &mut Map<String, Value>) -> Value {
    match shape {
        Shape::Scalar(format) => scalar(*format),
        Shape::Bool => json!({"anyOf": [{"type": "boolean"}, environment()]}),
        Shape::Int { min, max } => {
            json!({"anyOf": [{"type": "integer", "minimum": min, "maximum": max}, environment()]})
        }
        Shape::Json | Shape::JsonTemplate => json!({}),
        Shape::Map(key, value) => {
            let value = or_null(self::shape(value, partial, definitions), partial || nothing_is_fine(value));
            let mut map = json!({"type": "object", "additionalProperties": value});
            if let Some(pattern) = key_pattern(*key) {
                map["propertyNames"] = json!({"pattern": pattern});
            }
            map
        }
        Shape::Record(record) => reference(record, partial, definitions),
        Shape::Or(format, record) => json!({"anyOf": [scalar(*format), reference(record, partial, definitions)]}),
        Shape::OneOrMany(item) => {
            let item = self::shape(item, partial, definitions);
            json!({"anyOf": [item, {"type": "array", "items": item}]})
        }
        Shape::Steps(record) => {
            // A list is replaced whole by a profile, so its steps are never partial.
            let step = reference(record, false, definitions);
            json!({
                "type": "array",
                "minItems": 1,
                "items": {"type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": step,
                    "propertyNames": {"pattern": "^[A-Za-z][A-Za-z0-9_-]*$"}},
            })
        }
        Shape::Profile => reference(&ROOT, true, definitions),
    }
}

/// A named thing may have an empty value if nothing in it is required.
fn nothing_is_fine(shape: &Shape) -> bool {
    matches!(shape, Shape::Record(record) if record.one_of.is_empty() && !record.fields.iter().any(|field| field.required))
}

fn or_null(schema: Value, nullable: bool) -> Value {
    if nullable { json!({"anyOf": [schema, {"type": "null"}]}) } else { schema }
}

fn reference(record: &'static Record, partial: bool, definitions: &mut Map<String, Value>) -> Value {
    let name = record.name.replace(' ', "-") + if partial { "-in-profile" } else { "" };
    if !definitions.contains_key(&name) {
        definitions.insert(name.clone(), Value::Null); // so that a circle ends
        let definition = self::record(record, partial, definitions);
        definitions.insert(name.clone(), definition);
    }
    json!({"$ref": format!("#/$defs/{name}")})
}

fn record(record: &'static Record, partial: bool, definitions: &mut Map<String, Value>) -> Value {
    let mut properties = Map::new();
    // A profile holds everything but profiles.
    let inside = |field: &&Field| !field.later && (!partial || field.name != "profiles");
    for field in record.fields.iter().filter(inside) {
        let mut value = shape(&field.shape, partial, definitions);
        if !field.required && !matches!(field.shape, Shape::Json | Shape::JsonTemplate) {
            value = or_null(value, true);
        }
        if let Value::Object(map) = &mut value {
            map.insert("description".into(), json!(field.doc));
            if let Some(default) = field.default {
                map.insert("default".into(), default_value(&field.shape, default));
            }
        }
        properties.insert(field.name.into(), value);
    }
    let mut object = json!({
        "type": "object",
        "description": record.doc,
        "properties": properties,
        "additionalProperties": false,
    });
    if !partial {
        let required: Vec<&str> = record.fields.iter().filter(|field| field.required).map(|field| field.name).collect();
        if !required.is_empty() {
            object["required"] = json!(required);
        }
        let one_of: Vec<Value> = record
            .one_of
            .iter()
            .filter(|name| record.field(name).is_some_and(|field| !field.later))
            .map(|name| json!({"required": [name]}))
            .collect();
        if !one_of.is_empty() {
            object["oneOf"] = json!(one_of);
        }
    }
    object
}

fn default_value(shape: &Shape, text: &str) -> Value {
    match shape {
        Shape::Bool | Shape::Int { .. } | Shape::Json => serde_json::from_str(text).unwrap_or(Value::Null),
        Shape::Scalar(_)
        | Shape::JsonTemplate
        | Shape::Map(..)
        | Shape::Record(_)
        | Shape::Or(..)
        | Shape::OneOrMany(_)
        | Shape::Steps(_)
        | Shape::Profile => json!(text),
    }
}

fn scalar(format: Format) -> Value {
    let (pattern, example) = format.pattern_and_example();
    let mut schema = if format == Format::Loose {
        json!({"type": ["string", "number", "boolean"]})
    } else if format == Format::Attempts {
        json!({"anyOf": [{"type": "integer", "minimum": 1}, {"const": "unlimited"}, environment()]})
    } else {
        json!({"type": "string"})
    };
    if let Some(pattern) = pattern.filter(|_| format != Format::Attempts) {
        schema["pattern"] = json!(format!("{pattern}|\\$\\{{env\\."));
    }
    if let Some(example) = example {
        schema["examples"] = json!([example]);
    }
    schema
}

/// Values from the environment are texts until they are filled in.
fn environment() -> Value {
    json!({"type": "string", "pattern": "^\\$\\{env\\."})
}

fn key_pattern(key: Key) -> Option<&'static str> {
    match key {
        Key::Service => Some("^[a-z][a-z0-9-]*(\\.[a-z][a-z0-9-]*)?$"),
        Key::Policy | Key::Access | Key::Profile => Some("^[a-z][a-z0-9_-]*$"),
        Key::Route => Some("^(ANY|GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) /"),
        Key::Topic | Key::SubscribedTopic => Some("^[a-z0-9][a-z0-9._-]*$"),
        Key::Variable => Some("^[A-Za-z_][A-Za-z0-9_]*$"),
        Key::Workflow | Key::Part => None,
    }
}
