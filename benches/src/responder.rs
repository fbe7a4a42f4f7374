//! A tiny HTTP/1.1 upstream: one thread, answers at once. Trusts its callers: it is for our own proxies.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::tools;

/// Longest request, head and body.
const MAX_REQUEST: usize = 1 << 20;

/// A request as the answering function sees it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `GET`.
    pub method: &'a str,
    /// With the query.
    pub path: &'a str,
    /// All of it.
    pub body: &'a [u8],
}

/// A running upstream; dropping it ends it.
pub struct Responder {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its thread's id, for [`tools::pin`].
    pub thread: u32,
    _stop: oneshot::Sender<()>,
}

type Answer = dyn Fn(&Request<'_>) -> Bytes + Send + Sync;

impl Responder {
    /// Starts one. `answer` gives whole answers, as [`Responder::ok`] makes them, and must not block.
    pub fn start(answer: impl Fn(&Request<'_>) -> Bytes + Send + Sync + 'static) -> Self {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let answer: Arc<Answer> = Arc::new(answer);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                let _ = tell.send((listener.local_addr().expect("it is bound"), tools::thread_id()));
                let accept = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(serve(stream, answer.clone()));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        let (address, thread) = told.recv().expect("the upstream starts");
        Self { address, thread, _stop: stop }
    }

    /// A whole answer of status 200 with a JSON body.
    pub fn ok(body: &str) -> Bytes {
        let head = "HTTP/1.1 200 OK\r\nserver: upstream\r\ndate: Sat, 21 Nov 2026 12:00:00 GMT";
        let length = body.len();
        format!("{head}\r\ncontent-type: application/json\r\nx-app: demo\r\ncontent-length: {length}\r\n\r\n{body}")
            .into()
    }
}

async fn serve(mut stream: TcpStream, answer: Arc<Answer>) {
    let _ = stream.set_nodelay(true);
    let mut input = BytesMut::with_capacity(16 << 10);
    let mut output = BytesMut::new();
    loop {
        while let Some((head, body)) = whole(&input) {
            let text = std::str::from_utf8(&input[..head]).unwrap_or_default();
            let mut words = text.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            output.extend_from_slice(&answer(&Request { method, path, body: &input[head..head + body] }));
            input.advance(head + body);
        }
        if !output.is_empty() {
            if stream.write_all(&output).await.is_err() {
                return;
            }
            output.clear();
        }
        if input.len() > MAX_REQUEST || !matches!(stream.read_buf(&mut input).await, Ok(1..)) {
            return;
        }
    }
}

/// Lengths of head and body if a whole request is there.
fn whole(input: &[u8]) -> Option<(usize, usize)> {
    let head = input.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let lines = input[..head].split(|byte| *byte == b'\n').skip(1);
    let length = lines
        .filter_map(|line| line.split_at_checked(b"content-length:".len()))
        .find(|(name, _)| name.eq_ignore_ascii_case(b"content-length:"))
        .and_then(|(_, value)| std::str::from_utf8(value).ok()?.trim().parse().ok())
        .unwrap_or(0);
    (input.len() >= head + length).then_some((head, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_whole_with_its_body() {
        for (input, wanted) in [
            ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", Some((27, 0))),
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", Some((38, 2))),
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\na", None),
            ("GET / HTTP/1.1\r\n", None),
        ] {
            assert_eq!(whole(input.as_bytes()), wanted, "{input:?}");
        }
    }

    #[tokio::test]
    async fn the_upstream_answers() {
        let upstream = Responder::start(|request| {
            Responder::ok(&format!("{} {} {}", request.method, request.path, request.body.len()))
        });
        let mut client = crate::Client::new(upstream.address);
        for _ in 0..2 {
            let (status, body) = client.send("POST", "/x?y", &[], "four").await.expect("an answer");
            assert_eq!((status, &body[..]), (200, &b"POST /x?y 4"[..]));
        }
    }
}
