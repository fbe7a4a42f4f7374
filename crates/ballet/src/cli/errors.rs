//! How a command says that it did not succeed: message, causes, code, next step, exit code.

use std::error::Error;
use std::fmt;

use ballet_core::{Classify, CodeEntry, ErrorCode};

/// Why a command did not succeed.
#[derive(Debug)]
pub struct CliError {
    /// 1 the answer is no, 2 the question was wrong, 3 the platform could not be reached.
    pub exit: u8,
    message: String,
    code: Option<String>,
    hint: Option<String>,
}

impl CliError {
    /// It ran, and the answer is no.
    pub fn no(message: impl fmt::Display) -> Self {
        Self { exit: 1, message: message.to_string(), code: None, hint: None }
    }

    /// The question was wrong.
    pub fn wrong(message: impl fmt::Display) -> Self {
        Self { exit: 2, ..Self::no(message) }
    }

    /// The platform could not be reached.
    pub fn unreachable(message: impl fmt::Display) -> Self {
        Self { exit: 3, ..Self::no(message) }.hint("start it with `ballet up`, or name its manifest with `--file`")
    }

    /// An error of a part, with its code and the remedy that the table knows.
    pub fn from_part(error: &(impl Error + Classify)) -> Self {
        let code = error.code();
        let remedy = entry(code.0).map(|entry| entry.remedy.to_owned());
        Self { exit: 1, message: ballet_core::Chain(error).to_string(), code: Some(code.to_string()), hint: remedy }
    }

    /// Adds the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the code.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Prints it on standard error.
    pub fn report(&self) {
        if self.message.is_empty() {
            return;
        }
        let red = anstyle::Style::new().bold().fg_color(Some(anstyle::AnsiColor::Red.into()));
        let code = self.code.as_ref().map(|code| format!("[{code}]")).unwrap_or_default();
        anstream::eprintln!("{red}error{code}{red:#}: {}", self.message);
        if let Some(hint) = &self.hint {
            anstream::eprintln!("  next: {hint}");
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The assembly's own rows of the error table.
static CODES: &[CodeEntry] = &[
    CodeEntry {
        code: ErrorCode("BA001"),
        title: "the address is taken",
        cause: "another program listens where a listener of the manifest should stand",
        remedy: "end that program, change the key that the message names, or set port 0 for a free one",
    },
    CodeEntry {
        code: ErrorCode("BA002"),
        title: "misdirected request",
        cause: "`Host` names something else than this machine, as it does when a foreign page's name resolves to it",
        remedy: "ask at the address that `ballet up` prints, or at `localhost`",
    },
    CodeEntry {
        code: ErrorCode("BA003"),
        title: "no such page of the platform",
        cause: "none of the platform's faces has this path",
        remedy: "the gateway's routes are at the gateway's address; `ballet ps` prints both",
    },
    CodeEntry {
        code: ErrorCode("BA004"),
        title: "a foreign page may change nothing here",
        cause: "a web page of another address tried to change something of the platform by way of your browser",
        remedy: "nothing: it was refused; if the page is yours, let its server call the platform",
    },
];

/// All parts' error tables.
pub(crate) fn all_codes() -> Vec<&'static CodeEntry> {
    let tables: [&'static [CodeEntry]; 13] = [
        ballet_store::CODES,
        ballet_manifest::CODES,
        ballet_resilience::CODES,
        ballet_proxy::CODES,
        ballet_gateway::CODES,
        ballet_registry::CODES,
        ballet_bus::CODES,
        ballet_orchestrator::CODES,
        ballet_sidecar::CODES,
        ballet_supervisor::CODES,
        ballet_client::CODES,
        ballet_service::CODES,
        CODES,
    ];
    let mut all: Vec<&CodeEntry> = tables.into_iter().flatten().collect();
    all.sort_by_key(|entry| entry.code);
    all
}

/// The row of one code.
pub(crate) fn entry(code: &str) -> Option<&'static CodeEntry> {
    all_codes().into_iter().find(|entry| entry.code.0.eq_ignore_ascii_case(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_stands_once_in_the_table() {
        let mut seen = std::collections::BTreeSet::new();
        for entry in all_codes() {
            assert!(seen.insert(entry.code), "{} stands twice", entry.code);
            assert!(!entry.cause.is_empty() && !entry.remedy.is_empty(), "{} says too little", entry.code);
        }
        assert!(entry("mf001").is_some(), "codes are found in any case");
    }
}
