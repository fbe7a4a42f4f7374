//! Accepts connections, and stops without losing a request.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::warn;

use ballet_core::Chain;
use ballet_resilience::SharedRng;

use crate::serve::connection;
use crate::serve::{Handler, ServeConfig};

/// Connections that wait in the kernel to be accepted.
const BACKLOG: i32 = 1024;
/// Rest after `accept` failed, as it does when file descriptors run out.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// A running server. Dropping it closes its connections at once; [`Server::shutdown`] lets them finish.
pub struct Server {
    address: SocketAddr,
    drain: watch::Sender<bool>,
    /// Every connection holds a clone.
    open: Arc<()>,
    task: Option<JoinHandle<JoinSet<()>>>,
}

/// What all connections of a server share.
pub(crate) struct Shared<H> {
    pub(crate) handler: Arc<H>,
    pub(crate) config: ServeConfig,
    pub(crate) rng: SharedRng,
    pub(crate) drain: watch::Receiver<bool>,
}

/// A block of addresses: `10.0.0.0/8`, `::1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// Opens a listener. A port that was just given up can be taken at once (`SO_REUSEADDR`).
///
/// # Errors
/// When the address is taken or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

impl Server {
    /// Serves what arrives at a listener.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start<H: Handler>(listener: TcpListener, handler: Arc<H>, config: ServeConfig) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let drain = watch::Sender::new(false);
        let open = Arc::new(());
        let shared = Arc::new(Shared { handler, rng: SharedRng::new(config.seed), drain: drain.subscribe(), config });
        let task = tokio::spawn(accept(listener, shared, open.clone()));
        Ok(Self { address, drain, open, task: Some(task) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        // Two clones are the server's own and the acceptor's.
        Arc::strong_count(&self.open).saturating_sub(2)
    }

    /// Stops accepting, lets every exchange finish and says `Connection: close` with each last answer; what is not done
    /// within `grace` is cut off. Says whether all was done.
    pub async fn shutdown(mut self, grace: Duration) -> bool {
        self.drain.send_replace(true);
        let Some(task) = self.task.take() else { return true };
        // The acceptor only hands over its connections now.
        let Ok(mut connections) = task.await else { return true };
        timeout(grace, async { while connections.join_next().await.is_some() {} }).await.is_ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn accept<H: Handler>(listener: TcpListener, shared: Arc<Shared<H>>, open: Arc<()>) -> JoinSet<()> {
    let places = Arc::new(Semaphore::new(shared.config.max_connections.min(Semaphore::MAX_PERMITS)));
    let mut drain = shared.drain.clone();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = drain.wait_for(|drain| *drain) => break,
            accepted = accept_one(&listener, &places) => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer, place)) => {
                let (shared, open) = (shared.clone(), open.clone());
                connections.spawn(async move {
                    let _held = (place, open);
                    connection::serve(stream, peer, shared).await;
                });
            }
            Err(error) => {
                warn!(error = %Chain(&error), "cannot accept a connection");
                sleep(ACCEPT_REST).await;
            }
        }
    }
    connections
}

async fn accept_one(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, peer, place))
}

impl Network {
    /// Whether the address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        fn same<const N: usize>(a: [u8; N], b: [u8; N], bits: u8) -> bool {
            (0..usize::from(bits)).all(|bit| (a[bit / 8] ^ b[bit / 8]) & (0x80 >> (bit % 8)) == 0)
        }
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(a.octets(), b.octets(), self.bits),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.octets(), b.octets(), self.bits),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not an address or a block like `10.0.0.0/8`");
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| wrong()))?;
        if bits > most { Err(wrong()) } else { Ok(Self { address, bits }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        for (network, address, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.0/8", "::ffff:127.0.0.1", true),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("fd00::/8", "fd12::1", true),
            ("fd00::/8", "10.0.0.1", false),
        ] {
            assert_eq!(
                network.parse::<Network>().unwrap().contains(address.parse().unwrap()),
                inside,
                "{network} {address}"
            );
        }
        assert!("10.0.0.0/33".parse::<Network>().is_err());
        assert!("ten".parse::<Network>().is_err());
    }
}
