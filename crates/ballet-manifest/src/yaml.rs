//! YAML text to a tree in which everything knows its place. Strict: what two parsers could read differently is refused.

use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Number, Value};

use crate::mistake::{DUPLICATE_KEY, Mistake, NOT_OUR_YAML, SYNTAX};
use crate::model::Origin;

/// Collections may be this deep.
const MAX_DEPTH: usize = 32;

/// Where texts come from: the file, each `--set`, each environment variable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources(Vec<SourceText>);

#[derive(Clone, Debug)]
struct SourceText {
    label: Arc<str>,
    lines: Vec<String>,
}

/// A place in a source.
#[derive(Clone, Debug)]
pub(crate) struct At {
    pub(crate) source: usize,
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) width: usize,
    pub(crate) origin: Origin,
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) raw: Raw,
    pub(crate) at: At,
}

#[derive(Clone, Debug)]
pub(crate) enum Raw {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_at: At,
    pub(crate) value: Node,
}

/// A scalar; its type is decided by YAML's core schema when somebody asks.
#[derive(Clone, Debug)]
pub(crate) struct Scalar {
    /// The text after YAML's escapes.
    pub(crate) text: String,
    /// The text with `${env.…}` filled in, if there was any.
    pub(crate) resolved: Option<String>,
    /// Without quotes: may be null, a boolean or a number.
    pub(crate) plain: bool,
    /// A mistake about its value is noted already: nobody looks at it again.
    pub(crate) unknown: bool,
}

/// What a scalar is by YAML 1.2's core schema.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Core {
    Null,
    Bool(bool),
    Int(i64),
    /// A number that is not an `i64`; `None` for infinities, what is not a number, and whole numbers out of range.
    Float(Option<f64>),
    Text,
}

impl Sources {
    pub(crate) fn add(&mut self, label: &str, text: &str) -> usize {
        self.0.push(SourceText { label: label.into(), lines: text.lines().map(str::to_owned).collect() });
        self.0.len() - 1
    }

    pub(crate) fn label(&self, source: usize) -> Arc<str> {
        self.0[source].label.clone()
    }

    pub(crate) fn line(&self, at: &At) -> &str {
        self.0[at.source].lines.get(at.line.wrapping_sub(1)).map_or("", String::as_str)
    }

    pub(crate) fn mistake(
        &self,
        at: &At,
        code: ballet_core::ErrorCode,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Mistake {
        let snippet = without_passwords(self.line(at));
        let room = snippet.chars().count().saturating_sub(at.column - 1);
        Mistake {
            code,
            file: self.0[at.source].label.to_string(),
            line: at.line,
            column: at.column,
            width: at.width.min(room).max(1),
            message: message.into(),
            snippet,
            help: help.into(),
        }
    }

    /// The place of a part of a scalar, if its text stands in the source as it is; else the whole scalar.
    pub(crate) fn within(&self, node: &Node, offset: usize, width: usize) -> At {
        let mut at = node.at.clone();
        if let Raw::Scalar(scalar) = &node.raw {
            let rest: String = self.line(&at).chars().skip(at.column - 1).collect();
            let quote = usize::from(!scalar.plain);
            let shown: String = rest.chars().skip(quote).collect();
            if shown.starts_with(&scalar.text) && offset < scalar.text.chars().count() {
                at.column += quote + offset;
                at.width = width.max(1);
            }
        }
        at
    }
}

impl Node {
    /// What an empty text is.
    pub(crate) fn empty(source: usize, sources: &Sources) -> Self {
        let origin = Origin::File { file: sources.label(source), line: 1, column: 1 };
        Self { raw: Raw::Map(Vec::new()), at: At { source, line: 1, column: 1, width: 1, origin } }
    }

    /// Not there, as far as optional keys go.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.raw, Raw::Scalar(scalar) if !scalar.unknown && scalar.core() == Core::Null)
    }

    pub(crate) fn scalar(&self) -> Option<&Scalar> {
        match &self.raw {
            Raw::Scalar(scalar) => Some(scalar),
            Raw::List(_) | Raw::Map(_) => None,
        }
    }

    /// The text of a scalar, `${env.…}` filled in.
    pub(crate) fn text(&self) -> Option<&str> {
        self.scalar().map(Scalar::value)
    }

    /// The entries of a map; none for anything else.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.raw {
            Raw::Map(entries) => entries,
            Raw::Scalar(_) | Raw::List(_) => &[],
        }
    }

    /// The items of a list; none for anything else.
    pub(crate) fn items(&self) -> &[Node] {
        match &self.raw {
            Raw::List(items) => items,
            Raw::Scalar(_) | Raw::Map(_) => &[],
        }
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The value of a key; `None` also if it is null.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value).filter(|value| !value.is_null())
    }

    /// "text", "a number", …: what a person would call it.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.raw {
            Raw::Map(_) => "a map",
            Raw::List(_) => "a list",
            Raw::Scalar(scalar) => match scalar.core() {
                Core::Null => "nothing",
                Core::Bool(_) => "a boolean",
                Core::Int(_) | Core::Float(_) => "a number",
                Core::Text => "text",
            },
        }
    }

    /// As JSON, `${env.…}` filled in. Numbers that JSON cannot write become null; the walk has refused them.
    pub(crate) fn json(&self) -> Value {
        self.to_json(&|scalar| scalar.value().to_owned())
    }

    /// As JSON, expressions as written.
    pub(crate) fn json_as_written(&self) -> Value {
        self.to_json(&|scalar| scalar.text.clone())
    }

    fn to_json(&self, text: &dyn Fn(&Scalar) -> String) -> Value {
        match &self.raw {
            Raw::Scalar(scalar) => match scalar.core() {
                Core::Null => Value::Null,
                Core::Bool(flag) => Value::Bool(flag),
                Core::Int(number) => Value::Number(number.into()),
                Core::Float(number) => number.and_then(Number::from_f64).map_or(Value::Null, Value::Number),
                Core::Text => Value::String(text(scalar)),
            },
            Raw::List(items) => Value::Array(items.iter().map(|item| item.to_json(text)).collect()),
            Raw::Map(entries) => Value::Object(
                entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json(text))).collect::<Map<_, _>>(),
            ),
        }
    }
}

impl Scalar {
    pub(crate) fn null() -> Self {
        Self { text: String::new(), resolved: None, plain: true, unknown: false }
    }

    /// A text that nobody wrote.
    pub(crate) fn plain(text: &str) -> Self {
        Self { text: text.to_owned(), ..Self::null() }
    }

    pub(crate) fn value(&self) -> &str {
        self.resolved.as_deref().unwrap_or(&self.text)
    }

    /// Its type by the core schema.
    pub(crate) fn core(&self) -> Core {
        if !self.plain { Core::Text } else { core(&self.text) }
    }

    /// Its type; a value from the environment may be a number or a boolean whatever its quotes.
    pub(crate) fn typed(&self) -> Core {
        match &self.resolved {
            Some(text) => core(text),
            None => self.core(),
        }
    }
}

/// A line as it may be shown: passwords in URLs become stars, as many as they had characters.
fn without_passwords(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || c == '"' || c == '\'').unwrap_or(after.len());
        let authority = &after[..end];
        match (authority.find(':'), authority.rfind('@')) {
            (Some(colon), Some(sign)) if colon < sign => {
                out.push_str(&authority[..=colon]);
                out.extend(authority[colon + 1..sign].chars().map(|_| '*'));
                out.push_str(&authority[sign..]);
            }
            (Some(_) | None, _) => out.push_str(authority),
        }
        rest = &after[end..];
    }
    out + rest
}

/// YAML 1.2.2, section 10.3.2.
fn core(text: &str) -> Core {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Core::Null,
        "true" | "True" | "TRUE" => return Core::Bool(true),
        "false" | "False" | "FALSE" => return Core::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Core::Float(None),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Core::Float(None);
    }
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits(unsigned) {
        return text.strip_prefix('+').unwrap_or(text).parse().map_or(Core::Float(None), Core::Int);
    }
    for (prefix, radix) in [("0o", 8), ("0x", 16)] {
        if let Some(rest) = text.strip_prefix(prefix)
            && !rest.is_empty()
            && rest.chars().all(|c| c.is_digit(radix))
        {
            return i64::from_str_radix(rest, radix).map_or(Core::Float(None), Core::Int);
        }
    }
    // [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let good_mantissa = (digits(whole) && (fraction.is_empty() || digits(fraction)))
        || (whole.is_empty() && mantissa.starts_with('.') && digits(fraction));
    let good_exponent = exponent.is_none_or(|text| digits(text.strip_prefix(['-', '+']).unwrap_or(text)));
    if good_mantissa && good_exponent {
        return Core::Float(text.parse().ok().filter(|number: &f64| number.is_finite()));
    }
    Core::Text
}

/// Reads one document. What can be read is returned even beside mistakes, so that more of them are found.
pub(crate) fn parse(text: &str, source: usize, sources: &Sources, origin: OriginKind) -> (Option<Node>, Vec<Mistake>) {
    let mut reader = Reader {
        text,
        source,
        sources,
        origin,
        label: sources.label(source),
        mistakes: Vec::new(),
        scalars: Vec::new(),
        parser: Parser::new_from_str_with_options(text, options()),
    };
    let node = reader.document();
    reader.tabs();
    let mut mistakes = reader.mistakes;
    // A tab is often why the parser stumbles: then its own complaint is noise.
    if mistakes.iter().any(|mistake| mistake.code == NOT_OUR_YAML && mistake.message.starts_with("a tab")) {
        mistakes.retain(|mistake| mistake.code != SYNTAX);
    }
    (node, mistakes)
}

fn options() -> granit_parser::Options {
    granit_parser::options! {
        strict_indentation: true,
        disallow_directives: true,
        emit_unresolved_aliases: true,
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH
    }
}

/// What the nodes of a text say of where they come from.
#[derive(Clone, Debug)]
pub(crate) enum OriginKind {
    File,
    Environment(Arc<str>),
    Set,
}

struct Reader<'a> {
    text: &'a str,
    source: usize,
    sources: &'a Sources,
    origin: OriginKind,
    label: Arc<str>,
    mistakes: Vec<Mistake>,
    /// Byte ranges of scalars: tabs are welcome there.
    scalars: Vec<std::ops::Range<usize>>,
    parser: Parser<'a, granit_parser::StrInput<'a>>,
}

/// Reading cannot go on; the reason is noted.
struct Stop;

impl<'a> Reader<'a> {
    fn document(&mut self) -> Option<Node> {
        let mut root = None;
        while let Ok(Some((event, span))) = self.next() {
            match event {
                Event::DocumentStart(..) if root.is_some() => {
                    self.refuse(&span, "a second document", "keep one document per file; delete the `---`");
                    break;
                }
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                other => match self.node(other, span) {
                    Ok(node) => root = Some(node),
                    Err(Stop) => break,
                },
            }
        }
        root
    }

    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Stop> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok(pair)) => Ok(Some(pair)),
            Some(Err(error)) => {
                let mark = error.marker();
                let at = self.at(mark.line(), mark.col(), 1);
                let message = format!("this is not YAML: {}", error.info());
                self.mistakes.push(self.sources.mistake(
                    &at,
                    SYNTAX,
                    message,
                    "look at quotes, brackets and indentation here and on the line above; a text with `: ` or ` #` in it needs quotes",
                ));
                Err(Stop)
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span) -> Result<Node, Stop> {
        if event.anchor_id().is_some() && !event.is_alias() {
            self.refuse(&span, "an anchor (`&`)", "write the value out where it is needed");
        }
        if event.tag().is_some() {
            let shown = span.tag_span().unwrap_or(span);
            self.refuse(&shown, "a tag (`!`)", "delete it; a text that looks like a number needs quotes");
        }
        let mut at = self.at_span(&span);
        let raw = match event {
            Event::Scalar(text, style, ..) => {
                self.scalars.extend(span.byte_range());
                Raw::Scalar(Scalar {
                    text: text.into_owned(),
                    resolved: None,
                    plain: style == ScalarStyle::Plain,
                    unknown: false,
                })
            }
            Event::SequenceStart(..) => {
                at.width = 1;
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        None | Some((Event::SequenceEnd, _)) => break,
                        Some((event, span)) => items.push(self.node(event, span)?),
                    }
                }
                Raw::List(items)
            }
            Event::MappingStart(..) => {
                at.width = 1;
                Raw::Map(self.entries()?)
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.refuse(&span, "an alias (`*`)", "write the value out; a text that begins with `*` needs quotes");
                Raw::Scalar(Scalar { unknown: true, ..Scalar::null() })
            }
            // The parser sends nothing else where a node belongs.
            _ => return Err(Stop),
        };
        Ok(Node { raw, at })
    }

    fn entries(&mut self) -> Result<Vec<Entry>, Stop> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, span) = match self.next()? {
                None | Some((Event::MappingEnd, _)) => return Ok(entries),
                Some(pair) => pair,
            };
            let key = self.node(event, span)?;
            let Some((event, span)) = self.next()? else { return Ok(entries) };
            let absent = span.start.index() == span.end.index();
            let mut value = self.node(event, span)?;
            if absent && value.is_null() {
                // An empty value has no place of its own.
                value.at = key.at.clone();
            }
            let Raw::Scalar(scalar) = key.raw else {
                self.refuse(&span_of(&key.at), "a key that is not text", "write `key: value`");
                continue;
            };
            if let Some(first) = entries.iter().find(|entry| entry.key == scalar.text) {
                let message = format!("`{}` stands here a second time", scalar.text);
                let help = format!("the first is on line {}; delete one of them", first.key_at.line);
                self.mistakes.push(self.sources.mistake(&key.at, DUPLICATE_KEY, message, help));
                continue;
            }
            entries.push(Entry { key: scalar.text, key_at: key.at, value });
        }
    }

    fn refuse(&mut self, span: &Span, what: &str, help: &str) {
        let at = self.at_span(span);
        self.mistakes.push(self.sources.mistake(
            &at,
            NOT_OUR_YAML,
            format!("{what} is not allowed in a manifest"),
            help,
        ));
    }

    fn at_span(&self, span: &Span) -> At {
        let width =
            if span.start.line() == span.end.line() { span.end.col().saturating_sub(span.start.col()) } else { 1 };
        self.at(span.start.line(), span.start.col(), width)
    }

    /// A place; `column` counts from zero here.
    fn at(&self, line: usize, column: usize, width: usize) -> At {
        let (line, column) = (line.max(1), column + 1);
        let origin = match &self.origin {
            OriginKind::File => Origin::File { file: self.label.clone(), line, column },
            OriginKind::Environment(name) => Origin::Environment(name.clone()),
            OriginKind::Set => Origin::Set,
        };
        At { source: self.source, line, column, width: width.max(1), origin }
    }

    /// Refuses tabs outside of texts and comments: what they indent is anyone's guess.
    fn tabs(&mut self) {
        let mut start = 0;
        for (index, line) in self.text.split_inclusive('\n').enumerate() {
            let inside = |at: usize| self.scalars.iter().any(|range| range.contains(&(start + at)));
            let comment = line
                .bytes()
                .enumerate()
                .position(|(at, byte)| {
                    byte == b'#' && !inside(at) && (at == 0 || matches!(line.as_bytes()[at - 1], b' ' | b'\t'))
                })
                .unwrap_or(line.len());
            let tab = line.bytes().take(comment).enumerate().position(|(at, byte)| byte == b'\t' && !inside(at));
            // Trailing white space separates nothing.
            if let Some(tab) = tab
                && !line[tab..].trim().is_empty()
            {
                let column = line[..tab].chars().count();
                let at = self.at(index + 1, column, 1);
                self.mistakes.push(self.sources.mistake(
                    &at,
                    NOT_OUR_YAML,
                    "a tab is not allowed in a manifest",
                    "indent and divide with spaces",
                ));
            }
            start += line.len();
        }
    }
}

fn span_of(at: &At) -> Span {
    let start = granit_parser::Marker::new(0, at.line, at.column - 1);
    Span::new(start, granit_parser::Marker::new(0, at.line, at.column - 1 + at.width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_have_the_types_of_the_core_schema() {
        for (text, expected) in [
            ("", Core::Null),
            ("~", Core::Null),
            ("true", Core::Bool(true)),
            ("yes", Core::Text),
            ("007", Core::Int(7)),
            ("-3", Core::Int(-3)),
            ("0x1f", Core::Int(31)),
            ("0o17", Core::Int(15)),
            ("1.5", Core::Float(Some(1.5))),
            (".5e1", Core::Float(Some(5.0))),
            ("1.", Core::Float(Some(1.0))),
            (".inf", Core::Float(None)),
            ("1_000", Core::Text),
            ("12:30", Core::Text),
            ("2s", Core::Text),
            (".", Core::Text),
            ("-", Core::Text),
            ("e5", Core::Text),
            ("99999999999999999999", Core::Float(None)),
        ] {
            assert_eq!(core(text), expected, "{text}");
        }
    }
    #[test]
    fn passwords_are_not_shown() {
        let line = "store: \"postgres://o:gehe@im@db/x\", a: nats://h, b: redis://:pw@h";
        assert_eq!(without_passwords(line), "store: \"postgres://o:*******@db/x\", a: nats://h, b: redis://:**@h");
    }
}
