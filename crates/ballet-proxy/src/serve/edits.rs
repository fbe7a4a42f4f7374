//! Changes to headers, made ready when configuration loads.

use crate::h1::{self, is};

/// Header changes that a route always makes: names to leave out, lines to add.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    drop: Vec<Vec<u8>>,
    lines: Vec<u8>,
}

/// A header that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header `{0}` cannot be set: its name or value holds a forbidden character, or it is the connection's own")]
pub struct BadHeader(pub String);

impl Edits {
    /// Removes all headers of this name. `Host` can be replaced but not removed, as HTTP/1.1 demands one.
    #[must_use]
    pub fn remove(mut self, name: &str) -> Self {
        if !name.eq_ignore_ascii_case("host") {
            self.drop.push(name.to_ascii_lowercase().into_bytes());
        }
        self
    }

    /// Replaces all headers of this name by one.
    ///
    /// # Errors
    /// [`BadHeader`] for forbidden characters and for headers that frame the message.
    pub fn set(mut self, name: &str, value: &str) -> Result<Self, BadHeader> {
        self.drop.push(name.to_ascii_lowercase().into_bytes());
        self.add(name, value)
    }

    /// Adds a header beside those of the same name.
    ///
    /// # Errors
    /// See [`Edits::set`].
    pub fn add(mut self, name: &str, value: &str) -> Result<Self, BadHeader> {
        if !may_set(name.as_bytes(), value.as_bytes()) {
            return Err(BadHeader(name.to_owned()));
        }
        h1::put(&mut self.lines, name.as_bytes(), value.as_bytes());
        Ok(self)
    }

    pub(crate) fn drops(&self, name: &[u8]) -> bool {
        self.drop.iter().any(|d| is(name, d))
    }

    pub(crate) fn lines(&self) -> &[u8] {
        &self.lines
    }
}

/// Whether a header may be written by others than the codec.
pub(crate) fn may_set(name: &[u8], value: &[u8]) -> bool {
    h1::token(name) && h1::writable(value) && !h1::hop_by_hop(name) && !is(name, b"content-length")
}
