//! Which route a request takes.
//!
//! A route is `METHOD PATH`: literal segments, `{name}` or `*` for one segment, `**` for zero or more at the end. The
//! most specific path wins, as in the Gateway API: a literal beats a wildcard, a wildcard beats `**`; for one path a
//! named method beats `ANY`. Two routes of which neither is more specific, though some request fits both, are an error.
//! `GET` routes answer `HEAD` too, unless a route names `HEAD`.

use std::fmt;

use ballet_proxy::h1::path::normalize;

/// Most `{name}` and `*` in one route.
pub const MAX_PARAMETERS: usize = 8;

/// Methods with a slot of their own, in the order of an `Allow` header.
const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
const GET: usize = 0;
const HEAD: usize = 1;

/// A route's method and path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// As it was written: `GET /orders/{id}`.
    text: String,
    method: RouteMethod,
    segments: Vec<Segment>,
    /// Ends in `**`.
    tail: bool,
    /// Names of the one-segment wildcards; `*` has none.
    names: Vec<Option<Box<str>>>,
}

/// All routes, ready to be asked.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    root: Node,
}

/// What a request finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// A route: its number, in the order of building.
    Route {
        /// The route's number.
        route: usize,
        /// What the wildcards matched.
        parameters: Parameters,
    },
    /// The path is known, not with this method: 405.
    OtherMethods(Allow),
    /// 404.
    Nothing,
}

/// What a route's wildcards matched, as places in the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Parameters {
    spans: [(u32, u32); MAX_PARAMETERS],
    count: usize,
    /// Where `**` began, after its slash.
    rest: u32,
}

/// Methods that a path answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Allow(u8);

/// Why routes cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The text is not `METHOD PATH`.
    #[error("route `{route}`: {rule}")]
    Form {
        /// The route as written.
        route: String,
        /// What it breaks.
        rule: &'static str,
    },
    /// Two routes are the same but for the names of their parameters.
    #[error("routes `{first}` and `{second}` are the same")]
    Same {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// Some path fits both, and neither is more specific.
    #[error("routes `{first}` and `{second}` both match `{path}`, and neither is more specific")]
    Ambiguous {
        /// One.
        first: String,
        /// The other.
        second: String,
        /// A path that fits both.
        path: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RouteMethod {
    /// A place in [`KNOWN`].
    Known(usize),
    /// Every method but CONNECT and TRACE.
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(Box<str>),
    Wild,
}

/// How the paths of two patterns lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Same,
    Narrower,
    Wider,
    Apart,
    Crossing,
}

#[derive(Debug, Default)]
struct Node {
    /// Sorted by text.
    literals: Vec<(Box<str>, Node)>,
    wild: Option<Box<Node>>,
    ends: Methods,
    tail: Methods,
}

#[derive(Debug, Default, Clone, Copy)]
struct Methods {
    known: [Option<u32>; KNOWN.len()],
    any: Option<u32>,
}

/// A search under way.
struct Search<'p> {
    path: &'p str,
    /// Slot of the method; `None` for a method without one.
    slot: Option<usize>,
    /// CONNECT and TRACE: no route takes them.
    refused: bool,
    parameters: Parameters,
    allow: Allow,
}

impl Pattern {
    /// Reads `METHOD PATH`.
    ///
    /// # Errors
    /// [`RouteError::Form`].
    pub(crate) fn parse(text: &str) -> Result<Self, RouteError> {
        let bad = |rule| RouteError::Form { route: text.to_owned(), rule };
        let (method, path) = text.split_once(' ').ok_or_else(|| bad("write `METHOD /path`"))?;
        let method = match method {
            "ANY" => RouteMethod::Any,
            _ => RouteMethod::Known(
                slot(method)
                    .ok_or_else(|| bad("the method is none of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, ANY"))?,
            ),
        };
        let inner = path.strip_prefix('/').ok_or_else(|| bad("the path begins with `/`"))?;
        let mut pattern = Self { text: text.to_owned(), method, segments: vec![], tail: false, names: vec![] };
        let mut parts = inner.split('/').peekable();
        while let Some(part) = parts.next() {
            if part == "**" {
                if parts.peek().is_some() {
                    return Err(bad("`**` stands only at the end"));
                }
                pattern.tail = true;
            } else if part == "*" {
                pattern.segments.push(Segment::Wild);
                pattern.names.push(None);
            } else if let Some(name) = part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                    return Err(bad("a parameter's name is of letters, digits and `_`"));
                }
                if pattern.names.iter().flatten().any(|n| &**n == name) {
                    return Err(bad("two parameters have one name"));
                }
                pattern.segments.push(Segment::Wild);
                pattern.names.push(Some(name.into()));
            } else if part.contains(['*', '{', '}', '?']) {
                return Err(bad("`*`, `{name}` and `**` stand for whole segments, and a query belongs in no route"));
            } else if part.is_empty() && parts.peek().is_some() {
                return Err(bad("the path has an empty segment"));
            } else {
                pattern.segments.push(Segment::Literal(part.into()));
            }
        }
        if pattern.names.len() > MAX_PARAMETERS {
            return Err(bad("at most 8 parameters"));
        }
        // `**` and `{}` were looked at above; what is left must be written in the one spelling, or nothing would ever match.
        for segment in &pattern.segments {
            if let Segment::Literal(literal) = segment
                && !is_normal(literal)
            {
                return Err(bad(
                    "write the path as it is spelled after normalising: no dot segments, no needless escapes",
                ));
            }
        }
        Ok(pattern)
    }

    /// As it was written.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Place of the parameter of this name among [`Parameters`].
    pub(crate) fn parameter(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n.as_deref() == Some(name))
    }

    /// Whether it ends in `**`.
    pub(crate) fn has_tail(&self) -> bool {
        self.tail
    }

    fn conflict(&self, other: &Self) -> Option<RouteError> {
        if !self.method.overlaps(other.method) {
            return None;
        }
        let (first, second) = (self.text.clone(), other.text.clone());
        match self.relation(other) {
            Relation::Same if self.method == other.method => Some(RouteError::Same { first, second }),
            Relation::Crossing => Some(RouteError::Ambiguous { first, second, path: self.example(other) }),
            Relation::Same | Relation::Narrower | Relation::Wider | Relation::Apart => None,
        }
    }

    fn relation(&self, other: &Self) -> Relation {
        let (mut narrower, mut wider) = (false, false);
        for place in 0.. {
            match (self.segments.get(place), other.segments.get(place)) {
                (Some(Segment::Literal(a)), Some(Segment::Literal(b))) if a == b => {}
                (Some(Segment::Literal(_)), Some(Segment::Literal(_))) => return Relation::Apart,
                (Some(Segment::Literal(a)), Some(Segment::Wild)) if !a.is_empty() => narrower = true,
                (Some(Segment::Wild), Some(Segment::Literal(b))) if !b.is_empty() => wider = true,
                (Some(Segment::Literal(_)), Some(Segment::Wild)) | (Some(Segment::Wild), Some(Segment::Literal(_))) => {
                    return Relation::Apart;
                }
                (Some(Segment::Wild), Some(Segment::Wild)) => {}
                (Some(_), None) if other.tail => {
                    narrower = true;
                    break;
                }
                (None, Some(_)) if self.tail => {
                    wider = true;
                    break;
                }
                (Some(_), None) | (None, Some(_)) => return Relation::Apart,
                (None, None) => {
                    narrower |= other.tail && !self.tail;
                    wider |= self.tail && !other.tail;
                    break;
                }
            }
        }
        match (narrower, wider) {
            (false, false) => Relation::Same,
            (true, false) => Relation::Narrower,
            (false, true) => Relation::Wider,
            (true, true) => Relation::Crossing,
        }
    }

    /// A path that fits both of two crossing patterns.
    fn example(&self, other: &Self) -> String {
        let mut path = String::new();
        for place in 0..self.segments.len().max(other.segments.len()) {
            path.push('/');
            path.push_str(match (self.segments.get(place), other.segments.get(place)) {
                (Some(Segment::Literal(text)), _) | (_, Some(Segment::Literal(text))) => text,
                (Some(Segment::Wild) | None, Some(Segment::Wild) | None) => "x",
            });
        }
        path
    }
}

impl RouteMethod {
    fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => true,
            // A GET route answers HEAD too.
            (Self::Known(a), Self::Known(b)) => a == b || (a.max(b) == HEAD && a.min(b) == GET),
        }
    }
}

impl RouteTable {
    /// Compiles routes; each keeps its place in the list as its number.
    ///
    /// # Errors
    /// All of [`RouteError::Same`] and [`RouteError::Ambiguous`] that there are.
    pub(crate) fn build(patterns: &[Pattern]) -> Result<Self, Vec<RouteError>> {
        let mut errors = vec![];
        for (place, pattern) in patterns.iter().enumerate() {
            errors.extend(patterns[place + 1..].iter().filter_map(|other| pattern.conflict(other)));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut table = Self::default();
        for (number, pattern) in patterns.iter().enumerate() {
            table.insert(pattern, u32::try_from(number).expect("a manifest holds fewer routes than four billion"));
        }
        Ok(table)
    }

    /// Finds the route of a request. The path is in its one spelling and has no query.
    pub(crate) fn find(&self, method: &str, path: &str) -> Found {
        if !path.starts_with('/') {
            // `OPTIONS *` is about the server, not about a path.
            return Found::Nothing;
        }
        let mut search = Search {
            path,
            slot: slot(method),
            refused: matches!(method, "CONNECT" | "TRACE"),
            parameters: Parameters::default(),
            allow: Allow::default(),
        };
        match search.walk(&self.root, 1) {
            Some(route) => Found::Route { route: route as usize, parameters: search.parameters },
            None if search.allow != Allow::default() => Found::OtherMethods(search.allow),
            None => Found::Nothing,
        }
    }

    fn insert(&mut self, pattern: &Pattern, number: u32) {
        let mut node = &mut self.root;
        for segment in &pattern.segments {
            node = match segment {
                Segment::Wild => node.wild.get_or_insert_default(),
                Segment::Literal(text) => {
                    let place = node.literals.binary_search_by(|(known, _)| known.cmp(text)).unwrap_or_else(|free| {
                        node.literals.insert(free, (text.clone(), Node::default()));
                        free
                    });
                    &mut node.literals[place].1
                }
            };
        }
        let methods = if pattern.tail { &mut node.tail } else { &mut node.ends };
        match pattern.method {
            RouteMethod::Known(slot) => methods.known[slot] = Some(number),
            RouteMethod::Any => methods.any = Some(number),
        }
    }
}

impl Search<'_> {
    /// Looks for the most specific route below `node` for the path from `at` on (behind a slash; beyond the end when no
    /// segment is left). Visits no node twice.
    fn walk(&mut self, node: &Node, at: usize) -> Option<u32> {
        if at > self.path.len() {
            return self.take(&node.ends).or_else(|| self.take_tail(node, at));
        }
        let end = self.path[at..].find('/').map_or(self.path.len(), |slash| at + slash);
        let segment = &self.path[at..end];
        if let Ok(place) = node.literals.binary_search_by(|(known, _)| (**known).cmp(segment))
            && let Some(route) = self.walk(&node.literals[place].1, end + 1)
        {
            return Some(route);
        }
        if let Some(wild) = &node.wild
            && !segment.is_empty()
        {
            let count = self.parameters.count;
            self.parameters.spans[count] = (to_u32(at), to_u32(end));
            self.parameters.count = count + 1;
            if let Some(route) = self.walk(wild, end + 1) {
                return Some(route);
            }
            self.parameters.count = count;
        }
        self.take_tail(node, at)
    }

    fn take_tail(&mut self, node: &Node, at: usize) -> Option<u32> {
        let route = self.take(&node.tail)?;
        self.parameters.rest = to_u32(at.min(self.path.len()));
        Some(route)
    }

    fn take(&mut self, methods: &Methods) -> Option<u32> {
        self.allow.add(methods);
        if self.refused {
            return None;
        }
        self.slot
            .and_then(|slot| methods.known[slot].or(if slot == HEAD { methods.known[GET] } else { None }))
            .or(methods.any)
    }
}

impl Parameters {
    /// What the wildcard at this place matched.
    pub(crate) fn get<'p>(&self, place: usize, path: &'p str) -> Option<&'p str> {
        let (from, to) = *self.spans[..self.count].get(place)?;
        path.get(from as usize..to as usize)
    }

    /// What `**` matched, without the slash before it.
    pub(crate) fn rest<'p>(&self, path: &'p str) -> &'p str {
        path.get(self.rest as usize..).unwrap_or("")
    }
}

impl Allow {
    /// What files answer to.
    pub(crate) const FILES: Self = Self(1 << GET | 1 << HEAD);

    fn add(&mut self, methods: &Methods) {
        for (place, route) in methods.known.iter().enumerate() {
            self.0 |= u8::from(route.is_some() || methods.any.is_some()) << place;
        }
        self.0 |= u8::from(methods.known[GET].is_some()) << HEAD;
    }
}

/// The value of an `Allow` header.
impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (place, method) in KNOWN.iter().enumerate() {
            if self.0 & (1 << place) != 0 {
                f.write_str(if first { "" } else { ", " })?;
                f.write_str(method)?;
                first = false;
            }
        }
        Ok(())
    }
}

/// Whether a segment is spelled as requests' paths are after normalising.
fn is_normal(segment: &str) -> bool {
    let path = format!("/{segment}");
    let mut spelled = vec![];
    match normalize(path.as_bytes(), &mut spelled) {
        Ok(changed) => !changed || spelled == path.as_bytes(),
        Err(_) => false,
    }
}

fn slot(method: &str) -> Option<usize> {
    KNOWN.iter().position(|known| *known == method)
}

/// A request's target is far shorter than 4 GiB.
fn to_u32(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
