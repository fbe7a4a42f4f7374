#![expect(missing_docs, reason = "a test binary has no readers of docs")]

mod calls;
mod corpus;
mod rig;
mod serve;
