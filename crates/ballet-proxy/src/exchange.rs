//! One exchange of a buffered request and its whole answer on one connection, with exact knowledge of whether a byte of
//! the request was written.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use ballet_core::{Deadline, headers};

use crate::buffer::Buffer;
use crate::h1::chunks::{Chunks, Piece};
use crate::h1::response::ResponseHead;
use crate::h1::{self, Framing};
use crate::{CallError, CallRequest, CallResponse};

/// Heads and bodies up to this many bytes leave in one write.
const ONE_WRITE: usize = 32 << 10;

pub(crate) struct Exchanged {
    pub(crate) response: CallResponse,
    /// The connection, if it can carry another request.
    pub(crate) reusable: Option<TcpStream>,
}

/// Refuses what could not be written without changing its meaning.
pub(crate) fn check(request: &CallRequest) -> Result<(), CallError> {
    let invalid = |what: &str| Err(CallError::Invalid(what.to_owned()));
    if !h1::token(request.method.as_bytes()) {
        return invalid("the method is not a token");
    }
    if !request.path.starts_with('/') || !request.path.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return invalid("the path does not start with `/` or holds a character that must be percent-encoded");
    }
    for (name, value) in &request.headers {
        if !h1::token(name.as_bytes()) || !h1::writable(value.as_bytes()) {
            return Err(CallError::Invalid(format!(
                "the header `{}` holds a forbidden character",
                name.escape_debug()
            )));
        }
    }
    Ok(())
}

/// The request's head as it goes out. `on_behalf` adds who calls and the time left.
pub(crate) fn head(
    request: &CallRequest,
    address: &SocketAddr,
    on_behalf: Option<(&str, Deadline)>,
    keep_alive: bool,
) -> Vec<u8> {
    let mut head = String::with_capacity(512);
    // Writing to a string cannot fail.
    let _ = write!(head, "{} {} HTTP/1.1\r\nhost: {address}\r\n", request.method, request.path);
    for (name, value) in &request.headers {
        let framing = name.eq_ignore_ascii_case("host")
            || name.eq_ignore_ascii_case("content-length")
            || name.eq_ignore_ascii_case("expect")
            || h1::hop_by_hop(name.as_bytes());
        let ours = name.eq_ignore_ascii_case(headers::TIMEOUT) || name.eq_ignore_ascii_case(headers::CALLER);
        if !(framing || (ours && on_behalf.is_some())) {
            let _ = write!(head, "{name}: {value}\r\n");
        }
    }
    if let Some((caller, left)) = on_behalf {
        let _ = write!(head, "{}: {caller}\r\n{}: {left}\r\n", headers::CALLER, headers::TIMEOUT);
    }
    if !request.body.is_empty() || matches!(&*request.method, "POST" | "PUT" | "PATCH") {
        let _ = write!(head, "content-length: {}\r\n", request.body.len());
    }
    head.push_str(if keep_alive { "\r\n" } else { "connection: close\r\n\r\n" });
    head.into_bytes()
}

/// Writes the request and reads the whole answer. `sent` becomes true with the first byte that the kernel took.
pub(crate) async fn exchange(
    mut stream: TcpStream,
    head: &[u8],
    request: &CallRequest,
    sent: &mut bool,
) -> Result<Exchanged, CallError> {
    if let Err(error) = send(&mut stream, head, &request.body, sent).await
        && !*sent
    {
        return Err(CallError::Lost(error));
    }
    // If only a later byte could not be written, the answer may be there all the same: a refusal of a long body is
    // given before its end. If not, reading says what is wrong.
    let mut buffer = Buffer::default();
    let mut answer = ResponseHead::default();
    loop {
        if !buffer.is_empty() && answer.parse(buffer.data(), request.method == "HEAD").map_err(malformed)? {
            if answer.status >= 200 {
                break;
            }
            if answer.status == 101 {
                return Err(CallError::Malformed("it switches protocols unasked".into()));
            }
            let length = answer.length;
            buffer.eat(length);
            continue;
        }
        fill(&mut buffer, &mut stream).await?;
    }
    let headers = answer
        .forwarded(buffer.data())
        .map(|(name, value)| {
            (String::from_utf8_lossy(name).to_ascii_lowercase(), String::from_utf8_lossy(value).into_owned())
        })
        .collect();
    let (status, framing, keep_alive) = (answer.status, answer.framing.unwrap_or(Framing::Close), answer.keep_alive);
    buffer.eat(answer.length);
    let body = read_body(&mut stream, &mut buffer, framing).await?;
    // Bytes beyond the answer were not asked for: whose they are cannot be known.
    let reusable = (keep_alive && buffer.is_empty()).then_some(stream);
    Ok(Exchanged { response: CallResponse { status, headers, body }, reusable })
}

async fn send(stream: &mut TcpStream, head: &[u8], body: &Bytes, sent: &mut bool) -> io::Result<()> {
    let joined;
    let (first, second): (&[u8], &[u8]) = if body.is_empty() {
        (head, &[])
    } else if head.len() + body.len() <= ONE_WRITE {
        joined = [head, body].concat();
        (&joined, &[])
    } else {
        (head, body)
    };
    for mut part in [first, second] {
        while !part.is_empty() {
            let n = stream.write(part).await?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            *sent = true;
            part = &part[n..];
        }
    }
    Ok(())
}

async fn read_body(stream: &mut TcpStream, buffer: &mut Buffer, framing: Framing) -> Result<Bytes, CallError> {
    let mut body = Vec::new();
    let mut add = |data: &[u8]| {
        if body.len() + data.len() > CallResponse::MAX_BODY {
            return Err(CallError::TooLarge);
        }
        body.extend_from_slice(data);
        Ok(())
    };
    match framing {
        Framing::None => {}
        Framing::Length(length) => {
            if length > CallResponse::MAX_BODY as u64 {
                return Err(CallError::TooLarge);
            }
            let mut left = length as usize;
            loop {
                let take = left.min(buffer.len());
                add(&buffer.data()[..take])?;
                buffer.eat(take);
                left -= take;
                if left == 0 {
                    break;
                }
                fill(buffer, stream).await?;
            }
        }
        Framing::Chunked => {
            let mut chunks = Chunks::default();
            loop {
                let (used, piece) = chunks.next(buffer.data()).map_err(|e| CallError::Malformed(e.to_string()))?;
                if let Piece::Data(range) = &piece {
                    add(&buffer.data()[range.clone()])?;
                }
                buffer.eat(used);
                match piece {
                    Piece::Data(_) => {}
                    Piece::End => break,
                    Piece::More => fill(buffer, stream).await?,
                }
            }
        }
        Framing::Close => loop {
            add(buffer.data())?;
            buffer.clear();
            if buffer.fill(stream).await.map_err(CallError::Lost)? == 0 {
                break;
            }
        },
    }
    Ok(body.into())
}

async fn fill(buffer: &mut Buffer, stream: &mut TcpStream) -> Result<(), CallError> {
    match buffer.fill(stream).await {
        Ok(0) => Err(CallError::Lost(io::ErrorKind::UnexpectedEof.into())),
        Ok(_) => Ok(()),
        Err(error) => Err(CallError::Lost(error)),
    }
}

fn malformed(error: h1::response::BadResponse) -> CallError {
    CallError::Malformed(error.to_string())
}
