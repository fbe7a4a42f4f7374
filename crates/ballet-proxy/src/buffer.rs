//! A read buffer: bytes come in at the end and are used up from the front.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// What one read asks for, in bytes. Below 16 KiB a 10 KiB body costs a second read and write.
pub(crate) const READ: usize = 16 << 10;

#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    used: usize,
}

impl Buffer {
    /// What was read and not used yet.
    pub(crate) fn data(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.used == self.bytes.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.used
    }

    /// Marks bytes as used.
    pub(crate) fn eat(&mut self, count: usize) {
        self.used = (self.used + count).min(self.bytes.len());
        if self.used == self.bytes.len() {
            self.clear();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.used = 0;
    }

    /// Puts bytes at the end that were read elsewhere.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Reads once; 0 means the end. Cancel safe: nothing read is lost.
    pub(crate) async fn fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> io::Result<usize> {
        self.make_room();
        stream.read_buf(&mut self.bytes).await
    }

    /// Gives the memory back when nothing is in it.
    pub(crate) fn release(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }

    fn make_room(&mut self) {
        if self.used > 0 {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        if self.bytes.capacity() - self.bytes.len() < READ / 4 {
            self.bytes.reserve(READ);
        }
    }
}
