//! One client's connection.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::serve::Handler;
use crate::serve::server::Shared;

pub(crate) async fn serve<H: Handler>(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared<H>>) {
    drop((stream, peer, shared));
}
