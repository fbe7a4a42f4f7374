//! Conductor's parameter expressions: `${workflow.input.id}`, `${charge.output.response.body.id}`.
//!
//! The path is a JSONPath of the Jayway dialect without its leading `$.`; of it we take names, `['name']`, `[3]` and
//! `[-1]`, and refuse the rest with a clear error. Ours beyond Conductor: a default, `${workflow.input.x:-none}`.
//! `$${` stands for a plain `${`.

use std::borrow::Cow;

use ballet_manifest::encode;
use serde_json::{Map, Value};

/// Why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {why}")]
pub(crate) struct ExprError {
    /// The text.
    pub(crate) text: String,
    /// What is wrong with it.
    pub(crate) why: &'static str,
}

/// Why a path could not be filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EvalError {
    /// There is no value.
    #[error("`{0}` has no value")]
    Missing(String),
    /// An object, a list, an empty text, or one that would change the path's shape.
    #[error("`{0}` cannot stand in a path")]
    Unfit(String),
}

/// JSON with expressions in its texts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Template {
    /// Without expressions.
    Plain(Value),
    /// A text with expressions; one alone keeps its value's type.
    Text(Vec<Part>),
    /// A URI with expressions, whose values are percent-encoded.
    Uri(Vec<Part>),
    /// A list.
    List(Vec<Template>),
    /// An object.
    Map(Vec<(String, Template)>),
}

/// A piece of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Itself.
    Text(String),
    /// A value looked up.
    Path(Path),
}

/// One expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// As written, without `${` and `}`.
    pub(crate) source: String,
    /// `workflow`, `failure` or a task's reference name.
    pub(crate) root: String,
    /// What follows.
    pub(crate) keys: Vec<Key>,
    /// Taken when there is no value.
    pub(crate) default: Option<String>,
}

/// A step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// Of an object.
    Name(String),
    /// Of a list; negative counts from its end.
    Index(i64),
}

/// Knows the values: the root's field, such as `("workflow", "input")`.
pub(crate) trait Scope {
    /// The value, if there is one.
    fn field(&self, root: &str, name: &str) -> Option<Cow<'_, Value>>;
    /// What a missing value becomes inside a longer text: Conductor writes `null`, the manifest's templates nothing.
    fn missing(&self) -> &'static str;
}

impl Template {
    /// Reads a JSON value.
    pub(crate) fn parse(value: &Value) -> Result<Self, ExprError> {
        let template = match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => Self::Plain(value.clone()),
            Value::String(text) => match parts(text)? {
                parts if parts.iter().all(|p| matches!(p, Part::Text(_))) => Self::Plain(Value::String(plain(parts))),
                parts => Self::Text(parts),
            },
            Value::Array(items) => Self::List(items.iter().map(Self::parse).collect::<Result<_, _>>()?),
            Value::Object(map) => {
                Self::Map(map.iter().map(|(k, v)| Ok((k.clone(), Self::parse(v)?))).collect::<Result<_, ExprError>>()?)
            }
        };
        Ok(match template {
            Self::List(items) if items.iter().all(|i| matches!(i, Self::Plain(_))) => Self::Plain(value_of(items)),
            Self::Map(items) if items.iter().all(|(_, i)| matches!(i, Self::Plain(_))) => {
                Self::Plain(Value::Object(items.into_iter().map(|(k, v)| (k, own(v))).collect()))
            }
            other @ (Self::Plain(_) | Self::Text(_) | Self::Uri(_) | Self::List(_) | Self::Map(_)) => other,
        })
    }

    /// Reads a URI: values inside it get percent-encoded.
    pub(crate) fn uri(text: &str) -> Result<Self, ExprError> {
        Ok(Self::Uri(parts(text)?))
    }

    /// All its expressions.
    pub(crate) fn paths(&self, each: &mut dyn FnMut(&Path)) {
        match self {
            Self::Plain(_) => {}
            Self::Text(parts) | Self::Uri(parts) => {
                for part in parts {
                    if let Part::Path(path) = part {
                        each(path);
                    }
                }
            }
            Self::List(items) => items.iter().for_each(|item| item.paths(each)),
            Self::Map(items) => items.iter().for_each(|(_, item)| item.paths(each)),
        }
    }

    /// Fills in.
    ///
    /// # Errors
    /// Only of a [`Template::Uri`] in it: everywhere else what has no value is null.
    pub(crate) fn eval(&self, scope: &dyn Scope) -> Result<Value, EvalError> {
        Ok(match self {
            Self::Plain(value) => value.clone(),
            Self::Text(parts) => match parts.as_slice() {
                [Part::Path(path)] => path.value(scope),
                parts => Value::String(splice(parts, scope)),
            },
            Self::Uri(parts) => Value::String(uri(parts, scope)?),
            Self::List(items) => Value::Array(items.iter().map(|i| i.eval(scope)).collect::<Result<_, _>>()?),
            Self::Map(items) => {
                let entries = items.iter().map(|(k, v)| Ok((k.clone(), v.eval(scope)?)));
                Value::Object(entries.collect::<Result<Map<_, _>, EvalError>>()?)
            }
        })
    }
}

impl Path {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (path, default) = match text.split_once(":-") {
            Some((path, default)) => (path, Some(default.to_owned())),
            None => (text, None),
        };
        let path = path.trim();
        let end = path.find(['.', '[']).unwrap_or(path.len());
        let (root, mut rest) = path.split_at(end);
        if root.is_empty() {
            return Err("an expression names something");
        }
        if root.contains(['$', '{', '}']) || rest.contains("${") {
            return Err("an expression inside an expression is not supported yet");
        }
        let mut keys = vec![];
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                let (name, more) = after.split_at(end);
                match name {
                    "" => return Err("`..` is not supported yet"),
                    "*" => return Err("`*` is not supported yet"),
                    name if name.ends_with(')') => return Err("functions are not supported yet"),
                    name => keys.push(Key::Name(name.to_owned())),
                }
                rest = more;
            } else if let Some(after) = rest.strip_prefix('[') {
                let quote = after.chars().next().filter(|c| matches!(c, '\'' | '"'));
                let (key, more) = match quote {
                    Some(q) => {
                        let (name, more) = after[1..].split_once(q).ok_or("a quote that does not end")?;
                        let more = more.strip_prefix(']').ok_or("`[` without its `]`")?;
                        (Key::Name(name.to_owned()), more)
                    }
                    None => {
                        let (index, more) = after.split_once(']').ok_or("`[` without its `]`")?;
                        let index = index.trim().parse();
                        (Key::Index(index.map_err(|_| "filters, slices and `*` are not supported yet")?), more)
                    }
                };
                keys.push(key);
                rest = more;
            } else {
                return Err("after `]` comes `.` or `[`");
            }
        }
        Ok(Self { source: text.to_owned(), root: root.to_owned(), keys, default })
    }

    fn value(&self, scope: &dyn Scope) -> Value {
        let found = match self.keys.split_first() {
            Some((Key::Name(name), keys)) => {
                scope.field(&self.root, name).and_then(|value| descend(&value, keys).cloned())
            }
            Some((Key::Index(_), _)) | None => None,
        };
        match found {
            Some(Value::Null) | None => self.default.clone().map_or(Value::Null, Value::String),
            Some(value) => value,
        }
    }
}

fn descend<'a>(value: &'a Value, keys: &[Key]) -> Option<&'a Value> {
    keys.iter().try_fold(value, |value, key| match (value, key) {
        (Value::Object(map), Key::Name(name)) => map.get(name),
        (Value::Array(list), Key::Index(i)) => {
            let at = if *i < 0 { i64::try_from(list.len()).ok()? + i } else { *i };
            list.get(usize::try_from(at).ok()?)
        }
        // The manifest writes `items.0`.
        (Value::Array(list), Key::Name(name)) => list.get(name.parse::<usize>().ok()?),
        (Value::Object(_), Key::Index(_)) => None,
        (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_), Key::Name(_) | Key::Index(_)) => None,
    })
}

/// Divides a text at its expressions.
fn parts(text: &str) -> Result<Vec<Part>, ExprError> {
    let bad = |why| ExprError { text: text.chars().take(200).collect(), why };
    let (mut parts, mut literal, mut rest) = (vec![], String::new(), text);
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            literal.push_str(&rest[..at]);
            literal.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        literal.push_str(&rest[..at]);
        let end = rest[at..].find('}').ok_or_else(|| bad("`${` without its `}`"))?;
        let inner = &rest[at + 2..at + end];
        if inner.trim().is_empty() {
            return Err(bad("an expression names something"));
        }
        if !literal.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut literal)));
        }
        parts.push(Part::Path(Path::parse(inner).map_err(bad)?));
        rest = &rest[at + end + 1..];
    }
    literal.push_str(rest);
    if !literal.is_empty() || parts.is_empty() {
        parts.push(Part::Text(literal));
    }
    Ok(parts)
}

fn plain(parts: Vec<Part>) -> String {
    let texts = parts.into_iter().map(|part| match part {
        Part::Text(text) => text,
        Part::Path(path) => path.source,
    });
    texts.collect()
}

fn own(template: Template) -> Value {
    match template {
        Template::Plain(value) => value,
        Template::Text(_) | Template::Uri(_) | Template::List(_) | Template::Map(_) => Value::Null,
    }
}

fn value_of(items: Vec<Template>) -> Value {
    Value::Array(items.into_iter().map(own).collect())
}

fn splice(parts: &[Part], scope: &dyn Scope) -> String {
    let mut out = String::new();
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Path(path) => match path.value(scope) {
                Value::Null => out.push_str(scope.missing()),
                Value::String(text) => out.push_str(&text),
                other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
                    out.push_str(&other.to_string());
                }
            },
        }
    }
    out
}

fn uri(parts: &[Part], scope: &dyn Scope) -> Result<String, EvalError> {
    let (mut out, mut query) = (String::new(), false);
    for part in parts {
        match part {
            Part::Text(text) => {
                query |= text.contains('?');
                out.push_str(text);
            }
            Part::Path(path) => {
                let text = match path.value(scope) {
                    Value::Null => return Err(EvalError::Missing(path.source.clone())),
                    Value::String(text) => text,
                    other @ (Value::Bool(_) | Value::Number(_)) => other.to_string(),
                    Value::Array(_) | Value::Object(_) => return Err(EvalError::Unfit(path.source.clone())),
                };
                // An empty, `.` or `..` segment would make another path of it.
                if !query && matches!(text.as_str(), "" | "." | "..") {
                    return Err(EvalError::Unfit(path.source.clone()));
                }
                encode(&text, &mut out);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Fixed(Value);

    impl Scope for Fixed {
        fn field(&self, root: &str, name: &str) -> Option<Cow<'_, Value>> {
            self.0.get(root)?.get(name).map(Cow::Borrowed)
        }

        fn missing(&self) -> &'static str {
            "null"
        }
    }

    #[test]
    fn expressions_keep_types_and_splice_text() {
        let scope = Fixed(json!({"workflow": {"input": {"id": "7", "n": 3, "list": [1, 2], "a b": true}}}));
        let cases = [
            (json!("${workflow.input.n}"), json!(3)),
            (json!("n=${workflow.input.n} ${workflow.input.list}"), json!("n=3 [1,2]")),
            (json!("${workflow.input.list[-1]}"), json!(2)),
            (json!("${workflow.input.list.0}"), json!(1)),
            (json!("${workflow.input['a b']}"), json!(true)),
            (json!("${workflow.input.none}"), json!(null)),
            (json!("x${workflow.input.none}"), json!("xnull")),
            (json!("${workflow.input.none:-y}"), json!("y")),
            (json!("$${workflow.input.n}"), json!("${workflow.input.n}")),
            (json!({"a": ["${workflow.input.id}", 1]}), json!({"a": ["7", 1]})),
            (json!({"a": ["id", 1]}), json!({"a": ["id", 1]})),
        ];
        for (template, expected) in cases {
            assert_eq!(Template::parse(&template).unwrap().eval(&scope).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn values_cannot_leave_their_path_segment() {
        let scope = Fixed(json!({"workflow": {"input": {"id": "a/../b?c", "dots": "..", "none": null}}}));
        let of = |text| Template::uri(text).unwrap().eval(&scope);
        assert_eq!(of("service://x/y/${workflow.input.id}").unwrap(), json!("service://x/y/a%2F..%2Fb%3Fc"));
        assert_eq!(of("service://x/${workflow.input.dots}"), Err(EvalError::Unfit("workflow.input.dots".into())));
        assert_eq!(of("service://x/${workflow.input.none}"), Err(EvalError::Missing("workflow.input.none".into())));
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        for bad in
            ["${}", "${ }", "${a", "${a..b}", "${a[*]}", "${a.b[?(@.c)]}", "${a[0:2]}", "${a.length()}", "${a.${b}}"]
        {
            assert!(Template::parse(&json!(bad)).is_err(), "{bad}");
        }
    }
}
