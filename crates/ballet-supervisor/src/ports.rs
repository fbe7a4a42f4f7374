//! Free ports, and asking a service whether it is ready.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Most tries to find a port that nobody was offered yet.
const TRIES: usize = 64;
/// Longest head of an answer that a health check reads, in bytes.
const MAX_ANSWER: usize = 16 * 1024;

/// Ports that were offered to instances. Clones share one book.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ports(Arc<Mutex<HashSet<u16>>>);

impl Ports {
    /// Finds a free port and notes it, so that no other instance is offered the same before the first has bound it.
    pub(crate) fn take(&self) -> io::Result<u16> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TRIES {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            if taken.insert(port) {
                return Ok(port);
            }
        }
        Err(io::Error::other("no free port found"))
    }

    pub(crate) fn give_back(&self, port: u16) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&port);
    }
}

/// Whether a service could listen there now. (`bind` sets SO_REUSEADDR, so connections that are dying do not count.)
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Asks `GET path` and answers the status.
pub(crate) async fn ask(address: SocketAddr, path: &str, timeout: Duration) -> io::Result<u16> {
    tokio::time::timeout(timeout, async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: ballet-health\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(256);
        // To the end: hanging up in the middle would show as an error in the service's log.
        let read = stream.take(MAX_ANSWER as u64).read_to_end(&mut answer).await;
        status(&answer).ok_or_else(|| read.err().unwrap_or_else(|| io::Error::other("not an HTTP answer")))
    })
    .await?
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.get(..12)?).ok()?;
    line.strip_prefix("HTTP/1.")?.get(2..)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_offered_twice_before_it_is_given_back() {
        let ports = Ports::default();
        let taken: HashSet<u16> = (0..20).map(|_| ports.take().unwrap()).collect();
        assert_eq!(taken.len(), 20);
    }

    #[test]
    fn a_listener_makes_a_port_taken() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!is_free(port));
        drop(listener);
        assert!(is_free(port));
    }

    #[test]
    fn the_status_is_read_from_whatever_comes() {
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (b"HTTP/1.0 503 no\r\n", Some(503)),
            (b"HTTP/1.1 2", None),
            (b"SSH-2.0-OpenSSH", None),
            (b"HTTP/1.1 \xff\xff\xff", None),
        ] {
            assert_eq!(status(answer), expected);
        }
    }
}
