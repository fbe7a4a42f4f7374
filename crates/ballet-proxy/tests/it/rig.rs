//! Services made of a closure, raw sockets, and the words tests need.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ballet_core::{Discovery, DiscoveryError, Fixed, Instance, InstanceState, Instances, Later, Policy, ServiceName};
use ballet_proxy::{
    Context, End, Exchange, Forward, Handler, Head, PolicyTable, ServeConfig, Server, Upstreams, Verdict, bind,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Which request on its connection, from 0.
    pub(crate) nth: usize,
}

/// What a service does.
#[derive(Clone, Debug)]
pub(crate) enum Do {
    Send(Vec<u8>),
    SendAndClose(Vec<u8>),
    Reset,
    Hang,
}

/// A service on a port of its own.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Origin {
    pub(crate) async fn start(react: impl Fn(&Seen) -> Do + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), react)
    }

    pub(crate) fn on(listener: TcpListener, react: impl Fn(&Seen) -> Do + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let (seen, connections) = (Arc::new(Mutex::new(vec![])), Arc::new(AtomicUsize::new(0)));
        let (react, log, count) = (Arc::new(react), seen.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (react, log) = (react.clone(), log.clone());
                tasks.spawn(async move { serve(stream, &*react, &log).await });
            }
        });
        Self { address, seen, connections, task }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, react: &(impl Fn(&Seen) -> Do + ?Sized), log: &Mutex<Vec<Seen>>) {
    let mut buffer = vec![];
    for nth in 0.. {
        let Some((head, body)) = read_message(&mut stream, &mut buffer).await else { return };
        let seen = Seen { head, body, nth };
        log.lock().unwrap().push(seen.clone());
        match react(&seen) {
            Do::Send(bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Do::SendAndClose(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Do::Reset => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
            Do::Hang => std::future::pending().await,
        }
    }
}

/// Reads one message, framed by Content-Length or chunks; `None` when the other side is done.
pub(crate) async fn read_message(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
    let lower = head.to_ascii_lowercase();
    let mut body = vec![];
    if let Some(length) = lower.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")) {
        let length: usize = length.parse().unwrap();
        while buffer.len() < length {
            if stream.read_buf(buffer).await.ok()? == 0 {
                return None;
            }
        }
        body = buffer.drain(..length).collect();
    } else if lower.contains("transfer-encoding: chunked") {
        loop {
            let line = loop {
                if let Some(at) = buffer.windows(2).position(|w| w == b"\r\n") {
                    break buffer.drain(..at + 2).collect::<Vec<_>>();
                }
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            };
            let size = usize::from_str_radix(std::str::from_utf8(&line[..line.len() - 2]).unwrap(), 16).unwrap();
            while buffer.len() < size + 2 {
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            }
            body.extend(buffer.drain(..size));
            assert_eq!(buffer.drain(..2).collect::<Vec<_>>(), b"\r\n");
            if size == 0 {
                break;
            }
        }
    }
    Some((head, body))
}

pub(crate) fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub(crate) fn status(status: u16) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

pub(crate) fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

/// Calls to the service `orders` that runs at these addresses.
pub(crate) fn orders(addresses: &[SocketAddr], policy: Policy) -> Upstreams {
    let fixed = Fixed::new(addresses.iter().map(|a| (name("orders"), *a)));
    Upstreams::new("tests", Arc::new(fixed), PolicyTable::new(policy), 7)
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Discovery whose list tests change.
pub(crate) struct Changing(watch::Sender<Arc<Instances>>);

impl Changing {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Arc::default()))
    }

    pub(crate) fn set(&self, addresses: &[SocketAddr]) {
        let all = addresses.iter().enumerate().map(|(n, address)| Instance {
            id: format!("orders-{n}").parse().unwrap(),
            service: name("orders"),
            address: *address,
            state: InstanceState::Up,
            version: String::new(),
            metadata: Default::default(),
        });
        let next = Instances { version: self.0.borrow().version + 1, all: all.collect() };
        self.0.send_replace(Arc::new(next));
    }
}

impl Discovery for Changing {
    fn resolve(&self, _: &ServiceName) -> Later<'_, Result<Arc<Instances>, DiscoveryError>> {
        let known = self.0.borrow().clone();
        Box::pin(async move { Ok(known) })
    }

    fn watch(&self, _: &ServiceName, seen: u64) -> Later<'_, Result<Arc<Instances>, DiscoveryError>> {
        let mut changes = self.0.subscribe();
        Box::pin(async move { Ok(changes.wait_for(|known| known.version != seen).await.unwrap().clone()) })
    }
}

/// A server with one upstream, `orders`, and a client's words for it.
pub(crate) struct Gate {
    pub(crate) server: Server,
    pub(crate) upstreams: Upstreams,
    pub(crate) log: Arc<Mutex<Vec<Line>>>,
}

/// What the access log would say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) path: String,
    pub(crate) status: u16,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) attempts: u32,
    pub(crate) end: End,
}

type Decide = Box<dyn Fn(&Head<'_>, &Context, Forward) -> Verdict + Send + Sync>;

struct Judge {
    upstreams: Upstreams,
    decide: Decide,
    log: Arc<Mutex<Vec<Line>>>,
}

impl Handler for Judge {
    type Note = ();

    fn decide(&self, head: &Head<'_>, context: &Context, (): &mut ()) -> Verdict {
        (self.decide)(head, context, Forward::to(self.upstreams.upstream(&name("orders"), None)))
    }

    fn finished(&self, exchange: &Exchange<'_>, (): &()) {
        self.log.lock().unwrap().push(Line {
            path: exchange.head.path().to_owned(),
            status: exchange.status,
            received: exchange.received,
            sent: exchange.sent,
            attempts: exchange.attempts,
            end: exchange.end,
        });
    }
}

impl Gate {
    /// Forwards all to these addresses.
    pub(crate) async fn to(addresses: &[SocketAddr]) -> Self {
        Self::with(addresses, Policy::default(), ServeConfig::default(), |_, _, forward| forward.into())
    }

    pub(crate) fn with(
        addresses: &[SocketAddr],
        policy: Policy,
        config: ServeConfig,
        decide: impl Fn(&Head<'_>, &Context, Forward) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        let (upstreams, log) = (orders(addresses, policy), Arc::new(Mutex::new(vec![])));
        let judge = Judge { upstreams: upstreams.clone(), decide: Box::new(decide), log: log.clone() };
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let server = Server::start(listener, Arc::new(judge), config).unwrap();
        Self { server, upstreams, log }
    }

    pub(crate) async fn client(&self) -> Client {
        Client { stream: TcpStream::connect(self.server.address()).await.unwrap(), buffer: vec![] }
    }

    /// Sends bytes on a connection of their own and reads all that comes within a moment after the last answer.
    pub(crate) async fn say(&self, bytes: &[u8]) -> String {
        let mut client = self.client().await;
        client.send(bytes).await;
        client.all().await
    }

    /// The log, once it has so many lines.
    pub(crate) async fn lines(&self, count: usize) -> Vec<Line> {
        loop {
            let lines = self.log.lock().unwrap().clone();
            if lines.len() >= count {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// One answer: head and body. `None`: the connection ended before the answer did.
    pub(crate) async fn answer(&mut self) -> Option<(String, Vec<u8>)> {
        tokio::time::timeout(Duration::from_secs(10), read_message(&mut self.stream, &mut self.buffer)).await.unwrap()
    }

    /// A head alone.
    pub(crate) async fn answer_head(&mut self) -> String {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                return String::from_utf8(self.buffer.drain(..at + 4).collect()).unwrap();
            }
            assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0, "closed within a head");
        }
    }

    /// So many bytes.
    pub(crate) async fn rest(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0, "closed within a body");
        }
        self.buffer.drain(..count).collect()
    }

    pub(crate) async fn ask(&mut self, request: &str) -> (u16, Vec<u8>) {
        self.send(request.as_bytes()).await;
        let (head, body) = self.answer().await.expect("an answer");
        (head[9..12].parse().unwrap(), body)
    }

    /// Everything up to the connection's end, or until nothing comes for a moment.
    pub(crate) async fn all(&mut self) -> String {
        loop {
            let read = self.stream.read_buf(&mut self.buffer);
            match tokio::time::timeout(Duration::from_millis(150), read).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) | Err(_) => return String::from_utf8_lossy(&self.buffer).into_owned(),
            }
        }
    }

    /// Whether the server has closed.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut rest = vec![];
        tokio::time::timeout(Duration::from_secs(5), self.stream.read_to_end(&mut rest)).await.is_ok()
            && rest.is_empty()
    }
}

/// A service that sends every body back while it still comes in.
pub(crate) async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = vec![];
                loop {
                    let end = loop {
                        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                            break at + 4;
                        }
                        if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                            return;
                        }
                    };
                    let head =
                        String::from_utf8(buffer.drain(..end).collect::<Vec<u8>>()).unwrap().to_ascii_lowercase();
                    let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
                    let framing =
                        length.map_or("Transfer-Encoding: chunked".to_owned(), |n| format!("Content-Length: {n}"));
                    stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").as_bytes()).await.unwrap();
                    let mut left = length.map(|n| n.parse::<usize>().unwrap());
                    let mut tail = vec![];
                    loop {
                        let take = left.unwrap_or(usize::MAX).min(buffer.len());
                        let part: Vec<u8> = buffer.drain(..take).collect();
                        if stream.write_all(&part).await.is_err() {
                            return;
                        }
                        tail.extend_from_slice(&part);
                        tail.drain(..tail.len().saturating_sub(5));
                        left = left.map(|left| left - take);
                        if left == Some(0) || (left.is_none() && tail == b"0\r\n\r\n") {
                            break;
                        }
                        if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}
