//! The head of a request: read strictly, shown to filters as a borrowed [`Head`].

use ballet_core::headers;

use super::path::normalize;
use super::{
    Field, Framing, MAX_FIELDS, MAX_HEAD, MAX_TARGET, hop_by_hop, is, length, lines_are_strict, list, offsets, range,
    token,
};

/// A request's head: its bytes and the offsets of its parts. Reused from request to request.
#[derive(Debug, Default)]
pub struct RequestHead {
    bytes: Vec<u8>,
    method: (u32, u32),
    path: (u32, u32),
    query: Option<(u32, u32)>,
    host: (u32, u32),
    fields: Vec<Field>,
    /// The path in its one form, if it came in another.
    normal: Vec<u8>,
    normalized: bool,
    old: bool,
    framing: Option<Framing>,
    keep_alive: bool,
    expects_continue: bool,
    websocket: bool,
    /// Whether `Connection` names headers that end here.
    connection: bool,
}

/// How paths are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paths {
    /// Brought into one form, see [`normalize`]; ambiguous ones are refused. For listeners that strangers reach.
    #[default]
    Strict,
    /// Left as they came. For a sidecar, whose API has keys in paths.
    AsIs,
}

/// A refused request: what to answer before the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// 400, 405, 408, 413, 414, 417, 431, 501 or 505.
    pub status: u16,
    /// What is wrong.
    pub reason: &'static str,
}

/// A request's head as filters see it. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a>(&'a RequestHead);

const fn refuse(status: u16, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

const BAD: fn(&'static str) -> Refusal = |reason| refuse(400, reason);

impl RequestHead {
    /// Reads a head from the start of `bytes`, says its length; `None`: more bytes are needed.
    ///
    /// # Errors
    /// A [`Refusal`] for whatever another program might read as something else.
    pub fn parse(&mut self, bytes: &[u8], paths: Paths) -> Result<Option<usize>, Refusal> {
        let mut slots = [const { std::mem::MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Request::new(&mut []);
        let total = match parsed.parse_with_uninit_headers(bytes, &mut slots) {
            Ok(httparse::Status::Complete(total)) => total,
            Ok(httparse::Status::Partial) => return too_long(bytes).map_or(Ok(None), Err),
            Err(error) => return Err(why(error, bytes)),
        };
        if total > MAX_HEAD {
            return Err(refuse(431, "the head is longer than 32 KiB"));
        }
        let head = &bytes[..total];
        if !lines_are_strict(head) {
            return Err(BAD("a line does not end in CR LF"));
        }
        self.old = parsed.version == Some(0);
        self.normalized = false;
        self.fields.clear();
        self.bytes.clear();
        self.bytes.extend_from_slice(head);
        let method = parsed.method.unwrap_or("");
        self.method = offsets(head, method.as_bytes());
        match method {
            "CONNECT" | "TRACE" => return Err(refuse(405, "the methods CONNECT and TRACE are not served")),
            _ if method.bytes().any(|b| b.is_ascii_lowercase()) => {
                return Err(refuse(501, "methods are in capital letters"));
            }
            _ => {}
        }
        let target = parsed.path.unwrap_or("").as_bytes();
        if target.len() > MAX_TARGET {
            return Err(refuse(414, "the target is longer than 8 KiB"));
        }
        let authority = self.read_target(head, method, target, paths)?;
        self.read_fields(head, parsed.headers)?;
        if let Some(authority) = authority
            && !authority.eq_ignore_ascii_case(&head[range(self.host)])
        {
            return Err(BAD("the target names another host than Host"));
        }
        Ok(Some(total))
    }

    /// The view for filters.
    pub fn view(&self) -> Head<'_> {
        Head(self)
    }

    /// How the body ends.
    pub fn framing(&self) -> Framing {
        self.framing.unwrap_or(Framing::None)
    }

    /// Whether the client wants to send another request on this connection.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether the client waits for `100 Continue` before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// Whether the client speaks HTTP/1.0.
    pub fn is_old(&self) -> bool {
        self.old
    }

    /// The header lines that go on to the next hop. What `Connection` names and what is hop-by-hop stays here, and so do
    /// names with `_`, which some servers cannot tell from those with `-`.
    pub fn forwarded(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().filter_map(|field| {
            let name = field.name(&self.bytes);
            let stays = hop_by_hop(name)
                || is(name, b"expect")
                || (self.connection && self.named(name))
                || name.contains(&b'_');
            (!stays).then(|| (name, field.value(&self.bytes)))
        })
    }

    pub(crate) fn release(&mut self) {
        *self = Self::default();
    }

    /// Reads the target; gives the authority of an absolute one.
    fn read_target<'t>(
        &mut self,
        head: &[u8],
        method: &str,
        target: &'t [u8],
        paths: Paths,
    ) -> Result<Option<&'t [u8]>, Refusal> {
        if !target.iter().all(u8::is_ascii_graphic) {
            return Err(BAD("the target holds other than visible ASCII characters"));
        }
        if target.contains(&b'#') {
            return Err(BAD("the target has a fragment"));
        }
        let (authority, rest) = match absolute(target) {
            _ if target.starts_with(b"/") => (None, target),
            Some(scheme) => {
                let after = &target[scheme..];
                let end = after.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(after.len());
                (Some(&after[..end]), &after[end..])
            }
            None if target == b"*" && method == "OPTIONS" => (None, target),
            None => return Err(BAD("the target is neither a path nor an http address")),
        };
        let (path, query) = match rest.iter().position(|b| *b == b'?') {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        self.query = query.map(|query| offsets(head, query));
        self.path = offsets(head, path);
        if path.is_empty() {
            // `http://a.test?x` means the root.
            self.normal.clear();
            self.normal.push(b'/');
            self.normalized = true;
        } else if paths == Paths::Strict && path != b"*" {
            self.normalized = normalize(path, &mut self.normal).map_err(|error| BAD(error.0))?;
        }
        Ok(authority)
    }

    fn read_fields(&mut self, head: &[u8], headers: &[httparse::Header<'_>]) -> Result<(), Refusal> {
        let (mut declared, mut chunked, mut hosts, mut upgrade) = (None, false, 0, false);
        let (mut authorizations, mut keys) = (0, 0);
        self.keep_alive = !self.old;
        (self.expects_continue, self.websocket, self.connection) = (false, false, false);
        self.host = (0, 0);
        for header in headers {
            let (name, value) = (header.name.as_bytes(), header.value);
            let field = Field::of(head, name, value);
            match name.len() {
                4 if is(name, b"host") => {
                    hosts += 1;
                    self.host = offsets(head, value);
                }
                6 if is(name, b"expect") => {
                    if !is(value, b"100-continue") {
                        return Err(refuse(417, "Expect knows only `100-continue`"));
                    }
                    self.expects_continue = !self.old;
                }
                7 if is(name, b"upgrade") => self.websocket = is(value, b"websocket"),
                10 if is(name, b"connection") => self.read_connection(value, &mut upgrade)?,
                13 if is(name, b"authorization") => authorizations += 1,
                14 if is(name, b"content-length") => {
                    let n = length(value).ok_or(BAD("Content-Length is not a number"))?;
                    if declared.replace(n).is_some() {
                        return Err(BAD("there are two Content-Length lines"));
                    }
                }
                15 if is(name, headers::IDEMPOTENCY_KEY.as_bytes()) => keys += 1,
                17 if is(name, b"transfer-encoding") => {
                    if chunked {
                        return Err(BAD("there are two Transfer-Encoding lines"));
                    }
                    if !is(value, b"chunked") {
                        return Err(refuse(501, "Transfer-Encoding is not exactly `chunked`"));
                    }
                    chunked = true;
                }
                _ => {}
            }
            self.fields.push(field);
        }
        if chunked && declared.is_some() {
            return Err(BAD("there are both Content-Length and Transfer-Encoding"));
        }
        if chunked && self.old {
            return Err(BAD("HTTP/1.0 has no Transfer-Encoding"));
        }
        // The decision and the upstream could each take another one.
        if authorizations > 1 || keys > 1 {
            return Err(BAD("there are two Authorization or two Idempotency-Key lines"));
        }
        if hosts != 1 && !(hosts == 0 && self.old) {
            return Err(BAD("there is not exactly one Host line"));
        }
        if hosts == 1 && !valid_host(&head[range(self.host)]) {
            return Err(BAD("Host is not a host with an optional port"));
        }
        let get = &head[range(self.method)] == b"GET";
        self.websocket &= upgrade && get && !self.old && !chunked && declared.unwrap_or(0) == 0;
        self.framing = Some(match declared {
            _ if chunked => Framing::Chunked,
            None | Some(0) => Framing::None,
            Some(n) => Framing::Length(n),
        });
        Ok(())
    }

    fn read_connection(&mut self, value: &[u8], upgrade: &mut bool) -> Result<(), Refusal> {
        for member in list(value) {
            if is(member, b"close") {
                self.keep_alive = false;
            } else if is(member, b"keep-alive") {
                // Only says anything in HTTP/1.0, where `close` cannot come with it.
                self.keep_alive = true;
            } else if is(member, b"upgrade") {
                *upgrade = true;
            } else if !token(member) || is_protected(member) {
                return Err(BAD("Connection names a header that may not be removed"));
            } else if !hop_by_hop(member) {
                self.connection = true;
            }
        }
        Ok(())
    }

    fn named(&self, name: &[u8]) -> bool {
        self.fields
            .iter()
            .filter(|field| is(field.name(&self.bytes), b"connection"))
            .any(|field| list(field.value(&self.bytes)).any(|member| member.eq_ignore_ascii_case(name)))
    }
}

impl<'a> Head<'a> {
    /// The method, in capital letters.
    pub fn method(&self) -> &'a str {
        text(&self.0.bytes[range(self.0.method)])
    }

    /// The path without query, in its one form; starts with `/`, but for `OPTIONS *`.
    pub fn path(&self) -> &'a str {
        text(if self.0.normalized { &self.0.normal } else { &self.0.bytes[range(self.0.path)] })
    }

    /// What stands after `?`, if there is one.
    pub fn query(&self) -> Option<&'a str> {
        self.0.query.map(|query| text(&self.0.bytes[range(query)]))
    }

    /// Host with port as it came; empty for HTTP/1.0 without one.
    pub fn host(&self) -> &'a str {
        text(&self.0.bytes[range(self.0.host)])
    }

    /// The first header of this name, in any case, if it is UTF-8.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.raw_header(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The first header of this name, in any case, as bytes.
    pub fn raw_header(&self, name: &str) -> Option<&'a [u8]> {
        let head = self.0;
        head.fields.iter().find(|f| is(f.name(&head.bytes), name.as_bytes())).map(|f| f.value(&head.bytes))
    }

    /// All header lines as they came: name, value.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let head = self.0;
        head.fields.iter().map(|f| (text(f.name(&head.bytes)), f.value(&head.bytes)))
    }

    /// How the body ends.
    pub fn framing(&self) -> Framing {
        self.0.framing()
    }

    /// Whether the client asks for a WebSocket in due form.
    pub fn is_websocket(&self) -> bool {
        self.0.websocket
    }

    /// Whether the client speaks HTTP/1.0.
    pub fn is_old(&self) -> bool {
        self.0.old
    }
}

/// Methods, targets, names and hosts were checked to be ASCII.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("")
}

/// Length of `http://` or `https://`.
fn absolute(target: &[u8]) -> Option<usize> {
    [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
        .map(<[u8]>::len)
}

/// Headers that decide something: removing them by way of `Connection` would part the decision from what is forwarded.
fn is_protected(name: &[u8]) -> bool {
    let starts = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    [
        "host",
        "authorization",
        "cookie",
        "forwarded",
        "transfer-encoding",
        "traceparent",
        "tracestate",
        "idempotency-key",
        "expect",
    ]
    .iter()
    .any(|protected| is(name, protected.as_bytes()))
        || ["content-", "x-forwarded-", "x-real-ip", "x-user", "ballet-", "dapr-"]
            .iter()
            .any(|prefix| starts(prefix.as_bytes()))
}

/// RFC 3986 §3.2.2: a name, an IPv4 address or an IPv6 address in brackets; then perhaps a port.
fn valid_host(host: &[u8]) -> bool {
    let (name, port) = if host.starts_with(b"[") {
        let Some(end) = host.iter().position(|b| *b == b']') else { return false };
        let inner = std::str::from_utf8(&host[1..end]).unwrap_or("");
        if inner.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match &host[end + 1..] {
            [] => return true,
            [b':', port @ ..] => return valid_port(port),
            _ => return false,
        }
    } else {
        match host.iter().position(|b| *b == b':') {
            Some(at) => (&host[..at], Some(&host[at + 1..])),
            None => (host, None),
        }
    };
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    !name.is_empty() && name.len() <= 255 && name.iter().all(allowed) && port.is_none_or(valid_port)
}

fn valid_port(port: &[u8]) -> bool {
    (1..=5).contains(&port.len()) && length(port).is_some_and(|port| (1..=65535).contains(&port))
}

/// Whether a head that has not ended is too long already.
fn too_long(bytes: &[u8]) -> Option<Refusal> {
    let first_line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    // A method, a space, the target, the version.
    if first_line > MAX_TARGET + 64 {
        return Some(refuse(414, "the target is longer than 8 KiB"));
    }
    (bytes.len() > MAX_HEAD).then_some(refuse(431, "the head is longer than 32 KiB"))
}

fn why(error: httparse::Error, bytes: &[u8]) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => refuse(431, "there are more than 100 header lines"),
        httparse::Error::Version if is_other_version(bytes) => {
            refuse(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        }
        httparse::Error::Version => BAD("the request line is malformed"),
        httparse::Error::HeaderName => BAD("a header's name is malformed"),
        httparse::Error::HeaderValue => BAD("a header's value is malformed"),
        httparse::Error::NewLine => BAD("a line does not end in CR LF"),
        httparse::Error::Token | httparse::Error::Status => BAD("the request line is malformed"),
    }
}

/// `METHOD target HTTP/x.y` with one digit each, and not ours.
fn is_other_version(bytes: &[u8]) -> bool {
    let line = &bytes[..memchr::memchr(b'\r', bytes).unwrap_or(bytes.len())];
    let mut words = line.split(|b| *b == b' ');
    let (_, _, version, rest) = (words.next(), words.next(), words.next(), words.next());
    rest.is_none()
        && matches!(version, Some([b'H', b'T', b'T', b'P', b'/', major, b'.', minor])
            if major.is_ascii_digit() && minor.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Option<RequestHead>, Refusal> {
        let mut head = RequestHead::default();
        Ok(head.parse(text.as_bytes(), Paths::Strict)?.map(|_| head))
    }

    #[test]
    fn filters_see_one_clear_request() {
        let head = parse("GET http://A.test:80?q=1 HTTP/1.1\r\nHost: a.test:80\r\nX-A:  1 \r\nx-a: 2\r\nX-E: \r\n\r\n")
            .unwrap()
            .unwrap();
        let view = head.view();
        assert_eq!((view.method(), view.path(), view.query(), view.host()), ("GET", "/", Some("q=1"), "a.test:80"));
        assert_eq!((view.header("X-a"), view.header("x-e"), view.header("x-n")), (Some("1"), Some(""), None));
        assert_eq!(view.headers().count(), 4);
        assert_eq!((view.framing(), view.is_websocket(), head.keep_alive()), (Framing::None, false, true));
        let head = parse("OPTIONS * HTTP/1.1\r\nHost: [::1]:8080\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!((head.view().path(), head.view().host(), head.keep_alive()), ("*", "[::1]:8080", false));
        assert_eq!(head.forwarded().count(), 1, "what Connection names stays here");
        let upgrade = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n";
        for (request, is) in [("GET / HTTP/1.1", true), ("POST / HTTP/1.1", false), ("GET / HTTP/1.0", false)] {
            let head = parse(&format!("{request}\r\nHost: a\r\n{upgrade}\r\n")).unwrap().unwrap();
            assert_eq!(head.view().is_websocket(), is, "{request}");
        }
    }

    #[test]
    fn a_head_may_come_in_any_pieces() {
        let text = "GET /a HTTP/1.1\r\nHost: a.test\r\nX-A: 1\r\n\r\n";
        for end in 0..text.len() {
            assert!(parse(&text[..end]).unwrap().is_none(), "{end}");
        }
        assert!(parse(text).unwrap().is_some());
        // Limits hold before the end is seen.
        let refused = |text: &str| parse(text).err().map(|refusal| refusal.status);
        assert_eq!(refused(&format!("GET /{}", "a".repeat(9000))), Some(414));
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(MAX_HEAD))), Some(431));
    }

    proptest! {
        /// No bytes make the parser panic, and what it accepts has one host, one framing and a clean path.
        #[test]
        fn any_bytes_are_judged(noise in prop::collection::vec(any::<u8>(), 0..40), at in 0usize..80) {
            let mut bytes = b"POST /a/b?c HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\nConnection: x\r\n\r\n".to_vec();
            let at = at.min(bytes.len());
            bytes.splice(at..at, noise);
            for paths in [Paths::Strict, Paths::AsIs] {
                let mut head = RequestHead::default();
                if let Ok(Some(length)) = head.parse(&bytes, paths) {
                    prop_assert!(bytes[..length].ends_with(b"\r\n\r\n"));
                    let view = head.view();
                    prop_assert!(!view.method().is_empty() && !view.path().is_empty());
                    prop_assert!(view.path().bytes().all(|b| b.is_ascii_graphic()));
                    for (name, value) in head.forwarded() {
                        prop_assert!(token(name) && super::super::writable(value));
                    }
                }
            }
        }
    }
}
