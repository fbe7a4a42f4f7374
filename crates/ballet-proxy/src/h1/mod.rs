//! HTTP/1.1 without I/O: bytes in, decisions out (RFC 9110, RFC 9112, stricter where leniency lets requests be smuggled).
//!
//! Heads are tokenised by `httparse` and then judged here. A parsed head keeps only offsets into the bytes it
//! was read from, so nothing is allocated per request.

pub mod chunks;
pub mod path;
pub mod request;

pub mod response;

use std::ops::Range;

/// How long a body is and how its end is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// So many bytes, more than none.
    Length(u64),
    /// Chunks until the empty one.
    Chunked,
    /// All until the connection ends; only answers.
    Close,
}

/// Most header lines of a head; more are refused with 431 (a request) or 502 (an answer).
pub const MAX_FIELDS: usize = 100;
/// Longest head of a request or an answer in bytes, with its first line.
pub const MAX_HEAD: usize = 32 << 10;
/// Longest request target in bytes.
pub const MAX_TARGET: usize = 8 << 10;

/// One header line, as offsets into the head's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    name: (u32, u32),
    value: (u32, u32),
}

impl Field {
    /// Both slices have to lie inside `base`, which httparse's do; else both come out empty.
    pub(crate) fn of(base: &[u8], name: &[u8], value: &[u8]) -> Self {
        Self { name: offsets(base, name), value: offsets(base, value) }
    }

    pub(crate) fn name<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        &head[range(self.name)]
    }

    pub(crate) fn value<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        &head[range(self.value)]
    }
}

pub(crate) fn offsets(base: &[u8], part: &[u8]) -> (u32, u32) {
    let start = (part.as_ptr() as usize).wrapping_sub(base.as_ptr() as usize);
    let end = start.wrapping_add(part.len());
    // An empty value may be a static slice that lies elsewhere. Heads are shorter than MAX_HEAD, so u32 holds.
    if start > base.len() || end > base.len() || start > end { (0, 0) } else { (start as u32, end as u32) }
}

pub(crate) fn range(of: (u32, u32)) -> Range<usize> {
    of.0 as usize..of.1 as usize
}

/// Whether a header's name is this one; `lower` is in lower case.
#[inline]
pub(crate) fn is(name: &[u8], lower: &[u8]) -> bool {
    name.len() == lower.len() && name.eq_ignore_ascii_case(lower)
}

/// Reads `Content-Length`: digits only, at most 18 of them.
pub(crate) fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
}

/// The members of a comma-separated list, trimmed, without empty ones.
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Appends a header line.
#[inline]
pub(crate) fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends a decimal number.
pub(crate) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends `data` as one chunk. Empty data would end the body, so it is left out.
pub(crate) fn put_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    let mut size = data.len();
    while size > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[size & 15];
        size >>= 4;
    }
    out.reserve(data.len() + 20);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Whether a header's value may be written: no control characters but tab.
pub(crate) fn writable(value: &[u8]) -> bool {
    value.iter().all(|b| *b == b'\t' || (*b >= b' ' && *b != 0x7f))
}

/// Whether a text is a token (RFC 9110 §5.6.2): a method or a header's name.
pub(crate) fn token(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|b| {
            b.is_ascii_alphanumeric()
                || matches!(b, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
        })
}

/// Headers that end at the next hop (RFC 9110 §7.6.1 and what is seen in the wild). `Connection` may name more.
pub(crate) fn hop_by_hop(name: &[u8]) -> bool {
    match name.len() {
        2 => is(name, b"te"),
        7 => is(name, b"trailer") || is(name, b"upgrade"),
        10 => is(name, b"connection") || is(name, b"keep-alive"),
        14 => is(name, b"http2-settings"),
        16 => is(name, b"proxy-connection"),
        18 => is(name, b"proxy-authenticate"),
        19 => is(name, b"proxy-authorization"),
        17 => is(name, b"transfer-encoding"),
        _ => false,
    }
}

/// Whether every line of a head ends in CR LF: a bare LF is where two readers begin to disagree.
pub(crate) fn lines_are_strict(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r')
}
