//! Small systems: a manifest in a directory of its own, with services of `service.py`.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use ballet_tests::{Ballet, Command, Reply, Request, bin, repository};
use serde_json::Value;
use tempfile::TempDir;

/// Whether the service for tests can run; says loudly that a test is skipped, and fails in CI, if not.
pub(crate) fn python() -> bool {
    let there = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(there || std::env::var_os("CI").is_none(), "the tests need python3; `cargo xtask test` installs it");
    if !there {
        eprintln!("SKIPPED: this test needs python3; `cargo xtask test` installs it");
    }
    there
}

/// Longest wait for something that happens by itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory with `ballet.yaml`; the state is in `.ballet/` beside it, as it is by default.
pub(crate) struct Small {
    dir: TempDir,
}

impl Small {
    /// Writes a manifest. `<service>` in it becomes the command of the service for tests.
    pub(crate) fn new(manifest: &str) -> Self {
        let small = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        small.edit(manifest);
        small
    }

    /// Replaces the manifest at once, as an editor does.
    pub(crate) fn edit(&self, manifest: &str) {
        let service = format!("python3 '{}'", repository().join("tests/it/service.py").display());
        std::fs::write(self.path("edited"), manifest.replace("<service>", &service)).expect("written");
        std::fs::rename(self.path("edited"), self.manifest()).expect("renamed");
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A file of the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The manifest.
    pub(crate) fn manifest(&self) -> PathBuf {
        self.path("ballet.yaml")
    }

    /// The state's directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.path(".ballet")
    }

    /// Starts the system and waits until it is ready.
    pub(crate) fn up(&self) -> Ballet {
        Ballet::start(&self.manifest(), &self.state(), &[])
    }

    /// `ballet` with these words, in the directory.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(bin("ballet"));
        command.args(words).current_dir(self.dir());
        command
    }

    /// Runs `ballet` with these words in the directory, to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Ran {
        Ran::of(&self.command(words).output().expect("ballet runs"))
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its exit code; `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it printed as data.
    pub(crate) out: String,
    /// What it said to people.
    pub(crate) err: String,
}

impl Ran {
    /// Reads the output of a command.
    pub(crate) fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Panics unless it ended with this code; hands itself on.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// Its data as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

/// Asks again and again until the answer is as wanted; panics with the last one when that takes too long.
pub(crate) async fn until(request: Request, wanted: impl Fn(&Reply) -> bool) -> Reply {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let reply = request.try_send().await;
        match reply {
            Ok(reply) if wanted(&reply) => return reply,
            reply => assert!(tokio::time::Instant::now() < deadline, "still not as wanted: {reply:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a process is there (a dead one that nobody has waited for yet is not).
pub(crate) fn alive(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Waits until none of the processes is there; panics with those that are after `limit`.
pub(crate) async fn gone(pids: &[i64], limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let left: Vec<&i64> = pids.iter().filter(|pid| alive(**pid)).collect();
        if left.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "still there after {limit:?}: {left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
