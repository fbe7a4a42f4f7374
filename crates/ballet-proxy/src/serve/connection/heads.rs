//! Heads as they go on: the request's to the service, the answer's to the client.

use std::io::Write as _;

use bytes::Bytes;

use ballet_core::{Deadline, headers};

use super::Connection;
use crate::CallError;
use crate::h1::response::ResponseHead;
use crate::h1::{Framing, is, put, put_number};
use crate::serve::answer::put_connection;
use crate::serve::edits::may_set;
use crate::serve::{Context, Forward, Handler};

/// Width of the number in `ballet-timeout-ms`, so that a retry can write it anew in place.
const TIMEOUT_WIDTH: usize = 10;

/// What a header says of the way a request came.
enum Standing {
    Ordinary,
    /// `X-Forwarded-For`: always written anew.
    Chain,
    Proto,
    Host,
    /// Others that only a trusted proxy may say.
    Word,
}

impl<H: Handler> Connection<H> {
    /// Writes the request's head to `out`; says where the time left stands in it.
    pub(super) fn put_request(
        &mut self,
        plan: &Forward,
        body: Option<&Bytes>,
        context: &Context,
    ) -> Result<usize, CallError> {
        let trusted = self.is_trusted(context.peer.ip());
        let (head, config, out) = (&self.head, &self.shared.config, &mut self.out);
        let view = head.view();
        out.clear();
        out.extend_from_slice(view.method().as_bytes());
        out.push(b' ');
        match &plan.target {
            Some(target) => {
                if !target.starts_with('/') || !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
                    return Err(CallError::Invalid("the rewritten path holds a forbidden character".into()));
                }
                out.extend_from_slice(target.as_bytes());
            }
            None => {
                out.extend_from_slice(view.path().as_bytes());
                if let Some(query) = view.query() {
                    out.push(b'?');
                    out.extend_from_slice(query.as_bytes());
                }
            }
        }
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let sets = |name: &[u8]| plan.set.iter().any(|(set, _)| is(name, set.as_bytes()));
        let edits = plan.request.as_deref();
        let (mut proto, mut host) = (!config.forwarded, !config.forwarded);
        for (name, value) in head.forwarded() {
            let ours = match name.len() {
                11 => is(name, headers::TRACEPARENT.as_bytes()),
                13 => is(name, headers::CALLER.as_bytes()),
                14 => is(name, b"content-length") && body.is_some(),
                17 => is(name, headers::TIMEOUT.as_bytes()),
                _ => false,
            };
            if ours
                || edits.is_some_and(|e| e.drops(name) && !is(name, b"content-length"))
                || (!plan.set.is_empty() && sets(name))
            {
                continue;
            }
            if config.forwarded {
                match standing(name) {
                    Standing::Ordinary => {}
                    Standing::Chain => continue,
                    _ if !trusted => continue,
                    Standing::Proto => proto = true,
                    Standing::Host => host = true,
                    Standing::Word => {}
                }
            }
            put(out, name, value);
        }
        if view.host().is_empty() && !sets(b"host") && !edits.is_some_and(|e| e.drops(b"host")) {
            put(out, b"host", plan.upstream.service().as_str().as_bytes());
        }
        if let Some(edits) = edits {
            out.extend_from_slice(edits.lines());
        }
        for (name, value) in &plan.set {
            if !may_set(name.as_bytes(), value.as_bytes()) {
                return Err(CallError::Invalid(format!("the header `{}` cannot be set", name.escape_debug())));
            }
            put(out, name.as_bytes(), value.as_bytes());
        }
        // Writing to a vector cannot fail.
        if config.forwarded {
            out.extend_from_slice(b"x-forwarded-for: ");
            let chain = view.headers().filter(|(name, _)| trusted && name.eq_ignore_ascii_case("x-forwarded-for"));
            for (_, part) in chain {
                out.extend_from_slice(part);
                out.extend_from_slice(b", ");
            }
            let _ = write!(out, "{}\r\n", context.peer.ip().to_canonical());
        }
        if !proto {
            put(out, b"x-forwarded-proto", if context.secure { b"https" } else { b"http" });
        }
        if !host && !view.host().is_empty() {
            put(out, b"x-forwarded-host", view.host().as_bytes());
        }
        let _ = write!(out, "{}: {}\r\n", headers::TRACEPARENT, context.trace);
        put(out, headers::CALLER.as_bytes(), plan.upstream.caller().as_bytes());
        if plan.websocket && view.is_websocket() {
            out.extend_from_slice(b"connection: Upgrade\r\nupgrade: websocket\r\n");
        }
        match body {
            Some(body) => {
                out.extend_from_slice(b"content-length: ");
                put_number(out, body.len() as u64);
                out.extend_from_slice(b"\r\n");
            }
            None if head.framing() == Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            None => {}
        }
        out.extend_from_slice(headers::TIMEOUT.as_bytes());
        out.extend_from_slice(b": ");
        let at = out.len();
        out.extend_from_slice(&[b' '; TIMEOUT_WIDTH]);
        out.extend_from_slice(b"\r\n\r\n");
        Ok(at)
    }
}

/// Writes the time left in its place; blanks before a value are allowed.
pub(super) fn put_timeout(out: &mut [u8], at: usize, left: Deadline) {
    let left = left.left().as_millis().min(9_999_999_999);
    let mut place = &mut out[at..at + TIMEOUT_WIDTH];
    let _ = write!(place, "{left:>TIMEOUT_WIDTH$}");
}

/// Writes an answer's head as the client gets it.
pub(super) fn put_answer(
    answer: &ResponseHead,
    bytes: &[u8],
    plan: &Forward,
    out: &mut Vec<u8>,
    chunks: bool,
    close: bool,
    old: bool,
) {
    answer.put_status(bytes, out);
    let edits = plan.response.as_deref();
    let sets = |name: &[u8]| plan.set_response.iter().any(|(set, _)| is(name, set.as_bytes()));
    for (name, value) in answer.forwarded(bytes) {
        let length = is(name, b"content-length");
        let edited = edits.is_some_and(|e| e.drops(name)) || (!plan.set_response.is_empty() && sets(name));
        // RFC 9110 §8.6: never with 204.
        let dropped = if length { answer.status == 204 } else { edited };
        if !dropped {
            put(out, name, value);
        }
    }
    if let Some(edits) = edits {
        out.extend_from_slice(edits.lines());
    }
    for (name, value) in &plan.set_response {
        if may_set(name.as_bytes(), value.as_bytes()) {
            put(out, name.as_bytes(), value.as_bytes());
        }
    }
    if chunks {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    put_connection(out, close, old);
    out.extend_from_slice(b"\r\n");
}

fn standing(name: &[u8]) -> Standing {
    match name.first() {
        Some(b'x' | b'X') => match name.len() {
            9 if is(name, b"x-real-ip") => Standing::Word,
            13 if is(name, b"x-rewrite-url") => Standing::Word,
            14 if is(name, b"x-original-url") => Standing::Word,
            15 if is(name, b"x-forwarded-for") => Standing::Chain,
            16 if is(name, b"x-forwarded-host") => Standing::Host,
            17 if is(name, b"x-forwarded-proto") => Standing::Proto,
            12.. if name[..12].eq_ignore_ascii_case(b"x-forwarded-") => Standing::Word,
            _ => Standing::Ordinary,
        },
        Some(b'f' | b'F') if is(name, b"forwarded") => Standing::Word,
        Some(b'b' | b'B') if name.len() > 7 && name[..7].eq_ignore_ascii_case(b"ballet-") => Standing::Word,
        Some(_) | None => Standing::Ordinary,
    }
}
