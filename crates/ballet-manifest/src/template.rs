//! Expressions, the same everywhere: `${scope.path}`, with a default `${scope.path:-text}`.
//!
//! `$${` stands for a plain `${`. What a scope means is the caller's: templates only ask for values.

use std::fmt;

use serde_json::{Map, Value};

/// Answers an expression: scope and path (`input`, `["items", "0", "id"]`) to a value.
///
/// `None` and `null` are the same: the expression's default is taken.
pub type Lookup<'a> = dyn Fn(&str, &[String]) -> Option<Value> + 'a;

/// A text with expressions in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Stands for itself.
    Text(String),
    /// Is looked up.
    Expr(Expr),
}

/// `${scope.path:-default}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expr {
    /// `input`, `claims`, `event`, a step's name…
    pub scope: String,
    /// What follows the scope, divided at its dots. May be empty.
    pub path: Vec<String>,
    /// Taken when there is no value.
    pub default: Option<String>,
}

/// JSON with expressions in its texts.
///
/// A text that is one expression and nothing else keeps the value's JSON type; embedded ones become text.
#[derive(Clone, Debug, PartialEq)]
pub enum JsonTemplate {
    /// Null, a number or a boolean.
    Literal(Value),
    /// A text.
    Text(Template),
    /// A list.
    List(Vec<JsonTemplate>),
    /// An object, in the order of the file. Keys hold no expressions.
    Map(Vec<(String, JsonTemplate)>),
}

/// Why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// What is wrong.
    pub message: String,
    /// Where, in characters from the text's start.
    pub at: usize,
}

/// Why a template could not be filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// There is no value and no default.
    #[error("`{0}` has no value")]
    Missing(String),
    /// An object or a list where text is needed.
    #[error("`{0}` is not a text, number or boolean")]
    NotText(String),
    /// The value would change the path's meaning: it is empty, or makes a segment `.` or `..`.
    #[error("`{0}` cannot stand in a path")]
    NotAPathSegment(String),
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                literal.push_str(&rest[..at]);
                literal.push('{');
                rest = &rest[at + 2..];
                continue;
            }
            literal.push_str(&rest[..at]);
            let offset = text.len() - rest.len() + at;
            let position = text[..offset].chars().count();
            let Some(end) = rest[at..].find('}') else {
                return Err(TemplateError { message: "`${` without its `}`".into(), at: position });
            };
            let inner = &rest[at + 2..at + end];
            let expr = Expr::parse(inner).map_err(|message| TemplateError { message, at: position })?;
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(Part::Expr(expr));
            rest = &rest[at + end + 1..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self { source: text.to_owned(), parts })
    }

    /// As written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Its pieces.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Its expressions.
    pub fn exprs(&self) -> impl Iterator<Item = &Expr> {
        self.parts.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Expr(expr) => Some(expr),
        })
    }

    /// The text, if there is nothing to look up.
    pub fn as_literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Fills in as plain text: numbers and booleans as JSON writes them. For headers and ids; the caller checks what
    /// may stand there.
    pub fn eval_text(&self, lookup: &Lookup<'_>) -> Result<String, EvalError> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Expr(expr) => out.push_str(&expr.text(lookup)?),
            }
        }
        Ok(out)
    }

    /// Fills in as path and query: values are percent-encoded (all but RFC 3986's unreserved), only `${path.**}` keeps
    /// its slashes. A value that is missing, or that would change the path's shape, is an error.
    pub fn eval_path(&self, lookup: &Lookup<'_>) -> Result<String, EvalError> {
        let mut out = String::new();
        let mut in_query = false;
        for part in &self.parts {
            match part {
                Part::Text(text) => {
                    in_query |= text.contains('?');
                    out.push_str(text);
                }
                Part::Expr(expr) if expr.is_rest() => {
                    // The gateway's own match: already a clean path. May be empty.
                    match expr.text(lookup) {
                        Ok(text) => out.push_str(text.trim_start_matches('/')),
                        Err(EvalError::Missing(_)) => {}
                        Err(error) => return Err(error),
                    }
                }
                Part::Expr(expr) => {
                    let text = expr.text(lookup)?;
                    if text.is_empty() && !in_query {
                        return Err(EvalError::NotAPathSegment(expr.to_string()));
                    }
                    encode(&text, &mut out);
                }
            }
        }
        let path = out.split(['?', '#']).next().unwrap_or_default();
        if self.exprs().next().is_some() && path.split('/').any(|segment| segment == "." || segment == "..") {
            return Err(EvalError::NotAPathSegment(self.source.clone()));
        }
        Ok(out)
    }

    /// Fills in as JSON: one expression alone keeps its type (null if there is no value), embedded ones become text
    /// (empty if there is no value, JSON for objects and lists).
    pub fn eval_json(&self, lookup: &Lookup<'_>) -> Value {
        if let [Part::Expr(expr)] = self.parts.as_slice() {
            return expr.value(lookup);
        }
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Expr(expr) => match expr.value(lookup) {
                    Value::Null => {}
                    Value::String(text) => out.push_str(&text),
                    other => out.push_str(&other.to_string()),
                },
            }
        }
        Value::String(out)
    }
}

impl Expr {
    fn parse(inner: &str) -> Result<Self, String> {
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default.to_owned())),
            None => (inner, None),
        };
        let mut words = name.split('.');
        let scope = words.next().unwrap_or_default();
        let path: Vec<String> = words.map(str::to_owned).collect();
        let good = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
        let rest = scope == "path" && path == ["**"];
        if !good(scope) || (!rest && !path.iter().all(|word| good(word))) {
            return Err(format!("`${{{inner}}}` is not an expression"));
        }
        Ok(Self { scope: scope.to_owned(), path, default })
    }

    /// Whether it is `${path.**}`, what a route's `**` matched.
    pub fn is_rest(&self) -> bool {
        self.scope == "path" && self.path == ["**"]
    }

    /// Its value, its default, or null.
    pub fn value(&self, lookup: &Lookup<'_>) -> Value {
        match lookup(&self.scope, &self.path) {
            Some(Value::Null) | None => self.default.clone().map_or(Value::Null, Value::String),
            Some(value) => value,
        }
    }

    fn text(&self, lookup: &Lookup<'_>) -> Result<String, EvalError> {
        match self.value(lookup) {
            Value::Null => Err(EvalError::Missing(self.to_string())),
            Value::String(text) => Ok(text),
            Value::Bool(flag) => Ok(flag.to_string()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Array(_) | Value::Object(_) => Err(EvalError::NotText(self.to_string())),
        }
    }
}

impl JsonTemplate {
    /// Fills in. Never fails: what has no value is null, or empty inside a text.
    pub fn eval(&self, lookup: &Lookup<'_>) -> Value {
        match self {
            Self::Literal(value) => value.clone(),
            Self::Text(template) => template.eval_json(lookup),
            Self::List(items) => Value::Array(items.iter().map(|item| item.eval(lookup)).collect()),
            Self::Map(entries) => {
                Value::Object(entries.iter().map(|(key, item)| (key.clone(), item.eval(lookup))).collect())
            }
        }
    }

    /// As written: texts with their expressions.
    pub fn source(&self) -> Value {
        match self {
            Self::Literal(value) => value.clone(),
            Self::Text(template) => Value::String(template.source.clone()),
            Self::List(items) => Value::Array(items.iter().map(Self::source).collect()),
            Self::Map(entries) => {
                Value::Object(entries.iter().map(|(key, item)| (key.clone(), item.source())).collect::<Map<_, _>>())
            }
        }
    }
}

/// Follows `path` into a value; numbers index lists. For [`Lookup`]s.
pub fn descend<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, word| match value {
        Value::Object(map) => map.get(word),
        Value::Array(list) => list.get(word.parse::<usize>().ok()?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    })
}

/// Appends a text as part of a path: percent-encodes all but RFC 3986's unreserved characters.
pub fn encode(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.source, f)
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${{{}", self.scope)?;
        for word in &self.path {
            write!(f, ".{word}")?;
        }
        match &self.default {
            Some(default) => write!(f, ":-{default}}}"),
            None => f.write_str("}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(template: &str, value: Value) -> Result<String, EvalError> {
        let template = Template::parse(template).unwrap();
        template.eval_path(&|scope, path| descend(&value, path).filter(|_| scope == "input").cloned())
    }

    #[test]
    fn texts_are_divided_into_literals_and_expressions() {
        let template = Template::parse("a-${input.items.0.id:-none}-$${b}-$5").unwrap();
        let expr = Expr {
            scope: "input".into(),
            path: vec!["items".into(), "0".into(), "id".into()],
            default: Some("none".into()),
        };
        assert_eq!(template.parts(), [Part::Text("a-".into()), Part::Expr(expr), Part::Text("-${b}-$5".into())]);
        assert_eq!(Template::parse("plain").unwrap().as_literal(), Some("plain"));
        assert_eq!(Template::parse("ü ${a").unwrap_err().at, 2);
        for bad in ["${}", "${.a}", "${a.}", "${a b}", "${a.**}", "${a", "${a.b.${c}}"] {
            assert!(Template::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_cannot_change_the_shape_of_a_path() {
        let cases = [
            ("/orders/${input.id}", json!("a/b?c#d e%"), Ok("/orders/a%2Fb%3Fc%23d%20e%25")),
            ("/orders/${input.id}", json!(7), Ok("/orders/7")),
            ("/orders/${input.id}/x", json!("a.b"), Ok("/orders/a.b/x")),
            ("/orders?after=${input.id}", json!(""), Ok("/orders?after=")),
            ("/orders?after=${input.id}", json!(".."), Ok("/orders?after=..")),
            ("/orders/${input.id:-none}", json!(null), Ok("/orders/none")),
            ("/orders/${input.id}", json!(""), Err(EvalError::NotAPathSegment("${input.id}".into()))),
            ("/orders/${input.id}", json!(null), Err(EvalError::Missing("${input.id}".into()))),
            ("/orders/${input.id}", json!([1]), Err(EvalError::NotText("${input.id}".into()))),
            ("/orders/${input.id}", json!(".."), Err(EvalError::NotAPathSegment("/orders/${input.id}".into()))),
            ("/x/.${input.id}/y", json!("."), Err(EvalError::NotAPathSegment("/x/.${input.id}/y".into()))),
        ];
        for (template, id, expected) in cases {
            assert_eq!(filled(template, json!({"id": id})), expected.map(str::to_owned), "{template} {id}");
        }
    }

    #[test]
    fn one_expression_alone_keeps_its_type() {
        let input = json!({"n": 5, "list": [1, {"a": true}], "text": "x", "null": null});
        let lookup = |_: &str, path: &[String]| descend(&input, path).cloned();
        let eval = |text: &str| Template::parse(text).unwrap().eval_json(&lookup);
        assert_eq!(eval("${input.n}"), json!(5));
        assert_eq!(eval("${input.list.1.a}"), json!(true));
        assert_eq!(eval("${input}"), input);
        assert_eq!(eval("n=${input.n} ${input.list} ${input.null}${input.none:-d}"), json!("n=5 [1,{\"a\":true}] d"));
        assert_eq!(eval("${input.none}"), Value::Null);
        assert_eq!(eval(""), json!(""));
    }
}
