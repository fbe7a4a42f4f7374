//! The driver through the journal's suite.

use std::path::PathBuf;
use std::sync::Arc;

use ballet_sqlite::{Options, Sqlite};
use ballet_store::Journal;
use ballet_store::conformance::JournalRig;

/// One file in a directory of its own.
struct Rig {
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { file: directory.path().join("platform/journal.db"), _directory: directory }
    }
}

impl JournalRig for Rig {
    fn handle(&self) -> Arc<dyn Journal> {
        Arc::new(Sqlite::open(&self.file, Options::default()).expect("the file opens"))
    }
}

ballet_store::journal_conformance!(Rig::new());
