#![expect(missing_docs, reason = "a test binary has no readers of docs")]
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod calls;
mod corpus;
mod rig;
mod serve;
