//! What can go wrong here, with codes.

use std::io;
use std::path::PathBuf;

use ballet_core::{Classify, CodeEntry, ErrorCode, Retry, ServiceName};

use crate::spec::MAX_INSTANCES;

/// Why a state directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another `ballet up` uses it.
    #[error("{} is in use by another `ballet up`{}", .path.display(), .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Locked {
        /// The state directory.
        path: PathBuf,
        /// The other's pid, when it could be read.
        pid: Option<u32>,
    },
    /// A later Ballet wrote it.
    #[error("{} has format {found}, this ballet knows up to {known}", .path.display())]
    Newer {
        /// The state directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest one we know.
        known: u32,
    },
    /// Its `format` file is not ours.
    #[error("{} holds no format number", .path.display())]
    BadFormat {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read or written.
    #[error("cannot use {}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
}

impl Classify for StateError {
    fn code(&self) -> ErrorCode {
        ErrorCode(match self {
            Self::Locked { .. } => "SV001",
            Self::Newer { .. } => "SV002",
            Self::BadFormat { .. } => "SV003",
            Self::Io { .. } => "SV004",
        })
    }

    fn retry(&self) -> Retry {
        Retry::Never
    }
}

/// Why a service could not be told what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ControlError {
    /// No service has that name.
    #[error("no service named `{0}`")]
    UnknownService(String),
    /// It runs elsewhere.
    #[error("`{0}` runs elsewhere (`url:`), so there is no process to control")]
    Elsewhere(ServiceName),
    /// Too many instances.
    #[error("{0} instances are more than {MAX_INSTANCES}")]
    TooMany(u32),
    /// The system is going down.
    #[error("the system is going down")]
    GoingDown,
}

impl Classify for ControlError {
    fn code(&self) -> ErrorCode {
        ErrorCode(match self {
            Self::UnknownService(_) => "SV010",
            Self::Elsewhere(_) => "SV011",
            Self::TooMany(_) => "SV012",
            Self::GoingDown => "SV013",
        })
    }

    fn retry(&self) -> Retry {
        match self {
            Self::UnknownService(_) | Self::Elsewhere(_) | Self::TooMany(_) | Self::GoingDown => Retry::Never,
        }
    }
}

const fn row(code: &'static str, title: &'static str, cause: &'static str, remedy: &'static str) -> CodeEntry {
    CodeEntry { code: ErrorCode(code), title, cause, remedy }
}

/// Every code of this crate.
pub static CODES: &[CodeEntry] = &[
    row(
        "SV001",
        "state directory in use",
        "A running `ballet up` holds the lock of this state directory; two would fight over the same stores and ports.",
        "Stop the other with `ballet down`, or give this one a directory of its own with `--state DIR`.",
    ),
    row(
        "SV002",
        "state directory of a later version",
        "A later Ballet wrote this state directory, and this one does not know how to read it.",
        "Use that later version, or another directory with `--state DIR`; `ballet down --wipe` of the later version removes this one.",
    ),
    row(
        "SV003",
        "not a state directory",
        "The file `format` in the state directory does not hold a number, so the directory may belong to something else.",
        "Look at the directory; if it is Ballet's, restore its `format` file (`1`), else pass another with `--state DIR`.",
    ),
    row(
        "SV004",
        "state directory not usable",
        "A file or directory of the state cannot be created, read or written.",
        "Look at owner, rights and free space of the path in the message, or pass another directory with `--state DIR`.",
    ),
    row("SV010", "no such service", "The manifest has no service of that name.", "`ballet ps` lists the names."),
    row(
        "SV011",
        "service runs elsewhere",
        "The service has a `url:` in the manifest: somebody else runs it.",
        "Stop, start or scale it where it runs, or give it a `run:` in the manifest.",
    ),
    row(
        "SV012",
        "too many instances",
        "More instances were asked for than one supervisor starts for a service.",
        "Ask for 64 at most; beyond that, run the service on several machines.",
    ),
    row(
        "SV013",
        "system going down",
        "`ballet down` was asked for and is under way.",
        "Start the system again with `ballet up`.",
    ),
    row(
        "SV014",
        "admin token missing or wrong",
        "Calls that change the system need `Authorization: Bearer` with the token of the state directory.",
        "Send the content of the file `token` in the state directory; the `ballet` commands do so when they find the directory.",
    ),
    row(
        "SV015",
        "request not understood",
        "The body or the query of the call does not have the expected form.",
        "The detail says what is wrong; to scale, send `{\"instances\": N}`.",
    ),
    row(
        "SV016",
        "logs not readable",
        "The supervisor could not read the service's log files.",
        "Look at the files `services/NAME/NAME-INSTANCE.log` in the state directory.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_row() {
        let errors: Vec<Box<dyn Classify>> = vec![
            Box::new(StateError::Locked { path: "x".into(), pid: None }),
            Box::new(StateError::Newer { path: "x".into(), found: 2, known: 1 }),
            Box::new(StateError::BadFormat { path: "x".into() }),
            Box::new(StateError::Io { path: "x".into(), source: io::Error::other("x") }),
            Box::new(ControlError::UnknownService("x".into())),
            Box::new(ControlError::Elsewhere("x".parse().unwrap())),
            Box::new(ControlError::TooMany(65)),
            Box::new(ControlError::GoingDown),
        ];
        for error in errors {
            assert_eq!(CODES.iter().filter(|row| row.code == error.code()).count(), 1, "{}", error.code());
        }
    }
}
