//! Why a store refused.

use ballet_core::{Classify, CodeEntry, ErrorCode, Retry};

/// Why a store refused. `Fenced`, `Exists`, `Invalid`, `Shape` and `Failed` mean that nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Somebody else owns the shard by now.
    #[error("shard {0} is owned by somebody else")]
    Fenced(i64),
    /// An inserted key is there already, in the named table.
    #[error("a row with this key is in `{0}` already")]
    Exists(&'static str),
    /// The request breaks a rule of the seam.
    #[error("not a valid request: {0}")]
    Invalid(String),
    /// The stored tables are not those that were declared.
    #[error("the stored tables do not fit: {0}")]
    Shape(String),
    /// The disk or the server refused.
    #[error("nothing was written: {0}")]
    Failed(String),
    /// The answer was lost: claim again and read before going on.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

impl Classify for StoreError {
    fn code(&self) -> ErrorCode {
        ErrorCode(match self {
            Self::Fenced(_) => "ST001",
            Self::Exists(_) => "ST002",
            Self::Invalid(_) => "ST003",
            Self::Shape(_) => "ST004",
            Self::Failed(_) => "ST005",
            Self::Unknown(_) => "ST006",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Fenced(_) | Self::Exists(_) | Self::Invalid(_) | Self::Shape(_) => Retry::Never,
            Self::Failed(_) => Retry::Safe(None),
            Self::Unknown(_) => Retry::IfIdempotent,
        }
    }
}

/// This crate's part of the error table.
pub static CODES: &[CodeEntry] = &[
    CodeEntry {
        code: ErrorCode("ST001"),
        title: "shard owned by somebody else",
        cause: "another process took over this part of the data while this one was paused or cut off",
        remedy: "nothing: the new owner goes on; this process stops writing and asks again for shards",
    },
    CodeEntry {
        code: ErrorCode("ST002"),
        title: "row exists",
        cause: "something was to be written once and is there already",
        remedy: "treat the request as done before; if it should be new, choose another id",
    },
    CodeEntry {
        code: ErrorCode("ST003"),
        title: "invalid store request",
        cause: "a key is too long, a text holds U+0000, or a table was not opened",
        remedy: "shorten the id named in the message; anything else is a defect of ours, please report it",
    },
    CodeEntry {
        code: ErrorCode("ST004"),
        title: "stored tables do not fit",
        cause: "the state was written by a version with other tables",
        remedy: "run the version that wrote it, or move `.ballet/platform` away and start afresh",
    },
    CodeEntry {
        code: ErrorCode("ST005"),
        title: "the store refused",
        cause: "the disk is full or failing, or the database refused the statement",
        remedy: "make room on the disk or look at the database's log; nothing that was acknowledged is lost",
    },
    CodeEntry {
        code: ErrorCode("ST006"),
        title: "outcome unknown",
        cause: "the store stopped or the connection broke before it answered",
        remedy: "the platform reads back what was written before it goes on; ask again",
    },
];
