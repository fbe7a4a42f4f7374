//! Services, clients and manifests for the tests of the running gateway.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use ballet_core::{Discovery, Instance, InstanceState, Instances, Later, ServiceName};
use ballet_manifest::{LoadOptions, Manifest, load};
use ballet_proxy::{PolicyTable, Upstreams};

use crate::access_log::LogTarget;
use crate::access_log::tests::Kept;
use crate::{Gateway, GatewayConfig};

/// A request or an answer as it stood on the wire.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    /// `GET /x HTTP/1.1` or `HTTP/1.1 200 OK`.
    pub(crate) line: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn status(&self) -> u16 {
        self.line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Reads one; `None` at the end of the connection. `head`: an answer without body, whatever it says.
    async fn read(stream: &mut TcpStream, kept: &mut Vec<u8>, head: bool) -> Option<Self> {
        let mut message = loop {
            if let Some(end) = kept.windows(4).position(|w| w == b"\r\n\r\n") {
                let text = String::from_utf8(kept.drain(..end + 4).collect()).unwrap();
                let mut lines = text.trim_end().split("\r\n");
                let line = lines.next().unwrap().to_owned();
                let headers = lines.map(|line| line.split_once(':').unwrap());
                let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
                break Self { line, headers: headers.collect(), body: String::new() };
            }
            if stream.read_buf(kept).await.ok()? == 0 {
                return None;
            }
        };
        let length: usize = message.header("content-length").map_or(0, |length| length.parse().unwrap());
        if !head && length > 0 {
            while kept.len() < length {
                if stream.read_buf(kept).await.ok()? == 0 {
                    return None;
                }
            }
            message.body = String::from_utf8(kept.drain(..length).collect()).unwrap();
        }
        Some(message)
    }
}

type Answerer = dyn Fn(&Message) -> Option<(u16, String)> + Send + Sync;

/// A service with one instance. It answers JSON; `None` closes the connection without a word.
pub(crate) struct TestService {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Message>>>,
    task: AbortHandle,
}

impl TestService {
    pub(crate) async fn start(answer: impl Fn(&Message) -> Option<(u16, String)> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(vec![]));
        let (answer, theirs): (Arc<Answerer>, _) = (Arc::new(answer), seen.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer.clone(), theirs.clone()));
            }
        });
        Self { address, seen, task: task.abort_handle() }
    }

    /// Answers `{"service": name}` to everything.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::start(move |_| Some((200, format!("{{\"service\":\"{name}\"}}")))).await
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> Message {
        self.seen.lock().unwrap().last().cloned().expect("the service was called")
    }
}

impl Drop for TestService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, answer: Arc<Answerer>, seen: Arc<Mutex<Vec<Message>>>) {
    let mut kept = vec![];
    while let Some(request) = Message::read(&mut stream, &mut kept, false).await {
        seen.lock().unwrap().push(request.clone());
        let Some((status, body)) = answer(&request) else { return };
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
        let body = if request.line.starts_with("HEAD ") { String::new() } else { body };
        if stream.write_all((head + &body).as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Says where services are; tests move them.
#[derive(Clone, Default)]
pub(crate) struct Places(Arc<Mutex<Vec<(ServiceName, SocketAddr)>>>, Arc<tokio::sync::Notify>, Arc<AtomicUsize>);

impl Places {
    pub(crate) fn set(&self, services: &[(&str, SocketAddr)]) {
        *self.0.lock().unwrap() = services.iter().map(|(name, at)| (name.parse().unwrap(), *at)).collect();
        self.2.fetch_add(1, Ordering::SeqCst);
        self.1.notify_waiters();
    }

    fn now(&self, service: &ServiceName) -> Arc<Instances> {
        let places = self.0.lock().unwrap();
        let all = places.iter().filter(|(name, _)| name == service).enumerate();
        let all = all.map(|(n, (name, address))| Instance {
            id: format!("{name}-{n}").parse().unwrap(),
            service: name.clone(),
            address: *address,
            state: InstanceState::Up,
            version: "v1".into(),
            metadata: Default::default(),
        });
        Arc::new(Instances { version: 1 + self.2.load(Ordering::SeqCst) as u64, all: all.collect() })
    }
}

impl Discovery for Places {
    fn resolve(&self, service: &ServiceName) -> Later<'_, Result<Arc<Instances>, ballet_core::DiscoveryError>> {
        let now = self.now(service);
        Box::pin(async move { Ok(now) })
    }

    fn watch(
        &self,
        service: &ServiceName,
        seen: u64,
    ) -> Later<'_, Result<Arc<Instances>, ballet_core::DiscoveryError>> {
        let service = service.clone();
        Box::pin(async move {
            loop {
                let changed = self.1.notified();
                let now = self.now(&service);
                if now.version != seen {
                    return Ok(now);
                }
                changed.await;
            }
        })
    }
}

/// A gateway with what it needs.
pub(crate) struct Rig {
    pub(crate) gateway: Gateway,
    pub(crate) places: Places,
    pub(crate) log: Kept,
    pub(crate) dir: tempfile::TempDir,
}

impl Rig {
    /// Starts a gateway for these routes (lines of YAML) and services.
    pub(crate) fn start(routes: &str, services: &[(&str, SocketAddr)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let manifest = manifest(dir.path(), routes);
        let places = Places::default();
        places.set(services);
        let upstreams = Upstreams::new("gateway", Arc::new(places.clone()), PolicyTable::default(), 1);
        let log = Kept::default();
        let mut config = GatewayConfig::new(upstreams);
        config.access_log = LogTarget::Writer(Box::new(log.clone()));
        let gateway = Gateway::start(&manifest, config).unwrap();
        Self { gateway, places, log, dir }
    }

    pub(crate) fn manifest(&self, routes: &str) -> Manifest {
        manifest(self.dir.path(), routes)
    }

    pub(crate) async fn client(&self) -> Client {
        Client { stream: TcpStream::connect(self.gateway.address()).await.unwrap(), kept: vec![] }
    }

    /// One request on a connection of its own; `lines` are header lines.
    pub(crate) async fn send(&self, request_line: &str, lines: &[&str], body: &str) -> Message {
        self.client().await.send(request_line, lines, body).await.expect("an answer")
    }

    pub(crate) async fn get(&self, path: &str, lines: &[&str]) -> Message {
        self.send(&format!("GET {path}"), lines, "").await
    }

    /// Shuts down and gives the access log.
    pub(crate) async fn lines(&self) -> Vec<serde_json::Value> {
        assert!(self.gateway.shutdown(std::time::Duration::from_secs(5)).await, "shutdown took too long");
        self.log.lines()
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    kept: Vec<u8>,
}

impl Client {
    /// `None`: the connection was closed.
    pub(crate) async fn send(&mut self, request_line: &str, lines: &[&str], body: &str) -> Option<Message> {
        let mut text = format!("{request_line} HTTP/1.1\r\nhost: shop.test\r\n");
        for line in lines {
            text += &format!("{line}\r\n");
        }
        if !body.is_empty() {
            text += &format!("content-length: {}\r\n", body.len());
        }
        text += &format!("\r\n{body}");
        self.raw(&text).await
    }

    pub(crate) async fn raw(&mut self, text: &str) -> Option<Message> {
        self.stream.write_all(text.as_bytes()).await.ok()?;
        Message::read(&mut self.stream, &mut self.kept, text.starts_with("HEAD ")).await
    }
}

/// A manifest with these routes; services, policies and rules are those of the shop.
fn manifest(dir: &std::path::Path, routes: &str) -> Manifest {
    let text = format!(
        "
system: test
services:
  users: {{ run: users }}
  catalog: {{ run: catalog }}
  orders: {{ run: orders }}
  payments: {{ run: payments, policy: payments }}
policies:
  default: {{ timeout: 2s, breaker: {{ failures: 5, open_for: 5s }} }}
  payments: {{ timeout: 5s, fallback: {{ status: 503, title: Payment service is unavailable. }} }}
access:
  user: {{ jwt: {{ issuer: users, audience: shop, keys: \"users:/.well-known/jwks.json\" }} }}
  staff: {{ use: user, allow: {{ roles: staff }} }}
gateway:
  listen: 127.0.0.1:0
  routes:
{routes}
"
    );
    let file = dir.join("ballet.yaml");
    std::fs::write(&file, text).unwrap();
    load(&LoadOptions { file, ..LoadOptions::default() }).unwrap_or_else(|mistakes| panic!("{mistakes}")).manifest
}
