//! Answers that the gateway gives itself.

use ballet_core::Problem;
use bytes::Bytes;

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
    /// `Content-Length` of an answer to HEAD. Default: the body's length.
    pub(crate) length: Option<u64>,
}

impl Answer {
    pub(crate) fn new(status: u16) -> Self {
        Self { status, headers: vec![], body: Bytes::new(), length: None }
    }

    /// Adds a header.
    pub(crate) fn header(&mut self, name: &'static str, value: &str) {
        self.headers.push((name, value.to_owned()));
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.header(name, value);
        self
    }

    /// A problem document.
    pub(crate) fn problem(problem: &Problem) -> Self {
        let mut answer = Self::new(problem.status).with("content-type", Problem::MEDIA_TYPE);
        answer.body = problem.to_json().into();
        answer
    }

    /// JSON that was written already.
    pub(crate) fn json(status: u16, body: impl Into<Bytes>) -> Self {
        let mut answer = Self::new(status).with("content-type", "application/json");
        answer.body = body.into();
        answer
    }

    /// The first header of this name.
    #[cfg(test)]
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
    }
}
