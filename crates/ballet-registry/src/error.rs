//! Why the registry refused.

use ballet_core::{Classify, CodeEntry, ErrorCode, InstanceId, Retry, ServiceName};
use ballet_store::StoreError;

/// Why the registry refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The engine has stopped.
    #[error("the registry has stopped")]
    Stopped,
    /// A field of the registration breaks a rule.
    #[error("`{field}` {detail}")]
    Invalid {
        /// The field, as it is called in JSON.
        field: &'static str,
        /// The rule: "must be …".
        detail: String,
    },
    /// Nobody registered this instance, or it was removed: register again.
    #[error("no instance `{instance}` of service `{service}`")]
    UnknownInstance {
        /// The service asked for.
        service: ServiceName,
        /// The instance asked for.
        instance: InstanceId,
    },
    /// One of the registry's limits is reached.
    #[error("the registry is full: {0}")]
    Full(&'static str),
    /// The journal refused. The change is known in memory and will be written with the next renewals.
    #[error("the registry cannot write")]
    Store(#[source] StoreError),
}

impl Classify for RegistryError {
    fn code(&self) -> ErrorCode {
        ErrorCode(match self {
            Self::Stopped => "RG001",
            Self::Invalid { .. } => "RG002",
            Self::UnknownInstance { .. } => "RG003",
            Self::Full(_) => "RG004",
            Self::Store(_) => "RG005",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::Stopped => Retry::Safe(None),
            Self::Invalid { .. } | Self::UnknownInstance { .. } | Self::Full(_) => Retry::Never,
            Self::Store(_) => Retry::IfIdempotent,
        }
    }
}

/// This crate's part of the error table.
pub static CODES: &[CodeEntry] = &[
    CodeEntry {
        code: ErrorCode("RG001"),
        title: "no answer from the registry",
        cause: "the registry cannot be reached or is stopping",
        remedy: "callers go on with what they last knew; start the platform again with `ballet up`",
    },
    CodeEntry {
        code: ErrorCode("RG002"),
        title: "invalid registration",
        cause: "a name, an address, a duration or another field of the request breaks a rule",
        remedy: "`errors` in the answer names the field and the rule",
    },
    CodeEntry {
        code: ErrorCode("RG003"),
        title: "unknown instance",
        cause: "nobody registered this instance, or its lease ran out and it was removed",
        remedy: "register again; a heartbeat alone brings nobody back",
    },
    CodeEntry {
        code: ErrorCode("RG004"),
        title: "registry full",
        cause: "the registry holds 50,000 instances or 10,000 services already",
        remedy: "look with `ballet services` for who registers ever new ids, and give instances stable ones",
    },
    CodeEntry {
        code: ErrorCode("RG005"),
        title: "registration not on disk",
        cause: "the registry's journal refused the write",
        remedy: "see the code that the log gives as the cause; then register again",
    },
    CodeEntry {
        code: ErrorCode("RG006"),
        title: "method not allowed",
        cause: "this address of the registry's API does not know the method",
        remedy: "the `Allow` header names those that it knows",
    },
];
