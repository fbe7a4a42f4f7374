//! The head of an answer.

use super::{
    Field, Framing, MAX_FIELDS, MAX_HEAD, hop_by_hop, is, length, lines_are_strict, list, offsets, put, put_number,
    range,
};

/// An answer's head as offsets into the bytes it was parsed from. Reused from answer to answer.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// The status.
    pub status: u16,
    /// How the body ends.
    pub framing: Option<Framing>,
    /// Whether the connection may carry another request afterwards.
    pub keep_alive: bool,
    /// Length of the head in bytes.
    pub length: usize,
    reason: (u32, u32),
    pub(crate) fields: Vec<Field>,
    /// Whether `Connection` names anything that has to be looked up.
    connection: bool,
}

/// Why bytes are not an answer that may be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadResponse(pub &'static str);

impl ResponseHead {
    /// Reads a head from the start of `bytes`; false: more bytes are needed. `head` says that the request was a `HEAD`.
    ///
    /// # Errors
    /// [`BadResponse`] when it is not HTTP/1 or its framing is ambiguous.
    pub fn parse(&mut self, bytes: &[u8], head: bool) -> Result<bool, BadResponse> {
        let mut slots = [const { std::mem::MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        let parser = httparse::ParserConfig::default();
        self.length = match parser.parse_response_with_uninit_headers(&mut parsed, bytes, &mut slots) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() > MAX_HEAD => return Err(BadResponse("its head is too long")),
            Ok(httparse::Status::Partial) => return Ok(false),
            Err(httparse::Error::TooManyHeaders) => return Err(BadResponse("it has too many header lines")),
            Err(_) => return Err(BadResponse("its head is malformed")),
        };
        let head_bytes = &bytes[..self.length];
        if !lines_are_strict(head_bytes) {
            return Err(BadResponse("a line of its head does not end in CR LF"));
        }
        self.status = parsed.code.unwrap_or(0);
        if !(100..=999).contains(&self.status) {
            return Err(BadResponse("its status is not a number from 100 to 999"));
        }
        self.reason = offsets(head_bytes, parsed.reason.unwrap_or("").as_bytes());
        let old = parsed.version == Some(0);
        self.keep_alive = !old;
        self.connection = false;
        self.fields.clear();
        let (mut declared, mut chunked) = (None, false);
        for header in parsed.headers.iter() {
            let name = header.name.as_bytes();
            match name.len() {
                10 if is(name, b"connection") => {
                    for member in list(header.value) {
                        if is(member, b"close") {
                            self.keep_alive = false;
                        } else if is(member, b"keep-alive") {
                            self.keep_alive = true;
                        } else {
                            self.connection = true;
                        }
                    }
                }
                14 if is(name, b"content-length") => {
                    let n = length(header.value).ok_or(BadResponse("its Content-Length is not a number"))?;
                    if declared.is_some_and(|d| d != n) {
                        return Err(BadResponse("it has two lengths"));
                    }
                    // An equal second line is dropped, as RFC 9110 §8.6 allows.
                    if declared.replace(n).is_some() {
                        continue;
                    }
                }
                17 if is(name, b"transfer-encoding") => {
                    if chunked || old || !is(header.value, b"chunked") {
                        return Err(BadResponse("its Transfer-Encoding is not exactly `chunked`"));
                    }
                    chunked = true;
                }
                _ => {}
            }
            self.fields.push(Field::of(head_bytes, name, header.value));
        }
        if chunked && declared.is_some() {
            return Err(BadResponse("it has both a length and a Transfer-Encoding"));
        }
        let bodiless = head || self.status < 200 || self.status == 204 || self.status == 304;
        self.framing = Some(match declared {
            _ if bodiless => Framing::None,
            _ if chunked => Framing::Chunked,
            Some(0) => Framing::None,
            Some(n) => Framing::Length(n),
            None => Framing::Close,
        });
        if self.framing == Some(Framing::Close) {
            self.keep_alive = false;
        }
        Ok(true)
    }

    /// The header lines that go on to the next hop: name as it came, value.
    pub fn forwarded<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.fields.iter().filter_map(|field| {
            let name = field.name(bytes);
            let stays = hop_by_hop(name) || (self.connection && self.named_by_connection(name, bytes));
            (!stays).then(|| (name, field.value(bytes)))
        })
    }

    /// The first header of this name (in lower case).
    pub fn header<'a>(&self, bytes: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
        self.fields.iter().find(|field| is(field.name(bytes), name)).map(|field| field.value(bytes))
    }

    /// Appends the status line as HTTP/1.1.
    pub fn put_status(&self, bytes: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        put_number(out, u64::from(self.status));
        out.push(b' ');
        out.extend_from_slice(&bytes[range(self.reason)]);
        out.extend_from_slice(b"\r\n");
    }

    /// Appends the lines of a switch to another protocol, `Connection` and `Upgrade` with them.
    pub(crate) fn put_switch(&self, bytes: &[u8], out: &mut Vec<u8>) {
        self.put_status(bytes, out);
        for field in &self.fields {
            let name = field.name(bytes);
            if !hop_by_hop(name) || is(name, b"connection") || is(name, b"upgrade") {
                put(out, name, field.value(bytes));
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    fn named_by_connection(&self, name: &[u8], bytes: &[u8]) -> bool {
        // What frames the body cannot be removed by naming it.
        !is(name, b"content-length")
            && self
                .fields
                .iter()
                .filter(|field| is(field.name(bytes), b"connection"))
                .any(|field| list(field.value(bytes)).any(|member| member.eq_ignore_ascii_case(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, head: bool) -> Result<Option<ResponseHead>, BadResponse> {
        let mut parsed = ResponseHead::default();
        Ok(parsed.parse(text.as_bytes(), head)?.then_some(parsed))
    }

    #[test]
    fn the_end_of_the_body_is_known() {
        for (text, head, framing, keep) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", false, Framing::Length(3), true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\nContent-Length: 3\r\n\r\nabc", false, Framing::Length(3), true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n", true, Framing::None, true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", false, Framing::None, false),
            ("HTTP/1.1 204 No Content\r\n\r\n", false, Framing::None, true),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n", false, Framing::None, true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n", false, Framing::Chunked, true),
            ("HTTP/1.1 200 OK\r\n\r\n", false, Framing::Close, false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\n", false, Framing::Length(3), false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 3\r\nconnection: keep-alive\r\n\r\n", false, Framing::Length(3), true),
            ("HTTP/1.1 100 Continue\r\n\r\n", false, Framing::None, true),
        ] {
            let parsed = parse(text, head).unwrap().expect(text);
            assert_eq!((parsed.framing, parsed.keep_alive), (Some(framing), keep), "{text}");
        }
        assert!(parse("HTTP/1.1 200 OK\r\ncontent-le", false).unwrap().is_none());
    }

    #[test]
    fn ambiguous_answers_are_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3, 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\nserver: x\n\n",
            "HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "ICY 200 OK\r\n\r\n",
        ] {
            assert!(parse(text, false).is_err(), "{text:?}");
        }
    }

    #[test]
    fn hop_by_hop_headers_end_here() {
        let text = "HTTP/1.1 200 OK\r\nA: 1\r\nKeep-Alive: 5\r\nX-Hop: 1\r\nConnection: X-Hop, content-length\r\nContent-Length: 0\r\n\r\n";
        let parsed = parse(text, false).unwrap().unwrap();
        let names: Vec<_> = parsed.forwarded(text.as_bytes()).map(|(name, _)| name).collect();
        assert_eq!(names, [&b"A"[..], b"Content-Length"]);
    }
}
