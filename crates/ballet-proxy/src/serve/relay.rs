//! Moves bodies from one side to the other, a buffer at a time: who cannot take more makes the other side wait.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::buffer::{Buffer, READ};
use crate::h1::chunks::{BadChunk, Chunks, Piece};
use crate::h1::request::Refusal;
use crate::h1::{Framing, put_chunk};

/// Why a request's body did not arrive upstream.
pub(crate) enum Upward {
    ClientLeft,
    Client(Refusal),
    Upstream,
}

/// Why an answer did not arrive at the client.
pub(crate) enum Downward {
    ClientLeft,
    Upstream(io::Error),
}

/// How slow a client may be: pauses use up credit, bytes earn it back.
pub(crate) struct Pace {
    credit: Duration,
    most: Duration,
}

/// Bytes that earn one second.
const BYTES_PER_SECOND: u64 = 1 << 10;

impl Pace {
    pub(crate) fn new(most: Duration) -> Self {
        Self { credit: most, most }
    }

    /// Reads once; 408 when the credit is used up.
    pub(crate) async fn fill<R: AsyncRead + Unpin>(&mut self, buffer: &mut Buffer, read: &mut R) -> Result<(), Upward> {
        let began = Instant::now();
        match timeout(self.credit, buffer.fill(read)).await {
            Ok(Ok(0) | Err(_)) => Err(Upward::ClientLeft),
            Ok(Ok(n)) => {
                let earned = Duration::from_millis(n as u64 * 1000 / BYTES_PER_SECOND);
                self.credit = (self.credit.saturating_sub(began.elapsed()) + earned).min(self.most);
                Ok(())
            }
            Err(_) => Err(Upward::Client(Refusal { status: 408, reason: "the body came too slowly" })),
        }
    }
}

pub(crate) const TOO_LARGE: Refusal = Refusal { status: 413, reason: "the body is longer than this route takes" };

/// Bounds an upload.
pub(crate) struct UploadLimits {
    pub(crate) pace: Pace,
    /// Longest body in bytes.
    pub(crate) max: u64,
    /// Longest wait for the service to take some of it.
    pub(crate) write: Duration,
}

/// Moves a request's body from the client to a service.
pub(crate) async fn upload<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    framing: Framing,
    input: &mut Buffer,
    read: &mut R,
    write: &mut W,
    scratch: &mut Vec<u8>,
    mut limits: UploadLimits,
    received: &AtomicU64,
) -> Result<(), Upward> {
    match framing {
        Framing::None | Framing::Close => Ok(()),
        Framing::Length(mut left) => loop {
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
            write_within(write, &input.data()[..take], limits.write).await.map_err(|_| Upward::Upstream)?;
            input.eat(take);
            received.fetch_add(take as u64, Ordering::Relaxed);
            left -= take as u64;
            if left == 0 {
                return Ok(());
            }
            limits.pace.fill(input, read).await?;
        },
        Framing::Chunked => {
            let mut chunks = Chunks::default();
            loop {
                scratch.clear();
                let (bytes, ended) =
                    recode(&mut chunks, input, scratch, true).map_err(|bad| Upward::Client(broken(bad)))?;
                if received.fetch_add(bytes, Ordering::Relaxed) + bytes > limits.max {
                    return Err(Upward::Client(TOO_LARGE));
                }
                write_within(write, scratch, limits.write).await.map_err(|_| Upward::Upstream)?;
                if ended {
                    return Ok(());
                }
                limits.pace.fill(input, read).await?;
            }
        }
    }
}

pub(crate) fn broken(bad: BadChunk) -> Refusal {
    Refusal { status: 400, reason: bad.0 }
}

/// Moves what is buffered of a chunked body to `out`, as chunks or bare. Says how much data that was and whether the
/// body has ended.
pub(crate) fn recode(
    chunks: &mut Chunks,
    input: &mut Buffer,
    out: &mut Vec<u8>,
    as_chunks: bool,
) -> Result<(u64, bool), BadChunk> {
    let mut bytes = 0;
    loop {
        let (used, piece) = chunks.next(input.data())?;
        match piece {
            Piece::Data(range) => {
                bytes += range.len() as u64;
                let data = &input.data()[range];
                if as_chunks {
                    put_chunk(out, data)
                } else {
                    out.extend_from_slice(data)
                }
                input.eat(used);
            }
            Piece::More => {
                input.eat(used);
                return Ok((bytes, false));
            }
            Piece::End => {
                input.eat(used);
                if as_chunks {
                    out.extend_from_slice(b"0\r\n\r\n");
                }
                return Ok((bytes, true));
            }
        }
    }
}

/// How an answer's body goes to the client.
pub(crate) struct Downstream {
    pub(crate) framing: Framing,
    /// Whether a body of unknown length gets chunks; else the connection's end is its end.
    pub(crate) as_chunks: bool,
    /// Longest pause of the service.
    pub(crate) pause: Option<Duration>,
    /// Longest wait for the client.
    pub(crate) write: Duration,
}

impl Downstream {
    /// Writes what stands in `out`, which is the head, and the body after it.
    pub(crate) async fn relay<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &self,
        back: &mut Buffer,
        read: &mut R,
        write: &mut W,
        out: &mut Vec<u8>,
        sent: &AtomicU64,
    ) -> Result<(), Downward> {
        let mut chunks = Chunks::default();
        let mut left = match self.framing {
            Framing::Length(left) => left,
            Framing::None | Framing::Chunked | Framing::Close => 0,
        };
        loop {
            let (bytes, ended) = match self.framing {
                Framing::None => (0, true),
                Framing::Length(_) => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(back.len());
                    left -= take as u64;
                    if out.is_empty() && take > 0 {
                        self.write(write, &back.data()[..take]).await?;
                    } else {
                        out.extend_from_slice(&back.data()[..take]);
                    }
                    back.eat(take);
                    (take as u64, left == 0)
                }
                Framing::Chunked => recode(&mut chunks, back, out, self.as_chunks)
                    .map_err(|bad| Downward::Upstream(io::Error::new(io::ErrorKind::InvalidData, bad)))?,
                Framing::Close => {
                    let bytes = back.len() as u64;
                    if self.as_chunks {
                        put_chunk(out, back.data())
                    } else {
                        out.extend_from_slice(back.data())
                    }
                    back.clear();
                    (bytes, false)
                }
            };
            if !out.is_empty() {
                self.write(write, out).await?;
                out.clear();
            }
            sent.fetch_add(bytes, Ordering::Relaxed);
            if ended {
                return Ok(());
            }
            if self.fill(back, read).await? == 0 {
                if self.framing != Framing::Close {
                    return Err(Downward::Upstream(io::ErrorKind::UnexpectedEof.into()));
                }
                return if self.as_chunks { self.write(write, b"0\r\n\r\n").await } else { Ok(()) };
            }
        }
    }

    async fn fill<R: AsyncRead + Unpin>(&self, back: &mut Buffer, read: &mut R) -> Result<usize, Downward> {
        let filled = match self.pause {
            Some(pause) => {
                timeout(pause, back.fill(read)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
            None => back.fill(read).await,
        };
        filled.map_err(Downward::Upstream)
    }

    async fn write<W: AsyncWrite + Unpin>(&self, write: &mut W, bytes: &[u8]) -> Result<(), Downward> {
        write_within(write, bytes, self.write).await.map_err(|_| Downward::ClientLeft)
    }
}

/// Writes all, but gives up when the other side does not take any for so long.
pub(crate) async fn write_within<W: AsyncWrite + Unpin>(
    write: &mut W,
    mut bytes: &[u8],
    pause: Duration,
) -> io::Result<()> {
    while !bytes.is_empty() {
        match timeout(pause, write.write(bytes)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Ok(n)) => bytes = &bytes[n..],
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Ok(())
}

/// Comes back when the client has left. What it sends meanwhile is kept, up to one buffer; then it is no longer watched.
pub(crate) async fn left<R: AsyncRead + Unpin>(input: &mut Buffer, read: &mut R) {
    loop {
        if input.len() >= READ {
            return std::future::pending().await;
        }
        match input.fill(read).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
